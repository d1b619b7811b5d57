"""Prompts with solved examples before the question, several images in each."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix

import PIL.Image
import torch
from torch import Tensor, nn

from ..benchmark.pictures import decoded
from ..benchmark.records import Question
from ..models.asking import greedy_config, in_batches
from ..models.encoding import image_tokens, padding_token
from ..models.prefix_tree import PICTURES_AT_ONCE, can_share, continue_shared, pack_rows, plan_rows
from ..models.prompts import image_token_of, needs_special_tokens

MAX_NEW_TOKENS = 50  # of both protocols


@dataclass(frozen=True)
class Prompt:
    """A question as the model gets it: an image placeholder in the text for each image, in order.

    ``shots`` is the beginning of the text that other prompts have as well; LLaVA reads it once for
    all of them.
    """

    question: Question
    text: str
    images: tuple[PIL.Image.Image, ...] = ()
    shots: str = ""


def draw_of(seed: int | None, *what: str) -> random.Random:
    return random.Random() if seed is None else random.Random(" ".join([str(seed), *what]))


def encode_prompts(
    prompts: Sequence[Prompt], processor, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Tokenise b prompts, each with its images, into one left-padded batch of t tokens.

    Args:
        prompts: all with images, or all without; the processor has to take lists of images (those
            of LLaVA and Idefics do).

    Returns:
        ``input_ids`` and ``attention_mask`` int64 [b, t], and with images what the processor makes
        of them (LLaVA: ``pixel_values`` float32 [images of all prompts, 3, h, w]).

    Raises:
        ValueError: a prompt whose placeholders are not as many as its images, or prompts with and
            without images together.
    """
    _check_placeholders(prompts, processor)
    if len({bool(one.images) for one in prompts}) > 1:
        raise ValueError(
            "a batch holds one modality; encode prompts with and without images separately."
        )
    texts = [one.text for one in prompts]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    options["add_special_tokens"] = needs_special_tokens(texts, processor)
    if not prompts[0].images:
        batch = processor.tokenizer(texts, return_token_type_ids=False, **options)
    else:
        images = {id(image): image for one in prompts for image in one.images}
        # a shot's picture is decoded once
        pixels = {key: decoded(image) for key, image in images.items()}
        batch = processor(
            images=[[pixels[id(image)] for image in one.images] for one in prompts],
            text=texts,
            **options,
        )
    return {key: value.to(device) for key, value in batch.items()}


def _prompt_batches(
    prompts: Sequence[Prompt],
    processor,
    batch_size: int,
    with_answer: bool,
    device: str | torch.device,
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """As :func:`batches`: longest first, prompts of one number of images together."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive.")
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda index: -len(prompts[index].text)):
        groups.setdefault(len(prompts[index].images), []).append(index)
    for _, group in sorted(groups.items(), reverse=True):
        for start in range(0, len(group), batch_size):
            indices = group[start : start + batch_size]
            yield indices, encode_prompts([prompts[index] for index in indices], processor, device)


def shared_prompts(
    prompts: Sequence[Prompt],
    processor,
    batch_size: int,
    with_answer: bool = False,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """As :func:`shared_batches`, for prompts of any number of images: shots are in a batch once.

    The prompts of a batch have the same shots. What all of them begin with is read before the rows;
    prompts with the same images share a row; and an image is there once, however many places it
    has. A batch of r rows, its beginning counted for each of them, takes no more tokens than
    ``batch_size`` of its longest prompt would.

    Args:
        with_answer: always False.

    Returns:
        Pairs of (indices into ``prompts``, batch): ``beginning`` int64 [p], what is read before;
        ``input_ids``, ``position_ids`` int64 [r, t] and ``attention_mask`` bool [r, 1, t, p + t] of
        what follows; ``reads`` int64 [m, 3]; with images ``pixel_values`` float32 [images, 3, h, w]
        and ``features`` int64 [image tokens, 2], the image and its feature at each image token, in
        the order of ``beginning`` and ``input_ids``.

    Raises:
        ValueError: batch_size below 1, or a prompt whose placeholders are not as many as its
            images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive.")
    _check_placeholders(prompts, processor)
    tokenizer, image_token = processor.tokenizer, image_token_of(processor)
    image_id = tokenizer.convert_tokens_to_ids(image_token)
    images = list({id(image): image for one in prompts for image in one.images}.values())
    places = {id(image): place for place, image in enumerate(images)}
    n = 0  # features of an image
    if images:
        one = next(one for one in prompts if one.images)
        ids = encode_prompts([one], processor)["input_ids"]
        n = (ids == image_id).sum().item() // len(one.images)
    # Tokens are alike only where images are: here image i is the token -1 - i, and then its
    # features are tokens of their own.
    sequences = []
    texts = tokenizer([one.text for one in prompts])["input_ids"]
    for one, ids in zip(prompts, texts, strict=True):
        own = (-1 - places[id(image)] for image in one.images)
        sequences.append([next(own) if token == image_id else token for token in ids])
    features = [[-1 - n * place - feature for feature in range(n)] for place in range(len(images))]

    def expand(ids: list[int]) -> list[int]:
        return [part for token in ids for part in (features[-1 - token] if token < 0 else (token,))]

    # shots -> images, or the text without any -> indices
    groups: dict[tuple, dict[object, list[int]]] = {}
    for index, one in enumerate(prompts):
        seen = tuple(id(image) for image in one.images)
        group = groups.setdefault((one.shots, seen[: one.shots.count(image_token)]), {})
        group.setdefault(seen or one.text, []).append(index)

    for (shots, _), group in groups.items():
        own = [index for row in group.values() for index in row]
        first, last = min(sequences[index] for index in own), max(sequences[index] for index in own)
        # of the first and the last in order: so it is of all
        alike = commonprefix([first, last]) if shots else []
        # something has to be left to read
        alike = alike[: min(len(sequences[index]) for index in own) - 1]
        beginning = expand(alike)
        rest = {index: expand(sequences[index][len(alike) :]) for index in own}
        for rows in plan_rows(list(group.values()), rest.__getitem__, batch_size, len(beginning)):
            packed = [[rest[index] for index in row] for row in rows]
            batch = _packed(packed, beginning, images, n, processor)
            indices = [index for row in rows for index in row]
            yield indices, {key: value.to(device) for key, value in batch.items()}


def _packed(
    rows: list[list[list[int]]], beginning: list[int], images: Sequence[PIL.Image.Image], n: int,
    processor,
) -> dict[str, Tensor]:  # fmt: skip
    """One batch of :func:`shared_prompts`, of rows of token sequences. Feature f of image i, which
    has n, is the token -1 - n · i - f.
    """
    batch, paths = pack_rows(rows, padding_token(processor))
    p, mask = len(beginning), batch["attention_mask"]
    batch["attention_mask"] = torch.cat([mask.new_ones(*mask.shape[:-1], p), mask], dim=-1)
    batch["position_ids"] += p
    batch["beginning"] = torch.tensor(beginning, dtype=torch.int64)
    reads = [(number, row, path[-1]) for number, (row, path) in enumerate(paths)]
    batch["reads"] = torch.tensor(reads)
    ids = torch.cat([batch["beginning"], batch["input_ids"].flatten()])
    if (ids < 0).any():
        number = -1 - ids[ids < 0]
        shown, place = number.div(n, rounding_mode="floor").unique(return_inverse=True)
        batch["features"] = torch.stack([place, number % n], dim=1)
        batch["pixel_values"] = _pixels([images[at] for at in shown.tolist()], processor)
        image_id = processor.tokenizer.convert_tokens_to_ids(image_token_of(processor))
        for name in ("beginning", "input_ids"):
            batch[name][batch[name] < 0] = image_id
    return batch


def _pixels(images: Sequence[PIL.Image.Image], processor) -> Tensor:
    """The pixel values of some images, few of which are decoded at a time."""
    parts = (images[k : k + PICTURES_AT_ONCE] for k in range(0, len(images), PICTURES_AT_ONCE))
    found = (
        processor.image_processor([decoded(image) for image in part], return_tensors="pt")
        for part in parts
    )
    return torch.cat([values["pixel_values"] for values in found])


def _check_placeholders(prompts: Sequence[Prompt], processor) -> None:
    image_token = image_token_of(processor)
    for one in prompts:
        if (found := one.text.count(image_token)) != len(one.images):
            raise ValueError(
                f"a prompt has {found} {image_token} but {len(one.images)} images; they must match "
                f"one to one."
            )


def check_lengths(
    model, processor, prompts: Sequence[Prompt], max_new_tokens: int = MAX_NEW_TOKENS
) -> None:
    """Warn, before they are read, of prompts that with the new tokens exceed a model's positions.

    Rotary positions go on, to angles that the model never saw, so such prompts are asked all the
    same, as the official code does. Where positions are looked up in a table (OPT, GPT-2) there are
    no more.

    Raises:
        ValueError: there are such prompts, and positions are in a table.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not positions or not prompts:
        return
    special = needs_special_tokens([prompts[0].text], processor)
    of_size: dict[tuple[int, int], int] = {}
    lengths = []
    for one in prompts:
        for image in one.images:
            if image.size not in of_size:
                of_size[image.size] = image_tokens(image, processor)
        ids = processor.tokenizer(one.text, add_special_tokens=special, verbose=False)["input_ids"]
        lengths.append(len(ids) + sum(of_size[image.size] for image in one.images))
    if not (n := sum(length + max_new_tokens > positions for length in lengths)):
        return
    said = (
        f"{n} of {len(prompts)} prompts with shots have up to {max(lengths)} tokens, which with "
        f"{max_new_tokens} new ones go beyond the {positions} positions that the model was made for"
    )
    words = model.get_input_embeddings()
    tables = [
        m.num_embeddings
        for m in model.get_decoder().modules()
        if isinstance(m, nn.Embedding) and m is not words
    ]
    if any(0 <= size - positions <= 2 for size in tables):  # OPT's has two more
        raise ValueError(
            f"{said}, and it has no others; ask without shots, or take a model with more positions."
        )
    warnings.warn(f"{said}; its answers to them may be noise.", stacklevel=3)


def respond(
    model,
    processor,
    prompts: Sequence[Prompt],
    *,
    echo: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 64,
    progress: bool = True,
) -> list[str]:
    """The greedy continuation of each prompt, in order; CUDA out of memory halves the batch.

    Args:
        echo: prompt and continuation in one, without special tokens and the first two tokens, as
            the official code decodes; else the new tokens only, stripped.

    Raises:
        ValueError: no prompts, a size below 1, or see :func:`encode_prompts`.
    """
    if not prompts:
        raise ValueError("there is no prompt to answer; pass at least one.")
    greedy = greedy_config(model, processor, max_new_tokens)

    @torch.no_grad()
    def write(batch: dict[str, Tensor]) -> list[str]:
        if "reads" in batch:
            new = continue_shared(model, batch, greedy)
            _, row, last = batch["reads"].T
            beginning = batch["beginning"].expand(len(batch["input_ids"]), -1)
            ids = torch.cat([beginning, batch["input_ids"]], dim=1)[row]
            own = batch["attention_mask"][row, 0, last]
        else:
            ids, own = batch["input_ids"], batch["attention_mask"].bool()
            new = model.generate(**batch, generation_config=greedy)[:, ids.shape[1] :]
        if echo:
            new = [torch.cat([ids[i][own[i]][2:], new[i]]) for i in range(len(new))]
        written = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return written if echo else [text.strip() for text in written]

    texts = [""] * len(prompts)
    make = shared_prompts if can_share(model) else _prompt_batches
    arguments = (model, processor, prompts, batch_size, False, progress, "answers", make)
    for indices, written in in_batches(write, *arguments):
        for index, text in zip(indices, written, strict=True):
            texts[index] = text
    return texts
