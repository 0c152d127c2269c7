"""Write videos as a stream with PyAV, in memory that does not grow with their length."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import torch

from data.files import writing_problem
from data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaError, atomic_path, to_bytes, write_image

# browsers show a GIF frame of less than 2/100 s for 10/100 s instead
MIN_FPS, MAX_FPS = 0.1, {"mp4": 1000.0, "webm": 1000.0, "gif": 50.0, "frames": 1000.0}

# format -> encoder, its pixel format and options, options of the file
_VP9 = {"crf": "22", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
_CODECS = {
    "mp4": ("libx264", "yuv420p", {"crf": "17", "preset": "medium"}, {"movflags": "faststart"}),
    "webm": ("libvpx-vp9", "yuv420p", _VP9, {}),
    "gif": ("gif", "pal8", {}, {"loop": "0"}),
}
# ffmpeg's numbers for BT.601 and for luminance from 16 to 235, which players would else guess
_SMPTE170M, _LIMITED_RANGE = 6, 1
# The frames that the palette of a GIF is made of; one palette a frame would make static areas flicker.
_PALETTE_FRAMES = 16


class VideoWriter:
    """Write frames one after another as mp4, webm, gif or a folder of PNGs, in constant memory; a context manager.

    mp4 is h264, webm is VP9, gif loops for ever with the best 256 colours of its first 16 frames, frames is a folder of
    00000.png, 00001.png, ... mp4 and webm repeat the last column or row of an odd size once. The final name appears
    when the block ends well and replaces what was there; after an exception nothing stays.
    """

    def __init__(self, path: str | Path, *, fps: float, format: str | None = None, comment: str = "") -> None:
        """Check as `check_video` does; the comment, up to 255 characters of ASCII, is written into the file."""
        self.path = Path(path)
        self.format = check_video(self.path, fps=fps, format=format)
        self.num_frames, self.comment = 0, comment
        self._rate = Fraction(round(100 * fps), 100)
        self._size: torch.Size | None = None
        self._stack = ExitStack()
        self._temporary: Path | None = None
        self._container: av.container.OutputContainer | None = None

    def __enter__(self) -> VideoWriter:
        self._temporary = self._stack.enter_context(atomic_path(self.path))
        # Before the file takes its name or is removed, it is ended.
        self._stack.push(self._end)
        if self.format == "frames":
            self._temporary.mkdir()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, frames: torch.Tensor) -> None:
        """Add frames (N, 3, H, W) or one frame (3, H, W) in [0, 1], all of one size; ValueError for wrong ones."""
        self._size = self._size or frames.shape[-2:]
        if frames.shape[-2:] != self._size:
            raise ValueError(f"frames: expected size {tuple(self._size)} as before, got {tuple(frames.shape[-2:])}")
        for frame in frames.reshape(-1, *frames.shape[-3:]):
            if self.format == "frames":
                write_image(self._temporary / f"{self.num_frames:05d}.png", frame)
            else:
                self._encode(to_bytes(frame))
            self.num_frames += 1

    def _encode(self, array: np.ndarray) -> None:
        if self.format != "gif":
            height, width = array.shape[:2]
            array = np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(array)
        frame.pts, frame.time_base = self.num_frames, 1 / self._rate
        with self._ffmpeg_errors():
            if self._container is None:
                self._open(frame.width, frame.height)
            self._push(frame)

    def _open(self, width: int, height: int) -> None:
        codec, pixel_format, options, file_options = _CODECS[self.format]
        # else 12:30.mp4 would be opened by a protocol of the name 12
        self._container = av.open(f"file:{self._temporary}", "w", format=self.format, options=file_options)
        self._container.metadata["comment"] = self.comment
        self._stream = self._container.add_stream(codec, rate=self._rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, pixel_format
        self._stream.thread_type = "AUTO"
        if self.format == "gif":
            self._palette = _palette_graph(width, height, 1 / self._rate)
        else:
            context = self._stream.codec_context
            context.colorspace, context.color_range = _SMPTE170M, _LIMITED_RANGE

    def _push(self, frame: av.VideoFrame | None) -> None:
        """Give a frame to the encoder; None ends the stream."""
        ready: list[av.VideoFrame | None] = []
        if self.format == "gif":
            self._palette.push(frame)
            with suppress(av.BlockingIOError, av.EOFError):
                while True:
                    ready.append(self._palette.pull())
        elif frame is not None:
            options = {"dst_colorspace": "ITU601", "dst_color_range": "MPEG", "interpolation": "BICUBIC"}
            ready.append(frame.reformat(format=self._stream.pix_fmt, **options))
        for converted in ready if frame is not None else [*ready, None]:
            self._container.mux(self._stream.encode(converted))

    def _end(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.num_frames == 0:
            raise MediaError(f"{self.path}: no frames were written; a video needs at least one")
        if self._container is None:
            return
        with self._ffmpeg_errors() if kind is None else suppress(av.FFmpegError), self._container:
            if kind is None:
                self._push(None)
        if kind is None and self.comment and self.format == "gif":  # ffmpeg writes none there
            with self._temporary.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x21\xfe%c%s\0;" % (len(self.comment), self.comment.encode()))

    @contextmanager
    def _ffmpeg_errors(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, av.codec.codec.UnknownCodecError) as error:
            reason = getattr(error, "strerror", None) or f"no encoder {error}"
            raise MediaError(f"{self.path}: ffmpeg could not write it ({reason}); try another format") from error


def write_video(path: str | Path, frames: torch.Tensor | Iterable[torch.Tensor], fps: float, **options: Any) -> None:
    """Write batches of frames (N, 3, H, W) as a video; a thread encodes each while the next one is made."""
    # On an error the thread ends its batch, and only then the writer removes what it has begun.
    with VideoWriter(path, fps=fps, **options) as writer, ThreadPoolExecutor(1, "video") as encoder:
        encoding = encoder.submit(lambda: None)  # so that the first batch, too, follows one
        for batch in frames:
            encoding.result()
            encoding = encoder.submit(writer.write, batch)
        encoding.result()


def _palette_graph(width: int, height: int, time_base: Fraction) -> av.filter.Graph:
    # ordered dither keeps static areas static
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=time_base)
    split, paletted = graph.add("split"), graph.add("paletteuse", "dither=bayer:bayer_scale=4")
    first, palette = graph.add("trim", f"end_frame={_PALETTE_FRAMES}"), graph.add("palettegen")
    graph.link_nodes(source, split, paletted, graph.add("buffersink"))
    split.link_to(first, output_idx=1)
    first.link_to(palette)
    palette.link_to(paletted, input_idx=1)
    graph.configure()
    return graph


def check_video(path: str | Path, *, fps: float, format: str | None = None) -> str:
    """Return the format that a `VideoWriter` would write here: "mp4", "webm", "gif" or "frames". Nothing is made.

    Without `format` the suffix decides (none: frames). MediaError for a format, suffix, rate or place that cannot be.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if format is None:
        format = suffix[1:] or "frames"
        if suffix and format not in _CODECS:
            raise MediaError(f"{path}: cannot write a '{suffix}' video; use .mp4, .webm, .gif or a folder for frames")
    if format not in MAX_FPS:
        raise MediaError(f"{path}: unknown video format '{format}'; use one of {', '.join(MAX_FPS)}")
    if format == "frames" and suffix in VIDEO_SUFFIXES + IMAGE_SUFFIXES:
        raise MediaError(f"{path}: is a folder's name in the format frames; leave '{suffix}' away")
    if format != "frames" and suffix != f".{format}":
        raise MediaError(f"{path}: the format {format} needs a name ending in .{format}")
    if not MIN_FPS <= fps <= MAX_FPS[format]:
        raise MediaError(f"fps {fps:g}: right: {MIN_FPS:g} to {MAX_FPS[format]:g} for {format}, {path}")
    problem = writing_problem(path)
    if format == "frames" and path.is_file():
        problem = "is a file; name a folder for the frames"
    elif format == "frames" and path.is_dir():
        # only frames written earlier are replaced
        if not all(re.fullmatch(r"\d{5,}\.png", inside.name) for inside in path.iterdir()):
            problem = "holds other things than numbered frames; name a new folder"
    elif path.is_dir():
        problem = f"is a folder; give the name of a {format} file"
    if problem:
        raise MediaError(f"{path}: {problem}")
    return format
