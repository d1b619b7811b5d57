"""What is still known."""

from .answers_file import fingerprint
from .choosing import choose_alpha
from .factuality import judge_factuality
from .judging import find_letter, normalise, parse_letter
from .official import PITFALLS, evaluate_official, official_prompts, official_scores
from .robust import evaluate_robust, robust_prompts, summarise_with_intervals
from .tables import evaluate, merit, summarise

__all__ = [
    "PITFALLS", "choose_alpha", "evaluate", "evaluate_official", "evaluate_robust", "find_letter",
    "fingerprint", "judge_factuality", "merit", "normalise", "official_prompts",
    "official_scores", "parse_letter", "robust_prompts", "summarise",
    "summarise_with_intervals",
]  # fmt: skip
