"""Linear probes: can a line through the states of a layer tell a person's values?

Derived in notebook 09. Sources: Alain and Bengio (arXiv 1610.01644) for probes by layer; Hewitt and
Liang (arXiv 1909.03368) for the control with random labels; Lynch et al. (arXiv 2402.16835) for
probes on unlearned models. The people that are tested are none of those that the probe was taught
on: a probe that has seen a person knows that person itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_names, check_number, check_whole, kind_of
from ..models.asking import in_batches
from .readout import probe_values
from .states import asked_batches, check_found, decoder_of, places_of, states_at
from .values import Asked, asked_values, find_values

if TYPE_CHECKING:
    import pandas as pd

PLACES = ("answer", "name", "image")
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the number of rows, for features of variance 1
COLUMNS = (
    "layer", "position", "attribute", "set", "modality", "value", "control", "n", "people",
    "taught", "ridge",
)  # fmt: skip


def probe_layers(
    model,
    processor,
    taught: Sequence[Question],
    tested: Mapping[str, Sequence[Question]],
    *,
    positions: Sequence[str] = ("answer",),
    values: Mapping[str, Sequence[str]] | None = None,
    names: Mapping[str, str] | None = None,
    ridges: Sequence[float] = RIDGES,
    shuffles: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """How often a linear probe reads the true value from one state of people whom it was not
    taught on.

    For every layer, position, attribute and modality, a ridge regression on the one-hot values of
    the people in ``taught`` (:func:`ridge_scores`); the likeliest value counts. The ridge is chosen
    for each layer, position and modality on a quarter of the taught people, with a probe of the
    others. Run the same on the retrained model: the difference is what is left.

    Args:
        taught: questions about people whom the model knows: some of the retain set.
        tested: set -> questions about other people: the forget set, and other retained people.
        positions: of :data:`PLACES`; of several tokens the state at the first that predicts the
            value, the last of the name (text alone), or the last of the image. Neither of the last
            two has seen more of the question than what stands before it.
        values, names: see :func:`asked_values`; found in all questions together if there are none.
        ridges: to choose among, above 0, for standardised features and per row.
        shuffles: how often the control draws the people's values anew, at random among the
            taught people.

    Returns:
        Columns layer (0: the embeddings), position, attribute, set, modality, value (accuracy, 0
        to 1), control (mean accuracy of probes that were taught on shuffled values), n
        (questions), people, taught (people), ridge. A value that nobody in ``taught`` has cannot
        be found and counts as wrong.

    Raises:
        TypeError: ``tested`` is no dict of questions; see also :func:`asked_values`.
        ValueError: a person who is taught and tested, fewer than four taught people, a modality
            that is tested and not taught, or an argument out of range; see also :func:`places_of`.
    """
    import pandas as pd

    check_names("positions", positions, PLACES)
    check_whole("shuffles", shuffles)
    check_whole("seed", seed, least=0)
    if isinstance(ridges, str) or not isinstance(ridges, Sequence) or not ridges:
        raise TypeError("ridges must be a tuple of numbers, such as (0.01, 1.0).")
    for ridge in ridges:
        check_number("ridges", ridge, above=0)
    _check_people(taught, tested)
    decoder_of(model)
    sets = {"": list(taught)} | {name: list(questions) for name, questions in tested.items()}
    every = [question for questions in sets.values() for question in questions]
    values = find_values(every, names) if values is None else values
    of_set = {name: asked_values(questions, values, names) for name, questions in sets.items()}
    asked = [one for own in of_set.values() for one in own]
    set_of = [name for name, own in of_set.items() for _ in own]
    states = _collect(model, processor, asked, positions, batch_size, progress)
    rows: list[tuple] = []
    for (position, modality, layer), (indices, features) in states.items():
        part = [(asked[index], set_of[index]) for index in indices]
        found = probe_values(features, part, tuple(ridges), shuffles, seed)
        rows += [
            (layer, position, attribute, name, modality, *rest) for attribute, name, *rest in found
        ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values(
        ["modality", "position", "set", "attribute", "layer"], kind="stable", ignore_index=True
    )


@torch.no_grad()
def _collect(
    model, processor, asked: list[Asked], positions: Sequence[str], batch_size: int, progress: bool
) -> dict[tuple[str, str, int], tuple[list[int], Tensor]]:
    """(position, modality, layer) -> indices into ``asked`` and the states of one token of each,
    float32 [k, hidden]."""

    def look(given: tuple[dict[str, Tensor], list[Asked]]) -> list[tuple[str, int, Tensor]]:
        batch, own = given
        places = {}
        for position in positions:
            rows, tokens = places_of(batch, own, processor, model, position)
            if len(rows):
                which = "amin" if position == "answer" else "amax"
                one = torch.zeros(len(own), dtype=torch.int64)
                places[position] = one.scatter_reduce_(0, rows, tokens, which, include_self=False)
        if not places:
            return []
        rows = torch.arange(len(own)).repeat(len(places))
        states = states_at(model, batch, rows, torch.cat(list(places.values())))
        return [
            (position, layer, part.float().cpu())
            for layer, state in states.items()
            for position, part in zip(places, state.split(len(own)), strict=True)
        ]

    found: dict[tuple[str, str, int], list[tuple[list[int], Tensor]]] = {}
    for indices, parts in in_batches(
        look, model, processor, asked, batch_size, True, progress, "states", make=asked_batches
    ):
        modality = asked[indices[0]].question.modality
        for position, layer, part in parts:
            found.setdefault((position, modality, layer), []).append((indices, part))
    check_found(positions, {position for position, *_ in found})
    return {
        key: (
            [index for indices, _ in parts for index in indices],
            torch.cat([part for _, part in parts]),
        )
        for key, parts in found.items()
    }


def _check_people(taught: Sequence[Question], tested: Mapping[str, Sequence[Question]]) -> None:
    if not isinstance(tested, Mapping) or not tested or "" in tested:
        raise TypeError(
            f"tested is {kind_of(tested)}; it must be a dict such as "
            "{'forget': questions}, with names."
        )
    if not taught or not all(tested.values()):
        raise ValueError(
            "there is nobody to teach the probe on, or to test it on; pass questions of both."
        )
    people = {question.person_id for question in taught}
    if len(people) < 4:
        raise ValueError(
            f"{len(people)} people are too few to teach a probe and to choose its ridge; "
            "pass four or more."
        )
    for name, questions in tested.items():
        if both := sorted(people & {question.person_id for question in questions}):
            raise ValueError(
                f"{', '.join(both[:5])} of {name!r} are taught as well; a probe that has "
                "seen a person knows it: take them out."
            )
    modalities = {question.modality for question in taught}
    asked = {question.modality for part in tested.values() for question in part}
    if untaught := asked - modalities:
        raise ValueError(
            f"the probe is tested on {untaught.pop()} questions but taught on none; "
            "pass such questions in taught."
        )
