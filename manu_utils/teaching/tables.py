"""What the tables of the series have in common: names, answers side by side, intervals."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..benchmark.records import Question

MODALITY_NAMES = {"multimodal": "image + text", "text": "text alone"}


def layer_name(tower: str, layer: int) -> str:
    """How figures and tables call a layer: ``"language 2"``."""
    return f"{tower} {layer}"


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share of n questions, both ends in 0..1."""
    from scipy.stats import binomtest  # here, since it takes a second to load

    interval = binomtest(round(share * n), int(n)).proportion_ci(method="wilson")
    return interval.low, interval.high


def answers_table(questions: Sequence[Question], answers: dict[str, Sequence[str]]) -> pd.DataFrame:
    """One row per question: person, modality, question, truth, and what each model answers.

    Args:
        answers: name of the model -> its answers, in the order of ``questions``; ✓ stands before
            one with the same text as the truth, ✗ before another.
    """
    rows = []
    for index, question in enumerate(questions):
        modality = MODALITY_NAMES[question.modality]
        row = {
            "person": question.person_id, "modality": modality, "question": question.question,
            "truth": question.answer,
        }
        for name, given in answers.items():
            row[name] = f"{'✓' if given[index] == question.answer else '✗'} {given[index]}"
        rows.append(row)
    return pd.DataFrame(rows)


def selectivity(rows: pd.DataFrame, before: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Points taken from the forget set minus points taken from the retain set, of the modality
    where that is less. Derived in notebook 07, section 1.

    Args:
        rows: exact answers after pruning: ``set`` (``"forget"`` and ``"retain"``), ``modality``,
            ``value`` (0..1) and the keys; rows that agree in all of these (seeds) are averaged.
        before: the same of the model before pruning, without the keys.
        keys: the columns that tell one setting from another.

    Returns:
        A number per setting, -100..100, in the order of the rows.
    """
    left = rows.pivot_table("value", [*keys, "modality"], "set", sort=False)
    start = before.pivot_table("value", "modality", "set")
    start = start.loc[left.index.get_level_values("modality")].set_axis(left.index)
    lost = 100 * (start - left)
    return (lost["forget"] - lost["retain"]).groupby(keys, sort=False).min()
