"""Keeps the setup cell, the public address and the release the same everywhere.

The address stands in `notebooks/setup_cell.py`, the release is the version in `pyproject.toml`. Run
without an argument, this writes `v` and the version into the setup cell, into the badges, which
have to open the notebooks of the same release that the setup cell installs, and into the package;
and the text of the setup cell into the first code cell of every notebook. With an address (`make
repository URL=https://github.com/you/fork`) it first puts that address into the setup cell, and
into the badges and links of the notebooks, the README and pyproject.toml.

The setup cell fetches that tag and nothing else, so after a change of version: commit, `git tag
v0.2.0`, and `git push origin v0.2.0`. The address has to be one's own before anything is published:
whoever owns the name on GitHub decides what readers of the notebooks install.
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
SETUP = NOTEBOOKS / "setup_cell.py"
CONSTANTS = re.compile(r'^REPOSITORY, RELEASE = "(.+)", "(.+)"$', re.MULTILINE)


def setup_source() -> str:
    """The text of the setup cell, without a final newline."""
    return SETUP.read_text(encoding="utf-8").rstrip("\n")


def address() -> str:
    """The public address, e.g. ``"https://github.com/manu-tutorial/manu"``."""
    return CONSTANTS.search(setup_source())[1]


def release() -> str:
    """The tag that the setup cell installs, e.g. ``"v0.1.0"``: the version in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"v{project['version']}"


def readdress(text: str, old: str, new: str) -> str:
    """`text` with the address `new` for `old` in links and badges, not in longer names."""
    before, after = (url.removeprefix("https://github.com/") for url in (old, new))
    sites = r"(github\.com|research\.google\.com/github|nbviewer\.org/github)/"
    return re.sub(sites + re.escape(before) + r"(?![\w-])", rf"\g<1>/{after}", text)


def repin(text: str, own: str, tag: str) -> str:
    """`text` with badges that open the notebooks of the repository `own` at `tag`."""
    name = re.escape(own.removeprefix("https://github.com/"))
    places = rf"((?:research\.google\.com|nbviewer\.org)/github/{name}/blob/)[^/\s]+(?=/notebooks/)"
    return re.sub(places, rf"\g<1>{tag}", text)


def rewrite(path: Path, text: str) -> None:
    if text != path.read_text(encoding="utf-8"):
        path.write_text(text, encoding="utf-8", newline="\n")
        print("rewrote", path.relative_to(ROOT).as_posix())


def main(new: str | None = None) -> None:
    before, old, tag = setup_source(), address(), release()
    new = (new or old).rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", new):
        sys.exit(
            f"The address must look like https://github.com/owner/name for Colab, not {new!r}."
        )
    for path in (SETUP, ROOT / "README.md", ROOT / "pyproject.toml"):
        text = readdress(path.read_text(encoding="utf-8"), old, new)
        rewrite(
            path, repin(CONSTANTS.sub(f'REPOSITORY, RELEASE = "{new}", "{tag}"', text), new, tag)
        )
    package = ROOT / "manu_utils" / "__init__.py"
    version = re.compile(r'^__version__ = ".*"$', re.MULTILINE)
    rewrite(package, version.sub(f'__version__ = "{tag[1:]}"', package.read_text(encoding="utf-8")))
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        if not first.source.startswith("SCALE"):
            sys.exit(
                f"{path.name}: the first code cell must be the setup cell (it starts with SCALE)."
            )
        first.source = setup_source()
        for cell in notebook.cells:
            if cell is not first:
                cell.source = repin(readdress(cell.source, old, new), new, tag)
        rewrite(path, nbformat.writes(notebook) + "\n")
    if setup_source() != before:
        print(
            f"The notebooks install {tag} of {new}: own that name, and push the tag "
            f"(git tag {tag}; git push origin {tag})."
        )


if __name__ == "__main__":
    main(*sys.argv[1:2])
