"""What check cells and exercises of the notebooks call."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable


class WrongAnswer(AssertionError):
    """What :func:`attempt` raises. Jupyter shows the hint alone and, of an error in the reader's
    code, the lines of the notebook that led to it; plain Python shows the whole traceback.
    """

    def _render_traceback_(self) -> list[str]:  # the name is IPython's
        cause = self.__cause__
        frames = traceback.extract_tb(cause.__traceback__) if cause else []
        own = (frame for frame in frames if re.search("ipykernel_|<ipython-input", frame.filename))
        return [*(f"line {f.lineno}, in {f.name}: {f.line}" for f in own), str(self)]


def check(holds: bool, claim: str, hint: str = "") -> None:
    """Print ``✓ claim`` if it holds.

    Raises:
        AssertionError: ``✗ claim`` and the hint, if it does not.
    """
    if not holds:
        raise AssertionError(_refusal(claim, hint))
    _say("✓", "ok", claim)


def check_for(scale: str) -> Callable:
    """:func:`check` for a notebook whose claims were measured on the miniature: at another
    ``SCALE`` a claim that does not hold is printed, and the notebook goes on.
    """
    if scale == "tiny":
        return check

    def told(holds: bool, claim: str, hint: str = "") -> None:
        if holds:
            check(holds, claim)
        else:
            _say("✗", "no", f"{claim} (so it was on the miniature)")

    return told


def attempt(exercise: Callable[[], bool], claim: str, hint: str) -> None:
    """Check an exercise; a NotImplementedError prints ``○ not attempted yet``: all cells run.

    Args:
        exercise: runs the reader's function and says whether the result is right.

    Raises:
        WrongAnswer: an AssertionError with the hint, if the attempt is wrong or raises an error,
            which it names.
    """
    try:
        right = bool(exercise())
    except NotImplementedError:
        _say("○", "--", "not attempted yet")
        return
    except Exception as error:
        # whatever it is, the reader is told what was asked for
        what = f"{type(error).__name__}: {error}".strip().removesuffix(".").removesuffix(":")
        if isinstance(error, TypeError) and "NoneType" in what:
            what += " (is a return missing?)"
        raise WrongAnswer(f"✗ {claim}: the attempt raised {what}. {_sentence(hint)}") from error
    if not right:
        raise WrongAnswer(_refusal(claim, hint))
    check(right, claim)


def graded(points: int, exercise: Callable[[], bool], claim: str, hint: str) -> int:
    """Check an exercise as :func:`attempt` does, and return its points, 0 if it was not attempted.

    For cells that nbgrader grades: it takes a number below the cell as the points, an error as
    none.

    Raises:
        AssertionError: with the hint, if the attempt is wrong.
    """
    ran = []

    def once() -> bool:
        right = exercise()
        ran.append(True)
        return right

    attempt(once, claim, hint)
    return points if ran else 0


def _refusal(claim: str, hint: str) -> str:
    return f"✗ {claim}" + (f". {_sentence(hint)}" if hint else "")


def _sentence(hint: str) -> str:
    """The hint with a capital letter, unless it begins with a name of the code or a formula."""
    return hint[:1].upper() + hint[1:] if re.match(r"[a-z]+(['’]s)?[\s,:]", hint) else hint


def _say(sign: str, plain: str, text: str) -> None:
    """Print a line; where stdout has few characters (cp1252, ASCII) with another sign."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sign.encode(encoding)
    except UnicodeEncodeError:
        sign = plain
    print(f"{sign} {text}".encode(encoding, errors="backslashreplace").decode(encoding))
