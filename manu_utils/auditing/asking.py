"""All forms of :mod:`manu_utils.auditing.asking_otherwise`, asked of one model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..benchmark.records import Question
from ..checks import check_names, check_questions, check_whole
from ..evaluation.judging import find_letter, holds, normalise
from ..evaluation.shots import Prompt, respond
from ..models.asking import generate_answers, likeliest_options, truth_of
from ..models.prompts import prompt
from .asking_otherwise import (
    ANSWER_PREFIX,
    ROLES,
    crossed_questions,
    other_wordings,
    reverse_questions,
    two_hop_questions,
    with_examples,
    with_old_pictures,
)
from .pictures import PICTURES, changed_pictures

if TYPE_CHECKING:
    import pandas as pd

Panels = Mapping[tuple[str, str], Sequence[Question]]
PREFIX, CROSSED, ANY = "answer prefix", "another's name", "any prefix or role"
PICTURED = tuple(f"picture: {kind}" for kind in PICTURES)
#: All forms but those with examples, which are named after their sources.
FORMS = (
    "as asked", "letters", "other wordings", "test wordings", *ROLES, PREFIX, *PICTURED, CROSSED,
    "two hops", "reverse",
)  # fmt: skip
COLUMNS = ("form", "set", "modality", "person_id", "question", "truth", "answer", "value", "chance")


def forms_of(
    questions: Sequence[Question],
    *,
    profiles: Mapping[str, Mapping[str, str]] | None = None,
    wordings: Sequence[Question] = (),
    named: Sequence[Question] = (),
    examples: Mapping[str, Sequence[Question]] | None = None,
    forms: Sequence[str] | None = None,
    seed: int = 42,
) -> dict[str, list[Question]]:
    """Form -> the questions of one set and modality in it; empty where the form needs what they do
    not have.

    Args:
        questions: open questions and, for the form ``letters``, questions with options.
        profiles: of everybody (:func:`profiles_of`), for ``reverse``, ``two hops`` and ``another's
            name``.
        wordings: the same people's questions of the test set.
        named: the set's questions in text alone, for ``another's name``.
        examples: name of a source -> questions in text alone that are shown with their answers.
        forms: those wanted, of :data:`FORMS` and ``examples: <source>``; None for all.
    """
    profiles, plain = profiles or {}, [q for q in questions if not q.options]
    found = {
        "as asked": plain,
        "letters": [q for q in questions if q.options],
        "other wordings": [q for part in other_wordings(plain) for q in part],
        "test wordings": with_old_pictures([q for q in wordings if not q.options], plain),
        **{name: other_wordings(plain, [template])[0] for name, template in ROLES.items()},
        PREFIX: plain,
    }
    for source, shots in (examples or {}).items():
        found[f"examples: {source}"] = with_examples(plain, shots, seed=seed)
    if all(question.image is None for question in questions):
        found["two hops"] = two_hop_questions(plain, profiles)
        found["reverse"] = reverse_questions([q.person_id for q in questions], profiles)
    else:
        wanted = [kind for kind in PICTURES if forms is None or f"picture: {kind}" in forms]
        found |= {f"picture: {kind}": changed_pictures(plain, kind, seed=seed) for kind in wanted}
        found[CROSSED] = crossed_questions(plain, named, profiles)
    return {form: part for form, part in found.items() if forms is None or form in forms}


def answers_otherwise(
    model,
    processor,
    panels: Panels,
    *,
    profiles: Mapping[str, Mapping[str, str]] | None = None,
    wordings: Panels | None = None,
    examples: Mapping[str, Sequence[Question]] | None = None,
    forms: Sequence[str] | None = None,
    seed: int = 42,
    max_new_tokens: int = 30,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask a model the same facts in every form; one row a question, for paired tests. The model is
    unchanged.

    Judged by whether the greedy answer holds the truth, word for word but for case and punctuation;
    ``letters`` by the letter that it names; ``reverse`` by the likeliest name, and ``another's
    name`` by whether the fact of the face is likelier than that of the name (value 1). A form in
    which vanilla fails says nothing about an unlearned model: ask vanilla as well, and a model that
    never met anybody. Answers are kept, so that other judges can be used: a truth of a long
    sentence is seldom repeated word for word.

    Args:
        panels: (set, modality) -> questions: open ones, and for ``letters`` those with options.
        profiles, examples: see :func:`forms_of`.
        wordings: (set, modality) -> the same people's questions of the test set.
        forms: those wanted; None for all that the questions have something for.
        seed: of pictures, examples and names.
        max_new_tokens: of an answer.

    Returns:
        Columns form, set, modality, person_id, question, truth, answer (written, or the likeliest
        option), value (0 or 1) and chance (of guessing among options; NaN for open answers). Forms
        without a question are named in a warning.

    Raises:
        TypeError, ValueError: no questions, an unknown form, or see :func:`generate_answers`.
    """
    import pandas as pd

    check_whole("batch_size", batch_size)
    check_questions(
        "panels", {f"{name}, {modality}": part for (name, modality), part in panels.items()}
    )
    known = [*FORMS, *(f"examples: {source}" for source in examples or {})]
    if forms is not None:
        check_names("forms", forms, known)
    if not any(panels.values()):
        raise ValueError("there is no question to ask; pass panels with at least one question.")
    rows, missing = [], []
    for (name, modality), questions in panels.items():
        if not questions:
            continue
        other = {
            "wordings": (wordings or {}).get((name, modality), ()),
            "named": panels.get((name, "text"), ()),
        }
        found = forms_of(
            questions, profiles=profiles, examples=examples, forms=forms, seed=seed, **other
        )
        missing += [f"{form} ({name}, {modality})" for form, part in found.items() if not part]
        asked = [(form, question) for form, part in found.items() for question in part]
        answers = _answers(model, processor, asked, max_new_tokens, batch_size, progress)
        judged = zip(asked, answers, strict=True)
        rows += [_row(form, name, modality, q, answer) for (form, q), answer in judged]
    if missing:
        warnings.warn(
            f"left out, since these questions have nothing for them: {', '.join(missing)}.",
            stacklevel=2,
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def ask_otherwise(model, processor, panels: Panels, **options) -> pd.DataFrame:
    """The share of questions that a model answers in every form, see :func:`answers_otherwise`.

    Returns:
        Columns form, set, modality, value (0 to 1), n (questions), people and chance. The form
        ``any prefix or role`` is the share of questions answered after at least one of them.
    """
    return share_by_form(answers_otherwise(model, processor, panels, **options))


def share_by_form(frame: pd.DataFrame) -> pd.DataFrame:
    """The means of :func:`answers_otherwise`; see :func:`ask_otherwise`."""
    import pandas as pd

    keys = ["form", "set", "modality"]
    tried = frame[frame["form"].isin([PREFIX, *ROLES])]
    if len(tried):
        number = tried.groupby(keys).cumcount().rename("number")
        best = tried.groupby(["set", "modality", number], sort=False).agg(
            {"value": "max", "person_id": "first"}
        )
        frame = pd.concat([frame, best.reset_index().assign(form=ANY)])
    return frame.groupby(keys, sort=False).agg(
        value=("value", "mean"), n=("value", "size"), people=("person_id", "nunique"),
        chance=("chance", "mean"),
    ).reset_index()  # fmt: skip


def _answers(
    model,
    processor,
    asked: list[tuple[str, Question]],
    max_new_tokens: int,
    batch_size: int,
    progress: bool,
) -> list[str]:
    """What the model says to each, or the words of the option that it finds likeliest."""
    options = {"batch_size": batch_size, "progress": progress}
    kinds: dict[str, list[int]] = {}
    for index, (form, _) in enumerate(asked):
        kind = {PREFIX: "begun", "reverse": "likeliest", CROSSED: "likeliest"}.get(form, "written")
        kinds.setdefault(kind, []).append(index)
    answers = [""] * len(asked)
    for kind, indices in kinds.items():
        questions = [asked[index][1] for index in indices]
        if kind == "likeliest":
            letters = likeliest_options(model, processor, questions, **options)
            found = [
                q.options.get(letter, "") for q, letter in zip(questions, letters, strict=True)
            ]
        elif kind == "written":
            found = generate_answers(
                model, processor, questions, max_new_tokens=max_new_tokens, **options
            )
        else:
            texts = [prompt(question, processor) + ANSWER_PREFIX for question in questions]
            pictures = [
                () if question.image is None else (question.image,) for question in questions
            ]
            begun = [Prompt(*one) for one in zip(questions, texts, pictures, strict=True)]
            found = respond(model, processor, begun, max_new_tokens=max_new_tokens, **options)
        for index, answer in zip(indices, found, strict=True):
            answers[index] = answer
    return answers


def _row(form: str, name: str, modality: str, question: Question, answer: str) -> tuple:
    """In the order of :data:`COLUMNS`."""
    chance = 1 / len(question.options) if question.options else float("nan")
    about = (question.person_id, question.question, question.answer, answer)
    return (form, name, modality, *about, float(_right(form, question, answer)), chance)


def _right(form: str, question: Question, answer: str) -> bool:
    if form == "letters":
        return find_letter(answer, tuple(question.options)) == truth_of(question)
    if question.options:
        return answer == question.answer
    return holds(normalise(question.answer), normalise(answer))
