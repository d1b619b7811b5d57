"""One summary: forget quality, utility and robustness, each with the parts that it is made of.

The formulas are those of Open-MMUnlearning (github.com/JunkaiChen1/Open-MMunlearning, paper and
code). What they need and a table does not have is left out of its mean and named in the row. In
particular there is no data here for the seven general benchmarks of their utility
(:data:`GENERAL`), nor an implementation of FigStep and SUA. Intervals are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..checks import check_number, check_whole, kind_of

if TYPE_CHECKING:
    import pandas as pd

TASKS = ("cloze", "classification", "rougeL")
GENERAL = ("MMBench", "MM-Vet", "POPE", "ScienceQA", "VizWiz", "GQA", "VQAv2")
MEMBERSHIP = ("LOSS", "ZLIB", "GradNorm", "Min-K", "Min-K++")
# Forget people's accuracy in each task, again after something was done to the model, or asked by
# name alone. Probes read half and three quarters of the depth (layers 16 and 24 of their 32).
FORGOTTEN = ("forget", "test", "quantised", "relearnt", "probe 1/2", "probe 3/4", "text alone")
KEPT = ("retain/multimodal", "retain/text", "celebrity/multimodal", "celebrity/text")
# A score is the mean of these scores and parts; "level" is membership_score of an AUC.
SCORES: dict[str, tuple[str, ...]] = {
    **{f"forgotten {what}": tuple(f"1 − {what}/{task}" for task in TASKS) for what in FORGOTTEN},
    **{f"kept {what}": tuple(f"{what}/{task}" for task in TASKS) for what in KEPT},
    "forgotten": ("forgotten forget", "forgotten test"),
    "forget quality": (
        "forgotten", "truth ratio", "1 − answer probability", "1 − KS distance", "1 − JS distance",
    ),
    "kept": tuple(f"{what}/{task}" for what in KEPT for task in TASKS),
    "general": GENERAL,
    "utility": ("kept", "general"),
    "probed": ("forgotten probe 1/2", "forgotten probe 3/4"),
    "robust model": ("forgotten quantised", "forgotten relearnt", "probed"),
    "robust input": (
        "forgotten text alone", "1 − FigStep", "1 − jailbreak", "1 − image rephrase", "1 − SUA",
    ),
    "robust output": tuple(f"level {attack}" for attack in MEMBERSHIP),
    "robustness": ("robust model", "robust input", "robust output"),
    "overall": ("forget quality", "utility", "robustness"),
}  # fmt: skip


def leaves(score: str = "overall") -> list[str]:
    """The parts that a score is made of in the end, in order, such as ``"forget/cloze"``: all
    between 0 and 1."""
    if score not in SCORES:
        return [score.removeprefix("1 − ").removeprefix("level ")]
    return list(dict.fromkeys(part for child in SCORES[score] for part in leaves(child)))


def summarise_audit(
    parts: Mapping[str, float] | pd.DataFrame,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every score of :data:`SCORES` that at least one part is given of, with what it is made of.

    A score is the mean of its scores and parts that are given, as in Open-MMUnlearning where all
    are.

    Args:
        parts: part (:func:`leaves`) -> value between 0 and 1: accuracies and ROUGE-L as they are
            measured, success rates of attacks, AUCs of membership. Or tidy rows with columns part
            and value, and, where there are any, person_id and seed: a part is the mean of its
            rows. Distances, AUCs and what else is of no person have no person_id (NaN).
        level: of the intervals, between 0 and 1.
        resamples, seed: of the bootstrap.

    Returns:
        Columns name, value (mean over seeds), low and high (percentile bootstrap over people,
        those of the forget, retain and celebrity set drawn apart, each with all their rows; NaN if
        no part is of people), people, n (rows), seed_low, seed_high (the smallest and largest
        value of a seed), seeds, parts (given), left_out (not given), fixed (given without people:
        the interval takes them as they are). The last three are texts, separated by ``"; "``.

    Raises:
        TypeError: neither a dict nor a table.
        ValueError: no part, an unknown one, a value that is not between 0 and 1, a part that one
            seed lacks, or a part of which only some rows have a person.
    """
    import pandas as pd

    check_number("level", level, above=0, below=1)
    check_whole("resamples", resamples)
    check_whole("seed", seed, least=0)
    frame = _checked(parts)
    draws = _draws(frame, resamples, seed)
    by_seed = [
        (_means(own), {part: _resampled(rows, draws) for part, rows in own.groupby("part")})
        for _, own in frame.groupby("seed", sort=True)
    ]
    rows = []
    for name in SCORES:
        given = [part for part in leaves(name) if part in by_seed[0][0]]
        if not given:
            continue
        own = frame[frame["part"].isin(given)]
        fixed = [part for part in given if own.loc[own["part"] == part, "person_id"].isna().all()]
        values = [float(score_of(name, means)) for means, _ in by_seed]
        low = high = float("nan")
        if len(fixed) < len(given):
            tail = 100 * (1 - level) / 2
            resampled = np.mean([score_of(name, means) for _, means in by_seed], axis=0)
            low, high = np.nanpercentile(resampled, [tail, 100 - tail])
        missing = [part for part in leaves(name) if part not in given]
        spread = (min(values), max(values), len(values))
        counts = (own["person_id"].nunique(), len(own))
        texts = ("; ".join(names) for names in (given, missing, fixed))
        rows.append(
            (name, float(np.mean(values)), float(low), float(high), *counts, *spread, *texts)
        )
    columns = [
        "name",
        "value",
        "low",
        "high",
        "people",
        "n",
        "seed_low",
        "seed_high",
        "seeds",
        "parts",
        "left_out",
        "fixed",
    ]
    return pd.DataFrame(rows, columns=columns)


def score_of(name: str, means: Mapping[str, float | np.ndarray]) -> float | np.ndarray | None:
    """A score or part from the parts that are given; None if none of its own is.

    >>> score_of("forgotten", {"forget/cloze": 0.25, "forget/rougeL": 0.75, "test/cloze": 0.0})
    0.75
    """
    if name in SCORES:
        found = [score_of(child, means) for child in SCORES[name]]
        found = [value for value in found if value is not None]
        return sum(found) / len(found) if found else None
    part = leaves(name)[0]
    if part not in means:
        return None
    value = means[part]
    if name.startswith("level "):
        return membership_score(value)
    return 1 - value if name.startswith("1 − ") else value


def membership_score(auc):
    """clip(1 − 2 |AUC − 0.5|, 0, 1): 1 where members and others look alike, 0 where not."""
    return np.clip(1 - 2 * np.abs(np.asarray(auc) - 0.5), 0, 1)


def _checked(parts: Mapping[str, float] | pd.DataFrame) -> pd.DataFrame:
    """Rows with columns part, value, person_id and seed."""
    import pandas as pd

    if isinstance(parts, Mapping):
        parts = pd.DataFrame({"part": list(parts), "value": list(parts.values())})
    if not isinstance(parts, pd.DataFrame):
        raise TypeError(
            f"parts is {kind_of(parts)}; it must be a dict of part -> value, or a table with "
            "those columns."
        )
    if missing := [name for name in ("part", "value") if name not in parts]:
        raise ValueError(
            f"the table has no column {missing[0]!r}; name the columns part and value."
        )
    frame = parts.reset_index(drop=True).assign(value=parts["value"].to_numpy(float))
    frame = frame.assign(
        **{
            name: default
            for name, default in (("person_id", None), ("seed", 0))
            if name not in frame
        }
    )
    known = leaves()
    if len(frame) == 0:
        raise ValueError(f"there is no part to summarise; pass at least one, such as {known[0]!r}.")
    if unknown := [part for part in frame["part"].unique() if part not in known]:
        raise ValueError(
            f"the part {unknown[0]!r} is unknown; use those of leaves(), such as {known[0]!r}."
        )
    if wrong := [value for value in frame["value"] if not 0 <= value <= 1]:
        raise ValueError(f"the value {wrong[0]} is not between 0 and 1; pass shares, not percents.")
    if frame["seed"].isna().any():
        raise ValueError(
            "a row has no seed while the table has a column seed; fill it in, or drop the column."
        )
    for part, own in frame.groupby("part"):
        if own["seed"].nunique() < frame["seed"].nunique():
            raise ValueError(
                f"{part!r} is missing for one of the seeds; pass every part of every seed."
            )
        if own["person_id"].isna().nunique() > 1:
            raise ValueError(
                f"only some rows of {part!r} have a person_id; give all of them one, or none."
            )
    return frame


def _means(frame: pd.DataFrame) -> dict[str, float]:
    return frame.groupby("part")["value"].mean().to_dict()


def _group_of(part: str) -> str:
    """Whose people a part is about."""
    return next((name for name in ("retain", "celebrity") if part.startswith(f"{name}/")), "forget")


def _draws(frame: pd.DataFrame, resamples: int, seed: int) -> dict[str, dict[object, np.ndarray]]:
    """group -> person -> how often that person is drawn, int [resamples]."""
    rng = np.random.default_rng(seed)
    draws: dict[str, dict[object, np.ndarray]] = {}
    groups = frame["part"].map(_group_of)
    for group in ("forget", "retain", "celebrity"):
        people = sorted(frame.loc[groups == group, "person_id"].dropna().unique(), key=str)
        if people:
            times = rng.multinomial(len(people), [1 / len(people)] * len(people), size=resamples)
            draws[group] = dict(zip(people, times.T, strict=True))
    return draws


def _resampled(
    rows: pd.DataFrame, draws: dict[str, dict[object, np.ndarray]]
) -> float | np.ndarray:
    """The mean of one part for every draw of people, float [resamples]; its mean as it is if it is
    of no people."""
    if rows["person_id"].isna().all():
        return rows["value"].mean()
    times_of = draws[_group_of(rows["part"].iloc[0])]
    sums = rows.groupby("person_id", sort=False)["value"].agg(["sum", "size"])
    times = np.stack([times_of[person] for person in sums.index])  # [people, resamples]
    with np.errstate(invalid="ignore"):  # a draw may have nobody who was asked this
        return sums["sum"].to_numpy() @ times / (sums["size"].to_numpy() @ times)
