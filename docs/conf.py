"""Sphinx's settings for the book of `make site`; notebooks/book.py lays out pages and calls it."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))

from docutils.nodes import SkipNode  # noqa: E402
from pages import mathml  # noqa: E402

meta = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
project, release = "MANU, step by step", meta["version"]
copyright = "the manu_utils authors, MIT licence"

extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the stored outputs are the book
nb_merge_streams = True
suppress_warnings = ["myst.header"]  # a README may jump from the first to the third level
html_math_renderer = "mathml"  # drawn by the browser: no script, no network

html_theme = "furo"
html_title = project
html_show_sourcelink = html_copy_source = False


def inline(translator, node):
    translator.body.append(mathml(node.astext(), display=False))
    raise SkipNode


def block(translator, node):
    translator.body.append(f'<div class="math">{mathml(node.astext(), display=True)}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.add_css_file("wide.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
