import shutil

import pytest

from manu_utils import scales
from manu_utils.benchmark import load_benchmark
from manu_utils.models import load_model
from manu_utils.neurons import find_neurons
from manu_utils.scales import SCALES, check_room, needs


def test_the_tiny_scale_loads_and_its_size_is_right():
    scale = SCALES["tiny"]
    model, _ = load_model(scale.vanilla, processor=scale.processor)
    n = sum(parameter.numel() for parameter in model.parameters())
    assert n == pytest.approx(scale.parameters, rel=0.1)
    mlps = [mlp for mlp in find_neurons(model) if mlp.tower == "language"]
    assert scale.mlps == (len(mlps), mlps[0].size, mlps[0].output.out_features)
    assert len(load_benchmark(scale.benchmark, 10).forget) == 12


def test_needs_grow_with_the_model_and_every_scale_says_what_it_takes():
    needed = {name: needs(scale) for name, scale in SCALES.items()}
    assert needed["tiny"]["disk_gb"] == 0 and needed["tiny"]["memory_gb"] < 1
    assert needed["tiny"]["memory_gb"] < needed["colab"]["memory_gb"] < 16 < needed["paper"]["memory_gb"] < 24
    assert all(0 < entry["minutes"] < 240 for entry in needed.values())


def test_what_rewriting_holds_is_counted():
    """Of LLaVA-1.5-7B three layers of 11,008 neurons, not 32: second moments and their sums, factors and gradients."""
    weights = SCALES["paper"].parameters * SCALES["paper"].bytes_in_memory / 1e9
    of_layer = max(2 * 4 * 11_008**2, 4 * 11_008**2 + 3 * 4 * 11_008 * 4_096) / 1e9
    assert needs(SCALES["paper"])["memory_gb"] == pytest.approx(weights * 4 / 3 + 3 * of_layer, rel=1e-3)


def test_room_is_compared_with_what_is_here():
    table = check_room("tiny")
    assert list(table.index) == ["disk_gb", "memory_gb", "minutes"]
    assert (table["here"].dropna() >= table["needed"].dropna().loc[["disk_gb", "memory_gb"]]).all()
    assert table["here"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("disk", "memory", "named"), [(1e9, 1e12, "HF_HOME"), (1e12, 8e9, "larger GPU")], ids=["disk", "memory"]
)
def test_too_little_room_names_the_way_out(disk, memory, named, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": disk}))
    monkeypatch.setattr(scales, "_memory", lambda: memory)
    with pytest.raises(RuntimeError, match=named):
        check_room("paper")


def test_an_unknown_scale_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="tiny, colab, paper"):
        check_room("huge")
