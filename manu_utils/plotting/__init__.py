"""The figures of the series, one function each, by theme.

They take tidy tables or tensors, return the Axes and change no global state; :mod:`.style` holds
what they share.
"""

from .ablations import ablation_curves, ablation_rows, found_planted
from .audits import attack_table, membership_dots, relearning_curves
from .drawings import flow_drawing, llava_drawing, neuron_drawing
from .explorer import Explorer, choices_by_alpha, explored
from .learning import compare_models, learning_curves, token_strip, weight_of_ascent
from .neurons import (
    importance_curves,
    layer_map,
    locality,
    modality_plane,
    one_neuron,
    percentile_curves,
)
from .people import (
    chance_levels,
    membership,
    patch_grid,
    person_card,
    portrait_grid,
    set_key,
    sharing,
)
from .results import balance, before_after, costs, modality_balance, paths, task_grid, trade_off
from .selections import (
    agreement,
    frontier,
    neuron_reading,
    neuron_users,
    outcomes,
    rank_plane,
    score_plane,
    where_it_cut,
)
from .style import COLOURS, METHOD_STYLES, SET_MARKERS, method_style, save_figure
from .text_alone import quality_plane, quiz_dots, ratio_steps

__all__ = [
    "COLOURS", "METHOD_STYLES", "SET_MARKERS", "Explorer", "ablation_curves", "ablation_rows",
    "agreement", "attack_table", "balance", "before_after", "chance_levels", "choices_by_alpha",
    "compare_models", "costs", "explored", "flow_drawing", "found_planted", "frontier",
    "importance_curves", "layer_map", "learning_curves", "llava_drawing", "locality",
    "membership", "membership_dots", "method_style", "modality_balance", "modality_plane",
    "neuron_drawing", "neuron_reading", "neuron_users", "one_neuron", "outcomes", "patch_grid",
    "paths", "percentile_curves", "person_card", "portrait_grid", "quality_plane", "quiz_dots",
    "rank_plane", "ratio_steps", "relearning_curves", "save_figure", "score_plane", "set_key",
    "sharing", "task_grid", "token_strip", "trade_off", "weight_of_ascent", "where_it_cut",
]  # fmt: skip
