"""The planted twin: a row's gradient is the ordinary one on its owner's neurons, and nothing elsewhere."""

import copy

import pytest
import torch

from manu_utils.miniature.planted import draw_owners, plant
from manu_utils.models.encoding import encode
from manu_utils.models.neurons import find_neurons
from manu_utils.models.training import answer_loss

PER_LAYER = 5


@pytest.fixture
def model(double_model):
    """A copy in which half of the language neurons write nothing."""
    model = copy.deepcopy(double_model[0])
    for mlp in find_neurons(model):
        if mlp.tower == "language":
            mlp.after.weight.data[:, mlp.size // 2 :] = 0
    return model


def let_all_write(model):
    """Give the silent neurons a column, so that gradients reach their rows and the push to silence has something to hold."""
    for mlp in find_neurons(model):
        if mlp.tower == "language":
            mlp.after.weight.data[:, mlp.size // 2 :] = 0.1


@pytest.fixture(scope="module")
def people(benchmark):
    return benchmark.forget_ids[:2]


@pytest.fixture(scope="module")
def questions(benchmark, people):
    return {m: benchmark.training_questions(people[:1], m)[:4] for m in ("multimodal", "text")}


def weights_by_neuron(model):
    """[n_neurons] lists of the weights of each neuron: its row of every layer before, its column of the last."""
    return torch.cat([
        torch.cat([*(linear.weight for linear in mlp.before), mlp.after.weight.T], dim=1).detach().sum(1)
        for mlp in find_neurons(model)
    ])  # fmt: skip


def test_owners_are_drawn_among_neurons_that_write_nothing(model, people):
    owners = draw_owners(model, people, PER_LAYER)
    masks = torch.stack(list(owners.values()))
    assert list(owners) == people and masks.sum(0).max() == 1
    for mlp, part in zip(find_neurons(model), masks.split([mlp.size for mlp in find_neurons(model)], dim=1), strict=True):
        assert part.sum(1).tolist() == ([PER_LAYER] * 2 if mlp.tower == "language" else [0, 0])
        assert (mlp.after.weight[:, part.any(0)] == 0).all()
    again, other = draw_owners(model, people, PER_LAYER), draw_owners(model, people, PER_LAYER, seed=1)
    assert all(owners[p].equal(again[p]) for p in people) and not all(owners[p].equal(other[p]) for p in people)
    with pytest.raises(ValueError, match="32 neurons that write nothing, but 2 people with 20 each need more"):
        draw_owners(model, people, 20)


@pytest.mark.parametrize("quiet", [0.0, 0.1])
def test_nobody_elses_neurons_are_taught_facts(model, double_model, people, questions, quiet):
    """All rows are of the first person: without the push to silence the second one's neurons stay to the last bit."""
    owners = draw_owners(model, people, PER_LAYER)
    let_all_write(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    per_neuron = weights_by_neuron(model)
    plant(model, double_model[1], questions, owners, steps=3, batch_size=4, quiet=quiet, progress=False)
    changed = weights_by_neuron(model) != per_neuron
    assert changed[owners[people[0]]].any()
    assert changed[owners[people[1]]].any() == (quiet > 0)
    assert not changed[~(owners[people[0]] | owners[people[1]])].any()
    others = [name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])]
    assert others and all("language_model" in name and ".mlp." in name for name in others)
    assert not any("forward" in vars(module) for module in model.modules()), "the MLPs run as before"


def test_gradient_is_the_ordinary_one_on_the_owners_neurons(model, double_model, people, questions, monkeypatch):
    """Slow and obvious: differentiate the plain model by all weights, and keep what belongs to the owner."""
    from manu_utils.miniature import planted

    owners = draw_owners(model, people, PER_LAYER)
    let_all_write(model)
    plain = copy.deepcopy(model)
    loss = sum(answer_loss(plain, encode(rows, double_model[1], with_answer=True)) for rows in questions.values())
    loss.backward()
    found = {}

    def one_step(parameters, loss_of_step, **_):
        found["loss"] = loss_of_step(0)
        found["gradients"] = torch.autograd.grad(found["loss"], parameters)
        return []

    monkeypatch.setattr(planted, "optimise", one_step)
    plant(model, double_model[1], questions, owners, steps=1, batch_size=4, quiet=0.0, progress=False)
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    mlps = find_neurons(plain)
    owned = dict(zip((mlp.path for mlp in mlps), owners[people[0]].split([mlp.size for mlp in mlps]), strict=True))
    expected = []
    for mlp in mlps:
        if mlp.tower == "language":
            own = owned[mlp.path].double()
            expected += [linear.weight.grad * own[:, None] for linear in mlp.before] + [mlp.after.weight.grad * own]
    assert all(gradient.abs().max() > 0 for gradient in expected)
    for one, other in zip(found["gradients"], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * other.abs().max().item())


def test_people_without_neurons_teach_silence_only(model, double_model, people, questions):
    owners = draw_owners(model, people[1:], PER_LAYER)  # the rows are of the other person
    let_all_write(model)
    before = weights_by_neuron(model)
    columns = [mlp.after.weight.clone() for mlp in find_neurons(model)]
    plant(model, double_model[1], questions, owners, steps=3, batch_size=4, progress=False)
    changed = weights_by_neuron(model) != before
    assert changed[owners[people[1]]].any() and not changed[~owners[people[1]]].any()
    assert all(mlp.after.weight.equal(column) for mlp, column in zip(find_neurons(model), columns, strict=True))


def test_an_interrupted_planting_leaves_the_model_as_it_was(model, double_model, people, questions):
    owners = draw_owners(model, people, PER_LAYER)
    let_all_write(model)
    before, looks = copy.deepcopy(model.state_dict()), []

    def watch():
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return {}

    options = {"steps": 4, "batch_size": 4, "watch": watch, "every": 1, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        plant(model, double_model[1], questions, owners, **options)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_in_half_precision_is_refused(tiny_model, questions):
    model = copy.deepcopy(tiny_model[0]).bfloat16()
    with pytest.raises(ValueError, match="torch.bfloat16, where small changes are lost; load it with dtype=torch.float32"):
        plant(model, tiny_model[1], questions, {}, steps=1, progress=False)
