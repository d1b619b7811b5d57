"""Forgotten or hidden: attacks on an unlearned model, and looks inside it. Derived in notebook 09.

Every function takes models and questions and gives tidy rows; the models are as they were.
"""

from .asking import answers_otherwise, ask_otherwise, share_by_form
from .asking_otherwise import (
    crossed_questions,
    other_wordings,
    profiles_of,
    reverse_questions,
    two_hop_questions,
    with_examples,
    with_old_pictures,
)
from .depth import depth_score, depth_scores, mean_depth, patch_states
from .distances import js_distance, ks_distance
from .lens import logit_lens
from .membership import (
    loss_score,
    membership_scores,
    min_k_score,
    token_log_probs,
    zlib_score,
)
from .pictures import changed_pictures
from .probes import probe_layers
from .recovery import area_under, recovered_area
from .relearning import relearn, relearning_split, without_taught
from .rounding import answers_when_rounded, nf4, round_weights, rounded, zeros_when_rounded
from .summary import leaves, membership_score, score_of, summarise_audit
from .telling_apart import auc, auc_table, privleak, s_mia
from .values import asked_values, find_values, names_of

__all__ = [
    "answers_otherwise", "answers_when_rounded", "area_under", "ask_otherwise", "asked_values",
    "auc", "auc_table", "changed_pictures", "crossed_questions", "depth_score", "depth_scores",
    "find_values", "js_distance", "ks_distance", "leaves", "logit_lens", "loss_score",
    "mean_depth", "membership_score", "membership_scores", "min_k_score", "names_of", "nf4",
    "other_wordings", "patch_states", "privleak", "probe_layers", "profiles_of", "recovered_area",
    "relearn", "relearning_split", "reverse_questions", "round_weights", "rounded", "s_mia",
    "score_of", "share_by_form", "summarise_audit", "token_log_probs", "two_hop_questions",
    "with_examples", "with_old_pictures", "without_taught", "zeros_when_rounded", "zlib_score",
]  # fmt: skip
