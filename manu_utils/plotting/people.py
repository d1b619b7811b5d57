"""Who is in the benchmark and what a guesser knows (notebooks 00 and 01), and a portrait as the
model gets it (02)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch, Rectangle
from PIL.Image import Image

from ..teaching.tables import MODALITY_NAMES
from .style import (
    COLOURS,
    SET_FRAMES,
    SET_MARKERS,
    dashes,
    legend_below,
    mark,
    panels,
    styled,
)


def portrait(axes: Axes, image: Image, people: str) -> None:
    """One picture, framed in the colour and the line of its set."""
    axes.imshow(image.convert("RGB"))
    axes.set(xticks=[], yticks=[])
    frame = {"color": COLOURS[people], "linestyle": SET_FRAMES.get(people, "-"), "linewidth": 3}
    axes.spines[:].set(visible=True, capstyle="butt", **frame)


@styled
def portrait_grid(
    images: Sequence[Image], titles: Sequence[str], people: Sequence[str], *, n_columns: int = 4,
    title: str | None = None,
) -> list[Axes]:
    """Portraits in rows, each framed in the colour of its set.

    Args:
        images, titles, people: one picture, one line of text and one key of :data:`COLOURS` each.
    """
    n_rows, used = -(-len(images) // n_columns), len(images)
    figure, grid = panels(title, n_rows, n_columns, figsize=(1.55 * n_columns, 1.8 * n_rows + 0.5))
    for axes, image, text, group in zip(grid.flat, images, titles, people, strict=False):
        portrait(axes, image, group)
        axes.set_title(text, fontsize=9)
    for axes in grid.flat[used:]:
        axes.axis("off")
    frames = [
        Patch(
            facecolor="none", edgecolor=COLOURS[name], linestyle=SET_FRAMES[name], linewidth=3,
            label=f"{name} set",
        ) for name in dict.fromkeys(people)
    ]
    legend_below(figure, frames)
    return list(grid.flat[:used])


@styled
def set_key(*, title: str) -> Axes:
    """How each set is drawn in all figures: colour, marker in both modalities, frame."""
    _, [[axes]] = panels(title, figsize=(6.4, 2.2))
    for row, (name, line) in enumerate(SET_FRAMES.items()):
        colour = COLOURS[name]
        axes.text(0, row, f"{name} set", va="center", fontsize=10)
        axes.add_patch(Rectangle((2.2, row - 0.3), 1, 0.6, color=colour, linewidth=0))
        for x, modality in ((4.6, "multimodal"), (6.6, "text")):
            axes.plot([x - 0.6, x + 0.6], [row, row], color=colour, linestyle=dashes(modality))
            mark(axes, x, row, (colour, SET_MARKERS[name]), modality, markersize=8)
        look = {"fill": False, "edgecolor": colour, "linestyle": line, "linewidth": 3}
        axes.add_patch(Rectangle((8.2, row - 0.28), 1.4, 0.56, **look))
    heads = {
        2.7: "colour",
        4.6: MODALITY_NAMES["multimodal"],
        6.6: MODALITY_NAMES["text"],
        8.9: "frame",
    }
    for x, head in heads.items():
        axes.text(x, -0.9, head, ha="center", va="center", fontsize=10)
    axes.set(xlim=(0, 10), ylim=(len(SET_FRAMES) - 0.5, -1.3))
    axes.axis("off")
    return axes


@styled
def person_card(image: Image, name: str, facts: dict[str, str], people: str) -> Axes:
    """Portrait, name and facts of one person, framed in the colour of the set.

    Args:
        facts: what is known, label -> words.
        people: the set, a key of :data:`COLOURS`.
    """
    _, [[picture, text]] = panels(None, 1, 2, figsize=(6.4, 2.3), width_ratios=(0.36, 0.64))
    portrait(picture, image, people)
    text.axis("off")
    text.text(0, 0.96, name, fontsize=13, fontweight="bold", va="top")
    text.text(1, 0.94, f"{people} set", fontsize=10, va="top", ha="right", color=COLOURS[people])
    lines = [f"{label}: {words}" for label, words in facts.items()]
    wrapped = [part for line in lines for part in textwrap.wrap(line, 46, subsequent_indent="   ")]
    text.text(0, 0.76, "\n".join(wrapped), va="top", linespacing=1.5)
    return picture


@styled
def membership(members: pd.DataFrame, *, title: str) -> Axes:
    """Who is in which split: a row per split, a column per person, vermilion where forgotten.

    Args:
        members: bool, index the splits, columns the person IDs.
    """
    figure, [[axes]] = panels(title, figsize=(8, 0.5 * len(members) + 1.4))
    # In grey, the forget cells must stand out.
    pale = [1 - 0.45 * (1 - channel) for channel in to_rgb(COLOURS["retain"])]
    colours = {"retain": pale, "forget": COLOURS["forget"]}
    palette = ListedColormap(list(colours.values()))
    axes.pcolormesh(
        members.to_numpy(dtype=int), cmap=palette, vmin=0, vmax=1, edgecolor="white", linewidth=0.6,
    )
    axes.invert_yaxis()
    axes.set_yticks([row + 0.5 for row in range(len(members))], list(members.index))
    step = max(1, len(members.columns) // 6)
    columns = range(0, len(members.columns), step)
    axes.set_xticks([column + 0.5 for column in columns], list(members.columns[::step]))
    axes.set(xlabel="person (ID)")
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)
    handles = [Patch(color=colour, label=f"{name} set") for name, colour in colours.items()]
    legend_below(figure, handles)
    return axes


@styled
def sharing(counts: pd.DataFrame, *, title: str) -> Axes:
    """How many people share each part of a name and each visible feature: one dot per value.

    Args:
        counts: columns ``kind`` (such as "first name"), ``value`` and ``people`` (how many people
            have it).
    """
    kinds = list(dict.fromkeys(counts["kind"]))
    _, [[axes]] = panels(title, figsize=(8, 0.36 * len(kinds) + 1.3))
    for row, kind in enumerate(kinds):
        people = counts.loc[counts["kind"] == kind, "people"]
        axes.scatter(
            people, [row] * len(people), s=36, color="#444444", alpha=0.5, edgecolor="none",
            zorder=3,
        )
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.text(1.3, -0.8, "1 person: would identify", va="center")
    axes.set(xlim=(0, None), ylim=(len(kinds) - 0.4, -1.2), xlabel="people who share the value")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    return axes


@styled
def chance_levels(frame: pd.DataFrame, *, title: str) -> Axes:
    """What a guesser scores: a dot with its 95 % interval for each task.

    Args:
        frame: one row per task: ``task``, ``n`` questions, ``chance``, ``low`` and ``high`` (all
            shares in 0..1).
    """
    _, [[axes]] = panels(title, figsize=(6.4, 0.5 * len(frame) + 1.2))
    for row, entry in enumerate(frame.itertuples()):
        axes.plot(
            [100 * entry.low, 100 * entry.high], [row, row], color=COLOURS["vanilla"], linewidth=6,
        )
        axes.plot(100 * entry.chance, row, "o", color="black")
        axes.text(100 * entry.high + 2, row, f"n = {entry.n}", va="center")
    axes.set_yticks(range(len(frame)), list(frame["task"]))
    axes.set(
        xlim=(0, 100), ylim=(len(frame) - 0.5, -0.5),
        xlabel="accuracy of a guesser in % (dot: expected, bar: 95 %)",
    )
    return axes


@styled
def patch_grid(image: Image, size: int, patch: int) -> list[Axes]:
    """A portrait as people see it, and as the vision tower gets it: ``size`` pixels wide, cut into
    numbered patches."""
    _, [[whole, cut]] = panels(None, 1, 2, figsize=(6.4, 3.3))
    portrait(whole, image, "vanilla")
    whole.set_title(f"portrait: {image.width} × {image.height} pixels")
    side = size // patch
    cut.imshow(image.convert("RGB").resize((size, size)), interpolation="nearest")
    for k in range(side + 1):
        for line in (cut.axhline, cut.axvline):
            line(k * patch - 0.5, color=COLOURS["vision"], linewidth=2)
    if side <= 8:
        for token in range(side**2):
            y, x = divmod(token, side)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.8}
            cut.text(x * patch + 1, y * patch + 1, str(token + 1), va="top", bbox=box)
    cut.set(xticks=[], yticks=[])
    cut.spines[:].set_visible(False)
    cut.set_title(f"{size} × {size} pixels = {side**2} image tokens")
    return [whole, cut]
