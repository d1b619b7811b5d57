"""Three drawings, in the style of the figures: a LLaVA (notebook 02), one neuron of a gated MLP
(03), and the way from questions to an audit (00). Sizes are read from the model's configuration."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Patch, Rectangle
from PIL.Image import Image

from ..teaching.tables import MODALITY_NAMES
from .style import COLOURS, legend_below, panels, styled

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, width, height

INK, PLAIN, PALE = "#222222", "#F2F2F2", "#DDDDDD"
ZEROED = {"facecolor": "white", "edgecolor": INK, "hatch": "xxxx", "linewidth": 1.5}
SIZE = 10  # points: the figures are shown at 100 dots per inch


def sheet(height: float, *, title: str | None = None) -> Axes:
    """An empty sheet, 8 inches wide; 100 units across, and as many up as keep them square."""
    figure, [[axes]] = panels(title, figsize=(8, height))
    axes.set(xlim=(0, 100), ylim=(0, 12.5 * height), aspect="equal")
    axes.axis("off")
    return axes


def write(axes: Axes, x: float, y: float, text: str, **look) -> None:
    """Words around a point."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": SIZE, "color": INK} | look)


def box(
    axes: Axes, place: Box, text: str, *, face: str = PLAIN, edge: str = INK, line: str = "-",
    head: str = "",
) -> None:
    """A box with words; ``head`` stands above them in bold."""
    left, bottom, width, height = place
    look = {"facecolor": face, "edgecolor": edge, "linestyle": line, "linewidth": 1.6}
    shape = "round,pad=0,rounding_size=1"
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=shape, **look))
    x, y = left + width / 2, bottom + height / 2
    if head:
        write(axes, x, bottom + height - 1, head, fontweight="bold", va="top")
        y -= 1.5 * (1 + head.count("\n"))
    write(axes, x, y, text, linespacing=1.25)


def arrow(axes: Axes, *points: Point, line: str = "-", colour: str = INK) -> None:
    """A line through the points with a head at the last."""
    for start, end in zip(points[:-2], points[1:-1], strict=True):
        axes.plot(*zip(start, end, strict=True), color=colour, linestyle=line, zorder=1)
    look = {"arrowstyle": "-|>", "color": colour, "linestyle": line, "linewidth": 1.6}
    look |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 13}
    axes.annotate("", points[-1], points[-2], arrowprops=look)


def squares(axes: Axes, place: Point, number: int, *, face: str, line: str = "-") -> None:
    """A row of tokens; ``place`` is the left end of its middle."""
    look = {"facecolor": face, "edgecolor": INK, "linestyle": line, "linewidth": 1.2}
    for i in range(number):
        axes.add_patch(Rectangle((place[0] + 2.2 * i, place[1] - 1.3), 1.8, 2.6, **look))


# ------------------------------------------------------------------------------------------ a LLaVA


@styled
def llava_drawing(
    config, image: Image, questions: dict[str, str], answer: str, *, title: str,
) -> Axes:
    """The parts of a LLaVA, and the two ways into it: by the picture, and by the name.

    Args:
        config: of a LLaVA: ``vision_config``, ``text_config``, ``image_seq_length``.
        image: the portrait.
        questions: modality -> the words that are asked.
        answer: the words that come out.
    """
    vision, text = config.vision_config, config.text_config
    axes = sheet(4.2, title=title)
    axes.imshow(image.convert("RGB"), extent=(1, 14, 35, 48), zorder=2)
    axes.set(xlim=(0, 100), ylim=(0, 52.5))
    write(axes, 7.5, 32.8, f"{vision.image_size} × {vision.image_size} pixels")
    box(
        axes, (20, 32, 17, 19), face="#F3DDEA", head="vision tower",
        text=f"{vision.num_hidden_layers} layers\nwidth {vision.hidden_size}\n"
        f"{vision.intermediate_size:,} neurons\nin each",
    )
    box(
        axes, (43, 36, 14, 11), face=PLAIN, head="projector",
        text=f"{vision.hidden_size} → {text.hidden_size}",
    )
    box(
        axes, (72, 9, 17, 28), face="#D9EEFA", head="language\nmodel",
        text=f"{text.num_hidden_layers} layers\nwidth {text.hidden_size}\n"
        f"{text.intermediate_size:,} neurons\nin each",
    )
    arrow(axes, (14.5, 41.5), (19.5, 41.5))
    arrow(axes, (37.5, 41.5), (42.5, 41.5))
    arrow(axes, (50, 35.5), (50, 32.5))
    squares(axes, (44.5, 30.5), 5, face=COLOURS["vision"])
    write(axes, 50, 27.3, f"{config.image_seq_length} image tokens")
    arrow(axes, (57, 30.5), (71.5, 30.5))
    rows = {"multimodal": (20.5, "-"), "text": (10.5, "--")}
    for modality, (y, line) in rows.items():
        box(axes, (0.5, y - 2.8, 36.5, 5.6), questions[modality], face="white", line=line)
        arrow(axes, (37.5, y), (43.5, y), line=line)
        squares(axes, (44.5, y), 5, face="white", line=line)
        arrow(axes, (57, y), (71.5, y), line=line)
        write(axes, 64.2, y + 1.7, MODALITY_NAMES[modality])
    write(axes, 64.2, 32.2, MODALITY_NAMES["multimodal"])
    write(axes, 50, 15.5, "word tokens")
    arrow(axes, (80.5, 8.5), (80.5, 5.2))
    box(axes, (67, 0.6, 27, 4.4), answer, face="white")
    write(axes, 0.5, 2.8, "solid: with the picture   dashed: by name alone", ha="left")
    return axes


# --------------------------------------------------------------------------------- one gated neuron


def matrix(axes: Axes, place: Box, name: str, shape: Sequence[int], *, row: bool) -> None:
    """A weight matrix with one row or one column that pruning zeroes."""
    left, bottom, width, height = place
    look = {"facecolor": PALE, "edgecolor": INK, "linewidth": 1.2}
    axes.add_patch(Rectangle((left, bottom), width, height, **look))
    start = (left, bottom + 0.55 * height) if row else (left + 0.4 * width, bottom)
    part = (width, 2.2) if row else (2.2, height)
    axes.add_patch(Rectangle(start, *part, **ZEROED, zorder=2))
    write(axes, left + width / 2, bottom + height + 1.8, name)
    write(axes, left + width / 2, bottom - 1.9, f"{shape[0]:,} × {shape[1]:,}")


@styled
def neuron_drawing(config, *, title: str) -> Axes:
    """One gated MLP and its neuron n: what produces it, what it writes, what pruning zeroes.

    Args:
        config: of a language model: ``hidden_size``, ``intermediate_size``, ``hidden_act``.
    """
    h, m, name = config.hidden_size, config.intermediate_size, config.hidden_act
    axes = sheet(4.6, title=title)
    stream = 8.5
    axes.plot([1, 96], [stream] * 2, color="#9A9A9A", linewidth=9, solid_capstyle="butt", zorder=0)
    arrow(axes, (93, stream), (99.5, stream), colour="#9A9A9A")
    write(axes, 1, 4.2, f"residual stream, width {h}", ha="left")
    gate, up = 45.0, 24.5  # heights of row n in either matrix
    matrix(axes, (17, gate - 7, 13, 10), r"$W_\mathrm{gate}$, row $n$", (m, h), row=True)
    matrix(axes, (17, up - 7, 13, 10), r"$W_\mathrm{up}$, row $n$", (m, h), row=True)
    matrix(axes, (80, 27, 9, 17), r"$W_\mathrm{down}$, column $n$", (h, m), row=False)
    arrow(axes, (8, stream), (8, gate - 0.4), (16.5, gate - 0.4))
    arrow(axes, (8, up - 0.4), (16.5, up - 0.4))
    write(axes, 6.2, 33, "$x$", fontsize=12)
    act = {"relu": "ReLU", "silu": "SiLU", "gelu": "GELU"}.get(name, name)
    box(axes, (34.5, gate - 3, 9, 5.2), act, face="white")
    arrow(axes, (30.5, gate - 0.4), (34, gate - 0.4))
    middle = 35.5
    axes.add_patch(Circle((52, middle), 2.6, facecolor="white", edgecolor=INK, linewidth=1.6))
    write(axes, 52, middle, "×", fontsize=14)
    arrow(axes, (44, gate - 0.4), (52, gate - 0.4), (52, middle + 3))
    arrow(axes, (30.5, up - 0.4), (52, up - 0.4), (52, middle - 3))
    write(axes, 41.5, up + 1.6, "no activation")
    for step in range(-2, 3):  # the hidden layer: some of its m coordinates
        look = {"facecolor": INK if step == 0 else "white", "edgecolor": INK, "linewidth": 1.4}
        axes.add_patch(Circle((65, middle + 4.6 * step), 1.6, zorder=2, **look))
    arrow(axes, (55, middle), (62.8, middle))
    write(axes, 68.9, middle - 2.4, "$z_n$", fontsize=12)
    write(axes, 65, middle - 13.2, f"{m:,} neurons")
    arrow(axes, (67, middle), (79.5, middle))
    arrow(axes, (84.7, 22.8), (84.7, stream + 1.2))
    write(axes, 83.2, 16, "adds $z_n$ times\nits column", ha="right")
    box(axes, (54, 50.6, 22, 5.6), "MANU looks here", face="white")
    arrow(axes, (65, 50.2), (65, middle + 11.5))
    legend_below(axes.figure, [Patch(label="what pruning neuron $n$ zeroes", **ZEROED)])
    return axes


# ---------------------------------------------------------------------------------- the way of MANU


@styled
def flow_drawing(*, alpha: float, n_neurons: int, title: str) -> Axes:
    """From four kinds of questions to an audit, each step with the notebook that takes it.

    Args:
        alpha: per cent of the neurons that are zeroed.
        n_neurons: of the whole model.
    """
    axes = sheet(4.0, title=title)

    def badge(x: float, y: float, notebooks: str) -> None:
        look = {"boxstyle": "round,pad=0.25", "facecolor": INK, "edgecolor": INK}
        write(axes, x, y, notebooks, color="white", fontweight="bold", bbox=look, zorder=4)

    def step(place: Box, notebooks: str, head: str, text: str) -> None:
        left, bottom, width, height = place
        box(axes, place, "")
        badge(left + width / 2, bottom + height, notebooks)
        write(axes, left + width / 2, bottom + height - 3.6, head, fontweight="bold")
        write(axes, left + width / 2, bottom + (height - 4.6) / 2, text, linespacing=1.25)

    for row, people in enumerate(("forget", "retain")):
        for column, (modality, line) in enumerate((("multimodal", "-"), ("text", "--"))):
            place = (0.8 + 16.2 * column, 36.5 - 10.5 * row, 15, 9)
            words = MODALITY_NAMES[modality]
            look = {"edge": COLOURS[people], "line": line, "face": "white"}
            box(axes, place, f"{people} set\n{words}", **look)
    badge(16.4, 45.5, "01")
    top, height = 26.0, 19.5
    step((38.5, top, 27, height), "02   03", "read the neurons",
         "MANU: importance $I$,\nhow one-sided is a neuron?\nours: attribution $a$,\n"
         "what does it write?")  # fmt: skip
    step((71, top, 28, height), "04   07   07b", "one score a neuron",
         "forget over retain;\nMANU: $S = I_f\\,/\\,(I_r + ε)$\nours: coverage,\n"
         "fact by fact")  # fmt: skip
    arrow(axes, (32.8, top + height / 2), (38, top + height / 2))
    arrow(axes, (66, top + height / 2), (70.5, top + height / 2))
    low, height = 2.0, 15.5
    number = max(1, round(alpha / 100 * n_neurons))
    arrow(axes, (85, top - 0.5), (85, low + height + 2))
    step((71, low, 28, height), "04   08", f"zero the top α = {alpha:g} %",
         f"{number:,} of {n_neurons:,} neurons;\n08 rewrites them\ninstead")  # fmt: skip
    step((38.5, low, 27, height), "05   06", "evaluate",
         "forget, test, retain\nand celebrity set,\nbeside other methods")  # fmt: skip
    step((0.8, low, 31.2, height), "09", "audit",
         "gone, or only hidden?\n10 text alone, 11 things and\npoems, 12 real models")  # fmt: skip
    arrow(axes, (70.5, low + height / 2), (66, low + height / 2))
    arrow(axes, (38, low + height / 2), (32.5, low + height / 2))
    return axes
