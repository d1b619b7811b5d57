"""Installs what manu_utils needs and this Python lacks; the setup cell calls it after cloning the repository.

Packages that are there and new enough stay as they are. torch, torchvision, numpy and pandas are never
replaced: a running session has them loaded, and a GPU runtime has them built for its driver.
"""

import subprocess
import sys
import tempfile
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


def main() -> None:
    clone = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("\n".join(constraints()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(pins), "-e", str(clone)]
        done = subprocess.run(command)
    if done.returncode:
        kept = ", ".join(constraints()) or "nothing"
        sys.exit(
            f"manu_utils could not be installed; the message of pip stands above. Kept as they are: {kept}. "
            "If one of these is too old, choose a newer runtime, or a fresh environment as in the README."
        )


if __name__ == "__main__":
    main()
