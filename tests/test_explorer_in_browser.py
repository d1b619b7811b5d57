"""The explorer in JupyterLab in a browser: a knob is moved, and the picture changes. By hand: needs playwright and Chromium
(`pip install playwright`; a browser on the PATH, or one of playwright's own), and is left out where they are not."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 600  # a slow machine under load
IDLE = "() => [...document.querySelectorAll('.jp-StatusBar-TextItem')].some(item => /Idle/.test(item.textContent))"
CELL = """
import sys

sys.path.insert(0, {root!r})
import torch
from manu_utils import plotting
from manu_utils.benchmark import MODALITIES, load_benchmark
from manu_utils.models import find_neurons, load_model
from manu_utils.teaching.explorer import measure_grid
from manu_utils.unlearning import select_neurons

given = load_model("tiny")
benchmark = load_benchmark("tiny")
mlps = find_neurons(given[0])
values = torch.rand(sum(mlp.size for mlp in mlps), generator=torch.Generator().manual_seed(0))
selections = {{("random", alpha): select_neurons(values, mlps, alpha) for alpha in (5.0, 20.0, 60.0)}}
panels = {{(s, m): benchmark.training_questions(s, m)[:3] for s in ("forget", "retain") for m in MODALITIES}}
points = measure_grid(*given, selections, panels, progress=False)
people = {{"somebody": [q for m in MODALITIES for q in panels["forget", m]]}}
plotting.Explorer(*given, selections, points, people)
"""


@pytest.fixture(scope="module")
def page():
    """A page of headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("jupyterlab")
    pytest.importorskip("ipywidgets")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(1000 * SECONDS)
        yield page
        browser.close()


@pytest.fixture
def address(tmp_path):
    """JupyterLab with one notebook, on a port that is free."""
    source = CELL.format(root=str(ROOT))
    cells = [nbformat.v4.new_code_cell(source.strip())]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "x.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=t", f"--ServerApp.root_dir={tmp_path}"]
    config = {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_DATA_DIR": str(tmp_path / "data")}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | config, **quiet) as server:
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
            while True:
                try:
                    urllib.request.urlopen(f"{url}/api?token=t").close()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < end, "JupyterLab did not start"
                    time.sleep(0.5)
            yield f"{url}/lab/tree/x.ipynb?token=t"
        finally:
            server.terminate()


def test_a_moved_knob_changes_the_picture(page, address):
    page.goto(address)
    page.locator(".jp-Notebook .jp-CodeCell").first.click()
    page.wait_for_function(IDLE)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.locator(".widget-image, [data-mime-type='application/vnd.jupyter.error']").first.wait_for()
    picture = page.locator(".jp-OutputArea .widget-image").first
    assert picture.count(), page.locator(".jp-OutputArea-output").all_inner_texts()
    before = picture.get_attribute("src")
    page.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("([old]) => document.querySelector('.widget-image').src !== old", arg=[before])
    assert picture.get_attribute("src").startswith("blob:")
