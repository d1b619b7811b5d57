"""Executes the notebooks headless: `python notebooks/run_all.py [--write-back] [names ...]`.

Each runs in a fresh kernel of this Python, `--jobs` at a time. Executed copies go to
build/notebooks, or below MANU_BUILD if that names a folder; the notebooks themselves write figures
and the leaderboard there too. A notebook that fails is named with the cell, the error and the
command that repeats it alone. `--write-back` also stores the outputs in notebooks/, without
anything that differs between two runs of the same code. `--times 2` runs all cells again in the
same kernel: a cell that a reader runs once more must work.
"""

import argparse
import asyncio
import base64
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from manu_utils.paths import whole

NOTEBOOKS = Path(__file__).absolute().parent
CELL_SECONDS = 600
QUIET = {  # offline, and no progress bars in stored outputs
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}
# Figures are outputs, whatever the shell says.
INLINE = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
PORTABLE = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")  # a repetition needs them as well
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
IN_WORDS = re.compile(
    r"<details><summary>The figure in words</summary>\s*(.+?)\s*</details>", re.DOTALL
)
WIDGET = "application/vnd.jupyter.widget-view+json"
MARKS = {
    "started": ("▶", ">"),
    "done": ("✓", "ok"),
    "failed": ("✗", "FAILED"),
}  # and where these cannot be printed


# ----------------------------------------------------------------------------------- what is stored


def shrink(picture: str) -> str:
    """A PNG in base64 with a palette of 64 colours: figures look the same at a quarter of the size.

    The palette is spread over all colours, so that a rare one, such as that of a thin line, stays
    what it is; and each of its colours is the commonest of those that it stands for, so that areas
    stay what they are.
    """
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    small = image.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette, places = small.getpalette(), np.asarray(small).ravel()
    codes = np.asarray(image).reshape(-1, 3) @ (1 << 16, 1 << 8, 1)
    for place in np.unique(places):
        values, counts = np.unique(codes[places == place], return_counts=True)
        palette[3 * place : 3 * place + 3] = int(values[counts.argmax()]).to_bytes(3, "big")
    small.putpalette(palette)
    small.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def compact(html: str) -> str:
    """A table of pandas in a third of the bytes: without its style sheet and indentation, a line a
    row. Jupyter has styles of its own for tables; nbval compares them as if they were so.
    """
    if 'class="dataframe"' not in html:
        return html
    html = re.sub(r"<style scoped>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", "", html).replace("<tr", "\n<tr")


def clean(notebook) -> None:
    """Shrinks pictures and tables, gives pictures their text alternative, and removes what differs
    between runs.

    That is timings, widget state, the interpreter's name and version. The text alternative of a
    figure is the fold below it, where every reader finds it; in the output's metadata it is for
    programs that make pages of the notebook.
    """
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })  # fmt: skip
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            words = IN_WORDS.search(following.source) if following else None
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = {}
                output.get("data", {}).pop(WIDGET, None)  # without its state it could not be shown
                if "text/html" in output.get("data", {}):
                    output.data["text/html"] = compact(output.data["text/html"])
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = shrink(output.data["image/png"])
                    if words:
                        output.metadata = {"image/png": {"alt": words[1]}}


def stderr_of(notebook) -> str | None:
    """The first thing that the notebook wrote to stderr, if any."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                return output.text.strip()
    return None


def pictures_of(notebook) -> list[int]:
    """How many pictures each code cell shows."""
    return [
        sum(any(kind in output.get("data", {}) for kind in PICTURES) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def why_not_stored(notebook, pictures_before: list[int]) -> str | None:
    """What speaks against storing these outputs: a text on stderr, or fewer pictures in a cell."""
    if (noise := stderr_of(notebook)) is not None:
        return (
            "not written back, since it wrote to stderr: "
            f"{noise.splitlines()[-1] if noise else '(blank lines)'}"
        )
    for number, (before, now) in enumerate(
        zip(pictures_before, pictures_of(notebook), strict=True), start=1
    ):
        if now < before:
            return (
                f"not written back, since code cell {number} shows {now} pictures and the stored "
                f"one {before}; if that is meant, clear the stored outputs of this cell first"
            )
    return None


def write(notebook, path: Path) -> None:
    """Replaces the file as a whole: an interrupted run leaves the old one or the new one."""
    with whole(path) as part:
        part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")


# ------------------------------------------------------------------------------------------ running


async def execute(
    path: Path, build: Path, write_back: bool, threads: int, cell_seconds: int, times: int = 1
) -> str | None:
    """Runs one notebook, so many times in one kernel, and says what went wrong, if anything."""
    notebook = nbformat.read(path, as_version=4)
    pictures_before = pictures_of(notebook)
    environment = os.environ | QUIET | INLINE | {
        "MANU_BUILD": str(build),
        "OMP_NUM_THREADS": str(threads),
        "IPYTHONDIR": str(build / "ipython"),  # nobody's start-up files
    }  # fmt: skip
    # No folder of kernel specs: what is left is ipykernel in this very Python, whatever
    # JUPYTER_PATH offers.
    kernel = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
    )
    client = NotebookClient(
        notebook,
        km=kernel,
        extra_arguments=[
            "--IPKernelApp.log_level=ERROR"
        ],  # no note on its local transport in between
        timeout=cell_seconds,
        record_timing=False,
        coalesce_streams=True,
    )
    client.log.disabled = True  # what it would say is in the exceptions
    problem, number, again = None, 0, ""
    try:
        await client.async_start_new_kernel(cwd=str(path.parent), env=environment)
        await client.async_start_new_kernel_client()
        for time_ in range(times):
            number, again = 0, " run again" if time_ else ""
            for index, cell in enumerate(notebook.cells):
                number += cell.cell_type == "code"
                await client.async_execute_cell(
                    cell, index, execution_count=client.code_cells_executed + 1
                )
    except CellExecutionError as error:
        problem = f"code cell {number}{again}: {first_line(f'{error.ename}: {error.evalue}')}"
    except CellTimeoutError:
        longer = f"--cell-seconds {3 * cell_seconds}"
        problem = (
            f"code cell {number}{again}: not done after {cell_seconds} s; "
            f"a slow machine takes {longer}"
        )
    except DeadKernelError:
        kernel_died = f"the kernel died ({sys.executable})"
        problem = f"code cell {number}{again}: {kernel_died}; if memory ran out, try --jobs 1"
    except Exception as error:  # this notebook ends, not the others
        where = (
            f"code cell {number}{again}"
            if number
            else f"the kernel did not start ({sys.executable})"
        )
        problem = f"{where}: {first_line(f'{type(error).__name__}: {error}')}"
    finally:  # also when interrupted
        if client.kc is not None:
            client.kc.stop_channels()
        if kernel.has_kernel:
            await kernel.shutdown_kernel(now=True)
    clean(notebook)
    write(notebook, build / "notebooks" / path.name)
    if write_back and problem is None:
        problem = why_not_stored(notebook, pictures_before)
        if problem is None:
            write(notebook, path)
    return problem


def first_line(text: str) -> str:
    """The first line of an error, without colours and not endless."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return re.sub(r"\x1b\[[0-9;]*m", "", line).strip().rstrip(":")[:300]


def mark(kind: str) -> str:
    """A sign if stdout can print it, else a word in ASCII."""
    sign, word = MARKS[kind]
    try:
        sign.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return word
    return sign


def shown(path: str | Path) -> str:
    """A path as one would type it in the working directory."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def repeating(name: str, options: list[str]) -> str:
    """The command that runs one notebook again, from the working directory."""

    words = [shown(sys.executable), shown(__file__), name, *options]
    if os.name == "nt":
        return subprocess.list2cmdline(words)
    return " ".join(
        [f"{key}={shlex.quote(os.environ[key])}" for key in PORTABLE if key in os.environ]
        + [shlex.join(words)]
    )


async def run(paths: list[Path], build: Path, arguments, options: list[str]) -> int:
    """Runs the notebooks, some at a time, saying which starts and ends; returns how many failed."""
    free, done, failed = asyncio.Semaphore(arguments.jobs), 0, 0

    async def one(path: Path) -> None:
        nonlocal done, failed
        async with free:
            print(f"{mark('started')} {path.stem} started", flush=True)
            started = time.perf_counter()
            problem = await execute(
                path, build, arguments.write_back, arguments.threads, arguments.cell_seconds,
                arguments.times,
            )  # fmt: skip
            seconds = time.perf_counter() - started
        done += 1
        line = (
            f"{mark('failed' if problem else 'done')} {done}/{len(paths)}  "
            f"{path.stem:<32} {seconds:6.1f} s"
        )
        print(f"{line}  {problem}" if problem else line, flush=True)
        if problem:
            failed += 1
            print(f"      to repeat it alone: {repeating(path.stem, options)}", flush=True)

    if os.name != "nt":  # ended by another program, it ends its kernels too
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    # The last notebook is the longest: it goes first, so that the short ones fill the other core.
    await asyncio.gather(*(one(path) for path in reversed(paths)))
    return failed


def print_results(leaderboard: Path) -> None:
    """Accuracy in per cent, a table per task and metric: methods by sets and modalities."""
    import pandas as pd

    frame = pd.read_csv(leaderboard, keep_default_na=False)
    frame = frame[frame["metric"].isin(["accuracy", "likelihood"])]
    sets = [name for name in ("forget", "test", "retain", "celebrity") if name in set(frame["set"])]
    for (task, metric), rows in frame.groupby(["task", "metric"], sort=False):
        table = 100 * rows.pivot_table(
            "value", ["method", "alpha"], ["set", "modality"], sort=False
        )
        table = table.reindex(columns=sets, level="set")
        seeds = rows.groupby(["method", "alpha"])["seed"].nunique().max()
        print(f"\n{task}, {metric} in %, mean over the seeds (at most {seeds})")
        print(table.round(1).to_string(na_rep=""))


def named(names: list[str]) -> list[Path]:
    """The notebooks that are meant: all, or those whose names start so.

    A name is `06`, `06_against_baselines.ipynb` or a path.

    Raises:
        SystemExit: a name that fits none.
    """
    every = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    chosen = set()
    for name in names:
        start = re.split(r"[\\/]", name)[-1].removesuffix(".ipynb")
        fitting = [path for path in every if start and path.stem.startswith(start)]
        if not fitting:
            sys.exit(
                f"There is no notebook {name}; there are {', '.join(path.stem for path in every)}."
            )
        chosen.update(fitting)
    return [path for path in every if not names or path in chosen]


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main() -> int:
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # an error may hold any character, a terminal may print few
        stream.reconfigure(errors="backslashreplace")
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    parser = argparse.ArgumentParser(
        description="Executes the notebooks headless on the bundled miniature."
    )
    parser.add_argument("names", nargs="*", help="notebooks to run, e.g. 03 (default: all)")
    parser.add_argument("--write-back", action="store_true", help="store the outputs in notebooks/")
    parser.add_argument("--jobs", type=positive, default=min(2, cores), help="notebooks at a time")
    parser.add_argument(
        "--threads", type=positive, help="of each notebook (default: the cores, shared out)"
    )
    parser.add_argument(
        "--cell-seconds", type=positive, default=CELL_SECONDS, help="limit of a cell"
    )
    again = "run all cells so many times in one kernel; not with --write-back"
    parser.add_argument("--times", type=positive, default=1, help=again)
    arguments = parser.parse_args()
    if arguments.times > 1 and arguments.write_back:
        parser.error("--write-back stores what one run gives; leave --times out")

    options = ["--write-back"] if arguments.write_back else []
    if arguments.threads is not None:
        options += ["--threads", str(arguments.threads)]
    if arguments.cell_seconds != CELL_SECONDS:
        options += ["--cell-seconds", str(arguments.cell_seconds)]
    if arguments.times > 1:
        options += ["--times", str(arguments.times)]
    arguments.threads = arguments.threads or max(1, cores // arguments.jobs)
    paths = named(arguments.names)
    build = Path(os.environ.get("MANU_BUILD") or NOTEBOOKS.parent / "build").absolute()
    try:
        for folder in ("notebooks", "figures", "ipython"):
            (build / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(
            f"{build} cannot be written ({error.strerror}); set MANU_BUILD to a folder that can."
        )
    leaderboard = build / "leaderboard.csv"
    if not arguments.names:
        leaderboard.unlink(missing_ok=True)  # the table printed below is from this run

    started = time.perf_counter()
    try:  # this kind of loop is the one that Jupyter's sockets need on Windows too
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            failed = runner.run(run(paths, build, arguments, options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(
            "Interrupted; the kernels are ended, and nothing of the unfinished notebooks is stored."
        )
        return 130
    print(
        f"{len(paths) - failed} of {len(paths)} notebooks ran in "
        f"{time.perf_counter() - started:.0f} s"
    )

    if leaderboard.exists():
        print_results(leaderboard)
    print("\nWhere to look:")
    places = {
        "executed notebooks": "notebooks",
        "figures": "figures",
        "all numbers": leaderboard.name,
    }
    for what, name in places.items():
        if (build / name).exists():
            print(f"  {what:<20} {shown(build / name)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
