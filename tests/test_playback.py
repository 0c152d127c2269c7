"""What synthesize_*.py and animate.py do with pictures and motion that hardly fit: tiles, notes, refusals, previews."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import animate
import animation.rendering
import synthesize_gaussian
import synthesize_softmax
from data.media import read_image
from models.frame_synthesis import FrameSynthesis
from motion.motion_file import Motion, save_motion

SCRIPTS = [synthesize_softmax, synthesize_gaussian]


def plain_flow(path: Path, size: tuple[int, int], value: float = 1.0, frames: int = 3) -> Path:
    flow = np.full((frames, 2, *size), value, np.float32)
    flow[0] = 0
    np.savez(path, flow=flow)
    return path


def run(script, photograph: Path, flow: Path, out: Path, *flags: object) -> int:
    common = ["--image", photograph, "--flow", flow, "--outdir", out, "--device", "cpu", "--format", "frames"]
    return script.main([str(word) for word in [*common, *flags]])


def frames_of(out: Path) -> torch.Tensor:
    (folder,) = out.iterdir()
    return torch.stack([read_image(path) for path in sorted(folder.glob("*.png"))])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_preview_needs_no_models(script, photograph, tmp_path, monkeypatch):
    monkeypatch.setattr(animation.rendering, "load_renderer", lambda *a: pytest.fail("a network was loaded"))
    flow = plain_flow(tmp_path / "f.npz", (90, 60))
    assert run(script, photograph, flow, tmp_path / "out", "--preview") == 0
    assert len(frames_of(tmp_path / "out")) == 3


def test_a_preview_of_a_given_motion_needs_no_models(photograph, tmp_path, monkeypatch):
    monkeypatch.setattr(FrameSynthesis, "from_pretrained", lambda *a, **o: pytest.fail("a network was loaded"))
    flow = plain_flow(tmp_path / "f.npz", (90, 60))
    flags = [photograph, "--motion", flow, "--preview", "--out", tmp_path / "a.mp4"]
    assert animate.main([str(word) for word in [*flags, "--device", "cpu"]]) == 0


def test_without_preview_a_missing_model_is_one_line(photograph, tmp_path, capsys):
    flow = plain_flow(tmp_path / "f.npz", (90, 60))
    assert run(synthesize_softmax, photograph, flow, tmp_path / "out", "--checkpoint", "/nowhere") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "/nowhere/frame_synthesis_softmax: no such renderer folder" in error


def test_flow_of_another_size_is_resized_rescaled_and_noted(photograph, tmp_path, caplog):
    """Half the size and half the displacement are the same motion."""
    small, large = plain_flow(tmp_path / "small.npz", (45, 30), 2), plain_flow(tmp_path / "large.npz", (90, 60), 4)
    with caplog.at_level("INFO"):
        assert run(synthesize_softmax, photograph, large, tmp_path / "a", "--preview") == 0
        assert "is resized" not in caplog.text
        assert run(synthesize_softmax, photograph, small, tmp_path / "b", "--preview") == 0
    noted = [line for line in caplog.messages if "small.npz: flow of 30 x 45 px is resized" in line]
    assert len(noted) == 1 and "to the image of 60 x 90 px" in noted[0]
    a, b = frames_of(tmp_path / "a"), frames_of(tmp_path / "b")
    assert (a - b).abs().max() < 0.02 and (a[1] - a[0]).abs().mean() > 0.01


def test_motion_of_another_picture_is_refused_or_noted(photograph, tmp_path, capsys, caplog):
    assert run(synthesize_softmax, photograph, plain_flow(tmp_path / "wide.npz", (60, 90)), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wide.npz: made for an image of 90 x 60 px" in error
    assert not (tmp_path / "out").exists()

    spectrum = torch.zeros(4, 4, 96, 64)
    for size, noted in (((90, 60), False), ((300, 200), True)):
        save_motion(tmp_path / "m.npz", Motion(spectrum, None, 3, 30.0, size, {}))
        caplog.clear()
        flags = [photograph, "--motion", tmp_path / "m.npz", "--preview", "--out", tmp_path / f"{noted}.mp4"]
        with caplog.at_level("INFO"):
            assert animate.main([str(word) for word in [*flags, "--device", "cpu", "--seconds", "0.1"]]) == 0
        found = [line for line in caplog.messages if "made for an image of 200 x 300 px, this one has 60 x 90" in line]
        assert len(found) == noted


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("preview", [True, False])
def test_flow_out_of_the_picture_shows_the_photograph(script, preview, checkpoint, photograph, tmp_path, caplog):
    flow = plain_flow(tmp_path / "f.npz", (90, 60), 1e6)
    flags = ["--preview"] if preview else ["--checkpoint", checkpoint]
    with caplog.at_level("INFO"):
        assert run(script, photograph, flow, tmp_path / "out", *flags) == 0
    assert caplog.text.count("everything leaves the image; the photograph is shown there") == 1
    assert f"frames of {' x '.join(map(str, Image.open(photograph).size))} px" in caplog.text
    frames = frames_of(tmp_path / "out")  # the network of the fixture is untrained: it adds nothing
    assert (frames - read_image(photograph)).abs().max() < 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_flow_that_is_no_number_is_refused(value, photograph, tmp_path, capsys):
    np.savez(tmp_path / "f.npz", flow=np.full((3, 2, 90, 60), value, np.float64))
    assert run(synthesize_gaussian, photograph, tmp_path / "f.npz", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "f.npz: `flow` holds NaN or Inf in float32; right: finite numbers" in error


def test_tiles_and_compiler_are_asked_for_as_flagged(checkpoint, photograph, tmp_path, monkeypatch, capsys):
    asked, original = [], animation.rendering.render_frames

    def spy(*arguments, **options):
        asked.append((options["tile"], options["compiled"], options["batch_size"]))
        return original(*arguments, **{**options, "compiled": False})

    monkeypatch.setattr(animation.rendering, "render_frames", spy)
    flow = plain_flow(tmp_path / "f.npz", (90, 60))
    results = []
    for flags in ([], ["--tile", 0], ["--tile", 32, "--compile", "--batch-size", 3]):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        assert run(synthesize_softmax, photograph, flow, out, "--checkpoint", checkpoint, *flags) == 0
        results.append(frames_of(out))
    assert asked == [(None, False, None), (0, False, None), (32, True, 3)]
    assert all((frames - results[0]).abs().max() < 1 / 254 for frames in results)
    assert run(synthesize_softmax, photograph, flow, tmp_path / "no", "--tile", 8) == 2
    assert "--tile 8: right: 0 for never, or at least 32 px" in capsys.readouterr().err
