"""A CSV file in which the notebooks collect their results."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ..paths import whole

if TYPE_CHECKING:
    import pandas as pd

LEADERBOARD = (
    "scale",
    "seed",
    "method",
    "alpha",
    "set",
    "task",
    "modality",
    "metric",
    "value",
    "n",
)


def append_leaderboard(
    path: str | Path,
    summary: pd.DataFrame,
    *,
    scale: str,
    seed: int,
    method: str,
    alpha: float | None,
) -> None:
    """Write a summary to the leaderboard CSV, over rows of the same scale, seed, method, alpha.

    The file is replaced as a whole and two notebooks that write at once wait for each other. A
    spreadsheet may have saved it in between, with a byte order mark or alpha 5.0 as 5; of a link
    the file that it points to is written.

    Args:
        path: made if it is not there, with its folder.
        alpha: percentage of neurons pruned; None for what prunes none (the vanilla model,
            baselines).

    Raises:
        ValueError: the file there is not a leaderboard, or the summary lacks a column; the file is
            left as it is.
    """
    from filelock import FileLock

    if missing := [name for name in LEADERBOARD[4:] if name not in summary]:
        raise ValueError(
            f"the summary has no column {', '.join(missing)}; pass summarise(evaluate(...))."
        )
    path = Path(path).expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    key = [
        str(scale),
        str(int(seed)),
        str(method),
        "" if alpha is None or math.isnan(alpha) else str(float(alpha)),
    ]
    measured = summary[list(LEADERBOARD[4:])].astype(object).values.tolist()
    with FileLock(path.with_name(f".{path.name}.lock")):  # hidden, so that it is nobody's file
        kept = _leaderboard_rows(path) if path.exists() else []
        rows = [row for row in kept if _run_of(row) != _run_of(key)] + [
            [*key, *values] for values in measured
        ]
        with whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([LEADERBOARD, *rows])


def _leaderboard_rows(path: Path) -> list[list[str]]:
    """The rows below the header.

    Raises:
        ValueError: it is something else.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
        if tuple(header) != LEADERBOARD or any(len(row) != len(LEADERBOARD) for row in rows):
            raise ValueError("other columns")
        for row in rows:
            _run_of(row)
    except (ValueError, IsADirectoryError, csv.Error) as error:
        # bytes that are no text are a ValueError, too
        raise ValueError(
            f"{path} is not a leaderboard (CSV in UTF-8 with columns {', '.join(LEADERBOARD)}) and "
            f"is left as it is; move it away, or name another file."
        ) from error
    return rows


def _run_of(row: list[str]) -> tuple:
    """The run that a row of the leaderboard is of, however a spreadsheet wrote its numbers."""
    scale, seed, method, alpha = row[:4]
    return scale, float(seed), method, float(alpha) if alpha else None
