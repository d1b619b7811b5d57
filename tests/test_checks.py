"""What check and exercise cells print and raise."""

import os
import subprocess
import sys

import pytest

from manu_utils.checks import attempt, check


def test_check_prints_the_claim(capsys):
    check(True, "two is even")
    assert capsys.readouterr().out == "✓ two is even\n"


def test_check_fails_with_claim_and_hint(capsys):
    with pytest.raises(AssertionError, match="^✗ three is even. look at the remainder$"):
        check(False, "three is even", "look at the remainder")
    with pytest.raises(AssertionError, match="^✗ three is even$"):
        check(False, "three is even")
    assert capsys.readouterr().out == ""


def test_attempt_waits_for_the_reader(capsys):
    def stub():
        raise NotImplementedError

    attempt(stub, "it is right", "think again")
    assert capsys.readouterr().out == "○ not attempted yet\n"


@pytest.mark.parametrize("right", [True, 1])
def test_attempt_praises(capsys, right):
    attempt(lambda: right, "it is right", "think again")
    assert capsys.readouterr().out == "✓ it is right\n"


@pytest.mark.parametrize("wrong", [False, None, 0])
def test_attempt_gives_the_hint(wrong):
    with pytest.raises(AssertionError, match="^✗ it is right. think again$"):
        attempt(lambda: wrong, "it is right", "think again")


def test_attempt_shows_other_errors():
    def broken():
        raise KeyError("z")

    with pytest.raises(KeyError):
        attempt(broken, "it is right", "think again")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_that_prints_few_characters(encoding):
    code = "from manu_utils.checks import check; check(True, 'α holds')"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "ok \\u03b1 holds\n", done.stderr
