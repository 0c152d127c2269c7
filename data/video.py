"""Read videos by time stamp with PyAV, which wraps ffmpeg; `data/video_writer.py` writes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from data.media import MediaError, check_input_file, from_bytes

_FALLBACK_FPS = 30.0
_MAX_GAP_S = 10.0
_SEEK_FROM_S = 10.0
_SEEK_MARGIN_S = 3.0
_TRUNCATED_FRACTION = 0.9

TimedFrames = Iterator[tuple[float, av.VideoFrame]]


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says: upright size in px, frames per second, number of frames, length in seconds."""

    width: int
    height: int
    fps: float
    frames: int
    seconds: float


@dataclass(frozen=True)
class Video:
    """A clip in memory."""

    frames: torch.Tensor  # (T, 3, H, W) float32 in [0, 1]
    times_s: torch.Tensor  # (T,) float64, the first is 0
    fps: float
    source_fps: float


def probe_video(path: str | Path) -> VideoInfo:
    """Read a video's size, rate and length; frames are counted where the header does not say.

    Raises MediaError where `iterate_video` does.
    """
    with _Source(path) as source:
        frames = source.frames()
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{source.path}: holds no video frame that can be decoded; give a video file")
        height, width = source.pixels(first[1]).shape[:2]
        count = source.declared_frames or 1 + sum(1 for _ in frames)
        return VideoInfo(width, height, source.fps, count, count / source.fps)


def iterate_video(
    path: str | Path,
    *,
    fps: float | None = None,
    start_s: float = 0.0,
    seconds: float | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[float, torch.Tensor]]:
    """Yield (time in s from `start_s`, frame (3, H, W) float32 in [0, 1]) in constant memory, upright, square pixels.

    Times are the file's time stamps, counted from its first frame. Where stamps are missing, stuck or jump, frames
    follow each other at the nominal rate.

    Args:
        path: any video that ffmpeg reads.
        fps: gives for i = 0, 1, ... the source frame nearest to start_s + i / fps (the earlier of two equally near) and
            the time i / fps. None gives the source's own frames from `start_s` on; the first one's time is 0.
        start_s: where to begin, s.
        seconds: how much to read: round(seconds * fps) frames, or the source frames within it; None for all.
        size: (height, width) px to resample to (by area when reducing); the aspect ratio is not kept.

    Raises MediaError for a file that is missing or no video, that has nothing at `start_s`, or (after its last frame)
    that ends well before its header says. Raises ValueError for a number out of range.
    """
    for name, value in (("fps", fps), ("seconds", seconds)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}: expected more than 0, got {value}")
    if not (start_s >= 0 and math.isfinite(start_s)):
        raise ValueError(f"start_s: expected 0 or more, got {start_s}")
    with _Source(path) as source:
        picked = _source_frames(source, start_s, seconds) if fps is None else _resampled(source, fps, start_s, seconds)
        last, image = None, None
        for time_s, frame in picked:
            if frame is not last:
                last, image = frame, _to_image(source.pixels(frame), size)
            yield time_s, image.clone()
        if last is None:
            where = f"after {start_s:g} s" if source.seen else "that can be decoded"
            raise MediaError(f"{path}: holds no video frame {where}; give a video file that does")
        source.check_whole()


def _source_frames(source: _Source, start_s: float, seconds: float | None) -> TimedFrames:
    first_s = None
    for time_s, frame in source.frames(start_s):
        if time_s < start_s - 1e-6:
            continue
        first_s = time_s if first_s is None else first_s
        if seconds is not None and time_s - first_s > seconds - 1e-6:
            return
        yield time_s - first_s, frame


def _resampled(source: _Source, fps: float, start_s: float, seconds: float | None) -> TimedFrames:
    """Yield for each wanted time the nearest source frame; the last one is shown for one frame of the source."""
    count = math.inf if seconds is None else max(1, round(seconds * fps))
    index = 0
    frames = itertools.chain(source.frames(start_s - 1 / source.fps), [(None, None)])
    for (time_s, frame), (next_s, _) in itertools.pairwise(frames):
        until_s = time_s + 1 / source.fps - 1e-6 if next_s is None else (time_s + next_s + 1e-6) / 2
        while index < count and start_s + index / fps <= until_s:
            yield index / fps, frame
            index += 1
        if index >= count:
            return


def _to_image(pixels: np.ndarray, size: tuple[int, int] | None) -> torch.Tensor:
    image = from_bytes(pixels)  # (3, h, w)
    if size is None or pixels.shape[:2] == tuple(size):
        return image
    reducing = size[0] <= pixels.shape[0] and size[1] <= pixels.shape[1]
    values = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # (h, w, 3)
    values = cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA if reducing else cv2.INTER_LINEAR)
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()  # (3, H, W)


class _Source:
    """An open video and what its header says."""

    def __init__(self, path: str | Path) -> None:
        self.path = check_input_file(path, "a video file")
        self.seen = 0
        self._last_s = 0.0
        self._read_to_the_end = False
        self._open()

    def _open(self) -> None:
        try:
            self._container = av.open(f"file:{self.path}", metadata_errors="ignore")
        except av.FFmpegError:
            self._container = None
        self._stream = self._container and self._container.streams.best("video")
        if not self._stream:
            raise MediaError(f"{self.path}: is not a video that can be read (damaged, truncated, or sound only)")
        self._stream.thread_type = "AUTO"
        fps = self._stream.guessed_rate or self._stream.average_rate or 0
        self.fps = float(fps) if 0.01 < fps <= 1000 else _FALLBACK_FPS
        length_s = (self._container.duration or 0) / av.time_base
        self.declared_frames = max(0, self._stream.frames or round(length_s * self.fps))

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self, near_s: float = 0.0) -> TimedFrames:
        """Yield the frames with their times, s from the first; those long before `near_s` may be left out."""
        decoded = self._decode()
        first = next(decoded, None)
        if first is None:
            return
        ahead, time_s = None, 0.0
        if near_s >= _SEEK_FROM_S:
            ahead = self._seek(first, near_s)
            if ahead is None:
                self._container.close()
                self._open()  # begin again and walk
            decoded = self._decode()
            first, time_s = (next(decoded), 0.0) if ahead is None else (ahead, ahead.time - first.time)
        stamp_s = None
        for frame in itertools.chain([first], decoded):
            if stamp_s is not None:
                gap_s = math.nan if frame.time is None else frame.time - stamp_s
                # A stamp that is missing, stuck or jumps says nothing; the nominal rate stands in for that step.
                time_s += gap_s if 1e-6 < gap_s < max(_MAX_GAP_S, 10 / self.fps) else 1 / self.fps
            stamp_s = math.nan if frame.time is None else frame.time
            self.seen, self._last_s = self.seen + 1, time_s
            yield time_s, frame
        self._read_to_the_end = ahead is None

    def _seek(self, first: av.VideoFrame, time_s: float) -> av.VideoFrame | None:
        """Go to shortly before a time; return the frame there, None where the index is missing or stamps lie."""
        if first.time is None:
            return None
        with suppress(av.FFmpegError):
            self._container.seek(first.pts + int((time_s - _SEEK_MARGIN_S) / first.time_base), stream=self._stream)
            frame = next(self._decode(), None)
            if frame is not None and frame.time is not None and 0 < frame.time - first.time <= time_s - 2 / self.fps:
                return frame
        return None

    def _decode(self) -> Iterator[av.VideoFrame]:
        # A damaged packet is left out, as those after it may be whole; `check_whole` tells a file that is cut short.
        with suppress(av.FFmpegError):
            for packet in self._container.demux(self._stream):
                with suppress(av.FFmpegError):
                    yield from packet.decode()

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """Return upright RGB bytes (h, w, 3) with square pixels."""
        array = frame.to_ndarray(format="rgb24")
        aspect = self._stream.sample_aspect_ratio or 1
        if aspect != 1:
            array = cv2.resize(array, (max(1, round(array.shape[1] * aspect)), array.shape[0]))
        return np.rot90(array, frame.rotation // 90)

    def check_whole(self) -> None:
        """Raise MediaError when the stream ended clearly before the header's number of frames and length."""
        fewest = _TRUNCATED_FRACTION * self.declared_frames
        is_short = self.seen < min(fewest, self.declared_frames - 2) and self._last_s < fewest / self.fps
        if self._read_to_the_end and is_short:
            frames = f"{self.seen} of {self.declared_frames} frames"
            raise MediaError(f"{self.path}: ends after {frames}, so it is truncated; give a whole file")
