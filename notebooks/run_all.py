"""Executes the notebooks headless: `python notebooks/run_all.py [--write-back] [names ...]`.

Each runs in a fresh kernel. Executed copies go to build/notebooks; the notebooks themselves write figures
and the leaderboard into the folder that the environment variable MANU_BUILD names, here build/. `--write-
back` also stores the outputs in notebooks/, without anything that differs between two runs of the same
code.
"""

import argparse
import base64
import io
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parent
BUILD = NOTEBOOKS.parent / "build"
CELL_SECONDS = 600
QUIET = {  # offline, and no progress bars in stored outputs
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}


def shrink(picture: str) -> str:
    """A PNG in base64 with a palette of 64 colours: figures look the same at a quarter of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def clean(notebook) -> None:
    """Shrinks pictures and removes what differs between runs: timings, widget state, the interpreter's name and version."""
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })  # fmt: skip
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = {}
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = shrink(output.data["image/png"])


def stderr_of(notebook) -> str | None:
    """The first thing that the notebook wrote to stderr, if any."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                return output.text.strip()
    return None


def execute(path: Path, build: Path, write_back: bool, threads: int) -> tuple[float, str | None]:
    """Runs one notebook; returns its seconds and what went wrong, if anything."""
    os.environ.update(QUIET, MANU_BUILD=str(build), OMP_NUM_THREADS=str(threads))
    notebook = nbformat.read(path, as_version=4)
    started, problem = time.perf_counter(), None
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no note on its local transport in between
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        problem = f"{error.ename}: {error.evalue}".splitlines()[0]
    except Exception as error:  # a dead kernel or a timeout ends this notebook, not the others
        problem = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    clean(notebook)
    nbformat.write(notebook, build / "notebooks" / path.name)
    if write_back and problem is None:
        noise = stderr_of(notebook)
        if noise is None:
            nbformat.write(notebook, path)
        else:
            problem = f"not written back, since it wrote to stderr: {noise.splitlines()[-1]}"
    return seconds, problem


def print_results(leaderboard: Path) -> None:
    """Accuracy in per cent, one table per task and metric: lines are methods, columns sets by modality."""
    import pandas as pd

    frame = pd.read_csv(leaderboard, keep_default_na=False)
    frame = frame[frame["metric"].isin(["accuracy", "likelihood"])]
    sets = [name for name in ("forget", "test", "retain", "celebrity") if name in set(frame["set"])]
    for (task, metric), rows in frame.groupby(["task", "metric"], sort=False):
        table = 100 * rows.pivot_table("value", ["method", "alpha"], ["set", "modality"], sort=False)
        table = table.reindex(columns=sets, level="set")
        seeds = rows.groupby(["method", "alpha"])["seed"].nunique().max()
        print(f"\n{task}, {metric} in %, mean over the seeds (at most {seeds})")
        print(table.round(1).to_string(na_rep=""))


def main() -> int:
    parser = argparse.ArgumentParser(description="Executes the notebooks headless on the bundled miniature.")
    parser.add_argument("names", nargs="*", help="notebooks to run, e.g. 03 (default: all)")
    parser.add_argument("--write-back", action="store_true", help="store the outputs in notebooks/")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="notebooks at a time")
    arguments = parser.parse_args()

    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if arguments.names:
        paths = [path for path in paths if path.name.startswith(tuple(arguments.names))]
    if not paths:
        print("No notebook of that name in", NOTEBOOKS.name)
        return 1
    for folder in ("notebooks", "figures"):
        (BUILD / folder).mkdir(parents=True, exist_ok=True)
    leaderboard = BUILD / "leaderboard.csv"
    if not arguments.names:
        leaderboard.unlink(missing_ok=True)  # the table printed below is from this run

    started, failed = time.perf_counter(), 0
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        # The last notebook is the longest: it goes first, so that the short ones fill the other core.
        runs = {pool.submit(execute, path, BUILD, arguments.write_back, threads): path for path in reversed(paths)}
        for done, run in enumerate(as_completed(runs), start=1):
            seconds, problem = run.result()
            failed += problem is not None
            mark = "✗" if problem else "✓"
            line = f"{mark} {done}/{len(paths)}  {runs[run].stem:<32} {seconds:6.1f} s  {problem or ''}"
            print(line.rstrip(), flush=True)
    print(f"{len(paths) - failed} of {len(paths)} notebooks ran in {time.perf_counter() - started:.0f} s")

    if leaderboard.exists():
        print_results(leaderboard)
    print("\nWhere to look:")
    places = {"executed notebooks": "notebooks", "figures": "figures", "all numbers": leaderboard.name}
    for what, path in places.items():
        if (BUILD / path).exists():
            print(f"  {what:<20} build/{path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
