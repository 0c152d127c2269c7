"""Wind: the number itself, what is told to the denoiser, and what it does to a predicted motion."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_checkpoint
from diffusers import DDPMScheduler
from test_models_motion import picture, small_unet

import generate_motion
from data.clips import ClipSet, SampleKey
from models.checkpoints import CheckpointError
from models.device import ArgumentError
from models.motion_pipeline import MotionPipeline
from models.placement import PlacementHead
from models.segmentation import SegmentationModel
from models.unet import WIND_OF_LATENTS_PX, FrequencyUNet
from models.unet_layers import SpatialAttention
from models.vae import MotionVAE
from motion.flow import resize_spectrum
from motion.spectrum import mean_displacement
from motion.strength import LEAST_LIMIT_PX, STRAIN_LIMIT, amplitude_limit_scale, strain, wind_of, wind_position
from motion.wind import LEAST_WIND_PX, MOST_WIND_PX, WINDS, parse_wind
from training.latents import LatentDataset, bin_confidence
from training.motion_stages import add_missing_parts


def smooth_spectrum(seed: int = 0) -> torch.Tensor:
    """Return a motion (4, 4, 64, 96) px that is smooth over the image."""
    coarse = torch.randn(4, 4, 4, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(64, 96), mode="bicubic")


def told_unet(**options) -> FrequencyUNet:
    unet = small_unet(wind=True, **options).eval()
    torch.nn.init.normal_(unet.wind_embedding.linear_2.weight, std=0.3)
    return unet


# ------------------------------------------------------------------------------------------------ the number


def test_words_and_numbers():
    assert [parse_wind(word) for word in WINDS] == sorted(WINDS.values())
    assert parse_wind("2.5") == 2.5 and WINDS["gusty"] >= 3 * WINDS["calm"]
    for text in ("0", "-1", "21", "nan", "inf", "storm", ""):
        with pytest.raises(ValueError, match="right: calm, breeze, windy, gusty, or a number from 0.2 to 20"):
            parse_wind(text)


def test_the_wind_of_a_motion_is_its_strength_on_any_grid():
    spectrum = smooth_spectrum()
    wind_px = wind_of(spectrum)
    assert wind_of(2 * spectrum) == pytest.approx(2 * wind_px)
    assert wind_of(resize_spectrum(spectrum, (128, 192))) == pytest.approx(wind_px, rel=0.02)
    # what is not sure does not count
    sure = torch.zeros(1, 64, 96)
    sure[..., :8] = 1
    assert wind_of(spectrum, sure) == pytest.approx(wind_of(spectrum[..., :8]) * (8 / 96) ** 0.5, rel=1e-5)
    assert wind_of(spectrum, torch.zeros(1, 64, 96)) == 0
    positions = wind_position(torch.tensor([0.01, LEAST_WIND_PX, 2.0, MOST_WIND_PX, 99.0])).tolist()
    assert positions[0] == positions[1] == 0 and positions[2] == pytest.approx(500) and positions[3] == positions[4]


def test_motion_saturates_where_it_would_tear():
    spectrum = smooth_spectrum()
    assert strain(torch.zeros(4, 4, 32, 32)) == 0 and amplitude_limit_scale(torch.zeros(4, 4, 32, 32)) == 1
    assert strain(3 * spectrum) == pytest.approx(3 * strain(spectrum))
    shift = torch.ones(4, 4, 32, 32)
    assert amplitude_limit_scale(100 * shift) == 1  # all moves as one
    left = [factor * amplitude_limit_scale(factor * spectrum) for factor in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert left == sorted(left) and left[0] == pytest.approx(0.01, rel=0.03)
    assert strain(left[-1] * spectrum) < STRAIN_LIMIT or wind_of(left[-1] * spectrum) < LEAST_LIMIT_PX
    # noise has much strain, and what moves most still moves
    noise = 50 * torch.randn(4, 4, 160, 256, generator=torch.Generator().manual_seed(0))
    assert wind_of(noise * amplitude_limit_scale(noise)) == pytest.approx(LEAST_LIMIT_PX, rel=0.03)


# ------------------------------------------------------------------------------------------------ the denoiser


def test_the_denoiser_is_told_the_wind():
    unet = told_unet()
    image = picture()
    calm, gusty, again = (unet.encode_image(image, wind_px=torch.tensor([px])) for px in (0.8, 9.0, 0.8))
    assert torch.equal(calm, again) and not torch.allclose(calm, gusty, atol=1e-3)
    # the magnitudes, too: a strong wind has another spectrum
    assert not torch.allclose(calm[:, -16:], gusty[:, -16:], atol=1e-3)


def test_an_older_network_gets_the_parts_it_lacks_without_a_change():
    """What newer networks read beside begins as nothing, so that training goes on from where it was."""
    older, placement = small_unet().eval(), PlacementHead((4,))
    newer = add_missing_parts(older, placement, ()).eval()
    assert newer.config.wind and newer.config.spatial_attention
    maps = torch.randn(1, placement.condition_channels, 16, 24)
    latents, timestep = torch.randn(1, 4, 4, 8, 12), torch.tensor([300])
    told = {"maps": maps, "wind_px": torch.tensor([3.0])}
    torch.testing.assert_close(
        newer(latents, timestep, image=picture(), **told), older(latents, timestep, image=picture())
    )
    assert not add_missing_parts(older, placement, ("wind", "placement", "spatial-attention")).config.wind
    # what a network has is not taken from it
    assert add_missing_parts(newer, None, ()).config.wind
    with pytest.raises(ArgumentError, match="without wind: the U-Net of init has it"):
        add_missing_parts(newer, None, ("wind",))


def test_attention_across_places_begins_as_the_identity_and_reaches_every_place():
    attention = SpatialAttention(16, num_heads=2)
    hidden = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attention(hidden), hidden)
    torch.nn.init.normal_(attention.attention.to_out[0].weight)
    mixed = attention(hidden)
    assert bool((mixed - hidden).abs().amax(1).min() > 1e-3)
    # no place is special: turned input, turned output
    torch.testing.assert_close(attention(hidden.flip(-1)), mixed.flip(-1))
    attends = [any("places" in name for name in small_unet(spatial_attention=on).state_dict()) for on in (False, True)]
    assert attends == [False, True]


def test_samples_are_as_strong_as_the_wind():
    vae = MotionVAE(block_channels=(8, 8, 8, 8), norm_groups=4, motion_scale_px=[4.0] * 4).eval()
    schedule = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    pipeline = MotionPipeline(vae, told_unet(downsample_factor=vae.downsample_factor), schedule)
    pipeline.unet.wind_embedding.linear_2.weight.data.zero_()  # only the strength differs
    found = [pipeline(picture(), wind_px=px, steps=2, seed=3) for px in (1.0, 3.0)]
    torch.testing.assert_close(found[1], 3 * found[0])
    motions = [pipeline.predict(picture()[0], wind_px=px, steps=2, seed=3) for px in WINDS.values()]
    means = [float(mean_displacement(motion.spectrum).mean()) for motion in motions]
    assert means == sorted(means) and [motion.meta["wind_px"] for motion in motions] == [*WINDS.values()]


# ------------------------------------------------------------------------------------------------ mistakes


def test_a_checkpoint_without_wind_says_so(tmp_path, capsys):
    pipeline = MotionPipeline.from_pretrained(make_checkpoint(tmp_path / "old"))
    with pytest.raises(CheckpointError, match="was trained without wind"):
        pipeline.predict(picture()[0], wind_px=3.0, steps=2)
    pipeline.predict(picture()[0], steps=2)  # and ignores it where it is not given
    for text in ("0.1", "hurricane"):
        assert generate_motion.main(["--input", "a.png", "--wind", text]) == 2
        assert f"--wind: {text}: right: calm, breeze, windy, gusty" in capsys.readouterr().err


def test_a_network_that_reads_the_placement_head_needs_it():
    unet = small_unet(placement_channels=7)
    vae = MotionVAE(block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[4.0] * 4)
    with pytest.raises(ValueError, match="reads 7 maps of placement, which gives 0"):
        MotionPipeline(vae, unet, DDPMScheduler(prediction_type="v_prediction"))


# ------------------------------------------------------------------------------------------------ training


def test_latents_are_of_one_wind_and_tell_theirs(scene_set, tmp_path):
    vae = MotionVAE(block_channels=(8, 8, 8, 8), norm_groups=4, motion_scale_px=[4.0] * 4).eval()
    clip_set = ClipSet(scene_set.folder)
    size = tuple(clip_set.first(clip_set.rows("train")[0].id).shape[-2:])
    options = {"sizes": (size,), "augment": False}
    plain, told = (
        LatentDataset([(clip_set, 1.0)], "train", vae, 4, tmp_path, wind=wind, **options) for wind in (False, True)
    )
    assert plain.folder != told.folder
    for dataset in (plain, told):
        dataset.encode(torch.device("cpu"))
    moving = 0
    for item in range(told.count):
        one, other = plain[SampleKey(item, 0, 0)], told[SampleKey(item, 0, 0)]
        assert "wind_px" not in one and other["bin_confidence"].shape == (4,)
        before, after = (vae.decode_spectrum(sample["latents"][None])[0].detach() for sample in (one, other))
        if wind_of(before, torch.ones(1, *size)) > 1:
            moving += 1
            scaled = before * (WIND_OF_LATENTS_PX / float(other["wind_px"]))
            torch.testing.assert_close(
                mean_displacement(after).mean(), mean_displacement(scaled).mean(), rtol=0.05, atol=0
            )
    assert moving


def test_bins_that_are_noise_count_little():
    """Noise is alike in all bins; where a bin has twice its power, half of it is motion."""
    noise = torch.randn(24, 4, 40, 60, generator=torch.Generator().manual_seed(1))
    spectrum = noise.clone()
    spectrum[1:6] *= 10
    sure = bin_confidence(spectrum, torch.ones(1, 40, 60))
    assert sure[0] == 1 and bool((sure[1:6] > 0.98).all()) and bool((sure[6:] < 0.2).all())
    assert torch.equal(bin_confidence(spectrum[:16], torch.ones(1, 40, 60)), torch.ones(16))  # nothing above 3 Hz
    assert bool(bin_confidence(torch.zeros(24, 4, 8, 8), torch.zeros(1, 8, 8)).isfinite().all())


def test_a_network_told_of_wind_and_placement_trains_and_loads(scene_set, tmp_path):
    import train_unet

    folder = make_checkpoint(tmp_path / "old")
    config = json.loads((folder / "unet/config.json").read_text())
    assert not config.get("wind")
    flags = ["--data", str(scene_set.folder), "--vae", str(folder / "vae"), "--bins", str(config["num_bins"])]
    flags += ["--init", str(folder / "unet"), "--steps", "2", "--batch-size", "2", "--device", "cpu", "--grid", "96x64"]
    flags += ["--stage", "denoiser", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    if config.get("backbone") == "squeezenet":
        shape = [64, 128, 256, 512]
        PlacementHead(shape).save_pretrained(folder / "placement")
    assert train_unet.main(flags) == 0
    pipeline = MotionPipeline.from_pretrained(tmp_path / "run/pipeline")
    assert pipeline.unet.config.wind and isinstance(pipeline.segmentation, SegmentationModel)
    assert pipeline.predict(picture()[0], wind_px=2.0, steps=2).meta["wind_px"] == 2.0
