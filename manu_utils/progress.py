"""Progress bars that can be switched off from outside, and output that no terminal refuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def bar(*arguments, shown: bool = True, **options):
    """A tqdm bar, if wanted and not ``TQDM_DISABLE=1`` (which tqdm's notebook bars ignore)."""
    from tqdm.auto import tqdm

    off = os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
    return tqdm(*arguments, disable=off or not shown, **options)


@contextmanager
def no_dataset_bars() -> Iterator[None]:
    """Switch the bars of ``datasets`` off for work that takes no time."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def print_what_can_be() -> None:
    """Have stdout write `?` for what its encoding lacks (cp1252, ASCII) instead of failing."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
