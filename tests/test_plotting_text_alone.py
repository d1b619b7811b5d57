"""The figures of notebook 10 draw the rows that they are given."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from manu_utils import plotting


def test_ratio_steps_marks_the_largest_gap():
    rng = np.random.default_rng(0)
    ratios = {
        name: np.exp(rng.normal(shift, 0.4, 60))
        for name, shift in (("vanilla", -0.5), ("ga", 0.6), ("retrained", 0))
    }
    grid = plotting.ratio_steps(ratios, title="title")
    assert len(grid) == 2
    for axes, name in zip(grid, ("vanilla", "ga"), strict=True):
        distance = ks_2samp(ratios[name], ratios["retrained"]).statistic
        assert axes.get_title() == f"{name}, {distance:.2f}"
        reference, own, bar = (line.get_xydata() for line in axes.lines)
        assert np.ptp(bar[:, 0]) == 0 and np.ptp(bar[:, 1]) == pytest.approx(distance)
        for line, values in ((reference, ratios["retrained"]), (own, ratios[name])):
            assert (line[0, 1], line[-1, 1]) == (0, 1)
            assert np.allclose(np.unique(line[:, 0]), np.sort(np.log10(values)))


def test_quality_plane_shows_every_model_once():
    frame = pd.DataFrame(
        {"forget_quality": [1.0, 1e-30, 1e-3], "model_utility": [0.6, 0.5, 0.0]},
        index=["retrained", "vanilla", "mine"],
    )
    axes = plotting.quality_plane(frame, title="title")
    marks = [tuple(line.get_xydata()[0]) for line in axes.lines[1:]]
    assert marks == [(0.6, 0.0), (0.5, -12.0), (0.0, -3.0)]
    assert [text.get_text() for text in axes.texts] == list(frame.index)
    assert axes.get_ylim()[0] < -12


def test_quiz_dots_tell_question_and_choices_in_grey():
    columns = pd.MultiIndex.from_product([["potions", "herbs"], ["question", "choices alone"]])
    frame = pd.DataFrame(
        [[100, 50, 90, 25], [30, 40, 80, 20]], index=["vanilla", "rewrite"], columns=columns
    )
    axes = plotting.quiz_dots(frame, title="title")
    marks = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    assert sorted(line.get_xdata()[0] for line in marks) == sorted(frame.to_numpy().flatten())
    hollow = [line.get_xdata()[0] for line in marks if line.get_markerfacecolor() == "white"]
    assert sorted(hollow) == [20, 25, 40, 50]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["vanilla", "rewrite"]


def test_seed_dots_draw_every_seed_and_the_mean():
    rows = [("vanilla", 0.5, 1), ("vanilla", 0.4, 2), ("retrained", 0.1, 3), ("erase", 0.2, 4)]
    frame = pd.DataFrame(rows, columns=["method", "distance", "auc"])
    grid = plotting.seed_dots(frame, {"D": "distance", "AUC": "auc"}, title="title")
    for axes, column in zip(grid, ("distance", "auc"), strict=True):
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        drawn = {int(line.get_ydata()[0]): list(line.get_xdata()) for line in dots}
        expected = [list(frame[frame["method"] == name][column]) for name in ("vanilla", "erase")]
        assert drawn == dict(enumerate(expected))
        means = [line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 2]
        assert means == pytest.approx([np.mean(values) for values in expected])
        dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed == [frame[frame["method"] == "retrained"][column].mean()]
    assert [label.get_text() for label in grid[0].get_yticklabels()] == ["vanilla", "erase"]
    for each, said in (({}, "a seed"), ({"each": "a request"}, "a request")):
        (axes,) = plotting.seed_dots(frame, {"D": "distance"}, title="title", **each)
        assert axes.figure.legends[0].get_texts()[0].get_text() == said
