"""A GPU that is not there: tensors that claim to be on it, and refuse to be mixed with those of the CPU.

What a Python call can get wrong about devices, it gets wrong here too: an operand made on the CPU, ``numpy()`` without
``cpu()``, an index of the GPU into a tensor of the CPU. The numbers are those of the CPU.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

GPU = torch.device("cuda", 0)
_MAY_MIX = {  # as on a real one: the CPU's indices are taken, and copies go across
    Tensor.__getitem__, Tensor.__setitem__, Tensor.copy_, Tensor.data.__set__, Tensor.index_put, Tensor.index_put_,
}  # fmt: skip
_ON_CPU_ONLY = {Tensor.numpy, Tensor.__array__}
_MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda}


class OnGpu(Tensor):
    """A tensor that says it is on the GPU."""

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            own = _on_gpu(_plain(self.detach()).clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(own, self.requires_grad) if is_parameter else own
        return memo[id(self)]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == Tensor.device.__get__:
            return GPU
        if function == Tensor.is_cuda.__get__:
            return True
        if function == Tensor.is_cpu.__get__:
            return False
        if function in _ON_CPU_ONLY:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")
        if function in _MOVES:
            return _moved(function, args, kwargs)
        _check(function, args, kwargs)
        found = super().__torch_function__(function, types, args, kwargs)
        return _on_gpu(found) if function == Tensor.grad.__get__ and found is not None else found


def _tensors(things) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda one: found.append(one) if isinstance(one, Tensor) else None, things)
    return found


def _check(function, args, kwargs) -> None:
    found = _tensors((args, kwargs))
    plain = [one for one in found if not isinstance(one, OnGpu) and one.dim()]
    if function in _MAY_MIX:
        if found and not isinstance(found[0], OnGpu) and function not in (Tensor.copy_, Tensor.data.__set__):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        return
    if plain:
        name = getattr(function, "__qualname__", function)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu: {plain[0].shape}")


def _plain(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _on_gpu(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(OnGpu)


def _is_gpu(device) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _is_device(thing) -> bool:
    if isinstance(thing, torch.device):
        return True
    return isinstance(thing, str) and thing.partition(":")[0] in ("cuda", "cpu")


def _moved(function, args, kwargs):
    """``to``, ``cpu`` and ``cuda``: the dtype is changed by the CPU, and the claim by us."""
    tensor, rest = args[0], list(args[1:])
    gpu = isinstance(tensor, OnGpu)
    if function is Tensor.cpu:
        gpu, rest, kwargs = False, [], {}
    elif function is Tensor.cuda:
        gpu, rest, kwargs = True, [], {}
    for one in [*rest, kwargs.get("device"), kwargs.get("other")]:
        if isinstance(one, Tensor):
            gpu = isinstance(one, OnGpu)
        elif _is_device(one):
            gpu = _is_gpu(one)
    rest = [_plain(one) if isinstance(one, Tensor) else "cpu" if _is_device(one) else one for one in rest]
    kwargs = {key: "cpu" if key == "device" else value for key, value in kwargs.items()}
    crossed = gpu != isinstance(tensor, OnGpu)
    with torch._C.DisableTorchFunctionSubclass():
        inner = tensor.as_subclass(Tensor)
        found = inner.to(*rest, **kwargs) if rest or kwargs else inner
        if not crossed and found is inner:
            return tensor
        if crossed and found is inner:
            found = found.clone()
        return found.as_subclass(OnGpu) if gpu else found


class _Places(TorchFunctionMode):
    """What is made with ``device=cuda`` claims to be there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _MOVES:
            return _moved(function, args, kwargs)
        if _is_gpu(kwargs.get("device")):
            found = function(*args, **(kwargs | {"device": "cpu"}))
            return _on_gpu(found) if isinstance(found, Tensor) else found
        if function == Tensor.data.__set__ and isinstance(args[1], OnGpu) != isinstance(args[0], OnGpu):
            raise RuntimeError("a weight's data was put on another device")
        return function(*args, **kwargs)


def move(model):
    """Put a model, or a layer, on the pretended GPU, in place."""
    for module in model.modules():
        for name, one in list(module._parameters.items()):
            if one is not None:
                module._parameters[name] = torch.nn.Parameter(_on_gpu(one.detach()), requires_grad=one.requires_grad)
        for name, one in list(module._buffers.items()):
            if one is not None:
                module._buffers[name] = _on_gpu(one)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


@contextlib.contextmanager
def pretended_gpu(dtype: torch.dtype = torch.float32):
    """Inside, ``device="cuda"`` works, and training on it computes in ``dtype``."""
    from manu_utils.models import precision

    def pick_dtype(device):
        return dtype if _is_gpu(device) else torch.float32

    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (torch.cuda, "mem_get_info", lambda device: (10**12, 10**12)),
            (torch.cuda, "memory_reserved", lambda device: 0), (torch.cuda, "memory_allocated", lambda device: 0),
            (precision, "pick_dtype", pick_dtype),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", _module_to(torch.nn.Module.to)))
        stack.enter_context(_Places())
        yield


def _module_to(true):
    def to(module, *args, **kwargs):
        if args and _is_gpu(args[0]):
            return move(module)
        return true(module, *args, **kwargs)

    return to
