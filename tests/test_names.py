"""Files with hard names, hidden and deleted ones, and outputs of earlier runs: one costs none of the others."""

from __future__ import annotations

from cli.run import command

import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clip_sets import files_of
from test_animate import FAST, run_animate
from test_interact import example_motion
from videos import ALL, read_video, swaying, write_video
from videos import FAST as FAST_CLIPS

import animate
import app
import prepare_data
from animation.interactive_page import build_page, page_modes
from data.clips import ClipSet
from data.files import LONGEST_NAME, OUTPUT_MARK, MediaError, atomic_path, file_name, write_text, writing_problem
from data.find_clips import clip_id, find_clips, list_videos
from data.media import list_images, read_image, write_image
from data.result_tables import write_results
from evaluation.video.sources import FolderVideos
from training.run_folder import LOG, RunFolder

# What bytes of a name become in Python where they are no UTF-8.
NO_TEXT = os.fsdecode(b"caf\xe9")
STEMS = {
    "no text": NO_TEXT,
    "long": "a_prompt_as_a_file_name_" * 10 + "0123456789",  # 250 bytes
    "long cyrillic": "трава_и_ветер_" * 10 + "x",  # 251 bytes
    "line break": "two\nlines",
    "carriage return": "two\r\nlines",
    "dash": "-dash",
    "pattern": "a%03d",
    "clock": "12:30:05",
    "page": "<img src=x onerror=alert(1)>",
    "url": "b#c?d&e",
    "escape": "\x1b[31mred",
    "device": "con.1",
    "spaces": " two  spaces ",
}


# ------------------------------------------------------------------------------------------ videos


@pytest.fixture(scope="module")
def brief(tmp_path_factory) -> Path:
    """A video of so few frames that its preparation is mostly names."""
    return write_video(tmp_path_factory.mktemp("brief") / "brief.mp4", swaying(8, 4), 4)


@pytest.mark.parametrize("kind", STEMS)
def test_a_video_of_any_name_is_prepared_once_beside_others(brief, tmp_path, monkeypatch, kind, capfd):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (STEMS[kind], "ok"):
        shutil.copy(brief, folder / f"{name}.mp4")
    # relative, as ffmpeg then sees the name alone
    monkeypatch.chdir(folder)
    assert len(read_video(Path(f"{STEMS[kind]}.mp4")).frames) == 8
    flags = ["videos", str(folder), "--out", str(tmp_path / "set"), *FAST_CLIPS, "--workers", "1"]
    assert prepare_data.main(flags) == 0
    first = files_of(tmp_path / "set")
    assert prepare_data.main(flags) == 0 and "2 of 2 videos are done already" in capfd.readouterr().out
    assert files_of(tmp_path / "set") == first
    rows = ClipSet(tmp_path / "set").rows(status=ALL)
    assert len(rows) == 2 and all(row.status == "pairs_only" and Path(row.source).is_file() for row in rows)
    assert all(
        name.isascii() and "\n" not in name and len(name) < LONGEST_NAME for name in map(os.path.basename, first)
    )


def test_ids_of_ordinary_names_stay_and_others_are_safe():
    """Sets on disk hold these."""
    assert clip_id(Path("/videos/sway.mp4"), 0.0, None) == "sway-eb37762a"
    assert clip_id(Path("/videos/a b#1.MOV"), 1.5, 2.0).rpartition("-")[0] == "a_b_1"
    assert clip_id(Path(f"/videos/{'a' * 220}.mp4"), 0.0, None).startswith("a" * 220 + "-")
    ids = [
        clip_id(Path(f"/v/{stem}.mp4"), 0.0, None) for stem in (*STEMS.values(), "а" * 100, "я" * 100, "NUL.x", "aux")
    ]
    assert len(set(ids)) == len(ids)
    assert not any(name.split(".")[0].lower() in ("con", "nul", "aux") for name in ids)


def test_two_names_never_share_a_file():
    stems = [*STEMS.values(), "two_lines", "two__lines", "a" * 236, "a" * 237, "a" * 235 + "b"]
    names = [file_name(stem) for stem in stems]
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name.encode()) <= LONGEST_NAME - 15 and name.isprintable() for name in names)
    kept = ("photo", "трава и ветер", "IMG_2024 (1)", "12:30:05", "a%03d", "a" * 235)
    assert [file_name(name) for name in kept] == list(kept)
    assert [file_name(name) for name in ("con", "LPT1", "nul.tar", "console")] == [
        "_con",
        "_LPT1",
        "_nul.tar",
        "console",
    ]


# ------------------------------------------------------------------------------------------ images


def test_images_of_any_name_are_animated_beside_others(checkpoint, photograph, tmp_path, capfd, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for stem in STEMS.values():
        shutil.copy(photograph, folder / f"{stem}.png")
    (folder / "broken.png").write_bytes(b"no image")
    flags = [*FAST, "--preview", "--format", "gif"]
    assert run_animate(checkpoint, folder, *flags, "--out", out) == 3
    output = capfd.readouterr().err
    assert f"animate.py: error: {folder / 'broken.png'}: is not an image" in output and "\x1b" not in output
    made = sorted(path.name for path in out.iterdir())
    assert made == sorted(f"{file_name(stem)}.gif" for stem in STEMS.values())
    # in the working folder, where ffmpeg sees the name alone
    monkeypatch.chdir(folder)
    assert run_animate(checkpoint, "12:30:05.png", *FAST, "--preview", "--out", ".") == 0
    assert len(read_video(Path("12:30:05.mp4")).frames) == 6


def test_a_file_that_looks_like_a_flag_is_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("-dash.jpg").touch()
    assert animate.main(["-dash.jpg"]) == 2
    assert (
        capsys.readouterr().err.strip().endswith("-dash.jpg: a file's name that begins like a flag; right: ./-dash.jpg")
    )


def test_names_are_checked_before_work_starts(photograph, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(animate, "Animator", lambda *args: pytest.fail("models were loaded"))
    out = tmp_path / f"{'a' * 252}.mp4"
    assert animate.main([str(photograph), "--out", str(out), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert f"{out}: " in error and "too long" in error and error.count("\n") == 1
    assert writing_problem(tmp_path / ("a" * 255)) is None
    problem = "a name of 256 bytes is too long; choose one of at most 255"
    assert writing_problem(tmp_path / ("я" * 128) / "a") == problem
    longest = tmp_path / ("a" * 251 + ".txt")
    write_text(longest, "whole")
    with pytest.raises(RuntimeError), atomic_path(longest) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert longest.read_text() == "whole" and list(tmp_path.glob("a*")) == [longest]
    folder = tmp_path / ("b" * 255)
    for _ in range(2):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
    assert folder.is_dir()


def test_names_that_are_no_text_can_be_shown(capfd):
    @command
    def main(argv=None) -> int:
        print(NO_TEXT)
        raise MediaError(f"{NO_TEXT}\n\x1b[31m: is bad")

    assert main([]) == 2
    shown = capfd.readouterr()
    assert shown.out == "caf\\udce9\n" and shown.err.count("\n") == 1 and "\x1b" not in shown.err


# ------------------------------------------------------------------------------------------ pages and logs


def test_pages_and_logs_take_names_that_are_no_text(tmp_path):
    motion = example_motion()
    page = build_page(torch.zeros(3, 64, 96), page_modes(motion, "m"), f"<{NO_TEXT}>", motion)
    write_text(tmp_path / "a.html", page)
    assert "<title>&lt;caf?&gt;</title>" in (tmp_path / "a.html").read_text(encoding="utf-8")
    with RunFolder(tmp_path) as run:
        logging.getLogger("training").warning("%s: was read", NO_TEXT)
    assert "caf\\udce9: was read" in (run.path / LOG).read_text(encoding="utf-8")


def test_names_are_escaped_in_pages_and_tables(tmp_path, monkeypatch):
    text = write_results(
        tmp_path, [{"row": "<script>alert(1)</script>", "x": 1}], title="t", notes=["data: </p><b>", "a < b"]
    )
    assert "<script" not in text and "<b>" not in text and "a < b" in text and "&lt;script>" in text

    class Gradio:
        class Error(Exception):
            def __init__(self, message: str, print_exception: bool) -> None:
                super().__init__(message)
                assert not print_exception

        def __getattr__(self, name):
            return lambda *args, **kwargs: Widget(self, name)

    caught = []

    class Widget:
        _queue = SimpleNamespace(send_message=None)

        def __init__(self, gradio, name):
            self.gradio, self.name = gradio, name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def click(self, function, *_, **__):
            with pytest.raises(Gradio.Error) as error:
                next(function("x.jpg", *[None] * 8))
            caught.append(str(error.value))

        def queue(self, **_):
            pass

    class Studio:
        renderers = {"softmax": None}

        def animate(self, *_, **__):
            raise MediaError("<img src=x onerror=alert(1)>.jpg: is not an image")

    app.make_page(Gradio(), Studio())
    assert caught == ["&lt;img src=x onerror=alert(1)&gt;.jpg: is not an image"]


# ------------------------------------------------------------------------------------------ hidden and deleted


HIDDEN = ("._{}", ".{}", ".Trash-0/{}", ".trashed-17-{}", "__MACOSX/{}", "__MACOSX/in/._{}", "@eaDir/{}/thumb-{}",
          "$RECYCLE.BIN/S-1/{}", "#recycle/{}", "in/.Trashes/501/{}")  # fmt: skip


def test_hidden_and_deleted_files_are_left_out_everywhere(videos, photograph, tmp_path, caplog):
    caplog.set_level("INFO")
    # the folder itself may be hidden
    folder = tmp_path / ".cache" / "clips"
    for name in ("clip.mp4", "in/deep.mp4", *(pattern.replace("{}", "clip.mp4") for pattern in HIDDEN)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / "short.mp4", folder / name)
    for name in ("a.png", "._a.png", ".a.png"):
        shutil.copy(photograph, folder / name)
    assert list_videos(folder) == [folder / "clip.mp4", folder / "in" / "deep.mp4"]
    assert f"{folder}: left out are {len(HIDDEN)} hidden (such as " in caplog.text
    assert list_images(folder) == [folder / "a.png"]
    assert "left out are 2 hidden (such as ._a.png), 1 of another kind (such as clip.mp4)" in caplog.text
    for name in ("one", "._one", "__MACOSX"):
        (folder / "frames" / name).mkdir(parents=True)
        for frame in ("00000.png", "._00000.png"):
            shutil.copy(photograph, folder / "frames" / name / frame)
    both = FolderVideos(folder / "frames", [folder / "frames"], crop=(32, 32), num_frames=9)
    assert both.names == ["one"] and len(both.read("one").real) == 1
    # named by hand, a hidden file is meant
    assert list_images(folder / ".a.png") and list_videos(folder / "._clip.mp4")
    assert len(find_clips([folder / ".clip.mp4"], [], {})) == 1


# ------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("kind", ["gif", "mp4", "webm"])
def test_videos_carry_the_mark_and_play(tmp_path, kind):
    frames = torch.rand(3, 3, 32, 32)
    for name, options in (("marked", {"comment": OUTPUT_MARK}), ("plain", {})):
        write_video(tmp_path / f"{name}.{kind}", frames, 10, **options)
        assert len(read_video(tmp_path / f"{name}.{kind}").frames) == 3
    assert list_videos(tmp_path) == [tmp_path / f"plain.{kind}"]
    if kind == "gif":
        assert torch.equal(read_image(tmp_path / "marked.gif"), read_image(tmp_path / "plain.gif"))


def test_a_folder_that_is_animated_into_itself_stays_the_same(checkpoint, photograph, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(photograph, folder / "a.png")
    write_image(folder / "a.jpg", read_image(photograph))
    (folder / "IMG_1.cr2").write_bytes(b"raw")
    for kind in ("gif", "mp4"):
        for _ in range(3):
            assert run_animate(checkpoint, folder, *FAST, "--preview", "--out", folder, "--format", kind) == 0
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == ["IMG_1.cr2", "a.jpg", "a.png", "a_jpg.gif", "a_jpg.mp4", "a_png.gif", "a_png.mp4"]
    assert f"{folder}: left out are 2 made by an earlier run (such as a_jpg.gif), 1 of another kind" in caplog.text
    assert list_videos(folder) == []
    # named by hand, it is meant
    assert list_images(folder / "a_jpg.gif") == [folder / "a_jpg.gif"]


def test_images_never_share_an_output(photograph, tmp_path):
    images = [tmp_path / name for name in ("a.jpg", "a.png", "a_png.png", "b.png")]
    outputs, _ = animate.choose_outputs(images, tmp_path, None)
    assert [path.name for path in outputs] == ["a_jpg.mp4", "a_png.mp4", "a_png_png.mp4", "b.mp4"]
    with pytest.raises(ValueError, match="one/a.jpg and two/a.jpg have one name; right: outputs in different"):
        animate.choose_outputs([Path("one/a.jpg"), Path("two/a.jpg")], tmp_path, None)
