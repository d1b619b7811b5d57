"""The headless run: what it stores, what it refuses to store, and what the installer may not touch."""

import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with three notebooks after `run_all.py --write-back`, and what that printed."""
    root = tmp_path_factory.mktemp("clone")
    sources = {
        "00_good": "import os\n\nopen(os.environ['MANU_BUILD'] + '/figures/x.png', 'w').close()\n40 + 2",
        "01_noisy": "import sys\n\nprint('a warning', file=sys.stderr)",
        "02_broken": "1 / 0",
    }
    (root / "notebooks").mkdir()
    shutil.copy(SCRIPTS / "run_all.py", root / "notebooks")
    for name, source in sources.items():
        cell = nbformat.v4.new_code_cell(source, metadata={"execution": {"iopub.status.idle": "then"}})
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    command = [sys.executable, str(root / "notebooks" / "run_all.py"), "--write-back"]
    return root, subprocess.run(command, capture_output=True, text=True)


def test_one_line_per_notebook_and_a_failing_status(run):
    _, done = run
    marks = sorted(line[0] for line in done.stdout.splitlines() if line[:1] in "✓✗" and line)
    assert marks == ["✓", "✗", "✗"]
    assert "wrote to stderr: a warning" in done.stdout
    assert "ZeroDivisionError" in done.stdout
    assert done.returncode == 1


def test_good_notebook_is_stored_without_volatile_metadata(run):
    root, _ = run
    stored = nbformat.read(root / "notebooks" / "00_good.ipynb", as_version=4)
    assert stored.cells[0].execution_count == 1
    assert stored.cells[0].outputs[0].data["text/plain"] == "42"
    assert stored.cells[0].metadata == {}
    assert set(stored.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", ["01_noisy", "02_broken"])
def test_noisy_and_broken_notebooks_are_not_stored(run, name):
    root, _ = run
    assert nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4).cells[0].outputs == []


def test_copies_and_figures_are_in_build(run):
    root, _ = run
    assert (root / "build" / "figures" / "x.png").exists()
    assert len(list((root / "build" / "notebooks").iterdir())) == 3


def test_installer_keeps_heavy_packages_as_they_are():
    pins = runpy.run_path(str(SCRIPTS / "install_missing.py"))["constraints"]()
    assert {f"{name}=={version(name)}" for name in ("torch", "numpy", "pandas")} <= set(pins)
