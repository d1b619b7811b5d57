"""Select neurons, zero them, undo it, save the model; and all of it in one call. Derived in notebook 04."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor

from .activations import collect_activations
from .attribution import collect_attribution, select_by_coverage
from .benchmark import MODALITIES, Question, check_sets
from .checks import check_model
from .evaluation import known
from .importance import CONTROLS, VARIANTS, score
from .neurons import MLP, check_alpha, find_neurons, split_selected


def select_neurons(
    scores: Tensor, mlps: Sequence[MLP], alpha: float, per: str = "model", *, allow_small: bool = False
) -> Tensor:
    """The α % of neurons with the highest scores; of two equal ones the first.

    Args:
        scores: [n_neurons] in the order of ``mlps``; −inf is never selected.
        alpha: percentage, in (0, 100).
        per: α % of the whole ``"model"``, of each ``"layer"`` or of each ``"tower"``.
        allow_small: accept α below 0.5, see :func:`manu_utils.neurons.check_alpha`.

    Returns:
        bool [n_neurons]; exactly max(1, round(α / 100 · n)) of each group, fewer only where a group (layer or tower) has
        fewer scores above −inf.

    Raises:
        ValueError: α not a percentage, unknown ``per``, wrong length, NaN, or too few neurons that may be selected.
    """
    check_alpha(alpha, allow_small)
    sizes = [mlp.size for mlp in mlps]
    if scores.shape != (sum(sizes),):
        raise ValueError(f"{tuple(scores.shape)} scores for a model with {sum(sizes)} neurons; score this model.")
    if scores.isnan().any():
        raise ValueError("the scores hold NaN; collect the statistics again in float32 or bfloat16.")
    if per == "model":
        groups = [0] * len(sizes)
    elif per == "layer":
        groups = list(range(len(sizes)))
    elif per == "tower":
        groups = [int(mlp.tower == "language") for mlp in mlps]
    else:
        raise ValueError(f"per={per!r} is unknown; use model, layer or tower.")
    group_of = torch.tensor(groups).repeat_interleave(torch.tensor(sizes))
    selected = torch.zeros(len(scores), dtype=torch.bool)
    for group in sorted(set(groups)):
        members = (group_of == group).nonzero()[:, 0]
        wanted = max(1, round(alpha / 100 * len(members)))
        order = torch.sort(scores[members], descending=True, stable=True)
        order = order.indices[order.values > -torch.inf][:wanted]
        if per == "model" and len(order) < wanted:
            raise ValueError(f"only {len(order)} neurons may be selected but alpha={alpha} asks for {wanted}; lower alpha.")
        selected[members[order]] = True
    return selected


class Pruned:
    """What :func:`prune_neurons` zeroed. ``undo()`` restores every bit; as a context manager it does so on leaving.

    Several prunings of one model are undone in reverse order, or the first brings back what the second had found zeroed.
    """

    def __init__(self, saved: list[tuple[Tensor, int, Tensor, Tensor]]):
        self._saved = saved

    @torch.no_grad()
    def undo(self) -> None:
        """Write the zeroed weights back (a second call does nothing)."""
        for parameter, dim, index, values in self._saved:
            parameter.index_copy_(dim, index.to(parameter.device), values.to(parameter))
        self._saved = []

    def __enter__(self) -> Pruned:
        return self

    def __exit__(self, *_) -> None:
        self.undo()


@torch.no_grad()
def prune_neurons(model, selected: Tensor) -> Pruned:
    """Zero the selected neurons in the weights: column n of the last layer, row n (and bias) of the layers before it.

    Args:
        selected: bool [n_neurons] in the order of :func:`find_neurons`.

    Returns:
        A :class:`Pruned` that remembers just the zeroed weights.

    Raises:
        ValueError: not boolean, wrong length, or nothing selected; the model is untouched.
    """
    mlps = find_neurons(model)
    parts = split_selected(selected, mlps)
    if not selected.any():
        raise ValueError("no neuron is selected; nothing would be pruned.")
    places = []
    for mlp, chosen in zip(mlps, parts, strict=True):
        index = chosen.nonzero()[:, 0].to(mlp.output.weight.device)
        if len(index) == 0:
            continue
        places.append((mlp.output.weight, 1, index))
        for linear in mlp.inputs:
            places += [(tensor, 0, index) for tensor in (linear.weight, linear.bias) if tensor is not None]
    saved = [(tensor, dim, index, tensor.index_select(dim, index)) for tensor, dim, index in places]
    for tensor, dim, index in places:
        tensor.index_fill_(dim, index, 0)
    return Pruned(saved)


def save_pruned(model, processor, folder: str | Path) -> None:
    """Save model and processor as a plain checkpoint; written aside and renamed, so it is whole or absent.

    Args:
        folder: a new name, or an empty folder; ``~`` is the home folder.

    Raises:
        TypeError: the model is wrapped, see :func:`manu_utils.checks.check_model`.
        FileExistsError: there is something of this name that is no empty folder, or another process is saving there.
        ValueError: the name of no folder of its own, such as ``"."``.
        OSError: the folder above cannot be written; nothing is written.
    """
    from filelock import FileLock, Timeout

    check_model(model)
    given, folder = folder, Path(folder).expanduser()
    if folder.name in ("", "..") or str(given).startswith("~") and folder == Path.home():
        raise ValueError(f"{str(given)!r} names no new folder; give one, such as 'unlearned'.")
    _check_free(folder)
    part = folder.with_name(f".{folder.name}.part")  # a killed run leaves only this, and the next save starts clean
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            shutil.rmtree(part, ignore_errors=True)
            try:
                part.mkdir()
                model.save_pretrained(part)
                processor.save_pretrained(part)
                _check_free(folder)  # meanwhile it may have been made
                if folder.exists():
                    folder.rmdir()
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
                with suppress(OSError):  # Windows keeps an open file
                    lock.unlink()
    except Timeout:
        raise FileExistsError(f"another process is saving to {folder}; choose another name, or wait for it.") from None
    except OSError as error:
        if error.errno is None:  # ours
            raise
        raise type(error)(f"cannot save to {folder} ({error}); choose a folder that can be written.") from error


def _check_free(folder: Path) -> None:
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a link; give the folder that it points to, or another name.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; choose another name or remove it.")


def choose_by_coverage(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, Tensor],
    *,
    alpha: float,
    facts: dict[str, Tensor] | None = None,
    rounds: int = 2,
    floor: float = 0.3,
    share: float = 0.9,
    balance: float = 4.0,
    rarity: Tensor | None = None,
    exclude: Tensor | None = None,
    allow_small: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> Tensor:
    """Our choice of neurons: :func:`manu_utils.attribution.select_by_coverage` in rounds, each with a part of the budget.

    A fact that loses its first neurons often lives on in others, which shows once those are gone. So each round looks again:
    it prunes what is chosen so far, attributes the facts that are still known, chooses, and undoes the pruning.

    Args:
        forget: modality -> questions with answers.
        retain: modality -> attribution [n_neurons] or [n_facts, n_neurons] of the retain set in the unpruned model.
        alpha: percentage of all MLP neurons, over all rounds.
        facts: modality -> attribution of the forget questions in the unpruned model, where it is at hand (say, for another α).
        rounds: number of looks; one is plain coverage.
        floor, share, balance: see :func:`manu_utils.attribution.select_by_coverage`.
        rarity: weights of the answer tokens, see :func:`manu_utils.attribution.collect_attribution`.
        exclude: bool [n_neurons], neurons that must not be chosen, such as those of one tower.

    Returns:
        bool [n_neurons] with max(1, round(α / 100 · n_neurons)) chosen. The model is as it was.

    Raises:
        ValueError: rounds below 1; also what ``select_by_coverage`` and ``collect_attribution`` raise.
    """
    check_alpha(alpha, allow_small)
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1.")
    n = sum(mlp.size for mlp in find_neurons(model))
    budget = max(1, round(alpha / 100 * n))
    selected = torch.zeros(n, dtype=torch.bool)
    exclude = torch.zeros(n, dtype=torch.bool) if exclude is None else exclude
    options = {"batch_size": batch_size, "progress": progress}
    for number in range(1, rounds + 1):
        share_of_budget = budget * number // rounds - int(selected.sum())
        if share_of_budget < 1:
            continue
        still = {}
        with prune_neurons(model, selected) if selected.any() else nullcontext():
            if selected.any() or facts is None:
                facts = {m: collect_attribution(model, processor, forget[m], rarity=rarity, **options) for m in forget}
            if selected.any():
                still = {m: known(model, processor, forget[m], **options) for m in forget}
        if any(alive.any() for alive in still.values()):
            for modality, alive in still.items():
                facts[modality][~alive] = 0
        part = 100 * share_of_budget / n
        selected = selected | select_by_coverage(
            facts, retain, alpha=part, share=share, floor=floor, balance=balance, exclude=selected | exclude, allow_small=True
        )
    return selected


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
    batch_size: int = 32,
    progress: bool = True,
    activations_of: Callable = collect_activations,
    attribution_of: Callable = collect_attribution,
) -> Tensor:
    """What :func:`unlearn`, which explains the arguments, prunes: bool [n_neurons]. The model is as it was.

    Args:
        activations_of, attribution_of: collect over one set and modality, called as the functions of one process.

    Raises:
        ValueError: see :func:`unlearn`.
    """
    check_alpha(alpha, allow_small)
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is unknown; use one of {', '.join(VARIANTS)}.")
    check_sets(forget, retain, modalities)
    if variant in ("paper", "released") and set(modalities) != set(MODALITIES):
        raise ValueError(f"variant={variant!r} needs both modalities; use 'coverage' or 'ratio' with one.")
    forget = {m: forget[m] for m in modalities}
    mlps = find_neurons(model)
    options = {"batch_size": batch_size, "progress": progress}
    if variant == "coverage":
        cost = {m: attribution_of(model, processor, retain[m], reduce=True, **options) for m in modalities}
        facts = {m: attribution_of(model, processor, forget[m], **options) for m in modalities}
        more = {"facts": facts, "allow_small": allow_small, **options}
        return choose_by_coverage(model, processor, forget, cost, alpha=alpha, **more)
    forget_sums, retain_sums = {}, {}
    if variant not in CONTROLS:
        forget_sums = {m: activations_of(model, processor, forget[m], **options) for m in modalities}
        retain_sums = {m: activations_of(model, processor, retain[m], **options) for m in modalities}
    scores = score(variant, forget_sums, retain_sums, mlps=mlps, seed=seed)
    return select_neurons(scores, mlps, alpha, allow_small=allow_small)


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
    batch_size: int = 32,
    progress: bool = True,
) -> Pruned:
    """Score, select and prune in one call.

    Args:
        forget, retain: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        variant: one of :data:`manu_utils.importance.VARIANTS`; ``"coverage"`` is ours, ``"paper"`` the printed equations.
        alpha: percentage of all MLP neurons.
        modalities: those to unlearn; ``("text",)`` for a benchmark without images. ``"paper"`` and ``"released"`` need both.
        seed: of ``"random"``.
        allow_small: accept α below 0.5, see :func:`manu_utils.neurons.check_alpha`.

    Returns:
        What was pruned, with ``undo()``.

    Raises:
        ValueError: unknown variant, α not a percentage, a missing or empty modality, questions of the other modality, or a
            person in both sets; also what the functions that it calls raise. The model is untouched.
    """
    chosen = choose_neurons(
        model, processor, forget, retain, variant=variant, alpha=alpha, modalities=modalities, seed=seed,
        allow_small=allow_small, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    return prune_neurons(model, chosen)
