"""The unlearning depth score: does the model before unlearning lose the fact, when it goes on from
another model's states?

Source: Lee, Kim and Jo (arXiv 2605.24614; github.com/gnueaj/unlearning-depth-score), whose
positions are those of the answer; those of the name and of the image are ours. Derived in notebook
09. """

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_names, check_number
from ..models.passes import quiet_pass
from .lens import DESCRIBED, check_same_width, described
from .states import (
    POSITIONS,
    check_found,
    last_hidden,
    patched,
    places_of,
    rows_of_questions,
    states_at,
)
from .values import Asked, asked_values

if TYPE_CHECKING:
    import pandas as pd

KNOWN_FROM = (
    0.05  # nats: a layer encodes a fact if the retrained model's states cost more than this
)
KEYS = ["number", *DESCRIBED, "position"]


@torch.no_grad()
def patch_states(
    model,
    processor,
    questions: Sequence[Question],
    *,
    source,
    positions: Sequence[str] = ("answer",),
    values: Mapping[str, Sequence[str]] | None = None,
    names: Mapping[str, str] | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """How much less likely the true value becomes when one layer of ``model`` leaves the states of
    ``source``.

    Both read the true answer (teacher forcing). At one layer at a time, the output of the block is
    replaced at some positions, and what follows is the model's own.

    Args:
        model: the one that knows the facts: vanilla.
        source: of the same architecture: the retrained model, and then each unlearned one.
        positions: of :data:`POSITIONS`. ``"answer"``: those that predict the value's tokens, as in
            the paper. ``"name"``: the tokens of the person's name, of text questions. ``"image"``:
            the tokens that stand for the image. ``"rest"``: what else comes before the value.
        values, names: see :func:`asked_values`; ``names`` is needed for ``"name"``, and for
            ``"rest"`` in text alone.
        batch_size: the states of a batch at all layers are held at a time.

    Returns:
        One row per question, position that it has, and layer that runs (from 1): number,
        person_id, modality, task, question, attribute, position, layer, logp (of the model itself,
        mean over the value's tokens), fall (logp minus that with the source's states, in nats),
        tokens (of the value), places (that were replaced).

    Raises:
        TypeError, ValueError: see :func:`asked_values`, :func:`places_of`,
            :func:`check_same_width`; an unknown position, or one that no question has.
    """
    import pandas as pd

    check_same_width(model, source, "source")
    check_names("positions", positions, POSITIONS)
    asked = asked_values(questions, values, names)
    with quiet_pass(source):
        look = partial(_patched_rows, model, source, processor, positions)
        rows = rows_of_questions(look, model, processor, asked, batch_size, progress, "patching")
    check_found(positions, {position for _, position, *_ in rows})
    table = [(number, *described(asked[number]), *rest) for number, *rest in rows]
    frame = pd.DataFrame(table, columns=[*KEYS, "layer", "logp", "fall", "tokens", "places"])
    order = {position: index for index, position in enumerate(positions)}
    frame = frame.assign(order=frame["position"].map(order)).sort_values(
        ["number", "order", "layer"], ignore_index=True
    )
    return frame.drop(columns="order")


def depth_score(
    retrained: Tensor, unlearned: Tensor, known_from: float = KNOWN_FROM
) -> tuple[Tensor, Tensor]:
    """The depth of unlearning of each question, from what every layer costs.

    With d1 and d2 the fall of log p with the retrained and with the unlearned model's states, over
    the layers that encode the fact, KE = {d1 > ``known_from``}:

        score = Σ d1 · clip(d2 / d1, 0, 1) / Σ d1     0: intact, 1: as erased as retrained, or more
        over  = Σ d1 · max(d2 / d1 − 1, 0) / Σ d1     above 0: erased further, which shows

    Args:
        retrained, unlearned: float [..., layers], d1 and d2.

    Returns:
        score and over, float64 [...]; NaN where no layer encodes the fact.

    Raises:
        ValueError: other shapes, or numbers that are not finite.

    >>> depth_score(torch.tensor([0.01, 2.0, 4.0]), torch.tensor([5.0, 1.0, 6.0]))
    (tensor(0.8333, dtype=torch.float64), tensor(0.3333, dtype=torch.float64))
    """
    d1, d2 = (torch.as_tensor(falls).double() for falls in (retrained, unlearned))
    if d1.shape != d2.shape or d1.dim() == 0 or not (d1.isfinite().all() and d2.isfinite().all()):
        raise ValueError(
            f"falls must be finite and of one shape [..., layers], not {list(d1.shape)} "
            f"and {list(d2.shape)}."
        )
    check_number("known_from", known_from, above=0)
    weight = torch.where(d1 > known_from, d1, 0.0)
    ratio = d2 / torch.where(d1 > known_from, d1, 1.0)
    total = weight.sum(-1)
    score = (weight * ratio.clamp(0, 1)).sum(-1) / total
    over = (weight * (ratio - 1).clamp(min=0)).sum(-1) / total
    return score, over  # 0 / 0 is NaN


def depth_scores(
    retrained: pd.DataFrame, unlearned: pd.DataFrame, *, known_from: float = KNOWN_FROM
) -> pd.DataFrame:
    """:func:`depth_score` of every question and position.

    Args:
        retrained, unlearned: of :func:`patch_states` with those sources, of the same model
            and questions.

    Returns:
        Columns number, person_id, modality, task, question, attribute, position, score, over (NaN
        if no layer encodes the fact) and layers (how many do).

    Raises:
        ValueError: tables of other questions, positions or layers.
    """
    import pandas as pd

    keys = [*KEYS, "layer"]
    for frame in (retrained, unlearned):
        if missing := [name for name in (*keys, "fall") if name not in frame]:
            raise ValueError(
                f"a table has no column {missing[0]}; pass two tables of patch_states."
            )
    if not retrained[keys].equals(unlearned[keys]):
        raise ValueError(
            "the tables are of other questions, positions or layers; patch both "
            "sources with the same ones."
        )
    rows = []
    both = retrained[keys].assign(d1=retrained["fall"], d2=unlearned["fall"])
    for key, part in both.groupby(KEYS, sort=False):
        d1, d2 = torch.tensor(part["d1"].to_numpy(float)), torch.tensor(part["d2"].to_numpy(float))
        score, over = depth_score(d1, d2, known_from)
        rows.append((*key, float(score), float(over), int((d1 > known_from).sum())))
    return pd.DataFrame(rows, columns=[*KEYS, "score", "over", "layers"])


def mean_depth(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean of :func:`depth_scores` by modality and position.

    Returns:
        Columns modality, position, value (mean score), over, n (questions whose fact some layer
        encodes), empty (the others, which are in no mean) and people (of n).

    Raises:
        ValueError: an empty table.
    """
    import pandas as pd

    if len(scores) == 0:
        raise ValueError("the table is empty, so there is nothing to summarise.")
    rows = []
    for key, part in scores.groupby(["modality", "position"], sort=False):
        counted = part[part["layers"] > 0]
        means = (counted["score"].mean(), counted["over"].mean())
        rows.append(
            (*key, *means, len(counted), len(part) - len(counted), counted["person_id"].nunique())
        )
    return pd.DataFrame(
        rows, columns=["modality", "position", "value", "over", "n", "empty", "people"]
    )


def _patched_rows(
    model, source, processor, positions: Sequence[str], batch, asked: list[Asked]
) -> list[tuple]:
    """(row, position, layer, logp, fall, tokens, places) of the questions of a batch."""
    at = places_of(batch, asked, processor, model, "answer")
    places = {
        position: places_of(batch, asked, processor, model, position) for position in positions
    }
    places = {position: where for position, where in places.items() if len(where[0])}
    tokens = at[0].bincount(minlength=len(asked))
    itself = _mean_logp(model, batch, at, tokens)
    on_source = {key: value.to(source.device) for key, value in batch.items()}
    rows, positions_of = (
        (torch.cat([where[i] for where in places.values()]) for i in (0, 1)) if places else ((), ())
    )
    states = states_at(source, on_source, rows, positions_of) if places else {}
    sizes = [len(where[0]) for where in places.values()]
    found = []
    for layer in list(states)[1:]:  # state 0 is the embeddings
        for (position, where), own in zip(places.items(), states[layer].split(sizes), strict=True):
            with patched(model, layer, *where, own):
                fall = itself - _mean_logp(model, batch, at, tokens)
            counts = where[0].bincount(minlength=len(asked))
            for row, (logp, lost, n, m) in enumerate(
                zip(itself, fall, tokens, counts, strict=True)
            ):
                found.append((row, position, layer, float(logp), float(lost), int(n), int(m)))
        del states[layer]
    return found


def _mean_logp(
    model, batch: dict[str, Tensor], at: tuple[Tensor, Tensor], tokens: Tensor
) -> Tensor:
    """Mean log p of the tokens after some places, by row of the batch: float64 [b], on the CPU."""
    rows, positions = at
    logits = model.get_output_embeddings()(last_hidden(model, batch)[rows, positions]).float().cpu()
    targets = batch["input_ids"].cpu()[rows, positions + 1]
    logp = logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return logp.new_zeros(len(tokens)).index_add_(0, rows, logp) / tokens
