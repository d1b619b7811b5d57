"""Installs what manu_utils needs and this Python lacks.

It puts the clone around this file where the setup cell looks.

The setup cell runs it in a clone that it has just made in a temporary folder. Only a clone that is
whole and whose packages are installed is moved beside the notebook, as `manu-v0.1.0`: whatever is
cut short starts anew. Packages that are there and new enough stay as they are. torch, torchvision,
numpy and pandas are never replaced: a running session has them loaded, and a GPU runtime has them
built for its driver.
"""

import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROTECTED = ("torch", "torchvision", "numpy", "pandas")


def constraints() -> list[str]:
    """Pins of the protected packages that are installed, e.g. ``["numpy==2.1.3"]``."""
    pins = []
    for name in PROTECTED:
        try:
            pins.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return pins


def install(requirements: list[str]) -> None:
    """Has pip install them around the protected packages.

    Raises:
        SystemExit: pip failed, or there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("\n".join(constraints()), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "-c",
            str(pins),
            *requirements,
        ]
        done = subprocess.run(command)
    if done.returncode:
        kept = ", ".join(constraints()) or "nothing"
        sys.exit(
            "What manu_utils needs could not be installed; the message of pip stands above. Kept "
            f"as they are: {kept}. Connect to the network; or, if one of these is too old, choose "
            "a newer runtime, or a fresh environment as in the README. Then run this cell again."
        )


def settle(clone: Path, target: Path) -> None:
    """Moves the clone to `target`.

    What is there already, and was not found whole, is kept under another name.

    Raises:
        SystemExit: the place cannot be made free.
    """
    try:
        if target.exists():
            target.rename(target.with_name(f"{target.name}.old"))
        clone.rename(target)
    except OSError as error:
        sys.exit(
            f"{target} cannot be replaced ({error.strerror}); delete or rename it and run this "
            "cell again."
        )


def main() -> None:
    clone = Path(__file__).absolute().parents[1]
    project = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(project["dependencies"])
    target = clone.parents[1] / f"manu-v{project['version']}"
    settle(clone, target)
    sys.path.insert(0, str(target))


if __name__ == "__main__":
    main()
