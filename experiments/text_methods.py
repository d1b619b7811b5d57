"""How each method changes a language model without eyes, at any settings: for text_alone.py and
text_alone_smollm2.py.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from manu_utils.benchmark.records import Question
from manu_utils.unlearning.baselines import METHODS, unlearn_by_training
from manu_utils.unlearning.erasing import erase
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.moments import collect_moments
from manu_utils.unlearning.privacy_neurons import erase_privacy_neurons, privacy_scores
from manu_utils.unlearning.pruning import select_neurons
from manu_utils.unlearning.rivals import dampen, subtract_task_vector, task_vector
from manu_utils.unlearning.saliency import diagonal_fisher
from manu_utils.unlearning.scores import switched_score
from manu_utils.unlearning.strangers import Stranger, nearest_strangers
from manu_utils.unlearning.weakening import knowledge_coefficients
from sweep import QUIET, at_steps, in_turn, rewritten, strengths, weakened

ONE = (math.nan,)  # of methods with one knob
ALPHAS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 25.0, 30.0, 40.0, 50.0)
STEPS = (6, 8, 10, 12, 14, 16, 20, 26, 34, 46, 64, 96)
HELD_STEPS = (12, 24, 48, 96)
# Training with a retain term: the loss on the forget set, and its other options.
HELD = {
    "gd + ce": ("gd", {}),
    "npo + kl": ("npo", {"retain_term": "kl"}),
    "simnpo + ce": ("simnpo", {"retain_term": "cross-entropy"}),
    "undial + ce": ("undial", {"retain_term": "cross-entropy"}),
    "idk + ce": ("idk", {"retain_term": "cross-entropy"}),
    "preference + ce": ("idk_preference", {"retain_term": "cross-entropy"}),
    "rmu": ("rmu", {}),
    "erase + gd": ("gd", {}),  # from the model that erasing leaves
}
# Twelve tries of each method: what is varied first (`weight`), and second (`setting`).
TRIES = {
    "paper": (ONE, ALPHAS),  # α in %
    "coverage": (ONE, ALPHAS),
    "rewrite": ((0.3, 1.0, 3.0, 10.0), (1, 2, 4)),  # ridge; rounds, after four it ends by itself
    "erase": ((1.0, 4.0, 16.0, 64.0, 256.0, 1024.0), (0.003, 0.03)),  # β; ridge
    "ssd": ((20.0, 40.0, 80.0), (1.0, 3.0, 10.0, 30.0)),  # α; λ
    "task vector": ((24.0, 48.0, 96.0), (0.5, 1.0, 2.0, 4.0)),  # steps of the copy; λ
    "kvw": ((0.005, 0.01, 0.02, 0.04), (1, 2, 4)),  # γ; rounds
    "depn": (ONE, (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)),  # α in %
    **{method: (ONE, STEPS) for method in METHODS},
    **{name: ((1.0, 4.0, 16.0), HELD_STEPS) for name in HELD},  # of the retain term; steps
    **{name: ((0.25, 1.0, 4.0), HELD_STEPS) for name in ("npo + kl", "simnpo + ce", "undial + ce")},
    **{
        name: ((0.0625, 0.25, 1.0), (24, 48, 96, 192)) for name in ("idk + ce", "preference + ce")
    },
    "rmu": ((0.25, 1.0, 4.0), (48, 96, 192, 384)),
    "erase + gd": ((4.0, 16.0, 64.0), HELD_STEPS),
}
N_STRANGERS = 4  # for each person to forget


@dataclass
class Request:
    """What is to be forgotten by whom.

    Attributes:
        model: changed, and put back after every method.
        forget, retain: questions, as all methods are given them.
        free: names that nobody has and nothing, for strangers.
        rate, held_rate: learning rates of the paper's baselines and of those with a retain weight.
    """

    model: object
    processor: object
    forget: list[Question]
    retain: list[Question]
    free: Sequence[str]
    batch_size: int = 24
    rate: float = 1e-4
    held_rate: float = 2e-4

    @property
    def given(self) -> tuple:
        return self.model, self.processor

    @property
    def sets(self) -> tuple[dict, dict]:
        return {"text": self.forget}, {"text": self.retain}

    @cached_property
    def evidence(self) -> Evidence:
        return Evidence(*self.given, *self.sets, modalities=("text",), **QUIET)

    @cached_property
    def moments(self) -> dict:
        return collect_moments(*self.given, self.sets[1], **QUIET)

    @cached_property
    def fishers(self) -> list[dict]:
        return [diagonal_fisher(*self.given, of, seed=0, **QUIET) for of in self.sets]

    @cached_property
    def coefficients(self):
        """What KVW knows of the retain set."""
        return knowledge_coefficients(*self.given, self.sets[1])

    @cached_property
    def vanilla(self) -> dict[str, Tensor]:
        return {name: weight.clone() for name, weight in self.model.state_dict().items()}

    def erased(self, beta: float, ridge: float, seed: int):
        """The context in which the model is erased; who is forgotten is called by person_id."""
        names = {question.person_id: question.person_id for question in self.forget}
        pool = [Stranger(name, None) for name in self.free[:N_STRANGERS]]
        more = {"n": N_STRANGERS, "more_names": self.free, "seed": seed}
        near = nearest_strangers(*self.given, self.forget, names, pool, **more)
        return erase(*self.given, *self.sets, near, names, beta=beta, ridge=ridge, **QUIET)


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


def results(
    request: Request, method: str, weight: float, values: Sequence[float], seed: int,
    measure: Callable[[], dict], erased: tuple[float, float] | None = None,
) -> dict[float, dict]:  # fmt: skip
    """setting -> what ``measure()`` finds with the model changed to it; the model is put back.

    Args:
        erased: β and ridge of what "erase + gd" begins with.
    """
    found = {}
    if method in METHODS or method in HELD:
        values = [round(value) for value in values]  # a table gives 24.0

        def look(step: int) -> None:
            found[step] = measure()

        _train(request, method, weight, values, seed, erased, look)
        return found
    for setting in _edited(request, method, weight, values, seed):
        found[setting] = measure()
    return found


def _train(request, method, weight, values, seed, erased, look) -> None:
    loss, options = HELD.get(method, (method, {}))
    options = options | {"seed": seed, "batch_size": request.batch_size, **at_steps(values, look)}
    held = method in HELD
    options |= {"retain_weight": weight, "lr": request.held_rate} if held else {"lr": request.rate}
    vanilla = request.vanilla
    with request.erased(*erased, seed) if method.startswith("erase") else nullcontext():
        unlearn_by_training(loss, *request.given, *request.sets, **options, **QUIET)
    request.model.load_state_dict(vanilla)


def _edited(request, method, weight, values, seed):
    given, (forget, _) = request.given, request.sets
    if method == "rewrite":
        rounds = [round(value) for value in values]
        yield from rewritten(given, forget, request.moments, rounds, ridge=weight)
    elif method == "ssd":
        shrunk = partial(dampen, request.model, *request.fishers, alpha=weight)
        yield from in_turn(values, lambda scale: shrunk(strength=scale))
    elif method == "task vector":
        options = {"steps": round(weight), "lr": request.held_rate, "seed": seed, **QUIET}
        vector = task_vector(*given, forget, **options)
        minus = partial(subtract_task_vector, request.model, vector)
        yield from in_turn(values, lambda scale: minus(scale=scale))
    elif method == "kvw":
        rounds = [round(value) for value in values]
        yield from weakened(given, forget, request.coefficients, rounds, weight, seed)
    elif method == "depn":
        scores = privacy_scores(*given, forget, **QUIET)
        gone = partial(erase_privacy_neurons, request.model, scores)
        yield from in_turn(values, lambda alpha: gone(alpha=alpha))
    elif method == "erase":
        yield from in_turn(values, lambda ridge: request.erased(weight, ridge, seed))
    else:
        yield from strengths(request.evidence, method, values, seed, plain)
