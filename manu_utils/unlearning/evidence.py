"""Score, select and prune in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..benchmark.records import MODALITIES, Question, check_sets
from ..checks import check_name, check_names, check_questions, check_whole
from ..models.neurons import check_alpha, find_neurons
from .activations import collect_activations
from .attribution import collect_attribution
from .coverage import choose_by_coverage
from .pruning import Edit, check_unchanged, prune, pruned_neurons, select_neurons
from .released import choose_rows
from .scores import CONTROLS, PRUNINGS, score


def choose_neurons(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    variant: str,
    alpha: float,
    modalities: Sequence[str] = MODALITIES,
    seed: int = 0,
    allow_small: bool = False,
    on_top: bool = False,
    batch_size: int = 32,
    progress: bool = True,
    activations_of: Callable = collect_activations,
    attribution_of: Callable = collect_attribution,
) -> Tensor | dict[str, Tensor]:
    """What :func:`unlearn`, which explains the arguments, prunes. The model is as it was.

    Args:
        activations_of, attribution_of: collect over one set and modality, called as the functions of one process.

    Returns:
        bool [n_neurons]; for ``"released_as_run"``, which chooses no neurons, path of a linear layer -> bool [out_features].

    Raises:
        TypeError, ValueError: see :func:`unlearn`.
    """
    check_alpha(alpha, allow_small)
    check_name("variant", variant, PRUNINGS)
    check_names("modalities", modalities, MODALITIES)
    check_whole("seed", seed, least=0)
    check_whole("batch_size", batch_size)
    mlps = find_neurons(model)
    check_questions("forget", forget)
    check_questions("retain", retain)
    check_sets(forget, retain, modalities)
    if variant in ("paper", "released_score", "released_as_run") and set(modalities) != set(MODALITIES):
        raise ValueError(f"variant={variant!r} needs both modalities; use 'coverage' or 'ratio' with one.")
    if not on_top:
        check_unchanged(model)
    if variant == "released_as_run":
        return choose_rows(model, processor, forget, retain, alpha=alpha, seed=seed, progress=progress)
    forget = {m: forget[m] for m in modalities}
    gone = pruned_neurons(model)
    options = {"batch_size": batch_size, "progress": progress}
    if variant == "coverage":
        cost = {m: attribution_of(model, processor, retain[m], reduce=True, **options) for m in modalities}
        facts = {m: attribution_of(model, processor, forget[m], **options) for m in modalities}
        more = {"facts": facts, "exclude": gone, "allow_small": allow_small, **options}
        return choose_by_coverage(model, processor, forget, cost, alpha=alpha, **more)
    forget_sums, retain_sums = {}, {}
    if variant not in CONTROLS:
        forget_sums = {m: activations_of(model, processor, forget[m], **options) for m in modalities}
        retain_sums = {m: activations_of(model, processor, retain[m], **options) for m in modalities}
    scores = score(variant, forget_sums, retain_sums, mlps=mlps, seed=seed).masked_fill(gone, -torch.inf)
    if len(scores[scores > -torch.inf].unique()) < 2:
        raise ValueError(f"{variant} gives every neuron the same score, so that there is nothing to choose by.")
    per = "tower" if variant == "released_score" else "model"
    return select_neurons(scores, mlps, alpha, per, allow_small=allow_small)


def unlearn(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    variant: str = "coverage",
    alpha: float = 5.0,
    modalities: Sequence[str] = MODALITIES,
    seed: int = 0,
    allow_small: bool = False,
    on_top: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> Edit:
    """Score, select and prune in one call.

    Args:
        forget, retain: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        variant: one of :data:`PRUNINGS`: ``"coverage"`` is ours, ``"paper"`` the printed equations,
            ``"released_score"`` the score of the authors' code on neurons, and ``"released_as_run"`` what their code prunes
            when it is run: rows of linear layers, see :mod:`manu_utils.unlearning.released`.
        alpha: percentage of all MLP neurons; of those of each tower for ``"released_score"``, and of the rows that their code
            looks at in each tower for ``"released_as_run"``.
        modalities: those to unlearn; ``("text",)`` for a benchmark without images. ``"paper"`` and the released ones need
            both.
        seed: of ``"random"``, and of the order in which ``"released_as_run"`` reads.
        allow_small: accept α below 0.5, see :func:`check_alpha`.
        on_top: prune more neurons of a model that is pruned already, or rewritten; without it such a model is refused, since α
            would add up from call to call.

    Returns:
        What was pruned, with ``undo()``.

    Raises:
        TypeError: an argument of another type, or a wrapped model; it says what to pass.
        ValueError: unknown variant, α not a percentage, a missing or empty modality, an empty answer, questions of the other
            modality, a person in both sets, a model that is changed already (:func:`check_unchanged`), or nothing to choose
            by; also what the functions that it calls raise. The model is untouched.
    """
    chosen = choose_neurons(
        model, processor, forget, retain, variant=variant, alpha=alpha, modalities=modalities, seed=seed,
        allow_small=allow_small, on_top=on_top, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    return prune(model, chosen)
