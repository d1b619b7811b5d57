"""The explorer of notebook 04: every variant at every α, by knobs where widgets run and as a figure
where they do not."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..benchmark.records import Question
from ..models.neurons import find_neurons
from ..teaching.explorer import Selections, answers_without, percent_by_layer
from ..teaching.tables import MODALITY_NAMES, answers_table
from .neurons import tower_colour
from .style import (
    dashes,
    key,
    legend_below,
    mark,
    method_style,
    modality_keys,
    panels,
    pick,
    styled,
)

PALE = "#C4C4C4"


def _places(points: pd.DataFrame) -> pd.DataFrame:
    """Forget and retain accuracy in per cent, by variant, α and modality."""
    index = ["variant", "alpha", "modality"]
    return 100 * points.pivot_table("value", index, "set", sort=False)


def _plane(axes: Axes) -> None:
    axes.set(xlim=(-4, 104), ylim=(-4, 104), xticks=range(0, 101, 50), yticks=range(0, 101, 50))


@styled
def choices_by_alpha(points: pd.DataFrame, *, title: str) -> list[Axes]:
    """Every variant at every α: forget against retain accuracy, a panel per α.

    Args:
        points: columns variant, alpha, set, modality and value (0 to 1), such as those of
            :func:`manu_utils.teaching.explorer.measure_grid`; ``"vanilla"`` with α = 0.
    """
    places = _places(points)
    variants = [name for name in dict.fromkeys(points["variant"]) if name != "vanilla"]
    alphas = sorted(set(points["alpha"]) - {0.0})
    figure, [grid] = panels(
        title, 1, len(alphas), figsize=(max(6, 2 * len(alphas)), 3.8), sharex=True, sharey=True,
    )
    for axes, alpha in zip(grid, alphas, strict=True):
        for modality in reversed(MODALITY_NAMES):  # filled marks last, with the hollow ones around
            more = 2 * (modality == "text")
            for variant, strength in [("vanilla", 0.0), *((name, alpha) for name in variants)]:
                if (variant, strength, modality) in places.index:
                    x, y = places.loc[(variant, strength, modality), ["forget", "retain"]]
                    mark(axes, x, y, method_style(variant), modality, markersize=6 + more)
        _plane(axes)
        axes.set_title(f"α = {alpha:g} %")
    grid[0].set(ylabel="retain accuracy in % (up is better)")
    keys = [key(name, style=method_style(name)) for name in ["vanilla", *variants]]
    label = "forget accuracy in % (left is better)"
    columns = 5 if len(alphas) > 3 else 3
    legend_below(figure, keys + modality_keys(), n_columns=columns, label=label)
    return list(grid)


@styled
def explored(
    points: pd.DataFrame,
    percent: Mapping[str, float],
    *,
    variant: str,
    alpha: float,
    modality: str,
) -> list[Axes]:
    """One setting of the knobs: neurons pruned by layer, where it is between forget and retain.

    Args:
        points: of :func:`manu_utils.teaching.explorer.measure_grid`.
        percent: name of the layer -> per cent of its neurons pruned.
        alpha: 0 for the model before pruning.
    """
    # Margins by hand: finding them takes longer than all of the drawing, and a knob should answer
    # at once.
    place = {"left": 0.12, "right": 0.98, "top": 0.88, "bottom": 0.17, "wspace": 0.28}
    _, [[bars, plane]] = panels(
        None, 1, 2, figsize=(8, 3.1), layout="none", gridspec_kw=place, width_ratios=(1, 1.05),
    )
    names, values = list(percent), list(percent.values())
    bars.barh(names, values, color=[tower_colour(name) for name in names], edgecolor="black")
    for y, value in enumerate(values):
        bars.text(value + 0.4, y, f"{value:.1f}", va="center")
    bars.axvline(alpha, color="black", linewidth=0.8, linestyle="--")
    bars.invert_yaxis()
    bars.set(xlim=(0, max(20, 1.2 * max(values))), xlabel="neurons pruned in % of the layer")
    bars.set_title(f"{variant}, α = {alpha:g} %" if alpha else "before pruning")

    places = _places(pick(points, modality=modality)).droplevel("modality")
    for name, rows in places.groupby(level="variant", sort=False):
        style, own = method_style(name), name in (variant, "vanilla")
        for (_, strength), place in rows.iterrows():
            here = own and strength == alpha
            colour = style[0] if own else PALE
            size = 12 if here else 7 if own else 5
            xy = place["forget"], place["retain"]
            mark(plane, *xy, (colour, style[1]), modality, markersize=size, zorder=3 + own + here)
            if own and strength:
                note = {
                    "textcoords": "offset points",
                    "xytext": (0, -15),
                    "ha": "center",
                    "zorder": 6,
                }
                plane.annotate(f"{strength:g}", xy, **note)
        if name == variant:
            path = pd.concat([places.loc[["vanilla"]], rows])
            look = {"color": style[0], "linewidth": 1, "linestyle": dashes(modality)}
            plane.plot(path["forget"], path["retain"], **look)
    _plane(plane)
    plane.set(xlabel="forget accuracy in % (left is better)", ylabel="retain accuracy in %")
    plane.set_title(f"asked by {MODALITY_NAMES[modality]}; numbers: α in %")
    return [bars, plane]


class Explorer:
    """Knobs over choices of neurons that are made and measured already.

    A cell that ends in one shows the knobs where widgets run (JupyterLab, Colab), and elsewhere
    (GitHub, print, without ipywidgets) :func:`choices_by_alpha`. Moving a knob looks up the point;
    only the answers of the person are asked for at that moment, with the neurons pruned and given
    back, and kept.

    Args:
        model, processor: as they were when ``points`` was measured.
        selections: (variant, α) -> bool [n_neurons]; each variant at the same α.
        points: of :func:`manu_utils.teaching.explorer.measure_grid`, of these selections.
        people: how the list calls a person -> a few questions about them, of both modalities.

    Raises:
        ValueError: a variant that lacks an α of the others, a selection that was not measured, or
            a person without questions of a modality.
    """

    def __init__(
        self, model, processor, selections: Selections, points: pd.DataFrame,
        people: Mapping[str, Sequence[Question]],
    ):
        self.variants = list(dict.fromkeys(variant for variant, _ in selections))
        self.alphas = sorted({float(alpha) for _, alpha in selections})
        measured = set(zip(points["variant"], points["alpha"], strict=True))
        for variant in self.variants:
            for alpha in self.alphas:
                if (variant, alpha) not in selections:
                    raise ValueError(f"{variant} has no selection at α = {alpha:g}; add it.")
                if (variant, alpha) not in measured:
                    raise ValueError(
                        f"{variant} at α = {alpha:g} is not in points; pass measure_grid(...) of "
                        "the same selections."
                    )
        if not people:
            raise ValueError("people is empty; pass at least one person's questions.")
        self.people: dict[str, dict[str, list[Question]]] = {}
        for name, asked in people.items():
            by = {m: [q for q in asked if q.modality == m] for m in MODALITY_NAMES}
            if empty := [m for m, of in by.items() if not of]:
                raise ValueError(f"{name} has no {empty[0]} questions; pass some of each modality.")
            self.people[name] = by
        self.selections, self.points, self._given = selections, points, (model, processor)
        self._mlps = find_neurons(model)
        self._answers: dict[tuple, list[str]] = {}
        self._pictures: dict[tuple, bytes] = {}

    def _chosen(self, variant: str, alpha: float):
        return self.selections[variant, alpha] if alpha else None

    def answers(self, variant: str, alpha: float, modality: str, person: str) -> pd.DataFrame:
        """Question, truth, and ✓ or ✗ with what the model answers; α = 0 is before pruning."""
        asked = self.people[person][modality]
        place = (variant if alpha else "", alpha, modality, person)
        if place not in self._answers:
            chosen = self._chosen(variant, alpha)
            self._answers[place] = answers_without(*self._given, chosen, asked)
        table = answers_table(asked, {"answer": self._answers[place]})
        return table[["question", "truth", "answer"]]

    def picture(self, variant: str, alpha: float, modality: str) -> bytes:
        """:func:`explored` of this setting as a PNG."""
        place = (variant, alpha, modality)
        if place not in self._pictures:
            chosen = self._chosen(variant, alpha)
            if chosen is None:
                chosen = torch.zeros(sum(mlp.size for mlp in self._mlps), dtype=torch.bool)
            percent = percent_by_layer(chosen, self._mlps)
            knobs = {"variant": variant, "alpha": alpha, "modality": modality}
            axes = explored(self.points, percent, **knobs)
            self._pictures[place] = _png(axes[0].figure)
        return self._pictures[place]

    def figure(self) -> Figure:
        """What stands where no widget runs."""
        n = f"{self.points['n'].min()} questions a mark"
        title = f"Every variant at every α: forget against retain accuracy ({n})"
        return choices_by_alpha(self.points, title=title)[0].figure

    def widget(self):
        """The knobs and what they show, an ``ipywidgets.VBox``."""
        import ipywidgets

        label = {"description_width": "70px"}
        alphas = [("0 (before)", 0.0), *((f"{alpha:g} %", alpha) for alpha in self.alphas)]
        knobs = {
            "variant": ipywidgets.Dropdown(
                options=self.variants, description="method", style=label,
                layout={"width": "340px"},
            ),
            "alpha": ipywidgets.SelectionSlider(
                options=alphas, value=self.alphas[-1], description="α", continuous_update=False,
                style=label,
            ),
            "modality": ipywidgets.ToggleButtons(
                options=[(name, m) for m, name in MODALITY_NAMES.items()], description="asked by",
                style={**label, "button_width": "110px"}, layout={"width": "380px"},
            ),
            "person": ipywidgets.Dropdown(
                options=list(self.people), description="person", style=label,
            ),
        }
        picture = ipywidgets.Image(format="png", width=800)
        unstretched = {"align_self": "flex-start", "flex": "0 0 auto"}  # beside a tall table
        portrait = ipywidgets.Image(format="png", width=110, layout=unstretched)
        table = ipywidgets.HTML()

        def show(_=None) -> None:
            variant, alpha, modality, person = (knobs[name].value for name in knobs)
            picture.value = self.picture(variant, alpha, modality)
            image = self.people[person][modality][0].image
            portrait.layout.display = "none" if image is None else ""
            if image is not None:
                portrait.value = _png_of(image)
            try:
                found = self.answers(variant, alpha, modality, person)
            except Exception as error:  # a widget would swallow it
                table.value = html.escape(f"{type(error).__name__}: {error}")
            else:
                table.value = found.to_html(index=False, border=0)

        for knob in knobs.values():
            knob.observe(show, "value")
        show()
        rows = [
            ipywidgets.HBox([knobs["variant"], knobs["alpha"]]),
            ipywidgets.HBox([knobs["modality"], knobs["person"]]),
            picture, ipywidgets.HBox([portrait, table]),
        ]
        return ipywidgets.VBox(rows)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        bundle = {
            "text/plain": f"{len(self.selections)} choices of neurons; knobs where widgets run",
            "image/png": base64.b64encode(_png(self.figure())).decode(),
        }
        if importlib.util.find_spec("ipywidgets"):
            bundle = self.widget()._repr_mimebundle_() | bundle
        return bundle


def _png(figure: Figure) -> bytes:
    """A figure as PNG, closed, so that nothing shows it a second time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()


def _png_of(image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
