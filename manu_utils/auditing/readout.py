"""The arithmetic of a linear probe: ridge regression, its ridge chosen on people apart."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .values import Asked


def ridge_scores(
    taught: Tensor, targets: Tensor, tested: Tensor, ridges: Sequence[float]
) -> Tensor:
    """What ridge regression predicts, for several ridges at once.

    Features are centred and scaled to variance 1 as in ``taught``, those that do not vary there
    count for nothing, and the intercept is free: ŷ = ȳ + z (XᵀX + ridge · n)⁻¹ Xᵀ (Y − ȳ).

    Args:
        taught, tested: float [n, d] and [m, d].
        targets: float [n, c], such as one-hot classes.

    Returns:
        float64 [ridges, m, c].
    """
    taught, targets, tested = taught.double(), targets.double(), tested.double()
    mean, scale = taught.mean(0), taught.std(0, unbiased=False)
    varies = scale > 1e-6 * taught.abs().max()
    x, z = ((part - mean)[:, varies] / scale[varies] for part in (taught, tested))
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    along, ahead = u.T @ (targets - targets.mean(0)), z @ vt.T
    shrunk = [ahead * (s / (s**2 + ridge * len(taught))) @ along for ridge in ridges]
    return torch.stack(shrunk) + targets.mean(0)


def probe_values(
    features: Tensor,
    asked: list[tuple[Asked, str]],
    ridges: tuple[float, ...],
    shuffles: int,
    seed: int,
) -> list[tuple]:
    """(attribute, set, value, control, n, people, taught, ridge) of one layer and position.

    Args:
        features: [k, hidden], the state of each of k questions.
        asked: each with its set; ``""`` is taught.
    """
    of_attribute: dict[str, tuple[list[int], list[int]]] = {}  # taught, and tested
    for index, (one, name) in enumerate(asked):
        of_attribute.setdefault(one.attribute, ([], []))[bool(name)].append(index)
    for attribute, (taught, _) in of_attribute.items():
        if len({asked[index][0].value for index in taught}) < 2:
            raise ValueError(
                f"the taught people have fewer than two values of {attribute!r} in one "
                "modality; teach more of them, or leave it out."
            )
    every = [one for one, _ in asked]
    ridge = _choose_ridge(
        features, every, [taught for taught, _ in of_attribute.values()], ridges, seed
    )
    rows = []
    for attribute, (taught, tested) in of_attribute.items():
        if not tested:
            continue
        value_of = {every[index].question.person_id: every[index].value for index in taught}
        drawn = [_shuffled(value_of, seed + number) for number in range(shuffles)]
        labels = [
            [values[every[index].question.person_id] for index in taught]
            for values in (value_of, *drawn)
        ]
        hits = _hits(features, every, taught, tested, labels, (ridge,))[0]
        for name in dict.fromkeys(asked[index][1] for index in tested):
            places = [place for place, index in enumerate(tested) if asked[index][1] == name]
            value, *control = hits[:, places].double().mean(-1).tolist()
            people = {every[tested[place]].question.person_id for place in places}
            counts = (len(places), len(people), len(value_of))
            rows.append((attribute, name, value, sum(control) / shuffles, *counts, ridge))
    return rows


def _choose_ridge(
    features: Tensor,
    every: list[Asked],
    taught_of: list[list[int]],
    ridges: tuple[float, ...],
    seed: int,
) -> float:
    """The ridge that finds most values of a quarter of the taught people with a probe of the
    others; of equals the largest."""
    people = sorted({every[index].question.person_id for taught in taught_of for index in taught})
    held = set(random.Random(seed).sample(people, max(1, len(people) // 4)))
    right = torch.zeros(len(ridges))
    for taught in taught_of:
        chosen = [index for index in taught if every[index].question.person_id in held]
        fit = [index for index in taught if every[index].question.person_id not in held]
        if fit and chosen:
            labels = [[every[index].value for index in fit]]
            right += _hits(features, every, fit, chosen, labels, ridges)[:, 0].sum(-1)
    return max(zip(right.tolist(), ridges, strict=True))[1]


def _hits(
    features: Tensor,
    every: list[Asked],
    taught: list[int],
    tested: list[int],
    labels: list[list[str]],
    ridges,
) -> Tensor:
    """Whether the likeliest value of each tested question is the true one: bool [ridges, labels,
    tested].

    Args:
        labels: of the taught questions, one list for each probe; all of the same values.
    """
    classes = {value: number for number, value in enumerate(sorted(set(labels[0])))}
    numbers = torch.tensor([[classes[value] for value in own] for own in labels])
    targets = one_hot(numbers, len(classes)).permute(1, 0, 2).flatten(1)  # [taught, labels * c]
    scores = ridge_scores(features[taught], targets, features[tested], ridges)
    guesses = scores.unflatten(-1, (len(labels), -1)).argmax(-1)  # [ridges, tested, labels]
    truth = torch.tensor([classes.get(every[index].value, -1) for index in tested])
    return (guesses == truth[:, None]).transpose(1, 2)


def _shuffled(value_of: dict[str, str], seed: int) -> dict[str, str]:
    """The same values, drawn anew for the same people."""
    values = list(value_of.values())
    random.Random(seed).shuffle(values)
    return dict(zip(value_of, values, strict=True))


