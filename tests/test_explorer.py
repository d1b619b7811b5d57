"""The explorer shows what pruning and asking give, in a fraction of the time; without widgets a figure stands there."""


import pytest
import torch

from manu_utils import plotting
from manu_utils.models import exact_answers, find_neurons, generate_answers
from manu_utils.teaching import explorer
from manu_utils.teaching.tables import MODALITY_NAMES
from manu_utils.unlearning import prune_neurons, select_neurons

ALPHAS = (5.0, 60.0)
VARIANTS = ("coverage", "random")
CURRENT = {"variant": "coverage", "alpha": 60.0, "modality": "text"}


@pytest.fixture(scope="module")
def selections(tiny_model):
    mlps = find_neurons(tiny_model[0])
    n = sum(mlp.size for mlp in mlps)
    draws = {v: torch.rand(n, generator=torch.Generator().manual_seed(i)) for i, v in enumerate(VARIANTS)}
    return {(v, alpha): select_neurons(draws[v], mlps, alpha) for v in VARIANTS for alpha in ALPHAS}


@pytest.fixture(scope="module")
def panels(questions, tiny_model):
    """The truth of every second question is what the random model says, so that it knows some."""
    from dataclasses import replace

    found = {}
    for name, of in questions.items():
        for m, asked in of.items():
            said = generate_answers(*tiny_model, asked, max_new_tokens=3, progress=False)
            pairs = enumerate(zip(asked, said, strict=True))
            found[name, m] = [replace(q, answer=a) if i % 2 and a else q for i, (q, a) in pairs]
    return found


@pytest.fixture(scope="module")
def points(tiny_model, selections, panels):
    return explorer.measure_grid(*tiny_model, selections, panels, progress=False)


@pytest.fixture
def shown(tiny_model, selections, points, panels):
    people = {"somebody": panels["forget", "multimodal"][:2] + panels["forget", "text"][:2]}
    return plotting.Explorer(*tiny_model, selections, points, people)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_grid_is_pruning_and_asking_one_by_one(tiny_model, selections, panels, points):
    rows = points.set_index(["variant", "alpha", "set", "modality"])
    before = exact_answers(*tiny_model, panels)
    for key, value in before.set_index(["set", "modality"])["value"].items():
        assert rows.loc[("vanilla", 0.0, *key), "value"] == value
    for (variant, alpha), chosen in selections.items():
        with prune_neurons(tiny_model[0], chosen):
            slow = exact_answers(*tiny_model, panels)
        for row in slow.itertuples():
            found = rows.loc[(variant, alpha, row.set, row.modality)]
            assert (found["value"], found["n"]) == (row.value, row.n)
    assert len(points) == (1 + len(selections)) * len(panels)


def test_the_answers_are_those_of_the_pruned_model_which_is_given_back(tiny_model, selections, panels):
    model, _ = tiny_model
    asked, chosen = panels["forget", "text"], selections["coverage", 60.0]
    before, options = weights(model), {"max_new_tokens": explorer.LONGEST, "progress": False}
    vanilla = generate_answers(*tiny_model, asked, **options)
    with prune_neurons(model, chosen):
        slow = generate_answers(*tiny_model, asked, **options)
    assert explorer.answers_without(*tiny_model, chosen, asked) == slow != vanilla
    assert explorer.answers_without(*tiny_model, None, asked) == vanilla
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_percent_by_layer(tiny_model):
    mlps = find_neurons(tiny_model[0])
    chosen = torch.zeros(sum(mlp.size for mlp in mlps), dtype=torch.bool)
    chosen[: mlps[0].size // 4] = True
    percent = explorer.percent_by_layer(chosen, mlps)
    assert list(percent.values()) == [25.0] + [0.0] * (len(mlps) - 1)
    assert next(iter(percent)) == "vision 0"


def test_a_setting_is_drawn_as_it_was_measured(shown, points):
    percent = {"vision 0": 3.0, "language 0": 7.5}
    bars, plane = plotting.explored(points, percent, **CURRENT)
    assert [bar.get_width() for bar in bars.patches] == [3.0, 7.5]
    here = points[(points.variant == "coverage") & (points.alpha == 60) & (points.modality == "text")]
    here = here.set_index("set")["value"]
    large = max(plane.lines, key=lambda line: line.get_markersize() if line.get_marker() != "None" else 0)
    assert large.get_xydata().tolist() == [[100 * here["forget"], 100 * here["retain"]]]


def test_answers_and_pictures_are_kept(shown, monkeypatch):
    table, picture = shown.answers(**CURRENT, person="somebody"), shown.picture(**CURRENT)
    assert list(table.columns) == ["question", "truth", "answer"] and len(table) == 2
    assert picture.startswith(b"\x89PNG") and picture != shown.picture("coverage", 5.0, "text")
    monkeypatch.setattr("manu_utils.plotting.explorer.answers_without", None)
    assert shown.answers(**CURRENT, person="somebody").equals(table)


def test_before_pruning_all_variants_are_one_model(shown, monkeypatch):
    table = shown.answers("coverage", 0.0, "text", "somebody")
    monkeypatch.setattr("manu_utils.plotting.explorer.answers_without", None)
    assert shown.answers("random", 0.0, "text", "somebody").equals(table)
    assert shown.picture("random", 0.0, "text").startswith(b"\x89PNG")


def all_of(widget):
    return [widget, *(w for child in getattr(widget, "children", ()) for w in all_of(child))]


def test_a_moved_knob_changes_what_is_shown(shown):
    ipywidgets = pytest.importorskip("ipywidgets")
    parts = all_of(shown.widget())
    by_name = {w.description: w for w in parts if getattr(w, "description", "")}
    picture, portrait = (w for w in parts if isinstance(w, ipywidgets.Image))
    (table,) = (w for w in parts if isinstance(w, ipywidgets.HTML))
    seen = {(picture.value, table.value)}
    for name, value in (("α", 5.0), ("α", 0.0), ("method", "random"), ("α", 60.0)):
        by_name[name].value = value
        seen.add((picture.value, table.value))
    assert len({p for p, _ in seen}) > 3 and len({t for _, t in seen}) > 1
    assert portrait.layout.display == ""
    assert portrait.layout.align_self == "flex-start"  # else it is stretched beside the table
    by_name["asked by"].value = "text"
    assert portrait.layout.display == "none"


def test_an_error_of_the_model_is_shown(shown, monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")

    def fail(*_):
        raise RuntimeError("no <memory>")

    monkeypatch.setattr("manu_utils.plotting.explorer.answers_without", fail)
    (table,) = (w for w in all_of(shown.widget()) if isinstance(w, ipywidgets.HTML))
    assert "no &lt;memory&gt;" in table.value


@pytest.mark.parametrize("installed", [True, False])
def test_where_no_widget_runs_a_figure_stands(shown, monkeypatch, installed):
    if installed:
        pytest.importorskip("ipywidgets")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bundle = shown._repr_mimebundle_()
    assert bundle["image/png"].startswith("iVBOR")
    assert ("application/vnd.jupyter.widget-view+json" in bundle) is installed
    assert "Explorer" not in bundle["text/plain"] and "VBox" not in bundle["text/plain"]


def test_the_figure_has_a_panel_per_alpha_and_a_mark_per_variant_and_modality(points):
    grid = plotting.choices_by_alpha(points, title="title")
    assert [axes.get_title() for axes in grid] == ["α = 5 %", "α = 60 %"]
    for axes in grid:
        assert len(axes.lines) == (1 + len(VARIANTS)) * len(MODALITY_NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, p, people: (dict(list(s.items())[:-1]), p, people), "no selection at α"),
        (lambda s, p, people: (s, p[p.variant != "random"], people), "not in points"),
        (lambda s, p, people: (s, p, {}), "people is empty"),
        (lambda s, p, people: (s, p, {"x": people["somebody"][:2]}), "no text questions"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_model, selections, points, panels, change, message):
    people = {"somebody": panels["forget", "multimodal"][:2] + panels["forget", "text"][:2]}
    with pytest.raises(ValueError, match=message):
        plotting.Explorer(*tiny_model, *change(selections, points, people))
