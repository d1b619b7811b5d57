"""Student and teacher versions of the notebooks: `python notebooks/student.py [names ...]`.

build/student/ is what a class gets: an exercise is its stub, and what follows it (solution,
discussion, answers to predictions) is out; hints stay. build/teacher/ is the same with the solution
in each exercise cell, between nbgrader's marks. Both carry nbgrader's metadata, so a notebook of
build/teacher/ can be the `source` of an assignment and one of build/student/ its `release`.
Exercise and check cells are known by their tags, the points by the dots in the heading.
"""

import argparse
import ast
import copy
import os
import re
import sys
from pathlib import Path

import nbformat
from run_all import NOTEBOOKS, named, shown, write

FOLD = re.compile(r"<details>\s*<summary>\s*([^<]*?)\s*</summary>(.*?)</details>", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
HEADING = re.compile(r"^#{1,3} ", re.MULTILINE)
RATING = re.compile(r"^### Exercise .*?(●+)", re.MULTILINE)
ATTEMPT = re.compile(r"^attempt\(\s*", re.MULTILINE)
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
PLACE = "*Your answer:*"
# Beginnings of the summaries of folds that give an answer away.
ANSWERS = ("Answer", "Solution", "What you should see")
# What nbgrader wants of each marked cell, version 3 of its metadata.
MARK = {"schema_version": 3, "task": False}
WRITTEN = MARK | {"grade": False, "solution": True, "locked": False}
GRADED = MARK | {"grade": True, "solution": False, "locked": True}


def tagged(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def solved(stub: str, solution: str) -> str:
    """The exercise cell with its solution: the stub's head, then the body between nbgrader's marks.

    Args:
        stub: the definition of one function with a docstring, whose body raises
            NotImplementedError.
        solution: another definition of it; its decorators are kept, its docstring is not.

    Raises:
        ValueError: if the two do not define one function of the same name.
    """
    wanted, found = (ast.parse(source).body for source in (stub, solution))
    if not len(wanted) == len(found) == 1 or getattr(wanted[0], "name", "") != getattr(
        found[0], "name", None
    ):
        raise ValueError(
            "stub and solution define two things: give both one function of one name.\n"
            f"{stub}\n{solution}"
        )
    lines, body = solution.splitlines(), found[0].body
    first = body[1] if ast.get_docstring(found[0]) is not None else body[0]
    decorators = lines[: found[0].lineno - 1]
    head = stub.splitlines()[: wanted[0].body[-1].lineno - 1]
    return "\n".join([*decorators, *head, f"    {BEGIN}", *lines[first.lineno - 1 :], f"    {END}"])


def unsolved(source: str) -> str:
    """An exercise cell with the marked solution taken out, as the student finds it."""
    return re.sub(rf"{BEGIN}.*?{END}", "raise NotImplementedError", source, flags=re.DOTALL)


def graded(check: str, points: int) -> str:
    """The check of an exercise as a cell that ends in the points, which nbgrader reads there.

    They are 0 if nothing was attempted.

    Raises:
        ValueError: if the check does not call `attempt` once.
    """
    source, calls = ATTEMPT.subn(f"graded({points}, ", check)
    if calls != 1:
        raise ValueError(
            f"the check of an exercise calls `attempt` once, not {calls} times:\n{check}"
        )
    return f"from manu_utils.teaching import graded\n\n\n{source}"


def without_answers(text: str) -> str:
    """Markdown with a place to write for the answer to a prediction; hints and others stay."""
    return FOLD.sub(lambda fold: PLACE if fold[1].startswith(ANSWERS) else fold[0], text)


def hints(text: str) -> str:
    return "\n\n".join(fold[0] for fold in FOLD.finditer(text) if fold[1].startswith("Hint"))


def teacher_version(notebook, name: str):
    """A copy with the solution in each exercise cell, and without what gives it away elsewhere.

    Between the check of an exercise and the next heading the hints stay, and text and code do not:
    they discuss the solution.

    Args:
        notebook: a notebook whose exercises are tagged.
        name: of the notebook, the beginning of nbgrader's `grade_id`.
    """
    result = copy.deepcopy(notebook)
    cells, kept = result.cells, []
    number, points, discussing = 0, 0, False
    for index, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            if discussing and not HEADING.search(cell.source):
                cell.source = hints(cell.source)
            elif discussing:
                at = HEADING.search(cell.source).start()
                parts = hints(cell.source[:at]), without_answers(cell.source[at:])
                cell.source, discussing = "\n\n".join(part for part in parts if part), False
            else:
                cell.source = without_answers(cell.source)
            for rating in RATING.finditer(cell.source):
                points = len(rating[1])
            if not cell.source:
                continue
        elif tagged(cell, "exercise"):
            number += 1
            after = notebook.cells[index + 1 :]
            texts = (c.source for c in after if c.cell_type == "markdown")
            folds = (
                fold for text in texts for fold in FOLD.finditer(text) if fold[1] == "Solution"
            )
            cell.source = solved(cell.source, CODE.search(next(folds)[2])[1])
            cell.metadata["nbgrader"] = WRITTEN | {"grade_id": f"{name}-{number}"}
        elif tagged(cell, "exercise-check"):
            cell.source, discussing = graded(cell.source, points), True
            marks = {"grade_id": f"{name}-{number}-check", "points": points}
            cell.metadata["nbgrader"] = GRADED | marks
        elif discussing:
            continue
        if "nbgrader" in cell.metadata:
            cell.outputs, cell.execution_count = [], None
        kept.append(cell)
    result.cells = kept
    return result


def student_version(notebook, name: str):
    """The teacher's version without the solutions; see :func:`teacher_version`."""
    result = teacher_version(notebook, name)
    for cell in result.cells:
        if tagged(cell, "exercise"):
            cell.source = unsolved(cell.source)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Writes student and teacher versions of the notebooks to build/."
    )
    parser.add_argument("names", nargs="*", help="notebooks, e.g. 03 (default: all)")
    build = Path(os.environ.get("MANU_BUILD") or NOTEBOOKS.parent / "build").absolute()
    paths = named(parser.parse_args().names)
    for folder, version in (("student", student_version), ("teacher", teacher_version)):
        (build / folder).mkdir(parents=True, exist_ok=True)
        for path in paths:
            notebook = version(nbformat.read(path, as_version=4), path.stem)
            nbformat.validate(notebook)
            write(notebook, build / folder / path.name)
        print(f"{len(paths)} notebooks in {shown(build / folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
