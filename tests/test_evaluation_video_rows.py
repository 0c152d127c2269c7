"""evaluate.py video --rows, and motion --fvd-network: frame 0 of clips moved by several motions, and distortions."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from result_tables import read_rows
from test_evaluation_video import Windows
from torch import Tensor

import evaluate
from data.clips import ClipSet
from evaluation import Report
from evaluation.clips import another_clip, clip_seed
from evaluation.flags import DISTORTIONS, video_row
from evaluation.motion import table as motion_table
from evaluation.video import sources
from evaluation.video.measure import VideoComparison
from evaluation.video.sources import RenderedVideos, blurred, shuffled
from models.motion_pipeline import MotionPipeline
from motion.motion_file import Motion

BINS = 16


class Still:
    """Stands in for a pipeline: predicts no motion, and keeps the seeds that it was asked with."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.unet = SimpleNamespace(config=SimpleNamespace(num_bins=BINS, period_s=5.0))

    def predict(self, image: Tensor, *, seed: int) -> Motion:
        self.seeds.append(seed)
        return Motion(torch.zeros(BINS, 4, *image.shape[-2:]), meta={"amplitude_limit_scale": 0.5})


@pytest.mark.parametrize("wanted", [True, False])
def test_another_clips_motion_is_missed_where_it_is_asked_for(
    scene_set: ClipSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wanted: bool
) -> None:
    monkeypatch.setattr(sources, "another_clip", lambda *_: None)
    rows = [("own", "average")] + [("other", "average")] * wanted
    videos = RenderedVideos(scene_set, scene_set.rows()[:2], rows, {}, {}, {"seed": 3}, crop=(32, 32), num_frames=2)
    assert videos.rows == ["own average"] and ("another clip's motion" in caplog.text) == wanted


def test_what_moves_frame_0(scene_set: ClipSet) -> None:
    clips, pipeline = scene_set.rows()[2:5], Still()
    rows = [(kind, "average") for kind in ("model", "own", "other")] + [("blur", 2), ("shuffle", 4)]
    size = tuple(scene_set.first(clips[0].id).shape[-2:])
    parts = (clips, rows, {"": pipeline}, {}, {"seed": 3})
    videos = RenderedVideos(scene_set, *parts, crop=size, num_frames=60)
    assert videos.rows == ["model average", "own average", "other average", "blur 2", "shuffle 4"]
    errors = dict.fromkeys(videos.rows, 0.0)
    comparison = VideoComparison(videos.rows, {})
    for clip in clips:
        found = videos.read(clip.id)
        assert list(found.generated) == videos.rows and found.source == clip.source
        assert {len(made) for made in found.generated.values()} == {len(found.real)} == {60}
        # without motion it is frame 0
        still = found.real[:1].expand_as(found.real)
        torch.testing.assert_close(found.generated["model average"], still, atol=1e-5, rtol=0)
        errors = {row: error + float((found.generated[row] - found.real).abs().mean()) for row, error in errors.items()}
        comparison.add(found)
    # splatted by its own motion it comes nearer the clip
    assert errors["own average"] < 0.8 * errors["model average"] < 0.8 * errors["other average"]
    assert pipeline.seeds == [clip_seed(3, clip.id) for clip in clips] and videos.limits == [0.5] * 3
    # PSNR where frame t shows what the real one does
    table = {row["row"]: row["psnr_db"] for row in comparison.table()}
    assert [name for name, value in table.items() if value] == ["own average", "blur 2", "frame 0 repeated"]
    assert table["own average"] > table["frame 0 repeated"] + 1


def test_distortions() -> None:
    frames = torch.zeros(10, 3, 8, 8)
    frames[:, 0] = torch.arange(10.0).view(10, 1, 1)
    order = shuffled(frames, 4)[:, 0, 0, 0].tolist()
    assert sorted(order[:4]) == [0, 1, 2, 3] and sorted(order[8:]) == [8, 9] and order != sorted(order)
    spot = torch.zeros(1, 3, 17, 17)
    spot[..., 8, 8] = 1
    line = blurred(spot, 2)[0, 0, 8]
    assert float(line[8] / line[10]) == pytest.approx(math.exp(0.5), rel=1e-4)  # two pixels are one deviation


def test_the_other_clip_is_a_training_clip_of_another_source(scene_set: ClipSet) -> None:
    def others(seed: int) -> list[str]:
        return [another_clip(scene_set, row, seed).id for row in scene_set.rows()]

    training = {row.id for row in scene_set.rows("train")}
    chosen = others(0)
    assert set(chosen) <= training and all(one != row.id for one, row in zip(chosen, scene_set.rows(), strict=True))
    assert chosen == others(0) and len({tuple(others(seed)) for seed in range(4)}) == 4


def test_the_table_of_rows(scene_set: ClipSet, checkpoint: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    torch.jit.save(torch.jit.script(Windows()), str(tmp_path / "video.pt"))
    flags = ["--split", "all", "--checkpoint", str(checkpoint), "--device", "cpu", "--steps", "2"]
    flags += ["--fvd-network", str(tmp_path / "video.pt")]
    table = ["video", *flags, "--crop", "48x32", "--frames", "32", "--slide-step", "0"]
    rows = ["--rows", "model:softmax", "own:softmax", "other:average", "--baseline-checkpoint", str(checkpoint)]
    data = ["--data", str(scene_set.folder), "--clips", "2"]
    assert evaluate.main([*table, *data, *rows, "--out", str(tmp_path / "out")]) == 0
    made = read_rows(tmp_path / "out")
    model, baseline = "model softmax", f"model softmax of {checkpoint}"
    assert list(made) == [model, baseline, "own softmax", "other average", "frame 0 repeated"]
    for row in made.values():
        assert (row["windows_16"], row["windows_32"], row["videos"]) == (4, 2, 2) and "fid" not in row
        assert 0 <= row["fvd_16_low"] <= row["fvd_16"] <= row["fvd_16_high"] and row["fvd_32"] > 0
    assert made[model]["fvd_16"] == made[baseline]["fvd_16"] != made["own softmax"]["fvd_16"]
    assert [name for name, row in made.items() if row["psnr_db"]] == ["own softmax", "frame 0 repeated"]
    assert "its amplitude is limited to " in capsys.readouterr().out
    # without a model's motion: distortions alone, for which no model is loaded
    monkeypatch.delattr(MotionPipeline, "from_pretrained")
    rows = ["--rows", "blur:1", "blur:10", "shuffle:8"]  # of 10 px: as wide as a crop of 32 px takes
    assert evaluate.main([*table, *data, *rows, "--out", str(tmp_path / "distorted")]) == 0
    made = read_rows(tmp_path / "distorted")
    assert list(made) == ["blur 1", "blur 10", "shuffle 8", "frame 0 repeated"]
    assert 0 < made["blur 1"]["fvd_16"] < made["blur 10"]["fvd_16"] and made["shuffle 8"]["fvd_16"] > 0
    printed = capsys.readouterr().out
    assert "amplitude" not in printed and "sampler" not in printed and "seed 0" in printed


def test_motion_makes_the_same_table_first(scene_set: ClipSet, checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    asked = {}

    def stop(report: Report, **options: object) -> bool:
        asked.update(options, out=report.out)
        raise KeyboardInterrupt

    monkeypatch.setattr(motion_table, "make_video_table", stop)
    flags = ["motion", "--data", str(scene_set.folder), "--checkpoint", str(checkpoint), "--wind", "calm"]
    flags += ["--fvd-network", "i3d:weights", "--out", str(tmp_path), "--device", "cpu"]
    assert evaluate.main(flags) == 130
    assert asked["rows"] == [("model", "softmax"), ("own", "softmax"), ("other", "softmax")]
    assert asked["fvd_network"] == ("i3d", Path("weights")) and asked["out"] == tmp_path / "fvd"
    assert asked["checkpoint"] == checkpoint and asked["wind_px"] is not None and asked["sampler"] == "dpm"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--baseline-checkpoint", "x"], "--baseline-checkpoint: belongs to --fvd-network NETWORK"),
        (["--fvd-network", "i3d:gone.safetensors"], "gone.safetensors: no such file"),
        (["--fvd-network", "NETWORK", "--baseline-checkpoint", "gone"], "gone: no such checkpoint folder"),
    ],
)
def test_mistakes_are_one_line(flags, message, scene_set: ClipSet, checkpoint: Path, tmp_path: Path, capsys) -> None:
    torch.jit.save(torch.jit.script(Windows()), str(tmp_path / "video.pt"))
    flags = [str(tmp_path / "video.pt") if flag == "NETWORK" else flag for flag in flags]
    flags += ["--data", str(scene_set.folder), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert evaluate.main(["motion", *flags]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / "out").exists()


def test_its_rows() -> None:
    assert set(DISTORTIONS) == set(sources.DISTORTIONS)
    assert [video_row(text) for text in ("own:average", "blur:2")] == [("own", "average"), ("blur", 2)]
    for wrong in ("own", "own:", "mine:softmax", "blur:softmax", "blur:0", "shuffle:999"):
        with pytest.raises(argparse.ArgumentTypeError, match="right: MOTION:SPLAT of model, own, other"):
            video_row(wrong)
