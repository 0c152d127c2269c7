"""The function behind the Gradio page, and how the script starts; the page itself only where gradio is installed."""

from __future__ import annotations

import builtins
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import animation.studio
import app
from animation.studio import Studio, read_upload
from data.media import MediaError, from_bytes, write_image
from data.video import probe_video
from models.checkpoints import CheckpointError
from models.device import ArgumentError
from models.segmentation import SegmentationModel
from models.segmentation_classes import CLASSES, ClassNameError
from motion.motion_file import Motion
from motion.wind import WINDS


class Pipeline:
    """Stands in for the trained one: a smooth sway, and a record of what was asked."""

    segmentation = None

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def predict(self, image: torch.Tensor, *, seed: int, precision: str, wind_px: float | None = None) -> Motion:
        self.asked.append((tuple(image.shape), seed, wind_px))
        self.precision = precision
        spectrum = torch.zeros(4, 4, 16, 24)
        spectrum[1:, :, 4:12, 6:18] = 0.5
        return Motion(spectrum, None, 150, 30.0, tuple(image.shape[-2:]), {})


def animate(studio: Studio, *arguments, **choices) -> tuple[Path, Path]:
    *_, made = studio.animate(*arguments, **choices)
    return made


def make_studio(tmp_path, **options) -> Studio:
    return Studio(Pipeline(), {"softmax": None, "gaussian": None}, tmp_path, **options)


@pytest.fixture
def upload(tmp_path_factory):
    """Return a function that writes a picture of noise, as a browser's upload, and gives its path."""
    folder = tmp_path_factory.mktemp("uploads")

    def write(height: int = 48, width: int = 72, name: str = "photo.png") -> str:
        pixels = np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)
        write_image(folder / name, from_bytes(pixels))
        return str(folder / name)

    return write


def test_a_picture_comes_back_as_a_video(tmp_path, upload):
    studio = make_studio(tmp_path, size_px=48, precision="bf16")
    *shares, (path, page) = studio.animate(upload(), splat="gaussian", strength=2.0, seconds=0.5, seed=4)
    info = probe_video(path)
    assert (info.width, info.height) == (48, 32) and info.fps == pytest.approx(30)
    assert shares[-1] == 1 and shares == sorted(shares)
    assert studio.pipeline.precision == "bf16"
    # Motion is predicted from 512 px and not from the video's 48: it must not depend on the video's size.
    assert studio.pipeline.asked == [((3, 48, 72), 4, None)]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, page.name])
    assert '<script type="text/plain" id="modes">' in page.read_text()


def test_classes_stay_still(tmp_path, upload, monkeypatch):
    """To a network that takes everything for a tree."""

    class Trees(SegmentationModel):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.eye(len(CLASSES))[CLASSES.index("tree"), None, :, None, None] * torch.full((1, 1, 8, 12), 99.0)

    def render(image: torch.Tensor, motion: Motion, *args: object, **options: object) -> list[torch.Tensor]:
        played.append(motion)
        return [image[None]] * 2

    studio, played = make_studio(tmp_path), []
    studio.pipeline.segmentation = Trees()
    monkeypatch.setattr(animation.studio, "render_frames", render)
    for words in ({}, {"freeze": ["trees"]}, {"move": ["tree"]}, {"move": ["sea"], "freeze": []}):
        animate(studio, upload(), seconds=0.5, **words)
    assert [float(motion.spectrum.abs().max()) for motion in played] == pytest.approx([0.5, 0, 0.5, 0], abs=1e-2)
    with pytest.raises(ClassNameError, match="^move tre: no class; did you mean tree"):
        animate(studio, upload(), move=["tre"])


def test_small_pictures_are_not_enlarged(tmp_path, upload):
    path, _ = animate(make_studio(tmp_path), upload(), loop=False, seconds=0.5)
    assert probe_video(path).width == 72


def test_the_wind_is_a_word_or_a_number(tmp_path, upload):
    studio = make_studio(tmp_path)
    for wind in ("gusty", "2.5"):
        animate(studio, upload(), wind=wind, seconds=0.5)
    assert [asked[-1] for asked in studio.pipeline.asked] == [WINDS["gusty"], 2.5]


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"splat": "../etc"}, "splat"),
        ({"wind": "storm"}, "wind storm: right: calm, breeze, windy, gusty"),
        ({"strength": float("nan")}, "strength"),
        ({"seconds": 1e9}, "seconds"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
        ({"move": ["tree"]}, "no segmentation network"),
    ],
)
def test_bad_choices_are_one_line(tmp_path, upload, choices, named):
    with pytest.raises((ArgumentError, CheckpointError), match=named) as caught:
        animate(make_studio(tmp_path), upload(), **choices)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def spoil(path: Path, kind: str) -> None:
    """Write an upload that is no use."""
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "truncated":
        Image.effect_noise((300, 200), 80).convert("RGB").save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "giant":
        Image.new("1", (20000, 12000)).save(path, "PNG")
    elif kind == "elongated":
        Image.new("RGB", (200, 8)).save(path, "PNG")


@pytest.mark.parametrize("kind", ["none", "text", "truncated", "giant", "elongated"])
def test_bad_uploads_are_one_line_that_names_them(tmp_path, kind):
    path = tmp_path / "uploads" / "notes.png"
    path.parent.mkdir()
    spoil(path, kind)
    studio = make_studio(tmp_path / "videos")
    with pytest.raises(MediaError, match="no image" if kind == "none" else r"^notes\.png") as caught:
        animate(studio, None if kind == "none" else path)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "videos").exists()


def test_uploads_are_read_as_animate_reads_them(tmp_path):
    """GIFs, 16 bits and transparency: by the contents, over white, never as Gradio converts them."""
    Image.new("RGBA", (64, 48), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((48, 64), 32768, np.uint16)).save(tmp_path / "deep.png")
    Image.new("P", (64, 48), 0).save(tmp_path / "first.gif")
    means = [float(read_upload(tmp_path / name, 64)[0].mean()) for name in ("clear.png", "deep.png", "first.gif")]
    assert means == pytest.approx([1.0, 0.5, 0.0], abs=1e-3)


def test_without_gradio_the_remedy_is_named(monkeypatch, capsys):
    real_import = builtins.__import__

    def without_gradio(name, *arguments, **options):
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_gradio)
    assert app.main([]) == 2
    error = capsys.readouterr().err
    assert "pip install -r requirements-app.txt" in error and error.count("\n") == 1


def test_bad_flags(capsys):
    assert app.main(["--port", "70000"]) == 2
    assert "--port: expected a whole number from 1 to 65535" in capsys.readouterr().err


def test_half_precision_needs_a_gpu(capsys):
    assert app.main(["--precision", "fp16", "--device", "cpu"]) == 2
    assert "--precision fp16: needs a GPU" in capsys.readouterr().err


def test_help_answers_at_once(capsys):
    start = time.perf_counter()
    assert app.main(["--help"]) == 0
    assert time.perf_counter() - start < 2
    assert "--port" in capsys.readouterr().out
