"""Select neurons, zero them, undo it, save the model; and all of it in one call. Derived in notebook 04."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .activations import collect_activations
from .attribution import collect_attribution, select_by_coverage
from .benchmark import MODALITIES, Question, check_sets
from .checks import check_model, check_name, check_names, check_questions, check_real, check_whole
from .evaluation import known
from .importance import CONTROLS, PRUNINGS, score
from .neurons import MLP, check_alpha, find_neurons, split_selected
from .released import LAST_LAYERS, choose_rows


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
    check_name("per", per, ("model", "layer", "tower"))
    sizes = [mlp.size for mlp in mlps]
    if scores.shape != (sum(sizes),):
        raise ValueError(f"{tuple(scores.shape)} scores for a model with {sum(sizes)} neurons; score this model.")
    if scores.isnan().any():
        raise ValueError("the scores hold NaN; collect the statistics again in float32 or bfloat16.")
    if per == "model":
        groups = [0] * len(sizes)
    elif per == "layer":
        groups = list(range(len(sizes)))
    else:
        groups = [int(mlp.tower == "language") for mlp in mlps]
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


class _Change:
    """Where a model was changed, (parameter, dim, index), and a digest of what each place holds once all are changed."""

    def __init__(self, places: list[tuple[Tensor, int, Tensor]]):
        self.places = places
        self.left: list[bytes] | None = None

    def in_place(self) -> bool:
        """Whether it can still be seen in the model: weights that were loaded or trained since are others."""
        return self.left is None or self.left == [_digest(_part(*place)) for place in self.places]


# Of every model, the changes that were not undone, in order. Places alone: the old weights go with the handle.
_CHANGES: WeakKeyDictionary[nn.Module, list[_Change]] = WeakKeyDictionary()


class Pruned:
    """What was changed in a model, and the old weights. ``undo()`` restores every bit; as a context manager on leaving.

    Several changes of one model are undone in reverse order: the first would bring back what the second found changed.

    Args:
        saved: (parameter, dim, index, old values) of each change, taken before it is made.
    """

    def __init__(self, model: nn.Module, saved: Iterable[tuple[Tensor, int, Tensor, Tensor]]):
        self._model, self._saved = model, list(saved)
        self._change = _Change([place[:3] for place in self._saved])
        _CHANGES.setdefault(model, []).append(self._change)

    def made(self) -> Pruned:
        """Call it when all is changed: later it is seen by the values whether they are still there."""
        now = [_digest(_part(*place)) for place in self._change.places]
        self._change.left = [] if now == [_digest(values) for *_, values in self._saved] else now  # [] if nothing changed
        return self

    @torch.no_grad()
    def undo(self) -> None:
        """Write the old weights back; a second call does nothing.

        Raises:
            RuntimeError: a later change of the model is still in place, which the old weights would be mixed with.
        """
        changes = _CHANGES.get(self._model, [])
        if self._change not in changes:
            return
        later = changes[changes.index(self._change) + 1 :]
        if any(change.in_place() for change in later):
            raise RuntimeError("this model was changed again later; undo() that first, or load the model again.")
        errors = []
        for parameter, dim, index, values in reversed(self._saved):
            try:
                parameter.index_copy_(dim, index.to(parameter.device), values.to(parameter))
            except RuntimeError as error:  # the others are restored all the same
                errors.append(error)
        changes.remove(self._change)
        self._saved = []
        if errors:
            raise errors[0]

    def __enter__(self) -> Pruned:
        return self

    def __exit__(self, *_) -> None:
        self.undo()


@torch.no_grad()
def prune_neurons(model, selected: Tensor) -> Pruned:
    """Zero the selected neurons in the weights: column n of the last layer, row n (and bias) of the layers before it.

    What was pruned before stays so, and comes back with its own handle.

    Args:
        selected: bool [n_neurons] in the order of :func:`find_neurons`.

    Returns:
        A :class:`Pruned` that remembers just the zeroed weights.

    Raises:
        ValueError: not boolean, wrong length, or nothing selected. The model is untouched, as it is after any other error or
            an interrupt.
    """
    mlps = find_neurons(model)
    parts = split_selected(selected, mlps)
    if not selected.any():
        raise ValueError("no neuron is selected; nothing would be pruned.")
    places = []
    for mlp, chosen in zip(mlps, parts, strict=True):
        index = chosen.nonzero()[:, 0]
        if len(index) == 0:
            continue
        places.append((mlp.output.weight, 1, index))
        for linear in mlp.inputs:
            places += [(tensor, 0, index) for tensor in (linear.weight, linear.bias) if tensor is not None]
    return _zero(model, places)


@torch.no_grad()
def prune_rows(model, rows: dict[str, Tensor]) -> Pruned:
    """Zero rows, and their biases, of linear layers: what the authors' code does (:mod:`manu_utils.released`).

    Args:
        rows: path of a linear layer -> bool [out_features].

    Returns:
        A :class:`Pruned`, as :func:`prune_neurons` does.

    Raises:
        ValueError: no such linear layer, wrong lengths, or nothing selected. The model is untouched.
    """
    check_model(model)
    modules = dict(model.named_modules())
    places = []
    for path, chosen in rows.items():
        linear = modules.get(path)
        if not isinstance(linear, nn.Linear) or chosen.dtype != torch.bool or chosen.shape != (linear.out_features,):
            raise ValueError(f"rows[{path!r}] must be bool [out_features] of a linear layer of this model.")
        index = chosen.nonzero()[:, 0]
        places += [(t, 0, index) for t in (linear.weight, linear.bias) if t is not None and len(index)]
    if not places:
        raise ValueError("no row is selected; nothing would be pruned.")
    return _zero(model, places)


def prune(model, chosen: Tensor | dict[str, Tensor]) -> Pruned:
    """:func:`prune_neurons` or :func:`prune_rows`, by what :func:`choose_neurons` returned."""
    return prune_rows(model, chosen) if isinstance(chosen, dict) else prune_neurons(model, chosen)


def _zero(model, places: list[tuple[Tensor, int, Tensor]]) -> Pruned:
    places = [(tensor, dim, index.to(tensor.device)) for tensor, dim, index in places]
    handle = Pruned(model, [(*place, _part(*place)) for place in places])
    try:
        for tensor, dim, index in places:
            tensor.index_fill_(dim, index, 0)
    except BaseException:
        with suppress(RuntimeError):  # what could not be written cannot be written back; the first error is raised
            handle.undo()
        raise
    return handle.made()


def _part(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return tensor.detach().index_select(dim, index.to(tensor.device))


def _digest(tensor: Tensor) -> bytes:
    """A hash of values, not of bytes: a model that was moved, or made float32, since is the same."""
    return hashlib.sha256((tensor.float() + 0).cpu().contiguous().numpy()).digest()  # + 0: of -0, too


def pruned_neurons(model) -> Tensor:
    """The neurons that are gone from the weights: all their input rows (and biases) and their output column are zero.

    A neuron that merely never fires is none of them.

    Returns:
        bool [n_neurons] in the order of :func:`find_neurons`, on the CPU.
    """
    parts = []
    for mlp in find_neurons(model):
        used = mlp.output.weight.detach().any(0)
        for linear in mlp.inputs:
            used = used | linear.weight.detach().any(1)
            if linear.bias is not None:
                used = used | (linear.bias.detach() != 0)
        parts.append(~used.cpu())
    return torch.cat(parts)


def _has_zero_rows(model) -> bool:
    """Whether a row is zero with its bias in all of the last layers of a tower: what ``"released_as_run"`` leaves, which is
    seen in a copy and in a checkpoint, too. In a single layer it may be a neuron that never fires.
    """
    mlps = find_neurons(model)
    for tower in ("vision", "language"):
        last = [mlp for mlp in mlps if mlp.tower == tower][-LAST_LAYERS:]
        if len(last) < 2:
            continue
        for layers in zip(*((*mlp.inputs, mlp.output) for mlp in last), strict=False):
            if len({linear.out_features for linear in layers}) > 1:
                continue
            used = torch.zeros(layers[0].out_features, dtype=torch.bool)
            for linear in layers:
                used |= linear.weight.detach().any(1).cpu()
                if linear.bias is not None:
                    used |= (linear.bias.detach() != 0).cpu()
            if not used.all():
                return True
    return False


def check_unchanged(model) -> None:
    """Check that a model was neither pruned nor rewritten, or is so no more: undone, or its weights were loaded again.

    Zeros are seen in a copy and in a checkpoint, too; rewriting only in the model itself.

    Raises:
        ValueError: it is.
    """
    n, what = int(pruned_neurons(model).sum()), "its weights were changed"
    if n or _has_zero_rows(model):
        what = f"{n} of its neurons are zero" if n else "rows of its layers are zero"
    elif not any(change.in_place() for change in _CHANGES.get(model, [])):
        return
    raise ValueError(
        f"this model is pruned already, or rewritten ({what}), and more would come on top: undo() what changed it or load the "
        "model again; on_top=True if more is to go."
    )


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
        ValueError: rounds below 1, or nothing to choose by: no neuron contributes to the forget answers of a modality; also
            what ``select_by_coverage`` and ``collect_attribution`` raise. The model is as it was.
    """
    check_alpha(alpha, allow_small)
    check_real("rounds", rounds)
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1.")
    check_whole("rounds", rounds)
    check_whole("batch_size", batch_size)
    check_questions("forget", forget)
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
        if not selected.any() and (silent := [m for m in facts if not facts[m].any()]):
            raise ValueError(
                f"no neuron contributes to the {silent[0]} forget answers, so that there is nothing to choose by; pass "
                "questions whose answers the model knows."
            )
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
) -> Pruned:
    """Score, select and prune in one call.

    Args:
        forget, retain: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        variant: one of :data:`manu_utils.importance.PRUNINGS`: ``"coverage"`` is ours, ``"paper"`` the printed equations,
            ``"released_score"`` the score of the authors' code on neurons, and ``"released_as_run"`` what their code prunes
            when it is run: rows of linear layers, see :mod:`manu_utils.released`.
        alpha: percentage of all MLP neurons; of those of each tower for ``"released_score"``, and of the rows that their code
            looks at in each tower for ``"released_as_run"``.
        modalities: those to unlearn; ``("text",)`` for a benchmark without images. ``"paper"`` and the released ones need
            both.
        seed: of ``"random"``, and of the order in which ``"released_as_run"`` reads.
        allow_small: accept α below 0.5, see :func:`manu_utils.neurons.check_alpha`.
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
