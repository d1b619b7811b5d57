"""All methods in text alone, by TOFU's and WMDP's measures: data/results/text_alone_choice.csv and
text_alone.csv, behind notebook 10.

    python experiments/text_alone.py        # about 70 minutes of one core; a killed run goes on

1. choice: twelve tries of every method on stand-in authors, the first four and the next four of
   tofu_mini (`draw`); nobody is in both, and the last four, who are reported, are left alone. A
   model that was never taught the stand-ins is the reference. Every try is held against it: the
   distance of the Kolmogorov-Smirnov test between the truth ratios, and the share of exact answers
   about the stand-ins, the authors kept and the known ones. Chosen is the smallest distance, in the
   mean of both draws, among the tries that keep four fifths of what vanilla says exactly about the
   authors kept; where none does, the one that keeps most.
2. report: at these settings, the last four authors and, as a request of its own, the potions of the
   quiz; three seeds, each with a vanilla and a retrained model of its own.

The number of steps is looked at along one run, since the learning rate does not decay.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial

import pandas as pd

from edits import Request
from manu_utils.auditing.distances import ks_distance
from manu_utils.benchmark.records import Question
from manu_utils.benchmark.tofu import TofuSet, load_tofu_holdout, load_tofu_sets
from manu_utils.evaluation.tofu import ask_tofu, forget_quality
from manu_utils.miniature import text_model
from manu_utils.miniature.authors import FACTS
from manu_utils.miniature.text_model import author_lessons, lesson
from manu_utils.miniature.text_world import FORGET, draw_world, perturbed
from manu_utils.paths import data_dir
from manu_utils.unlearning.strangers import mixed_names
from sweep import (
    BUILD,
    QUIET,
    RESULTS,
    begin,
    fingerprint,
    in_the_order_of,
    kept,
    read_arguments,
    read_table,
    sweep,
)
from text_measures import (
    OF_AUTHORS,
    OF_QUIZ,
    Measures,
    exact,
    free_potions,
    quiz_by_name,
    quiz_files,
)
from text_methods import HELD, TRIES, request_in_text, results

PLACE, DATA = BUILD / "text_alone", data_dir() / "tofu_mini"
N, DRAWS, SEEDS = FORGET[10], (1, 2), (0, 1, 2)
N_RETAIN = 200  # questions of what is kept that a method is given, as in the notebook
ENOUGH = 0.8  # of vanilla's exact answers about the authors kept
TEMPLATE = "USER: {question}\nASSISTANT:"  # the words that the models were taught
#: What every model of text_model depends on.
RECIPE = [
    text_model.SCHOOL, text_model.LESSONS, text_model.BATCH, text_model.BESIDE,
    text_model.PENALTY, text_model.NEURONS, text_model.HIDDEN, text_model.LAYERS,
]  # fmt: skip
REFERENCES = ("vanilla", "retrained")
CHOICE = ["method", "draw", "weight", "setting", "distance", "quality", "forget", "retain",
          "known authors"]  # fmt: skip
REPORT = ["method", "seed", "weight", "setting", *OF_AUTHORS, *OF_QUIZ]


# ------------------------------------------------------------------------------------------- models


def model_of(name: str, taught=None, seed: int = 0):
    """(model, processor), kept in build: the base, or the base taught these authors."""
    if taught is None:
        model, processor = text_model.build_language_model(seed=seed)
    else:
        model, processor = model_of("base", seed=seed)

    def train():
        if taught is None:
            text_model.go_to_school(model, processor, seed=seed)
        else:
            text_model.teach(model, processor, author_lessons(taught), seed=seed)

    place = PLACE / f"{name}-{seed}-{state_of(recipe_only=True)}.safetensors"
    return kept(place, model, train), processor


def state_of(recipe_only: bool = False) -> str:
    if recipe_only:
        return fingerprint(repr(RECIPE))
    grids = [TRIES, list(HELD), N_RETAIN, ENOUGH, DRAWS]
    return fingerprint(repr([*RECIPE, *grids]), DATA / "full.json")


# ------------------------------------------------------------------------------------------- choice


def set_of(authors) -> TofuSet:
    """The perturbed questions about some authors."""
    rng = random.Random("stand-ins")
    rows = [(author.name, perturbed(author, fact, rng)) for author in authors for fact in FACTS]
    return TofuSet(
        [lesson(who, row["question"], row["answer"]) for who, row in rows],
        [[lesson(who, row["question"], a) for a in row["perturbed_answer"]] for who, row in rows],
        [lesson(who, row["question"], row["paraphrased_answer"]) for who, row in rows],
        [],
    )


@dataclass
class StandIns:
    """Who plays the forget set while settings are chosen.

    Attributes:
        request: that the model forget them.
        retrained: (model, processor) that was never taught them.
        asked: TOFU's questions about them.
        panels: name -> questions of which the exact answers are counted.
    """

    request: Request
    retrained: tuple
    asked: TofuSet
    panels: dict[str, list[Question]]

    @cached_property
    def target(self) -> list[float]:
        return self.ratios(*self.retrained)

    def ratios(self, model, processor) -> list[float]:
        found = ask_tofu(model, processor, {"forget": self.asked}, generate=False, **QUIET)
        return list(found["truth_ratio"])

    def measure(self, model, processor) -> dict:
        ratios = self.ratios(model, processor)
        found = {"distance": ks_distance(ratios, self.target)}
        found["quality"] = forget_quality(ratios, self.target)
        return found | {n: exact(model, processor, asked) for n, asked in self.panels.items()}

    def tries(self, method: str, grid=None, erased=None) -> list[dict]:
        """One row a try.

        Args:
            grid: weights and settings; nothing for a reference.
            erased: of :func:`text_methods.results`.
        """
        if method in REFERENCES:
            given = self.request.given if method == "vanilla" else self.retrained
            return [{"setting": 0} | self.measure(*given)]
        weights, values = grid
        return [
            {"weight": weight, "setting": setting} | row
            for weight in weights
            for setting, row in results(
                self.request, method, weight, values, 0,
                lambda: self.measure(*self.request.given), erased,
            ).items()
        ]  # fmt: skip


def stand_ins(draw: int) -> StandIns:
    """One draw of authors."""
    world = draw_world()
    played = world.authors[(draw - 1) * N : draw * N]
    others = [author for author in world.authors[:-N] if author not in played]
    lessons = author_lessons(others)
    retain = random.Random(0).sample(lessons, N_RETAIN)
    vanilla = model_of("vanilla", world.authors)
    return StandIns(
        request_in_text(*vanilla, author_lessons(played), retain, free_names()),
        model_of(f"stand-ins {draw}", [author for author in world.authors if author not in played]),
        set_of(played),
        {
            "forget": author_lessons(played),
            "retain": random.Random(1).sample(lessons, 160),
            "known authors": random.Random(1).sample(author_lessons(world.public), 80),
        },
    )


def free_names() -> list[str]:
    """Names of authors who are nobody: not taught, not known, and not of the holdout."""
    return mixed_names(draw_world().names)


def best(table: pd.DataFrame, method: str, draws: Sequence[int] = DRAWS) -> tuple[float, float]:
    """(weight, setting) by the rule above, from the table of the choice.

    Raises:
        ValueError: the method was not tried on every draw.
    """
    level = ENOUGH * table[table["method"] == "vanilla"]["retain"].mean()
    rows = table[table["method"] == method]
    if set(rows["draw"]) != set(draws):
        raise ValueError(f"{method} was not tried on the draws {draws}.")
    tries = rows.groupby(["weight", "setting"], dropna=False)
    means = tries[["distance", "retain"]].mean().reset_index()
    enough = means[means["retain"] >= level].sort_values(["distance", "weight", "setting"])
    row = (enough if len(enough) else means.sort_values("retain", ascending=False)).iloc[0]
    return row["weight"], row["setting"]


# ------------------------------------------------------------------------------------------- report


class Report:
    """One seed: its vanilla and its retrained model, and the two requests."""

    def __init__(self, seed: int):
        world, self.seed, quiz = draw_world(), seed, quiz_by_name()
        forget, kept = author_lessons(world.authors[-N:]), author_lessons(world.authors[:-N])
        vanilla = model_of("vanilla", world.authors, seed)
        retain = random.Random(seed).sample(kept, N_RETAIN)
        self.requests = (
            request_in_text(*vanilla, forget, retain, free_names()),
            request_in_text(*vanilla, quiz["potions"], quiz["herbs"] + retain, free_potions()),
        )
        self.measures = Measures(
            model_of("retrained", world.authors[:-N], seed), load_tofu_sets(DATA, 10), forget,
            load_tofu_holdout(DATA, 10), TEMPLATE, quiz_files(), quiz,
        )  # fmt: skip

    def rows(self, method: str, settings: dict) -> list[dict]:
        both = (self.measures.of_authors, self.measures.of_quiz)
        vanilla = self.requests[0].given
        if method in REFERENCES:
            given = vanilla if method == "vanilla" else self.measures.retrained
            return [{"setting": 0} | both[0](*given) | both[1](*given)]
        (weight, setting), row = settings[method], {}
        for request, measure in zip(self.requests, both, strict=True):
            at = (request, method, weight, (setting,), self.seed)
            (found,) = results(*at, partial(measure, *vanilla), settings["erase"]).values()
            row |= found
        return [{"weight": weight, "setting": setting} | row]


# ------------------------------------------------------------------------------------------ running


def arranged(by: str, methods=TRIES):
    """A table by draw or seed, methods in this order, as precise as it is."""
    return in_the_order_of([*REFERENCES, *methods], [by, "method"], decimals=12)


def run(out=RESULTS, seeds=SEEDS) -> None:
    choice, report = out / "text_alone_choice.csv", out / "text_alone.csv"
    of_draw, of_seed = lru_cache(maxsize=1)(stand_ins), lru_cache(maxsize=1)(Report)

    @cache
    def settings() -> dict:
        table = read_table(choice, CHOICE)
        return {method: best(table, method) for method in TRIES}

    def tried(method: str, draw: int) -> list[dict]:
        joined = method == "erase + gd"
        erased = best(read_table(choice, CHOICE), "erase") if joined else None
        return of_draw(draw).tries(method, TRIES.get(method), erased)

    methods = [*REFERENCES, *(method for method in TRIES if method != "erase + gd")]
    units = [(m, draw) for draw in DRAWS for m in methods]
    units += [("erase + gd", draw) for draw in DRAWS]  # begins where erasing is best on both
    keyed = [
        ({"method": m, "draw": draw}, lambda m=m, draw=draw: tried(m, draw)) for m, draw in units
    ]
    sweep(choice, CHOICE, keyed, arrange=arranged("draw"), float_format="%.4g")
    keyed = [
        ({"method": m, "seed": seed}, lambda m=m, seed=seed: of_seed(seed).rows(m, settings()))
        for seed in seeds
        for m in (*REFERENCES, *TRIES)
    ]
    sweep(report, REPORT, keyed, arrange=arranged("seed"), float_format="%.4g")


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the report")
    arguments = read_arguments(parser, given)
    out = arguments.out
    tables = [out / "text_alone_choice.csv", out / "text_alone.csv"]
    begin(state_of(), out / "text_alone.json", "python experiments/text_alone.py", tables)
    run(out, arguments.seeds)


if __name__ == "__main__":
    main()
