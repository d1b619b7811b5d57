"""The figures of notebook 09 draw the rows that they are given."""

import itertools
import math

import numpy as np
import pandas as pd

from manu_utils import plotting

MODALITIES = ("multimodal", "text")


def rows(**columns):
    """One row per combination of the values of each column; the value differs in every row."""
    frame = pd.DataFrame(itertools.product(*columns.values()), columns=list(columns))
    return frame.assign(value=np.linspace(0.1, 0.9, len(frame)))


def test_attack_table_prints_every_number_with_its_sign():
    frame = rows(method=["b", "a"], attack=["open", "letters", "lens"], modality=MODALITIES)
    frame["value"] = [30, -7, 0.2, 64, math.nan, -61, 1, 2, 3, 4, 5, 6]
    grid = plotting.attack_table(frame, title="title")
    assert [axes.get_ylabel() for axes in grid] == ["image + text", "text alone"]
    assert [[text.get_text() for text in axes.texts] for axes in grid] == [
        ["+30", "0", "+1", "+3", "+5"], ["-7", "+64", "-61", "+2", "+4", "+6"],
    ]  # fmt: skip
    for axes in grid:
        assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
        image = axes.images[0]
        assert image.norm.vmin == -image.norm.vmax  # two-sided: zero is the middle of the colours
    assert [label.get_text() for label in grid[0].get_xticklabels()] == ["open", "letters", "lens"]
    assert [text.get_color() for text in grid[1].texts] == ["black", "white", "white"] + 3 * ["black"]
    assert grid[0].figure.get_suptitle() == "title"


def test_attack_table_takes_the_mean_of_seeds_and_leaves_out_what_is_missing():
    frame = rows(method=["a"], attack=["open"], modality=["text"], seed=[0, 1])
    above, below = plotting.attack_table(frame.assign(value=[10, 21]), title="title")
    assert not above.texts and [text.get_text() for text in below.texts] == ["+16"]


def test_relearning_curves():
    frame = rows(
        method=["npo", "retrained", "erase"], step=[8, 0, 2], seed=[0, 1],
        set=["forget", "retain"], modality=MODALITIES,
    )  # fmt: skip
    grid = plotting.relearning_curves(frame, title="title")
    assert [axes.get_title() for axes in grid] == ["npo", "erase"]
    for axes in grid:
        part = frame[frame["method"] == axes.get_title()]
        lines = {(line.get_color(), line.get_linestyle()): line for line in axes.lines}
        assert len(lines) == 6  # four of the method, two of the reference
        for name, modality in itertools.product(("forget", "retain"), MODALITIES):
            line = lines[plotting.COLOURS[name], "-" if modality == "multimodal" else "--"]
            curve = part[(part["set"] == name) & (part["modality"] == modality)]
            expected = 100 * curve.groupby("step")["value"].mean()
            np.testing.assert_allclose(line.get_ydata(), expected)
            np.testing.assert_allclose(line.get_xdata(), np.log2([1, 3, 9]))
            assert line.get_marker() == plotting.SET_MARKERS[name]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "8"]


def test_relearning_curves_without_a_reference():
    frame = rows(method=["npo"], step=[0, 2], set=["forget"], modality=MODALITIES)
    (axes,) = plotting.relearning_curves(frame, title="title")
    assert len(axes.lines) == 2
    assert "retrained" not in str([text.get_text() for text in axes.figure.legends[0].texts])


def test_membership_dots():
    frame = rows(score=["loss", "min_k"], method=["vanilla", "never met"], modality=MODALITIES)
    frame.loc[(frame["score"] == "loss") & (frame["method"] == "never met"), "value"] = math.nan
    grid = plotting.membership_dots(frame, title="title", names={"never met": "base"})
    assert [axes.get_title() for axes in grid] == ["loss", "min_k"]
    assert [label.get_text() for label in grid[0].get_yticklabels()] == ["vanilla", "never met"]
    marks = [[line for line in axes.lines if line.get_linestyle() == "None"] for axes in grid]
    assert [len(of_panel) for of_panel in marks] == [2, 4]
    for axes, of_panel in zip(grid, marks, strict=True):
        part = frame[(frame["score"] == axes.get_title()) & frame["value"].notna()]
        np.testing.assert_allclose([line.get_xdata()[0] for line in of_panel], part["value"])
        assert [line.get_markerfacecolor() == "white" for line in of_panel] == [
            modality == "text" for modality in part["modality"]
        ]
        assert axes.lines[0].get_xdata()[0] == 0.5
    styles = [plotting.method_style("base"), plotting.method_style("vanilla")]
    assert marks[1][2].get_color() == styles[0][0] and marks[1][0].get_color() == styles[1][0]
