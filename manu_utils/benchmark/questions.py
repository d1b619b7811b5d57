"""From rows to questions, for evaluation and training; a report of the text-only form. Explained in
    notebook 01.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..checks import check_name
from .records import MODALITIES, TASK_COLUMNS, TASKS, Question, written_id
from .rows import (
    TYPES,
    is_null,
    name_of,
    options_of,
    pairs_of,
    parsed,
    question_and_answer,
    records_in,
    require_columns,
    rows_of,
    text_of,
    training_records,
)
from .text_only import answer_to_text_only, asks_for_the_name, leftover, person_name, to_text_only

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset



def evaluation_questions(
    dataset: Dataset, task: str, modality: str, *, strict: bool = False, unreadable: str = "skip"
) -> list[Question]:
    """The questions of one evaluation task in one modality, in the order of the file.

    Every picture of Test_Set's ``images`` is used: one question per picture (the official code
    draws one at random). Pictures stay in the file until they are used. What cannot be used is left
    out, and one warning says how much, of whom, and why the first: pictures that are missing,
    broken, or of a size that no portrait has; people without an ID or without such a question;
    records without a question, a truth, or a right option among the options. ``Correct_Answer``
    may be written "c", "C." or "(C)". Task columns may be JSON strings or structs of lists,
    ``Options`` a list.

    Args:
        dataset: any set but ft_Data.
        task: one of :data:`TASKS`.
        modality: one of :data:`MODALITIES`.
        strict: stop at the first picture or record that cannot be used. Nothing but such is always
            an error.
        unreadable: ``"raise"`` is another way to say ``strict=True``.

    Returns:
        Empty only for a set of another benchmark whose column ``Asked`` says that it has no such
        questions.

    Raises:
        ValueError: unknown task or modality, missing column, empty set, no such question in the
            set, or nothing that can be used.
    """
    check_name("modality", modality, MODALITIES)
    check_name("task", task, TASKS)
    column = TASK_COLUMNS[task]

    def records_of(row: dict) -> list[dict]:
        if task == "classification":
            value = {} if is_null(row[column]) else parsed(row[column], dict)
            found = records_in(value.get(f"{TYPES[modality]}_Questions"))
        else:
            other = TYPES["text" if modality == "multimodal" else "multimodal"]
            found = [
                r
                for r in records_in(row[column])
                if not (isinstance(r, dict) and r.get("Type") == other)
            ]
        if not found and "Asked" not in dataset.column_names:
            raise ValueError(f"has no {modality} question for {task}")
        return found

    def read(record: dict) -> dict:
        question = text_of(record, "Question", "has a record without a question")
        if task != "classification" and record.get("Type") != TYPES[modality]:
            known = " nor ".join(map(repr, TYPES.values()))
            raise ValueError(
                f"has for {question!r} the Type {record.get('Type')!r}, which is neither {known}"
            )
        if task != "classification":
            return {
                "question": question,
                "answer": text_of(record, "Ground_Truth", f"has an empty truth for {question!r}"),
            }
        options = options_of(record.get("Options"))
        given = record.get("Correct_Answer")
        letter = re.fullmatch(r"[\W_]*(\w)[\W_]*", given) if isinstance(given, str) else None
        answer = options.get(letter[1].upper()) if letter else None
        if answer is None:
            raise ValueError(f"lacks for {question!r} its right option {given!r}")
        if list(options.values()).count(answer) > 1:
            raise ValueError(f"has the right option of {question!r} twice, under two letters")
        return {"question": question, "answer": answer, "options": options}

    questions = [
        Question(person_id, image=image, task=task, **record)
        for person_id, records, images in rows_of(
            dataset, column, modality, records_of, read, strict, unreadable
        )
        for record in records
        for image in images
    ]
    if not questions and not (
        "Asked" in dataset.column_names and f"{task}/{modality}" not in dataset["Asked"][0]
    ):
        raise ValueError(f"{name_of(dataset)} has no {modality} question for {task}.")
    return questions


def open_questions(dataset: Dataset, modality: str) -> list[Question]:
    """The cloze and then the generation questions of a set: their answers are not among options.

    Raises:
        ValueError: see :func:`evaluation_questions`.
    """
    return [
        question
        for task in ("cloze", "generation")
        for question in evaluation_questions(dataset, task, modality)
    ]


def training_questions(
    ft_rows: Dataset,
    modality: str,
    *,
    rewrite: str = "both",
    strict: bool = False,
    unreadable: str = "skip",
) -> list[Question]:
    """The training questions of ft_Data rows, with the portrait or rewritten to text alone.

    ft_Data has image questions only; as in MANU, the text-only ones name the person instead, in the
    question and in the answer (:mod:`manu_utils.benchmark.text_only`; what has no such form is left
    out, see :func:`rewriting_report`). Records with ``Additional_*`` keys have no Question and
    Answer and are skipped, as the official loaders do. In other benchmarks a record has a ``Type``,
    and none is rewritten: one of ``"Pure_Text"`` is asked as it is, in text alone.

    What cannot be used is left out with one warning, as in :func:`evaluation_questions`: broken
    pictures, records without a question or an answer, people whose metadata are no JSON, and, in
    text alone, people whose name cannot be read.

    Args:
        ft_rows: rows of ft_Data, columns ``ID``, ``metadata`` (JSON) and ``image``.
        modality: one of :data:`MODALITIES`.
        rewrite: what names the person in text alone: ``"both"``, or ``"question"``, which leaves
            "This person ..." in the answers.
        strict, unreadable: see :func:`evaluation_questions`.

    Raises:
        ValueError: unknown modality, missing column, empty set, or nothing that can be used.
    """
    check_name("modality", modality, MODALITIES)
    check_name("rewrite", rewrite, ("both", "question"))

    def records_of(row: dict) -> list[dict]:
        records = training_records(row)
        pairs = pairs_of(records)
        if not pairs:
            raise ValueError("has no training question")
        if modality == "multimodal" or any("Type" in pair for pair in pairs):
            return [
                pair for pair in pairs if pair.get("Type", TYPES["multimodal"]) == TYPES[modality]
            ]
        try:
            name = person_name(records)
        except ValueError as error:
            return [{"unnamed": error} for _ in pairs]
        return [pair | {"name": name} for pair in pairs]

    def read(record: dict) -> dict | None:
        if "unnamed" in record:
            raise record["unnamed"]
        question, answer = question_and_answer(record)
        if "name" not in record:
            return {"question": question, "answer": answer}
        text = to_text_only(question, record["name"])
        if rewrite == "both":
            answer = answer_to_text_only(question, answer, record["name"])
        return None if text is None else {"question": text, "answer": answer}

    return [
        Question(person_id, image=image, task="training", **record)
        for person_id, records, images in rows_of(
            ft_rows, "metadata", modality, records_of, read, strict, unreadable
        )
        for image in images
        for record in records
    ]


def rewriting_report(ft_rows: Dataset) -> pd.DataFrame:
    """Training questions that have no text-only form, or that may not be rewritten well.

    Args:
        ft_rows: rows of ft_Data, such as ``benchmark.training``.

    Returns:
        One row per such question, columns person_id, question, rewritten (None if left out) and
        reason: ``"asks for the name"`` (as it should be), ``"refers to no person in the picture"``,
        ``"still refers to a picture"`` (kept), ``"the answer still refers to a picture"`` (kept;
        ``rewritten`` is the answer), ``"no name: ..."`` for a person without a readable name, none
        of whose questions can be asked, or ``"cannot be used: ..."``.

    Raises:
        ValueError: missing column or empty set.
    """
    import pandas as pd

    rows = []
    require_columns(ft_rows, ["ID", "metadata"])
    for row in ft_rows.select_columns(["ID", "metadata"]):
        person_id, name, problem = written_id(row["ID"]), "", None
        try:
            records = training_records(row)
        except ValueError as error:
            rows.append((person_id, None, None, f"cannot be used: {error}"))
            continue
        pairs = [pair for pair in pairs_of(records) if "Type" not in pair]
        try:
            name = person_name(records) if pairs else ""
        except ValueError as error:
            problem = f"no name: {error}"
        for pair in pairs:
            try:
                question, answer = question_and_answer(pair)
            except ValueError as error:
                rows.append((person_id, pair.get("Question"), None, f"cannot be used: {error}"))
                continue
            if problem:
                rows.append((person_id, question, None, problem))
                continue
            text, told = to_text_only(question, name), answer_to_text_only(question, answer, name)
            if text is None:
                reason = (
                    "asks for the name"
                    if asks_for_the_name(question)
                    else "refers to no person in the picture"
                )
                rows.append((person_id, question, None, reason))
            elif reason := leftover(text, told):
                rows.append(
                    (person_id, question, told if reason.startswith("the answer") else text, reason)
                )
    return pd.DataFrame(rows, columns=["person_id", "question", "rewritten", "reason"])
