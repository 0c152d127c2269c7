"""Metrics of predicted motion, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metrics.motion import (
    BASELINES,
    average_precision,
    baseline_maps,
    bin_ratios,
    chance_corrected_ap,
    coherence,
    direction_distance,
    direction_histogram,
    diversity,
    image_gradient,
    mean_fold_error,
    mean_motion,
    moving_mask,
    normalised_gradient,
    spectral_slope,
)

SIZE = (32, 64)
BINS = 4


def drift(dx: Tensor | float, dy: Tensor | float = 0.0, *, size: tuple[int, int] = SIZE, bins: int = BINS) -> Tensor:
    """Return a spectrum (bins, 4, H, W) of a drift alone, px."""
    spectrum = torch.zeros(bins, 4, *size)
    spectrum[0, 1], spectrum[0, 3] = dx, dy
    return spectrum


# ------------------------------------------------------------------------------------------------ average precision


def test_average_precision_by_hand() -> None:
    # thresholds 3, 2, 1: precision 1/1, 2/3, 2/4 at recall 1/2, 1, 1
    scores, mask = torch.tensor([2.0, 3.0, 1.0, 2.0]), torch.tensor([True, True, False, False])
    assert average_precision(scores, mask) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert average_precision(-scores, mask) == pytest.approx(0 + 1 / 2 * 1 / 3 + 1 / 2 * 2 / 4)
    assert average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([True, True, False])) == 1
    # sklearn.metrics.average_precision_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), from its documentation
    documented = average_precision(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]))
    assert documented == pytest.approx(0.8333, abs=1e-4)


def test_ties_do_not_depend_on_the_order_of_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (200,), generator=generator).float()
    mask = torch.rand(200, generator=generator) < 0.3
    # the definition, threshold by threshold
    expected, before = 0.0, 0.0
    for threshold in (4, 3, 2, 1, 0):
        chosen = mask[scores >= threshold].double()
        recall = float(chosen.sum() / mask.sum())
        expected, before = expected + (recall - before) * float(chosen.mean()), recall
    order = torch.randperm(200, generator=generator)
    assert average_precision(scores, mask) == pytest.approx(expected, abs=1e-12)
    assert average_precision(scores[order], mask[order]) == pytest.approx(expected, abs=1e-12)
    assert average_precision(torch.full((200,), 0.7), mask) == pytest.approx(float(mask.double().mean()), abs=1e-12)


def test_chance_is_taken_off() -> None:
    mask = torch.tensor([True, False, False, False])
    assert chance_corrected_ap(torch.ones(4), mask) == pytest.approx(0)
    assert chance_corrected_ap(torch.tensor([1.0, 2.0, 0.0, 0.0]), mask) == pytest.approx((1 / 2 - 1 / 4) / (3 / 4))
    assert chance_corrected_ap(mask, mask) == 1
    assert chance_corrected_ap(torch.ones(4), torch.ones(4, dtype=torch.bool)) is None
    assert chance_corrected_ap(torch.ones(4), torch.zeros(4, dtype=torch.bool)) is None
    assert chance_corrected_ap(torch.ones(0), torch.ones(0, dtype=torch.bool)) is None


def test_average_precision_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        average_precision(torch.tensor([1.0, math.nan]), torch.tensor([True, False]))


def test_moving_mask() -> None:
    weak = torch.linspace(0, 0.5, 160 * 256).view(1, 160, 256)
    assert torch.equal(moving_mask(weak), weak > 0.25)  # half of the 95th percentile is 0.2375
    strong = torch.linspace(0, 4, 160 * 256).view(1, 160, 256)
    assert torch.equal(moving_mask(strong), strong > 0.5 * 0.95 * 4)
    # a fourth of the pixels each way: a fourth of the displacement is the same motion
    small = torch.linspace(0, 0.125, 40 * 64).view(1, 40, 64)
    assert torch.equal(moving_mask(small), small > 0.0625)
    assert not moving_mask(torch.zeros(1, 8, 8)).any()


def test_baseline_maps() -> None:
    image = torch.zeros(3, 40, 60)
    image[:, :, 30:] = 1.0
    edge = image_gradient(image, 2.0)
    assert edge.shape == (1, 40, 60) and set(edge[0].argmax(1).tolist()) <= {29, 30}
    assert float(edge[0, 20, 5]) < 1e-3 < 0.1 < float(edge.max())
    # a blur keeps the sum
    assert float(image_gradient(image, 4.0).sum()) == pytest.approx(float(edge.sum()), rel=1e-3)
    assert float(image_gradient(image, 4.0).max()) == pytest.approx(float(edge.max()) / 2, rel=0.05)
    torch.testing.assert_close(image_gradient(image.mT, 2.0), edge.mT)
    maps = baseline_maps(image, 0, "a")
    assert tuple(maps) == BASELINES and all(one.shape == (1, 40, 60) for one in maps.values())
    assert torch.equal(maps["random"], baseline_maps(image, 0, "a")["random"])
    # half the side of 256 x 160 px, half the blur
    half = torch.rand(3, 80, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(baseline_maps(half, 0, "a")["image gradient, blur 8 px"], image_gradient(half, 4.0))
    assert not torch.equal(maps["random"], baseline_maps(image, 1, "a")["random"])
    assert not torch.equal(maps["random"], baseline_maps(image, 0, "b")["random"])


# ------------------------------------------------------------------------------------------------ other figures


def test_ratio_and_shape_by_hand() -> None:
    gain, left = bin_ratios(torch.tensor([1.0, 4.0, 9.0]), torch.tensor([2.0, 2.0, 0.0]))
    assert gain == pytest.approx(1.0)  # of 1/2 and 2; the third bin does not move in the clip
    assert left[:2].tolist() == pytest.approx([0.5, 2.0]) and math.isnan(left[2])
    assert mean_fold_error(left.tolist()) == pytest.approx(2.0)
    assert mean_fold_error([0.25, 1.0]) == pytest.approx(2.0) and mean_fold_error([math.nan]) is None
    gain, left = bin_ratios(torch.tensor([3.0, 6.0]), torch.tensor([1.0, 2.0]))
    assert gain == pytest.approx(3.0) and left.tolist() == pytest.approx([1.0, 1.0])
    assert bin_ratios(torch.zeros(2), torch.ones(2))[0] == pytest.approx(1e-3)
    assert bin_ratios(torch.ones(2), torch.zeros(2)) is None


def test_gradient_closure_and_diversity_by_hand() -> None:
    x = torch.arange(SIZE[1], dtype=torch.float32).expand(SIZE)
    y = torch.arange(SIZE[0], dtype=torch.float32)[:, None].expand(SIZE)
    # a stretch of 1 px a pixel to the right, then downwards, then along both: mean |F| over 64, 32, and both
    assert normalised_gradient(drift(x)) == pytest.approx(1 / 31.5, rel=1e-4)
    assert normalised_gradient(drift(0.0, y)) == pytest.approx(1 / 15.5, rel=1e-4)
    assert normalised_gradient(drift(x + y)) == pytest.approx(math.sqrt(2) / (31.5 + 15.5), rel=1e-4)
    assert normalised_gradient(drift(3.0)) == pytest.approx(0, abs=1e-6) and normalised_gradient(drift(0.0)) is None

    swings = drift(3.0, 4.0)
    swings[2] = 1.5

    assert diversity(torch.stack([drift(1.0), drift(-1.0)])) == pytest.approx(2.0)
    assert diversity(torch.stack([drift(1.0), drift(1.0), drift(4.0)])) == pytest.approx(2 / 3 * 3 / 2)
    assert diversity(drift(1.0)[None]) is None and diversity(torch.zeros(2, BINS, 4, *SIZE)) is None
    # the mean over the frames of one period of a drift of 5 px that grows evenly
    assert float(mean_motion(drift(3.0, 4.0)).mean()) == pytest.approx(5 * 151 / 300, rel=1e-4)


def swing(dx: Tensor | float, dy: Tensor | float, k: int, *, late: bool = False, size=(160, 256)) -> Tensor:
    """Return a spectrum of a sine, or where `late` a cosine, in bin k alone, px."""
    spectrum = torch.zeros(BINS, 4, *size)
    spectrum[k, 0 if late else 1], spectrum[k, 2 if late else 3] = dx, dy
    return spectrum


def test_coherence_by_hand() -> None:
    everywhere = torch.ones(1, 160, 256)
    # one swing everywhere, stronger to the right: the strength of a pixel does not count
    strength = torch.linspace(1, 3, 256).expand(160, 256)
    assert coherence(swing(strength, -strength, 2), everywhere) == pytest.approx({4: 1, 8: 1, 16: 1, 32: 1}, abs=1e-5)
    # columns take turns every 8 px: opposite at 8 px along rows, equal at 16; equal along columns
    turns = (torch.arange(256) // 8 % 2 * 2.0 - 1).expand(160, 256)
    found = coherence(swing(turns, 0.0, 1), everywhere)
    rows, columns = 160 * (256 - 8), (160 - 8) * 256
    assert found[8] == pytest.approx((columns - rows) / (columns + rows), abs=1e-4)
    assert found[16] == pytest.approx(1, abs=1e-4)
    assert found[4] == pytest.approx((156 * 256 + 160 * 4) / (156 * 256 + 160 * 252), abs=0.02)
    # one kept row: nothing but its own pairs
    one_row = torch.zeros(1, 160, 256)
    one_row[0, 80] = 1
    assert coherence(swing(turns, 0.0, 1), one_row) == pytest.approx({4: 1 / 63, 8: -1, 16: 1, 32: 1}, abs=1e-4)
    # at right angles in space, a fourth of a period apart, or of another frequency: nothing in common
    left = (torch.arange(256) // 32 % 2 == 0).expand(160, 256).float()
    for other in (swing(0.0, 1 - left, 1), swing(1 - left, 0.0, 1, late=True), swing(1 - left, 0.0, 2)):
        assert coherence(swing(left, 0.0, 1) + other, one_row)[32] == pytest.approx(0, abs=1e-4)
    # a drift counts as a ramp; weights of both ends multiply
    seen = torch.ones(1, 160, 256)
    seen[..., 128:] = 0
    assert coherence(drift(2.0, 1.0, size=(160, 256)) * (seen > 0), seen)[32] == pytest.approx(1, abs=1e-4)
    assert coherence(swing(1.0, 0.0, 1), torch.zeros(1, 160, 256)) == dict.fromkeys((4, 8, 16, 32))
    # half the sides: half the distance
    small = coherence(swing(turns[::2, ::2], 0.0, 1, size=(80, 128)), one_row[:, ::2, ::2])
    assert small == pytest.approx({4: 1 / 63, 8: -1, 16: 1, 32: 1}, abs=0.02)


def test_directions_by_hand() -> None:
    everywhere = torch.ones(1, *SIZE)
    angles = torch.arange(12) * math.pi / 12
    for part, angle in enumerate(angles):
        for turned in (angle - 0.1, angle + 0.1, angle + math.pi):  # half a part is 0.13
            found = direction_histogram(swing(turned.cos(), turned.sin(), 1, size=SIZE), everywhere)
            assert found.tolist() == pytest.approx([float(one == part) for one in range(12)])
    # three fourths as strong downwards on half of the pixels, and nothing counts where there is no weight
    left = (torch.arange(SIZE[1]) < SIZE[1] // 2).float().expand(SIZE)
    both = swing(4 * left, 3 * (1 - left), 1, size=SIZE)
    found = direction_histogram(both, everywhere)
    assert (float(found[0]), float(found[6])) == pytest.approx((4 / 7, 3 / 7)) and float(found.sum()) == pytest.approx(
        1
    )
    only_left = direction_histogram(both, left[None])
    assert float(only_left[0]) == pytest.approx(1)
    assert direction_distance(found, only_left) == pytest.approx(3 / 7) and direction_distance(found, found) == 0
    assert direction_histogram(both, torch.zeros(1, *SIZE)) is None and direction_distance(found, None) is None


def test_slope_by_hand() -> None:
    frequencies = torch.arange(16).clamp(min=1)
    assert spectral_slope(3 * frequencies**-1.5) == pytest.approx(-1.5)
    # the drift and bins without motion are left out
    assert spectral_slope(torch.tensor([9.0, 4.0, 2.0, 0.0, 1.0])) == pytest.approx(-1.0)
    assert spectral_slope(torch.tensor([9.0, 4.0, 0.0])) is None
