"""Read videos by time stamp with OpenCV; `data/video_writer.py` writes them.

Frames are float32 RGB tensors (3, H, W) in [0, 1], as in `data/media.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from data.media import MediaError, check_input_file, from_bytes

_FALLBACK_FPS = 30.0
_MAX_GAP_S = 10.0
_SEEK_FROM_S = 10.0
_SEEK_MARGIN_S = 3.0
_TRUNCATED_SHARE = 0.9


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
    """Frames (T, 3, H, W) float32 in [0, 1], their times (T,) float64 s (the first is 0), fps, the source's fps.

    The times are those the frames stand for: exactly i / fps where a rate was asked for, else the source's stamps.
    """

    frames: torch.Tensor
    times_s: torch.Tensor
    fps: float
    source_fps: float


def probe_video(path: str | Path) -> VideoInfo:
    """Read a video's size, rate and length; frames are counted where the header does not say.

    Raises MediaError for a missing or empty file, a folder, or a file without a frame that can be decoded.
    """
    with _Source(path) as source:
        if not source.grab():
            raise MediaError(f"{source.path}: holds no video frame that can be decoded; give a video file")
        height, width = source.retrieve().shape[:2]
        frames = source.declared_frames
        if frames <= 0:
            frames = 1
            while source.grab():
                frames += 1
        return VideoInfo(width, height, source.fps, frames, frames / source.fps)


def iterate_video(
    path: str | Path,
    *,
    fps: float | None = None,
    start_s: float = 0.0,
    seconds: float | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[float, torch.Tensor]]:
    """Yield (time in s from `start_s`, frame (3, H, W) float32 in [0, 1]) in constant memory.

    Times come from the file's time stamps, counted from its first frame, so a variable rate is followed; where stamps
    are missing, stuck or jump, frames follow each other at the nominal rate.

    Args:
        path: any video that OpenCV's ffmpeg reads; rotation metadata is applied.
        fps: gives for i = 0, 1, ... the source frame nearest to start_s + i / fps (the earlier of two equally near) and
            the time i / fps; as many as the source's length holds. None gives the source's own frames from `start_s` on
            with their own times, the first frame's being 0.
        start_s: where to begin, s.
        seconds: how much to read: round(seconds * fps) frames, or the source frames within it; None for all.
        size: (height, width) px to resample to (by area when reducing); the aspect ratio is not kept.

    Raises:
        MediaError: missing, empty, a folder, not a video, sound only, nothing at `start_s`; or, after the last
            frame that could be decoded, a file that ends well before its header says.
        ValueError: fps or seconds not above 0, start_s below 0.
    """
    for name, value in (("fps", fps), ("seconds", seconds)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}: expected more than 0, got {value}")
    if not (start_s >= 0 and math.isfinite(start_s)):
        raise ValueError(f"start_s: expected 0 or more, got {start_s}")
    return _iterate(Path(path), fps, start_s, seconds, size)


def read_video(
    path: str | Path,
    *,
    fps: float | None = None,
    start_s: float = 0.0,
    seconds: float | None = None,
    size: tuple[int, int] | None = None,
) -> Video:
    """Read a video, or a part of it, into one tensor; arguments and errors are those of `iterate_video`."""
    pairs = list(iterate_video(path, fps=fps, start_s=start_s, seconds=seconds, size=size))
    times_s = torch.tensor([time_s for time_s, _ in pairs], dtype=torch.float64)  # (T,)
    frames = torch.empty(len(pairs), *pairs[0][1].shape)  # (T, 3, H, W)
    for i in range(len(pairs)):
        # Each frame is let go once copied, so that the peak is not twice the result.
        frames[i], pairs[i] = pairs[i][1], None
    with _Source(path) as source:
        return Video(frames, times_s, source.fps if fps is None else float(fps), source.fps)


def _iterate(
    path: Path, fps: float | None, start_s: float, seconds: float | None, size: tuple[int, int] | None
) -> Iterator[tuple[float, torch.Tensor]]:
    with _Source(path) as source:
        source.seek(start_s if fps is None else start_s - 1 / source.fps)
        picked = _source_frames(source, start_s, seconds) if fps is None else _resampled(source, fps, start_s, seconds)
        last, frame, empty = None, None, True
        for time_s, array in picked:
            if array is not last:
                last, frame = array, _to_frame(array, size)
            yield time_s, frame.clone()
            empty = False
        if empty:
            where = f"after {start_s:g} s" if source.seen else "that can be decoded"
            raise MediaError(f"{path}: holds no video frame {where}; give a video file that does")
        source.check_whole()


def _source_frames(source: _Source, start_s: float, seconds: float | None) -> Iterator[tuple[float, np.ndarray]]:
    """Yield every source frame from `start_s` on."""
    first_s = None
    while source.grab():
        if source.time_s < start_s - 1e-6:
            continue
        first_s = source.time_s if first_s is None else first_s
        if seconds is not None and source.time_s - first_s > seconds - 1e-6:
            return
        yield source.time_s - first_s, source.retrieve()


def _resampled(
    source: _Source, fps: float, start_s: float, seconds: float | None
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield for each wanted time the nearest source frame; the last one is shown for one frame of the source."""
    count = math.inf if seconds is None else max(1, round(seconds * fps))
    index = 0
    before: tuple[float, np.ndarray] | None = None
    while index < count and source.grab():
        # Frames well before the first wanted time need no conversion.
        if source.time_s < start_s - max(_MAX_GAP_S, 2 / source.fps):
            continue
        now = (source.time_s, source.retrieve())
        while before is not None and index < count:
            wanted_s = start_s + index / fps
            if wanted_s - before[0] > now[0] - wanted_s + 1e-6:
                break
            yield index / fps, before[1]
            index += 1
        before = now
    while before is not None and index < count and start_s + index / fps < before[0] + 1 / source.fps - 1e-6:
        yield index / fps, before[1]
        index += 1


def _to_frame(array: np.ndarray, size: tuple[int, int] | None) -> torch.Tensor:
    """Turn OpenCV's BGR bytes (h, w, 3) into a frame (3, H, W)."""
    frame = from_bytes(cv2.cvtColor(array, cv2.COLOR_BGR2RGB))  # (3, h, w)
    if size is None or tuple(frame.shape[-2:]) == tuple(size):
        return frame
    reducing = size[0] <= frame.shape[-2] and size[1] <= frame.shape[-1]
    pixels = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())  # (h, w, 3)
    pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if reducing else cv2.INTER_LINEAR)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (3, H, W)


class _Source:
    """An open video: grab() moves on by a frame, time_s is that frame's time from the first, retrieve() decodes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = check_input_file(path, "a video file")
        # Read by OpenCV when it first opens a file; its ffmpeg would print beside our one line.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        self._open()

    def _open(self) -> None:
        self._capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            self._capture.release()
            raise MediaError(
                f"{self.path}: is not a video that can be read (damaged, truncated, or sound only); "
                "give an mp4, mov, webm, mkv, avi or gif file with a video stream"
            )
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0.01 < fps <= 1000 else _FALLBACK_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.declared_frames = int(count) if math.isfinite(count) and 0 < count < 1e9 else 0
        self.time_s = 0.0
        self.seen = 0
        self._stamp_s = 0.0
        self._first_stamp_s = 0.0
        self._sought = False
        self._ended = False

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def grab(self) -> bool:
        if not self._capture.grab():
            self._ended = True
            return False
        stamp_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self.seen == 0:
            self._first_stamp_s = stamp_s
        else:
            gap_s = stamp_s - self._stamp_s
            # A stamp that is missing, stuck or jumps says nothing; the nominal rate stands in for that step.
            self.time_s += gap_s if 1e-6 < gap_s < max(_MAX_GAP_S, 10 / self.fps) else 1 / self.fps
        self._stamp_s = stamp_s
        self.seen += 1
        return True

    def retrieve(self) -> np.ndarray:
        """Decode the grabbed frame: BGR bytes (h, w, 3)."""
        decoded, array = self._capture.retrieve()
        if not decoded or array is None:
            raise MediaError(f"{self.path}: frame {self.seen - 1} cannot be decoded; the file is damaged")
        return array

    def seek(self, time_s: float) -> None:
        """Skip ahead to shortly before `time_s` when that is far and the file's stamps can be trusted to say where."""
        if time_s < _SEEK_FROM_S or not self.grab():
            return
        self._capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * (self._first_stamp_s + time_s - _SEEK_MARGIN_S))
        landed = self._capture.grab()
        stamp_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if landed and 0 < stamp_s - self._first_stamp_s <= time_s - 2 / self.fps:
            self._stamp_s, self.time_s = stamp_s, stamp_s - self._first_stamp_s
            self._sought = True
            return
        # Index missing or stamps that lie: begin again and walk.
        self._capture.release()
        self._open()

    def check_whole(self) -> None:
        """Raise MediaError when the stream ended clearly before the header's number of frames and length."""
        if not self._ended or self._sought or self.declared_frames - self.seen <= 2:
            return
        declared_s = self.declared_frames / self.fps
        if self.seen < _TRUNCATED_SHARE * self.declared_frames and self.time_s < _TRUNCATED_SHARE * declared_s:
            raise MediaError(
                f"{self.path}: ends after {self.seen} of {self.declared_frames} frames, so it is truncated; "
                "give a whole file"
            )
