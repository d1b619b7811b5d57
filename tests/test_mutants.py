"""The list of one-line changes fits the sources, and a change is made, judged, kept and reported as it should."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

import mutants

CORE = {
    "unlearning.importance", "unlearning.scores", "unlearning.pruning", "unlearning.attribution", "unlearning.coverage",
    "unlearning.evidence", "unlearning.rewriting", "unlearning.baselines", "unlearning.activations", "models.training",
    "models.encoding", "models.asking", "models.neurons", "models.image_positions", "models.prefix_tree", "evaluation.tables",
    "evaluation.answers_file", "evaluation.official", "evaluation.robust", "benchmark.questions",
}  # fmt: skip


@pytest.mark.parametrize("module", sorted({mutation.module for mutation in mutants.MUTATIONS}))
def test_every_change_can_be_made(module):
    """Whoever rewrites one of these lines changes the list with it: speed/mutants.py."""
    of = [mutation for mutation in mutants.MUTATIONS if mutation.module == module]
    source = mutants.source_of(of[0]).read_text(encoding="utf-8")
    assert {mutation.name: source.count(mutation.old) for mutation in of} == {mutation.name: 1 for mutation in of}
    # it parses and differs
    assert [mutation.name for mutation in of if mutants.mutated(mutation, source) is None] == []


def test_the_list_covers_the_core_modules_with_tests_that_exist():
    names = Counter(mutation.name for mutation in mutants.MUTATIONS)
    assert max(names.values()) == 1 and len(names) >= 70
    assert {mutation.module for mutation in mutants.MUTATIONS} >= CORE
    files = {name for mutation in mutants.MUTATIONS for name in mutation.tests} | {*mutants.CHEAP, *mutants.HELPERS}
    assert [name for name in files if not (mutants.ROOT / "tests" / name).is_file()] == []
    assert set(mutants.EQUIVALENT) <= set(names)


def test_what_cannot_be_applied():
    def change(old, new):
        return mutants.mutated(mutants.Mutation("m", old, new, "wrong", ()), "a = 1  # one\nb = a + 1\n")

    assert change("a + 1", "a - 1") == "a = 1  # one\nb = a - 1\n"
    assert change("c", "d") is None  # not there
    assert change("1", "2") is None  # more than once
    assert change("one", "two") is None  # a comment
    assert change("a + 1", "a +") is None  # no Python


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A project of one module whose tests see one of two wrong lines; and a folder for a copy of it."""
    root = tmp_path / "project"
    for name in ("manu_utils", "tests", "experiments", "speed", "examples", "data", "notebooks"):
        (root / name).mkdir(parents=True)
    helpers = ("tests/conftest.py", "tests/tiny_models.py", "tests/doors.py")
    for name in ("pyproject.toml", "conftest.py", *helpers, "manu_utils/__init__.py"):
        (root / name).write_text("", encoding="utf-8")
    (root / "manu_utils" / "sums.py").write_text("def add(a, b):\n    return a + b\n\n\ndef twice(a):\n    return 2 * a\n")
    (root / "tests" / "test_sums.py").write_text("def test_add():\n    assert True\n")
    monkeypatch.setattr(mutants, "ROOT", root)
    monkeypatch.setattr(mutants, "RESULTS", root / "build" / "mutants.json")
    monkeypatch.setattr(mutants, "CHEAP", ())
    changes = ("a + b", "a - b"), ("2 * a", "a")
    return [mutants.Mutation("sums", *change, "wrong", ("test_sums.py",)) for change in changes], tmp_path / "copy"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_change_is_made_in_the_copy_and_taken_back(small, monkeypatch):
    """Without a child of pytest's own: the process only looks at its copy."""
    changes, folder = small
    folder.mkdir()
    copy = mutants.copy_project(folder)

    def child(copy, names):
        seen = (copy / "manu_utils" / "sums.py").read_text(encoding="utf-8")
        (copy / "log.txt").write_text(f"FAILED tests/{names[0]}::test_add - assert 1\n", encoding="utf-8")
        os._exit(int("a - b" in seen))

    monkeypatch.setattr(mutants, "_child", child)
    work = [(change.old, change, change.tests) for change in changes] + [("unchanged", None, ("test_sums.py",))]
    found = {label: (passed, by) for label, passed, by, _ in mutants.run_all(work, [copy])}
    assert found == {"a + b": (False, "test_sums.py::test_add"), "2 * a": (True, ""), "unchanged": (True, "")}
    for place in (copy, mutants.ROOT):
        assert "a + b" in (place / "manu_utils" / "sums.py").read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_what_does_not_end_is_stopped(small, monkeypatch):
    changes, folder = small
    folder.mkdir()
    monkeypatch.setattr(mutants, "SECONDS", 0.2)

    def child(copy, names):
        os.setsid()
        time.sleep(600)

    monkeypatch.setattr(mutants, "_child", child)
    (_, passed, by, _), = mutants.run_all([("x", changes[0], ("test_sums.py",))], [mutants.copy_project(folder)])
    assert (passed, by) == (False, "does not end")


def test_a_result_is_kept_as_long_as_what_it_depends_on(small):
    change = small[0][0]
    module, test = mutants.ROOT / "manu_utils" / "sums.py", mutants.ROOT / "tests" / "test_sums.py"
    killed, survived = mutants.near(change, "test_sums.py::test_add[1]"), mutants.far(change)
    test.write_text(test.read_text() + "\n\ndef test_more():\n    assert True\n")
    assert mutants.near(change, "test_sums.py::test_add[1]") == killed  # its test is the same
    assert mutants.far(change) != survived  # the new test might see it
    test.write_text(test.read_text().replace("assert True", "assert 1", 1))
    assert mutants.near(change, "test_sums.py::test_add[1]") != killed
    killed = mutants.near(change, "test_sums.py::test_more")
    module.write_text(module.read_text() + "\n")
    assert mutants.near(change, "test_sums.py::test_more") != killed
    assert mutants.near(small[0][1], "test_sums.py::test_more") != mutants.near(change, "test_sums.py::test_more")


def test_the_report_counts_and_lists_what_was_not_killed(small, capsys):
    one, other = small[0]
    states = {one: ("killed", "test_sums.py::test_add", 30.0), other: ("survived", "", 90.0)}
    assert mutants.report([one, other], states) == 1
    printed = capsys.readouterr().out
    assert "survived: sums: 2 * a -> a  (wrong)" in printed and "killed: " not in printed
    assert "1 of 2 killed, 50.0 %; 2 minutes of CPU in all" in printed
    assert [line.split() for line in printed.splitlines() if line.startswith("sums ")] == [["sums", "2", "1", "1", "0"]]
    assert mutants.report([one], {one: states[one]}) == 0


def test_files_stay_where_they_are(small):
    """The working tree is only read."""
    folder = small[1]
    folder.mkdir()
    before = {path: path.read_bytes() for path in mutants.ROOT.rglob("*") if path.is_file()}
    copy = mutants.copy_project(folder)
    assert Path(copy / "data").resolve() == (mutants.ROOT / "data").resolve()
    assert {path: path.read_bytes() for path in mutants.ROOT.rglob("*") if path.is_file()} == before
