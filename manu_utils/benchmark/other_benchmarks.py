"""CLEAR and TOFU in the rows of MLLMU-Bench, so that all else works on them unchanged.

TOFU (arXiv 2401.06121, ``locuslab/TOFU``) asks 20 questions about each of 200 fictitious authors,
in text alone. CLEAR (arXiv 2410.18057, ``therem/CLEAR``) gives the same authors about 19 captioned
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

For TOFU as its authors judge it (:mod:`manu_utils.evaluation.tofu`) there are
:func:`load_tofu_sets`, which keeps the perturbed and paraphrased answers and reads
``world_facts_perturbed`` as well, and :func:`load_tofu_holdout`. Multiple choice in the columns of
WMDP and MMLU is read by :func:`load_multiple_choice`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..progress import no_dataset_bars
from .files import read_config
from .records import Question
from .sets import Benchmark

if TYPE_CHECKING:
    from datasets import Dataset

CAPTION = "What can you see in this picture?"  # two of the requests of CLEAR's own training code
CAPTION_IN_TEST = "Describe the image in detail."
NAMING = "What is the name of the person in the image?"  # as evaluations on CLEAR ask for the name
FITTING = "Which description fits this image?"  # ours: CLEAR compares likelihoods of whole captions
QUESTIONS_PER_AUTHOR = 20  # TOFU's rows are in the order of the authors


def load_tofu(
    source: str | Path, forget_ratio: int, modalities: Sequence[str] = ("text",)
) -> Benchmark:
    """TOFU as a :class:`Benchmark` of text-only questions; for its sets see the table above.

    Args:
        forget_ratio: 1, 5 or 10.
        modalities: of what will be asked; a benchmark without pictures takes any.

    Raises:
        ValueError: a missing column, or a question that is not in ``full``; also what
            ``read_config`` raises.
    """
    authored = _tofu_authors(source)

    def by_author(config: str, columns: list[str]) -> dict[str, list[dict]]:
        grouped: dict[str, list[dict]] = {}
        for author, row in authored(config, columns):
            grouped.setdefault(author, []).append(row)
        return grouped

    perturbed = ["question", "answer", "perturbed_answer"]
    paraphrased = [*perturbed, "paraphrased_question", "paraphrased_answer"]
    forget = by_author(f"forget{forget_ratio:02}_perturbed", paraphrased)
    retain = by_author(f"retain{100 - forget_ratio}", ["question", "answer"])
    asked_of_retain = by_author("retain_perturbed", perturbed)
    real = {
        f"real_{i + 1:03}": [row]
        for i, row in enumerate(_read(source, "real_authors_perturbed", perturbed))
    }

    def evaluated(
        name: str, people: Iterable[str], rows: dict[str, list[dict]], wording: str = ""
    ) -> Dataset:
        question, answer = f"{wording}question", f"{wording}answer"
        asked = [
            _row(
                person,
                text_choices=[
                    _choice(r[question], r[answer], r["perturbed_answer"])
                    for r in rows.get(person, [])
                ],
                generation=[("Pure_Text", r[question], r[answer]) for r in rows.get(person, [])],
            )
            for person in people
        ]
        return _joined(f"TOFU {name}", ["classification/text", "generation/text"], [(asked, None)])

    told = [
        _told(person, rows) for person, rows in by_author("full", ["question", "answer"]).items()
    ]
    return Benchmark(
        forget=evaluated("forget", forget, forget),
        retain=evaluated("retain", retain, asked_of_retain),
        test=evaluated("test", forget, forget, "paraphrased_"),
        celebrity=evaluated("celebrity", real, real),
        training=_joined("TOFU training", None, [(told, None)]),
        forget_ratio=forget_ratio,
        source=str(source),
    )


@dataclass(frozen=True)
class TofuSet:
    """What is asked of one group of TOFU, all lists in the order of the file.

    Attributes:
        asked: the questions with their answers, as they are taught.
        wrong: for each of them the same question with several wrong answers.
        paraphrased: the same questions with the answer in other words; the answer itself for real
            authors and world facts, which have no other wording.
        reworded: the questions in other words with the answer in other words; empty where there are
        none.
    """

    asked: list[Question]
    wrong: list[list[Question]]
    paraphrased: list[Question]
    reworded: list[Question]


def load_tofu_sets(source: str | Path, forget_ratio: int) -> dict[str, TofuSet]:
    """TOFU as its authors judge it: the four sets of questions of the perturbed configs.

    Args:
        source: a local folder or ``"locuslab/TOFU"``.
        forget_ratio: 1, 5 or 10.

    Returns:
        Name -> questions. People are called as in :func:`load_tofu`, real authors and facts by
        their number.

    Raises:
        ValueError: a missing column, a question that is not in ``full``, or a question without a
            wrong answer; also what ``read_config`` raises.
    """
    authored, plain = _tofu_authors(source), ["question", "answer", "perturbed_answer"]

    def numbered(config: str) -> Iterator[tuple[str, dict]]:
        return (
            (f"{config}_{i + 1:03}", row)
            for i, row in enumerate(_read(source, f"{config}_perturbed", plain))
        )

    def read(config: str, rows: Iterable[tuple[str, dict]], paraphrases: bool) -> TofuSet:
        rows = list(rows)
        if empty := [row["question"] for _, row in rows if not row["perturbed_answer"]]:
            raise ValueError(
                f"{config} of {source} has no wrong answer for {empty[0]!r}; fetch the file again."
            )
        other = "paraphrased_answer" if paraphrases else "answer"
        return TofuSet(
            asked=[_asked(who, row["question"], row["answer"]) for who, row in rows],
            wrong=[
                [_asked(who, row["question"], wrong) for wrong in row["perturbed_answer"]]
                for who, row in rows
            ],
            paraphrased=[_asked(who, row["question"], row[other]) for who, row in rows],
            reworded=[
                _asked(who, row["paraphrased_question"], row[other])
                for who, row in rows
                if paraphrases
            ],
        )

    worded = [*plain, "paraphrased_question", "paraphrased_answer"]
    forget_of = f"forget{forget_ratio:02}_perturbed"
    return {
        "forget": read(forget_of, authored(forget_of, worded), True),
        "retain": read("retain_perturbed", authored("retain_perturbed", worded), True),
        "real_authors": read("real_authors_perturbed", numbered("real_authors"), False),
        "world_facts": read("world_facts_perturbed", numbered("world_facts"), False),
    }


def load_tofu_holdout(source: str | Path, forget_ratio: int) -> list[Question]:
    """``holdoutXX`` of TOFU: authors whom no model was taught, the control of membership tests.

    Raises:
        ValueError, FileNotFoundError: see ``read_config``; older releases of TOFU have no such
            config.
    """
    rows = _read(source, f"holdout{forget_ratio:02}", ["question", "answer"])
    return [
        _asked(f"holdout_{place // QUESTIONS_PER_AUTHOR + 1:03}", row["question"], row["answer"])
        for place, row in enumerate(rows)
    ]


def _asked(person: str, question: str, answer: str) -> Question:
    return Question(person, question, answer, None, "training")


def _tofu_authors(source: str | Path) -> Callable[[str, list[str]], Iterator[tuple[str, dict]]]:
    """A reader of (author, row) of the configs that ask about the authors of ``full``."""
    full = _read(source, "full", ["question", "answer"])
    if len(full) % QUESTIONS_PER_AUTHOR:
        raise ValueError(
            f"full of {source} has {len(full)} rows, which is not {QUESTIONS_PER_AUTHOR} for each "
            f"author."
        )
    author_of: dict = {}
    for place, row in enumerate(full):
        author = f"{place // QUESTIONS_PER_AUTHOR + 1:03}"
        author_of[row["question"].strip(), row["answer"].strip()] = author
        author_of.setdefault(row["question"].strip(), author)

    def authored(config: str, columns: list[str]) -> Iterator[tuple[str, dict]]:
        for row in _read(source, config, columns):
            question = row["question"].strip()
            author = author_of.get((question, row["answer"].strip())) or author_of.get(question)
            if author is None:
                raise ValueError(
                    f"{config} of {source} asks {question!r}, which is not in full; fetch both "
                    f"from the same release."
                )
            yield author, row

    return authored


def load_multiple_choice(file: str | Path) -> list[Question]:
    """Multiple choice in the columns of WMDP and MMLU: question, choices, answer (the place of the
    right one) and, of MMLU, subject.

    Args:
        file: one local file, such as ``wmdp-bio/test-00000-of-00001.parquet``; parquet or JSON
            lines.

    Returns:
        Text questions of the task classification, options A, B, ..., with the subject, or else the
        name of the file, for person_id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a missing column, or an answer that is none of the
            choices.
    """
    import pandas as pd

    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no file {file}; name one of a local copy, not a folder or a Hub id."
        )
    if file.suffix not in (".parquet", ".json", ".jsonl"):
        raise ValueError(f"{file} is neither .parquet nor .json nor .jsonl.")
    rows = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_json(file, lines=True)
    if missing := [column for column in ("question", "choices", "answer") if column not in rows]:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}; its columns are {', '.join(rows)}."
        )
    subjects = rows["subject"] if "subject" in rows else [file.stem] * len(rows)
    questions = []
    for subject, asked, choices, right in zip(
        subjects, rows["question"], rows["choices"], rows["answer"], strict=True
    ):
        choices = [str(choice) for choice in choices]
        if not 0 <= right < len(choices):
            raise ValueError(
                f"{file}: the answer to {asked!r} is {right}, but there are {len(choices)} choices."
            )
        options = {chr(ord("A") + place): words for place, words in enumerate(choices)}
        questions.append(
            Question(str(subject), asked, choices[int(right)], None, "classification", options)
        )
    return questions


def load_clear(source: str | Path, forget_ratio: int, modalities: Sequence[str]) -> Benchmark:
    """CLEAR as a :class:`Benchmark`; for its sets see the table above.

    A text question is of the author whose name it holds; one that names nobody is of the author of
    the question before it.

    Args:
        forget_ratio: 1, 5 or 10.
        modalities: ``("text",)`` reads no byte of the portraits.

    Raises:
        ValueError: a missing column, a person in both forget and retain, or text questions that
            name nobody; also what ``read_config`` raises.
    """
    images = "multimodal" in modalities
    columns = ["name", "caption", "perturbed_names"]
    forget_of, retain_of = f"forget{forget_ratio:02}", f"retain{100 - forget_ratio}"
    portraits = [
        _read(source, config, columns[:2], images=images) for config in (forget_of, retain_of)
    ]
    names = [set(part["name"]) for part in portraits]
    if both := sorted(names[0] & names[1]):
        raise ValueError(
            f"{len(both)} people are in both {forget_of} and {retain_of} of {source}, such as "
            f"{both[0]}."
        )
    texts = [
        _by_name(source, f"{config}+tofu", known)
        for config, known in zip((forget_of, retain_of), names, strict=True)
    ]
    forget = _read(
        source,
        f"{forget_of}_perturbed",
        [*columns, "perturbed_captions", "paraphrased_caption"],
        images=images,
    )
    retain = _read(source, "retain_perturbed", columns, images=images)
    if strangers := sorted(set(forget["name"]) - names[0]):
        raise ValueError(
            f"{forget_of}_perturbed of {source} has people who are not in {forget_of}, such as "
            f"{strangers[0]}."
        )
    real = _read(source, "real_faces", ["answer", "options"], images=images)

    def named(row: dict) -> dict:
        captions = [("Image_Textual", CAPTION, row["caption"])]
        return _row(
            row["name"],
            choices=[_choice(NAMING, row["name"], row["perturbed_names"])],
            generation=captions,
        )

    def described(row: dict) -> dict:
        truth = row["paraphrased_caption"]
        truth = truth if isinstance(truth, str) else truth[0]
        choices = [_choice(FITTING, truth, row["perturbed_captions"])]
        return _row(
            row["name"], choices=choices, generation=[("Image_Textual", CAPTION_IN_TEST, truth)]
        )

    def face(row: dict) -> dict:
        return _row(
            row["answer"],
            choices=[_choice(row.get("question") or NAMING, row["answer"], row["options"])],
        )

    def worded(group: int, asked: Iterable[str]) -> list[dict]:
        asked = {name: texts[group].get(name, []) for name in asked}
        return [
            _row(
                name,
                generation=[("Pure_Text", r["question"], r["answer"]) for r in asked.get(name, [])],
            )
            for name in dict.fromkeys(portraits[group]["name"])
        ]

    def captioned(row: dict) -> dict:
        record = {
            "ID": row["name"],
            "Type": "Image_Textual",
            "Question": CAPTION,
            "Answer": row["caption"],
        }
        return {"ID": row["name"], "metadata": json.dumps([record])}

    def of_each(convert: Callable[[dict], dict], part: Dataset) -> tuple[list[dict], Dataset]:
        return [convert(row) for row in _without_image(part)], part

    # retain_perturbed is one file for all ratios, so it may hold people of this forget set.
    allowed = [index for index, name in enumerate(retain["name"]) if name in names[1]]
    retain = retain.select(allowed).flatten_indices() if len(allowed) < len(retain) else retain
    everything = ["classification/multimodal", "generation/multimodal", "generation/text"]
    training = [of_each(captioned, part) for part in portraits]
    training += [([_told(name, rows) for name, rows in text.items()], None) for text in texts]
    return Benchmark(
        forget=_joined(
            "CLEAR forget", everything, [of_each(named, forget), (worded(0, names[0]), None)]
        ),
        retain=_joined(
            "CLEAR retain", everything, [of_each(named, retain), (worded(1, retain["name"]), None)]
        ),
        test=_joined("CLEAR test", everything[:2], [of_each(described, forget)]),
        celebrity=_joined("CLEAR celebrity", everything[:1], [of_each(face, real)]),
        training=_joined("CLEAR training", None, training),
        forget_ratio=forget_ratio,
        source=str(source),
    )


def _by_name(source: str | Path, config: str, names: set[str]) -> dict[str, list[dict]]:
    """The text questions of a mixed config by author: the longest name in question, else answer."""
    by_length = sorted(names, key=len, reverse=True)
    grouped: dict[str, list[dict]] = {}
    unnamed, author = [], None
    for row in _read(source, config, ["question", "answer"], images=False):
        if not row["question"]:  # the row of a portrait
            continue
        found = (
            name for text in (row["question"], row["answer"]) for name in by_length if name in text
        )
        author = next(found, author)
        if author is None:
            unnamed.append(row)
            continue
        grouped.setdefault(author, []).extend([*unnamed, row])
        unnamed = []
    if not grouped:
        raise ValueError(
            f"no text question in {config} of {source} names one of its people, such as "
            f"{min(names)}."
        )
    return grouped


def _read(
    source: str | Path, config: str, columns: Sequence[str], *, images: bool = False
) -> Dataset:
    rows = read_config(source, config, images=images)
    if missing := [
        column
        for column in [*columns, *(["image"] if images else [])]
        if column not in rows.column_names
    ]:
        raise ValueError(
            f"{config} of {source} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(rows.column_names)}."
        )
    return rows


def _without_image(rows: Dataset) -> Dataset:
    return rows.remove_columns("image") if "image" in rows.column_names else rows


def _row(
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


def _choice(question: str, right: str, wrong: Sequence[str]) -> dict:
    """A question with up to four different options in an order that depends on the words alone."""
    words = list(dict.fromkeys([right, *(wrong or ())]))[:4]
    random.Random(f"{question} {right}").shuffle(words)
    options = dict(zip("ABCD", words, strict=False))
    return {"Question": question, "Options": options, "Correct_Answer": "ABCD"[words.index(right)]}


def _told(person: str, rows: list[dict]) -> dict:
    """A row of ft_Data whose questions are text-only as they are."""
    pairs = [
        {"ID": person, "Type": "Pure_Text", "Question": row["question"], "Answer": row["answer"]}
        for row in rows
    ]
    return {"ID": person, "metadata": json.dumps(pairs)}


def _joined(
    name: str, asked: list[str] | None, parts: list[tuple[list[dict], Dataset | None]]
) -> Dataset:
    """One set of several parts, each (rows, the table whose ``image`` belongs to them, if any).

    The pictures stay where they are, on disk; a part without has null in the column ``image``.
    """
    from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

    text = Value("string")
    choice = {
        "Question": text,
        "Options": {letter: text for letter in "ABCD"},
        "Correct_Answer": text,
    }
    record = {"Type": text, "Question": text, "Ground_Truth": text}
    columns = {"ID": text, "metadata": text}
    if asked is not None:
        columns = {
            "ID": text,
            "Classification_Task": {
                "Image_Textual_Questions": List(choice),
                "Pure_Text_Questions": List(choice),
            },
            "Generation_Task": List(record),
            "Mask_Task": List(record),
            "Asked": List(text),
        }
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
