"""How much to prune, chosen on people who are not to be forgotten."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from ..benchmark.questions import evaluation_questions, open_questions
from ..benchmark.records import MODALITIES
from ..benchmark.sets import Benchmark
from ..checks import check_name, check_whole
from ..models.asking import exact_answers
from ..models.neurons import check_alpha
from ..progress import bar
from ..unlearning.evidence import Evidence
from ..unlearning.pruning import check_unchanged, prune
from ..unlearning.scores import PRUNINGS
from .tables import merit

if TYPE_CHECKING:
    from datasets import Dataset

CHANCE = {"open": 0.0, "letters": 0.25}  # what a model knows that never met the people


def choose_alpha(
    model,
    processor,
    benchmark: Benchmark,
    *,
    variant: str = "coverage",
    alphas: Sequence[float] = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0),
    draws: int = 2,
    never_met=None,
    n_retain: int = 600,
    n_asked: int = 40,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """Try α on stand-ins: retained people who play the forget set, as many as are to be forgotten.

    The forget set takes no part, so what is reported of it is not what was tuned on. Every draw has
    other people; letters count as much as open questions, since a method that only hides what it
    no longer says is found out by them. Take the α with ``"chosen"``; where it is the first or the
    last of ``alphas``, widen them.

    Args:
        benchmark: whose retain set the stand-ins are drawn from.
        variant: one of :data:`PRUNINGS`.
        alphas: at least two percentages, each once.
        draws: of stand-ins; nobody is in two of them.
        never_met: a model that never met the fictitious people, such as base or a retrained one;
            without it nothing in open questions and chance in letters is what is aimed at.
        n_retain: retained training questions per modality that the score sees.
        n_asked: other retained people who are asked.

    Returns:
        One row per α, draw and task (``"open"``, ``"letters"``): ``alpha``, ``draw``, ``task``, the
        parts of :func:`merit`, and ``chosen``: whether this α has the best mean merit of all draws
        and tasks, of equal ones the smallest. The model is as it was.

    Raises:
        TypeError: an argument of another type.
        ValueError: a number out of range, an unknown variant, too few retained people for the
            draws, a model that is changed already, or one that knows the stand-ins no better than
            ``never_met`` does.
    """
    check_name("variant", variant, PRUNINGS)
    for name, value in {"draws": draws, "n_retain": n_retain, "n_asked": n_asked}.items():
        check_whole(name, value)
    alphas = [alphas] if isinstance(alphas, int | float) else sorted(alphas)
    for alpha in alphas:
        check_alpha(alpha, allow_small=True)
    if len(set(alphas)) < 2 or len(set(alphas)) < len(alphas):
        raise ValueError("alphas must be at least two different percentages to choose from.")
    check_unchanged(model)
    people = benchmark.retain_ids
    n = len(benchmark.forget_ids)
    if draws * n >= len(people):
        message = f"{draws} draws of {n} people need more than the {len(people)} of the retain set"
        raise ValueError(f"{message}; take fewer draws.")
    drawn = random.Random(seed).sample(people, draws * n)
    rows = []
    with bar(total=draws * len(alphas), desc="choosing α", shown=progress) as shown:
        for draw in range(draws):
            stand_ins = drawn[draw * n : (draw + 1) * n]
            asked = _panels(benchmark, stand_ins, n_asked, seed)
            evidence = _evidence(model, processor, benchmark, stand_ins, n_retain, seed, batch_size)
            ask = {"batch_size": batch_size, "progress": False}
            before = _answers(model, processor, asked, ask)
            aim = None if never_met is None else _answers(never_met, processor, asked, ask)
            for alpha in alphas:
                with prune(model, evidence.choose(variant, alpha, seed=seed, allow_small=True)):
                    found = _answers(model, processor, asked, ask)
                for task in asked:
                    at_chance = before[task].where(
                        before[task].index.get_level_values("set") != "forget", CHANCE[task]
                    )
                    parts = merit(found[task], before[task], aim[task] if aim else at_chance)
                    rows.append({"alpha": alpha, "draw": draw, "task": task} | parts)
                shown.update(1)
    table = pd.DataFrame(rows)
    best = table.groupby("alpha")["merit"].mean().idxmax()
    return table.assign(chosen=table["alpha"] == best)


def panels_by_task(sets: Mapping[str, Dataset]) -> dict[str, dict]:
    """``"open"`` and ``"letters"`` -> (set, modality) -> questions, for :func:`exact_answers`."""
    keys = [(name, m) for name in sets for m in MODALITIES]
    return {
        "open": {(name, m): open_questions(sets[name], m) for name, m in keys},
        "letters": {
            (name, m): evaluation_questions(sets[name], "classification", m) for name, m in keys
        },
    }


def _panels(benchmark: Benchmark, stand_ins: list[str], n_asked: int, seed: int) -> dict:
    """task -> (set, modality) -> questions, of the stand-ins and some others of the retain set."""
    others = [person for person in benchmark.retain_ids if person not in set(stand_ins)]
    others = random.Random(seed).sample(others, min(n_asked, len(others)))
    ids, sets = benchmark.retain["ID"], {}
    for name, people in {"forget": set(stand_ins), "retain": set(others)}.items():
        index = [i for i, person in enumerate(ids) if person in people]
        sets[name] = benchmark.retain.select(index)
    return panels_by_task(sets)


def _evidence(
    model, processor, benchmark: Benchmark, stand_ins: list[str], n: int, seed: int, batch_size: int
) -> Evidence:
    kept = [person for person in benchmark.retain_ids if person not in set(stand_ins)]
    forget, retain = {}, {}
    for m in MODALITIES:
        forget[m] = benchmark.training_questions(stand_ins, m)
        pool = benchmark.training_questions(kept, m)
        retain[m] = random.Random(seed).sample(pool, min(n, len(pool)))
    options = {"batch_size": batch_size, "progress": False}
    return Evidence(model, processor, forget, retain, **options)


def _answers(model, processor, panels: dict, options: dict) -> dict[str, pd.Series]:
    return {
        task: exact_answers(model, processor, of, **options).set_index(["set", "modality"])["value"]
        for task, of in panels.items()
    }
