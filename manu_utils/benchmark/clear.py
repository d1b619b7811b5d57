"""CLEAR (arXiv 2410.18057): the authors of TOFU with captioned portraits, as a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .columns import choice_of, evaluated_row, joined, read_columns, told_row
from .sets import Benchmark

if TYPE_CHECKING:
    from datasets import Dataset

CAPTION = "What can you see in this picture?"  # two of the requests of CLEAR's own training code
CAPTION_IN_TEST = "Describe the image in detail."
NAMING = "What is the name of the person in the image?"  # as evaluations on CLEAR ask for the name
FITTING = "Which description fits this image?"  # ours: CLEAR compares likelihoods of whole captions


def load_clear(source: str | Path, forget_ratio: int, modalities: Sequence[str]) -> Benchmark:
    """CLEAR as a :class:`Benchmark`; its sets: :mod:`manu_utils.benchmark.columns`.

    A text question is of the author whose name it holds; one that names nobody is of the author of
    the question before it.

    Args:
        forget_ratio: 1, 5 or 10.
        modalities: ``("text",)`` reads no byte of the portraits.

    Raises:
        ValueError: a missing column, a person in both forget and retain, or text questions that
            name nobody; also what ``read_config`` raises.
    """
    images = "multimodal" in modalities
    columns = ["name", "caption", "perturbed_names"]
    forget_of, retain_of = f"forget{forget_ratio:02}", f"retain{100 - forget_ratio}"
    configs = (forget_of, retain_of)
    portraits = [read_columns(source, config, columns[:2], images=images) for config in configs]
    names = [set(part["name"]) for part in portraits]
    if both := sorted(names[0] & names[1]):
        raise ValueError(
            f"{len(both)} people are in both {forget_of} and {retain_of} of {source}, such as "
            f"{both[0]}."
        )
    texts = [
        _by_name(source, f"{config}+tofu", known)
        for config, known in zip(configs, names, strict=True)
    ]
    described = [*columns, "perturbed_captions", "paraphrased_caption"]
    forget = read_columns(source, f"{forget_of}_perturbed", described, images=images)
    retain = read_columns(source, "retain_perturbed", columns, images=images)
    if strangers := sorted(set(forget["name"]) - names[0]):
        raise ValueError(
            f"{forget_of}_perturbed of {source} has people who are not in {forget_of}, such as "
            f"{strangers[0]}."
        )
    real = read_columns(source, "real_faces", ["answer", "options"], images=images)

    # retain_perturbed is one file for all ratios, so it may hold people of this forget set.
    allowed = [index for index, name in enumerate(retain["name"]) if name in names[1]]
    retain = retain.select(allowed).flatten_indices() if len(allowed) < len(retain) else retain
    everything = ["classification/multimodal", "generation/multimodal", "generation/text"]
    training = [_of_each(_captioned, part) for part in portraits]
    training += [([told_row(name, rows) for name, rows in text.items()], None) for text in texts]
    people = [dict.fromkeys(part["name"]) for part in portraits]
    asked = set(retain["name"])
    told = [_worded(name, texts[0].get(name, ())) for name in people[0]]
    kept = [_worded(name, texts[1].get(name, ()) if name in asked else ()) for name in people[1]]
    return Benchmark(
        forget=joined("CLEAR forget", everything, [_of_each(_named, forget), (told, None)]),
        retain=joined("CLEAR retain", everything, [_of_each(_named, retain), (kept, None)]),
        test=joined("CLEAR test", everything[:2], [_of_each(_described, forget)]),
        celebrity=joined("CLEAR celebrity", everything[:1], [_of_each(_face, real)]),
        training=joined("CLEAR training", None, training),
        forget_ratio=forget_ratio,
        source=str(source),
    )


def _of_each(convert: Callable[[dict], dict], part: Dataset) -> tuple[list[dict], Dataset]:
    rows = part.remove_columns("image") if "image" in part.column_names else part
    return [convert(row) for row in rows], part


def _named(row: dict) -> dict:
    choices = [choice_of(NAMING, row["name"], row["perturbed_names"])]
    generation = [("Image_Textual", CAPTION, row["caption"])]
    return evaluated_row(row["name"], choices=choices, generation=generation)


def _described(row: dict) -> dict:
    truth = row["paraphrased_caption"]
    truth = truth if isinstance(truth, str) else truth[0]
    choices = [choice_of(FITTING, truth, row["perturbed_captions"])]
    generation = [("Image_Textual", CAPTION_IN_TEST, truth)]
    return evaluated_row(row["name"], choices=choices, generation=generation)


def _face(row: dict) -> dict:
    question = row.get("question") or NAMING
    choices = [choice_of(question, row["answer"], row["options"])]
    return evaluated_row(row["answer"], choices=choices)


def _worded(name: str, rows: Iterable[dict]) -> dict:
    asked = [("Pure_Text", row["question"], row["answer"]) for row in rows]
    return evaluated_row(name, generation=asked)


def _captioned(row: dict) -> dict:
    pair = {"question": CAPTION, "answer": row["caption"]}
    return told_row(row["name"], [pair], kind="Image_Textual")


def _by_name(source: str | Path, config: str, names: set[str]) -> dict[str, list[dict]]:
    """The text questions of a mixed config by author: the longest name in question, else answer."""
    by_length = sorted(names, key=len, reverse=True)
    grouped: dict[str, list[dict]] = {}
    unnamed, author = [], None
    for row in read_columns(source, config, ["question", "answer"], images=False):
        if not row["question"]:  # the row of a portrait
            continue
        found = (
            name for text in (row["question"], row["answer"]) for name in by_length if name in text
        )
        author = next(found, author)
        if author is None:
            unnamed.append(row)
            continue
        grouped.setdefault(author, []).extend([*unnamed, row])
        unnamed = []
    if not grouped:
        raise ValueError(
            f"no text question in {config} of {source} names one of its people, such as "
            f"{min(names)}."
        )
    return grouped
