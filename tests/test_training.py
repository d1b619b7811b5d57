"""Losses against closed forms on logits that can be written down, the optimiser's loop, and what fine-tuning may touch."""

import copy
import itertools
import math
import re
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from manu_utils.auditing import membership_scores, relearn
from manu_utils.models import precision
from manu_utils.models.asking import answer_logits
from manu_utils.models.encoding import encode
from manu_utils.models.passes import gradients_of
from manu_utils.models.precision import check_memory, float32_weights
from manu_utils.models.training import answer_loss, fine_tune, optimise, sample_forever, train_language_model
from manu_utils.unlearning.attribution import collect_attribution
from manu_utils.unlearning.baselines import unlearn_by_training
from manu_utils.unlearning.neuron_paths import neuron_paths
from manu_utils.unlearning.privacy_neurons import privacy_scores
from manu_utils.unlearning.rewriting import margin_gradient
from manu_utils.unlearning.saliency import diagonal_fisher


class Spelt(nn.Module):
    """A model whose hidden states are given and whose output embedding is the identity: logits = hidden states."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def model(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(last_hidden_state=self.logits)

    def get_output_embeddings(self):
        return nn.Identity()


@pytest.fixture
def spelt():
    """Two rows of four tokens over a vocabulary of three; the answers are the last token and the last two."""
    logits = torch.tensor(
        [[[9.0, 9, 9], [7, 7, 7], [1, 2, 3], [5, 5, 5]], [[8, 8, 8], [0, 1, 0], [2, 0, 1], [6, 6, 6]]]
    )  # fmt: skip
    batch = {
        "input_ids": torch.tensor([[0, 0, 1, 2], [0, 1, 1, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
        "answer_mask": torch.tensor([[False, False, False, True], [False, False, True, True]]),
    }
    return Spelt(logits), batch


def test_logits_are_those_that_predict_the_answer(spelt):
    logits, targets, rows = answer_logits(*spelt)
    assert logits.tolist() == [[1, 2, 3], [0, 1, 0], [2, 0, 1]]
    assert targets.tolist() == [2, 1, 0] and rows.tolist() == [0, 1, 1]


def test_the_loss_is_the_mean_cross_entropy_of_the_answer(spelt):
    def surprise(scores, right):
        return math.log(sum(math.exp(score) for score in scores)) - scores[right]

    expected = (surprise([1, 2, 3], 2) + surprise([0, 1, 0], 1) + surprise([2, 0, 1], 0)) / 3
    assert answer_loss(*spelt).item() == pytest.approx(expected, rel=1e-6)


def test_prompt_and_padding_get_no_gradient(spelt):
    model, batch = spelt
    answer_loss(model, batch).backward()
    used = model.logits.grad.abs().sum(-1) > 0
    assert used.tolist() == [[False, False, True, False], [False, True, True, False]]


@pytest.mark.parametrize("modality", ["multimodal", "text"])
def test_the_loss_of_a_batch_is_that_of_its_questions(tiny_model, benchmark, modality):
    """Against the model's own loss, one question at a time, with every label but the answer's masked."""
    model, processor = tiny_model
    questions = benchmark.training_questions(benchmark.forget_ids[:1], modality)[:4]
    total, n = 0.0, 0
    with torch.no_grad():
        for question in questions:
            one = encode([question], processor, with_answer=True)
            mask = one.pop("answer_mask")
            total += model(**one, labels=one["input_ids"].masked_fill(~mask, -100)).loss.item() * int(mask.sum())
            n += int(mask.sum())
        found = answer_loss(model, encode(questions, processor, with_answer=True)).item()
    assert found == pytest.approx(total / n, rel=1e-5)


# ------------------------------------------------------------------------------------------------ the loop


def test_optimise_finds_a_minimum_and_leaves_frozen_parameters():
    free, frozen = nn.Parameter(torch.tensor([3.0, -2.0])), nn.Parameter(torch.tensor([1.0]), requires_grad=False)
    seen = []
    history = optimise(
        [free, frozen], lambda step: seen.append(step) or ((free - 1) ** 2).sum(), steps=300, lr=0.1, warmup=5,
        watch=lambda: {"x": free[0].item()}, every=120, progress=False,
    )  # fmt: skip
    assert seen == list(range(300))
    torch.testing.assert_close(free.detach(), torch.ones(2), atol=0.05, rtol=0)
    assert frozen.item() == 1 and frozen.grad is None
    assert [visit["step"] for visit in history] == [0, 120, 240, 300]
    assert math.isnan(history[0]["loss"]) and history[0]["x"] == 3 and history[-1]["loss"] < 0.01


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of every step that is taken."""
    taken = []

    class Watched(torch.optim.AdamW):
        def step(self, *arguments, **options):
            taken.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    return taken


@pytest.mark.parametrize("hold", [0.0, 0.5])
def test_the_learning_rate_warms_up_holds_and_decays_to_a_tenth(rates, hold):
    parameter = nn.Parameter(torch.ones(1))
    optimise([parameter], lambda step: parameter.sum(), steps=1000, lr=2.0, warmup=10, hold=hold, progress=False)
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6], rel=1e-3)
    decay = rates[max(10, int(1000 * hold)) :]
    assert rates[10 : int(1000 * hold)] == pytest.approx([2.0] * len(rates[10 : int(1000 * hold)]))
    assert decay == sorted(decay, reverse=True) and decay[0] == pytest.approx(2.0, rel=1e-3)
    assert decay[len(decay) // 2] == pytest.approx(1.1, rel=0.02) and rates[-1] == pytest.approx(0.2, rel=1e-3)


def test_a_learning_rate_that_is_held_for_ever_does_not_depend_on_the_number_of_steps(rates):
    parameter = nn.Parameter(torch.ones(1))
    optimise([parameter], lambda step: parameter.sum(), steps=30, lr=2.0, warmup=4, hold=1.0, progress=False)
    assert rates == pytest.approx([0.5, 1.0, 1.5] + [2.0] * 27)


def test_the_gradient_is_clipped():
    steep = nn.Parameter(torch.tensor([0.0]))
    kept = []
    clip = nn.utils.clip_grad_norm_

    def watched(parameters, largest):
        norm = clip(parameters, largest)
        kept.append(parameters[0].grad.abs().item())
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", watched)
        optimise([steep], lambda step: 1000 * steep.sum(), steps=2, lr=0.1, progress=False)
    assert kept == pytest.approx([1, 1], abs=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step(bad):
    parameter = nn.Parameter(torch.tensor([1.0]))
    values = []

    def loss_of_step(step):
        values.append(parameter.item())
        return parameter.sum() * (bad if step == 3 else 1.0)

    with pytest.raises(FloatingPointError, match=f"loss is {bad} at step 3; lower lr"):
        optimise([parameter], loss_of_step, steps=10, lr=0.1, progress=False)
    assert parameter.item() == values[3]


@pytest.mark.parametrize("rank", [None, 2])
def test_a_last_step_that_overflows_is_an_error_and_undone(tiny_model, rank):
    """Its loss was finite, and there is no later one."""
    model = copy.deepcopy(tiny_model[0])
    before, seen = copy.deepcopy(model.state_dict()), []

    def loss_of_step(step):
        return sum((p - p.detach()).sum() for p in model.parameters() if p.requires_grad)

    watch = {"watch": lambda: seen.append(1) or {}, "every": 2}
    with pytest.raises(FloatingPointError, match="no longer finite after the last step; lower lr"):
        train_language_model(model, loss_of_step, steps=2, lr=1e37, warmup=1, lora_rank=rank, **watch, progress=False)
    assert len(seen) == 1  # before the first step; a broken model is not looked at
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_every_item_comes_once_before_any_comes_again():
    stream = sample_forever(list(range(6)), 4, seed=0)
    items = [item for batch in itertools.islice(stream, 6) for item in batch]
    assert all(Counter(items[start : start + 6]) == Counter(range(6)) for start in range(0, 24, 6))
    assert items != sorted(items)
    assert items == [item for batch in itertools.islice(sample_forever(list(range(6)), 4, seed=0), 6) for item in batch]
    assert len(next(sample_forever([1, 2], 5, seed=0))) == 5


# ------------------------------------------------------------------------------------------------ fine-tuning


@pytest.fixture(scope="module")
def questions(benchmark):
    return {m: benchmark.training_questions(benchmark.forget_ids[:1], m)[:6] for m in ("multimodal", "text")}


@pytest.fixture
def model(tiny_model):
    """A copy of its own, with one parameter already frozen."""
    copied = copy.deepcopy(tiny_model[0])
    copied.model.language_model.norm.weight.requires_grad_(False)
    return copied


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_fine_tuning_changes_the_language_model_alone(model, tiny_model, questions):
    before, flags_before = copy.deepcopy(model.state_dict()), flags(model)
    modes = []
    history = fine_tune(
        model, tiny_model[1], questions, steps=4, batch_size=4, watch=lambda: modes.append(model.training) or {"seen": 1},
        every=2, progress=False,
    )  # fmt: skip
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed and all("language_model" in name or name == "lm_head.weight" for name in changed)
    assert {name for name in before if ".mlp." in name and "language_model" in name} <= changed
    assert flags(model) == flags_before
    assert not model.training and modes == [False] * 3
    assert [(visit["step"], visit["seen"]) for visit in history] == [(0, 1), (2, 1), (4, 1)]
    assert all(math.isfinite(visit["loss"]) for visit in history[1:])


@pytest.mark.parametrize("watch", [None, lambda: {"seen": 1}])
def test_a_log_is_given_every_row_as_it_comes(model, tiny_model, questions, watch):
    rows = []

    def log(row):
        rows.append(dict(row))
        row.clear()  # what a logger does to its row is its own affair

    options = {"steps": 3, "batch_size": 2, "every": 2, "progress": False}
    history = fine_tune(model, tiny_model[1], {"text": questions["text"]}, watch=watch, log=log, **options)
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert str(rows) == str(history)  # nan is no equal of itself
    assert all(("seen" in row) == (watch is not None) for row in rows)


def test_an_output_layer_of_its_own_is_trained_too(tiny_model, questions):
    from transformers import LlavaForConditionalGeneration

    config = copy.deepcopy(tiny_model[0].config)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    before = model.lm_head.weight.detach().clone()
    fine_tune(model, tiny_model[1], {"text": questions["text"]}, steps=1, batch_size=2, progress=False)
    assert not model.lm_head.weight.equal(before)


def test_fine_tuning_lowers_the_loss_and_is_seeded(tiny_model, questions):
    final = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(tiny_model[0])
        history = fine_tune(
            model, tiny_model[1], {"text": questions["text"]}, steps=15, batch_size=6, lr=2e-2, seed=seed, every=1,
            progress=False,
        )  # fmt: skip
        final.append([visit["loss"] for visit in history[1:]])
    assert final[0] == final[1]
    assert final[0][-1] < 0.8 * final[0][0]
    assert final[2] != final[0]


def test_a_nan_loss_is_raised_and_the_flags_come_back(model, tiny_model, questions):
    flags_before = flags(model)
    model.model.language_model.layers[0].mlp.up_proj.weight.data[0] = math.nan
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        fine_tune(model, tiny_model[1], questions, steps=2, batch_size=2, progress=False)
    assert flags(model) == flags_before and not model.training


def test_adapters_leave_a_plain_model(model, tiny_model, questions):
    """LoRA of rank 2: linear layers of the language model change by a matrix of that rank, and nothing else does."""
    before, modules = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    flags_before = flags(model)
    fine_tune(model, tiny_model[1], questions, steps=2, batch_size=2, lr=0.5, lora_rank=2, progress=False)
    assert [type(module) for module in model.modules()] == modules and flags(model) == flags_before
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {name for name in before if "language_model.layers" in name and name.endswith("_proj.weight")}
    for name in changed:
        difference = (model.state_dict()[name] - before[name]).double()
        assert torch.linalg.matrix_rank(difference, rtol=1e-3) <= 2


def test_adapters_have_the_scale_of_the_official_ones_and_a_seed(tiny_model, questions):
    """ΔW = B A without a factor (rank and alpha are equal); A is drawn from the seed, which is the caller's affair alone."""
    drawn, scales = {}, set()
    for number, seed in enumerate((3, 3, 4)):
        model, state = copy.deepcopy(tiny_model[0]), torch.get_rng_state()

        def look(number=number, model=model):
            adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
            scales.update(module.scaling["default"] for module in adapted)
            drawn.setdefault(number, [module.lora_A["default"].weight.detach().clone() for module in adapted])
            return {}

        fine_tune(
            model, tiny_model[1], {"text": questions["text"]}, steps=1, batch_size=2, lora_rank=2, seed=seed, watch=look,
            progress=False,
        )  # fmt: skip
        assert torch.get_rng_state().equal(state)
    assert scales == {1.0} and len(drawn[0]) == 7 * tiny_model[0].config.text_config.num_hidden_layers
    same, other = ([a.equal(b) for a, b in zip(drawn[0], drawn[n], strict=True)] for n in (1, 2))
    assert all(same) and not any(other)


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"steps": 0}, "steps=0 is "),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"steps": 2.0}, "steps=2.0 must be a whole number"),
        ({"lr": -1.0}, "lr=-1.0 must be a finite number above 0"),
        ({"lr": math.nan}, "lr=nan must be a finite number"),
        ({"lr": "1e-3"}, "lr='1e-3' must be a number such as"),
        ({"lora_rank": 0}, "lora_rank=0 is "),
        ({"lora_rank": "16"}, "lora_rank='16' must be a whole number"),
        ({"batch_size": "8"}, "batch_size='8' must be a whole number"),
        ({"batch_size": 0}, "batch_size=0 is "),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"every": 0}, "every=0 is "),
        ({"every": None}, "every=None must be a whole number"),
        ({"questions": []}, "questions is a list; it must be a dict"),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_first_step(model, tiny_model, questions, numbers, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        fine_tune(model, tiny_model[1], **({"questions": questions, "steps": 1, "progress": False} | numbers))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("numbers", [{"every": 0}, {"warmup": 0}, {"hold": 1.5}, {"hold": -0.1}, {"steps": 0}, {"lr": 0}])
def test_the_loop_itself_refuses_them_too(numbers):
    parameter, asked = nn.Parameter(torch.ones(1)), []
    with pytest.raises(ValueError, match=f"{next(iter(numbers))}=.*( must be| is )"):
        optimise([parameter], asked.append, **({"steps": 2, "lr": 0.1, "progress": False} | numbers))
    assert not asked and parameter.item() == 1


@pytest.mark.parametrize("empty", [{}, {"multimodal": [], "text": []}])
def test_no_questions(model, tiny_model, empty):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no training questions for"):
        fine_tune(model, tiny_model[1], empty, steps=1, progress=False)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ arithmetic

HALF = (torch.bfloat16, torch.float16)
QUICK = {"steps": 3, "batch_size": 2, "progress": False}


@contextmanager
def dtypes_of_products(model):
    """The dtypes that the last MLP's output layer writes while gradients are kept: what training computes in."""
    seen = set()
    layer = model.model.language_model.layers[-1].mlp.down_proj
    hook = layer.register_forward_hook(lambda _, __, out: seen.add(out.dtype) if torch.is_grad_enabled() else None)
    try:
        yield seen
    finally:
        hook.remove()


def gpu(monkeypatch, dtype):
    """As if the CPU were a GPU that computes in ``dtype``: CPUs know both kinds of autocast and the scaler."""
    monkeypatch.setattr("manu_utils.models.precision.pick_dtype", lambda device: dtype)


@pytest.mark.parametrize(
    "device, hardware, expected",
    [
        ("cpu", True, torch.float32),
        ("mps", True, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda:1", False, torch.float16),
    ],
)
def test_bfloat16_is_picked_only_where_the_hardware_has_it(device, hardware, expected, monkeypatch):
    """A T4 emulates it, and says so only if it is asked."""
    supported = lambda including_emulation=True: including_emulation or hardware  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision.pick_dtype(device) == expected


@pytest.mark.parametrize("surrounding", [False, True])
@pytest.mark.parametrize("own", [torch.float32, *HALF])
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_cpu_trains_in_float32(model, tiny_model, questions, own, lora_rank, surrounding):
    """Whatever the model's dtype, and even within somebody else's autocast; the model has its own dtype back."""
    model.to(own)
    before = copy.deepcopy(model.state_dict())
    options = QUICK | {"lr": 1e-2, "lora_rank": lora_rank}
    with dtypes_of_products(model) as seen, torch.autocast("cpu", dtype=torch.bfloat16, enabled=surrounding):
        fine_tune(model, tiny_model[1], questions, **options)
    assert seen == {torch.float32}
    after = model.state_dict()
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    changed = {name for name in before if not after[name].equal(before[name])}
    assert changed and all("language_model" in name or name == "lm_head.weight" for name in changed)


@pytest.mark.parametrize("method", ["kl", "npo"])
def test_the_reference_is_read_in_float32_too_and_keeps_its_dtype_and_mode(model, tiny_model, benchmark, method, monkeypatch):
    """In half precision: at the start KL is 0, and NPO's loss that of ratio 1, only if both are read alike."""
    model.bfloat16()
    forget = {"text": benchmark.training_questions(benchmark.forget_ids[:1], "text")[:2]}
    retain = {"text": benchmark.training_questions(benchmark.retain_ids[:1], "text")[:2]}
    reference = copy.deepcopy(model).train() if method == "npo" else None
    seen = []
    monkeypatch.setattr(
        "manu_utils.unlearning.objectives.answer_logits", lambda of, batch: seen.append(of.dtype) or answer_logits(of, batch)
    )
    history = unlearn_by_training(
        method, model, tiny_model[1], forget, retain, reference=reference, every=1, **QUICK | {"steps": 1}
    )
    assert set(seen) == {torch.float32} and model.dtype == torch.bfloat16
    if reference is not None:
        assert history[1]["loss"] == pytest.approx(2 / 0.4 * math.log(2), rel=1e-6)
        assert reference.dtype == torch.bfloat16 and reference.training


@pytest.mark.parametrize("computes_in", HALF)
@pytest.mark.parametrize("own", [torch.float32, *HALF])
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_gpu_computes_in_half_precision_and_trains_float32(
    model, tiny_model, questions, own, computes_in, lora_rank, monkeypatch
):
    gpu(monkeypatch, computes_in)
    model.to(own)
    trained = []

    class Watched(torch.optim.AdamW):
        def step(self, *arguments, **options):
            taken = super().step(*arguments, **options)
            trained.extend(p.dtype for group in self.param_groups for p in group["params"])
            trained.extend(v.dtype for state in self.state.values() for v in state.values())
            return taken

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    before = copy.deepcopy(model.state_dict())
    with dtypes_of_products(model) as seen:
        history = fine_tune(model, tiny_model[1], questions, **QUICK | {"lr": 1e-2, "lora_rank": lora_rank}, every=1)
    assert seen == {computes_in} and set(trained) == {torch.float32}
    assert all(math.isfinite(visit["loss"]) for visit in history[1:])
    after = model.state_dict()
    assert all(after[name].dtype == value.dtype for name, value in before.items())
    assert any(not after[name].equal(value) for name, value in before.items())
    frozen = [name for name in before if "vision" in name or "projector" in name]
    assert frozen and all(after[name].equal(before[name]) for name in frozen)


def test_small_steps_add_up_in_half_precision(model, tiny_model, questions):
    """In bfloat16 itself, steps of 2e-5 would be rounded away; float32 weights gather them."""
    model.bfloat16()
    before = copy.deepcopy(model.state_dict())
    fine_tune(model, tiny_model[1], questions, steps=30, batch_size=2, lr=2e-4, progress=False)
    moved = [(value != before[name]).float().mean().item() for name, value in model.state_dict().items() if ".mlp." in name]
    assert max(moved) > 0.5


def test_float16_steps_are_scaled_and_none_is_lost():
    """Gradients of 1e-9 vanish in float16 and do not when scaled; a scale that is too large is halved for the same loss."""
    weight, asked = nn.Parameter(torch.ones(1)), []
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)

    def loss_of_step(step):
        asked.append(step)
        return (weight.half() * 64).float().sum()  # backward in float16: 64 * 2**20 is beyond its range

    optimise([weight], loss_of_step, steps=3, lr=0.1, warmup=1, hold=1.0, scaler=scaler, progress=False)
    assert asked == [0, 1, 2] and scaler.get_scale() == 2.0**9
    assert weight.item() == pytest.approx(0.7, abs=0.01)  # AdamW: three whole steps


def test_gradients_are_unscaled_before_they_are_clipped(monkeypatch):
    weight, norms = nn.Parameter(torch.ones(1)), []
    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *given: norms.append(clip(*given)) or norms[-1])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimise([weight], lambda step: 3 * weight.sum(), steps=2, lr=0.1, scaler=scaler, progress=False)
    assert norms == pytest.approx([3, 3])


def test_gradients_that_overflow_at_every_scale_are_raised():
    weight = nn.Parameter(torch.ones(1))

    def steep(step):
        return (weight - 1).sqrt().sum()

    with pytest.raises(FloatingPointError, match="loss is .* at step 0, but its gradient is not finite"):
        optimise([weight], steep, steps=3, lr=0.1, scaler=torch.amp.GradScaler("cpu"), progress=False)
    with pytest.raises(FloatingPointError, match="its gradient is not finite"):
        optimise([weight], steep, steps=3, lr=0.1, progress=False)
    assert weight.item() == 1


@pytest.mark.parametrize("bad, fails_at", [({1}, None), ({1, 3}, None), ({2, 3, 4}, 4), ({0, 1, 2}, 2), ({9}, 9)])
def test_one_overflow_of_float16_is_passed_over_and_a_lasting_one_raised(bad, fails_at):
    weight, asked = nn.Parameter(torch.ones(1)), []

    def loss_of_step(step):
        asked.append(step)
        return weight.sum() * (math.inf if step in bad else 1.0)

    options = {"steps": 10, "lr": 0.1, "scaler": torch.amp.GradScaler("cpu"), "progress": False}
    if fails_at is None:
        optimise([weight], loss_of_step, **options)
        assert len(asked) == 10 and weight.item() < 1
    else:
        with pytest.raises(FloatingPointError, match=f"loss is inf at step {fails_at}"):
            optimise([weight], loss_of_step, **options)
    assert weight.isfinite()


def test_a_trained_weight_beyond_its_own_dtype_is_raised_and_the_model_as_it_was():
    model = nn.Linear(2, 2).half()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="beyond the range of torch.float16"), float32_weights(model, [model.weight]):
        model.weight.data[0, 0] = 1e6
    assert all(value.equal(before[name]) and value.dtype == torch.float16 for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ the model afterwards


def tell_dropout(model):
    """Attention drops half of its weights in train mode."""
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5


def test_training_goes_on_in_train_mode_after_every_look(model, tiny_model, questions):
    """Dropout makes two losses of one batch differ at every step, and never in a look."""
    tell_dropout(model)
    batch = encode(questions["text"], tiny_model[1], with_answer=True)
    steps, looks = [], []

    def twice(seen):
        with torch.no_grad():
            seen.append([answer_loss(model, batch).item() for _ in range(2)])

    def loss_of_step(step):
        twice(steps)
        return answer_loss(model, batch)

    train_language_model(model, loss_of_step, steps=4, lr=1e-3, watch=lambda: twice(looks) or {}, every=2, progress=False)
    assert len(steps) == 4 and all(one != other for one, other in steps)
    assert len(looks) == 3 and all(one == other for one, other in looks)


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_every_module_has_its_mode_back(model, tiny_model, questions, lora_rank):
    model.train()
    model.model.vision_tower.eval()
    before = [module.training for module in model.modules()]
    fine_tune(model, tiny_model[1], questions, **QUICK, lora_rank=lora_rank, watch=dict)
    assert [module.training for module in model.modules()] == before


class Stop(BaseException):
    """Stands for KeyboardInterrupt."""


@pytest.mark.parametrize("where", ["loss", "watch", "loss is nan", "backward"])
@pytest.mark.parametrize("own", [torch.float32, *HALF])
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_an_interrupted_run_leaves_the_model_as_it_was(model, tiny_model, questions, where, own, lora_rank):
    model.to(own).train()
    before, flags_before = copy.deepcopy(model.state_dict()), flags(model)
    kinds, modes = [type(module) for module in model.modules()], [module.training for module in model.modules()]
    batch = encode(questions["text"], tiny_model[1], with_answer=True)
    moved, looks, hooks = [], [], []

    def stop(_):
        raise Stop

    def loss_of_step(step):
        if step == 2:
            moved.append(any(p.grad is None and p.requires_grad for p in model.parameters()))
            if where == "loss":
                raise Stop
            if where == "backward":  # one weight has its gradient by then
                trained = next(p for p in model.parameters() if p.requires_grad)
                hooks.append(trained.register_post_accumulate_grad_hook(stop))
        return answer_loss(model, batch) * (math.nan if step == 2 and where == "loss is nan" else 1)

    def watch():
        looks.append(len(looks))
        if where == "watch" and len(looks) == 3:
            raise Stop
        return {}

    with pytest.raises((Stop, FloatingPointError)):
        train_language_model(
            model, loss_of_step, steps=5, lr=0.1, warmup=1, lora_rank=lora_rank, watch=watch, every=1, progress=False
        )
    for hook in hooks:
        hook.remove()
    assert looks[1:], "it was interrupted after a step"
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(after[name].equal(value) and after[name].dtype == value.dtype for name, value in before.items())
    assert flags(model) == flags_before and [type(module) for module in model.modules()] == kinds
    assert [module.training for module in model.modules()] == modes
    assert not hasattr(model, "peft_config") and all(p.grad is None for p in model.parameters())


def test_gradients_of_the_caller_do_not_enter_the_first_step(tiny_model, questions):
    final = []
    for stale in (False, True):
        model = copy.deepcopy(tiny_model[0])
        if stale:
            answer_loss(model, encode(questions["text"], tiny_model[1], with_answer=True)).mul(1e3).backward()
        fine_tune(model, tiny_model[1], {"text": questions["text"]}, **QUICK)
        final.append(model.state_dict())
    assert all(value.equal(final[1][name]) for name, value in final[0].items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_flow_whatever_surrounds_the_call(model, tiny_model, questions, mode):
    before = copy.deepcopy(model.state_dict())
    with mode():
        fine_tune(model, tiny_model[1], questions, **QUICK)
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items())


def backward_passes(questions):
    """Name -> each function that takes a gradient of a model."""
    some, few = questions["text"][:2], {"text": questions["text"][:2]}
    quiet = {"progress": False}
    return {
        "attribution": lambda *given: collect_attribution(*given, some, **quiet),
        "rewriting": lambda *given: margin_gradient(*given, few, {"text": torch.ones(len(some), dtype=torch.bool)}),
        "paths": lambda *given: neuron_paths(*given, few, steps=2, **quiet),
        "privacy": lambda *given: privacy_scores(*given, few, steps=2, **quiet),
        "fisher": lambda *given: diagonal_fisher(*given, few, **quiet),
        "membership": lambda *given: membership_scores(*given, some, **quiet),
        "relearning": lambda *given: relearn(*given, few, {("retain", "text"): some}, steps=(1,), **quiet),
        "training": lambda *given: fine_tune(*given, few, **QUICK),
    }


@pytest.mark.parametrize("name", list(backward_passes({"text": []})))
def test_no_gradient_flows_through_the_attention_of_cudnn(name, model, tiny_model, questions, monkeypatch):
    """Its backward pass gives NaN for masked batches of some lengths in half precision."""
    attention, on = nn.functional.scaled_dot_product_attention, []

    def seen(*given, **options):
        found = attention(*given, **options)
        if found.requires_grad:
            on.append(torch.backends.cuda.cudnn_sdp_enabled())
        return found

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", seen)
    backward_passes(questions)[name](model, tiny_model[1])
    assert on and not any(on)
    assert torch.backends.cuda.cudnn_sdp_enabled(), "as the caller had it"


@pytest.mark.parametrize("before", [False, True])
def test_the_kernels_of_the_caller_are_there_again_after_an_error(tiny_model, before):
    try:
        torch.backends.cuda.enable_cudnn_sdp(before)
        with pytest.raises(KeyboardInterrupt), gradients_of(tiny_model[0]):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise KeyboardInterrupt
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_a_model_of_inference_mode_is_refused_with_its_flags_as_they_were(tiny_model, questions):
    with torch.inference_mode():
        model = copy.deepcopy(tiny_model[0])
        model.model.language_model.norm.weight.requires_grad_(False)
    before = flags(model)
    assert any(before.values())
    for parameters in ((), [model.lm_head.weight]):
        with pytest.raises(ValueError, match="made under torch.inference_mode"), gradients_of(model, parameters):
            pass
        assert flags(model) == before
    with pytest.raises(ValueError, match="made under torch.inference_mode"):
        fine_tune(model, tiny_model[1], questions, **QUICK)
    assert flags(model) == before


# ------------------------------------------------------------------------------------------------ what is refused


def test_quantised_offloaded_and_wrapped_models_are_refused(model, tiny_model, questions):
    layer = model.model.language_model.layers[0].mlp.up_proj
    packed = copy.deepcopy(model)
    packed.model.language_model.layers[0].mlp.up_proj.weight = nn.Parameter(layer.weight.char(), requires_grad=False)
    with pytest.raises(ValueError, match="up_proj.weight is int8, and quantised weights cannot be trained"):
        fine_tune(packed, tiny_model[1], questions, **QUICK)
    away = copy.deepcopy(model)
    away.model.language_model.layers[0].mlp.up_proj.weight = nn.Parameter(layer.weight.to("meta"))
    with pytest.raises(ValueError, match="offloaded to the CPU or to disk, and gradients need it in memory"):
        fine_tune(away, tiny_model[1], questions, **QUICK)
    with pytest.raises(TypeError, match="wrapped in DataParallel; pass model.module"):
        fine_tune(nn.DataParallel(model), tiny_model[1], questions, **QUICK)
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(TypeError, match="wrapped in PeftModel; merge the adapters first"):
        fine_tune(wrapped, tiny_model[1], questions, **QUICK)


@pytest.mark.parametrize("own, bytes_more", [(torch.float32, 12), (torch.bfloat16, 14)])
def test_too_little_room_for_full_fine_tuning_names_the_bytes_and_the_way_out(own, bytes_more):
    """A weight in training takes 16 bytes: itself, gradient, two moments; what it takes already is not counted again."""
    weights, device = [nn.Parameter(torch.zeros(1000, 1000, dtype=own))], torch.device("cpu")
    check_memory(weights, {device: bytes_more * 1e6})
    message = r"training all weights takes 0.0 GB more on cpu .*: train adapters with lora_rank=16"
    with pytest.raises(RuntimeError, match=message):
        check_memory(weights, {device: bytes_more * 1e6 - 1})
    check_memory(weights, {})  # no GPU


def test_a_scaler_changes_no_step():
    """Gradients that differ from step to step, some clipped: it is the gradient without the scale that is clipped."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimise(
            [weight], lambda step, weight=weight: (weight * torch.tensor([0.3, 5.0 * (step % 2)])).sum(), steps=6, lr=0.1,
            warmup=1, hold=1.0, scaler=scaler, progress=False,
        )  # fmt: skip
        found.append(weight.detach())
    torch.testing.assert_close(*found)
