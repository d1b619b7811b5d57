"""A model, its neurons, and what it answers."""

from .asking import answer_logits, exact_answers, generate_answers, known, likeliest_options
from .encoding import batches, encode
from .loading import load_model
from .neurons import MLP, find_neurons
from .prompts import LETTER_LINE, prompt
from .saving import save_model
from .training import answer_loss, fine_tune, train_language_model

__all__ = [
    "LETTER_LINE", "MLP", "answer_logits", "answer_loss", "batches", "encode", "exact_answers",
    "find_neurons", "fine_tune", "generate_answers", "known", "likeliest_options", "load_model",
    "prompt", "save_model", "train_language_model",
]  # fmt: skip
