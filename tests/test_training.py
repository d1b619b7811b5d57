"""Losses against closed forms on logits that can be written down, the optimiser's loop, and what fine-tuning may touch."""

import copy
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from manu_utils.batches import encode
from manu_utils.training import answer_logits, answer_loss, fine_tune, optimise, sample_forever


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
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"lr": -1.0}, "lr=-1.0 positive"),
        ({"lora_rank": 0}, "lora_rank=0 must be at least 1"),
    ],
)
def test_numbers_out_of_range(model, tiny_model, questions, numbers, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(model, tiny_model[1], questions, **({"steps": 1, "progress": False} | numbers))


@pytest.mark.parametrize("empty", [{}, {"multimodal": [], "text": []}])
def test_no_questions(model, tiny_model, empty):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no training questions for"):
        fine_tune(model, tiny_model[1], empty, steps=1, progress=False)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
