"""Beyond pruning: change what neurons write, in closed form, so that the forget facts go and the retain set sees nothing.

A pruned neuron is gone for everybody who shares it. Its column in the MLP's last layer can instead be changed along the
gradient of the forget facts' margin, made harmless to the retain set by the second moment of its neurons. No training step is
taken: one backward pass over the forget set per round, one forward pass over the retain set. Derived in notebook 08.

The step is that of a constrained least-squares edit, as in ROME and MEMIT (arXiv 2202.05262, 2210.07229), which write facts
where we delete them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .attribution import answer_margins, token_rarity
from .batches import batches
from .benchmark import Question, check_sets
from .evaluation import known
from .neurons import MLP, find_neurons, split_selected
from .progress import bar
from .pruning import Pruned
from .training import answer_logits, gradients_of


@torch.no_grad()
def collect_moments(
    model, processor, questions: dict[str, list[Question]], *, batch_size: int = 32, progress: bool = True
) -> list[Tensor]:
    """The second moment E[z zᵀ] of the neurons of every language MLP, over all tokens of questions and answers.

    One forward pass; sums are streamed, so memory does not grow with the number of questions. Each modality counts alike.

    Args:
        questions: modality -> questions with answers.

    Returns:
        float32 [n, n] for each MLP of the language model with n neurons, on the model's device.

    Raises:
        ValueError: a modality has no questions, or an activation is not finite.
    """
    if not questions or not all(questions.values()):
        raise ValueError("collect_moments needs questions in every modality.")
    mlps = _language(model)
    moments = [torch.zeros(mlp.size, mlp.size, device=mlp.output.weight.device) for mlp in mlps]
    for items in questions.values():
        sums = [torch.zeros_like(moment) for moment in moments]
        inputs: dict[int, Tensor] = {}
        hooks = [mlp.output.register_forward_pre_hook(_keep(inputs, index)) for index, mlp in enumerate(mlps)]
        n_tokens = 0
        try:
            work = batches(items, processor, batch_size, with_answer=True, device=model.device)
            for _, batch in bar(work, total=math.ceil(len(items) / batch_size), desc="moments", shown=progress):
                answer_logits(model, batch)
                real = batch["attention_mask"].bool()
                n_tokens += int(real.sum())
                for index, z in inputs.items():
                    z = z[real.to(z.device)].float()  # [tokens, n]
                    sums[index].addmm_(z.T, z)
        finally:
            for hook in hooks:
                hook.remove()
        for moment, total in zip(moments, sums, strict=True):
            moment.add_(total, alpha=1 / (n_tokens * len(questions)))
    if not all(torch.isfinite(moment).all() for moment in moments):
        raise ValueError("an activation is not finite; load the model in float32 or bfloat16.")
    return moments


def margin_gradient(
    model, processor, questions: dict[str, list[Question]], alive: dict[str, Tensor], *, batch_size: int = 32
) -> tuple[float, list[Tensor]]:
    """The mean margin of the facts still known, and its gradient for what the language neurons write.

    The margin is that of :func:`manu_utils.attribution.answer_margins`. The means of the modalities are added, so both count
    alike.

    Args:
        questions: modality -> questions with answers.
        alive: modality -> bool [n_questions], the facts that count.

    Returns:
        The margin, and for each language MLP float32 [hidden, n], the shape of its last layer's weight.
    """
    weights = [mlp.output.weight for mlp in _language(model)]
    total, gradients = 0.0, [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    with gradients_of(model, weights):
        for modality, items in questions.items():
            rarity = token_rarity(items, processor)
            left = [question for question, still in zip(items, alive[modality].tolist(), strict=True) if still]
            for _, batch in batches(left, processor, batch_size, with_answer=True, device=model.device):
                with torch.enable_grad():
                    margin = answer_margins(model, batch, rarity).sum() / len(left)
                    parts = torch.autograd.grad(margin, weights, allow_unused=True)
                total += margin.item()
                for gradient, part in zip(gradients, parts, strict=True):
                    if part is not None:  # Mllama passes its cross-attention layers only with an image
                        gradient.add_(part)
    return total, gradients


def rewrite_neurons(
    model,
    processor,
    forget: dict[str, list[Question]],
    moments: Sequence[Tensor],
    *,
    selected: Tensor | None = None,
    ridge: float = 0.1,
    strength: float = 0.5,
    rounds: int = 8,
    batch_size: int = 32,
    progress: bool = True,
) -> Pruned:
    """Change what language neurons write until no forget fact is answered, disturbing the retain set as little as possible.

    Each round moves the last layer W of every language MLP by ΔW = −η ∇W (M + ridge · mean diagonal · I)⁻¹, where ∇W is the
    gradient of the margin of the facts still known and M the second moment of the retain set's neurons: of all steps that
    lower the margin by as much, to first order, the one whose outputs ΔW z are smallest on the retain set. η is such that
    the margin falls by ``strength`` of itself, to first order.

    Args:
        forget: modality -> questions with answers.
        moments: of the retain set, from :func:`collect_moments`.
        selected: bool [n_neurons] in the order of :func:`find_neurons`, the neurons that may be changed (default: all of the
            language model). Neurons of the vision tower are never changed.
        ridge: what a change costs beside its effect on the retain set, so that neurons which that set does not use are not
            free.
        strength: in (0, 1].
        rounds: at most so many; it stops when every fact is gone.

    Returns:
        A :class:`manu_utils.pruning.Pruned` whose ``undo()`` restores every bit.

    Raises:
        ValueError: an option out of range, an empty modality, moments or ``selected`` of another model, nothing to change, or
            a gradient that is not finite. The model is untouched.
    """
    if ridge <= 0 or not 0 < strength <= 1 or rounds < 1:
        raise ValueError(f"ridge={ridge} must be positive, strength={strength} in (0, 1] and rounds={rounds} at least 1.")
    if not forget or not all(forget.values()):
        raise ValueError("forget needs questions in every modality.")
    mlps, columns = _language(model), _columns(model, selected)
    if [tuple(moment.shape) for moment in moments] != [(mlp.size, mlp.size) for mlp in mlps]:
        raise ValueError("the moments are of another model: one [n, n] per language MLP of n neurons is needed.")
    factors = []
    for moment, index in zip(moments, columns, strict=True):
        part = moment[index][:, index]
        part.diagonal().add_(ridge * moment.diagonal().mean())
        factors.append(torch.linalg.cholesky(part))
    weights = [mlp.output.weight for mlp in mlps]
    saved = [(w, 1, index, w.detach().index_select(1, index)) for w, index in zip(weights, columns, strict=True)]
    handle = Pruned(saved)
    options = {"batch_size": batch_size, "progress": False}
    try:
        for _ in bar(range(rounds), desc="rewriting", shown=progress):
            alive = {modality: known(model, processor, items, **options) for modality, items in forget.items()}
            left = {modality: items for modality, items in forget.items() if alive[modality].any()}
            if not left:
                break
            margin, gradients = margin_gradient(model, processor, left, alive, batch_size=batch_size)
            if not (math.isfinite(margin) and all(torch.isfinite(gradient).all() for gradient in gradients)):
                raise ValueError("the margin or its gradient is not finite; load the model in float32 or bfloat16.")
            used = [gradient[:, index] for gradient, index in zip(gradients, columns, strict=True)]
            steps = [torch.cholesky_solve(part.T, factor).T for part, factor in zip(used, factors, strict=True)]
            fall = sum((part * step).sum().item() for part, step in zip(used, steps, strict=True))
            if fall <= 0:
                raise ValueError("the neurons that may be changed write nothing for these facts; select others.")
            with torch.no_grad():
                for weight, index, step in zip(weights, columns, steps, strict=True):
                    weight.index_add_(1, index, step.to(weight.dtype), alpha=-strength * margin / fall)
    except BaseException:
        handle.undo()
        raise
    return handle


def rewrite(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    batch_size: int = 32,
    progress: bool = True,
    **options,
) -> Pruned:
    """:func:`collect_moments` of the retain set and :func:`rewrite_neurons` in one call.

    Args:
        forget, retain: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        options: those of :func:`rewrite_neurons`.

    Raises:
        ValueError: see :func:`manu_utils.benchmark.check_sets` and :func:`rewrite_neurons`. The model is untouched.
    """
    check_sets(forget, retain)
    moments = collect_moments(model, processor, retain, batch_size=batch_size, progress=progress)
    return rewrite_neurons(model, processor, forget, moments, batch_size=batch_size, progress=progress, **options)


def _keep(inputs: dict[int, Tensor], index: int):
    def hook(module, arguments: tuple[Tensor]) -> None:
        inputs[index] = arguments[0]

    return hook


def _language(model) -> list[MLP]:
    return [mlp for mlp in find_neurons(model) if mlp.tower == "language"]


def _columns(model, selected: Tensor | None) -> list[Tensor]:
    """The indices of the neurons that may be changed, for each language MLP."""
    mlps = find_neurons(model)
    if selected is None:
        selected = torch.ones(sum(mlp.size for mlp in mlps), dtype=torch.bool)
    parts = zip(mlps, split_selected(selected, mlps), strict=True)
    columns = [part.nonzero()[:, 0].to(mlp.output.weight.device) for mlp, part in parts if mlp.tower == "language"]
    if not any(len(index) for index in columns):
        raise ValueError("no neuron of the language model is selected; nothing would be changed.")
    return columns
