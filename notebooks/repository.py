"""Keeps the setup cell and the public address the same in every notebook.

`notebooks/setup_cell.py` is the one source of both. Run without an argument, this writes its text into
the first code cell of every notebook; with an address (`make repository URL=https://github.com/you/fork`)
it first puts that address there, and also into the badges and links of the notebooks, the README and
pyproject.toml.
"""

import re
import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
SETUP = NOTEBOOKS / "setup_cell.py"


def setup_source() -> str:
    """The text of the setup cell, without a final newline."""
    return SETUP.read_text(encoding="utf-8").rstrip("\n")


def address() -> str:
    """The public address, e.g. ``"https://github.com/manu-tutorial/manu"``."""
    return re.search(r'^REPOSITORY = "(.+)"$', setup_source(), re.MULTILINE)[1]


def readdress(text: str, old: str, new: str) -> str:
    """`text` with the address `new` for `old` in links and badges; longer names that start alike stay."""
    before, after = (url.removeprefix("https://github.com/") for url in (old, new))
    sites = r"(github\.com|research\.google\.com/github|nbviewer\.org/github)/"
    return re.sub(sites + re.escape(before) + r"(?![\w-])", rf"\1/{after}", text)


def rewrite(path: Path, text: str) -> None:
    if text != path.read_text(encoding="utf-8"):
        path.write_text(text, encoding="utf-8", newline="\n")
        print("rewrote", path.relative_to(ROOT).as_posix())


def main(new: str | None = None) -> None:
    old = address()
    new = (new or old).rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", new):
        sys.exit(f"The address must look like https://github.com/owner/name for Colab, not {new!r}.")
    for path in (SETUP, ROOT / "README.md", ROOT / "pyproject.toml"):
        rewrite(path, readdress(path.read_text(encoding="utf-8"), old, new))
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        if not first.source.startswith("SCALE"):
            sys.exit(f"{path.name}: the first code cell must be the setup cell (it starts with SCALE).")
        first.source = setup_source()
        for cell in notebook.cells:
            if cell is not first:
                cell.source = readdress(cell.source, old, new)
        rewrite(path, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:2])
