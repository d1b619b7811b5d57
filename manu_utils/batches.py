"""From question records to the tensors that a vision-language model takes.

The prompt templates are those of the official MLLMU-Bench evaluation (``eval.py``), zero-shot. Derived in notebook 02.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .benchmark import Question

LETTER_LINE = "Just give ONE letter representing the answer directly."
BLANK_LINE = "Please **ONLY** provide the correct answer that should replace the [Blank]."
SENTENCE_LINE_IMAGE = "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH."
SENTENCE_LINE_TEXT = "Answer the question based on your trained knowledge in one sentence in ENGLISH."


def prompt(question: Question, processor) -> str:
    """The prompt of a question, ending in ``ASSISTANT:`` (the image generation prompt of the official code ends in a space;
    ours does not, so that all answers start alike).

    Raises:
        ValueError: unknown task, classification without options, or a question that holds the image placeholder.
    """
    image_token = _image_token(processor)
    if image_token in question.question:
        raise ValueError(f"person {question.person_id}: the question itself contains {image_token}; remove it.")
    text_only = question.image is None
    body = question.question
    if question.task == "generation":
        body += "\n" + (SENTENCE_LINE_TEXT if text_only else SENTENCE_LINE_IMAGE)
    elif question.task == "cloze":
        body = body.replace("__", "[Blank]") + "\n" + BLANK_LINE
    elif question.task == "classification":
        if not question.options:
            raise ValueError(f"person {question.person_id}: a classification question needs options.")
        lines = [f"{letter}: {words}" for letter, words in question.options.items()]
        body = "\n".join([body, *lines, LETTER_LINE])
    elif question.task != "training":
        raise ValueError(f"task={question.task!r} is unknown; use training, generation, cloze or classification.")
    if not text_only:
        return f"USER: {image_token}\n{body}\nASSISTANT:"
    gap = "\n" if question.task in ("cloze", "classification") else " "  # as the official templates have it
    return f"USER:{gap}{body}\nASSISTANT:"


def encode(
    questions: Sequence[Question], processor, with_answer: bool, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Tokenise b questions of one modality into one left-padded batch of t tokens.

    Args:
        questions: all with an image, or all without.
        with_answer: append `` {answer}`` and the end-of-sequence token to each prompt.

    Returns:
        ``input_ids`` int64 [b, t] and ``attention_mask`` int64 [b, t]; with images ``pixel_values`` float32 [b, 3, h, w];
        ``with_answer``: ``answer_mask`` bool [b, t], true on the tokens of the answer, end of sequence included. What else
        the processor returns is passed through.

    Raises:
        ValueError: no question, mixed modalities, or a prompt whose image tokens do not match the image's features.
    """
    if not questions:
        raise ValueError("a batch needs at least one question.")
    if len({question.modality for question in questions}) > 1:
        raise ValueError("a batch holds one modality; encode questions with and without an image separately.")
    tokenizer = processor.tokenizer
    prompts = [prompt(question, processor) for question in questions]
    texts = prompts
    if with_answer:
        texts = [f"{p} {q.answer}{tokenizer.eos_token}" for p, q in zip(prompts, questions, strict=True)]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    if questions[0].image is None:
        batch = dict(tokenizer(texts, return_token_type_ids=False, **options))
    else:
        batch = dict(processor(images=[question.image for question in questions], text=texts, **options))
        _check_image_tokens(batch, processor)
    if with_answer:
        # A tokenizer may merge across the border, so the answer is what follows the longest common beginning.
        pairs = zip(tokenizer(prompts)["input_ids"], tokenizer(texts)["input_ids"], strict=True)
        lengths = torch.tensor([len(whole) - _common_beginning(part, whole) for part, whole in pairs])
        t = batch["input_ids"].shape[1]
        batch["answer_mask"] = torch.arange(t)[None, :] >= (t - lengths)[:, None]  # left-padded: the answer is at the end
    return {key: value.to(device) for key, value in batch.items()}


def batches(
    questions: Sequence[Question],
    processor,
    batch_size: int,
    with_answer: bool,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Pairs of (indices into ``questions``, batch), longest first: little padding, and too large a batch fails at once.

    Ties keep their order, so the batches are the same in every run. Image and text questions never share a batch.

    Raises:
        ValueError: batch_size below 1; see also :func:`encode`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive.")
    lengths: list[int] = []
    for start in range(0, len(questions), batch_size):  # in parts, so that only the lengths are kept
        part = questions[start : start + batch_size]
        texts = [f"{prompt(q, processor)} {q.answer if with_answer else ''}" for q in part]
        lengths += [len(ids) for ids in processor.tokenizer(texts)["input_ids"]]
    groups = []
    for modality in ("multimodal", "text"):
        indices = [index for index, question in enumerate(questions) if question.modality == modality]
        indices.sort(key=lambda index: -lengths[index])
        groups += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return ((group, encode([questions[i] for i in group], processor, with_answer, device)) for group in groups)


def _image_token(processor) -> str:
    return getattr(processor, "image_token", None) or "<image>"


def _common_beginning(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _check_image_tokens(batch: dict[str, Tensor], processor) -> None:
    """Compare the image tokens of each row with the features that its image gives (processors of the LLaVA family)."""
    patch = getattr(processor, "patch_size", None)
    if not patch or batch["pixel_values"].dim() != 4:
        return
    height, width = batch["pixel_values"].shape[-2:]
    expected = (height // patch) * (width // patch) + getattr(processor, "num_additional_image_tokens", 0)
    if getattr(processor, "vision_feature_select_strategy", None) == "default":
        expected -= 1  # the class token is dropped
    image_id = processor.tokenizer.convert_tokens_to_ids(_image_token(processor))
    found = (batch["input_ids"] == image_id).sum(dim=1)
    if (found != expected).any():
        raise ValueError(
            f"a prompt has {found[found != expected][0].item()} image tokens but its image gives {expected} features; "
            "check the processor's patch_size, its image size and that nothing truncates the prompt."
        )
