"""Save a model and its processor as a plain checkpoint, and tensors with what they are."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ..checks import kind_of, shown
from ..paths import whole
from .checkpoints import BUNDLED
from .passes import check_processor, check_weights


def save_model(model, processor, folder: str | Path) -> None:
    """Save model and processor as a plain checkpoint.

    It is whole or absent, see :func:`~manu_utils.paths.whole`.

    Args:
        folder: a new name, or an empty folder; ``~`` is the home folder.

    Raises:
        TypeError: the model is wrapped, see :func:`check_weights`, no processor, or no path.
        FileExistsError: there is something of this name that is no empty folder, now or when all is
            written.
        ValueError: a model without weights, the name of no folder of its own, such as ``"."``, or
            one that :func:`load_model` takes for a bundled model.
        OSError: the folder above cannot be written; nothing is written.
    """
    check_weights(model)
    check_processor(processor)
    if not isinstance(folder, str | Path):
        raise TypeError(f"folder={shown(folder)} must be a path, not {kind_of(folder)}.")
    if str(folder) in BUNDLED:
        raise ValueError(
            f"{str(folder)!r} is what load_model calls a bundled model, and it would load that; "
            "choose another name."
        )
    given, folder = folder, Path(folder).expanduser()
    if folder.name in ("", "..") or str(given).startswith("~") and folder == Path.home():
        raise ValueError(f"{str(given)!r} names no new folder; give one, such as 'unlearned'.")
    _check_free(folder)
    try:
        with whole(folder, replace=False) as part:
            model.save_pretrained(part)
            processor.save_pretrained(part)
            _check_free(folder)  # meanwhile it may have been made
            if folder.exists():
                folder.rmdir()  # Windows replaces none
    except OSError as error:
        if error.errno is None:  # ours
            raise
        _check_free(folder)  # another process was quicker
        raise type(error)(
            f"cannot save to {folder} ({error}); choose a folder that can be written."
        ) from error


def _check_free(folder: Path) -> None:
    if folder.is_symlink():
        raise FileExistsError(
            f"{folder} is a link; give the folder that it points to, or another name."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists and is not empty; choose another name or remove it."
        )


def write_tensors(path: Path, tensors: dict[str, Tensor], kind: str, about: dict) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        kind: what the file is, for :func:`read_tensors`.
        about: plain values that JSON can hold.

    Raises:
        OSError: it cannot be written; nothing has changed.
    """
    from safetensors.torch import save

    metadata = {"manu_utils": kind, "about": json.dumps(about)}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    with whole(path) as part:
        part.write_bytes(content)  # save_file makes a file that nobody else may read


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a file of :func:`write_tensors`, and what it says about them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, or damaged. It is left as it is.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; check the spelling.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("manu_utils") != kind:
                raise ValueError("another file")
            about = json.loads(metadata["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        message = f"{path} is no {kind} that manu_utils wrote, or damaged, and is left as it is"
        raise ValueError(f"{message}; name another file.") from error
