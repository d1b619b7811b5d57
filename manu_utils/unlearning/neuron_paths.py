"""How a rival finds its neurons: the influential paths of MIP-Editor (Li et al., arXiv 2511.06793).

A path goes through a tower layer by layer and holds a few neurons of each MLP. Which ones is chosen
greedily, by what the neurons found so far and a new one do *together* (the joint attribution of
Wang et al., arXiv 2503.09046). What produces the neurons of all paths is then trained by RMU, and
nothing else:

    weights = neuron_weights(model, neuron_paths(model, processor, forget))
    unlearn_by_training("rmu", model, processor, forget, retain, mask=weights)

Written from a reading of its code (PreckLi/MIP-Editor, ``ig.py``, ``fisher.py``, ``ours.py``,
``utils.py``); none of it is here, and this leaves it in these places:

- it follows the gradient of the *loss*, so that the neurons at the top are those which make the
  answer less likely; here it is that of the answer's probability;
- it looks at the first position alone, in the language model the beginning of the sequence, which
  sees no word of the question; here at the positions that predict the answer, and at all of an
  image;
- it standardises the squared gradients over the steps, question by question and neuron by neuron;
  their sum is then the same for every neuron (steps - 1), and its Fisher score ranks neurons of the
  vision tower by their activation alone. Here the squares are taken as they are;
- it scales to 0/m ... (m - 1)/m of the activation, here to 1/m ... m/m, as in
  :mod:`manu_utils.unlearning.privacy_neurons`;
- it also sets the neurons to zero at the first position, by hooks that no checkpoint holds, and
  trains those of the vision tower, too. Here nothing is set to zero, since a neuron whose weights
  are all zero has no gradient, and the vision tower stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_name, check_questions, check_whole
from ..models.asking import answer_logits
from ..models.encoding import batches, predicting
from ..models.image_positions import check_positions, patch_positions
from ..models.neurons import MLP, find_neurons, split_selected
from ..models.passes import (
    check_finite,
    gradients_of,
    hooked,
    quiet_pass,
    slopes_of_probability,
)
from ..progress import bar

# modality -> the tower whose neurons it finds, and whether gradients are squared (Fisher)
TOWER_OF = {"text": ("language", False), "multimodal": ("vision", True)}


def neuron_paths(
    model,
    processor,
    forget: dict[str, list[Question]],
    *,
    width: int = 5,
    steps: int = 4,
    batch_size: int = 16,
    progress: bool = True,
) -> Tensor:
    """The neurons on the path of at least one question: of the language model by the text-only
    questions, of the vision tower by those with an image. The model is unchanged.

    Args:
        forget: modality -> questions with answers. The tower of a modality that is not there has no
            path.
        width: neurons of each MLP on the path of one question (5 in MIP-Editor).
        steps: of the sum that stands for the integral, each a forward and a backward pass for every
            MLP (4 in MIP-Editor).

    Returns:
        bool [n_neurons] in the order of :func:`find_neurons`, for :func:`neuron_weights` (or
        :func:`prune_neurons`). MLPs after the layer whose image features are used have none.

    Raises:
        TypeError: an argument of another type, or a wrapped model.
        ValueError: a number out of range, a width that an MLP does not have, an empty modality or
            answer, images laid out in an unknown way, or gradients that are not finite.
    """
    check_questions("forget", forget, needed=True)
    for name, number in (("width", width), ("steps", steps), ("batch_size", batch_size)):
        check_whole(name, number)
    for modality in forget:
        check_name("modality of forget", modality, tuple(TOWER_OF))
    mlps = find_neurons(model)
    if width > (narrowest := min(mlp.size for mlp in mlps)):
        raise ValueError(f"width={width}, and an MLP of this model has {narrowest} neurons.")
    parts = [torch.zeros(mlp.size, dtype=torch.bool) for mlp in mlps]
    with bar(total=sum(map(len, forget.values())), desc="neuron paths", shown=progress) as shown:
        for modality, items in forget.items():
            tower, squared = TOWER_OF[modality]
            places = [place for place, mlp in enumerate(mlps) if mlp.tower == tower]
            own = [mlps[place] for place in places]
            work = batches(items, processor, batch_size, with_answer=True, device=model.device)
            for indices, batch in work:
                found = paths_of(model, own, batch, width=width, steps=steps, squared=squared)
                for place, on_path in zip(places, found, strict=True):
                    parts[place] |= on_path.any(0)
                shown.update(len(indices))
    return torch.cat(parts)


def paths_of(
    model,
    mlps: Sequence[MLP],
    batch: dict[str, Tensor],
    *,
    width: int,
    steps: int,
    squared: bool,
) -> list[Tensor]:
    """The path of every question of a batch through the MLPs of one tower.

    With P the neurons on the path so far, g = Σ_j ∂F/∂z at j/m of the activations of the path and
    of all neurons of the MLP, j = 1 ... m, and F the sum of the probabilities of the answer's
    tokens, a neuron n of the next MLP is worth

        1/m Σ_positions (z_n + Σ_P z) · (g_n + Σ_P g);

    the ``width`` neurons that are worth most join the path. Its other neurons stay as they are.

    Args:
        mlps: of one tower, in order.
        batch: what :func:`encode` returns with ``with_answer=True``; b rows.
        squared: take (∂F/∂z)² in place of ∂F/∂z, the diagonal of the Fisher information.

    Returns:
        For each MLP bool [b, neurons], on the CPU; all False where F does not depend on it.

    Raises:
        ValueError: gradients that are not finite, or positions of images that are not known.
    """
    index, row, n_positions = _positions(model, mlps[0].tower, batch)
    b = len(batch["input_ids"])
    found: list[Tensor] = []
    with quiet_pass(model), gradients_of(model):
        z = _activations(model, mlps, batch, index, n_positions)
        for last, mlp in enumerate(mlps):
            sums, path = [0.0] * (last + 1), [on_path[row] for on_path in found]
            for j in range(1, steps + 1):
                given = [
                    torch.where(p, j / steps * z[layer], z[layer]) for layer, p in enumerate(path)
                ]
                given.append(j / steps * z[last])
                slopes = _slopes(model, mlps[: last + 1], batch, index, row, given)
                if slopes[-1] is None:
                    break
                sums = [s + (g * g if squared else g) for s, g in zip(sums, slopes, strict=True)]
            if slopes[-1] is None:  # not on the way to the answer
                found.append(torch.zeros(b, mlp.size, dtype=torch.bool, device=row.device))
                continue
            z_path = sum((p * z[layer]).sum(1, keepdim=True) for layer, p in enumerate(path))
            g_path = sum((p * sums[layer]).sum(1, keepdim=True) for layer, p in enumerate(path))
            together = (z[last] + z_path) * (sums[last] + g_path) / steps
            worth = torch.zeros(b, mlp.size, device=row.device).index_add(0, row, together)
            check_finite("the worth of a neuron on a path is", worth)
            best = worth.topk(width, dim=1).indices
            found.append(torch.zeros_like(worth, dtype=torch.bool).scatter(1, best, True))
    return [on_path.cpu() for on_path in found]


def neuron_weights(model, chosen: Tensor) -> dict[str, Tensor]:
    """The weights that produce chosen language neurons, for ``unlearn_by_training(..., mask=)``:
    row n of each layer before neuron n. What a neuron writes does not move, as in MIP-Editor.

    Args:
        chosen: bool [n_neurons] in the order of :func:`find_neurons`; neurons of the vision tower,
            which is not trained, are passed over.

    Returns:
        Name of a weight -> bool, of its shape and on its device.

    Raises:
        ValueError: not boolean, of another length, or no neuron of the language model.
    """
    mlps = find_neurons(model)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    moves = {}
    for mlp, part in zip(mlps, split_selected(chosen, mlps), strict=True):
        if mlp.tower == "vision" or not part.any():
            continue
        for linear in mlp.before:
            weight = linear.weight
            own = part.to(weight.device)[:, None].expand_as(weight).clone()
            moves[name_of[id(weight)]] = own
    if not moves:
        raise ValueError("no neuron of the language model is chosen; there is nothing to train.")
    return moves


def _positions(model, tower: str, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """Which positions of a tower count, counted through the batch, the question of each, and how
    many there are in all.
    """
    if tower == "vision":
        row, is_patch = patch_positions(model, batch)
        index = is_patch.nonzero()[:, 0]
        return index, row[index], len(is_patch)
    mask = predicting(batch)
    return mask.flatten().nonzero()[:, 0], mask.nonzero()[:, 0], mask.numel()


def _activations(
    model, mlps: Sequence[MLP], batch, index: Tensor, n_positions: int
) -> list[Tensor]:
    """The neurons of each MLP at the positions that count: float32 [positions, neurons]."""
    kept = []

    def keep(module, arguments, mlp):
        z = arguments[0].detach().flatten(0, -2)
        if mlp.tower == "vision":
            check_positions(mlp.path, len(z), n_positions)
        kept.append(z[index.to(z.device)].float().to(index.device))

    hooks = ((m.after.register_forward_pre_hook, partial(keep, mlp=m)) for m in mlps)
    with hooked(hooks), torch.no_grad():
        answer_logits(model, batch)
    return kept


def _slopes(
    model, mlps: Sequence[MLP], batch, index: Tensor, row: Tensor, given: Sequence[Tensor]
) -> list[Tensor | None]:
    """∂F/∂z at the given activations, float32 as they are; None of an MLP that F does not need."""
    given = [z.requires_grad_() for z in given]

    def put(module, arguments, z):
        whole = arguments[0]
        flat = whole.detach().flatten(0, -2) if z is given[0] else whole.flatten(0, -2)
        changed = flat.index_copy(0, index.to(flat.device), z.to(flat))
        return (changed.view_as(whole), *arguments[1:])

    hooks = (
        (mlp.after.register_forward_pre_hook, partial(put, z=z))
        for mlp, z in zip(mlps, given, strict=True)
    )
    with hooked(hooks), torch.enable_grad():
        return slopes_of_probability(*answer_logits(model, batch), given, row)
