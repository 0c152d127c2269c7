"""Frechet and kernel distances against closed forms and torchmetrics; windows; the crop."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from evaluation.video.sources import centre_crop
from metrics.frechet import (
    FeatureSample,
    GaussianStatistics,
    covariance_root,
    cut_windows,
    frechet_distance,
    kernel_distance,
    window_starts,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics_of(features: torch.Tensor) -> GaussianStatistics:
    found = GaussianStatistics()
    found.add(features)
    return found


def with_moments(mean: list[float], covariance: torch.Tensor) -> GaussianStatistics:
    """2 D points whose mean and covariance (over N - 1) are exactly these: mean +- sqrt((2 D - 1) / 2) A e_i."""
    count = 2 * len(mean)
    arms = covariance_root(covariance).T * np.sqrt((count - 1) / 2)  # (rank, D)
    arms = torch.cat([arms, torch.zeros(len(mean) - len(arms), len(mean), dtype=arms.dtype)])
    return statistics_of(torch.tensor(mean, dtype=torch.float64) + torch.cat([arms, -arms]))


class Features(torch.nn.Module):
    """For torchmetrics: what it is shown are features already."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.num_features = dimension

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def torchmetrics_fid(one: torch.Tensor, other: torch.Tensor) -> float:
    metric = FrechetInceptionDistance(feature=Features(one.shape[1]), normalize=True)
    metric.update(one, real=True)
    metric.update(other, real=False)
    return float(metric.compute())


# ------------------------------------------------------------------------------------------ Frechet


DIAGONAL = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))


def test_hand_made_gaussians_have_the_moments_that_they_were_made_for() -> None:
    found = with_moments([1.0, 2.0, 3.0], DIAGONAL)
    torch.testing.assert_close(found.mean, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(found.covariance, DIAGONAL)


@pytest.mark.parametrize(
    ("mean", "covariance", "expected"),
    [
        ([0.0, 0.0, 0.0], DIAGONAL, 0.0),
        ([3.0, -4.0, 0.0], DIAGONAL, 25.0),  # |m1 - m2|^2
        ([0.0, 0.0, 0.0], 4 * DIAGONAL, 14.0),  # (2 - 1)^2 (1 + 4 + 9)
        ([0.0, 1.0, 0.0], 0 * DIAGONAL, 15.0),  # a point: 1 + tr C
        # of rank 1, (1, 1, 0) / sqrt 2 with 8: 14 + 8 - 2 sqrt(8 (1 + 4) / 2), as C1 C2 has one eigenvalue
        ([0.0, 0.0, 0.0], torch.tensor([[4.0, 4, 0], [4, 4, 0], [0, 0, 0]]).double(), 22 - 2 * np.sqrt(20)),
    ],
)
def test_frechet_distance_in_closed_form(mean: list[float], covariance: torch.Tensor, expected: float) -> None:
    one, other = with_moments([0.0, 0.0, 0.0], DIAGONAL), with_moments(mean, covariance)
    assert frechet_distance(one, other) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(other, one) == pytest.approx(expected, abs=1e-9)


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    one, other = drawn(60, 8), drawn(50, 8, seed=1) @ drawn(8, 8, seed=2) + 0.3
    assert frechet_distance(statistics_of(one), statistics_of(other)) == pytest.approx(torchmetrics_fid(one, other))


def test_fewer_samples_than_features_lose_nothing_to_rounding() -> None:
    # ten samples of 200 features: C1 C2 has 191 eigenvalues that are 0
    one = drawn(10, 200) * 100
    other = one + drawn(1, 200, seed=1)  # the same covariance
    expected = float((other - one)[0].square().sum())
    assert frechet_distance(statistics_of(one), statistics_of(other)) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(statistics_of(one), statistics_of(one.flip(0))) == pytest.approx(0, abs=1e-6)


def test_streaming_equals_one_batch_and_far_means_cost_no_digits() -> None:
    features = drawn(64, 6) + 1e6
    once, streamed = statistics_of(features), GaussianStatistics()
    for part in features.split([1, 20, 0, 3, 40]):
        streamed.add(part)
    assert streamed.count == 64 and streamed.dimension == 6
    torch.testing.assert_close(streamed.mean, once.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(streamed.covariance, once.covariance, rtol=1e-9, atol=1e-9)
    expected = torch.from_numpy(np.cov((features - 1e6).numpy(), rowvar=False))
    torch.testing.assert_close(streamed.covariance, expected, rtol=1e-6, atol=1e-6)


def test_statistics_refuse_what_is_no_features() -> None:
    found = statistics_of(drawn(3, 4))
    for bad, message in [
        (drawn(3, 5), r"expected \(N, 4\), got \(3, 5\)"),
        (drawn(3, 4, 1), r"expected \(N, 4\)"),
        (torch.full((1, 4), torch.nan), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            found.add(bad)
    assert found.count == 3
    with pytest.raises(ValueError, match="at least two features, got 1"):
        frechet_distance(found, statistics_of(drawn(1, 4)))
    with pytest.raises(ValueError, match="same dimension of both, got 4 and 5"):
        frechet_distance(found, statistics_of(drawn(3, 5)))


# ------------------------------------------------------------------------------------------ kernel


def test_kernel_distance_by_hand() -> None:
    # k(x, y) = (x y + 1)^3 for D = 1. x = 0, 1; y = 1, 2: k_xx' = 1, k_yy' = 27, k_xy = 1, 1, 8, 27
    one, other = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    # (2 * 1 + 2 * 27) / (2 * 1) - 2 * 37 / 4
    assert kernel_distance(one, other) == (pytest.approx(28 - 18.5), 0.0, 2)
    # unbiased: may be below 0. x = y = 0, 1: (2 + 2) / 2 - 2 (1 + 1 + 1 + 8) / 4
    assert kernel_distance(one, one)[0] == pytest.approx(-3.5)


def test_kernel_distance_is_that_of_torchmetrics_and_its_subsets_follow_the_seed() -> None:
    one, other = drawn(12, 5), drawn(12, 5, seed=1) + 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = KernelInceptionDistance(feature=Features(5), subsets=2, subset_size=12)
    metric.update(one, real=True)
    metric.update(other, real=False)
    assert kernel_distance(one, other)[0] == pytest.approx(float(metric.compute()[0]))
    found = [kernel_distance(one, other, subsets=4, subset_size=6, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert found[0][1] > 0 and found[0][2] == 6
    assert kernel_distance(one[:3], other)[2] == 3
    with pytest.raises(ValueError, match="at least two of each set, got 1 and 12"):
        kernel_distance(one[:1], other)


def test_a_sample_keeps_all_while_there_are_few_and_any_with_the_same_chance() -> None:
    small = FeatureSample(5)
    small.add(torch.arange(4.0)[:, None])
    assert small.features().flatten().tolist() == [0, 1, 2, 3]
    kept = torch.zeros(12)
    for seed in range(600):
        whole, pieces = FeatureSample(3, seed=seed), FeatureSample(3, seed=seed)
        whole.add(torch.arange(12.0)[:, None])
        for part in torch.arange(12.0)[:, None].split(5):
            pieces.add(part)
        found = whole.features().flatten()
        assert torch.equal(found, pieces.features().flatten()) and len(set(found.tolist())) == 3
        kept[found.long()] += 1
    # 600 draws of chance 1/4: 150 +- 5 standard deviations
    assert whole.count == 12 and bool(((kept - 150).abs() < 5 * np.sqrt(600 * 0.25 * 0.75)).all())


# ------------------------------------------------------------------------------------------ windows and the crop


def test_windows_are_counted_and_cut_in_the_order_of_time() -> None:
    assert window_starts(150, 16, 16) == [0, 16, 32, 48, 64, 80, 96, 112, 128]
    assert len(window_starts(150, 32, 32)) == 4 and window_starts(16, 16, 16) == [0] and window_starts(15, 16, 1) == []
    windows = cut_windows(torch.arange(10.0).view(10, 1, 1, 1), 4, [0, 5])
    assert windows.shape == (2, 4, 1, 1, 1) and windows.flatten().tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def test_the_crop_is_the_middle_of_what_just_covers_it() -> None:
    rows = torch.arange(160.0).view(160, 1).expand(3, 160, 256)
    cropped = centre_crop(rows, (128, 256))
    assert cropped.shape == (3, 128, 256) and cropped[0, :, 0].tolist() == list(range(16, 144))  # not resampled
    columns = torch.arange(40.0).expand(2, 3, 20, 40)
    assert centre_crop(columns, (20, 20))[0, 0, 0].tolist() == list(range(10, 30))
    halved = centre_crop(columns, (10, 10))  # to 10 x 20, then columns 5 to 14: 10.5, 12.5, ...
    torch.testing.assert_close(halved[1, 2, 4, 1:-1], torch.arange(12.5, 28, 2))
    assert centre_crop(torch.zeros(3, 90, 60), (128, 256)).shape == (3, 128, 256)
