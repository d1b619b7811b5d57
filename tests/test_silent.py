"""Skipping silent neurons: the same numbers, less to compute, nothing hidden from hooks."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from manu_utils.models.asking import answer_logits
from manu_utils.models.encoding import encode
from manu_utils.models.passes import hooked, last_hidden, quiet_pass
from manu_utils.models.silent import last_layer_at, reads_neurons, silent_skipped
from manu_utils.models.training import train_language_model
from manu_utils.unlearning.moments import add_products

N, ACTIVE, HIDDEN = 64, 6, 8


def mlp_of(act="relu", bias=False, active=ACTIVE):
    """An MLP of which some neurons are active at a part of the tokens, and all others at none."""
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": N, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, hidden_act=act, mlp_bias=bias)
    mlp = LlamaMLP(config).double()
    with torch.no_grad():
        mlp.gate_proj.weight[:, 0] = -100.0
        mlp.gate_proj.weight[torch.randperm(N)[:active], 0] = 0.0
    return mlp


@pytest.fixture
def x():
    torch.manual_seed(1)
    tokens = torch.randn(3, 5, HIDDEN, dtype=torch.float64)
    tokens[..., 0] = 1.0
    return tokens.requires_grad_()


def gradients(mlp, x):
    written = mlp(x)
    loss = (written**2).sum()
    return [written.detach(), *torch.autograd.grad(loss, [x, *mlp.parameters()])]


def flops(mlp, x):
    with FlopCounterMode(display=False) as counter:
        mlp(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("bias", [False, True])
def test_answers_and_gradients_are_those_of_the_whole(bias, x):
    mlp = mlp_of(bias=bias)
    whole, cost = gradients(mlp, x), flops(mlp, x)
    with silent_skipped(mlp):
        torch.testing.assert_close(gradients(mlp, x), whole)
        with torch.no_grad():
            torch.testing.assert_close(mlp(x), whole[0])
            assert flops(mlp, x) < 0.5 * cost
    assert flops(mlp, x) == cost


@pytest.fixture
def many():
    """3 x 60 tokens; at two of three of them no neuron of :func:`quiet` is active."""
    torch.manual_seed(1)
    tokens = torch.randn(3, 60, HIDDEN, dtype=torch.float64)
    tokens[..., 0] = 1.0
    tokens[..., 1] = (torch.arange(180) % 3 > 0).double().view(3, 60)
    return tokens.requires_grad_()


def quiet(learns, bias=False):
    mlp = mlp_of(bias=bias).requires_grad_(learns)
    with torch.no_grad():
        mlp.gate_proj.weight[:, 1] = -100.0
    return mlp


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reader", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_tokens_at_which_all_are_silent(learns, reader, bias, many):
    """They cost the first layer alone, where no sum over tokens is asked for."""
    mlp, seen = quiet(learns, bias), []

    @reads_neurons
    def look(module, arguments):
        seen.append(arguments[0].detach())

    def all_of():
        written = mlp(many)
        wanted = [many, *mlp.parameters()] if learns else [many]
        return [written.detach(), *torch.autograd.grad((written**3).sum(), wanted)]

    with hooked([(mlp.down_proj.register_forward_pre_hook, look)] if reader else []):
        whole = all_of()
        with silent_skipped(mlp):
            torch.testing.assert_close(all_of(), whole)
            with torch.no_grad():
                torch.testing.assert_close(mlp(many), whole[0])
                cost = flops(mlp, many)
    of_gate, of_others = 2 * 180 * HIDDEN * N, 2 * 2 * 180 * HIDDEN * ACTIVE
    assert cost == of_gate + of_others if bias else of_gate < cost <= of_gate + of_others / 3
    if reader:
        assert len({*map(len, seen)}) == 1 and seen[0].shape == (3, 60, N)
        for again in seen[1:]:
            torch.testing.assert_close(again, seen[0])


@pytest.mark.parametrize(("act", "active"), [("silu", ACTIVE), ("relu", N)])
def test_where_most_neurons_are_active_nothing_is_picked_out(act, active, x):
    mlp = mlp_of(act, active=active)
    whole, cost = gradients(mlp, x), flops(mlp, x)
    with silent_skipped(mlp):
        assert all(map(torch.equal, gradients(mlp, x), whole))
        assert flops(mlp, x) == cost


def test_not_a_number_is_seen(x):
    mlp = mlp_of()
    mlp.gate_proj.weight.data[3] = torch.nan
    with silent_skipped(mlp):
        assert mlp(x).isnan().any()


def test_a_hook_sees_every_neuron_and_its_gradient(x):
    """Somebody's own hook: all is computed."""
    mlp, seen = mlp_of(), []

    def look(module, arguments):
        arguments[0].retain_grad()
        seen.append(arguments[0])

    with hooked([(mlp.down_proj.register_forward_pre_hook, look)]):
        mlp(x).sum().backward()
        with silent_skipped(mlp):
            mlp(x).sum().backward()
    whole, skipped = seen
    assert torch.equal(whole, skipped) and torch.equal(whole.grad, skipped.grad)
    assert (whole.grad != 0).all()


@pytest.mark.parametrize("layer", ["gate_proj", "up_proj", "down_proj"])
def test_a_layer_with_a_hook_writes_all(layer, x):
    mlp, seen = mlp_of(), []
    register = getattr(mlp, layer).register_forward_hook
    with hooked([(register, lambda module, given, out: seen.append(out))]), silent_skipped(mlp):
        mlp(x)
    assert seen[0].shape == (3, 5, HIDDEN if layer == "down_proj" else N)


def test_a_hook_that_reads_neurons_gets_them_all_and_may_replace_them(x):
    mlp, seen = mlp_of(), []

    @reads_neurons
    def double(module, arguments):
        seen.append(arguments[0])
        return (2 * arguments[0],)

    with hooked([(mlp.down_proj.register_forward_pre_hook, double)]):
        whole, cost = gradients(mlp, x), flops(mlp, x)
        with silent_skipped(mlp):
            torch.testing.assert_close(gradients(mlp, x), whole)
            assert flops(mlp, x) < 0.75 * cost
    torch.testing.assert_close(seen[2], seen[0])
    assert seen[2].shape == (3, 5, N)


def test_of_the_last_layer_only_what_is_read(double_model, questions):
    """Logits and gradients are the same; a hook sees other tokens unless it does not look at them."""
    model, processor = double_model
    asked = [*questions["forget"]["text"], *questions["retain"]["text"]] * 2
    batch = encode(asked, processor, with_answer=True)
    mlp, seen = model.get_decoder().layers[-1].mlp, []

    def look(module, arguments):
        seen.append(arguments[0].detach())

    def logits():
        with quiet_pass(model), torch.no_grad():
            return answer_logits(model, batch)[0]

    read = torch.zeros_like(batch["answer_mask"])
    read[:, :-1] = batch["answer_mask"][:, 1:]
    register = mlp.down_proj.register_forward_pre_hook
    with hooked([(register, reads_neurons(look))]):
        whole = logits()
    with hooked([(register, reads_neurons(look, only_read=True))]):
        torch.testing.assert_close(logits(), whole)
    every, some = seen
    torch.testing.assert_close(some[read], every[read])
    assert every[~read].any() and not some[~read].any()
    torch.testing.assert_close(logits(), whole)

    with quiet_pass(model), torch.no_grad():
        places = read.flatten().nonzero()[:, 0]
        states = last_hidden(model, batch)
        few = last_hidden(model, batch, places)
        torch.testing.assert_close(few[read], states[read])
        assert not torch.allclose(few, states)
        with hooked([(mlp.register_forward_hook, lambda module, given, out: None)]):
            torch.testing.assert_close(last_hidden(model, batch, places), states)  # somebody looks
        torch.testing.assert_close(last_hidden(model, batch, places[:3]), states)  # hardly any
    with torch.no_grad(), last_layer_at(model, places):  # nothing skips here
        torch.testing.assert_close(last_hidden(model, batch), states)


def test_forward_is_as_it_was_afterwards_and_a_replaced_one_is_left_alone(x):
    mlp = mlp_of()
    with pytest.raises(RuntimeError, match="stop"), silent_skipped(mlp):
        assert "forward" in vars(mlp)
        raise RuntimeError("stop")
    assert "forward" not in vars(mlp)
    mlp.forward = lambda x: 7
    with silent_skipped(mlp):
        assert mlp(x) == 7
    assert mlp(x) == 7


def test_a_copy_made_inside_computes_with_its_own_weights(x):
    mlp = mlp_of()
    with silent_skipped(mlp):
        twin = copy.deepcopy(mlp)
        nn.init.zeros_(twin.down_proj.weight)
        assert not twin(x).any() and mlp(x).any()


def test_passes_and_training_skip(tiny_model):
    model, _ = tiny_model
    own = [layer.mlp for layer in model.get_decoder().layers]
    with quiet_pass(model):
        assert all("forward" in vars(mlp) for mlp in own)
    seen = []

    def loss(step):
        seen.extend("forward" in vars(mlp) for mlp in own)
        return sum(0 * weight.sum() for weight in model.parameters() if weight.requires_grad)

    twin = {name: value.clone() for name, value in model.state_dict().items()}
    train_language_model(model, loss, steps=1, lr=1e-9, progress=False)
    model.load_state_dict(twin)
    assert seen and all(seen)
    assert not any("forward" in vars(mlp) for mlp in own)


@pytest.mark.parametrize("silent", [0.0, 0.9])
def test_products_are_those_of_all_neurons(silent):
    torch.manual_seed(0)
    z = torch.randn(20, 30).double() * (torch.rand(30) >= silent)
    written = torch.randn(20, 4).double()
    moment, other = torch.ones(30, 30).double(), torch.ones(4, 30).double()
    add_products(moment, z, z)
    add_products(other, written, z)
    torch.testing.assert_close(moment, 1 + z.T @ z)
    torch.testing.assert_close(other, 1 + written.T @ z)
