"""What the explorer of notebook 04 shows: choices of neurons measured, a person's answers then.

The knobs and the pictures are :class:`manu_utils.plotting.Explorer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

from ..benchmark.records import Question
from ..models.asking import exact_answers, generate_answers
from ..models.neurons import MLP, split_selected
from ..progress import bar
from ..unlearning.pruning import prune_neurons
from .tables import layer_name

LONGEST = 20  # tokens of an answer: a broken model does not stop by itself, and the knob would wait
Selections = Mapping[tuple[str, float], Tensor]  # (variant, α) -> bool [n_neurons]


def measure_grid(
    model, processor, selections: Selections, panels: Mapping[tuple[str, str], Sequence[Question]],
    *, progress: bool = True,
) -> pd.DataFrame:
    """Prune each selection, ask the panels, undo: once, so that moving a knob only looks it up.

    Args:
        selections: (variant, α) -> bool [n_neurons], such as :meth:`Evidence.choose` returns.
        panels: (set, modality) -> questions, as :func:`exact_answers` takes them.

    Returns:
        Columns variant, alpha, set, modality, value (0 to 1) and n; first the model as it is now,
        as ``"vanilla"`` with α = 0.

    Raises:
        TypeError, ValueError: see :func:`prune_neurons` and :func:`exact_answers`.
    """
    found = [exact_answers(model, processor, panels).assign(variant="vanilla", alpha=0.0)]
    shown = bar(selections.items(), total=len(selections), desc="choices", shown=progress)
    for (variant, alpha), chosen in shown:
        with prune_neurons(model, chosen):
            now = exact_answers(model, processor, panels)
        found.append(now.assign(variant=variant, alpha=float(alpha)))
    columns = ["variant", "alpha", "set", "modality", "value", "n"]
    return pd.concat(found, ignore_index=True)[columns]


def percent_by_layer(chosen: Tensor, mlps: Sequence[MLP]) -> dict[str, float]:
    """Name of the layer -> how many of its neurons are chosen, in per cent.

    Args:
        chosen: bool [n_neurons] in the order of ``mlps``.

    Raises:
        TypeError, ValueError: see :func:`split_selected`.
    """
    parts = zip(mlps, split_selected(chosen, mlps), strict=True)
    return {
        layer_name(mlp.tower, mlp.layer): 100 * part.double().mean().item() for mlp, part in parts
    }


def answers_without(
    model, processor, chosen: Tensor | None, asked: Sequence[Question]
) -> list[str]:
    """What the model answers without these neurons (None: with all), cut at ``LONGEST`` tokens.

    The model is as it was.

    Raises:
        TypeError, ValueError: see :func:`prune_neurons` and :func:`generate_answers`.
    """
    options = {"max_new_tokens": LONGEST, "progress": False}
    if chosen is None:
        return generate_answers(model, processor, asked, **options)
    with prune_neurons(model, chosen):
        return generate_answers(model, processor, asked, **options)
