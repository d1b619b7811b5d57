"""Figures of neurons, selections and results: they draw the data that they are given, and change no global state."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from manu_utils import plotting  # noqa: E402

LAYERS = ["vision 0", "vision 1", "language 0", "language 1"]
MODALITIES = ["multimodal", "text"]
N = 200


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


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
        for people in plotting.SET_NAMES
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
    assert [list(line.get_xdata()) for line in text.lines if len(line.get_xdata())] == [[2, 3]]


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
        assert texts(axes) == ["50 % below", "25 % above"]


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
    for axes in plotting.trade_off(sweep(), start(), floor=0.1, title="t"):
        lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
        assert len(lines) == 2
        for line in lines:
            np.testing.assert_allclose(line.get_xdata(), [100, 80, 50, 0])
            np.testing.assert_allclose(line.get_ydata(), [98, 98, 95, 90])


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


def test_figures_of_one_set_have_its_colour_everywhere():
    assert plotting.COLOURS["forget"] == "#D55E00" and plotting.COLOURS["retain"] == "#0072B2"
    assert len(set(plotting.COLOURS.values())) == len(plotting.COLOURS)
