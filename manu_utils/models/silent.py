"""Skip the neurons that are silent in a whole batch: a ReLU writes exact zeros, and of the bundled
miniature's neurons one in 3,000 is active at a token. Optional reading: without it everything gives
the same answers, only slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LAYERS = ("gate_proj", "up_proj", "down_proj")
# Of the neurons; where more are active, picking out rows and columns costs more than it saves.
_MOST = 0.5


@contextmanager
def silent_skipped(model: nn.Module) -> Iterator[None]:
    """Inside, the MLPs of a Llama with ReLU compute on a CPU what is not exactly zero.

    Answers and gradients are those of the whole computation but for the order of additions. All of
    it is computed where somebody has replaced ``forward``, and in layers with hooks, unless
    :func:`reads_neurons` marks these.
    """
    found = (module for module in model.modules() if _is_relu_mlp(module))
    changed = [module for module in found if "forward" not in vars(module)]
    for module in changed:
        module.forward = MethodType(_forward, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def reads_neurons(hook: Callable) -> Callable:
    """Mark a forward pre-hook of ``down_proj`` that :func:`silent_skipped` may skip with.

    It is given every neuron at every token. The gradient of those that are silent in the whole
    batch is 0 in place of what it would be: it is good for a product with the neurons alone.
    """
    hook.reads_neurons = True
    return hook


def _is_relu_mlp(module: nn.Module) -> bool:
    return (
        type(module).__name__ == "LlamaMLP"
        and isinstance(module.act_fn, nn.ReLU)
        and all(type(getattr(module, name)) is nn.Linear for name in _LAYERS)
    )


def _forward(mlp: nn.Module, x: Tensor) -> Tensor:
    gate, up, down = (getattr(mlp, name) for name in _LAYERS)
    hooks = down._forward_pre_hooks.values()
    readers = [hook for hook in hooks if getattr(hook, "reads_neurons", False)]
    others = _n_hooks(gate) + _n_hooks(up) + _n_hooks(down) - len(readers)
    if x.device.type != "cpu" or others:
        return type(mlp).forward(mlp, x)
    opening = gate(x)
    with torch.no_grad():  # and what is NaN, which must be seen
        active = (~(opening.flatten(0, -2).amax(0) <= 0)).nonzero()[:, 0]
    if len(active) > _MOST * down.in_features:
        return down(mlp.act_fn(opening) * up(x))
    if torch.is_grad_enabled():  # again, so that no gradient of [tokens, n] is made
        opening = F.linear(x, *_rows(gate, active))
    else:
        opening = opening.index_select(-1, active)
    z = mlp.act_fn(opening) * F.linear(x, *_rows(up, active))
    if readers:
        every = z.new_zeros(*z.shape[:-1], down.in_features).index_copy(-1, active, z)
        for hook in readers:
            (every,) = hook(down, (every,)) or (every,)
        z = every.index_select(-1, active)
    return F.linear(z, down.weight.index_select(1, active), down.bias)


def _rows(layer: nn.Linear, active: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = None if layer.bias is None else layer.bias[active]
    return layer.weight.index_select(0, active), bias


def _n_hooks(layer: nn.Linear) -> int:
    forward = layer._forward_pre_hooks, layer._forward_hooks
    return sum(map(len, (*forward, layer._backward_pre_hooks, layer._backward_hooks)))
