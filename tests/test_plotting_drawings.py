"""Drawings of the model, of a neuron and of the series: their numbers come from the configuration, their words fit."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from manu_utils import plotting

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def text_config(act="relu"):
    return SimpleNamespace(hidden_size=40, intermediate_size=7000, num_hidden_layers=5, hidden_act=act)


def llava():
    vision = SimpleNamespace(image_size=60, hidden_size=24, intermediate_size=1234, num_hidden_layers=2)
    config = SimpleNamespace(vision_config=vision, text_config=text_config(), image_seq_length=9)
    asked = {"multimodal": "What is this person's job?", "text": "What is Charlie Gibson's job?"}
    return plotting.llava_drawing(config, PIL.Image.new("RGB", (8, 8)), asked, "Works as a baker.", title="t")


DRAWINGS = {
    "llava": llava,
    "neuron": lambda: plotting.neuron_drawing(text_config(), title="t"),
    "flow": lambda: plotting.flow_drawing(alpha=5.0, n_neurons=10_368, title="t"),
    "sets": lambda: plotting.set_key(title="t"),
}


def words(axes):
    return " ".join(text.get_text() for text in axes.texts).replace("\n", " ")


@pytest.mark.parametrize("name", DRAWINGS)
def test_words_are_large_and_stay_inside(name):
    axes = DRAWINGS[name]()
    figure = axes.figure
    figure.canvas.draw()
    assert figure.get_size_inches()[0] <= 8
    renderer = figure.canvas.get_renderer()
    for text in [text for text in axes.texts if text.get_text()]:
        box = text.get_window_extent(renderer)
        assert text.get_fontsize() >= 10
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text.get_text()


@pytest.mark.parametrize("name", DRAWINGS)
def test_words_do_not_lie_on_words(name):
    axes = DRAWINGS[name]()
    axes.figure.canvas.draw()
    renderer = axes.figure.canvas.get_renderer()
    drawn = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in drawn]
    for i, one in enumerate(boxes):
        on_it = [drawn[j].get_text() for j in range(i + 1, len(boxes)) if one.overlaps(boxes[j])]
        assert on_it == [], drawn[i].get_text()


def test_the_llava_has_the_sizes_of_its_configuration():
    found = words(llava())
    tower, language = "2 layers width 24 1,234 neurons", "5 layers width 40 7,000 neurons"
    for part in ("60 × 60 pixels", tower, "24 → 40", "9 image tokens", language):
        assert part in found


@pytest.mark.parametrize(("act", "shown"), [("relu", "ReLU"), ("silu", "SiLU"), ("quick_gelu", "quick_gelu")])
def test_the_neuron_has_the_sizes_and_the_activation_of_its_configuration(act, shown):
    axes = plotting.neuron_drawing(text_config(act), title="t")
    found = words(axes)
    assert shown in found and "width 40" in found and "7,000 neurons" in found
    assert found.count("7,000 × 40") == 2 and found.count("40 × 7,000") == 1
    assert len([patch for patch in axes.patches if patch.get_hatch()]) == 3  # two rows and a column are zeroed


def test_the_flow_counts_the_neurons_and_names_every_notebook():
    found = words(plotting.flow_drawing(alpha=2.5, n_neurons=2000, title="t"))
    assert "α = 2.5 %" in found and "50 of 2,000 neurons" in found
    for path in NOTEBOOKS.glob("[0-9]*.ipynb"):
        assert re.search(rf"\b{path.stem.split('_')[0]}\b", found) or path.name.startswith("00")


def test_a_frame_is_told_by_its_line_in_grey():
    images = [PIL.Image.new("RGB", (4, 4))] * 4
    sets = list(plotting.SET_MARKERS)
    grid = plotting.portrait_grid(images, sets, sets)
    assert len({str(axes.spines["left"].get_linestyle()) for axes in grid}) == 4


def test_importance_curves_hold_every_neuron_of_either_tower():
    towers = ["vision"] * 2 + ["language"] * 3
    values = {"I_abs": np.array([1.0, 1.0, 0.0, 0.0, 0.5]), "I_var": np.array([3.0, 1.0, 0.0, 2.0, 4.0])}
    first, second = plotting.importance_curves(values, towers, title="t")
    assert [axes.get_title() for axes in (first, second)] == ["I_abs", "I_var"]
    vision, language = first.lines
    assert set(vision.get_xdata()[1:]) == {1.0} and sorted(set(language.get_xdata()[1:])) == [0.0, 0.5]
    assert vision.get_linestyle() != language.get_linestyle()
    assert first.get_xlim()[1] < 1.1 and second.get_xlim()[1] > 3.9


def test_outcomes_have_a_mark_per_method_and_modality():
    rows = [("coverage", "multimodal", 0.2, 0.9), ("coverage", "text", 0.3, 0.95), ("random", "multimodal", 0.9, 0.92)]
    axes = plotting.outcomes(pd.DataFrame(rows, columns=["method", "modality", "forget", "retain"]), title="t")
    marks = [(line.get_marker(), *line.get_xydata()[0].round(1)) for line in axes.lines if line.get_marker() != "None"]
    assert marks == [("o", 20, 90), ("o", 30, 95), ("P", 90, 92)]
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["coverage", "random", "image + text", "text alone"]
