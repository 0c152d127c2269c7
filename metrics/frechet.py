"""Distances between two sets of pictures or videos, given their features: Frechet (FID, FVD, DTFVD) and kernel (KID).

Features stream in and are not kept: memory depends on their dimension D and not on how many videos there are. All
sums are float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1000
# Features that the kernel distance draws its subsets from: ten times the usual subset, 82 MB at D = 2048.
KERNEL_SAMPLES = 10_000


class GaussianStatistics:
    """Mean and covariance of features that arrive in batches; the result does not depend on how they are cut.

    Batches are joined by the pairwise update of Chan, Golub and LeVeque (1983), which subtracts no two large sums.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None  # (D,)
        self._scatter: Tensor | None = None  # (D, D), sum of (x - mean) (x - mean)^T

    def add(self, features: Tensor) -> None:
        """Add features (N, D).

        Raises:
            ValueError: another shape or D than before, or a number that is not finite.
        """
        wanted = "(N, D)" if self._mean is None else f"(N, {len(self._mean)})"
        if features.ndim != 2 or (self._mean is not None and features.shape[1] != len(self._mean)):
            raise ValueError(f"features: expected {wanted}, got {tuple(features.shape)}")
        if not len(features):
            return
        features = features.detach().cpu().double()
        if not bool(features.isfinite().all()):
            raise ValueError("features: expected finite numbers, got NaN or infinity")
        mean = features.mean(0)
        scatter = (features - mean).T @ (features - mean)
        if self._mean is None or self._scatter is None:
            self._mean, self._scatter = mean, scatter
        else:
            count = self.count + len(features)
            step = mean - self._mean
            self._scatter += scatter + torch.outer(step, step) * (self.count * len(features) / count)
            self._mean = self._mean + step * (len(features) / count)
        self.count += len(features)

    @property
    def dimension(self) -> int | None:
        """D; None before the first features."""
        return None if self._mean is None else len(self._mean)

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        if self._mean is None:
            raise ValueError("expected at least one feature, got none")
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(D, D), over N - 1; ValueError for fewer than two features."""
        if self._scatter is None or self.count < 2:
            raise ValueError(f"a covariance takes at least two features, got {self.count}")
        return self._scatter / (self.count - 1)


def covariance_root(covariance: Tensor) -> Tensor:
    """Return A (D, rank) with A A^T = covariance (D, D), symmetric and without negative eigenvalues.

    Eigenvalues below the rounding error of the largest one, D eps, are taken for 0: their square roots would be 1e-8 of
    the largest, thousands of them, where a covariance of few samples has nothing.
    """
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    tolerance = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    kept = values > tolerance
    return vectors[:, kept] * values[kept].sqrt()  # (D, rank)


def frechet_distance(one: GaussianStatistics, other: GaussianStatistics) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (Dowson and Landau 1982; FID, FVD, DTFVD).

    With C = A A^T the last trace is the sum of the singular values of A1^T A2: C1 C2 has the eigenvalues of
    (A1^T A2) (A1^T A2)^T, which is symmetric. So no matrix need be invertible, and no eigenvalue of a matrix that is
    not symmetric is asked for, nor the square root of one that rounding made negative.

    Raises:
        ValueError: fewer than two features in one of them, or of different D.
    """
    if one.dimension != other.dimension:
        raise ValueError(f"features: expected the same dimension of both, got {one.dimension} and {other.dimension}")
    step = one.mean - other.mean
    covariances = one.covariance, other.covariance
    roots = [covariance_root(covariance) for covariance in covariances]
    shared = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return max(0.0, float(step @ step + traces - 2 * shared))


class FeatureSample:
    """A uniform sample of at most `capacity` features of a stream, without replacement; all while there are fewer.

    Reservoir sampling (Vitter 1985): which are kept depends on the seed and on the order, not on the batches.
    """

    def __init__(self, capacity: int = KERNEL_SAMPLES, *, seed: int = 0) -> None:
        self.capacity, self.count = capacity, 0
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """Add features (N, D)."""
        for feature in features.detach().cpu().float():
            self.count += 1
            if len(self._kept) < self.capacity:
                self._kept.append(feature.clone())
                continue
            place = int(torch.randint(self.count, (), generator=self._generator))
            if place < self.capacity:
                self._kept[place] = feature.clone()

    def features(self) -> Tensor:
        """Return (n, D) float64, n at most `capacity`."""
        if not self._kept:
            raise ValueError("expected at least one feature, got none")
        return torch.stack(self._kept).double()


def kernel_distance(
    one: Tensor, other: Tensor, *, subsets: int = KERNEL_SUBSETS, subset_size: int = KERNEL_SUBSET_SIZE, seed: int = 0
) -> tuple[float, float, int]:
    """Return the KID of features (N, D) and (M, D): mean and standard deviation over subsets, and the subset's size.

    The unbiased squared MMD under the kernel (x.y / D + 1)^3 (Binkowski et al. 2018), as torchmetrics defines it, here
    in float64 and with subsets drawn by `seed`. A subset is never larger than the smaller set; where it is all of both,
    all subsets are the same and one is computed.

    Raises:
        ValueError: fewer than two features in one of them, or of different D.
    """
    from torchmetrics.image.kid import poly_mmd

    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(f"features: expected (N, D) and (M, D), got {tuple(one.shape)} and {tuple(other.shape)}")
    size = min(subset_size, len(one), len(other))
    if size < 2:
        raise ValueError(f"features: a kernel distance takes at least two of each set, got {len(one)} and {len(other)}")
    one, other = one.double(), other.double()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(1 if size == len(one) == len(other) else subsets):
        drawn = [part[torch.randperm(len(part), generator=generator)[:size]] for part in (one, other)]
        found.append(float(poly_mmd(*drawn)))
    values = torch.tensor(found, dtype=torch.float64)
    return float(values.mean()), float(values.std(unbiased=False)), size


def window_starts(num_frames: int, window: int, step: int) -> list[int]:
    """Return where windows of `window` frames begin, `step` apart from frame 0 on; [] where there are fewer frames."""
    return list(range(0, num_frames - window + 1, step))


def cut_windows(frames: Tensor, window: int, starts: Sequence[int]) -> Tensor:
    """Cut frames (T, ...) into windows (len(starts), window, ...), in the order of time."""
    return torch.stack([frames[start : start + window] for start in starts])
