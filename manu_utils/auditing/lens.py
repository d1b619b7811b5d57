"""The logit lens: what each layer would answer, if it were the last. Derived in notebook 09.

Source: nostalgebraist, "interpreting GPT: the logit lens" (LessWrong, 2020); used on unlearned
models by Patil, Hase and Bansal (arXiv 2309.17410) and, read with the norm and unembedding of the
model before unlearning, as a baseline of the unlearning depth score (arXiv 2605.24614).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..models.encoding import common_beginning
from ..models.passes import check_finite, quiet_pass
from ..models.prompts import answer_texts, needs_special_tokens, prompt
from .states import answer_places, decoder_of, rows_of_questions, states_at
from .values import Asked, asked_values, place_of_words

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def logit_lens(
    model,
    processor,
    questions: Sequence[Question],
    *,
    reader=None,
    values: Mapping[str, Sequence[str]] | None = None,
    names: Mapping[str, str] | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """How likely the true value is, and which place it takes among the values, after every layer.

    The true answer is read (teacher forcing), and the state that predicts a token of its value
    goes through final norm and unembedding. Another value is compared with the true one at the
    first token in which the two answers differ, so one pass is enough for all of them.

    Args:
        reader: the model whose norm and unembedding read the states, such as vanilla; default
            ``model`` itself.
        values, names: see :func:`asked_values`.

    Returns:
        One row per question and layer (0: the embeddings), in the order of ``questions``: number
        (index into ``questions`` that hold a value), person_id, modality, task, question,
        attribute, layer, logp (mean over the value's tokens), tokens (their number), rank (1: the
        truth comes first; ties count half), values (how many are compared, the truth included). A
        model that knows nothing has a mean rank of (values + 1) / 2.

    Raises:
        TypeError, ValueError: see :func:`asked_values`, :func:`decoder_of` and :func:`known`;
            a reader of another shape.
    """
    import pandas as pd

    reader = model if reader is None else reader
    check_same_width(model, reader, "reader")
    asked = asked_values(questions, values, names)
    with quiet_pass(reader):
        look = partial(_lens_rows, model, reader, processor)
        rows = rows_of_questions(look, model, processor, asked, batch_size, progress, "lens")
    table = [(number, *described(asked[number]), *rest) for number, *rest in rows]
    columns = ["number", *DESCRIBED, "layer", "logp", "tokens", "rank", "values"]
    return pd.DataFrame(table, columns=columns).sort_values(["number", "layer"], ignore_index=True)


DESCRIBED = ("person_id", "modality", "task", "question", "attribute")


def described(one: Asked) -> tuple[str, ...]:
    """What a table says of a question, in the order of :data:`DESCRIBED`."""
    question = one.question
    return question.person_id, question.modality, question.task, question.question, one.attribute


def read_state(reader, state: Tensor) -> Tensor:
    """Logits [m, vocabulary] of hidden states [m, hidden]: the final norm and the unembedding of
    ``reader``."""
    head = reader.get_output_embeddings()
    state = state.to(device=head.weight.device, dtype=head.weight.dtype)
    logits = head(decoder_of(reader).norm(state)).float()
    check_finite("the logits of a layer are", logits)
    return logits


def rank_of(truth: Tensor, others: Tensor) -> Tensor:
    """The place of the truth, from 1, among itself and others: float [...] of scores [...] and
    [..., c]; ties count half."""
    truth = truth[..., None]
    return 1 + (others > truth).float().sum(-1) + 0.5 * (others == truth).float().sum(-1)


def check_same_width(model, other, name: str) -> None:
    """Check that the states of one model fit into another.

    Raises:
        TypeError, ValueError: see :func:`decoder_of`; hidden states of another width, or another
        number of layers.
    """
    shapes = [
        (len(decoder_of(one).layers), one.config.get_text_config().hidden_size)
        for one in (model, other)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name} has {shapes[1][0]} layers of width {shapes[1][1]} and the model "
            f"{shapes[0][0]} of {shapes[0][1]}; use models of one architecture, such as vanilla "
            f"and what was made of it."
        )


def _lens_rows(
    model, reader, processor, batch: dict[str, Tensor], asked: list[Asked]
) -> list[tuple]:
    """(row of the batch, layer, logp, tokens, rank, values) for each of the questions of a batch
    and each layer."""
    rows, positions = answer_places(batch, asked, processor.tokenizer)
    pairs = [pairs_of_tokens(one, processor) for one in asked]
    t = batch["input_ids"].shape[1]
    places = {
        place: index
        for index, place in enumerate(zip(rows.tolist(), positions.tolist(), strict=True))
    }
    compared: list[
        list[tuple[int, int, int]]
    ] = []  # of a question: (index of the place, token of truth, of the other)
    for row, own in enumerate(pairs):
        at = [
            (places.setdefault((row, t - 1 - back), len(places)), true, other)
            for back, true, other in own
        ]
        compared.append(at)
    every = torch.tensor(list(places))
    targets = batch["input_ids"].cpu()[rows, positions + 1]
    tokens = rows.bincount(minlength=len(asked))
    found = []
    for layer, state in states_at(model, batch, every[:, 0], every[:, 1]).items():
        logp = read_state(reader, state).log_softmax(-1).cpu()
        means = (
            torch.zeros(len(asked)).index_add_(0, rows, logp[torch.arange(len(rows)), targets])
            / tokens
        )
        for row, at in enumerate(compared):
            place, true, other = torch.tensor(at).T
            # The truth's own score may be read at another place for each, so each pair is ranked.
            rank = 1 + (rank_of(logp[place, true], logp[place, other][:, None]) - 1).sum()
            found.append(
                (row, layer, float(means[row]), int(tokens[row]), float(rank), len(at) + 1)
            )
    return found


def pairs_of_tokens(one: Asked, processor) -> list[tuple[int, int, int]]:
    """Where another value parts from the true one, for each other value.

    Returns:
        (tokens from there to the end of the true answer, the true token there, the other value's
        token there).

    Raises:
        ValueError: a value that is written with the same tokens as the true one.
    """
    place = place_of_words(one.question.answer, one.value)
    before, after = one.question.answer[: place.start()], one.question.answer[place.end() :]
    others = [value for value in one.values if value != one.value]
    text, fields = prompt(one.question, processor), vars(one.question)
    variants = [
        Question(**fields | {"answer": f"{before}{value}{after}"}) for value in (one.value, *others)
    ]
    texts = [f"{text}{answer}" for answer in answer_texts(variants, processor)]
    true, *rest = processor.tokenizer(
        texts, add_special_tokens=needs_special_tokens([text], processor)
    )["input_ids"]
    pairs = []
    for value, ids in zip(others, rest, strict=True):
        at = common_beginning(true, ids)
        if at >= min(len(true), len(ids)):
            raise ValueError(
                f"the values {one.value!r} and {value!r} are the same tokens; pass only one."
            )
        pairs.append((len(true) - at, true[at], ids[at]))
    return pairs
