"""Checks at the doors: what a pass over a model needs (types, eval mode, finite numbers), and what check cells call."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

# ------------------------------------------------------------------------------------------------ arguments


def check_real(name: str, value) -> None:
    """Check that an argument is a number, whatever its range; True and "5" are none.

    Raises:
        TypeError: not a number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={shown(value)} must be a number such as 5.0, not {_kind(value)}.")


def check_number(name: str, value, *, above: float = -math.inf, below: float = math.inf) -> None:
    """Check that an argument is a finite number in (above, below).

    Raises:
        TypeError: not a number.
        ValueError: not finite, or out of range.
    """
    check_real(name, value)
    if not math.isfinite(value) or not above < value < below:
        limits = [f"above {above:g}"] * (above > -math.inf) + [f"below {below:g}"] * (below < math.inf)
        raise ValueError(f"{name}={value!r} must be a finite number{' ' if limits else ''}{' and '.join(limits)}.")


def check_whole(name: str, value, *, least: int = 1) -> None:
    """Check that an argument is a whole number of at least ``least``; True, 8.0 and "8" are none.

    Raises:
        TypeError: not a whole number.
        ValueError: below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={shown(value)} must be a whole number such as {max(least, 1)}, not {_kind(value)}.")
    if value < least:
        raise ValueError(f"{name}={value!r} is not positive." if least == 1 else f"{name}={value!r} is below {least}.")


def check_names(name: str, value, known: Sequence[str]) -> None:
    """Check that an argument is a sequence of at least one of the ``known`` names, none of them twice; a string is none.

    Raises:
        TypeError: a string, or no sequence of strings.
        ValueError: empty, an unknown name, or one twice.
    """
    several = f"({', '.join(map(repr, known))})"
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{name}={shown(value)} must be a tuple of names, such as {several} or ({known[0]!r},).")
    if not value or len(set(value)) < len(value):
        raise ValueError(f"{name}={shown(value)} must name at least one of {several}, and none twice.")
    if unknown := [item for item in value if item not in known]:
        raise ValueError(f"{name} holds {shown(unknown[0])}, which is unknown; use {several}.")


def check_name(name: str, value, known: Sequence[str]) -> None:
    """Check that an argument is one of the ``known`` names.

    Raises:
        TypeError: no string.
        ValueError: an unknown name.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(known)}, not {_kind(value)}.")
    if value not in known:
        raise ValueError(f"{name}={shown(value)} is unknown; use one of {', '.join(known)}.")


def shown(value) -> str:
    """A value in an error: as it is written, or its type alone where that is long or an object, such as a model."""
    text = repr(value) if isinstance(value, str | numbers.Number | Sequence | None) else ""
    return text if 0 < len(text) <= 80 else f"<{type(value).__name__}>"


def _kind(value) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def check_questions(name: str, sets) -> None:
    """Check that an argument maps modalities to questions, each with an answer.

    Raises:
        TypeError: no dict, or its values are no lists of :class:`manu_utils.benchmark.Question`.
        ValueError: see :func:`check_answers`.
    """
    if not isinstance(sets, Mapping):
        raise TypeError(f"{name} is {_kind(sets)}; it must be a dict such as {{'text': benchmark.training_questions(...)}}.")
    for modality, items in sets.items():
        if isinstance(items, str) or not isinstance(items, Sequence) or not all(hasattr(item, "answer") for item in items):
            raise TypeError(f"{name}[{modality!r}] must be a list of questions, as training_questions returns them.")
        check_answers(items)


def check_answers(questions: Sequence) -> None:
    """Check that every question has an answer to forget or to keep.

    Args:
        questions: :class:`manu_utils.benchmark.Question`.

    Raises:
        ValueError: an answer that is empty or no text, with its person.
    """
    for question in questions:
        if not isinstance(question.answer, str) or not question.answer.strip():
            raise ValueError(
                f"person {question.person_id}: the answer to {question.question[:60]!r} is {question.answer!r}; leave "
                "questions without an answer out."
            )


# ------------------------------------------------------------------------------------------------ models


def check_model(model) -> None:
    """Check that a model is the plain module that passes, pruning and saving work on.

    Raises:
        TypeError: no model, or one that is wrapped (DataParallel, torch.compile, peft); it says how to unwrap it.
        ValueError: weights made under ``torch.inference_mode``, of which no gradient can be taken.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is {_kind(model)}; pass what load_model returns first, and the processor second.")
    kind = type(model)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(f"the model is wrapped in {kind.__name__}; pass model.module, or see manu_utils.parallel.")
    if hasattr(model, "_orig_mod"):
        raise TypeError("the model is wrapped by torch.compile; pass the model that was compiled.")
    if kind.__module__.partition(".")[0] == "peft":
        raise TypeError(f"the model is wrapped in {kind.__name__}; merge the adapters first: model.merge_and_unload().")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError("the weights were made under torch.inference_mode, which forbids gradients; load the model outside.")


@contextmanager
def quiet_pass(model) -> Iterator[None]:
    """Every pass that reads a model runs in here: in eval mode, outside autocast and inference mode.

    Dropout would make two passes differ, and autocast would round what is measured. On leaving, also after an error, every
    module is in the mode in which it was.

    Raises:
        TypeError, ValueError: see :func:`check_model`.
    """
    check_model(model)
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
            stack.enter_context(torch.set_grad_enabled(gradients))  # which leaving inference mode switches on
            yield
    finally:
        for module in training:
            module.training = True


def exact_device(device: torch.device | str) -> torch.device:
    """Where float64 sums of a device are kept: there, or on the CPU if it has no float64 (Apple's MPS)."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def check_finite(what: str, *tensors: Tensor) -> None:
    """Check that numbers of a model are finite.

    Raises:
        ValueError: NaN or infinity, with what to do about it.
    """
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise ValueError(f"{what} not finite; load the model in float32 or bfloat16, and check its weights.")


# ------------------------------------------------------------------------------------------------ check cells


def check(holds: bool, claim: str, hint: str = "") -> None:
    """Print ``✓ claim`` if it holds.

    Raises:
        AssertionError: ``✗ claim`` and the hint, if it does not.
    """
    if not holds:
        raise AssertionError(f"✗ {claim}" + (f". {hint}" if hint else ""))
    _say("✓", "ok", claim)


def attempt(exercise: Callable[[], bool], claim: str, hint: str) -> None:
    """Check an exercise; a stub that still raises NotImplementedError prints ``○ not attempted yet``, so that all cells run.

    Args:
        exercise: runs the reader's function and says whether the result is right.

    Raises:
        AssertionError: with the hint, if the attempt is wrong.
    """
    try:
        right = exercise()
    except NotImplementedError:
        _say("○", "--", "not attempted yet")
        return
    check(bool(right), claim, hint)


def _say(sign: str, plain: str, text: str) -> None:
    """Print a line; where stdout can print few characters (cp1252, ASCII) with another sign, rather than fail."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sign.encode(encoding)
    except UnicodeEncodeError:
        sign = plain
    print(f"{sign} {text}".encode(encoding, errors="backslashreplace").decode(encoding))
