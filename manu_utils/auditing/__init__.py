"""Forgotten or hidden: attacks on an unlearned model, and looks inside it. Derived in notebook 09.

Every function takes models and questions and gives tidy rows; the models are as they were.
"""

from .depth import depth_score, depth_scores, mean_depth, patch_states
from .distances import js_distance, ks_distance
from .lens import logit_lens
from .probes import probe_layers
from .recovery import area_under, recovered_area
from .relearning import relearn, relearning_split, without_taught
from .rounding import answers_when_rounded, nf4, round_weights, rounded, zeros_when_rounded
from .summary import leaves, membership_score, score_of, summarise_audit
from .values import asked_values, find_values, names_of

__all__ = [
    "answers_when_rounded", "area_under", "asked_values", "depth_score", "depth_scores",
    "find_values", "js_distance", "ks_distance", "leaves", "logit_lens", "mean_depth",
    "membership_score", "names_of", "nf4", "patch_states", "probe_layers", "recovered_area",
    "relearn", "relearning_split", "round_weights", "rounded", "score_of", "summarise_audit",
    "without_taught", "zeros_when_rounded",
]  # fmt: skip
