"""Sums of a long pass, kept in a folder as they grow, so that a killed pass goes on where it
stopped.

Each pass has a file of its own, named by a hash of all that its sums depend on: sums of other
weights, questions or settings in the folder are never taken for its own. A finished pass is read
from its file and not done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .. import processes
from ..benchmark.records import Question
from ..models.fingerprints import fingerprint, picture_digests
from ..models.prompts import answer_texts, prompt
from ..models.saving import read_tensors, write_tensors
from ..paths import check_writable
from ..progress import bar

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 20  # batches between two writes
_KIND = "part of a pass"


def _place_of(
    folder: str | Path,
    model,
    processor,
    questions: Sequence[Question],
    model_key: str | None,
    **settings,
) -> Path:
    """The file of one pass in a folder; several processes have one each.

    Args:
        model_key: what tells the model from others, in place of a hash of its weights.
        settings: what else the sums depend on, plain values and tensors.

    Raises:
        ValueError: see :func:`fingerprint`.
    """
    digest = hashlib.sha256((model_key or fingerprint(model, processor)).encode())
    digests = picture_digests(q.image for q in questions if q.image is not None)
    answers = answer_texts(questions, processor)
    for question, answer in zip(questions, answers, strict=True):
        own = [prompt(question, processor), answer, digests.get(id(question.image), "")]
        digest.update(json.dumps(own).encode())
    plain = {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in settings.items()
    }
    shares = {"every": EVERY, "process": processes.number(), "of": processes.count()}
    digest.update(json.dumps(plain | shares, sort_keys=True).encode())
    return Path(folder).expanduser() / f"{digest.hexdigest()[:32]}.safetensors"


def begin_pass(
    folder: str | Path | None,
    model,
    processor,
    questions: Sequence[Question],
    model_key: str | None,
    plan: Callable[[], Sequence[Sequence[int]]],
    **settings,
) -> tuple[list[list[int]], Path | None, dict[str, Tensor], int]:
    """How a pass of this process begins, or goes on where a killed one stopped.

    Args:
        folder: where its sums are kept; None keeps none, and the whole pass is one part.
        model_key, settings: see :func:`_place_of`.
        plan: the batches of all processes, indices into the questions.

    Returns:
        The questions of each part, the file for the sums after each (None without a folder), what
        was written last, and after how many parts (nothing and 0 if there is no file). A part is
        :data:`EVERY` batches: a pass that goes on has the batches of one that never stopped.

    Raises:
        OSError: the folder cannot be written, and the pass is not done.
        ValueError: another file, which is left as it is, or see :func:`fingerprint`.
    """
    if folder is None:
        return [processes.own_indices(len(questions), plan)], None, {}, 0
    batches = processes.own(plan())
    parts = [
        sorted(index for batch in batches[start : start + EVERY] for index in batch)
        for start in range(0, len(batches), EVERY)
    ]
    place = _place_of(folder, model, processor, questions, model_key, **settings)
    sums, read = {}, 0
    if place.exists() or place.is_symlink():
        sums, about = read_tensors(place, _KIND)
        read = about["parts"]
    if read < len(parts):  # found out now, not after the first part
        check_writable(place.parent)
    return parts, place, sums, read


def parts_left(
    begun: tuple, questions: Sequence[Question], sums: Callable[[], dict[str, Tensor]], desc: str,
    progress: bool,
) -> Iterator[tuple[list[int], list[Question], tqdm]]:  # fmt: skip
    """Go through what is left of a pass, and keep its sums after each part.

    Args:
        begun: from :func:`begin_pass`.
        sums: gives them as they are then, float64 or float32, on the CPU.
        desc: on the bar.

    Yields:
        Indices of the questions of a part, these questions, and a bar that counts questions.
    """
    parts, place, _, read = begun
    n, n_read = (sum(map(len, some)) for some in (parts, parts[:read]))
    shown = progress and processes.number() == 0
    with bar(total=n, initial=n_read, desc=desc, shown=shown) as done:
        for number, part in enumerate(parts[read:], read + 1):
            yield part, [questions[index] for index in part], done
            if place is not None:
                write_tensors(place, sums(), _KIND, {"parts": number})
