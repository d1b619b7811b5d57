"""From a table's row to records and pictures: any legal layout; what is of no use is named once."""

from __future__ import annotations

import json
import pickle
import string
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from ..checks import check_name, kind_of
from .pictures import IMAGE_COLUMNS, Picture, readable_size, undecoded
from .records import written_id

if TYPE_CHECKING:
    from datasets import Dataset

TYPES = {"multimodal": "Image_Textual", "text": "Pure_Text"}  # the words that MLLMU-Bench uses
BYTES_OF_ONE_MAP = 8_000_000  # of pictures, read before it is opened anew


def rows_of(
    dataset: Dataset, column: str, modality: str, records_of: Callable[[dict], list[dict]],
    read: Callable[[dict], dict | None], strict: bool, unreadable: str,
) -> Iterator[tuple[str, list[dict], list[PIL.Image.Image | None]]]:
    """Yield (ID, records, RGB images) of each row with records.

    The images are [None] for text, where none is read. What cannot be used is named once, in a
    warning or an error.

    Args:
        records_of: the records of a row with ``ID`` and ``column``; a ValueError with what is wrong
            with the row.
        read: what is asked of a record, or None for nothing; a ValueError with what is wrong with
            it.
    """
    check_name("unreadable", unreadable, ("skip", "raise"))
    require_columns(dataset, ["ID", column])
    if len(dataset) == 0:
        raise ValueError(f"{name_of(dataset)} is empty; select at least one person.")
    where = "images" if "images" in dataset.column_names else "image"
    if modality == "multimodal":
        require_columns(dataset, [where])
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
        if not person_id:
            leave_out("people", "nobody", f"row {index} of {name_of(dataset)} has no ID.")
            continue
        whose = f"person {person_id} of {name_of(dataset)}"
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
    _say_what_is_left_out(problems, used, name_of(dataset))


def _say_what_is_left_out(
    problems: dict[str, list[tuple[str, str]]], used: dict[str, int], name: str
) -> None:
    """One warning, or an error where nothing of a kind can be used."""
    left_out = {kind: found for kind, found in problems.items() if found}
    for kind, found in left_out.items():
        if used[kind] == 0:
            raise ValueError(found[0][1])
    if left_out:
        people = list(
            dict.fromkeys(person_id for found in left_out.values() for person_id, _ in found)
        )
        counts = [
            f"{len(found)} of {used[kind] + len(found)} {kind}" for kind, found in left_out.items()
        ]
        first = next(iter(left_out.values()))[0][1]
        warnings.warn(
            f"{' and '.join(counts)} of {name} cannot be read and are left out, of "
            f"{', '.join(people[:10])}{' and others' if len(people) > 10 else ''}. The first: "
            f"{first}",
            stacklevel=4,
        )


def _sentence(whose: str, problem: ValueError) -> str:
    """What is wrong with a person: "person 001 has ...", "person 001: no question ..."."""
    text = str(problem).rstrip(".")
    return f"{whose}{' ' if text.startswith(('has ', 'lacks ')) else ': '}{text}."


# So each picture is checked once, however many tasks are about it.
_FILES: weakref.WeakKeyDictionary[Dataset, _Files] = weakref.WeakKeyDictionary()


class _Files:
    """The encoded pictures of a dataset.

    A table on disk is mapped into memory, and what was read of it stays there; it is opened anew
    from time to time, so that this does not add up to all pictures.
    """

    def __init__(self, dataset: Dataset, where: str) -> None:
        self.where, self.n_read = where, BYTES_OF_ONE_MAP  # the first read opens a map of its own
        # decoded here, so that a broken file can be named
        self.rows = undecoded(dataset.select_columns([where]), where)
        self.on_disk = bool(self.rows.cache_files)
        self.token = object()
        self.sizes: dict[int, list[tuple[int, int] | str]] = {}  # row -> of its pictures

    def of_row(self, index: int) -> list[bytes | str | None]:
        """The pictures of a row: bytes, the name of a file that is not to be opened, or None."""
        if self.n_read >= BYTES_OF_ONE_MAP and self.on_disk:
            try:
                # of a table on disk these are names and places
                self.rows = pickle.loads(pickle.dumps(self.rows))
            except Exception:
                # pyarrow cannot open all tables again that were put together of others (CLEAR)
                self.on_disk = False
            self.n_read = 0
        value = self.rows[index][self.where]
        files = records_in(value) if self.where == "images" else [value]
        parts = [
            (file.get("bytes"), file.get("path")) if isinstance(file, dict) else (file, None)
            for file in files
        ]
        self.n_read += sum(len(data or b"") for data, _ in parts)
        return [data or path for data, path in parts]

    def read(self, index: int, place: int) -> bytes:
        return self.of_row(index)[place]

    def pictures(self, index: int, whose: str) -> list[Picture | str]:
        """The pictures of a row, new in each call, or what is wrong; a file is looked at once."""
        if index not in self.sizes:
            self.sizes[index] = [
                _size_or_problem(data, whose) for data in self.of_row(index) or [None]
            ]
        return [
            size
            if isinstance(size, str)
            else Picture(partial(self.read, index, place), size, key=(self.token, index, place))
            for place, size in enumerate(self.sizes[index])
        ]


def _size_or_problem(data: bytes | str | None, whose: str) -> tuple[int, int] | str:
    if not data:
        return f"{whose} has no image."
    if not isinstance(data, bytes):
        return (
            f"the image of {whose} is the name {str(data)[:200]!r}, not the picture itself; only "
            f"pictures inside the table and files inside the folder of the dataset are read."
        )
    try:
        return readable_size(data)
    except ValueError as error:
        return f"cannot read the image of {whose}: {error}; fetch the file again."


def name_of(dataset: Dataset) -> str:
    return dataset.info.config_name or "the set"


def ids_of(dataset: Dataset) -> list[str]:
    require_columns(dataset, ["ID"])
    return [written_id(person_id) for person_id in dataset.select_columns(["ID"])["ID"]]


def people_of(dataset: Dataset) -> list[str]:
    """The people of a set, each once, in the order of the file; rows without an ID are nobody's."""
    return list(dict.fromkeys(filter(None, ids_of(dataset))))


def require_columns(dataset: Dataset, columns: list[str]) -> None:
    """Check that a set has these columns.

    Raises:
        TypeError: no :class:`datasets.Dataset`, such as a dict of splits or a stream.
        ValueError: a missing column.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"a set is {kind_of(dataset)}; give a datasets.Dataset, such as the split "
            "load_dataset(..., split='train')."
        )
    if missing := [column for column in columns if column not in dataset.column_names]:
        hint = " Training questions are in the config ft_Data." if "metadata" in missing else ""
        if set(missing) & set(IMAGE_COLUMNS):
            hint = (
                " It was loaded without pictures or has none: ask with modality 'text', or load "
                "it with both modalities."
            )
        raise ValueError(
            f"{name_of(dataset)} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(dataset.column_names)}.{hint}"
        )


def is_null(value) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in ("", "null"))


def parsed(value, kind: type | tuple[type, ...]):
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


def records_in(value) -> list:
    """A list of structs, also from JSON, from the struct of lists of some datasets, and pandas
    arrays in place of lists."""
    if is_null(value):
        return []
    value = parsed(_listed(value), (list, dict))
    if not isinstance(value, dict):
        return value
    parts = {key: _listed(part) for key, part in value.items()}
    if not any(isinstance(part, (list, dict)) for part in parts.values()):
        return [value]
    columns = {
        key: records_in(part) if isinstance(part, dict) else part if isinstance(part, list) else []
        for key, part in parts.items()
    }
    if len({len(part) for part in columns.values()}) > 1:
        raise ValueError(
            f"has lists of different lengths in place of records ({', '.join(columns)})"
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _listed(value):
    """A tuple or an array as a list; anything else as it is."""
    return list(value) if isinstance(value, (tuple, np.ndarray)) else value


def training_records(row: dict) -> list:
    """The training records of a row of ft_Data."""
    try:
        records = (
            json.loads(row["metadata"]) if isinstance(row["metadata"], str) else row["metadata"]
        )
    except ValueError as error:
        raise ValueError(f"metadata is not valid JSON: {error}") from error
    if not isinstance(records, (list, dict)):
        raise ValueError(f"metadata is a {type(records).__name__}, not a list of questions")
    return records_in(records)


def pairs_of(records: list) -> list[dict]:
    """The records meant as training questions, with those that are no structs: named later."""
    structs = [record if isinstance(record, dict) else {"Question": None} for record in records]
    return [record for record in structs if "Question" in record or "Answer" in record]


def question_and_answer(record: dict) -> tuple[str, str]:
    question = text_of(record, "Question", "has a record without a question")
    return question, text_of(record, "Answer", f"has no answer to {question!r}")


def text_of(record: dict, key: str, problem: str) -> str:
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


def options_of(value) -> dict[str, str]:
    """letter -> words, by place in a list; only text that is not blank and numbers are options."""
    value = parsed(value, (dict, list)) if isinstance(value, str) else value
    if isinstance(value, (list, tuple)):
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if not isinstance(value, dict):
        return {}
    return {
        str(letter).strip().upper(): str(words)
        for letter, words in value.items()
        if isinstance(words, (str, int, float))
        and not isinstance(words, bool)
        and words == words
        and str(words).strip()
    }
