import shutil
from dataclasses import replace

import pytest
import torch

from manu_utils.benchmark.loading import load_benchmark
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.teaching import scales
from manu_utils.teaching.scales import SCALES, check_room, needs


def test_the_tiny_scale_loads_and_its_size_is_right():
    scale = SCALES["tiny"]
    model, _ = load_model(scale.vanilla, processor=scale.processor)
    n = sum(parameter.numel() for parameter in model.parameters())
    assert n == pytest.approx(scale.parameters, rel=0.1)
    mlps = [mlp for mlp in find_neurons(model) if mlp.tower == "language"]
    assert scale.mlps == (len(mlps), mlps[0].size, mlps[0].after.out_features)
    assert len(load_benchmark(scale.benchmark, 10).forget) == 12


def test_needs_grow_with_the_model_and_every_scale_says_what_it_takes():
    needed = {name: needs(scale) for name, scale in SCALES.items()}
    assert needed["tiny"]["disk_gb"] == 0 and needed["tiny"]["memory_gb"] < 1
    assert needed["tiny"]["memory_gb"] < needed["colab"]["memory_gb"] < 16 < needed["paper"]["memory_gb"] < 24
    assert all(0 < entry["minutes"] < 240 for entry in needed.values())


def test_training_is_counted_where_there_is_any():
    """Weights in float16, adapters with gradient and moments in float32, and what backward needs of 32 questions."""
    colab = SCALES["colab"]
    beside = 16 * colab.trained + 32 * colab.tokens * colab.kept
    assert needs(colab)["memory_gb"] == pytest.approx((2 * colab.parameters + beside) / 1e9)
    assert needs(replace(colab, epochs=0))["memory_gb"] < 2 * needs(colab)["memory_gb"] / 3
    assert all(scale.trained and scale.kept for scale in SCALES.values() if scale.epochs)


def test_what_backward_keeps_of_a_token_is_what_autograd_keeps():
    """Two language layers of SmolVLM-256M with adapters, in half precision: 30 of them keep what the scale says."""
    from peft import LoraConfig, LoraModel
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=50, hidden_size=576, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=9,
        num_key_value_heads=3,
    )
    with torch.random.fork_rng():
        model = LlamaModel(config).bfloat16()
        parts = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        LoraModel(model, LoraConfig(r=16, lora_alpha=16, target_modules=parts), "default")
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in adapters) * 15 == pytest.approx(SCALES["colab"].trained, rel=0.02)
    for parameter in adapters:
        parameter.data = parameter.data.float()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.ones(2, 70, dtype=torch.long), use_cache=False)
    per_token = sum(size for size, _ in kept.values()) / 140
    assert 15 * per_token == pytest.approx(SCALES["colab"].kept, rel=0.15)


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
