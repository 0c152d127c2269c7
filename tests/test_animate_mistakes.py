"""What animate.py, generate_motion.py and synthesize_*.py refuse: one line, before models are loaded, nothing made."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_animate import FAST, last_error, make_motion, run_animate

import animate
import animation.rendering
import animation.sampling
import generate_motion
import synthesize_gaussian
from data.media import read_image, write_image


def broken_pictures(folder: Path, photograph: Path) -> dict[str, Path]:
    write_image(folder / "whole.jpg", read_image(photograph))
    data = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.jpg").touch()
    write_image(folder / "one.png", torch.rand(3, 1, 1))
    names = ("cut.jpg", "text.jpg", "empty.jpg", "one.png", "missing.jpg")
    return {name: folder / name for name in names}


@pytest.mark.parametrize("name", ["cut.jpg", "text.jpg", "empty.jpg", "one.png", "missing.jpg"])
def test_bad_pictures(checkpoint, photograph, tmp_path, capsys, name):
    path = broken_pictures(tmp_path, photograph)[name]
    out = tmp_path / "out"
    assert run_animate(checkpoint, path, *FAST, "--out", out) == 2
    assert name in last_error(capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--splat", "hard"], "--splat"),
        (["--steps", "0"], "--steps"),
        (["--device", "cuda:7"], "--device cuda:7"),
        (["--device", "toaster"], "--device"),
        (["--size", "8"], "--size: expected a whole number of at least 16"),
        (["--loop", "--drift"], "--drift"),
        (["--seconds", "0.001"], "--seconds"),
        (["--format", "gif", "--out", "x.mp4"], "--format gif"),
        (["--checkpoint", "/nowhere"], "/nowhere"),
        (["--mask", "/nowhere.png"], "/nowhere.png"),
        (["--frobnicate"], "--frobnicate"),
        (["--magnify", "nan"], "--magnify: expected a finite number"),
        (["--sampler", "euler"], "--sampler"),
    ],
)
def test_bad_flags(checkpoint, photograph, tmp_path, capsys, monkeypatch, flags, named):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    base = [str(photograph), *FAST, "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert animate.main([*base, *flags]) == 2
    assert named in last_error(capsys)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--fps", "1001"], "--fps 1001: right: 0.1 to 1000 for mp4"),
        (["--fps", "60", "--format", "gif"], "--fps 60: right: 0.1 to 50 for gif"),
        (["--fps", "1", "--seconds", "1"], "--seconds x fps: expected at least 2 frames, got 1"),
        (["--seconds", "1e15"], "--seconds x fps: expected at most 1000000 frames"),
        (["--slow", "1e-300", "--loop"], "--slow x period_s: expected at most 1000000 periods"),
        (["--mask", "text.png"], "text.png: is not an image"),
        (["--mask", "square.png"], "square.png: the mask is 20 x 20"),
        (["--motion-out", "m.mp4"], "--motion-out m.mp4: right: a name that ends in .npz"),
        (["--motion-out", "text.png/m.npz"], "--motion-out text.png/m.npz: its folder cannot be made"),
        (["--out", "x.mov"], "--out x.mov: .mov is not written; right: a name that ends in .mp4, .gif, .webm"),
        (["--out", "x.png"], "--out x.png: .png is not written"),
        (["--out", "text.png/new"], "its folder cannot be made"),
        (["--precision", "fp16"], "--precision fp16: needs a GPU; right: no, bf16"),
        (["--motion", "nowhere.npz"], "nowhere.npz"),
        *(
            (["--motion", "short.npz", *flag.split()], f"{flag.split()[0]}: --motion is there already")
            for flag in ("--sampler dpm", "--steps 9", "--guidance 0", "--seed 0", "--loop-weight 200")
        ),
        (["--motion", "short.npz", "--preview", "--checkpoint", "x"], "--checkpoint: no network runs"),
        (["--motion", "short.npz", "--preview", "--precision", "no"], "--precision: no network runs"),
        (["--preview", "--tile", "64"], "--tile: belongs to the network"),
        (["--preview", "--compile"], "--compile: belongs to the network"),
        (["--loop", "--loop-recurrences", "1"], "--loop-recurrences: belongs to --loop-seconds S"),
        (["--loop-seconds", "2", "--loop-weight", "9"], "--loop-weight: is of the gradient"),
        (["--loop-seconds", "2", "--loop-guidance", "closing", "--loop-recurrences", "2"], "--loop-recurrences: "),
        (["--motion", "short.npz"], "--seconds x fps: expected at least 2 frames, got 1"),
        (["--loop-seconds", "0.01"], "--loop-seconds 0.01: right: 0.0667 to 33333.3 s at 30 frames/s"),
        (["--loop-seconds", "1e300"], "--loop-seconds 1e+300: right: "),
        (["--loop-seconds", "2", "--drift"], "--drift: a loop has none"),
        (["--loop-seconds", "2", "--motion", "short.npz"], "--loop-seconds: --motion is there already"),
        (["--loop-seconds", "2", "--loop-guidance", "hope"], "--loop-guidance hope: right: closing, projection"),
    ],
)
def test_flags_are_checked_before_models_are_loaded(photograph, tmp_path, capsys, monkeypatch, flags, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    write_image(tmp_path / "square.png", torch.ones(3, 20, 20))
    np.savez(tmp_path / "short.npz", flow=np.zeros((1, 2, 45, 30), np.float32))
    monkeypatch.setattr(animate, "Animator", lambda *args: pytest.fail("models were loaded"))
    before = sorted(tmp_path.rglob("*"))
    assert animate.main([str(photograph), "--device", "cpu", *flags]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unreadable_mask_stops_a_folder_before_models_are_loaded(photograph, tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    shutil.copy(photograph, tmp_path / "in")
    monkeypatch.setattr(animate, "Animator", lambda *args: pytest.fail("models were loaded"))
    assert animate.main([str(tmp_path / "in"), "--mask", str(tmp_path / "no.png"), "--device", "cpu"]) == 2
    assert "no.png" in last_error(capsys)


def test_synthesis_is_checked_before_models_are_loaded(checkpoint, photograph, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(animation.rendering, "load_renderer", lambda *a: pytest.fail("models were loaded"))
    out, flow = tmp_path / "out", make_motion(tmp_path / "m.npz")
    base = ["--image", str(photograph), "--flow", str(flow), "--outdir", str(out), "--device", "cpu"]
    for flags, named in ((["--fps", "0.01"], "--fps 0.01"), (["--seconds", "1e15"], "--seconds"),
                         (["--mask", "no.png"], "no.png"), (["--precision", "fp16"], "--precision"),
                         (["--preview", "--precision", "no"], "--precision: no network runs"),
                         (["--preview", "--tile", "0"], "--tile: belongs to the network")):  # fmt: skip
        assert synthesize_gaussian.main([*base, *flags]) == 2
        assert named in last_error(capsys) and not out.exists()


def test_output_of_generate_motion_is_checked_first(photograph, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(animation.sampling, "load_pipeline", lambda *args: pytest.fail("models were loaded"))
    for name in ("m.mp4", "photo.png/m.npz"):
        assert generate_motion.main(["--input", str(photograph), "--output", str(tmp_path / name)]) == 2
        assert name in last_error(capsys)
    assert generate_motion.main(["--input", str(tmp_path / "no.jpg"), "--output", str(tmp_path / "new" / "m.npz")]) == 2
    assert list(tmp_path.iterdir()) == [photograph]


def test_bad_motion_files(checkpoint, photograph, tmp_path, capsys):
    good = make_motion(tmp_path / "good.npz")
    arrays = dict(np.load(good))
    np.savez(tmp_path / "version.npz", **{**arrays, "format_version": np.array(7)})
    np.savez(tmp_path / "nan.npz", **{**arrays, "spectrum": arrays["spectrum"] * np.float32("nan")})
    np.savez(tmp_path / "pickle.npz", flow=np.array([{}], dtype=object))
    make_motion(tmp_path / "aspect.npz", size=(60, 90))
    for name, message in [("version", "version 7"), ("nan", "NaN"), ("pickle", "pickled"), ("aspect", "aspect")]:
        out = tmp_path / "out"
        assert run_animate(checkpoint, photograph, "--motion", tmp_path / f"{name}.npz", "--out", out) == 2
        error = last_error(capsys)
        assert f"{name}.npz" in error and message in error
        assert not list(out.glob("*"))


def test_unwritable_output(checkpoint, photograph, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run_animate(checkpoint, photograph, *FAST, "--out", tmp_path / "file" / "sub") == 2
    assert "file" in last_error(capsys)


def test_one_file_cannot_take_many_pictures(checkpoint, photograph, tmp_path, capsys):
    other = shutil.copy(photograph, tmp_path / "other.png")
    assert run_animate(checkpoint, photograph, other, "--out", tmp_path / "a.mp4") == 2
    assert "--out" in last_error(capsys)
    assert run_animate(checkpoint, photograph, other, "--motion", "m.npz") == 2
    assert "--motion" in last_error(capsys)


def test_checkpoint_with_a_file_missing(checkpoint, photograph, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "cut")
    (folder / "frame_synthesis_softmax" / "diffusion_pytorch_model.safetensors").unlink()
    assert run_animate(folder, photograph, *FAST, "--out", tmp_path / "out") == 2
    assert "frame_synthesis_softmax" in last_error(capsys)


def test_renderer_of_another_operator(checkpoint, photograph, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "swapped")
    shutil.rmtree(folder / "frame_synthesis_softmax")
    shutil.copytree(folder / "frame_synthesis_gaussian", folder / "frame_synthesis_softmax")
    motion = make_motion(tmp_path / "m.npz")
    assert run_animate(folder, photograph, "--motion", motion, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "frame_synthesis_softmax: was trained with the operator gaussian; right: softmax" in error
    assert not (tmp_path / "out").exists()
