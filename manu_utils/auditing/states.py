"""The hidden states between the layers of a language model: where they stand, read and replaced.

State 0 is what enters the first decoder layer, state l what layer l (from 1) leaves: the output of
the block, before the final norm. Found by structure: ``model.get_decoder()`` with ``layers`` and
``norm``. Layers that a model skips, such as Mllama's cross-attention without an image, have no
state. """

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.asking import in_batches
from ..models.encoding import batches, picture_tokens
from ..models.passes import check_model, hooked, last_hidden
from .values import Asked, place_of_words

POSITIONS = ("answer", "name", "image", "rest")


def decoder_of(model) -> nn.Module:
    """The language model's stack of layers.

    Raises:
        TypeError: a wrapped model, see :func:`check_model`.
        ValueError: a model without ``layers`` and ``norm`` in its decoder, or without an
        unembedding.
    """
    check_model(model)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if not all(isinstance(getattr(decoder, name, None), nn.Module) for name in ("layers", "norm")):
        raise ValueError(
            f"the decoder of {type(model).__name__} has no layers and norm, so its states are not "
            "known; use a model whose get_decoder() has both, such as LLaVA."
        )
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(model).__name__} has no output embedding to read its states with; "
            "load it with its head."
        )
    return decoder


def asked_batches(
    asked: Sequence[Asked],
    processor,
    batch_size: int,
    with_answer: bool,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[list[int], tuple[dict[str, Tensor], list[Asked]]]]:
    """:func:`batches` of what is asked, each with what it is about."""
    questions = [one.question for one in asked]
    for indices, batch in batches(questions, processor, batch_size, with_answer, device):
        yield indices, (batch, [asked[index] for index in indices])


def rows_of_questions(
    look: Callable, model, processor, asked: Sequence[Asked], batch_size: int, progress: bool,
    name: str,
) -> list[tuple]:  # fmt: skip
    """What ``look(batch, asked of the batch)`` gives of all batches: tuples that begin with a row
    of the batch, in whose place the index into ``asked`` is put."""
    rows: list[tuple] = []
    found = in_batches(
        lambda given: look(*given), model, processor, asked, batch_size, True, progress, name,
        make=asked_batches,
    )  # fmt: skip
    for indices, part in found:
        rows += [(indices[row], *rest) for row, *rest in part]
    return rows


def check_found(positions: Sequence[str], found: Collection[str]) -> None:
    """Check that every position was found in some question.

    Raises:
        ValueError: one that was not.
    """
    if missing := [position for position in positions if position not in found]:
        kind = "an image" if missing[0] == "image" else "text alone"
        raise ValueError(
            f"no question has the position {missing[0]!r}; pass questions with {kind}, or leave it "
            "out."
        )


def answer_places(
    batch: dict[str, Tensor], asked: Sequence[Asked], tokenizer
) -> tuple[Tensor, Tensor]:
    """Where the tokens of the values are predicted: one position before each.

    Returns:
        row of the batch and position in it, int64 [m] each, on the CPU, ascending.

    Raises:
        ValueError: an answer whose tokens do not spell the value.
    """
    places = []
    for row, one in enumerate(asked):
        own = batch["answer_mask"][row].nonzero()[:, 0].tolist()
        ids = batch["input_ids"][row, own].tolist()
        tokens = tokens_of_words(ids, one.value, tokenizer)
        if not tokens:
            raise ValueError(
                f"person {one.question.person_id}: the tokens of {one.question.answer[:60]!r} do "
                f"not spell {one.value!r}; pass values as they stand in the answers, or leave the "
                "question out."
            )
        places += [(row, own[token] - 1) for token in tokens]
    return _indices(places)


def places_of(
    batch: dict[str, Tensor], asked: Sequence[Asked], processor, model, position: str
) -> tuple[Tensor, Tensor]:
    """Where one of :data:`POSITIONS` stands in the questions of a batch.

    Args:
        position: ``"answer"``: :func:`answer_places`. ``"name"``: the tokens of the person's name
            (its first place). ``"image"``: the tokens that stand for the image. ``"rest"``: all
            others up to the last that predicts a token of the value.

    Returns:
        As :func:`answer_places`; empty where the questions of this modality have none: no name
        beside an image, no image in text alone.

    Raises:
        ValueError: a text question without the name of its person, or image tokens that are not
        found.
    """
    if position == "answer":
        return answer_places(batch, asked, processor.tokenizer)
    if position == "rest":
        rows, positions = answer_places(batch, asked, processor.tokenizer)
        ends = torch.zeros(len(asked), dtype=torch.int64).scatter_reduce_(
            0, rows, positions, "amax"
        )
        left = batch["attention_mask"].bool().cpu() & (
            torch.arange(batch["input_ids"].shape[1]) < ends[:, None]
        )
        for own in ("answer", "name", "image"):
            left[places_of(batch, asked, processor, model, own)] = False
        return tuple(left.nonzero().T)
    if position == "image":
        return _image_places(batch, asked, model)
    if asked[0].question.image is not None:
        return _indices([])
    places = []
    for row, one in enumerate(asked):
        own = (
            (batch["attention_mask"][row].bool() & ~batch["answer_mask"][row])
            .nonzero()[:, 0]
            .tolist()
        )
        ids = batch["input_ids"][row, own].tolist()
        tokens = tokens_of_words(ids, one.name, processor.tokenizer) if one.name else []
        if not tokens:
            raise ValueError(
                f"person {one.question.person_id}: the name {one.name!r} is not in "
                f"{one.question.question[:60]!r}; pass names=names_of(benchmark.training), and "
                "leave out questions without a name."
            )
        places += [(row, own[token]) for token in tokens]
    return _indices(places)


def _image_places(batch: dict[str, Tensor], asked: Sequence[Asked], model) -> tuple[Tensor, Tensor]:
    if asked[0].question.image is None:
        return _indices([])
    found = picture_tokens(model, batch).cpu()
    if not found.any(1).all():
        raise ValueError(
            f"a prompt of {type(model).__name__} has no image token; ask for other positions."
        )
    return tuple(found.nonzero().T)


def tokens_of_words(ids: list[int], words: str, tokenizer) -> list[int]:
    """The indices of the tokens that hold any letter of the first place of some words; none if
    they are not there."""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    place = place_of_words(tokenizer.decode(ids, **options), words)
    if place is None:
        return []
    ends = [len(tokenizer.decode(ids[: index + 1], **options)) for index in range(len(ids))]
    # A token that completes a character makes the text no longer, but is a part of its last.
    starts = [min(start, end - 1) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    first, last = place.span()
    return [i for i, start in enumerate(starts) if ends[i] > first and start < last]


def states_at(
    model, batch: dict[str, Tensor], rows: Tensor, positions: Tensor
) -> dict[int, Tensor]:
    """One pass: state -> hidden states [m, hidden] at m places of a batch, for every layer that
    runs, in order.

    Args:
        rows, positions: int64 [m] each, as :func:`answer_places` has them.
    """
    found: dict[int, Tensor] = {}
    layers = decoder_of(model).layers

    def enter(module, inputs) -> None:
        found[0] = inputs[0][rows, positions]

    def leave(number: int):
        def keep(module, inputs, output) -> None:
            found[number] = _hidden(output)[rows, positions]

        return keep

    hooks = [
        (layer.register_forward_hook, leave(number)) for number, layer in enumerate(layers, start=1)
    ]
    with hooked([(layers[0].register_forward_pre_hook, enter), *hooks]):
        last_hidden(model, batch)
    return found


@contextmanager
def patched(model, layer: int, rows: Tensor, positions: Tensor, states: Tensor) -> Iterator[None]:
    """Inside, layer ``layer`` (from 1) leaves ``states`` [m, hidden] at m places, and what it
    leaves elsewhere as it is."""

    def replace(module, inputs, output):
        hidden = _hidden(output).clone()
        hidden[rows, positions] = states.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with hooked([(decoder_of(model).layers[layer - 1].register_forward_hook, replace)]):
        yield


def _hidden(output) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _indices(places: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    table = torch.tensor(places, dtype=torch.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
