"""Rivals that write new weights: selective synaptic dampening, which takes no training step, and
the negative task vector, which trains a copy to know what to subtract.

Each changes the language model in place and gives an :class:`Edit` whose ``undo()`` restores every
bit. What is costly is computed once, apart, so that a grid of strengths needs no second pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_number
from ..models.training import fine_tune
from .pruning import Edit, check_unchanged
from .saliency import named_language_weights


def dampening(of_forget: Tensor, of_retain: Tensor, alpha: float, strength: float) -> Tensor:
    """SSD: min(λ I_D / I_f, 1) where I_f > α I_D, else 1 (Foster et al., arXiv 2308.07707).

    Args:
        of_forget, of_retain: importances of the same weights, none negative, of any one shape.
        alpha: α, how many times as important a weight must be to the forget set.
        strength: λ; what is chosen is multiplied by at most λ / α.
    """
    chosen = of_forget > alpha * of_retain
    factors = (strength * of_retain / of_forget.where(chosen, 1)).clamp(max=1)
    return factors.where(chosen, 1)


def dampen(
    model,
    of_forget: dict[str, Tensor],
    of_retain: dict[str, Tensor],
    *,
    alpha: float = 10.0,
    strength: float = 1.0,
    on_top: bool = False,
) -> Edit:
    """Selective synaptic dampening: shrink the weights that matter to the forget set far more than
    to the rest (:func:`dampening`).

    The paper dampens all weights of an image classifier; here those of the language model. Its I_D
    is of all data, forget included; then no weight can matter more than |D| / |D_f| times as much,
    ten times for forget 10 %, and hardly twice beside a small sample. Here the retain set stands
    for D.

    Args:
        of_forget, of_retain: :func:`diagonal_fisher` of the two sets, of this model.
        alpha, strength: α and λ; 10 and 1 are the paper's for a class of images.
        on_top: change a model that is changed already; without it such a model is refused.

    Raises:
        TypeError: a number that is none.
        ValueError: a number that is not positive, importances of another model, or nothing to
            dampen. The model is untouched, as it is after an interrupt.
    """
    check_number("alpha", alpha, above=0)
    check_number("strength", strength, above=0)
    named = _weights_of(model, on_top, "importances are", of_forget, of_retain)
    factors = {n: dampening(of_forget[n], of_retain[n], alpha, strength) for n in named}
    changed = {named[n]: factor for n, factor in factors.items() if (factor < 1).any()}
    if not changed:
        raise ValueError(f"no weight is {alpha:g} times as important to forget; lower alpha.")
    return _changed(model, {weight: weight * f.to(weight) for weight, f in changed.items()})


def task_vector(
    model, processor, forget: dict[str, list[Question]], **options
) -> dict[str, Tensor]:
    """What fine-tuning on the forget set would change: name of a language weight -> float32.

    Args:
        forget: modality -> questions with answers.
        options: those of :func:`fine_tune`, such as ``steps``, ``lr`` and ``lora_rank``.

    Returns:
        The change, on the device of each weight. The model is as it was; a copy is trained.

    Raises:
        TypeError, ValueError: see :func:`fine_tune`.
    """
    taught = copy.deepcopy(model)
    fine_tune(taught, processor, forget, **options)
    after = named_language_weights(taught)
    before = named_language_weights(model)
    return {name: after[name].detach().float() - w.detach().float() for name, w in before.items()}


def subtract_task_vector(
    model, vector: dict[str, Tensor], *, scale: float = 1.0, on_top: bool = False
) -> Edit:
    """Forget by going the other way: W − λ (W_taught − W) (Ilharco et al., arXiv 2212.04089).

    Args:
        vector: from :func:`task_vector`, of this model.
        scale: λ.
        on_top: change a model that is changed already; without it such a model is refused.

    Raises:
        TypeError: a number that is none.
        ValueError: a number that is not positive, or a vector of another model. The model is
            untouched, as it is after an interrupt.
    """
    check_number("scale", scale, above=0)
    named = _weights_of(model, on_top, "task vector is", vector)
    moved = {named[name]: change for name, change in vector.items() if change.any()}
    return _changed(model, {w: w.float() - scale * c.to(w.device) for w, c in moved.items()})


def _weights_of(
    model, on_top: bool, what: str, *given: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The language weights by name, for which each of these has to have a value."""
    named = named_language_weights(model)
    shapes = {name: weight.shape for name, weight in named.items()}
    if any({name: values.shape for name, values in of.items()} != shapes for of in given):
        raise ValueError(f"the {what} of another model; make them from this one.")
    if not on_top:
        check_unchanged(model)
    return named


def whole_weights(weights: Iterable[Tensor]) -> list[tuple[Tensor, int, Tensor, Tensor]]:
    """What an Edit keeps of weights that change as a whole, the old values on the CPU."""
    saved = []
    for weight in weights:
        index = torch.arange(len(weight), device=weight.device)
        saved.append((weight, 0, index, weight.detach().to("cpu", copy=True)))
    return saved


def _changed(model, values: dict[Tensor, Tensor]) -> Edit:
    """Write new values into weights, all or none."""
    handle = Edit(model, whole_weights(values))
    with torch.no_grad(), handle.changing():
        for weight, value in values.items():
            weight.copy_(value)
    return handle
