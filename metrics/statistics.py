"""Intervals and a paired test of means over clips, when clips of one source video are not independent.

The mean is that over the clips, each counting the same; what is drawn anew, or has its sign turned, are whole sources.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# With so many sources all 2^n sign patterns are gone through; with more, SIGN_DRAWS of them.
MOST_SOURCES_EXACT = 14
SIGN_DRAWS = 10_000
# Sums of floats that differ by less, relatively, are the same.
_TIE = 1e-9


def mean_interval(values: Sequence[float], sources: Sequence[str], seed: int) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the mean of `values`, their sources drawn anew with replacement.

    Args:
        values: one a clip.
        sources: the video that each clip was cut from.
        seed: of the 10,000 draws.

    Returns:
        (low, high), or None for fewer than two sources.
    """
    sums, counts = _by_source(values, sources)
    if len(sums) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(len(sums), size=(BOOTSTRAP_DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = (1 - BOOTSTRAP_INTERVAL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def sign_flip_p(differences: Sequence[float], sources: Sequence[str], seed: int) -> float | None:
    """Return the two-sided p-value of a paired sign-flip (permutation) test of a mean difference of 0.

    Under the null hypothesis the two sides of a pair are exchangeable, so that all clips of a source may as well have
    the other sign. p is the share of sign patterns whose mean is at least as far from 0 as the one found: of all 2^n
    up to 14 sources (the least p is 2 / 2^n), else of 10,000 drawn by the seed and the one found.

    Args:
        differences: one a clip, first minus second.
        sources: the video that each clip was cut from.
        seed: of the draws.

    Returns:
        p in (0, 1], or None for fewer than two sources.
    """
    sums, _ = _by_source(differences, sources)
    count = len(sums)
    if count < 2:
        return None
    if count <= MOST_SOURCES_EXACT:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)  # (2^n, n)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], size=(SIGN_DRAWS, count))
        signs = np.concatenate([signs, np.ones((1, count), signs.dtype)])
    found = abs(sums.sum()) - _TIE * np.abs(sums).sum()
    return float((np.abs(signs @ sums) >= found).mean())


def _by_source(values: Sequence[float], sources: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum over the clips of each source, and their numbers, (S,) float64 each."""
    if len(values) != len(sources):
        raise ValueError(f"sources: expected {len(values)} as values, got {len(sources)}")
    names = sorted(set(sources))
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for value, source in zip(values, sources, strict=True):
        sums[names.index(source)] += value
        counts[names.index(source)] += 1
    return sums, counts


BOOTSTRAP_DRAWS = 10_000


BOOTSTRAP_INTERVAL = 0.95


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


def bootstrap_interval(differences: Sequence[float], seed: int) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of a mean over sources, drawn anew with replacement; None below two."""
    if len(differences) < 2:
        return None
    values = np.asarray(differences, np.float64)
    drawn = np.random.default_rng(seed).integers(len(values), size=(BOOTSTRAP_DRAWS, len(values)))
    tail = (1 - BOOTSTRAP_INTERVAL) / 2
    low, high = np.quantile(values[drawn].mean(1), [tail, 1 - tail])
    return float(low), float(high)
