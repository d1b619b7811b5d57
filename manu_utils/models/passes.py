"""In what state a model is read: checked, in eval mode, with gradients only where they are wanted,
    and as it was afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..checks import kind_of
from .silent import last_layer_at, silent_skipped


def check_model(model) -> None:
    """Check that a model is the plain module that passes, pruning and saving work on.

    Raises:
        TypeError: no model, or one that is wrapped (DataParallel, torch.compile, peft); it says how
            to unwrap it.
        ValueError: weights made under ``torch.inference_mode``, of which no gradient can be taken.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model is {kind_of(model)}; pass what load_model returns first, and the processor "
            f"second."
        )
    kind = type(model)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(
            f"the model is wrapped in {kind.__name__}; pass model.module, or see "
            f"manu_utils.processes."
        )
    if hasattr(model, "_orig_mod"):
        raise TypeError("the model is wrapped by torch.compile; pass the model that was compiled.")
    if kind.__module__.partition(".")[0] == "peft":
        raise TypeError(
            f"the model is wrapped in {kind.__name__}; merge the adapters first: "
            f"model.merge_and_unload()."
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the weights were made under torch.inference_mode, which forbids gradients; load the "
            "model outside."
        )


def check_weights(model) -> None:
    """Check that a model has weights: those that accelerate brings from a disk count.

    Raises:
        TypeError, ValueError: see :func:`check_model`, or all are on the device ``meta``.
    """
    check_model(model)
    off_loaded = hasattr(model, "hf_device_map")
    if not off_loaded and all(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the model has no weights, only their shapes (device 'meta'); load it on a device that "
            "holds them."
        )


def check_processor(processor) -> None:
    """Check that a processor is what asks and reads: one with a tokenizer.

    Raises:
        TypeError: it is something else, such as the tokenizer alone.
    """
    if not hasattr(processor, "tokenizer"):
        raise TypeError(
            f"the processor is {kind_of(processor)}; pass the second of what load_model returns."
        )


@contextmanager
def quiet_pass(model) -> Iterator[None]:
    """What a pass that reads a model runs in: eval mode, outside autocast and inference mode.

    Dropout would make two passes differ, and autocast would round what is measured. On leaving,
    also after an error, every module is in the mode in which it was.

    Raises:
        TypeError, ValueError: see :func:`check_weights`.
    """
    check_weights(model)
    training = [module for module in model.modules() if module.training]
    devices = {"cpu"} | {parameter.device.type for parameter in model.parameters()}
    try:
        model.eval()
        with ExitStack() as stack:
            for device in sorted(devices):
                if torch.amp.is_autocast_available(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            gradients = torch.is_grad_enabled()
            stack.enter_context(torch.inference_mode(False))
            # which leaving inference mode switches on
            stack.enter_context(torch.set_grad_enabled(gradients))
            stack.enter_context(silent_skipped(model))
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def hooked(hooks: Iterable[tuple[Callable, Callable]]) -> Iterator[None]:
    """Hooks that are there inside and gone afterwards, also after an error.

    Args:
        hooks: pairs of a method that adds a hook, such as ``layer.register_forward_hook``, and the
            hook.
    """
    with ExitStack() as stack:
        for register, hook in hooks:
            stack.callback(register(hook).remove)
        yield


def exact_device(device: torch.device | str) -> torch.device:
    """Where float64 sums of a device are kept: there, or on the CPU if it has none (MPS)."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def check_finite(what: str, *tensors: Tensor) -> None:
    """Check that numbers of a model are finite.

    Raises:
        ValueError: NaN or infinity, with what to do about it.
    """
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise ValueError(
            f"{what} not finite; load the model in float32 or bfloat16, and check its weights."
        )


def gradients_in_range(
    value: Tensor, inputs: Sequence[Tensor], half: bool = False
) -> list[Tensor | None]:
    """∂value/∂inputs of a scalar; None where nothing depends on it.

    Where a gradient leaves the range of float16, the backward pass starts from a smaller number,
    and the gradients are scaled up again in float32, as loss scaling does the other way round.

    Args:
        half: whether float16 is between them; it is where an input is float16.
    """
    half = half or any(tensor.dtype == torch.float16 for tensor in inputs)
    found = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=half)
    # powers of two: exact, but for what becomes too small for float16
    for scale in (2.0**-8, 2.0**-16) if half else ():
        if all(part is None or part.isfinite().all() for part in found):
            break
        again = torch.autograd.grad(value * scale, inputs, allow_unused=True, retain_graph=True)
        found = [None if part is None else part.float() / scale for part in again]
    return list(found)


def slopes_of_probability(
    logits: Tensor, targets: Tensor, rows: Tensor, inputs: Sequence[Tensor], of: Tensor
) -> list[Tensor | None]:
    """∂F/∂inputs with F the sum of the probabilities of some tokens, float32; None where F does not
    depend on it.

    A question's probabilities are scaled up to about 1 for the backward pass, by a power of two
    that is taken out again in float32: the gradient of a small one would round to 0 in float16.

    Args:
        logits, targets, rows: of :func:`manu_utils.models.asking.answer_logits`.
        inputs: [n, ...] each; what belongs to one question influences no other.
        of: the question of each of their n rows, int64.
    """
    likely = logits.float().softmax(-1).gather(1, targets[:, None])[:, 0]
    largest = likely.new_zeros(int(rows.max()) + 1)
    largest.scatter_reduce_(0, rows, likely.detach(), "amax")
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest.clamp_min(tiny)).exponent)
    half = logits.dtype == torch.float16
    found = gradients_in_range((likely * scale[rows]).sum(), inputs, half)
    down = 1 / scale[of.to(scale.device)]

    def unscaled(part: Tensor) -> Tensor:
        return part.float() * down.to(part.device).view(-1, *[1] * (part.dim() - 1))

    return [None if part is None else unscaled(part) for part in found]


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Attention inside uses another kernel than cuDNN's, whichever the caller's choice is
    otherwise; the choice is as it was afterwards.

    On H100 and H200 in half precision torch prefers it since 2.11, and its backward pass gives NaN
    for masked batches of 64, 192, 320, ... tokens (pytorch/pytorch#196678). The kernel is chosen
    in the forward pass, so that belongs inside.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def gradients_of(model, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Gradients flow into ``parameters`` and into no other of the model, and through attention as
    :func:`without_cudnn_attention` computes it; on leaving, every ``requires_grad`` is as it was.

    Raises:
        TypeError: see :func:`check_model`.
        ValueError: weights that can have no gradient, since they were loaded in inference mode or
            are not in memory. Nothing has been changed.
    """
    check_model(model)
    wanted = {id(parameter) for parameter in parameters}
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    if any(parameter.is_meta for parameter in before):
        raise ValueError(
            "a part of the model is offloaded to the CPU or to disk, and gradients need it in "
            "memory: load the model whole on one device, or on several that hold it together."
        )
    try:
        with torch.inference_mode(False), torch.enable_grad(), without_cudnn_attention():
            for parameter in before:
                parameter.requires_grad_(id(parameter) in wanted)
            yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)


@contextmanager
def kept_weights(weights: Iterable[Tensor]) -> Iterator[None]:
    """On leaving, also by an error, these weights are as before, bit by bit (a copy on the CPU)."""
    before = [(weight, weight.detach().to("cpu", copy=True)) for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in before:
                weight.copy_(values)


@contextmanager
def kept_mode(model) -> Iterator[None]:
    """On leaving, every module of the model is in train or eval mode as it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def last_hidden(model, batch: dict[str, Tensor], read: Tensor | None = None) -> Tensor:
    """Read a batch of :func:`encode`: what the unembedding reads, after the final norm, [b, t,
    hidden]. The mask of the answers is no input of a model.

    Args:
        read: flat indices of the tokens whose states will be looked at, int64; those of the others
            may be anything. By default all are right.

    Raises:
        TypeError: a model of another build.
    """
    if not hasattr(model, "model"):  # nor are rows padded on the left what GPT-2's positions take
        raise TypeError(
            f"{type(model).__name__} keeps its layers under another name than `model`; take a "
            f"model that is built as Llama, Qwen, Gemma, Mistral or Phi-3 are."
        )
    inputs = {key: value for key, value in batch.items() if key != "answer_mask"}
    with nullcontext() if read is None else last_layer_at(model, read):
        return model.model(**inputs, use_cache=False).last_hidden_state
