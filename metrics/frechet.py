"""Distances between sets of features of images or videos, in float64: Frechet (FID, FVD, DTFVD) and kernel (KID)."""

import warnings
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from metrics.statistics import BOOTSTRAP_INTERVAL

FRECHET_DRAWS = 200


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Return the Frechet distance (FID, FVD, DTFVD) of the Gaussians of features (N, D), (M, D), each of two or more.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) [Dowson and Landau 1982], covariances over N - 1. With X = Q R of the
    centred features over sqrt(N - 1), C = R^T R, and the last trace is the sum of the singular values of R1 R2^T, which
    rounding makes not negative, as eigenvalues of C1 C2.
    """
    one, other = one.double(), other.double()
    roots = [
        torch.linalg.qr((features - features.mean(0)) / (len(features) - 1) ** 0.5, mode="r").R  # (min(N, D), D)
        for features in (one, other)
    ]
    step = one.mean(0) - other.mean(0)
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return max(0.0, float(step @ step + sum(root.square().sum() for root in roots) - 2 * shared))


def frechet_interval(
    clips: Iterable[tuple[str, Tensor, Tensor]], seed: int, *, draws: int = FRECHET_DRAWS
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of the Frechet distance of clips (source, features (N, D), others (M, D)).

    Whole sources are resampled, both sides together; None for fewer than two. A draw holds fewer different samples, so
    that its distance is larger: the draws' quantiles count from their mean, and are added to the distance of all.
    """
    by_source = defaultdict(list)
    for source, *sides in clips:
        by_source[source].append(sides)
    parts, rng = [*by_source.values()], np.random.default_rng(seed)
    if len(parts) < 2:
        return None

    def distance_of(chosen: Iterable[int]) -> float:
        pairs = [pair for index in chosen for pair in parts[index]]
        return frechet_distance(*map(torch.cat, zip(*pairs, strict=True)))

    found = [distance_of(rng.integers(len(parts), size=len(parts))) for _ in range(draws)]
    distance = distance_of(range(len(parts)))
    tail = (1 - BOOTSTRAP_INTERVAL) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) - np.mean(found) + distance
    return max(0.0, float(low)), float(high)


def kernel_distance(
    one: Tensor, other: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the KID of features (N, D), (M, D): mean and deviation over subsets drawn by `seed`.

    The unbiased squared MMD under (x.y / D + 1)^3 [Binkowski et al. 2018]; a subset is at most the smaller set.
    """
    size = min(subset_size, len(one), len(other))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features
        torch.manual_seed(seed)
        network = nn.Identity()  # what it is shown are features already
        network.num_features = one.shape[1]
        metric = KernelInceptionDistance(feature=network, subsets=subsets, subset_size=size)
        metric.update(one.double(), real=True)
        metric.update(other.double(), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)
