"""The figures of the series, one function each. They take tidy tables or tensors, return the Axes and change no global state.

One colour for one thing throughout (Okabe-Ito, safe for colour-blind readers): see :data:`COLOURS`. Modality is a matter of
fill: image + text is solid, text alone is hollow or dashed.
"""

from __future__ import annotations

import os
from pathlib import Path

COLOURS = {
    "forget": "#D55E00", "retain": "#0072B2", "test": "#E69F00", "celebrity": "#009E73", "vanilla": "#7F7F7F",
    "vision": "#CC79A7", "language": "#56B4E9",
}  # fmt: skip
MODALITY_NAMES = {"multimodal": "image + text", "text": "text alone"}
SET_NAMES = {"forget": "forget", "test": "test", "retain": "retain", "celebrity": "celebrity"}


def build_dir() -> Path:
    """Where figures and tables go: ``$MANU_BUILD`` if set, else ``build`` in the working directory; made if missing."""
    folder = Path(os.environ.get("MANU_BUILD", "build"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_figure(figure, name: str) -> None:
    """Save a figure as ``build/figures/<name>.png`` on white, 100 dots per inch."""
    folder = build_dir() / "figures"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=100, facecolor="white")
