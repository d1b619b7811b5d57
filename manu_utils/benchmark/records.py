"""The plain types that all else works on: a question, its names, the sets for a method.

The schema is that of ``MLLMMU/MLLMU-Bench`` (arXiv 2410.22108); explained in notebook 01.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import PIL.Image

from ..checks import check_name, shown
from .pictures import checked_size

FORGET_RATIOS = (5, 10, 15)  # percent of the fictitious people
CONFIGS = (
    "Full_Set", "Test_Set", "Retain_Set", "forget_5", "forget_10", "forget_15",
    "retain_95", "retain_90", "retain_85", "ft_Data",
)  # fmt: skip
# task -> the column of an evaluated set that holds its questions
TASK_COLUMNS = {
    "classification": "Classification_Task", "cloze": "Mask_Task", "generation": "Generation_Task",
}  # fmt: skip
TASKS = tuple(TASK_COLUMNS)
MODALITIES = ("multimodal", "text")


@dataclass(frozen=True)
class Question:
    """One question with its answer, without any prompt template.

    Attributes:
        person_id: the ID of the person asked about, such as ``"001"``.
        question: a question; for cloze a sentence with a ``__`` for the blank.
        answer: the answer; for classification the words of the right option, for cloze the missing
            words.
        image: portrait, or None for a text-only question. One from a dataset is a
            :class:`Picture`, a PIL image that is decoded when it is used. Questions of one task
            about one picture hold the same object.
        task: ``"training"``, ``"generation"``, ``"cloze"`` or ``"classification"``; or ``"raw"``,
            a text that a model without a chat goes on with: the question is all that it reads,
            empty for a text from its first word on, and the answer follows without a space.
        options: letter -> words for classification, else None.

    Raises:
        TypeError: an ID or a question that is no text: 7 and "007" would be two people.
        ValueError: an image that is no PIL image, such as a path or an address (nothing is opened
            or fetched), or whose size no processor takes (:func:`checked_size`); a raw text with
            an image or options.
    """

    person_id: str
    question: str
    answer: str
    image: PIL.Image.Image | None
    task: str
    options: dict[str, str] | None = None

    def __post_init__(self) -> None:
        for name, value in (("person_id", self.person_id), ("question", self.question)):
            if not isinstance(value, str):
                raise TypeError(f"{name}={shown(value)} of a question must be text, such as '007'.")
        if self.task == "raw" and (self.image is not None or self.options):
            raise ValueError(
                f"{self.person_id}: a raw text has neither image nor options; use another task."
            )
        if self.image is None:
            return
        if not isinstance(self.image, PIL.Image.Image):
            raise ValueError(
                f"person {self.person_id}: the image is a {type(self.image).__name__}, not a "
                f"picture; open it yourself and give the PIL image: "
                "PIL.Image.open(path).convert('RGB')."
            )
        try:
            checked_size(self.image.size)
        except ValueError as error:
            raise ValueError(
                f"person {self.person_id}: the image cannot be used: {error}."
            ) from None

    @property
    def modality(self) -> str:
        """``"multimodal"`` with an image, ``"text"`` without."""
        return "text" if self.image is None else "multimodal"


def written_id(value) -> str:
    """An ID as MLLMU-Bench writes it: a number, as of a table read from CSV, has three digits; none
    is ``""``.

    >>> written_id(7), written_id(7.0), written_id("007"), written_id("Anna Berg"), written_id(None)
    ('007', '007', '007', 'Anna Berg', '')
    """
    if value is None or value != value:
        return ""
    if (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    ):
        return f"{int(value):03}"
    return str(value)


def check_list(questions: Sequence[Question]) -> None:
    """Check that there are questions to ask.

    Raises:
        TypeError: no list of :class:`Question`.
        ValueError: an empty one.
    """
    if isinstance(questions, str | Mapping | Question | Iterator) or not all(
        isinstance(question, Question) for question in questions
    ):
        raise TypeError(
            "questions must be a list of Question, such as benchmark.training_questions('forget', "
            "'text')."
        )
    if not questions:
        raise ValueError("there is no question to ask; pass at least one.")


def check_sets(
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    modalities: Sequence[str] = MODALITIES,
    retain_modalities: Sequence[str] | None = None,
) -> None:
    """Check what a method is given: questions in each modality it needs, nobody in both sets.

    Args:
        forget, retain: modality -> questions.
        modalities, retain_modalities: those that are needed, of the retain set the same unless
            named.

    Raises:
        ValueError: an unknown modality, a missing or empty one, questions of the other modality, or
            a person in both sets.
    """
    needed = {
        "forget": modalities,
        "retain": modalities if retain_modalities is None else retain_modalities,
    }
    for name, sets in (("forget", forget), ("retain", retain)):
        for modality in sets:
            check_name(f"modality of {name}", modality, MODALITIES)
        if missing := [modality for modality in needed[name] if not sets.get(modality)]:
            raise ValueError(
                f"{name} has no {missing[0]} questions, which this method needs; pass at least one."
            )
        if wrong := [
            m
            for m, questions in sets.items()
            if any(question.modality != m for question in questions)
        ]:
            raise ValueError(
                f"{name}[{wrong[0]!r}] holds questions that are not {wrong[0]}; build each with "
                f"its modality."
            )
    check_nobody_in_both(forget, retain)


def check_nobody_in_both(
    forget: Mapping[str, Sequence[Question]], retain: Mapping[str, Sequence[Question]]
) -> None:
    """Check that no person is asked about in both sets; ValueError with some who are."""
    people = [
        {question.person_id for part in sets.values() for question in part}
        for sets in (forget, retain)
    ]
    if both := sorted(people[0] & people[1]):
        raise ValueError(
            f"forget and retain share people, such as {', '.join(both[:5])}; take them out of one "
            f"set."
        )
