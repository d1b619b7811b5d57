"""Answers kept in a file as they come, so that a killed evaluation goes on where it stopped.

A file of JSON lines, one answer a line under a key that hashes all that the answer depends on. Answers of other models and
protocols may be in the same file; their keys differ, so they are never taken for one's own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch


def fingerprint(model, processor) -> str:
    """A hash of all weights (names, types, values) and of the processor: 64 hex digits.

    Reads every weight once. What hooks do to a model is not seen; name such a model by a key of your own.

    Raises:
        ValueError: weights that are off-loaded, so that their values are not at hand.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(
                f"{name} is off-loaded, so the weights cannot be told from others; give model_key, a name of your own for "
                "this model with these weights."
            )
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for part in (processor, processor.image_processor):
        digest.update(part.to_json_string().encode())
    tokenizer = processor.tokenizer
    digest.update(json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]).encode())
    return digest.hexdigest()


def read_answers(path: str | Path) -> dict[str, str]:
    """key -> answer; empty if there is no file. A last line that was cut off when its writer was killed is left out.

    Raises:
        ValueError: the file holds something else.
    """
    path = Path(path)
    answers: dict[str, str] = {}
    for line in _whole_lines(path.read_bytes()) if path.exists() else ():
        try:
            record = json.loads(line)
            answers[record["key"]] = record["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file of answers (JSON lines with key and answer); move it away.") from error
    return answers


def append_answers(path: str | Path, records: Sequence[dict]) -> None:
    """Add records with ``key`` and ``answer``, all in one write that is on the disk when this returns.

    The file and its folder are made if they are not there; a line cut off by an earlier kill is removed first, and two
    processes that write at once wait for each other.
    """
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"), path.open("a+b") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.seek(whole)
        file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
        file.flush()
        os.fsync(file.fileno())


def remembered(
    path: str | Path | None,
    run: str,
    items: Sequence,
    identity: Callable[[object], dict],
    ask: Callable[[list], Sequence[str]],
    chunk_size: int,
) -> list[str]:
    """The answers to some items, from the file as far as they are there, else asked for and written down.

    Items are asked in the same chunks whether or not a run was killed, so that a run that goes on has the batches, and the
    answers to the last bit, of one that was never stopped. At most one chunk is asked twice.

    Args:
        path: the file; None asks all at once and writes nothing.
        run: what the answers depend on besides the item: a :func:`fingerprint` or a name.
        identity: of an item: all that tells it from others, plain values that JSON can hold and, under ``images``, a list of
            images; ``protocol``, ``person_id`` and ``question`` are written beside the answer for a reader.
        ask: answers a list of items.
        chunk_size: items asked between two writes.
    """
    if path is None:
        return list(ask(list(items)))
    digests: dict[int, str] = {}  # of the images, which many items share
    identities, keys = [], []
    for item in items:
        own = identity(item)
        for image in own.get("images", ()):
            if id(image) not in digests:
                digests[id(image)] = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
        own["images"] = [digests[id(image)] for image in own.get("images", ())]
        identities.append(own)
        keys.append(hashlib.sha256(json.dumps([run, own], sort_keys=True).encode()).hexdigest())
    known = read_answers(path)
    for start in range(0, len(keys), chunk_size):
        part = slice(start, start + chunk_size)
        if all(key in known for key in keys[part]):
            continue
        records = [
            {"key": key, "run": run[:12], "answer": answer}
            | {name: own[name] for name in ("protocol", "person_id", "question")}
            for key, own, answer in zip(keys[part], identities[part], ask(list(items[part])), strict=True)
        ]
        append_answers(path, records)
        known.update((record["key"], record["answer"]) for record in records)
    return [known[key] for key in keys]


def _whole_lines(content: bytes) -> Iterator[bytes]:
    return iter(content[: content.rfind(b"\n") + 1].splitlines())
