"""evaluate.py motion --fvd-network: frame 0 of clips moved by several motions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import evaluate
from data.clips import ClipSet
from evaluation.motion.measure import another_clip
from evaluation.motion.videos import MotionVideos
from evaluation.video.sources import clip_seed
from motion.motion_file import Motion

BINS = 16


class Windows(nn.Module):
    """(N, 3, T, H, W) -> (N, 4); its kernels reach over three frames."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 4, 3, stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3, 4))


class Still:
    """Stands in for a pipeline: predicts no motion, and keeps the seeds that it was asked with."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.unet = SimpleNamespace(config=SimpleNamespace(num_bins=BINS, period_s=5.0))

    def predict(self, image: Tensor, *, seed: int) -> Motion:
        self.seeds.append(seed)
        return Motion(torch.zeros(BINS, 4, *image.shape[-2:]), meta={"amplitude_limit_scale": 0.5})


def test_what_moves_frame_0(scene_set: ClipSet) -> None:
    clips, pipeline = scene_set.rows()[2:5], Still()
    videos = MotionVideos(scene_set, clips, {"model": pipeline}, None, {"seed": 3})
    errors = dict.fromkeys(["model", "the clip's own motion", "another clip's motion"], 0.0)
    assert videos.rows == list(errors)
    for clip in clips:
        found = videos.read(clip.id)
        assert list(found.generated) == videos.rows and found.source == clip.source
        assert {len(made) for made in found.generated.values()} == {len(found.real)} == {150}
        # without motion it is frame 0
        torch.testing.assert_close(found.generated["model"], found.real[:1].expand_as(found.real), atol=1e-5, rtol=0)
        errors = {row: error + float((found.generated[row] - found.real).abs().mean()) for row, error in errors.items()}
    # splatted by its own motion it comes nearer the clip
    assert errors["the clip's own motion"] < 0.8 * errors["model"] < 0.8 * errors["another clip's motion"]
    assert pipeline.seeds == [clip_seed(3, clip.id) for clip in clips] and videos.limits == [0.5] * 3


def test_the_other_clip_is_a_training_clip_of_another_source(scene_set: ClipSet) -> None:
    def others(seed: int) -> list[str]:
        return [another_clip(scene_set, row, seed).id for row in scene_set.rows()]

    training = {row.id for row in scene_set.rows("train")}
    chosen = others(0)
    assert set(chosen) <= training and all(one != row.id for one, row in zip(chosen, scene_set.rows(), strict=True))
    assert chosen == others(0) and len({tuple(others(seed)) for seed in range(4)}) == 4


def test_the_table_of_fvd(scene_set: ClipSet, checkpoint: Path, tmp_path: Path, capsys) -> None:
    torch.jit.save(torch.jit.script(Windows()), str(tmp_path / "video.pt"))
    flags = ["motion", "--data", str(scene_set.folder), "--checkpoint", str(checkpoint), "--device", "cpu"]
    flags += ["--samples", "1", "--steps", "2", "--split", "all", "--clips", "2", "--out", str(tmp_path / "out")]
    fvd = ["--fvd-network", str(tmp_path / "video.pt")]
    assert evaluate.main([*flags, *fvd, "--baseline-checkpoint", str(checkpoint)]) == 0
    table = json.loads((tmp_path / "out" / "fvd" / "results.json").read_text())
    rows = {row["row"]: row for row in table}
    baseline = f"model of {checkpoint}"
    assert list(rows) == ["model", baseline, "the clip's own motion", "another clip's motion", "frame 0 repeated"]
    for row in table:
        assert (row["windows_16"], row["windows_32"], row["videos"]) == (18, 8, 2) and "fid" not in row
        assert 0 <= row["fvd_16_low"] <= row["fvd_16"] <= row["fvd_16_high"] and row["fvd_32"] > 0
    assert rows["model"]["fvd_16"] == rows[baseline]["fvd_16"] != rows["the clip's own motion"]["fvd_16"]
    assert "amplitude limit: " in capsys.readouterr().out

    # a source that is gone costs its clip, and is named
    by_clip = json.loads((tmp_path / "out" / "by_clip" / "results.json").read_text())
    gone = next(row for row in scene_set.rows() if row.id == by_clip[0]["clip"])
    copied = shutil.copytree(scene_set.folder, tmp_path / "set")
    text = (copied / "clips.csv").read_text().replace(gone.source, "gone.mp4")
    (copied / "clips.csv").write_text(text)
    assert evaluate.main([*flags, *fvd, "--data", str(copied)]) == 3
    assert f"left out as not readable 1: {gone.id}" in capsys.readouterr().out
    (copied / "clips.csv").write_text(text.replace("scene:", "gone:"))
    assert evaluate.main([*flags, *fvd, "--data", str(copied)]) == 2
    message = f"--data {copied}: the source of none of its 2 clips can be read"
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


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
