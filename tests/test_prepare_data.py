"""prepare_data.py end to end on tiny videos and scenes, and the reading of clips it rests on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import prepare_data
from data.clips import ClipSet
from data.sources import read_clip, repeated_frames
from data.video_writer import VideoWriter
from motion.spectrum import spectrum_to_flow

ROOT = Path(__file__).resolve().parent.parent
FAST = ["--method", "dis_fast", "--size", "64x64"]
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


def write_video(path: Path, frames: torch.Tensor, fps: float) -> Path:
    with VideoWriter(path, fps=fps) as writer:
        writer.write(frames)
    return path


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
    assert rows["sway"].frames == 50 and rows["sway"].fps == 10.0 and rows["sway"].moving_fraction > 0.9
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
    assert "3 of 4 clips are done already" in capsys.readouterr().out  # the unreadable one is tried again
    assert files_of(out) == before
    assert prepare_data.main(["videos", str(videos), "--out", str(tmp_path / "two"), *FAST, "--workers", "2"]) == 3
    assert files_of(tmp_path / "two") == before


def test_other_settings_for_the_same_set_are_refused(videos, prepared, capsys):
    assert prepare_data.main(["videos", str(videos), "--out", str(prepared[0]), "--size", "64x64"]) == 2
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
    jobs = list(prepare_data.find_clips([table], [], {}))
    splits = [job.split for job in jobs]
    assert all(len({*splits[i : i + 4]}) == 1 for i in range(0, 400, 4))
    assert 4 <= splits[::4].count("test") <= 20
    known = tmp_path / "known.csv"
    known.write_text("file,split\nelsewhere/sway.mp4,test\nshort.mp4,train\n")
    jobs = {job.id: job.split for job in prepare_data.find_clips([videos], [known], {})}
    assert jobs["sway"] == "test" and jobs["short"] == "train"


def test_equal_names_in_two_folders_get_ids_of_their_own(videos, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sway.mp4").write_bytes(b"x")
    (tmp_path / "b" / "a b#.MP4").write_bytes(b"x")
    ids = [job.id for job in prepare_data.find_clips([videos, tmp_path / "b"], [], {})]
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


def test_a_dry_run_lists_and_writes_nothing(videos, tmp_path, capsys):
    assert prepare_data.main(["videos", str(videos), "--out", str(tmp_path / "set"), "--dry-run"]) == 3
    said = capsys.readouterr().out
    assert "sway: 64x64 10 fps 5.00 s" in said and "broken: unreadable" in said
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["videos", "VIDEOS"], "--out"),
        (["videos", "VIDEOS/none.mp4", "--out", "OUT"], "no such file or folder"),
        (["videos", "EMPTY", "--out", "OUT"], "no videos there"),
        (["videos", "VIDEOS", "--out", "OUT", "--method", "raft"], "--raft-weights FILE"),
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


def test_killed_and_started_again_it_ends_with_the_same_set(prepared, videos, tmp_path):
    out = tmp_path / "set"
    flags = ["videos", str(videos), "--out", str(out), *FAST]
    command = [sys.executable, "prepare_data.py", *flags, "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not list(out.glob("first/*.png")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    # the pipe ends when the last of its holders has ended: the workers do not outlive the script
    process.communicate(timeout=30)
    assert prepare_data.main(flags) == 3
    assert files_of(out) == files_of(prepared[0])
