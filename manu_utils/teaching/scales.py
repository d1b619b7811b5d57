"""What the notebooks' ``SCALE`` stands for: which model and benchmark to load, and what that takes.

Used in notebook 12.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from ..checks import check_name
from ..unlearning.moments import MEMORY, bytes_of_layer

if TYPE_CHECKING:
    import pandas as pd



@dataclass(frozen=True)
class Scale:
    """One setting of ``SCALE``.

    Attributes:
        base: the model before it met the people, as :func:`load_model` takes it.
        vanilla: the model that knows them; a local folder where there is none to download, made by
            notebook 12.
        processor: where the processor of ``vanilla`` comes from, if it ships none.
        benchmark: as :func:`load_benchmark` takes it.
        parameters: of the model.
        bytes_in_memory: of one parameter while it is used, in the dtype that ``load_model`` picks
            on ``device``.
        mlps: of the language model: layers, neurons in each, and the width of the residual stream.
        download: bytes to fetch.
        tokens: of a typical question with its image and answer.
        questions: read from the benchmark from scoring to the last evaluation, roughly.
        epochs: passes over the training questions that make ``vanilla``; 0 where it is downloaded
            or bundled.
        speed: floating-point operations per second to reckon with: about a third of the peak of the
            device named (a sixth of the T4's, which its power limit holds back).
        device: what ``speed`` belongs to.
        trained: weights that are trained where ``epochs`` are not 0: the adapters of rank
            :data:`RANK` of notebook 12.
        kept: bytes that the language layers keep of one token for the backward pass; measured on
            two such layers.
        forget_ratio: percent of the people that notebook 12 has forgotten.
        alpha: percentage of neurons that it prunes.
        batch_size: questions in a step of training and in a batch of scoring.
        lr: of the adapters of rank :data:`RANK` that make ``vanilla``.
        scored: questions of the retain set, per modality, that methods look at.
        people: of each kept set that notebook 12 evaluates; all of the forget set are asked.
        official: whether the official protocol's scores mean something: its answers are more than
            format.
    """

    base: str
    vanilla: str
    processor: str | None
    benchmark: str
    parameters: float
    bytes_in_memory: int
    mlps: tuple[int, int, int]
    download: float
    tokens: int
    questions: int
    epochs: int
    speed: float
    device: str
    trained: float = 0.0
    kept: float = 0.0
    forget_ratio: int = 5
    alpha: float = 5.0
    batch_size: int = 16
    lr: float = 2e-4
    scored: int = 600
    people: int = 100
    official: bool = True


# Bytes: ten configs, two thirds of it portraits that come twice or three times.
_MLLMU_BENCH = 2.2e9
_QUESTIONS = 60_000  # 20,000 of the benchmark: scoring, vanilla evaluated, unlearned evaluated
SCALES = {
    "tiny": Scale(
        "tiny-base", "tiny", None, "tiny",
        4e6, 4, (3, 3_072, 128), 0.0, 60, 12_000, 0, 5e10, "one core of a CPU",
        forget_ratio=10, lr=3e-3, people=40, official=False,
    ),
    "colab": Scale(
        "HuggingFaceTB/SmolVLM-256M-Instruct", "build/colab/vanilla", None, "MLLMMU/MLLMU-Bench",
        0.256e9, 2, (30, 1_536, 576), 0.5e9 + _MLLMU_BENCH, 140, _QUESTIONS, 3,
        1e13, "a T4 in float16", 4.9e6, 30 * 29.3e3,
    ),
    "paper": Scale(
        "llava-hf/llava-1.5-7b-hf", "MLLMMU/LLaVA_Vanilla", "llava-hf/llava-1.5-7b-hf",
        "MLLMMU/MLLMU-Bench",
        7.06e9, 2, (32, 11_008, 4_096), 28.2e9 + 14.1e9 + _MLLMU_BENCH, 650, _QUESTIONS, 0,
        1e14, "an A100 in bfloat16",
    ),
    "paper-idefics2": Scale(
        "HuggingFaceM4/idefics2-8b", "MLLMMU/Idefics2_Vanilla", "HuggingFaceM4/idefics2-8b",
        "MLLMMU/MLLMU-Bench",
        8.4e9, 2, (32, 14_336, 4_096), 33.6e9 + 33.6e9 + _MLLMU_BENCH, 140, _QUESTIONS, 0,
        1e14, "an A100 in bfloat16",
    ),
}  # fmt: skip
_TRAINING_QUESTIONS = 2 * 7_700  # of ft_Data, with the image and rewritten to text alone
RANK = 16  # of the adapters that notebook 12 trains


def needs(scale: Scale) -> dict[str, float]:
    """What a scale takes, counted from sizes, not measured.

    Two operations per parameter and token for reading, six for training; every question counts with
    its image, so the statistics and the evaluation of LLaVA, where questions share their images,
    take less. Memory is the weights and the most that anything takes beside them: reading and
    rewriting a third of them for activations, and what rewriting holds of a few layers (its
    backward pass may need batches of one question); training 16 bytes of each trained weight
    (itself, its gradient and two moments, in float32) and what the backward pass needs of a batch.

    Returns:
        ``disk_gb``, ``memory_gb`` and ``minutes``.
    """
    operations = (
        2
        * scale.parameters
        * scale.tokens
        * (scale.questions + 3 * scale.epochs * _TRAINING_QUESTIONS)
    )
    weights = scale.parameters * scale.bytes_in_memory
    layers, neurons, hidden = scale.mlps
    of_layer = bytes_of_layer(neurons, hidden)
    # Bytes; one after the other, so the largest counts.
    beside = {"rewriting": weights / 3 + of_layer * min(layers, max(1, int(MEMORY / of_layer)))}
    if scale.epochs:
        # Both modalities.
        beside["training"] = 16 * scale.trained + 2 * scale.batch_size * scale.tokens * scale.kept
    return {
        "disk_gb": scale.download / 1e9,
        "memory_gb": (weights + max(beside.values())) / 1e9,
        "minutes": operations / scale.speed / 60,
    }


def settings(scale: Scale) -> dict[str, object]:
    """What notebook 12 does at a scale, for its table: nothing of it is hidden in a cell."""
    trained = "downloaded" if scale.processor else "bundled"
    if scale.epochs:
        trained = f"adapters of rank {RANK}, {scale.epochs} epochs at {scale.lr:g}"
    return {
        "vanilla": trained,
        "forget %": scale.forget_ratio,
        "alpha": scale.alpha,
        "batch_size": scale.batch_size,
        "retain questions scored": scale.scored,
        "people of each kept set": scale.people,
        "official protocol": "compared" if scale.official else "shown, not compared",
    }



def check_room(name: str) -> pd.DataFrame:
    """What a scale needs beside what is here.

    Disk is where the Hub's files go; memory is of all GPUs, or else of the machine.

    Returns:
        Rows ``disk_gb`` and ``memory_gb`` with columns ``needed`` and ``here``, and ``minutes``,
        with no number in ``here``.

    Raises:
        ValueError: unknown scale.
        RuntimeError: too little disk or memory.
    """
    import pandas as pd
    from huggingface_hub.constants import HF_HUB_CACHE

    check_name("SCALE", name, tuple(SCALES))
    place = Path(HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    here = {"disk_gb": shutil.disk_usage(place).free / 1e9, "memory_gb": _memory() / 1e9}
    table = pd.DataFrame({"needed": needs(SCALES[name]), "here": here})
    if len(short := table[table["here"] < table["needed"]]):
        what, row = short.index[0], short.iloc[0]
        advice = {
            "disk_gb": f"free some, or set HF_HOME to a larger disk ({place} is too full)",
            "memory_gb": "take a larger GPU or several (device_map='auto'), or a smaller SCALE",
        }[what]
        raise RuntimeError(
            f"SCALE={name!r} needs {row['needed']:.1f} {what}, but there is {row['here']:.1f}: "
            f"{advice}."
        )
    return table


def _memory() -> float:
    """Bytes of free memory: of all GPUs together, or of the machine."""
    if torch.cuda.is_available():
        return float(
            sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
        )
    return float(psutil.virtual_memory().available)
