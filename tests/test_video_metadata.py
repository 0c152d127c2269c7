"""Videos whose header says more than their pixels: aspect, fields, HDR, covers, two streams, rates, damage."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

import data.video
from data.media import MediaError
from data.video import iterate_video, probe_video

COUNT, STEP = 24, 8


def write(path: Path, *videos: list[np.ndarray], rate: Fraction = Fraction(24), **more) -> Path:
    """Write grey frames (H, W), a stream a video; `more`: options of the encoder, or attributes of its context."""
    options = more.pop("options", {"crf": "8"})
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=rate, options=options) for _ in videos]
        for stream, arrays in zip(streams, videos, strict=True):
            stream.height, stream.width = arrays[0].shape
            stream.pix_fmt = "yuv420p"
            for name, value in more.items():
                setattr(stream.codec_context, name, value)
        for stream, arrays in zip(streams, videos, strict=True):
            for index, array in enumerate(arrays):
                frame = av.VideoFrame.from_ndarray(array.astype(np.uint8), format="gray")
                frame.pts, frame.time_base = index, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def numbered(count: int = COUNT) -> list[np.ndarray]:
    """Frames whose brightness tells their number."""
    return [np.full((48, 64), STEP * index + 20) for index in range(count)]


def read(path: Path, **options) -> tuple[list[int], list[float]]:
    """Return the numbers of the frames read, and their times."""
    pairs = list(iterate_video(path, **options))
    return [round((float(frame.mean()) * 255 - 20) / STEP) for _, frame in pairs], [time_s for time_s, _ in pairs]


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv", "ts", "avi"])
@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(24)], ids=["23.976", "24"])
def test_rate_stamps_and_pixel_aspect_of_each_container(tmp_path, kind, rate):
    path = write(tmp_path / f"a.{kind}", numbered(), rate=rate, sample_aspect_ratio=Fraction(2))
    info, (numbers, times_s) = probe_video(path), read(path)
    assert (info.width, info.height, info.frames) == (128, 48, COUNT)
    assert info.fps == pytest.approx(float(rate), abs=1e-4)
    assert numbers == list(range(COUNT))
    # Matroska counts in ms. AVI stores no times of presentation, and these frames are stored in another order.
    np.testing.assert_allclose(times_s, np.arange(COUNT) / float(rate), atol=1.1e-3)


def test_fields_are_made_whole_frames(tmp_path):
    """A bar moves 8 px a field: each row of a frame as it is stored shows one of two places."""
    fields = []
    for number in range(2 * COUNT):
        array = np.full((48, 256), 30)
        array[:, 4 * number : 4 * number + 40] = 220
        fields.append(array)
    woven = [
        np.where(np.arange(48)[:, None] % 2, second, first)
        for first, second in zip(fields[::2], fields[1::2], strict=True)
    ]
    interlaced = write(tmp_path / "i.mp4", woven, options={"crf": "8", "flags": "+ilme+ildct", "x264-params": "tff=1"})
    pairs = list(iterate_video(interlaced))
    assert len(pairs) == COUNT and pairs[-1][0] == pytest.approx((COUNT - 1) / 24)

    def combing(image) -> float:
        return float((image[:, 2:-1] - (image[:, 1:-2] + image[:, 3:]) / 2).abs().mean())

    progressive = list(iterate_video(write(tmp_path / "p.mp4", woven)))
    for (_, whole), (_, stored) in zip(pairs[2:-2], progressive[2:-2], strict=True):
        assert combing(whole) < 0.3 * combing(stored)


def write_10_bit(path: Path, transfer: int, primaries: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        tags = {"color_trc": transfer, "color_primaries": primaries, "colorspace": 9, "color_range": 1}
        frame = av.VideoFrame(64, 48, "yuv420p10le")
        for plane, code in zip(frame.planes, (400, 480, 640), strict=True):
            plane.update(np.full(plane.buffer_size // 2, code, "<u2").tobytes())
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
            setattr(frame, name, value)
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG")])
def test_hdr_is_tone_mapped_with_a_note(tmp_path, caplog, monkeypatch, transfer, name):
    caplog.set_level(logging.INFO)
    plain = next(iterate_video(write_10_bit(tmp_path / "sdr.mkv", 1, 1)))[1][:, 24, 32]
    path = write_10_bit(tmp_path / f"{name}.mkv", transfer, 9)
    mapped = next(iterate_video(path))[1][:, 24, 32]
    monkeypatch.setattr(data.video, "_TONE_MAP", None)  # it takes seconds, and is made once
    assert next(iterate_video(path))[1][:, 24, 32].equal(mapped)
    assert [record.getMessage() for record in caplog.records] == [f"{path}: is HDR ({name}), tone-mapped to BT.709"]
    # The same red is more saturated in the smaller gamut.
    assert mapped[0] - mapped[1] > 1.1 * (plain[0] - plain[1]) and mapped[0] < 1


def test_a_cover_is_no_video(tmp_path):
    """A cover is larger than the video here, so that by size alone it would be read."""
    for name, body in {"music": [], "film": numbered()}.items():
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            cover = container.add_stream("mjpeg", rate=24, options={"strict": "unofficial"})
            cover.width, cover.height, cover.pix_fmt = 640, 480, "yuv420p"
            cover.disposition = Disposition.attached_pic
            film = container.add_stream("libx264", rate=24) if body else None
            if film:
                film.height, film.width, film.pix_fmt = 48, 64, "yuv420p"
            blank = av.VideoFrame(640, 480, "yuv420p")
            blank.pts, blank.time_base = 0, Fraction(1, 24)
            container.mux([*cover.encode(blank), *cover.encode(None)])
            for index, array in enumerate(body):
                frame = av.VideoFrame.from_ndarray(array.astype(np.uint8), format="gray")
                frame.pts, frame.time_base = index, Fraction(1, 24)
                container.mux(film.encode(frame))
            container.mux(film.encode(None) if film else [])
    with pytest.raises(MediaError, match=r"music.mp4: is not a video that can be read .*sound only"):
        probe_video(tmp_path / "music.mp4")
    info = probe_video(tmp_path / "film.mp4")
    assert (info.width, info.height) == (64, 48)


def test_of_two_streams_the_one_that_is_read_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    info = probe_video(write(tmp_path / "two.mkv", numbered(), [np.zeros((96, 128))]))
    assert "two.mkv: holds 2 video streams; number" in caplog.text
    assert f", {info.width} x {info.height} px, is read" in caplog.text


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_damage_in_the_middle_leaves_the_other_times_as_they_are(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 20, (COUNT, 48, 64))
    frames = [grey + extra for grey, extra in zip(numbered(), noise, strict=True)]
    options = {"crf": "20", "g": "1", "bf": "0"}
    path = write(tmp_path / f"a.{kind}", frames, options=options)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 12] = bytes(len(data) // 12)
    path.write_bytes(bytes(data))
    numbers, times_s = read(path)
    assert len(numbers) >= COUNT // 2
    late = [(number, time_s) for number, time_s in zip(numbers, times_s, strict=True) if number > 0.75 * COUNT]
    # The noise makes frames brighter by about one step.
    assert late and all(time_s == pytest.approx((number - 1) / 24, abs=0.05) for number, time_s in late)
