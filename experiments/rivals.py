"""Every method at settings that were chosen alike: the run behind "Fair rivals" of notebook 06.

    python experiments/rivals.py             # a day of one core, half an hour of a GPU; resumable
    python experiments/rivals.py --methods "npo + kl" ssd    # a part; two may share the work
    python experiments/rivals.py --settings data/results/rivals_choice.csv --vanilla \\
        --methods erase "erase + gd" --model build/dense --out data/results/dense
                          # another model (make mini-model DENSE=1), at the settings chosen here
    python experiments/rivals.py --settings data/results/rivals_choice.csv --vanilla \\
        --methods erase "erase + gd" --out data/results/second_world
                          # in a clone with another world (make mini-data mini-model SEED=1)

Two stages, each kept in data/results:

1. choice (rivals_choice.csv): twelve tries of every method (TRIES in methods.py) on stand-ins,
   retained people who play the forget set; nobody of the forget set takes part. What counts is
   `merit`, by open questions and by letters, images and text, the mean of both, and of two draws
   of stand-ins, who share nobody.
2. report (rivals.csv): open questions and letters of every set, forget 10 %, three seeds, at the
   settings with the best mean.
"""

import argparse
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd

from compare import SCALE, Bench
from manu_utils.models.loading import load_model
from methods import (
    TRIES,
    Lab,
    best_settings,
    by_task,
    choices,
    drop_other_settings,
    written,
)
from sweep import RESULTS, begin, in_the_order_of, models_fingerprint, read_arguments, sweep

VANILLA = "vanilla"  # a reference, at no settings
KEYS = ["scale", "method", "draw", "seed", "forget_ratio", "settings"]
COLUMNS = {
    "rivals_choice": [
        "scale", "method", "draw", "weight", "strength", "task", "forget_quality", "utility",
        "balance", "merit",
    ],
    "rivals": [
        "scale", "seed", "forget_ratio", "method", "settings", "set", "task", "modality", "value",
        "n",
    ],
}  # fmt: skip


def report(lab_of, method, settings, seed):
    """Rows of open questions and letters of every set, at one setting."""
    lab = lab_of(0)

    def measure():
        frames = by_task(lab.bench)
        return [row | {"task": t} for t in frames for row in frames[t].to_dict("records")]

    if method == VANILLA:
        lab.bench.reset()
        return measure()
    weight, strength = settings
    return lab.results(method, weight, (strength,), seed, measure)[strength]


def measured(folder, name, units):
    """The table ``name`` with all of its units."""
    options = {"arrange": in_the_order_of([VANILLA, *TRIES], KEYS), "float_format": "%.5g"}
    return sweep(folder / f"{name}.csv", COLUMNS[name], units, **options)


def state_of(model=SCALE):
    """A fingerprint of the world and its models; the settings of a try stand in its rows."""
    vanilla = VANILLA if model == SCALE else Path(model).resolve()
    return models_fingerprint("", vanilla, "base")


def run(arguments):
    """Both stages; the second alone where the settings are given."""
    out, key = arguments.out, {"scale": SCALE}
    tables = [out / f"{name}.csv" for name in COLUMNS]
    begin(state_of(arguments.model), out / "rivals.json", "python experiments/rivals.py", tables)
    given, (base, _) = load_model(arguments.model), load_model(f"{SCALE}-base")

    @lru_cache(maxsize=1)
    def lab_of(draw):
        return Lab(Bench(*given, 10, stand_ins=draw))

    if arguments.settings:
        tried = pd.read_csv(arguments.settings)
    else:
        units = [
            (
                key | {"method": method, "draw": draw},
                lambda method=method, draw=draw: choices(lab_of(draw), base, method, seed=draw),
            )
            for draw in arguments.draws
            for method in arguments.methods
        ]
        tried = measured(out, "rivals_choice", units)
    if arguments.choice_only:
        return
    settings = best_settings(tried) | {VANILLA: ()}
    drop_other_settings(out / "rivals.csv", COLUMNS["rivals"], settings)
    models = [(method, seed) for seed in arguments.seeds for method in arguments.methods]
    if arguments.vanilla:
        models.insert(0, (VANILLA, arguments.seeds[0]))
    units = [
        (
            key
            | {"seed": seed, "forget_ratio": 10}
            | {"method": method, "settings": written(settings[method])},
            partial(report, lab_of, method, settings[method], seed),
        )
        for method, seed in models
    ]
    measured(out, "rivals", units)


def main(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=TRIES, default=list(TRIES), help="default: all")
    add("--draws", type=int, nargs="+", default=[1, 2], help="of stand-ins (default 1 2)")
    add("--choice-only", action="store_true", help="report nothing yet")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--vanilla", action="store_true", help="report the vanilla model, too, once")
    add("--model", default=SCALE, help="a folder, in place of the bundled model")
    settings = "take settings from this file, such as data/results/rivals_choice.csv; try nothing"
    add("--settings", type=Path, help=settings)
    arguments = read_arguments(parser, given)
    of_another = arguments.settings or arguments.model != SCALE
    if of_another and arguments.out.resolve() == RESULTS:
        parser.error(f"{RESULTS} is of the bundled model and its choice; give --out another folder")
    run(arguments)


if __name__ == "__main__":
    main()
