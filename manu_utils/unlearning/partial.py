"""Sums of a long pass, kept in a folder as they grow, so that a killed pass goes on where it
stopped.

Each pass has a file of its own, named by a hash of all that its sums depend on: sums of other
weights, questions or settings in the folder are never taken for its own. A finished pass is read
from its file and not done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .. import processes
from ..benchmark.records import Question
from ..models.fingerprints import fingerprint, picture_digest
from ..models.prompts import answer_texts, prompt
from ..models.saving import read_tensors, write_tensors

EVERY = 20  # batches between two writes
_KIND = "part of a pass"


def place_of_pass(
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
    digests: dict[int, str] = {}  # of the pictures, which many questions share
    answers = answer_texts(questions, processor)
    for question, answer in zip(questions, answers, strict=True):
        image = question.image
        if image is not None and id(image) not in digests:
            digests[id(image)] = picture_digest(image)
        own = [prompt(question, processor), answer, "" if image is None else digests[id(image)]]
        digest.update(json.dumps(own).encode())
    plain = {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in settings.items()
    }
    shares = {"every": EVERY, "process": processes.number(), "of": processes.count()}
    digest.update(json.dumps(plain | shares, sort_keys=True).encode())
    return Path(folder).expanduser() / f"{digest.hexdigest()[:32]}.safetensors"


def in_parts(plan: Sequence[Sequence[int]]) -> list[list[int]]:
    """The questions of every :data:`EVERY` batches: a pass that goes on has the batches of one that
    never stopped.
    """
    starts = range(0, len(plan), EVERY)
    return [
        sorted(index for batch in plan[start : start + EVERY] for index in batch)
        for start in starts
    ]


def read_sums(place: Path) -> tuple[dict[str, Tensor], int]:
    """What :func:`write_sums` wrote last, and after how many parts; nothing and 0 if there is no
    file.

    Raises:
        ValueError: another file, which is left as it is.
    """
    if not place.exists() and not place.is_symlink():
        return {}, 0
    sums, about = read_tensors(place, _KIND)
    return sums, about["parts"]


def write_sums(place: Path, sums: dict[str, Tensor], parts: int) -> None:
    """Keep the sums after so many parts, in place of earlier ones."""
    write_tensors(place, sums, _KIND, {"parts": parts})
