"""A training-free rival: the privacy neurons of DEPN (Wu et al., arXiv 2310.20138), found by
integrated gradients and erased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_number, check_questions, check_whole
from ..models.asking import answer_logits
from ..models.encoding import batches, predicting
from ..models.neurons import MLP, find_neurons
from ..models.passes import (
    check_finite,
    gradients_of,
    hooked,
    quiet_pass,
    slopes_of_probability,
)
from ..progress import bar
from .pruning import Edit, check_unchanged, prune_neurons, select_neurons


def privacy_scores(
    model,
    processor,
    forget: dict[str, list[Question]],
    *,
    steps: int = 20,
    threshold: float = 0.1,
    batch_size: int = 32,
    progress: bool = True,
) -> Tensor:
    """For how many answers a language neuron is a privacy neuron: DEPN's detector and aggregator.

    A neuron is one for an answer if its :func:`integrated_gradients` reach ``threshold`` times the
    largest of all neurons. Of neurons that are so equally often, those with the larger sum come
    first. The retain set plays no part. DEPN was made for BERT and one masked token; here an answer
    is taken whole, with the truth before each token.

    Args:
        forget: modality -> questions with answers.
        steps: of the sum that stands for the integral, each a pass for every layer (20 in DEPN).
        threshold: in (0, 1); 0.1 in its code.

    Returns:
        float64 [n_neurons] in the order of :func:`find_neurons`, for :func:`select_neurons`; −inf
        for neurons of the vision tower and for those of no answer.

    Raises:
        TypeError: an argument of another type, or a wrapped model.
        ValueError: a number out of range, an empty modality or answer, or gradients that are not
            finite.
    """
    check_questions("forget", forget, needed=True)
    check_whole("steps", steps)
    check_whole("batch_size", batch_size)
    check_number("threshold", threshold, above=0, below=1)
    mlps = find_neurons(model)
    language = [mlp for mlp in mlps if mlp.tower == "language"]
    n = sum(mlp.size for mlp in language)
    counts, sums = torch.zeros(2, n, dtype=torch.float64)
    total = sum(map(len, forget.values()))
    with bar(total=total, desc="privacy neurons", shown=progress) as shown:
        for items in forget.values():
            work = batches(items, processor, batch_size, with_answer=True, device=model.device)
            for indices, batch in work:
                found = integrated_gradients(model, language, batch, steps).double()
                largest = found.amax(1, keepdim=True)
                counts += ((found >= threshold * largest) & (found > 0)).sum(0)
                sums += found.clamp(min=0).sum(0)
                shown.update(len(indices))
    scores = counts + 0.5 * sums / sums.max().clamp(min=torch.finfo(torch.float64).tiny)
    scores = scores.masked_fill(counts == 0, -torch.inf)
    vision = torch.full((sum(mlp.size for mlp in mlps) - n,), -torch.inf, dtype=torch.float64)
    return torch.cat([vision, scores])


def integrated_gradients(
    model, mlps: list[MLP], batch: dict[str, Tensor], steps: int
) -> Tensor:
    """How much each neuron adds to the probability of the answer's tokens: float32 [b, n_neurons].

    z/m Σ_j ∂P/∂z at (j/m) z, j = 1 ... m: the neurons of one MLP are scaled together, at all
    positions that predict an answer token; P is the sum of the probabilities of these tokens.

    Args:
        mlps: of the language model, in order.
        batch: what :func:`encode` returns with ``with_answer=True``; b rows.
        steps: m.

    Raises:
        ValueError: gradients that are not finite.
    """
    mask = predicting(batch)
    rows = mask.nonzero()[:, 0]
    parts = []
    with quiet_pass(model), gradients_of(model):
        for mlp in mlps:
            part = 0.0
            for j in range(1, steps + 1):
                kept: list[Tensor] = []

                def scale(module, arguments, share=j / steps, kept=kept):
                    z, here = arguments[0].detach(), mask.to(arguments[0].device)
                    kept += [z[here], (share * z[here]).requires_grad_()]
                    return (z.masked_scatter(here[..., None], kept[1]), *arguments[1:])

                with hooked([(mlp.after.register_forward_pre_hook, scale)]), torch.enable_grad():
                    asked = answer_logits(model, batch)
                    (slope,) = slopes_of_probability(*asked, [kept[1]], rows)
                part = part + kept[0].float() * slope / steps
            of_row = torch.zeros(len(mask), mlp.size, device=part.device)
            parts.append(of_row.index_add(0, rows.to(part.device), part).cpu())
    found = torch.cat(parts, dim=1)
    check_finite("the integrated gradients are", found)
    return found


def erase_privacy_neurons(
    model, scores: Tensor, *, alpha: float = 1.0, on_top: bool = False
) -> Edit:
    """Zero the α % of all neurons with the highest :func:`privacy_scores` in the weights.

    DEPN zeroes their activations, which is the same; of BERT-base it erases 10 to 500 neurons, 0.03
    to 1.4 %.

    Args:
        scores: float64 [n_neurons].
        alpha: percentage of all neurons of the model; small ones are taken as they are.
        on_top: change a model that is changed already; without it such a model is refused.

    Raises:
        ValueError: see :func:`select_neurons`; or a model that is changed already. The model is
            untouched.
    """
    if not on_top:
        check_unchanged(model)
    chosen = select_neurons(scores, find_neurons(model), alpha, allow_small=True)
    return prune_neurons(model, chosen)
