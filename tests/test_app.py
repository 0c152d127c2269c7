"""The function behind the Gradio page, and how the script starts; the page itself only where gradio is installed."""

from __future__ import annotations

import builtins
import time

import numpy as np
import pytest
import torch

import app
from data.media import MediaError
from data.video import probe_video
from motion.motion_file import Motion
from training.cli import UsageError


class Pipeline:
    """Stands in for the trained one: a smooth sway, and a record of what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def predict(self, image: torch.Tensor, *, seed: int) -> Motion:
        self.asked.append((tuple(image.shape), seed))
        spectrum = torch.zeros(4, 4, 16, 24)
        spectrum[1:, :, 4:12, 6:18] = 0.5
        return Motion(spectrum, None, 150, 30.0, tuple(image.shape[-2:]), {})


def make_studio(tmp_path, **options) -> app.Studio:
    return app.Studio(Pipeline(), {"softmax": None, "gaussian": None}, tmp_path, **options)


def upload(height: int = 48, width: int = 72) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_a_picture_comes_back_as_a_video(tmp_path):
    studio, shares = make_studio(tmp_path, size_px=48), []
    path, page = studio.animate(upload(), splat="gaussian", strength=2.0, seconds=0.5, seed=4, progress=shares.append)
    info = probe_video(path)
    assert (info.width, info.height) == (48, 32) and info.fps == pytest.approx(30)
    assert shares[-1] == 1 and shares == sorted(shares)
    # Motion is predicted from 512 px and not from the video's 48: it must not depend on the video's size.
    assert studio.pipeline.asked == [((3, 48, 72), 4)]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, page.name])
    assert '<script type="text/plain" id="modes">' in page.read_text()


def test_small_pictures_are_not_enlarged_and_old_videos_go(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "KEPT_VIDEOS", 2)
    studio = make_studio(tmp_path)
    made = [studio.animate(upload(), loop=False, seconds=0.5) for _ in range(3)]
    assert probe_video(made[2][0]).width == 72
    assert [[path.exists() for path in one] for one in made] == [[False] * 2, [True] * 2, [True] * 2]


@pytest.mark.parametrize(
    ("picture", "choices", "named"),
    [
        (None, {}, "no picture"),
        (upload()[..., 0], {}, "uint8"),
        (upload().astype(np.float64), {}, "float64"),
        (upload(8, 200), {}, "200 x 8"),
        (upload(), {"splat": "../etc"}, "splat"),
        (upload(), {"strength": float("nan")}, "strength"),
        (upload(), {"seconds": 1e9}, "seconds"),
        (upload(), {"seed": -1}, "seed"),
        (upload(), {"seed": None}, "seed"),
    ],
)
def test_bad_uploads_and_choices_are_one_line(tmp_path, picture, choices, named):
    with pytest.raises((MediaError, UsageError), match=named) as caught:
        make_studio(tmp_path).animate(picture, **choices)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


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
    assert "--port 70000" in capsys.readouterr().err


def test_half_precision_needs_a_gpu(capsys):
    assert app.main(["--precision", "fp16", "--device", "cpu"]) == 2
    assert "--precision fp16: needs a GPU" in capsys.readouterr().err


def test_page_is_served_on_this_machine_only(tmp_path):
    gradio = pytest.importorskip("gradio", reason="gradio is not installed (requirements-app.txt)")
    client = pytest.importorskip("gradio_client")
    from data.media import from_bytes, write_image

    write_image(tmp_path / "up.png", from_bytes(upload()))
    (tmp_path / "videos").mkdir()
    page = app.make_page(gradio, make_studio(tmp_path / "videos"))
    _, url, _ = app.launch(gradio, page, port=None, wait=False)
    try:
        assert url.startswith("http://127.0.0.1:")
        caller = client.Client(url, verbose=False, download_files=str(tmp_path))
        answer = caller.predict(client.handle_file(tmp_path / "up.png"), "softmax", 1, True, 1, 0, api_name="/animate")
        video = answer[0]["video"] if isinstance(answer[0], dict) else answer[0]
        assert answer[1].endswith(".html")
        assert probe_video(video).width == 72
        write_image(tmp_path / "flat.png", from_bytes(upload(8, 200)))
        with pytest.raises(Exception, match="200 x 8 px"):
            caller.predict(client.handle_file(tmp_path / "flat.png"), "softmax", 1, True, 1, 0, api_name="/animate")
    finally:
        page.close()


def test_help_answers_at_once(capsys):
    start = time.perf_counter()
    assert app.main(["--help"]) == 0
    assert time.perf_counter() - start < 2
    assert "--port" in capsys.readouterr().out
