"""evaluate.py still: what is predicted where nothing can move."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import evaluate
from data.media import write_image
from models.motion_pipeline import MotionPipeline


def test_the_figures_are_those_of_the_samples(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """Bin 1 of amplitude a in x: |F_t| = a |cos(2 pi t) - 1|, of which the mean over a period is a."""

    def sample(self, images, *, num_samples, **_):
        amplitude = 0.1 if images.mean() < 0.25 else 0.5
        spectra = torch.zeros(1, num_samples, 2, 4, *images.shape[-2:])
        spectra[:, :, 1, 0], spectra[:, :, 0, 0] = amplitude, -amplitude
        spectra[:, 1:] *= 2
        return spectra

    monkeypatch.setattr(MotionPipeline, "__call__", sample)
    write_image(tmp_path / "dark.png", torch.full((3, 64, 96), 0.2))
    light = torch.full((3, 64, 96), 0.2)
    light[:, 32:, 48:] = 0.8
    write_image(tmp_path / "light.png", light)
    pictures = ["--pictures", str(tmp_path / "dark.png"), f"{tmp_path / 'light.png'}:0.5,0.5,1,1"]
    flags = ["--scenes", "1", "--samples", "2", "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert evaluate.main(["still", *flags, *pictures, "--out", str(tmp_path / "out")]) == 0
    rows = {row["row"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())}
    assert rows["dark"]["mean_motion_px"] == pytest.approx(0.15, abs=1e-3)
    assert rows["light"]["mean_motion_px"] == pytest.approx(0.75, abs=1e-3)
    assert rows["light"]["largest_motion_px"] == pytest.approx(1.0, abs=1e-3)
    mean = rows["mean of 2, photograph"]
    assert mean["mean_motion_px"] == pytest.approx(0.45, abs=1e-3)
    assert mean["highest_mean_px"] == pytest.approx(0.75, abs=1e-3)
    assert rows["scene 900000000"]["origin"] == "rendered"


def test_a_trained_format_checkpoint_is_sampled(checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--scenes", "2", "--samples", "1", "--steps", "2", "--checkpoint", str(checkpoint), "--device", "cpu"]
    for name in ("one", "two"):
        assert evaluate.main(["still", *flags, "--out", str(tmp_path / name)]) == 0
    first, second = ((tmp_path / name / "results.json").read_text() for name in ("one", "two"))
    assert first == second and json.loads(first)[0]["mean_motion_px"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pictures", "gone.jpg"], "gone.jpg: there is no such file"),
        (["--pictures", "WALL:0,0,2,1"], "right: FILE:LEFT,TOP,RIGHT,BOTTOM in fractions"),
        (["--pictures", "WALL:a,0,1,1"], "right: FILE:LEFT,TOP,RIGHT,BOTTOM in fractions"),
        (["--pictures", "WALL:0,0,0.1,1"], "right: 32 px"),
        (["--scenes", "0"], "--scenes: expected a whole number above 0"),
        (["--checkpoint", "gone"], "no such checkpoint folder"),
    ],
)
def test_mistakes_are_one_line(flags, message, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "wall.png", torch.rand(3, 64, 96))
    flags = [flag.replace("WALL", "wall.png") for flag in flags]
    assert evaluate.main(["still", *flags, "--out", "out"]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / "out").exists()
