"""The figures of the series, one function each. They take tidy tables or tensors, return the Axes and change no global state.

One colour for one thing throughout (Okabe-Ito, safe for colour-blind readers): see :data:`COLOURS`. Modality is a matter of
fill: image + text is solid, text alone is hollow or dashed.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from PIL.Image import Image

COLOURS = {
    "forget": "#D55E00", "retain": "#0072B2", "test": "#E69F00", "celebrity": "#009E73", "vanilla": "#7F7F7F",
    "vision": "#CC79A7", "language": "#56B4E9",
}  # fmt: skip
MODALITY_NAMES = {"multimodal": "image + text", "text": "text alone"}
SET_NAMES = {"forget": "forget", "test": "test", "retain": "retain", "celebrity": "celebrity"}


def build_dir() -> Path:
    """Where figures and tables go: ``$MANU_BUILD`` if set, else ``build`` in the working directory; made if missing."""
    folder = Path(os.environ.get("MANU_BUILD", "build"))
    folder.mkdir(parents=True, exist_ok=True)
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
