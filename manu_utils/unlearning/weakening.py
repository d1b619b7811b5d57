"""A training-free rival: knowledge vector weakening (KVW), which scales down what neurons write."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_number, check_questions, check_whole
from ..models.neurons import find_neurons, language_mlps
from ..progress import bar
from .activations import collect_activations
from .pruning import Edit, check_unchanged
from .rivals import whole_weights

EPS = 1e-12  # of the logarithms, as in the authors' code


def weakening(of_forget: Tensor, of_retain: Tensor, gamma: float) -> Tensor:
    """KVW: exp(−γ max(log K_f − log K_r, 0)), that is min((K_r / K_f)^γ, 1) (arXiv 2601.21794).

    Args:
        of_forget, of_retain: [n], knowledge coefficients: the mean |z| of n neurons.
    """
    excess = ((of_forget + EPS).log() - (of_retain + EPS).log()).clamp(min=0)
    return (-gamma * excess).exp()


def knowledge_coefficients(
    model, processor, questions: dict[str, list[Question]], *, batch_size: int = 32
) -> list[Tensor]:
    """Mean |z| over the positions that predict an answer token, of every language MLP: float64 [n].

    Args:
        questions: modality -> questions with answers; the positions of both count alike.

    Raises:
        TypeError, ValueError: see :func:`collect_activations`.
    """
    options = {"batch_size": batch_size, "progress": False}
    read = [collect_activations(model, processor, items, **options) for items in questions.values()]
    totals = sum(part.total_abs for part in read).split(read[0].sizes)
    counts = sum(part.tokens for part in read).clamp(min=1)
    mlps = find_neurons(model)
    parts = zip(totals, counts, mlps, strict=True)
    return [total / n for total, n, mlp in parts if mlp.tower == "language"]


def weaken(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: Sequence[Tensor],
    *,
    gamma: float = 0.02,
    rounds: int = 1,
    layers: Sequence[int] | None = None,
    batch_size: int = 1,
    seed: int = 0,
    on_top: bool = False,
    progress: bool = True,
) -> Edit:
    """Knowledge vector weakening (Kim et al., arXiv 2601.21794): what neurons write is scaled down
    where they are louder for the forget set than for the retain set, batch by batch.

    Written from the authors' code. A batch of the forget set is read by the model as it is by then,
    and the columns of ``down_proj`` are multiplied by :func:`weakening`, so that what many batches
    use shrinks again and again.

    Args:
        forget: modality -> questions with answers.
        retain: :func:`knowledge_coefficients` of the retain set, read once before.
        gamma: γ of one batch; 0.02 is the default of the code.
        rounds: how often the forget set is gone through (1 in the code).
        layers: numbers of the MLPs of the language model (default: all; in the code 1 to 25 of a
            model with 32).
        batch_size: questions of one modality that are read together (1 in the code).
        seed: of the order of the questions.
        on_top: change a model that is changed already; without it such a model is refused.

    Raises:
        TypeError: an argument of another type, or a wrapped model.
        ValueError: a number out of range, an empty modality or answer, or coefficients of another
            model. The model is untouched, as it is after any other error or an interrupt.
    """
    check_number("gamma", gamma, above=0)
    for name, value in {"rounds": rounds, "batch_size": batch_size}.items():
        check_whole(name, value)
    check_whole("seed", seed, least=0)
    check_questions("forget", forget, needed=True)
    mlps = language_mlps(model)
    if [len(part) for part in retain] != [mlp.size for mlp in mlps]:
        raise ValueError("retain holds coefficients of another model; read it with this one.")
    chosen = range(len(mlps)) if layers is None else layers
    if not set(chosen) <= set(range(len(mlps))) or not chosen:
        last = len(mlps) - 1
        raise ValueError(f"layers={layers!r} must be numbers of language MLPs, 0 to {last}.")
    if not on_top:
        check_unchanged(model)
    weights = [mlps[layer].after.weight for layer in chosen]
    handle = Edit(model, whole_weights(weights))
    with handle.changing():
        batches = _shuffled(forget, batch_size, seed, rounds)
        for items in bar(batches, desc="weakening", shown=progress):
            found = knowledge_coefficients(model, processor, items, batch_size=batch_size)
            for layer, weight in zip(chosen, weights, strict=True):
                weight.data.mul_(weakening(found[layer], retain[layer], gamma).to(weight))
    return handle


def _shuffled(forget: dict, batch_size: int, seed: int, rounds: int) -> list[dict]:
    """Batches of one modality each, all in a new order in each round."""
    rng, batches = random.Random(seed), []
    for _ in range(rounds):
        of_round = []
        for modality, items in forget.items():
            order = rng.sample(items, len(items))
            parts = (order[i : i + batch_size] for i in range(0, len(order), batch_size))
            of_round += [{modality: part} for part in parts]
        batches += rng.sample(of_round, len(of_round))
    return batches
