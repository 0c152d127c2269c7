"""Reading and judging the clips of a video: time stamps, repeats, cuts, bad files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from videos import FAST, rows_by_name, swaying, write_sound, write_uneven, write_video

import prepare_data
from data import prepare_clip as sources
from data import video
from data.clips import ClipRow, ClipSet, motion_metrics
from data.prepare_clip import read_clip, repeated_frames
from data.shots import find_shots
from data.video import Video


def test_repeats_are_dropped_and_the_other_stamps_kept(tmp_path):
    frames = swaying(25, 25, amplitude_px=12)
    index = [i for i in range(25) for _ in range(2 if i % 5 == 4 else 1)]  # 25 fps shown at 30
    path = write_video(tmp_path / "converted.mp4", frames[index], 30)
    clip = read_clip(path, size=(64, 64))
    repeats = [i for i in range(1, 30) if index[i] == index[i - 1]]
    assert len(clip.frames) == 25
    expected = [i / 30 for i in range(30) if i not in repeats]
    assert clip.times_s.tolist() == pytest.approx(expected, abs=1e-3)
    times_s = torch.arange(150, dtype=torch.float64) / 30
    assert not repeated_frames(torch.zeros(9, 3, 4, 4) + 0.5, times_s[:9]).any()  # a still picture is no conversion
    assert not repeated_frames(swaying(150, 30), times_s).any()  # turning back twice is none either


def test_frames_that_the_header_does_not_count_are_not_counted_for_a_clip(tmp_path, monkeypatch):
    path = write_video(tmp_path / "sway.mp4", swaying(50, 25, amplitude_px=9))
    open_source, decode, decoded = video._Source._open, video._Source._decoded_packets, []

    def without_count(source):
        open_source(source)
        source.declared_frames = 0

    def counted(source):
        for frame in decode(source):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video._Source, "_open", without_count)
    monkeypatch.setattr(video._Source, "_decoded_packets", counted)
    assert len(read_clip(path, seconds=0.2).frames) == 5 and next(find_shots(path)).start_s == 0
    assert len(decoded) < 12


def test_a_slow_source_keeps_its_stamps_and_a_fast_one_is_thinned(tmp_path):
    slow = read_clip(write_video(tmp_path / "slow.mp4", swaying(12, 24, amplitude_px=9), 24), area=64 * 64)
    assert len(slow.frames) == 12 and slow.times_s[1] == pytest.approx(1 / 24, abs=1e-3)
    fast = read_clip(
        write_video(tmp_path / "fast.mp4", swaying(60, 60, amplitude_px=25, size=(48, 96)), 60), size=(32, 64)
    )
    assert len(fast.frames) == 30 and fast.times_s[1] == pytest.approx(1 / 30, abs=1e-3)
    assert fast.frames.shape[-2:] == (32, 64) and fast.fps == 30
    thinned = read_clip(write_video(tmp_path / "thin.mp4", swaying(30, 30, amplitude_px=9), 30), fps=20, area=64 * 64)
    assert thinned.times_s[:4].tolist() == pytest.approx([0, 1 / 30, 3 / 30, 4 / 30], abs=1e-3)  # stamps of their own
    assert len(thinned.frames) == 20
    tall = read_clip(write_video(tmp_path / "tall.mp4", swaying(4, 24, size=(96, 48)), 24), area=64 * 32)
    assert tall.frames.shape[-2:] == (64, 32)  # portrait stays portrait


@pytest.fixture(scope="module")
def odd_videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    fine = write_video(folder / "fine.mp4", swaying(50, 10), 10)
    write_sound(folder / "sound.mp4")
    # the index comes first, as in files for the web, so that the rest of what is there can be read
    whole = fine.read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    write_video(folder / "single.mp4", swaying(1, 10), 10)
    frames, times_s = swaying(50, 10), [index / 10 for index in range(50)]
    write_uneven(folder / "odd.mkv", frames[..., :61, :63], times_s, codec="ffv1")
    write_video(folder / "tall.mp4", swaying(50, 10, size=(128, 64)), 10)
    # a variable rate, as telephones write it: every third frame is missing from 2 s on
    kept = [index for index in range(50) if index < 20 or index % 3]
    write_uneven(folder / "variable.mkv", frames[kept], [times_s[index] for index in kept])
    return folder


def test_bad_videos_get_one_line_each_and_the_rest_goes_on(odd_videos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    flags = ["videos", str(odd_videos), str(tmp_path / "empty"), "--out", str(tmp_path / "set"), *FAST]
    assert prepare_data.main(flags) == 3
    lines = re.split(r"[\r\n]", capsys.readouterr().err)
    rows = rows_by_name(tmp_path / "set")
    assert {name: row.status for name, row in rows.items()} == {
        "fine": "kept", "odd": "kept", "tall": "kept", "variable": "pairs_only",
        "sound": "dropped", "truncated": "dropped", "single": "dropped",
    }  # fmt: skip
    # 40 frames are too few for 24 bins, whatever the time they cover
    assert rows["variable"].frames <= 40 and "24 bins need 48" in rows["variable"].reason
    for name in ("sound", "truncated", "single"):
        assert rows[name].reason.startswith("unreadable: ")
        assert sum(f"{rows[name].id}: unreadable: " in line for line in lines) == 1
    assert "single frame" in rows["single"].reason and "truncated" in rows["truncated"].reason
    assert sum("no videos in this folder" in line for line in lines) == 1
    first = ClipSet(tmp_path / "set").first(rows["tall"].id)
    assert first.shape[-2] > 1.5 * first.shape[-1]


def test_a_variable_rate_keeps_its_time_stamps(odd_videos):
    clip = read_clip(odd_videos / "variable.mkv", size=(64, 64))
    tenths = (10 * clip.times_s).round().int().tolist()
    # where the sway turns back the encoder may repeat a frame, which is then left out
    assert {i for i in range(50) if i < 20 or i % 3} >= set(tenths) and len(tenths) >= 36
    assert clip.times_s.tolist() == pytest.approx([tenth / 10 for tenth in tenths], abs=2e-3)


def test_a_file_that_vanishes_while_it_is_read_is_one_dropped_row(videos, tmp_path, monkeypatch):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes((videos / "sway.mp4").read_bytes())
    plan = sources.plan_sequences

    def plan_and_delete(*args, **kwargs):
        planned = plan(*args, **kwargs)
        copy.unlink()
        return planned

    monkeypatch.setattr(sources, "plan_sequences", plan_and_delete)
    (tmp_path / "set").mkdir()
    rows = sources.prepare_video(tmp_path / "set", sources.ClipJob("copy", copy, "train"))
    assert [(row.id, row.status) for row in rows] == [("copy", "dropped")]
    assert rows[0].reason.startswith("unreadable: ") and "no such file" in rows[0].reason
    assert not any((tmp_path / "set").rglob("*.p*"))


def test_pixels_that_get_covered_are_marked_in_the_pairs():
    frames = swaying(1, 10, size=(64, 96)).repeat(6, 1, 1, 1)
    generator = torch.Generator().manual_seed(9)
    box = F.interpolate(torch.rand(1, 1, 6, 6, generator=generator), size=(24, 24), mode="bicubic")[0].clamp(0, 1)
    for index in range(6):
        left = 20 + 3 * index
        frames[index, :, 20:44, left : left + 24] = box
    video = Video(frames, torch.arange(6) / 10, 10.0)
    job = sources.ClipJob("box", Path("box.mp4"), "train", num_pairs=1, method="dis_fast")
    row, content = sources.measure_motion(ClipRow("box", "box.mp4"), video, job)
    reliability = content.pairs[-1].reliability[0]
    covered, plain = (slice(24, 40), slice(48, 56)), (slice(48, 60), slice(8, 88))
    # what is covered has no flow, so some of the guesses there do return by chance
    assert (reliability[covered] == 0).float().mean() > 0.35 and reliability[covered].mean() < 0.4
    assert (reliability[plain] == 0).float().mean() < 0.02
    # the box covers 24 x 15 px, and flow is wrong around that as well
    assert 0.6 < row.inconsistent_fraction / (24 * 15 / (64 * 96)) < 3


def judged(displacement: torch.Tensor) -> ClipRow:
    flow = torch.stack([displacement, torch.zeros_like(displacement)], 1)  # (1, 2, H, W)
    return sources._judged(ClipRow("a", "a.mp4"), flow, torch.ones_like(displacement)[None], torch.arange(150) / 30)


def test_a_small_flame_is_not_still():
    displacement = torch.zeros(1, 160, 256)
    displacement[:, 60:72, 100:106] = 2.0  # 0.18 % of the pixels
    assert motion_metrics(displacement)["moving_fraction"] < 0.01 and judged(displacement).status == "kept"
    assert judged(displacement / 8).reason.startswith("static")


def test_a_clip_is_still_by_px_of_the_default_grid_whatever_the_grid():
    for size, scale in (((160, 256), 1.0), ((320, 512), 2.0), ((80, 128), 0.5)):
        for px, verdict in ((0.24, "dropped"), (0.26, "kept")):
            displacement = torch.full((1, *size), px * scale)
            assert judged(displacement).status == verdict
        for px, verdict in ((0.49, "dropped"), (0.51, "kept")):  # a small flame
            displacement = torch.zeros(1, *size)
            displacement[:, : size[0] // 20, : size[1] // 10] = px * scale
            assert judged(displacement).status == verdict
        error, flow, sure = torch.zeros(1, 1, *size), torch.zeros(1, 2, *size), torch.ones(1, 1, *size)
        flow[:, 0] = 1e-6
        for px, wrong in ((0.49, False), (0.51, True)):
            assert bool(sources._inconsistent(error + px * scale, flow, sure).all()) == wrong


@pytest.mark.parametrize("start_s", [0.0, 0.001, 0.034, 0.067])
def test_a_clip_after_a_cut_begins_with_its_first_frame_wherever_reading_began(tmp_path, start_s):
    frames = torch.cat([swaying(60, 30, seed=0), swaying(60, 30, seed=1)])
    video = write_video(tmp_path / "cut.mp4", frames, 30)
    job = sources.ClipJob("cut", video, "train", start_s, clips=2, stride_s=1.0, method="dis_fast", area=64 * 64)
    after = [clip for row, clip in sources._read_clips(ClipRow("cut", str(video), start_s=start_s), job) if clip][-1]
    steps = (after.frames[1:] - after.frames[:-1]).abs().mean((1, 2, 3))
    assert len(after.frames) >= 50  # some are taken for repeats
    assert steps.max() < 0.1
