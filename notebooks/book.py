"""The executed series as a static book: `python notebooks/book.py [names ...]`.

It begins at build/site/index.html.

Pages are README.md, the guides in docs/ and the notebooks with their stored outputs; nothing is
executed, and nothing comes from the network. A link that leads to no page and no file is an error;
one to a file outside the book goes to the repository.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from pages import alternative_text, has_picture, with_text_badges
from run_all import NOTEBOOKS, named, shown, write
from sphinx.cmd.build import main as sphinx

ROOT = NOTEBOOKS.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
WIDE = """\
@media (min-width: 63em) and (max-width: 82em) \
{ .content { width: min(58em, calc(100vw - 15em - 7em)); } }
@media (min-width: 100em) { .content { width: 60em; } }
table.docutils td { min-width: 6.5em; }
.cell_output { overflow-x: auto; }
.cell_output img { max-width: 100%; height: auto; }
div.math { overflow-x: auto; margin: 1em 0; padding: 0.4em 0; }
.cell_output pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.cell_output table { border: 0; border-collapse: collapse; font-size: 80%; }
.cell_output table :is(td, th) \
{ border: 0; border-bottom: 1px solid var(--color-background-border); padding: 0.2em 0.6em; }
.cell_output table td { text-align: right; }
"""


def address() -> str:
    """The repository at the release that the notebooks install."""
    setup = (NOTEBOOKS / "setup_cell.py").read_text(encoding="utf-8")
    repository, release = re.search(
        r'^REPOSITORY, RELEASE = "([^"]+)", "([^"]+)"', setup, re.MULTILINE
    ).groups()
    return f"{repository}/blob/{release}"


def in_book(text: str, folder: Path, pages: dict[Path, str], where: str) -> str:
    """Markdown whose relative links lead to pages of the book, or else to the repository.

    Args:
        folder: of the file that the text comes from, below the repository.
        pages: file -> its path in the book.
        where: the folder of the book that the text goes into, "" or a name.

    Raises:
        FileNotFoundError: for a link to a file that is not there.
    """

    def target(link):
        file = (folder / link[1]).resolve()
        if not file.exists():
            raise FileNotFoundError(
                f"a link leads to {shown(file)}, which does not exist: {text[:80]!r}"
            )
        if file in pages:
            return (
                f"]({os.path.relpath(pages[file], where or '.').replace(os.sep, '/')}"
                f"{link[2] or ''})"
            )
        return f"]({address()}/{file.relative_to(ROOT).as_posix()}{link[2] or ''})"

    return LINK.sub(target, with_text_badges(text))


def notebook_page(notebook, path: Path, pages: dict[Path, str]):
    """Makes a notebook a page: text links, a text for each picture, the setup cell folded."""
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    setup.metadata["tags"] = [*setup.metadata.get("tags", []), "hide-input"]
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if cell.cell_type == "markdown":
            cell.source = in_book(cell.source, path.parent, pages, "notebooks")
        elif has_picture(cell):
            cell.metadata["mystnb"] = {"image": {"alt": alternative_text(cell, following)}}
    return notebook


def lay_out(source: Path, paths: list[Path]) -> None:
    """Write the pages below a folder, which is emptied first."""
    shutil.rmtree(source, ignore_errors=True)
    guides = sorted(DOCS.glob("*.md"))
    pages = {ROOT / "README.md": "index.md"} | {guide: f"docs/{guide.name}" for guide in guides}
    pages |= {path: f"notebooks/{path.name}" for path in paths}
    for folder in ("docs", "notebooks", "_static"):
        (source / folder).mkdir(parents=True)
    (source / "_static" / "wide.css").write_text(WIDE, encoding="utf-8")
    for picture in DOCS.glob("*.png"):
        pages[picture] = f"docs/{picture.name}"
        shutil.copy(picture, source / pages[picture])
    for path in paths:
        write(notebook_page(nbformat.read(path, as_version=4), path, pages), source / pages[path])
    for guide in guides:
        text = in_book(guide.read_text(encoding="utf-8"), DOCS, pages, "docs")
        (source / pages[guide]).write_text(text, encoding="utf-8")
    listed = {
        "The notebooks": [pages[path] for path in paths],
        "Guides": [pages[guide] for guide in guides],
    }
    lists = [
        "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"])
        for caption, names in listed.items()
    ]
    readme = in_book((ROOT / "README.md").read_text(encoding="utf-8"), ROOT, pages, "")
    (source / "index.md").write_text("\n\n".join([readme, *lists]) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the static book to build/site/.")
    parser.add_argument("names", nargs="*", help="notebooks, e.g. 03 (default: all)")
    paths = named(parser.parse_args().names)
    build = Path(os.environ.get("MANU_BUILD") or ROOT / "build").absolute()
    source, site = build / "site-pages", build / "site"
    lay_out(source, paths)
    options = [
        "-c",
        str(DOCS),
        "-b",
        "html",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        str(build / "site-cache" / "doctrees"),
    ]
    static = ["-D", f"html_static_path={source / '_static'}"]
    failed = sphinx([*options, *static, str(source), str(site)])
    if not failed:
        print(f"{len(paths)} notebooks and the guides: {shown(site / 'index.html')}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
