"""The head that says how far each place moves: its arithmetic, its data, its training, and samples scaled to it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import train_unet
from data.clips import ClipSet, SampleKey
from models.displacement import (
    LIKELY,
    MOST_GAIN,
    MOVES_ABOVE,
    STILL_BELOW,
    STILL_SHARE,
    UNLIKELY,
    DisplacementHead,
    expected_displacement,
    guided_filter,
    relative_displacement,
    rescale_to_displacement,
    smooth_spectrum,
)
from models.motion_pipeline import MotionPipeline
from models.unet import FrequencyUNet
from motion.spectrum import mean_displacement
from training import displacement
from training.displacement import (
    MOVES_WEIGHT,
    STRENGTH_WEIGHT,
    DisplacementDataset,
    DisplacementStage,
    _mirrored,
    displacement_loss,
    static_sample,
    validation_displacement,
)

SHAPE = {"num_bins": 4, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2}


def unet_with_head(**options) -> FrequencyUNet:
    torch.manual_seed(0)
    return FrequencyUNet(**{**SHAPE, "displacement": True, **options}).eval()


def picture(seed: int = 0, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_relative_displacement_and_back():
    """m = 0 is log .1, m = q is log 1.1; the networks' mean is taken before the exponential, and never below still."""
    displacement = torch.tensor([0.0, 2.0, 8.0]).view(1, 1, 1, 3)
    relative = relative_displacement(displacement, torch.tensor([2.0]))
    expected = torch.tensor([math.log(0.1), math.log(1.1), math.log(4.1)])
    torch.testing.assert_close(relative.flatten(), expected)
    log_strength = torch.tensor([[0.0, 2 * math.log(2.0)]])  # two networks: their geometric mean is 2
    certain = torch.full((1, 2), 9.0)
    back = expected_displacement(relative.expand(-1, 2, -1, -1), log_strength, certain)
    torch.testing.assert_close(back, displacement, atol=1e-5, rtol=1e-5)
    below = expected_displacement(torch.full((1, 2, 1, 1), math.log(STILL_SHARE) - 1), log_strength, certain)
    assert below.item() == 0


def test_what_moves_a_little_beside_what_moves_is_still():
    shares = torch.tensor([STILL_BELOW - 0.01, (STILL_BELOW + MOVES_ABOVE) / 2, MOVES_ABOVE + 0.01])
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
    smooth = smooth_spectrum(sample, expected_px)

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


def test_no_gradient_goes_back_into_the_picture_network():
    unet = unet_with_head()
    unet.set_stage("displacement")
    sum(said.sum() for said in unet.displacement_of_networks(picture())).backward()
    trained = {name.split(".")[0] for name, p in unet.named_parameters() if p.grad is not None}
    assert trained == {"displacement_head"}
    for stage in ("joint", "image-encoder", "denoiser", "slices", "coordination"):
        unet.set_stage(stage)
        assert not any(p.requires_grad for p in unet.displacement_head.parameters()), stage


def test_a_picture_and_its_mirror_image_move_alike():
    unet = unet_with_head()
    with torch.no_grad():
        expected = unet.expected_displacement(picture())
        mirrored = unet.expected_displacement(picture().flip(-1))
    assert expected.shape == (1, 1, 64, 96)
    torch.testing.assert_close(mirrored, expected.flip(-1), rtol=1e-4, atol=1e-5)
    assert FrequencyUNet(**SHAPE).expected_displacement(picture()) is None


def test_without_a_picture_network_there_is_nothing_to_read():
    with pytest.raises(ValueError, match="reads an image network, and the backbone is 'none'"):
        FrequencyUNet(**SHAPE, backbone="none").set_stage("displacement")


def test_loss_by_hand():
    """Half of the picture moves 2 px, q = 2, and the network says 0 everywhere; a still sample has no map and no q."""

    class Says(torch.nn.Module):
        def forward(self, image, gain):
            return torch.zeros(len(image), 1, 8, 12), torch.zeros(len(image), 1), torch.tensor([[1.0], [-3.0]])

    displacement = torch.zeros(2, 1, 64, 96)
    displacement[0, :, :, 48:] = 2.0
    batch = {"image": torch.rand(2, 3, 64, 96), "displacement": displacement, "seed": torch.tensor([1, 2])}
    figures = displacement_loss(Says(), batch, num_features=5, feature_dropout=0.0)
    place = (abs(math.log(0.1)) + math.log(1.1)) / 2 / 2  # over both samples, of which one has a map
    strength = math.log(2.0) / 2
    moves = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(-3.0))) / 2
    assert figures["place"].item() == pytest.approx(place, rel=0.1)  # one column of the coarse map is in between
    assert figures["strength"].item() == pytest.approx(strength, rel=1e-4)
    assert figures["moves"].item() == pytest.approx(moves, rel=1e-4)
    expected = figures["place"] + STRENGTH_WEIGHT * figures["strength"] + MOVES_WEIGHT * figures["moves"]
    torch.testing.assert_close(figures["loss"], expected)


def test_displacements_are_lengths_of_the_sample(scene_set: ClipSet):
    """Enlarged twice, motion is twice as far; mirrored and cropped as the photograph is."""
    sets = [(scene_set, 1.0)]
    row = sets[0][0].rows("train")[0]
    height, width = sets[0][0].first(row.id).shape[-2:]
    plain = DisplacementDataset(sets, "train", sizes=((height, width),), augment=False)
    large = DisplacementDataset(sets, "train", sizes=((2 * height, 2 * width),), augment=False)
    item = next(i for i in range(len(plain)) if plain.items[SampleKey(i, 0, 0)][1].id == row.id)
    once = plain[SampleKey(item, 0, 0)]["displacement"]
    twice = large[SampleKey(item, 0, 0)]["displacement"]
    assert float(twice.mean()) == pytest.approx(2 * float(once.mean()), rel=0.02)
    spectrum, _ = sets[0][0].spectrum(row.id, 16)
    torch.testing.assert_close(once, mean_displacement(spectrum), rtol=2e-3, atol=2e-3)  # stored as float16


def test_epochs_take_turns_at_the_sizes(scene_set: ClipSet):
    sizes = ((64, 96), (96, 64))
    dataset = DisplacementDataset([(scene_set, 1.0)], "train", sizes=sizes, multiple=8)
    assert len(dataset) % 8 == 0 and len(dataset) >= dataset.count
    shapes = [tuple(dataset[SampleKey(0, epoch, 5)]["displacement"].shape[-2:]) for epoch in range(3)]
    assert shapes == [(64, 96), (96, 64), (64, 96)]


def test_still_samples_show_a_still_part_over_and_over():
    """Left half of a 160 x 256 picture moves, right half stands still; red is the column, green the row."""
    image = torch.zeros(3, 160, 256)
    image[0], image[1] = torch.arange(256) / 255, torch.arange(160)[:, None] / 159
    moves = torch.zeros(1, 160, 256)
    moves[..., :128] = 2.0
    found = [static_sample(image, moves, (96, 320), np.random.default_rng(seed)) for seed in range(30)]
    samples = [sample for sample in found if sample is not None]
    assert len(samples) > 10 and len(samples) < 30  # sides above a half find no still part
    for sample in samples:
        assert sample["image"].shape == (3, 96, 320) and sample["displacement"].shape == (1, 96, 320)
        assert float(sample["displacement"].mean()) < 0.1
        # Neighbours in the sample were neighbours in the picture: no seams but mirrors, nothing enlarged.
        assert float(sample["image"][0].diff(dim=-1).abs().max()) < 2 / 255
    moving = torch.ones(1, 160, 256)
    assert all(static_sample(image, moving, (96, 96), np.random.default_rng(seed)) is None for seed in range(5))


def test_mirrored_indices():
    assert _mirrored(8, 3, 0).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert _mirrored(4, 3, 2).tolist() == [2, 2, 1, 0]


def test_training_shows_still_parts_and_measuring_does_not(scene_set: ClipSet, monkeypatch):
    calls = []
    part = {"image": torch.zeros(3, 8, 8), "displacement": torch.zeros(1, 8, 8)}
    monkeypatch.setattr(displacement, "static_sample", lambda *arguments: calls.append(arguments) or part)
    for augment, expected in ((True, displacement.STATIC_SAMPLES), (False, 0.0)):
        calls.clear()
        dataset = DisplacementDataset([(scene_set, 1.0)], "train", sizes=((64, 96),), augment=augment)
        shown = sum(dataset[SampleKey(0, 0, seed)] is part for seed in range(100))
        assert shown == len(calls) and shown / 100 == pytest.approx(expected, abs=0.15)


def test_still_photographs_are_shown_in_crops(scene_set: ClipSet):
    """Half of the still samples, and only in training; a photograph of one colour is told by it."""
    grey = torch.full((3, 50, 300), 0.5)
    for augment, share in ((True, displacement.STATIC_SAMPLES * displacement.STATIC_IMAGES), (False, 0.0)):
        dataset = DisplacementDataset([(scene_set, 1.0)], "train", sizes=((64, 96),), augment=augment, static=[grey])
        samples = [dataset[SampleKey(0, 0, seed)] for seed in range(200)]
        shown = [sample for sample in samples if float(sample["image"].std((1, 2)).max()) == 0]
        assert len(shown) / 200 == pytest.approx(share, abs=0.08)
        for sample in shown:
            assert sample["image"].shape == (3, 64, 96) and not sample["displacement"].any()


def test_still_pictures_belong_to_their_stage(tmp_path, capsys):
    flags = ["--data", "x", "--vae", "x", "--still-pictures", str(tmp_path)]
    assert train_unet.main([*flags, "--stage", "picture"]) == 2
    assert "--static-images: only --stage displacement" in capsys.readouterr().err


def test_validation_figures_of_a_known_map(scene_set: ClipSet):
    """A head that knew the answer has an average precision near 1 and the gain that it is given."""
    dataset = DisplacementDataset([(scene_set, 1.0)], "train", sizes=((64, 96),), augment=False)

    class Knows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.count = torch.nn.Parameter(torch.zeros(1)), 0
            self.unet = self

        def expected_displacement(self, image):
            sample = dataset[SampleKey(self.count, 0, 0)]
            self.count += 1
            return 3 * sample["displacement"][None]

    figures = validation_displacement(Knows(), dataset, limit=dataset.count)
    assert figures["validation_ap"] > 0.99 and figures["validation_gain"] == pytest.approx(3.0, rel=0.01)


def run_unet(*flags: str) -> None:
    assert train_unet.main([*flags, "--device", "cpu", "--seed", "0"]) == 0


def test_stage_displacement_adds_the_head_and_changes_nothing_else(scene_set: ClipSet, tmp_path: Path):
    """The rest of the network comes through bit by bit, whatever has its own run folder; samples follow the head."""
    start = FrequencyUNet(**SHAPE, downsample_factor=8)
    start.half().save_pretrained(tmp_path / "start")
    flags = ("--data", str(scene_set.folder), "--grid", "96x64", "--bins", "4", "--batch-size", "2", "--steps", "3")
    out = tmp_path / "run"
    run_unet(*flags, "--stage", "displacement", "--init", str(tmp_path / "start"), "--out", str(out))
    pipeline = MotionPipeline.from_pretrained(out / "pipeline")
    assert pipeline.unet.config.displacement and pipeline.segmentation is not None
    before = start.state_dict()
    after = pipeline.unet.state_dict()
    assert {name.split(".")[0] for name in set(after) - set(before)} == {"displacement_head"}
    assert all(torch.equal(after[name], value.float()) for name, value in before.items())
    assert list((out / "samples").glob("displacement-*.png"))
    record = json.loads((out / "pipeline" / "training.json").read_text())["unet"]
    assert "validation_gain" in record["validation_after"]

    image = picture(size=(64, 96))
    sample = pipeline(image, steps=2)[0, 0]
    with torch.no_grad():
        expected = pipeline.unet.expected_displacement(image)[0]
    found = mean_displacement(sample)
    assert float((found - expected).abs().median()) < 1e-3 * float(expected.mean())


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


def test_stage_displacement_has_no_noise_levels(capsys):
    assert train_unet.main(["--stage", "displacement", "--weighting", "min-snr"]) == 2
    assert "--stage displacement has no noise levels; right: none" in capsys.readouterr().err


def test_a_head_is_moved_and_cast_with_the_network():
    unet = unet_with_head().to(torch.bfloat16)
    with torch.no_grad():
        expected = unet.expected_displacement(picture().bfloat16())
    assert expected.dtype == torch.float32 and bool(torch.isfinite(expected).all())
    stage = DisplacementStage(unet)
    assert stage(picture().bfloat16())[0].shape == (1, 4, 8, 12)
