"""Multiple choice in the columns of WMDP and MMLU, from a local file."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from .records import Question

if TYPE_CHECKING:
    import pandas as pd


def load_multiple_choice(file: str | Path) -> list[Question]:
    """The questions of a file with columns question, choices, answer (the place of the right one)
    and, as in MMLU, subject.

    Args:
        file: one local file, such as ``wmdp-bio/test-00000-of-00001.parquet``; parquet, JSON lines
            or a JSON list.

    Returns:
        Text questions of the task classification, options A, B, ..., with the subject, or else the
        name of the file, for person_id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, one that cannot be read, a missing column, a question or
            a choice that is no text, more choices than letters, or an answer that is not the place
            of a choice.
    """
    import pandas as pd

    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no file {file}; name one of a local copy, not a folder or a Hub id."
        )
    if file.suffix not in (".parquet", ".json", ".jsonl"):
        raise ValueError(f"{file} is neither .parquet nor .json nor .jsonl.")
    try:
        rows = _read(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}); fetch it again.") from error
    if missing := [column for column in ("question", "choices", "answer") if column not in rows]:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(map(str, rows))}."
        )
    subjects = rows["subject"] if "subject" in rows else [file.stem] * len(rows)
    questions = []
    for subject, asked, given, right in zip(
        subjects, rows["question"], rows["choices"], rows["answer"], strict=True
    ):
        choices = [*given] if pd.api.types.is_list_like(given) else []
        if not isinstance(asked, str) or not choices or None in choices:
            raise ValueError(
                f"{file}: {asked!r} has the choices {given!r}; a question is a text, and its "
                f"choices are a list of texts."
            )
        if not (pd.api.types.is_number(right) and right in range(len(choices))):
            raise ValueError(
                f"{file}: the answer to {asked!r} is {right!r}, but there are {len(choices)} "
                f"choices; it must be the place of the right one, counted from 0."
            )
        if len(choices) > len(ascii_uppercase):
            raise ValueError(f"{file}: {asked!r} has {len(choices)} choices, more than letters.")
        choices = [str(choice) for choice in choices]
        options = dict(zip(ascii_uppercase, choices, strict=False))
        questions.append(
            Question(str(subject), asked, choices[int(right)], None, "classification", options)
        )
    return questions


def _read(file: Path) -> pd.DataFrame:
    import pandas as pd

    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    text = file.read_text(encoding="utf-8")
    lines = not text.lstrip().startswith("[")
    # texts stay as they are: a question "2020" is no number and no date
    return pd.read_json(StringIO(text), lines=lines, dtype=False, convert_dates=False)
