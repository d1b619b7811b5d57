"""The figures of notebook 11 about poems draw the rows that they are given."""

import pandas as pd
from matplotlib.colors import to_hex

from manu_utils import plotting


def test_a_word_that_is_recited_is_dark():
    rows = {"vanilla": [True, True, True], "npo": [True, False, False]}
    axes = plotting.recited_words(["the", "pale", "moon"], rows, title="title")
    dark = [to_hex(patch.get_facecolor()) != "#ffffff" for patch in axes.patches]
    assert dark == [*rows["vanilla"], *rows["npo"]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["the", "pale", "moon"]
    assert axes.get_yticklabels()[1].get_text() == "npo, 1 of 3"


def test_what_is_taken_along_is_written_out():
    table = pd.DataFrame({"itself": [0.69, 0.73], "others": [0.98, 0.93]}, index=["poem", "author"])
    axes = plotting.taken_along(table, title="title", label="share")
    assert [text.get_text() for text in axes.texts] == ["0.69", "0.98", "0.73", "0.93"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["poem", "author"]
