"""Two methods asked the same questions: the difference by question, and how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .robust import interval_over_people

if TYPE_CHECKING:
    import pandas as pd

_KEYS = ["set", "task", "modality", "metric"]
_QUESTION = ["person_id", "question", "truth"]


def compare_paired(
    one: pd.DataFrame,
    other: pd.DataFrame,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How ``one`` differs from ``other``, over the same questions, with an interval by bootstrap
    over people.

    The questions that both know, or neither, cancel out, so the interval is narrower than what two
    separate ones (:func:`summarise_with_intervals`) suggest. It speaks of other people, not of
    another seed of a method.

    Args:
        one, other: tables of :func:`evaluate` or its kin, of the same sets and protocol, in memory
            or read from a file (``frame.to_parquet(path)``, ``pd.read_parquet(path)``).
        level: between 0 and 1.

    Returns:
        Columns set, task, modality, metric; one, other: the two means; difference, low, high: the
        mean of one − other, and its interval (NaN for a single person); better, worse: the numbers
        of questions where one is higher, or lower; n (questions) and people.

    Raises:
        ValueError: tables that do not hold the same questions, empty ones, or a level that is not
            between 0 and 1.
    """
    import pandas as pd

    both = _pairs(one, other)
    rows = []
    for key, part in both.groupby(_KEYS, sort=False):
        difference = part["one"] - part["other"]
        people = difference.groupby(part["person_id"], sort=False).agg(["sum", "size"])
        low, high = interval_over_people(people["sum"], people["size"], level, resamples, seed)
        row = {"one": part["one"].mean(), "other": part["other"].mean()}
        row |= {"difference": difference.mean(), "low": low, "high": high}
        row |= {"better": int((difference > 0).sum()), "worse": int((difference < 0).sum())}
        row |= {"n": len(part), "people": len(people)}
        rows.append(dict(zip(_KEYS, key, strict=True)) | row)
    return pd.DataFrame(rows)


def _pairs(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """A row a question and metric, with the values of both tables."""
    counted = []
    for frame, name in ((one, "one"), (other, "other")):
        if len(frame) == 0:
            raise ValueError("a table is empty, so there is nothing to compare.")
        keys = frame[_KEYS + _QUESTION].astype(str)  # a file may have made numbers of the persons
        # A question is asked about several pictures, in the same order.
        again = keys.groupby(_KEYS + _QUESTION).cumcount()
        values = frame["value"].to_numpy(float)
        counted.append(keys.assign(again=again, **{name: values}))
    both = counted[0].merge(
        counted[1], on=[*_KEYS, *_QUESTION, "again"], how="outer", indicator=True, sort=False
    )
    if len(lonely := both[both["_merge"] != "both"]):
        first = lonely.iloc[0]
        which = f"person {first['person_id']}, {first['question'][:60]!r}"
        which += f" ({first['set']}, {first['metric']})"
        raise ValueError(
            f"{len(lonely)} of {len(both)} rows are in one table alone, such as {which}; evaluate "
            "both with the same sets and settings."
        )
    order = [tuple(key) for key in counted[0][_KEYS].drop_duplicates().to_numpy()]
    rank = {key: index for index, key in enumerate(order)}
    both["rank"] = [rank[tuple(key)] for key in both[_KEYS].to_numpy()]
    return both.sort_values("rank", kind="stable", ignore_index=True)
