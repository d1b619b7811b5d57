"""The paths of MIP-Editor, held against a slow reference that moves one neuron at a time."""

import copy

import pytest
import torch
from tiny_models import llava, unlikely

from manu_utils.benchmark.records import Question
from manu_utils.models.asking import answer_logits
from manu_utils.models.encoding import encode
from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning import neuron_paths, neuron_weights, unlearn_by_training
from manu_utils.unlearning.neuron_paths import paths_of

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def two(questions):
    """Two questions of the forget set in each modality."""
    return {modality: items[:2] for modality, items in questions["forget"].items()}


def of_tower(model, tower):
    return [mlp for mlp in find_neurons(model) if mlp.tower == tower]


def likely(model, batch, hooks):
    """The sum of the probabilities of the answers' tokens, with hooks on `after` of some MLPs."""
    handles = [mlp.after.register_forward_pre_hook(hook) for mlp, hook in hooks]
    logits, targets, _ = answer_logits(model, batch)
    for handle in handles:
        handle.remove()
    return logits.softmax(-1).gather(1, targets[:, None]).sum()


def slow_path(model, mlps, batch, where, width, steps, squared):
    """One question; each gradient taken position by position, every sum a loop over neurons."""
    z = []
    for mlp in mlps:
        seen = []
        likely(model, batch, [(mlp, lambda _, a, seen=seen: seen.append(a[0].detach().clone()))])
        z.append(seen[0].flatten(0, -2))
    chosen = []
    for last, mlp in enumerate(mlps):
        slopes = [torch.zeros_like(z[layer]) for layer in range(last + 1)]
        for j in range(1, steps + 1):
            leaves, hooks = [], []
            for layer in range(last + 1):
                value = z[layer][where].clone()
                for n in range(value.shape[1]) if layer == last else chosen[layer]:
                    value[:, n] *= j / steps
                leaves.append(value.requires_grad_())

                def put(_, a, value=value):
                    flat = a[0].flatten(0, -2).clone()
                    for place, position in enumerate(where):
                        flat[position] = value[place]
                    return (flat.view_as(a[0]),)

                hooks.append((mlps[layer], put))
            gradients = torch.autograd.grad(likely(model, batch, hooks), leaves, allow_unused=True)
            if gradients[-1] is None:
                break
            for slope, gradient in zip(slopes, gradients, strict=True):
                slope[where] += gradient**2 if squared else gradient
        if gradients[-1] is None:
            chosen.append([])
            continue
        worth = []
        for n in range(mlp.size):
            activation, slope = z[last][where, n], slopes[last][where, n]
            for layer in range(last):
                for i in chosen[layer]:
                    activation = activation + z[layer][where, i]
                    slope = slope + slopes[layer][where, i]
            worth.append((activation @ slope).item() / steps)
        chosen.append(sorted(range(mlp.size), key=lambda n: -worth[n])[:width])
    return chosen


@pytest.mark.parametrize("tower, modality, squared", [("language", "text", False), ("vision", "multimodal", True)])
def test_a_path_is_that_of_the_slow_reference(double_model, two, tower, modality, squared):
    model, processor = double_model
    mlps = of_tower(model, tower)
    together = paths_of(
        model, mlps, encode(two[modality], processor, with_answer=True), width=3, steps=2, squared=squared
    )
    for row, question in enumerate(two[modality]):
        batch = encode([question], processor, with_answer=True)
        if tower == "language":
            where = (batch["answer_mask"].flatten().nonzero()[:, 0] - 1).tolist()
        else:
            patches = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
            where = list(range(1, patches + 1))  # after the class token
        slow = slow_path(model, mlps, batch, where, 3, 2, squared)
        found = [part[row].nonzero()[:, 0].tolist() for part in together]
        assert found == [sorted(neurons) for neurons in slow]
    assert any(found)


def test_neurons_join_for_what_they_do_together(double_model, two):
    """One layer later, another path before it leads to other neurons: no layer is ranked alone."""
    model, processor = double_model
    mlps = of_tower(model, "language")
    batch = encode(two["text"][:1], processor, with_answer=True)
    options = {"width": 3, "steps": 2, "squared": False}
    alone = paths_of(model, mlps[1:], batch, **options)
    after = paths_of(model, mlps, batch, **options)
    assert [part.sum().item() for part in after] == [3] * len(mlps)
    assert any(not a.equal(b) for a, b in zip(alone, after[1:], strict=True))


def test_each_modality_finds_the_neurons_of_its_tower(tiny_model, two):
    model, processor = tiny_model
    mlps = find_neurons(model)
    vision = torch.cat([torch.full((mlp.size,), mlp.tower == "vision") for mlp in mlps])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    both = neuron_paths(model, processor, two, width=2, steps=1, **QUIET)
    text = neuron_paths(model, processor, {"text": two["text"]}, width=2, steps=1, **QUIET)
    assert both.dtype == torch.bool and both.shape == vision.shape
    assert (both & vision).any() and not (text & vision).any() and (both & ~vision).equal(text)
    per_layer = [part.sum().item() for part in text.split([mlp.size for mlp in mlps])]
    assert all(2 <= n <= 4 for n, mlp in zip(per_layer, mlps, strict=True) if mlp.tower == "language")
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_batches_do_not_matter(double_model, questions):
    some = {"text": questions["forget"]["text"][:3]}
    options = {"width": 2, "steps": 1, **QUIET}
    assert neuron_paths(*double_model, some, batch_size=1, **options).equal(
        neuron_paths(*double_model, some, batch_size=3, **options)
    )


def test_only_the_neurons_of_the_paths_are_trained(tiny_model, questions):
    model, processor = copy.deepcopy(tiny_model[0]), tiny_model[1]
    chosen = neuron_paths(model, processor, questions["forget"], width=2, steps=1, **QUIET)
    weights = neuron_weights(model, chosen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = (model, processor, questions["forget"], questions["retain"])
    unlearn_by_training("rmu", *given, mask=weights, layer=0, steps=2, batch_size=2, **QUIET)
    moved = {n: v != before[n] for n, v in model.state_dict().items() if not v.equal(before[n])}
    assert moved and all(not (where & ~weights[name]).any() for name, where in moved.items())
    name_of = {id(p): name for name, p in model.named_parameters()}
    mlps = find_neurons(model)
    for mlp, part in zip(mlps, chosen.split([m.size for m in mlps]), strict=True):
        named = [name_of[id(linear.weight)] for linear in (*mlp.before, mlp.after)]
        if mlp.tower == "vision":
            assert not weights.keys() & set(named)
            continue
        assert named[-1] not in weights
        assert all(weights[n].any(1).equal(part) and weights[n].all(1).equal(part) for n in named[:-1])


def test_the_standardised_squares_of_its_code_say_nothing():
    """Why this module leaves them out: over m steps they add up to m - 1 for every neuron."""
    gradients = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    standard = (gradients - gradients.mean(0)) / gradients.std(0)
    torch.testing.assert_close((standard**2).sum(0), torch.full((1000,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"width": 0}, "width=0 is"), ({"steps": 1.5}, "steps=1.5 must be"), ({"batch_size": 0}, "batch_size=0 is"),
        ({"width": 10**6}, "an MLP of this model has"), ({"forget": {}}, "forget must hold questions"),
        ({"forget": []}, "forget is a list"), ({"forget": {"faces": None}}, "faces"),
    ],
)  # fmt: skip
def test_bad_input(tiny_model, two, change, message):
    if change.get("forget") == {"faces": None}:
        change = {"forget": {"faces": two["text"]}}
    given = {"forget": two, "width": 1, "steps": 1} | change
    with pytest.raises((TypeError, ValueError), match=message):
        neuron_paths(*tiny_model, **given, **QUIET)


def test_weights_that_are_not_finite_are_seen(tiny_model, two):
    model = copy.deepcopy(tiny_model[0])
    with torch.no_grad():
        of_tower(model, "language")[0].after.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        neuron_paths(model, tiny_model[1], {"text": two["text"]}, width=1, steps=1, **QUIET)


def test_no_language_neuron_is_nothing_to_train(tiny_model):
    model = tiny_model[0]
    n = sum(mlp.size for mlp in find_neurons(model))
    with pytest.raises(ValueError, match="nothing to train"):
        neuron_weights(model, torch.zeros(n, dtype=torch.bool))
    with pytest.raises(ValueError):
        neuron_weights(model, torch.ones(n))


def test_paths_of_unlikely_answers_are_found_in_float16():
    """Where p is 1e-8 and less, its gradient rounds to 0 in float16."""
    model, processor = llava()
    asked = [Question(str(i), f"Who is {i}?", f"Answer {i} x", None, "training") for i in range(3)]
    batch, found = encode(asked, processor, with_answer=True), []
    for own in unlikely(model):
        with torch.no_grad():
            logits, targets, _ = answer_logits(own, batch)
        assert logits.float().softmax(-1).gather(1, targets[:, None]).max() < 1e-8
        options = {"width": 5, "steps": 2, "squared": False}
        found.append(torch.cat(paths_of(own, of_tower(own, "language"), batch, **options), dim=1))
    assert (found[0] & found[1]).sum() >= 0.8 * found[1].sum()
