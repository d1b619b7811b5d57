"""The last cell of a notebook is for taking along: it runs alone in an empty notebook, and disturbs nothing in its own."""

import nbformat
import pytest
from test_exercises import NOTEBOOKS
from test_hygiene import imports_of, names_of

TAKE = "## Take it with you"


def last_cell(path):
    """The code cell below the heading, and all code cells before it; None where a notebook has no such heading."""
    cells = nbformat.read(path, as_version=4).cells
    heads = [i for i, cell in enumerate(cells) if cell.cell_type == "markdown" and TAKE in cell.source]
    if not heads:
        return None
    below = [cell.source for cell in cells[heads[0] :] if cell.cell_type == "code"]
    assert len(below) == 1, f"{path.stem}: one cell to take along, not {len(below)}"
    return below[0], [cell.source for cell in cells[: heads[0]] if cell.cell_type == "code"]


FOUND = {path: found for path in NOTEBOOKS if (found := last_cell(path))}
every_last_cell = pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)


def test_all_but_the_first_notebook_have_one():
    assert [path.stem.split("_")[0] for path in NOTEBOOKS if path not in FOUND] == ["00"]


@every_last_cell
def test_it_binds_no_name_of_the_notebook(path):
    cell, others = FOUND[path]
    mine, imported = names_of(cell)[0], imports_of(cell)
    for source in others:
        theirs = imports_of(source)
        again = [name for name in mine & names_of(source)[0] if name not in imported or imported[name] != theirs.get(name)]
        assert not again, f"{again} is bound in: {source}"


@every_last_cell
def test_it_runs_alone_in_an_empty_notebook(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(FOUND[path][0], f"{path.name}, to take along", "exec"), {"__name__": "__main__"})
    assert not list(tmp_path.iterdir()), "it leaves a file behind"
