"""Where the bundled data are read, and where figures and tables are written."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{folder.absolute()} cannot be written ({error.strerror})"
        hint = "set the environment variable MANU_BUILD to a folder that can."
        raise PermissionError(f"{reason}; {hint}") from error
    return folder


def check_writable(folder: Path) -> None:
    """Check that files can be made in a folder, which may not be there yet; none is left.

    Raises:
        OSError: as the system words it, such as PermissionError or NotADirectoryError.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with tempfile.TemporaryFile(dir=there):
        pass


@contextmanager
def whole(place: Path, *, replace: bool = True) -> Iterator[Path]:
    """Where to write a file or folder that takes the place of what is there when all is written.

    An error or an interrupt leaves the old one as it was, and nothing beside it; a folder that
    cannot be put back stays beside it, aside. Of two that write a file at once the last one's
    stays; of two that write a folder the slower may fail. What a process that was killed outright
    left beside ``place`` goes with the first write a day later.

    Args:
        replace: False never takes the place of a folder that holds anything.

    Raises:
        OSError: it cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{glob.escape(place.name)}.*.part"):
        with suppress(FileNotFoundError):  # another process has just finished with it
            if left.stat().st_mtime < time.time() - 24 * 60 * 60:
                shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(".part", f".{place.name}.", place.parent))
    part, old = aside / place.name, aside / f"{place.name}.old"
    try:
        yield part
        try:
            if replace and part.is_dir() and place.exists():
                os.replace(place, old)  # a folder cannot take the place of a full one in one step
            os.replace(part, place)
        except BaseException:
            if old.exists() and not place.exists():
                os.replace(old, place)
            raise
    finally:
        if place.exists() or not old.exists():  # else it is the only one
            shutil.rmtree(aside, ignore_errors=True)
