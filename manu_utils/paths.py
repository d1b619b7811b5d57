"""Where the bundled data are read, and where figures and tables are written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def data_dir() -> Path:
    """The bundled ``data`` folder: ``$MANU_DATA`` if set, else the one beside the package in a
    clone.

    Raises:
        FileNotFoundError: if there is none; the wheel holds no data.
    """
    given = os.environ.get("MANU_DATA")
    clone = Path(__file__).resolve().parents[1]
    folder = Path(given) if given else clone / "data"
    # Beside an installed package, ``data`` may be anybody's.
    ours = given or (clone / "pyproject.toml").is_file()
    if not (ours and folder.is_dir()):
        missing = f"there is no bundled data beside {clone / 'manu_utils'}"
        where = f"MANU_DATA={given} is not a folder" if given else missing
        hint = "set MANU_DATA to the data folder of a clone of the repository."
        raise FileNotFoundError(f"{where}; {hint}")
    return folder


def build_dir() -> Path:
    """Where figures and tables go: ``$MANU_BUILD`` if set, else ``build`` here; made if missing.

    Raises:
        PermissionError: it cannot be made or written, as in a clone that is read-only.
    """
    folder = Path(os.environ.get("MANU_BUILD") or "build")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"{folder.absolute()} cannot be written ({error.strerror})"
        hint = "set the environment variable MANU_BUILD to a folder that can."
        raise PermissionError(f"{reason}; {hint}") from error
    return folder


@contextmanager
def whole(place: Path) -> Iterator[Path]:
    """Where to write a file or folder that takes the place of what is there when all is written: a
    killed run leaves the old one or the new one.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # a folder that a killed run left
    yield part
    if part.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    os.replace(part, place)
