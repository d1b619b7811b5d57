"""Beyond pruning: change what neurons write: the forget facts go, the retain set sees little.

A pruned neuron is gone for everybody who shares it. Its column in the MLP's last layer can instead
be changed along the gradient of the forget facts' margin, made harmless to the retain set by the
second moment of its neurons. It takes a few rounds, each a gradient step that the second moment
bends in closed form: one backward pass over the forget set per round, one forward pass over the
retain set. Derived in notebook 08.

The step is that of a constrained least-squares edit, as in ROME and MEMIT (arXiv 2202.05262,
2210.07229), which write facts where we delete them.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..benchmark.records import MODALITIES, Question, check_sets
from ..checks import check_names, check_number, check_questions, check_whole
from ..models.asking import as_memory_allows, known
from ..models.encoding import batches
from ..models.neurons import MLP, find_neurons, language_mlps, split_selected
from ..models.passes import check_finite, gradients_in_range, gradients_of, quiet_pass
from ..models.prefix_tree import can_share, shared_batches
from ..progress import bar
from .attribution import answer_margins, token_rarity
from .moments import MEMORY, collect_moments, layers_that_fit
from .pruning import Edit, check_unchanged


def margin_gradient(
    model,
    processor,
    questions: dict[str, list[Question]],
    alive: dict[str, Tensor],
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
) -> tuple[float, list[Tensor]]:
    """The mean margin of the facts still known, and its gradient for what the neurons write.

    The margin is that of :func:`answer_margins`. The means of the modalities are added, so both
    count alike. When CUDA is out of memory, the batch is halved.

    Args:
        questions: modality -> questions with answers.
        alive: modality -> bool [n_questions], the facts that count.
        layers: numbers of the MLPs of the language model (default: all).

    Returns:
        The margin, and for each of these MLPs float32 [hidden, n], the shape of its last layer's
        weight.

    Raises:
        ValueError: an empty answer, or a margin that is not finite.
    """
    check_questions("questions", questions)
    check_whole("batch_size", batch_size)
    mlps = language_mlps(model)
    weights = [
        mlp.after.weight for mlp in (mlps if layers is None else [mlps[layer] for layer in layers])
    ]
    make = shared_batches if can_share(model) else batches
    with quiet_pass(model), gradients_of(model, weights):
        total, gradients = 0.0, [torch.zeros_like(w, dtype=torch.float32) for w in weights]
        for modality, items in questions.items():
            rarity = token_rarity(items, processor)
            left = [
                question
                for question, still in zip(items, alive[modality].tolist(), strict=True)
                if still
            ]

            def add(batch: dict[str, Tensor], rarity=rarity, left=left) -> float:
                with torch.enable_grad():
                    margin = answer_margins(model, batch, rarity).sum() / len(left)
                    parts = gradients_in_range(margin, weights)
                for gradient, part in zip(gradients, parts, strict=True):
                    # Mllama passes its cross-attention layers only with an image
                    if part is not None:
                        gradient.add_(part)
                return margin.item()

            given = (processor, left, batch_size, True, model.device)
            for _, margin in as_memory_allows(add, make, *given):
                total += margin
    return total, gradients


def rewrite_neurons(
    model,
    processor,
    forget: dict[str, list[Question]],
    moments: Sequence[Tensor] | Callable[[Sequence[int]], list[Tensor]],
    *,
    selected: Tensor | None = None,
    ridge: float = 0.1,
    strength: float = 0.5,
    rounds: int = 8,
    memory: float = MEMORY,
    on_top: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> Edit:
    """Change what neurons write until no forget fact is answered, at little cost to retain.

    Each round moves the last layer W of every language MLP by ΔW = −η ∇W (M + ridge · mean diagonal
    · I)⁻¹, where ∇W is the gradient of the margin of the facts still known and M the second moment
    of the retain set's neurons: of all steps that lower the margin by as much, to first order, the
    one whose outputs ΔW z are smallest on the retain set. η is such that the margin falls by
    ``strength`` of itself, to first order. A layer that is silent on the retain set (M is 0) is
    left as it is: nothing would tell a small step from a large one.

    Args:
        forget: modality -> questions with answers.
        moments: of the retain set, from :func:`collect_moments`, or what gives those of some
            layers, by their numbers; see :func:`rewrite` for models whose moments do not fit
            together.
        selected: bool [n_neurons] in the order of :func:`find_neurons`, the neurons that may be
            changed (default: all of the language model). Neurons of the vision tower are never
            changed.
        ridge: what a change costs beside its effect on the retain set, so that neurons which that
            set does not use are not free.
        strength: in (0, 1].
        rounds: at most so many; it stops when every fact is gone.
        memory: bytes that moments, factors and gradients may take beside the model and its
            activations; at least one layer is taken at a time, with two more [n, n] while it is
            factored.
        on_top: go on from a model that is rewritten or pruned already; without it such a model is
            refused, since rounds would add up from call to call.
        batch_size: of the passes. The backward pass keeps the activations of a batch; when CUDA is
            out of memory, the batch is halved.

    Returns:
        A :class:`Edit` whose ``undo()`` restores every bit. Where nothing is known it changes
        nothing, which a warning says.

    Raises:
        TypeError: an argument of another type, or a wrapped model.
        ValueError: an option out of range, an empty modality or answer, moments or ``selected`` of
            another model or that cannot be inverted, a model that is changed already
            (:func:`check_unchanged`), nothing to change, or a gradient that is not finite. The
            model is untouched, as it is after any other error or an interrupt.
    """
    check_number("ridge", ridge, above=0)
    check_number("strength", strength, above=0, most=1)
    check_whole("rounds", rounds)
    check_whole("batch_size", batch_size)
    check_number("memory", memory, above=0)
    check_questions("forget", forget, needed=True)
    mlps = language_mlps(model)
    _check_moments(moments, mlps)
    if not on_top:
        check_unchanged(model)
    columns, groups = _columns(model, selected), layers_that_fit(mlps, memory)
    shelf = _Shelf(in_files=len(groups) > 1)
    _put_factors(shelf, moments, columns, groups, ridge)
    weights = [mlp.after.weight for mlp in mlps]
    saved = (
        (w, 1, i, w.detach().index_select(1, i).cpu())
        for w, i in zip(weights, columns, strict=True)
    )
    handle = Edit(model, saved)
    passes = {"batch_size": batch_size, "progress": False}
    with handle.changing():
        for number in bar(range(rounds), desc="rewriting", shown=progress):
            alive = {
                modality: known(model, processor, items, **passes)
                for modality, items in forget.items()
            }
            left = {modality: items for modality, items in forget.items() if alive[modality].any()}
            if not left:
                if number == 0:
                    said = "the model answers none of these questions word for word"
                    warnings.warn(f"{said}, so that nothing is changed.", stacklevel=2)
                break
            fall = 0.0
            for layers in groups:
                margin, gradients = margin_gradient(
                    model, processor, left, alive, layers=layers, batch_size=batch_size
                )
                check_finite("the margin or its gradient is", torch.tensor(margin), *gradients)
                fall += _put_steps(shelf, layers, gradients, columns)
            if fall <= 0:
                raise ValueError(
                    "the neurons that may be changed write nothing for these facts; select others."
                )
            _take_steps(shelf, weights, columns, alpha=-strength * margin / fall)
    return handle


def rewrite(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    modalities: Sequence[str] | None = None,
    batch_size: int = 32,
    progress: bool = True,
    **options,
) -> Edit:
    """:func:`collect_moments` (retain set) and :func:`rewrite_neurons`, some layers at a time.

    Moments and factors of more layers than ``memory`` holds are never there together: the retain
    set is read once for every few layers and the forget set likewise in each round, and what has to
    wait is kept in unnamed temporary files (TMPDIR says where; 4 n² bytes for each layer of n
    neurons, 16 GB for LLaVA-1.5-7B). The old weights, which ``undo()`` needs, are kept in the
    machine's memory. The result is the same.

    A card with room for all layers needs no files and reads each set once: of LLaVA-1.5-7B on an
    H200, ``memory=36e9`` took 31 s and 61 GB where the default took 91 s and 23 GB, for moments,
    factors and one round on 64 questions (``data/results/gpu_shapes.csv``).

    Args:
        forget, retain: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        modalities: those to unlearn (default: those of ``forget``).
        batch_size, options: ``selected``, ``ridge``, ``strength``, ``rounds``, ``memory`` and
            ``on_top`` of :func:`rewrite_neurons`, with the same defaults.

    Raises:
        TypeError, ValueError: see :func:`check_sets` and :func:`rewrite_neurons`. The model is
            untouched.
    """
    check_questions("forget", forget)
    check_questions("retain", retain)
    if modalities is None:
        modalities = tuple(modality for modality in MODALITIES if modality in forget) or MODALITIES
    check_names("modalities", modalities, MODALITIES)
    check_sets(forget, retain, modalities)
    forget, retain = (
        {m: items for m, items in of.items() if m in modalities} for of in (forget, retain)
    )
    passes = {"batch_size": batch_size, "progress": progress}

    def moments_of(layers: Sequence[int]) -> list[Tensor]:
        return collect_moments(model, processor, retain, layers=layers, **passes)

    return rewrite_neurons(model, processor, forget, moments_of, **options, **passes)


def _check_moments(moments, mlps: Sequence[MLP]) -> None:
    shapes = [(mlp.size, mlp.size) for mlp in mlps]
    if not callable(moments) and [tuple(moment.shape) for moment in moments] != shapes:
        raise ValueError(
            "the moments are of another model: one [n, n] per language MLP of n neurons is needed."
        )


class _Shelf:
    """Float32 matrices by name and layer: in memory, or in unnamed files, gone with the process."""

    def __init__(self, in_files: bool):
        self._in_files, self._kept = in_files, {}

    def put(self, name: str, layer: int, matrix: Tensor) -> None:
        if self._in_files:
            file = (
                self._kept[name, layer][0]
                if (name, layer) in self._kept
                else tempfile.TemporaryFile()
            )  # noqa: SIM115
            file.seek(0)
            matrix.contiguous().cpu().numpy().tofile(file)
            self._kept[name, layer] = file, matrix.shape
        else:
            self._kept[name, layer] = matrix

    def get(self, name: str, layer: int, device: torch.device) -> Tensor:
        if not self._in_files:
            return self._kept[name, layer]
        file, shape = self._kept[name, layer]
        file.seek(0)
        return (
            torch.from_numpy(np.fromfile(file, dtype=np.float32, count=shape.numel()))
            .view(shape)
            .to(device)
        )


def _put_factors(shelf: _Shelf, moments, columns: list[Tensor], groups, ridge: float) -> None:
    """Shelve the Cholesky factor of each layer's moments and ridge, for the columns that may be
    changed; a layer that is silent on the retain set has none of these from here on.
    """
    for layers in groups:
        found = moments(layers) if callable(moments) else [moments[layer] for layer in layers]
        for layer in layers:
            if not found[0].any():
                columns[layer] = columns[layer][:0]
            shelf.put("factor", layer, _factor(found.pop(0), columns[layer], ridge))
    if not any(len(index) for index in columns):
        raise ValueError(
            "every layer that may be changed is silent on the retain set; select other neurons."
        )


def _factor(moment: Tensor, index: Tensor, ridge: float) -> Tensor:
    part = moment[index[:, None], index]
    part.diagonal().add_(ridge * moment.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(part)
    if failed:
        raise ValueError("the moments of the neurons cannot be inverted; raise ridge.")
    return factor


def _put_steps(shelf: _Shelf, layers, gradients: list[Tensor], columns: list[Tensor]) -> float:
    """Shelve how the columns of these layers would move, and return what the margin loses by it."""
    fall = 0.0
    for layer in layers:
        used = gradients.pop(0)[:, columns[layer]]
        if used.numel():
            step = torch.cholesky_solve(used.T, shelf.get("factor", layer, used.device)).T
            fall += (used * step).sum().item()
            shelf.put("step", layer, step)
    return fall


@torch.no_grad()
def _take_steps(shelf: _Shelf, weights, columns: list[Tensor], alpha: float) -> None:
    for layer, (weight, index) in enumerate(zip(weights, columns, strict=True)):
        if len(index):
            step = shelf.get("step", layer, weight.device)
            weight.index_add_(1, index, step.to(weight.dtype), alpha=alpha)


def _columns(model, selected: Tensor | None) -> list[Tensor]:
    """The indices of the neurons that may be changed, for each language MLP."""
    mlps = find_neurons(model)
    if selected is None:
        selected = torch.ones(sum(mlp.size for mlp in mlps), dtype=torch.bool)
    parts = zip(mlps, split_selected(selected, mlps), strict=True)
    columns = [
        part.nonzero()[:, 0].to(mlp.after.weight.device)
        for mlp, part in parts
        if mlp.tower == "language"
    ]
    if not any(len(index) for index in columns):
        raise ValueError("no neuron of the language model is selected; nothing would be changed.")
    return columns
