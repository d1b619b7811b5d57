"""MLLMU-Bench: its schema, its sets, and the question records that everything else works on.

The same functions read the bundled miniature (``"tiny"``), a local copy and the Hub. Explained in notebook 01;
the schema is that of ``MLLMMU/MLLMU-Bench`` (arXiv 2410.22108).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from .progress import no_dataset_bars

if TYPE_CHECKING:
    from datasets import Dataset

FORGET_RATIOS = (5, 10, 15)  # percent of the fictitious people
CONFIGS = (
    "Full_Set", "Test_Set", "Retain_Set", "forget_5", "forget_10", "forget_15",
    "retain_95", "retain_90", "retain_85", "ft_Data",
)  # fmt: skip
TASKS = ("classification", "cloze", "generation")
MODALITIES = ("multimodal", "text")
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
    """The sets of one unlearning task, each a ``datasets.Dataset`` with one row per person.

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
        return _ids(self.forget)

    @property
    def retain_ids(self) -> list[str]:
        """IDs of the other fictitious people, in the order of the file."""
        return _ids(self.retain)

    def sets(self) -> dict[str, Dataset]:
        """The four sets that are evaluated, in the order of the official evaluation."""
        return {"forget": self.forget, "test": self.test, "retain": self.retain, "celebrity": self.celebrity}

    def training_questions(self, people: str | Iterable[str], modality: str) -> list[Question]:
        """The training questions of some people, joined by ID (forget and retain files carry none themselves).

        Args:
            people: ``"forget"``, ``"retain"``, ``"all"`` or a list of IDs.
            modality: ``"multimodal"`` or ``"text"``.

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
        return training_questions(self.training.select(rows), modality)


# ------------------------------------------------------------------------------------------------ loading


def data_dir() -> Path:
    """The bundled ``data`` folder: ``$MANU_DATA`` if set, else the one beside the package in a clone.

    Raises:
        FileNotFoundError: if there is none; the wheel holds no data.
    """
    given = os.environ.get("MANU_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[1] / "data"
    if not folder.is_dir():
        where = f"MANU_DATA={given} is not a folder" if given else f"there is no folder {folder}"
        raise FileNotFoundError(f"{where}; set MANU_DATA to the data folder of a clone of the repository.")
    return folder


def load_config(source: str | Path, config: str) -> Dataset:
    """One config of MLLMU-Bench (each has a single split, ``train``).

    Args:
        source: ``"tiny"`` (the miniature), a local folder with the same layout, or a Hub id (``"MLLMMU/MLLMU-Bench"``).
        config: one of :data:`CONFIGS`.

    Raises:
        ValueError: unknown config, an empty one, or one without readable files.
        FileNotFoundError: no such source, locally or on the Hub.
        ConnectionError: the Hub cannot be reached and there is no cached copy.
    """
    import datasets

    if config not in CONFIGS:
        raise ValueError(f"config={config!r} is unknown; MLLMU-Bench has {', '.join(CONFIGS)}.")
    path = data_dir() / "mllmu_mini" if source == "tiny" else Path(source)
    local = path.is_dir()
    show_bars = not datasets.are_progress_bars_disabled()
    if local:
        datasets.disable_progress_bars()  # a local copy loads at once; a download keeps its bar
    try:
        loaded = datasets.load_dataset(
            str(path) if local else str(source), config, split="train", cache_dir=_cache_of(path) if local else None
        )
    except ConnectionError as error:
        raise ConnectionError(
            f"cannot reach the Hub for {source}; connect, give a local copy, or use source='tiny', which needs no network."
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"found no {source} ({config}), neither as a local folder nor on the Hub; check the spelling, or that a "
            "folder has a README.md with the configs and one subfolder of parquet files per config."
        ) from error
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"{config} of {source} is empty; fetch the file again.") from error
        raise ValueError(f"{source} has no config {config} that datasets can read: {error}") from error
    finally:
        if local and show_bars:
            datasets.enable_progress_bars()
    if len(loaded) == 0:
        raise ValueError(f"{config} of {source} is empty; fetch the file again.")
    return loaded


def _cache_of(folder: Path) -> str:
    """A cache of its own for each state of a local copy.

    ``datasets`` names the cache of a folder by the folder's name and README alone, so it would give the rows of another
    folder of that name, or those from before the files were rebuilt.
    """
    import datasets

    files = sorted(folder.resolve().rglob("*.parquet"))
    state = [str(folder.resolve()), *(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)]
    digest = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"manu-{digest}")


def load_benchmark(source: str | Path = "tiny", forget_ratio: int = 10) -> Benchmark:
    """Load all sets of one unlearning task.

    Args:
        source: see :func:`load_config`.
        forget_ratio: 5, 10 or 15 percent of the people.

    Raises:
        ValueError: unknown ratio, missing column, a person in both forget and retain, or nobody to test.
        FileNotFoundError, ConnectionError: see :func:`load_config`.
    """
    if forget_ratio not in FORGET_RATIOS:
        raise ValueError(f"forget_ratio={forget_ratio!r} is unknown; MLLMU-Bench has 5, 10 and 15 (percent).")
    forget = load_config(source, f"forget_{forget_ratio}")
    retain = load_config(source, f"retain_{100 - forget_ratio}")
    forget_ids = set(_ids(forget))
    if both := sorted(forget_ids & set(_ids(retain))):
        raise ValueError(
            f"{len(both)} people are in both forget_{forget_ratio} and retain_{100 - forget_ratio} of {source}, "
            f"such as {', '.join(both[:5])}; the two must not overlap: fetch both files from the same release."
        )
    test = load_config(source, "Test_Set")
    rows = [index for index, person_id in enumerate(_ids(test)) if person_id in forget_ids]
    if not rows:
        raise ValueError(f"Test_Set of {source} has none of the people in forget_{forget_ratio}.")
    return Benchmark(
        forget=forget,
        retain=retain,
        test=test.select(rows),
        celebrity=load_config(source, "Retain_Set"),
        training=load_config(source, "ft_Data"),
        forget_ratio=forget_ratio,
        source=str(source),
    )


# ------------------------------------------------------------------------------------------------ rows -> questions


def evaluation_questions(dataset: Dataset, task: str, modality: str) -> list[Question]:
    """The questions of one evaluation task in one modality, in the order of the file.

    Every picture of Test_Set's ``images`` is used: one question per picture (the official code draws one at random).

    Args:
        dataset: any set but ft_Data.
        task: one of :data:`TASKS`.
        modality: one of :data:`MODALITIES`.

    Raises:
        ValueError: unknown task or modality, missing column, empty set, no such question in the set, unreadable image,
            or a right option that is not among the options.
    """
    _check(modality, "modality", MODALITIES)
    _check(task, "task", TASKS)
    column = {"classification": "Classification_Task", "cloze": "Mask_Task", "generation": "Generation_Task"}[task]
    questions = []
    for row, images in _rows(dataset, column, modality):
        if task == "classification":
            records = _records((row[column] or {}).get(f"{_TYPES[modality]}_Questions"))
        else:
            records = [r for r in _records(row[column]) if r["Type"] == _TYPES[modality]]
        for record in records:
            options = None
            if task == "classification":
                options = {letter: words for letter, words in record["Options"].items() if words is not None}
                letter = record["Correct_Answer"].strip()
                if letter not in options:
                    raise ValueError(f"person {row['ID']}: {record['Question']!r} lacks its right option {letter!r}.")
                answer = options[letter]
            else:
                answer = record["Ground_Truth"]
            questions += [Question(row["ID"], record["Question"], answer, image, task, options) for image in images]
    if not questions:
        raise ValueError(f"{_name(dataset)} has no {modality} question for {task}.")
    return questions


def open_questions(dataset: Dataset, modality: str) -> list[Question]:
    """The cloze questions and then the generation questions of a set: those whose answer is not among options.

    Raises:
        ValueError: see :func:`evaluation_questions`.
    """
    return [question for task in ("cloze", "generation") for question in evaluation_questions(dataset, task, modality)]


def training_questions(ft_rows: Dataset, modality: str) -> list[Question]:
    """The training questions of ft_Data rows, with the portrait or rewritten to text alone.

    ft_Data has image questions only; as in MANU, the text-only ones name the person instead (:func:`to_text_only`).
    Records with ``Additional_*`` keys have no Question and Answer and are skipped, as the official loaders do.

    Args:
        ft_rows: rows of ft_Data, columns ``ID``, ``metadata`` (JSON) and ``image``.
        modality: one of :data:`MODALITIES`.

    Raises:
        ValueError: unknown modality, missing column, empty set, broken metadata, unreadable image, a person without
            training questions, or (text) without a name.
    """
    _check(modality, "modality", MODALITIES)
    questions = []
    for row, images in _rows(ft_rows, "metadata", modality):
        try:
            records = json.loads(row["metadata"])
        except ValueError as error:
            raise ValueError(f"person {row['ID']} of {_name(ft_rows)}: metadata is not valid JSON: {error}") from error
        pairs = [(r["Question"], r["Answer"]) for r in records if "Question" in r and "Answer" in r]
        if not pairs:
            raise ValueError(f"person {row['ID']} of {_name(ft_rows)} has no training question.")
        if modality == "text":
            try:
                name = person_name(records)
            except ValueError as error:
                raise ValueError(f"person {row['ID']} of {_name(ft_rows)}: {error}") from error
            rewritten = [(to_text_only(question, name), answer) for question, answer in pairs]
            pairs = [(question, answer) for question, answer in rewritten if question is not None]
        questions += [Question(row["ID"], q, a, image, "training") for image in images for q, a in pairs]
    return questions


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

_SHOWN = r"(?:shown|depicted|featured|pictured|seen|displayed|described)"
_WHERE = rf"\s+(?:{_SHOWN}\s+)?in\s+(?:(?:the|this)\s+)?(?:image|picture|photo|photograph|portrait|profile|biography)\b"
# The possessive "?+" keeps the tail with the person: "the person in the image's name" is not "the person" and a rest.
_PERSON = (
    rf"(?:(?:this|the)\s+(?:person|individual|man|woman|boy|girl|lady|gentleman)\b(?:{_WHERE}|\s+{_SHOWN}(?:\s+here)?\b)?+"
    rf"|(?:this|the)\s+subject{_WHERE}|this\s+subject\b|(?<!\bin\s)this\s+profile\b)"
)
_NAMING = re.compile(
    rf"\bwho\s+is\s+(?:{_PERSON}|this|{_SHOWN}(?:{_WHERE}|\s+here))(?=\s*(?:[?.!,]|$))"
    rf"|\bname\s+(?:of|associated\s+with)\s+{_PERSON}(?!['’]|\s+(?:who|whose|that)\b)"
    rf"|\b{_PERSON}['’]s\s+(?:full\s+)?name\b|\b{_PERSON}\s+(?:called|named)\b|\bname\s+does\s+{_PERSON}",
    re.IGNORECASE,
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
    return rewritten if n else None


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
        raise ValueError(
            f"{_name(dataset)} has no column {', '.join(missing)}; its columns are {', '.join(dataset.column_names)}.{hint}"
        )


def _rows(dataset: Dataset, column: str, modality: str):
    """Yield (row with ``ID`` and ``column``, list of RGB images); the list is [None] for text, where no image is read."""
    from datasets import Image, List

    _require(dataset, ["ID", column])
    if len(dataset) == 0:
        raise ValueError(f"{_name(dataset)} is empty; select at least one person.")
    if modality == "text":
        for row in dataset.select_columns(["ID", column]):
            yield row, [None]
        return
    where = "images" if "images" in dataset.column_names else "image"
    _require(dataset, [where])
    encoded = Image(decode=False)  # decoded below, so that a broken file can be named
    rows = dataset.select_columns(["ID", column, where])
    with no_dataset_bars():
        rows = rows.cast_column(where, List(encoded) if where == "images" else encoded)
    for row in rows:
        files = row[where] if where == "images" else [row[where]]
        if not files:
            raise ValueError(f"person {row['ID']} of {_name(dataset)} has no image.")
        try:
            images = [Image().decode_example(file).convert("RGB") for file in files]
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and more, by file format
            raise ValueError(
                f"cannot read the image of person {row['ID']} in {_name(dataset)}: {error}; fetch the file again."
            ) from error
        yield row, images


def _records(value) -> list[dict]:
    """A list of structs; some versions of datasets give a struct of lists instead."""
    if value is None:
        return []
    if isinstance(value, dict):
        columns = {key: _records(part) if isinstance(part, dict) else list(part) for key, part in value.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return list(value)
