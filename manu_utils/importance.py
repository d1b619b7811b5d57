"""The four importance functions of MANU, and the scores built on them. Derived in notebooks 03 and 04.

Every function takes running sums (:class:`manu_utils.activations.Statistics`) and returns one float64 number per neuron.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .activations import Statistics
from .neurons import MLP

VARIANTS = ("paper", "released", "ratio", "random", "magnitude", "coverage")
CONTROLS = ("random", "magnitude")  # they look at no data


def importance_abs(multimodal: Statistics, text: Statistics, eps: float = 1e-6) -> Tensor:
    """I_abs = |Z̄_multi − Z̄_text| / (Z̄_multi + Z̄_text + ε), Z̄ the mean of |z| (MANU, section 3)."""
    one, other = multimodal.total_abs / multimodal.counts(), text.total_abs / text.counts()
    return (one - other).abs() / (one + other + eps)


def importance_freq(multimodal: Statistics, text: Statistics, eps: float = 1e-6) -> Tensor:
    """I_freq = |N_multi − N_text| / (N_multi + N_text + ε), N the count of |z| > τ (MANU, section 3)."""
    one, other = multimodal.n_active, text.n_active
    return (one - other).abs() / (one + other + eps)


def importance_var(multimodal: Statistics, text: Statistics) -> Tensor:
    """I_var = √(Var_multi + Var_text), in the units of z (MANU, section 3)."""
    return (variance(multimodal) + variance(text)).sqrt()


def importance_rms(multimodal: Statistics, text: Statistics, eps: float = 1e-6) -> Tensor:
    """I_rms = √(|Σz²_multi − Σz²_text| / (Σz²_multi + Σz²_text + ε)) (MANU, section 3)."""
    one, other = multimodal.total_squares, text.total_squares
    return ((one - other).abs() / (one + other + eps)).sqrt()


def importance(multimodal: Statistics, text: Statistics, eps: float = 1e-6) -> Tensor:
    """I = I_abs + I_freq + I_var + I_rms."""
    functions = (importance_abs, importance_freq, importance_rms)
    return sum(function(multimodal, text, eps) for function in functions) + importance_var(multimodal, text)


def variance(statistics: Statistics) -> Tensor:
    """Population variance of z per neuron, never negative."""
    n = statistics.counts()
    return (statistics.total_squares / n - (statistics.total / n) ** 2).clamp(min=0)


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
    - ``released``: what the authors' code computes, carried over to neurons: each tower by one modality (vision by image +
      text, language by text alone), Σ_m w_m · (F_m / (R_m + 1e-5) − 1) over mean |z|, share active, standard deviation and
      root mean square with weights 2, 0, 2, 2; only the last three layers of each tower can be chosen (others −inf).
    - ``ratio``: F / (R + floor · mean R) of the mean square, the larger of the two modalities; the floor (mean over the
      layer) keeps the budget from neurons that hardly fire for anyone.
    - ``random``, ``magnitude``: controls; a uniform number, and the norm of what a neuron reads times that of what it writes.

    Args:
        forget, retain: modality (``"multimodal"``, ``"text"``) -> statistics; the controls do not look at them.
        mlps: from :func:`manu_utils.neurons.find_neurons`, in the same order.

    Raises:
        ValueError: unknown variant, a missing modality, or statistics of another model, of the wrong modality or of
            different τ.
    """
    if variant == "coverage":
        raise ValueError("coverage needs attribution, not statistics; use manu_utils.attribution.select_by_coverage.")
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is unknown; use one of {', '.join(VARIANTS)}.")
    if variant == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(sum(mlp.size for mlp in mlps), generator=generator, dtype=torch.float64)
    if variant == "magnitude":
        return torch.cat([_magnitude(mlp) for mlp in mlps])
    for name, statistics in (("forget", forget), ("retain", retain)):
        if missing := [modality for modality in ("multimodal", "text") if modality not in statistics]:
            raise ValueError(f"{name} has no {missing[0]} statistics; collect both modalities.")
        if any(s.sizes != tuple(mlp.size for mlp in mlps) for s in statistics.values()):
            raise ValueError(f"the {name} statistics are of another model: their layers have other sizes.")
        if swapped := [modality for modality, s in statistics.items() if s.modality != modality]:
            raise ValueError(f"{name}[{swapped[0]!r}] holds statistics of another modality.")
    if len({s.tau for s in (*forget.values(), *retain.values())}) > 1:
        raise ValueError("the statistics were collected with different tau; collect them again with one.")
    if variant == "paper":
        of_forget, of_retain = (importance(s["multimodal"], s["text"], eps) for s in (forget, retain))
        return of_forget / (of_retain + eps)
    if variant == "released":
        return _released(forget, retain, mlps)
    return torch.maximum(*(_ratio(forget[m], retain[m], floor, eps) for m in ("multimodal", "text")))


def _released(forget: dict[str, Statistics], retain: dict[str, Statistics], mlps: Sequence[MLP]) -> Tensor:
    by_modality = {}
    for modality in ("multimodal", "text"):
        pairs = zip(_released_functions(forget[modality]), _released_functions(retain[modality]), strict=True)
        weights = (2, 0, 2, 2)
        by_modality[modality] = sum(w * (f / (r + 1e-5) - 1) for w, (f, r) in zip(weights, pairs, strict=True))
    n_layers = {tower: sum(mlp.tower == tower for mlp in mlps) for tower in ("vision", "language")}
    parts, start = [], 0
    for mlp in mlps:
        of = by_modality["multimodal" if mlp.tower == "vision" else "text"][start : start + mlp.size]
        parts.append(of if mlp.layer >= n_layers[mlp.tower] - 3 else torch.full_like(of, -torch.inf))
        start += mlp.size
    return torch.cat(parts)


def _released_functions(statistics: Statistics) -> tuple[Tensor, ...]:
    n = statistics.counts()
    mean_abs, share_active = statistics.total_abs / n, statistics.n_active / n
    return mean_abs, share_active, variance(statistics).sqrt(), (statistics.total_squares / n).sqrt()


def _ratio(forget: Statistics, retain: Statistics, floor: float, eps: float) -> Tensor:
    f, r = forget.total_squares / forget.counts(), retain.total_squares / retain.counts()
    mean = torch.cat([part.mean().expand(len(part)) for part in r.split(list(retain.sizes))])
    return f / (r + floor * mean + eps)


def _magnitude(mlp: MLP) -> Tensor:
    reads = torch.stack([linear.weight.detach().double().norm(dim=1) for linear in mlp.inputs]).prod(0)
    return (reads * mlp.output.weight.detach().double().norm(dim=0)).cpu()
