"""The figures of the series, one function each. They take tidy tables or tensors, return the Axes and change no global state.

One colour for one thing throughout (Okabe-Ito, safe for colour-blind readers): see :data:`COLOURS`. Modality is a matter of
fill: image + text is solid, text alone is hollow or dashed.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from PIL.Image import Image

    from .benchmark import Question

COLOURS = {
    "forget": "#D55E00", "retain": "#0072B2", "test": "#E69F00", "celebrity": "#009E73", "vanilla": "#7F7F7F",
    "vision": "#CC79A7", "language": "#56B4E9",
}  # fmt: skip
MODALITY_NAMES = {"multimodal": "image + text", "text": "text alone"}
SET_NAMES = {"forget": "forget", "test": "test", "retain": "retain", "celebrity": "celebrity"}


def build_dir() -> Path:
    """Where figures and tables go: ``$MANU_BUILD`` if set, else ``build`` in the working directory; made if missing.

    Raises:
        PermissionError: it cannot be made or written, as in a clone that is read-only.
    """
    folder = Path(os.environ.get("MANU_BUILD") or "build")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"{folder.absolute()} cannot be written ({error.strerror})"
        raise PermissionError(f"{reason}; set the environment variable MANU_BUILD to a folder that can.") from error
    return folder


def save_figure(figure, name: str) -> None:
    """Save a figure as ``build/figures/<name>.png`` on white, 100 dots per inch."""
    folder = build_dir() / "figures"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=100, facecolor="white")


# ------------------------------------------------------------------------------------------------ people (notebooks 00-02)


def _portrait(axes: Axes, image: Image, colour: str) -> None:
    """One picture with a coloured frame."""
    axes.imshow(image.convert("RGB"))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=3)


def portrait_grid(
    images: Sequence[Image], titles: Sequence[str], people: Sequence[str], *, n_columns: int = 4, title: str | None = None
) -> list[Axes]:
    """Portraits in rows, each framed in the colour of its set.

    Args:
        images, titles, people: one picture, one line of text and one key of :data:`COLOURS` each.
    """
    import matplotlib.pyplot as plt

    n_rows = -(-len(images) // n_columns)
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(1.55 * n_columns, 1.8 * n_rows + 0.3), squeeze=False, layout="constrained"
    )
    used = []
    for axes, image, text, group in zip(grid.flat, images, titles, people, strict=False):
        _portrait(axes, image, COLOURS[group])
        axes.set_title(text, fontsize=9)
        used.append(axes)
    for axes in grid.flat[len(used) :]:
        axes.axis("off")
    if title:
        figure.suptitle(title, fontsize=11)
    return used


def person_card(image: Image, name: str, facts: dict[str, str], people: str, *, figure=None) -> Axes:
    """Portrait, name and facts of one person, framed in the colour of the set.

    Args:
        facts: what is known, label -> words.
        people: the set, a key of :data:`COLOURS`.
        figure: a figure or subfigure to draw into; a new one if None.
    """
    import matplotlib.pyplot as plt

    if figure is None:
        figure = plt.figure(figsize=(6.4, 2.3))
    picture = figure.add_axes((0.02, 0.06, 0.34, 0.88))
    _portrait(picture, image, COLOURS[people])
    text = figure.add_axes((0.38, 0.0, 0.62, 1.0))
    text.axis("off")
    text.text(0, 0.93, name, fontsize=13, fontweight="bold", va="top")
    text.text(0.96, 0.93, f"{SET_NAMES[people]} set", fontsize=10, va="top", ha="right", color=COLOURS[people])
    lines = [f"{label}: {words}" for label, words in facts.items()]
    wrapped = [part for line in lines for part in textwrap.wrap(line, 46, subsequent_indent="   ")]
    text.text(0, 0.74, "\n".join(wrapped), fontsize=9.5, va="top", linespacing=1.45)
    return picture


def membership(members: pd.DataFrame, *, title: str) -> Axes:
    """Who is in which split: a row per split, a column per person, a filled cell where the person is to be forgotten.

    Args:
        members: bool, index the splits, columns the person IDs.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    _, axes = plt.subplots(figsize=(8, 0.5 * len(members) + 1.1), layout="constrained")
    cells = members.to_numpy(dtype=int)
    palette = ListedColormap([COLOURS["retain"], COLOURS["forget"]])
    axes.pcolormesh(cells, cmap=palette, vmin=0, vmax=1, edgecolor="white", linewidth=0.6)
    axes.invert_yaxis()
    axes.set_yticks([row + 0.5 for row in range(len(members))], list(members.index))
    step = max(1, len(members.columns) // 6)
    axes.set_xticks([column + 0.5 for column in range(0, len(members.columns), step)], list(members.columns[::step]))
    axes.set(xlabel="person (ID)")
    axes.set_title(title, fontsize=11)
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)
    return axes


def sharing(counts: pd.DataFrame, *, title: str) -> Axes:
    """How many people share each part of a name and each visible feature: one dot per value, one row per kind.

    Args:
        counts: columns ``kind`` (such as "first name"), ``value`` and ``people`` (how many people have it).
    """
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(counts["kind"]))
    _, axes = plt.subplots(figsize=(8, 0.36 * len(kinds) + 1.1), layout="constrained")
    for row, kind in enumerate(kinds):
        people = counts.loc[counts["kind"] == kind, "people"]
        axes.scatter(people, [row] * len(people), s=36, color=COLOURS["vanilla"], alpha=0.6, edgecolor="none", zorder=3)
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.text(1.04, len(kinds) - 0.7, "1 person: would identify", fontsize=9, va="center")
    axes.set(xscale="log", xlim=(0.9, None), ylim=(len(kinds) - 0.4, -0.6), xlabel="people who share the value (log scale)")
    axes.set_yticks(range(len(kinds)), kinds)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= counts["people"].max()]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", color="#DDDDDD")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    return axes


def chance_levels(frame: pd.DataFrame, *, title: str) -> Axes:
    """What a guesser scores: a dot with its 95 % interval for each task.

    Args:
        frame: one row per task: ``task``, ``n`` questions, ``chance``, ``low`` and ``high`` (all shares in 0..1).
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(6.4, 0.5 * len(frame) + 1.2), layout="constrained")
    for row, entry in enumerate(frame.itertuples()):
        axes.plot([100 * entry.low, 100 * entry.high], [row, row], color=COLOURS["vanilla"], linewidth=6, alpha=0.5)
        axes.plot(100 * entry.chance, row, "o", color="black")
        axes.text(100 * entry.high + 2, row, f"n = {entry.n}", va="center", fontsize=9)
    axes.set_yticks(range(len(frame)), list(frame["task"]))
    axes.set(xlim=(0, 100), ylim=(len(frame) - 0.5, -0.5), xlabel="accuracy of a guesser in % (dot: expected, bar: 95 %)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    return axes


# ------------------------------------------------------------------------------------------------ neurons (notebooks 03-04)


def layer_name(tower: str, layer: int) -> str:
    """How figures and tables call a layer: ``"language 2"``."""
    return f"{tower} {layer}"


def layer_map(
    table: pd.DataFrame, *, title: str, label: str, limits: tuple[float, float] | None = None, sizes: Sequence[int] = ()
) -> Axes:
    """A heat map with one row per layer; every cell is written out, empty ones (NaN) stay grey.

    Args:
        table: index the layers (from the first of the vision tower to the last of the language model), any columns.
        label: what the colour means, with its unit.
        limits: ends of the colour scale (default: 0 and the largest value).
        sizes: neurons per layer, written beside its name.
    """
    import matplotlib.pyplot as plt
    import seaborn

    figure, axes = plt.subplots(figsize=(8, 0.42 * len(table) + 1.5), layout="constrained")
    low, high = limits or (0.0, float(table.max(axis=None)))
    axes.set_facecolor("#DDDDDD")
    seaborn.heatmap(
        table, ax=axes, cmap="viridis", vmin=low, vmax=high, annot=True, fmt=".2f", linewidths=1,
        annot_kws={"fontsize": 9}, cbar_kws={"label": label},
    )  # fmt: skip
    names = [f"{name} ({size})" for name, size in zip(table.index, sizes, strict=True)] if sizes else list(table.index)
    axes.set_yticks([row + 0.5 for row in range(len(table))], names, rotation=0)
    axes.tick_params(length=0)
    axes.set_xticks(axes.get_xticks(), [str(column) for column in table.columns], rotation=0)
    axes.set(ylabel="layer (neurons)" if sizes else "layer", xlabel="")
    axes.set_title(title, fontsize=11)
    return axes


def percentile_curves(frame: pd.DataFrame, *, title: str, label: str) -> list[Axes]:
    """How a quantity is spread over the neurons of each layer: the median, and bands up to the 5th and 95th percentile.

    Args:
        frame: one row per layer and modality: ``layer``, ``modality``, ``p5``, ``p25``, ``p50``, ``p75``, ``p95``.
        label: the quantity, with its unit.

    Returns:
        One Axes per modality, with a shared y axis.
    """
    import matplotlib.pyplot as plt

    layers = list(dict.fromkeys(frame["layer"]))
    figure, grid = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    for axes, (modality, name) in zip(grid, MODALITY_NAMES.items(), strict=True):
        rows = frame[frame["modality"] == modality].set_index("layer").reindex(layers)
        for tower in ("vision", "language"):
            part = rows[[layer.startswith(tower) for layer in layers]].dropna()
            x = [layers.index(layer) for layer in part.index]
            axes.fill_between(x, part["p5"], part["p95"], color=COLOURS[tower], alpha=0.25, linewidth=0)
            axes.fill_between(x, part["p25"], part["p75"], color=COLOURS[tower], alpha=0.45, linewidth=0)
            axes.plot(x, part["p50"], "o-", color=COLOURS[tower], markeredgecolor="black", label=tower)
        axes.set_xticks(range(len(layers)), [layer.split()[-1] for layer in layers])
        axes.set(xlim=(-0.4, len(layers) - 0.6), xlabel="layer of its tower")
        axes.set_title(name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set(ylabel=label)
    grid[0].legend(fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return list(grid)


def one_neuron(values: pd.DataFrame, *, tau: float, title: str) -> list[Axes]:
    """The activations of one neuron: step histograms of the forget and the retain set, one panel per modality.

    Args:
        values: one row per position: ``set`` (``"forget"`` or ``"retain"``), ``modality`` and ``z``.
        tau: drawn as dashed lines at ±τ; the legend says what share lies beyond.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    bins = np.linspace(min(values["z"].min(), -2 * tau), max(values["z"].max(), 2 * tau), 41)
    figure, grid = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    for axes, (modality, name) in zip(grid, MODALITY_NAMES.items(), strict=True):
        for people, style in (("forget", "-"), ("retain", "--")):
            z = values.loc[(values["set"] == people) & (values["modality"] == modality), "z"]
            share = (z.abs() > tau).mean()
            axes.hist(
                z, bins=bins, histtype="step", color=COLOURS[people], linestyle=style, linewidth=1.8,
                label=f"{people}: {100 * share:.1f} % beyond τ",
            )  # fmt: skip
        for x in (-tau, tau):
            axes.axvline(x, color="black", linewidth=0.8, linestyle=":")
        axes.set(yscale="log", xlabel="z (no unit)")
        axes.set_title(f"{name}, n = {len(values[values['modality'] == modality])}", fontsize=10)
        axes.legend(fontsize=9, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set(ylabel="positions (log scale)")
    figure.suptitle(title, fontsize=11)
    return list(grid)


def _plane(axes: Axes, x, y, *, floor: float, gridsize: int = 38):
    """Log-log hexbin with a shared range and the diagonal; values below ``floor`` are drawn at it."""
    import numpy as np

    x, y = (np.log10(np.maximum(np.asarray(values, dtype=float), floor)) for values in (x, y))
    low, high = np.log10(floor), max(x.max(), y.max()) + 0.1
    picture = axes.hexbin(x, y, gridsize=gridsize, extent=(low, high, low, high), bins="log", mincnt=1, cmap="Greys")
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=":")
    ticks = np.arange(np.ceil(low), np.floor(high) + 1)
    labels = [f"{10**tick:g}" for tick in ticks]
    if ticks[0] == low:
        labels[0] = f"≤ {labels[0]}"
    axes.set_xticks(ticks, labels, fontsize=9)
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.set(xlim=(low - 0.05, high), ylim=(low - 0.05, high), aspect="equal")
    return picture


def modality_plane(frame: pd.DataFrame, *, title: str, label: str, floor: float) -> list[Axes]:
    """Which neurons are one-sided: image + text against text alone, both logarithmic, one panel per set.

    Args:
        frame: one row per neuron and set: ``set``, ``multimodal`` and ``text``, not negative.
        label: the quantity, with its unit.
        floor: smaller values are drawn at it.
    """
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, 2, figsize=(8, 4.3), sharey=True, layout="constrained")
    for axes, people in zip(grid, ("forget", "retain"), strict=True):
        rows = frame[frame["set"] == people]
        picture = _plane(axes, rows["multimodal"], rows["text"], floor=floor)
        below, above = (rows["multimodal"] > rows["text"]).mean(), (rows["multimodal"] < rows["text"]).mean()
        axes.text(0.97, 0.03, f"{100 * below:.0f} % below", transform=axes.transAxes, ha="right", fontsize=9)
        axes.text(0.03, 0.97, f"{100 * above:.0f} % above", transform=axes.transAxes, va="top", fontsize=9)
        axes.set_title(f"{people} set", color=COLOURS[people], fontsize=10)
        axes.set(xlabel=f"{label}, image + text")
    grid[0].set(ylabel=f"{label}, text alone")
    figure.colorbar(picture, ax=list(grid), label="neurons (log scale)", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    return list(grid)


def locality(frame: pd.DataFrame, *, title: str) -> Axes:
    """How many neurons share a fact: median (dot) and 10th to 90th percentile (bar) over facts, by part and modality.

    Args:
        frame: one row per fact, part and modality: ``part`` (such as ``"language 1"``), ``modality``, ``effective``.
    """
    import matplotlib.pyplot as plt

    parts = list(dict.fromkeys(frame["part"]))
    _, axes = plt.subplots(figsize=(8, 0.42 * len(parts) + 1.5), layout="constrained")
    for row, part in enumerate(parts):
        for offset, modality in ((-0.13, "multimodal"), (0.13, "text")):
            values = frame.loc[(frame["part"] == part) & (frame["modality"] == modality), "effective"]
            if values.empty:
                continue
            low, middle, high = values.quantile([0.1, 0.5, 0.9])
            solid = modality == "multimodal"
            colour = COLOURS["vision" if part.startswith("vision") else "language"] if " " in part else COLOURS["forget"]
            axes.plot([low, high], [row + offset] * 2, color=colour, linewidth=4, alpha=0.6 if solid else 0.3)
            axes.plot(
                middle, row + offset, "o", color=colour, markerfacecolor=colour if solid else "white", markeredgecolor="black",
                label=MODALITY_NAMES[modality] if row == 0 else None, zorder=3,
            )  # fmt: skip
            axes.text(high * 1.05, row + offset, f"{middle:.0f}", fontsize=9, va="center")
    axes.set(xscale="log", xlabel="effective neurons per fact (log scale)", ylim=(len(parts) - 0.5, -0.6))
    axes.set_yticks(range(len(parts)), parts)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if tick < axes.get_xlim()[1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=9, frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    return axes


def score_plane(forget, retain, selections: dict[str, object], *, title: str, label: str, floor: float) -> list[Axes]:
    """Why these neurons: forget against retain importance of every neuron, one panel per selection, the chosen ones coloured.

    Args:
        forget, retain: one number per neuron, not negative.
        selections: name of the score -> bool per neuron.
        label: the quantity, with its unit.
        floor: smaller values are drawn at it.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    forget, retain = (np.asarray(values, dtype=float) for values in (forget, retain))
    figure, grid = plt.subplots(1, len(selections), figsize=(8, 4.2), sharey=True, squeeze=False, layout="constrained")
    for axes, (name, selected) in zip(grid[0], selections.items(), strict=True):
        selected = np.asarray(selected, dtype=bool)
        _plane(axes, retain, forget, floor=floor)
        points = (np.log10(np.maximum(values[selected], floor)) for values in (retain, forget))
        axes.plot(*points, ".", color=COLOURS["forget"], markersize=3, alpha=0.5)
        axes.set_title(f"{name}: {selected.sum()} chosen", fontsize=10)
        axes.set(xlabel=f"{label}, retain set")
    grid[0, 0].set(ylabel=f"{label}, forget set")
    figure.suptitle(title, fontsize=11)
    return list(grid[0])


def where_it_cut(frame: pd.DataFrame, *, alpha: float, title: str) -> list[Axes]:
    """Which share of each layer every variant prunes; the grey band is what a random choice would do.

    Args:
        frame: one row per variant and layer: ``variant``, ``layer``, ``percent``, and ``low`` and ``high``, the band.
        alpha: percent of the whole model, drawn as a dashed line.
    """
    import matplotlib.pyplot as plt

    variants, layers = (list(dict.fromkeys(frame[column])) for column in ("variant", "layer"))
    figure, grid = plt.subplots(
        1, len(variants), figsize=(8, 0.36 * len(layers) + 1.5), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, variant in zip(grid[0], variants, strict=True):
        rows = frame[frame["variant"] == variant].set_index("layer").loc[layers]
        for y, (layer, row) in enumerate(rows.iterrows()):
            axes.plot(
                [row["low"], row["high"]], [y, y], color=COLOURS["vanilla"], alpha=0.5, linewidth=7, solid_capstyle="butt"
            )
            colour = COLOURS["vision" if layer.startswith("vision") else "language"]
            axes.plot([0, row["percent"]], [y, y], color=colour, linewidth=1.5)
            axes.plot(row["percent"], y, "o", color=colour, markeredgecolor="black")
        axes.axvline(alpha, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(variant, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_yticks(range(len(layers)), layers)
    grid[0, 0].set(ylim=(len(layers) - 0.5, -0.5), xlim=(-0.5, None))
    figure.supxlabel(f"neurons pruned in % of the layer (dashed: α = {alpha:g} %)", fontsize=10)
    figure.suptitle(title, fontsize=11)
    return list(grid[0])


def agreement(table: pd.DataFrame, *, chance: float, title: str) -> Axes:
    """Jaccard overlap of selections as a square of numbers, colours fixed to 0..1.

    Args:
        table: symmetric, index and columns the selections.
        chance: expected overlap of two random selections of this size, written into the title.
    """
    import matplotlib.pyplot as plt
    import seaborn

    _, axes = plt.subplots(figsize=(6.4, 0.45 * len(table) + 1.6), layout="constrained")
    seaborn.heatmap(
        table, ax=axes, cmap="viridis", vmin=0, vmax=1, annot=True, fmt=".2f", linewidths=1, annot_kws={"fontsize": 9},
        cbar_kws={"label": "Jaccard overlap (0 to 1)"},
    )  # fmt: skip
    axes.tick_params(length=0)
    axes.set_yticks(axes.get_yticks(), list(table.index), rotation=0)
    axes.set_xticks(axes.get_xticks(), list(table.columns), rotation=0, fontsize=9)
    axes.set(xlabel="", ylabel="")
    axes.set_title(f"{title}\n(two random choices: {chance:.2f})", fontsize=11)
    return axes


# ------------------------------------------------------------------------------------------------ results (notebook 05)


def trade_off(frame: pd.DataFrame, vanilla: pd.DataFrame, *, floor: float, title: str) -> list[Axes]:
    """What forgetting costs: forget accuracy (left is better) against retain accuracy, a line per method over α.

    Args:
        frame: one row per method, alpha and modality: ``method``, ``alpha``, ``modality``, ``forget``, ``retain`` (0..1).
        vanilla: one row per modality: ``modality``, ``forget``, ``retain`` of the model before unlearning.
        floor: forget accuracy of a model that has never met the people (0..1), a dotted line.
    """
    import matplotlib.pyplot as plt

    methods = list(dict.fromkeys(frame["method"]))
    figure, grid = plt.subplots(1, 2, figsize=(8, 4.4), sharex=True, sharey=True, layout="constrained")
    for axes, (modality, name) in zip(grid, MODALITY_NAMES.items(), strict=True):
        start = vanilla[vanilla["modality"] == modality].iloc[0]
        solid = modality == "multimodal"
        axes.axvline(100 * floor, color="black", linewidth=0.8, linestyle=":")
        for method in methods:
            rows = frame[(frame["method"] == method) & (frame["modality"] == modality)].sort_values("alpha")
            colour, marker = _METHOD_STYLE.get(method, ("#000000", "x"))
            x, y = ([100 * start[key], *(100 * rows[key])] for key in ("forget", "retain"))
            axes.plot(x, y, color=colour, linewidth=1.6, linestyle="-" if solid else "--", zorder=2)
            axes.scatter(
                x[1:], y[1:], s=[18 + 9 * alpha for alpha in rows["alpha"]], color=colour if solid else "white",
                edgecolor=colour, marker=marker, label=method, zorder=3,
            )  # fmt: skip
        axes.plot(100 * start["forget"], 100 * start["retain"], "s", color=COLOURS["vanilla"], markersize=9, zorder=4)
        axes.annotate(
            "vanilla", (100 * start["forget"], 100 * start["retain"]), xytext=(2, 7), textcoords="offset points",
            ha="right", fontsize=9,
        )  # fmt: skip
        axes.set(xlim=(-3, 104), ylim=(-3, 113), xlabel="forget accuracy in % (left is better)")
        axes.text(100 * floor + 1.5, 2, "never met them", fontsize=9, rotation=90)
        axes.set_title(name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set(ylabel="retain accuracy in % (up is better)")
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods), fontsize=9, frameon=False
    )
    figure.suptitle(title, fontsize=11)
    return list(grid)


# Ours in the colour of what is forgotten, controls grey, the others apart from each other also in greyscale and by marker.
_METHOD_STYLE = {
    "coverage": (COLOURS["forget"], "o"), "rewrite": ("#CC79A7", "s"), "ratio": ("#009E73", "D"),
    "released_score": ("#56B4E9", "^"), "released_as_run": ("#B8860B", "<"), "paper": ("#0072B2", "v"),
    "random": ("#7F7F7F", "P"), "magnitude": ("#333333", "X"),
}  # fmt: skip


def balance(frame: pd.DataFrame, *, floor: float, title: str) -> Axes:
    """Does text forget as the image does? A dumbbell per method: image + text (filled) to text alone (hollow).

    Args:
        frame: one row per method: ``method``, ``multimodal`` and ``text`` (forget accuracy, 0..1), in the order to draw.
        floor: accuracy of a model that has never met the people, a dotted line.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(8, 0.42 * len(frame) + 1.5), layout="constrained")
    for y, row in enumerate(frame.itertuples()):
        colour = COLOURS["vanilla" if row.method == "vanilla" else "forget"]
        image, text = 100 * row.multimodal, 100 * row.text
        axes.plot([image, text], [y, y], color=colour, linewidth=2.5)
        axes.plot(text, y, "o", color=colour, markerfacecolor="white", markersize=9, label="text alone" if y == 0 else None)
        axes.plot(image, y, "o", color=colour, markersize=6, label="image + text" if y == 0 else None)
        axes.text(105, y, f"{abs(image - text):.0f}", va="center", ha="right", fontsize=9)
    axes.axvline(100 * floor, color="black", linewidth=0.8, linestyle=":")
    axes.text(100 * floor + 1, -0.75, "never met them", fontsize=9)
    axes.text(105, -0.75, "gap", fontsize=9, ha="right")
    axes.set_yticks(range(len(frame)), list(frame["method"]))
    axes.set(xlim=(-2, 106), ylim=(len(frame) - 0.5, -1.0), xlabel="forget accuracy in %")
    axes.set_xticks(range(0, 101, 20))
    axes.legend(fontsize=9, frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    return axes


def task_grid(frame: pd.DataFrame, *, title: str) -> list[Axes]:
    """Which skill went: a row of panels per modality, a panel per set, vanilla (grey) and pruned (colour of the set) by task.

    Args:
        frame: one row per set, task, modality and model: ``set``, ``task``, ``modality``, ``model`` (``"vanilla"`` or another
            name), ``value`` (0..1) and ``n``; the bars get their 95 % Wilson interval.
    """
    import matplotlib.pyplot as plt

    sets, tasks = (list(dict.fromkeys(frame[column])) for column in ("set", "task"))
    models = ["vanilla", *(name for name in dict.fromkeys(frame["model"]) if name != "vanilla")]
    figure, grid = plt.subplots(2, len(sets), figsize=(8, 4.5), sharex=True, sharey=True, squeeze=False, layout="constrained")
    for line, (modality, name) in enumerate(MODALITY_NAMES.items()):
        for axes, people in zip(grid[line], sets, strict=True):
            for offset, model in zip((-0.2, 0.2), models, strict=True):
                colour = COLOURS["vanilla" if model == "vanilla" else people]
                for x, task in enumerate(tasks):
                    row = frame[
                        (frame["set"] == people) & (frame["task"] == task) & (frame["modality"] == modality)
                        & (frame["model"] == model)
                    ].iloc[0]  # fmt: skip
                    low, high = wilson(row["value"], row["n"])
                    solid = modality == "multimodal"
                    axes.bar(
                        x + offset, 100 * row["value"], width=0.36, color=colour if solid else "white", edgecolor=colour,
                        hatch=None if solid else "////",
                    )  # fmt: skip
                    axes.plot([x + offset] * 2, [100 * low, 100 * high], color="black", linewidth=1)
            counts = frame[(frame["set"] == people) & (frame["modality"] == modality) & (frame["model"] == models[1])]
            numbers = " / ".join(str(n) for n in counts.set_index("task").loc[tasks, "n"])
            axes.set_title(f"{people}\nn = {numbers}", fontsize=9)
            axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
        grid[line, 0].set(ylabel=f"{name}\naccuracy in %", ylim=(0, 105))
    figure.suptitle(title, fontsize=11)
    return list(grid.flat)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share of n questions, both ends in 0..1."""
    from scipy.stats import binomtest

    interval = binomtest(round(share * n), int(n)).proportion_ci(method="wilson")
    return interval.low, interval.high


def answers_table(questions: Sequence[Question], answers: dict[str, Sequence[str]]) -> pd.DataFrame:
    """One row per question: person, modality, question, truth, and for each model its answer with ✓ or ✗ before it.

    Args:
        answers: name of the model -> its answers, in the order of ``questions``; right means the same text as the truth.
    """
    import pandas as pd

    rows = []
    for index, question in enumerate(questions):
        row = {"person": question.person_id, "modality": MODALITY_NAMES[question.modality], "question": question.question}
        row["truth"] = question.answer
        for name, given in answers.items():
            row[name] = f"{'✓' if given[index] == question.answer else '✗'} {given[index]}"
        rows.append(row)
    return pd.DataFrame(rows)


def before_after(frame: pd.DataFrame, *, title: str, states: Sequence[str] = ("before", "after")) -> Axes:
    """Accuracy of each set and modality in two states: grey bars before, bars in the colour of the set after.

    Args:
        frame: one row per set, modality and state: ``set``, ``modality``, ``state``, ``value`` (0..1) and ``n`` questions.
    """
    import matplotlib.pyplot as plt
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    sets = list(dict.fromkeys(frame["set"]))
    cells = frame.set_index(["set", "modality", "state"])
    _, axes = plt.subplots(figsize=(1.7 + 2.2 * len(sets), 3.5), layout="constrained")
    places, labels = [], []
    for group, name in enumerate(sets):
        for offset, modality in enumerate(MODALITY_NAMES):
            left = 2.6 * group + 1.1 * offset
            for step, state in enumerate(states):
                value, n = cells.loc[(name, modality, state), ["value", "n"]]
                colour = COLOURS["vanilla"] if step == 0 else COLOURS[name]
                face = colour if modality == "multimodal" else "white"
                axes.bar(left + 0.42 * step, 100 * value, 0.38, color=face, edgecolor=colour, linewidth=2)
                axes.text(left + 0.42 * step, 100 * value + 2, f"{100 * value:.0f}", ha="center", fontsize=9)
            places.append(left + 0.21)
            labels.append(f"{MODALITY_NAMES[modality]}\n(n = {int(n)})")
        axes.text(2.6 * group + 0.76, 114, f"{SET_NAMES[name]} set", ha="center", fontweight="bold", color=COLOURS[name])
    axes.set_xticks(places, labels, fontsize=9)
    axes.set(ylim=(0, 122), ylabel="exactly right answers in %")
    axes.set_yticks(range(0, 101, 20))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(bottom=False)
    handles = [Patch(color=COLOURS["vanilla"]), tuple(Patch(color=COLOURS[name]) for name in sets)]
    axes.legend(handles, list(states), handler_map={tuple: HandlerTuple(None)}, frameon=False, fontsize=9,
                loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # fmt: skip
    axes.set_title(title, fontsize=11)
    return axes


# ------------------------------------------------------------------------------------------------ the model (notebook 02)


def patch_grid(image: Image, size: int, patch: int) -> list[Axes]:
    """A portrait as people see it, and as the vision tower gets it: ``size`` pixels wide, cut into numbered patches."""
    import matplotlib.pyplot as plt

    _, pair = plt.subplots(1, 2, figsize=(6.4, 3.3), layout="constrained")
    _portrait(pair[0], image, COLOURS["vanilla"])
    pair[0].set_title(f"portrait: {image.width} × {image.height} pixels", fontsize=10)
    small = image.convert("RGB").resize((size, size))
    side = size // patch
    pair[1].imshow(small, interpolation="nearest")
    for k in range(side + 1):
        pair[1].axhline(k * patch - 0.5, color=COLOURS["vision"], linewidth=2)
        pair[1].axvline(k * patch - 0.5, color=COLOURS["vision"], linewidth=2)
    if side <= 8:
        for token in range(side**2):
            y, x = divmod(token, side)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.8}
            pair[1].text(x * patch + 1, y * patch + 1, str(token + 1), fontsize=9, va="top", bbox=box)
    pair[1].set(xticks=[], yticks=[])
    pair[1].spines[:].set_visible(False)
    pair[1].set_title(f"{size} × {size} pixels = {side**2} image tokens", fontsize=10)
    return list(pair)


def token_strip(tokens: Sequence[str], roles: Sequence[str], *, title: str, width: int = 92) -> Axes:
    """A sequence of tokens as boxes, line by line: what the model reads, and which tokens the loss counts.

    Args:
        tokens: the text of each token; a run of image tokens may be given as one.
        roles: ``"image"``, ``"prompt"`` or ``"answer"`` for each.
        width: characters per line.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch, Patch

    faces = {"image": COLOURS["vision"], "prompt": "#EDEDED", "answer": COLOURS["language"]}
    boxes, x, line = [], 0.0, 0
    for token, role in zip(tokens, roles, strict=True):
        text = token if role == "image" else token.replace("\n", "⏎").replace(" ", "␣")
        length = len(text) + 1.2
        if x + length > width:
            x, line = 0.0, line + 1
        boxes.append((x, line, length, text, role))
        x += length + 0.6
    _, axes = plt.subplots(figsize=(8, 0.42 * (line + 1) + 0.9), layout="constrained")
    for x, line_of, length, text, role in boxes:
        axes.add_patch(FancyBboxPatch(
            (x, -line_of - 0.32), length, 0.64, boxstyle="round,pad=0,rounding_size=0.12", mutation_aspect=0.1,
            facecolor=faces[role], edgecolor="black" if role == "answer" else "none", linewidth=1.5,
        ))  # fmt: skip
        axes.text(x + length / 2, -line_of, text, ha="center", va="center", fontsize=9, family="monospace")
    axes.set(xlim=(-0.5, width + 1), ylim=(-line - 0.6, 0.6))
    axes.axis("off")
    names = {"image": "image tokens", "prompt": "prompt, not in the loss", "answer": "answer, in the loss"}
    used = [role for role in names if role in roles]
    axes.legend([Patch(facecolor=faces[role], edgecolor="black" if role == "answer" else "none") for role in used],
                [names[role] for role in used], loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False,
                fontsize=9)  # fmt: skip
    axes.set_title(title, fontsize=11)
    return axes


def learning_curves(frame: pd.DataFrame, *, title: str, labels: dict[str, str] | None = None) -> Axes:
    """Accuracy over training steps, one line per set and modality: solid for image + text, dashed for text alone.

    Args:
        frame: one row per step, set and modality: ``step``, ``set`` (key of :data:`COLOURS`), ``modality``, ``value`` (0..1).
        labels: what to call the sets, default :data:`SET_NAMES`.
    """
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    labels = labels or SET_NAMES
    _, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    styles = {"multimodal": {"linestyle": "-", "marker": "o"}}
    styles["text"] = {"linestyle": "--", "marker": "o", "markerfacecolor": "white"}
    handles = []
    for name in dict.fromkeys(frame["set"]):
        for modality, style in styles.items():
            line = frame[(frame["set"] == name) & (frame["modality"] == modality)].sort_values("step")
            axes.plot(line["step"], 100 * line["value"], color=COLOURS[name], clip_on=False, **style)
            text = f"{labels[name]}, {MODALITY_NAMES[modality]}"
            handles.append(Line2D([], [], color=COLOURS[name], label=text, **style))
    axes.set(xlabel="training steps", ylabel="exactly right answers in %", ylim=(0, 100), xlim=(0, frame["step"].max()))
    axes.grid(axis="y", color="#DDDDDD")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=handles, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(title, fontsize=11)
    return axes


def compare_models(frame: pd.DataFrame, *, title: str) -> list[Axes]:
    """Accuracy of several models by set, task and modality: a panel per set, a marker shape per model, filled with the image.

    Args:
        frame: one row per model, set, task and modality: ``model``, ``set``, ``task``, ``modality``, ``value`` (0..1), ``n``.
    """
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    sets, models = (list(dict.fromkeys(frame[column])) for column in ("set", "model"))
    rows = list(dict.fromkeys(zip(frame["task"], frame["modality"], strict=True)))
    shapes = dict(zip(models, ["s", "^", "o", "D", "v"], strict=False))
    figure, panels = plt.subplots(
        1, len(sets), figsize=(8, 0.42 * len(rows) + 1.5), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, name in zip(panels[0], sets, strict=True):
        part = frame[frame["set"] == name].set_index(["model", "task", "modality"])
        for y, (task, modality) in enumerate(rows):
            axes.axhline(y, color="#EEEEEE", zorder=0)
            if task == "classification":
                axes.plot([25, 25], [y - 0.4, y + 0.4], color="black", linestyle=":", linewidth=1)
            for model in models:
                colour = COLOURS["vanilla"] if model == models[0] else COLOURS[name]
                face = colour if modality == "multimodal" else "white"
                axes.plot(100 * part.loc[(model, task, modality), "value"], y, shapes[model], markersize=8, color=colour,
                          markerfacecolor=face, markeredgewidth=1.5, clip_on=False)  # fmt: skip
        axes.set_title(f"{SET_NAMES[name]} set (n = {part['n'].min()}–{part['n'].max()})", fontsize=10)
        axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy in %")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_yticks(range(len(rows)), [f"{task}, {MODALITY_NAMES[modality]}" for task, modality in rows])
    plain = {"linestyle": "", "color": "#444444", "markersize": 8}
    handles = [Line2D([], [], marker=shapes[model], label=model, **plain) for model in models]
    handles.append(Line2D([], [], color="black", linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return list(panels[0])


def frontier(curves: pd.DataFrame, *, title: str) -> Axes:
    """What pruning takes from either set, neuron by neuron, in the best order; the diagonal is a random order.

    Args:
        curves: columns ``modality``, ``forget``, ``retain``: per cent of the attribution taken so far.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
    axes.plot([0, 100], [0, 100], color="#7F7F7F", linewidth=0.9, linestyle=":", label="random order")
    for modality, name in MODALITY_NAMES.items():
        rows = curves[curves["modality"] == modality]
        style = "-" if modality == "multimodal" else "--"
        axes.plot(rows["retain"], rows["forget"], color=COLOURS["forget"], linewidth=1.8, linestyle=style, label=name)
    axes.set(
        xlim=(0, 100), ylim=(0, 101), xlabel="retain attribution taken in % (left is better)",
        ylabel="forget attribution taken in %",
    )  # fmt: skip
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


# ------------------------------------------------------------------------------------------------ baselines (notebook 06)

# The baselines beside the methods above: colours come back, markers do not. Trained on images alone: dotted and hollow.
_PATH_STYLE = _METHOD_STYLE | {
    "ga": ("#E69F00", "<"), "gd": ("#0072B2", ">"), "kl": ("#009E73", "p"), "npo": ("#56B4E9", "h"),
    "plain": _METHOD_STYLE["paper"],
}  # fmt: skip


def weight_of_ascent(frame: pd.DataFrame, *, title: str) -> Axes:
    """How hard each loss pushes an answer down, by how far it has already been pushed.

    Args:
        frame: one row per point: ``loss`` (its name), ``ratio`` (log π/π_ref of the answer), ``weight`` (of its gradient).
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    names = list(dict.fromkeys(frame["loss"]))
    shades = ["#000000", "#882D00", COLOURS["forget"], "#F0A070", "#F5C9B0"]
    for name, colour, style in zip(names, shades, ["--", "-", "-", "-", "-"], strict=False):
        line = frame[frame["loss"] == name]
        axes.plot(line["ratio"], line["weight"], style, color=colour, linewidth=2)
        end = line.loc[line["ratio"].idxmax()]
        axes.text(end["ratio"] + 0.2, end["weight"], name, va="center", fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.text(-0.2, 1.9, "start: as likely as before", fontsize=9, ha="right")
    low, high = frame["ratio"].min(), frame["ratio"].max()
    axes.set(xlim=(low, high + 0.22 * (high - low)), ylim=(-0.05, 2.1), ylabel="weight of its gradient")
    axes.set(xlabel="log π / π_ref of the answer (left: forgotten)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    return axes


def paths(frame: pd.DataFrame, vanilla: pd.DataFrame, target: pd.DataFrame, *, title: str) -> list[Axes]:
    """What forgetting costs: forget accuracy (left is better) against retain accuracy, a line per method over its strength.

    Args:
        frame: one row per method, what it was given, strength and modality (one or both): ``method``, ``given`` (``"both"`` or
            ``"multimodal"``), ``strength``, ``modality``, ``forget``, ``retain`` (0..1) and ``chosen`` (drawn large).
        vanilla, target: one row per modality: ``modality``, ``forget``, ``retain`` of the model before unlearning and of the
            one to be reached (a star).
    """
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    modalities = [modality for modality in MODALITY_NAMES if modality in set(frame["modality"])]
    size, n = (2 + 3 * len(modalities), 4.5), len(modalities)
    figure, [grid] = plt.subplots(1, n, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    kinds = list(dict.fromkeys(zip(frame["method"], frame["given"], strict=True)))
    for axes, modality in zip(grid, modalities, strict=True):
        start, end = (points[points["modality"] == modality].iloc[0] for points in (vanilla, target))
        axes.axvline(100 * end["forget"], color="black", linewidth=0.8, linestyle=":")
        for method, given in kinds:
            rows = frame[(frame["method"] == method) & (frame["given"] == given) & (frame["modality"] == modality)]
            rows = rows.sort_values("strength")
            colour, marker = _PATH_STYLE[method]
            both = given == "both"
            x, y = ([100 * start[key], *(100 * rows[key])] for key in ("forget", "retain"))
            axes.plot(x, y, "-" if both else ":", color=colour, linewidth=1.6, zorder=2)
            axes.scatter(
                x[1:], y[1:], s=[80 if chosen else 22 for chosen in rows["chosen"]], color=colour if both else "white",
                edgecolor=colour, marker=marker, zorder=3,
            )  # fmt: skip
        axes.plot(100 * start["forget"], 100 * start["retain"], "s", color=COLOURS["vanilla"], markersize=10, zorder=4)
        axes.plot(100 * end["forget"], 100 * end["retain"], "*", color="black", markersize=15, zorder=4)
        axes.set(xlim=(-3, 104), ylim=(-3, 106), xlabel="forget accuracy in % (left is better)")
        axes.set_title(MODALITY_NAMES[modality], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set(ylabel="retain accuracy in % (up is better)")
    handles = [Line2D([], [], marker="s", linestyle="", color=COLOURS["vanilla"], label="vanilla"),
               Line2D([], [], marker="*", linestyle="", color="black", markersize=11, label="target")]  # fmt: skip
    for method, given in kinds:
        colour, marker = _PATH_STYLE[method]
        both = given == "both"
        handles.append(Line2D(
            [], [], color=colour, marker=marker, linestyle="-" if both else ":", markerfacecolor=colour if both else "white",
            label=method if both else f"{method}, images only",
        ))  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return list(grid)


def modality_balance(frame: pd.DataFrame, target: pd.Series, *, title: str) -> Axes:
    """Forget accuracy with the image against that with the name alone; the distance from the diagonal is the imbalance.

    Args:
        frame: one row per method and what it was given: ``method``, ``given``, ``multimodal``, ``text`` (0..1); the row
            ``vanilla`` is drawn in grey.
        target: ``multimodal`` and ``text`` of the model to be reached.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(7.4, 4.5), layout="constrained")
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle=":", zorder=1)
    for row in frame.itertuples():
        colour, marker = _PATH_STYLE.get(row.method, (COLOURS["vanilla"], "s"))
        both = row.given != "multimodal"
        axes.scatter(
            100 * row.multimodal, 100 * row.text, s=80, color=colour if both else "white", edgecolor=colour, linewidth=1.8,
            marker=marker, zorder=3, clip_on=False, label=row.method if both else f"{row.method}, images only",
        )  # fmt: skip
    axes.plot(100 * target["multimodal"], 100 * target["text"], "*", color="black", markersize=15, zorder=4, label="target")
    axes.text(62, 59, "balance", rotation=45, ha="center", va="top", fontsize=9, rotation_mode="anchor", color="#666666")
    axes.text(3, 97, "the face is forgotten,\nthe name is not", fontsize=9, va="top", zorder=0, color="#666666")
    axes.text(97, 3, "the name is forgotten,\nthe face is not", fontsize=9, ha="right", zorder=0, color="#666666")
    axes.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal", xlabel="forget accuracy, image + text, in %")
    axes.set(ylabel="forget accuracy, text alone, in %")
    axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    return axes


def costs(frame: pd.DataFrame, quantities: dict[str, str], *, title: str) -> list[Axes]:
    """What each method takes: a panel per quantity with a logarithmic axis, a dot per method with its number.

    Args:
        frame: one row per method: ``method`` and the quantities; 0 is drawn at the left edge.
        quantities: column -> label with its unit.
    """
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, len(quantities), figsize=(8, 0.22 * len(frame) + 1.3), sharey=True, layout="constrained")
    for axes, (column, label) in zip(grid, quantities.items(), strict=True):
        positive = frame.loc[frame[column] > 0, column]
        left = positive.min() / 3
        for y, (method, value) in enumerate(zip(frame["method"], frame[column], strict=True)):
            ours = method.startswith("coverage")
            x = max(value, left)
            axes.plot([left, x], [y, y], color="#CCCCCC", linewidth=1.5, zorder=1)
            axes.plot(x, y, "o", color=COLOURS["forget" if ours else "vanilla"], markeredgecolor="black", zorder=2)
            text = f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"
            if value >= 1e6:
                text = f"{value / 1e6:.1f} M"
            axes.text(x * 1.35, y, text, fontsize=9, va="center")
        axes.set(xscale="log", xlim=(left, 12 * positive.max()), ylim=(len(frame) - 0.5, -0.5))
        axes.set_xlabel(label, fontsize=9)
        axes.minorticks_off()
        axes.set_xticks([])
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_yticks(range(len(frame)), list(frame["method"]))
    figure.suptitle(title, fontsize=11)
    return list(grid)


# ------------------------------------------------------------------------------------------------ ablations (notebook 07)


def _range_over_seeds(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean, smallest and largest value over the seeds, in per cent."""
    return (100 * frame.groupby(keys, sort=False)["value"].agg(["mean", "min", "max"])).reset_index()


def ablation_rows(frame: pd.DataFrame, before: pd.DataFrame, *, title: str) -> list[Axes]:
    """What every setting forgets and what it keeps: a row per setting, a panel per set.

    Filled marks are image + text, hollow ones text alone; a bar is the range over the seeds, a grey line the model before.

    Args:
        frame: one row per setting, seed, set (``"forget"``, ``"retain"``) and modality: ``setting``, ``set``, ``modality``,
            ``value`` (0..1); settings in the order to draw.
        before: the same without ``setting``, of the model before pruning.
    """
    import matplotlib.pyplot as plt

    settings = list(dict.fromkeys(frame["setting"]))
    spread = _range_over_seeds(frame, ["setting", "set", "modality"])
    figure, grid = plt.subplots(1, 2, figsize=(8, 0.34 * len(settings) + 1.6), sharey=True, layout="constrained")
    for axes, name in zip(grid, ("forget", "retain"), strict=True):
        for modality, offset in (("multimodal", -0.14), ("text", 0.14)):
            solid = modality == "multimodal"
            line = 100 * before.loc[(before["set"] == name) & (before["modality"] == modality), "value"].mean()
            axes.axvline(line, color=COLOURS["vanilla"], linewidth=1, linestyle="-" if solid else "--")
            rows = spread[(spread["set"] == name) & (spread["modality"] == modality)].set_index("setting").loc[settings]
            y = [row + offset for row in range(len(settings))]
            axes.hlines(y, rows["min"], rows["max"], color=COLOURS[name], linewidth=3, alpha=0.4)
            axes.scatter(
                rows["mean"], y, s=36, color=COLOURS[name] if solid else "white", edgecolor=COLOURS[name], linewidth=1.5,
                label=MODALITY_NAMES[modality], zorder=3, clip_on=False,
            )  # fmt: skip
        for row in range(len(settings) - 1):
            axes.axhline(row + 0.5, color="#EEEEEE", linewidth=0.8, zorder=0)
        direction = "left is better" if name == "forget" else "right is better"
        axes.set(xlim=(-3, 103), ylim=(len(settings) - 0.4, -0.6), xlabel=f"exact answers in % ({direction})")
        axes.set_title(f"{SET_NAMES[name]} set", color=COLOURS[name], fontsize=10)
        axes.tick_params(left=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
    grid[0].set_yticks(range(len(settings)), settings, fontsize=9)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return list(grid)


def ablation_curves(frame: pd.DataFrame, before: pd.DataFrame, *, label: str, title: str, n_columns: int = 3) -> list[Axes]:
    """Forget (vermilion) and retain (blue) accuracy over one number on a log axis, a panel for everything else.

    Solid lines are image + text, dashed ones text alone; the light band is the range over the seeds.

    Args:
        frame: one row per panel, x, seed, set (``"forget"``, ``"retain"``) and modality: ``panel``, ``x`` (positive), ``set``,
            ``modality``, ``value`` (0..1).
        before: one row per set and modality of the model before pruning; drawn as grey arrows at the right edge.
        label: the number on the x axis, with its unit.
    """
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    panels = list(dict.fromkeys(frame["panel"]))
    n_columns = min(n_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(8, 1.7 * n_rows + 1.2), sharey=True, squeeze=False, layout="constrained"
    )
    spread = _range_over_seeds(frame, ["panel", "x", "set", "modality"]).sort_values("x")
    for axes, panel in zip(grid.flat, panels, strict=False):
        for name in ("forget", "retain"):
            for modality in MODALITY_NAMES:
                solid = modality == "multimodal"
                rows = spread[(spread["panel"] == panel) & (spread["set"] == name) & (spread["modality"] == modality)]
                axes.fill_between(rows["x"], rows["min"], rows["max"], color=COLOURS[name], alpha=0.18, linewidth=0)
                axes.plot(
                    rows["x"], rows["mean"], "o", linestyle="-" if solid else "--", color=COLOURS[name], markersize=4,
                    markerfacecolor=COLOURS[name] if solid else "white",
                )  # fmt: skip
                level = 100 * before.loc[(before["set"] == name) & (before["modality"] == modality), "value"].mean()
                axes.plot(1.0, level, "<", color=COLOURS["vanilla"], markersize=5, transform=axes.get_yaxis_transform(),
                          clip_on=False)  # fmt: skip
        axes.set(xscale="log", ylim=(0, 103), yticks=range(0, 101, 25))
        ticks = _thinned(sorted(set(spread.loc[spread["panel"] == panel, "x"])))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=9)
        axes.minorticks_off()
        axes.set_title(panel, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes in grid[-1]:
        axes.set(xlabel=f"{label} (log scale)")
    handles = [
        Line2D([], [], color=COLOURS[name], linestyle=style, marker="o", markersize=4, markerfacecolor=face or COLOURS[name],
               label=f"{name}, {MODALITY_NAMES[modality]}")
        for name in ("forget", "retain")
        for modality, style, face in (("multimodal", "-", None), ("text", "--", "white"))
    ]  # fmt: skip
    handles.append(Line2D([], [], color=COLOURS["vanilla"], linestyle="", marker="<", label="before"))
    for row in grid:
        row[0].set(ylabel="exact answers in %")
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return list(grid.flat[: len(panels)])


def _thinned(ticks: Sequence[float]) -> list[float]:
    """Ticks of a log axis that leave room for their labels: none closer than a seventh of the axis to the one before."""
    kept = list(ticks[:1])
    for tick in ticks[1:]:
        if tick / kept[-1] >= (ticks[-1] / ticks[0]) ** (1 / 7):
            kept.append(tick)
    return kept


def rank_plane(one, other, names: tuple[str, str], *, alpha: float, title: str) -> Axes:
    """Do two scores agree? The percentile of every neuron under both; beyond the lines are the α % that each would prune.

    Args:
        one, other: a score per neuron; of equal ones all get the mean rank.
        names: what to call them.
        alpha: percentage of neurons that is pruned.
    """
    import matplotlib.pyplot as plt
    from scipy.stats import rankdata

    x, y = (100 * rankdata(values) / len(values) for values in (one, other))
    figure, axes = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
    picture = axes.hexbin(x, y, gridsize=25, extent=(0, 100, 0, 100), bins="log", mincnt=1, cmap="Greys")
    both = (x > 100 - alpha) & (y > 100 - alpha)
    axes.plot(x[both], y[both], ".", color=COLOURS["forget"], markersize=5)
    for line in (axes.axvline, axes.axhline):
        line(100 - alpha, color=COLOURS["forget"], linewidth=1, linestyle="--")
    axes.set(xlim=(0, 100.5), ylim=(0, 100.5), aspect="equal")
    axes.set(xlabel=f"{names[0]}: percentile of the score", ylabel=f"{names[1]}: percentile of the score")
    figure.colorbar(picture, label="neurons (log scale)", shrink=0.9)
    axes.set_title(title, fontsize=11)
    return axes


def neuron_users(table: pd.DataFrame, people: Sequence[str], *, title: str) -> Axes:
    """Who fires these neurons? A row per neuron, a column per person; dark is the person who fires it most.

    Args:
        table: mean |z| of each neuron (index) over the answers about each person (columns).
        people: the set of each column, a key of :data:`COLOURS`; drawn as a strip above it.
    """
    import matplotlib.pyplot as plt
    import seaborn
    from matplotlib.patches import Patch

    figure, axes = plt.subplots(figsize=(8, 0.28 * len(table) + 1.7), layout="constrained")
    relative = table.div(table.max(axis=1).clip(lower=1e-12), axis=0)
    seaborn.heatmap(
        relative, ax=axes, cmap="Greys", vmin=0, vmax=1, linewidths=0.5, linecolor="white",
        cbar_kws={"label": "mean |z|, row maximum = 1"},
    )  # fmt: skip
    for column, name in enumerate(people):
        axes.add_patch(plt.Rectangle((column, -0.6), 1, 0.5, color=COLOURS[name], clip_on=False, linewidth=0))
    axes.set_yticks([row + 0.5 for row in range(len(table))], list(table.index), rotation=0, fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set(xlabel=f"{len(people)} people", ylabel="")
    axes.set_title(title, fontsize=11, pad=22)
    handles = [Patch(color=COLOURS[name], label=f"{name} set") for name in dict.fromkeys(people)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return axes


def neuron_reading(image: Image, patches, tokens: Sequence[str], values: Sequence[float], *, title: str) -> list[Axes]:
    """What one neuron reads: the patches of the portrait that drive it, and z at every token.

    Args:
        image: the portrait, cut into as many patches as ``patches`` has cells.
        patches: [side, side], not negative; the more, the clearer the patch is seen.
        tokens, values: the text of each token and z at it.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    patches = np.asarray(patches, dtype=float)
    side = len(patches)
    figure, pair = plt.subplots(
        1, 2, figsize=(8, max(3.2, 0.17 * len(tokens) + 0.9)), width_ratios=(1.05, 1), layout="constrained"
    )
    size = 64 * side
    veil = np.ones((size, size, 4))
    relative = patches / max(patches.max(), 1e-12)
    veil[..., 3] = np.kron(0.85 * (1 - relative), np.ones((64, 64)))
    pair[0].imshow(image.convert("RGB").resize((size, size)))
    pair[0].imshow(veil)
    for row in range(side):
        for column in range(side):
            text = f"{100 * patches[row, column] / max(patches.sum(), 1e-12):.0f} %"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.7}
            pair[0].text(64 * column + 32, 64 * row + 54, text, ha="center", fontsize=9, bbox=box)
    pair[0].set(xticks=[], yticks=[])
    pair[0].spines[:].set_visible(False)
    pair[0].set_title("which patches drive it", fontsize=10)
    pair[1].barh(range(len(tokens)), values, color=COLOURS["language"], edgecolor="black", linewidth=0.5)
    pair[1].set_yticks(range(len(tokens)), [token.replace("\n", "⏎").replace(" ", "␣") for token in tokens], fontsize=9)
    pair[1].set(ylim=(len(tokens) - 0.4, -0.6), xlabel="z (no unit)")
    pair[1].set_title("at which tokens it fires", fontsize=10)
    pair[1].spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return list(pair)


def found_planted(frame: pd.DataFrame, *, chance: float, title: str) -> Axes:
    """How many of the planted neurons does each score find? A row per score; marks grow with the number of neurons chosen.

    Args:
        frame: one row per score, budget and draw: ``setting``, ``budget`` (neurons chosen, as a multiple of the planted ones)
            and ``value`` (recall, 0..1); scores in the order to draw.
        chance: recall of a random choice of as many neurons as were planted (0..1), a dotted line.
    """
    import matplotlib.pyplot as plt

    settings, budgets = list(dict.fromkeys(frame["setting"])), sorted(set(frame["budget"]))
    spread = _range_over_seeds(frame, ["setting", "budget"])
    figure, axes = plt.subplots(figsize=(8, 0.38 * len(settings) + 1.6), layout="constrained")
    for step, budget in enumerate(budgets):
        rows = spread[spread["budget"] == budget].set_index("setting").reindex(settings)
        y = [row + 0.2 * (step - (len(budgets) - 1) / 2) for row in range(len(settings))]
        axes.hlines(y, rows["min"], rows["max"], color=COLOURS["forget"], linewidth=3, alpha=0.4)
        axes.scatter(
            rows["mean"], y, s=22 * (step + 1), color=COLOURS["forget"], edgecolor="black", linewidth=0.5, zorder=3,
            label=f"{budget:g} × as many as planted",
        )  # fmt: skip
    axes.axvline(100 * chance, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(settings)), settings, fontsize=9)
    axes.set(xlim=(-2, 102), ylim=(len(settings) - 0.4, -0.6), xlabel="planted neurons found in % (dotted: by luck)")
    figure.legend(loc="outside lower center", ncols=len(budgets), frameon=False, fontsize=9)
    axes.tick_params(left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    return axes
