"""From importance to a score: how much each neuron should be pruned. Derived in notebook 04.

Every function takes running sums (:class:`manu_utils.unlearning.activations.Statistics`) and
returns one float64 number per neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..benchmark.records import MODALITIES
from ..checks import check_name, check_whole
from ..models.neurons import MLP
from ..models.passes import exact_device
from .activations import Statistics
from .importance import contrasts, variance

PRUNINGS = (
    "paper",
    "released_score",
    "released_as_run",
    "ratio",
    "random",
    "magnitude",
    "coverage",
)
# those that choose neurons
VARIANTS = tuple(variant for variant in PRUNINGS if variant != "released_as_run")
CONTROLS = ("random", "magnitude")  # they look at no data
# The switches of the authors' code, as far as they concern the score of a neuron: see
# switched_score.
RELEASED = {
    "contrast": False, "one_modality": True, "sum_of_ratios": True, "weights": (2, 0, 2, 2),
    "last_layers": 3, "eps": 1e-5,
}  # fmt: skip


def score(
    variant: str,
    forget: dict[str, Statistics],
    retain: dict[str, Statistics],
    *,
    mlps: Sequence[MLP],
    seed: int = 0,
    eps: float = 1e-6,
    floor: float = 2.0,
) -> Tensor:
    """How much each neuron should be pruned, float64 [n_neurons]; the highest go first.

    - ``paper``: I(D_f) / (I(D_r) + ε), the printed equation.
    - ``released_score``: the formula of the authors' code, carried over to neurons: each tower by
      one modality (vision by image + text, language by text alone), Σ_m w_m · (F_m / (R_m + 1e-5) −
      1) over mean |z|, share active, standard deviation and root mean square with weights 2, 0, 2,
      2; only the last three layers of each tower can be chosen (others −inf). Their code looks at
      other numbers when it is run, and so chooses others: see
      :mod:`manu_utils.unlearning.released`.
    - ``ratio``: F / (R + floor · mean R) of the mean square, the larger of the two modalities; the
      floor (mean over the layer) keeps the budget from neurons that hardly fire for anyone.
    - ``random``, ``magnitude``: controls; a uniform number, and the norm of what a neuron reads
        times that of what it writes.

    Args:
        forget, retain: modality (``"multimodal"``, ``"text"``) -> statistics; the controls do not
            look at them, and ``ratio`` takes one modality as well.
        mlps: from :func:`find_neurons`, in the same order.

    Raises:
        ValueError: unknown variant, a missing modality, or statistics of another model, of the
            wrong modality or of different τ.
    """
    if variant == "released_as_run":
        raise ValueError(
            "released_as_run scores rows of linear layers, not neurons; use choose_rows."
        )
    if variant == "coverage":
        raise ValueError(
            "coverage needs attribution, not statistics; use "
            "manu_utils.unlearning.coverage.select_by_coverage."
        )
    check_name("variant", variant, VARIANTS)
    if variant == "random":
        check_whole("seed", seed, least=0)
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(sum(mlp.size for mlp in mlps), generator=generator, dtype=torch.float64)
    if variant == "magnitude":
        return torch.cat([_magnitude(mlp) for mlp in mlps])
    if variant in ("paper", "released_score"):
        switches = {"eps": eps} if variant == "paper" else RELEASED
        return switched_score(forget, retain, mlps=mlps, **switches)
    _check(
        forget,
        retain,
        mlps,
        needed=tuple(forget) if forget and set(forget) == set(retain) else MODALITIES,
    )
    return torch.stack([_ratio(forget[m], retain[m], floor, eps) for m in forget]).amax(0)


def switched_score(
    forget: dict[str, Statistics],
    retain: dict[str, Statistics],
    *,
    mlps: Sequence[MLP],
    contrast: bool = True,
    one_modality: bool = False,
    sum_of_ratios: bool = False,
    weights: Sequence[float] = (1, 1, 1, 1),
    last_layers: int | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Forget over retain of MANU's four functions, a switch for each difference of the code.

    The defaults are the printed equations, :data:`RELEASED` is the formula of the authors' code.
    Derived in notebook 07.

    Args:
        contrast: the functions compare the modalities. Without it they are plain: mean |z| and
            share active, each summed over the modalities, and the roots of the summed variances and
            of the summed mean squares; one modality, such as text alone, will then do.
        one_modality: the vision tower is scored by image + text alone and the language tower by
            text alone.
        sum_of_ratios: Σ_m w_m (F_m / (R_m + ε) − 1) instead of Σ_m w_m F_m / (Σ_m w_m R_m + ε).
        weights: of I_abs, I_freq, I_var and I_rms; 0 leaves one out.
        last_layers: only that many layers at the end of each tower may be chosen, the others get
            −inf.

    Raises:
        ValueError: a contrast of one modality, no weight above 0, or statistics that do not fit,
            see :func:`score`.
    """
    if contrast and one_modality:
        raise ValueError(
            "one modality has nothing to be contrasted with; pass contrast=False as well."
        )
    if len(weights) != 4 or min(weights) < 0 or not any(weights):
        raise ValueError(
            f"weights={weights} must be four numbers, none negative and at least one positive."
        )
    alone = not (contrast or one_modality) and forget and set(forget) == set(retain)
    _check(forget, retain, mlps, needed=tuple(forget) if alone else MODALITIES)
    if contrast:
        of_forget, of_retain = (
            contrasts(s["multimodal"], s["text"], eps) for s in (forget, retain)
        )
    elif one_modality:
        of_forget, of_retain = (
            _by_tower(_plain([s["multimodal"]]), _plain([s["text"]]), mlps)
            for s in (forget, retain)
        )
    else:
        of_forget, of_retain = (
            _plain([s[m] for m in MODALITIES if m in s]) for s in (forget, retain)
        )
    used = [(w, f, r) for w, f, r in zip(weights, of_forget, of_retain, strict=True) if w]
    if sum_of_ratios:
        scores = sum(w * (f / (r + eps) - 1) for w, f, r in used)
    else:
        scores = sum(w * f for w, f, _ in used) / (sum(w * r for w, _, r in used) + eps)
    if last_layers is not None:
        n_layers = {
            tower: sum(mlp.tower == tower for mlp in mlps) for tower in ("vision", "language")
        }
        closed = torch.tensor([mlp.layer < n_layers[mlp.tower] - last_layers for mlp in mlps])
        scores[closed.repeat_interleave(torch.tensor([mlp.size for mlp in mlps]))] = -torch.inf
    return scores


def pool_layers(statistics: Statistics, mlps: Sequence[MLP]) -> Statistics:
    """Neuron n of every layer of a tower gets the sums of neuron n of all layers of the tower.

    The authors' code hooks every layer but keeps one record per tower, so it never knows in which
    layer a neuron was loud.

    Raises:
        ValueError: layers of one tower with different numbers of neurons.
    """
    tokens, names = [], ("total", "total_abs", "total_squares", "n_active")
    sums: dict[str, list[Tensor]] = {name: [] for name in names}
    for tower in dict.fromkeys(mlp.tower for mlp in mlps):
        members = [index for index, mlp in enumerate(mlps) if mlp.tower == tower]
        if len({mlps[index].size for index in members}) > 1:
            raise ValueError(
                f"the layers of the {tower} tower differ in size; neurons of equal number cannot "
                f"be pooled."
            )
        tokens.append(statistics.tokens[members].sum().expand(len(members)))
        for name in names:
            parts = getattr(statistics, name).split(list(statistics.sizes))
            sums[name].append(
                torch.stack([parts[index] for index in members]).sum(0).repeat(len(members))
            )
    pooled = {name: torch.cat(parts) for name, parts in sums.items()}
    return replace(statistics, tokens=torch.cat(tokens), **pooled)


def _check(
    forget: dict[str, Statistics],
    retain: dict[str, Statistics],
    mlps: Sequence[MLP],
    needed: Sequence[str] = MODALITIES,
) -> None:
    for name, statistics in (("forget", forget), ("retain", retain)):
        if missing := [modality for modality in needed if modality not in statistics]:
            raise ValueError(f"{name} has no {missing[0]} statistics; collect both modalities.")
        if any(s.sizes != tuple(mlp.size for mlp in mlps) for s in statistics.values()):
            raise ValueError(
                f"the {name} statistics are of another model: their layers have other sizes."
            )
        if swapped := [modality for modality, s in statistics.items() if s.modality != modality]:
            raise ValueError(f"{name}[{swapped[0]!r}] holds statistics of another modality.")
    if len({s.tau for s in (*forget.values(), *retain.values())}) > 1:
        raise ValueError(
            "the statistics were collected with different tau; collect them again with one."
        )


def _plain(statistics: Sequence[Statistics]) -> tuple[Tensor, ...]:
    """Mean |z|, share active, deviation, root mean square: the four functions, no contrast."""
    return (
        sum(s.total_abs / s.counts() for s in statistics),
        sum(s.n_active / s.counts() for s in statistics),
        sum(variance(s) for s in statistics).sqrt(),
        sum(s.total_squares / s.counts() for s in statistics).sqrt(),
    )  # fmt: skip


def _by_tower(
    vision: tuple[Tensor, ...], language: tuple[Tensor, ...], mlps: Sequence[MLP]
) -> tuple[Tensor, ...]:
    """The values of ``vision`` for neurons of the vision tower, of ``language`` for others."""
    sees = torch.tensor([mlp.tower == "vision" for mlp in mlps]).repeat_interleave(
        torch.tensor([mlp.size for mlp in mlps])
    )
    return tuple(torch.where(sees, one, other) for one, other in zip(vision, language, strict=True))


def _ratio(forget: Statistics, retain: Statistics, floor: float, eps: float) -> Tensor:
    f, r = forget.total_squares / forget.counts(), retain.total_squares / retain.counts()
    mean = torch.cat([part.mean().expand(len(part)) for part in r.split(list(retain.sizes))])
    return f / (r + floor * mean + eps)


def _magnitude(mlp: MLP) -> Tensor:
    def norm(weight: Tensor, dim: int) -> Tensor:
        return weight.detach().to(exact_device(weight.device)).double().norm(dim=dim)

    reads = torch.stack([norm(linear.weight, 1) for linear in mlp.before]).prod(0)
    return (reads * norm(mlp.after.weight, 0)).cpu()
