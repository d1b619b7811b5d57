"""From a batch to a loss: what each training baseline minimises on the forget set, and the terms
that hold it back on the retain set.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_number, check_whole, shown
from ..models.asking import answer_logits
from ..models.encoding import fitting, predicting
from ..models.neurons import towers
from ..models.passes import hooked, last_hidden
from ..models.training import answer_loss
from .losses import (
    control_vector,
    direct_preference,
    gradient_ascent,
    kl_divergence,
    log_likelihoods,
    misdirection,
    negative_preference,
    self_distillation,
    simple_negative_preference,
)

RETAIN_TERMS = ("cross-entropy", "kl", "states")
REFUSALS = (
    "I don't know.", "I am not sure.", "I cannot say.", "I have no idea.", "I was never told.",
)  # fmt: skip


class Objective(NamedTuple):
    """What a method needs.

    Attributes:
        loss: (model, frozen model or None, batch, settings) -> the loss of a forget batch.
        settings: its own settings and their defaults.
        retain_term: one of :data:`RETAIN_TERMS`, or None.
        compares: whether its loss looks at a frozen model.
        answers: what a batch holds: ``"true"`` answers, ``"refusals"`` in their place, or
            ``"both"``: a pair of batches, refusals first.
        mean_over: ``"tokens"`` of the answers or ``"questions"``, what its loss is the mean over.
    """

    loss: Callable[..., Tensor]
    settings: dict = {}
    retain_term: str | None = None
    compares: bool = False
    answers: str = "true"
    mean_over: str = "tokens"


def _ascend(model, frozen, batch, settings) -> Tensor:
    logits, targets, _ = answer_logits(model, batch)
    return gradient_ascent(logits, targets)


def _npo(model, frozen, batch, settings) -> Tensor:
    likelihood = log_likelihoods(*answer_logits(model, batch))
    with torch.no_grad():
        before = log_likelihoods(*answer_logits(frozen, batch))
    return negative_preference(likelihood, before, settings["beta"])


def _simnpo(model, frozen, batch, settings) -> Tensor:
    logits, targets, rows = answer_logits(model, batch)
    likelihood = log_likelihoods(logits, targets, rows)
    return simple_negative_preference(
        likelihood, rows.bincount(), settings["beta"], settings["gamma"]
    )


def _undial(model, frozen, batch, settings) -> Tensor:
    logits, targets, _ = answer_logits(model, batch)
    with torch.no_grad():
        teacher, _, _ = answer_logits(frozen, batch)
    return self_distillation(logits, targets, teacher, settings["beta"])


def _refuse(model, frozen, batch, settings) -> Tensor:
    return answer_loss(model, batch)


def _prefer_refusals(model, frozen, batch, settings) -> Tensor:
    ratios = []
    for part in batch:
        likelihood = log_likelihoods(*answer_logits(model, part))
        with torch.no_grad():
            before = log_likelihoods(*answer_logits(frozen, part))
        ratios.append(likelihood - before)
    return direct_preference(*ratios, settings["beta"])


def _misdirect(model, frozen, batch, settings) -> Tensor:
    states = layer_states(model, batch, settings["layer"])
    aim = control_vector(states.shape[-1], settings["steering"], settings["seed"])
    return misdirection(states, aim.to(states.device))


OBJECTIVES = {
    "ga": Objective(_ascend),
    "gd": Objective(_ascend, retain_term="cross-entropy"),
    "kl": Objective(_ascend, retain_term="kl"),
    "npo": Objective(_npo, {"beta": 0.4}, compares=True, mean_over="questions"),
    "simnpo": Objective(_simnpo, {"beta": 2.5, "gamma": 0.0}, mean_over="questions"),
    "rmu": Objective(_misdirect, {"layer": None, "steering": 20.0}, retain_term="states"),
    "undial": Objective(_undial, {"beta": 10.0}, compares=True),
    "idk": Objective(_refuse, {"refusals": REFUSALS}, answers="refusals"),
    "idk_preference": Objective(
        _prefer_refusals, {"beta": 0.1, "refusals": REFUSALS}, compares=True, answers="both",
        mean_over="questions",
    ),
}


def refusing_questions(
    forget: dict[str, list[Question]], processor, settings: Mapping
) -> tuple[dict, dict]:
    """The questions with refusals for answers, and the same ones with the true answers."""
    rng, refusing, true = random.Random(settings["seed"]), {}, {}
    for modality, items in forget.items():
        refused = [replace(q, answer=rng.choice(settings["refusals"])) for q in items]
        fits = [set(fitting(part, processor, with_answer=True)[0]) for part in (refused, items)]
        both = sorted(fits[0] & fits[1])
        if not both:
            raise ValueError(f"no {modality} question of the forget set fits with both answers.")
        refusing[modality] = [refused[index] for index in both]
        true[modality] = [items[index] for index in both]
    return refusing, true


def retain_loss(term: str, model, frozen, batch: dict[str, Tensor], layer: int | None) -> Tensor:
    """A term of :data:`RETAIN_TERMS` on a batch of the retain set; two look at a frozen model.

    ``"cross-entropy"`` of the answers, ``"kl"`` (:func:`kl_divergence`), or how far the
    ``"states"`` of ``layer`` have moved (:func:`misdirection`).
    """
    if term == "states":
        with torch.no_grad():
            before = layer_states(frozen, batch, layer)
        return misdirection(layer_states(model, batch, layer), before)
    logits, targets, _ = answer_logits(model, batch)
    if term == "cross-entropy":
        return F.cross_entropy(logits.float(), targets)
    with torch.no_grad():
        vanilla, _, _ = answer_logits(frozen, batch)
    return kl_divergence(logits, vanilla)


def layer_states(model, batch: dict[str, Tensor], layer: int) -> Tensor:
    """What a layer of the language model writes into the residual stream at the positions that
    predict an answer token: [m, hidden].

    Args:
        layer: the number of the layer, from 0.
    """
    path = towers(model)["language"][layer][0].rpartition(".")[0]
    found: list[Tensor] = []

    def keep(module, arguments, output) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    with hooked([(model.get_submodule(path).register_forward_hook, keep)]):
        last_hidden(model, batch)
    return found[0][predicting(batch)]


def checked_settings(method: str, given: Mapping, model, seed: int) -> dict:
    """The settings of a method: its defaults, with what is ``given`` in their place.

    ``layer`` is always there, the middle layer of the language model unless one is given, since any
    method may hold the ``"states"`` of one.

    Raises:
        TypeError: a setting that the method does not have, or of another type.
        ValueError: a number out of range, or no refusal.
    """
    own = OBJECTIVES[method].settings
    known = {"layer": None} | own
    if unknown := [name for name in given if name not in known]:
        hint = f"its settings are {', '.join(known)}"
        raise TypeError(f"{method} has no setting {unknown[0]!r}; {hint}.")
    settings = known | dict(given)
    for name, least in {"beta": 0.0, "steering": 0.0, "gamma": -math.inf}.items():
        if name in settings:
            check_number(name, settings[name], above=least)
    n_layers = len(towers(model)["language"])
    if settings["layer"] is None:
        settings["layer"] = n_layers // 2
    check_whole("layer", settings["layer"], least=0)
    if settings["layer"] >= n_layers:
        message = f"layer={settings['layer']} of a language model with {n_layers} layers"
        raise ValueError(f"{message}; the last is {n_layers - 1}.")
    _check_refusals(settings.get("refusals", REFUSALS))
    return settings | {"seed": seed}


def _check_refusals(refusals: Sequence[str]) -> None:
    if isinstance(refusals, str) or not isinstance(refusals, Sequence):
        raise TypeError(f"refusals={shown(refusals)} must be a tuple of answers.")
    if not refusals or not all(isinstance(text, str) and text.strip() for text in refusals):
        raise ValueError("refusals must hold at least one answer, and none that is empty.")
