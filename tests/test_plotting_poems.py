"""The figures of notebook 11 about poems draw the rows that they are given."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from manu_utils import plotting


def test_a_word_that_is_recited_is_dark():
    rows = {"vanilla": [True, True, True], "npo": [True, False, False]}
    axes = plotting.recited_words(["the", "pale", "moon"], rows, title="title")
    dark = [to_hex(patch.get_facecolor()) != "#ffffff" for patch in axes.patches]
    assert dark == [*rows["vanilla"], *rows["npo"]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["the", "pale", "moon"]
    assert axes.get_yticklabels()[1].get_text() == "npo, 1 of 3"


def test_every_method_has_a_mark_at_its_mean_and_bars_over_requests():
    rows = [("vanilla", 1.0, 1.0), ("vanilla", 1.0, 0.8), ("npo", 0.2, 0.5), ("npo", 0.4, 0.9)]
    frame = pd.DataFrame(rows, columns=["method", "words", "facts"])
    axes = plotting.words_and_facts(frame, title="title")
    facts, words, centre = (line.get_xydata() for line in axes.lines[3:6])
    assert facts[:, 0].tolist() == [0.5, 0.9] and words[:, 1].tolist() == [0.2, 0.4]
    assert centre[0] == pytest.approx([0.7, 0.3])
    assert {text.get_text() for text in axes.texts} == {"vanilla", "npo"}


def test_what_is_taken_along_is_written_out():
    table = pd.DataFrame({"itself": [0.69, 0.73], "others": [0.98, 0.93]}, index=["poem", "author"])
    axes = plotting.taken_along(table, title="title", label="share")
    assert [text.get_text() for text in axes.texts] == ["0.69", "0.98", "0.73", "0.93"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["poem", "author"]
