"""pyproject.toml, requirements.txt, environment.yml and the address agree; the wheel stands alone."""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

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


def constants():
    setup = (ROOT / "notebooks" / "setup_cell.py").read_text(encoding="utf-8")
    line = r'^REPOSITORY, RELEASE = "(https://github\.com/[\w.-]+/[\w.-]+)", "(v[\w.]+)"$'
    return re.search(line, setup, re.MULTILINE).groups()


def test_public_address_and_release_are_the_same_everywhere():
    """The badge of a notebook opens the release that its setup cell installs."""
    address, release = constants()
    name = address.removeprefix("https://github.com/")
    assert PROJECT["urls"]["Repository"] == address
    assert release == f"v{PROJECT['version']}"
    texts = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        texts[path.name] = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        badge = f"https://colab.research.google.com/github/{name}/blob/{release}/notebooks/{path.name}"
        assert badge in texts[path.name], f"{path.name}: its Colab badge must open {badge}: `make repository`"
    for where, text in texts.items():
        for found in re.findall(r"research\.google\.com/github/([\w.-]+/[\w.-]+/blob/[^/]+)", text):
            assert found == f"{name}/blob/{release}", f"{where}: `make repository`"
        for found in re.findall(r"nbviewer\.org/github/([\w.-]+/[\w.-]+)", text):
            assert found == name, where
        assert f"git clone {address}" in text or where != "README.md"


def test_repository_command_rewrites_every_form(tmp_path):
    """A fork runs `make repository URL=...` once; links to other repositories stay. A new version goes everywhere, too."""
    for file in ("notebooks/setup_cell.py", "notebooks/repository.py", "pyproject.toml", "manu_utils/__init__.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    project = tmp_path / "pyproject.toml"
    version = f'version = "{PROJECT["version"]}"'
    project.write_text(project.read_text(encoding="utf-8").replace(version, 'version = "1.20.3"'), encoding="utf-8")
    (old, _), new = constants(), "https://github.com/somebody/else"
    name = old.removeprefix("https://github.com/")
    colab = "https://colab.research.google.com/github"
    badge = "[badge]({}/{}/blob/{}/notebooks/x)"
    elsewhere = f"{old}-other · {badge.format(colab, 'a/b', 'main')}"
    readme = f"git clone {old} · {badge.format(colab, name, 'main')} · {elsewhere}"
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    markdown = nbformat.v4.new_markdown_cell(f"[code]({old}/tree/main) {badge.format(colab, name, 'v0.0.1')}")
    notebook = nbformat.v4.new_notebook(cells=[markdown, nbformat.v4.new_code_cell("SCALE = 'old'")])
    nbformat.write(notebook, tmp_path / "notebooks" / "00_x.ipynb")
    command = [sys.executable, str(tmp_path / "notebooks" / "repository.py"), f"{new}.git"]
    for said in (f"install v1.20.3 of {new}: own that name, and push the tag", ""):  # nothing to do the second time
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert said in done.stdout and bool(said) == bool(done.stdout)
    written = nbformat.read(tmp_path / "notebooks" / "00_x.ipynb", as_version=4)
    pinned = badge.format(colab, "somebody/else", "v1.20.3")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == f"git clone {new} · {pinned} · {elsewhere}"
    assert written.cells[0].source == f"[code]({new}/tree/main) {pinned}"
    assert f'REPOSITORY, RELEASE = "{new}", "v1.20.3"' in written.cells[1].source
    assert new in project.read_text(encoding="utf-8")
    assert '__version__ = "1.20.3"' in (tmp_path / "manu_utils" / "__init__.py").read_text(encoding="utf-8")
    assert old not in (tmp_path / "notebooks" / "setup_cell.py").read_text(encoding="utf-8")


HIDE = (  # the package that these tests run with
    "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    f"sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]"
)


def run_setup_cell(folder, before="", **environment):
    """Runs the setup cell as a notebook in `folder` would: where manu_utils comes from then, and the finished process."""
    setup = (ROOT / "notebooks" / "setup_cell.py").read_text(encoding="utf-8")
    code = f"{before}\n{setup}\nimport manu_utils; print(pathlib.Path(manu_utils.__file__).parents[1])"
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MANU_DATA")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True)
    return Path(done.stdout.strip()) if done.returncode == 0 else None, done


@pytest.fixture
def bare_clone(tmp_path):
    """As much of a clone as the setup cell looks at; its package says nothing of what it needs."""
    clone = tmp_path / "clone"
    for folder in ("manu_utils", "data/tiny_llava", "notebooks/deeper"):
        (clone / folder).mkdir(parents=True)
    (clone / "manu_utils" / "__init__.py").touch()
    project = f'[project]\nname = "manu_utils"\nversion = "{PROJECT["version"]}"\ndependencies = []\n'
    (clone / "pyproject.toml").write_text(project, encoding="utf-8")
    shutil.copy(ROOT / "notebooks" / "install_missing.py", clone / "notebooks")
    return clone


@pytest.fixture
def elsewhere(tmp_path):
    """A function: the setup cell in an empty folder, with stand-ins for git (a line of sh, or none) and for pip."""
    folder, tools = tmp_path / "a notebook, [alone]", tmp_path / "tools"
    folder.mkdir()
    (tools / "pip").mkdir(parents=True)
    (tools / "pip" / "__init__.py").touch()
    for command in ("cp", "mkdir"):
        (tools / command).symlink_to(shutil.which(command))

    def run(git=None, pip="open('installed', 'a').write('x')", before=HIDE):
        (tools / "pip" / "__main__.py").write_text(pip, encoding="utf-8")
        if git is not None:
            (tools / "git").write_text(f"#!/bin/sh\n{git}\n", encoding="utf-8")
            (tools / "git").chmod(0o755)
        home, done = run_setup_cell(folder, before, PATH=str(tools), PYTHONPATH=str(tools))
        return home, done, folder

    return run


posix = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")


@pytest.mark.parametrize("folder", [".", "notebooks", "notebooks/deeper"])
def test_setup_cell_finds_the_clone_around_it(bare_clone, folder):
    assert run_setup_cell(bare_clone / folder)[0] == bare_clone


def test_setup_cell_uses_an_installed_package_elsewhere(bare_clone, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run_setup_cell(tmp_path / "empty", PYTHONPATH=str(bare_clone))[0] == bare_clone


@posix
def test_setup_cell_clones_the_release_where_there_is_nothing(bare_clone, elsewhere):
    """git and pip are stand-ins: both have to be called, and what was cloned has to be used, the second time as well."""
    address, release = constants()
    git = f'echo "$@" >> git.txt; [ "$1" = clone ] || exit 1; for last; do :; done; cp -r "{bare_clone}" "$last"'
    for _ in range(2):
        home, done, folder = elsewhere(git)
        assert home == folder / f"manu-{release}", done.stderr
        assert sorted(path.name for path in folder.iterdir()) == ["git.txt", "installed", f"manu-{release}"]
    (said,) = (folder / "git.txt").read_text().splitlines()
    assert f" -b {release} {address} " in said
    assert (folder / "installed").read_text() == "x"


@posix
@pytest.mark.parametrize(
    ("git", "fix"), [(None, "install git"), ("echo 'fatal: could not resolve host' >&2; exit 128", "connect to the network")]
)
def test_without_git_or_network_the_setup_cell_says_what_to_do(elsewhere, git, fix):
    home, done, folder = elsewhere(git)
    address, release = constants()
    assert home is None
    assert done.stderr.splitlines()[-1] == (
        f"RuntimeError: {address} {release} could not be cloned: {fix}, or unpack it here as manu."
    )
    assert list(folder.iterdir()) == []


@posix
def test_what_was_cut_short_is_done_again(bare_clone, elsewhere):
    """A clone without the end of its files, packages that did not install, and a folder of the name that is none of ours."""
    _, release = constants()
    clone = f'for last; do :; done; cp -r "{bare_clone}" "$last"'
    home, done, folder = elsewhere('for last; do :; done; mkdir -p "$last/.git"; kill -9 $$')
    assert home is None and "could not be cloned" in done.stderr and list(folder.iterdir()) == []
    home, done, _ = elsewhere(clone, pip="raise SystemExit('no network')")
    assert home is None and list(folder.iterdir()) == []
    assert done.stderr.splitlines()[-1].startswith("What manu_utils needs could not be installed")
    for name in ("manu", f"manu-{release}"):  # left behind by whatever
        (folder / name / "manu_utils").mkdir(parents=True)
        (folder / name / "mine.txt").touch()
    home, done, _ = elsewhere(clone)
    assert home == folder / f"manu-{release}", done.stderr
    assert (folder / f"manu-{release}.old" / "mine.txt").exists() and (folder / "manu" / "mine.txt").exists()


def test_setup_cell_draws_inline_whatever_the_shell_says(bare_clone):
    before = "import os, atexit; atexit.register(lambda: print(__import__('matplotlib').get_backend()))"
    _, done = run_setup_cell(bare_clone, before, MPLBACKEND="Agg")
    assert "inline" in done.stdout


def test_what_is_begun_first_is_there():
    first = runpy.run_path(str(ROOT / "conftest.py"))["LONGEST"]
    assert set(first) <= {path.stem for folder in ("notebooks", "tests") for path in (ROOT / folder).iterdir()}
    assert len(set(first)) == len(first)


def test_a_long_run_says_which_files_took_long():
    """Tests and cells of notebooks alike, setup included; whatever else pytest counts has no duration."""
    lines = []
    reports = [SimpleNamespace(nodeid=f"tests/test_{n}.py::test[a::b]", duration=float(n)) for n in range(12)]
    again = SimpleNamespace(nodeid="notebooks/03_x.ipynb::Cell 0", duration=20.4)
    stats = {"": [again, *reports], "passed": [again], "warnings": [SimpleNamespace(nodeid="tests/test_1.py")]}
    summary = runpy.run_path(str(ROOT / "conftest.py"))["pytest_terminal_summary"]
    summary(SimpleNamespace(stats=stats, write_line=lines.append))
    assert len(lines) == 1 and lines[0].startswith("seconds: 03_x 41, test_11 11, test_10 10")
    summary(SimpleNamespace(stats={"passed": reports[:3]}, write_line=lines.append))
    assert len(lines) == 1  # of few files it is seen without


def test_tests_and_notebooks_are_one_queue():
    """With one leg after the other a core waits at the end of each."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = re.findall(r"^test(?:-portable)?: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert [recipe.count("BOTH_CORES") for recipe in recipes] == [1, 2]
    assert all(recipe.splitlines()[0].endswith("$(BOTH_CORES) tests notebooks") for recipe in recipes)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86")
def test_the_portable_leg_lowers_the_instruction_set():
    """torch ignores a variable that it does not know, and `make test-portable` would test nothing."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    settings = dict(word.split("=") for word in re.search(r"^PORTABLE := (.+)$", makefile, re.MULTILINE)[1].split())
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True)
    assert done.stdout.strip() in ("AVX2", "DEFAULT")


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
    assert "manu_utils/plotting/manu.mplstyle" in names
    shipped = {name for name in names if name.endswith(".py")}
    assert shipped == {path.relative_to(ROOT).as_posix() for path in (ROOT / "manu_utils").rglob("*.py")}
    (tmp_path / "installed" / "data").mkdir()  # somebody else's
    code = "import manu_utils; print(manu_utils.__file__); print(manu_utils.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")})  # fmt: skip
    assert done.returncode == 0, done.stderr
    where, version = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path / "installed")
    assert version == PROJECT["version"]
    code = "from manu_utils.paths import data_dir; data_dir()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")})  # fmt: skip
    assert "there is no bundled data beside" in done.stderr and "set MANU_DATA to the data folder of a clone" in done.stderr
