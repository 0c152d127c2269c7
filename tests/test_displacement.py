"""The head that says how far each place moves: its arithmetic, its data, its training, and samples scaled to it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import train_unet
from data.clips import ClipSet
from models.displacement import (
    COHERENCE_PX,
    LIKELY,
    MOST_GAIN,
    MOVES_ABOVE,
    STATIC_BELOW,
    STATIC_FRACTION,
    UNLIKELY,
    DisplacementHead,
    expected_displacement,
    gaussian_mean,
    guided_filter,
    relative_displacement,
    rescale_to_displacement,
    smooth_by_parts,
    smooth_spectrum,
)
from models.unet import FrequencyUNet
from motion.spectrum import mean_displacement

pytestmark = pytest.mark.usefixtures("short_sampling")

SHAPE = {"num_bins": 4, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2}


def unet_with_head(**options) -> FrequencyUNet:
    torch.manual_seed(0)
    return FrequencyUNet(**{**SHAPE, "displacement": True, **options}).eval()


def picture(seed: int = 0, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_relative_displacement_and_back():
    """m = 0 is log 0.1, m = q is log 1.1; the networks' mean is taken before the exponential, and never below still."""
    displacement = torch.tensor([0.0, 2.0, 8.0]).view(1, 1, 1, 3)
    relative = relative_displacement(displacement, torch.tensor([2.0]))
    expected = torch.tensor([math.log(0.1), math.log(1.1), math.log(4.1)])
    torch.testing.assert_close(relative.flatten(), expected)
    log_strength = torch.tensor([[0.0, 2 * math.log(2.0)]])  # two networks: their geometric mean is 2
    certain = torch.full((1, 2), 9.0)
    back = expected_displacement(relative.expand(-1, 2, -1, -1), log_strength, certain)
    torch.testing.assert_close(back, displacement, atol=1e-5, rtol=1e-5)
    below = expected_displacement(torch.full((1, 2, 1, 1), math.log(STATIC_FRACTION) - 1), log_strength, certain)
    assert below.item() == 0


def test_what_moves_a_little_beside_what_moves_is_still():
    shares = torch.tensor([STATIC_BELOW - 0.01, (STATIC_BELOW + MOVES_ABOVE) / 2, MOVES_ABOVE + 0.01])
    relative = relative_displacement(shares.view(1, 1, 1, 3), torch.tensor([1.0]))
    expected = expected_displacement(relative, torch.zeros(1, 1), torch.full((1, 1), 9.0)).flatten()
    torch.testing.assert_close(expected, shares * torch.tensor([0.0, 0.5, 1.0]), atol=1e-5, rtol=1e-5)


def test_a_picture_that_may_as_well_stand_still_does():
    """By the mean of the networks' log odds: nothing below one probability, all above another."""
    probabilities = torch.tensor([UNLIKELY - 0.01, (UNLIKELY + LIKELY) / 2, LIKELY + 0.01])
    log_odds = torch.stack([torch.logit(probabilities) - 2, torch.logit(probabilities) + 2], 1)  # (3, 2)
    expected = expected_displacement(torch.full((3, 2, 1, 1), math.log(1.1)), torch.zeros(3, 2), log_odds).flatten()
    torch.testing.assert_close(expected, torch.tensor([0.0, 0.5, 1.0]), atol=1e-5, rtol=1e-5)


def test_edges_of_the_map_are_drawn_to_those_of_the_picture():
    """A picture of two colours: the map's ramp over 8 px becomes steeper at the picture's edge, far levels stay."""
    guide = torch.zeros(1, 3, 32, 48)
    guide[..., 24:] = torch.tensor([0.8, 0.4, 0.1]).view(3, 1, 1)
    ramp = ((torch.arange(48) - 20) / 8).clamp(0, 1).expand(1, 1, 32, 48)
    drawn = guided_filter(guide, ramp, radius_px=6, variance=1e-4)[0, 0, 16]
    steep = float(drawn[25] - drawn[22])
    assert steep > 0.55 and steep > 1.4 * float(ramp[0, 0, 16, 25] - ramp[0, 0, 16, 22])
    assert drawn[:8].abs().max() < 1e-3 and (drawn[-8:] - 1).abs().max() < 1e-3
    even = guided_filter(torch.full((1, 3, 32, 48), 0.5), ramp, radius_px=2)
    smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(ramp, (4,) * 4, mode="replicate"), 5, 1)
    smooth = torch.nn.functional.avg_pool2d(smooth, 5, 1)
    torch.testing.assert_close(even, smooth, atol=1e-5, rtol=1e-5)


def test_samples_are_scaled_to_what_is_expected():
    """Pixel by pixel, one factor for all bins and directions; nothing comes of nothing, little is not blown up."""
    torch.manual_seed(0)
    spectrum = torch.randn(2, 4, 4, 16, 24)
    spectrum[:, 0, 0::2] = -spectrum[:, 1:, 0::2].sum(1)
    spectrum[0, ..., :8, :8] = 0
    spectrum[0, ..., 8:, :8] *= 1e-3
    expected_px = torch.full((2, 1, 16, 24), 3.0)
    scaled = rescale_to_displacement(spectrum, expected_px)
    found = mean_displacement(scaled)
    assert found[0, 0, :8, :8].abs().max() == 0
    before = mean_displacement(spectrum)
    torch.testing.assert_close(found[0, 0, 8:, :8], MOST_GAIN * before[0, 0, 8:, :8])
    torch.testing.assert_close(found[1], torch.full((1, 16, 24), 3.0), rtol=1e-4, atol=1e-4)
    ratio = scaled[1] / spectrum[1]
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-3, atol=1e-5)


def test_what_swings_as_one_stays_as_it_is():
    spectrum = torch.randn(2, 5, 4, 1, 1).expand(-1, -1, -1, 40, 60)
    torch.testing.assert_close(smooth_spectrum(spectrum, torch.rand(2, 1, 40, 60)), spectrum, rtol=1e-4, atol=1e-5)


def test_what_is_near_swings_together_and_still_surroundings_have_no_say():
    """Left half of a picture moves to and fro in patches of 4 px, right half is expected to stand still."""
    generator = torch.Generator().manual_seed(3)
    patches = torch.nn.functional.interpolate(torch.randn(8, 4, 16, 24, generator=generator), scale_factor=4)
    sample = (patches + 1.0)[None]  # (1, 8, 4, 64, 96), of mean 1
    expected_px = torch.ones(1, 1, 64, 96)
    expected_px[..., 48:] = 0.0
    sample[..., 48:] = 5.0
    smooth = smooth_spectrum(sample, expected_px, sigma_px=12.0)

    def normalised_gradient(maps: torch.Tensor) -> float:
        left = maps[..., :48]
        return float(left.diff(dim=-1).abs().mean() / left.abs().mean())

    assert normalised_gradient(smooth) < 0.15 * normalised_gradient(sample)
    power = [maps[..., :48].square().sum(2).mean((-2, -1)) for maps in (sample, smooth)]  # (1, 8) each
    torch.testing.assert_close(power[1], power[0], rtol=0.05, atol=0.0)


def test_a_batch_is_made_coherent_one_by_one():
    spectrum, expected_px = (
        torch.randn(2, 3, 4, 24, 32),
        torch.rand(2, 1, 24, 32) * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1),
    )
    both = smooth_spectrum(spectrum, expected_px)
    torch.testing.assert_close(both[:1], smooth_spectrum(spectrum[:1], expected_px[:1]))
    torch.testing.assert_close(smooth_spectrum(spectrum, 7 * expected_px), both)
    assert bool(torch.isfinite(smooth_spectrum(spectrum, torch.zeros(2, 1, 24, 32))).all())


def test_each_part_is_smoothed_over_its_own_length():
    spectrum, expected_px = torch.randn(2, 3, 4, 24, 64), torch.rand(2, 1, 24, 64)
    trees, water = torch.zeros(2, 1, 24, 64), torch.zeros(2, 1, 24, 64)
    trees[..., :20], water[..., 20:40] = 1.0, 0.5
    found = smooth_by_parts(spectrum, expected_px, {(8.0, 2.0): trees, (1.0, math.inf): water})
    whole, fine, rest = (smooth_spectrum(spectrum, expected_px, sigma_px) for sigma_px in (8.0, 1.0, COHERENCE_PX))
    torch.testing.assert_close(found[..., :20], whole[..., :20])
    torch.testing.assert_close(found[..., 20:40], (fine + rest)[..., 20:40] / 2)
    torch.testing.assert_close(found[..., 40:], rest[..., 40:])
    torch.testing.assert_close(smooth_by_parts(spectrum, expected_px, {}), rest)


def test_parts_lag_above_their_frequency():
    spectrum, expected_px = torch.randn(2, 3, 4, 24, 32), torch.rand(2, 1, 24, 32)
    trees = torch.zeros(2, 1, 24, 32)
    trees[..., :20] = 1.0
    parts, hertz = {(8.0, 2.0): trees}, torch.tensor([0.0, 2.0, 4.0])
    lagging, prompt = (smooth_by_parts(spectrum, expected_px, parts, hertz=chosen) for chosen in (hertz, None))
    gain = torch.tensor([1.0, 2**-0.5, 5**-0.5]).view(3, 1, 1, 1)
    torch.testing.assert_close(lagging[..., :20], prompt[..., :20] * gain)
    torch.testing.assert_close(lagging[..., 20:], prompt[..., 20:])


def test_stems_sway_as_wholes_and_apart_from_what_is_around():
    spectrum, expected_px = torch.randn(2, 3, 4, 96, 32), torch.rand(2, 1, 96, 32) + 0.5
    stems = torch.zeros(2, 1, 96, 32)
    stems[0, ..., 14:17] = 1.0
    found, rest = (smooth_by_parts(spectrum, expected_px, {}, chosen) for chosen in (stems, None))
    torch.testing.assert_close(found[..., :14], rest[..., :14])
    torch.testing.assert_close(found[1], rest[1])
    along = found[0, ..., 15]  # (3, 4, 96)
    assert along.diff(dim=-1).abs().mean() < 0.15 * along.abs().mean()
    spectrum[..., :14] *= -3.0  # what is beside a stem
    torch.testing.assert_close(smooth_by_parts(spectrum, expected_px, {}, stems)[0, ..., 15], along, rtol=0.0, atol=0.1)


def test_a_gaussian_may_be_longer_than_wide():
    maps = torch.zeros(1, 41, 41)
    maps[0, 20, 20] = 1.0
    found = gaussian_mean(maps, (4.0, 1.0))[0]
    assert found[24, 20].isclose(found[20, 21]) and found[24, 20] > 2 * found[20, 22]


def test_one_sample_and_a_batch_are_scaled_alike():
    spectrum, expected_px = torch.randn(3, 4, 4, 16, 24), torch.rand(3, 1, 16, 24)
    both = rescale_to_displacement(spectrum, expected_px)
    torch.testing.assert_close(both[1], rescale_to_displacement(spectrum[1], expected_px[1]))


def test_the_networks_of_the_head_do_not_see_each_other():
    """Groups: what one says changes with its own weights alone, and each differs from the next."""
    torch.manual_seed(0)
    head = DisplacementHead((6, 10)).eval()
    features = [torch.randn(2, 6, 12, 20), torch.randn(2, 10, 4, 6)]
    relative, strength, log_odds = head(features, (6, 10))
    assert relative.shape == (2, 4, 6, 10) and strength.shape == log_odds.shape == (2, 4)
    with torch.no_grad():
        head.fine.weight[:32] *= 2
        head.strength.weight[:2] *= 2  # of the first: how strongly, and whether at all
    other, other_strength, other_odds = head(features, (6, 10))
    changed = (other - relative).abs().amax((0, 2, 3))
    assert changed[0] > 1e-4 and changed[1:].max() == 0
    for one, before in ((other_strength, strength), (other_odds, log_odds)):
        assert (one - before).abs().amax(0)[0] > 1e-4 and (one - before).abs().amax(0)[1:].max() == 0
    assert (relative[:, 0] - relative[:, 1]).abs().max() > 1e-3


def test_a_picture_and_its_mirror_image_move_alike():
    unet = unet_with_head()
    with torch.no_grad():
        expected = unet.expected_displacement(picture())
        mirrored = unet.expected_displacement(picture().flip(-1))
    assert expected.shape == (1, 1, 64, 96)
    torch.testing.assert_close(mirrored, expected.flip(-1), rtol=1e-4, atol=1e-5)
    assert FrequencyUNet(**SHAPE).expected_displacement(picture()) is None


def run_unet(*flags: str) -> None:
    assert train_unet.main([*flags, "--device", "cpu", "--seed", "0"]) == 0


def test_the_head_stays_when_other_stages_go_on(scene_set: ClipSet, tmp_path: Path):
    unet_with_head(downsample_factor=8).half().save_pretrained(tmp_path / "start")
    flags = ("--data", str(scene_set.folder), "--grid", "96x64", "--bins", "4", "--batch-size", "2", "--steps", "1")
    cache = ("--cache", str(tmp_path / "latents"))
    init = ("--init", str(tmp_path / "start"), "--stage", "denoiser")
    run_unet(*flags, *cache, *init, "--out", str(tmp_path / "run"))
    again = FrequencyUNet.from_pretrained(tmp_path / "run" / "pipeline" / "unet")
    start = FrequencyUNet.from_pretrained(tmp_path / "start")
    kept = start.displacement_head.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in again.displacement_head.state_dict().items())


def test_stage_displacement_trains_no_denoiser(capsys):
    for flag in (["--weighting", "min-snr"], ["--gradient-checkpointing"]):
        assert train_unet.main(["--stage", "displacement", "--init", "x", *flag]) == 2
        assert f"{flag[0]}: --stage displacement trains no denoiser; right: leave it out" in capsys.readouterr().err


def test_a_head_is_moved_and_cast_with_the_network():
    unet = unet_with_head().to(torch.bfloat16)
    with torch.no_grad():
        expected = unet.expected_displacement(picture().bfloat16())
    assert expected.dtype == torch.float32 and bool(torch.isfinite(expected).all())


def test_no_stage_trains_the_head_and_a_placement_head_replaces_it():
    unet = unet_with_head()
    for stage in ("joint", "image-encoder", "denoiser", "slices", "coordination"):
        unet.set_stage(stage)
        assert not any(p.requires_grad for p in unet.displacement_head.parameters()), stage
    unet.set_stage("displacement")
    assert not unet.config.displacement and unet.expected_displacement(picture()) is None
    assert not any(p.requires_grad for p in unet.parameters())


def test_a_head_needs_a_picture_network_to_read():
    with pytest.raises(ValueError, match="reads an image network, and the backbone is 'none'"):
        FrequencyUNet(**SHAPE, backbone="none", displacement=True)
