"""Distances between sets of features of images or videos, in float64: Frechet (FID, FVD, DTFVD) and kernel (KID)."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from metrics.statistics import BOOTSTRAP_INTERVAL

FRECHET_DRAWS = 200


class GaussianStatistics:
    """Mean and covariance of features in batches, joined by the update of Chan, Golub and LeVeque (1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.empty(0)  # (D,)
        self._scatter = torch.empty(0, 0)  # (D, D), sum of (x - mean) (x - mean)^T

    def add(self, features: Tensor) -> None:
        """Add features (N, D)."""
        if not len(features):
            return
        features = features.detach().cpu().double()
        mean = features.mean(0)
        scatter = (features - mean).T @ (features - mean)
        count = self.count + len(features)
        if self.count:
            step = mean - self.mean
            scatter += self._scatter + torch.outer(step, step) * (self.count * len(features) / count)
            mean = self.mean + step * (len(features) / count)
        self.count, self.mean, self._scatter = count, mean, scatter

    @property
    def covariance(self) -> Tensor:
        """(D, D), over N - 1."""
        return self._scatter / (self.count - 1)


def covariance_root(covariance: Tensor) -> Tensor:
    """Return A (D, rank) with A A^T = covariance (D, D), leaving out eigenvalues that are rounding errors."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    tolerance = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    kept = values > tolerance
    return vectors[:, kept] * values[kept].sqrt()  # (D, rank)


def frechet_distance(one: GaussianStatistics, other: GaussianStatistics) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (Dowson and Landau 1982; FID, FVD, DTFVD).

    With C = A A^T the last trace is the sum of the singular values of A1^T A2. So rounding makes no eigenvalue
    negative, as it does for the product C1 C2 (torchmetrics) where there are fewer samples than features.
    """
    step = one.mean - other.mean
    covariances = one.covariance, other.covariance
    roots = [covariance_root(covariance) for covariance in covariances]
    shared = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return max(0.0, float(step @ step + traces - 2 * shared))


def frechet_interval(
    features: Mapping[str, tuple[Tensor, Tensor]], seed: int, *, draws: int = FRECHET_DRAWS
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of the Frechet distance of {source: (features (N, D), others (M, D))}.

    Whole sources are resampled, both sides together. A draw holds fewer different samples, which makes the distance
    larger; so the interval's quantiles are those of the draws minus their mean, added to the distance of all. None for
    fewer than two sources.
    """
    if len(features) < 2:
        return None
    parts = [(one.double(), other.double()) for one, other in features.values()]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = [parts[index] for index in rng.integers(len(parts), size=len(parts))]
        found.append(_distance_of_samples(*(torch.cat(side) for side in zip(*chosen, strict=True))))
    distance = _distance_of_samples(*(torch.cat(side) for side in zip(*parts, strict=True)))
    tail = (1 - BOOTSTRAP_INTERVAL) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) - np.mean(found) + distance
    return max(0.0, float(low)), float(high)


def _distance_of_samples(one: Tensor, other: Tensor) -> float:
    """Return `frechet_distance` of the Gaussians of (N, D) and (M, D), without their covariances: fast for few samples.

    With X = Q R of the centred samples over sqrt(N - 1), C = R^T R, and the shared trace that of the singular values of
    R1 R2^T.
    """
    means = one.mean(0), other.mean(0)
    roots = [
        torch.linalg.qr((samples - mean) / (len(samples) - 1) ** 0.5, mode="r").R  # (min(N, D), D)
        for samples, mean in zip((one, other), means, strict=True)
    ]
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    step = means[0] - means[1]
    return max(0.0, float(step @ step + sum(root.square().sum() for root in roots) - 2 * shared))


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
