"""prepare_data.py end to end on tiny videos and scenes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from clip_sets import files_of
from videos import ALL, FAST, name_of, rows_by_name

import prepare_data
from cli.parser import Arguments
from data.clip_writer import ClipSetWriter
from data.clips import ClipRow, ClipSet
from data.media import read_image
from data.optical_flow import METHODS
from data.prepare_clip import read_clip
from data.visualisation import describe_set
from motion.spectrum import spectrum_to_flow

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory) -> tuple[Path, int]:
    out = tmp_path_factory.mktemp("sets") / "set"
    return out, prepare_data.main(["videos", str(videos), "--out", str(out), *FAST])


def test_each_video_gets_its_verdict_and_a_broken_one_does_not_stop_the_rest(prepared):
    out, code = prepared
    rows = rows_by_name(out)
    assert code == 3
    assert {name: row.status for name, row in rows.items()} == {
        "sway": "kept",
        "short": "pairs_only",
        "still": "dropped",
        "broken": "dropped",
    }
    assert rows["short"].reason.startswith("covers 2.0") and "needs 4.5 s" in rows["short"].reason
    assert rows["still"].reason.startswith("static: 0.00%") and rows["broken"].reason.startswith("unreadable: ")
    # where the texture is even, on crests and in valleys, no motion is to be seen
    assert rows["sway"].frames == 50 and rows["sway"].fps == 10.0 and rows["sway"].moving_fraction > 0.8
    # mean of |1.5 sin| is 0.95
    assert rows["sway"].median_flow_px == pytest.approx(1.5 * 2 / torch.pi, abs=0.12)
    assert (out / "contact.png").is_file()


def test_the_spectrum_is_that_of_the_sway(prepared):
    spectrum, confidence = ClipSet(prepared[0]).spectrum(rows_by_name(prepared[0])["sway"].id, 16)
    assert spectrum.shape == (16, 4, 64, 64) and confidence.mean() > 0.9
    flow = spectrum_to_flow(spectrum, torch.tensor([0.0, 0.25, 0.75]))[:, :, 12:-12, 12:-12]
    assert not flow[0].any()
    assert flow[1, 0].median() == pytest.approx(1.5, abs=0.15) and flow[2, 0].median() == pytest.approx(-1.5, abs=0.15)
    assert flow[1:, 1].abs().median() < 0.1
    # b_1 = 1.5, so im_x of bin 1 is -1.5
    assert spectrum[1, 1, 12:-12, 12:-12].median() == pytest.approx(-1.5, abs=0.15)


def test_pairs_are_spread_over_the_clip_and_warp_to_their_target(prepared):
    pairs, importance = ClipSet(prepared[0]).pairs(rows_by_name(prepared[0])["sway"].id)
    assert [pair.time_s for pair in pairs] == pytest.approx([0.8, 1.6, 2.4, 3.3, 4.1, 4.9], abs=0.051)
    assert importance.shape == (1, 64, 64)
    first = ClipSet(prepared[0]).first(rows_by_name(prepared[0])["sway"].id)
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
    assert re.search("gone-[0-9a-f]{8}: unreadable: ", capsys.readouterr().err)
    rows = rows_by_name(out)
    assert set(rows) == {"sway", "gone"}
    row = rows["sway"]
    assert (row.split, row.start_s, row.frames, row.status) == ("test", 1.5, 10, "pairs_only")
    assert rows["gone"].split == "train"


def test_a_dry_run_lists_what_would_be_kept_and_why_and_writes_nothing(videos, tmp_path, capsys):
    flags = ["videos", str(videos), "--out", str(tmp_path / "set"), *FAST, "--dry-run"]
    assert prepare_data.main(flags) == 3
    said = {name_of(line.split(": ")[0].split()[-1]): line for line in capsys.readouterr().out.splitlines()}
    assert "10 fps, from 0 s 50 frames, median" in said["sway"] and said["sway"].startswith("kept")
    assert said["short"].startswith("pairs_only") and "covers 2.0" in said["short"]
    assert said["still"].startswith("dropped") and "static: 0.00%" in said["still"]
    assert said["broken"].startswith("dropped") and "unreadable" in said["broken"]
    prepare_data.main([*flags, "--max-clips", "2"])
    listed = [name_of(line.split(": ")[0].split()[-1]) for line in capsys.readouterr().out.splitlines()[:-1]]
    assert len(listed) == 2 and set(listed) < set(said)
    assert not (tmp_path / "set").exists()


def test_a_moving_camera_is_dropped_with_its_px_also_in_a_dry_run(videos, tmp_path, capsys):
    flags = ["videos", str(videos / "sway.mp4"), "--out", str(tmp_path / "set"), *FAST[:-1], "0.75"]
    assert prepare_data.main([*flags, "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert prepare_data.main(flags) == 0
    row = ClipSet(tmp_path / "set").rows(status=ALL)[0]
    assert row.status == "dropped" and row.camera_px == pytest.approx(1.5, abs=0.15)
    # 0.75 px at 256 x 160 are 0.24 px at 64 x 64
    assert re.fullmatch(r"camera motion: 1.[3-6]\d px, at most 0.24 is allowed", row.reason) and row.reason in listed
    assert "1 camera motion" in capsys.readouterr().out


@pytest.fixture(scope="module")
def many_clips(long_videos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "many"
    flags = ["videos", str(long_videos), *FAST, "--clips-per-video", "9", "--stride", "4", "--out", str(out)]
    assert prepare_data.main(flags) == 0
    return out


def test_several_clips_of_a_video_never_cross_a_cut(long_videos, many_clips, tmp_path):
    clip_set = ClipSet(many_clips)
    rows = rows_by_name(many_clips)
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
    assert torch.equal(clip_set.first(rows["shots-3s"].id), first)

    assert prepare_data.main(["videos", str(long_videos), *FAST, "--out", str(tmp_path / "one")]) == 0
    rows = rows_by_name(tmp_path / "one")
    assert {name: row.status for name, row in rows.items()} == {
        "short": "pairs_only",
        "shots": "dropped",
        "shots-3s": "kept",
    }
    assert rows["shots"].reason.startswith("cut: at 3.00 s")


def test_calm_clips_are_selected_into_a_set_of_their_own(many_clips, tmp_path, capsys):
    select = ["select", str(many_clips), "--out", str(tmp_path / "some")]
    assert prepare_data.main(select) == 2 and "say what to choose" in capsys.readouterr().err
    chosen = [*select, "--max-mean-px", "5", "--min-confidence", "0.5", "--only", "shots-*s"]
    assert prepare_data.main(chosen) == 0
    some, later = ClipSet(tmp_path / "some"), {"shots-3s", "shots-7s", "shots-11s"}
    assert {name for name, row in rows_by_name(some.folder).items() if row.status != "dropped"} == later
    assert {row.reason for row in some.rows(status=("dropped",))} == {"not selected: the name matches no pattern"}
    assert some.spectrum(rows_by_name(some.folder)["shots-3s"].id)[0].shape == (16, 4, 64, 64)
    assert not list((tmp_path / "some" / "first").glob("short*.png"))
    before = files_of(tmp_path / "some")
    assert prepare_data.main(chosen) == 0 and files_of(tmp_path / "some") == before
    assert prepare_data.main([*select, "--max-mean-px", "1"]) == 2 and "other settings" in capsys.readouterr().err
    calm = ["select", str(many_clips), "--out", str(tmp_path / "calm"), "--max-mean-px", "0.5"]
    assert prepare_data.main(calm) == 2 and "no clip passes" in capsys.readouterr().err
    reasons = {row.reason for row in ClipSet(tmp_path / "calm").rows(status=("dropped",))}
    assert reasons and all(re.match(r"not selected: mean displacement \d\.\d\d px is above 0.5", r) for r in reasons)


def test_the_contact_sheet_shows_picture_motion_and_slice(prepared):
    clip_set = ClipSet(prepared[0])
    section = read_image(next(clip_set.folder.glob("slices/sway-*.png")))  # (3, T, W)
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
        (["videos", "VIDEOS/none.mp4", "--out", "OUT"], "none.mp4: there is no such file; give a video or"),
        (["videos", "EMPTY", "--out", "OUT"], "no videos there"),
        (["videos", "VIDEOS", "--out", "OUT", "--method", "raft"], "--raft-weights FILE"),
        (["videos", "VIDEOS", "--out", "OUT", "--raft-weights", "x"], "--raft-weights: belongs to --method raft"),
        (["videos", "VIDEOS", "--out", "VIDEOS/notes.txt"], "notes.txt"),
        (["videos", "VIDEOS", "--out", "VIDEOS"], "not a clip set"),
        (["scenes", "--num", "2", "--out", "OUT", "--kinds", "cactus"], "--kinds cactus"),
        (["scenes", "--num", "2", "--out", "OUT", "--size", "40x8"], "--size 40x8: right: at least 16 px"),
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
    arguments += ["--workers", "1"]
    assert prepare_data.main(arguments) == 0
    rows = ClipSet(out).rows()
    assert [row.source.split(":")[2] for row in rows] == ["flag", "reeds"]
    assert ClipSet(out).spectrum(rows[0].id)[0].shape == (16, 4, 48, 64)
    assert not ClipSet(out).has_pairs(rows[0].id) and (out / "contact.png").is_file()
    assert json.loads((out / "statistics.json").read_text())["settings"]["kinds"] == ["flag", "reeds"]


def test_killed_and_started_again_it_ends_with_the_same_set(videos, long_videos, tmp_path):
    paths = [videos / "broken.mp4", videos / "short.mp4", long_videos]
    shared = ["videos", *map(str, paths), *FAST, "--clips-per-video", "2", "--stride", "3"]
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
        assert prepare_data._parser().parse_args(["videos", "x", "--out", "y", "--method", method]).method == method


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
        (["videos", video, "--out", str(tmp_path / "x"), "--method", "pyflow"], "flow method pyflow: not built"),
        (["videos", video, "--out", str(tmp_path / "x"), *FAST, "--device", "cuda:99"], "--device cuda:99"),
        ([*scenes, "--out", str(out)], "made_of was videos, is scenes"),
        ([*scenes, "--out", str(tmp_path / "full")], "not a clip set"),
    ):
        for flags in ([], ["--dry-run"]):
            assert prepare_data.main([*arguments, *flags]) == 2
            assert said in capsys.readouterr().err
    assert files_of(out) == before and not (tmp_path / "x").exists()


def test_flags_that_may_be_repeated_do_not_swallow_the_path():
    def parse(*words: str) -> Arguments:
        return prepare_data._parser().parse_args([*words, "--out", "out"])

    args = parse("videos", "--split-from", "a.csv", "--split-from", "b.csv", "clips", "more")
    assert list(map(str, args.split_from)) == ["a.csv", "b.csv"] and list(map(str, args.paths)) == ["clips", "more"]
    args = parse("select", "--only", "a*", "SET", "--only", "b*")
    assert args.only == ["a*", "b*"] and str(args.set) == "SET"
    assert parse("videos", "clips").split_from == [] == parse("select", "SET").only


def test_the_report_of_a_large_set_is_short_and_names_every_cause(tmp_path):
    with ClipSetWriter(tmp_path / "set", {}) as writer:
        for index in range(300):
            reason = "static: 0.1 % move" if index % 100 else "camera motion: 3.00 px"
            writer.add(ClipRow(f"clip{index:03d}", f"{index}.mp4", status="dropped", reason=reason))
        lines = describe_set(writer.finish())
    assert len(lines) == 4 and lines[0].split() == ["300", "dropped", "train"]
    assert [line.split(": ", 1)[1] for line in lines[1:3]] == ["camera motion: 3.00 px", "static: 0.1 % move"]
    assert lines[-1] == f"{tmp_path / 'set'}: 300 clips (297 static, 3 camera motion)"
