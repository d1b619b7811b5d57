"""The student's notebooks hold no solution, the teacher's each where it belongs, and nbgrader finds its marks in both."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter

import nbformat
import pytest
from student import ANSWERS, BEGIN, FOLD, graded, solved, student_version, tagged, teacher_version, unsolved, without_answers
from test_exercises import EXERCISES, NOTEBOOKS
from test_hygiene import broken_links, names_of

from manu_utils import teaching

NUMBER = {path: sum(1 for found, *_ in EXERCISES if found == path) for path in NOTEBOOKS}
READ = {path: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
STUDENT = {path: student_version(notebook, path.stem) for path, notebook in READ.items()}
TEACHER = {path: teacher_version(notebook, path.stem) for path, notebook in READ.items()}
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def body_of(function):
    """The lines of a function below its docstring, without indentation."""
    node = ast.parse(function).body[0]
    first = node.body[1] if ast.get_docstring(node) is not None else node.body[0]
    return [line.strip() for line in function.splitlines()[first.lineno - 1 :] if line.strip()]


@every_notebook
def test_versions_are_valid_notebooks(path):
    for notebook in (STUDENT[path], TEACHER[path]):
        nbformat.validate(notebook)
        assert json.loads(nbformat.writes(notebook))["cells"]


@every_notebook
def test_no_solution_is_left_for_the_student(path):
    """No line of a solution that the notebook has not shown before or in its check; no fold, discussion or answer."""
    source = "\n".join(cell.source for cell in STUDENT[path].cells)
    assert BEGIN not in source and not re.search(r"^Discussion:", source, re.MULTILINE)
    folds = {fold[1] for fold in FOLD.finditer(source)}
    assert not {fold for fold in folds if fold.startswith(ANSWERS)}, folds
    for found, number, _, stub, check, solution in EXERCISES:
        if found == path:
            before = "\n".join(cell.source for cell in READ[path].cells).split(stub)[0] + check
            told = [line for line in body_of(solution) if line not in before and len(line) > 12]
            assert not [line for line in told if line in source], f"exercise {number}"


@every_notebook
def test_the_stubs_are_those_of_the_series(path):
    """But for a decorator, which the student is given with the stub."""
    given = [cell.source for cell in STUDENT[path].cells if tagged(cell, "exercise")]
    stubs = [stub for found, _, _, stub, _, _ in EXERCISES if found == path]
    assert [re.sub(r"^@.*\n", "", source) for source in given] == stubs
    assert all(any(BEGIN in cell.source for cell in TEACHER[path].cells) for _ in stubs)


@every_notebook
def test_nothing_that_is_read_later_is_taken_out(path):
    """Names that a cell of the student's notebook reads are bound in it, as far as they were in the series."""
    bound = set().union(*(names_of(source)[0] for source in code_of(STUDENT[path])))
    of_series = set().union(*(names_of(source)[0] for source in code_of(READ[path])))
    for source in code_of(STUDENT[path]):
        assert not names_of(source)[1] & (of_series - bound), source


@every_notebook
def test_hints_stay_and_the_links_lead_somewhere(path):
    source = "\n".join(cell.source for cell in STUDENT[path].cells)
    assert sum(fold[1] == "Hint" for fold in FOLD.finditer(source)) == NUMBER[path]
    for cell in STUDENT[path].cells:
        if cell.cell_type == "markdown":
            assert broken_links(cell.source, path.parent) == []
            assert not [link for link in re.findall(r"\]\((\.\./[^)]*)\)", cell.source)], "one folder deeper"


@every_notebook
def test_nbgrader_finds_its_marks(path):
    """Two marked cells an exercise, the second worth as many points as its heading has dots."""
    for notebook in (STUDENT[path], TEACHER[path]):
        marked = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
        assert [tagged(cell, "exercise") for cell in marked] == [True, False] * NUMBER[path]
        marks = [cell.metadata.nbgrader for cell in marked]
        assert max(Counter(mark.grade_id for mark in marks).values(), default=1) == 1
        assert all(re.fullmatch(r"[\w-]+", mark.grade_id) and mark.schema_version == 3 for mark in marks)
        assert not [cell for cell in marked if cell.outputs or cell.execution_count]
        text = "\n".join(cell.source for cell in notebook.cells)
        dots = [len(found) for found in re.findall(r"^### Exercise .*?(●+)", text, re.MULTILINE)]
        assert [mark.points for mark in marks if mark.grade] == dots
        assert all(mark.locked == mark.grade != mark.solution and not mark.task for mark in marks)


def test_a_solution_goes_below_the_head_of_its_stub():
    stub = 'def f(x):\n    """One more."""\n    raise NotImplementedError'
    solution = '@torch.no_grad()\ndef f(x):\n    """Other words."""\n    y = x\n    return y + 1\n'
    cell = solved(stub, solution)
    body = "    ### BEGIN SOLUTION\n    y = x\n    return y + 1\n    ### END SOLUTION"
    assert cell == f'@torch.no_grad()\ndef f(x):\n    """One more."""\n{body}'
    assert unsolved(cell) == f"@torch.no_grad()\n{stub}"
    for other in ("def g(x):\n    return 1", "x = 1"):
        with pytest.raises(ValueError, match="one function of one name"):
            solved(stub, other)


def test_a_check_ends_in_its_points():
    assert graded("attempt(right, 'a', 'b')", 2).splitlines()[-1] == "graded(2, right, 'a', 'b')"
    assert graded("attempt(\n    right,\n    'a',\n)", 1).splitlines()[-3] == "graded(1, right,"
    for source in ("check(True, 'a')", "attempt(a, 'b', 'c')\nattempt(a, 'b', 'c')"):
        with pytest.raises(ValueError, match="calls `attempt` once"):
            graded(source, 1)


def test_points_for_what_was_attempted(capsys):
    def not_yet():
        raise NotImplementedError

    assert teaching.graded(3, lambda: True, "it works", "hint") == 3
    assert teaching.graded(3, not_yet, "it works", "hint") == 0
    assert capsys.readouterr().out == "✓ it works\n○ not attempted yet\n"
    with pytest.raises(AssertionError, match="hint"):
        teaching.graded(3, lambda: False, "it works", "hint")


def test_the_answer_to_a_prediction_is_a_place_to_write():
    folds = [f"<details><summary>{name}</summary>\n\n{text}\n\n</details>" for name, text in (("Answer", 42), ("Hint", "x"))]
    given = without_answers("\n\n".join(["Predict.", *folds]))
    assert given == f"Predict.\n\n*Your answer:*\n\n{folds[1]}"


def test_the_script_writes_both(tmp_path, monkeypatch):
    monkeypatch.setenv("MANU_BUILD", str(tmp_path))
    script = NOTEBOOKS[0].parent / "student.py"
    done = subprocess.run([sys.executable, script, "03"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [file.parent.name for file in sorted(tmp_path.rglob("03*.ipynb"))] == ["student", "teacher"]
