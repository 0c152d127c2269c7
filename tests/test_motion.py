"""The series, its packing, flow conventions and normalisation, against hand-computed values."""

from __future__ import annotations

import json
import math

import pytest
import torch
from apple_device import AppleDevice, OnApple, on_apple

from motion.flow import magnitude, motion_grid_size, resize_flow, resize_maps, resize_spectrum
from motion.looping import MAX_FRAMES, plan_playback
from motion.modal import Modes
from motion.motion_file import Motion
from motion.normalisation import Normalisation, ScaleEstimator
from motion.spectrum import (
    amplitude,
    bin_frequencies_hz,
    fit_spectrum,
    mean_displacement,
    spectrum_to_flow,
    truncate,
    without_drift,
)


def random_spectrum(num_bins: int = 16, size: tuple[int, int] = (3, 5), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(num_bins, 4, *size, generator=generator)
    spectrum[0, 1::2] *= 3
    spectrum[0, 0::2] = -spectrum[1:, 0::2].sum(0)
    return spectrum


def test_series_of_one_harmonic_by_hand():
    spectrum = torch.zeros(3, 4, 1, 1)
    spectrum[1, 0] = 2.0  # a_1 in x
    spectrum[2, 3] = -3.0  # b_2 = 3 in y
    spectrum[0, 1] = 8.0  # drift in x
    flow = spectrum_to_flow(spectrum, torch.tensor([0.0, 0.25, 0.125, 1.5]))[:, :, 0, 0]
    expected = torch.tensor(
        [
            [0.0, 0.0],
            [2 * (0 - 1) + 8 * 0.25, 3 * math.sin(math.pi)],
            [2 * (math.cos(math.pi / 4) - 1) + 1.0, 3 * math.sin(math.pi / 2)],
            [2 * (-1 - 1) + 8.0, 0.0],  # the drift is held beyond one period
        ]
    )
    torch.testing.assert_close(flow, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("frames", "fps"), [(150, 30.0), (125, 25.0), (120, 23.976)])
def test_band_limited_motion_with_drift_comes_back(frames, fps):
    truth = random_spectrum(16)
    times_s = torch.arange(frames, dtype=torch.float64) / fps
    flow = spectrum_to_flow(truth, times_s / 5.0)
    fitted = fit_spectrum(flow, times_s, num_bins=16, period_s=5.0)
    assert (spectrum_to_flow(fitted, times_s / 5.0) - flow).abs().max() < 1e-4
    assert (fitted - truth).abs().max() < 1e-3


def test_uneven_stamps_and_missing_frames():
    truth = random_spectrum(8)
    times_s = torch.linspace(0, 4.95, 120, dtype=torch.float64) + 0.01 * torch.sin(torch.arange(120.0))
    times_s[0] = 0
    keep = torch.arange(120) % 6 != 5
    flow = spectrum_to_flow(truth, times_s / 5.0)
    fitted = fit_spectrum(flow[keep], times_s[keep], num_bins=8)
    torch.testing.assert_close(fitted, truth, atol=1e-3, rtol=0)


def test_a_gap_in_the_period_is_not_filled_with_noise():
    """Stamps that cover 93 % of the period: noise of 0.1 px must not come back as a drift of many px."""
    generator = torch.Generator().manual_seed(0)
    times_s = torch.arange(117, dtype=torch.float64) / 25
    flow = 0.1 * torch.randn(117, 2, 4, 4, generator=generator)
    fitted = fit_spectrum(flow, times_s, num_bins=24)
    assert amplitude(fitted).max() < 0.5
    truth = random_spectrum(4)
    truth[0, 1::2] = 0
    fitted = fit_spectrum(spectrum_to_flow(truth, times_s / 5), times_s, num_bins=4)
    assert (spectrum_to_flow(fitted - truth, times_s / 5)).abs().max() < 0.1


def test_frame_zero_is_exactly_still():
    assert spectrum_to_flow(random_spectrum() * 100, torch.zeros(1)).abs().max() == 0


def test_bin_zero_real_part_is_dependent_and_ignored():
    spectrum = random_spectrum()
    changed = spectrum.clone()
    changed[0, 0::2] += 7
    phase = torch.linspace(0, 1, 7)
    assert torch.equal(spectrum_to_flow(spectrum, phase), spectrum_to_flow(changed, phase))
    torch.testing.assert_close(spectrum[0, 0::2], -spectrum[1:, 0::2].sum(0))
    assert torch.equal(amplitude(spectrum), amplitude(changed))


def test_fit_refuses_what_it_cannot_answer():
    flow = torch.zeros(60, 2, 2, 2)
    with pytest.raises(ValueError, match=r"at least 4\.50 s"):
        fit_spectrum(flow, torch.arange(60) / 30)
    with pytest.raises(ValueError, match="unknowns"):
        fit_spectrum(flow[:20], torch.linspace(0, 5, 20), num_bins=16)


def test_truncation_keeps_frame_zero_still_and_the_low_bins():
    spectrum = random_spectrum(16)
    short = truncate(spectrum, 4)
    assert torch.equal(short[1:], spectrum[1:4]) and torch.equal(short[0, 1::2], spectrum[0, 1::2])
    assert spectrum_to_flow(short, torch.zeros(1)).abs().max() == 0


def test_mean_displacement_of_a_circle():
    spectrum = torch.zeros(2, 4, 1, 1)
    spectrum[1, 0], spectrum[1, 3] = 1.0, -1.0  # (cos - 1, sin): distance 2 |sin(pi u)|, mean 4 / pi
    torch.testing.assert_close(mean_displacement(spectrum, 500).item(), 4 / math.pi, atol=1e-3, rtol=0)


def test_mean_displacement_in_pieces_of_rows(monkeypatch):
    """Of a large grid, and of many at once, a few rows are computed at a time."""
    spectra = torch.randn(3, 5, 4, 7, 6, generator=torch.Generator().manual_seed(0))
    whole = mean_displacement(spectra)
    monkeypatch.setattr("motion.spectrum._LARGEST_PIECE", 2 * 3 * 6 * 10)  # two rows
    torch.testing.assert_close(mean_displacement(spectra), whole)
    assert whole.shape == (3, 1, 7, 6)


def test_frequencies_are_in_hz():
    assert bin_frequencies_hz(16, 5.0)[15].item() == pytest.approx(3.0)


def test_resize_flow_rescales_each_axis_by_itself():
    flow = torch.zeros(2, 4, 6)
    flow[0], flow[1] = 3.0, 5.0
    resized = resize_flow(flow, (8, 18))
    assert resized.shape == (2, 8, 18)
    torch.testing.assert_close(resized[0], torch.full((8, 18), 9.0))
    torch.testing.assert_close(resized[1], torch.full((8, 18), 10.0))


def test_resized_spectrum_gives_resized_flow():
    spectrum = random_spectrum(6, (4, 6))
    phase = torch.tensor([0.3, 0.7])
    torch.testing.assert_close(
        spectrum_to_flow(resize_spectrum(spectrum, (12, 9)), phase),
        resize_flow(spectrum_to_flow(spectrum, phase), (12, 9)),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("picture", "grid"),
    [((160, 256), (160, 256)), ((256, 160), (256, 160)), ((500, 500), (192, 192)), ((240, 384), (160, 256))],
)
def test_motion_grid_keeps_aspect(picture, grid):
    assert motion_grid_size(*picture) == grid


def test_motion_grid_of_extreme_aspects():
    for height, width in [(100, 2000), (2000, 100), (333, 777), (16, 16)]:
        h, w = motion_grid_size(height, width)
        assert h % 32 == 0 and w % 32 == 0 and 0.4 < h * w / (256 * 160) < 2.5
        assert (h > w) == (height > width) or height == width


def test_normalisation_is_exact_and_hand_computed():
    normalisation = Normalisation(torch.tensor([4.0, 1.0, 0.25]))
    spectrum = torch.zeros(3, 4, 1, 1)
    spectrum[0, 1], spectrum[1, 0], spectrum[2, 3] = 1.0, -0.25, 1.0
    spectrum[0, 0] = 0.25
    x = normalisation.normalise(spectrum)
    assert x[0, 1].item() == pytest.approx(0.5) and x[1, 0].item() == pytest.approx(-0.5)
    assert x[2, 3].item() == pytest.approx(2.0) and x[0, 0].item() == 0
    torch.testing.assert_close(normalisation.denormalise(x), spectrum)
    full = random_spectrum(3)
    torch.testing.assert_close(normalisation.denormalise(normalisation.normalise(full)), full, atol=1e-5, rtol=1e-5)


def test_scale_estimator_matches_the_percentile():
    spectra = [random_spectrum(4, (40, 50), seed) for seed in range(3)]
    estimator = ScaleEstimator(4)
    for spectrum in spectra:
        estimator.add(spectrum)
    scale = estimator.finish().scale
    sizes = torch.stack([amplitude(s) for s in spectra], 1).flatten(1)
    torch.testing.assert_close(scale, sizes.quantile(0.95, dim=1), rtol=0.03, atol=0)
    for kept in (Normalisation(scale), Normalisation(scale).linear()):
        read = Normalisation.from_dict(json.loads(json.dumps(kept.to_dict())))
        assert torch.equal(read.scale, kept.scale) and read.adaptive == kept.adaptive
    assert Normalisation.from_dict({"scale_px": [1.0], "period_s": 5.0}).adaptive  # an older file


def test_scale_estimator_leaves_out_what_has_no_confidence():
    spectrum = torch.ones(2, 4, 1, 4)
    spectrum[..., 2:] = 100.0
    estimator = ScaleEstimator(2)
    estimator.add(spectrum, torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]))
    assert estimator.finish().scale.max() < 2.1


def test_magnify_and_mask():
    spectrum = random_spectrum(4, (2, 2))
    mask = torch.tensor([[[1.0, 0.0], [0.5, 1.0]]])
    moved = Motion(spectrum).controlled(magnify=2.0, mask=mask).spectrum
    torch.testing.assert_close(moved[..., 0, 0], spectrum[..., 0, 0] * 2)
    assert moved[..., 0, 1].abs().max() == 0
    torch.testing.assert_close(moved[..., 1, 0], spectrum[..., 1, 0])


def test_playback_defaults_are_the_period_itself():
    playback = plan_playback(seconds=5)
    assert playback.num_frames == 150 and playback.notes == ()
    torch.testing.assert_close(playback.phase, torch.arange(150, dtype=torch.float64) / 150)


def test_slow_motion_stretches_the_period_not_the_length():
    playback = plan_playback(seconds=5, slow=2)
    assert playback.num_frames == 150 and playback.phase[-1].item() == pytest.approx(149 / 300)


def test_fps_resamples_at_unchanged_speed():
    assert plan_playback(seconds=2, fps=60).phase[60].item() == pytest.approx(1 / 5)


@pytest.mark.parametrize(("seconds", "slow", "periods"), [(5, 1, 1), (12, 1, 2), (3, 1, 1), (8, 2, 1), (2, 0.5, 1)])
def test_loop_closes(seconds, slow, periods):
    playback = plan_playback(seconds=seconds, slow=slow, loop=True)
    spectrum = without_drift(random_spectrum())
    step = playback.phase[1] - playback.phase[0]
    assert (playback.phase[-1] + step - playback.phase[0]).item() == pytest.approx(periods)
    phase = torch.cat([playback.phase, playback.phase[:1]])
    steps = magnitude(spectrum_to_flow(spectrum, phase).diff(dim=0)).mean(dim=(1, 2, 3))
    assert steps[-1] <= steps[:-1].max() * (1 + 1e-5)
    assert bool(playback.notes) == (seconds != 5 * slow * periods)


@pytest.mark.parametrize("loop_phase", [1.0, 0.4])
@pytest.mark.parametrize("seconds", [5, 10, 75 / 30])
def test_no_frame_of_a_loop_is_the_photograph_itself(seconds, loop_phase):
    """It would be sharper than the others."""
    for slow in (1.0, 0.25):
        phase = plan_playback(seconds=seconds, slow=slow, loop=True, loop_phase=loop_phase).phase / loop_phase
        step = phase[1] - phase[0]
        assert float((phase - phase.round()).abs().min()) >= 0.24 * step


def test_a_long_video_is_noted():
    assert "drift" in plan_playback(seconds=8).notes[0]
    assert plan_playback(seconds=8, drift=False).notes == ()


def test_the_longest_video():
    assert plan_playback(seconds=MAX_FRAMES / 100, fps=100).num_frames == MAX_FRAMES == 1_000_000
    with pytest.raises(ValueError, match="at most 1000000 frames, got 1.0001e"):
        plan_playback(seconds=MAX_FRAMES / 100 + 1, fps=100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0},
        {"seconds": 5, "fps": -1},
        {"seconds": 0.01},
        {"seconds": float("nan")},
        {"seconds": 1e300, "fps": 1e300},
        {"seconds": 5, "slow": 1e-300, "loop": True},
        {"seconds": 5, "slow": 1e308},
    ],
)
def test_playback_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match="expected"):
        plan_playback(**wrong)


def test_apple_devices_get_no_float64():
    """Their tensors come back there, with the values of the CPU."""
    spectrum, phase = random_spectrum(4), torch.linspace(0, 1.5, 7)
    times_s = torch.arange(50.0) / 10
    flow = spectrum_to_flow(spectrum, times_s / 5)
    expected = [
        spectrum_to_flow(spectrum, phase),
        mean_displacement(spectrum),
        fit_spectrum(flow, times_s, num_bins=4),
        resize_maps(spectrum, (2, 9)),
        resize_maps(spectrum, (6, 10)),
    ]
    estimator = ScaleEstimator(4)
    with AppleDevice():
        there = on_apple(spectrum)
        found = [
            spectrum_to_flow(there, on_apple(phase)),
            mean_displacement(there),
            fit_spectrum(on_apple(flow), on_apple(times_s), num_bins=4),
            resize_maps(there, (2, 9)),
            resize_maps(there, (6, 10)),
        ]
        assert all(type(result) is OnApple for result in found)
        estimator.add(there, on_apple(torch.ones(1, 3, 5)))
        assert Modes.from_spectrum(there).sample(1.5, 1.0).dtype == torch.complex128
    for result, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(result.as_subclass(torch.Tensor), wanted)


def test_maps_are_anti_aliased_when_they_shrink():
    ramp = torch.arange(8.0).expand(2, 1, 4, 8) / 8
    small = resize_maps(ramp, (2, 4))
    assert small.shape == (2, 1, 2, 4)
    # Anti-aliased by 2: the triangle filter reaches over 4 px, so an inner value is the mean position of its pair.
    assert torch.allclose(small[0, 0, 0, 1:3], torch.tensor([2.5, 4.5]) / 8, atol=1e-6)
    assert torch.equal(resize_maps(ramp[0], (4, 8)), ramp[0])
