"""A robust evaluation: letters found anywhere, whole words, and intervals over people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.questions import evaluation_questions
from ..benchmark.records import MODALITIES, TASKS, Question
from ..checks import check_number
from ..models.asking import truth_of
from ..models.prompts import prompt
from .judging import bleu, find_letter, holds, judge
from .shots import MAX_NEW_TOKENS, Prompt, draw_of
from .tables import ask_and_judge, check_request, summarise

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset



def evaluate_robust(
    model,
    processor,
    sets: dict[str, Dataset],
    *,
    shots: Dataset | None = None,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    modalities: Sequence[str] = MODALITIES,
    resume: str | Path | None = None,
    model_key: str | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """As :func:`evaluate`, judged by better parsers: a letter that may stand anywhere in up to 50
    tokens (:func:`find_letter`), cloze truths as whole words, and ``bleu``. Intervals:
    :func:`summarise_with_intervals`.

    Args:
        shots: people of the retain set of whom one who is in none of the scored sets is drawn; None
            asks zero-shot. Shots cost a model context and say more about its skill with the format
            than about what it knows.
        seed: of the draw of the shots.
        sets, tasks, modalities, resume, model_key: see :func:`evaluate`, also for what is returned.

    Raises:
        TypeError, ValueError: as :func:`evaluate`; shots where there are none to take, or several
            processes with shots.
    """
    given = {
        "tasks": tasks,
        "modalities": modalities,
        "resume": resume,
        "model_key": model_key,
        "batch_size": batch_size,
    }
    check_request(model, sets, **given, seed=seed, shots=shots)
    with_shots = None
    if shots is not None:

        def with_shots(questions: list[Question]) -> list[Prompt]:
            return robust_prompts(questions, shots, sets, processor, seed)

    return ask_and_judge(
        model, processor, sets, protocol="robust", letter_tokens=MAX_NEW_TOKENS,
        judge=judge_robustly, with_shots=with_shots, **given, progress=progress,
    )  # fmt: skip


def robust_prompts(
    questions: Sequence[Question], shots: Dataset, sets: dict[str, Dataset], processor, seed: int
) -> list[Prompt]:
    """The zero-shot prompt of each question, after solved questions of its task and modality.

    A shot is the template of a query with its answer. All shots are of one person, the same for all
    tasks and modalities.

    Args:
        shots: people of whom one is drawn, such as those of the retain set.
        sets: all that is scored.

    Raises:
        ValueError: everybody in ``shots`` is in a scored set.
    """
    scored = {person_id for dataset in sets.values() for person_id in dataset["ID"]}
    free = [index for index, person_id in enumerate(shots["ID"]) if person_id not in scored]
    if not free:
        raise ValueError(
            "everybody in shots is scored as well, and would have the answers in the prompt; leave "
            "somebody of the retain set out of sets, or ask without shots."
        )
    person = shots.select([draw_of(seed, "shots").choice(free)])
    kinds = dict.fromkeys((question.task, question.modality) for question in questions)
    examples = {kind: evaluation_questions(person, *kind) for kind in kinds}
    prefixes = {
        kind: "".join(f"{prompt(example, processor)} {truth_of(example)}\n" for example in solved)
        for kind, solved in examples.items()
    }
    prompts = []
    for question in questions:
        kind = (question.task, question.modality)
        images = tuple(q.image for q in (*examples[kind], question) if q.image is not None)
        prompts.append(
            Prompt(question, prefixes[kind] + prompt(question, processor), images, prefixes[kind])
        )
    return prompts


def judge_robustly(
    question: Question, response: str, likeliest: str, scorer
) -> dict[str, tuple[str, float]]:
    """metric -> (answer, value in 0..1) of a response: :func:`judge` with better parsers, BLEU.

    Args:
        likeliest, scorer: see :func:`judge`.
    """
    judged = judge(question, response, likeliest, scorer)
    if question.task == "classification":
        right = find_letter(response, tuple(question.options)) == truth_of(question)
        return judged | {"accuracy": (response, float(right))}
    if question.task == "cloze":
        return {"accuracy": (response, float(holds(question.answer, response)))}
    return judged | {"bleu": (response, bleu(question.answer, response, short=True))}


def interval_over_people(
    totals: Sequence[float], counts: Sequence[int], level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """A percentile bootstrap interval of Σ totals / Σ counts, drawing people with all they have;
    NaN for one person.

    Args:
        totals, counts: of each person, the sum of the values and how many there are.

    Raises:
        ValueError: a level that is not between 0 and 1.
    """
    import numpy as np
    from scipy.stats import bootstrap

    check_number("level", level, above=0, below=1)
    if len(totals) < 2:
        return float("nan"), float("nan")
    low, high = bootstrap(
        tuple(np.asarray(column, float) for column in (totals, counts)),
        lambda totals, counts, axis: totals.sum(axis) / counts.sum(axis),
        paired=True, vectorized=True, n_resamples=resamples, confidence_level=level,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(low), float(high)


def summarise_with_intervals(
    frame: pd.DataFrame, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """:func:`summarise` with an interval for each mean, by bootstrap over people.

    The questions about one person are not independent, so people are drawn with replacement, each
    with all their questions and images (percentile bootstrap, ``scipy.stats.bootstrap``). The
    interval says how the score might change with other people, not with another seed of the model.
    Where all people score alike it has no width, which with few people is no proof; of one person
    there is none (NaN).

    Args:
        frame: of :func:`evaluate`, any protocol.
        level: between 0 and 1.

    Returns:
        Columns set, task, modality, metric, value, low, high, n (questions), people.

    Raises:
        ValueError: an empty frame, or a level that is not between 0 and 1.
    """
    if len(frame) == 0:
        raise ValueError("the table is empty, so there is nothing to summarise.")
    keys = ["set", "task", "modality", "metric"]
    people = (
        frame.groupby([*keys, "person_id"], sort=False)["value"]
        .agg(total="sum", n="size")
        .reset_index()
    )
    intervals = {}
    for key, part in people.groupby(keys, sort=False):
        low, high = interval_over_people(part["total"], part["n"], level, resamples, seed)
        intervals[key] = (low, high, len(part))
    table = summarise(frame)
    found = [intervals[tuple(row)] for row in table[keys].to_numpy()]
    table = table.assign(
        low=[f[0] for f in found], high=[f[1] for f in found], people=[f[2] for f in found]
    )
    return table[[*keys, "value", "low", "high", "n", "people"]]
