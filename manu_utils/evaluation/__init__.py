"""What is still known."""

from ..models.fingerprints import fingerprint
from .choosing import choose_alpha
from .factuality import judge_factuality
from .harm import (
    ANSWER_KINDS,
    REFUSAL_PHRASES,
    attack_success,
    is_gibberish,
    is_refusal,
    judge_answer,
    over_refusal,
    shares_by,
    words_named,
)
from .judging import find_letter, normalise, parse_letter
from .multiple_choice import IN_WORDS, LETTERED, OF_MMLU, choose
from .official import PITFALLS, evaluate_official, official_prompts, official_scores
from .paired import compare_paired
from .robust import evaluate_robust, robust_prompts, summarise_with_intervals
from .tables import evaluate, merit, summarise
from .tofu import (
    answer_measures,
    ask_tofu,
    exact_memorisation,
    extraction_strength,
    forget_quality,
    forget_truth_ratio,
    model_utility,
    probability,
    relative_probability,
    rouge_recall,
    summarise_tofu,
    truth_ratio,
    utility_parts,
    utility_truth_ratio,
)
from .verbatim import (
    Rouge,
    ask_knowledge,
    ask_verbatim,
    longest_common_part,
    recited,
    rouge_l,
    six_questions,
    words_of,
)

__all__ = [
    "ANSWER_KINDS", "IN_WORDS", "LETTERED", "OF_MMLU", "PITFALLS", "REFUSAL_PHRASES", "Rouge",
    "answer_measures", "ask_knowledge", "ask_tofu", "ask_verbatim", "attack_success", "choose",
    "choose_alpha", "compare_paired", "evaluate", "evaluate_official", "evaluate_robust",
    "exact_memorisation", "extraction_strength", "find_letter", "fingerprint", "forget_quality",
    "forget_truth_ratio", "is_gibberish", "is_refusal", "judge_answer", "judge_factuality",
    "longest_common_part", "merit", "model_utility", "normalise",
    "official_prompts", "official_scores", "over_refusal", "parse_letter", "probability",
    "recited", "relative_probability", "robust_prompts", "rouge_l", "rouge_recall", "shares_by",
    "six_questions", "summarise", "summarise_tofu", "summarise_with_intervals", "truth_ratio",
    "utility_parts", "utility_truth_ratio", "words_named", "words_of",
]  # fmt: skip
