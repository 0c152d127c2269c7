"""The videos that `evaluate.py video` compares, one clip at a time: from folders, or a clip set and a checkpoint."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cli.parser import UsageError
from data.clips import ClipRow, ClipSet, ClipSetError, column_names
from data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaError, list_images, read_image
from data.scenes.scene import Scene
from data.video import iterate_video, probe_video
from evaluation.clips import SCENE_PREFIX, SourceError, read_source
from motion.flow import resize_maps
from motion.looping import Playback
from motion.spectrum import FPS, NUM_FRAMES

if TYPE_CHECKING:
    from models.frame_synthesis import FrameSynthesis
    from models.motion_pipeline import MotionPipeline

logger = logging.getLogger(__name__)

# What costs a clip and not the run.
CLIP_ERRORS = (MediaError, SourceError, ClipSetError)
# Videos whose rates differ by more are not compared frame by frame without a word.
RATE_TOLERANCE = 0.02


@dataclass(frozen=True)
class ClipVideos:
    """One clip in every way: real (T, 3, H, W) in [0, 1], and {row name: generated (T, 3, H, W)}, all of one T."""

    name: str
    real: Tensor
    generated: dict[str, Tensor]


class VideoSource:
    """Clips to compare.

    Attributes:
        names: of the clips.
        rows: names of the ways in which they were generated.
        lengths: how many frames each will have, as far as headers and tables tell.
    """

    names: list[str]
    rows: list[str]
    lengths: list[int]

    def read(self, name: str) -> ClipVideos:
        """Read, or generate, one clip; one of CLIP_ERRORS where it cannot be had."""
        raise NotImplementedError

    def note(self) -> str:
        """Say in a line what this is, for the table."""
        raise NotImplementedError


def centre_crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale frames (..., 3, h, w) until they just cover `size` = (H, W), and cut its middle out.

    A picture of 256 x 160 loses 16 px above and below for 256 x 128, and is not resampled.
    """
    height, width = frames.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    scaled = tuple(max(wanted, round(side * scale)) for wanted, side in zip(size, (height, width), strict=True))
    if scaled != (height, width):
        frames = resize_maps(frames, scaled)
    top, left = ((have - want) // 2 for have, want in zip(scaled, size, strict=True))
    return frames[..., top : top + size[0], left : left + size[1]]


# ------------------------------------------------------------------------------------------------ folders


class FolderVideos(VideoSource):
    """Videos, or folders of frames, that have the same name in a folder of real and one or more of generated ones.

    Args:
        real: the folder of real videos.
        generated: folders, each a row of the table.
        crop: (H, W) px.
        num_frames: at most so many frames of each, from the first on.
        fps: rate that both are read at; None takes the frames as they are.

    Raises:
        UsageError, MediaError: a folder is missing or empty, two videos have one name, or no name is in all folders.
    """

    def __init__(
        self, real: Path, generated: list[Path], *, crop: tuple[int, int], num_frames: int, fps: float | None = None
    ) -> None:
        self.crop, self.num_frames, self.fps = crop, num_frames, fps
        self.folder = real
        self._real = _videos_in(real, "--real")
        try:
            self.rows = column_names(generated)
        except ValueError:
            raise UsageError("--generated: a folder is named twice; right: each once") from None
        folders = [_videos_in(folder, "--generated") for folder in generated]
        self._generated = dict(zip(self.rows, folders, strict=True))
        shared = set(self._real).intersection(*folders)
        if not shared:
            example = next(iter(folders[0]))
            raise UsageError(f"--generated {generated[0]}: no video has the name of one in --real (first: {example})")
        self.names = sorted(shared)
        self.unmatched = sorted(set(self._real).union(*folders) - shared)
        if self.unmatched:
            logger.warning(
                "left out: %d names that are not in all folders (first: %s)", len(self.unmatched), self.unmatched[0]
            )
        self.lengths = self._measure()

    def _measure(self) -> list[int]:
        """Return the lengths; warn of rates that differ. A video that cannot be read counts 0."""
        lengths, unlike = [], []
        for name in self.names:
            try:
                found = [_probe(videos[name], self.fps) for videos in (self._real, *self._generated.values())]
            except MediaError:
                lengths.append(0)  # reading it says why
                continue
            lengths.append(min(self.num_frames, *(frames for frames, _ in found)))
            rates = [rate for _, rate in found if rate is not None]
            if len(rates) > 1 and max(rates) > (1 + RATE_TOLERANCE) * min(rates):
                unlike.append(f"{name} {min(rates):g} and {max(rates):g}")
        if unlike and self.fps is None:
            logger.warning(
                "%d videos differ in frames/s (first: %s), so that their windows last differently; --fps HZ reads all "
                "at one rate",
                len(unlike),
                unlike[0],
            )
        return lengths

    def read(self, name: str) -> ClipVideos:
        """Read one clip from every folder, all as long as the shortest."""
        real = self._frames(self._real[name])
        generated = {row: self._frames(videos[name]) for row, videos in self._generated.items()}
        length = min(len(real), *(len(frames) for frames in generated.values()))
        return ClipVideos(name, real[:length], {row: frames[:length] for row, frames in generated.items()})

    def _frames(self, path: Path) -> Tensor:
        if path.is_dir():
            frames: Iterator[Tensor] = (read_image(picture) for picture in list_images(path))
        else:
            frames = (frame for _, frame in iterate_video(path, fps=self.fps))
        cropped = [centre_crop(frame, self.crop).clone() for frame in islice(frames, self.num_frames)]
        return torch.stack(cropped)  # (T, 3, H, W)

    def note(self) -> str:
        """Say which folders."""
        rate = "their own rates" if self.fps is None else f"{self.fps:g} frames/s"
        left_out = f"; left out, not in all folders: {len(self.unmatched)} names" if self.unmatched else ""
        return f"data: real {self.folder}, {len(self.names)} names in all folders, frames at {rate}{left_out}"


def _videos_in(folder: Path, flag: str) -> dict[str, Path]:
    """Return {name: video file or folder of frames} of a folder."""
    if not folder.is_dir():
        raise UsageError(f"{flag} {folder}: no such folder; right: one that holds videos, or a folder of frames each")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        is_video = path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
        is_frames = path.is_dir() and any(inside.suffix.lower() in IMAGE_SUFFIXES for inside in path.iterdir())
        if path.name.startswith(".") or not (is_video or is_frames):
            continue
        name = path.stem if is_video else path.name
        if name in found:
            raise UsageError(f"{flag} {folder}: {found[name].name} and {path.name} have one name; right: one of them")
        found[name] = path
    if not found:
        right = "right: a folder that holds videos, or a folder of frames each"
        raise UsageError(f"{flag} {folder}: holds neither videos nor folders of frames; {right}")
    return found


def _probe(path: Path, fps: float | None) -> tuple[int, float | None]:
    """Return how many frames will be read and the rate; None for a folder of frames, which has none."""
    if path.is_dir():
        if fps is not None:
            raise UsageError(f"--fps {fps:g}: {path} is a folder of frames, which have no rate; right: without --fps")
        return len(list_images(path)), None
    info = probe_video(path)
    return (info.frames if fps is None else round(info.seconds * fps)), info.fps


# ------------------------------------------------------------------------------------------------ clip sets


class PredictedVideos(VideoSource):
    """Clips of a set beside what a checkpoint makes of their frame 0, rendered at the clip's own time stamps.

    Args:
        clip_set: the set; its sources must be at hand.
        rows: the clips.
        pipeline: predicts the motion.
        renderers: {row name: model}.
        options: of `MotionPipeline.predict`, the seed included; each clip has start noise of its own.
        crop: (H, W) px.
        num_frames: at most so many frames of each.
        full_strength: undo the calming of predicted motion.
        device: where to render.
        precision: of the renderers.
    """

    def __init__(
        self,
        clip_set: ClipSet,
        rows: Iterable[ClipRow],
        pipeline: MotionPipeline,
        renderers: dict[str, FrameSynthesis],
        options: dict[str, Any],
        *,
        crop: tuple[int, int],
        num_frames: int,
        full_strength: bool = False,
        device: torch.device | str = "cpu",
        precision: str = "no",
    ) -> None:
        self.clip_set, self.pipeline, self.renderers = clip_set, pipeline, renderers
        self.options, self.crop, self.num_frames = options, crop, num_frames
        self.full_strength, self.device, self.precision = full_strength, device, precision
        self._rows = {row.id: row for row in rows}
        self.names, self.rows = list(self._rows), list(renderers)
        self.lengths = [min(num_frames, _length(row)) for row in self._rows.values()]
        self.calmed: list[float] = []

    def read(self, name: str) -> ClipVideos:
        """Read the clip, predict a motion for its frame 0, and render it."""
        from models.rendering import render_frames

        frames, times_s = self._real(name)
        first = frames[0]
        seed = (self.options["seed"] << 32) + zlib.crc32(name.encode())  # of the clip, whatever others are measured
        motion = self.pipeline.predict(first, **self.options | {"seed": seed})
        if not bool(motion.spectrum.isfinite().all()):
            raise UsageError(
                f"--checkpoint: the motion it predicts for clip {name} is not finite; right: --precision no, or a "
                "checkpoint whose training did not break down"
            )
        self.calmed.append(motion.meta["calmed"])
        if self.full_strength:
            motion = motion.controlled(magnify=1 / motion.meta["calmed"])
        playback = Playback(times_s / motion.period_s, FPS, loop=False)
        generated = {}
        for row, model in self.renderers.items():
            batches = render_frames(first, motion, playback, model=model, device=self.device, precision=self.precision)
            generated[row] = torch.cat([centre_crop(batch, self.crop) for batch in batches])  # (T, 3, H, W)
        return ClipVideos(name, centre_crop(frames, self.crop), generated)

    def _real(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the clip's frames (T, 3, h, w) on its grid and their times (T,), s."""
        row = self._rows[name]
        source = read_source(self.clip_set, row, self.clip_set.first(name))
        if isinstance(source, Scene):
            times_s = torch.arange(self.lengths[self.names.index(name)], dtype=torch.float64) / FPS
            return torch.stack([source.frame(float(time_s)) for time_s in times_s]), times_s
        return source.frames[: self.num_frames], source.times_s[: self.num_frames]

    def note(self) -> str:
        """Say which set, and how strongly its predictions were calmed."""
        calmed = sum(self.calmed) / max(1, len(self.calmed))
        undone = "undone" if self.full_strength else "as animate.py does"
        return (
            f"data: {self.clip_set.folder}, {len(self.names)} clips; motion predicted for frame 0 on the clip's grid, "
            f"rendered at the clip's own time stamps; calmed to {calmed:.2f} of its strength on average, {undone}"
        )


def _length(row: ClipRow) -> int:
    return NUM_FRAMES if row.source.startswith(SCENE_PREFIX) else row.frames
