"""Every ablation of notebooks 07 and 07b, as one tidy CSV: one thing is changed, all else stays.

    python experiments/ablate.py                  # the bundled model
    python experiments/ablate.py --model build/dense --name dense
                                                  # the twin without the penalty: α and locality
    python experiments/ablate.py --name planted   # builds and measures the planted twin

The settings are the fixed defaults of the package with one change; nothing is chosen by looking at
the results. Measured are exact answers to open questions (cloze and generation, as in notebook 05)
on the forget, test and celebrity sets and on 40 retained people; for the planted twin also the
precision and recall of the chosen neurons; of the sparse and the dense model also the effective
number of language neurons per fact. A killed run goes on where it stopped: every measured unit is
kept in build/ablations, in a file named by the weights.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd

import ways
from lab import RATIO, Lab, Unit
from manu_utils.models import fingerprints
from manu_utils.models.loading import load_model
from manu_utils.unlearning.scores import RELEASED, VARIANTS
from planted_twin import PlantedLab, planted_twin, planted_units
from sweep import BUILD, RESULTS, fingerprint, say, sweep, write_table

SEEDS, ALPHA = (0, 1, 2), 5.0
KEY = ["model", "ablation", "setting", "seed", "alpha", "forget_ratio"]
COLUMNS = [*KEY, "set", "modality", "value", "n"]
ALPHAS = (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0)
TWIN_ALPHAS = (1.0, 2.0, 5.0, 10.0, 20.0)
# Where the celebrity set says nothing new: the table stays small.
WITHOUT_CELEBRITY = ("eps", "tau", "positions", "samples", "ours")
FUNCTIONS = ("abs", "freq", "var", "rms")
SCORES = ("paper", "released_score", "ratio")

# From the printed equations to the authors' code, one more change on every rung, by
# switched_score.
LADDER = {
    "paper": {},
    "no contrast of modalities": {"contrast": False},
    "one modality per tower": {"contrast": False, "one_modality": True},
    "sum of ratios": {"contrast": False, "one_modality": True, "sum_of_ratios": True, "eps": 1e-5},
    "weights 2, 0, 2, 2 (released_score)": RELEASED,
}
# The rest of the way.
AS_RUN = {
    "α % of each tower": {},
    "pooled over layers": {"pooled": True},
    "all tokens": {"pooled": True, "positions": "all"},
    "linear outputs, pads too": {"pooled": True, "positions": "all", "linear": True},
}
# The same differences, one at a time.
FROM_PAPER = {
    "paper: no contrast": {"contrast": False},
    "paper: sum of ratios": {"sum_of_ratios": True},
    "paper: weights 2, 0, 2, 2": {"weights": (2, 0, 2, 2)},
    "paper: last layer": {"last_layers": 1},
}
FROM_RELEASED = {
    "released_score: contrast": {"contrast": True, "one_modality": False},
    "released_score: both modalities": {"one_modality": False},
    "released_score: ratio of sums": {"sum_of_ratios": False},
    "released_score: weights 1, 1, 1, 1": {"weights": (1, 1, 1, 1)},
    "released_score: last layer": {"last_layers": 1},
}
# From a ratio to ours.
STEPS = {
    "1 ratio of mean squares": (ways.by_variant, {"variant": "ratio", "floor": 0.0}),
    "2 with a floor": (ways.by_variant, {"variant": "ratio"}),
    "3 what it writes": (ways.by_attribution, {}),
    "4 chosen jointly": (ways.by_variant, {"variant": "coverage", "rounds": 1, "balance": 0.0}),
    "5 balanced": (ways.by_variant, {"variant": "coverage", "rounds": 1}),
    "6 in rounds": (ways.by_variant, {"variant": "coverage"}),
}
OURS = {
    "floor": (0.01, 0.1, 0.3, 1.0, 3.0),
    "share": (0.1, 0.2, 0.3, 0.5, 0.9),
    "balance": (0.0, 1.0, 4.0, 8.0),
}


def units(
    ablation: str, setting: str, way: Callable, *, alpha=ALPHA, ratio=RATIO, seeds=SEEDS, **options
) -> list[Unit]:
    """A unit for each seed, chosen by one of the ways."""
    where = {"alpha": alpha, "ratio": ratio, **options}
    return [
        Unit(ablation, setting, seed, alpha, ratio, partial(way, seed=seed, **where))
        for seed in seeds
    ]


def all_units() -> list[Unit]:
    """Every unit, grouped so that those that share statistics follow each other."""
    return [*amounts(), *formulas(), *places(), *looks(), *ours()]


def amounts() -> Iterator[Unit]:
    """How many neurons, of how many people."""
    for ratio in (5, 10, 15):
        yield Unit("alpha", "vanilla", 0, 0.0, ratio, None)
    yield Unit("locality", "effective neurons", 0, 0.0, RATIO, None)
    # Magnitude looks at no data: the same for every seed.
    seeds = {v: SEEDS[:1] if v == "magnitude" else SEEDS for v in VARIANTS}
    for alpha in ALPHAS:
        for v in VARIANTS:
            yield from units("alpha", v, ways.by_variant, variant=v, alpha=alpha, seeds=seeds[v])
    for ratio in (5, 15):
        for v in VARIANTS:
            yield from units("ratio", v, ways.by_variant, variant=v, ratio=ratio, seeds=seeds[v])
        where = {"alpha": ALPHA * ratio / RATIO, "ratio": ratio}  # as many per forgotten person
        yield from units("ratio", "coverage", ways.by_variant, variant="coverage", **where)


def formulas() -> Iterator[Unit]:
    """The four functions, and what paper and code differ in."""
    for i, name in enumerate(FUNCTIONS):
        alone = tuple(int(j == i) for j in range(4))
        without = tuple(int(j != i) for j in range(4))
        yield from units("functions", f"{name} alone", ways.switched, weights=alone)
        yield from units("functions", f"without {name}", ways.switched, weights=without)
    for eps in (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0):
        yield from units("eps", f"{eps:g}", ways.switched, eps=eps)
    for tau in (0.0, 0.01, 0.1, 0.5, 1.0):
        seen = {"seen": {"tau": tau}}
        yield from units("tau", f"{tau:g}", ways.switched, **seen)
        yield from units("tau", f"freq alone, {tau:g}", ways.switched, weights=(0, 1, 0, 0), **seen)
    for positions in ("answer", "last", "all"):
        for v in SCORES:
            seen = {"variant": v, "seen": {"positions": positions}}
            yield from units("positions", f"{v}: {positions}", ways.by_variant, **seen)
    for setting, switches in LADDER.items():
        yield from units("ladder", setting, ways.switched, **switches)
    for setting, options in AS_RUN.items():
        yield from units("ladder", setting, ways.as_the_authors_run_it, **options)
    released = {setting: RELEASED | switches for setting, switches in FROM_RELEASED.items()}
    for setting, switches in (FROM_PAPER | released).items():
        yield from units("switch", setting, ways.switched, **switches)


def places() -> Iterator[Unit]:
    """Of what α % are taken."""
    for v in SCORES:
        for per in ("model", "tower", "layer"):
            yield from units("scope", f"{v}: {per}", ways.by_variant, variant=v, per=per)
    yield from units("scope", "coverage: model", ways.by_variant, variant="coverage")
    for per in ("tower", "layer"):
        yield from units("scope", f"coverage: {per}", ways.coverage_by_group, per=per)
    for v in (*SCORES, "coverage"):
        for tower in ("language", "vision"):
            yield from units("towers", f"{v}: {tower}", ways.of_one_tower, variant=v, tower=tower)


def looks() -> Iterator[Unit]:
    """How much is seen: questions per person, retained questions, rounds."""
    for v in ("released_score", "coverage"):
        for name, numbers in (("forget", (1, 3, 6, 12)), ("retain", (25, 50, 100, 300, 600))):
            for n in numbers:
                seen = {"variant": v, "seen": {f"n_{name}": n}}
                yield from units("samples", f"{v}: {name} {n}", ways.by_variant, **seen)
    for v in ("paper", "ratio", "coverage"):
        for rounds in (1, 2, 4):
            yield from units("rounds", f"{v}: {rounds}", ways.in_rounds, variant=v, rounds=rounds)


def ours() -> Iterator[Unit]:
    """What ours is made of."""
    for setting, (way, options) in STEPS.items():
        yield from units("steps", setting, way, **options)
    for option, values in OURS.items():
        for value in values:
            change = {"variant": "coverage", option: value}
            yield from units("ours", f"{option} {value:g}", ways.by_variant, **change)
    yield from units("ours", "every token alike", ways.every_token_alike)


def measured(lab: Lab, unit: Unit) -> list[dict]:
    if unit.ablation == "locality":
        rows = lab.locality()
    else:
        rows = lab.measure(unit.choose and unit.choose(lab), unit.ratio)
    return [row | {"value": round(row["value"], 4)} for row in rows]


def run(wanted: list[tuple[Lab, Unit]], name: str, place: Path) -> pd.DataFrame:
    """Measure what is not yet in the file of these weights, and return all of it."""
    keys = [dict(zip(KEY, (name, *unit[:5]), strict=True)) for _, unit in wanted]
    measures = [partial(measured, lab, unit) for lab, unit in wanted]
    return sweep(place, COLUMNS, list(zip(keys, measures, strict=True)))


def wanted_units(arguments) -> tuple[Lab, list[tuple[Lab, Unit]]]:
    """A lab of the model, and what is to be measured."""
    if arguments.name == "planted":
        twin = planted_twin()
        labs = {draw: PlantedLab(*twin, draw) for draw in arguments.seeds}
        return labs[arguments.seeds[0]], planted_units(labs)
    lab, found = Lab(*load_model(arguments.model)), all_units()
    found = [unit for unit in found if unit.seed in arguments.seeds]
    if arguments.name != "sparse":  # a twin is compared over α, and by where its facts are
        found = [unit for unit in found if unit.ablation in ("alpha", "locality")]
        found = [u for u in found if u.ratio == RATIO and u.alpha in (0.0, *TWIN_ALPHAS)]
    only = arguments.only
    return lab, [(lab, unit) for unit in found if only is None or unit.ablation in only]


def with_stored(table: pd.DataFrame, stored: pd.DataFrame, part: bool) -> pd.DataFrame:
    """What was measured beside the stored rows of other models; those of this model are replaced,
    of a part of the ablations the same units alone.
    """
    keys = KEY if part else KEY[:1]
    measured = set(table[keys].itertuples(index=False, name=None))
    old = [key in measured for key in stored[keys].itertuples(index=False, name=None)]
    table = pd.concat([stored[[not replaced for replaced in old]], table])
    return table.sort_values("model", kind="stable")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="tiny", help="a bundled name or a folder")
    name = 'what the table calls this model; "planted": the planted twin'
    add("--name", default="sparse", help=name)
    names = dict.fromkeys(unit.ablation for unit in all_units())
    add("--only", nargs="+", choices=names, help="ablations to run (default: all)")
    add("--seeds", nargs="+", type=int, default=list(SEEDS))
    add("--output", type=Path, default=RESULTS / "ablations.csv")
    arguments = parser.parse_args()
    started, output = time.process_time(), arguments.output
    lab, wanted = wanted_units(arguments)
    state = fingerprint(fingerprints.fingerprint(lab.model, lab.processor))
    place = BUILD / "ablations" / f"{arguments.name}-{state}.csv"
    table = run(wanted, arguments.name, place)
    celebrity = table["set"] == "celebrity"
    table = table[~(table["ablation"].isin(WITHOUT_CELEBRITY) & celebrity)]
    table = table.assign(alpha=table["alpha"].map("{:g}".format))
    if output.exists():
        part = arguments.only is not None or set(arguments.seeds) != set(SEEDS)
        table = with_stored(table, pd.read_csv(output, dtype={"alpha": str}), part)
    write_table(table, output)
    say(started, f"{len(table)} rows, {output.stat().st_size / 1000:.0f} kB in {output}")


if __name__ == "__main__":
    main()
