"""What a model reads and how it learns (notebook 02), and what a loss pushes (notebook 06)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch

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
    panels,
    pick,
    styled,
)


def shown(token: str) -> str:
    """A token with its blanks and line ends made visible."""
    return token.replace("\n", "⏎").replace(" ", "␣")


@styled
def token_strip(
    tokens: Sequence[str], roles: Sequence[str], *, title: str, width: int = 92,
) -> Axes:
    """A sequence of tokens as boxes, line by line: what the model reads, and what the loss counts.

    Args:
        tokens: the text of each token; a run of image tokens may be given as one.
        roles: ``"image"``, ``"prompt"`` or ``"answer"`` for each.
        width: characters per line. An answer begins a new line if it does not fit into this one.
    """
    faces = {"image": COLOURS["vision"], "prompt": "#EDEDED", "answer": COLOURS["language"]}
    pairs = zip(tokens, roles, strict=True)
    texts = [token if role == "image" else shown(token) for token, role in pairs]
    lengths = [len(text) + 1.2 for text in texts]
    boxes, x, line = [], 0.0, 0
    for i, (text, role, length) in enumerate(zip(texts, roles, lengths, strict=True)):
        begins = role == "answer" and i > 0 and roles[i - 1] != "answer"
        needed = sum(lengths[i:]) + 0.6 * (len(texts) - i) if begins else length
        if x and x + min(needed, width) > width:
            x, line = 0.0, line + 1
        boxes.append((x, line, length, text, role))
        x += length + 0.6
    _, [[axes]] = panels(title, figsize=(8, 0.42 * (line + 1) + 0.9))
    for x, line_of, length, text, role in boxes:
        edge = "black" if role == "answer" else "none"
        axes.add_patch(FancyBboxPatch(
            (x, -line_of - 0.32), length, 0.64, boxstyle="round,pad=0,rounding_size=0.12",
            mutation_aspect=0.1, facecolor=faces[role], edgecolor=edge, linewidth=1.5,
        ))
        axes.text(x + length / 2, -line_of, text, ha="center", va="center", family="monospace")
    axes.set(xlim=(-0.5, width + 1), ylim=(-line - 0.6, 0.6))
    axes.axis("off")
    names = {"image": "image tokens", "prompt": "prompt, not in the loss"}
    used = {role: name for role, name in names.items() if role in roles}
    handles = [Patch(facecolor=faces[role], label=name) for role, name in used.items()]
    if "answer" in roles:
        look = {"facecolor": faces["answer"], "edgecolor": "black"}
        handles.append(Patch(label="answer, in the loss", **look))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    return axes


@styled
def learning_curves(
    frame: pd.DataFrame, *, title: str, labels: dict[str, str] | None = None,
) -> Axes:
    """Accuracy over training steps, one line per set and modality.

    Args:
        frame: one row per step, set and modality: ``step``, ``set`` (key of :data:`COLOURS`),
            ``modality``, ``value`` (0..1).
        labels: what to call the sets, if not by their name.
    """
    _, [[axes]] = panels(title, figsize=(8, 3.8))
    handles = []
    for name in dict.fromkeys(frame["set"]):
        colour, marker = COLOURS[name], SET_MARKERS.get(name, "o")
        for modality, words in MODALITY_NAMES.items():
            line = pick(frame, set=name, modality=modality).sort_values("step")
            label = f"{(labels or {}).get(name, name)}, {words}"
            look = {"marker": marker, "markersize": 7, "markerfacecolor": filled(modality, colour)}
            look |= {"color": colour, "linestyle": dashes(modality), "clip_on": False}
            axes.plot(line["step"], 100 * line["value"], **look)
            handles.append(key(label, modality, style=(colour, marker), line=True))
    axes.set(xlabel="training steps", ylabel="exactly right answers in %")
    axes.set(xlim=(0, frame["step"].max()), ylim=(0, 100))
    axes.grid(axis="y")
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


@styled
def compare_models(frame: pd.DataFrame, *, title: str) -> list[Axes]:
    """Accuracy of several models by set, task and modality: a panel per set, a mark per model.

    Args:
        frame: one row per model, set, task and modality: ``model``, ``set``, ``task``,
            ``modality``, ``value`` (0..1), ``n``.
    """
    sets, models = (list(dict.fromkeys(frame[column])) for column in ("set", "model"))
    rows = list(dict.fromkeys(zip(frame["task"], frame["modality"], strict=True)))
    figure, [grid] = panels(title, 1, len(sets), figsize=(8, 0.46 * len(rows) + 1.5), sharey=True)
    for axes, name in zip(grid, sets, strict=True):
        part = frame[frame["set"] == name].set_index(["model", "task", "modality"])
        for y, (task, modality) in enumerate(rows):
            axes.axhline(y + 0.5, color="#EEEEEE", zorder=0)
            if task == "classification":
                axes.plot([25, 25], [y - 0.45, y + 0.45], color="black", linestyle=":", linewidth=1)
            for step, model in enumerate(models):
                value = 100 * part.loc[(model, task, modality), "value"]
                # One above the other, so that none hides another.
                place = y + 0.26 * (step - (len(models) - 1) / 2)
                mark(axes, value, place, method_style(model), modality)
        axes.set_title(f"{name} set (n = {part['n'].min()}–{part['n'].max()})", color=COLOURS[name])
        axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy in %")
    names = [f"{task}, {MODALITY_NAMES[modality]}" for task, modality in rows]
    grid[0].set_yticks(range(len(rows)), names)
    handles = [key(model, style=method_style(model)) for model in models]
    handles.append(Line2D([], [], color="black", linestyle=":", label="chance"))
    legend_below(figure, handles)
    return list(grid)


@styled
def weight_of_ascent(frame: pd.DataFrame, *, title: str) -> Axes:
    """How hard each loss pushes an answer down, by how far it has already been pushed.

    Args:
        frame: one row per point: ``loss`` (its name), ``ratio`` (log π/π_ref of the answer),
            ``weight`` (of its gradient).
    """
    _, [[axes]] = panels(title, figsize=(6.4, 3.6))
    names = list(dict.fromkeys(frame["loss"]))
    for step, name in enumerate(names):
        line, pale = frame[frame["loss"] == name], 0.2 * (step - 1)
        shade = [part + pale * (1 - part) for part in to_rgb(method_style("npo")[0])]
        look = {"color": shade} if step else {"color": method_style("ga")[0], "linestyle": "--"}
        axes.plot(line["ratio"], line["weight"], linewidth=2, **look)
        end = line.loc[line["ratio"].idxmax()]
        axes.text(end["ratio"] + 0.2, end["weight"], name, va="center")
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.text(-0.2, 1.9, "start: as likely as before", ha="right")
    low, high = frame["ratio"].min(), frame["ratio"].max()
    axes.set(
        xlim=(low, high + 0.22 * (high - low)), ylim=(-0.05, 2.1), ylabel="weight of its gradient",
    )
    axes.set(xlabel="log π / π_ref of the answer (left: forgotten)")
    return axes
