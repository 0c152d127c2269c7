"""Frechet and kernel distances against closed forms and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from metrics.frechet import frechet_distance, frechet_interval, kernel_distance


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: list[float], covariance: torch.Tensor) -> torch.Tensor:
    """2 D points whose mean and covariance (over N - 1) are exactly these: mean +- sqrt((2 D - 1) / 2) A e_i."""
    values, vectors = torch.linalg.eigh(covariance)
    arms = (vectors * values.clamp(min=0).sqrt()).T * np.sqrt((2 * len(mean) - 1) / 2)  # (D, D)
    return torch.tensor(mean, dtype=torch.float64) + torch.cat([arms, -arms])


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
    torch.testing.assert_close(found.mean(0), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(found.T.cov(), DIAGONAL)


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
    assert frechet_distance(one, other) == pytest.approx(torchmetrics_fid(one, other))


def test_fewer_samples_than_features_lose_nothing_to_rounding() -> None:
    # ten samples of 200 features: C1 C2 has 191 eigenvalues that are 0
    one = drawn(10, 200) * 100
    other = one + drawn(1, 200, seed=1)  # the same covariance
    expected = float((other - one)[0].square().sum())
    assert frechet_distance(one, other) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(one, one.flip(0)) == pytest.approx(0, abs=1e-6)


def test_far_means_cost_no_digits() -> None:
    one, other = drawn(64, 6), 2 * drawn(50, 6, seed=1)
    assert frechet_distance(one + 1e6, other + 1e6) == pytest.approx(frechet_distance(one, other), rel=1e-8)


# ------------------------------------------------------------------------------------------ kernel


@pytest.mark.parametrize("count", [4, 40])  # a source: fewer samples than features, and more
def test_the_interval_of_a_distance(count: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def interval(clips: list, **options) -> tuple[float, float] | None:
        return frechet_interval(clips, 0, **options)

    clips = []
    for source in range(8):
        one = torch.randn(count, 50, generator=generator)
        clips.append((str(source), one, 2 * one + torch.randn(count, 50, generator=generator) + source))
    low, high = interval(clips)
    distance = frechet_distance(*(torch.cat(side) for side in list(zip(*clips, strict=True))[1:]))
    assert low < distance < high and (low, high) == interval(clips)
    # the mean of the draws is the distance; more sources leave less doubt
    draws = [interval(clips, draws=1) for _ in range(2)]
    assert draws[0] == draws[1] == pytest.approx((distance, distance))
    more = [(f"{name}{copy}", *pair) for name, *pair in clips for copy in range(2)]
    assert interval(more)[1] - interval(more)[0] < 0.85 * (high - low)
    # clips of one source are drawn together
    halves = [(name, *part) for name, *pair in clips for part in zip(*(one.chunk(2) for one in pair), strict=True)]
    assert interval(halves) == pytest.approx((low, high))
    # both sides are drawn together: sets that are equal are equal in each draw
    same = [(name, one, one) for name, one, _ in clips]
    assert interval(same) == pytest.approx((0, 0), abs=1e-9) and interval(same[:1]) is None


def test_kernel_distance_by_hand() -> None:
    # k(x, y) = (x y + 1)^3 for D = 1. x = 0, 1; y = 1, 2: k_xx' = 1, k_yy' = 27, k_xy = 1, 1, 8, 27
    one, other = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    # (2 * 1 + 2 * 27) / (2 * 1) - 2 * 37 / 4
    assert kernel_distance(one, other, subsets=2) == (pytest.approx(28 - 18.5), pytest.approx(0, abs=1e-9))
    # unbiased: may be below 0. x = y = 0, 1: (2 + 2) / 2 - 2 (1 + 1 + 1 + 8) / 4
    assert kernel_distance(one, one, subsets=2)[0] == pytest.approx(-3.5)


def test_subsets_of_the_kernel_distance_follow_the_seed() -> None:
    one, other = drawn(12, 5), drawn(12, 5, seed=1) + 0.5
    state = torch.random.get_rng_state()
    found = [kernel_distance(one, other, subsets=4, subset_size=6, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2] and found[0][1] > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert kernel_distance(one[:3], other, subsets=2)[0] != 0  # subsets of 3
