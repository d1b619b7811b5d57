"""Forgotten or hidden: every attack on every method, the long run behind notebook 09.

    python experiments/audit.py                    # about 75 minutes of one core; resumable
    python experiments/audit.py --seeds 0 1 2      # three seeds of every method, three hours

Two stages, each kept in data/results:

1. choice (audit_choice.csv): the settings of erasing (and, when asked for, of NPO with a retain
   term) on stand-ins, the people whom experiments/compare.py draws from the retain set; twelve
   tries each. Those of the other methods are the ones that it chose (comparison_choice.csv). What
   counts is the mean of `merit` over open questions and letters; compare.py looked at open
   questions alone.
2. audit (audit.csv): every attack on every method.

Half of the strangers are what erasing is given; the other half are the control of every test of
membership. Of the public figures every second may be protected, and the others are asked.
"""

import argparse
import copy
import itertools
import random
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch

from compare import SCALE, Bench, chosen
from manu_utils.auditing import (
    answers_when_rounded,
    ask_otherwise,
    auc_table,
    depth_scores,
    logit_lens,
    mean_depth,
    membership_scores,
    names_of,
    patch_states,
    probe_layers,
    profiles_of,
    relearn,
    relearning_split,
    without_taught,
)
from manu_utils.benchmark.loading import load_strangers
from manu_utils.benchmark.questions import evaluation_questions, open_questions, training_questions
from manu_utils.benchmark.records import FORGET_RATIOS, MODALITIES
from manu_utils.evaluation.tables import merit
from manu_utils.miniature.build import retrained_folder
from manu_utils.miniature.people import ATTRIBUTES
from manu_utils.models.asking import exact_answers, likeliest_options, truth_of
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import language_mlps
from manu_utils.unlearning.erasing import fit_layer, stranger_lessons
from manu_utils.unlearning.rewriting import collect_moments
from manu_utils.unlearning.strangers import Stranger, lettered, mixed_names, nearest_strangers
from sweep import QUIET, RESULTS, ROOT, begin, fingerprint, read_table, sweep

KEYS = ["scale", "seed", "forget_ratio", "method"]
COLUMNS = {
    "audit": [*KEYS, "audit", "measure", "set", "modality", "value", "n"],
    "audit_choice": [
        "scale", "method", "weight", "strength", "task", "forget_quality", "utility", "balance",
        "merit", "chosen",
    ],
}  # fmt: skip
REFERENCES = ("vanilla", "never met", "retrained")
COMPARED = ("paper", "coverage", "rewrite", "gd", "kl", "npo")  # as compare.py chose them
# What is chosen here: the weight (of the retain term; β), and the strengths (steps; ridge).
TRIES = {
    "npo + kl": ((5.0, 20.0, 80.0), (24, 48, 96, 192)),
    "erase": ((1.0, 2.0, 4.0, 8.0), (0.003, 0.01, 0.03)),
}
METHOD_ORDER = (*REFERENCES, *COMPARED, *TRIES)
# Open answers and letters of the others are in comparison.csv for three seeds, too. NPO with a
# retain term takes two hours of its own: --methods "npo + kl" --seeds 0.
SEEDS = {method: (0,) for method in METHOD_ORDER} | {"erase": (0, 1, 2), "npo + kl": ()}
NPO_RATE, NPO_BATCH = 1e-4, 48
N_KEPT = 700  # questions of each form and modality that erasing holds
STEPS, RATE = (0, 2, 4, 8, 16), 3e-4  # of relearning
N_TAUGHT = 12  # retained people who are taught in relearning
VALUES = {name: attribute.values for name, attribute in ATTRIBUTES.items()}
FORMS = ("test wordings", "picture: blur", "picture: crop", "picture: noise", "another's name")
N_LIKELY = 20  # people of a set who are asked by likelihood, which reads every option


class Audit:
    """What is asked of every model at one forget ratio."""

    def __init__(self, lab, base, retrained):
        self.bench, self.processor, self.names = lab.bench, lab.processor, lab.names
        self.vanilla = copy.deepcopy(lab.model)
        self.vanilla.load_state_dict(lab.bench.vanilla)
        self.retrained, self.base = retrained, base
        benchmark = lab.bench.benchmark
        self.profiles = profiles_of(benchmark.forget, benchmark.retain, benchmark.celebrity)
        controls = load_strangers(SCALE)["Full_Set"]
        self.controls = controls.select(range(len(controls) // 2, len(controls)))
        public = benchmark.celebrity
        # Every second is protected by erasing; the others are asked.
        asked = public.select(range(0, len(public), 2))
        self.sets = lab.bench.sets | {"celebrity": asked}

    def open(self, *names):
        return {(name, m): open_questions(self.sets[name], m) for name in names for m in MODALITIES}

    def rows(self, model, seed):
        """Every audit of one model."""
        parts = (
            self.answers, self.relearning, self.rounding, self.membership, self.inside,
            self.otherwise,
        )  # fmt: skip
        for part in parts:
            for row in part(model, seed):
                yield row | {"audit": part.__name__}

    def answers(self, model, seed):
        sets = self.sets
        for (name, m), asked in self.open(*sets).items():
            for task in ("cloze", "generation"):
                some = [q for q in asked if q.task == task]
                found = exact_answers(model, self.processor, {(name, m): some})
                yield found.to_dict("records")[0] | {"measure": task}
            some = evaluation_questions(sets[name], "classification", m)
            found = exact_answers(model, self.processor, {(name, m): some})
            yield found.to_dict("records")[0] | {"measure": "letters"}
            some = evaluation_questions(
                sets[name].select(range(min(N_LIKELY, len(sets[name])))), "classification", m
            )
            likely = likeliest_options(model, self.processor, some, **QUIET)
            right = [q.options[a] == q.answer for q, a in zip(some, likely, strict=True)]
            yield row_of("likelihood", name, m, sum(right) / len(right), len(right))

    def relearning(self, model, seed):
        sets, bench = self.open("forget", "retain"), self.bench
        one, _ = relearning_split(bench.training["forget"], 1, seed)
        kept, _ = relearning_split(bench.training["retain"], N_TAUGHT, seed)
        for what, lessons in (("one forgotten person", one), ("retained people", kept)):
            asked = without_taught(sets, lessons) if lessons is one else sets
            options = {"steps": STEPS, "lr": RATE, "seed": seed, **QUIET}
            found = relearn(model, self.processor, lessons, asked, **options)
            for row in found.to_dict("records"):
                yield row | {"measure": f"{what}, step {row.pop('step')}"}

    def rounding(self, model, seed):
        asked = self.open("forget", "retain")
        found = answers_when_rounded(model, self.processor, asked, ((4, None), ("nf4", 64)), progress=False)
        for row in found.to_dict("records"):
            if row["rounding"] != "none":
                yield row | {"measure": row.pop("rounding")}

    def membership(self, model, seed):
        sides = []
        for rows in (self.sets["forget"], self.controls):
            asked = [q for m in MODALITIES for q in open_questions(rows, m)]
            reference = self.base if model is not self.base else None
            sides.append(
                membership_scores(model, self.processor, asked, reference=reference, **QUIET)
            )
        for row in auc_table(*sides, resamples=1).to_dict("records"):
            yield row_of(row["score"], "forget", row["modality"], row["value"], row["n"])

    def inside(self, model, seed):
        asked = [q for part in self.open("forget").values() for q in part]
        options = {"values": VALUES, "names": self.names, **QUIET}
        lens = logit_lens(model, self.processor, asked, **options)
        for (m, layer), part in lens.groupby(["modality", "layer"]):
            yield row_of(f"lens rank, layer {layer}", "forget", m, part["rank"].mean(), len(part))
        taught = [q for part in self.open("retain").values() for q in part]
        probes = probe_layers(model, self.processor, taught, {"forget": asked}, **options)
        for (m, layer), part in probes.groupby(["modality", "layer"]):
            value = (part["value"] * part["n"]).sum() / part["n"].sum()
            yield row_of(f"probe, layer {layer}", "forget", m, value, part["n"].sum())
        if self.retrained is None:
            return
        if not hasattr(self, "falls"):
            self.falls = self.patched(self.retrained, asked, options)
        scores = depth_scores(self.falls, self.patched(model, asked, options))
        for row in mean_depth(scores).to_dict("records"):
            at = (row["position"], "forget", row["modality"])
            yield row_of(f"depth, {at[0]}", *at[1:], row["value"], row["n"])
            yield row_of(f"over, {at[0]}", *at[1:], row["over"], row["n"])

    def patched(self, source, asked, options):
        places = ("answer", "rest")
        given = (self.vanilla, self.processor, asked)
        return patch_states(*given, source=source, positions=places, **options)

    def otherwise(self, model, seed):
        asked = self.open("forget")
        wordings = {("forget", m): open_questions(self.sets["test"], m) for m in MODALITIES}
        options = {"wordings": wordings, "profiles": self.profiles, "forms": FORMS, **QUIET}
        for row in ask_otherwise(model, self.processor, asked, **options).to_dict("records"):
            yield row_of(row["form"], row["set"], row["modality"], row["value"], row["n"])


def row_of(measure, name, modality, value, n):
    return {"measure": measure, "set": name, "modality": modality, "value": value, "n": int(n)}




# ---------------------------------------------------------------------------------- unlearning


def strangers_of(rows):
    names = names_of(rows)
    return [Stranger(names[i], image) for i, image in zip(rows["ID"], rows["image"], strict=True)]


class Lab:
    """One set of people to forget, and the methods that are chosen here."""

    def __init__(self, bench):
        self.bench = bench
        self.model, self.processor = bench.model, bench.processor
        self.layers = range(len(language_mlps(self.model)))
        rows = load_strangers(SCALE)["ft_Data"]
        half = len(rows) // 2
        self.taught = rows.select(range(half))
        self.strangers = strangers_of(self.taught)
        others = strangers_of(rows.select(range(half, len(rows))))
        self.names = names_of(bench.benchmark.training)
        public = profiles_of(bench.benchmark.celebrity).values()
        met = [*(profile["Name"] for profile in public), *self.names.values()]
        kept = {stranger.name for stranger in (*self.strangers, *others)}
        self.collected = None, ()
        self.more_names = [name for name in mixed_names(met) if name not in kept]

    def erasing(self, seed):
        """E_r of each layer and the lessons, from which every β and ridge can be fitted."""
        if self.collected[0] != seed:
            self.collected = seed, self.collect(seed)
        return self.collected[1]

    def collect(self, seed):
        bench, names, forget, retain = self.bench, self.names, {}, {}
        everyone = {m: [q for of in bench.training.values() for q in of[m]] for m in MODALITIES}
        gone = {q.person_id for q in bench.training["forget"]["text"]}
        public = bench.benchmark.celebrity
        public = public.select(range(1, len(public), 2))  # the others are asked
        for m, asked in everyone.items():
            forget[m], retain[m] = bench.training["forget"][m], some(bench.training["retain"][m], seed)
            for draw in (0, 1):  # with other options each time
                letters = lettered(asked, names, seed=2 * seed + draw)
                forget[f"{m}, letters {draw}"] = [q for q in letters if q.person_id in gone]
                kept = [q for q in letters if q.person_id not in gone]
                retain[f"{m}, letters {draw}"] = some(kept, seed)
            theirs = training_questions(self.taught, m)
            theirs += lettered(theirs, names_of(self.taught), seed=seed)
            retain[f"{m}, strangers"] = some(theirs, seed)
            options = evaluation_questions(public, "classification", m)
            letters = [replace(q, answer=truth_of(q)) for q in options]
            retain[f"{m}, public"] = open_questions(public, m) + letters
        given = (self.model, self.processor)
        asked = [q for of in bench.training["forget"].values() for q in of]
        near = nearest_strangers(
            *given, asked, names, self.strangers, more_names=self.more_names, seed=seed
        )
        passes = {"batch_size": 32, **QUIET}
        lessons = {
            name: stranger_lessons(*given, of, near, names, self.layers, **passes)
            for name, of in forget.items()
        }
        return collect_moments(*given, retain, **QUIET), lessons

    @contextmanager
    def erased(self, beta, ridge, seed):
        """:func:`manu_utils.unlearning.erase`, with what it collects kept for the next."""
        self.bench.reset()
        moments, lessons = self.erasing(seed)
        for layer in self.layers:
            options = {"beta": beta, "ridge": ridge}
            fit_layer(self.model, layer, layer, lessons, moments[layer].clone(), **options)
        yield
        self.bench.reset()

    def results(self, method, weight, strengths, seed, measure):
        """strength -> what ``measure()`` finds with the model changed to it."""
        if method == "npo + kl":
            options = {"retain_term": "kl", "retain_weight": weight}
            options |= {"retain_batch_size": NPO_BATCH}
            at = (strengths, seed, lambda _: measure())
            return self.bench.path("npo", "both", NPO_RATE, *at, **options)
        found = {}
        for ridge in strengths:
            with self.erased(weight, ridge, seed):
                found[ridge] = measure()
        return found


def some(questions, seed):
    return random.Random(seed).sample(questions, min(N_KEPT, len(questions)))


# -------------------------------------------------------------------------------------- stages


def by_task(bench, model=None):
    """task -> exact answers by (set, modality), of the forget and the retain set."""
    found = {}
    for task in ("open", "letters"):
        panels = {
            key: open_questions(bench.sets[key[0]], key[1])
            if task == "open"
            else evaluation_questions(bench.sets[key[0]], "classification", key[1])
            for key in bench.panels
        }
        frame = exact_answers(model or bench.model, bench.processor, panels)
        found[task] = frame.set_index(["set", "modality"])["value"]
    return found


def choices(lab, base, method):
    """Rows of every try of a method on stand-ins; the best mean merit is chosen."""
    bench = lab.bench
    bench.reset()
    vanilla, target = by_task(bench), by_task(bench, base)
    weights, strengths = TRIES[method]
    rows, means = [], {}
    for weight in weights:
        found = lab.results(method, weight, strengths, 0, partial(by_task, bench))
        for strength, answers in found.items():
            key = {"weight": weight, "strength": strength}
            parts = {t: merit(answers[t], vanilla[t], target[t]) for t in answers}
            means[weight, strength] = sum(part["merit"] for part in parts.values()) / len(parts)
            rows += [key | {"task": task} | part for task, part in parts.items()]
    best = max(means, key=means.get)  # of equal ones the first
    return [row | {"chosen": (row["weight"], row["strength"]) == best} for row in rows]


def audited(lab_of, base, settings, ratio, method, seed):
    """Rows of one method at one seed."""
    lab = lab_of(ratio)
    audit, bench = Audit(lab, base, retrained_at(ratio)), lab.bench
    bench.reset()
    if method in REFERENCES:
        model = {"vanilla": audit.vanilla, "never met": base, "retrained": audit.retrained}[method]
        return list(audit.rows(model, seed)) if model is not None else []

    def measure(*_):
        return list(audit.rows(bench.model, seed))

    if method in TRIES:
        weight, strength = settings[method]
        found = lab.results(method, weight, (strength,), seed, measure)
    else:
        lr, strength = settings[method]
        found = bench.results(method, "both", lr, (strength,), seed, measure)
    return found[strength]


@lru_cache
def retrained_at(ratio):
    place = ROOT / retrained_folder(ROOT / "data" / "tiny_llava", ratio)
    if not place.is_dir():
        print(f"no retrained model in {place}: it and depth are left out (make retrained)")
        return None
    return load_model(place)[0]


def in_order(column):
    """What to sort a column by."""
    return column.map(METHOD_ORDER.index) if column.name == "method" else column


def measured(folder, name, units):
    """The table ``name`` with all of its units; its order does not depend on which came first."""
    keys = [column for column in KEYS if column in COLUMNS[name]]

    def arrange(table):
        return table.round(4).sort_values(keys, key=in_order, kind="stable")

    options = {"arrange": arrange, "float_format": "%.5g"}
    return sweep(folder / f"{name}.csv", COLUMNS[name], units, **options)


def state_of():
    """A fingerprint of everything that the results depend on."""
    settings = f"{TRIES} {COMPARED} {STEPS} {RATE} {N_TAUGHT} {FORMS} {N_KEPT} {N_LIKELY}"
    folder = ROOT / "data" / "tiny_llava"
    names = ("vanilla", "base", "retrained")
    weights = (folder / name / "model.safetensors" for name in names)
    strangers = sorted((ROOT / "data" / "mllmu_mini_strangers").rglob("*.parquet"))
    return fingerprint(settings, *weights, *strangers)


def run(arguments):
    """Both stages."""
    out = arguments.out
    tables = [out / f"{name}.csv" for name in COLUMNS]
    begin(state_of(), out / "audit.json", "python experiments/audit.py", tables)
    given, (base, _) = load_model(SCALE), load_model(f"{SCALE}-base")

    @lru_cache(maxsize=1)
    def lab_of(ratio, stand_ins=False):
        return Lab(Bench(*given, ratio, stand_ins=stand_ins))

    key = {"scale": SCALE}
    units = [
        (key | {"method": method}, lambda method=method: choices(lab_of(10, True), base, method))
        for method in TRIES
        if method in arguments.methods and (arguments.seeds or SEEDS[method])
    ]
    found = measured(out, "audit_choice", units)
    rows = found[found["chosen"]].itertuples()
    settings = {row.method: (row.weight, row.strength) for row in rows}
    table = read_table(RESULTS / "comparison_choice.csv", [])
    at = chosen(table)
    settings |= {method: at[method, "both"] for method in COMPARED}
    units = []
    for ratio, method in itertools.product(arguments.ratios, METHOD_ORDER):
        seeds = SEEDS[method] if arguments.seeds is None else arguments.seeds
        if method not in arguments.methods:
            continue
        for seed in seeds if method not in REFERENCES else (0,):
            unit = partial(audited, lab_of, base, settings, ratio, method, seed)
            where = {"seed": seed, "forget_ratio": ratio, "method": method}
            units.append((key | where, unit))
    measured(out, "audit", units)


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ratios", type=int, nargs="+", default=[10], choices=FORGET_RATIOS)
    add("--seeds", type=int, nargs="+", help="default: three of erasing, one of the others")
    add("--methods", nargs="+", choices=METHOD_ORDER, default=METHOD_ORDER, help="default: all")
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    run(arguments)


if __name__ == "__main__":
    main()
