"""Forgotten or hidden (notebook 09): every method under every attack, held against a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..teaching.tables import MODALITY_NAMES
from .style import (
    COLOURS,
    SET_MARKERS,
    dashes,
    filled,
    key,
    legend_below,
    mark,
    method_style,
    modality_keys,
    name_rows,
    panels,
    panels_in_rows,
    pick,
    styled,
)

REFERENCE = "#8C8C8C"
SETS = ("forget", "retain")


@styled
def attack_table(frame: pd.DataFrame, *, title: str, most: float = 60.0) -> list[Axes]:
    """How far every method is from the reference under every attack: a panel per modality.

    Every cell prints its number with its sign, since in grey the two ends of the colours look
    alike.

    Args:
        frame: one row per ``method``, ``attack`` and ``modality``: ``value``, in points above
            (brown) or below (purple) the reference; the mean where there are several. Methods and
            attacks in the order to draw; what is missing or NaN is left empty.
        most: points at which the colour is full.
    """
    methods, attacks = (list(dict.fromkeys(frame[name])) for name in ("method", "attack"))
    size = (8, 0.25 * 2 * len(methods) + 2.3)
    figure, grid = panels(title, 2, 1, figsize=size, sharex=True)
    for axes, (modality, words) in zip(grid[:, 0], MODALITY_NAMES.items(), strict=True):
        rows = pick(frame, modality=modality)
        table = rows.pivot_table(index="method", columns="attack", values="value")
        table = table.reindex(index=methods, columns=attacks).to_numpy(float)
        axes.imshow(table, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            if not math.isnan(value):
                ink = "white" if abs(value) > 0.6 * most else "black"
                text = f"{value:+.0f}" if round(value) else "0"
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
        axes.set_yticks(range(len(methods)), methods)
        axes.set_xticks(range(len(attacks)), attacks, rotation=40, ha="left", fontsize=8)
        axes.tick_params(length=0, labelbottom=False, labeltop=axes is grid[0, 0])
        axes.set_ylabel(words)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(0.5, len(attacks) - 1), minor=True)
        axes.set_yticks(np.arange(0.5, len(methods) - 1), minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
    return list(grid[:, 0])


@styled
def relearning_curves(
    frame: pd.DataFrame, *, title: str, reference: str = "retrained", n_columns: int = 4
) -> list[Axes]:
    """What comes back while something else is taught: a panel per method.

    Dots are the forget set, squares the retain set; solid and filled is image + text, dashed and
    hollow text alone. Thin grey lines are the forget set of the reference.

    Args:
        frame: one row per ``method``, ``step``, ``set`` (``"forget"``, ``"retain"``) and
            ``modality``: ``value`` (0..1), the mean where there are several; methods in the order
            to draw.
        reference: a method of ``frame`` that gets no panel, or that is not there.
    """
    methods = [name for name in dict.fromkeys(frame["method"]) if name != reference]
    steps = sorted(set(frame["step"]))
    figure, grid = panels_in_rows(title, len(methods), n_columns, height=1.7)
    places = [math.log2(1 + step) for step in steps]
    for axes, method in zip(grid, methods, strict=True):
        for _, modality, curve in _curves(frame, reference, steps, SETS[:1]):
            axes.plot(places, curve, color=REFERENCE, linewidth=1, linestyle=dashes(modality))
        for name, modality, curve in _curves(frame, method, steps, SETS[::-1]):
            axes.plot(
                places, curve, SET_MARKERS[name], linestyle=dashes(modality), markersize=4.5,
                color=COLOURS[name], markerfacecolor=filled(modality, COLOURS[name]),
                clip_on=False, zorder=3,
            )  # fmt: skip
        axes.set(ylim=(0, 103), yticks=(0, 50, 100))
        axes.set_xticks(places, [str(step) for step in steps], fontsize=8)
        axes.set_title(method)
    figure.supylabel("exact answers in %", fontsize=10)
    keys = [
        key(f"{name}, {words}", modality, style=(COLOURS[name], SET_MARKERS[name]), line=True)
        for name in SETS
        for modality, words in MODALITY_NAMES.items()
    ]
    if reference in set(frame["method"]):
        keys.append(Line2D([], [], color=REFERENCE, linewidth=1, label=f"forget, {reference}"))
    legend_below(figure, keys, n_columns=3, label="training steps (log scale)")
    return grid


@styled
def membership_dots(
    frame: pd.DataFrame, *, title: str, names: dict[str, str] | None = None,
) -> list[Axes]:
    """Can members be told from strangers? A panel per score, a row per method, around .5.

    Right of the line the members surprise the model less than strangers do, left of it more; both
    tell. Filled marks are image + text, hollow ones text alone.

    Args:
        frame: one row per ``score``, ``method`` and ``modality``: ``value``, an AUC; the mean where
            there are several. Scores and methods in the order to draw.
        names: method -> its name in :data:`METHOD_STYLES`, where the two differ.
    """
    scores, methods = (list(dict.fromkeys(frame[name])) for name in ("score", "method"))
    size = (8, 0.27 * len(methods) + 1.7)
    figure, [grid] = panels(title, 1, len(scores), figsize=size, sharey=True)
    for axes, score in zip(grid, scores, strict=True):
        axes.axvline(0.5, color="black", linewidth=1, linestyle=":")
        for row, method in enumerate(methods):
            axes.axhline(row, color="#EEEEEE", linewidth=0.8, zorder=0)
            style = method_style((names or {}).get(method, method))
            for modality, shift in zip(MODALITY_NAMES, (-0.15, 0.15), strict=True):
                values = pick(frame, score=score, method=method, modality=modality)["value"]
                if values.notna().any():
                    mark(axes, values.mean(), row + shift, style, modality)
        axes.set(xlim=(0, 1), xticks=(0, 0.5, 1))
        axes.set_xticklabels(("0", ".5", "1"))
        axes.set_title(score)
    name_rows(grid, methods)
    legend_below(figure, modality_keys(), label="AUC against strangers")
    return list(grid)


def _curves(frame: pd.DataFrame, method: str, steps: Sequence[int], sets: Sequence[str]):
    """(set, modality, per cent by step) of one method, where it has such rows."""
    for name in sets:
        for modality in MODALITY_NAMES:
            rows = pick(frame, method=method, set=name, modality=modality)
            if len(rows):
                curve = 100 * rows.groupby("step")["value"].mean().reindex(steps)
                yield name, modality, curve.to_numpy()
