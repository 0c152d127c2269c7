"""Means, intervals and a paired test over clips.

Clips of one source video are not independent, so whole sources are resampled or change sign.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

BOOTSTRAP_DRAWS = 10_000
BOOTSTRAP_INTERVAL = 0.95
# All 2^n sign patterns up to 14 sources; with more sources as many drawn ones.
SIGN_DRAWS = 2**14


def bootstrap_interval(
    values: Sequence[float], seed: int, sources: Sequence[str] | None = None
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the mean of clips, whole sources resampled; None for fewer than two."""
    sums, counts = _sums_by_source(values, range(len(values)) if sources is None else sources)
    if len(sums) < 2:
        return None
    options = {"n_resamples": BOOTSTRAP_DRAWS, "confidence_level": BOOTSTRAP_INTERVAL, "method": "percentile"}
    options |= {"paired": True, "vectorized": True, "rng": np.random.default_rng(seed)}
    found = stats.bootstrap((sums, counts), lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis), **options)
    low, high = found.confidence_interval
    return float(low), float(high)


def sign_flip_p(differences: Sequence[float], sources: Sequence[str], seed: int) -> float | None:
    """Return the two-sided p-value of a paired sign-flip (permutation) test of a mean difference of 0.

    All clips of a source may have the other sign. With n sources p is at least 2 / 2^n. None for fewer than two.
    """
    sums, _ = _sums_by_source(differences, sources)
    if len(sums) < 2:
        return None
    rng = np.random.default_rng(seed)
    options = {"permutation_type": "samples", "n_resamples": SIGN_DRAWS, "vectorized": True, "rng": rng}
    return float(stats.permutation_test((sums,), np.sum, **options).pvalue)


def _sums_by_source(values: Sequence[float], sources: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum over the clips of each source, and their numbers: (S,) float64 each."""
    _, index = np.unique(np.asarray(sources), return_inverse=True)
    return np.bincount(index, np.asarray(values, np.float64)), np.bincount(index).astype(np.float64)


def known_mean(values: Iterable[float | None]) -> float | None:
    """Average what is not None; None of nothing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def by_source(rows: Sequence[Mapping[str, Any]], column: str, *, geometric: bool = False) -> dict[str, float]:
    """Return {source: mean over its clips} of a column; cells of None are left out."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.get(column) is not None:
            values.setdefault(row["source"], []).append(row[column])
    mean = statistics.geometric_mean if geometric else statistics.fmean
    return {source: mean(found) for source, found in values.items()}


def mean_by_source(rows: Sequence[Mapping[str, Any]], column: str, *, geometric: bool = False) -> float | None:
    """Average a column first over the clips of a source, then over sources; None where no clip has it."""
    means = by_source(rows, column, geometric=geometric).values()
    if not means:
        return None
    return statistics.geometric_mean(means) if geometric else statistics.fmean(means)
