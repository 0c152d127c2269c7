"""prepare_data.py end to end on tiny videos and scenes, and the reading of clips it rests on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from videos import write_sound, write_uneven, write_video

import prepare_data
from data import optical_flow
from data import prepare_clip as sources
from data.clip_writer import ClipSetWriter
from data.clips import ClipRow, ClipSet, motion_metrics
from data.find_clips import find_clips, fit_to_set, name_groups
from data.media import read_image, write_image
from data.optical_flow import METHODS
from data.prepare_clip import read_clip, repeated_frames
from data.set_report import describe_set
from data.video import Video
from motion.spectrum import spectrum_to_flow

ROOT = Path(__file__).resolve().parent.parent
# the whole texture sways here, as before a moving camera
FAST = ["--method", "dis_fast", "--size", "64x64", "--max-camera-px", "100"]
ALL = ("kept", "pairs_only", "dropped")


def swaying(count: int, fps: float, amplitude_px: float = 1.5, size=(64, 64), seed: int = 0) -> torch.Tensor:
    """Frames of a texture swaying sideways once in 5 s, dx = a sin(2 pi t / 5); grey, as 4:2:0 would blur colours."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, size[0] // 8, size[1] // 8, generator=generator).expand(-1, 3, -1, -1)
    texture = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    times = torch.arange(count) / fps
    dx = amplitude_px * torch.sin(2 * torch.pi * times / 5)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    x = x - dx.view(-1, 1, 1)
    grid = torch.stack([2 * x / (size[1] - 1) - 1, (2 * y / (size[0] - 1) - 1).expand_as(x)], -1)
    return F.grid_sample(texture.expand(count, -1, -1, -1), grid, padding_mode="reflection", align_corners=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "sway.mp4", swaying(50, 10), 10)
    write_video(folder / "short.mp4", swaying(20, 10, seed=1), 10)
    write_video(folder / "still.mp4", swaying(50, 10, amplitude_px=0, seed=2), 10)
    (folder / "broken.mp4").write_bytes((folder / "sway.mp4").read_bytes()[:700])
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory) -> tuple[Path, int]:
    out = tmp_path_factory.mktemp("sets") / "set"
    return out, prepare_data.main(["videos", str(videos), "--out", str(out), *FAST])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_each_video_gets_its_verdict_and_a_broken_one_does_not_stop_the_rest(prepared):
    out, code = prepared
    rows = {row.id: row for row in ClipSet(out).rows(status=ALL)}
    assert code == 3
    assert {name: row.status for name, row in rows.items()} == {
        "sway": "kept",
        "short": "pairs_only",
        "still": "dropped",
        "broken": "dropped",
    }
    assert rows["short"].reason.startswith("covers 2.0") and "needs 4.5 s" in rows["short"].reason
    assert rows["still"].reason.startswith("still: 0.00%") and rows["broken"].reason.startswith("unreadable: ")
    # where the texture is even, on crests and in valleys, no motion is to be seen
    assert rows["sway"].frames == 50 and rows["sway"].fps == 10.0 and rows["sway"].moving_fraction > 0.8
    # mean of |1.5 sin| is .95
    assert rows["sway"].median_flow_px == pytest.approx(1.5 * 2 / torch.pi, abs=0.12)
    assert (out / "contact.png").is_file()


def test_the_spectrum_is_that_of_the_sway(prepared):
    spectrum, confidence = ClipSet(prepared[0]).spectrum("sway", 16)
    assert spectrum.shape == (16, 4, 64, 64) and confidence.mean() > 0.9
    flow = spectrum_to_flow(spectrum, torch.tensor([0.0, 0.25, 0.75]))[:, :, 12:-12, 12:-12]
    assert not flow[0].any()
    assert flow[1, 0].median() == pytest.approx(1.5, abs=0.15) and flow[2, 0].median() == pytest.approx(-1.5, abs=0.15)
    assert flow[1:, 1].abs().median() < 0.1
    # b_1 = 1.5, so im_x of bin 1 is -1.5
    assert spectrum[1, 1, 12:-12, 12:-12].median() == pytest.approx(-1.5, abs=0.15)


def test_pairs_are_spread_over_the_clip_and_warp_to_their_target(prepared):
    pairs, importance = ClipSet(prepared[0]).pairs("sway")
    assert [pair.time_s for pair in pairs] == pytest.approx([0.8, 1.6, 2.4, 3.3, 4.1, 4.9], abs=0.051)
    assert importance.shape == (1, 64, 64)
    first = ClipSet(prepared[0]).first("sway")
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    pair = pairs[0]
    grid = torch.stack([2 * (x + pair.flow[0]) / 63 - 1, 2 * (y + pair.flow[1]) / 63 - 1], -1)[None]
    warped = F.grid_sample(pair.target[None], grid, padding_mode="border", align_corners=True)[0]
    inner = (..., slice(8, -8), slice(8, -8))
    assert (warped - first)[inner].abs().mean() < 0.3 * (pair.target - first)[inner].abs().mean()


def test_a_second_run_does_nothing_and_two_processes_make_the_same_set(videos, prepared, tmp_path, capsys):
    out, _ = prepared
    before = files_of(out)
    (videos / "broken.mp4").touch()
    assert prepare_data.main(["videos", str(videos), "--out", str(out), *FAST]) == 3
    assert "3 of 4 videos are done already" in capsys.readouterr().out  # the unreadable one is tried again
    assert files_of(out) == before
    assert prepare_data.main(["videos", str(videos), "--out", str(tmp_path / "two"), *FAST, "--workers", "2"]) == 3
    assert files_of(tmp_path / "two") == before


def test_other_settings_for_the_same_set_are_refused(videos, prepared, capsys):
    assert prepare_data.main(["videos", str(videos), "--out", str(prepared[0]), *FAST[2:]]) == 2
    assert "method was dis_fast, is dis" in capsys.readouterr().err


def test_a_csv_gives_start_length_split_and_only_its_clips(videos, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text(
        "file,kind,split,source,start,seconds\n"
        f"{os.path.relpath(videos, tmp_path)}/sway.mp4,clip,test,garden,1.5,1.0\n"
        "no-such.jpg,photo,try,,,\n"
        "gone.mp4,clip,train,garden2,,\n"
    )
    out = tmp_path / "set"
    assert prepare_data.main(["videos", str(table), "--out", str(out), *FAST]) == 3
    assert "gone: unreadable: " in capsys.readouterr().err
    rows = {row.id: row for row in ClipSet(out).rows(status=ALL)}
    assert set(rows) == {"sway_1.5s", "gone"}
    row = rows["sway_1.5s"]
    assert (row.split, row.start_s, row.frames, row.status) == ("test", 1.5, 10, "pairs_only")
    assert rows["gone"].split == "train"


def test_the_split_follows_the_source_never_the_clip(videos, tmp_path):
    table = tmp_path / "m.csv"
    table.write_text("path,source\n" + "".join(f"{i}.mp4,source{i // 4}\n" for i in range(400)))
    jobs = list(find_clips([table], [], {}))
    splits = [job.split for job in jobs]
    assert all(len({*splits[i : i + 4]}) == 1 for i in range(0, 400, 4))
    assert 4 <= splits[::4].count("test") <= 20
    known = tmp_path / "known.csv"
    known.write_text("file,split\nelsewhere/sway.mp4,test\nshort.mp4,train\n")
    jobs = {job.id: job.split for job in find_clips([videos], [known], {})}
    assert jobs["sway"] == "test" and jobs["short"] == "train"


def test_equal_names_in_two_folders_get_ids_of_their_own(videos, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sway.mp4").write_bytes(b"x")
    (tmp_path / "b" / "a b#.MP4").write_bytes(b"x")
    ids = [job.id for job in find_clips([videos, tmp_path / "b"], [], {})]
    assert len(ids) == len(set(ids)) == 6 and "a_b_" in ids


def test_repeats_are_dropped_and_the_other_stamps_kept(tmp_path):
    frames = swaying(25, 25, amplitude_px=12)
    index = [i for i in range(25) for _ in range(2 if i % 5 == 4 else 1)]  # 25 fps shown at 30
    path = write_video(tmp_path / "converted.mp4", frames[index], 30)
    clip = read_clip(path, size=(64, 64))
    repeats = [i for i in range(1, 30) if index[i] == index[i - 1]]
    assert len(clip.frames) == 25
    expected = [i / 30 for i in range(30) if i not in repeats]
    assert clip.times_s.tolist() == pytest.approx(expected, abs=1e-3)
    assert not repeated_frames(torch.zeros(9, 3, 4, 4) + 0.5).any()  # a still picture is no conversion
    assert not repeated_frames(swaying(150, 30)).any()  # turning back twice is none either


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


def test_a_dry_run_lists_what_would_be_kept_and_why_and_writes_nothing(videos, tmp_path, capsys):
    flags = ["videos", str(videos), "--out", str(tmp_path / "set"), *FAST, "--dry-run"]
    assert prepare_data.main(flags) == 3
    said = {line.split(": ")[0].split()[-1]: line for line in capsys.readouterr().out.splitlines()}
    assert "64x64 10 fps 5.00 s, from 0 s 50 frames, median" in said["sway"] and said["sway"].startswith("kept")
    assert said["short"].startswith("pairs_only") and "covers 2.0" in said["short"]
    assert said["still"].startswith("dropped") and "still: 0.00%" in said["still"]
    assert said["broken"].startswith("dropped") and "unreadable" in said["broken"]
    assert not (tmp_path / "set").exists()


def test_a_moving_camera_is_dropped_with_its_px_also_in_a_dry_run(videos, tmp_path, capsys):
    flags = ["videos", str(videos / "sway.mp4"), "--out", str(tmp_path / "set"), *FAST[:-1], "0.75"]
    assert prepare_data.main([*flags, "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert prepare_data.main(flags) == 0
    row = ClipSet(tmp_path / "set").rows(status=ALL)[0]
    assert row.status == "dropped" and row.camera_px == pytest.approx(1.5, abs=0.15)
    # .75 px at 256 x 160 are .24 px at 64 x 64
    assert re.fullmatch(r"camera motion: 1.[3-6]\d px, at most 0.24 is allowed", row.reason) and row.reason in listed
    assert "1 camera motion" in capsys.readouterr().out


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory) -> Path:
    """A video of two shots (3 s and 11.5 s at 10 fps), and a short one."""
    folder = tmp_path_factory.mktemp("long")
    write_video(folder / "shots.mp4", torch.cat([swaying(30, 10), swaying(115, 10, seed=5)]), 10)
    write_video(folder / "short.mp4", swaying(20, 10, seed=1), 10)
    return folder


def test_several_clips_of_a_video_never_cross_a_cut(long_videos, tmp_path):
    flags = ["videos", str(long_videos), *FAST]
    assert prepare_data.main([*flags, "--out", str(tmp_path / "all"), "--clips-per-video", "9", "--stride", "4"]) == 0
    clip_set = ClipSet(tmp_path / "all")
    rows = {row.id: row for row in clip_set.rows(status=ALL)}
    assert rows.pop("short").status == "pairs_only"
    assert {name: (row.status, row.start_s, row.frames) for name, row in rows.items()} == {
        "shots": ("pairs_only", 0.0, 30),
        "shots-3s": ("kept", 3.0, 50),
        "shots-7s": ("kept", 7.0, 50),
        "shots-11s": ("pairs_only", 11.0, 35),
    }
    assert "(cut at 3.00 s)" in rows["shots"].reason and rows["shots-3s"].reason == ""
    assert len({rows[name].split for name in rows}) == 1
    # the clip begins with the first frame of the second shot
    first = read_clip(long_videos / "shots.mp4", start_s=3.0, seconds=1, size=(64, 64)).frames[0]
    assert torch.equal(clip_set.first("shots-3s"), first)

    assert prepare_data.main([*flags, "--out", str(tmp_path / "one")]) == 0
    rows = {row.id: row for row in ClipSet(tmp_path / "one").rows(status=ALL)}
    assert {name: row.status for name, row in rows.items()} == {
        "short": "pairs_only",
        "shots": "dropped",
        "shots-3s": "kept",
    }
    assert rows["shots"].reason.startswith("cut: at 3.00 s")


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
    rows = {row.id: row for row in ClipSet(tmp_path / "set").rows(status=ALL)}
    assert {name: row.status for name, row in rows.items()} == {
        "fine": "kept", "odd": "kept", "tall": "kept", "variable": "pairs_only",
        "sound": "dropped", "truncated": "dropped", "single": "dropped",
    }  # fmt: skip
    # 40 frames are too few for 24 bins, whatever the time they cover
    assert rows["variable"].frames <= 40 and "24 bins need 48" in rows["variable"].reason
    for name in ("sound", "truncated", "single"):
        assert rows[name].reason.startswith("unreadable: ")
        assert sum(f"{name}: unreadable: " in line for line in lines) == 1
    assert "single frame" in rows["single"].reason and "truncated" in rows["truncated"].reason
    assert sum("no videos in this folder" in line for line in lines) == 1
    first = ClipSet(tmp_path / "set").first("tall")
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
    video = Video(frames, torch.arange(6) / 10, 10.0, 10.0)
    job = sources.ClipJob("box", Path("box.mp4"), "train", num_pairs=1, method="dis_fast")
    row, content = sources.measure_motion(ClipRow("box", "box.mp4"), video, job)
    reliability = content.pairs[-1].reliability[0]
    covered, plain = (slice(24, 40), slice(48, 56)), (slice(48, 60), slice(8, 88))
    # what is covered has no flow, so some of the guesses there do return by chance
    assert (reliability[covered] == 0).float().mean() > 0.35 and reliability[covered].mean() < 0.4
    assert (reliability[plain] == 0).float().mean() < 0.02
    # the box covers 24 x 15 px, and flow is wrong around that as well
    assert 0.6 < row.inconsistent_fraction / (24 * 15 / (64 * 96)) < 3


def test_a_small_flame_is_not_still():
    displacement = torch.zeros(1, 160, 256)
    displacement[:, 60:72, 100:106] = 2.0  # .18 % of the pixels
    row = ClipRow("flame", "flame.mp4", confidence=0.9, **motion_metrics(displacement))
    times_s = torch.arange(150) / 30
    assert row.moving_fraction < 0.01 and sources._judged(row, displacement, times_s).status == "kept"
    assert sources._judged(row, displacement / 8, times_s).reason.startswith("still")


def test_calm_clips_are_selected_into_a_set_of_their_own(long_videos, tmp_path, capsys):
    flags = ["videos", str(long_videos), "--out", str(tmp_path / "all"), *FAST, "--clips-per-video", "9"]
    assert prepare_data.main(flags) == 0
    select = ["select", str(tmp_path / "all"), "--out", str(tmp_path / "some")]
    assert prepare_data.main(select) == 2 and "say what to choose" in capsys.readouterr().err
    chosen = [*select, "--max-mean-px", "3", "--min-confidence", "0.5", "--only", "shots-*"]
    assert prepare_data.main(chosen) == 0
    some = ClipSet(tmp_path / "some")
    assert {row.id for row in some.rows(status=("kept", "pairs_only"))} == {
        "shots-3s",
        "shots-8s",
        "shots-13s",
    }
    assert {row.reason for row in some.rows(status=("dropped",))} == {"not selected: the name matches no pattern"}
    assert some.spectrum("shots-3s")[0].shape == (16, 4, 64, 64)
    assert not (tmp_path / "some" / "first" / "short.png").exists()
    before = files_of(tmp_path / "some")
    assert prepare_data.main(chosen) == 0 and files_of(tmp_path / "some") == before
    assert prepare_data.main([*select, "--max-mean-px", "1"]) == 2 and "other settings" in capsys.readouterr().err
    calm = ["select", str(tmp_path / "all"), "--out", str(tmp_path / "calm"), "--max-mean-px", "0.5"]
    assert prepare_data.main(calm) == 2 and "no clip passes" in capsys.readouterr().err
    reasons = {row.reason for row in ClipSet(tmp_path / "calm").rows(status=("dropped",))}
    assert reasons and all(re.match(r"not selected: mean displacement \d\.\d\d px is above 0.5", r) for r in reasons)


def test_the_contact_sheet_shows_picture_motion_and_slice(prepared):
    clip_set = ClipSet(prepared[0])
    section = read_image(clip_set.folder / "slices" / "sway.png")  # (3, T, W)
    assert section.shape == (3, 50, 64)
    # 10 fps: the texture is furthest right at 1.25 s and furthest left at 3.75 s
    assert (section[:, 12] - section[:, 13]).abs().mean() < 0.3 * (section[:, 12] - section[:, 37]).abs().mean()
    sheet = read_image(clip_set.folder / "contact.png")
    # two clips side by side, three pictures each
    assert sheet.shape[-1] == 6 * 128 + 5 * 2 and sheet.shape[-2] == 128 + 11


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["videos", "VIDEOS"], "--out"),
        (["videos", "VIDEOS/none.mp4", "--out", "OUT"], "no such file or folder"),
        (["videos", "EMPTY", "--out", "OUT"], "no videos there"),
        (["videos", "VIDEOS", "--out", "OUT", "--method", "raft"], "--raft-weights FILE"),
        (["videos", "VIDEOS", "--out", "OUT", "--raft-weights", "x"], "--raft-weights: belongs to --method raft"),
        (["videos", "VIDEOS", "--out", "VIDEOS/notes.txt"], "notes.txt"),
        (["videos", "VIDEOS", "--out", "VIDEOS"], "not a clip set"),
        (["scenes", "--num", "2", "--out", "OUT", "--kinds", "cactus"], "--kinds cactus"),
        (["scenes", "--num", "0", "--out", "OUT"], "--num"),
    ],
)
def test_mistakes_are_one_line(videos, tmp_path, capsys, arguments, said):
    (tmp_path / "empty").mkdir()
    places = {"VIDEOS": str(videos), "EMPTY": str(tmp_path / "empty"), "OUT": str(tmp_path / "set")}
    for name, path in places.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    assert prepare_data.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "set").exists()


def test_scenes_are_rendered_with_a_contact_sheet(tmp_path, capsys):
    out = tmp_path / "scenes"
    arguments = ["scenes", "--num", "2", "--out", str(out), "--size", "64x48", "--pairs", "0", "--kinds", "flag,reeds"]
    assert prepare_data.main(arguments) == 0
    rows = ClipSet(out).rows()
    assert [row.source.split(":")[2] for row in rows] == ["flag", "reeds"]
    assert ClipSet(out).spectrum(rows[0].id)[0].shape == (16, 4, 48, 64)
    assert not ClipSet(out).has_pairs(rows[0].id) and (out / "contact.png").is_file()
    assert json.loads((out / "statistics.json").read_text())["settings"]["kinds"] == ["flag", "reeds"]


def test_killed_and_started_again_it_ends_with_the_same_set(videos, long_videos, tmp_path):
    shared = ["videos", str(videos), str(long_videos), *FAST, "--clips-per-video", "3", "--stride", "3"]
    assert prepare_data.main([*shared, "--out", str(tmp_path / "undisturbed")]) == 3
    out = tmp_path / "killed"
    flags = [*shared, "--out", str(out)]
    command = [sys.executable, "prepare_data.py", *flags, "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # the first clip of the video of several is written, the rows of that video are not
    while time.monotonic() < deadline and process.poll() is None and not list(out.glob("first/shots*.png")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    # the pipe ends when the last of its holders has ended: the workers do not outlive the script
    process.communicate(timeout=60)
    assert prepare_data.main(flags) == 3
    assert files_of(out) == files_of(tmp_path / "undisturbed")


def test_every_flow_method_can_be_asked_for():
    # The script has a list of its own, as --help must not wait for OpenCV and torch.
    for method in METHODS:
        assert prepare_data._parser().parse_args(["videos", "x", "--method", method]).method == method


def test_photographs_stand_behind_scenes(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    for index in range(2):
        write_image(tmp_path / "photos" / f"{index}.png", torch.rand(3, 40, 60, generator=generator))
    flags = ["scenes", "--num", "4", "--size", "64x48", "--pairs", "0", "--workers", "1"]
    photographs = ["--backgrounds", str(tmp_path / "photos"), "--textures", str(tmp_path / "photos" / "0.png")]
    assert prepare_data.main([*flags, "--out", str(tmp_path / "plain")]) == 0
    assert prepare_data.main([*flags, *photographs, "--out", str(tmp_path / "mixed")]) == 0
    pictures = [ClipSet(tmp_path / name) for name in ("plain", "mixed")]
    ids = [row.id for row in pictures[0].rows()]
    assert ids == [row.id for row in pictures[1].rows()]
    assert any(not torch.equal(pictures[0].first(id), pictures[1].first(id)) for id in ids)
    # The photographs belong to the settings: a set made without them is not extended with them.
    assert prepare_data.main([*flags, *photographs, "--out", str(tmp_path / "plain")]) == 2
    assert prepare_data.main([*flags, "--backgrounds", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "--backgrounds" in capsys.readouterr().err


def test_a_set_grows_by_a_video_of_the_same_name_and_knows_its_own_again(tmp_path, capsys):
    for index, name in enumerate("ab"):
        write_video(tmp_path / name / "clip.mp4", swaying(24, 12, seed=index), 12)
    out = tmp_path / "set"
    flags = [*FAST, "--workers", "1", "--out", str(out), "--split-from"]
    splits = tmp_path / "splits.csv"
    splits.write_text("path,split\nclip.mp4,train\n")
    flags.append(str(splits))
    assert prepare_data.main(["videos", str(tmp_path / "a"), str(tmp_path / "a" / "clip.mp4"), *flags]) == 0
    assert len(ClipSet(out).rows(status=ALL)) == 1
    # one after the other, together, and in the other order: two clips, and no more
    for paths in ("b",), ("a", "b"), ("b", "a"), ("a",):
        assert prepare_data.main(["videos", *(str(tmp_path / path) for path in paths), *flags]) == 0
        sources_of = [row.source for row in ClipSet(out).rows(status=ALL)]
        assert sorted(sources_of) == [str((tmp_path / name / "clip.mp4").resolve()) for name in "ab"]
    capsys.readouterr()
    splits.write_text("path,split\nclip.mp4,test\n")
    assert prepare_data.main(["videos", str(tmp_path / "a"), *flags]) == 2
    assert "is a train clip of this set" in capsys.readouterr().err


def test_no_video_and_no_source_is_in_both_splits(tmp_path):
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / name).touch()
    table = tmp_path / "clips.csv"
    table.write_text("path,start,split\none.mp4,0,train\none.mp4,1,test\n")
    with pytest.raises(ValueError, match="both splits"):
        list(find_clips([table], [], {}))
    table.write_text("path,split,source\none.mp4,train,park\ntwo.mp4,test,park\n")
    with pytest.raises(ValueError, match="park: is in both splits"):
        list(find_clips([table], [], {}))


def test_parts_of_a_video_that_start_close_together_have_names_of_their_own(tmp_path):
    (tmp_path / "one.mp4").touch()
    table = tmp_path / "clips.csv"
    parts = "one.mp4,1234.567,\none.mp4,1234.571,\none.mp4,0,2\none.mp4,0,5\none.mp4,0,5\n"
    table.write_text("path,start,seconds\n" + parts)
    ids = [job.id for job in find_clips([table], [], {})]
    assert ids[:2] == ["one_1234.567s", "one_1234.571s"]
    assert len(set(ids)) == len(ids) == 4


@pytest.fixture
def two_parts(videos, tmp_path):
    """Return a function that prepares parts of sway.mp4, lines start,seconds,source, into one set."""

    def prepare(*lines: str, name: str = "set", flags: tuple[str, ...] = ()) -> int:
        table = tmp_path / "parts.csv"
        table.write_text("path,split,start,seconds,source\n" + "".join(f"{videos}/sway.mp4,train,{x}\n" for x in lines))
        return prepare_data.main(["videos", str(table), "--out", str(tmp_path / name), *FAST, *flags])

    return prepare


def test_other_seconds_of_a_clip_are_refused_and_another_start_is_another_clip(two_parts, tmp_path, capsys):
    def rows() -> dict[tuple, int]:
        found = ClipSet(tmp_path / "set").rows(status=ALL)
        return {(row.start_s, row.limit_s): row.frames for row in found}

    assert two_parts("0,2,") == 0 and rows() == {(0.0, 2.0): 20}
    capsys.readouterr()
    for seconds in ("3", ""):
        for flags in ((), ("--dry-run",)):
            assert two_parts(f"0,{seconds},", flags=flags) == 2
            (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
            assert "from 0 s with seconds = 2, not" in line and "delete the row sway in clips.csv" in line
    assert rows() == {(0.0, 2.0): 20}
    assert two_parts("0,2,", "0,3,", "1.5,2,") == 0
    assert rows() == {(0.0, 2.0): 20, (0.0, 3.0): 30, (1.5, 2.0): 20}
    before = files_of(tmp_path / "set")
    assert two_parts("1.5,2,", "0,3,", "0,2,") == 0 and "3 of 3 videos are done" in capsys.readouterr().out
    assert two_parts("0,3,") == 0 and files_of(tmp_path / "set") == before
    # the row deleted, as the message says
    table = tmp_path / "set" / "clips.csv"
    table.write_text("".join(line + "\n" for line in table.read_text().splitlines() if not line.startswith("sway,")))
    assert two_parts("0,4,", "0,3,") == 0 and rows() == {(0.0, 3.0): 30, (0.0, 4.0): 40, (1.5, 2.0): 20}


def test_the_group_is_kept_and_holds_the_split_of_a_set_that_grows(two_parts, videos, tmp_path, capsys):
    assert two_parts("0,2,") == 0 and ClipSet(tmp_path / "set").rows(status=ALL)[0].group == ""
    # a set of before it was kept gains it
    assert two_parts("0,2,city  park") == 0 and ClipSet(tmp_path / "set").rows(status=ALL)[0].group == "city park"
    (tmp_path / "more.csv").write_text(f"path,split,source\n{videos}/short.mp4,test,city park\n")
    flags = ["videos", str(tmp_path / "more.csv"), "--out", str(tmp_path / "set"), *FAST]
    assert prepare_data.main(flags) == 2
    assert "city park: is a train clip of this set, not a test one" in capsys.readouterr().err


def test_parts_of_a_video_under_two_sources_keep_them(two_parts, tmp_path):
    def groups() -> dict[str, str]:
        return {row.id: row.group for row in ClipSet(tmp_path / "set").rows(status=ALL)}

    for _ in range(2):
        assert two_parts("0,2,garden", "2,2,park") == 0 and groups() == {"sway": "garden", "sway_2s": "park"}
    # later clips have that of their first, and other videos nothing of it
    job = sources.ClipJob("a", Path("/a.mp4"), "train", group="garden")
    table = [ClipRow("a", "/a.mp4"), ClipRow("a-5s", "/a.mp4", 5.0), ClipRow("a_5s", "/a.mp4", 5.0)]
    table += [ClipRow("a-7s", "/b.mp4", 7.0), ClipRow("b", "/b.mp4")]
    assert [row.id for row in name_groups([job], table)] == ["a", "a-5s"]


def test_a_folder_before_a_csv_does_not_hide_its_splits_and_sources(videos, tmp_path, caplog):
    table = tmp_path / "clips.csv"
    table.write_text(
        f"path,split,source,start\n{videos}/sway.mp4,test,garden,\n"
        f"{videos}/short.mp4,test,park,1\n{videos}/still.mp4,,wall,\n"
    )
    names = tmp_path / "names.csv"
    names.write_text("path,split\nbroken.mp4,train\nstill.mp4,test\n")
    for paths in ([videos, table], [table, videos]):
        jobs = {job.id: (job.split, job.group) for job in find_clips(paths, [names], {})}
        assert jobs == {
            "sway": ("test", "garden"),
            "short": ("test", "park"),
            "short_1s": ("test", "park"),
            "still": ("test", "wall"),
            "broken": ("train", ""),
        }
    assert not caplog.records  # each video has its split from one of the two


def test_a_name_with_two_spaces_is_known_again(videos, tmp_path, capsys):
    shutil.copy(videos / "short.mp4", tmp_path / "a  b.mp4")
    flags = ["videos", str(tmp_path / "a  b.mp4"), "--out", str(tmp_path / "set"), *FAST]
    assert prepare_data.main(flags) == 0 and prepare_data.main(flags) == 0
    assert "1 of 1 videos are done already" in capsys.readouterr().out
    assert [row.source for row in ClipSet(tmp_path / "set").rows(status=ALL)] == [str(tmp_path / "a  b.mp4")]


def test_the_later_clips_of_a_row_that_was_deleted_go_with_it(videos, long_videos, tmp_path):
    def ids() -> set[str]:
        return {row.id for row in ClipSet(tmp_path / "set").rows(status=ALL)}

    video, table = tmp_path / "one.mp4", tmp_path / "set" / "clips.csv"
    flags = ["videos", str(video), "--out", str(tmp_path / "set"), *FAST, "--clips-per-video", "3"]
    shutil.copy(long_videos / "shots.mp4", video)
    assert prepare_data.main(flags) == 0 and ids() == {"one", "one-3s", "one-8s"}
    table.write_text("".join(line + "\n" for line in table.read_text().splitlines() if not line.startswith("one,")))
    # another video now, of which nothing is kept
    shutil.copy(videos / "still.mp4", video)
    assert prepare_data.main(flags) == 0 and ids() == {"one"}
    assert not [path for path in files_of(tmp_path / "set") if "one" in path]


def test_a_video_that_could_not_be_read_may_change_its_split_and_seconds(videos, tmp_path):
    table = tmp_path / "clips.csv"
    shutil.copy(videos / "broken.mp4", tmp_path / "one.mp4")
    flags = ["videos", str(table), "--out", str(tmp_path / "set"), *FAST]
    table.write_text("path,split,source\none.mp4,train,park\n")
    assert prepare_data.main(flags) == 3
    shutil.copy(videos / "short.mp4", tmp_path / "one.mp4")
    table.write_text("path,split,source,seconds\none.mp4,test,park,1\n")
    assert prepare_data.main(flags) == 0
    (row,) = ClipSet(tmp_path / "set").rows(status=ALL)
    assert (row.id, row.split, row.group, row.limit_s) == ("one", "test", "park", 1.0)
    # two parts asked for do not both take its place
    bad = {"one": ClipRow("one", "/one.mp4", limit_s=9.0, status="dropped", reason="unreadable: x")}
    jobs = [sources.ClipJob("one", Path("/one.mp4"), "train", seconds=seconds) for seconds in (1.0, 2.0)]
    ids = [job.id for job in fit_to_set(jobs, bad)]
    assert ids[0] == "one" and re.fullmatch("one-[0-9a-f]{6}", ids[1])
    # a row that does not say how much it may use stands for all of the video
    with pytest.raises(ValueError, match=r"seconds = inf, not 1 \(inf: to the end\)"):
        fit_to_set(jobs, {"one": ClipRow("one", "/one.mp4")})


def test_other_raft_weights_for_the_same_set_are_refused(two_parts, tmp_path, monkeypatch, capsys):
    for name in ("estimate_flow", "estimate_backward_flow"):
        quick = getattr(sources, name)
        swapped = lambda *a, _quick=quick, **_: _quick(*a, method="dis_fast")  # noqa: E731
        monkeypatch.setattr(sources, name, swapped)
    monkeypatch.setattr(optical_flow, "estimate_flow", lambda *_, **__: None)
    weights = [tmp_path / name for name in ("a.pth", "b.pth")]
    for path in weights:
        path.write_bytes(path.name.encode())
    flags = [("--method", "raft", "--raft-weights", str(path)) for path in weights]
    assert two_parts("0,2,", flags=flags[0]) == 0
    shutil.copy(weights[0], tmp_path / "moved.pth")
    assert two_parts("0,2,", flags=(*flags[0][:3], str(tmp_path / "moved.pth"))) == 0
    capsys.readouterr()
    assert two_parts("1,2,", flags=flags[1]) == 2
    assert re.search(r"raft_weights was [0-9a-f]{16}, is [0-9a-f]{16}", capsys.readouterr().err)


def test_a_dry_run_refuses_what_the_run_would_refuse(videos, prepared, tmp_path, capsys):
    out, video = prepared[0], str(videos / "sway.mp4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    before = files_of(out)
    scenes = ["scenes", "--num", "2", "--size", "64x48"]
    for arguments, said in (
        (["videos", video, "--out", str(out), *FAST[2:]], "method was dis_fast, is dis"),
        (["videos", video, "--out", str(tmp_path / "full"), *FAST], "not a clip set"),
        (["videos", video, "--out", str(tmp_path / "x"), "--method", "raft"], "--raft-weights FILE"),
        (["videos", video, "--out", str(tmp_path / "x"), *FAST, "--device", "cuda:99"], "--device cuda:99"),
        ([*scenes, "--out", str(out)], "made_of was videos, is scenes"),
        ([*scenes, "--out", str(tmp_path / "full")], "not a clip set"),
    ):
        for flags in ([], ["--dry-run"]):
            assert prepare_data.main([*arguments, *flags]) == 2
            assert said in capsys.readouterr().err
    assert files_of(out) == before and not (tmp_path / "x").exists()


def test_videos_that_split_from_does_not_name_are_counted(videos, tmp_path, caplog):
    table, other = tmp_path / "splits.csv", tmp_path / "other.csv"
    table.write_text("file,split,source\nx/sway.mp4,test,garden\nunused.mp4,train,\n")
    other.write_text("file,split\nshort.mp4,train\n")
    jobs = {job.id: job for job in find_clips([videos], [table, other], {})}
    assert (jobs["sway"].split, jobs["sway"].group, jobs["short"].split) == ("test", "garden", "train")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"{table}, {other}: 2 of 4 videos are not named there, such as {videos / 'broken.mp4'};" in warning
    caplog.clear()
    # a CSV of videos is looked up as well, where it has no split of its own
    parts = tmp_path / "parts.csv"
    parts.write_text(f"path,split\n{videos}/sway.mp4,\n{videos}/broken.mp4,train\n")
    assert [job.split for job in find_clips([parts], [table], {})] == ["test", "train"]
    assert list(find_clips([videos], [], {})) and not caplog.records


def test_flags_that_may_be_repeated_do_not_swallow_the_path():
    parse = prepare_data._parser().parse_args
    args = parse(["videos", "--split-from", "a.csv", "--split-from", "b.csv", "clips", "more"])
    assert list(map(str, args.split_from)) == ["a.csv", "b.csv"] and list(map(str, args.paths)) == ["clips", "more"]
    args = parse(["select", "--only", "a*", "SET", "--only", "b*"])
    assert args.only == ["a*", "b*"] and str(args.set) == "SET"
    assert parse(["videos", "clips"]).split_from == [] == parse(["select", "SET"]).only


def test_the_report_of_a_large_set_is_short(tmp_path):
    with ClipSetWriter(tmp_path / "set", {}) as writer:
        for index in range(300):
            reason = "still: 0.1 % move" if index % 100 else "camera motion: 3.00 px"
            writer.add(ClipRow(f"clip{index:03d}", f"{index}.mp4", status="dropped", reason=reason))
        lines = describe_set(writer.finish())
    assert len(lines) == 13 and lines[0].split() == ["300", "dropped", "train"]
    assert sum("camera motion: 3.00" in line for line in lines) == 3  # the rare ones are among those listed
    assert lines[-2] == f"290 more were dropped; all are in {tmp_path / 'set' / 'clips.csv'}"
    assert lines[-1] == f"{tmp_path / 'set'}: 300 clips (297 still, 3 camera motion)"


def test_a_clip_is_still_by_px_of_the_default_grid_whatever_the_grid():
    times_s = torch.arange(150) / 30
    for size, scale in (((160, 256), 1.0), ((320, 512), 2.0), ((80, 128), 0.5)):
        for px, verdict in ((0.24, "dropped"), (0.26, "kept")):
            displacement = torch.full((1, *size), px * scale)
            row = ClipRow("a", "a.mp4", confidence=0.9, **motion_metrics(displacement))
            assert sources._judged(row, displacement, times_s).status == verdict
        for px, verdict in ((0.49, "dropped"), (0.51, "kept")):  # a small flame
            displacement = torch.zeros(1, *size)
            displacement[:, : size[0] // 20, : size[1] // 10] = px * scale
            row = ClipRow("a", "a.mp4", confidence=0.9, moving_fraction=0.005)
            assert sources._judged(row, displacement, times_s).status == verdict
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
