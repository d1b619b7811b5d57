"""Losses against closed forms on logits that can be written down, and what unlearning by training may touch."""

import copy
import itertools
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import MODALITIES, TASKS
from manu_utils.evaluation.tables import evaluate, merit
from manu_utils.models.asking import answer_logits
from manu_utils.models.encoding import encode
from manu_utils.models.training import answer_batches, answer_loss, train_language_model
from manu_utils.unlearning import baselines, objectives
from manu_utils.unlearning.baselines import METHODS, RIVALS, unlearn_by_training, with_system_prompt
from manu_utils.unlearning.losses import (
    control_vector,
    direct_preference,
    gradient_ascent,
    gradient_difference,
    kl_divergence,
    kl_minimisation,
    log_likelihoods,
    misdirection,
    negative_preference,
    self_distillation,
    simple_negative_preference,
)

# Two answer tokens of a vocabulary of three, as log-odds whose softmax is a fraction: (1, 2, 1) / 4 and (6, 1, 3) / 10.
FORGET = torch.tensor([[1.0, 2, 1], [6, 1, 3]]).log()
FORGET_TARGETS = torch.tensor([1, 2])
LOSS_OF_FORGET = (math.log(2) + math.log(10 / 3)) / 2
RETAIN = torch.tensor([[1.0, 1, 2]]).log()
RETAIN_TARGETS = torch.tensor([2])
VANILLA = torch.tensor([[2.0, 1, 1]]).log()


def test_gradient_ascent_is_minus_the_cross_entropy():
    assert gradient_ascent(FORGET, FORGET_TARGETS).item() == pytest.approx(-LOSS_OF_FORGET, rel=1e-6)


def test_gradient_difference_adds_the_retain_loss():
    found = gradient_difference(FORGET, FORGET_TARGETS, RETAIN, RETAIN_TARGETS).item()
    assert found == pytest.approx(-LOSS_OF_FORGET + math.log(2), rel=1e-6)


def test_kl_is_from_vanilla_to_current():
    """KL((2, 1, 1) / 4 ‖ (1, 1, 2) / 4) = log 2 / 2 − log 2 / 4; shifted logits mean the same."""
    found = kl_minimisation(FORGET, FORGET_TARGETS, RETAIN + 7, VANILLA - 3).item()
    assert found == pytest.approx(-LOSS_OF_FORGET + math.log(2) / 4, rel=1e-6)
    uneven = torch.tensor([[8.0, 1, 1]]).log()  # here the two directions differ
    forward = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.25 / 0.1)
    found = kl_minimisation(FORGET, FORGET_TARGETS, uneven, VANILLA).item()
    assert found == pytest.approx(-LOSS_OF_FORGET + forward, rel=1e-6)


def test_kl_is_a_mean_over_tokens_and_zero_at_vanilla():
    twice = kl_minimisation(FORGET, FORGET_TARGETS, torch.cat([RETAIN, VANILLA]), torch.cat([VANILLA, VANILLA])).item()
    assert twice == pytest.approx(-LOSS_OF_FORGET + math.log(2) / 8, rel=1e-6)
    assert kl_minimisation(FORGET, FORGET_TARGETS, VANILLA, VANILLA).item() == pytest.approx(-LOSS_OF_FORGET, rel=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.4, 2.0])
def test_npo_in_the_form_of_its_paper(beta):
    """(2/β) E log(1 + (π_θ/π_ref)^β), here for ratios of 1/2 and 3."""
    found = negative_preference(torch.tensor([0.1, 0.3]).log(), torch.tensor([0.2, 0.1]).log(), beta).item()
    assert found == pytest.approx(2 / beta * (math.log(1 + 0.5**beta) + math.log(1 + 3**beta)) / 2, rel=1e-6)


def test_npo_stands_still_where_the_answer_is_gone():
    likely = torch.tensor([0.0, -50.0], dtype=torch.float64, requires_grad=True)
    negative_preference(likely, torch.zeros(2), beta=0.4).backward()
    assert likely.grad[0].item() == pytest.approx(0.5)  # 2 σ(0), mean of two
    assert 0 < likely.grad[1] < 1e-8


def test_npo_becomes_gradient_ascent_for_small_beta():
    """The gradients on the logits agree, where ascent is on the mean log-likelihood of whole answers."""
    rows, beta = torch.tensor([0, 1]), 1e-6
    logits = FORGET.double().requires_grad_(True)
    likelihood = log_likelihoods(logits, FORGET_TARGETS, rows)
    ascent, = torch.autograd.grad(likelihood.mean(), logits, retain_graph=True)
    reference = torch.tensor([-3.0, 0.5], dtype=torch.float64)
    preference, = torch.autograd.grad(negative_preference(likelihood, reference, beta), logits)
    torch.testing.assert_close(preference.float(), ascent.float(), atol=1e-5, rtol=0)
    one_token_each, = torch.autograd.grad(gradient_ascent(logits, FORGET_TARGETS), logits)
    torch.testing.assert_close(ascent.float(), one_token_each.float(), atol=1e-6, rtol=0)


def test_likelihoods_add_up_over_the_tokens_of_an_answer():
    found = log_likelihoods(torch.cat([FORGET, RETAIN]), torch.tensor([1, 2, 2]), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([0.5 * 0.3, 0.5]).log())


@pytest.mark.parametrize("beta, gamma", [(2.5, 0.0), (4.5, 0.3)])
def test_simnpo_takes_the_mean_over_the_tokens_and_no_reference(beta, gamma):
    """Answers of one and of two tokens, each token likely 1/2: (2/β) log(1 + (e^γ / 2)^β), whatever their length."""
    likelihood, lengths = torch.tensor([0.5, 0.25]).log(), torch.tensor([1, 2])
    found = simple_negative_preference(likelihood, lengths, beta, gamma).item()
    assert found == pytest.approx(2 / beta * math.log(1 + (math.exp(gamma) / 2) ** beta), rel=1e-6)


def test_a_preference_without_a_winner_is_npo():
    now, before = torch.tensor([0.1, 0.3]).log(), torch.tensor([0.2, 0.1]).log()
    npo = negative_preference(now, before, 0.4)
    assert direct_preference(torch.zeros(2), now - before, 0.4).item() == pytest.approx(npo.item(), rel=1e-6)
    # the refusal twice as likely as before, the answer half: (2/β) log(1 + 4^−β)
    found = direct_preference(torch.tensor([math.log(2)]), torch.tensor([-math.log(2)]), 0.5).item()
    assert found == pytest.approx(2 / 0.5 * math.log(1 + 4**-0.5), rel=1e-6)


def test_undial_aims_at_the_teacher_without_the_true_token():
    """β = log 2 halves the true token of (2, 1, 1) / 4, so the target is (1, 1, 1) / 3; shifted logits mean the same."""
    teacher, current = torch.tensor([[2.0, 1, 1]]).log(), torch.tensor([[1.0, 2, 1]]).log()
    found = self_distillation(current + 3, torch.tensor([0]), teacher - 7, math.log(2)).item()
    assert found == pytest.approx(-(2 * math.log(1 / 4) + math.log(1 / 2)) / 3, rel=1e-6)
    logits = current.requires_grad_(True)
    gradient, = torch.autograd.grad(self_distillation(logits, torch.tensor([0]), teacher, math.log(2)), logits)
    torch.testing.assert_close(gradient, torch.tensor([[1 / 4 - 1 / 3, 1 / 2 - 1 / 3, 1 / 4 - 1 / 3]]))


def test_misdirection_is_a_mean_over_tokens_and_channels():
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert misdirection(states, torch.tensor([1.0, 0.0])).item() == pytest.approx((0 + 4 + 4 + 16) / 4)
    assert misdirection(states, states).item() == 0


def test_the_control_vector_has_its_length_and_lies_near_the_diagonal():
    one, other = control_vector(1000, 6.5, seed=0), control_vector(1000, 6.5, seed=1)
    assert one.norm().item() == pytest.approx(6.5, rel=1e-5) and (one >= 0).all() and not one.equal(other)
    assert torch.cosine_similarity(one, other, dim=0).item() == pytest.approx(0.75, abs=0.02)
    assert one.equal(control_vector(1000, 6.5, seed=0))


# ------------------------------------------------------------------------------------------------ training


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model[0])


def losses(model, processor, questions):
    with torch.no_grad():
        return {m: answer_loss(model, encode(q, processor, with_answer=True)).item() for m, q in questions.items()}


def first_loss(method, model, processor, questions, **options):
    options = {"batch_size": 4, "steps": 1, "every": 1, "progress": False} | options
    return unlearn_by_training(method, model, processor, **questions, **options)[1]["loss"]


def test_the_first_loss_is_the_stated_one(model, tiny_model, questions):
    """At the start KL is 0 and both likelihood ratios of NPO are 1, so the loss is known; modalities add up."""
    before = {name: sum(losses(model, tiny_model[1], of).values()) for name, of in questions.items()}
    expected = {
        "ga": -before["forget"], "gd": before["retain"] - before["forget"], "kl": -before["forget"],
        "npo": 2 * 2 / 0.4 * math.log(2),
    }  # fmt: skip
    for method in METHODS:
        found = first_loss(method, copy.deepcopy(model), tiny_model[1], questions)
        assert found == pytest.approx(expected[method], rel=1e-4), method


def as_it_was(method, model, processor, forget, retain, *, batch_size, seed, steps, lr):
    """The four methods of MLLMU-Bench as they were before a retain term could be chosen: the stored results come from this."""
    of_forget = answer_batches(forget, processor, batch_size, seed, "cpu")
    of_retain = answer_batches(retain, processor, batch_size, seed + len(MODALITIES), "cpu")
    frozen = copy.deepcopy(model).eval()

    def loss_of(to_forget, to_retain):
        logits, targets, rows = answer_logits(model, to_forget)
        if method == "ga":
            return gradient_ascent(logits, targets)
        if method == "npo":
            with torch.no_grad():
                before = log_likelihoods(*answer_logits(frozen, to_forget))
            return negative_preference(log_likelihoods(logits, targets, rows), before, 0.4)
        kept, kept_targets, _ = answer_logits(model, to_retain)
        if method == "gd":
            return gradient_difference(logits, targets, kept, kept_targets)
        with torch.no_grad():
            vanilla, _, _ = answer_logits(frozen, to_retain)
        return kl_minimisation(logits, targets, kept, vanilla)

    def loss_of_step(step):
        to_forget = next(of_forget)
        to_retain = next(of_retain) if method in ("gd", "kl") else [None] * len(to_forget)
        return sum(loss_of(*pair) for pair in zip(to_forget, to_retain, strict=True))

    options = {"steps": steps, "lr": lr, "seed": seed, "warmup": 10, "hold": 1.0, "progress": False}
    train_language_model(model, loss_of_step, **options)


@pytest.mark.parametrize("method", METHODS)
def test_the_stored_methods_are_what_they_were_bit_for_bit(model, tiny_model, questions, method):
    same, options = copy.deepcopy(model), {"batch_size": 3, "seed": 2, "steps": 3, "lr": 1e-2}
    as_it_was(method, same, tiny_model[1], **questions, **options)
    unlearn_by_training(method, model, tiny_model[1], **questions, **options, progress=False)
    assert all(value.equal(same.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method, given", [("kl", None), ("npo", None), ("npo", "the model itself"), ("npo", "another")])
def test_kl_and_npo_compare_with_a_frozen_model_without_dropout(model, tiny_model, questions, method, given, monkeypatch):
    """At every step: the reference is vanilla as it was, or the one that was given, in eval mode, while the model moves."""
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    reference = {None: None, "the model itself": model, "another": copy.deepcopy(model)}[given]
    if given == "another":
        reference.model.language_model.norm.weight.data *= 2
        reference.train()
    truth = copy.deepcopy(reference or model).eval()
    seen = []

    def spied(of, batch):
        found = answer_logits(of, batch)
        if not torch.is_grad_enabled():
            seen.append((found[0], answer_logits(truth, batch)[0]))
        return found

    monkeypatch.setattr(objectives, "answer_logits", spied)
    before = copy.deepcopy(model.state_dict())
    options = {"steps": 4, "lr": 1e-2, "batch_size": 4, "reference": reference, "progress": False}
    unlearn_by_training(method, model, tiny_model[1], **questions, **options)
    assert len(seen) == 4 * len(MODALITIES)
    for found, expected in seen:
        torch.testing.assert_close(found, expected)
    assert not model.state_dict()["lm_head.weight"].equal(before["lm_head.weight"])
    if given == "another":
        assert reference.training and all(p.requires_grad for p in reference.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_kl_begins_at_zero_in_half_precision_too(model, tiny_model, questions, dtype, lora_rank, monkeypatch):
    """As on a GPU: the trained model adds up in float32, and so must its frozen copy."""
    monkeypatch.setattr("manu_utils.models.precision.pick_dtype", lambda device: dtype)
    pairs = []
    monkeypatch.setattr(
        objectives, "kl_divergence", lambda *logits: pairs.append(logits) or kl_divergence(*logits)
    )
    options = {"steps": 1, "batch_size": 4, "lora_rank": lora_rank, "progress": False}
    unlearn_by_training("kl", model.to(dtype), tiny_model[1], **questions, **options)
    assert len(pairs) == len(MODALITIES) and all(current.equal(vanilla) for current, vanilla in pairs)


ALL = (*METHODS, *RIVALS)


def test_the_first_loss_with_a_retain_term(model, tiny_model, questions):
    """KL and states begin at 0, cross-entropy counts by its weight beside any loss, and the rivals begin where they must."""
    processor = tiny_model[1]
    refused = {m: [replace(q, answer="I am not sure.") for q in items] for m, items in questions["forget"].items()}
    forget, retain, refusal = (sum(losses(model, processor, of).values()) for of in (*questions.values(), refused))
    simnpo = undial = rmu = 0.0
    for items in questions["forget"].values():
        batch = encode(items, processor, with_answer=True)
        with torch.no_grad():
            logits, targets, rows = answer_logits(model, batch)
            states = objectives.layer_states(model, batch, 0)
        per_token = log_likelihoods(logits, targets, rows).double() / rows.bincount()
        simnpo += (2 / 2.5 * (2.5 * (per_token + 6)).exp().log1p()).mean().item()
        undial += self_distillation(logits, targets, logits, 10.0).item()
        rmu += (states - control_vector(32, 6.0, 0)).square().mean().item()
    preference = len(MODALITIES) * 2 / 0.1 * math.log(2)
    for method, options, expected in [
        ("ga", {"retain_term": "cross-entropy", "retain_weight": 3.0}, 3 * retain - forget),
        ("gd", {"retain_weight": 0.5}, 0.5 * retain - forget),
        ("gd", {"retain_term": None}, -forget),
        ("npo", {"retain_term": "kl", "retain_weight": 20.0}, 2 * 2 / 0.4 * math.log(2)),
        ("simnpo", {"retain_term": "states", "gamma": 6.0}, simnpo),
        ("undial", {}, undial),
        ("idk", {"refusals": ["I am not sure."]}, refusal),
        ("idk_preference", {"retain_term": "cross-entropy", "retain_weight": 2.0}, preference + 2 * retain),
        ("rmu", {"steering": 6.0, "layer": 0}, rmu),
        ("rmu", {"steering": 6.0, "layer": 0, "retain_term": "cross-entropy"}, rmu + retain),
    ]:
        found = first_loss(method, copy.deepcopy(model), processor, questions, **options)
        assert found == pytest.approx(expected, rel=1e-4), (method, options)


def test_states_are_what_a_layer_writes(tiny_model, questions):
    model, processor = tiny_model
    batch = encode(questions["forget"]["multimodal"], processor, with_answer=True)
    inputs = {key: value for key, value in batch.items() if key != "answer_mask"}
    with torch.no_grad():
        found = objectives.layer_states(model, batch, 0)
        hidden = model.model(**inputs, output_hidden_states=True).hidden_states[1]  # [0] is what goes in
    predicts = [[p for p in range(hidden.shape[1] - 1) if row[p + 1]] for row in batch["answer_mask"]]
    expected = torch.cat([states[positions] for states, positions in zip(hidden, predicts, strict=True)])
    torch.testing.assert_close(found, expected)


def test_a_refusal_and_the_truth_of_one_question_go_together(model, tiny_model, questions, monkeypatch):
    """Pairs of the same questions, each with its own refusal in every visit, and with as many retained ones as asked for."""
    seen, sizes = [], []

    def spied(*arguments):
        questions, batch = arguments[0], encode(*arguments, with_answer=True)
        seen.append(questions)
        sizes.append(len(questions))
        return batch

    monkeypatch.setattr("manu_utils.models.training.encode", lambda q, p, with_answer, device: spied(q, p))
    options = {"steps": 2, "batch_size": 2, "retain_batch_size": 3, "retain_term": "kl", "seed": 5, "progress": False}
    unlearn_by_training("idk_preference", model, tiny_model[1], **questions, **options)
    assert sizes == [2, 2, 2, 2, 3, 3] * 2
    for step in (0, 6):
        for refused, true in ((0, 2), (1, 3)):
            pairs = list(zip(seen[step + refused], seen[step + true], strict=True))
            assert all(r.answer in objectives.REFUSALS and r.question == t.question and r != t for r, t in pairs)


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_every_rival_trains_the_language_model_alone(model, tiny_model, questions, method, lora_rank):
    before = copy.deepcopy(model.state_dict())
    settings = {"steering": 5.0} if method == "rmu" else {}
    options = {"steps": 6, "lr": 3e-3, "batch_size": 4, "every": 6, "watch": dict, "lora_rank": lora_rank, "progress": False}
    history = unlearn_by_training(method, model, tiny_model[1], **questions, **options, **settings)
    start = first_loss(method, copy.deepcopy(tiny_model[0]), tiny_model[1], questions, **settings)
    assert history[-1]["loss"] < start or method == "undial"  # a model that knows nobody is at its aim
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed and all("language_model" in name or name == "lm_head.weight" for name in changed)
    assert lora_rank is None or all("_proj.weight" in name for name in changed)


# ------------------------------------------------------------------------------------------------ mask

WEIGHT = "model.language_model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_masked_weights_move(model, tiny_model, questions, dtype):
    """At every look: not by the optimiser's decay either, and what is not named stays as a whole."""
    model = model.to(dtype)
    before, looks = copy.deepcopy(model.state_dict()), []
    free = torch.rand(before[WEIGHT].shape, generator=torch.Generator().manual_seed(0)) < 0.5

    def watch():
        looks.append({name: value.to(dtype) for name, value in model.state_dict().items()})
        return {}

    options = {"steps": 3, "lr": 1e-2, "batch_size": 2, "every": 1, "watch": watch, "progress": False}
    unlearn_by_training("gd", model, tiny_model[1], **questions, mask={WEIGHT: free}, **options)
    for state in (*looks, model.state_dict()):
        assert all(value.equal(before[name]) for name, value in state.items() if name != WEIGHT)
        assert state[WEIGHT][~free].equal(before[WEIGHT][~free])
    assert (model.state_dict()[WEIGHT][free] != before[WEIGHT][free]).float().mean() > 0.5


def test_a_mask_is_made_of_what_is_given(model, tiny_model, questions):
    def make(*given):
        assert given == (model, tiny_model[1], questions["forget"], questions["retain"])
        return {WEIGHT: torch.ones(32, 64, dtype=torch.bool)}

    before = copy.deepcopy(model.state_dict())
    unlearn_by_training("ga", model, tiny_model[1], **questions, mask=make, steps=1, batch_size=2, progress=False)
    assert [name for name, value in model.state_dict().items() if not value.equal(before[name])] == [WEIGHT]


@pytest.mark.parametrize("method", ALL)
def test_an_interrupted_run_leaves_model_and_reference_as_they_were(model, tiny_model, questions, method):
    reference = copy.deepcopy(model) if method in ("npo", "idk_preference") else None
    models = [one.train() for one in (model, reference) if one is not None]
    before, looks = [copy.deepcopy(one.state_dict()) for one in models], []

    def watch():
        looks.append(copy.deepcopy(model.lm_head.weight.data))
        if len(looks) == 3:
            raise KeyboardInterrupt
        return {}

    options = {"steps": 4, "lr": 1e-2, "batch_size": 2, "every": 1, "watch": watch, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        unlearn_by_training(method, model, tiny_model[1], **questions, reference=reference, **options)
    assert not looks[1].equal(looks[0])
    for one, was in zip(models, before, strict=True):
        assert all(value.equal(was[name]) for name, value in one.state_dict().items())
        assert one.training and all(p.requires_grad and p.grad is None for p in one.parameters())


def test_npo_takes_another_reference(model, tiny_model, questions):
    """Whoever finds the answers less likely makes the loss larger."""
    other = copy.deepcopy(model)
    unlearn_by_training("ga", other, tiny_model[1], questions["forget"], steps=8, lr=1e-2, batch_size=4, progress=False)
    modes = other.training, copy.deepcopy(other.state_dict())
    own = first_loss("npo", copy.deepcopy(model), tiny_model[1], questions)
    assert first_loss("npo", model, tiny_model[1], questions, reference=other) > own + 0.1
    assert other.training == modes[0] and all(value.equal(modes[1][name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    "method, modalities", [("ga", ("multimodal",)), ("gd", ("text",)), ("kl", MODALITIES), ("npo", ("multimodal",))]
)
def test_the_forget_answers_become_less_likely(model, tiny_model, questions, method, modalities):
    """And only the language model changes; ``retain`` may hold more modalities than are trained."""
    processor = tiny_model[1]
    forget = {m: questions["forget"][m] for m in modalities}
    before, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    was = losses(model, processor, forget)
    options = {"steps": 12, "lr": 3e-3, "batch_size": 4, "progress": False}
    unlearn_by_training(method, model, processor, forget, questions["retain"], **options)
    now = losses(model, processor, forget)
    assert all(now[m] > was[m] + 0.02 for m in modalities)
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed and all("language_model" in name or name == "lm_head.weight" for name in changed)
    assert not model.training and [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("method", ["gd", "npo"])
def test_a_run_is_the_beginning_of_a_longer_one(model, tiny_model, questions, method):
    """The rate stays, so one path gives every strength."""
    long, short = model, copy.deepcopy(model)
    seen = {}
    options = {"lr": 1e-3, "batch_size": 2, "progress": False, "seed": 3}
    names = [name for name, value in long.state_dict().items()]

    def watch():
        seen[len(seen)] = copy.deepcopy(long.state_dict())
        return {}

    unlearn_by_training(method, long, tiny_model[1], **questions, steps=16, every=12, watch=watch, **options)
    unlearn_by_training(method, short, tiny_model[1], **questions, steps=12, **options)
    for name in names:
        torch.testing.assert_close(short.state_dict()[name], seen[1][name], msg=name)
    assert not all(seen[1][name].equal(seen[2][name]) for name in names)


@pytest.mark.parametrize("method", ["kl", "npo", "rmu", "undial", "idk_preference"])
def test_with_adapters_what_is_compared_with_shares_the_weights(tiny_model, questions, method, monkeypatch):
    """And gives the same to the bit as a copy of them."""
    options = {"steps": 3, "lr": 1e-2, "batch_size": 2, "every": 1, "lora_rank": 2, "progress": False}
    copied, frozen, found = copy.deepcopy, [], []
    for shares in (True, False):
        own = copied(tiny_model[0])

        def copy_of(thing, memo=None, own=own, shares=shares):
            made = copied(thing, memo if shares or thing is not own else None)
            if thing is own:
                frozen.append((thing, made))
            return made

        with monkeypatch.context() as patch:
            patch.setattr(baselines.copy, "deepcopy", copy_of)
            history = unlearn_by_training(method, own, tiny_model[1], questions["forget"], questions["retain"], **options)
        found.append((own, history))
    (one, losses), (other, expected) = found
    assert str(losses) == str(expected) and all(map(torch.equal, one.parameters(), other.parameters()))
    (model, same), (_, apart) = frozen
    assert model is one and next(apart.parameters()) is not next(other.parameters())
    assert not any(a is not b for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not all(map(torch.equal, one.parameters(), tiny_model[0].parameters()))
    assert not any("lora" in name for name, _ in same.named_modules())


def test_lora_is_merged_back(model, tiny_model, questions, tmp_path):
    """The same modules as before, nothing but linear layers of the language model changed, and it saves as a plain model."""
    from transformers import AutoModelForImageTextToText

    processor = tiny_model[1]
    before, modules = copy.deepcopy(model.state_dict()), [(name, type(m)) for name, m in model.named_modules()]
    was = losses(model, processor, questions["forget"])
    options = {"steps": 15, "lr": 2e-2, "batch_size": 4, "lora_rank": 4, "progress": False}
    unlearn_by_training("ga", model, processor, questions["forget"], **options)
    assert [(name, type(m)) for name, m in model.named_modules()] == modules
    assert not hasattr(model, "peft_config") and all(p.requires_grad for p in model.parameters())
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {name for name in before if "language_model.layers" in name and "_proj.weight" in name}
    for name in changed:
        assert torch.linalg.matrix_rank((model.state_dict()[name] - before[name]).double(), rtol=1e-4) <= 4
    now = losses(model, processor, questions["forget"])
    assert all(now[m] > was[m] + 0.05 for m in MODALITIES)
    model.save_pretrained(tmp_path / "plain")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    assert all(value.equal(model.state_dict()[name]) for name, value in loaded.state_dict().items())


BAD_INPUT = {
    "unknown method": (lambda q: q | {"method": "dpo"}, "method='dpo' is unknown; use one of ga, gd, kl, npo"),
    "nothing to forget": (lambda q: q | {"forget": {}}, "forget has no questions"),
    "an empty set": (lambda q: q | {"forget": {"text": []}}, "forget has no text questions"),
    "an unknown modality": (lambda q: q | {"forget": {"sound": q["forget"]["text"]}}, "modality of forget='sound' is unknown"),
    "no retain set": (lambda q: q | {"retain": None}, "retain has no multimodal questions, which this method needs"),
    "half a retain set": (lambda q: q | {"retain": {"text": q["retain"]["text"]}}, "retain has no multimodal questions"),
    "the other modality": (
        lambda q: q | {"forget": {"multimodal": q["forget"]["text"]}}, "holds questions that are not multimodal"
    ),
    "one person in both": (lambda q: q | {"retain": q["forget"]}, "forget and retain share people, such as "),
    "beta": (lambda q: q | {"method": "npo", "beta": 0.0}, "beta=0.0 must be a finite number above 0"),
    "batch size": (lambda q: q | {"batch_size": 0}, "batch_size=0 is "),
    "steps": (lambda q: q | {"steps": 0}, "steps=0 is "),
    "lr": (lambda q: q | {"lr": 0.0}, "lr=0.0 must be a finite number above 0"),
    "nan lr": (lambda q: q | {"lr": math.nan}, "lr=nan must be a finite number"),
    "rank": (lambda q: q | {"lora_rank": 0}, "lora_rank=0 is "),
    "every": (lambda q: q | {"every": 0}, "every=0 is "),
    "lr in quotes": (lambda q: q | {"lr": "1e-3"}, "lr='1e-3' must be a number"),
    "steps that are a truth": (lambda q: q | {"steps": True}, "steps=True must be a whole number"),
    "batch size in quotes": (lambda q: q | {"batch_size": "8"}, "batch_size='8' must be a whole number"),
    "no seed": (lambda q: q | {"seed": None}, "seed=None must be a whole number"),
    "beta in quotes": (lambda q: q | {"method": "npo", "beta": "0.4"}, "beta='0.4' must be a number"),
    "unknown term": (lambda q: q | {"retain_term": "l2"}, "retain_term='l2' is unknown; use one of cross-entropy, kl, states"),
    "a term without its set": (lambda q: q | {"method": "npo", "retain_term": "kl", "retain": None}, "retain has no multim"),
    "weight": (lambda q: q | {"retain_weight": 0.0}, "retain_weight=0.0 must be"),
    "retain batch": (lambda q: q | {"retain_batch_size": 0}, "retain_batch_size=0 is"),
    "another's setting": (lambda q: q | {"beta": 0.4}, "gd has no setting 'beta'; its settings are layer"),
    "layer": (lambda q: q | {"method": "rmu", "layer": 2}, "layer=2 of a language model with 2 layers; the last is 1"),
    "steering": (lambda q: q | {"method": "rmu", "steering": -1.0}, "steering=-1.0 must be"),
    "gamma": (lambda q: q | {"method": "simnpo", "gamma": math.nan}, "gamma=nan must be a finite"),
    "no refusal": (lambda q: q | {"method": "idk", "refusals": ()}, "refusals must hold at least one"),
    "one refusal": (lambda q: q | {"method": "idk", "refusals": "No."}, "refusals='No.' must be a tuple"),
    "a list for a mask": (lambda q: q | {"mask": []}, "the mask is a list"),
    "mask of another": (lambda q: q | {"mask": {"lm": torch.ones(1)}}, r"mask\['lm'\] names no weight"),
    "mask of numbers": (lambda q: q | {"mask": {WEIGHT: torch.ones(32, 64)}}, "must be a bool tensor of shape"),
    "an empty mask": (lambda q: q | {"mask": {}}, "no weight of the mask may move"),
    "mask and LoRA": (lambda q: q | {"mask": {}, "lora_rank": 2}, "give a mask or lora_rank, not both"),
    "a reference that is none": (lambda q: q | {"method": "npo", "reference": 5}, "the model is a int; pass what load_model"),
    "a watch that says nothing": (lambda q: q | {"watch": lambda: None}, "watch returned None; it must return a dict"),
    "a reference for KL": (lambda q: q | {"method": "kl", "reference": object()}, "only npo and idk_preference take a refer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_leaves_the_model_alone(model, tiny_model, questions, case):
    change, message = BAD_INPUT[case]
    before = copy.deepcopy(model.state_dict())
    given = {"method": "gd", "batch_size": 4, "steps": 1, "lr": 1e-3, "progress": False} | questions
    with pytest.raises((TypeError, ValueError), match=message):
        unlearn_by_training(model=model, processor=tiny_model[1], **change(given))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_loss_that_is_not_finite_is_raised(model, tiny_model, questions):
    model.model.language_model.layers[0].mlp.up_proj.weight.data[0] = math.nan
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        unlearn_by_training("ga", model, tiny_model[1], questions["forget"], steps=1, batch_size=2, progress=False)
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model.training


# ------------------------------------------------------------------------------------------------ system prompt


def test_the_instruction_stands_before_every_question_and_changes_nothing_else(benchmark):
    people = benchmark.test.select(range(2))
    instructed = with_system_prompt(people, "Say nothing.")
    for task, modality in itertools.product(TASKS, MODALITIES):
        pairs = zip(
            evaluation_questions(people, task, modality), evaluation_questions(instructed, task, modality), strict=True
        )
        for plain, told in pairs:
            assert told.question == f"Say nothing. {plain.question}"
            same = (told.person_id, told.answer, told.options, told.image) == (
                plain.person_id, plain.answer, plain.options, plain.image
            )  # fmt: skip
            assert same
    assert instructed.features == people.features


def test_an_instructed_set_is_evaluated_like_any_other(tiny_model, benchmark):
    people = benchmark.forget.select(range(1))
    frame = evaluate(*tiny_model, {"forget": with_system_prompt(people)}, tasks=("cloze",), progress=False)
    assert frame["question"].str.startswith(baselines.INSTRUCTION).all()


def test_an_empty_instruction_is_refused(benchmark):
    with pytest.raises(ValueError, match="the instruction is empty"):
        with_system_prompt(benchmark.forget, " ")


def test_the_rows_of_a_batch_are_those_of_its_answers(tiny_model, questions):
    """One likelihood per question, in their order, also where answers differ in length."""
    model, processor = tiny_model
    asked = questions["forget"]["text"]
    with torch.no_grad():
        together = log_likelihoods(*answer_logits(model, encode(asked, processor, with_answer=True)))
        alone = [log_likelihoods(*answer_logits(model, encode([q], processor, with_answer=True))).item() for q in asked]
    assert together.tolist() == pytest.approx(alone, rel=1e-4)


# ------------------------------------------------------------------------------------------------ figure of merit


def accuracies(forget, retain, modalities=MODALITIES):
    """forget and retain: one number for each modality."""
    values = {("forget", m): value for m, value in zip(modalities, forget, strict=True)}
    return pd.Series(values | {("retain", m): value for m, value in zip(modalities, retain, strict=True)})


VANILLA_ACCURACY, TARGET_ACCURACY = accuracies((1.0, 1.0), (1.0, 0.8)), accuracies((0.2, 0.2), (0.9, 0.9))


@pytest.mark.parametrize(
    "forget, retain, forget_quality, utility, balance",
    [
        ((0.2, 0.2), (1.0, 0.8), 1, 1, 1),  # the target
        ((1.0, 1.0), (1.0, 0.8), 0, 1, 1),  # vanilla
        ((0.6, 0.6), (0.5, 0.4), 0.5, 0.5, 1),
        ((0.2, 1.0), (1.0, 0.8), 0.5, 1, 0),  # the face is forgotten, the name is not
        ((0.0, 0.0), (0.0, 0.0), 0.75, 0, 1),  # less than a model that never met them
        ((0.2, 0.6), (1.0, 1.0), 0.75, 1, 0.5),  # better than vanilla counts as vanilla
    ],
)
def test_merit_by_hand(forget, retain, forget_quality, utility, balance):
    found = merit(accuracies(forget, retain), VANILLA_ACCURACY, TARGET_ACCURACY)
    parts = (forget_quality, utility, balance)
    assert [found[name] for name in ("forget_quality", "utility", "balance")] == pytest.approx(parts)
    assert found["merit"] == pytest.approx(3 / sum(1 / part for part in parts) if all(parts) else 0)


def test_merit_of_one_modality_knows_no_balance():
    one = [accuracies([a], [r], ["text"]) for a, r in ((0.6, 1.0), (1.0, 1.0), (0.2, 1.0))]
    assert merit(*one) == pytest.approx({"forget_quality": 0.5, "utility": 1, "balance": 1, "merit": 0.75})


def test_merit_needs_something_to_forget_and_to_keep():
    with pytest.raises(ValueError, match="a set to forget .* and one to keep"):
        merit(*[VANILLA_ACCURACY[["retain"]]] * 3)
    with pytest.raises(ValueError, match="the target answers as many questions"):
        merit(VANILLA_ACCURACY, VANILLA_ACCURACY, VANILLA_ACCURACY)
