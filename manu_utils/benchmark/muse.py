"""MUSE (arXiv 2407.06460): news or books that a language model has read, as raw text.

``muse-bench/MUSE-News`` and ``-Books`` hold, a config each with a split a file: ``verbmem`` (the
beginning of a text, and what follows), ``knowmem`` (questions with short answers, and ten solved
ones as shots), ``privleak`` (texts that were read, or not), ``raw`` (all that is read), News also
``scal`` and ``sust`` (more to forget at once, or one after the other). MUSE's models are no
chats: nothing is put around a text (task ``"raw"``), and a question stands between "Question:"
and "Answer:" after its shots.

Its code asks with the greedy answer, reads the sides of ``privleak`` whole, and trains on pieces
of 2,048 tokens of all texts in a row (:func:`pieces_of`). Configs, splits and columns are those of
the cards on the Hub; tried with the texts of the authors' repository, not with the downloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .columns import read_columns
from .records import Question

PIECE = 2048  # tokens of a text that is trained on at a time
# Cut out of its text, a piece may take more tokens than it had there: one for a space that it
# begins with, and three where the cut would be inside a character.
_SPARE = 4


@dataclass(frozen=True)
class Muse:
    """MUSE, each part as questions of the task ``"raw"``; person_id is config, split and place.

    Attributes:
        verbatim: of the texts to forget, the beginning as question and what follows as answer.
        knowledge: ``"forget"`` and ``"retain"`` -> questions after their shots.
        sides: ``"forget"``, ``"holdout"`` (read by no model) and ``"retain"`` -> whole texts as
            answers without a question, for :func:`manu_utils.auditing.membership_scores`.
        texts: ``"forget"`` and ``"retain"`` (``raw/retain1``) -> all to forget, and to train on
            beside it, as one text, for :func:`pieces_of`.
    """

    verbatim: list[Question]
    knowledge: dict[str, list[Question]]
    sides: dict[str, list[Question]]
    texts: dict[str, str]


def load_muse(source: str | Path) -> Muse:
    """All that MUSE's first four questions and its methods need.

    Args:
        source: a local folder in the layout of the Hub, or ``"muse-bench/MUSE-News"`` or
            ``"muse-bench/MUSE-Books"``.

    Raises:
        ValueError: a missing config, split or column, or an empty text; also what ``read_config``
            raises.
        FileNotFoundError, ConnectionError: see ``read_config``.
    """
    verbatim = [
        _raw(who, begins, _after(begins, follows))
        for who, begins, follows in _rows(source, "verbmem", "forget", ["prompt", "gt"])
    ]
    return Muse(
        verbatim=verbatim,
        knowledge={name: _knowledge(source, f"{name}_qa") for name in ("forget", "retain")},
        sides={
            split: [_raw(who, "", text) for who, text in _rows(source, "privleak", split, ["text"])]
            for split in ("forget", "holdout", "retain")
        },
        texts={
            name: load_muse_text(source, "raw", split)
            for name, split in (("forget", "forget"), ("retain", "retain1"))
        },
    )


def load_muse_text(source: str | Path, config: str, split: str) -> str:
    """All texts of a split as one, an empty line between two, as MUSE trains on them.

    Args:
        config, split: such as ``"scal", "forget_2"`` or ``"sust", "forget_2"`` of News. One text of
            ``raw/forget`` of News is empty, and stays so.

    Raises:
        ValueError: nothing but space; also what ``read_config`` raises.
    """
    rows = read_columns(source, config, ["text"], split=split)
    text = "\n\n".join(row["text"] or "" for row in rows)
    if not text.strip():
        raise ValueError(f"{config}/{split} of {source} has no words; fetch the file again.")
    return text


def pieces_of(
    text: str, tokenizer, *, n_tokens: int = PIECE, name: str = "piece"
) -> list[Question]:
    """A long text cut into questions to train on: put together they are the text.

    MUSE fills the last piece up with the beginning of the text; here it is shorter.

    Args:
        tokenizer: of the model, a fast one of transformers.
        n_tokens: of a piece at most, what the tokenizer itself adds included.
        name: person_id of the pieces, before their number; different for forget and retain set.

    Raises:
        ValueError: an empty text, a tokenizer that does not say where its tokens are, or too few
            tokens for a piece.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"a {type(tokenizer).__name__} does not say where in the text its tokens are; take "
            "the fast tokenizer of the model."
        )
    if not text.strip():
        raise ValueError("the text has no words, so there is no piece of it.")
    room = n_tokens - len(tokenizer("")["input_ids"]) - _SPARE
    if room < 1:
        raise ValueError(f"n_tokens={n_tokens} is too few for a piece; MUSE has {PIECE}.")
    places = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    cuts = [0, *(places[i][0] for i in range(room, len(places), room)), len(text)]
    pieces = [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False) if start < end]
    return [_raw(f"{name}_{number:04}", "", piece) for number, piece in enumerate(pieces, 1)]


def asked_after(shots: Sequence[tuple[str, str]], question: str) -> str:
    """The prompt of a question about a text: solved ones, then this one.

    >>> asked_after([("Who?", "Ada")], "When?")
    'Question: Who?\\nAnswer: Ada\\n\\nQuestion: When?\\nAnswer: '
    """
    solved = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in shots)
    return f"{solved}Question: {question}\nAnswer: "


def _knowledge(source: str | Path, split: str) -> list[Question]:
    columns = ["question", "answer"]
    shots = [pair for _, *pair in _rows(source, "knowmem", f"{split}_icl", columns)]
    return [
        _raw(who, asked_after(shots, question), answer)
        for who, question, answer in _rows(source, "knowmem", split, columns)
    ]


def _after(begins: str, follows: str) -> str:
    """What follows a beginning, after a space, unless there is one: the files have lost it, also
    where a word is cut in two, which cannot be told from them."""
    return follows if begins[-1].isspace() or follows[0].isspace() else f" {follows}"


def _rows(source: str | Path, config: str, split: str, columns: list[str]) -> list[tuple[str, ...]]:
    """(config_split_place, the texts of the columns) of each row.

    Raises:
        ValueError: a text that is empty.
    """
    found = []
    for place, row in enumerate(read_columns(source, config, columns, split=split), 1):
        for column in columns:
            if not (row[column] or "").strip():
                raise ValueError(
                    f"row {place} of {config}/{split} of {source} has no {column}; fetch the file "
                    f"again."
                )
        found.append((f"{config}_{split}_{place:03}", *(row[column] for column in columns)))
    return found


def _raw(who: str, begins: str, follows: str) -> Question:
    return Question(who, begins, follows, None, "raw")
