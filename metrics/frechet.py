"""Distances between two sets of images or videos, given their features: Frechet (FID, FVD, DTFVD) and kernel (KID).

All sums are float64 on the CPU.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


class GaussianStatistics:
    """Mean and covariance of features that arrive in batches; memory depends on their dimension D alone.

    Batches are joined by the pairwise update of Chan, Golub and LeVeque (1983), which subtracts no two large sums.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.empty(0)  # (D,)
        self._scatter = torch.empty(0, 0)  # (D, D), sum of (x - mean) (x - mean)^T

    def add(self, features: Tensor) -> None:
        """Add features (N, D).

        Raises:
            ValueError: another shape or D than before, or a number that is not finite.
        """
        if features.ndim != 2 or (self.count and features.shape[1] != len(self.mean)):
            wanted = f"(N, {len(self.mean)})" if self.count else "(N, D)"
            raise ValueError(f"features: expected {wanted}, got {tuple(features.shape)}")
        if not len(features):
            return
        features = features.detach().cpu().double()
        if not bool(features.isfinite().all()):
            raise ValueError("features: expected finite numbers, got NaN or infinity")
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
        """(D, D), over N - 1; ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance takes at least two features, got {self.count}")
        return self._scatter / (self.count - 1)


def covariance_root(covariance: Tensor) -> Tensor:
    """Return A (D, rank) with A A^T = covariance (D, D), symmetric and without negative eigenvalues.

    Eigenvalues below the rounding error of the largest one, D eps, are set to 0. A covariance of few samples has
    thousands of these; their square roots would be 1e-8 of the largest.
    """
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    tolerance = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    kept = values > tolerance
    return vectors[:, kept] * values[kept].sqrt()  # (D, rank)


def frechet_distance(one: GaussianStatistics, other: GaussianStatistics) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (Dowson and Landau 1982; FID, FVD, DTFVD).

    With C = A A^T the last trace is the sum of the singular values of A1^T A2: C1 C2 has the eigenvalues of
    (A1^T A2) (A1^T A2)^T, which is symmetric. So no matrix need be invertible, and rounding makes no eigenvalue
    negative, as it does for the product C1 C2 (torchmetrics) where there are fewer samples than features.

    Raises:
        ValueError: fewer than two features in one of them, or of different D.
    """
    if len(one.mean) != len(other.mean):
        raise ValueError(f"features: expected the same dimension of both, got {len(one.mean)} and {len(other.mean)}")
    step = one.mean - other.mean
    covariances = one.covariance, other.covariance
    roots = [covariance_root(covariance) for covariance in covariances]
    shared = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return max(0.0, float(step @ step + traces - 2 * shared))


class _AsTheyAre(nn.Module):
    """A feature network for torchmetrics, of which the input is features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def kernel_distance(
    one: Tensor, other: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the KID of features (N, D) and (M, D): mean and standard deviation over subsets drawn by `seed`.

    The unbiased squared MMD under the kernel (x.y / D + 1)^3 (Binkowski et al. 2018), by torchmetrics in float64. A
    subset is never larger than the smaller set.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(subset_size, len(one), len(other))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=_AsTheyAre(one.shape[1]), subsets=subsets, subset_size=size)
        metric.update(one.double(), real=True)
        metric.update(other.double(), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)
