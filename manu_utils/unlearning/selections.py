"""A selection in a file of its own: which neurons a method chose, a few hundred kilobytes instead
of a model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..checks import shown
from ..models.neurons import MLP, find_neurons, split_selected
from ..models.saving import read_tensors, write_tensors
from .pruning import linear_of_rows

_KIND = "selection"


def save_selection(selected: Tensor | dict[str, Tensor], model, path: str | Path, **about) -> None:
    """Save which neurons were chosen, as safetensors: a bool tensor for each MLP.

    Args:
        selected: what :meth:`Evidence.choose` or :func:`select_neurons` returned: bool [n_neurons],
            or path of a linear layer -> bool [out_features].
        model: the model that they were chosen in, pruned or not; the file holds the sizes of its
            MLPs.
        path: a new file, ``~`` is the home folder.
        about: what a reader should know, values that JSON can hold: ``variant="coverage",
            alpha=5.0``; not ``of``, which says what was chosen.

    Raises:
        TypeError, ValueError: no selection of this model, or ``about`` holds what JSON cannot, or
            ``of``.
        FileExistsError: the file is there already.
        OSError: it cannot be written.
    """
    path = Path(path).expanduser()
    if "of" in about:
        raise ValueError(f"of={shown(about['of'])} is said by the file itself; name it otherwise.")
    if isinstance(selected, dict):
        tensors = {name: rows.cpu() for name, rows in selected.items()}
        linear_of_rows(model, tensors)
        what = "rows"
    else:
        mlps, what = find_neurons(model), "neurons"
        parts = split_selected(selected.cpu() if isinstance(selected, Tensor) else selected, mlps)
        tensors = {_name(mlp): part.clone() for mlp, part in zip(mlps, parts, strict=True)}
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} is there already; choose another name or remove it.")
    write_tensors(path, tensors, _KIND, {"of": what, "model": type(model).__name__} | about)


def load_selection(path: str | Path, model) -> Tensor | dict[str, Tensor]:
    """Read what :func:`save_selection` wrote, for a model of the same shape: :func:`prune` takes
    it.

    The weights may differ: what one seed chose can be pruned in another.

    Returns:
        bool [n_neurons] in the order of :func:`find_neurons`, or path of a linear layer -> bool
        [out_features].

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, or a selection in a model of another shape.
    """
    path = Path(path).expanduser()
    tensors, about = read_tensors(path, _KIND)
    if about.get("of") == "rows":
        linear_of_rows(model, tensors)
        return tensors
    mlps = find_neurons(model)
    theirs = {name: len(part) for name, part in tensors.items()}
    if theirs != {_name(mlp): mlp.size for mlp in mlps}:
        own, n = sum(mlp.size for mlp in mlps), sum(theirs.values())
        raise ValueError(
            f"{path} chooses among the {n:,} neurons in {len(theirs)} MLPs of a "
            f"{about.get('model')}, but this {type(model).__name__} has {own:,} in {len(mlps)}; "
            "load the model that it was chosen in."
        )
    return torch.cat([tensors[_name(mlp)] for mlp in mlps])


def about_selection(path: str | Path) -> dict:
    """What :func:`save_selection` was told about a selection; ``model``, the model's class, and
    ``of``, what was chosen.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_selection`.
    """
    return read_tensors(Path(path).expanduser(), _KIND)[1]


def _name(mlp: MLP) -> str:
    """Not its path, which another version of transformers may spell otherwise."""
    return f"{mlp.tower}.{mlp.layer}"
