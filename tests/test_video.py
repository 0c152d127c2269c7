"""Videos: each format there and back, which frames a rate picks, bad files, and writers that die."""

from __future__ import annotations

import os
import resource
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from videos import copy_with_index, read_video, turn_clockwise, write_sound, write_uneven, write_video

from data import video as video_module
from data import video_writer
from data.media import MediaError, read_image
from data.video import iterate_video, probe_video
from data.video_writer import VideoWriter

STEP = 8


def make_frames(count: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Frames (N, 3, H, W) whose brightness, STEP / 255 an index, tells which one they are; red at the top left only."""
    frames = (torch.arange(count) * STEP / 255).view(-1, 1, 1, 1).repeat(1, 3, height, width)
    frames[:, 0, :16, :16] = 0.9
    frames[:, 1:, :16, :16] = 0.1
    return frames


def indices(frames: torch.Tensor) -> list[int]:
    return (frames[:, :, 24:, 24:].mean((1, 2, 3)) * 255 / STEP).round().int().tolist()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """25 frames at 25 fps, one second."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", make_frames(25))


def message_of(path: Path, **options: object) -> str:
    with pytest.raises(MediaError) as caught:
        read_video(path, **options)
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


@pytest.mark.parametrize("name, decibels", [("a.mp4", 36), ("a.webm", 34), ("a.gif", 28)])
def test_there_and_back(tmp_path, name, decibels):
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    waves = [
        0.5 + 0.4 * torch.sin(columns / 9 + i / 3 + c) * torch.cos(rows / 11 - c) for i in range(20) for c in (0, 1, 2)
    ]
    frames = torch.stack(waves).view(20, 3, 48, 64)
    with VideoWriter(tmp_path / name, fps=20) as writer:
        writer.write(frames[:3])
        writer.write(frames[3])
        writer.write(frames[4:])
        assert [p.name.startswith(".") for p in tmp_path.iterdir()] in ([True], [])
    assert os.listdir(tmp_path) == [name]
    read = read_video(tmp_path / name)
    assert read.frames.shape == (20, 3, 48, 64) and read.frames.dtype == torch.float32
    assert read.fps == pytest.approx(20)
    assert torch.allclose(read.times_s, torch.arange(20, dtype=torch.float64) / 20, atol=0.002)
    assert -10 * torch.log10((read.frames - frames).square().mean()) > decibels
    info = probe_video(tmp_path / name)
    assert (info.width, info.height, info.frames) == (64, 48, 20)
    assert info.fps == pytest.approx(20) and info.seconds == pytest.approx(1)


@pytest.mark.parametrize("name, size", [("a.mp4", (34, 52)), ("a.webm", (34, 52)), ("a.gif", (33, 51))])
def test_odd_sizes(tmp_path, name, size):
    frames = make_frames(6, 33, 51)
    frames[:, 2, -1, -20:] = 1.0  # on the last row, so that what is repeated shows
    read = read_video(write_video(tmp_path / name, frames)).frames
    assert read.shape == (6, 3, *size)
    assert (read[:, :, :33, :51] - frames).abs().mean() < 0.04
    assert (read[:, 2, -1, -15:] - read[:, 2, 32, -15:]).abs().mean() < 0.1


def test_frames_are_a_folder_of_exact_pictures(tmp_path):
    frames = make_frames(11, 17, 31)
    for path, options in ((tmp_path / "a", {}), (tmp_path / "b.c", {"format": "frames"}), (tmp_path / "a", {})):
        write_video(path, frames, **options)
        assert sorted(os.listdir(path)) == [f"{i:05d}.png" for i in range(11)]
    assert (read_image(tmp_path / "a" / "00007.png") - frames[7]).abs().max() <= 0.5 / 255 + 1e-6
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(MediaError, match="other things than numbered frames"):
        VideoWriter(tmp_path / "a", fps=25)
    assert sorted(os.listdir(tmp_path)) == ["a", "b.c"]


def test_mp4_is_what_players_take(clip):
    with av.open(str(clip)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, container.streams.video[0].average_rate) == ("h264", "yuv420p", 25)
        assert (context.colorspace, context.color_range) == (6, 1)  # BT.601, luminance from 16 to 235
    data = clip.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_gif_loops_for_ever_and_keeps_repeated_frames(tmp_path):
    path = write_video(tmp_path / "a.gif", make_frames(1).repeat(9, 1, 1, 1), fps=30)
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in path.read_bytes()
    # GIF counts in 1/100 s, so that the header's rate is not 30, but the stamps keep step.
    own = read_video(path)
    assert len(own.frames) == 9 and own.times_s[8].item() == pytest.approx(8 / 30, abs=0.006)
    # OpenCV 4 gives the last frame one more 1/100 s than OpenCV 5, which makes room for a tenth.
    assert len(read_video(path, fps=30).frames) in (9, 10)


def test_frames_of_25_fps_read_at_30(clip):
    read = read_video(clip, fps=30)
    # The nearest of 0, 40, 80, ... ms to each i / 30 s; half way (100 ms) the earlier.
    numbers = "0 1 2 2 3 4 5 6 7 7 8 9 10 11 12 12 13 14 15 16 17 17 18 19 20 21 22 22 23 24"
    assert indices(read.frames) == [int(number) for number in numbers.split()]
    assert torch.allclose(read.times_s, torch.arange(30, dtype=torch.float64) / 30)
    assert read.fps == 30


def test_start_seconds_and_lower_rates(clip):
    assert indices(read_video(clip, fps=10).frames) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]
    assert indices(read_video(clip, fps=25, start_s=0.4, seconds=0.2).frames) == [10, 11, 12, 13, 14]
    assert indices(read_video(clip, fps=25, start_s=0.43, seconds=0.12).frames) == [11, 12, 13]
    tail = read_video(clip, fps=50, start_s=0.92)
    assert indices(tail.frames) == [23, 23, 24, 24] and torch.allclose(tail.times_s, torch.arange(4).double() / 50)
    own = read_video(clip, start_s=0.5, seconds=0.16)
    assert indices(own.frames) == [13, 14, 15, 16]
    assert torch.allclose(own.times_s, torch.tensor([0, 0.04, 0.08, 0.12]).double(), atol=1e-6)
    assert len(read_video(clip, seconds=100).frames) == 25
    assert "after 1.5 s" in message_of(clip, start_s=1.5)
    assert "after 1.5 s" in message_of(clip, fps=30, start_s=1.5)


def test_iterating_gives_frames_of_ones_own(clip):
    pairs = iterate_video(clip, fps=50, seconds=0.2)
    for i, (time_s, frame) in enumerate(pairs):
        assert time_s == pytest.approx(i / 50) and frame[:, 30, 30].max() < 0.99
        frame.fill_(1)
    assert i == 9


def test_size_is_height_width_and_averaged(clip):
    read = read_video(clip, size=(12, 32), seconds=0.04)
    whole = read_video(clip, seconds=0.04).frames
    assert read.frames.shape == (1, 3, 12, 32)
    assert torch.allclose(read.frames, torch.nn.functional.avg_pool2d(whole, (4, 2)), atol=1e-5)
    assert read_video(clip, size=(96, 64), seconds=0.04).frames.shape == (1, 3, 96, 64)


def test_variable_rate_is_followed_by_its_stamps(tmp_path):
    # Frames 5 to 14 are gone, their time is not.
    kept = [*range(5), *range(15, 25)]
    path = write_uneven(tmp_path / "gap.mkv", make_frames(25)[kept], [index / 25 for index in kept])
    own = read_video(path)
    assert indices(own.frames) == kept
    assert own.times_s[5].item() == pytest.approx(0.6, abs=0.002)
    assert indices(read_video(path, fps=25).frames) == [*range(4), *[4] * 6, *[15] * 5, *range(15, 25)]


def test_seeking_far_ahead_finds_the_same_frame(tmp_path):
    frames = make_frames(30, 32, 32)
    path = write_video(tmp_path / "long.mp4", torch.cat([frames] * 20), fps=25)  # 24 s
    assert video_module._SEEK_FROM_S < 15
    for options in ({"fps": 25.0, "seconds": 0.4}, {"seconds": 0.4}, {"fps": 30.0, "seconds": 0.3}):
        ahead = read_video(path, start_s=15.2, **options)
        first = round(15.2 * 25) % 30
        expected = [first + round(i * 25 / options.get("fps", 25) - 1e-6) for i in range(len(ahead.frames))]
        level = (ahead.frames[:, :, 24:, 24:].mean((1, 2, 3)) * 255 / STEP).round().int().tolist()
        assert level == [i % 30 for i in expected]


@pytest.mark.parametrize(
    "stamps_ms, expected_s",
    [
        ([0.0] * 5, [0, 0.05, 0.1, 0.15, 0.2]),
        ([None] * 3, [0, 0.05, 0.1]),
        ([400, 440, 500, 580], [0, 0.04, 0.1, 0.18]),
        ([0, 50, 9e7, 9e7 + 50], [0, 0.05, 0.1, 0.15]),
        ([0, 50, -1000, -950], [0, 0.05, 0.1, 0.15]),
    ],
    ids=["stuck", "missing", "late start", "jump ahead", "jump back"],
)
def test_stamps_that_say_nothing(monkeypatch, clip, stamps_ms, expected_s):
    def decode(source):
        source.fps, source.declared_frames = 20.0, 0
        for index, stamp_ms in enumerate(stamps_ms):
            array = np.full((20, 20, 3), index, np.uint8)
            time_s = None if stamp_ms is None else stamp_ms / 1000
            yield SimpleNamespace(time=time_s, rotation=0, color_trc=2, to_ndarray=lambda array=array, **_: array)

    monkeypatch.setattr(video_module._Source, "_decode", decode)
    assert read_video(clip).times_s.tolist() == pytest.approx(expected_s)
    assert probe_video(clip).frames == len(stamps_ms)
    assert probe_video(clip, count_frames=False).frames == 0


def test_rotation_and_pixel_aspect_are_applied(clip, tmp_path):
    path = turn_clockwise(clip, tmp_path / "turned.mp4")
    info = probe_video(path)
    frame = read_video(path, seconds=0.04).frames[0]
    assert (info.width, info.height) == (48, 64) and frame.shape == (3, 64, 48)
    # clockwise: the red corner goes from the top left to the top right
    assert frame[0, 6, 40] > 0.7 and frame[0, 6, 6] < 0.3
    wide = write_uneven(tmp_path / "wide.mkv", make_frames(2), [0, 0.04], sample_aspect_ratio=Fraction(3, 2))
    info = probe_video(wide)
    frame = read_video(wide).frames[0]
    assert (info.width, info.height) == (96, 48) and frame.shape == (3, 48, 96)
    assert frame[0, 6, 20] > 0.7 and frame[0, 6, 28] < 0.3


def test_bad_videos(clip, tmp_path, capfd):
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    write_sound(tmp_path / "sound.wav"), write_sound(tmp_path / "sound.mp4")
    whole = write_video(tmp_path / "whole.mp4", torch.rand(40, 3, 48, 64, generator=torch.Generator().manual_seed(1)))
    data = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "header.mp4").write_bytes(data[:40])
    back = copy_with_index(whole, tmp_path / "back.mp4", index_first=False)
    back.write_bytes(back.read_bytes()[: len(data) // 2])
    capfd.readouterr()
    for name in ("text.mp4", "sound.wav", "sound.mp4", "header.mp4", "back.mp4"):
        assert "is not a video that can be read" in message_of(tmp_path / name)
        with pytest.raises(MediaError):
            probe_video(tmp_path / name)
    assert "empty" in message_of(tmp_path / "empty.mp4")
    assert "folder" in message_of(tmp_path / "folder.mp4")
    assert "no such file" in message_of(tmp_path / "missing.mp4")
    assert "of 40 frames" in message_of(tmp_path / "cut.mp4")
    assert "of 40 frames" in message_of(tmp_path / "cut.mp4", fps=30)
    assert len(read_video(tmp_path / "cut.mp4", seconds=0.2).frames) == 5
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_writer_leaves_nothing(tmp_path, name, error):
    with pytest.raises(error, match="mine"), VideoWriter(tmp_path / name, fps=25) as writer:
        writer.write(make_frames(3))
        raise error("mine")
    assert os.listdir(tmp_path) == []


def test_a_batch_is_encoded_while_the_next_one_is_made(tmp_path, monkeypatch):
    made_next, write = threading.Event(), VideoWriter.write

    def waiting(writer, batch):
        assert made_next.wait(60)
        write(writer, batch)

    def batches():
        yield make_frames(3)
        made_next.set()
        yield make_frames(2)

    monkeypatch.setattr(VideoWriter, "write", waiting)
    video_writer.write_video(tmp_path / "a.mp4", batches(), 25)
    assert len(read_video(tmp_path / "a.mp4").frames) == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("encoder_fails", [False, True])
def test_an_error_beside_the_encoder_or_in_it_leaves_nothing(tmp_path, monkeypatch, error, encoder_fails):
    threads, write = [], VideoWriter.write

    def slow(writer, batch):
        threads.append(threading.current_thread())
        time.sleep(0.1)
        write(writer, batch)
        if encoder_fails:
            raise error("mine")

    def batches():
        yield make_frames(2)
        yield make_frames(2)
        if not encoder_fails:
            raise error("mine")

    monkeypatch.setattr(VideoWriter, "write", slow)
    with pytest.raises(error, match="mine"):
        video_writer.write_video(tmp_path / "a.mp4", batches(), 25)
    assert not any(thread.is_alive() for thread in threads) and os.listdir(tmp_path) == []


def test_an_interrupted_writer_keeps_the_earlier_video(tmp_path):
    before = write_video(tmp_path / "a.mp4", make_frames(4)).read_bytes()
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", fps=25) as writer:
        writer.write(make_frames(9))
        raise KeyboardInterrupt
    assert (tmp_path / "a.mp4").read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


def test_a_full_disk_and_a_missing_encoder_are_one_line(tmp_path, monkeypatch):
    noise = torch.rand(30, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("a.mp4", "a.webm", "a.gif"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # what is longer cannot be written
            with pytest.raises(MediaError) as caught:
                write_video(tmp_path / name, noise)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert f"{name}: cannot be written (File too large)" in str(caught.value)
        assert os.listdir(tmp_path) == []
    monkeypatch.setitem(video_writer._CODECS, "mp4", ("libnone", "yuv420p", {}, {}))
    with pytest.raises(MediaError, match="a.mp4: ffmpeg could not write it .no encoder libnone.;"):
        write_video(tmp_path / "a.mp4", noise[:1])
    assert os.listdir(tmp_path) == []


def test_writing_to_bad_places_and_with_bad_flags(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    for name, options, part in (
        ("file/a.mp4", {}, "its folder cannot be made"),
        ("a.avi", {}, "'.avi'"),
        ("a.mp4", {"format": "mkv"}, "'mkv'"),
        ("a.gif", {"format": "mp4"}, "ending in .mp4"),
        ("a.mp4", {"format": "frames"}, "folder's name"),
        ("a.gif", {"fps": 60}, "0.1 to 50"),
        ("a.mp4", {"fps": 0}, "fps 0: right: 0.1 to 1000 for mp4"),
        ("folder.mp4", {}, "is a folder"),
        ("file", {}, "is a file"),
    ):
        with pytest.raises(MediaError) as caught:
            VideoWriter(tmp_path / name, **{"fps": 25, **options})
        assert part in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(MediaError, match="no frames"), VideoWriter(tmp_path / "none.mp4", fps=25):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4"]


def test_wrong_frames(tmp_path):
    for wrong in (torch.zeros(1, 16, 16), torch.zeros(3, 18, 16), torch.full((3, 16, 16), torch.nan)):
        with pytest.raises(ValueError, match="expected"), VideoWriter(tmp_path / "a.mp4", fps=25) as writer:
            writer.write(torch.zeros(3, 16, 16))
            writer.write(wrong)
    assert os.listdir(tmp_path) == []
