"""The rooms of the package, in order: what may import what, and that no circle hides inside a function."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "manu_utils"
# Each imports from those before it only. Modules beside the packages, then the packages.
ORDER = (
    "paths", "checks", "progress", "processes", "benchmark", "models", "unlearning", "evaluation", "auditing",
    "teaching", "plotting", "miniature",
)  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path):
    """(line, module of this package as in :func:`name_of`, names, inside a function) of every import of our own."""
    here = name_of(path).split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                module = [*parts, alias.name] if (PACKAGE.joinpath(*parts, f"{alias.name}.py")).is_file() else parts
                yield node.lineno, ".".join(module), alias.name, id(node) in inside


def module_of(name):
    """The file behind a name: a module, or a package's list."""
    file = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
    return file if name and file.is_file() else PACKAGE.joinpath(*name.split("."), "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_from_rooms_above_it(path):
    own = name_of(path).split(".")[0]
    if own == "__init__":
        return
    for line, module, _, _ in imports_of(path):
        room = module.split(".")[0]
        assert room == own or ORDER.index(room) < ORDER.index(own), f"line {line} imports {module}"


def test_the_picture_of_the_rooms_names_every_module():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = text.split("    experiments/")[0]
    for room in ORDER:
        if not (folder := PACKAGE / room).is_dir():
            assert room in picture
            continue
        lines = re.search(rf"^    {room}/.*\n(?:     .*\n)*", picture, re.M)[0]
        modules = {path.stem for path in folder.glob("[!_]*.py")}
        named = set(re.findall(r"[a-z_]+", lines))
        assert room == "plotting" or modules <= named, f"{room}: {modules - named}"


def test_no_module_is_reached_from_itself():
    arrows = {path: {module_of(module) for _, module, _, _ in imports_of(path)} for path in MODULES}
    typing_only = {
        (path, module_of(module))
        for path in MODULES
        for lines in [set(type_checking_lines(path))]
        for line, module, _, _ in imports_of(path)
        if line in lines
    }
    done, open_ = set(), []

    def visit(path):
        if path in open_:
            pytest.fail(" -> ".join(name_of(one) for one in [*open_[open_.index(path) :], path]))
        if path in done:
            return
        open_.append(path)
        for other in sorted(arrows[path]):
            if (path, other) not in typing_only and other != path:
                visit(other)
        done.add(open_.pop())

    for path in MODULES:
        if path.name != "__init__.py":  # a list of names is imported by nobody inside
            visit(path)


def type_checking_lines(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {node.lineno for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_import_hides_in_a_function_and_no_private_name_leaves_its_module(path):
    """But for the commands of the miniature, each of which needs packages that others do not."""
    for line, module, name, inside in imports_of(path):
        assert not inside or name_of(path) == "miniature.__main__", f"line {line} imports {module} inside a function"
        assert not name.startswith("_") or name.startswith("__"), f"line {line} takes {name} out of {module}"


def test_the_lists_of_the_packages_are_whole():
    import importlib

    for package in ("benchmark", "models", "unlearning", "evaluation", "auditing", "teaching"):
        module = importlib.import_module(f"manu_utils.{package}")
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize(
    "path", [path for path in MODULES if ">>> " in path.read_text(encoding="utf-8")], ids=name_of
)
def test_the_examples_in_docstrings_are_right(path):
    import doctest
    import importlib

    failed, tried = doctest.testmod(importlib.import_module(f"manu_utils.{name_of(path)}"))
    assert tried and not failed
