"""MLLMU-Bench: its schema, its sets, and the question records that everything else works on.

The same functions read the bundled miniature (``"tiny"``), a local copy and the Hub (:mod:`manu_utils.sources`), and other
benchmarks whose rows are turned into these (:mod:`manu_utils.clear_tofu`). Explained in notebook 01; the schema is that of
``MLLMMU/MLLMU-Bench`` (arXiv 2410.22108).
"""

from __future__ import annotations

import json
import pickle
import re
import string
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from .checks import check_name, check_names, shown
from .paths import data_dir
from .pictures import Picture, checked_size, readable_size
from .progress import no_dataset_bars
from .sources import IMAGE_COLUMNS, config_names, read_config, written_id
from .wording import answer_to_text_only, asks_for_the_name, leftover, person_name, to_text_only

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

FORGET_RATIOS = (5, 10, 15)  # percent of the fictitious people
CONFIGS = (
    "Full_Set", "Test_Set", "Retain_Set", "forget_5", "forget_10", "forget_15",
    "retain_95", "retain_90", "retain_85", "ft_Data",
)  # fmt: skip
TASKS = ("classification", "cloze", "generation")
MODALITIES = ("multimodal", "text")
BIOGRAPHY_KEYS = (
    "Name", "Born", "Date of Birth", "Gender", "Employment", "Height", "Educated at", "Annual Salary", "Residence",
    "Medical Conditions", "Parents", "Fun Facts", "Description", "appearance_detail",
)  # fmt: skip
_TYPES = {"multimodal": "Image_Textual", "text": "Pure_Text"}  # the words that MLLMU-Bench uses


@dataclass(frozen=True)
class Question:
    """One question with its answer, without any prompt template.

    Attributes:
        person_id: the ID of the person asked about, such as ``"001"``.
        question: a question; for cloze a sentence with a ``__`` for the blank.
        answer: the answer; for classification the words of the right option, for cloze the missing words.
        image: portrait, or None for a text-only question. One from a dataset is a :class:`manu_utils.pictures.Picture`, a PIL
            image that is decoded when it is used. Questions of one task about one picture hold the same object.
        task: ``"training"``, ``"generation"``, ``"cloze"`` or ``"classification"``.
        options: letter -> words for classification, else None.

    Raises:
        ValueError: an image that is no PIL image, such as a path or an address (nothing is opened or fetched), or whose size
            no processor takes (:func:`manu_utils.pictures.checked_size`).
    """

    person_id: str
    question: str
    answer: str
    image: PIL.Image.Image | None
    task: str
    options: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.image is None:
            return
        if not isinstance(self.image, PIL.Image.Image):
            raise ValueError(
                f"person {self.person_id}: the image is a {type(self.image).__name__}, not a picture; open it "
                "yourself and give the PIL image: PIL.Image.open(path).convert('RGB')."
            )
        try:
            checked_size(self.image.size)
        except ValueError as error:
            raise ValueError(f"person {self.person_id}: the image cannot be used: {error}.") from None

    @property
    def modality(self) -> str:
        """``"multimodal"`` with an image, ``"text"`` without."""
        return "text" if self.image is None else "multimodal"


@dataclass(frozen=True)
class Benchmark:
    """The sets of one unlearning task, each a ``datasets.Dataset`` with one row per person (of CLEAR one per picture).

    Attributes:
        forget: the people to forget.
        retain: all other fictitious people.
        test: Test_Set of the forget people: new portraits and new wordings.
        celebrity: real people (public figures in the miniature), known from pre-training.
        training: ft_Data, the training questions of all fictitious people.
        forget_ratio: percent of the fictitious people in ``forget``.
        source: where the sets come from.
    """

    forget: Dataset
    retain: Dataset
    test: Dataset
    celebrity: Dataset
    training: Dataset
    forget_ratio: int
    source: str

    @property
    def forget_ids(self) -> list[str]:
        """IDs of the people to forget, in the order of the file."""
        return list(dict.fromkeys(_ids(self.forget)))

    @property
    def retain_ids(self) -> list[str]:
        """IDs of the other fictitious people, in the order of the file."""
        return list(dict.fromkeys(_ids(self.retain)))

    def sets(self) -> dict[str, Dataset]:
        """The four sets that are evaluated, in the order of the official evaluation."""
        return {"forget": self.forget, "test": self.test, "retain": self.retain, "celebrity": self.celebrity}

    def training_questions(
        self,
        people: str | Iterable[str],
        modality: str,
        *,
        rewrite: str = "both",
        strict: bool = False,
        unreadable: str = "skip",
    ) -> list[Question]:
        """The training questions of some people, joined by ID (forget and retain files carry none themselves).

        Args:
            people: ``"forget"``, ``"retain"``, ``"all"`` or a list of IDs.
            modality: ``"multimodal"`` or ``"text"``.
            rewrite, strict, unreadable: see :func:`training_questions`.

        Raises:
            ValueError: unknown ID or group; see also :func:`training_questions`.
        """
        known = _ids(self.training)
        if isinstance(people, str):
            groups = {"forget": self.forget_ids, "retain": self.retain_ids, "all": known}
            if people not in groups:
                raise ValueError(f"people={people!r} is unknown; use one of {list(groups)} or a list of IDs.")
            people = groups[people]
        wanted = set(people)
        if missing := sorted(wanted - set(known)):
            raise ValueError(f"ft_Data of {self.source} has no person with ID {', '.join(missing[:5])}.")
        rows = [index for index, person_id in enumerate(known) if person_id in wanted]
        options = {"rewrite": rewrite, "strict": strict, "unreadable": unreadable}
        return training_questions(self.training.select(rows), modality, **options)


# ------------------------------------------------------------------------------------------------ loading


def load_config(source: str | Path, config: str, *, images: bool = True) -> Dataset:
    """One config of MLLMU-Bench (each has a single split, ``train``).

    Args:
        source: ``"tiny"`` (the miniature), a local folder with the same layout, or a Hub id (``"MLLMMU/MLLMU-Bench"``); see
            :func:`manu_utils.sources.read_config`.
        config: one of :data:`CONFIGS`.
        images: without them no byte of a picture is read.

    Raises:
        ValueError: unknown config, an empty one, or one without readable files.
        FileNotFoundError: no such source, locally or on the Hub.
        ConnectionError: the Hub cannot be reached and there is no cached copy.
    """
    if config not in CONFIGS:
        raise ValueError(f"config={shown(config)} is unknown; MLLMU-Bench has {', '.join(CONFIGS)}.")
    return read_config(_place(source), config, images=images)


def _place(source: str | Path) -> str | Path:
    return data_dir() / "mllmu_mini" if source == "tiny" else source


def load_benchmark(
    source: str | Path = "tiny", forget_ratio: int = 10, *, modalities: Sequence[str] = MODALITIES
) -> Benchmark:
    """Load all sets of one unlearning task.

    Besides MLLMU-Bench this reads CLEAR (``"therem/CLEAR"``) and, text alone, TOFU (``"locuslab/TOFU"``), from the Hub or a
    local copy; which one it is shows in the configs. How their rows become questions: :mod:`manu_utils.clear_tofu`.

    Args:
        source: see :func:`load_config`.
        forget_ratio: percent of the people: 5, 10 or 15 (10.0 is 10); CLEAR and TOFU have 1, 5 and 10.
        modalities: ``("text",)`` leaves the pictures unread, on disk and on the Hub.

    Raises:
        TypeError: ``modalities`` that are no sequence of names, such as ``"text"``.
        ValueError: unknown ratio or modality, a dataset of another layout, missing column, a person in both forget and retain,
            or nobody to test.
        FileNotFoundError, ConnectionError: see :func:`load_config`.
    """
    check_names("modalities", modalities, MODALITIES)
    name = "MLLMU-Bench" if source == "tiny" else _recognise(source)
    if isinstance(forget_ratio, float) and forget_ratio.is_integer():
        forget_ratio = int(forget_ratio)
    ratios = FORGET_RATIOS if name == "MLLMU-Bench" else (1, 5, 10)
    if isinstance(forget_ratio, bool) or forget_ratio not in ratios:
        *first, last = ratios
        raise ValueError(
            f"forget_ratio={shown(forget_ratio)} is unknown; {name} has {', '.join(map(str, first))} and {last} (percent)."
        )
    if name != "MLLMU-Bench":
        from . import clear_tofu

        load = clear_tofu.load_clear if name == "CLEAR" else clear_tofu.load_tofu
        return load(source, forget_ratio, modalities)
    place, images = _place(source), "multimodal" in modalities
    forget = load_config(source, f"forget_{forget_ratio}", images=images)
    retain = load_config(source, f"retain_{100 - forget_ratio}", images=images)
    forget_ids = _ids(forget)
    if both := sorted(set(forget_ids) & set(_ids(retain))):
        raise ValueError(
            f"{len(both)} people are in both forget_{forget_ratio} and retain_{100 - forget_ratio} of {source}, "
            f"such as {', '.join(both[:5])}; the two must not overlap: fetch both files from the same release."
        )
    test = read_config(place, "Test_Set", images=images, people=forget_ids)
    return Benchmark(
        forget=forget,
        retain=retain,
        test=test,
        celebrity=load_config(source, "Retain_Set", images=images),
        training=load_config(source, "ft_Data", images=images),
        forget_ratio=forget_ratio,
        source=str(source),
    )


def _recognise(source: str | Path) -> str:
    """``"MLLMU-Bench"``, ``"CLEAR"`` or ``"TOFU"``, by the configs; by the name where they cannot be listed."""
    configs = config_names(source)
    if configs is None:
        return {"clear": "CLEAR", "tofu": "TOFU"}.get(str(source).rsplit("/", 1)[-1].lower(), "MLLMU-Bench")
    if set(configs) & set(CONFIGS):
        return "MLLMU-Bench"
    if any(config.endswith("+tofu") for config in configs):
        return "CLEAR"
    if {"full", "real_authors"} <= set(configs):
        return "TOFU"
    found = ", ".join(configs[:20]) or "none"
    raise ValueError(
        f"{source} is laid out like none of the benchmarks known here; configs found: {found}. Expected are those of "
        f"MLLMU-Bench ({', '.join(CONFIGS)}), CLEAR (forget01+tofu, retain99+tofu, real_faces, ...) or TOFU (full, forget01, "
        "retain99, real_authors, ...), each as <config>/*.parquet, as <config>.json, or named in the README.md."
    )


# ------------------------------------------------------------------------------------------------ rows -> questions


def evaluation_questions(
    dataset: Dataset, task: str, modality: str, *, strict: bool = False, unreadable: str = "skip"
) -> list[Question]:
    """The questions of one evaluation task in one modality, in the order of the file.

    Every picture of Test_Set's ``images`` is used: one question per picture (the official code draws one at random).
    Pictures stay in the file until they are used. What cannot be used is left out, and one warning says how much, of whom,
    and why the first: pictures that are missing, broken, or of a size that no portrait has; records without a question, a
    truth, or a right option among the options. ``Correct_Answer`` may be written "c", "C." or "(C)". Task columns may be
    JSON strings or structs of lists, ``Options`` a list.

    Args:
        dataset: any set but ft_Data.
        task: one of :data:`TASKS`.
        modality: one of :data:`MODALITIES`.
        strict: stop at the first picture or record that cannot be used. Nothing but such is always an error.
        unreadable: ``"raise"`` is another way to say ``strict=True``.

    Returns:
        Empty only for a set of another benchmark whose column ``Asked`` says that it has no such questions.

    Raises:
        ValueError: unknown task or modality, missing column, empty set, no such question in the set, or nothing that can be
            used.
    """
    check_name("modality", modality, MODALITIES)
    check_name("task", task, TASKS)
    column = {"classification": "Classification_Task", "cloze": "Mask_Task", "generation": "Generation_Task"}[task]

    def records_of(row: dict) -> list[dict]:
        if task == "classification":
            value = {} if _is_null(row[column]) else _parsed(row[column], dict)
            return _records(value.get(f"{_TYPES[modality]}_Questions"))
        other = _TYPES["text" if modality == "multimodal" else "multimodal"]
        return [r for r in _records(row[column]) if not (isinstance(r, dict) and r.get("Type") == other)]

    def read(record: dict) -> dict:
        question = _text(record, "Question", "has a record without a question")
        if task != "classification" and record.get("Type") != _TYPES[modality]:
            known = " nor ".join(map(repr, _TYPES.values()))
            raise ValueError(f"has for {question!r} the Type {record.get('Type')!r}, which is neither {known}")
        if task != "classification":
            return {"question": question, "answer": _text(record, "Ground_Truth", f"has an empty truth for {question!r}")}
        options = _options(record.get("Options"))
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
        for person_id, records, images in _rows(dataset, column, modality, records_of, read, strict, unreadable)
        for record in records
        for image in images
    ]
    if not questions and not ("Asked" in dataset.column_names and f"{task}/{modality}" not in dataset["Asked"][0]):
        raise ValueError(f"{_name(dataset)} has no {modality} question for {task}.")
    return questions


def open_questions(dataset: Dataset, modality: str) -> list[Question]:
    """The cloze questions and then the generation questions of a set: those whose answer is not among options.

    Raises:
        ValueError: see :func:`evaluation_questions`.
    """
    return [question for task in ("cloze", "generation") for question in evaluation_questions(dataset, task, modality)]


def training_questions(
    ft_rows: Dataset, modality: str, *, rewrite: str = "both", strict: bool = False, unreadable: str = "skip"
) -> list[Question]:
    """The training questions of ft_Data rows, with the portrait or rewritten to text alone.

    ft_Data has image questions only; as in MANU, the text-only ones name the person instead, in the question and in the answer
    (:mod:`manu_utils.wording`; what has no such form is left out, see :func:`rewriting_report`). Records with
    ``Additional_*`` keys have no Question and Answer and are skipped, as the official loaders do. In other benchmarks a
    record has a ``Type``, and
    none is rewritten: one of ``"Pure_Text"`` is asked as it is, in text alone.

    What cannot be used is left out with one warning, as in :func:`evaluation_questions`: broken pictures, records without a
    question or an answer, people whose metadata are no JSON, and, in text alone, people whose name cannot be read.

    Args:
        ft_rows: rows of ft_Data, columns ``ID``, ``metadata`` (JSON) and ``image``.
        modality: one of :data:`MODALITIES`.
        rewrite: what names the person in text alone: ``"both"``, or ``"question"``, which leaves "This person ..." in the
            answers.
        strict, unreadable: see :func:`evaluation_questions`.

    Raises:
        ValueError: unknown modality, missing column, empty set, or nothing that can be used.
    """
    check_name("modality", modality, MODALITIES)
    check_name("rewrite", rewrite, ("both", "question"))

    def records_of(row: dict) -> list[dict]:
        records = _metadata(row)
        pairs = _pairs(records)
        if not pairs:
            raise ValueError("has no training question")
        if modality == "multimodal" or any("Type" in pair for pair in pairs):
            return [pair for pair in pairs if pair.get("Type", _TYPES["multimodal"]) == _TYPES[modality]]
        try:
            name = person_name(records)
        except ValueError as error:
            return [{"unnamed": error} for _ in pairs]
        return [pair | {"name": name} for pair in pairs]

    def read(record: dict) -> dict | None:
        if "unnamed" in record:
            raise record["unnamed"]
        question, answer = _pair(record)
        if "name" not in record:
            return {"question": question, "answer": answer}
        text = to_text_only(question, record["name"])
        if rewrite == "both":
            answer = answer_to_text_only(question, answer, record["name"])
        return None if text is None else {"question": text, "answer": answer}

    return [
        Question(person_id, image=image, task="training", **record)
        for person_id, records, images in _rows(ft_rows, "metadata", modality, records_of, read, strict, unreadable)
        for image in images
        for record in records
    ]


def rewriting_report(ft_rows: Dataset) -> pd.DataFrame:
    """What has no text-only form among the training questions, and what may not have been rewritten well, question or answer.

    Args:
        ft_rows: rows of ft_Data, such as ``benchmark.training``.

    Returns:
        One row per such question, columns person_id, question, rewritten (None if left out) and reason: ``"asks for the
        name"`` (as it should be), ``"refers to no person in the picture"``, ``"still refers to a picture"`` (kept), ``"the
        answer still refers to a picture"`` (kept; ``rewritten`` is the answer), ``"no name: ..."`` for a person without a
        readable name, none of whose questions can be asked, or ``"cannot be used: ..."``.

    Raises:
        ValueError: missing column or empty set.
    """
    import pandas as pd

    rows = []
    _require(ft_rows, ["ID", "metadata"])
    for row in ft_rows.select_columns(["ID", "metadata"]):
        person_id, name, problem = written_id(row["ID"]), "", None
        try:
            records = _metadata(row)
        except ValueError as error:
            rows.append((person_id, None, None, f"cannot be used: {error}"))
            continue
        pairs = [pair for pair in _pairs(records) if "Type" not in pair]
        try:
            name = person_name(records) if pairs else ""
        except ValueError as error:
            problem = f"no name: {error}"
        for pair in pairs:
            try:
                question, answer = _pair(pair)
            except ValueError as error:
                rows.append((person_id, pair.get("Question"), None, f"cannot be used: {error}"))
                continue
            if problem:
                rows.append((person_id, question, None, problem))
                continue
            text, told = to_text_only(question, name), answer_to_text_only(question, answer, name)
            if text is None:
                reason = "asks for the name" if asks_for_the_name(question) else "refers to no person in the picture"
                rows.append((person_id, question, None, reason))
            elif reason := leftover(text, told):
                rows.append((person_id, question, told if reason.startswith("the answer") else text, reason))
    return pd.DataFrame(rows, columns=["person_id", "question", "rewritten", "reason"])


def biography(row: dict) -> dict[str, object]:
    """The profile of a row of Full_Set, forget_*, retain_* or Retain_Set, with one spelling of its keys.

    In the files a key may carry a trailing colon or space, other capitals or another number ("Heights: "). Such keys get
    the name in :data:`BIOGRAPHY_KEYS`; a key that is not among them keeps its own, trimmed. Where two keys become one, or one
    is there twice, the first that says something stays.

    Returns:
        key -> value, strings trimmed; ``appearance_detail`` is a dict itself.

    Raises:
        ValueError: no biography in the row, or not a JSON object.
    """
    try:
        profile = json.loads(row["biography"], object_pairs_hook=_normalised)
    except KeyError as error:
        raise ValueError(f"the row has no biography; its columns are {', '.join(row)}.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"the biography of person {row.get('ID')} is not valid JSON: {error}") from error
    if not isinstance(profile, dict):
        raise ValueError(f"the biography of person {row.get('ID')} is a {type(profile).__name__}, not an object with keys.")
    return profile


def _normalised(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of a biography, from its (key, value) pairs: ``json`` itself would take the last of two equal keys."""

    def plain(key: str) -> str:
        return re.sub(r"[\W_]+", " ", key).strip().lower().removesuffix("s")

    known = {plain(key): key for key in BIOGRAPHY_KEYS}
    result: dict[str, object] = {}
    for key, value in pairs:
        key = known.get(plain(key), key.strip(" :"))
        value = value.strip() if isinstance(value, str) else value
        if not result.get(key):
            result[key] = value
    return result


def check_sets(
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    modalities: Sequence[str] = MODALITIES,
    retain_modalities: Sequence[str] | None = None,
) -> None:
    """Check what an unlearning method is given: questions in every modality it needs, and nobody in both sets.

    Args:
        forget, retain: modality -> questions.
        modalities, retain_modalities: those that are needed, of the retain set the same unless named.

    Raises:
        ValueError: an unknown modality, a missing or empty one, questions of the other modality, or a person in both sets.
    """
    needed = {"forget": modalities, "retain": modalities if retain_modalities is None else retain_modalities}
    for name, sets in (("forget", forget), ("retain", retain)):
        for modality in sets:
            check_name(f"modality of {name}", modality, MODALITIES)
        if missing := [modality for modality in needed[name] if not sets.get(modality)]:
            raise ValueError(f"{name} has no {missing[0]} questions, which this method needs; pass at least one.")
        if wrong := [m for m, questions in sets.items() if any(question.modality != m for question in questions)]:
            raise ValueError(f"{name}[{wrong[0]!r}] holds questions that are not {wrong[0]}; build each with its modality.")
    people = [{question.person_id for part in sets.values() for question in part} for sets in (forget, retain)]
    if both := sorted(people[0] & people[1]):
        raise ValueError(f"forget and retain share people, such as {', '.join(both[:5])}; take them out of one set.")


# ------------------------------------------------------------------------------------------------ small helpers


def _name(dataset: Dataset) -> str:
    return dataset.info.config_name or "the set"


def _ids(dataset: Dataset) -> list[str]:
    _require(dataset, ["ID"])
    return [written_id(person_id) for person_id in dataset.select_columns(["ID"])["ID"]]


def _require(dataset: Dataset, columns: list[str]) -> None:
    if missing := [column for column in columns if column not in dataset.column_names]:
        hint = " Training questions are in the config ft_Data." if "metadata" in missing else ""
        if set(missing) & set(IMAGE_COLUMNS):
            hint = " It was loaded without pictures or has none: ask with modality 'text', or load it with both modalities."
        raise ValueError(
            f"{_name(dataset)} has no column {', '.join(missing)}; its columns are {', '.join(dataset.column_names)}.{hint}"
        )


BYTES_OF_ONE_MAP = 8_000_000  # of pictures, read before it is opened anew
# So each picture is checked once, however many tasks are about it.
_FILES: weakref.WeakKeyDictionary[Dataset, _Files] = weakref.WeakKeyDictionary()


def _rows(
    dataset: Dataset,
    column: str,
    modality: str,
    records_of: Callable[[dict], list[dict]],
    read: Callable[[dict], dict | None],
    strict: bool,
    unreadable: str,
) -> Iterator[tuple[str, list[dict], list[PIL.Image.Image | None]]]:
    """Yield (ID, records, RGB images) of each row with records.

    The images are [None] for text, where none is read. What cannot be used is named once, in a warning or an error.

    Args:
        records_of: the records of a row with ``ID`` and ``column``; a ValueError with what is wrong with the row.
        read: what is asked of a record, or None for nothing; a ValueError with what is wrong with it.
    """
    check_name("unreadable", unreadable, ("skip", "raise"))
    _require(dataset, ["ID", column])
    if len(dataset) == 0:
        raise ValueError(f"{_name(dataset)} is empty; select at least one person.")
    where = "images" if "images" in dataset.column_names else "image"
    if modality == "multimodal":
        _require(dataset, [where])
        files = _FILES.get(dataset) or _FILES.setdefault(dataset, _Files(dataset, where))
    strict = strict or unreadable == "raise"
    problems: dict[str, list[tuple[str, str]]] = {"people": [], "pictures": [], "questions": []}
    used = dict.fromkeys(problems, 0)

    def leave_out(kind: str, person_id: str, problem: str) -> None:
        if strict:
            raise ValueError(problem)
        problems[kind].append((person_id, problem))

    for index, row in enumerate(dataset.select_columns(["ID", column])):
        person_id = written_id(row["ID"])
        whose = f"person {person_id} of {_name(dataset)}"
        try:
            found = records_of(row)
        except ValueError as error:
            leave_out("people", person_id, _sentence(whose, error))
            continue
        records = []
        for record in found:
            try:
                asked = read(record)
            except ValueError as error:
                leave_out("questions", person_id, _sentence(whose, error))
            else:
                records += [] if asked is None else [asked]
        if not records:
            continue
        images: list[PIL.Image.Image | None] = [None]
        if modality == "multimodal":
            images = []
            for picture in files.pictures(index, whose):
                if isinstance(picture, str):
                    leave_out("pictures", person_id, picture)
                else:
                    images.append(picture)
            used["pictures"] += len(images)
        used["questions"] += len(records)
        used["people"] += 1
        if images:
            yield person_id, records, images
    left_out = {kind: found for kind, found in problems.items() if found}
    for kind, found in left_out.items():
        if used[kind] == 0:
            raise ValueError(found[0][1])
    if left_out:
        people = list(dict.fromkeys(person_id for found in left_out.values() for person_id, _ in found))
        counts = [f"{len(found)} of {used[kind] + len(found)} {kind}" for kind, found in left_out.items()]
        first = next(iter(left_out.values()))[0][1]
        warnings.warn(
            f"{' and '.join(counts)} of {_name(dataset)} cannot be read and are left out, of "
            f"{', '.join(people[:10])}{' and others' if len(people) > 10 else ''}. The first: {first}",
            stacklevel=3,
        )


def _sentence(whose: str, problem: ValueError) -> str:
    """What is wrong with a person: "person 001 has ...", "person 001: no question ..."."""
    text = str(problem).rstrip(".")
    return f"{whose}{' ' if text.startswith(('has ', 'lacks ')) else ': '}{text}."


class _Files:
    """The encoded pictures of a dataset.

    A table on disk is mapped into memory, and what was read of it stays there; it is opened anew from time to time, so that
    this does not add up to all pictures.
    """

    def __init__(self, dataset: Dataset, where: str) -> None:
        from datasets import Image, List

        self.where, self.n_read = where, BYTES_OF_ONE_MAP  # the first read opens a map of its own
        self.rows = dataset.select_columns([where])
        feature, encoded = self.rows.features[where], Image(decode=False)  # decoded here, so that a broken file can be named
        with no_dataset_bars():
            if isinstance(feature, Image):
                self.rows = self.rows.cast_column(where, encoded)
            elif isinstance(getattr(feature, "feature", None), Image):
                self.rows = self.rows.cast_column(where, List(encoded))
        self.on_disk = bool(self.rows.cache_files)
        self.token = object()
        self.sizes: dict[int, list[tuple[int, int] | str]] = {}  # row -> of its pictures

    def of_row(self, index: int) -> list[bytes | str | None]:
        """The pictures of a row: bytes, the name of a file that is not to be opened, or None."""
        if self.n_read >= BYTES_OF_ONE_MAP and self.on_disk:
            try:
                self.rows = pickle.loads(pickle.dumps(self.rows))  # of a table on disk these are names and places
            except Exception:  # pyarrow cannot open all tables again that were put together of others (CLEAR)
                self.on_disk = False
            self.n_read = 0
        value = self.rows[index][self.where]
        files = _records(value) if self.where == "images" else [value]
        parts = [(file.get("bytes"), file.get("path")) if isinstance(file, dict) else (file, None) for file in files]
        self.n_read += sum(len(data or b"") for data, _ in parts)
        return [data or path for data, path in parts]

    def read(self, index: int, place: int) -> bytes:
        return self.of_row(index)[place]

    def pictures(self, index: int, whose: str) -> list[Picture | str]:
        """The pictures of a row, new objects in each call, or what is wrong with one; each file is looked at once."""
        if index not in self.sizes:
            self.sizes[index] = [_size_or_problem(data, whose) for data in self.of_row(index) or [None]]
        return [
            size if isinstance(size, str) else Picture(partial(self.read, index, place), size, key=(self.token, index, place))
            for place, size in enumerate(self.sizes[index])
        ]


def _size_or_problem(data: bytes | str | None, whose: str) -> tuple[int, int] | str:
    if not data:
        return f"{whose} has no image."
    if not isinstance(data, bytes):
        return (
            f"the image of {whose} is the name {str(data)[:200]!r}, not the picture itself; only pictures inside the table "
            "and files inside the folder of the dataset are read."
        )
    try:
        return readable_size(data)
    except ValueError as error:
        return f"cannot read the image of {whose}: {error}; fetch the file again."


def _is_null(value) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in ("", "null"))


def _parsed(value, kind: type | tuple[type, ...]):
    """A value that may be written as JSON.

    Raises:
        ValueError: no JSON, or of another type.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"a column is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"a column holds a {type(value).__name__} in place of a {wanted}")
    return value


def _records(value) -> list:
    """A list of structs; it may be written as JSON, and some versions of datasets give a struct of lists instead, and pandas
    arrays in place of lists."""
    if _is_null(value):
        return []
    value = _parsed(_listed(value), (list, dict))
    if not isinstance(value, dict):
        return value
    parts = {key: _listed(part) for key, part in value.items()}
    if not any(isinstance(part, (list, dict)) for part in parts.values()):
        return [value]
    columns = {
        key: _records(part) if isinstance(part, dict) else part if isinstance(part, list) else []
        for key, part in parts.items()
    }
    if len({len(part) for part in columns.values()}) > 1:
        raise ValueError(f"has lists of different lengths in place of records ({', '.join(columns)})")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _listed(value):
    """A tuple or an array as a list; anything else as it is."""
    return list(value) if isinstance(value, (tuple, np.ndarray)) else value


def _metadata(row: dict) -> list:
    """The training records of a row of ft_Data."""
    try:
        records = json.loads(row["metadata"]) if isinstance(row["metadata"], str) else row["metadata"]
    except ValueError as error:
        raise ValueError(f"metadata is not valid JSON: {error}") from error
    if not isinstance(records, (list, dict)):
        raise ValueError(f"metadata is a {type(records).__name__}, not a list of questions")
    return _records(records)


def _pairs(records: list) -> list[dict]:
    """The records that are meant as training questions, those that are no structs included: they are named later."""
    structs = [record if isinstance(record, dict) else {"Question": None} for record in records]
    return [record for record in structs if "Question" in record or "Answer" in record]


def _pair(record: dict) -> tuple[str, str]:
    question = _text(record, "Question", "has a record without a question")
    return question, _text(record, "Answer", f"has no answer to {question!r}")


def _text(record: dict, key: str, problem: str) -> str:
    """A text of a record; a number is taken as it is written.

    Raises:
        ValueError: ``problem``, where there is none.
    """
    value = record.get(key) if isinstance(record, dict) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(problem)
    return value


def _options(value) -> dict[str, str]:
    """letter -> words; null, a blank and what is neither text nor number is no option, a list has the letters by place."""
    value = _parsed(value, (dict, list)) if isinstance(value, str) else value
    if isinstance(value, (list, tuple)):
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if not isinstance(value, dict):
        return {}
    return {
        str(letter).strip().upper(): str(words)
        for letter, words in value.items()
        if isinstance(words, (str, int, float)) and not isinstance(words, bool) and words == words and str(words).strip()
    }
