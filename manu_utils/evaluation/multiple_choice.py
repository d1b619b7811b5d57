"""Multiple choice by log-likelihood, zero-shot, as WMDP (arXiv 2403.03218) and MMLU (2009.03300)
are asked. Notebook 10.

The model writes nothing: each choice is appended to the prompt, and the one whose tokens are
likeliest together is what it chooses. Prompts are plain text without a chat template, after the
token that begins a sequence where the tokenizer puts one, as the evaluation harness ``lm-eval``
(0.4.13) asks, so that a checkpoint gets the same accuracy here and there.

**Always look at the control** (``question=False``), which sees the choices alone: what it gets
right needs no knowledge, and unlearning cannot take it away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..benchmark.records import Question, check_list
from ..checks import check_name
from ..models.asking import answer_logits, in_batches
from ..models.encoding import common_beginning, padding_token
from ..models.passes import check_processor
from ..models.prefix_tree import can_share_texts, pack_read, plan_rows

if TYPE_CHECKING:
    import pandas as pd

LETTERED = "{question}\n{choices}\nAnswer:"  # of WMDP; what follows is a letter
OF_MMLU = (
    "The following are multiple choice questions (with answers) about {subject}.\n\n" + LETTERED
)
IN_WORDS = "{question}\nAnswer:"  # the choices are not shown; what follows are the words of one


@torch.no_grad()
def choose(
    model, processor, questions: Sequence[Question], *, template: str = LETTERED,
    question: bool = True, per: str = "sum", batch_size: int = 64, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Which choice of each question a model finds likeliest. The model is as it was.

    Args:
        questions: with options, of :func:`load_multiple_choice`.
        template: the prompt, with ``{question}``, ``{subject}`` (the person_id, its underscores
            spaces) and ``{choices}``, one lettered line each. With ``{choices}`` the letters are
            compared, without it the words of the choices.
        question: False leaves the question out: the control that sees the choices alone.
        per: ``"sum"`` of the log-likelihoods of a choice's tokens (acc of lm-eval), or that by each
            of its ``"character"`` (acc_norm), since a sum prefers short words.

    Returns:
        One row a question: person_id, question, answer, chosen (words) and right.

    Raises:
        TypeError, ValueError: no question, one without options or with an image, an empty option, a
            template without a place for the question, another ``per``, a tokenizer without padding
            token, a prompt that is longer than the model has positions, or
            logits that are not finite.
    """
    import pandas as pd

    check_name("per", per, ("sum", "character"))
    if "{question}" not in template:
        raise ValueError(
            "the template has no {question}; leave the question out by question=False."
        )
    check_list(questions)
    check_processor(processor)
    for one in questions:
        if not one.options or not all(words.strip() for words in one.options.values()):
            raise ValueError(
                f"{one.question!r} has the options {one.options}; each question must have some, "
                f"none of them empty: leave it out, or see load_multiple_choice."
            )
        if one.image is not None:
            raise ValueError(
                f"person {one.person_id}: {one.question!r} has an image, which would not be looked "
                f"at; use likeliest_options, or take the image out."
            )
    pairs = [pair for one in questions for pair in _pairs(one, template, question)]
    total = torch.zeros(len(pairs), dtype=torch.float64)

    def sums(batch: dict[str, Tensor]) -> Tensor:
        logits, targets, rows = answer_logits(model, batch)
        likely = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0].double().cpu()
        n = int(rows.max()) + 1
        return torch.zeros(n, dtype=torch.float64).index_add_(0, rows.cpu(), likely)

    make = _shared_batches if can_share_texts(model) else _batches
    for indices, values in in_batches(
        sums, model, processor, pairs, batch_size, True, progress, "choices", make
    ):
        total[indices] = values
    if per == "character":
        total /= torch.tensor([len(continuation) - 1 for _, continuation in pairs])
    rows = []
    for one, scores in zip(
        questions, total.split([len(one.options) for one in questions]), strict=True
    ):
        chosen = list(one.options.values())[int(scores.argmax())]
        rows.append((one.person_id, one.question, one.answer, chosen, chosen == one.answer))
    return pd.DataFrame(rows, columns=["person_id", "question", "answer", "chosen", "right"])


def _pairs(one: Question, template: str, question: bool) -> Iterator[tuple[str, str]]:
    """The prompt and each continuation of a question."""
    lines = "\n".join(f"{letter}. {words}" for letter, words in one.options.items())
    asked, subject = one.question.strip() if question else "", one.person_id.replace("_", " ")
    given = {"{subject}": subject, "{choices}": lines, "{question}": asked}
    places = "|".join(map(re.escape, given))
    prompt = re.sub(places, lambda place: given[place[0]], template).lstrip("\n")
    named = one.options if "{choices}" in template else one.options.values()
    return ((prompt, f" {name}") for name in named)


def _batches(
    pairs: Sequence[tuple[str, str]], processor, batch_size: int, with_answer: bool, device
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Left-padded batches, the longest first; see :func:`manu_utils.models.encoding.batches`."""
    whole, n_after = _tokens(pairs, processor)
    order = sorted(range(len(pairs)), key=lambda index: -len(whole[index]))
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        shape = len(group), len(whole[group[0]])
        ids = torch.full(shape, padding_token(processor))
        seen, answer = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
        for row, index in enumerate(group):
            tokens = whole[index]
            ids[row, -len(tokens) :] = torch.tensor(tokens)
            seen[row, -len(tokens) :] = 1
            answer[row, -n_after[index] :] = True
        batch = {"input_ids": ids, "attention_mask": seen, "answer_mask": answer}
        yield group, {key: value.to(device) for key, value in batch.items()}


def _shared_batches(
    pairs: Sequence[tuple[str, str]], processor, batch_size: int, with_answer: bool, device
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """The same, each prompt read once for all of its choices; see
    :func:`manu_utils.models.prefix_tree.shared_batches`.
    """
    whole, n_after = _tokens(pairs, processor)
    groups: dict[str, list[int]] = {}
    for index, (prompt, _) in enumerate(pairs):
        groups.setdefault(prompt, []).append(index)
    for rows in plan_rows(list(groups.values()), whole.__getitem__, batch_size):
        batch = pack_read(rows, whole.__getitem__, n_after, padding_token(processor))
        indices = [index for row in rows for index in row]
        yield indices, {key: value.to(device) for key, value in batch.items()}


def _tokens(pairs: Sequence[tuple[str, str]], processor) -> tuple[list[list[int]], list[int]]:
    """The tokens of each prompt with its continuation, and how many are the continuation's.

    Raises:
        ValueError: one is longer than the model has positions, or begins with its continuation.
    """
    begin = processor.tokenizer.bos_token
    special = not (begin and any(prompt.startswith(begin) for prompt, _ in pairs))
    tokenize = partial(processor.tokenizer, add_special_tokens=special)
    alone = tokenize([prompt for prompt, _ in pairs])["input_ids"]
    whole = tokenize([prompt + continuation for prompt, continuation in pairs])["input_ids"]
    longest = max(map(len, whole))
    if longest > (positions := processor.tokenizer.model_max_length):
        raise ValueError(
            f"a prompt has {longest} tokens and the model {positions} positions; leave long "
            f"questions out."
        )
    borders = [common_beginning(*pair) for pair in zip(alone, whole, strict=True)]
    if not all(borders):
        raise ValueError(
            "a prompt is empty, so that nothing says what the first token of a choice follows; "
            "give the template words of its own, as IN_WORDS has."
        )
    return whole, [len(tokens) - border for tokens, border in zip(whole, borders, strict=True)]
