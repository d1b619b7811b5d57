"""Every notebook as it is stored: executed in order, small, free of machine traces, linked and linted."""

import ast
import base64
import dis
import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import PIL.Image
import pytest
from matplotlib.colors import to_rgb
from nbval.plugin import get_sanitize_patterns

from manu_utils.plotting.style import method_style
from manu_utils.teaching import check
from manu_utils.unlearning import METHODS, PRUNINGS, VARIANTS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETUP_CELL = (ROOT / "notebooks" / "setup_cell.py").read_text(encoding="utf-8").rstrip("\n")

MAX_NOTEBOOK_BYTES = 425_000
MAX_PICTURE_BYTES = 150_000
MAX_LINE = 100
MAX_IMPORT_LINES = 12
MAX_PRINTED_LINES = 25
A_PROMPT_AS_IT_IS = {"a4d0699e"}  # cells whose long print is what a model reads
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|Users|tmp|private|var|opt|usr|mnt|work|content)/|\b[A-Za-z]:\\\w"
)
IN_WORDS = re.compile(r"<details><summary>The figure in words</summary>\n\n(.+)\n\n</details>\n")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bghp_[A-Za-z0-9]{16,}")
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"")
FORBIDDEN_SOURCE = re.compile(r"^\s*[!%]|clear_output|filterwarnings|simplefilter|\binput\(", re.MULTILINE)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def text_of(output):
    """Everything in an output that a reader would see as text."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *(data[mime] for mime in data if mime not in PICTURES[:2])]
    return "\n".join(part if isinstance(part, str) else str(part) for part in parts)


def has_picture(cell):
    return any(mime in output.get("data", {}) for output in cell.get("outputs", []) for mime in PICTURES)


def broken_links(text, folder):
    """The relative links in a Markdown text, code aside, that lead to no file, seen from `folder`."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    targets = [first or second for first, second in LINK.findall(prose)]
    local = [target for target in targets if not re.match(r"[a-z]+:|#|//", target)]
    return [target for target in local if not (folder / target.split("#")[0]).exists()]


def names_of(source):
    """What a cell binds at its top level, and what it (or a function in it) reads that other cells must have bound."""
    bound, read, later = set(), set(), set()

    def visit(code, top):
        for step in dis.get_instructions(code):
            if top and step.opname == "STORE_NAME":
                bound.add(step.argval)
            elif step.opname == "LOAD_NAME" and step.argval not in bound:
                read.add(step.argval)
            elif step.opname == "LOAD_GLOBAL":  # in a function, which runs when all of the cell is bound
                later.add(step.argval)
        for constant in code.co_consts:
            if hasattr(constant, "co_code"):
                visit(constant, False)

    visit(compile(source, "cell", "exec"), True)
    return bound, read | later - bound


def imports_of(source):
    """Name -> what is imported under it, at the top level of a cell."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            found |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
    return found


def rebound(sources):
    """(name, reading cell, binding cell): a cell that, run once more after all others, would read another thing.

    What is imported twice, the same both times, is no other thing.
    """
    cells = [names_of(source) for source in sources]
    imported = [imports_of(source) for source in sources]
    found = []
    for reading, (_, read) in enumerate(cells):
        for name in read:
            before = [i for i in range(reading) if name in cells[i][0]]
            after = [i for i in range(reading, len(cells)) if name in cells[i][0]]
            same = {imported[i].get(name, i) for i in before + after}
            if before and after and len(same) > 1:
                found.append((name, reading, after[0]))
    return found


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
def test_name_is_number_and_lower_case(path):
    assert re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+\.ipynb", path.name)


@every_notebook
def test_executed_in_order(path):
    counts = [cell.execution_count for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1)), "not from one fresh run: `make notebooks`"


@every_notebook
def test_no_error_and_no_stderr_is_stored(path):
    for output in outputs(read(path)):
        assert output.output_type != "error", output.get("evalue")
        assert output.get("name") != "stderr", output.get("text")


@every_notebook
def test_no_widgets(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    assert not [mime for output in outputs(notebook) for mime in output.get("data", {}) if "widget" in mime]


@every_notebook
def test_metadata_is_portable(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not [cell for cell in notebook.cells if "execution" in cell.metadata], "stored timings"


@every_notebook
def test_outputs_hold_no_trace_of_a_machine(path):
    for output in outputs(read(path)):
        text = text_of(output)
        for pattern in (ABSOLUTE_PATH, TOKEN):
            found = pattern.search(text)
            assert not found, text[max(0, found.start() - 40) : found.end() + 40]


@every_notebook
def test_setup_cell_is_the_shared_one(path):
    assert code_cells(read(path))[0].source == SETUP_CELL, "run `make repository`"


@every_notebook
def test_no_shell_and_no_hidden_warnings(path):
    for cell in code_cells(read(path)):
        found = FORBIDDEN_SOURCE.search(cell.source)
        assert not found, found[0]


QUIZ_QUESTION = re.compile(r"^\*\*(\d)\.\*\* ", re.MULTILINE)
QUIZ_OPTION = re.compile(r"^- \*\*([A-E])\*\* ", re.MULTILINE)
QUIZ_ANSWER = re.compile(r"<details><summary>Answer</summary>\n\n\*\*([A-E])\.\*\* (.+)\n\n</details>")


def faults_of_quiz(text):
    """What is wrong: too few or many questions, no right answer, or an option of which nothing is said."""
    _, *parts = re.split(r"^(?=\*\*\d\.\*\* )", text, flags=re.MULTILINE)
    found = [] if 3 <= len(parts) <= 5 else [f"{len(parts)} questions, not three to five"]
    for number, part in enumerate(parts, start=1):
        options, answers = QUIZ_OPTION.findall(part), QUIZ_ANSWER.findall(part)
        if QUIZ_QUESTION.findall(part) != [str(number)] or options != list("ABCDE")[: len(options)] or len(options) < 3:
            found.append(f"question {number}: number or options")
        elif len(answers) != 1 or answers[0][0] not in options:
            found.append(f"question {number}: no answer, or none of its options")
        elif missing := [o for o in options if o != answers[0][0] and not re.search(rf"\b{o}\b", answers[0][1])]:
            found.append(f"question {number}: nothing is said of {', '.join(missing)}")
    return found


@every_notebook
def test_a_quiz_ends_the_notebook(path):
    cells = read(path).cells
    places = [i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and cell.source.startswith("## Quiz\n")]
    assert len(places) == 1, f"{len(places)} quizzes"
    assert faults_of_quiz(cells[places[0]].source) == []
    assert not any("exercise" in cell.metadata.get("tags", []) for cell in cells[places[0] :]), "exercises come before it"


QUIZ = """## Quiz

**1.** What?

- **A** This.
- **B** That.
- **C** None.

<details><summary>Answer</summary>

**B.** Not this (not A), and not none (not C).

</details>
"""


@pytest.mark.parametrize(
    ("text", "n_faults"),
    [
        ("".join(QUIZ.replace("1.", f"{n}.") for n in (1, 2, 3)), 0),
        ("".join(QUIZ.replace("1.", f"{n}.") for n in (1, 2)), 1),
        ("".join(QUIZ.replace("1.", f"{n}.") for n in (1, 2, 2)), 1),
        ("".join(QUIZ.replace("1.", f"{n}.") for n in (1, 2, 3)).replace("(not C)", ""), 3),
        ("".join(QUIZ.replace("1.", f"{n}.") for n in (1, 2, 3)).replace("**B.**", "**D.**"), 3),
        ("".join(QUIZ.replace("1.", f"{n}.") for n in (1, 2, 3)).replace("<details>", ""), 3),
    ],
)
def test_faults_of_a_quiz_are_found(text, n_faults):
    assert len(faults_of_quiz(text)) == n_faults


@every_notebook
def test_lines_of_code_are_short(path):
    """On the page and in the folded solutions; the setup cell is shared and not read."""
    folded = re.compile(r"```python\n(.*?)```", re.DOTALL)
    for cell in read(path).cells:
        code = [cell.source] if cell.cell_type == "code" else folded.findall(cell.source)
        for line in "\n".join(code).splitlines() if cell.source != SETUP_CELL else []:
            assert len(line) <= MAX_LINE, line


@every_notebook
def test_cells_that_import_are_short(path):
    """The last cell is for taking along, and imports all that it needs."""
    for cell in code_cells(read(path))[1:-1]:
        nodes = ast.parse(cell.source).body
        imports = sum(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes)
        assert imports < 4 or len(cell.source.splitlines()) <= MAX_IMPORT_LINES, cell.source


@every_notebook
def test_a_cell_run_again_reads_what_it_read(path):
    """Whoever runs all cells and then goes back to one of them must not find its names bound to other things."""
    assert rebound([cell.source for cell in code_cells(read(path))]) == []


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (["a = 1", "print(a)", "b = a"], []),
        (["a = 1", "print(a)", "a = 2"], [("a", 1, 2)]),
        (["a = []", "a = list(a)"], [("a", 1, 1)]),
        (["a = 1", "def f():\n    return a", "a = 2"], [("a", 1, 2)]),
        (["a = 1", "a = 2\nprint(a)", "a = 3"], []),
        (["a = 1", "[a for a in range(3)]", "a = 2"], []),
        (["import a", "a.b", "import a"], []),
        (["import a", "a.b", "from c import a"], [("a", 1, 2)]),
    ],
)
def test_names_that_are_bound_anew_are_found(sources, found):
    assert rebound(sources) == found


def hints_of(source):
    """The hints of the exercises that a cell checks: the last argument of `attempt` and `graded`, or what it names."""
    tree = ast.parse(source)
    named = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    last = [call.args[-1] for call in calls if call.func.id in ("attempt", "graded")]
    return [ast.literal_eval(named[hint.id] if isinstance(hint, ast.Name) else hint) for hint in last]


@every_notebook
def test_hints_begin_as_sentences_do(path):
    """With a capital letter, a name of the code or a formula: as they are printed, and in their folds."""
    for cell in read(path).cells:
        shown = re.findall(r"<summary>Hint</summary>\n\n(.+)", cell.source)
        for hint in hints_of(cell.source) if cell.cell_type == "code" else []:
            with pytest.raises(AssertionError) as told:
                check(False, "claim", hint)
            shown.append(str(told.value).removeprefix("✗ claim. "))
        for hint in shown:
            assert not re.match(r"[a-z]+[\s,:'’]", hint), hint


@every_notebook
def test_no_print_is_a_wall(path):
    """Longer than this, it is a table, a figure, or too much."""
    for cell in code_cells(read(path)):
        printed = [output.text for output in cell.outputs if output.output_type == "stream"]
        long = [text for text in printed if text.count("\n") > MAX_PRINTED_LINES]
        assert not long or cell.id in A_PROMPT_AS_IT_IS, cell.id


@every_notebook
def test_sizes(path):
    assert path.stat().st_size <= MAX_NOTEBOOK_BYTES
    for output in outputs(read(path)):
        for mime in PICTURES[:2]:
            picture = base64.b64decode(output.get("data", {}).get(mime, ""))
            assert len(picture) <= MAX_PICTURE_BYTES


DRAWN = {  # figures that tell methods by their colours, one panel each, and the methods in them
    "05_trade_off": VARIANTS,
    "06_paths_training": (*METHODS, "coverage"),
    "06_paths_pruning": (*PRUNINGS, "rewrite", "kl"),
}


def stored_figures(name):
    """The pictures of the cell that saves, or hands on, a figure of this name."""
    for path in NOTEBOOKS:
        for cell in code_cells(read(path)):
            for output in cell.outputs if f'"{name}"' in cell.source else []:
                if "image/png" in output.get("data", {}):
                    yield PIL.Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")


@pytest.mark.parametrize("name", DRAWN)
def test_stored_figures_keep_the_colour_of_every_method(name):
    """A palette of few colours must not paint two methods alike."""
    (picture,) = stored_figures(name)
    palette = [colour for _, colour in picture.getcolors(1 << 16)]
    for method in DRAWN[name]:
        wanted = [255 * part for part in to_rgb(method_style(method)[0])]
        off = min(max(abs(a - b) for a, b in zip(wanted, colour, strict=True)) for colour in palette)
        assert off <= 20, (method, off)


@every_notebook
def test_each_figure_is_followed_by_text(path):
    cells = read(path).cells
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if has_picture(cell):
            assert following is not None and following.cell_type == "markdown", cell.source


@every_notebook
def test_each_figure_has_a_text_alternative(path):
    """A fold below it, before anything else, that says what is to be seen."""
    cells = read(path).cells
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if has_picture(cell) or "plt.show()" in cell.source:
            words = IN_WORDS.match(following.source)
            assert words and 50 <= len(words[1]) <= 1000, cell.source


@every_notebook
def test_links_resolve(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert broken_links(cell.source, path.parent) == []


@pytest.mark.parametrize("name", ["README.md"])
def test_links_of_pages_resolve(name):
    assert broken_links((ROOT / name).read_text(encoding="utf-8"), ROOT) == []


@every_notebook
def test_no_set_is_spread_into_a_call(path):
    """The order of a set of words changes from run to run, and a stored output with it."""
    for cell in code_cells(read(path)):
        spread = [node.value for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Starred)]
        assert not any(isinstance(value, ast.Set | ast.SetComp) for value in spread), cell.source


def test_setup_cell_is_short_and_chooses_the_miniature():
    assert len(SETUP_CELL.splitlines()) <= 12
    assert SETUP_CELL.startswith('SCALE = "tiny"')


def test_every_sanitize_rule_is_read():
    text = (ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    rules = get_sanitize_patterns(text)
    assert len(rules) == len(re.findall(r"^\s*regex", text, re.MULTILINE)) > 0
    for pattern, replacement in rules:
        re.compile(pattern)
        assert replacement.strip(), f"{pattern}: an empty replacement hides the rule"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("saved to /home/anna/x.csv", True),
        ("saved to '/tmp/x'", True),
        (r"C:\Users\anna", True),
        ("build/figures/x.png", False),
        ("https://host/home/page", False),
        ("forget/test/retain", False),
    ],
)
def test_absolute_paths_are_recognised(text, found):
    assert bool(ABSOLUTE_PATH.search(text)) is found


def test_code_passes_ruff():
    folders = ["manu_utils", "notebooks", "tests", "experiments", "speed", "examples", "docs", "conftest.py"]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
