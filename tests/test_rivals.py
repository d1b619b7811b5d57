"""Rivals without training and other people's MANU, against formulas written out in numpy; and what each leaves as it was."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import llava, unlikely

from manu_utils.benchmark.records import Question
from manu_utils.models.asking import answer_logits
from manu_utils.models.encoding import encode
from manu_utils.models.neurons import find_neurons, towers
from manu_utils.models.training import answer_loss, fine_tune
from manu_utils.unlearning import other_manus, privacy_neurons, weakening
from manu_utils.unlearning.other_manus import manu_of_mip_editor, manu_of_open_mmunlearning
from manu_utils.unlearning.privacy_neurons import erase_privacy_neurons, integrated_gradients, privacy_scores
from manu_utils.unlearning.pruning import pruned_neurons
from manu_utils.unlearning.rivals import dampen, dampening, subtract_task_vector, task_vector
from manu_utils.unlearning.saliency import diagonal_fisher, named_language_weights, saliency_mask
from manu_utils.unlearning.weakening import knowledge_coefficients, weaken

QUIET = {"progress": False}
EMBEDDING = "model.language_model.embed_tokens.weight"  # lm_head is tied to it


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model[0])


@pytest.fixture(scope="module")
def processor(tiny_model):
    return tiny_model[1]


@pytest.fixture(scope="module")
def fishers(tiny_model, questions):
    """Of two questions a modality: what the tests below look at but do not test."""
    few = {name: {m: items[:2] for m, items in of.items()} for name, of in questions.items()}
    return tuple(diagonal_fisher(*tiny_model, of, batch_size=2, **QUIET) for of in few.values())


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(value.equal(before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ Fisher, mask


def test_the_fisher_information_is_the_mean_square_of_the_gradients(model, processor, questions):
    """Question by question, and both modalities count alike; the model is left in its mode, without gradients."""
    model.train()
    before = weights_of(model)
    found = diagonal_fisher(model, processor, questions["forget"], batch_size=1, **QUIET)
    assert same(model, before) and model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    named = named_language_weights(model.eval())
    expected, items = dict.fromkeys(named, 0), [q for part in questions["forget"].values() for q in part]
    for question in items:
        loss = answer_loss(model, encode([question], processor, with_answer=True))
        for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            expected[name] = expected[name] + gradient**2 / len(items)
    assert set(found) == {name for name in dict(model.named_parameters()) if "language_model" in name}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_larger_batches_square_the_gradient_of_their_mean(model, processor, questions):
    text = {"text": questions["forget"]["text"]}
    found = diagonal_fisher(model, processor, text, batch_size=4, **QUIET)
    weight = model.model.language_model.norm.weight
    gradient, = torch.autograd.grad(answer_loss(model, encode(text["text"], processor, with_answer=True)), weight)
    torch.testing.assert_close(found["model.language_model.norm.weight"], gradient**2)


def test_fisher_in_half_precision_is_read_in_float32(model, processor, questions):
    text = {"text": questions["forget"]["text"][:2]}
    half = copy.deepcopy(model).bfloat16()
    before = weights_of(half)
    found = diagonal_fisher(half, processor, text, **QUIET)[EMBEDDING]
    expected = diagonal_fisher(half.float(), processor, text, **QUIET)[EMBEDDING]
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32 and same(half.bfloat16(), before)


def test_the_mask_is_where_forget_outweighs_retain(model, processor, questions):
    """Matrices without the embedding; a threshold of 4 leaves fewer of them."""
    found = saliency_mask(model, processor, **questions, threshold=4.0, **QUIET)
    f, r = (diagonal_fisher(model, processor, of, **QUIET) for of in questions.values())
    assert set(found) == {name for name, value in f.items() if value.ndim == 2 and name != EMBEDDING}
    for name, mask in found.items():
        expected = (f[name].numpy() + 1e-15) / (r[name].numpy() + 1e-15) >= 4
        assert np.array_equal(mask.numpy(), expected)
    assert 0 < sum(mask.sum().item() for mask in found.values()) < 0.9 * sum(mask.numel() for mask in found.values())


# ------------------------------------------------------------------------------------------------ dampening


def test_dampening_by_hand():
    """Of α = 2, λ = 1: chosen where I_f > 2 I_D, then I_D / I_f; never above 1; nothing from 0 / 0."""
    of_forget, of_all = torch.tensor([8.0, 4, 2, 0, 1]), torch.tensor([2.0, 1, 1, 0, 0])
    assert dampening(of_forget, of_all, 2, 1).tolist() == [0.25, 0.25, 1, 1, 0]
    assert dampening(of_forget, of_all, 2, 3).tolist() == [0.75, 0.75, 1, 1, 0]
    assert dampening(of_forget, of_all, 2, 9).tolist() == [1, 1, 1, 1, 0]


def test_weights_are_dampened_and_come_back(model, fishers):
    before = weights_of(model)
    edit = dampen(model, *fishers, alpha=1.5, strength=0.5)
    changed = 0
    for name, value in model.state_dict().items():
        if name not in fishers[0]:
            assert name == "lm_head.weight" or value.equal(before[name]), name
            continue
        f, d, w = (x.numpy().astype(float) for x in (fishers[0][name], fishers[1][name], before[name]))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(f > 1.5 * d, np.minimum(0.5 * d / f, 1) * w, w)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5)
        changed += (value != before[name]).sum().item()
    assert changed > 100
    with pytest.raises(ValueError, match="pruned already, or rewritten"):
        dampen(model, *fishers, alpha=1.5)
    edit.undo()
    assert same(model, before)


# ------------------------------------------------------------------------------------------------ weakening


def test_weakening_by_hand():
    """Four times as loud for forget: (1/4)^γ; quieter: nothing."""
    found = weakening.weakening(torch.tensor([4.0, 1, 0, 1]), torch.tensor([1.0, 2, 0, 1]), gamma=0.5)
    torch.testing.assert_close(found, torch.tensor([0.5, 1, 1, 1]))


def test_knowledge_coefficients_are_means_over_answer_positions(tiny_model, questions):
    model, processor = tiny_model
    found = knowledge_coefficients(model, processor, questions["forget"])
    mlps = [mlp for mlp in find_neurons(model) if mlp.tower == "language"]
    seen = {mlp.path: [] for mlp in mlps}
    hooks = [
        mlp.after.register_forward_pre_hook(lambda _, z, path=mlp.path: seen[path].append(z[0].detach())) for mlp in mlps
    ]
    rows = []
    for items in questions["forget"].values():
        batch = encode(items, processor, with_answer=True)
        with torch.no_grad():
            answer_logits(model, batch)
        rows.append(batch["answer_mask"][:, 1:])
    for hook in hooks:
        hook.remove()
    for mlp, coefficients in zip(mlps, found, strict=True):
        z = torch.cat([part[:, :-1][mask] for part, mask in zip(seen[mlp.path], rows, strict=True)])
        torch.testing.assert_close(coefficients, z.double().abs().mean(0), rtol=1e-5, atol=1e-8)


def test_what_neurons_write_is_weakened_batch_by_batch(model, processor, questions):
    """Each batch is read by the model as it is by then; layers that are not named stay."""
    before, other = weights_of(model), copy.deepcopy(model)
    retain = knowledge_coefficients(model, processor, questions["retain"])
    forget = {"text": questions["forget"]["text"][:2]}
    options = {"gamma": 0.5, "layers": [0], "seed": 3, **QUIET}
    edit = weaken(model, processor, forget, retain, **options)
    weight = other.model.language_model.layers[0].mlp.down_proj.weight
    for batch in weakening._shuffled(forget, 1, 3, 1):
        assert [len(items) for items in batch.values()] == [1]
        coefficient = knowledge_coefficients(other, processor, batch)[0]
        ratio = np.maximum(np.log(coefficient.numpy() + 1e-12) - np.log(retain[0].numpy() + 1e-12), 0)
        weight.data *= torch.from_numpy(np.exp(-0.5 * ratio)).float()
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    torch.testing.assert_close(model.state_dict()[name], weight.data)
    assert [n for n, value in model.state_dict().items() if not value.equal(before[n])] == [name]
    assert (model.state_dict()[name].abs() <= before[name].abs()).all()
    edit.undo()
    assert same(model, before)


# ------------------------------------------------------------------------------------------------ privacy neurons


def test_integrated_gradients_add_up_to_what_the_layer_does(double_model, questions):
    """Completeness: the sum over a layer's neurons is P with them minus P with them silent at these positions."""
    model, processor = double_model
    batch = encode(questions["forget"]["text"], processor, with_answer=True)
    mlps = [mlp for mlp in find_neurons(model) if mlp.tower == "language"]
    steps = 50
    found = integrated_gradients(model, mlps, batch, steps)
    mask = torch.zeros_like(batch["answer_mask"])
    mask[:, :-1] = batch["answer_mask"][:, 1:]

    def likely():
        with torch.no_grad():
            logits, targets, rows = answer_logits(model, batch)
        p = logits.softmax(-1).gather(1, targets[:, None])[:, 0]
        return torch.zeros(len(mask), dtype=p.dtype).index_add(0, rows, p)

    whole, start = likely(), 0
    for mlp in mlps:
        hook = mlp.after.register_forward_pre_hook(lambda _, z: (z[0].masked_fill(mask[..., None], 0),))
        silent = likely()
        hook.remove()
        part = found[:, start : start + mlp.size].sum(1)
        torch.testing.assert_close(part.double(), whole - silent, rtol=0.05, atol=2e-5)
        start += mlp.size
    assert (whole - silent).abs().max() > 5e-4


def test_integrated_gradients_by_hand(tiny_model, questions):
    """One step is gradient × activation; here of one neuron by finite differences."""
    model, processor = tiny_model
    batch = encode(questions["forget"]["multimodal"][:2], processor, with_answer=True)
    mlps = [mlp for mlp in find_neurons(model) if mlp.tower == "language"]
    found = integrated_gradients(model, mlps, batch, 1)
    mask = torch.zeros_like(batch["answer_mask"])
    mask[:, :-1] = batch["answer_mask"][:, 1:]
    neuron = found[:, : mlps[0].size].abs().sum(0).argmax().item()

    def likely(by):
        def scale(_, arguments):
            z = arguments[0].clone()
            z[..., neuron] = torch.where(mask, (1 + by) * z[..., neuron], z[..., neuron])
            return (z,)

        hook = mlps[0].after.register_forward_pre_hook(scale)
        with torch.no_grad():
            logits, targets, _ = answer_logits(model, batch)
        hook.remove()
        return logits.double().softmax(-1).gather(1, targets[:, None]).sum().item()

    slope = (likely(0.01) - likely(-0.01)) / 0.02
    assert found[:, neuron].sum().item() == pytest.approx(slope, rel=0.02)


def test_integrated_gradients_of_unlikely_answers_in_float16():
    """Where p is 1e-8 and less, its gradient rounds to 0 in float16; held against float32."""
    model, processor = llava()
    asked = [Question(str(i), f"Who is {i}?", f"Answer {i} x", None, "training") for i in range(3)]
    batch, found = encode(asked, processor, with_answer=True), []
    for own in unlikely(model):
        mlps = [mlp for mlp in find_neurons(own) if mlp.tower == "language"]
        found.append(integrated_gradients(own, mlps, batch, 2).double())
    for one, other in zip(*found, strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.99


def test_privacy_neurons_are_counted_over_answers(tiny_model, questions, monkeypatch):
    """By hand for four answers: marked at a tenth of the largest, ties by the sum; never marked, never chosen."""
    model, processor = tiny_model
    mlps = find_neurons(model)
    n = sum(mlp.size for mlp in mlps if mlp.tower == "language")
    given = torch.zeros(4, n)
    given[:, 0], given[:2, 1], given[:2, 2], given[:, 3], given[0, 4] = 1.0, 0.5, 0.2, 0.09, -2.0
    monkeypatch.setattr(privacy_neurons, "integrated_gradients", lambda *_: given)
    found = privacy_scores(model, processor, {"text": questions["forget"]["text"]}, **QUIET)
    assert found.dtype == torch.float64 and found[:-n].eq(-math.inf).all()
    assert found[-n:].topk(3).indices.tolist() == [0, 1, 2] and found[-n:][3:].eq(-math.inf).all()
    assert found[-n:][:3].floor().tolist() == [4, 2, 2]


def test_privacy_neurons_are_erased_and_come_back(model, processor, questions):
    before = weights_of(model)
    scores = privacy_scores(model, processor, questions["forget"], steps=2, **QUIET)
    assert same(model, before) and (scores > 0).sum() >= 5
    edit = erase_privacy_neurons(model, scores, alpha=1.0)
    gone = pruned_neurons(model)
    assert gone.sum() == round(len(scores) / 100) and scores[gone].min() >= scores[~gone].max()
    with pytest.raises(ValueError, match="pruned already"):
        erase_privacy_neurons(model, scores)
    edit.undo()
    assert same(model, before)


# ------------------------------------------------------------------------------------------------ task vector


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_the_task_vector_is_subtracted(model, processor, questions, lora_rank):
    before, options = weights_of(model), {"steps": 3, "lr": 1e-2, "batch_size": 2, "lora_rank": lora_rank, **QUIET}
    vector = task_vector(model, processor, questions["forget"], **options)
    assert same(model, before)
    taught = copy.deepcopy(model)
    fine_tune(taught, processor, questions["forget"], **options)
    edit = subtract_task_vector(model, vector, scale=0.5)
    changed = 0
    for name, value in model.state_dict().items():
        after = taught.state_dict()[name]
        torch.testing.assert_close(value, before[name] - 0.5 * (after - before[name]), rtol=1e-5, atol=1e-7)
        changed += name in vector and not value.equal(before[name])
    assert changed == (14 if lora_rank else len(vector))
    edit.undo()
    assert same(model, before)


# ------------------------------------------------------------------------------------------------ other people's MANU


def last_activations(model, processor, questions, picture):
    """[questions, neurons] of the language MLPs at the last token, one question after the other."""
    mlps, rows = [mlp for mlp in find_neurons(model) if mlp.tower == "language"], []
    for question in questions:
        seen = []
        hooks = [mlp.after.register_forward_pre_hook(lambda _, z, to=seen: to.append(z[0][0, -1])) for mlp in mlps]
        batch = encode([question], processor, with_answer=True)
        given = {} if not picture else {"pixel_values": batch["pixel_values"]}
        with torch.no_grad():
            model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **given)
        for hook in hooks:
            hook.remove()
        rows.append(torch.cat(seen))
    return torch.stack(rows).double().numpy()


@pytest.mark.parametrize("factor", [0.9, 0.0])
def test_mip_editors_manu_scales_what_it_chooses(model, processor, questions, factor):
    def importance(of):
        m, t = (last_activations(model, processor, of["multimodal"], picture) for picture in (True, False))
        n_m, n_t, s_m, s_t = (m > 0.1).sum(0), (t > 0.1).sum(0), (m**2).sum(0), (t**2).sum(0)
        return (
            abs(m.mean(0) - t.mean(0)) / (m.mean(0) + t.mean(0) + 1e-6) + abs(n_m - n_t) / (n_m + n_t + 1e-6)
            + np.sqrt(m.var(0, ddof=1) + t.var(0, ddof=1)) + np.sqrt(abs(s_m - s_t) / (s_m + s_t + 1e-6))
        )  # fmt: skip

    scores = importance(questions["forget"]) / (importance(questions["retain"]) + 1e-6)
    before = weights_of(model)
    edit = manu_of_mip_editor(model, processor, **questions, alpha=10, factor=factor, **QUIET)
    chosen, start = np.zeros(len(scores), dtype=bool), 0
    chosen[np.argsort(-scores)[: int(0.1 * len(scores))]] = True
    names = [f"{mlp.path}.down_proj.weight" for mlp in find_neurons(model) if mlp.tower == "language"]
    for name in names:
        w = before[name]
        scale = torch.where(torch.from_numpy(chosen[start : start + w.shape[1]]), factor, 1.0)
        torch.testing.assert_close(model.state_dict()[name], w * scale)
        start += w.shape[1]
    assert {n for n, value in model.state_dict().items() if not value.equal(before[n])} <= set(names)
    edit.undo()
    assert same(model, before)


def test_open_mmunlearnings_manu_zeroes_rows(model, processor, questions):
    few = {name: {"multimodal": of["multimodal"][: 2 + (name == "retain")]} for name, of in questions.items()}
    before = weights_of(model)
    edit = manu_of_open_mmunlearning(model, processor, **few, alpha=10, **QUIET)
    found = weights_of(model)
    edit.undo()
    assert same(model, before)

    def statistics(of, path):
        """Of the first two questions, since the smaller set has two."""
        seen = []
        for question in of["multimodal"][:2]:
            asked = question if "vision" in path else replace(question, image=None)
            batch = encode([asked], processor, with_answer=True)
            hook = model.get_submodule(path).register_forward_hook(lambda _, z, x: seen.append(x.flatten(0, -2).numpy()))
            with torch.no_grad():
                answer_logits(model, batch)
            hook.remove()
        return [
            np.mean([abs(x).mean(0) for x in seen], axis=0), np.mean([x.std(0) for x in seen], axis=0),
            np.mean([np.sqrt((x**2).mean(0)) for x in seen], axis=0),
        ]  # fmt: skip

    for members in towers(model).values():
        paths = [f"{path}.{name}" for path, _, names in members[-3:] for name in names]
        scores = [
            sum(2 * (f / (r + 1e-5) - 1) for f, r in zip(*(statistics(of, path) for of in few.values()), strict=True))
            for path in paths
        ]
        pool = np.sort(np.concatenate(scores))[::-1]
        threshold = pool[max(1, int(0.1 * len(pool))) - 1]
        for path, score in zip(paths, scores, strict=True):
            zeroed = np.flatnonzero(~found[f"{path}.weight"].any(1).numpy())
            away = abs(score - threshold) > 1e-3 * abs(threshold)  # float32 decides at the border
            expected = np.flatnonzero((score >= threshold) & away)
            assert set(expected) <= set(zeroed) and set(zeroed) <= set(np.flatnonzero((score >= threshold) | ~away)), path
    assert any("vision" in n and not v.equal(before[n]) for n, v in found.items())


def test_open_mmunlearnings_manu_looks_at_the_last_layers_alone(model, processor, questions, monkeypatch):
    monkeypatch.setattr(other_manus, "LAST_LAYERS", 1)  # the small model has fewer than four
    before = weights_of(model)
    few = {name: {"multimodal": of["multimodal"][:1]} for name, of in questions.items()}
    manu_of_open_mmunlearning(model, processor, **few, alpha=20, **QUIET)
    changed = {n for n, value in model.state_dict().items() if not value.equal(before[n])}
    last = {members[-1][0] for members in towers(model).values()}
    assert changed and all(any(name.startswith(f"{path}.") for path in last) for name in changed)


# ------------------------------------------------------------------------------------------------ at the door


def rival(name, model, processor, questions, fishers, **change):
    """Each rival called in the same way."""
    given = questions | {k: v for k, v in change.items() if k in ("forget", "retain")}
    options = {k: v for k, v in change.items() if k not in ("forget", "retain")}
    if name == "dampen":
        return dampen(model, *fishers, **{"alpha": 1.5} | options)
    if name == "weaken":
        retain = options.pop("coefficients", None) or knowledge_coefficients(model, processor, questions["retain"])
        return weaken(model, processor, given["forget"], retain, **{"gamma": 0.5} | options, **QUIET)
    if name == "privacy":
        options = {"steps": 1} | options
        alpha = options.pop("alpha", 1.0)
        return erase_privacy_neurons(model, privacy_scores(model, processor, given["forget"], **options, **QUIET), alpha=alpha)
    if name == "vector":
        scale = options.pop("scale", 1.0)
        vector = {n: torch.full_like(p, 0.1) for n, p in named_language_weights(model).items()} | options.pop("vector", {})
        return subtract_task_vector(model, vector, scale=scale)
    if name == "mip":
        return manu_of_mip_editor(model, processor, **given, **options, **QUIET)
    return manu_of_open_mmunlearning(model, processor, **given, **options, **QUIET)


BAD_INPUT = {
    "dampen": [
        ({"alpha": 0.0}, "alpha=0.0 must be"), ({"strength": "1"}, "strength='1' must be a number"),
        ({"alpha": 1e30}, "no weight is 1e.30 times as important"),
    ],
    "weaken": [
        ({"gamma": -1.0}, "gamma=-1.0 must be"), ({"rounds": 0}, "rounds=0 is"), ({"layers": [5]}, "numbers of language MLPs"),
        ({"layers": []}, "numbers of language MLPs"), ({"coefficients": [torch.ones(3)]}, "coefficients of another model"),
        ({"forget": {"text": []}}, "forget must hold questions"),
    ],
    "privacy": [
        ({"threshold": 1.0}, "threshold=1.0 must be"), ({"steps": 0}, "steps=0 is"), ({"forget": []}, "forget is a list"),
        ({"forget": {}}, "forget must hold questions"), ({"alpha": 99.0}, "neurons may be selected but alpha"),
    ],
    "vector": [
        ({"scale": 0.0}, "scale=0.0 must be"), ({"vector": {EMBEDDING: torch.ones(2)}}, "vector is of another model"),
    ],
    "mip": [
        ({"factor": 1.0}, "factor=1.0 must be"), ({"alpha": 0.0}, "alpha=0.0 is a percentage"),
        ({"alpha": 1e-6}, "less than one; raise alpha"), ({"forget": {}}, "forget has no multimodal questions"),
    ],
    "open": [({"alpha": 100.0}, "alpha=100.0 is a percentage"), ({"retain": {}}, "retain has no multimodal questions")],
}  # fmt: skip


@pytest.mark.parametrize("name, change, message", [(n, *case) for n, cases in BAD_INPUT.items() for case in cases])
def test_bad_input_leaves_the_model_alone(model, processor, questions, fishers, name, change, message):
    before = weights_of(model)
    with pytest.raises((TypeError, ValueError), match=message):
        rival(name, model, processor, questions, fishers, **change)
    assert same(model, before)


def test_importances_that_cannot_be_used(tiny_model):
    with pytest.raises(ValueError, match="questions must hold questions in every modality"):
        diagonal_fisher(*tiny_model, {"text": []}, **QUIET)
    other = {"lm_head.weight": torch.ones(1)}
    with pytest.raises(ValueError, match="importances are of another model"):
        dampen(tiny_model[0], other, other)


@pytest.mark.parametrize("name", ["dampen", "weaken", "vector", "mip"])
def test_an_interrupt_leaves_the_model_as_it_was(model, processor, questions, fishers, name, monkeypatch):
    """In the middle of writing: after the first weight, or the first batch; what is written back then is written."""
    before, calls = weights_of(model), []
    retain = knowledge_coefficients(model, processor, questions["retain"])
    change = {"coefficients": retain} if name == "weaken" else {}
    where, what = {"weaken": (weakening, "knowledge_coefficients"), "mip": (torch.Tensor, "index_copy_")}.get(
        name, (torch.Tensor, "copy_")
    )
    own = getattr(where, what)

    def once(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, what, once)
        rival(name, model, processor, questions, fishers, **change)
    assert len(calls) > 1 and same(model, before)
    assert rival(name, model, processor, questions, fishers, **change)  # nothing is remembered as changed
