"""What slides and the book share: formulas offline, texts for pictures, badges as plain links."""

import ast
import re

from latex2mathml.converter import convert
from run_all import IN_WORDS

BADGE = re.compile(r"\[!\[([^\]]*)\]\([^)]*\)\]\(([^)]*)\)")
MARKS = re.compile(r"[*`$]|\[([^\]]*)\]\([^)]*\)")
LATEX = re.compile(r"\\[a-zA-Z]+\s*|[{}]")
SENTENCE = re.compile(r"(.+?[.:?])(?=\s[A-Z*`]|\s*$)", re.DOTALL)


def mathml(latex: str, display: bool) -> str:
    """A formula as MathML, which browsers draw themselves."""
    known = re.sub(r"\\arg(?![a-z])", r"\\operatorname{arg}", latex)
    return convert(known, display="block" if display else "inline")


def with_text_badges(text: str) -> str:
    """Markdown whose badges, which are pictures from the network, are links of their words."""
    return BADGE.sub(r"[\1](\2)", text)


def has_picture(cell) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def plain(text: str) -> str:
    """Markdown without its marks, on one line."""
    words = MARKS.sub(lambda mark: mark[1] or "", text)
    return re.sub(r"\s+", " ", LATEX.sub("", words)).strip()


def title_of(source: str) -> str:
    """What a cell that draws gives its figure as a title, if it is one text; no placeholders."""
    for node in ast.walk(ast.parse(source)):
        named = isinstance(node, ast.Assign) and any(
            getattr(t, "id", "") == "title" for t in node.targets
        )
        if named or isinstance(node, ast.keyword) and node.arg == "title":
            if isinstance(node.value, ast.Constant):
                return str(node.value.value)
            if isinstance(node.value, ast.JoinedStr):
                parts = [part.value for part in node.value.values if isinstance(part, ast.Constant)]
                return re.sub(r"\s+", " ", "… ".join(parts)).strip()
    return ""


def alternative_text(cell, following) -> str:
    """A text for whoever does not see the picture.

    It is the fold "The figure in words" below it, or else its title and the first sentence of the
    Markdown that reads it.

    Args:
        cell: a code cell with a picture.
        following: the cell after it, or None.
    """
    below = following.source if following is not None and following.cell_type == "markdown" else ""
    if words := IN_WORDS.match(below):
        return plain(words[1])
    reading = plain(below)
    first = SENTENCE.match(reading)
    parts = [title_of(cell.source), first[1] if first else reading]
    return " ".join(part.rstrip(":") + ("" if part[-1] in ".?" else ".") for part in parts if part)
