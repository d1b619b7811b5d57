"""Other benchmarks in the columns of MLLMU-Bench, so that all else works on them unchanged.

CLEAR (arXiv 2410.18057, ``therem/CLEAR``, :mod:`manu_utils.benchmark.clear`) gives the authors of
TOFU (arXiv 2401.06121, ``locuslab/TOFU``, :mod:`manu_utils.benchmark.tofu`) about 19 captioned
portraits each. Neither has cloze questions, and not every set has every other kind: each set says
in a column ``Asked``, such as ``["generation/text"]``, what it has, and what it has not is left out
of an evaluation, without an error. The choices made here:

========== ========================================== ==============================================
set        CLEAR                                      TOFU
========== ========================================== ==============================================
person     the name is the ID; a row per portrait,    the place in ``full`` (001 to 200, 20 rows an
           and one for the text questions             author) is the ID; a row per author
training   image: "What can you see in this           text: the question and answer
           picture?", answered by the caption; text:
           the questions of TOFU, which name the
           author already
forget     ``forgetXX_perturbed``: the name among     ``forgetXX_perturbed``: the answer among wrong
           wrong names (classification), the caption  ones (classification), the question and answer
           (generation); text: TOFU (generation)      (generation)
test       the same portraits (there are no new       paraphrased question and answer, among the
           ones): the paraphrased caption among       same wrong answers, and alone
           wrong ones, and as the truth of another
           wording of the request
retain     everybody else; asked are the authors in   everybody else; asked are the questions in
           ``retain_perturbed``, as for forget        ``retain_perturbed``
celebrity  ``real_faces``: the name among wrong ones  ``real_authors_perturbed``
not used   ``real_world``, ``full`` and ``default``   ``world_facts``, ``holdoutXX``: see below
========== ========================================== ==============================================

There are four options, as in MLLMU-Bench, the wrong ones being the first three of the file; their
order is drawn from a seed that depends on the words alone. These are the tasks of MLLMU-Bench, not
the official metrics of CLEAR. Columns and files are as the two publish them; another layout fails
with what is missing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..progress import no_dataset_bars
from .files import read_config

if TYPE_CHECKING:
    from datasets import Dataset


def read_columns(
    source: str | Path, config: str, columns: Sequence[str], *, split: str = "train",
    images: bool = False,
) -> Dataset:  # fmt: skip
    """The rows of a config that must have these columns, with ``images`` also ``image``."""
    rows = read_config(source, config, split=split, images=images)
    wanted = [*columns, "image"] if images else columns
    if missing := [column for column in wanted if column not in rows.column_names]:
        raise ValueError(
            f"{rows.info.config_name} of {source} has no column {', '.join(missing)}; its columns "
            f"are {', '.join(rows.column_names)}."
        )
    return rows


def evaluated_row(
    person: str,
    *,
    choices: Sequence[dict] = (),
    text_choices: Sequence[dict] = (),
    generation: Sequence[tuple[str, str, str]] = (),
) -> dict:
    """One row of an evaluated set; ``generation`` holds (type, question, truth)."""
    records = [
        {"Type": kind, "Question": question, "Ground_Truth": truth}
        for kind, question, truth in generation
    ]
    return {
        "ID": person,
        "Classification_Task": {
            "Image_Textual_Questions": list(choices),
            "Pure_Text_Questions": list(text_choices),
        },
        "Generation_Task": records,
        "Mask_Task": [],
    }


def choice_of(question: str, right: str, wrong: Sequence[str]) -> dict:
    """A question with up to four different options in an order that depends on the words alone."""
    words = list(dict.fromkeys([right, *(wrong or ())]))[:4]
    random.Random(f"{question} {right}").shuffle(words)
    options = dict(zip("ABCD", words, strict=False))
    return {"Question": question, "Options": options, "Correct_Answer": "ABCD"[words.index(right)]}


def told_row(person: str, rows: Sequence[dict], kind: str = "Pure_Text") -> dict:
    """A row of ft_Data; what is asked in text alone is text-only as it is."""
    pairs = [
        {"ID": person, "Type": kind, "Question": row["question"], "Answer": row["answer"]}
        for row in rows
    ]
    return {"ID": person, "metadata": json.dumps(pairs)}


def task_columns() -> dict:
    """The columns of the tasks in a set of MLLMU-Bench, as features of ``datasets``."""
    from datasets import List, Value

    text = Value("string")
    choice = {
        "Question": text,
        "Options": {letter: text for letter in "ABCD"},
        "Correct_Answer": text,
    }
    record = {"Type": text, "Question": text, "Ground_Truth": text}
    return {
        "Classification_Task": {
            "Image_Textual_Questions": List(choice),
            "Pure_Text_Questions": List(choice),
        },
        "Generation_Task": List(record),
        "Mask_Task": List(record),
    }


def joined(
    name: str, asked: list[str] | None, parts: list[tuple[list[dict], Dataset | None]]
) -> Dataset:
    """One set of several parts, each (rows, the table whose ``image`` belongs to them, if any).

    The pictures stay where they are, on disk; a part without has null in the column ``image``.
    """
    from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

    text = Value("string")
    columns = {"ID": text, "metadata": text}
    if asked is not None:
        columns = {"ID": text, **task_columns(), "Asked": List(text)}
    seen = any(table is not None and "image" in table.column_names for _, table in parts)
    tables = []
    for rows, table in parts:
        rows = [row | {"Asked": asked} for row in rows] if asked is not None else rows
        part = Dataset.from_list(rows, features=Features(columns))
        if table is not None and seen:
            with no_dataset_bars():
                portraits = table.select_columns(["image"]).cast_column("image", Image())
            part = concatenate_datasets([part, portraits], axis=1)
        elif seen:
            part = Dataset.from_list(
                [row | {"image": None} for row in rows],
                features=Features(columns | {"image": Image()}),
            )
        tables.append(part)
    result = concatenate_datasets(tables)
    result.info.config_name = name
    return result
