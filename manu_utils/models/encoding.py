"""From questions to the tensors of a vision-language model, in batches. Derived in notebook 02."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import PIL.Image
import torch
from torch import Tensor

from ..benchmark.pictures import Picture, decoded
from ..benchmark.records import MODALITIES, Question
from .passes import check_processor
from .prompts import (
    answer_texts,
    are_raw,
    image_token_of,
    needs_special_tokens,
    prompt,
    uses_chat,
)


def encode(
    questions: Sequence[Question], processor, with_answer: bool, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Tokenise b questions of one modality into one left-padded batch of t tokens.

    Args:
        questions: all with an image, or all without.
        with_answer: append the answer and its end to each prompt, see :func:`answer_texts`.

    Returns:
        ``input_ids`` int64 [b, t] and ``attention_mask`` int64 [b, t]; with images ``pixel_values``
        float32 [b, 3, h, w]; ``with_answer``: ``answer_mask`` bool [b, t], true on the tokens of
        the answer, end of sequence included. What else the processor returns is passed through.

    Raises:
        ValueError: no question, mixed modalities, raw texts among questions in a chat, a prompt
            whose image tokens do not match the image's features or that has none, an answer of
            which no token can be predicted (:func:`answer_start`), or a processor that writes
            something after the answer.
    """
    if not questions:
        raise ValueError("a batch needs at least one question.")
    if len({question.modality for question in questions}) > 1:
        raise ValueError(
            "a batch holds one modality; encode questions with and without an image separately."
        )
    tokenizer, raw = processor.tokenizer, are_raw(questions, processor)
    prompts = [prompt(question, processor) for question in questions]
    special = needs_special_tokens(prompts, processor)
    texts = prompts
    if with_answer:
        texts = [
            f"{p}{answer}"
            for p, answer in zip(prompts, answer_texts(questions, processor), strict=True)
        ]
    options = {
        "padding": True,
        "padding_side": "left",
        "return_tensors": "pt",
        "return_token_type_ids": False,
    }
    options["add_special_tokens"] = special
    if questions[0].image is None:
        reader = processor if uses_chat(processor) and not raw else tokenizer
        batch = dict(reader(text=texts, **options))
    else:
        images = [[image] if uses_chat(processor) else image for image in opened(questions)]
        batch = dict(processor(images=images, text=texts, **options))
        check_image_tokens(batch, processor)
    if not with_answer:
        check_prompts(batch["attention_mask"].sum(1).tolist())
    else:
        wholes, starts = with_answers(prompts, texts, tokenizer, special)
        answers = [whole[start:] for start, whole in zip(starts, wholes, strict=True)]
        if any(
            ids[-len(answer) :].tolist() != answer
            for ids, answer in zip(batch["input_ids"], answers, strict=True)
        ):
            raise ValueError(
                f"the batches of a {type(processor).__name__} do not end with the answer, so its "
                f"tokens cannot be told from the others; use a processor that takes prompt and "
                "answer as one text."
            )
        lengths = torch.tensor([len(answer) for answer in answers])
        t = batch["input_ids"].shape[1]
        # left-padded: the answer is at the end
        batch["answer_mask"] = torch.arange(t)[None, :] >= (t - lengths)[:, None]
    return {key: value.to(device) for key, value in batch.items()}


def padding_token(processor) -> int:
    """What fills up the shorter rows of a batch; no row sees it.

    Raises:
        ValueError: a tokenizer without padding token.
    """
    pad = processor.tokenizer.pad_token_id
    if pad is None:
        raise ValueError(
            "the tokenizer has no padding token, which batches need; set "
            "processor.tokenizer.pad_token = processor.tokenizer.eos_token (padding is masked), or "
            "take the processor of load_model, which does."
        )
    return pad


def predicting(batch: dict[str, Tensor]) -> Tensor:
    """The positions that predict a token of the answer, each the one before it: bool [b, t]."""
    mask = torch.zeros_like(batch["answer_mask"])
    mask[:, :-1] = batch["answer_mask"][:, 1:]
    return mask


def picture_tokens(model, batch: dict[str, Tensor]) -> Tensor:
    """bool [b, t]: which tokens of a batch of :func:`encode` stand for a part of a picture."""
    token = getattr(model.config, "image_token_id", None)
    return batch["input_ids"] == (-1 if token is None else token)


def opened(questions: Sequence[Question]) -> list[PIL.Image.Image]:
    """The images of questions, RGB and with their pixels; a shared one is decoded once.

    Raises:
        ValueError: an image whose black and white are not known, with the person (:func:`as_rgb`).
    """
    once: dict[object, PIL.Image.Image] = {}
    keys = [
        question.image.key if isinstance(question.image, Picture) else id(question.image)
        for question in questions
    ]
    for key, question in zip(keys, questions, strict=True):
        if key in once:
            continue
        try:
            once[key] = decoded(question.image)
        except ValueError as error:
            raise ValueError(
                f"person {question.person_id}: the image cannot be used: {error}."
            ) from error
    return [once[key] for key in keys]


def batches(
    questions: Sequence[Question],
    processor,
    batch_size: int,
    with_answer: bool,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Pairs (indices into ``questions``, batch), longest first: too large a batch fails at once.

    Ties keep their order, so the batches are the same in every run. Image and text questions never
    share a batch. Questions that are too long for the model are in none (:func:`fitting`).

    Raises:
        ValueError: batch_size below 1; see also :func:`encode`.
    """
    groups = plan_batches(questions, processor, batch_size, with_answer)
    return (
        (group, encode([questions[i] for i in group], processor, with_answer, device))
        for group in groups
    )


def plan_batches(
    questions: Sequence[Question], processor, batch_size: int, with_answer: bool
) -> list[list[int]]:
    """The indices into ``questions`` of each batch of :func:`batches`, in order.

    The questions of some of these batches, taken in the order of ``questions``, fall into the same
    batches again. So whole batches can be handed out to several processes, and each computes what
    one process would have computed.

    Raises:
        ValueError: batch_size below 1; see also :func:`encode`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive.")
    kept, prompts = fitting(questions, processor, with_answer)
    own = [questions[index] for index in kept]
    length_of: dict[int, int] = {}
    for start in range(0, len(own), batch_size):  # in parts, so that only the lengths are kept
        part = slice(start, start + batch_size)
        texts = [
            f"{text} {q.answer if with_answer else ''}"
            for text, q in zip(prompts[part], own[part], strict=True)
        ]
        length_of |= zip(kept[part], map(len, processor.tokenizer(texts)["input_ids"]), strict=True)
    groups = []
    for modality in MODALITIES:
        indices = [index for index in kept if questions[index].modality == modality]
        indices.sort(key=lambda index: -length_of[index])
        groups += [
            indices[start : start + batch_size] for start in range(0, len(indices), batch_size)
        ]
    return groups


def fitting(
    questions: Sequence[Question], processor, with_answer: bool
) -> tuple[list[int], list[str]]:
    """Indices of the questions a model has positions for, their prompts; a warning names others.

    What is longer would be read at positions that the model never saw, and mean nothing. The number
    of positions is ``processor.tokenizer.model_max_length``, which :func:`load_model` takes from
    the model's config.

    Args:
        with_answer: count the answer and its end, too; else one position is left for the first
            token of an answer.

    Raises:
        TypeError: no processor.
        ValueError: none of them fits.
    """
    check_processor(processor)
    positions = processor.tokenizer.model_max_length
    room = positions - (0 if with_answer else 1)
    prompts = texts = [prompt(question, processor) for question in questions]
    if with_answer:
        texts = [
            f"{text}{answer}"
            for text, answer in zip(texts, answer_texts(questions, processor), strict=True)
        ]
    images = [question for question in questions if question.image is not None]
    largest = max(
        images, key=lambda question: question.image.width * question.image.height, default=None
    )
    # A token is at least a byte. Twice, since an image of another shape may take more tokens than a
    # larger one.
    most = 8 + (2 * image_tokens(largest.image, processor) if largest else 0)
    doubtful = [index for index, text in enumerate(texts) if len(text.encode()) + most > room]
    if not doubtful:
        return list(range(len(questions))), prompts
    of_size: dict[tuple[int, int], int] = {}
    too_long: dict[int, int] = {}
    for index in doubtful:
        special = needs_special_tokens([texts[index]], processor)
        ids = processor.tokenizer(texts[index], add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        length, image = len(ids), questions[index].image
        if image is not None:
            if image.size not in of_size:
                of_size[image.size] = image_tokens(image, processor)
            length += of_size[image.size]
        if length > room:
            too_long[index] = length
    if not too_long:
        return list(range(len(questions))), prompts
    named = ", ".join(
        f"person {questions[index].person_id} {questions[index].question[:60]!r} ({length} tokens)"
        for index, length in list(too_long.items())[:5]
    )
    said = (
        f"{len(too_long)} of {len(questions)} questions have more tokens than the model has "
        f"positions ({positions}){', the answer included' if with_answer else ''}: "
        f"{named}{', ...' if len(too_long) > 5 else ''}"
    )
    if len(too_long) == len(questions):
        raise ValueError(
            f"{said}; nothing is left to ask: shorten them, or take a model with more positions."
        )
    warnings.warn(f"{said}; they are left out.", stacklevel=3)
    kept = [index for index in range(len(questions)) if index not in too_long]
    return kept, [prompts[index] for index in kept]


def image_tokens(image: PIL.Image.Image, processor) -> int:
    """How many tokens an image of this size adds to a prompt, when its placeholder is replaced."""
    short = Question("nobody", "Q", "A", image, "training")
    text = prompt(short, processor)
    alone = processor.tokenizer(text, add_special_tokens=needs_special_tokens([text], processor))[
        "input_ids"
    ]
    return encode([short], processor, with_answer=False)["input_ids"].shape[1] - len(alone)


def answer_start(prompt: list[int], whole: list[int]) -> int:
    """The place of the first token of an answer that can be predicted.

    A tokenizer may merge across the border, so the answer is what follows the longest common
    beginning. Nothing predicts the very first token, which is the answer's where a raw text has no
    prompt and the tokenizer puts no token before it.

    Args:
        prompt, whole: the tokens of a prompt, and of the prompt with its answer.

    Raises:
        ValueError: no token is left.
    """
    start = max(1, common_beginning(prompt, whole))
    if start >= len(whole):
        raise ValueError("an answer has no token that can be predicted; leave empty texts out.")
    return start


def with_answers(
    prompts: list[str], texts: list[str], tokenizer, special: bool = True
) -> tuple[list[list[int]], list[int]]:
    """The tokens of each prompt with its answer, and where the answer begins
    (:func:`answer_start`).

    Args:
        texts: each prompt with its answer after it: alone, some tokenizers begin an answer with
            other tokens.
        special: let the tokenizer add its own tokens.
    """
    parts, wholes = (
        tokenizer(some, add_special_tokens=special)["input_ids"] for some in (prompts, texts)
    )
    return wholes, [answer_start(part, whole) for part, whole in zip(parts, wholes, strict=True)]


def check_prompts(lengths: Sequence[int]) -> None:
    """Check that every prompt of these lengths in tokens has something to go on with.

    Raises:
        ValueError: one has no token.
    """
    if not all(lengths):
        raise ValueError(
            "a prompt has no token to go on with: the question of a raw text is empty, and the "
            "tokenizer puts no token before it; give the text a beginning."
        )


def common_beginning(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def check_image_tokens(batch: dict[str, Tensor], processor) -> None:
    """Compare each row's image tokens with the features of its image (the LLaVA family)."""
    patch = getattr(processor, "patch_size", None)
    if not patch or batch["pixel_values"].dim() != 4:
        return
    height, width = batch["pixel_values"].shape[-2:]
    expected = (height // patch) * (width // patch) + getattr(
        processor, "num_additional_image_tokens", 0
    )
    if getattr(processor, "vision_feature_select_strategy", None) == "default":
        expected -= 1  # the class token is dropped
    image_id = processor.tokenizer.convert_tokens_to_ids(image_token_of(processor))
    found = (batch["input_ids"] == image_id).sum(dim=1)
    if (found != expected).any():
        raise ValueError(
            f"a prompt has {found[found != expected][0].item()} image tokens but its image gives "
            f"{expected} features; check the processor's patch_size, its image size and that "
            "nothing truncates the prompt."
        )
