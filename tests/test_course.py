"""Slides and book: built from stored outputs, whole without a network, no solution on a slide, a text for every picture."""

import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from student import ANSWERS, FOLD
from test_exercises import EXERCISES, NOTEBOOKS

pytest.importorskip("latex2mathml", reason="slides and book need the extra `site`")
pytest.importorskip("myst_nb", reason="the book needs the extra `site`")
from book import WIDE, in_book  # noqa: E402
from pages import alternative_text, has_picture, mathml, plain, title_of, with_text_badges  # noqa: E402
from slides import HIDDEN, markdown_to_html, on_slides  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "notebooks"
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$", re.DOTALL)
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def markdown(source):
    return nbformat.v4.new_markdown_cell(source)


def code(source, *outputs, tags=()):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


PICTURE = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
TEXT = nbformat.v4.new_output("stream", name="stdout", text="✓ it holds")


class Loaded(HTMLParser):
    """What a page loads (not what it links to), and the texts of its pictures."""

    def __init__(self, page):
        super().__init__()
        self.loads, self.pictures = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "img":
            self.pictures.append(found.get("alt"))
        if tag in ("script", "img", "iframe", "source"):
            self.loads.append(found.get("src") or "")
        if tag == "link" and found.get("rel") == "stylesheet":
            self.loads.append(found["href"])


def built(script, *names, into):
    """Runs a script with MANU_BUILD in a folder of its own; the processor seconds that it took."""
    before = os.times()
    environment = os.environ | {"MANU_BUILD": str(into)}
    done = subprocess.run([sys.executable, SCRIPTS / script, *names], env=environment, capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0, done.stdout + done.stderr
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Slides of one notebook, the book with two of them."""
    folder = tmp_path_factory.mktemp("build")
    seconds = built("slides.py", "03", into=folder) + built("book.py", "00", "03", into=folder)
    assert seconds < 60
    return folder


def test_a_slide_begins_at_a_heading_and_a_figure_stands_alone():
    cells = [
        markdown("# T\n\ntext\n\n## S"), code("import a"), markdown("short"), code("draw()", PICTURE), markdown("reading"),
        code("check(True, 'a')", TEXT, tags=["check"]), markdown("long " * 80), code("draw()", PICTURE),
        code("x = 1\nx", TEXT), code("\n".join(["x = f(1)"] * 20), TEXT),
        code("y = f(2)", nbformat.v4.new_output("stream", name="stdout", text="line\n" * 20)),
    ]  # fmt: skip
    slides = on_slides(nbformat.v4.new_notebook(cells=cells)).cells
    kinds = [(cell.source[:8], cell.metadata.slideshow.slide_type, HIDDEN in cell.metadata.get("tags", [])) for cell in slides]
    assert kinds == [
        ("# T\n\ntex", "slide", False), ("## S", "slide", False), ("import a", "skip", True), ("short", "subslide", False),
        ("draw()", "-", True), ("reading", "notes", False), ("check(Tr", "subslide", True), ("long lon", "subslide", False),
        ("draw()", "subslide", True), ("x = 1\nx", "subslide", False), ("x = f(1)", "fragment", True),
        ("y = f(2)", "subslide", False),
    ]  # fmt: skip


@every_notebook
def test_no_solution_is_on_a_slide(path):
    """Nor an answer to a prediction; the stubs are there, with their code."""
    slides = [c for c in on_slides(nbformat.read(path, as_version=4)).cells if c.metadata.slideshow.slide_type != "skip"]
    source = "\n".join(cell.source for cell in slides)
    assert not [fold[1] for fold in FOLD.finditer(source) if fold[1].startswith(ANSWERS)]
    for found, _, _, stub, _, solution in EXERCISES:
        if found == path:
            assert solution.strip() not in source and stub in source


@every_notebook
def test_each_formula_is_drawn_without_a_script(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for block, inline in FORMULA.findall(re.sub(r"```.*?```|`[^`\n]*`", "", cell.source, flags=re.DOTALL)):
                assert "\\" not in mathml(block or inline, bool(block)), "a command that MathML is not made of"


@every_notebook
def test_each_picture_has_a_text(path):
    cells = nbformat.read(path, as_version=4).cells
    texts = [alternative_text(cell, after) for cell, after in zip(cells, cells[1:], strict=False) if has_picture(cell)]
    assert all(len(text) > 20 and not set(text) & set("\\$`{}\n") for text in texts), texts


def test_the_text_of_a_picture_is_its_title_and_its_reading():
    cell = code('plot(x, title="Left is better")', PICTURE)
    assert alternative_text(cell, markdown("Grey is *before*. More.")) == "Left is better. Grey is before."
    assert alternative_text(code("plot()"), markdown("Is $x$ [here](a.md)? Yes.")) == "Is x here?"
    assert alternative_text(cell, None) == "Left is better."
    fold = "<details><summary>The figure in words</summary>\n\nTwo *bars*.\n\n</details>\n\nGrey is before."
    assert alternative_text(cell, markdown(fold)) == "Two bars."
    assert title_of('title = f"α = {a} %"\nplot(title=title)') == "α = … %"
    assert plain(r"With $\bar Z_\mathrm{text} = 0$") == "With Z_text = 0"


def narrowest(table):
    """About how many pixels a table of the book needs, as drawn by Chromium: a column is as wide as its longest word."""
    columns, filled = {}, set()
    for y, row in enumerate(re.findall("<tr.*?</tr>", table, re.DOTALL)):
        x = 0
        for mark, text in re.findall("<t[hd]([^>]*)>(.*?)</t[hd]>", row, re.DOTALL):
            across, down = (int(re.search(f'{of}="(\\d+)"|$', mark)[1] or 1) for of in ("colspan", "rowspan"))
            while (x, y) in filled:
                x += 1
            filled |= {(x + i, y + j) for i in range(across) for j in range(down)}
            words = re.split(r"[\s–-]+", unescape(re.sub("<.*?>", "", text)))
            columns[x] = max(columns.get(x, 0), across == 1 and max(map(len, words)))
    return sum(7.5 * longest + 16 for longest in columns.values())


@every_notebook
def test_each_table_fits_the_column_of_the_book(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", ()):
            page = output.get("data", {}).get("text/html", "")
            assert narrowest(page) < 928, f"{cell.id}: cut at a window of 1,280 px; shorter or fewer columns"


def test_a_column_of_a_table_is_as_wide_as_its_longest_word():
    head = '<tr><th rowspan="2">ab</th><th colspan="2">a_very_long_heading</th></tr><tr><th>x y</th><td>abc&gt;</td></tr>'
    assert narrowest(f"<table>{head}</table>") == 7.5 * (2 + 1 + 4) + 3 * 16


def test_the_book_wraps_prints_and_makes_every_table_small():
    """Whoever made the table: pandas marks a plain one alone as ``dataframe``, not a styled one."""
    assert ".cell_output table { border: 0; border-collapse: collapse; font-size: 80%; }" in WIDE
    assert ".cell_output pre { white-space: pre-wrap;" in WIDE and "dataframe" not in WIDE


def test_badges_are_links_of_their_words():
    assert with_text_badges("[![Open](https://x/b.svg)](https://y/z)") == "[Open](https://y/z)"


def test_formulas_in_markdown():
    page = markdown_to_html(r"$$n^* = \arg\max_n x_n$$ and $a_1$")
    assert page.count("<math") == 2 and "\\" not in page and "$" not in page


def test_links_lead_to_pages_or_to_the_repository():
    pages = {ROOT / "README.md": "index.md", SCRIPTS / NOTEBOOKS[1].name: f"notebooks/{NOTEBOOKS[1].name}"}
    text = f"[a]({NOTEBOOKS[1].name}#s) [b](../README.md) [c](../LICENSE) [d](https://x.y) [e](#f)"
    linked = in_book(text, SCRIPTS, pages, "notebooks")
    assert f"[a]({NOTEBOOKS[1].name}#s) [b](../index.md) [c](https://github.com/" in linked
    assert linked.endswith("/LICENSE) [d](https://x.y) [e](#f)")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        in_book("[x](no_such_page.md)", SCRIPTS, pages, "notebooks")


def test_slides_need_no_network(build):
    (page,) = (build / "slides").glob("*.html")
    found = Loaded(page.read_text(encoding="utf-8"))
    assert all((build / "slides" / target).is_file() for target in found.loads if target and not target.startswith("data:"))
    assert found.pictures and all(text and "No description" not in text for text in found.pictures)
    assert "notes.js" in "".join(found.loads)


def test_the_book_is_whole_and_needs_no_network(build):
    """Every page of it: what it loads and where its own links lead is there."""
    site = build / "site"
    pages = [site / "index.html", *(site / "notebooks").glob("*.html"), *(site / "docs").glob("*.html")]
    assert len(pages) == 1 + 2 + len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        found = Loaded(text)
        links = [link for link in re.findall(r'href="([^"]+)"', text) if not re.match(r"[a-z]+:|#", link)]
        for target in {*found.loads, *links} - {""}:
            assert (page.parent / re.split(r"[?#]", target)[0]).exists(), f"{page.name}: {target}"
        assert all(found.pictures), page.name
    assert "<math" in (site / "notebooks" / "03_which_neurons_matter.html").read_text(encoding="utf-8")
