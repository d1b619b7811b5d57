"""Slides from the cells of the notebooks: `python notebooks/slides.py [names ...]`.

Each becomes one HTML file in build/slides/.

A heading begins a slide and text one below it; a figure stands alone, and the text that reads it
goes into the speaker's notes (key S). Code is hidden but for short cells that neither draw nor
check; what a check says appears at the next key. Solutions and discussions stay out. The files need
no network: reveal.js comes from the extra `site`, formulas are MathML.
"""

import argparse
import copy
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from nbconvert import SlidesExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pages import BADGE, alternative_text, has_picture, mathml
from run_all import IN_WORDS, NOTEBOOKS, named, shown
from student import HEADING, tagged, without_answers
from traitlets.config import Config

KEY_LINES = 8  # code of at most so many lines is shown
TALL = 12  # an output of more lines begins a slide
SHORT = 300  # a figure joins the slide of a text of at most so many characters
HIDDEN = "hide-input"
NETWORK = "https://unpkg.com/reveal.js@5"
TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
.reveal { font-size: 28px; --r-heading-text-transform: none; }
.reveal h1 { font-size: 52px; } .reveal h2 { font-size: 42px; } .reveal h3 { font-size: 34px; }
.reveal .slides section { text-align: left; max-height: 100%; overflow-y: auto; }
.reveal .slides img { min-width: 75%; max-width: 100%; max-height: 600px; \
object-fit: contain; display: block; margin: auto; }
.reveal .jp-RenderedHTMLCommon, .reveal .jp-RenderedHTMLCommon p \
{ font-size: 28px; overflow-x: auto; }
.reveal .jp-RenderedHTMLCommon table, .reveal .jp-RenderedHTMLCommon table * { font-size: 20px; }
.reveal .jp-RenderedText pre, .reveal .jp-OutputArea-output pre \
{ font-size: 22px !important; white-space: pre-wrap; }
.reveal .highlight pre { font-size: 21px; line-height: 1.35; }
.reveal math { font-size: 110%; }
</style>
{%- endblock -%}
{%- block data_png -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] | trim }}" \
alt="{{ output.metadata.alt | escape_html }}">
</div>
{%- endblock -%}
{%- block footer_js -%}
<script src="{{ resources.reveal.url_prefix }}/dist/reveal.js"></script>
<script src="{{ resources.reveal.url_prefix }}/plugin/notes/notes.js"></script>
<script>
Reveal.initialize({hash: true, slideNumber: "c/t", transition: "none", center: false, \
width: 1280, height: 800,
                   margin: 0.04, plugins: [RevealNotes]});
function fit() {  // what is wider or taller than the slide is drawn smaller, down to half its size
  const slide = Reveal.getCurrentSlide();
  for (const formula of slide.querySelectorAll("math[display=block]")) {
    const wide = formula.scrollWidth / formula.clientWidth;
    if (wide > 1) formula.style.fontSize = `${100 / wide}%`;
  }
  const tall = slide.scrollHeight / 800;
  if (tall > 1) for (const part of slide.children) part.style.zoom = Math.max(1 / tall, 0.5);
}
Reveal.on("ready", fit);
Reveal.on("slidechanged", fit);
</script>
{%- endblock -%}
"""


class MathMLRenderer(IPythonRenderer):
    def block_math(self, body):
        return mathml(body, display=True)

    def inline_math(self, body):
        return mathml(body, display=False)


def markdown_to_html(source: str) -> str:
    return MarkdownWithMath(renderer=MathMLRenderer(escape=False)).render(source)


def at_headings(notebook):
    """The cells, Markdown cut before each heading: every heading stands first in its cell."""
    for cell in notebook.cells:
        starts = (
            [found.start() for found in HEADING.finditer(cell.source)]
            if cell.cell_type == "markdown"
            else []
        )
        for number, (start, end) in enumerate(zip([0, *starts], [*starts, None], strict=True)):
            if cell.source[start:end].strip():
                part = copy.deepcopy(cell)
                part.id, part.source = f"{cell.id}-{number}", cell.source[start:end].strip()
                yield part


def is_key(cell) -> bool:
    """Short code that neither draws nor only imports."""
    lines = [line for line in cell.source.splitlines() if line.strip()]
    imports = all(
        re.match(r"import |from |\w+ = [\d\"{]|pd\.set_option|\)|    [A-Za-z_, ]+,$", line)
        for line in lines
    )
    return len(lines) <= KEY_LINES and not has_picture(cell) and not imports


def is_tall(cell) -> bool:
    data = [output.get("data", {}) for output in cell.outputs]
    rows = sum(
        d["text/html"].count("<tr") if "text/html" in d else d.get("text/plain", "").count("\n")
        for d in data
    )
    return rows + sum(output.get("text", "").count("\n") for output in cell.outputs) > TALL


def on_slides(notebook):
    """A copy of a notebook with nbconvert's `slide_type` on each cell; most code is taken off."""
    result = copy.deepcopy(notebook)
    result.cells = list(at_headings(notebook))
    setup = next(cell for cell in result.cells if cell.cell_type == "code")
    after_figure = beside_figure = discussing = taking = False
    for before, cell, following in zip(
        [None, *result.cells], result.cells, [*result.cells[1:], None], strict=False
    ):
        show_code, kind = False, "-"
        if cell.cell_type == "markdown":
            level = re.match(r"#+(?= )", cell.source)
            if level:
                discussing, taking = False, cell.source.startswith("## Take it")
            cell.source = without_answers(IN_WORDS.sub("", BADGE.sub("", cell.source)))
            kind = (
                "slide"
                if level and len(level[0]) < 3
                else "notes"
                if after_figure and not level
                else "subslide"
            )
            if discussing:
                kind = "skip"
        elif cell is setup or discussing or tagged(cell, "exercise-check"):
            kind = "skip"
        elif tagged(cell, "exercise") or taking:
            show_code = True
        elif has_picture(cell):
            joins = (
                before.cell_type == "markdown"
                and not HEADING.match(before.source)
                and len(before.source) <= SHORT
            )
            kind = "-" if joins else "subslide"
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.metadata["alt"] = alternative_text(cell, following)
        elif tagged(cell, "check"):
            kind = (
                ("subslide" if beside_figure or is_tall(cell) else "fragment")
                if cell.outputs
                else "skip"
            )
        else:
            show_code = is_key(cell)
            kind = "fragment" if cell.outputs else "-"
            kind = "subslide" if beside_figure or is_tall(cell) else kind
            kind = kind if cell.outputs or show_code else "skip"
        after_figure = has_picture(cell)
        if kind not in ("notes", "skip"):
            beside_figure = after_figure
        discussing = discussing or tagged(cell, "exercise-check")
        cell.metadata["slideshow"] = {"slide_type": kind}
        if cell.cell_type == "code" and not show_code:
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), HIDDEN]
    return result


def reveal_of_package() -> Path | None:
    """The folder of reveal.js that sphinx-revealjs brings along, if it is installed."""
    package = importlib.util.find_spec("sphinx_revealjs")
    folder = Path(package.origin).parent / "_static" / "revealjs" if package else None
    return folder if folder and (folder / "dist" / "reveal.js").exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes slides of the notebooks to build/slides/.")
    parser.add_argument("names", nargs="*", help="notebooks, e.g. 03 (default: all)")
    paths = named(parser.parse_args().names)
    folder = Path(os.environ.get("MANU_BUILD") or NOTEBOOKS.parent / "build").absolute() / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    reveal = reveal_of_package()
    for part in ("dist", "plugin/notes") if reveal else ():
        shutil.copytree(reveal / part, folder / "reveal.js" / part, dirs_exist_ok=True)
    exporter = SlidesExporter(
        config=Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {HIDDEN}}}),
        filters={"markdown2html": markdown_to_html},
        extra_loaders=[DictLoader({"offline.html.j2": TEMPLATE})],
        template_file="offline.html.j2",
        reveal_url_prefix="reveal.js" if reveal else NETWORK,
        reveal_theme="white",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    for path in paths:
        notebook = on_slides(nbformat.read(path, as_version=4))
        page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
    print(f"slides of {len(paths)} notebooks in {shown(folder)}")
    if not reveal:
        print(
            "They load reveal.js from the network; for slides that need none: "
            "pip install sphinx-revealjs"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
