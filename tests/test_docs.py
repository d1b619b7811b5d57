"""The guides say nothing that is not there: links, titles, figures, cells, minutes, numbers, messages, functions."""

import ast
import inspect
import re
from pathlib import Path

import nbformat
import pytest
import readme_picture
from test_hygiene import broken_links, text_of

from manu_utils import unlearning

ROOT = Path(__file__).resolve().parents[1]
GUIDES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
NOTEBOOKS = {path.stem.split("_")[0]: nbformat.read(path, as_version=4) for path in FILES}  # "07", "07b"
SOURCE = {number: "\n".join(cell.source for cell in notebook.cells) for number, notebook in NOTEBOOKS.items()}
PROSE = {
    number: "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for number, notebook in NOTEBOOKS.items()
}
TITLES = {number: re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE) for number, text in PROSE.items()}
PIECES = re.split(r"^### (?=\d\d[a-z]? · )|^## ", GUIDES["instructor"], flags=re.MULTILINE)
PARTS = {piece.split(" · ")[0]: piece for piece in PIECES if piece[:2].isdigit()}  # of each notebook, its title first
every_part = pytest.mark.parametrize("number", NOTEBOOKS)


def cells_of(line):
    """The cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def outputs_of(notebook):
    return "\n".join(text_of(output) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("name", GUIDES)
def test_links_lead_somewhere(name):
    assert broken_links(GUIDES[name], ROOT / "docs") == []


@every_part
def test_titles_and_sections_are_those_of_the_notebook(number):
    title, *lines = PARTS[number].splitlines()
    assert title == TITLES[number][0]
    named = [cells_of(line)[0] for line in lines if line.startswith("| ") and "afterwards" not in line]
    assert named and set(named) <= set(TITLES[number]), set(named) - set(TITLES[number])


def test_sections_named_by_number_exist():
    """`03 §1, §5` and the like: the section is one of the notebook that was named last in the line."""
    found, part = 0, ""
    for line in GUIDES["instructor"].splitlines():
        title = re.match(r"### (\d\d[a-z]?) · ", line)
        part = title[1] if title else "" if line.startswith("## ") else part
        number = part
        for notebook, section in re.findall(r"(?<![\d:])((?:0\d|1[0-2])b?)(?!:\d|\d|%)|§(\d+)", line):
            number = notebook or number
            if section:
                found += 1
                assert any(title.startswith(f"{section} · ") for title in TITLES[number]), (number, section, line)
    assert found > 20


def test_figures_cells_and_commands_exist():
    text = GUIDES["instructor"]
    for figure in re.findall(r"`(\d\d[a-z]?_[a-z_]+)`", text):
        assert f'"{figure}"' in SOURCE[figure.split("_")[0]], figure
    ids = {number: {cell.id for cell in notebook.cells} for number, notebook in NOTEBOOKS.items()}
    for item in re.findall(r"^\d\. \*\*.*?(?=^\d\. \*\*|^## )", text, re.MULTILINE | re.DOTALL):
        mentioned = set(re.findall(r"\b(0\d[a-z]?)\b", item))
        cells = re.findall(r"\(?(?:cell|0\d[a-z]?, cell)\s+`([\w-]+)`", item)
        assert cells and all(any(cell in ids[number] for number in mentioned) for cell in cells), cells
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)", "".join(GUIDES.values()))) <= set(targets)


def test_minutes_are_those_of_readme_and_notebooks():
    rows = [cells_of(line) for line in GUIDES["instructor"].splitlines() if re.match(r"\| \d\d[a-z]? \| \d", line)]
    assert [row[0] for row in rows] == list(NOTEBOOKS)
    for number, seconds, reading, exercises in rows:
        assert re.search(rf"^\| \[{number} [^|]*\|[^|]*\| {seconds} \|", README, re.MULTILINE), number
        stated = re.search(r"the reading takes (\d+)", PROSE[number])
        assert reading == (stated[1] if stated else "–"), (number, stated)
        total = sum(map(int, re.findall(r"^### Exercise .*?(\d+) minutes", PROSE[number], re.MULTILINE)))
        assert int(exercises) == total, (number, total)


@every_part
def test_numbers_are_shown_by_the_notebook(number):
    """Every number of two digits or more, as it stands or as one of its roundings, is in the notebook's text or outputs."""
    shown = SOURCE[number] + outputs_of(NOTEBOOKS[number])
    values = {float(value.replace(",", "")) for value in re.findall(r"(?<![\w.])\d[\d,]*\.?\d*|\.\d+", shown)}
    values |= {100 * value for value in values if value <= 1}
    said = "\n".join(line for line in PARTS[number].splitlines()[1:] if not line.startswith("|"))
    said = re.sub(r"`[^`]*`|\bnotebook \d\d[a-z]?\b", "", said)
    for text in re.findall(r"(?<![\w.])\d[\d,]*\.?\d*(?![\w])|(?<![\w])\.\d+", said):
        value, digits = float(text.rstrip(".,").replace(",", "")), len(text.rstrip(".,").partition(".")[2])
        if value >= 10 or digits:
            assert any(round(one, digits) == value for one in values), text


def test_every_message_is_in_the_code():
    """As a template: … stands for what an f-string fills in, and for what a reader need not see."""
    templates = [(ROOT / "Makefile").read_text(encoding="utf-8")]
    for path in [*(ROOT / "manu_utils").rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                templates.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                templates.append(node.value)
    rows = [cells_of(line)[0] for line in GUIDES["errors"].splitlines() if line.startswith("| `")]
    assert len(rows) >= 10
    for row in rows:
        pieces = [piece.strip() for piece in re.match(r"`(.+?)`(?: |$)", row)[1].split("…") if len(piece.strip()) > 3]
        pattern = re.compile(".*".join(re.escape(piece) for piece in pieces), re.DOTALL)
        assert pieces and any(pattern.search(template) for template in templates), row


def test_every_method_can_be_called_so():
    rows = [cells_of(line) for line in GUIDES["methods"].splitlines() if line.startswith("| ") and "arguments" not in line]
    calls = [row[-1].strip("`") for row in rows if row[-1].startswith("`")]
    assert len(calls) == len(rows) - 1 >= 12  # all but the head
    for text in calls:
        call = ast.parse(text, mode="eval").body
        function = getattr(unlearning, call.func.id)
        keywords = {keyword.arg: keyword.value.value for keyword in call.keywords}
        inspect.signature(function).bind(*call.args, **keywords)
        if "variant" in keywords:
            assert keywords["variant"] in unlearning.PRUNINGS
        if call.func.id == "unlearn_by_training":
            assert call.args[0].value in unlearning.METHODS + unlearning.RIVALS
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert names == {*unlearning.PRUNINGS, *unlearning.METHODS, *unlearning.RIVALS}


def test_every_source_of_a_method_is_in_the_package_or_the_notebooks():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "manu_utils").rglob("*.py")]
    known = "\n".join([*texts, *SOURCE.values()])
    for shown, linked in re.findall(r"\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/([\d.]+)\)", GUIDES["methods"]):
        assert shown == linked and shown in known, shown


def test_the_picture_of_the_readme_is_that_of_notebook_00():
    stale = "docs/before_after.png is of another run: python notebooks/readme_picture.py"
    assert readme_picture.PICTURE.read_bytes() == readme_picture.stored_picture(), stale
    assert "(docs/before_after.png)" in README
