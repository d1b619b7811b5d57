"""Forgotten or hidden: attacks on an unlearned model, and looks inside it. Derived in notebook 09.

Every function takes models and questions and gives tidy rows; the models are as they were.
"""

from .recovery import area_under, recovered_area
from .relearning import relearn, relearning_split, without_taught
from .rounding import answers_when_rounded, nf4, round_weights, rounded, zeros_when_rounded

__all__ = [
    "answers_when_rounded", "area_under", "nf4", "recovered_area", "relearn", "relearning_split",
    "round_weights", "rounded", "without_taught", "zeros_when_rounded",
]  # fmt: skip
