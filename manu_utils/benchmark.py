"""MLLMU-Bench: its schema, its sets, and the question records that everything else works on.

The same functions read the bundled miniature (``"tiny"``), a local copy and the Hub (:mod:`manu_utils.sources`), and other
benchmarks whose rows are turned into these (:mod:`manu_utils.clear_tofu`). Explained in notebook 01; the schema is that of
``MLLMMU/MLLMU-Bench`` (arXiv 2410.22108).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from .progress import no_dataset_bars
from .sources import IMAGE_COLUMNS, config_names, read_config

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
        image: RGB portrait, or None for a text-only question.
        task: ``"training"``, ``"generation"``, ``"cloze"`` or ``"classification"``.
        options: letter -> words for classification, else None.
    """

    person_id: str
    question: str
    answer: str
    image: PIL.Image.Image | None
    task: str
    options: dict[str, str] | None = None

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

    def training_questions(self, people: str | Iterable[str], modality: str, *, unreadable: str = "skip") -> list[Question]:
        """The training questions of some people, joined by ID (forget and retain files carry none themselves).

        Args:
            people: ``"forget"``, ``"retain"``, ``"all"`` or a list of IDs.
            modality: ``"multimodal"`` or ``"text"``.
            unreadable: see :func:`training_questions`.

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
        return training_questions(self.training.select(rows), modality, unreadable=unreadable)


# ------------------------------------------------------------------------------------------------ loading


def data_dir() -> Path:
    """The bundled ``data`` folder: ``$MANU_DATA`` if set, else the one beside the package in a clone.

    Raises:
        FileNotFoundError: if there is none; the wheel holds no data.
    """
    given = os.environ.get("MANU_DATA")
    clone = Path(__file__).resolve().parents[1]
    folder = Path(given) if given else clone / "data"
    ours = given or (clone / "pyproject.toml").is_file()  # beside an installed package, ``data`` may be anybody's
    if not (ours and folder.is_dir()):
        where = f"MANU_DATA={given} is not a folder" if given else f"there is no bundled data beside {clone / 'manu_utils'}"
        raise FileNotFoundError(f"{where}; set MANU_DATA to the data folder of a clone of the repository.")
    return folder


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
        raise ValueError(f"config={config!r} is unknown; MLLMU-Bench has {', '.join(CONFIGS)}.")
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
        forget_ratio: percent of the people: 5, 10 or 15; CLEAR and TOFU have 1, 5 and 10.
        modalities: ``("text",)`` leaves the pictures unread, on disk and on the Hub.

    Raises:
        ValueError: unknown ratio or modality, a dataset of another layout, missing column, a person in both forget and retain,
            or nobody to test.
        FileNotFoundError, ConnectionError: see :func:`load_config`.
    """
    if not modalities:
        raise ValueError("modalities is empty; name at least one.")
    for modality in modalities:
        _check(modality, "modality", MODALITIES)
    name = "MLLMU-Bench" if source == "tiny" else _recognise(source)
    if forget_ratio not in (ratios := FORGET_RATIOS if name == "MLLMU-Bench" else (1, 5, 10)):
        *first, last = ratios
        raise ValueError(
            f"forget_ratio={forget_ratio!r} is unknown; {name} has {', '.join(map(str, first))} and {last} (percent)."
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


def evaluation_questions(dataset: Dataset, task: str, modality: str, *, unreadable: str = "skip") -> list[Question]:
    """The questions of one evaluation task in one modality, in the order of the file.

    Every picture of Test_Set's ``images`` is used: one question per picture (the official code draws one at random).

    Args:
        dataset: any set but ft_Data.
        task: one of :data:`TASKS`.
        modality: one of :data:`MODALITIES`.
        unreadable: what to do with pictures that are missing or cannot be decoded: ``"skip"`` leaves their questions out
            and warns with the IDs, ``"raise"`` stops at the first. Nothing but such pictures is always an error.

    Returns:
        Empty only for a set of another benchmark whose column ``Asked`` says that it has no such questions.

    Raises:
        ValueError: unknown task or modality, missing column, empty set, no such question in the set, unreadable pictures,
            or a right option that is not among the options.
    """
    _check(modality, "modality", MODALITIES)
    _check(task, "task", TASKS)
    column = {"classification": "Classification_Task", "cloze": "Mask_Task", "generation": "Generation_Task"}[task]

    def records_of(row: dict) -> list[dict]:
        if task == "classification":
            return _records((row[column] or {}).get(f"{_TYPES[modality]}_Questions"))
        return [record for record in _records(row[column]) if record["Type"] == _TYPES[modality]]

    questions = []
    for person_id, records, images in _rows(dataset, column, modality, records_of, unreadable):
        for record in records:
            options = None
            if task == "classification":
                options = {letter: words for letter, words in record["Options"].items() if words is not None}
                letter = record["Correct_Answer"].strip()
                if letter not in options:
                    raise ValueError(f"person {person_id}: {record['Question']!r} lacks its right option {letter!r}.")
                answer = options[letter]
            else:
                answer = record["Ground_Truth"]
            questions += [Question(person_id, record["Question"], answer, image, task, options) for image in images]
    if not questions and not ("Asked" in dataset.column_names and f"{task}/{modality}" not in dataset["Asked"][0]):
        raise ValueError(f"{_name(dataset)} has no {modality} question for {task}.")
    return questions


def open_questions(dataset: Dataset, modality: str) -> list[Question]:
    """The cloze questions and then the generation questions of a set: those whose answer is not among options.

    Raises:
        ValueError: see :func:`evaluation_questions`.
    """
    return [question for task in ("cloze", "generation") for question in evaluation_questions(dataset, task, modality)]


def training_questions(ft_rows: Dataset, modality: str, *, unreadable: str = "skip") -> list[Question]:
    """The training questions of ft_Data rows, with the portrait or rewritten to text alone.

    ft_Data has image questions only; as in MANU, the text-only ones name the person instead (:func:`to_text_only`; what has
    no such form is left out, see :func:`rewriting_report`). Records with ``Additional_*`` keys have no Question and Answer and
    are skipped, as the official loaders do. In other benchmarks a record has a ``Type``, and none is rewritten: one of
    ``"Pure_Text"`` is asked as it is, in text alone.

    Args:
        ft_rows: rows of ft_Data, columns ``ID``, ``metadata`` (JSON) and ``image``.
        modality: one of :data:`MODALITIES`.
        unreadable: ``"skip"`` or ``"raise"``, see :func:`evaluation_questions`.

    Raises:
        ValueError: unknown modality, missing column, empty set, broken metadata, unreadable pictures, a person without
            training questions, or (text) without a name.
    """
    _check(modality, "modality", MODALITIES)

    def records_of(row: dict) -> list[dict]:
        records = _metadata(row, ft_rows)
        pairs = [r for r in records if "Question" in r and "Answer" in r]
        if not pairs:
            raise ValueError(f"person {row['ID']} of {_name(ft_rows)} has no training question.")
        if modality == "multimodal" or any("Type" in r for r in pairs):
            return [r for r in pairs if r.get("Type", _TYPES["multimodal"]) == _TYPES[modality]]
        try:
            name = person_name(records)
        except ValueError as error:
            raise ValueError(f"person {row['ID']} of {_name(ft_rows)}: {error}") from error
        rewritten = [r | {"Question": to_text_only(r["Question"], name)} for r in pairs]
        return [r for r in rewritten if r["Question"] is not None]

    return [
        Question(person_id, record["Question"], record["Answer"], image, "training")
        for person_id, records, images in _rows(ft_rows, "metadata", modality, records_of, unreadable)
        for image in images
        for record in records
    ]


def rewriting_report(ft_rows: Dataset) -> pd.DataFrame:
    """What :func:`to_text_only` leaves out of the text-only training questions, and what it may not have rewritten well.

    Args:
        ft_rows: rows of ft_Data, such as ``benchmark.training``.

    Returns:
        One row per such question, columns person_id, question, rewritten (None if left out) and reason: ``"asks for the
        name"`` (as it should be), ``"refers to no person in the picture"``, ``"still refers to a picture"`` (kept) or
        ``"no name: ..."`` for a person without a readable name, none of whose questions can be asked.

    Raises:
        ValueError: missing column, empty set, or broken metadata.
    """
    import pandas as pd

    rows = []
    _require(ft_rows, ["ID", "metadata"])
    for row in ft_rows.select_columns(["ID", "metadata"]):
        records = [r for r in _metadata(row, ft_rows) if "Question" in r and "Answer" in r and "Type" not in r]
        try:
            name = person_name(records) if records else None
        except ValueError as error:
            rows += [(row["ID"], record["Question"], None, f"no name: {error}") for record in records]
            continue
        for question in (record["Question"] for record in records):
            rewritten = to_text_only(question, name)
            if rewritten is None:
                reason = "asks for the name" if _NAMING.search(question) else "refers to no person in the picture"
                rows.append((row["ID"], question, None, reason))
            elif _LEFT.search(rewritten):
                rows.append((row["ID"], question, rewritten, "still refers to a picture"))
    return pd.DataFrame(rows, columns=["person_id", "question", "rewritten", "reason"])


def biography(row: dict) -> dict[str, object]:
    """The profile of a row of Full_Set, forget_*, retain_* or Retain_Set, with one spelling of its keys.

    In the files a key may carry a trailing colon or space, other capitals or another number ("Heights: "). Such keys get
    the name in :data:`BIOGRAPHY_KEYS`; a key that is not among them keeps its own, trimmed. Where two keys become one, the
    first that says something stays.

    Returns:
        key -> value, strings trimmed; ``appearance_detail`` is a dict itself.

    Raises:
        ValueError: no biography in the row, or not a JSON object.
    """
    try:
        profile = json.loads(row["biography"])
    except KeyError as error:
        raise ValueError(f"the row has no biography; its columns are {', '.join(row)}.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"the biography of person {row.get('ID')} is not valid JSON: {error}") from error
    if not isinstance(profile, dict):
        raise ValueError(f"the biography of person {row.get('ID')} is a {type(profile).__name__}, not an object with keys.")
    return _normalised(profile)


def _normalised(profile: dict) -> dict[str, object]:
    def plain(key: str) -> str:
        return re.sub(r"[\W_]+", " ", key).strip().lower().removesuffix("s")

    known = {plain(key): key for key in BIOGRAPHY_KEYS}
    result: dict[str, object] = {}
    for key, value in profile.items():
        key = known.get(plain(key), key.strip(" :"))
        value = _normalised(value) if isinstance(value, dict) else value.strip() if isinstance(value, str) else value
        if not result.get(key):
            result[key] = value
    return result


def _metadata(row: dict, ft_rows: Dataset) -> list[dict]:
    """The training records of a row of ft_Data."""
    try:
        return json.loads(row["metadata"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"person {row['ID']} of {_name(ft_rows)}: metadata is not valid JSON: {error}") from error


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
            _check(modality, f"modality of {name}", MODALITIES)
        if missing := [modality for modality in needed[name] if not sets.get(modality)]:
            raise ValueError(f"{name} has no {missing[0]} questions, which this method needs; pass at least one.")
        if wrong := [m for m, questions in sets.items() if any(question.modality != m for question in questions)]:
            raise ValueError(f"{name}[{wrong[0]!r}] holds questions that are not {wrong[0]}; build each with its modality.")
    people = [{question.person_id for part in sets.values() for question in part} for sets in (forget, retain)]
    if both := sorted(people[0] & people[1]):
        raise ValueError(f"forget and retain share people, such as {', '.join(both[:5])}; take them out of one set.")


# ------------------------------------------------------------------------------------------------ image -> text only

_SHOWN = r"(?:shown|depicted|featured|pictured|seen|displayed|described|portrayed|presented|captured|visible|appearing)"
_PICTURE = r"(?:image|picture|photo|photograph|portrait)"
_WHERE = (
    rf"\s+(?:(?:who\s+is\s+|that\s+is\s+|who\s+appears\s+)?{_SHOWN}\s+|who\s+appears\s+)?(?:in|on|from|of|within)\s+"
    rf"(?:(?:the|this)\s+)?(?:(?:provided|given|above|attached)\s+)?(?:{_PICTURE}|profile|biography)\b"
)
_ADJECTIVES = rf"(?:(?:{_SHOWN}|young|old|older|elderly|middle[-\s]aged|same)\s+)?"
_NOUN = r"(?:person|individual|man|woman|boy|girl|lady|gentleman|guy)\b"
# The possessive "?+" keeps the tail with the person: "the person in the image's name" is not "the person" and a rest.
_PERSON = (
    rf"(?:(?:this|the)\s+{_ADJECTIVES}{_NOUN}(?:{_WHERE}|\s+(?:(?:who|that)\s+is\s+)?{_SHOWN}(?:\s+(?:here|above))?\b"
    rf"|\s+(?:in\s+question|above|here)\b)?+"
    rf"|(?:this|the)\s+(?:subject|figure|character|human|one){_WHERE}|this\s+(?:subject|figure|character)\b"
    rf"|(?<!\bin\s)(?<!\bdoes\s)this\s+profile\b)"
)
_NAMING = re.compile(
    rf"\bwho\s+(?:is|might|could)\s+(?:{_PERSON}|this|{_SHOWN}(?:{_WHERE}|\s+here)|that)(?=\s*(?:be\b\s*)?(?:[?.!,]|$))"
    rf"|\bname\s+(?:of|associated\s+with)\s+{_PERSON}(?!['’]|\s+(?:who|whose|that)\b)"
    rf"|\b{_PERSON}['’]s?\s+(?:full\s+|real\s+|first\s+|last\s+)?name\b|\b{_PERSON}\s+(?:called|named)\b"
    rf"|\bname\s+(?:does|is)\s+{_PERSON}|\b(?:identify|name)\s+{_PERSON}(?=\s*(?:[?.!,]|$))"
    rf"|\bwho\s+(?:{_PERSON}|this)\s+(?:is|might\s+be)(?=\s*(?:[?.!,]|$))",
    re.IGNORECASE,
)
# "Based on the image, where was this person born?": without the picture the opening means nothing.
_OPENING = re.compile(
    rf"^(?:based\s+on|according\s+to|judging\s+(?:by|from)|looking\s+at|given|from|in)\s+(?:the|this)\s+{_PICTURE}\s*,\s*(\w)",
    re.IGNORECASE,
)
_LEFT = re.compile(
    rf"\b(?:{_PICTURE}s?|shown|depicted|pictured|(?:this|the)\s+{_NOUN}|on\s+the\s+(?:left|right))\b", re.IGNORECASE
)
_BEFORE_A_NAME = re.compile(r"\b(?:is|named|called|known\s+as)\s+")
_NOT_A_NAME = re.compile(r"(?:This|That|The|It|He|She|They|His|Her|Their|My|I|Name)\b")


def person_name(metadata: list[dict]) -> str:
    """The name of a person, read from the answer to the naming question.

    Args:
        metadata: the parsed ``metadata`` of an ft_Data row, such as
            ``[{"ID": "001", "Question": "Who is this person?", "Answer": "This is Anna Berg."}]``.

    Raises:
        ValueError: if no question asks for the name, or no such answer holds one.
    """
    unread = None
    for record in metadata:
        if not _NAMING.search(record.get("Question") or ""):
            continue
        answer = (record.get("Answer") or "").strip()
        # "This is Anna Berg.", "Anna Berg is the name of this person.", "The name is Anna Berg, who is a nurse."
        parts = [part.strip().rstrip(".!") for part in _BEFORE_A_NAME.split(re.split(r"[,;]", answer)[0])]
        names = [part for part in parts if part and not part[0].islower() and not _NOT_A_NAME.match(part)]
        if names:
            return names[-1]
        unread = answer
    if unread is not None:
        raise ValueError(f"the naming question is answered {unread!r}, which holds no name, so there is no text-only form.")
    raise ValueError(
        "no question asks for the name ('Who is this person?', 'What is the name of ...?'), so there is no text-only form; "
        "use modality='multimodal' or add the naming question."
    )


def to_text_only(question: str, name: str) -> str | None:
    """Replace the reference to the image by a name: "this person's job" becomes "Anna Berg's job".

    Returns:
        The text-only question; None if it asks for the name itself or does not refer to a person in the image.
    """
    if _NAMING.search(question):
        return None
    rewritten, n = re.subn(rf"\b{_PERSON}", lambda match: name, question, flags=re.IGNORECASE)
    return _OPENING.sub(lambda match: match[1].upper(), rewritten) if n else None


# ------------------------------------------------------------------------------------------------ small helpers


def _check(value: str, what: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what}={value!r} is unknown; use one of {', '.join(known)}.")


def _name(dataset: Dataset) -> str:
    return dataset.info.config_name or "the set"


def _ids(dataset: Dataset) -> list[str]:
    _require(dataset, ["ID"])
    return list(dataset.select_columns(["ID"])["ID"])


def _require(dataset: Dataset, columns: list[str]) -> None:
    if missing := [column for column in columns if column not in dataset.column_names]:
        hint = " Training questions are in the config ft_Data." if "metadata" in missing else ""
        if set(missing) & set(IMAGE_COLUMNS):
            hint = " It was loaded without pictures or has none: ask with modality 'text', or load it with both modalities."
        raise ValueError(
            f"{_name(dataset)} has no column {', '.join(missing)}; its columns are {', '.join(dataset.column_names)}.{hint}"
        )


def _rows(
    dataset: Dataset, column: str, modality: str, records_of: Callable[[dict], list[dict]], unreadable: str
) -> Iterator[tuple[str, list[dict], list[PIL.Image.Image | None]]]:
    """Yield (ID, records, RGB images) of each row with records.

    The images are [None] for text, where none is read. What cannot be read is named once, in a warning or an error.

    Args:
        records_of: the records to ask, of a row with ``ID`` and ``column``.
    """
    from datasets import Image, List

    _check(unreadable, "unreadable", ("skip", "raise"))
    _require(dataset, ["ID", column])
    if len(dataset) == 0:
        raise ValueError(f"{_name(dataset)} is empty; select at least one person.")
    if modality == "text":
        for row in dataset.select_columns(["ID", column]):
            if records := records_of(row):
                yield row["ID"], records, [None]
        return
    where = "images" if "images" in dataset.column_names else "image"
    _require(dataset, [where])
    encoded = Image(decode=False)  # decoded below, so that a broken file can be named
    rows = dataset.select_columns(["ID", column, where])
    with no_dataset_bars():
        rows = rows.cast_column(where, List(encoded) if where == "images" else encoded)
    n_read, problems = 0, []
    for row in rows:
        if not (records := records_of(row)):
            continue
        files = row[where] if where == "images" else [row[where]]
        images = []
        for file in files or [None]:
            try:
                images.append(_decode(file, f"person {row['ID']} of {_name(dataset)}"))
            except ValueError as error:
                if unreadable == "raise":
                    raise
                problems.append((row["ID"], error))
        n_read += len(images)
        if images:
            yield row["ID"], records, images
    if not problems:
        return
    if n_read == 0:
        raise problems[0][1]
    people = list(dict.fromkeys(person_id for person_id, _ in problems))
    warnings.warn(
        f"{len(problems)} of {n_read + len(problems)} pictures of {_name(dataset)} cannot be read and are left out, of "
        f"{', '.join(people[:10])}{' and others' if len(people) > 10 else ''}. The first: {problems[0][1]}",
        stacklevel=3,
    )


def _decode(file: dict | None, whose: str) -> PIL.Image.Image:
    from datasets import Image

    if file is None:
        raise ValueError(f"{whose} has no image.")
    try:
        return Image().decode_example(file).convert("RGB")
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and more, by file format
        reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise ValueError(f"cannot read the image of {whose}: {reason}; fetch the file again.") from error


def _records(value) -> list[dict]:
    """A list of structs; some versions of datasets give a struct of lists instead."""
    if value is None:
        return []
    if isinstance(value, dict):
        columns = {key: _records(part) if isinstance(part, dict) else list(part) for key, part in value.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return list(value)
