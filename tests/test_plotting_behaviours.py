"""The figures of behaviours draw the rows that they are given."""

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from matplotlib.text import Text

from manu_utils import plotting


def test_every_picture_has_its_caption():
    pictures = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    grid = plotting.picture_grid(pictures, list("abc"), title="title", n_columns=2)
    assert [axes.get_title() for axes in grid] == list("abc")
    assert tuple(grid[1].images[0].get_array()[0, 0]) == (0, 0, 255)


def test_answers_add_up_to_all():
    shares = {"told": [1, 0.25], "refused": [0, 0.25], "gibberish": [0, 0.5], "wrong": [0, 0]}
    axes = plotting.answer_bars(pd.DataFrame(shares, index=["one", "two"]), title="title")
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert len(ends) == 8 and ends[-2:] == pytest.approx([100, 100])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]


def test_the_plane_shows_the_mean_and_the_span_of_the_seeds():
    rows = [("gd", 0.2, 0.5), ("gd", 0.4, 0.7), ("mine", 0.0, 1.0)]
    frame = pd.DataFrame(rows, columns=["method", "attack", "sarr"])
    axes = plotting.attack_and_refusal(frame, title="title")
    across, upright, mark = (line.get_xydata() for line in axes.lines[:3])
    assert mark[0] == pytest.approx([60, 30])
    assert list(across[:, 0]) == pytest.approx([50, 70])
    assert list(upright[:, 1]) == pytest.approx([20, 40])
    assert [text.get_text() for text in axes.texts] == ["gd", "mine"]


def test_names_in_the_plane_stand_beside_their_own_marks():
    spans = {"retrained": (0, 0), "gd": (0.035, 0.107), "kl": (0.19, 0.2), "npo + kl": (0.054, 0.104)}
    spans |= {"paper": (0.38, 0.44)}
    rows = [(method, 0.0, sarr) for method, span in spans.items() for sarr in span]
    rows += [("idk + ce", 0.05, 0.037), ("idk + ce", 0.05, 0.057)]
    frame = pd.DataFrame(rows, columns=["method", "attack", "sarr"])
    axes = plotting.attack_and_refusal(frame, title="title")
    axes.figure.draw_without_rendering()
    marks = np.array([axes.transData.transform(text.xy) for text in axes.texts])
    for place, text in enumerate(axes.texts):
        box = Text.get_window_extent(text)  # without its line
        nearest = np.clip(marks, box.min, box.max)
        assert np.hypot(*(marks - nearest).T).argmin() == place, text.get_text()


def test_separation_draws_a_line_per_world_and_modality():
    curves = {("a", "multimodal"): ([0.5, 1.0], [0.1, 1.0]), ("b", "text"): ([1.0], [1.0])}
    axes = plotting.separation(curves, title="title")
    _, first, second = axes.lines
    assert first.get_xydata().tolist() == [[50, 10], [100, 100]]
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")
    assert first.get_color() != second.get_color()
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
