"""Save a model and its processor as a plain checkpoint."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from .passes import check_model


def save_model(model, processor, folder: str | Path) -> None:
    """Save model and processor as a plain checkpoint; written aside and renamed, so it is whole or absent.

    Args:
        folder: a new name, or an empty folder; ``~`` is the home folder.

    Raises:
        TypeError: the model is wrapped, see :func:`check_model`.
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
