"""Which neurons are chosen, who uses them, and what pruning them takes (notebooks 04, 07,
07b and 08)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL.Image import Image

from ..teaching.tables import MODALITY_NAMES
from .learning import shown
from .neurons import GREYS, heat_map, hexagons, tower_colour
from .style import (
    COLOURS,
    dashes,
    key,
    mark,
    method_style,
    modality_keys,
    panels,
    styled,
)


@styled
def score_plane(
    forget, retain, selections: dict[str, object], *, title: str, label: str, floor: float,
) -> list[Axes]:
    """Why these neurons: forget against retain importance, a panel per selection, chosen coloured.

    Args:
        forget, retain: one number per neuron, not negative.
        selections: name of the score -> bool per neuron.
        label: the quantity, with its unit.
        floor: smaller values are drawn at it.
    """
    forget, retain = (np.asarray(values, dtype=float) for values in (forget, retain))
    _, [grid] = panels(
        title, 1, len(selections), figsize=(8, 4.2), sharey=True, layout="compressed",
    )
    for axes, (name, selected) in zip(grid, selections.items(), strict=True):
        selected = np.asarray(selected, dtype=bool)
        hexagons(axes, retain, forget, floor=floor)
        points = (np.log10(np.maximum(values[selected], floor)) for values in (retain, forget))
        axes.plot(*points, ".", color=COLOURS["forget"], markersize=3.5)
        axes.set_title(f"{name}: {selected.sum()} chosen")
        axes.set(xlabel=f"{label}, retain set")
    grid[0].set(ylabel=f"{label}, forget set")
    return list(grid)


@styled
def where_it_cut(frame: pd.DataFrame, *, alpha: float, title: str) -> list[Axes]:
    """Which share of each layer every variant prunes; the grey band is what random choices do.

    Args:
        frame: one row per variant and layer: ``variant``, ``layer``, ``percent``, and ``low`` and
            ``high``, the band.
        alpha: percent of the whole model, drawn as a dashed line.
    """
    variants, layers = (list(dict.fromkeys(frame[column])) for column in ("variant", "layer"))
    figure, [grid] = panels(
        title, 1, len(variants), figsize=(8, 0.36 * len(layers) + 1.5), sharex=True, sharey=True,
    )
    for axes, variant in zip(grid, variants, strict=True):
        rows = frame[frame["variant"] == variant].set_index("layer").loc[layers]
        for y, (layer, row) in enumerate(rows.iterrows()):
            colour = tower_colour(layer)
            axes.hlines(y, row["low"], row["high"], color="#D4D4D4", linewidth=9, zorder=1)
            axes.plot([0, row["percent"]], [y, y], color=colour)
            axes.plot(row["percent"], y, "o", color=colour, markeredgecolor="black")
        axes.axvline(alpha, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(variant)
    grid[0].set_yticks(range(len(layers)), layers)
    grid[0].set(ylim=(len(layers) - 0.5, -0.5), xlim=(-0.5, None))
    figure.supxlabel(f"neurons pruned in % of the layer (dashed: α = {alpha:g} %)", fontsize=10)
    return list(grid)


@styled
def agreement(table: pd.DataFrame, *, chance: float, title: str) -> Axes:
    """Jaccard overlap of selections as a square of numbers, colours fixed to 0..1.

    Args:
        table: symmetric, index and columns the selections.
        chance: expected overlap of two random selections of this size, written below.
    """
    _, [[axes]] = panels(title, figsize=(6.4, 0.45 * len(table) + 1.9))
    heat_map(axes, table, "Jaccard overlap (0 to 1)")
    axes.set_yticks(axes.get_yticks(), list(table.index), rotation=0)
    axes.set_xticks(
        axes.get_xticks(), list(table.columns), rotation=20, ha="right", rotation_mode="anchor",
    )
    axes.set(xlabel=f"two random choices overlap by {chance:.2f}")
    return axes


@styled
def outcomes(frame: pd.DataFrame, *, title: str) -> Axes:
    """What each choice of neurons leaves: a mark per method and modality, left and up is better.

    Args:
        frame: one row per method and modality: ``method``, ``modality``, ``forget`` and ``retain``
            (shares of questions still answered, 0..1).
    """
    _, [[axes]] = panels(title, figsize=(6.4, 4.0))
    axes.plot([0, 100], [0, 100], color="#7F7F7F", linewidth=0.9, linestyle=":")
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="forget questions still answered, %")
    axes.set(ylabel="retain questions still answered, %")
    for row in frame.itertuples():
        place = (100 * row.forget, 100 * row.retain)
        mark(axes, *place, method_style(row.method), row.modality, markersize=9)
    methods = dict.fromkeys(frame["method"])
    handles = [key(name, style=method_style(name)) for name in methods] + modality_keys()
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


@styled
def rank_plane(one, other, names: tuple[str, str], *, alpha: float, title: str) -> Axes:
    """Do two scores agree? The percentile of every neuron under both, and what each would prune.

    Args:
        one, other: a score per neuron; of equal ones all get the mean rank.
        names: what to call them.
        alpha: percentage of neurons that is pruned.
    """
    ranks = (pd.Series(np.asarray(values)).rank().to_numpy() for values in (one, other))
    x, y = (100 * of_neuron / len(of_neuron) for of_neuron in ranks)
    figure, [[axes]] = panels(title, figsize=(5.2, 4.4))
    picture = axes.hexbin(
        x, y, gridsize=25, extent=(0, 100, 0, 100), bins="log", mincnt=1, cmap=GREYS,
    )
    both = (x > 100 - alpha) & (y > 100 - alpha)
    axes.plot(x[both], y[both], ".", color=COLOURS["forget"], markersize=3)
    for line in (axes.axvline, axes.axhline):
        line(100 - alpha, color=COLOURS["forget"], linewidth=1, linestyle="--")
    axes.set(xlim=(0, 100.5), ylim=(0, 100.5), aspect="equal")
    x_label, y_label = (f"{name}: percentile of the score" for name in names)
    axes.set(xlabel=x_label, ylabel=y_label)
    figure.colorbar(picture, label="neurons (log scale)", shrink=0.9)
    return axes


@styled
def frontier(curves: pd.DataFrame, *, title: str) -> Axes:
    """What pruning takes from either set, neuron by neuron, in the best order.

    Args:
        curves: columns ``modality``, ``forget``, ``retain``: per cent of the attribution taken.
    """
    _, [[axes]] = panels(title, figsize=(5.6, 4.4))
    axes.plot(
        [0, 100], [0, 100], color="#7F7F7F", linewidth=0.9, linestyle=":", label="random order",
    )
    for modality, name in MODALITY_NAMES.items():
        rows = curves[curves["modality"] == modality]
        look = {"color": COLOURS["forget"], "linestyle": dashes(modality)}
        axes.plot(rows["retain"], rows["forget"], label=name, **look)
    axes.set(xlim=(0, 100), ylim=(0, 101), xlabel="retain attribution taken in % (left is better)")
    axes.set(ylabel="forget attribution taken in %")
    axes.legend(loc="lower right")
    return axes


@styled
def neuron_users(table: pd.DataFrame, people: Sequence[str], *, title: str) -> Axes:
    """Who fires these neurons? A row per neuron, a column per person; dark is who fires it most.

    Args:
        table: mean |z| of each neuron (index) over the answers about each person (columns).
        people: the set of each column, a key of :data:`COLOURS`; a strip above says it.
    """
    import seaborn  # here, since it takes a second to load

    _, [[axes]] = panels(title, figsize=(8, 0.28 * len(table) + 1.5))
    relative = table.div(table.max(axis=1).clip(lower=1e-12), axis=0)
    seaborn.heatmap(
        relative, ax=axes, cmap="Greys", vmin=0, vmax=1, linewidths=0.5, linecolor="white",
        cbar_kws={"label": "mean |z|, row maximum = 1"},
    )
    for column, name in enumerate(people):
        look = {"color": COLOURS[name], "clip_on": False, "linewidth": 0}
        axes.add_patch(Rectangle((column, -0.6), 1, 0.5, **look))
        if column == 0 or people[column - 1] != name:
            axes.text(column, -0.8, f"{name} set", color=COLOURS[name], fontweight="bold")
    axes.set_yticks([row + 0.5 for row in range(len(table))], list(table.index), rotation=0)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set(xlabel=f"{len(people)} people", ylabel="")
    return axes


@styled
def neuron_reading(
    image: Image, patches, tokens: Sequence[str], values: Sequence[float], *, title: str,
) -> list[Axes]:
    """What one neuron reads: the patches of the portrait that drive it, and z at every token.

    Args:
        image: the portrait, cut into as many patches as ``patches`` has cells.
        patches: [side, side], not negative; the more, the clearer the patch is seen.
        tokens, values: the text of each token and z at it.
    """
    patches = np.asarray(patches, dtype=float)
    side = len(patches)
    _, [[picture, bars]] = panels(
        title, 1, 2, figsize=(8, max(3.4, 0.17 * len(tokens) + 0.9)), width_ratios=(1.05, 1),
    )
    size = 64 * side
    veil = np.ones((size, size, 4))
    veil[..., 3] = np.kron(0.6 * (1 - patches / max(patches.max(), 1e-12)), np.ones((64, 64)))
    picture.imshow(image.convert("RGB").resize((size, size)))
    picture.imshow(veil)
    for row, column in np.ndindex(side, side):
        text = f"{100 * patches[row, column] / max(patches.sum(), 1e-12):.0f} %"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.7}
        picture.text(64 * column + 32, 64 * row + 58, text, ha="center", bbox=box)
    if patches.max() > 0:
        row, column = np.unravel_index(patches.argmax(), patches.shape)
        look = {"fill": False, "edgecolor": "black", "linewidth": 2}
        picture.add_patch(Rectangle((64 * column, 64 * row), 62, 62, **look))
    picture.set(xticks=[], yticks=[])
    picture.spines[:].set_visible(False)
    picture.set_title("which patches drive it")
    bars.barh(
        range(len(tokens)), values, color=COLOURS["language"], edgecolor="black", linewidth=0.5,
    )
    bars.set_yticks(range(len(tokens)), [shown(token) for token in tokens])
    bars.set(ylim=(len(tokens) - 0.4, -0.6), xlabel="z (no unit)")
    bars.set_title("at which tokens it fires")
    return [picture, bars]
