"""What is asked for: the value in an answer, and the values that it could have been.

"Works as a tailor." holds the value "tailor" among the jobs. Looks inside a model need it, since
only the tokens of the value, and neither "Works as a" nor the stop, tell whether the fact is known.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..benchmark.records import Question, check_list, written_id
from ..benchmark.rows import require_columns, training_records
from ..benchmark.text_only import person_name
from ..benchmark.values import differing_parts
from ..checks import kind_of

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Asked:
    """A question whose answer holds one of several values.

    Attributes:
        attribute: the kind of fact, a key of ``values`` of :func:`asked_values`.
        value: the true one, as it stands in the answer.
        values: all that it could be, the true one among them.
        name: the name of the person, or None where it is not known.
    """

    question: Question
    attribute: str
    value: str
    values: tuple[str, ...]
    name: str | None = None


def names_of(ft_rows: Dataset) -> dict[str, str]:
    """person_id -> name, read from the naming questions of ft_Data rows such as
    ``benchmark.training``.

    Raises:
        ValueError: a missing column, or a person whose name cannot be read (:func:`person_name`).
    """
    require_columns(ft_rows, ["ID", "metadata"])
    names: dict[str, str] = {}
    for row in ft_rows.select_columns(["ID", "metadata"]):
        person_id = written_id(row["ID"])
        try:
            names[person_id] = person_name(training_records(row))
        except ValueError as error:
            raise ValueError(f"person {person_id}: {error}") from error
    return names


def find_values(
    questions: Sequence[Question], names: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """wording -> the values in the answers to it: what is left of them without their common
    beginning and end.

    Two questions have one wording if they differ in the name of the person alone.

    Args:
        names: person_id -> name; needed for text questions, each of which has a wording of its own
        without it.

    Returns:
        Only wordings with two different values or more.

    >>> ask = lambda person, answer: Question(person, "What is the job?", answer, None, "training")
    >>> find_values([ask("1", "Works as a nurse."), ask("2", "Works as a night guard.")])
    {'training: What is the job?': ('night guard', 'nurse')}
    """
    answers: dict[str, set[str]] = {}
    check_list(questions)
    for question in questions:
        answers.setdefault(_wording(question, names or {}), set()).add(question.answer.strip())
    return {
        wording: tuple(sorted(set(differing_parts(sorted(own)))))
        for wording, own in answers.items()
        if len(own) > 1
    }


def asked_values(
    questions: Sequence[Question],
    values: Mapping[str, Sequence[str]] | None = None,
    names: Mapping[str, str] | None = None,
) -> list[Asked]:
    """The questions whose answer holds a value, with what it could have been.

    Args:
        values: attribute -> its values, such as {"pet": ("parrot", "rabbit")}, or what
            :func:`find_values` finds in other questions. Without it, found in ``questions``
            themselves. The longest value in the answer counts.
        names: person_id -> name, see :func:`names_of`.

    Returns:
        In the order of ``questions``; one warning says how many answers hold no value and are left
        out.

    Raises:
        TypeError: no list of questions, or values that are no mapping of names to values.
        ValueError: no answer holds a value, values that are not two different ones, an answer
            that holds values of two attributes, or raw texts without a prompt.
    """
    check_list(questions)
    if bare := next((q for q in questions if not q.question), None):
        raise ValueError(
            f"{bare.person_id}: a text without a prompt asks for no value; pass questions."
        )
    names = names or {}
    pools = _pools(find_values(questions, names) if values is None else values)
    asked, without = [], []
    for question in questions:
        wording = _wording(question, names)
        own = {wording: pools[wording]} if wording in pools else pools
        found = [
            (key, value)
            for key, of_key in own.items()
            for value in of_key
            if holds(question.answer, value)
        ]
        longest = max((len(value) for _, value in found), default=0)
        found = [(key, value) for key, value in found if len(value) == longest]
        if len(found) > 1:
            raise ValueError(
                f"person {question.person_id}: the answer {question.answer[:60]!r} holds "
                f"{found[0][1]!r} of {found[0][0]!r} and {found[1][1]!r} of {found[1][0]!r}; pass "
                "values that tell the attributes apart."
            )
        if not found:
            without.append(question)
            continue
        (attribute, value), name = found[0], names.get(question.person_id)
        asked.append(Asked(question, attribute, value, pools[attribute], name))
    if without:
        said = (
            f"{len(without)} of {len(questions)} answers hold none of the values that they are "
            f"compared with, such as {without[0].answer[:60]!r} of person {without[0].person_id}"
        )
        if not asked:
            raise ValueError(
                f"{said}; pass values={{attribute: its values}}, and names for text questions."
            )
        warnings.warn(f"{said}; they are left out.", stacklevel=3)
    return asked


def place_of_words(text: str, words: str) -> re.Match | None:
    """The first place of words in a text that is no part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text)


def holds(text: str, words: str) -> bool:
    """Whether a text has these words, as whole words."""
    return place_of_words(text, words) is not None


def _pools(values: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    if not isinstance(values, Mapping):
        raise TypeError(
            f"values is {kind_of(values)}; it must be a dict such as "
            "{'pet': ('parrot', 'rabbit')}."
        )
    for attribute, own in values.items():
        if isinstance(own, str) or not all(isinstance(value, str) for value in own):
            raise TypeError(
                f"values[{attribute!r}] must be a tuple of texts, such as ('parrot', 'rabbit')."
            )
        if len(set(own)) < 2 or len(set(own)) < len(own) or not all(value.strip() for value in own):
            raise ValueError(
                f"values[{attribute!r}] must hold two different values or more, none twice and "
                "none empty."
            )
    return {attribute: tuple(own) for attribute, own in values.items()}


def _wording(question: Question, names: Mapping[str, str]) -> str:
    name = names.get(question.person_id)
    text = (
        question.question
        if not name
        else re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "{}", question.question)
    )
    return f"{question.task}: {text}"
