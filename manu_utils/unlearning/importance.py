"""The four importance functions of MANU, and their sum. Derived in notebook 03."""

from __future__ import annotations

from torch import Tensor

from .activations import Statistics


def importance_abs(multimodal: Statistics, text: Statistics, eps: float = 1e-6) -> Tensor:
    """I_abs = |Z̄_multi − Z̄_text| / (Z̄_multi + Z̄_text + ε), Z̄ = mean |z| (MANU, section 3)."""
    one, other = multimodal.total_abs / multimodal.counts(), text.total_abs / text.counts()
    return (one - other).abs() / (one + other + eps)


def importance_freq(multimodal: Statistics, text: Statistics, eps: float = 1e-6) -> Tensor:
    """I_freq = |N_multi − N_text| / (N_multi + N_text + ε), N = count |z| > τ (MANU, section 3)."""
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
    return sum(contrasts(multimodal, text, eps))


def contrasts(multimodal: Statistics, text: Statistics, eps: float) -> tuple[Tensor, ...]:
    return (
        importance_abs(multimodal, text, eps), importance_freq(multimodal, text, eps),
        importance_var(multimodal, text), importance_rms(multimodal, text, eps),
    )  # fmt: skip


def variance(statistics: Statistics) -> Tensor:
    """Population variance of z per neuron, never negative."""
    n = statistics.counts()
    return (statistics.total_squares / n - (statistics.total / n) ** 2).clamp(min=0)
