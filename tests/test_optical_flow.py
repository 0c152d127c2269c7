"""Optical flow: accuracy on known shifts, unseen flow zeroed, reliability, and backends that cannot run."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from data import optical_flow
from data.optical_flow import (
    METHODS,
    FlowError,
    estimate_backward_flow,
    estimate_flow,
    forward_backward_error,
    refine_flow,
    visible_flow,
)


def smooth_texture(height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 5, width // 5, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def shifted(image: torch.Tensor, dx: float, dy: float) -> torch.Tensor:
    """What frame t looks like when every point moved by (dx, dy): I_t(p) = I_0(p - d)."""
    height, width = image.shape[1:]
    x = (torch.arange(width) - dx).expand(height, width)
    y = (torch.arange(height) - dy)[:, None].expand(height, width)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)[None]
    return F.grid_sample(image[None], grid, mode="bicubic", padding_mode="border", align_corners=True)[0].clamp(0, 1)


@pytest.mark.parametrize(
    ("method", "tolerance"), [("dis", 0.1), ("dis_fast", 0.1), ("dis_x2", 0.1), ("farneback", 0.25)]
)
def test_a_known_shift_is_found_with_its_direction(method, tolerance):
    first = smooth_texture()
    shifts = [(0.0, 0.0), (1.5, -0.75), (-2.25, 0.5)]  # asymmetric: swapped axes or signs fail
    flow = estimate_flow(first, torch.stack([shifted(first, *d) for d in shifts]), method=method)
    assert flow.shape == (3, 2, 64, 96) and flow.dtype == torch.float32
    inner = flow[:, :, 10:-10, 10:-10]
    error = (inner - torch.tensor(shifts).view(3, 2, 1, 1)).square().sum(1).sqrt().mean((1, 2))
    assert error.max() < tolerance
    assert inner[0].abs().max() < 0.02


@pytest.mark.parametrize("shift", [(7.0, -5.0), (-10.5, 3.25), (0.3, 0.2)])
def test_large_and_sub_pixel_motion_is_found(shift):
    first = smooth_texture(96, 128, seed=4)
    flow = estimate_flow(first, shifted(first, *shift)[None], method="dis")
    error = (flow - torch.tensor(shift).view(1, 2, 1, 1)).square().sum(1).sqrt()[0, 20:-20, 20:-20]
    assert error.mean() < 0.1


def test_refined_flow_is_closer_than_its_start_where_colour_alone_shows_the_motion():
    red = smooth_texture(seed=5)[0]
    # red and green cancel in the luminance that DIS sees
    first = torch.stack([red, 0.7 - 0.299 / 0.587 * red, torch.full_like(red, 0.5)])
    frame = shifted(first, 1.0, -0.5)
    true = torch.tensor([1.0, -0.5]).view(2, 1, 1)
    error = {
        method: (estimate_flow(first, frame[None], method=method)[0] - true).square().sum(0).sqrt()[8:-8, 8:-8].mean()
        for method in ("dis_fast", "dis")
    }
    assert error["dis"] < 0.5 * error["dis_fast"]


def test_noise_on_a_still_picture_is_no_motion():
    generator = torch.Generator().manual_seed(6)
    first = smooth_texture(seed=6)
    frames = (first + 0.01 * torch.randn(4, 3, 64, 96, generator=generator)).clamp(0, 1)
    flow = estimate_flow(first, frames, method="dis")
    assert flow.square().sum(1).sqrt().mean() < 0.05
    assert visible_flow(first, frames, flow)[0].square().sum(1).sqrt().mean() < 0.005
    even = torch.full((3, 64, 96), 0.4)
    frames = even + 0.01 * torch.randn(4, 3, 64, 96, generator=generator)
    assert visible_flow(even, frames, estimate_flow(even, frames))[0].square().sum(1).sqrt().mean() < 0.005


def test_refinement_keeps_a_still_background_from_following_what_moves_over_it():
    first = smooth_texture(seed=7)
    frame = first.clone()
    frame[:, 20:44, 30:60] = smooth_texture(seed=8)[:, 20:44, 30:60]
    start = torch.full((64, 96, 2), 2.0).numpy()
    images = [image.permute(1, 2, 0).contiguous().numpy() for image in (first, frame)]
    flow = refine_flow(*images, start, iterations=0)
    assert (start == 2).all()  # the caller's array is not written to
    outside = flow[:, 70:]
    assert (outside == 0).mean() > 0.99


def test_what_goes_there_and_back_arrives_and_a_wrong_pair_does_not():
    first = smooth_texture(seed=9)
    frames = torch.stack([shifted(first, *shift) for shift in ((1.5, -1.0), (-2.0, 0.5))])
    flow = estimate_flow(first, frames)
    backward = estimate_backward_flow(first, frames)
    expected = torch.tensor([[-1.5, 1.0], [2.0, -0.5]]).view(2, 2, 1, 1)
    assert (backward - expected).square().sum(1).sqrt()[:, 10:-10, 10:-10].mean() < 0.1
    error = forward_backward_error(flow, backward)
    assert error.shape == (2, 1, 64, 96)
    assert error[..., 10:-10, 10:-10].mean() < 0.15
    wrong = forward_backward_error(flow, backward.flip(0))
    assert wrong[..., 10:-10, 10:-10].mean() > 3


def test_forward_backward_error_reads_the_way_back_where_the_way_there_ends():
    flow, backward = torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 4, 6)
    flow[0, :, 1, 1] = torch.tensor([2.0, 1.0])  # (x, y) = (1, 1) goes to (3, 2)
    backward[0, :, 2, 3] = torch.tensor([-2.0, -1.0])
    error = forward_backward_error(flow, backward)[0, 0]
    assert error[1, 1] == pytest.approx(0, abs=1e-5)
    assert error[2, 3] == pytest.approx(5**0.5, abs=1e-5)  # a point at rest whose way back leads elsewhere
    assert (error > 1e-5).sum() == 1


def test_flow_is_from_frame_0_and_does_not_depend_on_the_other_frames():
    first = smooth_texture(seed=1)
    frames = torch.stack([shifted(first, d, 0) for d in (0.5, 1.0, 1.5)])
    together = estimate_flow(first, frames, method="dis_fast")
    assert torch.equal(together[2:], estimate_flow(first, frames[2:], method="dis_fast"))
    assert together[:, 0, 20:-20, 20:-20].mean((1, 2)) == pytest.approx([0.5, 1.0, 1.5], abs=0.1)


def test_flow_of_an_even_area_is_zeroed_and_that_of_texture_is_kept():
    first = smooth_texture()
    first[:, :, 48:] = 0.4
    frame = first.clone()
    frame[:, :, :48] = shifted(first[:, :, :48], 1.0, -1.0)
    wrong = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(2, 2, 64, 96).clone()
    wrong[:, :, :, 48:] = torch.tensor([3.0, 2.0]).view(2, 1, 1)
    flow, reliability = visible_flow(first, torch.stack([first, frame]), wrong)
    assert torch.equal(flow[0], torch.zeros(2, 64, 96))  # nothing changed at all
    assert torch.equal(flow[1, :, :, 56:], torch.zeros(2, 64, 40))
    kept = (flow[1, :, 6:-6, 6:40] == wrong[1, :, 6:-6, 6:40]).float().mean()
    assert kept > 0.95
    assert reliability.shape == (2, 1, 64, 96)
    assert reliability[1, :, 6:-6, 6:40].min() > 0.9


def test_a_change_too_faint_to_see_is_zeroed_however_well_it_is_explained():
    faint = 0.5 + 0.05 * (smooth_texture() - 0.5)
    right = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 64, 96)
    change = (shifted(faint, 2.0, 0.0) - faint).abs()[:, :, 8:-8].mean()
    assert 0.5 / 255 < change < 2 / 255
    assert (visible_flow(faint, shifted(faint, 2.0, 0.0)[None], right)[0] == 0).float().mean() > 0.95


def test_an_estimate_that_explains_no_more_than_rest_is_zeroed():
    first = smooth_texture()
    frame = shifted(first, 1.0, 0.0)
    opposite = torch.tensor([-4.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 64, 96)
    flow, reliability = visible_flow(first, frame[None], opposite)
    assert (flow == 0).float().mean() > 0.9
    right, better = visible_flow(first, frame[None], -opposite / 4)
    assert (right != 0).any(1).float().mean() > 0.9
    assert better.mean() > reliability.mean()


def test_reliability_follows_its_formula_and_is_zero_outside():
    first = torch.full((3, 32, 48), 0.5)
    brighter = first + 32 / 255  # a residual that no flow removes: zero flow explains as well
    flow, reliability = visible_flow(first, brighter[None], torch.ones(1, 2, 32, 48))
    assert not flow.any()
    torch.testing.assert_close(reliability, torch.full((1, 1, 32, 48), 1 / (1 + 4.0)))
    image = smooth_texture()
    away = torch.zeros(1, 2, 64, 96)
    away[:, 0] = 3.0
    flow, reliability = visible_flow(image, shifted(image, 3.0, 0.0)[None], away)
    outside = flow[0, 0, :, -2:] != 0  # columns 94 and 95 went to 97 and 98
    assert outside.any() and not reliability[0, 0, :, -2:][outside].any()


def test_chunks_do_not_change_the_result(monkeypatch):
    first = smooth_texture(32, 48)
    frames = torch.stack([shifted(first, 0.3 * i, 0.1 * i) for i in range(5)])
    flow = torch.randn(5, 2, 32, 48, generator=torch.Generator().manual_seed(3))
    whole = visible_flow(first, frames, flow)
    monkeypatch.setattr("data.optical_flow.CHUNK", 2)
    for a, b in zip(whole, visible_flow(first, frames, flow), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("method", "said"), [("raft", "needs the file of"), ("pyflow", "setup.py build_ext"), ("magic", "choose one of")]
)
def test_a_method_that_cannot_run_says_how_to_get_it(method, said, monkeypatch):
    # PyPI's pyflow is another program: it can be imported and has no flow
    monkeypatch.setitem(sys.modules, "pyflow", types.ModuleType("pyflow"))
    picture = torch.zeros(3, 32, 32)
    with pytest.raises(FlowError, match=said) as caught:
        estimate_flow(picture, picture[None], method=method)
    assert "\n" not in str(caught.value) and caught.value.is_user_error


def test_pyflow_is_called_with_doubles_and_its_two_maps_are_stacked(monkeypatch):
    def coarse2fine_flow(a, b, *_):
        assert a.dtype == b.dtype == "float64" and a.shape == (16, 24, 3)
        return a[..., 0] + 1, a[..., 0] + 2, None

    module = types.ModuleType("pyflow")
    module.coarse2fine_flow = coarse2fine_flow
    monkeypatch.setitem(sys.modules, "pyflow", module)
    picture = torch.zeros(3, 16, 24)
    flow = estimate_flow(picture, picture[None], method="pyflow")
    assert flow[0, 0].unique().tolist() == [1.0] and flow[0, 1].unique().tolist() == [2.0]


def test_raft_runs_from_a_weights_file_and_refuses_another_file(tmp_path):
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), tmp_path / "raft.pth")
    picture = smooth_texture(36, 50)
    flow = estimate_flow(picture, picture[None], method="raft", weights=tmp_path / "raft.pth")
    assert flow.shape == (1, 2, 36, 50) and torch.isfinite(flow).all()
    loaded = optical_flow._load_raft.cache_info().misses
    frames = picture.expand(3, -1, -1, -1)
    backward = estimate_backward_flow(picture, frames, method="raft", weights=tmp_path / "raft.pth")
    assert torch.equal(backward[1:2], flow) and optical_flow._load_raft.cache_info().misses == loaded
    (tmp_path / "text.pth").write_text("no weights")
    for name, said in (("text.pth", "not a state dict"), ("absent.pth", "no such file")):
        with pytest.raises(FlowError, match=said):
            estimate_flow(picture, picture[None], method="raft", weights=tmp_path / name)


def test_flow_table_measures_real_clips_and_scenes(tmp_path, caplog):
    from data.video_writer import VideoWriter
    from evaluation.flow import clear_texture, find_scenes, measure_flow

    first = smooth_texture(64, 96, seed=12)
    with VideoWriter(tmp_path / "clip.mp4", fps=20) as writer:
        for index in range(20):
            writer.write(shifted(first, 0.2 * index, 0.0))
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    videos, scenes = [tmp_path / "bad.mp4", tmp_path / "clip.mp4"], find_scenes(1, first_seed=1000)
    rows, left_out = measure_flow(videos, ["dis_fast", "dis"], scenes=scenes, every=6)
    assert [row["row"] for row in rows] == ["dis_fast", "dis"] * 2
    for row in rows[:2]:
        assert row["psnr_db"] > 25 and 0.8 < row["ssim"] <= 1 and row["visible_unchanged_px"] >= 0
    for row in rows[2:]:
        assert 0 < row["epe_px"] < 10
    # one video is bad: it is named, in one line, and the rest is measured
    assert [path.name for path, _ in left_out] == ["bad.mp4"]
    assert ["bad.mp4" in record.message for record in caplog.records if record.levelname == "WARNING"] == [True]
    # a jump of the flow, and what it covers, are left out; the rest of a texture is in
    picture = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(1))
    exact = torch.zeros(2, 40, 60)
    exact[0, :, 20:30] = 6.0
    clear = clear_texture(picture, exact)[5:-5]
    assert clear[:, 2:17].all() and clear[:, 45:55].all()
    assert not clear[:, 17:23].any() and not clear[:, 30:38].any()


def test_the_table_of_methods_is_written(tmp_path):
    import json

    import evaluate

    out = tmp_path / "flow"
    flags = ["--scenes", "1", "--methods", "dis_fast", "farneback", "--seed", "5014", "--out", str(out)]
    assert evaluate.main(["flow", *flags]) == 0
    rows = json.loads((out / "results.json").read_text())
    assert [row["row"] for row in rows] == ["dis_fast", "farneback"]
    assert all(0 < row["epe_px"] < 3 for row in rows)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--methods", "dis", "best"], "--methods best: right: dis, dis_fast"),
        (["--videos", "none.mp4", "--scenes", "0"], "none.mp4"),
        (["--methods", "raft", "--raft-weights", "raft.pth"], "raft.pth: no such file"),
        (["--methods", "dis", "--raft-weights", "raft.pth"], "--raft-weights: belongs to --methods raft"),
        (["--methods", "dis", "--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_mistakes_are_told_before_a_scene_is_rendered(flags, said, tmp_path, monkeypatch, capsys):
    import evaluate
    import evaluation.flow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation.flow, "make_scene", lambda *_: pytest.fail("a scene was rendered"))
    assert evaluate.main(["flow", *flags]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_flag_has_the_methods_there_are():
    from evaluation.flags import FLOW_METHODS

    assert FLOW_METHODS == METHODS


def test_videos_that_cannot_be_measured_are_left_out_and_said(tmp_path, capsys, caplog):
    import json

    import evaluate
    from data.video_writer import VideoWriter

    first = smooth_texture(64, 96, seed=12)
    for name, count in {"good": 9, "single": 1}.items():
        with VideoWriter(tmp_path / f"{name}.mp4", fps=20) as writer:
            for index in range(count):
                writer.write(shifted(first, 0.2 * index, 0.0))
    (tmp_path / "text.mp4").write_text("no video")
    flags = ["--methods", "dis_fast", "--scenes", "0", "--out", str(tmp_path / "out")]
    assert evaluate.main(["flow", "--videos", str(tmp_path), *flags]) == 3
    said = [record.message for record in caplog.records if "is left out" in record.message]
    assert len(said) == 2 and "single.mp4" in said[0] and "text.mp4" in said[1] and "\n" not in "".join(said)
    text = (tmp_path / "out" / "results.md").read_text()
    assert "data: 1 videos" in text and "single.mp4 (" in text and "text.mp4 (" in text and "good.mp4" not in text
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert row["clips"] == 1 and row["psnr_db"] > 20 and row["unchanged_area_px"] >= 0
    assert evaluate.main(["flow", "--videos", str(tmp_path / "text.mp4"), *flags]) == 2
    assert "none of the 1 can be measured" in capsys.readouterr().err.strip().splitlines()[-1]
    caplog.clear()
    empty = [tmp_path / "empty", tmp_path / "more"]
    for folder in empty:
        folder.mkdir()
    assert evaluate.main(["flow", "--videos", *map(str, empty), str(tmp_path / "good.mp4"), *flags]) == 3
    said = [record.message for record in caplog.records if "no videos" in record.message]
    assert said == [f"{folder}: no videos in this folder" for folder in empty]
    assert evaluate.main(["flow", "--videos", str(tmp_path / "good.mp4"), *flags]) == 0
