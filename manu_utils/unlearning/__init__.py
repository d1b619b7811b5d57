"""From numbers to an unlearned model: statistics, importance, scores, pruning; baselines."""

from .activations import Statistics, collect_activations
from .attribution import collect_attribution, effective_neurons, token_rarity
from .baselines import METHODS, RIVALS, unlearn_by_training, with_system_prompt
from .coverage import choose_by_coverage, select_by_coverage
from .erasing import erase, fit_layer, stranger_lessons
from .evidence import Evidence, unlearn
from .importance import importance_abs, importance_freq, importance_rms, importance_var, variance
from .losses import (
    control_vector,
    direct_preference,
    gradient_ascent,
    gradient_difference,
    kl_divergence,
    kl_minimisation,
    log_likelihoods,
    misdirection,
    negative_preference,
    self_distillation,
    simple_negative_preference,
)
from .moments import collect_moments
from .neuron_paths import neuron_paths, neuron_weights
from .objectives import REFUSALS, RETAIN_TERMS
from .other_manus import manu_of_mip_editor, manu_of_open_mmunlearning
from .privacy_neurons import erase_privacy_neurons, privacy_scores
from .pruning import Edit, prune, prune_neurons, prune_rows, pruned_neurons, select_neurons
from .released import choose_rows
from .rewriting import margin_gradient, rewrite, rewrite_neurons
from .rivals import dampen, dampening, subtract_task_vector, task_vector
from .saliency import diagonal_fisher, saliency_mask
from .scores import CONTROLS, PRUNINGS, RELEASED, VARIANTS, pool_layers, score, switched_score
from .selections import about_selection, load_selection, save_selection
from .strangers import Stranger, about, lettered, mixed_names, nearest_strangers
from .weakening import knowledge_coefficients, weaken

__all__ = [
    "CONTROLS", "METHODS", "PRUNINGS", "REFUSALS", "RELEASED", "RETAIN_TERMS", "RIVALS",
    "VARIANTS", "Edit", "Evidence", "Statistics", "Stranger", "about", "about_selection",
    "choose_by_coverage", "choose_rows", "collect_activations", "collect_attribution",
    "collect_moments", "control_vector", "dampen", "dampening", "diagonal_fisher",
    "direct_preference", "effective_neurons", "erase", "erase_privacy_neurons", "fit_layer",
    "gradient_ascent", "gradient_difference", "importance_abs", "importance_freq",
    "importance_rms", "importance_var", "kl_divergence", "kl_minimisation",
    "knowledge_coefficients", "lettered", "load_selection", "log_likelihoods",
    "manu_of_mip_editor", "manu_of_open_mmunlearning", "margin_gradient", "misdirection",
    "mixed_names", "nearest_strangers", "negative_preference", "neuron_paths", "neuron_weights",
    "pool_layers", "privacy_scores", "prune", "prune_neurons", "prune_rows", "pruned_neurons",
    "rewrite", "rewrite_neurons", "saliency_mask", "save_selection", "score",
    "select_by_coverage", "select_neurons", "self_distillation", "simple_negative_preference",
    "stranger_lessons", "subtract_task_vector", "switched_score", "task_vector", "token_rarity",
    "unlearn", "unlearn_by_training", "variance", "weaken", "with_system_prompt",
]  # fmt: skip
