"""How each method changes a language model without eyes, at any settings: for text_alone.py and
text_alone_smollm2.py.
"""

import math
from collections.abc import Callable, Sequence

from edits import Request, edited
from manu_utils.benchmark.records import Question
from manu_utils.unlearning.baselines import METHODS, unlearn_by_training
from manu_utils.unlearning.strangers import Stranger, nearest_strangers
from sweep import QUIET, at_steps

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


def request_in_text(
    model, processor, forget: Sequence[Question], retain: Sequence[Question],
    free: Sequence[str], *rates,
) -> Request:  # fmt: skip
    """That a model forget these questions and keep those; who is forgotten is called by person_id.

    Args:
        free: names that nobody has and nothing, for strangers.
        rates: batch size and learning rates of :class:`Request`.
    """

    def strangers(seed: int) -> tuple[dict, dict]:
        names = {question.person_id: question.person_id for question in forget}
        pool = [Stranger(name, None) for name in free[:N_STRANGERS]]
        more = {"n": N_STRANGERS, "more_names": free, "seed": seed}
        return nearest_strangers(model, processor, forget, names, pool, **more), names

    return Request(model, processor, {"text": forget}, {"text": retain}, strangers, *rates)


def train(request: Request, method: str, weight: float, seed: int, **options) -> None:
    """Unlearn by steps, one of the paper's baselines or of :data:`HELD`.

    Args:
        weight: of the retain term, of those in ``HELD``.
        options: steps, and more of :func:`unlearn_by_training`.
    """
    loss, own = HELD.get(method, (method, {}))
    held = {"retain_weight": weight, "lr": request.held_rate}
    own = own | (held if method in HELD else {"lr": request.rate})
    own |= {"batch_size": request.batch_size, "seed": seed, **QUIET}
    unlearn_by_training(loss, *request.given, *request.sets, **own, **options)


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
    for setting in edited(request, method, weight, values, seed):
        found[setting] = measure()
    return found


def _train(request, method, weight, values, seed, erased, look) -> None:
    vanilla = request.vanilla
    with request.start(method, erased, seed):
        train(request, method, weight, seed, **at_steps(values, look))
    request.model.load_state_dict(vanilla)
