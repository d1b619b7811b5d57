"""The benchmarks: what their bounds are widened by, what they print, and that the released loop is transcribed as it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import bench_scoring
import report
from bench_keeping import CHUNK, NAMES, RELEASED_BATCH, keep_everything, released_loop
from report import spread

BENCHMARKS = Path(report.__file__).parent


def test_spread_is_what_the_best_of_two_halves_differ_by():
    assert spread([2.0, 2.0, 9.0]) == 0
    assert spread([2.0, 3.0, 2.5, 2.2]) == pytest.approx(0.1)
    assert spread([2.2, 2.0], [1.0, 1.5]) == pytest.approx(0.5)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("holds", [True, False])
def test_the_report_ends_with_the_bounds(tmp_path, encoding, holds):
    code = (
        "import sys, pathlib, report; report.BENCH = pathlib.Path(sys.argv[1]) / 'bench.csv'\n"
        f"sys.exit(report.report('speed', [('α', 1.5, 'x')], {{'it holds': {holds}}}))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)], cwd=BENCHMARKS, capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    sign = {True: ("✓", "ok"), False: ("✗", "FAILED")}[holds][encoding != "utf-8"]
    assert done.stdout.decode(encoding).splitlines()[-1] == f"  {sign} it holds", done.stderr
    assert done.returncode == (not holds) and (tmp_path / "bench.csv").exists()


@pytest.mark.parametrize("modality", ["multimodal", "text"])
def test_the_released_loop_reduces_what_its_pass_is_for(tiny_model, questions, modality, monkeypatch):
    """With equally long batches its mean |z| is that of everything, pooled over the layers of a kind; whatever the chunks."""
    model, processor = tiny_model
    asked = questions["forget"][modality][:1] * (2 * RELEASED_BATCH)
    everything = keep_everything(model, processor, asked)
    found = [released_loop(model, processor, asked)]
    monkeypatch.setattr("bench_keeping.CHUNK", 1)
    found.append(released_loop(model, processor, asked))
    tower = "language" if modality == "text" else "vision"
    kinds = {number for of, number, _ in everything if of == tower}
    for statistics in found:
        assert set(statistics) == {(tower, number, name) for number in kinds for name in range(NAMES)}
        for (_, number, _), values in statistics.items():
            layers = [z for (of, kind, _), z in everything.items() if (of, kind) == (tower, number)]
            assert_close(values[0], torch.stack([z[0] for z in layers]).mean(0))
    assert CHUNK == 10


@pytest.mark.parametrize("modality", ["multimodal", "text"])
@pytest.mark.parametrize("name", ["encoding", "bare_forward", "bare_shared", "scoring"])
def test_what_scoring_is_held_against_runs(tiny_model, questions, modality, name):
    """They call what the package shares between passes, and are timed by hand alone."""
    getattr(bench_scoring, name)(*tiny_model, questions["forget"][modality][:3])
