"""All methods on all sets, tasks and modalities: the long sweep behind notebook 06. Resumable; runs on the bundled miniature.

    python experiments/compare.py                     # everything, two hours on one core
    python experiments/compare.py --seeds 0           # a part of it; two processes may share the work
    python experiments/compare.py --settings data/results/comparison_choice.csv --out data/results/second_world
                                                     # in a clone with another world (make mini-data mini-model SEED=1),
                                                     # with the strengths that were chosen in this one

Three stages, each kept in data/results and not run again while the weights are the same:

1. choice: the learning rate and the strength (steps, rounds or α) of every method, on stand-ins. As many people as are to be
   forgotten are drawn from the retain set and play the forget set; the people that are reported take no part. What counts
   is the harmonic mean of how far the stand-ins are forgotten, *in the modalities that the method is given*, and what the
   other retained people keep. A method that is given images alone is thus not chosen for what happens to names.
2. cost: processor seconds, sequences read (questions about one image may share one), peak memory and weights changed, each
   method in a process of its own.
3. comparison: every method at its chosen strength by the full evaluation; for forget 10 % also the other strengths, by exact
   answers to open questions. The training baselines take all strengths from one path, as does rewriting.
"""

import argparse
import copy
import hashlib
import itertools
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock

from bench_scoring import own_peak_mb
from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.questions import open_questions
from manu_utils.benchmark.records import FORGET_RATIOS, MODALITIES
from manu_utils.evaluation.tables import evaluate, merit, summarise
from manu_utils.miniature.build import RETRAINED
from manu_utils.models.asking import known
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.progress import bar
from manu_utils.unlearning.activations import collect_activations
from manu_utils.unlearning.attribution import collect_attribution
from manu_utils.unlearning.baselines import METHODS, unlearn_by_training, with_system_prompt
from manu_utils.unlearning.coverage import choose_by_coverage
from manu_utils.unlearning.evidence import unlearn
from manu_utils.unlearning.pruning import prune, select_neurons
from manu_utils.unlearning.released import choose_rows
from manu_utils.unlearning.rewriting import collect_moments, rewrite, rewrite_neurons
from manu_utils.unlearning.scores import CONTROLS, PRUNINGS, score
from report import say, write_table

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "build"
SCALE = "tiny"
RATES = (1e-4, 3e-4)  # learning rates to choose from
STEPS = (6, 12, 24, 48, 96)  # one path through all of them
EVERY = 6  # steps between two looks
ALPHAS = (1.0, 2.0, 5.0, 10.0)
ROUNDS = (1, 2, 4, 8)  # of rewriting
BATCH = 16  # questions per modality and step
SAMPLE = 600  # retained questions per modality that the scores see, as in notebook 05
QUIET = {"progress": False}
KEYS = ["scale", "seed", "forget_ratio", "method", "modalities"]
COMPARISON = [*KEYS, "strength", "set", "task", "modality", "metric", "value", "n"]
COST = [*KEYS, "strength", "seconds", "sequences_read", "with_gradient", "peak_mb", "weights_changed"]
CHOICE = ["scale", "method", "modalities", "lr", "strength", "forget_quality", "utility", "balance", "merit", "chosen"]
# What is compared: the reference points, the baselines on image + text rows as released and on both, and every pruning.
REFERENCES = ("vanilla", "never met", "retrained", "system prompt")
ENTRIES = [(method, given) for method in METHODS for given in ("multimodal", "both")]
ENTRIES += [(method, "both") for method in ("rewrite", *PRUNINGS)]
METHOD_ORDER = (*REFERENCES, *METHODS, "rewrite", *PRUNINGS)


def strengths_of(method):
    return STEPS if method in METHODS else ROUNDS if method == "rewrite" else ALPHAS


def modalities_of(given):
    return MODALITIES if given == "both" else (given,)


def has_seeds(method):
    """Whether another seed gives another result."""
    return method not in REFERENCES and method != "magnitude"


class Bench:
    """The vanilla model, put back before every use, and the questions of one forget ratio.

    Args:
        stand_ins: let as many retained people play the forget set.
        people: evaluate at most so many people of each set (for trying things out).
    """

    def __init__(self, model, processor, forget_ratio, *, stand_ins=False, people=None):
        self.model, self.processor = model, processor
        benchmark = load_benchmark(SCALE, forget_ratio)
        forget, retain = benchmark.forget_ids, benchmark.retain_ids
        if stand_ins:
            forget = sorted(random.Random(1).sample(retain, len(forget)))
            retain = [person for person in retain if person not in set(forget)]
        self.training = {
            name: {m: benchmark.training_questions(ids, m) for m in MODALITIES}
            for name, ids in (("forget", forget), ("retain", retain))
        }
        asked = random.Random(0).sample(retain, 40)  # the same in every run
        rows = {name: [i for i, p in enumerate(benchmark.retain_ids) if p in set(ids)]
                for name, ids in (("forget", forget), ("retain", asked))}  # fmt: skip
        if stand_ins:
            self.sets = {name: benchmark.retain.select(index) for name, index in rows.items()}
        else:
            self.sets = benchmark.sets() | {"retain": benchmark.retain.select(rows["retain"])}
        if people:
            self.sets = {name: dataset.select(range(min(people, len(dataset)))) for name, dataset in self.sets.items()}
        self.panels = {(name, m): open_questions(self.sets[name], m) for name in ("forget", "retain") for m in MODALITIES}
        self.vanilla = copy.deepcopy(model.state_dict())
        self.statistics = {}

    def reset(self):
        self.model.load_state_dict(self.vanilla)

    def open_questions(self, model=None):
        """Rows set, task, modality, metric, value, n: exact answers to open questions, forget and retain."""
        right = {key: known(model or self.model, self.processor, q, **QUIET).double().mean() for key, q in self.panels.items()}
        return [
            {"set": name, "task": "open questions", "modality": m, "metric": "accuracy", "value": value.item(),
             "n": len(self.panels[name, m])}
            for (name, m), value in right.items()
        ]  # fmt: skip

    def everything(self, model=None, sets=None):
        """The same for all sets and tasks."""
        frame = evaluate(model or self.model, self.processor, sets or self.sets, **QUIET)
        return summarise(frame).to_dict("records")

    def path(self, method, given, lr, strengths, seed, measure):
        """step -> what ``measure`` finds there, along one path of a training baseline."""
        found, visits = {}, itertools.count()

        def watch():
            if (step := EVERY * next(visits)) in strengths:
                found[step] = measure(step)
            return {}

        self.reset()
        forget = {m: self.training["forget"][m] for m in modalities_of(given)}
        unlearn_by_training(
            method, self.model, self.processor, forget, self.training["retain"], lr=lr, steps=max(strengths),
            batch_size=BATCH, watch=watch, every=EVERY, seed=seed, **QUIET,
        )  # fmt: skip
        self.reset()
        return found

    def sample(self, seed):
        """The retained questions that the scores of one seed see."""
        return {m: random.Random(seed).sample(q, min(SAMPLE, len(q))) for m, q in self.training["retain"].items()}

    def selections(self, variant, alphas, seed):
        """α -> what is pruned; what several variants need is computed once."""
        forget, retain, given = self.training["forget"], self.sample(seed), (self.model, self.processor)
        mlps = find_neurons(self.model)
        if variant == "released_as_run":  # it draws its own sample
            retain = self.training["retain"]
            return {a: choose_rows(*given, forget, retain, alpha=a, seed=seed, **QUIET) for a in alphas}
        if variant == "coverage":
            facts = self.once("facts", lambda: {m: collect_attribution(*given, q, **QUIET) for m, q in forget.items()})
            cost = {m: collect_attribution(*given, q, reduce=True, **QUIET) for m, q in retain.items()}
            return {a: choose_by_coverage(*given, forget, cost, alpha=a, facts=facts, **QUIET) for a in alphas}
        sums = [{}, {}]
        if variant not in CONTROLS:
            sums = [
                self.once(name, lambda asked=asked: {m: collect_activations(*given, q, **QUIET) for m, q in asked.items()})
                for name, asked in (("forget", forget), (f"retain {seed}", retain))
            ]
        scores = score(variant, *sums, mlps=mlps, seed=seed)
        per = "tower" if variant == "released_score" else "model"
        return {alpha: select_neurons(scores, mlps, alpha, per) for alpha in alphas}

    def once(self, name, compute):
        if name not in self.statistics:
            self.statistics[name] = compute()
        return self.statistics[name]

    def results(self, method, given, lr, strengths, seed, measure):
        """strength -> what ``measure(strength)`` finds."""
        if method in METHODS:
            return self.path(method, given, lr, strengths, seed, measure)
        found = {}
        if method == "rewrite":
            moments = collect_moments(self.model, self.processor, self.sample(seed), **QUIET)
            for rounds, before in zip(strengths, (0, *strengths), strict=False):
                more = {"rounds": rounds - before, "on_top": True, **QUIET}
                rewrite_neurons(self.model, self.processor, self.training["forget"], moments, **more)
                found[rounds] = measure(rounds)
            self.reset()
            return found
        for alpha, selected in self.selections(method, strengths, seed).items():
            with prune(self.model, selected):
                found[alpha] = measure(alpha)
        return found


# ------------------------------------------------------------------------------------------------ files


class Results:
    """The CSVs of one state of the model, written as a whole under a lock; rows of another state are dropped."""

    def __init__(self, folder, state):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / "comparison.json"
        LOCKS.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(LOCKS / "comparison.lock")
        with self.lock:
            if not about.exists() or json.loads(about.read_text(encoding="utf-8"))["state"] != state:
                for name in ("comparison", "comparison_cost", "comparison_choice"):
                    (folder / f"{name}.csv").unlink(missing_ok=True)
                text = json.dumps({"command": "python experiments/compare.py", "state": state})
                about.write_text(text + "\n", encoding="utf-8")

    def read(self, name, columns):
        path = self.folder / f"{name}.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=columns)

    def add(self, name, columns, rows):
        """Write the rows of one method, in place of any that another process wrote meanwhile; the order does not depend on
        which came first.
        """
        path = self.folder / f"{name}.csv"
        new = pd.DataFrame(rows, columns=columns)
        key = [column for column in KEYS if column in columns]
        with self.lock:
            old = self.read(name, columns)
            frame = pd.concat([old[(old[key] != new[key].iloc[0]).any(axis=1)], new]).round(4)
            frame = frame.sort_values(key, key=in_order, kind="stable")
            write_table(frame, path, "%.5g")

    def has(self, name, columns, **key):
        frame = self.read(name, columns)
        return bool(frame[list(key)].eq(pd.Series(key)).all(axis=1).any())


def in_order(column):
    """What to sort a column by."""
    return column.map(METHOD_ORDER.index) if column.name == "method" else column


def state_of(people):
    """A fingerprint of everything that the results depend on: weights, questions and grids."""
    digest = hashlib.sha256(f"{people} {RATES} {STEPS} {ALPHAS} {ROUNDS} {BATCH} {SAMPLE}".encode())
    files = [ROOT / "data" / "tiny_llava" / name / "model.safetensors" for name in ("vanilla", "base")]
    for file in [*files, *sorted((ROOT / "data" / "mllmu_mini").rglob("*.parquet"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------ stages


def series(rows, modalities=MODALITIES):
    return pd.Series({(row["set"], row["modality"]): row["value"] for row in rows if row["modality"] in modalities})


def choose(results, model, processor, base, entries, people):
    """Learning rate and strength of every method, on stand-ins."""
    todo = [e for e in entries if not results.has("comparison_choice", CHOICE, method=e[0], modalities=e[1])]
    if not todo:
        return
    bench = Bench(model, processor, 10, stand_ins=True, people=people)
    vanilla, target = bench.open_questions(), bench.open_questions(base)
    for method, given in bar(todo, desc="choice"):
        started = time.process_time()
        ms, rows = modalities_of(given), []
        for lr in RATES if method in METHODS else (math.nan,):
            found = bench.results(method, given, lr, strengths_of(method), 0, lambda strength: bench.open_questions())
            for strength, measured in found.items():
                parts = merit(series(measured, ms), series(vanilla, ms), series(target, ms))
                rows.append({"scale": SCALE, "method": method, "modalities": given, "lr": lr, "strength": strength} | parts)
        best = max(rows, key=lambda row: row["merit"])  # of equal ones the first, the weakest
        results.add("comparison_choice", CHOICE, [row | {"chosen": row is best} for row in rows])
        say(started, f"choice  {method}, {given}: lr {best['lr']:g}, strength {best['strength']:g}, {best['merit']:.2f}")


def chosen(frame):
    """(method, modalities) -> (lr, strength), from the table of the choice."""
    return {(row.method, row.modalities): (row.lr, row.strength) for row in frame[frame["chosen"]].itertuples()}


def measure_costs(results, entries):
    """Each method in a process of its own, forget 10 %, seed 0; memory is what it needs beyond model and questions."""
    base = None
    for (method, given), (lr, strength) in bar(chosen(results.read("comparison_choice", CHOICE)).items(), desc="cost"):
        key = {"scale": SCALE, "seed": 0, "forget_ratio": 10, "method": method, "modalities": given}
        if (method, given) not in entries or results.has("comparison_cost", COST, **key):
            continue
        base = base or in_a_process("nothing", given, 0, 0)["peak_mb"]
        cost = in_a_process(method, given, lr, strength)
        cost["peak_mb"] = round(max(0.0, cost["peak_mb"] - base))
        results.add("comparison_cost", COST, [key | {"strength": strength} | cost])
        print(f"{cost['seconds']:7.1f} s  cost    {method}, {given}: {cost}", flush=True)


def in_a_process(*arguments):
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(method, given, lr, strength):
    """Unlearn once and print what it took."""
    torch.set_num_threads(1)
    model, processor = load_model(SCALE)
    bench = Bench(model, processor, 10)
    read = {True: 0, False: 0}  # sequences, in which questions may share an image; by whether a gradient is kept

    def count(module, arguments, inputs):
        read[torch.is_grad_enabled()] += len(inputs["inputs_embeds"])

    model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)  # a copy of the model counts, too
    started = time.process_time()
    forget, retain = bench.training["forget"], bench.training["retain"]
    if method in METHODS:
        forget = {m: forget[m] for m in modalities_of(given)}
        options = {"lr": float(lr), "steps": round(float(strength)), "batch_size": BATCH}
        unlearn_by_training(method, model, processor, forget, retain, **options, **QUIET)
    elif method == "rewrite":
        rewrite(model, processor, forget, bench.sample(0), rounds=round(float(strength)), **QUIET)
    elif method != "nothing":
        sample = retain if method == "released_as_run" else bench.sample(0)
        unlearn(model, processor, forget, sample, variant=method, alpha=float(strength), **QUIET)
    seconds, peak = time.process_time() - started, own_peak_mb()
    changed = sum(int((value != bench.vanilla[name]).sum()) for name, value in model.named_parameters())
    print(json.dumps({
        "seconds": round(seconds, 1), "sequences_read": sum(read.values()), "with_gradient": read[True],
        "peak_mb": peak, "weights_changed": changed,
    }))  # fmt: skip


def compare(results, model, processor, base, entries, settings, ratios, seeds, people):
    """Every method, at the learning rate and strength of ``settings``, on every set, task and modality."""
    for ratio in ratios:
        bench = None
        units = [(name, "none", seeds[0]) for name in REFERENCES]
        units += [(*entry, seed) for seed in seeds for entry in entries if seed == seeds[0] or has_seeds(entry[0])]
        for method, given, seed in bar(units, desc=f"forget {ratio} %"):
            key = {"scale": SCALE, "seed": seed, "forget_ratio": ratio, "method": method, "modalities": given}
            if results.has("comparison", COMPARISON, **key):
                continue
            if method == "retrained" and not (ROOT / RETRAINED / f"forget_{ratio}").is_dir():
                print(f"no {RETRAINED}/forget_{ratio}; the retrained model is left out (make retrained)", flush=True)
                continue
            bench = bench or Bench(model, processor, ratio, people=people)
            started = time.process_time()
            if method in REFERENCES:
                rows = [{"strength": math.nan} | row for row in reference(bench, method, base, ratio)]
            else:
                lr, best = settings[method, given]
                every = strengths_of(method) if ratio == 10 else (best,)

                def measure(strength, bench=bench, best=best):
                    rows = bench.open_questions()
                    return rows + bench.everything() if strength == best else rows

                found = bench.results(method, given, lr, every, seed, measure)
                rows = [{"strength": strength} | row for strength, part in found.items() for row in part]
            results.add("comparison", COMPARISON, [key | row for row in rows])
            say(started, f"compare forget {ratio} %, seed {seed}: {method}, {given}")


def reference(bench, method, base, ratio):
    """Rows of a model that is a point to compare with, not a method with a strength."""
    model, sets = bench.model, bench.sets
    if method == "never met":
        model = base
    elif method == "retrained":
        model, _ = load_model(ROOT / RETRAINED / f"forget_{ratio}")
    elif method == "system prompt":
        return bench.everything(model, {name: with_system_prompt(dataset) for name, dataset in sets.items()})
    return bench.open_questions(model) + bench.everything(model)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratios", type=int, nargs="+", default=[10, 5, 15], choices=FORGET_RATIOS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=sorted({method for method, _ in ENTRIES}), help="default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results")
    parser.add_argument("--settings", type=Path, help="take learning rates and strengths from this file, and measure no cost")
    parser.add_argument("--people", type=int, help="at most so many of each set, to try things out")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child)
    torch.set_num_threads(arguments.threads)
    entries = [entry for entry in ENTRIES if not arguments.methods or entry[0] in arguments.methods]
    results = Results(arguments.out, state_of(arguments.people))
    (model, processor), (base, _) = load_model(SCALE), load_model(f"{SCALE}-base")
    if arguments.settings:
        settings = chosen(pd.read_csv(arguments.settings))
    else:
        choose(results, model, processor, base, entries, arguments.people)
        measure_costs(results, entries)
        settings = chosen(results.read("comparison_choice", CHOICE))
    compare(results, model, processor, base, entries, settings, arguments.ratios, arguments.seeds, arguments.people)


if __name__ == "__main__":
    main()
