"""Text alone (notebook 10): truth ratios against those of the retrained model, and the quiz."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .style import (
    label_points,
    legend_below,
    mark,
    method_style,
    name_rows,
    panels,
    panels_in_rows,
    styled,
)

REFERENCE = "#8C8C8C"


@styled
def ratio_steps(
    ratios: dict[str, Sequence[float]],
    *,
    title: str,
    reference: str = "retrained",
    n_columns: int = 4,
) -> list[Axes]:
    """The share of truth ratios up to x, a panel per model, each beside the reference.

    Solid and dark is the model, dashed and grey the reference; the bar is the largest gap between
    the two, which the Kolmogorov-Smirnov test looks at.

    Args:
        ratios: model -> its truth ratios (above 0), in the order to draw, the reference among them.
    """
    names = [name for name in ratios if name != reference]
    figure, grid = panels_in_rows(title, len(names), n_columns, height=1.75, sharex=True)
    other = np.sort(np.log10(np.asarray(ratios[reference], float)))
    for axes, name in zip(grid, names, strict=True):
        own = np.sort(np.log10(np.asarray(ratios[name], float)))
        axes.plot(*_steps(other), color=REFERENCE, linestyle="--", linewidth=1.2)
        axes.plot(*_steps(own), color="black", linewidth=1.4)
        where, low, high = _gap(own, other)
        axes.plot([where, where], [low, high], color="black", linewidth=3, solid_capstyle="butt")
        axes.set_title(f"{name}, {high - low:.2f}")
        axes.set(ylim=(0, 1), yticks=(0, 0.5, 1))
        axes.set_yticklabels(("0", ".5", "1"))
    low, high = np.quantile(
        np.concatenate([np.log10(np.asarray(r, float)) for r in ratios.values()]), (0.005, 0.995)
    )
    grid[0].set_xlim(max(low, -3) - 0.1, min(high, 3) + 0.1)
    figure.supylabel("share up to x", fontsize=10)
    keys = [
        Line2D([], [], color="black", linewidth=1.4, label="the model, and the largest gap"),
        Line2D([], [], color=REFERENCE, linestyle="--", linewidth=1.2, label=reference),
    ]
    legend_below(figure, keys, label="log10 of the truth ratio; left of 0 the truth is likelier")
    return grid


def _steps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the curve of shares of sorted values."""
    n = len(values)
    return np.repeat(values, 2), np.concatenate([[0], np.repeat(np.arange(1, n) / n, 2), [1]])


def _gap(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Where two curves of sorted values are farthest apart, and their shares there, lower first."""
    places = np.concatenate([one, other])
    shares = [
        np.searchsorted(values, places, side="right") / len(values) for values in (one, other)
    ]
    index = int(np.abs(shares[0] - shares[1]).argmax())
    low, high = sorted(share[index] for share in shares)
    return float(places[index]), float(low), float(high)


@styled
def quality_plane(frame: pd.DataFrame, *, title: str, least: float = 1e-12) -> Axes:
    """Forget quality against model utility, a named mark per model; up and to the right is better.

    The dotted line is a p-value of .05, above which the retrained model cannot be told apart.

    Args:
        frame: columns ``forget_quality`` and ``model_utility``, the names of models as index.
        least: smaller p-values are drawn here.
    """
    figure, [[axes]] = panels(title, figsize=(8, 4.4))
    points = [
        (row["model_utility"], float(np.log10(max(row["forget_quality"], least))))
        for _, row in frame.iterrows()
    ]
    axes.axhline(np.log10(0.05), color="black", linewidth=1, linestyle=":")
    for (x, y), name in zip(points, frame.index, strict=True):
        mark(axes, x, y, method_style(name))
    low = int(np.floor(min(y for _, y in points)))
    axes.set(xlabel="model utility", ylabel="forget quality (p, log scale)", ylim=(low - 0.5, 0.6))
    axes.set_xlim(-0.02, min(1.03, 1.3 * max(x for x, _ in points)))
    ticks = list(range(0, low - 1, -max(1, -low // 5 or 1)))
    axes.set_yticks(ticks, [f"$10^{{{tick}}}$" if tick else "1" for tick in ticks])
    label_points(axes, points, list(frame.index))
    return axes


@styled
def quiz_dots(frame: pd.DataFrame, *, title: str, chance: float = 25.0) -> Axes:
    """Multiple choice in per cent, a row per model: circles what is to be unlearned, filled with
    the question and hollow without, squares its neighbour likewise.

    Args:
        frame: models as index; columns (quiz, "question" or "choices alone"), the quiz to unlearn
            first.
    """
    quizzes = list(dict.fromkeys(quiz for quiz, _ in frame.columns))
    figure, [[axes]] = panels(title, figsize=(8, 0.33 * len(frame) + 1.6))
    looks = dict(zip(quizzes, (("#D55E00", "o"), ("#0072B2", "s")), strict=True))
    axes.axvline(chance, color="black", linewidth=1, linestyle=":")
    for row, (_, values) in enumerate(frame.iterrows()):
        axes.axhline(row, color="#EEEEEE", linewidth=0.8, zorder=0)
        for place, quiz in enumerate(quizzes):
            for how, modality in (("question", "multimodal"), ("choices alone", "text")):
                mark(axes, values[quiz, how], row + 0.24 * (place - 0.5), looks[quiz], modality)
    axes.set(xlim=(0, 100), xlabel="right in %")
    name_rows([axes], frame.index)
    keys = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=f"{quiz}, {how}",
               markerfacecolor=colour if how == "question" else "white", markeredgewidth=1.5)
        for quiz, (colour, marker) in looks.items()
        for how in ("question", "choices alone")
    ]  # fmt: skip
    legend_below(figure, keys, n_columns=4)
    return axes


@styled
def seed_dots(
    frame: pd.DataFrame,
    measures: dict[str, str],
    *,
    title: str,
    reference: str = "retrained",
    each: str = "a seed",
) -> list[Axes]:
    """Several measures of every method, a panel each: a hollow dot for every seed, a bar at their
    mean. The dashed line is the mean of the reference.

    Args:
        frame: one row per ``method`` and seed, methods in the order to draw.
        measures: title of a panel -> column.
        reference: a method of ``frame``; it gets no row.
        each: what a dot is, if no seed.
    """
    names = [name for name in dict.fromkeys(frame["method"]) if name != reference]
    size = (8, 0.25 * len(names) + 1.5)
    figure, [grid] = panels(title, 1, len(measures), figsize=size, sharey=True)
    for axes, (name, column) in zip(grid, measures.items(), strict=True):
        aim = frame.loc[frame["method"] == reference, column].mean()
        axes.axvline(aim, color=REFERENCE, linewidth=1.2, linestyle="--", zorder=1)
        for row, method in enumerate(names):
            axes.axhline(row, color="#EEEEEE", linewidth=0.8, zorder=0)
            values = frame.loc[frame["method"] == method, column]
            axes.plot(values, [row] * len(values), "o", color="black", markersize=4.5,
                      markerfacecolor="white", zorder=2)  # fmt: skip
            middle = values.mean()
            axes.plot([middle, middle], [row - 0.33, row + 0.33], color="black", linewidth=2)
        axes.set_title(name)
    name_rows(grid, names)
    keys = [
        Line2D([], [], linestyle="", marker="o", color="black", markerfacecolor="white",
               markersize=4.5, label=each),
        Line2D([], [], linestyle="", marker="|", markersize=10, markeredgewidth=2, color="black",
               label="the mean"),
        Line2D([], [], color=REFERENCE, linestyle="--", linewidth=1.2, label=reference),
    ]  # fmt: skip
    legend_below(figure, keys, n_columns=3)
    return list(grid)
