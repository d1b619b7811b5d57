"""Load MLLMU-Bench, CLEAR or TOFU: the bundled miniature (``"tiny"``), a folder or the Hub.

Files are read by :mod:`manu_utils.benchmark.files`, the rows of CLEAR and TOFU are turned into
those of MLLMU-Bench by :mod:`manu_utils.benchmark.columns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import check_names, check_source, shown
from ..paths import data_dir
from .clear import load_clear
from .files import config_names, read_config
from .records import CONFIGS, FORGET_RATIOS, MODALITIES
from .rows import people_of
from .sets import Benchmark
from .tofu import load_tofu

if TYPE_CHECKING:
    from datasets import Dataset

STRANGERS = ("Full_Set", "Test_Set", "ft_Data")  # the configs of people whom no model has met


def load_config(source: str | Path, config: str, *, images: bool = True) -> Dataset:
    """One config of MLLMU-Bench (each has a single split, ``train``).

    Args:
        source: ``"tiny"`` (the miniature), a local folder with the same layout, or a Hub id
            (``"MLLMMU/MLLMU-Bench"``); see :func:`read_config`.
        config: one of :data:`CONFIGS`.
        images: without them no byte of a picture is read.

    Raises:
        TypeError: a source that is no path.
        ValueError: unknown config, an empty one, or one without readable files.
        FileNotFoundError: no such source, locally or on the Hub.
        ConnectionError: the Hub cannot be reached and there is no cached copy.
    """
    check_source("source", source)
    if config not in CONFIGS:
        raise ValueError(
            f"config={shown(config)} is unknown; MLLMU-Bench has {', '.join(CONFIGS)}."
        )
    return read_config(_place(source), config, images=images)


def _place(source: str | Path) -> str | Path:
    return data_dir() / "mllmu_mini" if source == "tiny" else source


def load_benchmark(
    source: str | Path = "tiny", forget_ratio: int = 10, *, modalities: Sequence[str] = MODALITIES
) -> Benchmark:
    """Load all sets of one unlearning task.

    Besides MLLMU-Bench this reads CLEAR (``"therem/CLEAR"``) and, text alone, TOFU
    (``"locuslab/TOFU"``), from the Hub or a local copy; which one it is shows in the configs. How
    their rows become questions: :mod:`manu_utils.benchmark.columns`.

    Args:
        source: see :func:`load_config`.
        forget_ratio: percent of the people: 5, 10 or 15 (10.0 is 10); CLEAR and TOFU have 1, 5 and
            10.
        modalities: ``("text",)`` leaves the pictures unread, on disk and on the Hub.

    Raises:
        TypeError: a source that is no path, or ``modalities`` that are no sequence of names, such
            as ``"text"``.
        ValueError: unknown ratio or modality, a dataset of another layout, missing column, a person
            in both forget and retain, or nobody to test.
        FileNotFoundError, ConnectionError: see :func:`load_config`.
    """
    check_source("source", source)
    check_names("modalities", modalities, MODALITIES)
    name = "MLLMU-Bench" if source == "tiny" else _recognise(source)
    if isinstance(forget_ratio, float) and forget_ratio.is_integer():
        forget_ratio = int(forget_ratio)
    ratios = FORGET_RATIOS if name == "MLLMU-Bench" else (1, 5, 10)
    if isinstance(forget_ratio, bool) or forget_ratio not in ratios:
        *first, last = ratios
        raise ValueError(
            f"forget_ratio={shown(forget_ratio)} is unknown; {name} has "
            f"{', '.join(map(str, first))} and {last} (percent)."
        )
    if name != "MLLMU-Bench":
        load = load_clear if name == "CLEAR" else load_tofu
        return load(source, forget_ratio, modalities)
    place, images = _place(source), "multimodal" in modalities
    forget = load_config(source, f"forget_{forget_ratio}", images=images)
    retain = load_config(source, f"retain_{100 - forget_ratio}", images=images)
    forget_ids = people_of(forget)
    if both := sorted(set(forget_ids) & set(people_of(retain))):
        raise ValueError(
            f"{len(both)} people are in both forget_{forget_ratio} and retain_{100 - forget_ratio} "
            f"of {source}, such as {', '.join(both[:5])}; the two must not overlap: fetch both "
            f"files from the same release."
        )
    test = read_config(place, "Test_Set", images=images, people=forget_ids)
    return Benchmark(
        forget=forget,
        retain=retain,
        test=test,
        celebrity=load_config(source, "Retain_Set", images=images),
        training=load_config(source, "ft_Data", images=images),
        forget_ratio=forget_ratio,
        source=str(source),
    )


def load_strangers(source: str | Path = "tiny", *, images: bool = True) -> dict[str, Dataset]:
    """People of the benchmark's own world whom no model has met: the control of attacks.

    Args:
        source: ``"tiny"`` (36 people made by the builder of the miniature), or a folder that holds
            just these configs.
        images: without them no byte of a picture is read.

    Returns:
        Config -> rows: ``Full_Set`` (:func:`evaluation_questions`, :func:`open_questions`),
        ``Test_Set`` (new portraits and wordings) and ``ft_Data`` (:func:`training_questions`).

    Raises:
        ValueError: a benchmark, whose own people cannot serve: all of them were trained on.
        FileNotFoundError, ConnectionError: see :func:`load_config`.
    """
    check_source("source", source)
    place = data_dir() / "mllmu_mini_strangers" if source == "tiny" else source
    configs = config_names(place)
    if configs is None or set(configs) - set(STRANGERS):
        raise ValueError(
            f"{source} has no strangers, since the people of a benchmark are trained on, and its "
            f"retain set was, too; make up people like them and pass your own questions about "
            f"them, or a folder with the configs {', '.join(STRANGERS)} alone."
        )
    return {config: read_config(place, config, images=images) for config in STRANGERS}


def _recognise(source: str | Path) -> str:
    """``"MLLMU-Bench"``, ``"CLEAR"`` or ``"TOFU"``, by its configs, or its name if need be."""
    configs = config_names(source)
    if configs is None:
        return {"clear": "CLEAR", "tofu": "TOFU"}.get(
            str(source).rsplit("/", 1)[-1].lower(), "MLLMU-Bench"
        )
    if set(configs) & set(CONFIGS):
        return "MLLMU-Bench"
    if any(config.endswith("+tofu") for config in configs):
        return "CLEAR"
    if {"full", "real_authors"} <= set(configs):
        return "TOFU"
    if {"knowmem", "verbmem"} <= set(configs):
        raise ValueError(
            f"{source} is laid out like MUSE, which asks about texts and has no people; read it "
            "with load_muse."
        )
    found = ", ".join(configs[:20]) or "none"
    raise ValueError(
        f"{source} is laid out like none of the benchmarks known here; configs found: {found}. "
        f"Expected are those of MLLMU-Bench ({', '.join(CONFIGS)}), CLEAR (forget01+tofu, "
        f"retain99+tofu, real_faces, ...) or TOFU (full, forget01, retain99, real_authors, ...), "
        "each as <config>/*.parquet, as <config>.json, or named in the README.md."
    )
