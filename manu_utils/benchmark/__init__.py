"""Who is asked what: MLLMU-Bench, its sets, and the questions in them."""

from .loading import load_benchmark, load_config, load_strangers
from .multiple_choice import load_multiple_choice
from .muse import Muse, load_muse, load_muse_text, pieces_of
from .questions import evaluation_questions, open_questions, rewriting_report, training_questions
from .records import CONFIGS, FORGET_RATIOS, MODALITIES, TASKS, Question, check_sets
from .sets import Benchmark
from .text_only import to_text_only
from .tofu import TofuSet, load_tofu_holdout, load_tofu_sets

__all__ = [
    "CONFIGS", "FORGET_RATIOS", "MODALITIES", "TASKS", "Benchmark", "Muse", "Question", "TofuSet",
    "check_sets", "evaluation_questions", "load_benchmark", "load_config", "load_multiple_choice",
    "load_muse", "load_muse_text", "load_strangers", "load_tofu_holdout", "load_tofu_sets",
    "open_questions", "pieces_of", "rewriting_report", "to_text_only", "training_questions",
]  # fmt: skip
