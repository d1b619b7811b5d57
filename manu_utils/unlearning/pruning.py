"""Select neurons, zero them, undo it. Derived in notebook 04."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..checks import check_name
from ..models.neurons import MLP, check_alpha, count_of, find_neurons, split_selected
from ..models.passes import check_model
from .released import LAST_LAYERS


def select_neurons(
    scores: Tensor,
    mlps: Sequence[MLP],
    alpha: float,
    per: str = "model",
    *,
    allow_small: bool = False,
) -> Tensor:
    """The α % of neurons with the highest scores; of two equal ones the first.

    Args:
        scores: [n_neurons] in the order of ``mlps``; −inf is never selected.
        alpha: percentage, in (0, 100).
        per: α % of the whole ``"model"``, of each ``"layer"`` or of each ``"tower"``.
        allow_small: accept α below 0.5, see :func:`check_alpha`.

    Returns:
        bool [n_neurons]; exactly max(1, round(α / 100 · n)) of each group, fewer only where a group
        (layer or tower) has fewer scores above −inf.

    Raises:
        ValueError: α not a percentage, unknown ``per``, wrong length, NaN, or too few neurons that
            may be selected.
    """
    check_alpha(alpha, allow_small)
    check_name("per", per, ("model", "layer", "tower"))
    sizes = [mlp.size for mlp in mlps]
    if scores.shape != (sum(sizes),):
        raise ValueError(
            f"{tuple(scores.shape)} scores for a model with {sum(sizes)} neurons; score this model."
        )
    if scores.isnan().any():
        raise ValueError(
            "the scores hold NaN; collect the statistics again in float32 or bfloat16."
        )
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
        wanted = count_of(alpha, len(members))
        order = torch.sort(scores[members], descending=True, stable=True)
        order = order.indices[order.values > -torch.inf][:wanted]
        if per == "model" and len(order) < wanted:
            raise ValueError(
                f"only {len(order)} neurons may be selected but alpha={alpha} asks for {wanted}; "
                "lower alpha."
            )
        selected[members[order]] = True
    return selected


class _Change:
    """Where a model was changed, (parameter, dim, index), and a digest of what each place holds."""

    def __init__(self, places: list[tuple[Tensor, int, Tensor]]):
        self.places = places
        self.left: list[bytes] | None = None

    def in_place(self) -> bool:
        """Whether it is still in the model: weights loaded or trained since are others."""
        return self.left is None or self.left == [_digest(_part(*place)) for place in self.places]


# Of every model, the changes not undone, in order. Places alone: the handle has the old weights.
_CHANGES: WeakKeyDictionary[nn.Module, list[_Change]] = WeakKeyDictionary()


class Edit:
    """What was changed in a model, and the old weights.

    ``undo()`` restores every bit; as a context manager on leaving.

    Several changes of one model are undone in reverse order: the first would bring back what the
    second found changed.

    Args:
        saved: (parameter, dim, index, old values) of each change, taken before it is made.
    """

    def __init__(self, model: nn.Module, saved: Iterable[tuple[Tensor, int, Tensor, Tensor]]):
        self._model, self._saved = model, list(saved)
        self._change = _Change([place[:3] for place in self._saved])
        _CHANGES.setdefault(model, []).append(self._change)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While the change is made: an error or an interrupt undoes it. At its end the values are
        noted, which tell later whether they are still there.
        """
        try:
            yield
        except BaseException:
            # What could not be written cannot be written back; the first error is raised.
            with suppress(RuntimeError):
                self.undo()
            raise
        now = [_digest(_part(*place)) for place in self._change.places]
        # [] if nothing changed.
        self._change.left = [] if now == [_digest(values) for *_, values in self._saved] else now

    @torch.no_grad()
    def undo(self) -> None:
        """Write the old weights back; a second call does nothing.

        Raises:
            RuntimeError: a later change of the model is still in place, which the old weights would
                be mixed with.
        """
        changes = _CHANGES.get(self._model, [])
        if self._change not in changes:
            return
        later = changes[changes.index(self._change) + 1 :]
        if any(change.in_place() for change in later):
            raise RuntimeError(
                "this model was changed again later; undo() that first, or load the model again."
            )
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

    def __enter__(self) -> Edit:
        return self

    def __exit__(self, *_) -> None:
        self.undo()


@torch.no_grad()
def prune_neurons(model, selected: Tensor) -> Edit:
    """Zero the selected neurons in the weights.

    Of neuron n: column n of the last layer, row n (and bias) of the layers before it.

    What was pruned before stays so, and comes back with its own handle.

    Args:
        selected: bool [n_neurons] in the order of :func:`find_neurons`.

    Returns:
        A :class:`Edit` that remembers just the zeroed weights.

    Raises:
        ValueError: not boolean, wrong length, or nothing selected. The model is untouched, as it is
            after any other error or an interrupt.
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
        places.append((mlp.after.weight, 1, index))
        for linear in mlp.before:
            places += [
                (tensor, 0, index) for tensor in (linear.weight, linear.bias) if tensor is not None
            ]
    return _zero(model, places)


@torch.no_grad()
def prune_rows(model, rows: dict[str, Tensor]) -> Edit:
    """Zero rows, and their biases, of linear layers.

    It is what the authors' code does (:mod:`manu_utils.unlearning.released`).

    Args:
        rows: path of a linear layer -> bool [out_features].

    Returns:
        A :class:`Edit`, as :func:`prune_neurons` does.

    Raises:
        ValueError: no such linear layer, wrong lengths, or nothing selected. The model is
            untouched.
    """
    places = []
    for path, linear in linear_of_rows(model, rows).items():
        index = rows[path].nonzero()[:, 0]
        places += [
            (t, 0, index) for t in (linear.weight, linear.bias) if t is not None and len(index)
        ]
    if not places:
        raise ValueError("no row is selected; nothing would be pruned.")
    return _zero(model, places)


def linear_of_rows(model, rows: dict[str, Tensor]) -> dict[str, nn.Linear]:
    """The layers that rows are of: path -> linear layer.

    Raises:
        ValueError: no such linear layer, or wrong lengths.
    """
    check_model(model)
    modules = dict(model.named_modules())
    for path, chosen in rows.items():
        linear = modules.get(path)
        if (
            not isinstance(linear, nn.Linear)
            or chosen.dtype != torch.bool
            or chosen.shape != (linear.out_features,)
        ):
            raise ValueError(
                f"rows[{path!r}] must be bool [out_features] of a linear layer of this model."
            )
    return {path: modules[path] for path in rows}


def prune(model, chosen: Tensor | dict[str, Tensor]) -> Edit:
    """:func:`prune_neurons` or :func:`prune_rows`, by what :meth:`Evidence.choose` or
    :func:`load_selection` returned."""
    return prune_rows(model, chosen) if isinstance(chosen, dict) else prune_neurons(model, chosen)


def _zero(model, places: list[tuple[Tensor, int, Tensor]]) -> Edit:
    places = [(tensor, dim, index.to(tensor.device)) for tensor, dim, index in places]
    handle = Edit(model, [(*place, _part(*place)) for place in places])
    with handle.changing():
        for tensor, dim, index in places:
            tensor.index_fill_(dim, index, 0)
    return handle


def _part(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return tensor.detach().index_select(dim, index.to(tensor.device))


def pruned_neurons(model) -> Tensor:
    """The neurons that are gone from the weights.

    All their input rows (and biases) and their output column are zero.

    A neuron that merely never fires is none of them.

    Returns:
        bool [n_neurons] in the order of :func:`find_neurons`, on the CPU.
    """
    parts = []
    for mlp in find_neurons(model):
        used = mlp.after.weight.detach().any(0)
        for linear in mlp.before:
            used = used | linear.weight.detach().any(1)
            if linear.bias is not None:
                used = used | (linear.bias.detach() != 0)
        parts.append(~used.cpu())
    return torch.cat(parts)


def _has_zero_rows(model) -> bool:
    """Whether a row is zero with its bias in all of the last layers of a tower.

    It is what ``"released_as_run"`` leaves, which is seen in a copy and in a checkpoint, too. In a
    single layer it may be a neuron that never fires.
    """
    mlps = find_neurons(model)
    for tower in ("vision", "language"):
        last = [mlp for mlp in mlps if mlp.tower == tower][-LAST_LAYERS:]
        if len(last) < 2:
            continue
        for layers in zip(*((*mlp.before, mlp.after) for mlp in last), strict=False):
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


def _digest(tensor: Tensor) -> bytes:
    """A hash of values, not of bytes: a model moved, or made float32, since is the same."""
    # + 0: of -0, too.
    return hashlib.sha256((tensor.float() + 0).cpu().contiguous().numpy()).digest()


def check_unchanged(model) -> None:
    """Check that a model was neither pruned nor rewritten, or is so no more.

    No more: undone, or its weights were loaded again. Zeros are seen in a copy and in a checkpoint,
    too; rewriting only in the model itself.

    Raises:
        ValueError: it is.
    """
    n, what = int(pruned_neurons(model).sum()), "its weights were changed"
    if n or _has_zero_rows(model):
        what = f"{n} of its neurons are zero" if n else "rows of its layers are zero"
    elif not any(change.in_place() for change in _CHANGES.get(model, [])):
        return
    raise ValueError(
        f"this model is pruned already, or rewritten ({what}), and more would come on top: undo() "
        "what changed it or load the model again; on_top=True if more is to go."
    )
