"""Poems (notebook 11): which words are recited, and what goes with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .neurons import heat_map
from .style import panels, styled

SAID = "#4B0082"


@styled
def recited_words(words: Sequence[str], rows: Mapping[str, Sequence[bool]], *, title: str) -> Axes:
    """A text word by word, a row per model: dark where the model recites the word, in order.

    Args:
        words: of the truth.
        rows: model -> which words it recites (:func:`manu_utils.evaluation.recited`).
    """
    _, [[axes]] = panels(title, figsize=(8, 0.4 * len(rows) + 1.7))
    for place, marks in enumerate(rows.values()):
        for x, said in enumerate(marks):
            look = {
                "facecolor": SAID if said else "white",
                "edgecolor": "#999999",
                "linewidth": 0.8,
            }
            axes.add_patch(Rectangle((x - 0.42, place - 0.36), 0.84, 0.72, **look))
    axes.set(xlim=(-0.6, len(words) - 0.4), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(
        range(len(rows)), [f"{n}, {sum(marks)} of {len(words)}" for n, marks in rows.items()]
    )
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


@styled
def taken_along(table: pd.DataFrame, *, title: str, label: str) -> Axes:
    """What is left (columns) when the neurons of one thing are switched off (rows)."""
    _, [[axes]] = panels(title, figsize=(8, 0.55 * len(table) + 1.7))
    heat_map(axes, table, label)
    axes.set_yticks(axes.get_yticks(), list(table.index), rotation=0)
    axes.set(ylabel="switched off")
    return axes
