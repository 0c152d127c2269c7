"""The lens under which evaluate.py splats compares the operators: it is invertible, and the figures tell holes."""

from __future__ import annotations

import pytest
import torch
from result_tables import read_list

import evaluate
from data.media import write_image
from evaluation.splats import MAGNIFICATION, compare_splats, lens_flow, pull_back


def test_the_lens_enlarges_the_middle_and_does_not_fold():
    flow = lens_flow((61, 81))
    x = flow[0, 0] + torch.arange(81.0)
    y = flow[0, 1] + torch.arange(61.0)[:, None]
    area = (x[1:-1, 2:] - x[1:-1, :-2]) * (y[2:, 1:-1] - y[:-2, 1:-1]) / 4
    area = area - (x[2:, 1:-1] - x[:-2, 1:-1]) * (y[1:-1, 2:] - y[1:-1, :-2]) / 4
    assert area.min() > 0
    # Central differences over 2 px see a little less than the magnification at the very centre.
    assert area[29, 39].item() == pytest.approx(MAGNIFICATION**2, rel=0.05)
    assert flow[..., 0, 0].abs().max() < 0.1


def test_pulling_back_undoes_the_lens():
    # A picture whose colour is its position: after the lens, the colour at p + F(p) is p.
    y, x = torch.meshgrid(torch.arange(61.0) / 60, torch.arange(81.0) / 80, indexing="ij")
    image = torch.stack([x, y, x])[None]
    moved, flow = pull_back(image), lens_flow((61, 81))
    position = torch.stack([x * 80 + flow[0, 0], y * 60 + flow[0, 1]], dim=-1)
    inside = (position[..., 0] < 80) & (position[..., 1] < 60) & (position > 0).all(-1)
    grid = position * torch.tensor([2 / 80, 2 / 60]) - 1
    found = torch.nn.functional.grid_sample(moved, grid[None], align_corners=True)
    assert (found - image)[0, :, inside].abs().max() < 0.02


def test_only_the_bilinear_footprints_leave_holes():
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(
        torch.rand(1, 3, 9, 12, generator=generator), size=(96, 128), mode="bicubic"
    )
    rows, pictures = compare_splats(image.clamp(0, 1), 0.45)
    holes = {row["row"]: row["holes_in_the_middle_percent"] for row in rows}
    psnr = {row["row"]: row["psnr_db"] for row in rows}
    assert holes["average"] == holes["softmax"] > 20
    assert holes["Gaussian, EWA"] == 0
    assert psnr["Gaussian, EWA"] > psnr["Gaussian, round"]
    assert list(pictures) == ["source", "exact", *psnr]


def test_the_sheet_and_the_table_are_written(tmp_path, photograph, capsys):
    out = tmp_path / "splats"
    assert evaluate.main(["splats", "--image", str(photograph), "--size", "64", "--out", str(out)]) == 0
    assert len(read_list(out)) == 4
    assert (out / "splats.png").stat().st_size > 5000
    assert "| average |" in capsys.readouterr().out


def test_a_picture_that_is_not_there(tmp_path, capsys):
    assert evaluate.main(["splats", "--image", str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err


def test_a_picture_that_every_operator_renders_without_error(tmp_path):
    black = torch.zeros(3, 40, 40)
    write_image(tmp_path / "black.png", black)
    assert evaluate.main(["splats", "--image", str(tmp_path / "black.png"), "--out", str(tmp_path / "out")]) == 0
    rows = read_list(tmp_path / "out")
    assert {row["psnr_db"] for row in rows} == {100.0}


def test_a_sigma_out_of_range(tmp_path, photograph, capsys):
    assert evaluate.main(["splats", "--image", str(photograph), "--sigma", "1e-25", "--out", str(tmp_path / "o")]) == 2
    assert "--sigma" in capsys.readouterr().err
