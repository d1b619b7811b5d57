"""On which device and in which dtype a model is read and trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from .passes import check_model


def pick_device() -> torch.device:
    """CUDA if there is any, else the CPU (MPS only on request: it lacks some operations)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: str | torch.device) -> torch.dtype:
    """float32 on a CPU and MPS; on CUDA bfloat16, or float16 where that is emulated (T4, V100)."""
    if torch.device(device).type != "cuda":
        return torch.float32
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


HALF = (torch.float16, torch.bfloat16)
# of one weight in training: itself, its gradient and AdamW's two moments, in float32
_BYTES_TRAINED = 16


def device_of(model) -> torch.device:
    """Where the first weights of a model are, and where its inputs go."""
    return next(model.parameters()).device


@contextmanager
def float32_weights(model, trained: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Inside, ``trained`` is float32, and so is every other weight in a half precision that
    training does not compute in: on a CPU all of them, on a GPU float16 beside bfloat16 and the
    reverse.

    On leaving, every weight has its dtype again. After an error or interrupt ``trained`` is as it
    was; a copy on the CPU is kept for that.

    Raises:
        FloatingPointError: a trained weight is beyond the range of its own dtype.
    """
    trained = {id(parameter): parameter for parameter in trained}
    dtype = pick_dtype(device_of(model))
    before = {
        key: parameter.data.to("cpu", copy=parameter.dtype not in HALF)
        for key, parameter in trained.items()
    }
    raised: dict[Tensor, torch.dtype] = {}
    try:
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.dtype in HALF and (id(tensor) in trained or tensor.dtype != dtype):
                raised[tensor] = tensor.dtype
                tensor.data = tensor.data.float()
        yield
        for tensor, own in raised.items():
            lowered = tensor.data.to(own)
            if id(tensor) in trained and not lowered.isfinite().all():
                raise FloatingPointError(
                    f"a trained weight is beyond the range of {own}; lower lr, or load the model "
                    f"in float32."
                )
            tensor.data = lowered
    except BaseException:
        for tensor, own in raised.items():
            if id(tensor) not in trained:
                tensor.data = tensor.data.to(own)
        for key, parameter in trained.items():
            if parameter in raised:
                parameter.data = before[key].to(parameter.device)
            else:
                parameter.data.copy_(before[key])
        raise


def check_trainable(model, lora_rank: int | None) -> None:
    """Refuse what cannot be trained, before anything is changed.

    Raises:
        TypeError: a wrapped model.
        ValueError: quantised weights.
        RuntimeError: full fine-tuning that the GPUs have no room for.
    """
    check_model(model)
    if not hasattr(model, "get_decoder"):
        raise TypeError(
            f"a {type(model).__name__} cannot be trained here; pass what load_model returns first."
        )
    if hasattr(model, "peft_config"):
        raise TypeError(
            "the model holds adapters of its own; merge or delete them first, or load the plain "
            "model."
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (*HALF, torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}, and quantised weights "
                f"cannot be trained and put back; load the checkpoint that they were made from, in "
                "float16 or bfloat16."
            )
    if lora_rank is None:
        free = {}
        for device in {
            parameter.device for parameter in language_weights(model) if parameter.is_cuda
        }:
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free[device] = torch.cuda.mem_get_info(device)[0] + unused
        check_memory(language_weights(model), free)


def check_memory(parameters: list[nn.Parameter], free: dict[torch.device, float]) -> None:
    """Compare the memory that training these weights adds with the free bytes of their devices.

    Raises:
        RuntimeError: it does not fit.
    """
    for device, available in free.items():
        own = [parameter for parameter in parameters if parameter.device == device]
        needed = sum(
            parameter.numel() * (_BYTES_TRAINED - parameter.element_size()) for parameter in own
        )
        if needed > available:
            raise RuntimeError(
                f"training all weights takes {needed / 1e9:.1f} GB more on {device} (each in "
                f"float32, with its gradient and two moments of AdamW), but {available / 1e9:.1f} "
                f"GB are free: train adapters with lora_rank=16, or take a larger GPU."
            )


def language_weights(model) -> list[nn.Parameter]:
    """The parameters of the language model and of its output layer, each once."""
    parts = (model.get_decoder(), model.get_output_embeddings())
    return list(
        {id(p): p for part in parts if part is not None for p in part.parameters()}.values()
    )


def autocast_to(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Products in ``dtype``; for float32 none, whatever surrounds it."""
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)
