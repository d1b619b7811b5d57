"""Figures of people, learning and results draw the rows that they are given."""

import matplotlib
import pandas as pd
import PIL.Image
import pytest

from manu_utils import plotting

MODALITIES = ("multimodal", "text")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def labels(legend):
    return [text.get_text() for text in legend.get_texts()]


def marks(axes, marker):
    """The points that are drawn with this marker."""
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == marker]


def test_portraits_say_whose_frame_is_whose():
    image = PIL.Image.new("RGB", (10, 10), "red")
    grid = plotting.portrait_grid([image] * 3, list("abc"), ["forget", "test", "test"], n_columns=2)
    colours = [axes.spines["top"].get_edgecolor() for axes in grid]
    names = ("forget", "test", "test")
    assert colours == [matplotlib.colors.to_rgba(plotting.COLOURS[name]) for name in names]
    assert all(axes.spines["top"].get_visible() for axes in grid)
    assert labels(grid[0].figure.legends[0]) == ["forget set", "test set"]


def test_members_to_forget_stand_out():
    members = pd.DataFrame(
        {"001": [True, False], "002": [False, False]}, index=["forget_5", "forget_10"],
    )
    axes = plotting.membership(members, title="t")
    assert axes.collections[0].get_array().ravel().tolist() == [1, 0, 0, 0]
    assert labels(axes.figure.legends[0]) == ["retain set", "forget set"]


@pytest.mark.parametrize(("answer", "lines"), [(2, 1), (8, 2)])
def test_an_answer_that_does_not_fit_begins_a_line(answer, lines):
    tokens = ["word"] * 10 + ["said"] * answer
    axes = plotting.token_strip(tokens, ["prompt"] * 10 + ["answer"] * answer, title="t", width=75)
    rows = [text.get_position()[1] for text in axes.texts]
    assert len(set(rows)) == lines and len(set(rows[10:])) == 1


def test_learning_curves_mark_the_set_and_dash_the_text():
    rows = [
        {"step": s, "set": name, "modality": m, "value": 0.5}
        for s in (0, 9)
        for name in ("vanilla", "celebrity")
        for m in MODALITIES
    ]
    axes = plotting.learning_curves(pd.DataFrame(rows), title="t", labels={"vanilla": "new people"})
    assert [line.get_marker() for line in axes.lines] == ["o", "o", "D", "D"]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"] * 2
    assert labels(axes.get_legend())[::2] == ["new people, image + text", "celebrity, image + text"]


def test_models_with_the_same_value_do_not_hide_each_other():
    rows = [
        {"model": model, "set": "forget", "task": "cloze", "modality": m, "value": 1.0, "n": 8}
        for model in ("base", "live", "vanilla") for m in MODALITIES
    ]  # fmt: skip
    (axes,) = plotting.compare_models(pd.DataFrame(rows), title="t")
    drawn = [line.get_xydata()[0] for line in axes.lines if line.get_linestyle() == "None"]
    assert len({tuple(point) for point in drawn}) == 6 and {point[0] for point in drawn} == {100}


def test_weights_of_ascent_are_drawn_as_lines():
    points = [(f"β = {b}", x, b * x) for b in (1, 2) for x in (0.0, 0.5)]
    frame = pd.DataFrame(points, columns=["loss", "ratio", "weight"])
    axes = plotting.weight_of_ascent(frame, title="weights")
    drawn = [list(line.get_ydata()) for line in axes.lines[:2]]
    assert drawn == [[0, 0.5], [0, 1.0]] and {"β = 1", "β = 2"} <= set(texts(axes))


def path_rows():
    rows = [
        {
            "method": "gd", "given": given, "strength": s, "modality": m, "forget": 0.5 / s,
            "retain": 0.9, "chosen": s == 2,
        }
        for given in ("both", "multimodal")
        for s in (2, 1)
        for m in MODALITIES
    ]
    point = pd.DataFrame([{"modality": m, "forget": 1.0, "retain": 0.8} for m in MODALITIES])
    return pd.DataFrame(rows), point


def test_paths_start_at_vanilla_and_follow_the_strength():
    rows, vanilla = path_rows()
    both, images = plotting.paths(rows, vanilla, vanilla.assign(forget=0.1), title="paths")
    assert [both.get_title(), images.get_title()] == ["gd", "gd, images only"]
    colour, marker = plotting.method_style("gd")
    for axes in (both, images):
        own = [line for line in axes.lines if line.get_color() == colour]
        lines = [line for line in own if line.get_marker() == "None"]
        assert [list(line.get_xdata()) for line in lines] == [[50, 25], [100, 50]] * 2
        assert sorted(line.get_linestyle() for line in lines) == ["-", "-", "--", "--"]
        assert marks(axes, marker) == [(50, 90), (25, 90)] * 2
        small, large = [line.get_markersize() for line in own if line.get_marker() == marker][:2]
        assert small < large
        assert marks(axes, "*") == [(10, 80)] * 2 and marks(axes, "s") == [(100, 80)] * 2
    assert labels(both.figure.legends[0]) == [
        "image + text", "text alone", "vanilla", "other methods", "retrained",
    ]


def test_many_paths_are_small_multiples():
    rows, vanilla = path_rows()
    names = ["paper", "ratio", "random", "coverage", "rewrite"]
    frame = pd.concat([rows[rows["given"] == "both"].assign(method=name) for name in names])
    grid = plotting.paths(frame[frame["modality"] == "text"], vanilla, vanilla, title="paths")
    assert [axes.get_title() for axes in grid] == names
    assert len(labels(grid[0].figure.legends[0])) == 4


def test_the_plane_of_modalities_has_a_labelled_point_per_method():
    frame = pd.DataFrame([("vanilla", "none", 1.0, 0.9), ("gd", "multimodal", 0.1, 0.8)],
                         columns=["method", "given", "multimodal", "text"])  # fmt: skip
    axes = plotting.modality_balance(
        frame, pd.Series({"multimodal": 0.1, "text": 0.2}), title="balance",
    )
    names = ("vanilla", "gd", "retrained")
    points = {name: marks(axes, plotting.method_style(name)[1]) for name in names}
    assert points == {"vanilla": [(100, 90)], "gd": [(10, 80)], "retrained": [(10, 20)]}
    assert texts(axes)[-3:] == [
        "vanilla", "gd, images only", "retrained",
    ] and axes.get_legend() is None
    half = [line.get_marker() for line in axes.lines if line.get_fillstyle() == "left"]
    assert half == [plotting.method_style("gd")[1]]


def test_costs_are_written_out():
    numbers = {"seconds": [0.5, 20.0], "weights_changed": [0, 3_900_000]}
    frame = pd.DataFrame({"method": ["random", "gd"]} | numbers)
    grid = plotting.costs(frame, {"seconds": "s", "weights_changed": "weights"}, title="costs")
    assert [texts(axes) for axes in grid] == [["0.5", "20"], ["0", "3.9 M"]]
    assert all(axes.get_xscale() == "log" for axes in grid)
    assert marks(grid[1], plotting.method_style("random")[1]) == []  # a log axis has no 0


def test_paired_differences_have_a_line_and_a_mark_for_each_seed_and_modality():
    rows = [
        {"pair": pair, "seed": seed, "set": name, "modality": m, "difference": d, "low": d - 0.1, "high": d + 0.2}
        for pair, at in (("b - a", 0.3), ("c - a", -0.5))
        for name in ("forget", "retain")
        for m in MODALITIES
        for seed, d in ((0, at), (1, at / 2))
    ]  # fmt: skip
    grid = plotting.paired_differences(pd.DataFrame(rows), title="t", measure="letters")
    assert [text.get_text() for text in grid[0].get_yticklabels()] == ["b - a", "c - a"]
    assert "points of letters" in grid[0].figure.get_supxlabel()
    for axes, name in zip(grid, ("forget", "retain"), strict=True):
        points = marks(axes, plotting.SET_MARKERS[name])
        assert [x for x, _ in points] == pytest.approx([30, 15, 30, 15, -50, -25, -50, -25])
        heights = [y for _, y in points]
        assert heights == sorted(heights) and len(set(heights)) == 8 and max(heights[:4]) < 0.5 < min(heights[4:])
        lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
        spans = [line for line in lines if line.get_ydata()[0] in heights]
        assert list(spans[0].get_xdata()) == pytest.approx([20, 50]) and spans[0].get_linestyle() == "-"
        assert [line.get_linestyle() for line in spans] == ["-", "-", "--", "--"] * 2
        faces = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == plotting.SET_MARKERS[name]]
        assert faces[2] == "white" != faces[0]


def test_bridge_rows_show_people_by_modality_and_general_questions_apart():
    values = {"forget": 0.2, "test": 0.1, "retain": 0.8}
    rows = [
        {"model": model, "set": name, "modality": modality, "value": value + 0.05 * (modality == "text")}
        for model in ("vanilla", "coverage")
        for name, value in values.items()
        for modality in ("multimodal", "text")
    ]
    rows += [{"model": "vanilla", "set": "general", "modality": "text", "value": 0.7}]
    grid = plotting.bridge_rows(pd.DataFrame(rows), title="title")
    assert [text.get_text() for text in grid[0].get_yticklabels()] == ["vanilla", "coverage"]
    for axes, more, face in zip(grid, (0, 5), (None, "white"), strict=False):
        marks = [line for line in axes.lines if line.get_marker() in ("o", "^", "s")]
        found = sorted(round(line.get_xdata()[0]) for line in marks)
        assert found == sorted(2 * [round(100 * value + more) for value in values.values()])
        assert all((line.get_markerfacecolor() == "white") == (face == "white") for line in marks)
    stars = [line for line in grid[2].lines if line.get_marker() == "*"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in stars] == [(70, 0)]
