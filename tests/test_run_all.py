"""The headless run: what it says, what it stores and refuses to store, and what the installer may not touch."""

import base64
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
import pandas as pd
import PIL.Image
import pytest
from nbval.plugin import get_sanitize_patterns

TESTS = Path(__file__).resolve().parent
SCRIPTS = TESTS.parent / "notebooks"
FIGURE = "import matplotlib.pyplot as plt\n\nplt.plot([1, 2])\nplt.show()"
NOTEBOOKS = {
    "00_good": [
        "import os\n\nopen(os.environ['MANU_BUILD'] + '/figures/x.png', 'w').close()\n40 + 2"
    ],
    "01_noisy": ["import sys\n\nprint('a warning', file=sys.stderr)"],
    "02_broken": ["1", "raise ValueError('π is not →\\na second line')", "3"],
    "04_dead": ["import os", "os._exit(3)"],
    "05_figure": [FIGURE],
    "06_lost": ["print('no figure any more')"],
    "07_python": ["import sys\n\nprint(sys.executable)"],
}


def clone_of(root, notebooks):
    """A folder that holds run_all.py and some notebooks."""
    folder = root / "notebooks"
    folder.mkdir(parents=True)
    shutil.copy(SCRIPTS / "run_all.py", folder)
    for name, sources in notebooks.items():
        cells = [
            nbformat.v4.new_code_cell(source, metadata={"execution": {"iopub.status.idle": "then"}})
            for source in sources
        ]
        cells.insert(0, nbformat.v4.new_markdown_cell("# Title"))
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}})
        if name == "06_lost":
            buffer = io.BytesIO()
            PIL.Image.new("RGB", (2, 2)).save(buffer, "PNG")
            data = {
                "image/png": base64.b64encode(buffer.getvalue()).decode(),
                "text/plain": "<Figure size 2x2>",
            }
            cells[1].outputs = [nbformat.v4.new_output("display_data", data)]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return root


def start(root, *options, **environment):
    """`run_all.py` in a folder, as a process; the environment is that of this one without what the tests are about.

    What is started in the background, and so these tests, may ignore SIGINT; it does not.
    """
    ours = {"MANU_BUILD", "MPLBACKEND", "JUPYTER_PATH", "PYTHONIOENCODING", "PYTHONUTF8"}
    inherited = {key: value for key, value in os.environ.items() if key not in ours}
    command = [sys.executable, str(Path("notebooks") / "run_all.py"), *options]
    environment = {"PYTHONIOENCODING": "utf-8"} | environment
    return subprocess.Popen(
        command, cwd=root, env=inherited | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding=environment["PYTHONIOENCODING"], preexec_fn=None if os.name == "nt" else heed_interrupts,
    )  # fmt: skip


def heed_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process):
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def stored(root, name):
    return nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4).cells[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """That folder after `run_all.py --write-back` in a hostile environment, and what was printed."""
    root = clone_of(tmp_path_factory.mktemp("a [strange] folder ö"), NOTEBOOKS)
    kernel = root / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {
        "argv": [str(root / "no-such-python"), "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return root, finish(start(root, "--write-back", MPLBACKEND="Agg", JUPYTER_PATH=str(root)))


def test_a_line_when_a_notebook_starts_and_when_it_ends(run):
    _, done = run
    lines = done.stdout.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("▶")} == set(NOTEBOOKS)
    ended = {line.split()[2]: line[0] for line in lines if line[:1] in "✓✗" and line}
    assert ended == {
        name: "✓" if name in ("00_good", "05_figure", "07_python") else "✗" for name in NOTEBOOKS
    }
    assert lines.index("▶ 00_good started") < next(
        i for i, line in enumerate(lines) if "/7  00_good" in line
    )
    assert done.returncode == 1 and done.stderr == ""


def test_a_failure_names_cell_error_and_command(run):
    _, done = run
    said = {
        "01_noisy": "not written back, since it wrote to stderr: a warning",
        "02_broken": "code cell 2: ValueError: π is not →",
        "04_dead": f"code cell 2: the kernel died ({sys.executable})",
        "06_lost": "not written back, since code cell 1 shows 0 pictures and the stored one 1",
    }
    lines = done.stdout.splitlines()
    for name, text in said.items():
        (at,) = [i for i, line in enumerate(lines) if line.startswith("✗") and name in line]
        assert text in lines[at]
        assert (
            "to repeat it alone: " in lines[at + 1]
            and f"run_all.py {name} --write-back" in lines[at + 1]
        )
    assert "a second line" not in done.stdout


def test_a_cell_without_end_is_named_and_not_printed(tmp_path):
    cell = "\n".join(f"x = {n}" for n in range(12)) + "\nimport time; time.sleep(60)"
    done = finish(start(clone_of(tmp_path, {"00_slow": ["1", cell]}), "--cell-seconds", "2"))
    assert "code cell 2: not done after 2 s; a slow machine takes --cell-seconds 6\n" in done.stdout
    assert (
        "00_slow --cell-seconds 2\n" in done.stdout
        and "x = " not in done.stdout
        and done.returncode == 1
    )


def test_a_cell_that_cannot_be_run_again_is_named(tmp_path):
    grows = ["seen = globals().get('seen', 0) + 1", "assert seen == 1"]
    root = clone_of(tmp_path, {"00_good": ["n = 1", "n + 1"], "02_grows": grows})
    assert finish(start(root, "--times", "1")).returncode == 0
    twice = finish(start(root, "--times", "2"))
    assert "✓" in twice.stdout and twice.returncode == 1  # 00 works again, 02 does not
    assert "code cell 2 run again: AssertionError" in twice.stdout and "--times 2\n" in twice.stdout
    refused = finish(start(root, "--times", "2", "--write-back"))
    assert refused.returncode == 2 and "leave --times out" in refused.stderr


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_the_command_repeats_one_notebook(tmp_path):
    root = clone_of(tmp_path, {name: NOTEBOOKS[name] for name in ("00_good", "02_broken")})
    environment = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    first = finish(start(root, "02", "--threads", "1", **environment))
    (line,) = [line for line in first.stdout.splitlines() if "to repeat it alone: " in line]
    command = line.split("alone: ")[1]
    assert shlex.split(command)[:2] == [f"{key}={value}" for key, value in environment.items()]
    again = subprocess.run(
        command, shell=True, cwd=root, capture_output=True, text=True, encoding="utf-8"
    )
    assert again.returncode == 1 and command in again.stdout and "00_good" not in again.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_that_prints_few_characters(tmp_path, encoding):
    root = clone_of(tmp_path, {name: NOTEBOOKS[name] for name in ("00_good", "02_broken")})
    done = finish(start(root, PYTHONIOENCODING=encoding))
    assert done.stderr == "" and done.returncode == 1
    assert "> 00_good started" in done.stdout and "ok " in done.stdout
    assert r"FAILED 2/2  02_broken" in done.stdout or r"FAILED 1/2  02_broken" in done.stdout
    assert r"ValueError: \u03c0 is not \u2192" in done.stdout


def test_the_kernel_is_this_python_whatever_kernels_are_offered(run):
    root, _ = run
    assert stored(root, "07_python").outputs[0].text.strip() == sys.executable


def test_figures_are_stored_whatever_the_backend_of_the_shell(run):
    root, _ = run
    assert "image/png" in stored(root, "05_figure").outputs[0].data


def test_good_notebook_is_stored_without_volatile_metadata(run):
    root, _ = run
    notebook = nbformat.read(root / "notebooks" / "00_good.ipynb", as_version=4)
    assert notebook.cells[1].execution_count == 1
    assert notebook.cells[1].outputs[0].data["text/plain"] == "42"
    assert notebook.cells[1].metadata == {}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_a_stored_figure_has_its_text_alternative_and_its_rare_colours():
    picture = PIL.Image.effect_noise((200, 200), 60).convert("RGB")
    picture.paste((123, 63, 0), (0, 100, 200, 101))  # a thin line
    picture.paste((176, 176, 176), (0, 150, 200, 200))  # an area
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}

    def plotted():
        output = nbformat.v4.new_output("display_data", data, metadata={"image/png": {"width": 3}})
        return nbformat.v4.new_code_cell("plot()", outputs=[output])

    fold = "<details><summary>The figure in words</summary>\n\nA brown line.\n\n</details>\n\nMore."
    cells = [plotted(), nbformat.v4.new_markdown_cell(fold), plotted()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    runpy.run_path(str(SCRIPTS / "run_all.py"))["clean"](notebook)
    assert notebook.cells[0].outputs[0].metadata == {"image/png": {"alt": "A brown line."}}
    assert notebook.cells[2].outputs[0].metadata == {}
    stored = PIL.Image.open(io.BytesIO(base64.b64decode(notebook.cells[0].outputs[0].data["image/png"]))).convert("RGB")
    assert max(abs(one - other) for one, other in zip(stored.getpixel((50, 100)), (123, 63, 0), strict=True)) < 20
    assert stored.getpixel((50, 180)) == (176, 176, 176)


def test_a_stored_table_is_short_and_compares_as_what_pandas_makes():
    """Tables are most of what a notebook weighs beside its figures; strict nbval must take the short form for the long."""
    numbers = pd.DataFrame({("forget", "a b"): [1.0, 2.0], ("retain", "c"): [3.0, 4.0]}, index=["x", "y"]).rename_axis("name")
    long = numbers._repr_html_()
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("execute_result", {"text/html": long})])
    runpy.run_path(str(SCRIPTS / "run_all.py"))["clean"](nbformat.v4.new_notebook(cells=[cell]))
    short = cell.outputs[0].data["text/html"]
    assert len(short) < len(long) / 2
    assert [line[:3] for line in short.splitlines()] == ["<di", *5 * ["<tr"]]
    assert re.findall(r">([^<\n]+)<", short) == re.findall(r">([^<\n]+)<", long)  # every header and number
    for pattern, replacement in get_sanitize_patterns((TESTS / "nbval_sanitize.cfg").read_text(encoding="utf-8")):
        short, long = (re.sub(pattern, replacement, html) for html in (short, long))
    assert short == long


def test_a_widget_is_not_stored_but_the_picture_in_its_place_is():
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "image/png": picture}
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("display_data", view)])
    runpy.run_path(str(SCRIPTS / "run_all.py"))["clean"](nbformat.v4.new_notebook(cells=[cell]))
    assert list(cell.outputs[0].data) == ["image/png"]


def test_what_is_not_stored_stays_as_it_was(run):
    root, _ = run
    for name in ("01_noisy", "02_broken", "04_dead"):
        assert stored(root, name).outputs == []
    assert "image/png" in stored(root, "06_lost").outputs[0].data
    assert not list((root / "notebooks").glob(".*.part"))


def test_copies_and_figures_are_in_build(run):
    root, _ = run
    assert (root / "build" / "figures" / "x.png").exists()
    assert len(list((root / "build" / "notebooks").glob("*.ipynb"))) == len(NOTEBOOKS)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_it_ends_the_kernels(tmp_path, sent):
    source = "import os, time\n\nopen(os.environ['MANU_BUILD'] + f'/{os.getpid()}.pid', 'w').close()\ntime.sleep(600)"
    root = clone_of(tmp_path, {"00_first": [source], "01_second": [source]})
    before = {path: path.read_bytes() for path in (root / "notebooks").iterdir()}
    process = start(root, "--write-back")
    deadline = time.monotonic() + 120
    while len(kernels := list((root / "build").glob("*.pid"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(sent)
    done = finish(process)
    assert (
        done.returncode == 130
        and "Interrupted; the kernels are ended" in done.stdout
        and done.stderr == ""
    )
    for kernel in kernels:
        with pytest.raises(ProcessLookupError):
            os.kill(int(kernel.stem), 0)
    assert {
        path: path.read_bytes() for path in (root / "notebooks").iterdir() if path.is_file()
    } == before


def test_names_and_folders(tmp_path):
    """A name that fits none is an error, a path will do; what is written can go elsewhere."""
    root = clone_of(
        tmp_path / "clone", {name: NOTEBOOKS[name] for name in ("00_good", "07_python")}
    )
    done = finish(start(root, "07", "7"))
    assert (
        done.returncode == 1
        and done.stderr == "There is no notebook 7; there are 00_good, 07_python.\n"
    )
    (tmp_path / "file").touch()
    done = finish(start(root, MANU_BUILD=str(tmp_path / "file" / "build")))
    assert (
        done.returncode == 1
        and "build cannot be written (Not a directory); set MANU_BUILD" in done.stderr
    )
    done = finish(
        start(
            root,
            os.path.join("notebooks", "07_python.ipynb"),
            MANU_BUILD=str(tmp_path / "else where"),
        )
    )
    assert done.returncode == 0 and "1 of 1 notebooks" in done.stdout
    assert (tmp_path / "else where" / "notebooks" / "07_python.ipynb").exists() and not (
        root / "build"
    ).exists()


def test_installer_keeps_heavy_packages_as_they_are():
    pins = runpy.run_path(str(SCRIPTS / "install_missing.py"))["constraints"]()
    assert {f"{name}=={version(name)}" for name in ("torch", "numpy", "pandas")} <= set(pins)
