"""Skip the neurons that are silent in a whole batch, the tokens at which all are, and in the last
layer the tokens that nobody reads: a ReLU writes exact zeros, and at three tokens of four of the
bundled miniature no neuron of a layer is active. Optional reading: without it everything gives the
same answers, only slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LAYERS = ("gate_proj", "up_proj", "down_proj")
# Of the neurons; where more are active, picking out rows and columns costs more than it saves.
_MOST = 0.5
_FEW = 32  # tokens; products of a handful are computed, and rounded, in another way


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


def reads_neurons(hook: Callable, only_read: bool = False) -> Callable:
    """Mark a forward pre-hook of ``down_proj`` that :func:`silent_skipped` may skip with.

    It is given every neuron at every token. The gradient where it is silent is 0 in place of what
    it would be: it is good for a product with the neurons alone. What the hook returns is read
    where the neurons are not silent.

    Args:
        only_read: what it is given of tokens that are not read does not matter: zeros inside
            :func:`last_layer_at`, which else computes them for it.
    """
    hook.reads_neurons, hook.only_read = True, only_read
    return hook


def _is_relu_mlp(module: nn.Module) -> bool:
    return (
        type(module).__name__ == "LlamaMLP"
        and isinstance(module.act_fn, nn.ReLU)
        and all(type(getattr(module, name)) is nn.Linear for name in _LAYERS)
    )


@contextmanager
def last_layer_at(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside, only the last hidden states of these tokens are right: those of the others lack what
    the last MLP writes, where :func:`silent_skipped` skips.

    Args:
        positions: flat indices of the tokens of a batch, int64.
    """
    mlp = _last_mlp(model)
    if mlp is None or len(positions) < _FEW:
        yield
        return
    mlp.forward = MethodType(partial(_forward, positions=positions.unique()), mlp)
    try:
        yield
    finally:
        mlp.forward = MethodType(_forward, mlp)


def _last_mlp(model: nn.Module) -> nn.Module | None:
    """The MLP of the last layer, if it skips and nobody looks at what is not read."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    if getattr(vars(mlp).get("forward") if mlp else None, "__func__", None) is not _forward:
        return None
    if any(map(_n_hooks, (decoder, decoder.norm, layers[-1], mlp))):
        return None
    looking = mlp.down_proj._forward_pre_hooks.values()
    return mlp if all(getattr(hook, "only_read", False) for hook in looking) else None


def _forward(mlp: nn.Module, x: Tensor, positions: Tensor | None = None) -> Tensor:
    gate, up, down = (getattr(mlp, name) for name in _LAYERS)
    hooks = down._forward_pre_hooks.values()
    readers = [hook for hook in hooks if getattr(hook, "reads_neurons", False)]
    others = _n_hooks(gate) + _n_hooks(up) + _n_hooks(down) - len(readers)
    if x.device.type != "cpu" or others:
        return type(mlp).forward(mlp, x)
    # A bias is written at every token, and the gradient of a weight is a sum over all of them.
    learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in mlp.parameters())
    everywhere = learns or down.bias is not None
    positions = None if everywhere else positions
    opening = gate(_at(x, positions))
    with torch.no_grad():  # and what is NaN, which must be seen
        rows = opening.flatten(0, -2)  # [tokens, n]
        if not everywhere:
            loud = (~(rows.amax(1) <= 0)).nonzero()[:, 0]
            if _FEW <= len(loud) < _MOST * len(rows):
                opening = rows = rows.index_select(0, loud)
                positions = loud if positions is None else positions[loud]
        active = (~(rows.amax(0) <= 0)).nonzero()[:, 0]
    if len(active) > _MOST * down.in_features:
        if positions is None:
            return down(mlp.act_fn(opening) * up(x))
        active = torch.arange(down.in_features)
    part = _at(x, positions)
    if torch.is_grad_enabled():  # again, so that no gradient of [tokens, n] is made
        opening = F.linear(part, *_rows(gate, active))
    else:
        opening = opening.index_select(-1, active)
    z = mlp.act_fn(opening) * F.linear(part, *_rows(up, active))
    if readers:
        every = z.new_zeros(*z.shape[:-1], down.in_features).index_copy(-1, active, z)
        every = _spread(every, positions, x)
        for hook in readers:
            (every,) = hook(down, (every,)) or (every,)
        z = _at(every, positions).index_select(-1, active)
    return _spread(F.linear(z, down.weight.index_select(1, active), down.bias), positions, x)


def _at(x: Tensor, positions: Tensor | None) -> Tensor:
    """x [..., n] at these tokens, [k, n]; all of it if they are None."""
    return x if positions is None else x.flatten(0, -2).index_select(0, positions)


def _spread(rows: Tensor, positions: Tensor | None, x: Tensor) -> Tensor:
    """Rows [k, n] at their positions among the tokens of x, zeros at the others; if these are None,
    they are there already.
    """
    if positions is None:
        return rows
    every = rows.new_zeros(x.shape[:-1].numel(), rows.shape[-1])
    return every.index_copy(0, positions, rows).unflatten(0, x.shape[:-1])


def _rows(layer: nn.Linear, active: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = None if layer.bias is None else layer.bias[active]
    return layer.weight.index_select(0, active), bias


def _n_hooks(layer: nn.Module) -> int:
    forward = layer._forward_pre_hooks, layer._forward_hooks
    return sum(map(len, (*forward, layer._backward_pre_hooks, layer._backward_hooks)))
