"""What the long runs share: a table that grows unit by unit, a fingerprint, a line of progress.

A run that was killed goes on after the last unit that it finished; two may share the work.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock
from pandas.api.types import is_numeric_dtype
from safetensors.torch import load_model, save_model
from torch import nn

from manu_utils.models import precision
from manu_utils.paths import whole
from manu_utils.progress import print_what_can_be
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.moments import collect_moments
from manu_utils.unlearning.pruning import prune
from manu_utils.unlearning.rewriting import rewrite_neurons
from manu_utils.unlearning.weakening import weaken

ROOT = Path(__file__).resolve().parents[1]
RESULTS, BUILD = ROOT / "data" / "results", ROOT / "build"
QUIET = {"progress": False}
# Columns and values that name the rows of a unit, and what measures it: rows without these columns.
Unit = tuple[dict, Callable[[], list[dict]]]


def sweep(
    place: Path,
    columns: Sequence[str],
    units: Sequence[Unit],
    *,
    arrange: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table,
    float_format: str | None = None,
) -> pd.DataFrame:
    """Measure every unit that is not yet in the table ``place``, and write the table after each.

    Rows that another process wrote meanwhile under the same key are replaced. A unit without rows
    is left to a later run.

    Args:
        arrange: gives the table as it is to be written, such as sorted.

    Returns:
        The whole table.
    """
    for number, (key, measure) in enumerate(units, 1):
        if of_key(read_table(place, columns), key).any():
            continue
        started, rows = time.process_time(), measure()
        if not rows:
            continue
        new = pd.DataFrame([key | row for row in rows], columns=columns)
        with locked():
            old = read_table(place, columns)
            old = old[~of_key(old, key)]
            table = pd.concat([old, new], ignore_index=True) if len(old) else new
            write_table(arrange(table), place, float_format)
        names = ", ".join(str(value) for value in key.values())
        say(started, f"{place.stem} {number}/{len(units)}: {names}")
    return read_table(place, columns)


def in_the_order_of(
    methods: Sequence[str], keys: Sequence[str], decimals: int = 4
) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """For ``arrange``: rounded, sorted by the key columns, methods in the order given and others
    behind them. So a table does not depend on what was measured first.
    """
    place = {method: number for number, method in enumerate(methods)}

    def by(column: pd.Series) -> pd.Series:
        if column.name != "method":
            return column
        return column.map(lambda method: place.get(method, len(place)))

    def arrange(table: pd.DataFrame) -> pd.DataFrame:
        present = [key for key in keys if key in table]
        return table.round(decimals).sort_values(present, key=by, kind="stable")

    return arrange


def of_key(table: pd.DataFrame, key: dict) -> pd.Series:
    """Which rows are of the unit of this key."""
    return (table[list(key)] == pd.Series(key)).all(axis=1)


def read_table(place: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table, its texts as texts; empty if there is none."""
    if not place.exists():
        return pd.DataFrame(columns=columns)
    if place.suffix == ".parquet":
        table = pd.read_parquet(place)
        return table.astype(dict.fromkeys(table.select_dtypes("category"), "str"))
    return pd.read_csv(place)


def write_table(table: pd.DataFrame, place: Path, float_format: str | None = None) -> None:
    """Write a table as its name says: as csv, or as parquet, where every text is kept once."""
    with whole(place) as part:
        if place.suffix == ".parquet":
            texts = [name for name in table if not is_numeric_dtype(table[name])]
            small = table.astype(dict.fromkeys(texts, "category"))
            small.to_parquet(part, index=False, compression="zstd")
            return
        table.to_csv(part, index=False, lineterminator="\n", float_format=float_format)


def kept(place: Path, model: nn.Module, train: Callable[[], object]) -> nn.Module:
    """The model with the weights of a file; where there is none, it is trained and kept there."""
    if place.exists():
        load_model(model, place)
    else:
        train()
        with whole(place) as part:
            save_model(model, str(part))
    return model.eval()


def locked() -> FileLock:
    """For a moment, no other run reads or writes; the lock is no result, so it is in build."""
    BUILD.mkdir(parents=True, exist_ok=True)
    return FileLock(BUILD / "sweep.lock")


def fingerprint(settings: str, *files: Path) -> str:
    """Names what results depend on: grids and recipe as text, and the bundled questions and files
    as they are.
    """
    digest = hashlib.sha256(settings.encode())
    for file in (*files, *sorted((ROOT / "data" / "mllmu_mini").rglob("*.parquet"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def models_fingerprint(settings: str, *names: str | Path) -> str:
    """The same for models, bundled ones by name and others by their whole path, and the
    strangers.
    """
    folder = ROOT / "data" / "tiny_llava"
    weights = (folder / name / "model.safetensors" for name in names)
    strangers = sorted((ROOT / "data" / "mllmu_mini_strangers").rglob("*.parquet"))
    return fingerprint(settings, *weights, *strangers)


def begin(state: str, about: Path, command: str, tables: Sequence[Path]) -> None:
    """Remove tables that are of another state than ``about`` says, and write this one there."""
    with locked():
        if about.exists() and json.loads(about.read_text(encoding="utf-8"))["state"] == state:
            return
        for table in tables:
            table.unlink(missing_ok=True)
        with whole(about) as part:
            text = json.dumps({"command": command, "state": state})
            part.write_text(text + "\n", encoding="utf-8")


def read_arguments(
    parser: argparse.ArgumentParser, given: Sequence[str] | None
) -> argparse.Namespace:
    """The arguments of a long run, with the two that all of them have. From now on models are read
    and trained in float32 on a GPU, too.
    """
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    if torch.cuda.is_available():
        precision.pick_dtype = lambda device: torch.float32
    return arguments


def say(started: float, text: str) -> None:
    """Print what was done since ``started``, a ``time.process_time()``: a busy machine takes
    longer.
    """
    print_what_can_be()
    print(f"{time.process_time() - started:7.1f} s  {text}", flush=True)


def strengths(
    evidence: Evidence, method: str, values: Sequence[float], seed: int = 0, choose=Evidence.choose
) -> Iterator[float]:
    """Each strength (α, or rounds of ``"rewrite"``) while the model is changed to it; at the end
    the model is as it was.
    """
    (model, processor), sets = evidence.given, evidence.sets
    if method != "rewrite":
        yield from in_turn(
            values, lambda alpha: prune(model, choose(evidence, method, alpha, seed=seed))
        )
        return
    moments = collect_moments(model, processor, sets["retain"], **QUIET)
    yield from rewritten(evidence.given, sets["forget"], moments, values)


def rewritten(given: tuple, forget: dict, moments, rounds: Sequence[int], **options):
    """Each number of rounds while (model, processor) has been rewritten by so many."""
    options |= {"on_top": True, **QUIET}
    yield from in_rounds(
        rounds,
        lambda before, until: rewrite_neurons(
            *given, forget, moments, rounds=until - before, **options
        ),
    )


def weakened(given: tuple, forget: dict, of_retain, rounds: Sequence[int], gamma, seed: int):
    """Each number of rounds while (model, processor) has been weakened by so many (KVW).

    Args:
        of_retain: the knowledge coefficients of the retain set.
    """

    def more(before: int, until: int) -> AbstractContextManager:
        options = {"gamma": gamma, "rounds": until - before, "seed": seed + before}
        return weaken(*given, forget, of_retain, on_top=True, **options, **QUIET)

    yield from in_rounds(rounds, more)


def in_turn(values: Sequence[float], change: Callable[[float], AbstractContextManager]):
    """Each value while the model is in the context ``change(value)``."""
    for value in values:
        with change(value):
            yield value


def in_rounds(
    rounds: Sequence[int], more: Callable[[int, int], AbstractContextManager]
) -> Iterator[int]:
    """Each number of rounds while the model has had so many; ``more(before, until)`` goes on from
    one number to the next. At the end the model is as it was.
    """
    with ExitStack() as undo:
        for before, until in zip((0, *rounds), rounds, strict=False):
            undo.enter_context(more(before, until))
            yield until


def at_steps(steps: Sequence[int], look: Callable[[int], None]) -> dict:
    """Options of training that call ``look(step)`` at these steps, 0 among them or not."""
    seen = iter(range(max(steps) + 1))

    def watch() -> dict:
        if (step := next(seen)) in steps:
            look(step)
        return {}

    return {"steps": max(steps), "watch": watch, "every": 1}
