"""Flow where nothing is to be seen: none, by either reading."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from data import optical_flow
from data.optical_flow import estimate_flow, static_frames, static_pixels, visible_flow
from evaluation.flow import FlowClip, unchanged_flow

HEIGHT, WIDTH = 64, 144
READINGS = ("unchanged_px", "unchanged_area_px")
LIMIT_PX = 0.1
SWING_PX = 6


def moving_texture(dx: float) -> torch.Tensor:
    """A texture (3, 64, 48) in steep light and dark, dx px to the right."""
    generator = torch.Generator().manual_seed(0)
    wide = F.interpolate(torch.rand(1, 3, 20, 24, generator=generator), size=(64, 80), mode="bicubic").clamp(0, 1)
    x = 2 * (torch.arange(48) + 16 - dx) / 79 - 1
    grid = torch.stack(torch.broadcast_tensors(x, torch.linspace(-1, 1, 64)[:, None]), -1)[None]
    return F.grid_sample(wide, grid, mode="bicubic", align_corners=True)[0].clamp(0, 1)


def candle(brightness: float, lean_px: float) -> torch.Tensor:
    """A flame (3, 64, 48) that leans and flickers, and its glow on the dark around it."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    flame = torch.exp(-(((x - 24 - lean_px * (40 - y) / 20) / 4) ** 2 + ((y - 32) / 9) ** 2))
    glow = 0.05 * torch.exp(-((x - 24) ** 2 + (y - 32) ** 2) / 300)
    return (torch.tensor([1.0, 0.7, 0.3]).view(3, 1, 1) * brightness * (flame + glow)).clamp(0, 1)


def make_clip(num_frames: int) -> FlowClip:
    """Dark that is recorded with noise, a texture that swings by SWING_PX beside it, and a candle beside that."""
    generator = torch.Generator().manual_seed(1)
    pictures = []
    for index in range(num_frames + 1):
        dark = torch.full((3, 64, 48), 0.04)
        swing, flicker = math.sin(2.1 * index), 0.8 + 0.15 * math.sin(1.7 * index)
        picture = torch.cat([dark, moving_texture(SWING_PX * swing), candle(flicker, SWING_PX * swing)], 2)
        noise = torch.randn(3, HEIGHT, WIDTH, generator=generator) * 0.7 / 255
        pictures.append(((picture + noise).clamp(0, 1) * 255).round() / 255)
    return FlowClip("made", pictures[0], torch.stack(pictures[1:]))


def largest(clip: FlowClip) -> tuple[float, float, float]:
    """|F| by the worst reading, of the estimate and of the visible flow, and of the estimate over the texture."""
    flow = estimate_flow(clip.first, clip.frames)
    visible, _ = visible_flow(clip.first, clip.frames, flow)
    found = [unchanged_flow(clip, values) for values in (flow, visible)]
    change = (clip.frames - clip.first).abs().amax(1)  # (T, H, W)
    assert (change.amax(0) < 2 / 255).float().mean() > 0.1
    moving = flow[..., 8:-8, 56:88].square().sum(1).sqrt().mean()
    return *(max(figures[name] for name in READINGS) for figures in found), float(moving)


@pytest.mark.parametrize("num_frames", [4, 12])
def test_no_flow_where_nothing_is_to_be_seen(num_frames, monkeypatch):
    clip = make_clip(num_frames)
    estimate_px, visible_px, moving_px = largest(clip)
    assert estimate_px < LIMIT_PX and visible_px < LIMIT_PX
    assert moving_px > 1
    # the clip is one on which DIS and its refinement fail the line
    monkeypatch.setattr(optical_flow, "STATIC_CHANGE", 0.0)
    assert largest(clip)[0] > LIMIT_PX


def test_a_pixel_that_a_clip_shows_at_rest_does_not_move_whatever_moves_beside_it():
    clip = make_clip(8)
    first, frames = clip.first, clip.frames.clone()
    frames[:, :, 30, 70] = first[:, 30, 70]
    frames[3, :, 30, 70] += 0.03  # 1/255 on average
    flow = torch.ones(8, 2, HEIGHT, WIDTH)
    assert static_pixels(first, frames)[0, 30, 70] and not static_pixels(first, frames)[0, 30, 60:69].any()
    assert not visible_flow(first, frames, flow)[0][:, :, 30, 70].any()
    assert not estimate_flow(first, frames)[:, :, 30, 70].any()
    # three frames are too few to tell chance from rest, but for what the whole clip has shown
    still = static_pixels(first, frames)
    for few in (frames[:3], frames[5:]):
        assert visible_flow(first, few, flow[:3])[0][:, :, 30, 70].any()
        assert not visible_flow(first, few, flow[:3], static=still)[0][:, :, 30, 70].any()
        assert not estimate_flow(first, few, static=still)[:, :, 30, 70].any()


def test_what_hangs_still_but_for_a_gust_keeps_the_motion_of_the_gust():
    first = moving_texture(0.0)
    blown = [17, 18]
    frames = torch.stack([moving_texture(1.0 if index in blown else 0.0) for index in range(40)])
    still = static_pixels(first, frames)
    assert still.float().mean() > 0.9
    flow = estimate_flow(first, frames)
    for found in (flow, visible_flow(first, frames, flow)[0]):
        assert found[blown, 0, 8:-8, 8:-8].mean() > 0.8
        assert not found[:17].any() and not found[19:].any()
    # the slight changes of such a pixel are none
    faint = first + 7 / 255 * torch.linspace(0, 1, 48)
    assert static_frames(first, faint[None], static=still)[0][still].all()
    assert not static_frames(first, first[None] + 9 / 255, static=still).any()


def test_a_clip_in_pieces_has_the_flow_of_the_whole_where_its_still_pixels_are_given():
    clip = make_clip(8)
    first, frames = clip.first, clip.frames.clone()
    frames[:4, :, 30, 70], frames[4:, :, 30, 70] = first[:, 30, 70], first[:, 30, 70] + 0.1
    whole, still = estimate_flow(first, frames), static_pixels(first, frames)
    assert torch.equal(torch.cat([estimate_flow(first, part, static=still) for part in frames.split(4)]), whole)
    alone = estimate_flow(first, frames[:4])
    assert whole[:4, :, 30, 70].any() and not alone[:, :, 30, 70].any()


def test_an_area_at_rest_in_one_frame_has_no_flow_there_and_keeps_it_in_others():
    clip = make_clip(3)
    frames = clip.frames.clone()
    frames[1, :, 20:31, 60:71] = clip.first[:, 20:31, 60:71]
    resting = static_frames(clip.first, frames)
    assert resting[1, 0, 21:30, 61:70].all()  # the eight neighbours count
    assert not resting[1, 0, [20, 30], 60:71].all() and not resting[1, 0, 20:31, [60, 70]].all()
    # in other frames hardly by chance
    assert resting[[0, 2], 0, 21:30, 61:70].float().mean() < 0.2
    assert static_frames(clip.first, frames[:0]).shape == (0, 1, HEIGHT, WIDTH)
    # a pixel alone: among others that change little, not among those that change much
    for step, rests in ((3 / 255, True), (6 / 255, False)):
        frame = clip.first + step
        frame[:, 30, 70] = clip.first[:, 30, 70]
        assert bool(static_frames(clip.first, frame[None])[0, 0, 30, 70]) is rests
    # frame by frame the same, where the clip's own share is given
    still = static_pixels(clip.first, frames)
    flow = estimate_flow(clip.first, frames)
    assert torch.equal(estimate_flow(clip.first, frames[1:2], static=still), flow[1:2])
