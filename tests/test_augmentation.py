"""Augmentation: what happens to the image happens to spectrum, flow and maps; samples of small sets."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from clip_sets import SIZE, make_set, random_content

from data.augmentation import draw_geometry, flip_spectrum, reverse_spectrum
from data.clip_writer import ClipContent, ClipSetWriter
from data.clips import STORED_BINS, ClipRow, ClipSet, ClipSetError, Pair, SampleKey
from data.datasets import MotionDataset, RenderingDataset, open_weighted_sets
from motion.spectrum import spectrum_to_flow


def test_a_flip_of_the_spectrum_is_the_flip_of_the_flow():
    spectrum = random_content(0).spectrum
    phase = torch.tensor([0.1, 0.35, 0.8])
    mirrored = spectrum_to_flow(spectrum, phase).flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    torch.testing.assert_close(spectrum_to_flow(flip_spectrum(spectrum), phase), mirrored)


def test_reversal_plays_backwards_from_the_end():
    spectrum = random_content(0).spectrum
    phase = torch.tensor([0.0, 0.2, 0.45, 0.9, 1.0], dtype=torch.float64)
    backwards = spectrum_to_flow(spectrum, 1 - phase) - spectrum_to_flow(spectrum, torch.ones(1))
    torch.testing.assert_close(spectrum_to_flow(reverse_spectrum(spectrum), phase), backwards, atol=1e-4, rtol=1e-4)


def test_boxes_have_the_samples_aspect_and_stay_inside():
    assert draw_geometry((160, 256), (160, 256), None)[:4] == (0, 0, 160, 256)
    assert draw_geometry((160, 256), (256, 160), None)[:4] == (0, 78, 160, 100)
    assert draw_geometry((256, 160), (128, 128), None)[:4] == (48, 0, 160, 160)
    rng = np.random.default_rng(0)
    boxes = [draw_geometry((160, 256), (192, 192), rng)[:4] for _ in range(200)]
    for top, left, height, width in boxes:
        assert top >= 0 and left >= 0 and top + height <= 160 and left + width <= 256
        assert 0.89 < width / height < 1.12
    assert min(height for _, _, height, _ in boxes) < 110 and len({box[1] for box in boxes}) > 50


def ramp_set(folder, size=(64, 96)) -> ClipSet:
    """Picture, spectrum and flow that say where they are: red = x / W, green = y / H, D = (x, y)."""
    height, width = size
    x = (torch.arange(width) + 0.5).expand(height, width) / width
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    spectrum = torch.zeros(STORED_BINS, 4, height, width)
    spectrum[0, 1], spectrum[0, 3] = x, y
    spectrum[3] = 0.25
    spectrum[0, 0::2] = -0.25
    picture = torch.stack([x, y, torch.full_like(x, 0.5)])
    pair = Pair(picture, torch.stack([x, y]), torch.ones(1, height, width), 2.0)
    with ClipSetWriter(folder, {}) as writer:
        content = ClipContent(picture, spectrum, pairs=(pair,), importance=x[None])
        writer.write(ClipRow("ramp", "ramp.mp4"), content)
        return writer.finish()


@pytest.mark.parametrize("size", [(64, 96), (80, 48), (48, 48), (128, 192)])
def test_crops_flips_and_reversal_move_picture_and_spectrum_alike(tmp_path, size, monkeypatch):
    monkeypatch.setattr("data.datasets.jitter_colours", lambda images, rng: images)
    dataset = MotionDataset([(ramp_set(tmp_path / "set"), 1.0)], size=size)
    seen = set()
    for seed in range(24):
        sample = dataset[SampleKey(0, 0, seed)]
        image, drift = sample["image"], sample["spectrum"][0, 1::2]
        assert image.shape == (3, *size) and sample["confidence"].shape == (1, *size)
        mirrored = bool(image[0, 0, -1] < image[0, 0, 0])
        backwards = bool(drift[1].mean() < 0)
        seen.add((mirrored, backwards))
        # the side of the box in source px, from the slope of the picture, gives the scale of the motion
        inner = image[:, 4:-4, 4:-4]
        slope_x = float((inner[0, :, -1] - inner[0, :, 0]).abs().mean() / (inner.shape[2] - 1))
        slope_y = float((inner[1, -1] - inner[1, 0]).mean() / (inner.shape[1] - 1))
        scale_x, scale_y = 1 / (slope_x * 96), 1 / (slope_y * 64)
        sign = -1.0 if backwards else 1.0
        flip = -1.0 if mirrored else 1.0
        expected = torch.stack([image[0] * scale_x * flip * sign, image[1] * scale_y * sign])
        assert (drift - expected)[:, 4:-4, 4:-4].abs().max() < 0.03 * max(scale_x, scale_y)
        re_x, im_x, re_y, im_y = sample["spectrum"][3].mean((1, 2)).tolist()
        assert re_x == pytest.approx(0.25 * scale_x * flip, rel=0.05)
        assert im_x == pytest.approx(0.25 * scale_x * flip * sign, rel=0.05)
        assert (re_y, im_y) == pytest.approx((0.25 * scale_y, 0.25 * scale_y * sign), rel=0.05)
    assert len(seen) == 4


def test_rendering_samples_keep_flow_picture_and_importance_together(tmp_path, monkeypatch):
    monkeypatch.setattr("data.datasets.jitter_colours", lambda images, rng: images)
    clip_set = ramp_set(tmp_path / "set")
    dataset = RenderingDataset([(clip_set, 1.0)], size=(32, 32))
    flips = set()
    for seed in range(16):
        sample = dataset[SampleKey(0, 0, seed)]
        image, flow = sample["image"], sample["flow"]
        assert image.shape == sample["target"].shape == (3, 32, 32)
        assert sample["reliability"].shape == (1, 32, 32)
        flip = -1.0 if image[0, 0, -1] < image[0, 0, 0] else 1.0
        flips.add(flip)
        scale_y = 31 / float((image[1, -1] - image[1, 0]).mean() * 64)
        assert (flow[1] - image[1] * scale_y).abs().max() < 0.04 * scale_y
        assert (flow[0] * flip).min() > 0
        # px of the motion grid, whatever the size of the sample
        assert (sample["importance"][0] - image[0]).abs().max() < 0.02
    assert flips == {-1.0, 1.0}
    whole = RenderingDataset([(clip_set, 1.0)], size=(32, 48), augment=False)[SampleKey(0, 0, 0)]
    expected = clip_set.first("ramp")[:, 16:48, 24:72]  # the middle, at its own scale
    torch.testing.assert_close(whole["image"], expected)
    torch.testing.assert_close(whole["flow"], clip_set.pairs("ramp")[0][0].flow[:, 16:48, 24:72])


def test_samples_depend_on_nothing_but_the_key(tmp_path):
    make_set(tmp_path / "set")
    for kind in (MotionDataset, RenderingDataset):
        a, b = (kind([(ClipSet(tmp_path / "set"), 1.0)], size=(32, 32)) for _ in range(2))
        a[SampleKey(1, 0, 5)]  # what was read before must not matter
        one, two, other = a[SampleKey(0, 0, 7)], b[SampleKey(0, 0, 7)], a[SampleKey(0, 0, 8)]
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert not torch.equal(one["image"], other["image"])
        assert all(maps.dtype == torch.float32 and torch.isfinite(maps).all() for maps in one.values())
    plain = MotionDataset([(ClipSet(tmp_path / "set"), 1.0)], size=SIZE, augment=False)
    assert torch.equal(plain[SampleKey(0, 0, 1)]["spectrum"], plain[SampleKey(0, 3, 2)]["spectrum"])
    assert torch.equal(plain[SampleKey(0, 0, 1)]["image"], ClipSet(tmp_path / "set").first("clip0"))


def test_weights_set_how_often_a_clip_comes(tmp_path):
    make_set(tmp_path / "a"), make_set(tmp_path / "b")
    sets = open_weighted_sets([str(tmp_path / "a"), f"{tmp_path / 'b'}:0.34"])
    assert [weight for _, weight in sets] == [1.0, 0.34]
    dataset = MotionDataset(sets)  # 3 training clips and a third of 3
    assert len(dataset) == 4
    b_clips = [dataset.items[SampleKey(3, epoch, 0)] for epoch in range(3)]
    assert {clip_set.folder.name for clip_set, _ in b_clips} == {"b"}
    assert sorted(row.id for _, row in b_clips) == ["clip0", "clip1", "clip2"]
    with pytest.raises(IndexError):
        dataset[SampleKey(4, 0, 0)]
    with pytest.raises(ClipSetError, match="above 0"):
        open_weighted_sets([f"{tmp_path / 'a'}:0"])
    with pytest.raises(ClipSetError, match="not a clip set"):
        open_weighted_sets([f"{tmp_path / 'a'}:much"])
    shutil.copytree(tmp_path / "a", tmp_path / "c:0.5")  # a folder may be named so
    assert open_weighted_sets([tmp_path / "c:0.5"])[0][1] == 1.0


def test_a_set_without_clips_for_the_purpose_is_refused(tmp_path):
    clip_set = make_set(tmp_path / "set", clips=2, pairs=0)
    with pytest.raises(ClipSetError, match="no such clip of split test"):
        MotionDataset([(clip_set, 1.0)], split="test")
    with pytest.raises(ClipSetError, match="no such clip"):
        RenderingDataset([(clip_set, 1.0)])
    assert len(MotionDataset([(clip_set, 1.0)], split=None)) == 2
