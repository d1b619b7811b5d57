"""Behaviours (notebook 11): what is attacked and what is kept, and whether neurons are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .style import legend_below, modality_keys, panels, styled

KIND_COLOURS = {"told": "#D55E00", "refused": "#0072B2", "gibberish": "#444444", "wrong": "#CFCFCF"}


@styled
def picture_grid(
    pictures: Sequence[PIL.Image.Image], captions: Sequence[str], *, title: str, n_columns: int = 6
) -> list[Axes]:
    """Pictures with a line or two below each, row after row."""
    n_rows = -(-len(pictures) // n_columns)
    size = (1.45 * n_columns, 1.95 * n_rows + 0.3)
    _, grid = panels(title, n_rows, n_columns, figsize=size)
    for axes in grid.flat:
        axes.axis("off")
    for axes, picture, caption in zip(grid.flat, pictures, captions, strict=False):
        axes.imshow(picture)
        axes.set_title(caption, fontsize=8, y=-0.34)
    return list(grid.flat[: len(pictures)])


@styled
def answer_bars(frame: pd.DataFrame, *, title: str) -> Axes:
    """What became of the answers: a bar per row, in parts that add up to all of them.

    Args:
        frame: names of rows as index, columns of :data:`KIND_COLOURS`, 0 to 1.
    """
    figure, [[axes]] = panels(title, figsize=(8, 0.32 * len(frame) + 1.4))
    left = pd.Series(0.0, index=range(len(frame)))
    looks = {"told": "", "refused": "///", "gibberish": "xx", "wrong": ""}
    for kind, colour in KIND_COLOURS.items():
        values = 100 * frame[kind].reset_index(drop=True)
        axes.barh(
            range(len(frame)), values, left=left, color=colour, label=kind, height=0.72,
            hatch=looks[kind], edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        left = left + values
    axes.set(xlim=(0, 100), ylim=(len(frame) - 0.4, -0.6), xlabel="answers in %")
    axes.set_yticks(range(len(frame)), frame.index)
    axes.tick_params(left=False)
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return axes


@styled
def separation(
    curves: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]], *, title: str
) -> Axes:
    """What the retain set loses while neurons are taken in the order that is best for the forget
    set: the lower, the more apart. On the diagonal nothing tells them apart. Each curve has the
    name of its world on it.

    Args:
        curves: (world, modality) -> shares of the forget set's and of the retain set's
            attribution that are gone, both from 0 to 1.
    """
    worlds = list(dict.fromkeys(world for world, _ in curves))
    colours = dict(zip(worlds, ("#D55E00", "#0072B2", "#009E73"), strict=False))
    figure, [[axes]] = panels(title, figsize=(8, 4.4))
    axes.plot([0, 100], [0, 100], color="#999999", linewidth=1, linestyle=":")
    for (world, modality), (forget, retain) in curves.items():
        style = "-" if modality == "multimodal" else "--"
        xs, ys = ([100 * float(value) for value in values] for values in (forget, retain))
        axes.plot(xs, ys, color=colours[world], linestyle=style, linewidth=1.6)
        x = 70 + 14 * (worlds.index(world) % 2)  # neighbours' names stand at different places
        low, y, high = np.interp([x - 4, x, x + 4], xs, ys)
        axes.text(
            x, y, world, rotation=np.degrees(np.arctan2(high - low, 8)), rotation_mode="anchor",
            transform_rotates_text=True, ha="center", va="center", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.set(
        xlim=(0, 100), ylim=(0, 100), xlabel="attribution of the forget set taken, in %",
        ylabel="of the retain set lost with it, in %",
    )  # fmt: skip
    keys = [Line2D([], [], color=colour, label=world) for world, colour in colours.items()]
    lines = modality_keys(line=True)
    for line in lines:
        line.set_marker("")
    legend_below(figure, [*keys, *lines])
    return axes
