"""What the experiments beyond the miniature's people share: who asks for what to be forgotten, and
the methods that change weights without training on both sets (text_methods.py, poems.py,
bottles.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from manu_utils.benchmark.records import Question
from manu_utils.unlearning.erasing import erase
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.moments import collect_moments
from manu_utils.unlearning.neuron_paths import neuron_paths, neuron_weights
from manu_utils.unlearning.privacy_neurons import erase_privacy_neurons, privacy_scores
from manu_utils.unlearning.pruning import pruned_neurons, select_neurons
from manu_utils.unlearning.rivals import dampen, subtract_task_vector, task_vector
from manu_utils.unlearning.saliency import diagonal_fisher
from manu_utils.unlearning.scores import switched_score
from manu_utils.unlearning.weakening import knowledge_coefficients
from sweep import QUIET, in_turn, rewritten, strengths, weakened

EDITS = ("paper", "coverage", "depn", "rewrite", "erase", "ssd", "task vector", "kvw")


@dataclass
class Request:
    """What is to be forgotten by whom.

    Attributes:
        model: changed, and put back after every method.
        forget, retain: modality -> questions, as all methods are given them.
        strangers: seed -> strangers and names, as :func:`manu_utils.unlearning.erase` takes them.
        fishers: importances of both sets for SSD, always in the same batches.
        rate, held_rate: learning rates of the paper's baselines and of those with a retain weight;
            the second also of the task vector's copy.
    """

    model: object
    processor: object
    forget: dict[str, list[Question]]
    retain: dict[str, list[Question]]
    strangers: Callable[[int], tuple[dict, dict]]
    batch_size: int = 24
    rate: float = 1e-4
    held_rate: float = 2e-4

    @property
    def given(self) -> tuple:
        return self.model, self.processor

    @property
    def sets(self) -> tuple[dict, dict]:
        return self.forget, self.retain

    @cached_property
    def evidence(self) -> Evidence:
        return Evidence(*self.given, *self.sets, modalities=tuple(self.forget), **QUIET)

    @cached_property
    def moments(self) -> dict:
        return collect_moments(*self.given, self.retain, **QUIET)

    @cached_property
    def fishers(self) -> list[dict]:
        return [diagonal_fisher(*self.given, of, seed=0, **QUIET) for of in self.sets]

    @cached_property
    def coefficients(self):
        """What KVW knows of the retain set."""
        return knowledge_coefficients(*self.given, self.retain)

    @cached_property
    def vanilla(self) -> dict[str, Tensor]:
        return {name: weight.clone() for name, weight in self.model.state_dict().items()}

    def start(self, method: str, erased: tuple[float, float] | None, seed: int):
        """The context in which a method is trained: "erase + gd" on what erasing leaves.

        Args:
            erased: β and ridge of erasing there.
        """
        return self.erased(*erased, seed) if method.startswith("erase") else nullcontext()

    def erased(self, beta: float, ridge: float, seed: int):
        """The context in which the model is erased."""
        options = {"beta": beta, "ridge": ridge, "on_top": True, **QUIET}
        return erase(*self.given, *self.sets, *self.strangers(seed), **options)


def edited(
    request: Request, method: str, weight: float, values: Sequence[float], seed: int
) -> Iterator[float]:
    """Each of some values while the model is changed to it by one of :data:`EDITS`, also on top of
    other changes; at the end the model is as it was.

    Args:
        weight: ridge of rewriting, β of erasing, α of SSD, steps of the task vector's copy, γ of
            KVW; prunings (paper, coverage) and DEPN have none.
        values: of α in % (prunings, DEPN), of rounds (rewriting, KVW), of the ridge (erasing), or
            of λ (SSD, task vector).
    """
    given, (forget, _) = request.given, request.sets
    if method in ("rewrite", "kvw"):
        values = [round(value) for value in values]  # a table gives 24.0
    if method == "rewrite":
        yield from rewritten(given, forget, request.moments, values, ridge=weight)
    elif method == "kvw":
        yield from weakened(given, forget, request.coefficients, values, weight, seed)
    elif method == "erase":
        yield from in_turn(values, lambda ridge: request.erased(weight, ridge, seed))
    elif method in ("ssd", "task vector", "depn"):
        yield from in_turn(values, _rival(request, method, weight, seed))
    else:
        choose = plain if set(forget) == {"text"} else Evidence.choose
        choose = partial(choose, exclude=pruned_neurons(request.model))
        yield from strengths(request.evidence, method, values, seed, choose)


def _rival(request: Request, method: str, weight: float, seed: int) -> Callable:
    """value -> the context in which the model is changed."""
    model, on_top = request.model, {"on_top": True}
    if method == "ssd":
        shrunk = partial(dampen, model, *request.fishers, alpha=weight, **on_top)
        return lambda value: shrunk(strength=value)
    if method == "depn":
        scores = privacy_scores(*request.given, request.forget, **QUIET)
        gone = partial(erase_privacy_neurons, model, scores, **on_top)
        return lambda value: gone(alpha=value)
    options = {"steps": round(weight), "lr": request.held_rate, "seed": seed, **QUIET}
    vector = task_vector(*request.given, request.forget, **options)
    minus = partial(subtract_task_vector, model, vector, **on_top)
    return lambda value: minus(scale=value)


@contextmanager
def changed(request: Request, method: str, weight: float, value: float, seed: int):
    """The model at one setting."""
    yield from edited(request, method, weight, (value,), seed)


def plain(
    evidence: Evidence, method: str, alpha: float, *, seed: int = 0, exclude=None
) -> Tensor:
    """What a pruning chooses; ``paper`` without the contrast, which one modality does not have.

    Args:
        exclude: neurons that are not to be chosen, bool [n_neurons].
    """
    if method != "paper":
        return evidence.choose(method, alpha, seed=seed, exclude=exclude)
    sums = (evidence.statistics(name) for name in ("forget", "retain"))
    scores = switched_score(*sums, mlps=evidence.mlps, contrast=False)
    if exclude is not None:
        scores = scores.masked_fill(exclude, -math.inf)
    return select_neurons(scores, evidence.mlps, alpha)


def weights_of_paths(model, processor, forget, retain):
    """What MIP-Editor trains."""
    return neuron_weights(model, neuron_paths(model, processor, forget, **QUIET))
