"""What all figures share: the style sheet, one colour for one thing, and the grammar of marks.

Colour says which set, tower or method. In grey, a set and a method are known by their marker,
a framed picture by the line of its frame, and the modality by fill and line: image + text is filled
and solid, text alone hollow and dashed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from ..paths import build_dir
from ..teaching.tables import MODALITY_NAMES

Style = tuple[str, object]  # a colour and a marker of matplotlib
STYLE_SHEET = Path(__file__).with_name("manu.mplstyle")

# Sets and towers: Okabe-Ito, safe for colour-blind readers. Vanilla is so light that the sets stand
# out from it in grey too.
COLOURS = {
    "forget": "#D55E00", "retain": "#0072B2", "test": "#E69F00", "celebrity": "#009E73",
    "vanilla": "#B0B0B0", "vision": "#CC79A7", "language": "#56B4E9",
}  # fmt: skip
SET_MARKERS = {"forget": "o", "retain": "s", "test": "^", "celebrity": "D"}
SET_FRAMES = {"forget": "-", "retain": (0, (2.5, 1)), "test": (0, (1, 1)), "celebrity": "-."}

# Models and methods: none of the colours above, so that none looks like a set, and no marker twice.
# `plain` is the paper's score where no modality can be contrasted.
METHOD_STYLES: dict[str, Style] = {
    "vanilla": (COLOURS["vanilla"], "s"), "retrained": ("#000000", "*"),
    "base": ("#555555", (4, 1, 0)), "live": ("#8FB339", "H"),
    "coverage": ("#4B0082", "o"), "rewrite": ("#B0006D", "D"),
    "paper": ("#7B3F00", "v"), "plain": ("#7B3F00", "v"),
    "released_score": ("#00555A", "^"), "released_as_run": ("#4FA3A5", "<"),
    "ratio": ("#6B6B00", ">"),
    "random": ("#8C8C8C", "P"), "magnitude": ("#333333", "X"),
    "ga": ("#A39B00", "p"), "gd": ("#7FA61F", "h"), "kl": ("#9B7FD1", "8"), "npo": ("#C0566E", "d"),
    "npo + kl": ("#7A2E3E", (3, 1, 0)), "simnpo + ce": ("#D48A97", (5, 1, 0)),
    "erase": ("#1B1BB3", (6, 1, 0)), "idk + ce": ("#2E8B8B", (7, 1, 0)),
    "gd + ce": ("#4C6B12", (8, 1, 0)), "rmu": ("#B59A6A", (4, 1, 45)),
    "gd + ce, lora": ("#93A85A", (8, 2, 0)), "npo + kl, lora": ("#A8808A", (3, 1, 60)),
    "undial + ce": ("#6E5A7E", (9, 1, 0)), "mmunlearner": ("#5E8C6A", (5, 1, 36)),
    "mip-editor": ("#8E9AAF", (6, 2, 0)), "erase + gd": ("#3F5BD9", (6, 1, 30)),
    "erase + rmu": ("#8A7BE0", (4, 2, 45)),
}  # fmt: skip
IMAGES_ONLY = ", images only"  # after the name of a method that was trained on image + text alone


def styled(draw):
    """A figure function that draws under the style sheet, whatever the reader's settings are."""

    @functools.wraps(draw)
    def drawn(*args, **options):
        with plt.style.context(STYLE_SHEET):
            return draw(*args, **options)

    return drawn


def panels(
    title: str | None, n_rows: int = 1, n_columns: int = 1, **options
) -> tuple[Figure, np.ndarray]:
    """A figure with its title, and its axes [n_rows, n_columns]; options as of ``plt.subplots``."""
    figure, grid = plt.subplots(n_rows, n_columns, squeeze=False, **options)
    figure.suptitle(title)
    return figure, grid


def panels_in_rows(
    title: str, n: int, n_columns: int, *, height: float, **options
) -> tuple[Figure, list[Axes]]:
    """A figure with its title and ``n`` axes, at most so many in a row of this height."""
    n_columns = min(n_columns, n)
    n_rows = -(-n // n_columns)
    size = (8, height * n_rows + 1.2)
    figure, grid = panels(title, n_rows, n_columns, figsize=size, sharey=True, **options)
    for axes in grid.flat[n:]:
        axes.axis("off")
    return figure, list(grid.flat[:n])


def name_rows(grid: Sequence[Axes], names: Sequence[str]) -> None:
    """One row for each name in panels that stand side by side, the first on top."""
    grid[0].set_yticks(range(len(names)), names)
    for axes in grid:
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)


def pick(frame: pd.DataFrame, **values) -> pd.DataFrame:
    """The rows in which each of these columns has this value."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def save_figure(figure: Figure, name: str) -> None:
    """Save a figure as ``build/figures/<name>.png``, with the resolution of the style sheet."""
    folder = build_dir() / "figures"
    folder.mkdir(exist_ok=True)
    with plt.style.context(STYLE_SHEET):
        figure.savefig(folder / f"{name}.png")


# ----------------------------------------------------------------------------- the grammar of marks


def method_style(name: str) -> Style:
    """Colour and marker of a model or method; a black cross for one of somebody else."""
    return METHOD_STYLES.get(name.removesuffix(IMAGES_ONLY), ("#000000", "x"))


def filled(modality: str, colour: str) -> str:
    """The face of a mark: its colour with the image, white without."""
    return colour if modality == "multimodal" else "white"


def dashes(modality: str) -> str:
    """The line style: solid with the image, dashed without."""
    return "-" if modality == "multimodal" else "--"


def mark(
    axes: Axes, x: float, y: float, style: Style, modality: str = "multimodal", **options
) -> None:
    """One mark, filled or hollow."""
    colour, marker = style
    look = {"markerfacecolor": filled(modality, colour), "markeredgewidth": 1.5, "zorder": 3}
    axes.plot(x, y, color=colour, marker=marker, linestyle="", clip_on=False, **look | options)


def key(
    label: str, modality: str = "multimodal", *, style: Style = ("#444444", "o"), line: bool = False
) -> Line2D:
    """An entry of a legend: a mark, on a line if wanted."""
    colour, marker = style
    look = {"color": colour, "marker": marker, "markerfacecolor": filled(modality, colour)}
    return Line2D([], [], linestyle=dashes(modality) if line else "", label=label, **look)


def modality_keys(**options) -> list[Line2D]:
    """The two entries of a legend that say which modality is which."""
    return [key(name, modality, **options) for modality, name in MODALITY_NAMES.items()]


def legend_below(
    figure: Figure, handles: list, *, n_columns: int | None = None, label: str | None = None,
) -> None:
    """A legend below all panels; ``label`` is what their x axes share."""
    columns = n_columns or len(handles)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, title=label, title_fontsize=10,
    )


def label_points(
    axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str], *,
    avoid: Sequence = (),
) -> None:
    """Write each label beside its point, where it covers no point and no earlier label if it can;
    a line that it has to cross ends at a white edge around its letters.

    Args:
        points, avoid: in data coordinates; limits and scales of the axes must be final.
    """
    axes.figure.draw_without_rendering()  # the finished layout says how far apart the points are
    fontsize, per_dot = 9, 72 / axes.figure.dpi
    places = axes.transData.transform(points) * per_dot
    inside = Bbox(axes.get_window_extent().get_points() * per_dot)
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in places]
    if len(avoid):
        lines = axes.transData.transform(avoid) * per_dot
        taken += [Bbox.from_bounds(x - 1, y - 1, 2, 2) for x, y in lines]
    around = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)]
    for point, (x, y), label in zip(points, places, labels, strict=True):
        width, height = 0.62 * fontsize * len(label), 1.15 * fontsize
        choices = []
        for distance in (8, 13, 20, 28, 38):
            for right, up in around:
                dx, dy = right * distance, up * distance
                left = x + dx - (0 if right > 0 else width if right < 0 else width / 2)
                bottom = y + dy - height / 2
                box = Bbox.from_bounds(left, bottom, width, height)
                out = (box.min < inside.min).any() or (box.max > inside.max).any()
                faults = box.count_overlaps(taken) + 3 * out
                choices.append((faults, len(choices), (dx, dy), right, box, distance))
        *_, shift, right, box, distance = min(choices, key=lambda choice: choice[:2])
        taken.append(box)
        lead = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            label, point, xytext=shift, textcoords="offset points", va="center",
            ha="left" if right > 0 else "right" if right < 0 else "center", annotation_clip=False,
            arrowprops=lead if distance > 13 else None, in_layout=False, zorder=5,
            path_effects=[withStroke(linewidth=3.5, foreground="white")],
        )  # fmt: skip
