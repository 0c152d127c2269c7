"""Read videos by time stamp with PyAV, which wraps ffmpeg; `data/video_writer.py` writes them."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from av.stream import Disposition

from data.files import MediaError, check_input_file, warn_once
from data.media import from_bytes

_FALLBACK_FPS = 30.0
_MAX_GAP_S = 10.0
_SEEK_FROM_S = 10.0
_SEEK_MARGIN_S = 3.0
_TRUNCATED_FRACTION = 0.9
_HDR = {16: "PQ", 18: "HLG"}  # transfer functions by their numbers in ITU-T H.273
_DEINTERLACE = (("bwdif", "mode=send_frame:deint=interlaced"),)
_TONE_MAP = ("scale", "out_transfer=bt709:out_primaries=bt709:intent=perceptual"), ("format", "rgb24")
_tone_mapping: dict[tuple, av.filter.Graph] = {}  # the one used last, by what it depends on: it takes seconds to make

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


def probe_video(path: str | Path, *, count_frames: bool = True) -> VideoInfo:
    """Read size, rate and length; frames the header does not tell are counted, or 0. MediaError as `iterate_video`."""
    with _Source(path) as source:
        frames = source.frames()
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{source.path}: holds no video frame that can be decoded; give a video file")
        height, width = source.pixels(first[1]).shape[:2]
        count = source.declared_frames or (1 + sum(1 for _ in frames) if count_frames else 0)
        return VideoInfo(width, height, source.fps, count, count / source.fps)


def iterate_video(
    path: str | Path,
    *,
    fps: float | None = None,
    start_s: float = 0.0,
    seconds: float | None = None,  # how much to read: round(seconds * fps) frames, or the source's within it; None: all
    size: tuple[int, int] | None = None,  # (height, width) px to resample to, whatever the aspect
) -> Iterator[tuple[float, torch.Tensor]]:
    """Yield (time in s from `start_s`, frame (3, H, W) float32 in [0, 1]) in constant memory, upright, square pixels.

    Times are the file's time stamps, counted from its first frame. Where stamps are missing, stuck or jump, frames
    follow each other at the nominal rate. `fps` gives for i = 0, 1, ... the source frame nearest to start_s + i / fps
    (the earlier of two equally near) and the time i / fps; None the source's own frames from `start_s` on, from time 0.
    MediaError: missing or no video, nothing at `start_s`, or (after the last frame) an end well before the header's.
    """
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
    for time_s, frame in itertools.dropwhile(lambda timed: timed[0] < start_s - 1e-6, source.frames(start_s)):
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


class _Source(AbstractContextManager):
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
        streams = self._container.streams.video if self._container else ()
        # A music file's cover is a stream of its own.
        streams = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{self.path}: is not a video that can be read (damaged, truncated, or sound only)")
        best = self._container.streams.best("video")
        self._stream = best if best in streams else streams[0]
        if len(streams) > 1:
            number = f"number {streams.index(self._stream) + 1}, {self._stream.width} x {self._stream.height} px"
            warn_once(f"{self.path}: holds {len(streams)} video streams; {number}, is read", logging.INFO)
        self._stream.thread_type = "AUTO"
        fps = self._stream.guessed_rate or self._stream.average_rate or 0
        self.fps = float(fps) if 0.01 < fps <= 1000 else _FALLBACK_FPS
        length_s = (self._container.duration or 0) / av.time_base
        self.declared_frames = max(0, self._stream.frames or round(length_s * self.fps))

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
            first, time_s = (next(decoded), 0.0) if ahead is None else (ahead, self._stamp(ahead) - self._stamp(first))
        stamp_s = None
        for frame in itertools.chain([first], decoded):
            now_s = math.nan if self._stamp(frame) is None else self._stamp(frame)
            if stamp_s is not None:
                gap_s = now_s - stamp_s
                # A stamp that is missing, stuck or jumps says nothing; the nominal rate stands in for that step.
                time_s += gap_s if 1e-6 < gap_s < max(_MAX_GAP_S, 10 / self.fps) else 1 / self.fps
            stamp_s = now_s
            self.seen, self._last_s = self.seen + 1, time_s
            yield time_s, frame
        self._read_to_the_end = ahead is None

    def _seek(self, first: av.VideoFrame, time_s: float) -> av.VideoFrame | None:
        """Go to shortly before a time; return the frame there, None where the index is missing or stamps lie."""
        begin_s = self._stamp(first)
        if begin_s is None:
            return None
        with suppress(av.FFmpegError):
            ticks = int((begin_s + time_s - _SEEK_MARGIN_S) / self._stream.time_base)
            self._container.seek(ticks, stream=self._stream)
            frame = next(self._decode(), None)
            found_s = None if frame is None else self._stamp(frame)
            if found_s is not None and 0 < found_s - begin_s <= time_s - 2 / self.fps:
                return frame
        return None

    def _stamp(self, frame: av.VideoFrame) -> float | None:
        # AVI has no times of presentation: ffmpeg guesses them, and those of B-frames wrongly.
        if self._container.format.name == "avi":
            return None if frame.dts is None else float(frame.dts * frame.time_base)
        return frame.time

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Yield the frames, deinterlaced."""
        graph = None
        for frame in self._decoded_packets():
            if frame.interlaced_frame and graph is None:
                graph = self._filter_graph(frame, _DEINTERLACE)
            yield from [frame] if graph is None else _through(graph, frame)
        if graph is not None:
            yield from _through(graph, None)

    def _filter_graph(self, frame: av.VideoFrame, filters: Sequence[tuple[str, str]]) -> av.filter.Graph:
        graph = av.filter.Graph()
        size = {"width": frame.width, "height": frame.height, "format": frame.format}
        nodes = [graph.add_buffer(**size, time_base=frame.time_base or self._stream.time_base)]
        try:
            graph.link_nodes(*nodes, *(graph.add(*each) for each in filters), graph.add("buffersink")).configure()
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"{self.path}: needs ffmpeg's filter {filters[-1][0]} ({error}); update av") from error
        return graph

    def _decoded_packets(self) -> Iterator[av.VideoFrame]:
        # A damaged packet is left out, as those after it may be whole; `check_whole` tells a file that is cut short.
        with suppress(av.FFmpegError):
            for packet in self._container.demux(self._stream):
                with suppress(av.FFmpegError):
                    yield from packet.decode()

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """Return upright RGB bytes (h, w, 3) with square pixels, HDR mapped to the range of a screen."""
        shown = frame
        if frame.color_trc in _HDR:
            warn_once(f"{self.path}: is HDR ({_HDR[frame.color_trc]}), tone-mapped to BT.709", logging.INFO)
            key = (frame.width, frame.height, frame.format.name, frame.color_trc)
            if key not in _tone_mapping:
                _tone_mapping.clear()
                _tone_mapping[key] = self._filter_graph(frame, _TONE_MAP)
            shown = next(_through(_tone_mapping[key], frame), None)
            if shown is None:
                _tone_mapping.clear()
                raise MediaError(f"{self.path}: its HDR cannot be tone-mapped; right: a video without HDR")
        array = shown.to_ndarray(format="rgb24")
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


def _through(graph: av.filter.Graph, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    """Push a frame, None after the last one, into a graph of filters; yield what is ready."""
    with suppress(av.FFmpegError):  # also raised where nothing is ready
        graph.push(frame)
        while True:
            yield graph.pull()
