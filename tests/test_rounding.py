"""Rounding against loops over single numbers and the real packages, and what must survive it."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from manu_utils.auditing import (
    answers_when_rounded,
    nf4,
    round_weights,
    rounded,
    rounding,
    zeros_when_rounded,
)
from manu_utils.benchmark import open_questions
from manu_utils.models import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning.pruning import prune_neurons

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def random_weight(shape=(7, 37), seed=0, dtype=torch.float32):
    """With an exact zero in each column, a row of zeros, and one weight far out."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1
    weight[3] = 0
    weight[:, 5] = 0
    weight[1, 2] = -2.0
    return weight.to(dtype)


def slow_round(weight, bits, group):
    """Number by number."""
    weight, levels = weight.double().numpy(), 2 ** (bits - 1) - 1
    out = np.zeros_like(weight)
    width = group or weight.shape[1]
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], width):
            part = weight[row, start : start + width]
            scale = max(abs(value) for value in part) / levels
            for column, value in enumerate(part, start):
                out[row, column] = scale * round(value / scale) if scale else 0.0
    return torch.from_numpy(out)


def slow_nf4(weight, block):
    """Number by number, over the rows one after another."""
    flat = weight.double().flatten().tolist()
    out = []
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        scale = max(map(abs, part))
        for value in part:
            near = min(rounding.NF4, key=lambda level: abs(value - level * scale))
            out.append(near * scale if scale else 0.0)
    return torch.tensor(out, dtype=torch.float64).view(weight.shape)


# --- the formulas


@pytest.mark.parametrize("group", [None, 1, 5, 37, 64])
@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_number_by_number(bits, group):
    weight = random_weight(dtype=torch.float64)
    torch.testing.assert_close(
        round_weights(weight, bits, group), slow_round(weight, bits, group), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("block", [1, 16, 64, 1000])
def test_nf4_number_by_number(block):
    weight = random_weight(dtype=torch.float64)
    torch.testing.assert_close(nf4(weight, block), slow_nf4(weight, block), rtol=0, atol=1e-12)


def test_the_table_of_nf4_are_quantiles():
    p = 0.9677083  # of bitsandbytes
    above, below = norm.ppf(np.linspace(p, 0.5, 9)[:-1]), -norm.ppf(np.linspace(p, 0.5, 8)[:-1])
    table = np.sort(np.concatenate([above, [0], below]))
    np.testing.assert_allclose(rounding.NF4, table / table.max(), atol=2e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_is_rounded_in_float32(dtype):
    weight = random_weight(dtype=dtype)
    for rounds in (lambda w: round_weights(w, 4), lambda w: round_weights(w, 3, 8), nf4):
        out = rounds(weight)
        assert out.dtype == dtype and not out.requires_grad
        exact = rounds(weight.to(torch.promote_types(dtype, torch.float32)))
        assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize("bits", range(2, 9))
def test_few_levels_no_error_above_half_a_step_and_nothing_moves_twice(bits):
    weight = random_weight(dtype=torch.float64)
    out = round_weights(weight, bits)
    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((out - weight).abs() <= step / 2 + 1e-12).all()
    assert max(len(row.unique()) for row in (out / step.clamp_min(1e-9)).round()) <= 2**bits - 1
    torch.testing.assert_close(round_weights(out, bits), out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_zeros_survive(dtype):
    weight = random_weight(dtype=dtype)
    for out in (*(round_weights(weight, bits, 8) for bits in range(2, 9)), nf4(weight)):
        assert (out[weight == 0] == 0).all() and out.isfinite().all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda w: round_weights(w, 1), "bits=1"),
        (lambda w: round_weights(w, 9), "must be 2 to 8"),
        (lambda w: round_weights(w, True), "bits=True"),
        (lambda w: round_weights(w, "nf4"), "bits='nf4'"),
        (lambda w: round_weights(w, 4, 0), "group=0"),
        (lambda w: nf4(w, 0), "block=0"),
        (lambda w: nf4(w[0]), "weight must be a float tensor"),
        (lambda w: round_weights(w.to(torch.int8), 4), "weight must be a float tensor"),
        (lambda w: round_weights(w / 0, 4), "not finite"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(random_weight())


# --- a whole model


def linear_weights(model):
    return {f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)}


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("setting", [(4, None), (3, 8), ("nf4", None), ("nf4", 16)])
def test_inside_every_linear_layer_is_rounded_and_nothing_else(tiny_model, vision, setting):
    model, _ = tiny_model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    meant = {
        name for name in linear_weights(model)
        if name != "lm_head.weight" and (vision or "language_model" in name)
    }  # fmt: skip
    bits, group = setting
    with rounded(model, bits, group, vision=vision) as same:
        assert same is model
        now = {name: value.clone() for name, value in model.state_dict().items()}
    changed = {name for name in before if not torch.equal(now[name], before[name])}
    assert changed == meant and any("q_proj" in name for name in meant)
    for name in meant:
        w = before[name]
        expected = nf4(w, group or 64) if bits == "nf4" else round_weights(w, bits, group)
        assert torch.equal(now[name], expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_every_bit_is_back_after_an_error(tiny_model, dtype, error):
    model = copy.deepcopy(tiny_model[0]).to(dtype).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error), rounded(model, 2):
        raise error
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_a_weight_that_cannot_be_rounded_leaves_the_model_untouched(tiny_model):
    model = copy.deepcopy(tiny_model[0])
    last = list(linear_weights(model.get_decoder()).values())[-1]
    last.data[0, 0] = torch.inf
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="not finite"), rounded(model):
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Packed(nn.Module):
    """A layer as packages for quantised models have it: buffers, no float weight."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", torch.zeros(linear.weight.shape, dtype=torch.int32))


class Params4bit(nn.Parameter):
    """As bitsandbytes calls it."""


def integers(linear):
    linear.weight = nn.Parameter(linear.weight.data.to(torch.int8), requires_grad=False)
    return linear


def in_a_class_of_its_own(linear):
    linear.weight = Params4bit(linear.weight.data)
    return linear


def on_meta(linear):
    return linear.to("meta")


@pytest.mark.parametrize("where", ["self_attn.q_proj", "mlp.down_proj"])
@pytest.mark.parametrize(
    "quantise, message",
    [
        (Packed, "quantised already"),
        (in_a_class_of_its_own, "quantised already"),
        (integers, "load the model whole, in float16"),
        (on_meta, "offloaded"),
    ],
)
def test_a_quantised_model_is_refused(tiny_model, where, quantise, message):
    model = copy.deepcopy(tiny_model[0])
    parent, _, name = where.rpartition(".")
    layer = model.get_decoder().layers[0].get_submodule(parent)
    setattr(layer, name, quantise(getattr(layer, name)))
    with pytest.raises(ValueError, match=message), rounded(model):
        pass
    with pytest.raises(ValueError, match=message):
        zeros_when_rounded(model)


def test_vanilla_keeps_its_answers_at_8_bits_and_loses_them_at_2(benchmark):
    model, processor = load_model("tiny")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    two = benchmark.forget.select(range(2))
    asked = {("forget", m): open_questions(two, m) for m in ("multimodal", "text")}
    settings = ((8, None), (2, None), ("nf4", None), (4, 32))
    rows = answers_when_rounded(model, processor, asked, settings, progress=False)
    assert rows.columns.tolist() == ["rounding", "set", "modality", "value", "n"]
    names = ["none", "8 bits", "2 bits", "nf4 by 64", "4 bits by 32"]
    assert rows["rounding"].drop_duplicates().tolist() == names and (rows["n"] == 8).all()
    worst = rows.groupby("rounding")["value"].agg(["min", "max"])
    assert worst.loc["none", "min"] == worst.loc["8 bits", "min"] == 1.0
    assert worst.loc["2 bits", "max"] <= 0.25
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("settings", [(), 4, (4,), "nf4", [(4, None, True)]])
def test_settings_are_pairs(tiny_model, questions, settings):
    asked = {("forget", "text"): questions["forget"]["text"]}
    with pytest.raises(TypeError, match="pairs of bits and group"):
        answers_when_rounded(*tiny_model, asked, settings)
    with pytest.raises(ValueError, match="bits=16"):
        answers_when_rounded(*tiny_model, asked, ((4, None), (16, None)))


# --- zeros


def test_pruned_neurons_stay_pruned(tiny_model):
    model, _ = tiny_model
    n = sum(mlp.size for mlp in find_neurons(model))
    with prune_neurons(model, torch.arange(n) % 10 == 0):
        zeros = sum(int((w == 0).sum()) for w in linear_weights(model.get_decoder()).values())
        for vision in (False, True):
            rows = zeros_when_rounded(model, vision=vision)
            assert len(rows) == len(rounding.SETTINGS) and (rows["pruned"] == -(-n // 10)).all()
            assert (rows["zeros_left"] == rows["zeros"]).all()
            assert (rows["pruned_left"] == rows["pruned"]).all()
            assert (rows["zeros"] == zeros).all() or vision


def test_a_rounding_that_moves_zeros_is_seen(tiny_model, monkeypatch):
    """With a zero point between two steps nothing is exactly zero afterwards."""
    monkeypatch.setattr(rounding, "nf4", lambda weight, block: nf4(weight, block) + 1e-3)
    model, _ = tiny_model
    n = sum(mlp.size for mlp in find_neurons(model))
    with prune_neurons(model, torch.arange(n) >= n - 5):
        row = zeros_when_rounded(model, (("nf4", None),)).iloc[0]
    assert row["zeros"] > 0 and row["zeros_left"] == 0
    assert (row["pruned"], row["pruned_left"]) == (5, 0)


# --- the real packages, where they are installed


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao.quantization")


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("shape", [(96, 256), (40, 72)])
def test_nf4_is_that_of_bitsandbytes(bitsandbytes, dtype, shape):
    """Equal without its quantisation of the maxima; with it within 1 % of the largest weight."""
    functional = bitsandbytes.functional
    table = functional.get_4bit_type("nf4", device="cpu").tolist()
    assert table == pytest.approx(rounding.NF4, abs=1e-7)
    weight = random_weight(shape, dtype=dtype)
    for twice, tolerance in ((False, 1e-6), (True, 0.01)):
        packed = functional.quantize_4bit(
            weight, blocksize=64, quant_type="nf4", compress_statistics=twice
        )
        real = functional.dequantize_4bit(*packed)
        largest = weight.float().abs().max()
        assert (real.float() - nf4(weight).float()).abs().max() <= tolerance * largest
        assert (real[weight == 0] == 0).all()


def test_8_bits_are_those_of_bitsandbytes(bitsandbytes):
    """One level apart at most, and for one weight in a thousand."""
    weight = random_weight((96, 256), dtype=torch.float16)
    levels, scale, _ = bitsandbytes.functional.int8_vectorwise_quant(weight)
    ours = round_weights(weight.float(), 8) / scale[:, None] * 127
    apart = (levels.float() - ours.nan_to_num()).abs()
    assert apart.max() <= 1.001 and (apart > 1e-3).float().mean() <= 1e-3


@pytest.mark.parametrize("bits, group", rounding.SETTINGS[:-1])
def test_rounding_is_that_of_torchao(torchao, bits, group):
    """Equal where a group's largest weight is positive; its default, with one level more below,
    within a step."""
    from torchao.quantization.quant_primitives import MappingType

    weight = random_weight((96, 256)).clamp(-0.2, 0.2)
    weight[:, ::32] = torch.where(weight[:, ::32].abs().sum(1, keepdim=True) > 0, 0.3, 0.0)
    step = 0.3 / (2 ** (bits - 1) - 1)
    size = torchao.PerGroup(group) if group else torchao.PerAxis(0)
    for kind, tolerance in (("SYMMETRIC_NO_CLIPPING_ERR", 1e-6), ("SYMMETRIC", step)):
        layer = nn.Linear(256, 96, bias=False)
        layer.weight.data = weight.clone()
        config = torchao.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"),
            granularity=size,
            mapping_type=MappingType[kind],
        )
        torchao.quantize_(layer, config)
        real = layer.weight.dequantize()
        assert (real - round_weights(weight, bits, group)).abs().max() <= tolerance
        assert (real[weight == 0] == 0).all()


def test_a_model_that_torchao_quantised_is_refused(torchao, tiny_model):
    model = copy.deepcopy(tiny_model[0])
    torchao.quantize_(model.get_decoder(), torchao.Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match="quantised already"), rounded(model):
        pass


def test_a_model_that_bitsandbytes_quantised_is_refused(bitsandbytes, tiny_model):
    model = copy.deepcopy(tiny_model[0])
    attention = model.get_decoder().layers[0].self_attn
    layer = bitsandbytes.nn.Linear4bit(attention.q_proj.in_features, attention.q_proj.out_features)
    attention.q_proj = layer.to("cpu")
    with pytest.raises(ValueError, match="quantised already"), rounded(model):
        pass
