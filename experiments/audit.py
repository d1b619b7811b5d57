"""Forgotten or hidden: every attack on every method, the long run behind notebook 09.

    python experiments/audit.py                    # about half a day of one core; resumable
    python experiments/audit.py --seeds 0 1 2      # three seeds of every method

The settings are those that experiments/compare.py chose (comparison_choice.csv) and, of erasing and
the fair rivals, those that experiments/rivals.py chose (rivals_choice.csv). Half of the strangers
are what erasing is given; the other half are the control of every test of membership. Of the public
figures every second may be protected, and the others are asked.
"""

import argparse
import copy
import itertools
from functools import lru_cache, partial

from compare import SCALE, Bench, chosen
from manu_utils.auditing import (
    answers_when_rounded,
    ask_otherwise,
    auc_table,
    depth_scores,
    logit_lens,
    mean_depth,
    membership_scores,
    patch_states,
    probe_layers,
    profiles_of,
    relearn,
    relearning_split,
    without_taught,
)
from manu_utils.benchmark.loading import load_strangers
from manu_utils.benchmark.questions import evaluation_questions, open_questions
from manu_utils.benchmark.records import FORGET_RATIOS, MODALITIES
from manu_utils.miniature.build import retrained_folder
from manu_utils.miniature.people import ATTRIBUTES
from manu_utils.models.asking import exact_answers, likeliest_options
from manu_utils.models.loading import load_model
from methods import Lab, asked_sets, best_settings, drop_other_settings, written
from sweep import (
    QUIET,
    RESULTS,
    ROOT,
    begin,
    in_the_order_of,
    models_fingerprint,
    read_arguments,
    read_table,
    sweep,
)

KEYS = ["scale", "seed", "forget_ratio", "method", "settings"]
COLUMNS = [*KEYS, "audit", "measure", "set", "modality", "value", "n"]
REFERENCES = ("vanilla", "never met", "retrained")
COMPARED = ("paper", "coverage", "rewrite", "gd", "kl", "npo")  # as compare.py chose them
CHOSEN = (  # as rivals.py chose them
    "npo + kl", "simnpo + ce", "gd + ce", "undial + ce", "rmu", "mmunlearner", "mip-editor",
    "idk + ce", "erase", "erase + gd", "erase + rmu",
)  # fmt: skip
METHOD_ORDER = (*REFERENCES, *COMPARED, *CHOSEN)
# Open answers and letters of those with one are in comparison.csv for three, too.
SEEDS = dict.fromkeys(METHOD_ORDER, (0,)) | dict.fromkeys(CHOSEN, (0, 1, 2))
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
        self.sets = asked_sets(lab.bench)

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
        found = answers_when_rounded(
            model, self.processor, asked, ((4, None), ("nf4", 64)), progress=False
        )
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

    if method in CHOSEN:
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


def measured(out, units):
    """The table with all of its units."""
    options = {"arrange": in_the_order_of(METHOD_ORDER, KEYS), "float_format": "%.5g"}
    return sweep(out / "audit.csv", COLUMNS, units, **options)


def chosen_settings():
    """method -> its two settings: (learning rate, steps or α) or those that TRIES varies."""
    at = chosen(read_table(RESULTS / "comparison_choice.csv", []))
    tried = read_table(RESULTS / "rivals_choice.csv", [])
    best = best_settings(tried[tried["method"].isin(CHOSEN)])
    return {method: at[method, "both"] for method in COMPARED} | best


def state_of():
    """A fingerprint of what the results depend on, but for the settings, which are in the rows."""
    settings = f"{STEPS} {RATE} {N_TAUGHT} {FORMS} {N_LIKELY}"
    return models_fingerprint(settings, "vanilla", "base", "retrained")


def run(arguments):
    """Every unit of the table."""
    out, key = arguments.out, {"scale": SCALE}
    begin(state_of(), out / "audit.json", "python experiments/audit.py", [out / "audit.csv"])
    given, (base, _) = load_model(SCALE), load_model(f"{SCALE}-base")

    @lru_cache(maxsize=1)
    def lab_of(ratio):
        return Lab(Bench(*given, ratio))

    settings, units = chosen_settings(), []
    drop_other_settings(out / "audit.csv", COLUMNS, settings)
    for ratio, method in itertools.product(arguments.ratios, METHOD_ORDER):
        seeds = SEEDS[method] if arguments.seeds is None else arguments.seeds
        if method not in arguments.methods:
            continue
        for seed in seeds if method not in REFERENCES else (0,):
            unit = partial(audited, lab_of, base, settings, ratio, method, seed)
            at = written(settings.get(method, ()))
            where = {"seed": seed, "forget_ratio": ratio, "method": method, "settings": at}
            units.append((key | where, unit))
    measured(out, units)


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ratios", type=int, nargs="+", default=[10], choices=FORGET_RATIOS)
    add("--seeds", type=int, nargs="+", help="default: as in SEEDS, one to three")
    add("--methods", nargs="+", choices=METHOD_ORDER, default=METHOD_ORDER, help="default: all")
    run(read_arguments(parser, given))


if __name__ == "__main__":
    main()
