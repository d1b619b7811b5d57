"""Answers kept in a file as they come, so that a killed evaluation goes on where it stopped.

A file of JSON lines, one answer a line under a key that hashes all that the answer depends on.
Answers of other models and protocols may be in the same file; their keys differ, so they are never
taken for one's own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.records import Question
from ..models.fingerprints import picture_digests
from ..models.prompts import prompt
from ..paths import check_writable, whole

if TYPE_CHECKING:
    from .shots import Prompt

# Every line begins so; 0 for any digit.
_BEGIN, _HEX = b'{"key": "' + b"0" * 64 + b'", "run": "', b"0123456789abcdef"


def read_answers(path: str | Path) -> dict[str, str]:
    """key -> answer; empty if there is no file.

    A last line that was cut off when its writer was killed is left out.

    Raises:
        ValueError: there is something else: no regular file, or one that :func:`append_answers` did
            not write.
    """
    return _read(Path(path).expanduser())[0]


def _read(path: Path) -> tuple[dict[str, str], int]:
    """The answers of a file, and the number of its bytes in whole lines."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "device"
        raise ValueError(
            f"{path} is a {kind}, not a file of answers; name a file that is one, or is not there "
            "yet."
        )
    if not path.exists():
        return {}, 0
    content = path.read_bytes()
    n_bytes = content.rfind(b"\n") + 1
    answers: dict[str, str] = {}
    try:
        for line in content[:n_bytes].split(b"\n")[:-1]:
            record = json.loads(line.decode("utf-8"))
            if (
                not _begins_a_record(line)
                or len(line) < len(_BEGIN)
                or not isinstance(record["answer"], str)
            ):
                raise ValueError("another line")
            answers[record["key"]] = record["answer"]
        if not answers or not _begins_a_record(content[n_bytes:]):
            raise ValueError("another file")  # an empty one, too: append_answers never leaves it so
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a file of answers that an evaluation wrote, and is left as it is; name "
            "another file, or move it away."
        ) from error
    return answers, n_bytes


def _begins_a_record(line: bytes) -> bool:
    """Whether a line, maybe cut off anywhere, begins as those of :func:`append_answers` do."""
    pairs = zip(line, _BEGIN, strict=False)
    return all(byte == wanted or wanted == ord("0") and byte in _HEX for byte, wanted in pairs)


def append_answers(path: str | Path, records: Sequence[dict]) -> None:
    """Add records, all in one write that is on the disk when this returns.

    The file and its folder are made if they are not there; a line cut off by an earlier kill is
    removed first, and two processes that write at once wait for each other.

    Args:
        records: ``key`` (64 hex digits) and ``run``, in this order, ``answer``, and what a reader
            may want to see.

    Raises:
        ValueError: the file is not one of answers, or a key is no hash; nothing is written.
    """
    from filelock import FileLock

    path = Path(path).expanduser()
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    if not all(
        _begins_a_record(line) and len(line) >= len(_BEGIN) for line in content.splitlines()
    ):
        raise ValueError("a record must begin with key, 64 hex digits, and run.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # hidden, so that it is nobody's file
        _, n_bytes = _read(path)
        if n_bytes == 0:  # a new file is there with its first lines or not at all
            with whole(path) as part, part.open("wb") as file:
                _write(file, content)
            return
        with path.open("r+b") as file:
            file.truncate(n_bytes)
            file.seek(n_bytes)
            _write(file, content)


def _check_open(path: Path) -> None:
    """Check that :func:`append_answers` may write; OSError if not."""
    check_writable(path.parent)
    if path.exists():
        path.open("r+b").close()


def _write(file, content: bytes) -> None:
    file.write(content)
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
    """The answers to some items, from the file as far as they are there, else asked and written.

    Items are asked in the same chunks whether or not a run was killed, so that a run that goes on
    has the batches, and the answers to the last bit, of one that was never stopped. At most one
    chunk is asked twice.

    Args:
        path: the file; None asks all at once and writes nothing.
        run: what the answers depend on besides the item: a :func:`fingerprint` or a name.
        identity: of an item: all that tells it from others, plain values that JSON can hold and,
            under ``images``, a list of images; ``protocol``, ``person_id`` and ``question`` are
            written beside the answer for a reader.
        ask: answers a list of items.
        chunk_size: items asked between two writes.

    Raises:
        OSError: the file or its folder cannot be written; nothing is asked.
        ValueError: the file is not one of answers (before anything is asked), see
            :func:`read_answers`.
    """
    if path is None:
        return list(ask(list(items)))
    known = read_answers(path)
    identities, keys = [identity(item) for item in items], []
    # Many items share an image.
    digests = picture_digests(image for own in identities for image in own.get("images", ()))
    for own in identities:
        own["images"] = [digests[id(image)] for image in own.get("images", ())]
        keys.append(hashlib.sha256(json.dumps([run, own], sort_keys=True).encode()).hexdigest())
    for start in range(0, len(keys), chunk_size):
        part = slice(start, start + chunk_size)
        if all(key in known for key in keys[part]):
            continue
        _check_open(Path(path).expanduser())  # found out before they are asked
        records = [
            {"key": key, "run": run[:12], "answer": answer}
            | {name: own[name] for name in ("protocol", "person_id", "question")}
            for key, own, answer in zip(
                keys[part], identities[part], ask(list(items[part])), strict=True
            )
        ]
        append_answers(path, records)
        known.update((record["key"], record["answer"]) for record in records)
    return [known[key] for key in keys]


def key_of(processor, asked: Question | Prompt, **more) -> dict:
    """What tells a question or prompt from others in a file of answers."""
    question = asked if isinstance(asked, Question) else asked.question
    if isinstance(asked, Question):
        text, images = (
            prompt(asked, processor),
            [image for image in (asked.image,) if image is not None],
        )
    else:
        text, images = asked.text, list(asked.images)
    own = {
        "person_id": question.person_id,
        "question": question.question,
        "prompt": text,
        "images": images,
    }
    return own | {"options": question.options} | more
