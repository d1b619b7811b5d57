"""Read one config of a dataset from the Hub or a local copy, with or without its pictures."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..paths import check_writable
from ..progress import no_dataset_bars
from .pictures import IMAGE_COLUMNS, with_files_inside
from .records import written_id

if TYPE_CHECKING:
    import datasets
    from datasets import Dataset

# bytes of parquet; up to here a local config is read into memory, and nothing is written anywhere
IN_MEMORY = 16_000_000
_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
_LFS = b"version https://git-lfs"


def config_names(source: str | Path) -> list[str] | None:
    """The configs of a dataset, sorted: those that a README names or that a folder holds.

    Returns:
        None if there is no such folder and the Hub cannot be asked, or does not have it.
    """
    import datasets

    folder = Path(source)
    if folder.is_dir():
        found = {path.parent.name for path in folder.glob("*/*.parquet")}
        found |= {path.stem for path in folder.iterdir() if path.suffix in (".json", ".jsonl")}
        return sorted({*_named(folder), *found})
    try:
        return sorted(datasets.get_dataset_config_names(str(source)))
    except (ConnectionError, FileNotFoundError, ValueError):  # said in full when a config is read
        return None


def read_config(
    source: str | Path, config: str, *, split: str = "train", images: bool = True,
    people: Sequence[str] | None = None,
) -> Dataset:  # fmt: skip
    """One split of one config, by default the single one that most have.

    A folder may be a clone (``git clone`` with LFS, ``hf download``) with a README that names the
    configs, or hold just the files: ``<config>/*.parquet`` or ``<config>.json`` (JSON lines), of
    another split ``<config>/<split>-*.parquet`` or ``<config>/<split>.json``. Small
    parquet files, such as the bundled ones, are read into memory; what is larger goes through the
    cache of ``datasets``, which maps it from disk.

    Args:
        source: a local folder or a Hub id.
        images: without them only the other columns of a parquet file are read: nothing else is
            fetched from the Hub or touched on disk, and the rows are kept in memory.
        people: read the rows with these IDs alone.

    Raises:
        ValueError: no such config, an empty one, files that cannot be read, or a folder whose
            README names files elsewhere.
        FileNotFoundError: no such source, locally or on the Hub.
        ConnectionError: the Hub cannot be reached and there is no cached copy.
        PermissionError: the cache of ``datasets`` is needed and cannot be written.
    """
    import datasets

    folder = Path(source)
    local = folder.is_dir()
    name, of_it = (config, "") if split == "train" else (f"{config}/{split}", f"{split}-")
    arguments: dict = {"path": str(source), "name": config, "split": split}
    kind, in_memory, files = "parquet", False, []
    # `datasets` is given files, never the folder, of which it would fetch what a README names
    if local:
        if not (files := _files(folder, config, split)):
            raise ValueError(
                f"{source} has no config {name} that can be read: no {config}/{of_it}*.parquet, no "
                f"{name}.json, and no such file inside the folder that its README.md names."
            )
        arguments["cache_dir"] = _cache_of(folder)
        kind = _FORMATS[files[0].suffix]
        in_memory = kind == "parquet" and (
            sum(file.stat().st_size for file in files) <= IN_MEMORY or _misread(folder)
        )
        # `datasets` takes paths for patterns.
        paths = [glob.escape(str(file.absolute())) for file in files]
        arguments |= {"path": kind, "name": None, "data_files": {split: paths}}
        if features := _declared(folder, config):
            arguments["features"] = features
    empty = f"{name} of {source} is empty; fetch the file again."
    if people is not None:
        empty = (
            f"{name} of {source} is empty, or has none of the people asked for, such as "
            f"{', '.join(people[:5])}."
        )
    known = datasets.exceptions.DatasetGenerationError, ConnectionError, OSError, ValueError
    # a local copy loads at once; a download keeps its bar
    with no_dataset_bars() if local else nullcontext(), _asking_nobody():
        try:
            loaded = None
            if in_memory:
                loaded = _read_into_memory(files, images, arguments.get("features"))
            elif not images and kind == "parquet":
                loaded = _read_without_images(arguments, _only(people, kind, files))
            if loaded is None:
                only = _only(people, kind, files)
                loaded = datasets.load_dataset(**arguments, **only)
        except known as error:
            raise _in_plain_words(error, source, name, files, empty) from error
    if not images:
        loaded = loaded.remove_columns([n for n in IMAGE_COLUMNS if n in loaded.column_names])
    loaded = _of_people(_with_written_ids(loaded), people)
    if len(loaded) == 0:
        raise ValueError(empty)
    if local:
        loaded = with_files_inside(loaded, folder, folder / config)
    loaded.info.config_name = name
    return loaded


@contextmanager
def _asking_nobody() -> Iterator[None]:
    """Read files without asking the network, as ``datasets`` does for local ones, too; and give
    back the hundreds of megabytes that reading them took.
    """
    import datasets
    import pyarrow as pa

    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        pa.default_memory_pool().release_unused()


def _in_plain_words(
    error: Exception, source: str | Path, config: str, files: list[Path], empty: str
) -> Exception:
    """An error of ``datasets`` as one that says what to do; without ``files`` it is of the Hub."""
    if isinstance(error, ConnectionError):
        return ConnectionError(
            f"cannot reach the Hub for {source}; connect, give a local copy, or use source='tiny', "
            f"which needs no network."
        )
    if "corresponds to no data" in str(error):
        return ValueError(empty)
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(cause, OSError) and (refused := _unwritable(bool(files))):
        return PermissionError(
            f"{refused} is where {config} of {source} would be cached and cannot be written "
            f"({cause.strerror}); set HF_HOME to a folder that can."
        )
    if files:
        return ValueError(
            f"{config} of {source} cannot be read: {error.__cause__ or error}; fetch the files "
            f"again."
        )
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(
            f"found no {source} ({config}), neither as a local folder nor on the Hub; check the "
            "spelling, or that a folder has a README.md with the configs and one subfolder of "
            "parquet files per config."
        )
    return ValueError(f"{source} has no config {config} that can be read: {error}")


def _with_written_ids(rows: Dataset) -> Dataset:
    """The rows with IDs that are text."""
    if "ID" not in rows.column_names or getattr(rows.features["ID"], "dtype", "") in (
        "string",
        "large_string",
    ):
        return rows
    names = rows.column_names
    ids = [written_id(value) for value in rows.select_columns(["ID"])["ID"]]
    return rows.remove_columns("ID").add_column("ID", ids).select_columns(names)


def _of_people(rows: Dataset, people: Sequence[str] | None) -> Dataset:
    """The rows with these IDs, where the files could not be read so (:func:`_only`)."""
    if people is None or "ID" not in rows.column_names:
        return rows
    wanted, ids = set(people), rows.select_columns(["ID"])["ID"]
    if wanted.issuperset(ids):
        return rows
    return rows.select([index for index, person_id in enumerate(ids) if person_id in wanted])


def _only(people: Sequence[str] | None, kind: str, files: Sequence[Path]) -> dict:
    """The filter of ``datasets`` for parquet; JSON lines are small and filtered afterwards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if people is None or kind != "parquet":
        return {}
    if files and (schema := pq.read_schema(files[0])).get_field_index("ID") >= 0:
        if not pa.types.is_string(schema.field("ID").type) and not pa.types.is_large_string(
            schema.field("ID").type
        ):
            return {}  # numbers, see written_id
    return {"filters": [("ID", "in", list(people))]}


def _read_without_images(arguments: dict, filters: dict) -> Dataset | None:
    """All other columns of parquet files; None if nothing is to leave out or no Hub is reached.

    Streaming reads the footer of a file and then the byte ranges of the wanted columns, locally and
    over the network.
    """
    import datasets

    # Columns of text are short and far apart: reading ahead by the Hub client's 5 MB would fetch
    # the pictures between them.
    options = {"hf": {"block_size": 1 << 16}}
    arguments = {"streaming": True, "storage_options": options} | arguments
    try:
        with no_dataset_bars():
            stream = datasets.load_dataset(**arguments)
            if not set(IMAGE_COLUMNS) & set(stream.features or ()):
                return None  # nothing to leave out, and JSON cannot be read by column
            features = datasets.Features(
                {name: kind for name, kind in stream.features.items() if name not in IMAGE_COLUMNS}
            )
            stream = datasets.load_dataset(columns=list(features), **arguments, **filters)
            return datasets.Dataset.from_list(list(stream), features=features)
    except ConnectionError:  # the files may be in the cache all the same
        return None


def _header(folder: Path) -> dict:
    """The YAML header of a folder's README; empty if there is none that can be read."""
    from huggingface_hub.repocard import metadata_load

    readme = folder / "README.md"
    try:
        return (metadata_load(readme) if readme.is_file() else None) or {}
    except Exception:  # a README whose header is no YAML names nothing
        return {}


def _named(folder: Path, split: str = "train") -> dict[str, list[str]]:
    """The configs that a folder's README names, each with the patterns of the files of a split."""
    named = {}
    for one in _header(folder).get("configs") or []:
        if given := one.get("data_files"):
            parts = given if isinstance(given, list) else [given]
            parts = [part if isinstance(part, dict) else {"path": part} for part in parts]
            paths = [part.get("path") for part in parts if part.get("split", "train") == split]
            named[str(one.get("config_name"))] = [
                str(path)
                for entry in paths
                for path in (entry if isinstance(entry, list) else [entry])
            ]
    return named


def _declared(folder: Path, config: str) -> datasets.Features | None:
    """The types of a config's columns if the README states them; else those of its files count."""
    from datasets.info import DatasetInfosDict

    if "dataset_info" not in _header(folder):
        return None
    info = DatasetInfosDict.from_directory(str(folder)).get(config)
    return info.features if info else None


def _files(folder: Path, config: str, split: str) -> list[Path]:
    """The data files of a split, all of one format: as the README names them, or by layout.

    Raises:
        ValueError: a file is a pointer of Git LFS, or the README names one that is not in the
            folder.
    """
    patterns = _named(folder, split).get(config, ())
    files = sorted({file for pattern in patterns for file in _matching(folder, pattern)})
    stem, of_it = (config, "*") if split == "train" else (f"{config}/{split}", f"{split}-*")
    files = files or sorted((folder / config).glob(f"{of_it}.parquet"))
    files = files or [
        path for path in (folder / f"{stem}.json", folder / f"{stem}.jsonl") if path.is_file()
    ]
    for file in files:
        if file.stat().st_size < 1024 and file.read_bytes().startswith(_LFS):
            raise ValueError(
                f"{file} is a pointer of Git LFS, not the data; run `git lfs pull` in {folder}."
            )
    return [file for file in files if file.suffix == files[0].suffix]


def _matching(folder: Path, pattern: str) -> list[Path]:
    """The data files inside a folder that match a pattern of its README.

    Raises:
        ValueError: it names an address or another folder, of which nothing is ever read.
    """
    if "://" in pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise ValueError(
            f"README.md of {folder} names {pattern!r}, which is not in the folder, and nothing "
            f"else is read or fetched; put the files there and name them."
        )
    return [path for path in folder.glob(pattern) if path.suffix in _FORMATS]


def _misread(folder: Path) -> bool:
    """Whether ``datasets`` would read more into this path: a variable or chained file systems."""
    return "$" in str(folder.absolute()) or "::" in str(folder.absolute())


def _read_into_memory(
    files: Sequence[Path], images: bool, features: datasets.Features | None
) -> Dataset:
    """Parquet files as one table, as ``datasets`` reads them but without writing a cache."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.table import table_cast

    tables = []
    for file in files:
        with file.open("rb") as opened:
            parquet = pq.ParquetFile(opened)
            features = features or datasets.Features.from_arrow_schema(parquet.schema_arrow)
            features = datasets.Features(
                {name: f for name, f in features.items() if images or name not in IMAGE_COLUMNS}
            )
            tables.append(table_cast(parquet.read(columns=list(features)), features.arrow_schema))
    return datasets.Dataset(pa.concat_tables(tables), split=datasets.Split.TRAIN)


def _unwritable(local: bool) -> Path | None:
    """The first of the caches in use in which no file can be made."""
    import datasets
    import huggingface_hub

    caches = [datasets.config.HF_DATASETS_CACHE] + (
        [] if local else [huggingface_hub.constants.HF_HUB_CACHE]
    )
    for cache in map(Path, caches):
        try:
            check_writable(cache)
        except OSError:
            return cache
    return None


def _cache_of(folder: Path) -> str:
    """A cache of its own for each state of a local copy.

    ``datasets`` names the cache of a folder by the folder's name and README alone, so it would give
    the rows of another folder of that name, or those from before the files were rebuilt.
    """
    import datasets

    files = sorted(path for path in folder.resolve().rglob("*") if path.suffix in _FORMATS)
    state = [
        str(folder.resolve()),
        *(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files),
    ]
    digest = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"manu-{digest}")
