"""Multiple choice in the columns of WMDP and MMLU, from a local file."""

from __future__ import annotations

from pathlib import Path

from .records import Question


def load_multiple_choice(file: str | Path) -> list[Question]:
    """The questions of a file with columns question, choices, answer (the place of the right one)
    and, as in MMLU, subject.

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
