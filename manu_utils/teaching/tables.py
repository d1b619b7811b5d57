"""What the tables of the series have in common: names, answers side by side, intervals."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from scipy.stats import binomtest

from ..benchmark.records import Question

MODALITY_NAMES = {"multimodal": "image + text", "text": "text alone"}


def layer_name(tower: str, layer: int) -> str:
    """How figures and tables call a layer: ``"language 2"``."""
    return f"{tower} {layer}"


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share of n questions, both ends in 0..1."""
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
