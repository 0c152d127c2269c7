"""evaluate.py placement: does predicted motion fall on what can move."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from result_tables import read_list, read_rows

import evaluate
from data.media import write_image
from models.motion_pipeline import MotionPipeline


@pytest.fixture
def left_half_moves(monkeypatch) -> list[int]:
    """Bin 1 of amplitude a in x: |F_t| = a |cos(2 pi t) - 1|, of which the mean over a period is a; returns seeds."""
    seeds = []

    def sample(self, images, *, seed, num_samples=1, **_):
        seeds.append(seed)
        spectra = torch.zeros(1, num_samples, 2, 4, *images.shape[-2:])
        spectra[..., 1, 0, :, : images.shape[-1] // 2] = 1.0
        spectra[..., 0, 0, :, : images.shape[-1] // 2] = -1.0
        return spectra

    monkeypatch.setattr(MotionPipeline, "__call__", sample)
    return seeds


def test_the_figures_are_those_of_the_masks(checkpoint, tmp_path, left_half_moves) -> None:
    """Of the first photograph a quarter of the static part moves; the second is of another source, and static."""
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
    for name in ("pine", "wall", "leaf"):
        write_image(tmp_path / "photos" / f"{name}.png", torch.rand(3, 160, 256))
        mask = np.zeros((80, 128), np.uint8)
        if name == "leaf":
            mask[:8, :8] = 255  # too small for a coverage, yet it can move
        if name == "pine":
            mask[:, :32] = 255
            mask[:, 32:43] = 128
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    write_image(tmp_path / "photos" / "no_mask.png", torch.rand(3, 160, 256))
    table = "file,split,source,subject\nphotos/pine.png,test,a/b,tree\nphotos/wall.png,test,c/d,static\n"
    table += "photos/leaf.png,test,c/d,tree\n"
    (tmp_path / "table.csv").write_text(table)
    write_image(tmp_path / "light.png", torch.rand(3, 64, 96))
    flags = ["--photos", tmp_path / "photos", "--masks", tmp_path / "masks", "--photo-table", tmp_path / "table.csv"]
    flags += ["--split", "test", "--static-images", f"{tmp_path / 'light.png'}:0.5,0,1,1"]
    flags += ["--checkpoint", checkpoint, "--device", "cpu", "--samples", "2", "--out", tmp_path / "out"]
    assert evaluate.main(["placement", *map(str, flags)]) == 0
    assert len(set(left_half_moves)) == 4 * 2  # each sample of each image has its own start noise
    by_image = read_list(tmp_path / "out" / "by_image")
    model = {row["image"]: row for row in by_image if row["row"] == "model"}
    assert set(model) == {"pine", "wall", "leaf", "light"}
    assert model["pine"]["coverage"] == 1 and model["pine"]["leak"] == pytest.approx(21 / 85, abs=0.01)
    assert model["wall"]["coverage"] is None and model["wall"]["leak"] == pytest.approx(0.5, abs=0.01)
    assert model["leaf"]["coverage"] is None and model["leaf"]["movable_fraction"] > 0
    rows = read_rows(tmp_path / "out")
    assert rows["model"]["leak"] == pytest.approx((21 / 85 + 0.5 + 0.5) / 3, abs=0.01)
    assert rows["everything moves"]["coverage"] == rows["everything moves"]["leak"] == 1
    assert rows["everything moves"]["ap"] == 0 and rows["image gradient"]["coverage"] is None
    subjects = read_rows(tmp_path / "out" / "by_subject")
    assert subjects["nothing can move"]["images"] == 2 and subjects["tree"]["coverage"] == 1
    assert "above 0.25 px of a grid" in (tmp_path / "out" / "by_subject" / "results.md").read_text()
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width >= 3 * 96


def test_scenes_are_sampled_alike_by_either_name(checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--scenes", "2", "--samples", "1", "--steps", "2", "--checkpoint", str(checkpoint), "--device", "cpu"]
    for name in ("still", "placement"):
        assert evaluate.main([name, *flags, "--out", str(tmp_path / name)]) == 0
    first, second = ((tmp_path / name / "results.json").read_text() for name in ("still", "placement"))
    assert first == second and json.loads(first)[0]["static_mean_px"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--static-images", "gone.jpg"], "gone.jpg: there is no such file"),
        (["--static-images", "WALL:0,0,2,1"], "right: FILE:LEFT,TOP,RIGHT,BOTTOM in fractions"),
        (["--static-images", "WALL:a,0,1,1"], "right: FILE:LEFT,TOP,RIGHT,BOTTOM in fractions"),
        (["--static-images", "WALL:0,0,0.1,1"], "right: sides of at least 32 px"),
        (["--photos", "photos"], "missing: --masks, for --photos"),
        (["--split", "test"], "--split: belongs to --photos DIR --masks DIR"),
        (["--photos", "photos", "--masks", "gone"], "gone: there is no such"),
        (["--photos", "photos", "--masks", "photos"], "has colour mode RGB; right: grey, 8 bits"),
        (["--scenes", "0"], "--scenes: expected a whole number above 0"),
        (["--checkpoint", "gone"], "no such checkpoint folder"),
    ],
)
def test_mistakes_are_one_line(flags, message, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("wall.png", "photos/wall.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / name, torch.rand(3, 64, 96))
    flags = [flag.replace("WALL", "wall.png") for flag in flags]
    assert evaluate.main(["still", *flags, "--out", "out"]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / "out").exists()
