"""Videos that tests make and read: whole ones, copies with another header, uneven time stamps, sound alone."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from data.clips import ClipRow, ClipSet
from data.media import to_bytes
from data.video import Video, iterate_video, probe_video
from data.video_writer import VideoWriter

# The whole texture sways in these tests, as before a moving camera.
FAST = ["--method", "dis_fast", "--size", "64x64", "--workers", "1", "--max-camera-px", "100"]
ALL = ("kept", "pairs_only", "dropped")


def rows_by_name(folder: Path) -> dict[str, ClipRow]:
    """Return all rows of a set by their ids without the digests: sway, sway-3s."""
    return {name_of(row.id): row for row in ClipSet(folder).rows(status=ALL)}


def name_of(clip_id: str) -> str:
    """Return a clip's id without its digest."""
    return re.sub(r"-[0-9a-f]{8}(?=-|$)", "", clip_id)


def swaying(count: int, fps: float, amplitude_px: float = 1.5, size=(64, 64), seed: int = 0) -> torch.Tensor:
    """Frames of a texture swaying sideways once in 5 s, dx = a sin(2 pi t / 5); grey, as 4:2:0 would blur colours."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, size[0] // 8, size[1] // 8, generator=generator).expand(-1, 3, -1, -1)
    texture = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    times = torch.arange(count) / fps
    dx = amplitude_px * torch.sin(2 * torch.pi * times / 5)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    x = x - dx.view(-1, 1, 1)
    grid = torch.stack([2 * x / (size[1] - 1) - 1, (2 * y / (size[0] - 1) - 1).expand_as(x)], -1)
    return F.grid_sample(texture.expand(count, -1, -1, -1), grid, padding_mode="reflection", align_corners=True)


def write_video(path: Path, frames: torch.Tensor, fps: float = 25, **options: object) -> Path:
    """Write frames (T, 3, H, W) with the program's own writer."""
    with VideoWriter(path, fps=fps, **options) as writer:
        writer.write(frames)
    return path


def read_video(path: Path, **options: object) -> Video:
    """Read a video, or a part of it, into one tensor; the options are those of `iterate_video`."""
    times_s, frames = zip(*iterate_video(path, **options), strict=True)
    times = torch.tensor(times_s, dtype=torch.float64)
    return Video(torch.stack(frames), times, options.get("fps") or probe_video(path).fps)


def write_uneven(path: Path, frames: torch.Tensor, times_s: list[float], codec: str = "libx264", **stream) -> Path:
    """Write frames (T, 3, H, W) at time stamps of any spacing; `stream` sets attributes of the video stream."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options={"crf": "10"} if codec == "libx264" else {})
        video.height, video.width = frames.shape[-2:]
        video.pix_fmt = "yuv420p" if codec == "libx264" else "yuv444p"
        video.codec_context.time_base = Fraction(1, 1000)
        for name, value in stream.items():
            setattr(video.codec_context, name, value)
        for time_s, array in zip(times_s, to_bytes(frames), strict=True):
            frame = av.VideoFrame.from_ndarray(array)
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def copy_with_index(source: Path, target: Path, *, index_first: bool) -> Path:
    """Copy an mp4's packets into one whose index comes first, as in files for the web, or last."""
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
    return target


def turn_clockwise(source: Path, target: Path) -> Path:
    """Copy an mp4 with the display matrix that a telephone held upright writes: a quarter turn clockwise."""
    data = bytearray(source.read_bytes())
    matrix = data.index(b"tkhd") + 44
    one = 1 << 16
    data[matrix : matrix + 36] = np.array([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    target.write_bytes(bytes(data))
    return target


def write_sound(path: Path) -> Path:
    """Write a fifth of a second of sound, without a video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac" if path.suffix == ".mp4" else "pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        resampler = av.AudioResampler(stream.codec_context.format, "mono", 8000)
        for part in [*resampler.resample(frame), None]:
            container.mux(stream.encode(part))
    return path
