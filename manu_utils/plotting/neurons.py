"""Which neurons are loud, and for which modality (notebook 03)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..teaching.tables import MODALITY_NAMES
from .style import COLOURS, filled, legend_below, modality_keys, panels, pick, styled

# Hexagons: one neuron must be seen on white; under coloured points, a point on a thousand as well.
GREYS = ListedColormap([str(shade) for shade in np.linspace(0.9, 0.6, 64)])
DARK_GREYS = ListedColormap([str(shade) for shade in np.linspace(0.85, 0.1, 64)])


def tower_colour(layer: str) -> str:
    """The colour of the tower that a layer such as ``"vision 2"`` belongs to."""
    return COLOURS["vision" if layer.startswith("vision") else "language"]


def heat_map(
    axes: Axes, table: pd.DataFrame, label: str, *, low: float = 0.0, high: float = 1.0,
) -> None:
    """A table as coloured cells with their numbers; cells without one (NaN) are hatched."""
    import seaborn  # here, since it takes a second to load

    look = {"facecolor": "#EEEEEE", "edgecolor": "#999999", "hatch": "///", "linewidth": 0}
    axes.add_patch(Rectangle((0, 0), *table.shape[::-1], **look))
    seaborn.heatmap(
        table, ax=axes, cmap="viridis", vmin=low, vmax=high, annot=True, fmt=".2f", linewidths=1,
        annot_kws={"fontsize": 9}, cbar_kws={"label": label},
    )
    axes.tick_params(length=0)
    axes.set(xlabel="", ylabel="")


@styled
def layer_map(
    table: pd.DataFrame, *, title: str, label: str, limits: tuple[float, float] | None = None,
    sizes: Sequence[int] = (),
) -> Axes:
    """A heat map with one row per layer; cells are written out, empty ones (NaN) hatched in grey.

    Args:
        table: index the layers (from the first of the vision tower to the last of the language
            model), any columns.
        label: what the colour means, with its unit.
        limits: ends of the colour scale (default: 0 and the largest value).
        sizes: neurons per layer, written beside its name.
    """
    _, [[axes]] = panels(title, figsize=(8, 0.42 * len(table) + 1.5))
    low, high = limits or (0.0, float(table.max(axis=None)))
    heat_map(axes, table, label, low=low, high=high)
    names = list(table.index)
    if sizes:
        names = [f"{name} ({size})" for name, size in zip(names, sizes, strict=True)]
    axes.set_yticks([row + 0.5 for row in range(len(table))], names, rotation=0)
    axes.set_xticks(axes.get_xticks(), [str(column) for column in table.columns], rotation=0)
    axes.set(ylabel="layer (neurons)" if sizes else "layer")
    return axes


@styled
def percentile_curves(
    frame: pd.DataFrame, *, title: str, label: str, floor: float = 1e-3,
) -> list[Axes]:
    """How a quantity is spread over the neurons of each layer: the median, and bands up to the 5th
    and 95th percentile.

    Args:
        frame: one row per layer and modality: ``layer``, ``modality``, ``p5``, ``p25``, ``p50``,
            ``p75``, ``p95``.
        label: the quantity, with its unit.
        floor: the axis is logarithmic; smaller values are drawn here.

    Returns:
        One Axes per modality, with a shared y axis, each with the layers that have data.
    """
    bands = frame.set_index("layer")[["p5", "p25", "p50", "p75", "p95"]].clip(lower=floor)
    rows_of = {m: bands[(frame["modality"] == m).to_numpy()] for m in MODALITY_NAMES}
    widths = [len(rows) for rows in rows_of.values()]
    _, [grid] = panels(title, 1, 2, figsize=(8, 3.6), sharey=True, width_ratios=widths)
    for axes, (modality, rows) in zip(grid, rows_of.items(), strict=True):
        for tower in ("vision", "language"):
            x = [i for i, layer in enumerate(rows.index) if layer.startswith(tower)]
            part, colour = rows.iloc[x], COLOURS[tower]
            axes.fill_between(x, part["p5"], part["p95"], color=colour, alpha=0.25, linewidth=0)
            axes.fill_between(x, part["p25"], part["p75"], color=colour, alpha=0.45, linewidth=0)
            axes.plot(x, part["p50"], "o-", color=colour, markeredgecolor="black")
        axes.set_xticks(range(len(rows)), [layer.replace(" ", "\n") for layer in rows.index])
        axes.set(xlim=(-0.4, len(rows) - 0.6), yscale="log")
        axes.set_title(MODALITY_NAMES[modality])
    ticks = 10.0 ** np.arange(np.log10(floor), np.log10(frame["p95"].max()) + 0.1)
    grid[0].set_yticks(ticks, [f"≤ {floor:g}", *(f"{tick:g}" for tick in ticks[1:])])
    grid[0].set(ylabel=f"{label}, log scale", ylim=(0.8 * floor, None))
    return list(grid)


@styled
def one_neuron(values: pd.DataFrame, *, tau: float, title: str) -> list[Axes]:
    """The activations of one neuron: histograms of forget and retain set, a panel per modality.

    Args:
        values: one row per position: ``set`` (``"forget"``, ``"retain"``), ``modality``, ``z``.
        tau: dotted lines at ±τ, between which the axis is linear, beyond them logarithmic; the
            legend says what share lies beyond.
    """
    bound = max(values["z"].abs().max(), 2 * tau)
    tail = np.geomspace(tau, bound, 13)
    below = -tail[::-1] if values["z"].min() < -tau else [-tau]
    bins = np.concatenate([below, [-tau / 3, tau / 3], tail])
    _, [grid] = panels(title, 1, 2, figsize=(8, 3.4), sharey=True)
    for axes, (modality, name) in zip(grid, MODALITY_NAMES.items(), strict=True):
        for people, style in (("forget", "-"), ("retain", "--")):
            z = pick(values, set=people, modality=modality)["z"]
            text = f"{people}: {100 * (z.abs() > tau).mean():.1f} % beyond τ"
            axes.hist(
                z, bins=bins, histtype="step", color=COLOURS[people], linestyle=style,
                linewidth=1.8, label=text,
            )
        for x in (-tau, tau):
            axes.axvline(x, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("symlog", linthresh=tau)
        powers = [10.0**k for k in range(-3, 4) if tau < 10.0**k <= bound]
        ticks = {0: "0", -tau: "−τ", tau: "τ"} | {x: f"{x:g}" for x in powers}
        if len(below) > 1:
            ticks |= {-x: f"−{x:g}" for x in powers}
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        axes.set(xlim=(1.3 * bins[0], 1.1 * bound), xlabel="z (no unit; beyond τ on a log scale)")
        axes.set_yscale("log")
        axes.set_title(f"{name}, n = {len(values[values['modality'] == modality])}")
        axes.legend()
    grid[0].set(ylabel="positions (log scale)")
    return list(grid)


def hexagons(axes: Axes, x, y, *, floor: float, greys: Colormap = GREYS) -> PolyCollection:
    """Log-log hexbin with one range and the diagonal; values below ``floor`` are drawn at it."""
    x, y = (np.log10(np.maximum(np.asarray(values, dtype=float), floor)) for values in (x, y))
    low, high = np.log10(floor), max(x.max(), y.max()) + 0.1
    picture = axes.hexbin(
        x, y, gridsize=38, extent=(low, high, low, high), bins="log", mincnt=1, cmap=greys,
    )
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=":")
    ticks = np.arange(np.ceil(low), np.floor(high) + 1)
    labels = [f"{10**tick:g}" for tick in ticks]
    if ticks[0] == low:
        labels[0] = f"≤ {labels[0]}"
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set(xlim=(low - 0.05, high), ylim=(low - 0.05, high), aspect="equal")
    axes.spines[:].set_visible(True)
    return picture


@styled
def modality_plane(frame: pd.DataFrame, *, title: str, label: str, floor: float) -> list[Axes]:
    """Which neurons are one-sided: image + text against text alone, one panel per set.

    Args:
        frame: one row per neuron and set: ``set``, ``multimodal`` and ``text``, not negative.
        label: the quantity, with its unit.
        floor: smaller values are drawn at it.
    """
    figure, [grid] = panels(title, 1, 2, figsize=(8, 4.0), sharey=True, layout="compressed")
    for axes, people in zip(grid, ("forget", "retain"), strict=True):
        rows = frame[frame["set"] == people]
        sides = (rows["multimodal"], rows["text"])
        picture = hexagons(axes, *sides, floor=floor, greys=DARK_GREYS)
        difference = rows["multimodal"] - rows["text"]
        sides = (difference > 0, difference == 0, difference < 0)
        below, on, above = (100 * side.mean() for side in sides)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        look = {"transform": axes.transAxes, "bbox": box}
        axes.text(0.97, 0.05, f"{below:.0f} % below the diagonal", ha="right", **look)
        axes.text(0.05, 0.92, f"{above:.0f} % above the diagonal", **look)
        axes.text(0.05, 0.12, f"{on:.0f} % on it", **look)
        axes.set_title(f"{people} set", color=COLOURS[people])
        axes.set(xlabel=f"{label}, image + text")
    grid[0].set(ylabel=f"{label}, text alone")
    figure.colorbar(picture, ax=list(grid), label="neurons (log scale)", shrink=0.8)
    return list(grid)


@styled
def importance_curves(
    values: dict[str, object], towers: Sequence[str], *, title: str
) -> list[Axes]:
    """How the neurons share out the values of each importance function: a panel per function.

    Args:
        values: name of the function -> one number per neuron, not negative.
        towers: ``"vision"`` or ``"language"`` for each neuron; a line each.
    """
    towers = np.asarray(towers)
    figure, [grid] = panels(title, 1, len(values), figsize=(8, 3.2), sharey=True)
    looks = {"vision": {"linestyle": "-"}, "language": {"linestyle": "--"}}
    for axes, (name, of_neurons) in zip(grid, values.items(), strict=True):
        of_neurons = np.asarray(of_neurons, dtype=float)
        for tower, look in looks.items():
            part = of_neurons[towers == tower]
            axes.ecdf(part, color=COLOURS[tower], linewidth=2.2, **look)
        axes.set(xlim=(-0.04, max(1.04, 1.02 * np.quantile(of_neurons, 0.999))), xlabel="value")
        axes.set_title(name)
        axes.grid(axis="y")
    grid[0].set(ylabel="neurons with at most this value, %")
    grid[0].set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    names = {"vision": "vision tower", "language": "language model"}
    keys = [Line2D([], [], color=COLOURS[t], label=n, **looks[t]) for t, n in names.items()]
    legend_below(figure, keys)
    return list(grid)


@styled
def locality(frame: pd.DataFrame, *, title: str) -> Axes:
    """How many neurons share a fact: median (dot) and 10th to 90th percentile (bar) over facts.

    Args:
        frame: one row per fact, part and modality: ``part`` (such as ``"language 1"``),
            ``modality``, ``effective``.
    """
    parts = list(dict.fromkeys(frame["part"]))
    _, [[axes]] = panels(title, figsize=(8, 0.42 * len(parts) + 1.5))
    for row, part in enumerate(parts):
        colour = tower_colour(part) if " " in part else "#444444"
        for offset, modality in ((-0.15, "multimodal"), (0.15, "text")):
            values = pick(frame, part=part, modality=modality)["effective"]
            if values.empty:
                continue
            low, middle, high = values.quantile([0.1, 0.5, 0.9])
            alpha = 0.6 if modality == "multimodal" else 0.3
            axes.plot([low, high], [row + offset] * 2, color=colour, linewidth=4, alpha=alpha)
            look = {"markerfacecolor": filled(modality, colour), "markeredgecolor": "black"}
            axes.plot(middle, row + offset, "o", zorder=3, **look)
            axes.text(high * 1.05, row + offset, f"{middle:.0f}", va="center")
    axes.set(xscale="log", xlabel="effective neurons per fact (log scale)")
    axes.set(ylim=(len(parts) - 0.5, -0.6))
    axes.set_yticks(range(len(parts)), parts)
    decades = [digit * 10**power for power in range(4) for digit in (1, 2, 5)]
    ticks = [tick for tick in decades if tick < axes.get_xlim()[1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(handles=modality_keys(), loc="best")
    return axes
