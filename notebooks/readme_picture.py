"""Writes docs/before_after.png, the README's first picture, from the outputs of notebook 00."""

import base64
from pathlib import Path

import nbformat

ROOT = Path(__file__).absolute().parents[1]
PICTURE = ROOT / "docs" / "before_after.png"


def stored_picture() -> bytes:
    """The figure before and after pruning, as notebook 00 shows it."""
    notebook = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if '"00_before_after"' in cell.source]
    (data,) = [
        output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    return base64.b64decode(data)


if __name__ == "__main__":
    PICTURE.write_bytes(stored_picture())
