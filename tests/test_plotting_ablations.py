"""The figures of notebooks 07 and 07b draw the rows that they are given."""

import itertools

import matplotlib.colors
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from manu_utils import plotting
from manu_utils.plotting.ablations import thinned
from manu_utils.teaching import selectivity

MODALITIES = ("multimodal", "text")


def rows(**columns):
    """One row per combination of the values of each column; the value differs in every row."""
    frame = pd.DataFrame(itertools.product(*columns.values()), columns=list(columns))
    return frame.assign(value=np.linspace(0.1, 0.9, len(frame)))


@pytest.fixture
def before():
    return rows(set=["forget", "retain"], modality=MODALITIES)


def test_ablation_rows(before):
    frame = rows(setting=["b", "a", "c"], seed=[0, 1], set=["forget", "retain"], modality=MODALITIES)
    grid = plotting.ablation_rows(frame, before, title="title")
    assert [text.get_text() for text in grid[0].get_yticklabels()] == ["b", "a", "c"]
    for axes, name in zip(grid, ("forget", "retain"), strict=True):
        for modality, marks in zip(MODALITIES, axes.collections[1::2], strict=True):
            part = frame[(frame["set"] == name) & (frame["modality"] == modality)]
            expected = 100 * part.groupby("setting", sort=False)["value"].mean()
            np.testing.assert_allclose(marks.get_offsets()[:, 0], expected)
    assert grid[0].figure.get_suptitle() == "title"
    assert grid[0].get_xlabel().startswith("exact answers in %")
    of_letters = plotting.ablation_rows(frame, before, title="title", measure="right letters")
    assert all(axes.get_xlabel().startswith("right letters in %") for axes in of_letters)


def test_ablation_curves(before):
    frame = rows(panel=["one", "two"], x=[10.0, 1.0, 100.0], seed=[0, 1], set=["forget", "retain"], modality=MODALITIES)
    panels = plotting.ablation_curves(frame, before, label="x", title="title", n_columns=2)
    assert [axes.get_title() for axes in panels] == ["one", "two"]
    lines = [line for line in panels[1].lines if len(line.get_xdata()) == 3]
    for line, (name, modality) in zip(lines, itertools.product(["forget", "retain"], MODALITIES), strict=True):
        part = frame[(frame["panel"] == "two") & (frame["set"] == name) & (frame["modality"] == modality)]
        mean = 100 * part.groupby("x")["value"].mean()
        assert list(line.get_xdata()) == [1, 10, 100]
        np.testing.assert_allclose(line.get_ydata(), mean)
        assert line.get_color() == plotting.COLOURS[name] and (line.get_linestyle() == "-") == (modality == "multimodal")
        assert line.get_marker() == plotting.SET_MARKERS[name]
    assert panels[0].get_ylim()[0] == 0


def test_curves_that_stay_up_are_not_a_line_along_the_top(before):
    frame = rows(panel=["one"], x=[1.0, 10.0], seed=[0], set=["forget", "retain"], modality=MODALITIES)
    (axes,) = plotting.ablation_curves(frame.assign(value=0.9), before, label="x", title="title")
    assert axes.get_ylim()[0] == 50 and "from 50" in axes.figure.get_supylabel()


def test_ticks_leave_room_for_their_labels():
    assert thinned([0.5, 1, 2, 3, 5, 7, 10, 15, 20]) == [0.5, 1, 2, 5, 10, 20]
    assert thinned([1.0, 6.0]) == [1, 6] and thinned([3.0]) == [3]


def test_rank_plane_marks_what_both_choose():
    one = np.arange(100.0)
    other = np.concatenate([np.arange(95.0), [99, 98, 0, 1, 2]])
    axes = plotting.rank_plane(one, other, ("first", "second"), alpha=5, title="title")
    marks = next(line for line in axes.lines if line.get_marker() == ".")
    assert len(marks.get_xdata()) == 2
    assert axes.get_xlabel().startswith("first") and axes.get_ylabel().startswith("second")


def test_neuron_users_are_relative_to_the_largest():
    table = pd.DataFrame([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], index=["language 0, 1", "language 1, 2"], columns=list("abc"))
    axes = plotting.neuron_users(table, ["forget", "retain", "retain"], title="title")
    np.testing.assert_allclose(axes.collections[0].get_array().reshape(2, 3), [[1, 0.5, 0], [0, 0, 0]])
    strip = [patch.get_facecolor() for patch in axes.patches]
    colours = [matplotlib.colors.to_rgba(plotting.COLOURS[name]) for name in ("forget", "retain", "retain")]
    assert strip == colours


def test_neuron_reading():
    image = PIL.Image.new("RGB", (10, 10), "red")
    picture, bars = plotting.neuron_reading(image, [[3.0, 1.0], [0.0, 0.0]], ["a", " b"], [0.5, -1.0], title="title")
    assert [text.get_text() for text in picture.texts] == ["75 %", "25 %", "0 %", "0 %"]
    assert [patch.get_width() for patch in bars.patches] == [0.5, -1.0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["a", "␣b"]
    plotting.neuron_reading(image, [[0.0]], ["a"], [0.0], title="a silent neuron")


def test_found_planted():
    frame = rows(setting=["coverage", "paper"], budget=[0.5, 1.0], seed=[0, 1])
    axes = plotting.found_planted(frame, chance=0.05, title="title")
    assert [line.get_xdata()[0] for line in axes.lines] == [2.5, 5]  # what luck finds grows with the number chosen
    assert [label.get_text() for label in axes.get_yticklabels()] == ["coverage", "paper"]
    for budget, marks in zip([0.5, 1.0], axes.collections[1::2], strict=True):
        expected = 100 * frame[frame["budget"] == budget].groupby("setting", sort=False)["value"].mean()
        np.testing.assert_allclose(marks.get_offsets()[:, 0], expected)


def test_selectivity_is_that_of_the_modality_that_lags():
    """By hand: seeds averaged, points of forget minus points of retain, the smaller modality; other sets left out."""
    start = {("forget", "multimodal"): 1.0, ("forget", "text"): 0.9, ("retain", "multimodal"): 0.8, ("retain", "text"): 1.0}
    before = pd.DataFrame([(*key, value) for key, value in start.items()], columns=["set", "modality", "value"])
    after = {
        "z last": [(0.5, 0.2, 0.7, 0.9), (0.3, 0.0, 0.7, 0.7)],  # two seeds: 60 - 10 by image, 80 - 20 by name
        "a first": [(1.0, 0.9, 0.3, 1.0), (1.0, 0.9, 0.3, 1.0)],  # 0 - 50 by image, 0 - 0 by name
    }
    table = [
        (setting, seed, *key, value)
        for setting, seeds in after.items()
        for seed, values in enumerate(seeds)
        for key, value in zip(start, values, strict=True)
    ]
    table.append(("z last", 0, "celebrity", "text", 0.0))
    frame = pd.DataFrame(table, columns=["setting", "seed", "set", "modality", "value"])
    found = selectivity(frame, before, ["setting"])
    assert list(found.index) == ["z last", "a first"]
    assert found.to_numpy() == pytest.approx([50, -50])
    assert selectivity(frame.assign(alpha=5.0), before, ["setting", "alpha"])["z last", 5.0] == pytest.approx(50)
