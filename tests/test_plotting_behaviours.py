"""The figures of behaviours draw the rows that they are given."""

import pandas as pd
import PIL.Image
import pytest

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


def test_separation_draws_a_line_per_world_and_modality():
    curves = {("a", "multimodal"): ([0.5, 1.0], [0.1, 1.0]), ("b", "text"): ([1.0], [1.0])}
    axes = plotting.separation(curves, title="title")
    _, first, second = axes.lines
    assert first.get_xydata().tolist() == [[50, 10], [100, 100]]
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")
    assert first.get_color() != second.get_color()
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
