"""Checks of arguments at the public doors."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path


def check_real(name: str, value) -> None:
    """Check that an argument is a number, whatever its range; True and "5" are none.

    Raises:
        TypeError: not a number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name}={shown(value)} must be a number such as 5.0, not {kind_of(value)}."
        )


def check_number(
    name: str, value, *, above: float = -math.inf, below: float = math.inf,
    least: float = -math.inf, most: float = math.inf,
) -> None:  # fmt: skip
    """Check that an argument is a finite number in (above, below) and in [least, most].

    Raises:
        TypeError: not a number.
        ValueError: not finite, or out of range.
    """
    check_real(name, value)
    if not (math.isfinite(value) and above < value < below and least <= value <= most):
        limits = {"above": above, "at least": least, "below": below, "at most": most}
        known = [f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit)]
        raise ValueError(
            f"{name}={value!r} must be a finite number{' ' if known else ''}{' and '.join(known)}."
        )


def check_whole(name: str, value, *, least: int = 1) -> None:
    """Check that an argument is a whole number of at least ``least``; True, 8.0 and "8" are none.

    Raises:
        TypeError: not a whole number.
        ValueError: below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"{name}={shown(value)} must be a whole number such as {max(least, 1)}, not "
            f"{kind_of(value)}."
        )
    if value < least:
        raise ValueError(
            f"{name}={value!r} is not positive."
            if least == 1
            else f"{name}={value!r} is below {least}."
        )


def check_names(name: str, value, known: Sequence[str]) -> None:
    """Check that an argument is a sequence, no string, of some ``known`` names, none twice.

    Raises:
        TypeError: a string, or no sequence of strings.
        ValueError: empty, an unknown name, or one twice.
    """
    several = f"({', '.join(map(repr, known))})"
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(item, str) for item in value)
    ):
        raise TypeError(
            f"{name}={shown(value)} must be a tuple of names, such as {several} or ({known[0]!r},)."
        )
    if not value or len(set(value)) < len(value):
        raise ValueError(
            f"{name}={shown(value)} must name at least one of {several}, and none twice."
        )
    if unknown := [item for item in value if item not in known]:
        raise ValueError(f"{name} holds {shown(unknown[0])}, which is unknown; use {several}.")


def check_source(name: str, value) -> None:
    """Check that an argument is the place of a model or a benchmark.

    Raises:
        TypeError: no path and no text.
    """
    if not isinstance(value, str | Path):
        raise TypeError(
            f"{name}={shown(value)} must be a path, a Hub id or 'tiny', not {kind_of(value)}."
        )


def kind_of(value) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def check_questions(name: str, sets, *, needed: bool = False) -> None:
    """Check that an argument maps modalities to questions, each with an answer.

    Args:
        needed: whether there must be some, in each modality that it names.

    Raises:
        TypeError: no dict, or its values are no lists of :class:`Question`.
        ValueError: see :func:`check_answers`, or none of what is needed.
    """
    if not isinstance(sets, Mapping):
        raise TypeError(
            f"{name} is {kind_of(sets)}; it must be a dict such as {{'text': "
            f"benchmark.training_questions(...)}}."
        )
    for modality, items in sets.items():
        if (
            isinstance(items, str)
            or not isinstance(items, Sequence)
            or not all(hasattr(item, "answer") for item in items)
        ):
            raise TypeError(
                f"{name}[{modality!r}] must be a list of questions, as training_questions returns "
                f"them."
            )
        check_answers(items)
    if needed and not (sets and all(sets.values())):
        raise ValueError(f"{name} must hold questions in every modality, as in {{'text': [...]}}.")


def check_answers(questions: Sequence) -> None:
    """Check that every question has an answer to forget or to keep.

    Args:
        questions: :class:`Question`.

    Raises:
        ValueError: an answer that is empty or no text, with its person.
    """
    for question in questions:
        if not isinstance(question.answer, str) or not question.answer.strip():
            raise ValueError(
                f"person {question.person_id}: the answer to {question.question[:60]!r} is "
                f"{question.answer!r}; leave questions without an answer out."
            )


def check_name(name: str, value, known: Sequence[str]) -> None:
    """Check that an argument is one of the ``known`` names.

    Raises:
        TypeError: no string.
        ValueError: an unknown name.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(known)}, not {kind_of(value)}.")
    if value not in known:
        raise ValueError(f"{name}={shown(value)} is unknown; use one of {', '.join(known)}.")


def shown(value) -> str:
    """A value in an error: as it is written, or its type alone where that is long or an object."""
    text = repr(value) if isinstance(value, str | numbers.Number | Sequence | None) else ""
    return text if 0 < len(text) <= 80 else f"<{type(value).__name__}>"
