"""The figures of the series, one function each, by theme.

They take tidy tables or tensors, return the Axes and change no global state; :mod:`.style` holds
what they share.
"""

from ..paths import build_dir
from ..teaching.tables import MODALITY_NAMES, answers_table, layer_name, wilson
from .ablations import ablation_curves, ablation_rows, found_planted
from .audits import attack_table, membership_dots, relearning_curves
from .behaviours import answer_bars, picture_grid, separation
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
from .poems import recited_words, taken_along
from .results import (
    balance,
    before_after,
    bridge_rows,
    costs,
    modality_balance,
    paired_differences,
    paths,
    task_grid,
    trade_off,
)
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
from .text_alone import quality_plane, quiz_dots, ratio_steps, seed_dots

__all__ = [
    # shared
    "COLOURS", "METHOD_STYLES", "MODALITY_NAMES", "SET_MARKERS", "method_style", "save_figure",
    # people
    "chance_levels", "membership", "patch_grid", "person_card", "portrait_grid", "set_key",
    "sharing",
    # drawings
    "flow_drawing", "llava_drawing", "neuron_drawing",
    # learning
    "compare_models", "learning_curves", "token_strip", "weight_of_ascent",
    # neurons
    "importance_curves", "layer_map", "locality", "modality_plane", "one_neuron",
    "percentile_curves",
    # selections
    "agreement", "frontier", "neuron_reading", "neuron_users", "outcomes", "rank_plane",
    "score_plane", "where_it_cut",
    # results
    "balance", "before_after", "bridge_rows", "costs", "modality_balance", "paired_differences",
    "paths", "task_grid", "trade_off",
    # ablations
    "ablation_curves", "ablation_rows", "found_planted",
    # audits
    "attack_table", "membership_dots", "relearning_curves",
    # explorer
    "Explorer", "choices_by_alpha", "explored",
    # text alone
    "quality_plane", "quiz_dots", "ratio_steps", "seed_dots",
    # poems
    "recited_words", "taken_along",
    # behaviours
    "answer_bars", "picture_grid", "separation",
    # no figures: from manu_utils.paths and manu_utils.tables
    "answers_table", "build_dir", "layer_name", "wilson",
]  # fmt: skip
