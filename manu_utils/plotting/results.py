"""What was forgotten, what was kept, and what it cost (notebooks 00, 05, 06, 08 and 12)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..teaching.tables import MODALITY_NAMES, wilson
from .style import (
    COLOURS,
    IMAGES_ONLY,
    SET_MARKERS,
    dashes,
    filled,
    key,
    label_points,
    legend_below,
    mark,
    method_style,
    modality_keys,
    name_rows,
    panels,
    pick,
    styled,
)

OTHERS = "#CFCFCF"  # what a panel shows of the methods that have their own


@styled
def before_after(
    frame: pd.DataFrame, *, title: str, states: Sequence[str] = ("before", "after"),
) -> Axes:
    """Accuracy of each set and modality in two states: bars in grey before, in colour after.

    Args:
        frame: one row per set, modality and state: ``set``, ``modality``, ``state``, ``value``
            (0..1) and ``n`` questions.
    """
    sets = list(dict.fromkeys(frame["set"]))
    cells = frame.set_index(["set", "modality", "state"])
    _, [[axes]] = panels(title, figsize=(1.7 + 2.2 * len(sets), 3.6))
    places, labels = [], []
    for group, name in enumerate(sets):
        for offset, modality in enumerate(MODALITY_NAMES):
            left = 2.6 * group + 1.1 * offset
            for step, state in enumerate(states):
                value, n = cells.loc[(name, modality, state), ["value", "n"]]
                colour = COLOURS["vanilla"] if step == 0 else COLOURS[name]
                axes.bar(
                    left + 0.42 * step, 100 * value, 0.38, color=filled(modality, colour),
                    edgecolor=colour, linewidth=2,
                )
                axes.text(left + 0.42 * step, 100 * value + 2, f"{100 * value:.0f}", ha="center")
            places.append(left + 0.21)
            labels.append(f"{MODALITY_NAMES[modality]}\n(n = {int(n)})")
        axes.text(
            2.6 * group + 0.76, 114, f"{name} set", fontsize=10, ha="center", fontweight="bold",
            color=COLOURS[name],
        )
    axes.set_xticks(places, labels)
    axes.set(ylim=(0, 122), ylabel="exactly right answers in %")
    axes.set_yticks(range(0, 101, 20))
    axes.tick_params(bottom=False)
    handles = [Patch(color=COLOURS["vanilla"]), tuple(Patch(color=COLOURS[name]) for name in sets)]
    axes.legend(
        handles, list(states), handler_map={tuple: HandlerTuple(None)}, loc="upper center",
        bbox_to_anchor=(0.5, -0.2), ncols=2,
    )
    return axes


@styled
def balance(frame: pd.DataFrame, *, floor: float, title: str) -> Axes:
    """Does text forget as the image does? A dumbbell per method: from filled to hollow.

    Args:
        frame: one row per method: ``method``, ``multimodal`` and ``text`` (forget accuracy, 0..1),
            in the order to draw.
        floor: accuracy of a model that has never met the people, a dotted line.
    """
    figure, [[axes]] = panels(title, figsize=(8, 0.42 * len(frame) + 1.6))
    for y, row in enumerate(frame.itertuples()):
        style, image, text = method_style(row.method), 100 * row.multimodal, 100 * row.text
        axes.plot([image, text], [y, y], color=style[0], linewidth=2.5, zorder=2)
        mark(axes, text, y, style, "text", markersize=9)
        mark(axes, image, y, style, markersize=5)
        axes.text(107, y, f"{abs(image - text):.0f}", va="center", ha="right")
    axes.axvline(100 * floor, color="black", linewidth=0.8, linestyle=":")
    axes.text(100 * floor + 1, -0.75, "never met them")
    axes.text(107, -0.75, "gap", ha="right")
    axes.set_yticks(range(len(frame)), list(frame["method"]))
    axes.set(xlim=(-2, 108), ylim=(len(frame) - 0.5, -1.0), xlabel="forget accuracy in %")
    axes.set_xticks(range(0, 101, 20))
    legend_below(figure, modality_keys())
    return axes


@styled
def task_grid(frame: pd.DataFrame, *, title: str) -> list[Axes]:
    """Which skill went: a row of panels per modality, a panel per set, vanilla (grey) and pruned
    (colour of the set) by task.

    Args:
        frame: one row per set, task, modality and model: ``set``, ``task``, ``modality``, ``model``
            (``"vanilla"`` or another name), ``value`` (0..1) and ``n``; the bars get their 95 %
            Wilson interval, classification its chance (dotted).
    """
    sets, tasks = (list(dict.fromkeys(frame[column])) for column in ("set", "task"))
    models = ["vanilla", *(name for name in dict.fromkeys(frame["model"]) if name != "vanilla")]
    cells = frame.set_index(["set", "task", "modality", "model"])[["value", "n"]]
    _, grid = panels(title, 2, len(sets), figsize=(8, 4.5), sharex=True, sharey=True)
    for line, (modality, name) in enumerate(MODALITY_NAMES.items()):
        for axes, people in zip(grid[line], sets, strict=True):
            counts = [int(cells.loc[(people, task, modality, models[1]), "n"]) for task in tasks]
            for x, task in enumerate(tasks):
                for offset, model in zip((-0.2, 0.2), models, strict=True):
                    colour = COLOURS["vanilla" if model == "vanilla" else people]
                    value, n = cells.loc[(people, task, modality, model)]
                    ends = [100 * end for end in wilson(value, n)]
                    look = {"color": filled(modality, colour), "edgecolor": colour}
                    look["hatch"] = None if modality == "multimodal" else "////"
                    axes.bar(x + offset, 100 * value, width=0.36, **look)
                    axes.plot([x + offset] * 2, ends, color="black", linewidth=1)
                if task == "classification":
                    axes.hlines(25, x - 0.45, x + 0.45, color="black", linewidth=1, linestyle=":")
            axes.set_title(f"{people}\nn = {' / '.join(map(str, counts))}", fontsize=9)
            axes.set_xticks(
                range(len(tasks)), tasks, rotation=30, ha="right", rotation_mode="anchor",
            )
        grid[line, 0].set(ylabel=f"{name}\naccuracy in %", ylim=(0, 105))
    return list(grid.flat)


# ---------------------------------------------------------------------------- what forgetting costs


def _small_panels(kinds: list, title: str) -> dict:
    """An axes for each (method, given): in one row or two, images alone in the second."""
    alone = [kind for kind in kinds if kind[1] == "multimodal"]
    rows = [[kind for kind in kinds if kind not in alone], alone]
    if not rows[1] and len(kinds) > 3:
        half = -(-len(kinds) // 2)
        rows = [kinds[:half], kinds[half:]]
    rows = [row for row in rows if row]
    shape, height = (len(rows), max(map(len, rows))), 4.6 if len(rows) > 1 else 3.6
    figure, grid = panels(title, *shape, figsize=(8, height), sharex=True, sharey=True)
    figure.supylabel("retain accuracy in % (up is better)", fontsize=10)
    places = {}
    for row, line in zip(rows, grid, strict=True):
        places |= dict(zip(row, line, strict=False))
    for axes in set(grid.flat) - set(places.values()):
        axes.axis("off")
        grid[0, -1].tick_params(labelbottom=True)  # nothing stands below the last of the first row
    return places


def _draw_paths(frame, vanilla, target, title: str) -> tuple[dict, list[Line2D]]:
    """Forget against retain: a panel per method, with a line per modality, all others pale behind.

    The stretch from vanilla to the weakest strength is thin: nothing was measured on the way.

    Returns:
        The axes of each (method, given), and the entries of a legend.
    """
    modalities = [modality for modality in MODALITY_NAMES if modality in set(frame["modality"])]
    starts, ends = (table.set_index("modality") for table in (vanilla, target))
    lines, start_style, end_style = {}, method_style("vanilla"), method_style("retrained")
    groups = frame.groupby(["method", "given", "modality"], sort=False, observed=True)
    for (method, given, modality), part in groups:
        start, part = starts.loc[modality], part.sort_values("strength")
        x, y = ([100 * start[name], *(100 * part[name])] for name in ("forget", "retain"))
        lines[method, given, modality] = (x, y, part["chosen"])
    kinds = list(dict.fromkeys(zip(frame["method"], frame["given"], strict=True)))
    places = _small_panels(kinds, title)
    for kind, axes in places.items():
        style = method_style(kind[0])
        for (*other, modality), (x, y, _) in lines.items():
            if tuple(other) != kind:
                axes.plot(x, y, color=OTHERS, linewidth=0.8, linestyle=dashes(modality), zorder=1)
        for modality in modalities[::-1]:  # filled marks last, with the hollow ones around them
            (x, y, chosen), more = lines[*kind, modality], 3 * (modality == "text")
            look = {"color": style[0], "linestyle": dashes(modality), "zorder": 3}
            axes.plot(x[1:], y[1:], **look)
            axes.plot(x[:2], y[:2], linewidth=0.7, **look)
            mark(axes, x[0], y[0], start_style, modality, markersize=5 + more, zorder=5)
            for a, b, large in zip(x[1:], y[1:], chosen, strict=True):
                mark(axes, a, b, style, modality, markersize=9 if large else 4.5, zorder=4)
            if modality in ends.index:
                end = 100 * ends.loc[modality, ["forget", "retain"]]
                mark(axes, *end, end_style, modality, markersize=8 + more, zorder=2)
        axes.set(xlim=(-4, 104), ylim=(-4, 104), xticks=range(0, 101, 50), yticks=range(0, 101, 50))
        name = kind[0] + (IMAGES_ONLY if kind[1] == "multimodal" else "")
        axes.set_title(name, fontsize=9, fontweight="bold")
    keys = [key(MODALITY_NAMES[modality], modality, line=True) for modality in modalities]
    keys += [key("vanilla", style=start_style), Line2D([], [], color=OTHERS, label="other methods")]
    return places, keys


@styled
def trade_off(
    frame: pd.DataFrame, vanilla: pd.DataFrame, *, floor: float, title: str,
) -> list[Axes]:
    """What forgetting costs: forget against retain accuracy, a panel per method, a mark per α.

    Args:
        frame: one row per method, alpha and modality: ``method``, ``alpha`` (in %, written beside
            its mark), ``modality``, ``forget``, ``retain`` (0..1).
        vanilla: one row per modality: ``modality``, ``forget``, ``retain`` of the model before
            unlearning.
        floor: forget accuracy of a model that has never met the people (0..1), a dotted line.
    """
    rows = frame.assign(given="both", strength=frame["alpha"], chosen=False)
    places, keys = _draw_paths(rows, vanilla, vanilla[:0], title)
    for (method, _), axes in places.items():
        axes.axvline(100 * floor, color="black", linewidth=0.8, linestyle=":")
        marks = pick(rows, method=method, modality="multimodal")
        drawn = [line.get_xydata() for line in axes.lines if line.get_zorder() == 3]
        steps = [(a, b - a) for path in drawn for a, b in pairwise(path)]
        on_lines = [a + way * part for a, way in steps for part in np.linspace(0, 1, 20)]
        points, alphas = 100 * marks[["forget", "retain"]].to_numpy(), marks["alpha"]
        label_points(axes, points, [f"{alpha:g}" for alpha in alphas], avoid=on_lines)
    keys.append(Line2D([], [], color="black", linewidth=0.8, linestyle=":", label="never met them"))
    label = "forget accuracy in % (left is better); numbers: α of the filled marks in %"
    legend_below(axes.figure, keys, label=label)
    return list(places.values())


@styled
def paths(
    frame: pd.DataFrame, vanilla: pd.DataFrame, target: pd.DataFrame, *, title: str,
) -> list[Axes]:
    """What forgetting costs: forget against retain accuracy, a panel per method over its strength.

    Args:
        frame: one row per method, what it was given, strength and modality (one or both):
            ``method``, ``given`` (``"both"`` or ``"multimodal"``), ``strength``, ``modality``,
            ``forget``, ``retain`` (0..1) and ``chosen`` (drawn large).
        vanilla, target: one row per modality: ``modality``, ``forget``, ``retain`` of the model
            before unlearning and of the retrained one (a star).
    """
    places, keys = _draw_paths(frame, vanilla, target, title)
    axes = list(places.values())
    keys.append(key("retrained", style=method_style("retrained")))
    legend_below(axes[0].figure, keys, label="forget accuracy in % (left is better)")
    return axes


@styled
def modality_balance(frame: pd.DataFrame, target: pd.Series, *, title: str) -> Axes:
    """Forget accuracy with the image against that by name; off the diagonal is out of balance.

    Args:
        frame: one row per method and what it was given: ``method``, ``given``, ``multimodal``,
            ``text`` (0..1); a mark is half filled if ``given`` is ``"multimodal"``.
        target: ``multimodal`` and ``text`` of the retrained model.
    """
    _, [[axes]] = panels(title, figsize=(6.4, 5.6))
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle=":", zorder=1)
    points, labels = [], []
    end = {"method": "retrained", "given": "", **target[["multimodal", "text"]]}
    for row in [*frame.to_dict("records"), end]:
        images = row["given"] == "multimodal"
        points.append((100 * row["multimodal"], 100 * row["text"]))
        labels.append(row["method"] + (IMAGES_ONLY if images else ""))
        half = {"fillstyle": "left", "markerfacecoloralt": "white"} if images else {}
        mark(axes, *points[-1], method_style(row["method"]), markersize=9, **half)
    for x, y, words, place in (
        (2, 97, "the face is forgotten,\nthe name is not", {"va": "top"}),
        (98, 2, "the name is forgotten,\nthe face is not", {"ha": "right"}),
    ):
        axes.text(x, y, words, color="#666666", zorder=0, **place)
    axes.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal")
    axes.set(xlabel="forget accuracy, image + text, in %")
    axes.set(ylabel="forget accuracy, text alone, in %")
    label_points(axes, points, labels)
    return axes


@styled
def costs(frame: pd.DataFrame, quantities: dict[str, str], *, title: str) -> list[Axes]:
    """What each method takes: a panel per quantity, logarithmic, and a mark per method.

    Args:
        frame: one row per method: ``method`` and the quantities; a 0 is written, and gets no mark.
        quantities: column -> label with its unit.
    """
    figure, [grid] = panels(
        title, 1, len(quantities), figsize=(8, 0.22 * len(frame) + 1.5), sharey=True,
    )
    for axes, (column, label) in zip(grid, quantities.items(), strict=True):
        positive = frame.loc[frame[column] > 0, column]
        left = positive.min() / 3
        for y, (method, value) in enumerate(zip(frame["method"], frame[column], strict=True)):
            if value:
                axes.plot([left, value], [y, y], color=OTHERS, linewidth=1.5, zorder=1)
                mark(axes, value, y, method_style(method), markeredgewidth=0.5)
            text = f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"
            if value >= 1e6:
                text = f"{value / 1e6:.1f} M"
            axes.text(max(value, left / 1.2) * 1.4, y, text, va="center")
        axes.set(xscale="log", xlim=(left, 15 * positive.max()), ylim=(len(frame) - 0.5, -0.5))
        axes.set_xlabel(label, fontsize=9)
        axes.minorticks_off()
        axes.grid(axis="x", linewidth=0.5)
        axes.tick_params(axis="x", length=0, labelbottom=False)
    grid[0].set_yticks(range(len(frame)), list(frame["method"]))
    figure.supxlabel("a grey line for each power of ten", fontsize=9)
    return list(grid)


@styled
def paired_differences(
    frame: pd.DataFrame, *, title: str, measure: str = "exact answers",
) -> list[Axes]:
    """How far two methods are apart on the same questions: a row per pair, a panel per set, and in
    it a mark for each seed, with the interval of its difference as a line.

    Filled marks and solid lines are image + text, hollow and dashed ones text alone; the seeds
    stand below each other in their order. Right of the black line the first method has more.

    Args:
        frame: one row per pair, seed, set and modality, as of :func:`compare_paired`: ``pair``,
            ``seed``, ``set``, ``modality``, ``difference``, ``low``, ``high`` (−1..1); pairs and
            sets in the order to draw.
        measure: what the values are the share of, on the axis.
    """
    pairs, sets, seeds = (list(dict.fromkeys(frame[name])) for name in ("pair", "set", "seed"))
    lines = [(modality, seed) for modality in MODALITY_NAMES for seed in sorted(seeds)]
    size = (8, (0.11 * len(lines) + 0.1) * len(pairs) + 1.1)
    figure, [grid] = panels(title, 1, len(sets), figsize=size, sharey=True, sharex=True)
    for axes, name in zip(grid, sets, strict=True):
        style = COLOURS[name], SET_MARKERS[name]
        axes.axvline(0, color="black", linewidth=1, zorder=0)
        for row, pair in enumerate(pairs):
            for place, (modality, seed) in enumerate(lines):
                of_line = pick(frame, pair=pair, set=name, modality=modality, seed=seed)
                y = row + 0.8 * ((place + 0.5) / len(lines) - 0.5)
                for found in of_line.itertuples():
                    ends = [100 * found.low, 100 * found.high]
                    axes.plot(ends, [y, y], color=style[0], linestyle=dashes(modality))
                    mark(axes, 100 * found.difference, y, style, modality, markersize=5)
            if row:
                axes.axhline(row - 0.5, color="#EEEEEE", linewidth=0.8, zorder=0)
        axes.set_title(f"{name} set", color=style[0])
    name_rows(grid, pairs)
    figure.supxlabel(f"difference in points of {measure}", fontsize=10)
    return list(grid)


@styled
def bridge_rows(frame: pd.DataFrame, *, title: str) -> list[Axes]:
    """What each model still knows, a row per model: of people by image and by name, and in general.

    Marks are those of the sets, filled with the image and hollow by name; stars are general
    questions, and the dotted line what guessing gets of them.

    Args:
        frame: one row per ``model``, ``set`` (``"forget"``, ``"test"``, ``"retain"``,
            ``"general"``) and ``modality``: ``value`` (0..1), the mean where there are several;
            general questions are text. Models in the order to draw.
    """
    models = list(dict.fromkeys(frame["model"]))
    size = (8, 0.33 * len(models) + 1.7)
    names = (*MODALITY_NAMES.values(), "general questions")
    figure, [grid] = panels(title, 1, 3, figsize=size, sharey=True)
    kinds = [(m, ("forget", "test", "retain")) for m in MODALITY_NAMES] + [("text", ("general",))]
    for axes, name, (modality, sets) in zip(grid, names, kinds, strict=True):
        for row, model in enumerate(models):
            axes.axhline(row, color="#EEEEEE", linewidth=0.8, zorder=0)
            for place, which in enumerate(sets):
                value = pick(frame, model=model, modality=modality, set=which)["value"].mean()
                if value == value:
                    shift = 0.22 * (place - (len(sets) - 1) / 2)
                    mark(axes, 100 * value, row + shift, _look(which), modality)
        axes.set(xlim=(0, 100), xticks=(0, 50, 100))
        axes.set_title(name)
    grid[2].axvline(25, color="black", linewidth=1, linestyle=":")
    name_rows(grid, models)
    keys = [key(which, style=_look(which)) for which in ("forget", "test", "retain")]
    keys.append(key("general", "text", style=_look("general")))
    legend_below(figure, keys, label="right in %")
    return list(grid)


def _look(which: str) -> tuple[str, object]:
    return (COLOURS[which], SET_MARKERS[which]) if which in COLOURS else ("#000000", "*")
