"""Cuts, the choice of sequences between them, and the camera: known answers on made-up videos and flow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from data.shots import (
    CAMERA_PX,
    Shot,
    camera_motion,
    find_cuts,
    find_shots,
    plan_sequences,
    typical_camera_px,
)
from data.video_writer import VideoWriter
from motion.flow import default_grid_scale

SIZE = (160, 256)


def texture(seed: int, size: tuple[int, int] = SIZE, cell: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, size[0] // cell, size[1] // cell, generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)[0]


def cuts_of(frames: list[torch.Tensor]) -> list[float]:
    return [cut for _, cut in find_cuts(enumerate(frames)) if cut is not None]


def test_a_cut_is_found_at_its_frame_and_a_flash_or_a_flicker_is_none():
    one, other = texture(1, (48, 80), 16), texture(2, (48, 80), 16)
    moving = [torch.roll(one, i, -1) for i in range(10)]
    assert cuts_of(moving + [torch.roll(other, i, -1) for i in range(10)]) == [10.0]
    assert cuts_of([*moving, torch.rand(3, 48, 80), *moving[-3:]]) == []
    assert cuts_of([one * (0.3 if i % 3 else 1.0) for i in range(12)]) == []  # a flame lights the room
    assert cuts_of([torch.full((3, 48, 80), 0.2 * (i % 2)) for i in range(9)]) == []
    assert cuts_of([one, other, other]) == [1.0]


def test_what_boils_all_the_time_is_no_cut_but_a_cut_in_it_is_one():
    def boiling(pot: int, share: float, seed: int) -> torch.Tensor:
        return (1 - share) * texture(pot, (48, 80), 16) + share * texture(seed, (48, 80), 16)

    calm, wild = boiling(0, 0.3, 10), boiling(0, 0.5, 11)
    frames = [boiling(0, 0.3, seed) for seed in range(20, 40)]
    assert cuts_of([calm, calm, calm, calm, calm, calm, wild, wild]) == [6.0]
    assert cuts_of([*frames, wild, wild, *frames]) == []
    assert cuts_of([*frames, *(boiling(1, 0.3, seed) for seed in range(20, 40))]) == [20.0]
    assert cuts_of([calm, wild, calm]) == []  # too little is known of the video yet


def test_sequences_never_cross_a_cut_and_whole_ones_come_first():
    def plan(*ends: float, **options: float) -> list[Shot]:
        starts = (0.0, *ends[:-1])
        shots = [Shot(a, b) for a, b in zip(starts, ends, strict=True)]
        sequences, cuts_s = plan_sequences(shots, **options)
        assert cuts_s == list(ends[:-1])
        return sequences

    assert plan(5.0) == [Shot(0, 5)]
    assert plan(3.0) == [Shot(0, 3)]  # too short for a spectrum, and all there is
    assert plan(2.0, 9.0) == [Shot(2, 7)]
    assert plan(2.0, 9.0, count=3) == [Shot(0, 2), Shot(2, 7), Shot(7, 9)]
    assert plan(0.2, 0.4) == []
    assert plan(1.0, 3.0) == [Shot(1, 3)]
    assert plan(12.0, count=9, stride_s=5.0) == [Shot(0, 5), Shot(5, 10), Shot(10, 12)]
    assert plan(12.0, count=2, stride_s=2.0) == [Shot(0, 5), Shot(2, 7)]
    assert plan(7.0, count=9, stride_s=1.0) == [Shot(0, 5), Shot(1, 6), Shot(2, 7)]  # no rests inside these
    assert plan_sequences([]) == ([], [])


def test_no_more_of_a_video_is_read_than_needed():
    seen = []

    def shots():
        for i in range(1, 100):
            seen.append(i)
            yield Shot(0.0, i / 2)

    assert plan_sequences(shots(), count=2)[0] == [Shot(0, 5), Shot(5, 10)]
    assert len(seen) == 20


def test_the_cut_of_a_file_is_found_in_its_own_time(tmp_path: Path):
    path = tmp_path / "cut.mp4"
    with VideoWriter(path, fps=10) as writer:
        for picture in [texture(1, (64, 96))] * 12 + [texture(2, (64, 96))] * 9:
            writer.write(picture)
    shots = list(find_shots(path))
    assert sorted({shot.start_s for shot in shots}) == pytest.approx([0.0, 1.2], abs=1e-6)
    assert shots[-1].end_s == pytest.approx(2.1, abs=1e-3)
    assert plan_sequences(find_shots(path, start_s=1.2))[1] == []


# ----------------------------------------------------------------------------------------------- camera


def similarity(shift: tuple[float, float], turn: float = 0.0, zoom: float = 0.0) -> torch.Tensor:
    """Flow (2, H, W) px of a camera: shift, and turn and zoom about the middle."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]) - 80.0, torch.arange(SIZE[1]) - 128.0, indexing="ij")
    return torch.stack([shift[0] + zoom * x - turn * y, shift[1] + turn * x + zoom * y])


def measured(flow: torch.Tensor, picture: torch.Tensor | None = None) -> float:
    picture = texture(3) if picture is None else picture
    reliability = torch.ones(1, 1, *SIZE)
    return float(camera_motion(picture, flow[None], reliability)[0])


def swaying_plants() -> torch.Tensor:
    """Flow of a subject that fills the frame: stems that swing by 4 px at the top, each with its own phase."""
    y, x = torch.meshgrid(torch.linspace(1, 0, SIZE[0]), torch.arange(SIZE[1]).float(), indexing="ij")
    return torch.stack([4 * y * torch.sin(x / 12), torch.zeros(SIZE)])


def test_the_camera_is_measured_in_px_also_behind_a_subject():
    assert measured(similarity((3.0, -4.0))) == pytest.approx(5.0, abs=0.05)
    assert measured(similarity((0.0, 0.0), turn=0.02)) == pytest.approx(0.02 * 87, rel=0.15)  # rms radius 87 px
    assert measured(similarity((0.0, 0.0), zoom=-0.02)) == pytest.approx(0.02 * 87, rel=0.15)
    flow = similarity((3.0, 0.0), turn=0.005)
    flow[:, 50:130, 60:200] += swaying_plants()[:, 50:130, 60:200]
    assert measured(flow) == pytest.approx(3.0, rel=0.15)


def test_the_camera_is_found_by_the_border_of_a_subject_that_fills_the_frame():
    flow = similarity((3.0, -1.0))
    flow[:, 20:140, 32:240] += 6 * swaying_plants()[:, 20:140, 32:240]
    assert measured(flow) == pytest.approx(10**0.5, rel=0.1)
    # a third of the border that does not follow speaks against it
    flow[:, :, :64] = 0
    assert measured(flow) == 0.0


def test_a_subject_is_no_camera():
    assert measured(torch.zeros(2, *SIZE)) == 0.0
    assert measured(swaying_plants()) == 0.0
    still_border = torch.zeros(2, *SIZE)
    still_border[0, 24:136, 24:232] = 6.0  # most of the picture moves as one, the border does not
    assert measured(still_border) < 0.1
    y = torch.linspace(1, 0, SIZE[0])[:, None].expand(SIZE)
    assert measured(torch.stack([5 * y.square(), torch.zeros(SIZE)])) == 0.0  # a plant bends, rooted below


def test_nothing_is_said_where_the_border_has_no_texture():
    picture = torch.full((3, *SIZE), 0.5)
    picture[:, 60:100, 90:170] = texture(4)[:, 60:100, 90:170]
    assert measured(similarity((3.0, 0.0)), picture) == 0.0
    assert measured(similarity((3.0, 0.0)), torch.zeros(3, *SIZE)) == 0.0


def test_one_bad_frame_does_not_make_a_moving_camera_and_limits_follow_the_grid():
    assert typical_camera_px(torch.tensor([0.0, 9.0, 0.1, 0.2, 0.0])) == pytest.approx(0.2)
    assert typical_camera_px(torch.tensor([2.0])) == 2.0 and typical_camera_px(torch.zeros(0)) == 0.0
    assert default_grid_scale(160, 256) == 1.0 and default_grid_scale(80, 128) == 2.0 and CAMERA_PX < 1
