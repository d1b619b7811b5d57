"""Figures of neurons, selections and results: they draw the data that they are given, and change no global state."""

import inspect
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from manu_utils import plotting
from manu_utils.plotting.style import label_points, styled

LAYERS = ["vision 0", "vision 1", "language 0", "language 1"]
MODALITIES = ["multimodal", "text"]
N = 200


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def percentiles():
    rows = [
        {"layer": layer, "modality": m} for m in MODALITIES for layer in LAYERS if m == "multimodal" or "vision" not in layer
    ]
    return pd.DataFrame(rows).assign(p5=0.1, p25=0.2, p50=0.3, p75=0.4, p95=0.9)


def activations(rng):
    sets = [(people, m) for people in ("forget", "retain") for m in MODALITIES]
    return pd.concat([pd.DataFrame({"set": people, "modality": m, "z": rng.normal(size=N)}) for people, m in sets])


def cuts():
    return pd.DataFrame(
        [
            {"variant": v, "layer": layer, "percent": 7.0, "low": 3.0, "high": 6.0}
            for v in ("ratio", "coverage")
            for layer in LAYERS
        ]
    )


def sweep():
    return pd.DataFrame(
        [
            {"method": method, "alpha": alpha, "modality": m, "forget": 1 - alpha / 10, "retain": 1 - alpha / 100}
            for method in ("coverage", "random")
            for alpha in (10.0, 2.0, 5.0)  # not in order
            for m in MODALITIES
        ]
    )


def bars():
    keys = [
        (people, task, m, model)
        for people in plotting.SET_MARKERS
        for task in ("classification", "cloze", "generation")
        for m in MODALITIES
        for model in ("vanilla", "coverage")
    ]
    return pd.DataFrame(keys, columns=["set", "task", "modality", "model"]).assign(value=0.75, n=24)


def start():
    return pd.DataFrame({"modality": MODALITIES, "forget": 1.0, "retain": 0.98})


FIGURES = {
    "layer_map": lambda rng: plotting.layer_map(pd.DataFrame(rng.random((4, 2)), LAYERS), title="t", label="l", sizes=[8] * 4),
    "percentile_curves": lambda rng: plotting.percentile_curves(percentiles(), title="t", label="l"),
    "one_neuron": lambda rng: plotting.one_neuron(activations(rng), tau=0.1, title="t"),
    "modality_plane": lambda rng: plotting.modality_plane(
        pd.DataFrame({"set": ["forget", "retain"] * N, "multimodal": rng.random(2 * N), "text": rng.random(2 * N)}),
        title="t", label="l", floor=1e-3,
    ),
    "locality": lambda rng: plotting.locality(
        pd.DataFrame({"part": ["model", "vision 0"] * N, "modality": "multimodal", "effective": 1 + 50 * rng.random(2 * N)}),
        title="t",
    ),
    "score_plane": lambda rng: plotting.score_plane(
        rng.random(N), rng.random(N), {"a": rng.random(N) > 0.9, "b": rng.random(N) > 0.5}, title="t", label="l", floor=1e-3
    ),
    "where_it_cut": lambda rng: plotting.where_it_cut(cuts(), alpha=5.0, title="t"),
    "agreement": lambda rng: plotting.agreement(pd.DataFrame(np.eye(2), list("ab"), list("ab")), chance=0.03, title="t"),
    "trade_off": lambda rng: plotting.trade_off(sweep(), start(), floor=0.1, title="t"),
    "balance": lambda rng: plotting.balance(
        pd.DataFrame({"method": ["coverage", "vanilla"], "multimodal": [0.2, 1.0], "text": [0.25, 0.9]}), floor=0.1, title="t"
    ),
    "task_grid": lambda rng: plotting.task_grid(bars(), title="t"),
}  # fmt: skip


def figure_of(drawn):
    return (drawn[0] if isinstance(drawn, list) else drawn).figure


@pytest.mark.parametrize("name", FIGURES)
def test_figures_fit_a_notebook_and_leave_no_settings(name, rng, tmp_path, monkeypatch):
    monkeypatch.setenv("MANU_BUILD", str(tmp_path))
    before = dict(matplotlib.rcParams)
    figure = figure_of(FIGURES[name](rng))
    assert dict(matplotlib.rcParams) == before
    assert figure.get_size_inches()[0] <= 8 and figure.get_size_inches()[1] <= 4.6
    plotting.save_figure(figure, name)
    assert 0 < (tmp_path / "figures" / f"{name}.png").stat().st_size <= 150_000
    sizes = {text.get_fontsize() for axes in figure.axes for text in [*axes.texts, axes.title, *axes.get_xticklabels()]}
    assert min(sizes) >= 9


def test_a_folder_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()  # nothing can be made below a file, not even by root
    monkeypatch.setenv("MANU_BUILD", str(tmp_path / "file" / "build"))
    with pytest.raises(PermissionError, match=r"build cannot be written \(.+\); set the environment variable MANU_BUILD"):
        plotting.build_dir()


def test_layer_map_leaves_missing_cells_empty_and_writes_the_others():
    table = pd.DataFrame({"image": [0.25, 0.5], "text": [np.nan, 1.0]}, index=["vision 0", "language 0"])
    axes = plotting.layer_map(table, title="t", label="l", sizes=[3, 4])
    assert sorted(texts(axes)) == ["0.25", "0.50", "1.00"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["vision 0 (3)", "language 0 (4)"]


def test_percentile_curves_draw_every_layer_with_data_once():
    image, text = plotting.percentile_curves(percentiles(), title="t", label="l")
    assert [list(line.get_xdata()) for line in image.lines] == [[0, 1], [2, 3]]
    assert [list(line.get_xdata()) for line in text.lines if len(line.get_xdata())] == [[0, 1]]
    assert [label.get_text() for label in text.get_xticklabels()] == ["language\n0", "language\n1"]


def test_percentile_curves_draw_what_is_silent_at_the_floor():
    image, _ = plotting.percentile_curves(percentiles().assign(p5=0.0, p50=0.0), title="t", label="l", floor=1e-2)
    assert image.get_yscale() == "log" and {y for line in image.lines for y in line.get_ydata()} == {1e-2}
    assert image.get_yticklabels()[0].get_text() == "≤ 0.01"


def test_one_neuron_says_what_share_is_beyond_tau():
    z = [0.0, 0.05, 0.2, -0.2]
    rows = [{"set": s, "modality": m, "z": v} for s in ("forget", "retain") for m in MODALITIES for v in z]
    for axes in plotting.one_neuron(pd.DataFrame(rows), tau=0.1, title="t"):
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["forget: 50.0 % beyond τ", "retain: 50.0 % beyond τ"]
        assert axes.get_title().endswith("n = 8")


def test_modality_plane_counts_both_sides():
    frame = pd.DataFrame(
        {"set": ["forget"] * 4 + ["retain"] * 4, "multimodal": [1, 1, 1, 0.1] * 2, "text": [0.1, 0.2, 1, 1] * 2}
    )
    for axes in plotting.modality_plane(frame, title="t", label="l", floor=1e-3):
        assert texts(axes) == ["50 % below the diagonal", "25 % above the diagonal", "25 % on it"]


def test_score_plane_draws_the_chosen_neurons(rng):
    forget, retain, chosen = rng.random(N) + 0.1, rng.random(N) + 0.1, rng.random(N) > 0.9
    (axes,) = plotting.score_plane(forget, retain, {"ours": chosen}, title="t", label="l", floor=1e-3)
    points = next(line for line in axes.lines if line.get_marker() == ".")
    np.testing.assert_allclose(points.get_xdata(), np.log10(retain[chosen]))
    np.testing.assert_allclose(points.get_ydata(), np.log10(forget[chosen]))
    assert axes.get_title() == f"ours: {chosen.sum()} chosen"


def test_where_it_cut_marks_alpha():
    for axes in plotting.where_it_cut(cuts(), alpha=5.0, title="t"):
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert [line.get_xdata()[0] for line in dashed] == [5.0]
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        assert [line.get_ydata()[0] for line in dots] == list(range(len(LAYERS)))


def test_trade_off_starts_at_vanilla_and_follows_alpha():
    panels = plotting.trade_off(sweep(), start(), floor=0.1, title="t")
    assert [axes.get_title() for axes in panels] == ["coverage", "random"]
    for axes in panels:
        colour, marker = plotting.method_style(axes.get_title())
        own = [line for line in axes.lines if line.get_color() == colour and line.get_marker() == "None"]
        for style in ("-", "--"):  # the measured strengths, and the thin stretch that leads to them
            measured, stretch = [line for line in own if line.get_linestyle() == style]
            np.testing.assert_allclose(measured.get_xydata(), [(80, 98), (50, 95), (0, 90)])
            np.testing.assert_allclose(stretch.get_xydata(), [(100, 98), (80, 98)])
            assert stretch.get_linewidth() < measured.get_linewidth()
        assert len([line for line in axes.lines if line.get_marker() == marker]) == 6
        assert texts(axes) == ["10", "2", "5"]


def test_frontier_draws_a_line_per_modality_beside_the_diagonal():
    rows = [{"modality": m, "forget": 10.0 * k, "retain": 5.0 * k * (1 + (m == "text"))} for m in MODALITIES for k in range(4)]
    diagonal, *lines = plotting.frontier(pd.DataFrame(rows), title="t").lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    for line, factor in zip(lines, (5.0, 10.0), strict=True):
        np.testing.assert_allclose(line.get_xdata(), factor * np.arange(4))
        np.testing.assert_allclose(line.get_ydata(), 10.0 * np.arange(4))


def test_balance_writes_the_gap():
    axes = FIGURES["balance"](None)
    assert {"5", "10"} <= set(texts(axes))


def test_task_grid_draws_bars_from_zero_with_intervals():
    grid = plotting.task_grid(bars(), title="t")
    assert len(grid) == 8
    low, high = plotting.wilson(0.75, 24)
    for axes in grid:
        assert [bar.get_height() for bar in axes.patches] == [75.0] * 6 and axes.get_ylim()[0] == 0
        assert all(list(line.get_ydata()) == [100 * low, 100 * high] for line in axes.lines)
        assert axes.get_title().endswith("n = 24 / 24 / 24")


@pytest.mark.parametrize(("share", "n"), [(0.0, 10), (1.0, 24), (0.5, 100), (0.9, 240)])
def test_wilson_holds_the_share_and_narrows(share, n):
    low, high = plotting.wilson(share, n)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1
    wide_low, wide_high = plotting.wilson(share, n // 2)
    assert high - low < wide_high - wide_low


# ------------------------------------------------------------------------------------------------ style


def grey(colour):
    """How light a colour is in grey, 0..1."""
    return float(np.dot(matplotlib.colors.to_rgb(colour), [0.299, 0.587, 0.114]))


def test_figures_of_one_set_have_its_colour_everywhere():
    assert plotting.COLOURS["forget"] == "#D55E00" and plotting.COLOURS["retain"] == "#0072B2"
    assert len(set(plotting.COLOURS.values())) == len(plotting.COLOURS)
    assert len(set(plotting.SET_MARKERS.values())) == len(plotting.SET_MARKERS) == 4
    for name in ("forget", "retain", "celebrity"):  # bars before and after stand side by side
        assert grey(plotting.COLOURS["vanilla"]) - grey(plotting.COLOURS[name]) > 0.15


def test_every_method_has_a_colour_and_a_marker_of_its_own():
    styles = {name: style for name, style in plotting.METHOD_STYLES.items() if name != "plain"}  # the paper's, without text
    colours, markers = zip(*styles.values(), strict=True)
    assert len(set(colours)) == len(colours) and len(set(markers)) == len(markers)
    meant = [matplotlib.colors.to_rgb(plotting.COLOURS[name]) for name in ("forget", "retain", "test", "celebrity")]
    for name, (colour, _) in styles.items():
        distances = np.linalg.norm(np.array(meant) - matplotlib.colors.to_rgb(colour), axis=1)
        assert distances.min() > 0.2, f"{name} looks like a set"
    assert plotting.method_style("gd, images only") == plotting.method_style("gd")
    assert plotting.method_style("of somebody else") == ("#000000", "x")


def test_the_style_is_that_of_the_sheet_and_a_figure_of_the_readers_is_not():
    axes, *_ = plotting.task_grid(bars(), title="t")
    axes.figure.canvas.draw()  # outside the style
    assert {label.get_fontsize() for label in axes.get_yticklabels()} == {9}
    assert not axes.spines["top"].get_visible() and axes.figure.get_layout_engine() is not None
    _, own = plt.subplots()
    own.figure.canvas.draw()
    assert {label.get_fontsize() for label in own.get_xticklabels()} == {matplotlib.rcParamsDefault["font.size"]}
    assert own.spines["top"].get_visible() and own.figure.get_layout_engine() is None


def test_the_reader_chooses_the_dots_per_inch():
    with matplotlib.rc_context({"figure.dpi": 200}):
        assert FIGURES["balance"](None).figure.dpi == 200


def test_every_public_figure_draws_in_the_style():
    inner = {styled(lambda: None).__code__}
    shared = {"method_style", "save_figure", "answers_table", "build_dir", "layer_name", "wilson"}
    figures = {n for n in plotting.__all__ if inspect.isfunction(getattr(plotting, n))} - shared
    assert len(figures) > 30 and all(getattr(plotting, name).__code__ in inner for name in figures)


def test_labels_cover_neither_points_nor_each_other():
    _, axes = plt.subplots(figsize=(6, 6))
    axes.set(xlim=(0, 100), ylim=(0, 100))
    points = [(50, 50), (50, 52.2), (80, 20), (98, 50), (50, 98)]
    label_points(axes, points, ["first label", "second label", "third", "at the edge", "at the top"])
    renderer = axes.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    places = axes.transData.transform(points)
    assert not any(box.contains(*place) for box in boxes for place in places)
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_a_line_does_not_strike_a_label_through():
    _, axes = plt.subplots(figsize=(3, 3))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0.5, 0.5], color="red", linewidth=1)
    label_points(axes, [(0.2, 0.5)], ["rewrite"])
    axes.figure.canvas.draw()
    pixels = np.asarray(axes.figure.canvas.buffer_rgba())[::-1, :, :3].astype(int)
    box = axes.texts[0].get_window_extent()
    behind = pixels[int(box.y0) : int(box.y1), int(box.x0) + 1 : int(box.x1)]
    assert not ((behind[..., 0] > 200) & (behind[..., 1] < 100)).any()  # nothing red


def test_only_plotting_needs_matplotlib():
    code = """
import importlib, pathlib, sys, manu_utils
root = pathlib.Path(manu_utils.__file__).parent
found = [file.relative_to(root.parent).with_suffix("") for file in root.rglob("*.py")]
names = [".".join(file.parts) for file in found if file.name != "__init__" and "plotting" not in file.parts]
assert "manu_utils.unlearning.pruning" in names
for name in names:
    if "miniature" not in name:  # whose parts need packages of their own
        importlib.import_module(name)
print(sorted({name.split(".")[0] for name in sys.modules} & {"matplotlib", "seaborn"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
