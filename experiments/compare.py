"""All methods on all sets, tasks and modalities: the long sweep behind notebook 06.

    python experiments/compare.py             # everything, two hours on one core; resumable
    python experiments/compare.py --seeds 0   # a part of it; two processes may share the work
    python experiments/compare.py --answers   # and every question of forget 10 %, half an hour more
    python experiments/compare.py --settings data/results/comparison_choice.csv \\
        --out data/results/second_world       # in a clone with another world (make mini-data
                                              # mini-model SEED=1), at the strengths chosen in this

Four stages, each kept in data/results and not run again while the weights are the same:

1. choice: the learning rate and the strength (steps, rounds or α) of every method, on stand-ins. As
   many people as are to be forgotten are drawn from the retain set and play the forget set; the
   people that are reported take no part. What counts is the harmonic mean of how far the stand-ins
   are forgotten, *in the modalities that the method is given*, and what the other retained people
   keep. A method that is given images alone is thus not chosen for what happens to names.
2. cost: processor seconds, sequences read (questions about one image may share one), peak memory
   and weights changed, each method in a process of its own.
3. comparison: every method at its chosen strength by the full evaluation; for forget 10 % also the
   other strengths, by exact answers to open questions. The training baselines take all strengths
   from one path, as does rewriting.
4. answers, with --answers: forget 10 % again at the chosen strengths, and every question is kept,
   so that two methods can be compared question by question (``compare_paired``). The means are held
   against those of the comparison.
"""

import argparse
import copy
import itertools
import json
import math
import random
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import cache, lru_cache, partial
from pathlib import Path

import pandas as pd
import torch

from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.questions import open_questions
from manu_utils.benchmark.records import FORGET_RATIOS, MODALITIES
from manu_utils.evaluation.tables import evaluate, merit, summarise
from manu_utils.miniature.build import retrained_folder
from manu_utils.models.asking import exact_answers
from manu_utils.models.loading import load_model
from manu_utils.processes import own_peak_mb
from manu_utils.unlearning.baselines import (
    INSTRUCTION,
    METHODS,
    unlearn_by_training,
    with_system_prompt,
)
from manu_utils.unlearning.evidence import Evidence, unlearn
from manu_utils.unlearning.rewriting import rewrite
from manu_utils.unlearning.scores import PRUNINGS
from sweep import (
    QUIET,
    ROOT,
    begin,
    fingerprint,
    in_the_order_of,
    read_arguments,
    read_table,
    strengths,
    sweep,
)

SCALE = "tiny"
RATES = (1e-4, 3e-4)  # learning rates to choose from
STEPS = (6, 12, 24, 48, 96)  # one path through all of them
EVERY = 6  # steps between two looks
ALPHAS = (1.0, 2.0, 5.0, 10.0)
ROUNDS = (1, 2, 4, 8)  # of rewriting
BATCH = 16  # questions per modality and step
SAMPLE = 600  # retained questions per modality that the scores see, as in notebook 05
DECIMALS = 6  # of an answer's value; all but ROUGE-L is 0 or 1
APART = 1  # questions by which a mean may differ from the comparison's on another machine
ROUNDED = 0.02  # questions by which its four decimals may
KEYS = ["scale", "seed", "forget_ratio", "method", "modalities"]
MEASURES = ["seconds", "sequences_read", "with_gradient", "peak_mb", "weights_changed"]
COLUMNS = {
    "comparison": [*KEYS, "strength", "set", "task", "modality", "metric", "value", "n"],
    "comparison_cost": [*KEYS, "strength", *MEASURES],
    "comparison_choice": [
        "scale", "method", "modalities", "lr", "strength", "forget_quality", "utility", "balance",
        "merit", "chosen",
    ],
}  # fmt: skip
OF_ANSWERS = ["method", "modalities", "seed"]
ANSWERS = [
    *OF_ANSWERS, "set", "task", "modality", "metric", "person_id", "question", "truth", "value",
]  # fmt: skip
# What is compared: the reference points, the baselines on image + text rows as released and on
# both, and every pruning.
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
        stand_ins: let as many retained people play the forget set: the first draw of them, or the
            second, and so on; nobody is in two of them.
        people: evaluate at most so many people of each set (for trying things out).
    """

    def __init__(self, model, processor, forget_ratio, *, stand_ins=0, people=None):
        self.model, self.processor = model, processor
        benchmark = self.benchmark = load_benchmark(SCALE, forget_ratio)
        forget, retain = benchmark.forget_ids, benchmark.retain_ids
        if stand_ins:
            forget, retain = played_by(retain, len(forget), stand_ins)
        self.training = {
            name: {m: benchmark.training_questions(ids, m) for m in MODALITIES}
            for name, ids in (("forget", forget), ("retain", retain))
        }
        self.everyone = Evidence(model, processor, **self.training, **QUIET)
        self.evidence = cache(self.evidence)

        def rows_of(people):
            index = [i for i, person in enumerate(benchmark.retain_ids) if person in people]
            return benchmark.retain.select(index)

        self.sets = {"forget": rows_of(set(forget))} if stand_ins else benchmark.sets()
        self.sets["retain"] = rows_of(set(random.Random(0).sample(retain, 40)))  # in every run
        if people:
            few = {name: range(min(people, len(of))) for name, of in self.sets.items()}
            self.sets = {name: of.select(few[name]) for name, of in self.sets.items()}
        self.panels = {
            (name, m): open_questions(self.sets[name], m)
            for name in ("forget", "retain")
            for m in MODALITIES
        }
        self.vanilla = copy.deepcopy(model.state_dict())

    def reset(self):
        self.model.load_state_dict(self.vanilla)

    def open_questions(self, model=None):
        """Exact answers to open questions, forget and retain."""
        frame = exact_answers(model or self.model, self.processor, self.panels)
        return frame.assign(task="open questions", metric="accuracy").to_dict("records")

    def answers(self, model=None, sets=None):
        """Every question of all sets and tasks, as ``evaluate`` gives them."""
        return evaluate(model or self.model, self.processor, sets or self.sets, **QUIET)

    def everything(self, model=None, sets=None):
        """The means of these."""
        return summarise(self.answers(model, sets)).to_dict("records")

    def path(self, method, given, lr, steps, seed, measure, start=None, **options):
        """step -> what ``measure`` finds there, along one path of a training baseline.

        Args:
            start: a context in which the model is what training begins with; without, vanilla.
            options: others of ``unlearn_by_training``.
        """
        found, visits = {}, itertools.count()

        def watch():
            if (step := EVERY * next(visits)) in steps:
                found[step] = measure(step)
            return {}

        self.reset()
        forget = {m: self.training["forget"][m] for m in modalities_of(given)}
        with start or nullcontext():
            unlearn_by_training(
                method, self.model, self.processor, forget, self.training["retain"], lr=lr,
                steps=max(steps), batch_size=BATCH, watch=watch, every=EVERY, seed=seed,
                **options, **QUIET,
            )  # fmt: skip
        self.reset()
        return found

    def sample(self, seed):
        """The retained questions that the scores of one seed see."""
        return {
            m: random.Random(seed).sample(asked, min(SAMPLE, len(asked)))
            for m, asked in self.training["retain"].items()
        }

    def evidence(self, seed):
        """What the scores of one seed see; of the forget set it is the same for every seed."""
        return self.everyone.beside(retain=self.sample(seed))

    def results(self, method, given, lr, values, seed, measure):
        """strength -> what ``measure(strength)`` finds."""
        if method in METHODS:
            return self.path(method, given, lr, values, seed, measure)
        # What the released code does draws a sample of its own.
        evidence = self.everyone if method == "released_as_run" else self.evidence(seed)
        return {value: measure(value) for value in strengths(evidence, method, values, seed)}


def played_by(retain, n, draw):
    """Who of the retain set plays the forget set in a draw, the first being 1; and the others."""
    left = retain
    for number in range(1, draw + 1):
        chosen = sorted(random.Random(number).sample(left, n))
        left = [person for person in left if person not in set(chosen)]
    return chosen, [person for person in retain if person not in set(chosen)]


def measured(folder, name, units):
    """The table ``name`` with all of its units."""
    options = {"arrange": in_the_order_of(METHOD_ORDER, KEYS), "float_format": "%.5g"}
    return sweep(folder / f"{name}.csv", COLUMNS[name], units, **options)


def state_of(people):
    """A fingerprint of everything that the results depend on: weights, questions and grids."""
    grids = f"{people} {RATES} {STEPS} {ALPHAS} {ROUNDS} {BATCH} {SAMPLE}"
    folder = ROOT / "data" / "tiny_llava"
    weights = (folder / name / "model.safetensors" for name in ("vanilla", "base"))
    return fingerprint(grids, *weights)


# ------------------------------------------------------------------------------------------- stages


def series(rows, modalities=MODALITIES):
    values = {(row["set"], row["modality"]): row["value"] for row in rows}
    return pd.Series({key: value for key, value in values.items() if key[1] in modalities})


@lru_cache(maxsize=1)
def before_and_never(bench, base):
    """What the vanilla model knows, and one that has never met the people."""
    return bench.open_questions(), bench.open_questions(base)


def choices(bench_of, base, method, given):
    """Rows of every learning rate and strength of a method, on stand-ins; the best is chosen."""
    bench, ms, rows = bench_of(10, stand_ins=1), modalities_of(given), []
    vanilla, target = (series(answers, ms) for answers in before_and_never(bench, base))
    for lr in RATES if method in METHODS else (math.nan,):
        values = strengths_of(method)
        found = bench.results(method, given, lr, values, 0, lambda _: bench.open_questions())
        for strength, answers in found.items():
            parts = merit(series(answers, ms), vanilla, target)
            rows.append({"lr": lr, "strength": strength} | parts)
    best = max(rows, key=lambda row: row["merit"])  # of equal ones the first, the weakest
    return [row | {"chosen": row is best} for row in rows]


def chosen(frame):
    """(method, modalities) -> (lr, strength), from the table of the choice."""
    rows = frame[frame["chosen"]].itertuples()
    return {(row.method, row.modalities): (row.lr, row.strength) for row in rows}


def cost(method, given, lr, strength):
    """One row: forget 10 %, seed 0; memory is what it needs beyond model and questions."""
    found = in_a_process(method, given, lr, strength)
    nothing = in_a_process("nothing", "both", 0, 0)
    peak = round(max(0.0, found["peak_mb"] - nothing["peak_mb"]))
    return [{"strength": strength} | found | {"peak_mb": peak}]


@lru_cache
def in_a_process(*arguments):
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(method, given, lr, strength):
    """Unlearn once and print what it took."""
    torch.set_num_threads(1)
    model, processor = load_model(SCALE)
    bench = Bench(model, processor, 10)
    read = {True: 0, False: 0}  # sequences, in which questions may share an image; by gradient kept

    def count(module, arguments, inputs):
        read[torch.is_grad_enabled()] += len(inputs["inputs_embeds"])

    # A copy of the model counts, too.
    model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    started = time.process_time()
    forget, retain = bench.training["forget"], bench.training["retain"]
    strength = float(strength)
    if method in METHODS:
        forget = {m: forget[m] for m in modalities_of(given)}
        options = {"lr": float(lr), "steps": round(strength), "batch_size": BATCH}
        unlearn_by_training(method, model, processor, forget, retain, **options, **QUIET)
    elif method == "rewrite":
        rounds = round(strength)
        rewrite(model, processor, forget, bench.sample(0), rounds=rounds, **QUIET)
    elif method != "nothing":
        sample = retain if method == "released_as_run" else bench.sample(0)
        unlearn(model, processor, forget, sample, variant=method, alpha=strength, **QUIET)
    seconds, peak = time.process_time() - started, own_peak_mb()
    values = model.named_parameters()
    changed = sum(int((value != bench.vanilla[name]).sum()) for name, value in values)
    found = (round(seconds, 1), sum(read.values()), read[True], peak, changed)
    print(json.dumps(dict(zip(MEASURES, found, strict=True))))


def curve(bench_of, ratio, method, given, seed, lr, best):
    """Rows of a method at its strengths, at the chosen one on every set, task and modality."""
    bench = bench_of(ratio)

    def measure(strength):
        rows = bench.open_questions()
        return rows + bench.everything() if strength == best else rows

    values = strengths_of(method) if ratio == 10 else (best,)
    found = bench.results(method, given, lr, values, seed, measure)
    return [{"strength": strength} | row for strength, rows in found.items() for row in rows]


def asked_of(bench_of, ratio, method, base):
    """Bench, model and sets of a point to compare with, no method with a strength; None where
    there is no such model.
    """
    place = ROOT / retrained_folder(ROOT / "data" / "tiny_llava", ratio)
    if method == "retrained" and not place.is_dir():
        print(f"no retrained model in {place}; it is left out (make retrained)", flush=True)
        return None
    bench = bench_of(ratio)
    model, sets = bench.model, bench.sets
    if method == "system prompt":
        sets = {name: with_system_prompt(dataset) for name, dataset in sets.items()}
    elif method == "never met":
        model = base
    elif method == "retrained":
        model, _ = load_model(place)
    return bench, model, sets


def reference(bench_of, ratio, method, base):
    """Rows of such a model."""
    if not (found := asked_of(bench_of, ratio, method, base)):
        return []
    bench, model, sets = found
    rows = [] if method == "system prompt" else bench.open_questions(model)
    return [{"strength": math.nan} | row for row in rows + bench.everything(model, sets)]


def models(entries, seeds):
    """(method, modalities, seed) of all that is compared, the references first."""
    yield from ((method, "none", seeds[0]) for method in REFERENCES)
    for seed in seeds:
        for method, given in entries:
            if seed == seeds[0] or has_seeds(method):
                yield method, given, seed


def comparisons(bench_of, base, entries, settings, ratios, seeds):
    """The units of the comparison: every method, at its learning rate and strength."""
    for ratio in ratios:
        for method, given, seed in models(entries, seeds):
            key = {"scale": SCALE, "seed": seed, "forget_ratio": ratio}
            key |= {"method": method, "modalities": given}
            if method in REFERENCES:
                yield key, partial(reference, bench_of, ratio, method, base)
            else:
                at = settings[method, given]
                yield key, partial(curve, bench_of, ratio, method, given, seed, *at)


def all_answers(bench_of, base, entries, settings, seeds):
    """The units of the answers: the same at forget 10 %, what is given images alone at last."""
    by_what_is_given = sorted(models(entries, seeds), key=lambda model: model[1] in MODALITIES)
    for method, given, seed in by_what_is_given:
        key = dict(zip(OF_ANSWERS, (method, given, seed), strict=True))
        if method in REFERENCES:
            yield key, partial(answers_of_reference, bench_of, method, base)
        else:
            at = settings[method, given]
            yield key, partial(answers_of_method, bench_of, method, given, seed, *at)


def answers_of_reference(bench_of, method, base):
    """Every question, without the instruction of the system prompt, so that it is the same as that
    of the others.
    """
    if not (found := asked_of(bench_of, 10, method, base)):
        return []
    bench, model, sets = found
    frame = bench.answers(model, sets)
    plain = frame["question"].str.removeprefix(f"{INSTRUCTION} ")
    return without_what_is_said(frame.assign(question=plain))


def answers_of_method(bench_of, method, given, seed, lr, best):
    bench = bench_of(10)
    found = bench.results(method, given, lr, (best,), seed, lambda _: bench.answers())
    return without_what_is_said(found[best])


def without_what_is_said(frame):
    return frame.drop(columns="answer").to_dict("records")


def beside_the_comparison(answers, comparison):
    """The means of both tables, a row a cell.

    Returns:
        Columns value and n of the comparison (NaN where it has no such cell), mean and size of the
        answers, and apart: by how many questions the two differ.
    """
    keys = [*OF_ANSWERS, "set", "task", "modality", "metric"]
    means = answers.groupby(keys, sort=False)["value"].agg(["mean", "size"])
    cells = comparison[comparison["forget_ratio"] == 10].set_index(keys)[["value", "n"]]
    both = means.join(cells)
    return both.assign(apart=(both["mean"] - both["value"]).abs() * both["size"])


def tell(cells):
    """Say whether the means are those of the comparison.

    Raises:
        SystemExit: one is further off than ``APART`` questions, or has none to be held against.
    """
    same = cells["apart"] < ROUNDED
    print(f"{same.sum()} of {len(cells)} means are those of the comparison", flush=True)
    if not same.all():
        print(cells[~same].to_string(), flush=True)
    if not (cells["apart"] < APART + ROUNDED).all():
        raise SystemExit(f"a mean is more than {APART} question off: another machine or state?")


def run(arguments):
    """All three stages."""
    entries, people, out = ENTRIES, arguments.people, arguments.out
    if arguments.methods:
        entries = [entry for entry in ENTRIES if entry[0] in arguments.methods]
    tables, command = [out / f"{name}.csv" for name in COLUMNS], "python experiments/compare.py"
    tables.append(out / "answers.parquet")
    begin(state_of(people), out / "comparison.json", command, tables)
    given, (base, _) = load_model(SCALE), load_model(f"{SCALE}-base")
    bench_of = lru_cache(maxsize=1)(partial(Bench, *given, people=people))  # one ratio at a time
    if arguments.settings:
        settings = chosen(read_table(arguments.settings, COLUMNS["comparison_choice"]))
    else:
        key = {"scale": SCALE}
        units = [
            (key | {"method": m, "modalities": ms}, partial(choices, bench_of, base, m, ms))
            for m, ms in entries
        ]
        settings = chosen(measured(out, "comparison_choice", units))
        key |= {"seed": 0, "forget_ratio": 10}
        units = [
            (key | {"method": m, "modalities": ms}, partial(cost, m, ms, *at))
            for (m, ms), at in settings.items()
            if (m, ms) in entries
        ]
        measured(out, "comparison_cost", units)
    ratios, seeds = arguments.ratios, arguments.seeds
    units = list(comparisons(bench_of, base, entries, settings, ratios, seeds))
    comparison = measured(out, "comparison", units)
    if arguments.answers:
        units = list(all_answers(bench_of, base, entries, settings, seeds))
        arrange = in_the_order_of(METHOD_ORDER, OF_ANSWERS, DECIMALS)
        answers = sweep(out / "answers.parquet", ANSWERS, units, arrange=arrange)
        tell(beside_the_comparison(answers, comparison))


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ratios", type=int, nargs="+", default=[10, 5, 15], choices=FORGET_RATIOS)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    methods = sorted({method for method, _ in ENTRIES})
    add("--methods", nargs="+", choices=methods, help="default: all")
    settings = "take learning rates and strengths from this file, and measure no cost"
    add("--settings", type=Path, help=settings)
    add("--answers", action="store_true", help="keep every question of forget 10 %%, too")
    add("--people", type=int, help="at most so many of each set, to try things out")
    add("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = read_arguments(parser, given)
    if arguments.child:
        return child(*arguments.child)
    run(arguments)


if __name__ == "__main__":
    main()
