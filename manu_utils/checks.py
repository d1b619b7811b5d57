"""What the check cells and the exercises of the notebooks call: one line when right, a hint when not."""

from __future__ import annotations

from collections.abc import Callable


def check(holds: bool, claim: str, hint: str = "") -> None:
    """Print ``✓ claim`` if it holds.

    Raises:
        AssertionError: ``✗ claim`` and the hint, if it does not.
    """
    if not holds:
        raise AssertionError(f"✗ {claim}" + (f". {hint}" if hint else ""))
    print(f"✓ {claim}")


def attempt(exercise: Callable[[], bool], claim: str, hint: str) -> None:
    """Check an exercise; a stub that still raises NotImplementedError prints ``○ not attempted yet``, so that all cells run.

    Args:
        exercise: runs the reader's function and says whether the result is right.

    Raises:
        AssertionError: with the hint, if the attempt is wrong.
    """
    try:
        right = exercise()
    except NotImplementedError:
        print("○ not attempted yet")
        return
    check(bool(right), claim, hint)
