"""What each part of a method does (notebooks 07, 07b): rows and curves over a sweep's seeds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from ..teaching.tables import MODALITY_NAMES
from .style import (
    COLOURS,
    SET_MARKERS,
    dashes,
    filled,
    key,
    legend_below,
    modality_keys,
    name_rows,
    panels,
    panels_in_rows,
    pick,
    styled,
)

SETS = ("forget", "retain")


def range_over_seeds(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean, smallest and largest value over the seeds, in per cent."""
    spread = frame.groupby(keys, sort=False)["value"].agg(["mean", "min", "max"])
    return (100 * spread).reset_index()


def level_before(before: pd.DataFrame, name: str, modality: str) -> float:
    """Accuracy of the model before pruning, in per cent."""
    return 100 * pick(before, set=name, modality=modality)["value"].mean()


def thinned(ticks: Sequence[float]) -> list[float]:
    """Ticks of a log axis with room for their labels: a seventh of the axis between any two."""
    kept = list(ticks[:1])
    for tick in ticks[1:]:
        if tick / kept[-1] >= (ticks[-1] / ticks[0]) ** (1 / 7):
            kept.append(tick)
    return kept


@styled
def ablation_rows(
    frame: pd.DataFrame, before: pd.DataFrame, *, title: str, measure: str = "exact answers",
) -> list[Axes]:
    """What every setting forgets and what it keeps: a row per setting, a panel per set.

    Filled marks are image + text, hollow ones text alone; a bar is the range over the seeds, a grey
    line the model before.

    Args:
        frame: one row per setting, seed, set (``"forget"``, ``"retain"``) and modality:
            ``setting``, ``set``, ``modality``, ``value`` (0..1); settings in the order to draw.
        before: the same without ``setting``, of the model before pruning.
        measure: what the values are the share of, on the axis.
    """
    settings = list(dict.fromkeys(frame["setting"]))
    spread = range_over_seeds(frame, ["setting", "set", "modality"])
    figure, [grid] = panels(title, 1, 2, figsize=(8, 0.34 * len(settings) + 1.6), sharey=True)
    for axes, name in zip(grid, SETS, strict=True):
        colour = COLOURS[name]
        for modality, offset in (("multimodal", -0.14), ("text", 0.14)):
            line = level_before(before, name, modality)
            axes.axvline(line, color="#8C8C8C", linewidth=1, linestyle=dashes(modality))
            rows = pick(spread, set=name, modality=modality).set_index("setting").loc[settings]
            y = [row + offset for row in range(len(settings))]
            axes.hlines(y, rows["min"], rows["max"], color=colour, linewidth=3, alpha=0.4)
            axes.scatter(
                rows["mean"],
                y,
                s=36,
                color=filled(modality, colour),
                edgecolor=colour,
                linewidth=1.5,
                marker=SET_MARKERS[name],
                zorder=3,
                clip_on=False,
            )
        for row in range(len(settings) - 1):
            axes.axhline(row + 0.5, color="#EEEEEE", linewidth=0.8, zorder=0)
        direction = "left is better" if name == "forget" else "right is better"
        axes.set(xlim=(-3, 103), xlabel=f"{measure} in % ({direction})")
        axes.set_title(f"{name} set", color=colour)
    name_rows(grid, settings)
    legend_below(figure, modality_keys())
    return list(grid)


@styled
def ablation_curves(
    frame: pd.DataFrame, before: pd.DataFrame, *, label: str, title: str, n_columns: int = 3,
) -> list[Axes]:
    """Forget (dots) and retain (squares) accuracy over one number, a panel for everything else.

    Solid lines are image + text, dashed ones text alone; the light band is the range over the
    seeds.

    Args:
        frame: one row per panel, x, seed, set (``"forget"``, ``"retain"``) and modality: ``panel``,
            ``x`` (positive), ``set``, ``modality``, ``value`` (0..1).
        before: one row per set and modality of the model before pruning; drawn as grey arrows at
            the right edge.
        label: the number on the x axis, with its unit.
    """
    names = list(dict.fromkeys(frame["panel"]))
    figure, grid = panels_in_rows(title, len(names), n_columns, height=1.8)
    spread = range_over_seeds(frame, ["panel", "x", "set", "modality"]).sort_values("x")
    low = 0 if spread["min"].min() < 55 else 50
    for axes, panel in zip(grid, names, strict=True):
        for name in SETS:
            colour = COLOURS[name]
            for modality in MODALITY_NAMES:
                rows = pick(spread, panel=panel, set=name, modality=modality)
                axes.fill_between(
                    rows["x"], rows["min"], rows["max"], color=colour, alpha=0.18, linewidth=0,
                )
                axes.plot(
                    rows["x"],
                    rows["mean"],
                    SET_MARKERS[name],
                    linestyle=dashes(modality),
                    color=colour,
                    markersize=5,
                    markerfacecolor=filled(modality, colour),
                )
                axes.plot(
                    1.0,
                    level_before(before, name, modality),
                    "<",
                    color="#8C8C8C",
                    markersize=5,
                    transform=axes.get_yaxis_transform(),
                    clip_on=False,
                )
        axes.set(xscale="log", ylim=(low, 103), yticks=range(low, 101, 25))
        ticks = thinned(sorted(set(spread.loc[spread["panel"] == panel, "x"])))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(panel)
    figure.supylabel("exact answers in %" + (f", from {low}" if low else ""), fontsize=10)
    keys = [
        key(f"{name}, {words}", modality, style=(COLOURS[name], SET_MARKERS[name]), line=True)
        for name in SETS
        for modality, words in MODALITY_NAMES.items()
    ]
    keys.append(key("before", style=("#8C8C8C", "<")))
    legend_below(figure, keys, n_columns=3, label=f"{label} (log scale)")
    return grid


@styled
def found_planted(frame: pd.DataFrame, *, chance: float, title: str) -> Axes:
    """How many of the planted neurons does each score find? Marks grow with the number chosen.

    Args:
        frame: one row per score, budget and draw: ``setting``, ``budget`` (neurons chosen, as a
            multiple of the planted ones) and ``value`` (recall, 0..1); scores in the order to draw.
        chance: recall of a random choice of as many neurons as were planted (0..1); a dotted line
            for each budget says how many luck finds.
    """
    settings, budgets = list(dict.fromkeys(frame["setting"])), sorted(set(frame["budget"]))
    spread = range_over_seeds(frame, ["setting", "budget"])
    figure, [[axes]] = panels(title, figsize=(8, 0.4 * len(settings) + 1.6))
    for step, budget in enumerate(budgets):
        rows = spread[spread["budget"] == budget].set_index("setting").reindex(settings)
        y = [row + 0.2 * (step - (len(budgets) - 1) / 2) for row in range(len(settings))]
        axes.hlines(y, rows["min"], rows["max"], color="#444444", linewidth=3, alpha=0.4)
        axes.scatter(
            rows["mean"],
            y,
            s=22 * (step + 1),
            color="#444444",
            edgecolor="black",
            linewidth=0.5,
            zorder=3,
            label=f"{budget:g} × as many as planted",
        )
        axes.axvline(
            100 * chance * budget, color="black", linewidth=0.6 + 0.3 * step, linestyle=":",
            zorder=1,
        )
    name_rows([axes], settings)
    axes.set(xlim=(-2, 102), xlabel="planted neurons found in % (dotted: by luck, for each number)")
    figure.legend(loc="outside lower center", ncols=len(budgets))
    return axes
