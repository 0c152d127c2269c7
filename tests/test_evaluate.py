"""evaluate.py frames: figures that can be computed by hand, where frames and flow come from, the flow's cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from result_tables import read_list, read_rows

import evaluate
import evaluation.clips as evaluation_clips
from data.clip_writer import ClipContent, ClipSetWriter
from data.clips import PAIRS_ONLY, ClipRow, ClipSet, ClipSetError, Pair, choose_rows
from data.media import write_image
from data.prepare_clip import ClipJob, prepare_video
from data.scenes.render_set import render_scene_set
from data.video_writer import VideoWriter
from evaluation.clips import open_clip
from evaluation.frames import table as frames_table
from evaluation.frames.measure import remap
from evaluation.motion import table as motion_table
from evaluation.per_clip import measure_each
from models.frame_synthesis import FrameSynthesis

SPLATS = ["average splat", "softmax splat", "gaussian splat EWA", "gaussian splat iso", "Gaussian importance splat"]
ROWS = [*SPLATS, "OpenCV remap", "frame 0 repeated"]
SIZE = (32, 48)


def static_pair(first: torch.Tensor, brighter: float) -> Pair:
    return Pair(first + brighter, torch.zeros(2, *SIZE), torch.ones(1, *SIZE), 1.0)


@pytest.fixture
def hand_made_set(tmp_path: Path) -> Path:
    """Clips whose sources are gone and whose flow is 0: pairs equal frame 0, or are brighter by 51/255 = 0.2."""
    first = torch.randint(0, 128, (3, *SIZE), generator=torch.Generator().manual_seed(0)) / 255
    with ClipSetWriter(tmp_path / "set", {"made_of": "test"}) as writer:
        for name, steps in {"bright": (0.2, 0.2), "half": (0.0, 0.2), "still": (0.0, 0.0)}.items():
            pairs = tuple(static_pair(first, step) for step in steps)
            row = ClipRow(name, str(tmp_path / "gone.mp4"), split="test", status=PAIRS_ONLY)
            writer.write(row, ClipContent(first, pairs=pairs, importance=torch.ones(1, *SIZE)))
        writer.finish()
    return tmp_path / "set"


def make_checkpoint(folder: Path) -> Path:
    for operator in ("softmax", "gaussian"):
        model = FrameSynthesis(operator=operator, channels=(4, 8, 12), columns=2)
        model.save_pretrained(folder / f"frame_synthesis_{operator}")
    return folder


@pytest.mark.parametrize(
    ("module", "flags"),
    [(frames_table, ["--every", "100"]), (motion_table, ["--samples", "1", "--steps", "2", "--device", "cpu"])],
)
def test_the_note_names_the_devices_that_measured(module, flags, scene_set, checkpoint, tmp_path, monkeypatch) -> None:
    def on_a_worker(*arguments, **options):
        measured, failed = measure_each(*arguments, **options)
        return [one | {"device": "cuda:1"} for one in measured], failed

    monkeypatch.setattr(module, "measure_each", on_a_worker)
    flags = [*flags, "--data", str(scene_set.folder), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    assert evaluate.main([module.__name__.split(".")[1], *flags]) == 0
    assert "cuda:1" in (tmp_path / "results.md").read_text()


def test_figures_by_hand(hand_made_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint, out = make_checkpoint(tmp_path / "models"), tmp_path / "out"
    flags = ["--data", str(hand_made_set), "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    assert evaluate.main(["frames", *flags]) == 0
    rows = read_rows(out)
    assert list(rows) == ["model softmax", "model gaussian EWA", *ROWS]
    # Flow 0: every row is frame 0. Mean squared error 0.04 in a brighter frame, so 13.979 dB; pooled over two frames
    # of "half" 0.02, 16.990 dB, and by frame (100 + 13.979) / 2.
    bright, half = -10 * np.log10(0.04), -10 * np.log10(0.02)
    for row in rows.values():
        assert row["psnr_db"] == pytest.approx((bright + half + 100) / 3, abs=1e-3)
        assert row["psnr_frames_db"] == pytest.approx((bright + (100 + bright) / 2 + 100) / 3, abs=1e-3)
        assert (row["sequences"], row["frames"], row["lpips_alex"]) == (3, 6, None)
    by_clip = read_list(out / "by_clip")
    figures = {row["clip"]: row for row in by_clip if row["row"] == "frame 0 repeated"}
    assert figures["still"]["psnr_db"] == 100 and figures["still"]["ssim"] == pytest.approx(1)
    assert figures["half"]["psnr_db"] == pytest.approx(half, abs=1e-3)
    printed = capsys.readouterr()
    assert "| frame 0 repeated |" in printed.out and "evaluate.py frames --data" in printed.out
    assert "stored pairs only" in (out / "results.md").read_text() and (out / "results.csv").is_file()


def test_clips_are_drawn_by_the_seed(hand_made_set: Path) -> None:
    clip_set = ClipSet(hand_made_set)
    assert [row.id for row in choose_rows(clip_set, "test", None, 0, pairs=True)] == ["bright", "half", "still"]
    drawn = {tuple(row.id for row in choose_rows(clip_set, "test", 1, seed, pairs=True)) for seed in range(20)}
    assert drawn == {("bright",), ("half",), ("still",)}


def test_scenes_are_rendered_with_their_exact_flow(tmp_path: Path) -> None:
    clip_set = render_scene_set(tmp_path / "set", 6, size=(48, 64), pairs=1)
    (row,) = choose_rows(clip_set, "test", None, 0, pairs=True)
    clip = open_clip(clip_set, row, 60)
    assert (clip.origin, len(clip.times_s)) == ("scene", 2)
    targets, flow = clip.read(slice(None))
    scene = evaluation_clips.make_scene(int(row.source.split(":")[1]), size=(48, 64))
    assert torch.equal(flow, torch.stack([scene.flow(2.0), scene.flow(4.0)]))
    assert torch.equal(targets[1], scene.frame(4.0))
    assert len(open_clip(clip_set, row, 25).times_s) == len(open_clip(clip_set, row, 25).read(slice(None))[1]) == 5
    # twice as strong: another frame, of the same frame 0
    twice = open_clip(clip_set, row, 60, 2.0)
    magnified, double = twice.read(slice(None))
    assert torch.equal(twice.first, clip.first) and torch.equal(twice.importance, 2 * clip.importance)
    torch.testing.assert_close(double, 2 * flow)
    assert float((magnified - clip.first).abs().mean()) > 1.1 * float((targets - clip.first).abs().mean()) > 0


def test_scenes_that_are_drawn_otherwise_now_are_measured_by_their_pairs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, pairs in (("set", 1), ("bare", 0)):
        clip_set = render_scene_set(tmp_path / name, 3, size=(32, 48), pairs=pairs)
        rows = choose_rows(clip_set, "train", None, 0, pairs=True)
        for row in rows[:2]:
            write_image(clip_set.folder / "first" / f"{row.id}.png", 1 - clip_set.first(row.id))
        if pairs:
            assert [open_clip(clip_set, row, 60).origin for row in rows] == ["pairs", "pairs", "scene"]
    assert "this version draws another scene:" in caplog.text
    with pytest.raises(ClipSetError, match="no stored pairs, and its source fails: this version draws another scene:"):
        open_clip(clip_set, rows[0], 60)


def make_pan_set(folder: Path, video: Path) -> ClipSet:
    """Eight frames of a texture that goes 1 px to the right each frame, as a clip of the test split."""
    texture = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    picture = torch.nn.functional.interpolate(texture, size=(64, 96), mode="bicubic").clamp(0, 1)[0]
    with VideoWriter(video, fps=30) as writer:
        for index in range(8):
            writer.write(picture.roll(index, -1))
    with ClipSetWriter(folder, {"made_of": "videos", "fps": 30.0, "method": "dis_fast"}) as writer:
        # a pan is what these tests want
        job = ClipJob("pan", video, "test", area=64 * 96, method="dis_fast", num_pairs=2, max_camera_px=1000)
        writer.add(*prepare_video(folder, job))
        return writer.finish()


def test_videos_are_read_again_and_their_flow_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = tmp_path / "pan.mp4"
    clip_set = make_pan_set(tmp_path / "set", video)
    (row,) = choose_rows(clip_set, "test", None, 0, pairs=True)

    asked, still = [], []
    estimate, show = evaluation_clips.estimate_flow, evaluation_clips.visible_flow

    def spy(first: torch.Tensor, frames: torch.Tensor, **options) -> torch.Tensor:
        asked.append((len(frames), options["method"]))
        still.append(options["static"])
        return estimate(first, frames, **options)

    def spy_on_visible(*maps: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
        still.append(options["static"])
        return show(*maps, **options)

    monkeypatch.setattr(evaluation_clips, "estimate_flow", spy)
    monkeypatch.setattr(evaluation_clips, "visible_flow", spy_on_visible)
    # what rests is told by the whole clip, so that no frame's flow depends on the others that are asked for
    never = torch.zeros(1, 64, 96, dtype=torch.bool)
    never[:, :10] = True
    monkeypatch.setattr(evaluation_clips, "static_pixels", lambda first, frames: never if len(frames) == 8 else ~never)
    clip = open_clip(clip_set, row, 3)
    assert (clip.origin, len(clip.times_s)) == ("video", 2)
    with pytest.raises(ClipSetError, match="clip pan is no rendered scene: only these can be drawn with magnified"):
        open_clip(clip_set, row, 3, 2.0)
    targets, flow = clip.read(slice(None))
    moved = flow[:, 0, 20:44, 30:66].flatten(1).median(1).values
    torch.testing.assert_close(moved, torch.tensor([3.0, 6.0]), atol=0.3, rtol=0)
    again = open_clip(clip_set, row, 3)
    assert all(map(torch.equal, again.read(slice(None)), (targets, flow)))
    assert len(open_clip(clip_set, row, 1).times_s) == 7
    assert asked == [(2, "dis_fast"), (5, "dis_fast")]  # the second time from the cache, the third only what it lacks
    assert len(still) == 4 and all(mask is never for mask in still)

    with VideoWriter(video, fps=30) as writer:
        writer.write(torch.zeros(8, 3, 64, 96))
    assert open_clip(clip_set, row, 3).origin == "pairs"


def test_raft_weights_reach_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    weights = tmp_path / "raft.pth"
    clip_set = make_pan_set(tmp_path / "set", tmp_path / "pan.mp4")
    monkeypatch.setattr(
        evaluation_clips, "_settings", lambda clip_set: {**clip_set.statistics["settings"], "method": "raft"}
    )
    flags = ["frames", "--data", str(clip_set.folder), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert evaluate.main(flags) == 2
    assert "needs the file of torchvision's RAFT weights" in capsys.readouterr().err.strip().splitlines()[-1]
    assert evaluate.main([*flags, "--raft-weights", str(weights)]) == 2
    assert "raft.pth: no such file" in capsys.readouterr().err.strip().splitlines()[-1]

    asked = []

    def estimate(first: torch.Tensor, frames: torch.Tensor, **options) -> torch.Tensor:
        asked.append((len(frames), options["method"], options["weights"]))
        return torch.zeros(len(frames), 2, *first.shape[1:])

    monkeypatch.setattr(evaluation_clips, "estimate_flow", estimate)
    checkpoint = make_checkpoint(tmp_path / "models")
    assert evaluate.main([*flags, "--raft-weights", str(weights), "--checkpoint", str(checkpoint)]) == 0
    assert asked == [(7, "raft", weights)]


def test_remap_reads_against_the_flow() -> None:
    image = torch.arange(48.0).reshape(1, 6, 8).expand(3, 6, 8) / 48
    flow = torch.zeros(2, 2, 6, 8)
    flow[1, 0], flow[1, 1] = 2.0, -1.0
    frames = remap(image, flow)
    assert torch.equal(frames[0], image)
    torch.testing.assert_close(frames[1, :, :5, 2:], image[:, 1:, :-2])
    assert torch.equal(frames[1, :, 5, 2:], image[:, 5, :-2])  # the border is held


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["frames"], "missing: --data"),
        (["frames", "--data", "nowhere"], "nowhere: not a clip set"),
        (["frames", "--data", "SET", "--split", "train"], "no clip of split train"),
        (["frames", "--data", "SET", "--checkpoint", "nowhere"], "--checkpoint nowhere: no frame synthesis model"),
        (["frames", "--data", "SET", "--lpips-weights", "no.pth"], "no.pth: no such file"),
        (["frames", "--data", "SET", "--precision", "fp16", "--device", "cpu"], "--precision fp16: needs a GPU"),
        (["pictures"], "right: frames, splats, motion, placement, still, video, ablation, data, sources, flow"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, hand_made_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [str(hand_made_set) if flag == "SET" else flag for flag in flags]
    out = ["--out", str(tmp_path / "out")] if flags[0] == "frames" else []
    assert evaluate.main([*flags, *out]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
