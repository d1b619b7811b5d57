"""Several processes, each with a copy of the model, hand out the batches of a pass among them. One
process does them all. In training they hand out the questions of each batch, and take the same
step.

One process would cut the questions into batches; several read the same batches, each its share, and
put the results together, so that neurons and tables do not depend on how many there are, and every
process gets everything. The passes ask here what is theirs (``own``) and give what they found
(``gathered``); nothing else of them changes. All processes have to make the same calls with the
same questions, in the same order.

Start a script with ``accelerate launch --num_processes 4`` (``examples/unlearn_on_several_gpus.py``
is one to copy) or a function of a notebook with ``accelerate.notebook_launcher``. A model that does
not fit one device needs none of this: ``load_model(..., device_map="auto")``, in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from accelerate import Accelerator


def start() -> Accelerator:
    """The accelerator of this process: on its own GPU (``accelerator.device``), or the CPU.

    Call it before the model is loaded. In a script that was not launched it is one process among
    one.

    Raises:
        ImportError: accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError(
            "several processes need accelerate; install it, or manu_utils[gpu]."
        ) from error
    # left alone, accelerate starts no group of processes on CPUs
    return Accelerator(cpu=not torch.cuda.is_available())


def count() -> int:
    """How many processes there are."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def number() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if count() > 1 else 0


def own(plan: list) -> list:
    """What of a plan is this process's: every n-th, an equal share if sorted by length."""
    return plan[number() :: count()]


def own_indices(n: int, plan: Callable[[], list[list[int]]]) -> list[int]:
    """The indices of the n items that this process reads: all, or those of its own batches.

    Args:
        plan: makes the batches that one process would read; not called if there is one.
    """
    return (
        list(range(n))
        if count() == 1
        else sorted(index for batch in own(plan()) for index in batch)
    )


def gathered(items: list) -> list:
    """The items of all processes, those of the first process first."""
    if count() == 1:
        return items
    parts: list = [None] * count()
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, on the CPU if there are several."""
    if count() == 1:
        return tensor
    return torch.stack(gathered([tensor.cpu()])).sum(0)


def average(tensors: Iterable[Tensor]) -> None:
    """Put the mean over all processes in place of each tensor."""
    if count() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= count()


def weight(n: int | Tensor) -> float:
    """n over its mean over all processes: what turns a mean over n own items into a part of the
    mean over everybody's, once the processes are averaged. 1 for one process, and no waiting for
    its device.
    """
    if count() == 1:
        return 1.0
    parts = gathered([int(n)])
    return int(n) * len(parts) / sum(parts)


def own_peak_mb() -> float:
    """Peak resident memory of this process, in MB. On Linux ``ru_maxrss`` would start at the peak
    of the parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1024**2
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
