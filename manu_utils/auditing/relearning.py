"""Relearning: what a few gradient steps on other lessons bring back. Derived in notebook 09.

An attacker teaches the unlearned model something that is not what is asked, such as one of the
forgotten people, and asks about the others. What comes back was hidden, not erased. Teaching some
facts and asking independent others is the test of Deeb & Roger (RTT, arXiv 2410.08827); lessons
that are merely related are those of Hu et al. (benign relearning, arXiv 2406.13356). Teaching also
helps a model that never met them to guess: always attack the retrained and the vanilla model with
the same lessons, and ask the retain set beside.

Three kinds of lessons, all modality -> questions with answers::

    lessons, _ = relearning_split(forget, k=1)     # some of the forgotten people, and then
    asked = without_taught(asked, lessons)         # the other ones are asked
    lessons, _ = relearning_split(retain, k=12)    # retained people only
    lessons = strangers                            # people nobody met, with IDs of their own
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..benchmark.records import MODALITIES, Question
from ..checks import check_name, check_questions, check_whole, kind_of
from ..models.asking import exact_answers
from ..models.passes import kept_weights
from ..models.precision import check_trainable, device_of, language_weights
from ..models.training import answer_batches, answer_loss, train_language_model, weight_of

if TYPE_CHECKING:
    import pandas as pd

STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
HELD_OUT = ("forget", "test")  # the sets about the forgotten people: none of them may be taught
_WARMUP = 10  # steps, as in unlearn_by_training


def relearning_split(
    questions: Mapping[str, Sequence[Question]], k: int, seed: int = 0
) -> tuple[dict[str, list[Question]], dict[str, list[Question]]]:
    """Draw k people: their questions, to be taught, and those of all others.

    Args:
        questions: modality -> questions; a person may be in both modalities.
        k: how many people are taught; at least one is left.
        seed: of the draw, which depends on nothing else but the IDs of the people.

    Returns:
        (taught, others), each modality -> questions in their order.

    Raises:
        TypeError: questions that are no dict of lists, or k or seed no whole number.
        ValueError: k below 1, or not fewer than there are people.
    """
    check_questions("questions", questions)
    check_whole("k", k)
    check_whole("seed", seed, least=0)
    people = sorted(_people(questions.values()))
    if k >= len(people):
        raise ValueError(
            f"k={k} of {len(people)} people leaves nobody to ask about; take a smaller k."
        )
    drawn = set(random.Random(seed).sample(people, k))
    taught = {m: [q for q in items if q.person_id in drawn] for m, items in questions.items()}
    others = {m: [q for q in items if q.person_id not in drawn] for m, items in questions.items()}
    return taught, others


def without_taught(
    asked: Mapping[tuple[str, str], Sequence[Question]], lessons: Mapping[str, Sequence[Question]]
) -> dict[tuple[str, str], list[Question]]:
    """Of the questions to ask, those about people who are not taught.

    Args:
        asked: (set, modality) -> questions, such as :func:`manu_utils.benchmark.open_questions`.
        lessons: modality -> the questions that are taught.

    Raises:
        ValueError: nobody of a set is left.
    """
    taught = _people(lessons.values())
    left = {key: [q for q in items if q.person_id not in taught] for key, items in asked.items()}
    if empty := [key for key, items in left.items() if not items]:
        raise ValueError(f"everybody in {empty[0]} is taught and nobody left to ask; teach fewer.")
    return left


def relearn(
    model,
    processor,
    lessons: Mapping[str, Sequence[Question]],
    asked: Mapping[tuple[str, str], Sequence[Question]],
    *,
    steps: Sequence[int] = STEPS,
    lr: float = 3e-4,
    lora_rank: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    log: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Teach the language model lessons and ask, after some of the steps, what it knows.

    One path is trained: the learning rate rises over ten steps and then stays, so that step s of a
    long path is the end of a path of s steps. Each step takes a batch of every modality of the
    lessons; vision tower and projector stay frozen.

    Args:
        model: as it was afterwards, weights, mode and ``requires_grad``, also after an error or
            interrupt; a copy of the language model's weights is kept on the CPU for that.
        lessons: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        asked: (set, modality) -> questions with answers. Of the sets ``"forget"`` and ``"test"``
            nobody may be taught; a set of another name may hold who is.
        steps: after how many steps to ask; 0 is before the first.
        lr, lora_rank: see :func:`train_language_model`; None trains all weights.
        batch_size: questions of each modality in a step.
        seed: of the order of the lessons, and of the adapters.
        log: given step and loss, see :func:`optimise`.

    Returns:
        Columns step, set, modality, value (share of exact answers, 0 to 1) and n (questions); by
        step, then in the order of ``asked``.

    Raises:
        TypeError: an argument of the wrong type, or a wrapped model.
        ValueError: no lessons or nothing to ask, an empty answer, questions of another modality, a
            person who is taught and asked as ``"forget"`` or ``"test"``, steps that are no
            numbers of steps, or a number out of range.
        FloatingPointError, RuntimeError: see :func:`train_language_model`.
    """
    import pandas as pd

    wanted = _checked_steps(steps)
    check_whole("batch_size", batch_size)
    check_whole("seed", seed, least=0)
    _check_lessons(lessons, asked)
    check_trainable(model, lora_rank)
    batches = answer_batches(lessons, processor, batch_size, seed, device_of(model))
    step, tables = itertools.count(), []

    def look() -> dict:
        if (now := next(step)) in wanted:
            table = exact_answers(model, processor, asked)
            table.insert(0, "step", now)
            tables.append(table)
        return {}

    with kept_weights(language_weights(model)):
        train_language_model(
            model, lambda _: sum(answer_loss(model, b) * weight_of(b) for b in next(batches)),
            steps=max(wanted), lr=lr, lora_rank=lora_rank, seed=seed, warmup=_WARMUP, hold=1.0,
            watch=look, every=1, log=log, description="relearning", progress=progress,
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def _people(parts) -> set[str]:
    return {question.person_id for part in parts for question in part}


def _checked_steps(steps: Sequence[int]) -> set[int]:
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise TypeError(f"steps is {kind_of(steps)}; it must be a tuple such as {STEPS}.")
    for step in steps:
        check_whole("a step", step, least=0)
    if not any(steps):
        raise ValueError(f"steps={steps!r} takes no step; name one above 0, such as {STEPS}.")
    return set(steps)


def _check_lessons(lessons, asked) -> None:
    """Refuse lessons and questions that do not go together, see :func:`relearn`."""
    check_questions("lessons", lessons, needed=True)
    if not isinstance(asked, Mapping) or not all(
        isinstance(key, tuple) and len(key) == 2 for key in asked
    ):
        raise TypeError("asked must be a dict such as {('forget', 'text'): open_questions(...)}.")
    if not asked or not all(asked.values()):
        raise ValueError("asked has no questions for one of its sets; leave that out.")
    for (name, modality), items in asked.items():
        check_questions(f"asked[{name!r}]", {modality: items})
    for modality, items in (*lessons.items(), *((key[1], part) for key, part in asked.items())):
        check_name("a modality", modality, MODALITIES)
        if any(question.modality != modality for question in items):
            raise ValueError(f"questions under {modality!r} are not {modality}; build each apart.")
    held_out = [items for (name, _), items in asked.items() if name in HELD_OUT]
    if both := sorted(_people(lessons.values()) & _people(held_out)):
        raise ValueError(
            f"person {both[0]} is taught and asked about as one of the forgotten; ask "
            "without_taught(asked, lessons), or give strangers IDs of their own."
        )
