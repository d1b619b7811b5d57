"""Scoring, pruning and evaluation by several processes, each with a copy of the model: Hugging Face ``accelerate``.

One process would cut the questions into batches; several hand the same batches out among them and put the results together,
so that the neurons and the table do not depend on how many there are. Every process gets everything. Start a script with
``accelerate launch --num_processes 4`` (``benchmarks/unlearn_parallel.py`` is one to copy) or a function of a notebook with
``accelerate.notebook_launcher``. A model that does not fit one device needs none of this:
``load_model(..., device_map="auto")``, in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from functools import reduce as fold
from operator import add
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .benchmark.records import MODALITIES, Question
from .checks import check_answers
from .models.encoding import plan_batches
from .models.neurons import find_neurons
from .progress import bar
from .unlearning.activations import Statistics

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator
    from datasets import Dataset



def start() -> Accelerator:
    """The accelerator of this process: on its own GPU (``accelerator.device``), or on the CPU if there is none.

    Call it before the model is loaded. In a script that was not launched it is one process among one.

    Raises:
        ImportError: accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("several processes need accelerate; install it, or manu_utils[gpu].") from error
    return Accelerator(cpu=not torch.cuda.is_available())  # left alone, accelerate starts no group of processes on CPUs


def collect_activations(
    accelerator: Accelerator,
    model,
    processor,
    questions: Sequence[Question],
    *,
    tau: float = 0.1,
    positions: str = "answer",
    batch_size: int = 32,
    progress: bool = True,
) -> Statistics:
    """:func:`collect_activations`, shared between the processes; the same on each.

    Sums of float32 numbers in float64, which are exact unless they span many orders of magnitude: which process adds which
    makes no difference.

    Args:
        accelerator: from :func:`start`.
        model: a whole copy on the device of each process.
        questions: all of them, in the same order on every process. There may be fewer batches than processes.

    Raises:
        ValueError: as the function of one process.
    """
    options = {"tau": tau, "positions": positions, "batch_size": batch_size}
    if accelerator.num_processes == 1 or not questions:
        return activations.collect_activations(model, processor, questions, progress=progress, **options)
    shown = progress and accelerator.is_main_process
    shared = activations.shares_rows(model, positions)
    own = _own(accelerator, plan_batches(questions, processor, batch_size, with_answer=True, shared=shared))
    mine = [questions[index] for index in sorted(index for batch in own for index in batch)]
    found = [activations.collect_activations(model, processor, mine, progress=shown, **options)] if mine else []
    return fold(add, _gather(accelerator, found))


def collect_attribution(
    accelerator: Accelerator,
    model,
    processor,
    questions: Sequence[Question],
    *,
    rarity: Tensor | None = None,
    reduce: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> Tensor:
    """:func:`collect_attribution`, shared between the processes; the same on each.

    Args:
        accelerator, model, questions: see :func:`collect_activations`.
        rarity, reduce: as for one process. ``reduce`` adds up in float64, so it may differ from the function of one process
            in the last bit of float32, whatever the number of processes.

    Returns:
        float32 [n_questions, n_neurons], or [n_neurons] with ``reduce``; on the CPU.

    Raises:
        ValueError: as the function of one process.
    """
    options = {"rarity": rarity, "reduce": reduce, "batch_size": batch_size}
    plan = plan_batches(questions, processor, batch_size, with_answer=True)
    if len(plan) < 2 or len({question.modality for question in questions}) > 1:
        return attribution.collect_attribution(model, processor, questions, progress=progress, **options)
    if rarity is None:
        check_answers(questions)
        options["rarity"] = attribution.token_rarity(questions, processor)  # of all, not of this process's own
    total = torch.zeros(sum(mlp.size for mlp in find_neurons(model)), dtype=torch.float64)
    parts = []
    shown = progress and accelerator.is_main_process
    for batch in bar(_own(accelerator, plan), desc="attribution", shown=shown):
        asked = [questions[index] for index in batch]
        found = attribution.collect_attribution(model, processor, asked, progress=False, **options)
        if reduce:
            total += found.double() * len(batch)
        else:
            parts.append((batch, found))
    if reduce:
        return (fold(add, _gather(accelerator, [total])) / len(questions)).float()
    rows = torch.zeros(len(questions), len(total))
    for batch, found in _gather(accelerator, parts):
        rows[batch] = found
    return rows


def unlearn(
    accelerator: Accelerator,
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    variant: str = "coverage",
    alpha: float = 5.0,
    modalities: Sequence[str] = MODALITIES,
    seed: int = 0,
    allow_small: bool = False,
    on_top: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> pruning.Pruned:
    """:func:`unlearn` with its passes over the questions shared; the same neurons go on every process.

    Coverage looks at the few forget questions again after each round; that is not shared, nor is what ``released_as_run``
    reads.

    Args:
        accelerator, model: see :func:`collect_activations`; forget, retain, variant, alpha, modalities, seed, allow_small,
            on_top: as there.

    Raises:
        TypeError, ValueError: as the function of one process. The model is untouched.
    """
    chosen = pruning.choose_neurons(
        model, processor, forget, retain, variant=variant, alpha=alpha, modalities=modalities, seed=seed,
        allow_small=allow_small, on_top=on_top, batch_size=batch_size, progress=progress and accelerator.is_main_process,
        activations_of=partial(collect_activations, accelerator), attribution_of=partial(collect_attribution, accelerator),
    )  # fmt: skip
    # A GPU may round differently from run to run, and copies of one model must stay equal: the first process decides.
    return pruning.prune(model, _gather(accelerator, [chosen])[0])


def evaluate(accelerator: Accelerator, model, processor, sets: dict[str, Dataset], **options) -> pd.DataFrame:
    """:func:`evaluate`, its questions shared between the processes; the same table on each.

    Args:
        accelerator, model: see :func:`collect_activations`.
        options: of the function of one process.

    Raises:
        ValueError: as there.
    """
    return evaluation.evaluate(model, processor, sets, accelerator=accelerator, **options)


def _own(accelerator: Accelerator, plan: list[list[int]]) -> list[list[int]]:
    """The batches of this process. The plan is sorted by length, so every n-th is an equal share of the work."""
    return plan[accelerator.process_index :: accelerator.num_processes]


def _gather(accelerator: Accelerator, items: list) -> list:
    """The items of all processes, those of the first process first."""
    if accelerator.num_processes == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)
