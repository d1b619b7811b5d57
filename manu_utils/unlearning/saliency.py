"""Which weights matter to which set: the diagonal of the Fisher information, and the mask of
MMUnlearner, which lets only some weights move.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..benchmark.records import Question
from ..checks import check_number, check_questions, check_whole, kind_of
from ..models.encoding import encode, fitting
from ..models.passes import check_finite, gradients_of, quiet_pass
from ..models.precision import check_trainable, float32_weights, language_weights
from ..models.training import answer_loss
from ..progress import bar


def diagonal_fisher(
    model,
    processor,
    questions: dict[str, list[Question]],
    *,
    batch_size: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The mean square of the gradient of the answers' cross-entropy, for every language weight.

    With ``batch_size=1`` this is the empirical Fisher information. Larger batches square the
    gradient of their mean, which is cheaper and smaller; the codes of selective synaptic dampening
    and of MMUnlearner do so, the latter with 4. All batches count alike, whatever their modality.

    Args:
        questions: modality (``"multimodal"``, ``"text"``) -> questions with answers. What is too
            long for the model is left out, with a warning.
        seed: of which questions share a batch.

    Returns:
        Name of a parameter of the language model, as in ``named_parameters()`` -> float32, of its
        shape and on its device. The model is as it was.

    Raises:
        TypeError: an argument of another type, or a wrapped model.
        ValueError: no questions, an empty answer, quantised weights, or a gradient that is not
            finite.
    """
    check_questions("questions", questions, needed=True)
    check_whole("batch_size", batch_size)
    check_whole("seed", seed, least=0)
    check_trainable(model, lora_rank=0)  # no optimiser: what it would take does not count
    work = []
    for items in questions.values():
        kept = fitting(items, processor, with_answer=True)[0]
        order = [items[index] for index in random.Random(seed).sample(kept, len(kept))]
        work += [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    named = named_language_weights(model)
    parameters = list(named.values())
    with quiet_pass(model), gradients_of(model, parameters), float32_weights(model, parameters):
        sums = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        for items in bar(work, desc="Fisher", shown=progress):
            batch = encode(items, processor, with_answer=True, device=parameters[0].device)
            loss = answer_loss(model, batch)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient, value=1 / len(work))
    check_finite("the Fisher information is", *sums)
    return dict(zip(named, sums, strict=True))


def named_language_weights(model) -> dict[str, nn.Parameter]:
    """Name, as in ``named_parameters()`` -> parameter of the language model or its output layer."""
    own = {id(parameter) for parameter in language_weights(model)}
    return {name: p for name, p in model.named_parameters() if id(p) in own}


def saliency_mask(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    threshold: float = 1.0,
    batch_size: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Tensor]:
    """MMUnlearner's mask: weights whose Fisher information of the forget set is at least
    ``threshold`` times that of the retain set (Huo et al., arXiv 2502.11051).

    A dict for ``unlearn_by_training(..., mask=)``, where only these weights move. As in its code,
    only matrices are in it; norms and embeddings, which move freely there, stay as they are here.
    There the mask of the vision tower counts, too, and the step on the retain set is not masked.

    Args:
        forget, retain: modality -> questions with answers. To erase what is seen and keep what is
            read, as MMUnlearner does, give ``forget`` images alone, and ``retain`` the text-only
            questions about the same people beside its own.

    Returns:
        Name of a weight -> bool, of its shape.

    Raises:
        TypeError, ValueError: see :func:`diagonal_fisher`, or a threshold that is not positive.
    """
    check_number("threshold", threshold, above=0)
    options = {"batch_size": batch_size, "seed": seed, "progress": progress}
    sets = (forget, retain)
    of_forget, of_retain = (diagonal_fisher(model, processor, q, **options) for q in sets)
    embedding = model.get_input_embeddings().weight
    named = named_language_weights(model)
    return {
        name: saliency(of_forget[name], of_retain[name]) >= threshold
        for name, weight in named.items()
        if weight.ndim == 2 and weight is not embedding
    }


def saliency(of_forget: Tensor, of_retain: Tensor) -> Tensor:
    """(F_f + ε) / (F_r + ε), ε = 1e-15: 1 for a weight that matters to neither set."""
    return (of_forget + 1e-15) / (of_retain + 1e-15)


def check_mask(mask, model) -> dict[str, Tensor]:
    """A mask of language weights, each on the device of its weight.

    Args:
        mask: name of a parameter -> bool of its shape; what is not named does not move.

    Raises:
        TypeError: no dict.
        ValueError: an unknown name, no boolean tensor of the weight's shape, or nothing that moves.
    """
    if not isinstance(mask, Mapping):
        hint = "pass a dict of bool tensors by parameter name, such as saliency_mask returns"
        raise TypeError(f"the mask is {kind_of(mask)}; {hint}.")
    named = named_language_weights(model)
    for name, free in mask.items():
        if name not in named:
            raise ValueError(f"mask[{name!r}] names no weight of the language model.")
        shape = named[name].shape
        if not isinstance(free, Tensor) or free.dtype != torch.bool or free.shape != shape:
            raise ValueError(f"mask[{name!r}] must be a bool tensor of shape {list(shape)}.")
    if not any(free.any() for free in mask.values()):
        raise ValueError("no weight of the mask may move; nothing would be trained.")
    return {name: free.to(named[name].device) for name, free in mask.items()}


def holding_back(model, mask: dict[str, Tensor] | None) -> Callable[[], None]:
    """A function that puts every language weight outside of ``mask`` back to what it is now.

    Called after each step it keeps them there, whatever the optimiser does to them (its decay moves
    weights without a gradient, too). The gradient is clipped with all weights, as MMUnlearner does.
    """
    named = {} if mask is None else named_language_weights(model)
    kept = [(p, p.detach().clone(), mask.get(name)) for name, p in named.items()]

    @torch.no_grad()
    def put_back() -> None:
        for parameter, before, free in kept:
            before = before.to(parameter.dtype)  # in training it is float32
            parameter.copy_(before if free is None else torch.where(free, parameter, before))

    return put_back
