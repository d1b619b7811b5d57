"""What the scripts here print and write: the table of the benchmarks, kept in build/bench.csv.

The bounds of the benchmarks are ratios within one run, so that they hold on any machine, and each
is widened by :func:`spread`, what equal runs differ by on this machine at this time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from manu_utils.progress import print_what_can_be

BENCH = Path(__file__).resolve().parents[1] / "build" / "bench.csv"


def spread(*measured: Sequence[float]) -> float:
    """How far the best of equal runs is from the best of other equal runs, relative.

    Of several quantities it is the most. Each was measured at least twice. Its runs are dealt into
    two halves, as if half of them had been made, twice: what the two fastest (or smallest) differ
    by is what a ratio of two such quantities can be off by.
    """
    halves = [(min(runs[::2]), min(runs[1::2])) for runs in measured]
    return max(abs(one - other) / min(one, other) for one, other in halves)


def report(benchmark: str, rows: list[tuple[str, float, str]], checks: dict[str, bool]) -> int:
    """Prints (quantity, value, unit) rows and which bounds hold; replaces the rows in the CSV.

    Returns the exit status: 0 if every bound holds.
    """
    print_what_can_be()
    frame = pd.DataFrame(rows, columns=["quantity", "value", "unit"])
    frame.insert(0, "benchmark", benchmark)
    width = frame["quantity"].str.len().max()
    print(benchmark)
    for row in frame.itertuples():
        print(f"  {row.quantity:<{width}}  {row.value:9.3f} {row.unit}")
    signs = (
        ("✓", "✗") if (sys.stdout.encoding or "").lower().startswith("utf") else ("ok", "FAILED")
    )
    for claim, holds in checks.items():
        print(f"  {signs[0] if holds else signs[1]} {claim}")
    if BENCH.exists():
        kept = pd.read_csv(BENCH)
        frame = pd.concat([kept[kept["benchmark"] != benchmark], frame])
    BENCH.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(BENCH, index=False)
    return 0 if all(checks.values()) else 1
