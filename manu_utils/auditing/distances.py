"""How far apart two samples are, such as the truth ratios of an unlearned and a retrained model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..checks import check_whole


def ks_distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest gap between two samples' distributions (Kolmogorov–Smirnov statistic), 0 to 1.

    Raises:
        ValueError: an empty sample, or numbers that are not finite.
    """
    from scipy.stats import ks_2samp

    return float(ks_2samp(_sample(one), _sample(other), method="asymp").statistic)


def js_distance(one: Sequence[float], other: Sequence[float], *, bins: int = 50) -> float:
    """The Jensen–Shannon distance of two samples' histograms, 0 to √(ln 2) = 0.833.

    Histograms of ``bins`` equal bins over the range of both and the natural logarithm, as
    Open-MMUnlearning has it for samples that differ in length. (Of equally long samples its code
    takes the numbers themselves for weights, which depends on their order.)

    Raises:
        ValueError: an empty sample, or numbers that are not finite.
    """
    from scipy.spatial.distance import jensenshannon

    check_whole("bins", bins)
    one, other = _sample(one), _sample(other)
    low, high = min(one.min(), other.min()), max(one.max(), other.max())
    edges = np.linspace(low, high if high > low else low + 1e-8, bins + 1)
    return float(jensenshannon(*(np.histogram(sample, bins=edges)[0] for sample in (one, other))))


def _sample(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(f"a sample must be a list of finite numbers, not of shape {sample.shape}.")
    return sample
