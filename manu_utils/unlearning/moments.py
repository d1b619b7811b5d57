"""Second moments of neurons: what a change of an MLP's last layer does to a set of questions.

Rewriting and erasing hold the retain set still by them. They are n² numbers a layer, so layers are
taken a few at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_questions, check_whole
from ..models.asking import answer_logits
from ..models.encoding import batches
from ..models.neurons import MLP, language_mlps
from ..models.passes import check_finite, hooked, quiet_pass
from ..models.silent import reads_neurons
from ..progress import bar

# bytes for moments and factors: three layers of LLaVA-1.5-7B, beside which a card of 24 GB holds
# the model
MEMORY = 4e9


@torch.no_grad()
def collect_moments(
    model,
    processor,
    questions: dict[str, list[Question]],
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> list[Tensor]:
    """The second moment E[z zᵀ] of the neurons of language MLPs, over all tokens of the questions.

    One forward pass; sums are streamed, so memory does not grow with the number of questions: 8 n²
    bytes for each MLP of n neurons. Each modality counts alike.

    Args:
        questions: modality -> questions with answers.
        layers: numbers of the MLPs of the language model, each once (default: all).

    Returns:
        float32 [n, n] for each of these MLPs, in their order, on the model's device.

    Raises:
        ValueError: a modality has no questions, no such layer, or logits or an activation are not
            finite.
    """
    check_questions("questions", questions, needed=True)
    check_whole("batch_size", batch_size)
    mlps = language_mlps(model)
    if layers is not None:
        if len(set(layers)) < len(layers) or not all(0 <= layer < len(mlps) for layer in layers):
            raise ValueError(
                f"layers={list(layers)} must be different numbers from 0 to {len(mlps) - 1}."
            )
        mlps = [mlps[layer] for layer in layers]
    with quiet_pass(model):
        zeros = partial(torch.zeros, dtype=torch.float32)
        moments = [zeros(mlp.size, mlp.size, device=mlp.after.weight.device) for mlp in mlps]
        # of a modality; of the current batch, the positions that are no padding
        sums, real = [], torch.empty(0)

        def add(index: int):
            def hook(module, arguments: tuple[Tensor]) -> None:
                z = arguments[0][real.to(arguments[0].device)].float()  # [tokens, n]
                add_products(sums[index], z, z)

            return reads_neurons(hook)

        for items in questions.values():
            sums = [torch.zeros_like(moment) for moment in moments]
            n_tokens = 0
            work = batches(items, processor, batch_size, with_answer=True, device=model.device)
            n_batches = math.ceil(len(items) / batch_size)
            with hooked(
                (mlp.after.register_forward_pre_hook, add(index)) for index, mlp in enumerate(mlps)
            ):
                for _, batch in bar(work, total=n_batches, desc="moments", shown=progress):
                    real = batch["attention_mask"].bool()
                    n_tokens += int(real.sum())
                    check_finite("the logits are", answer_logits(model, batch)[0])
            for moment, total in zip(moments, sums, strict=True):
                moment.add_(total, alpha=1 / (n_tokens * len(questions)))
    check_finite("an activation is", *moments)
    return moments


def add_products(total: Tensor, written: Tensor, z: Tensor) -> None:
    """Add writtenᵀ z to ``total`` [k, n], in place; neurons that are silent in every row of z
    [tokens, n] are left out where most are, as in the bundled miniature.

    Args:
        written: [tokens, k]; z itself for a second moment.
    """
    active = z.any(0).nonzero()[:, 0]
    if 2 * len(active) > z.shape[1]:
        total.addmm_(written.T, z)
        return
    some = z[:, active]
    if written is z:
        total[active[:, None], active] += some.T @ some
    else:
        total[:, active] += written.T @ some


def bytes_of_layer(n: int, hidden: int) -> int:
    """What rewriting holds of a layer of n neurons, in float32: two [n, n] while moments are
    summed, later a factor and three [hidden, n].
    """
    return max(8 * n**2, 4 * n**2 + 12 * hidden * n)


def layers_that_fit(mlps: Sequence[MLP], memory: float) -> list[list[int]]:
    """Layers in a row that fit ``memory`` bytes (:func:`bytes_of_layer`), or one that does not."""
    groups: list[list[int]] = []
    taken = 0
    for layer, mlp in enumerate(mlps):
        size = bytes_of_layer(mlp.size, mlp.after.out_features)
        if not groups or taken + size > memory:
            groups.append([])
            taken = 0
        groups[-1].append(layer)
        taken += size
    return groups
