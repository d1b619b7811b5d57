"""How well scores of membership tell members from strangers, two-sided and beside a retrained
model.

The AUC is the share of (member, stranger) pairs in which the member surprises the model less. 1:
the model knows its members; .5: nobody can tell. **Below .5 is a leak as well**: a model to which
the forgotten are stranger than strangers tells who was deleted. Hence the distance to .5 counts,
and the model to compare with is the one retrained without the forgotten people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..benchmark.records import MODALITIES
from ..checks import check_name, check_number, check_whole

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("loss", "zlib", "min_k", "min_k_pp", "grad_norm", "reference")


def auc(members: Sequence[float], strangers: Sequence[float]) -> float:
    """The share of pairs in which the member's score is below the stranger's, ties counted half
    (Mann-Whitney).

    1: members surprise less, as where they were learned; .5: no telling; 0: members surprise more.

    >>> auc([1.0, 2.0], [2.0, 3.0])
    0.875

    Raises:
        ValueError: nobody on a side, or a score that is not finite.
    """
    members, strangers = np.asarray(members, float), np.sort(np.asarray(strangers, float))
    for name, values in (("members", members), ("strangers", strangers)):
        if values.size == 0 or not np.isfinite(values).all():
            raise ValueError(
                f"the scores of the {name} must be finite numbers, at least one; take NaN rows out."
            )
    below = len(strangers) - np.searchsorted(strangers, members, side="right")
    not_above = len(strangers) - np.searchsorted(strangers, members, side="left")
    return float((below + not_above).sum() / (2 * len(members) * len(strangers)))


def auc_table(
    members: pd.DataFrame,
    strangers: pd.DataFrame,
    *,
    per: str = "question",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """:func:`auc` of each score and modality, with an interval by bootstrap over people.

    The questions about one person are not independent, so people are drawn with replacement on both
    sides, each with all their questions (percentile bootstrap). It says how the AUC might change
    with other people.

    Args:
        members, strangers: of :func:`membership_scores`, of one model.
        per: ``"question"``, or ``"person"`` for pairs of people, each with the mean of their
            questions.

    Returns:
        Columns modality, score, value, low, high, distance (of value to .5), n (questions of
        members), n_strangers, people, people_strangers. An interval of one person is NaN.

    Raises:
        ValueError: somebody on both sides, no modality or score that both have, or a level not
            between 0 and 1.
    """
    import pandas as pd

    check_name("per", per, ("question", "person"))
    check_number("level", level, above=0, below=1)
    check_whole("resamples", resamples)
    if both := sorted({*members["person_id"]} & {*strangers["person_id"]}):
        raise ValueError(
            f"{', '.join(both[:5])} are members and strangers at once; take them out of one side."
        )
    scores = [score for score in SCORES if score in members and score in strangers]
    rows = []
    for modality in MODALITIES:
        sides = [frame[frame["modality"] == modality] for frame in (members, strangers)]
        if any(len(side) == 0 for side in sides):
            continue
        counts = [len(side) for side in sides] + [side["person_id"].nunique() for side in sides]
        for score in scores:
            groups = [
                [part.to_numpy() for _, part in side.groupby("person_id", sort=False)[score]]
                for side in sides
            ]
            if per == "person":
                groups = [[np.array([part.mean()]) for part in group] for group in groups]
            value = auc(*(np.concatenate(group) for group in groups))
            low, high = _interval(*groups, level, resamples, seed)
            rows.append((modality, score, value, low, high, abs(value - 0.5), *counts))
    if not rows:
        raise ValueError(
            "members and strangers have no modality and score in common; pass two of "
            "membership_scores."
        )
    columns = [
        "modality",
        "score",
        "value",
        "low",
        "high",
        "distance",
        "n",
        "n_strangers",
        "people",
        "people_strangers",
    ]
    return pd.DataFrame(rows, columns=columns)


def _interval(
    members: list, strangers: list, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Of the AUC when people, given as arrays of their scores, are drawn with replacement on both
    sides.
    """
    if min(len(members), len(strangers)) < 2:
        return float("nan"), float("nan")
    sizes = [np.array([len(part) for part in side]) for side in (members, strangers)]
    wins = np.array([[auc(one, other) for other in strangers] for one in members]) * np.outer(
        *sizes
    )
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(len(n), np.full(len(n), 1 / len(n)), size=resamples) for n in sizes]
    values = ((drawn[0] @ wins) * drawn[1]).sum(1) / ((drawn[0] @ sizes[0]) * (drawn[1] @ sizes[1]))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def privleak(auc: float, auc_retrained: float = 0.5) -> float:
    """How far an AUC is from the retrained model's, in % of what that lacks to 1 (MUSE, arXiv
    2407.06460).

    0: as retrained. Below: the members are still known. Above: they are known less than people whom
    no model met.

    Raises:
        ValueError: the retrained model's AUC is 1, so that nothing lacks to 1.
    """
    if auc_retrained == 1:
        raise ValueError(
            "the retrained model tells every member from every stranger: a retrained model has not "
            "met the members; look at both groups, or use another attack."
        )
    return 100 * (auc_retrained - auc) / (1 - auc_retrained)


def s_mia(auc: float, auc_retrained: float, auc_vanilla: float) -> float:
    """1 - |AUC - retrained| / |vanilla - retrained|: 1 as retrained, 0 as far from it as vanilla
    (2506.12618).

    Raises:
        ValueError: vanilla and retrained do not differ, so that there is nothing to measure by.
    """
    if auc_vanilla == auc_retrained:
        raise ValueError(
            "the AUC of vanilla is that of the retrained model: this attack cannot tell them "
            "apart; use another."
        )
    return 1 - abs(auc - auc_retrained) / abs(auc_vanilla - auc_retrained)
