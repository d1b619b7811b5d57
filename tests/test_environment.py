"""pyproject.toml, requirements.txt, environment.yml and the address agree; the wheel stands alone."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def direct():
    extras = PROJECT["optional-dependencies"].values()
    requirements = [Requirement(text) for group in (PROJECT["dependencies"], *extras) for text in group]
    return [r for r in requirements if canonicalize_name(r.name) != canonicalize_name(PROJECT["name"])]


def test_requirements_are_exact_and_name_no_build():
    for pin in pins():
        assert re.fullmatch(r"==[\d.]+(?:\.?(?:post|rc|a|b)\d+)?", str(pin.specifier)), pin
    names = [canonicalize_name(pin.name) for pin in pins()]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("requirement", direct(), ids=lambda requirement: requirement.name)
def test_each_dependency_has_a_lower_bound_and_a_tested_version(requirement):
    assert [clause.operator for clause in requirement.specifier] == [">="]
    tested = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins()}
    assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)])


def test_conda_environment_points_at_the_same_lists():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    python, pip, by_pip = environment["dependencies"]
    assert pip == "pip"
    assert python.startswith("python=3.12")
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.12")
    assert by_pip == {"pip": ["-c requirements.txt", "-e .[dev]"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert '-c requirements.txt -e ".[dev]"' in makefile


def test_tested_versions_exist_for_both_pythons():
    """numpy 2.5 and scipy 1.18 need Python 3.12; the pins have to install on 3.11 as well."""
    tested = {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins()}
    assert tested["numpy"] < Version("2.5")
    assert tested["scipy"] < Version("1.18")


def public_address():
    setup = (ROOT / "notebooks" / "setup_cell.py").read_text(encoding="utf-8")
    return re.search(r'^REPOSITORY = "(https://github\.com/[\w.-]+/[\w.-]+)"$', setup, re.MULTILINE)[1]


def test_public_address_is_the_same_everywhere():
    name = public_address().removeprefix("https://github.com/")
    assert PROJECT["urls"]["Repository"] == public_address()
    texts = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        texts[path.name] = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        badge = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/{path.name}"
        assert badge in texts[path.name], f"{path.name}: its Colab badge must open {badge}"
    for where, text in texts.items():
        for found in re.findall(r"research\.google\.com/github/([\w.-]+/[\w.-]+)", text):
            assert found == name, where
        for found in re.findall(r"nbviewer\.org/github/([\w.-]+/[\w.-]+)", text):
            assert found == name, where
        assert f"git clone {public_address()}" in text or where != "README.md"


def test_repository_command_rewrites_every_form(tmp_path):
    """A fork runs `make repository URL=...` once; links to other repositories stay."""
    for file in ("setup_cell.py", "repository.py"):
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        shutil.copy(ROOT / "notebooks" / file, tmp_path / "notebooks" / file)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    old, new = public_address(), "https://github.com/somebody/else"
    name = old.removeprefix("https://github.com/")
    colab = "https://colab.research.google.com/github"
    readme = f"git clone {old} · [badge]({colab}/{name}/blob/main/x) · {old}-other"
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    markdown = nbformat.v4.new_markdown_cell(f"[code]({old}/tree/main)")
    notebook = nbformat.v4.new_notebook(cells=[markdown, nbformat.v4.new_code_cell("SCALE = 'old'")])
    nbformat.write(notebook, tmp_path / "notebooks" / "00_x.ipynb")
    command = [sys.executable, str(tmp_path / "notebooks" / "repository.py"), f"{new}.git"]
    subprocess.run(command, check=True, capture_output=True)
    written = nbformat.read(tmp_path / "notebooks" / "00_x.ipynb", as_version=4)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (
        f"git clone {new} · [badge]({colab}/somebody/else/blob/main/x) · {old}-other"
    )
    assert written.cells[0].source == f"[code]({new}/tree/main)"
    assert f'REPOSITORY = "{new}"' in written.cells[1].source
    assert new in (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    assert old not in (tmp_path / "notebooks" / "setup_cell.py").read_text(encoding="utf-8")


def run_setup_cell(folder, before="", **environment):
    """Runs the setup cell as a notebook in `folder` would and returns where manu_utils comes from."""
    setup = (ROOT / "notebooks" / "setup_cell.py").read_text(encoding="utf-8")
    code = f"{before}\n{setup}\nimport manu_utils; print(Path(manu_utils.__file__).parents[1])"
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MANU_DATA")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def bare_clone(tmp_path):
    clone = tmp_path / "clone"
    for folder in ("manu_utils", "data", "notebooks/deeper"):
        (clone / folder).mkdir(parents=True)
    (clone / "manu_utils" / "__init__.py").touch()
    return clone


@pytest.mark.parametrize("folder", [".", "notebooks", "notebooks/deeper"])
def test_setup_cell_finds_the_clone_around_it(bare_clone, folder):
    assert run_setup_cell(bare_clone / folder) == bare_clone


def test_setup_cell_uses_an_installed_package_elsewhere(bare_clone, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run_setup_cell(tmp_path / "empty", PYTHONPATH=str(bare_clone)) == bare_clone


def test_setup_cell_clones_where_there_is_nothing(bare_clone, tmp_path):
    """git and the installer are stand-ins: both have to be called, and the clone has to be used."""
    empty, tools = tmp_path / "empty", tmp_path / "tools"
    empty.mkdir()
    tools.mkdir()
    (bare_clone / "notebooks" / "install_missing.py").write_text("open('installed', 'w')", encoding="utf-8")
    git = tools / "git"
    script = f'[ "$4" = "{public_address()}" ] && cp -r "{bare_clone}" "$5"'
    git.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    git.chmod(0o755)
    hide = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    hide += f"sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]"
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    for _ in range(2):  # the second run finds the clone of the first
        assert run_setup_cell(empty, hide, PATH=path) == empty / "manu"
    assert (empty / "installed").exists()


def test_wheel_builds_and_imports_without_the_notebooks(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "manu_utils", source / "manu_utils", ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"manu_utils"}
    shipped = {name for name in names if name.endswith(".py")}
    assert shipped == {path.relative_to(ROOT).as_posix() for path in (ROOT / "manu_utils").rglob("*.py")}
    code = "import manu_utils; print(manu_utils.__file__); print(manu_utils.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")})  # fmt: skip
    assert done.returncode == 0, done.stderr
    where, version = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path / "installed")
    assert version == PROJECT["version"]
