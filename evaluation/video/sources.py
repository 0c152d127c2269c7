"""The videos that `evaluate.py video` compares, one clip at a time: from folders, or a clip set and a checkpoint."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.clips import ClipRow, ClipSet, ClipSetError, column_names
from data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaError, list_images, read_image
from data.scenes.scene import Scene
from data.video import iterate_video, probe_video
from evaluation import EvaluationError
from evaluation.clips import SCENE_PREFIX, SourceError, read_source
from models.frame_synthesis import FrameSynthesis
from models.motion_pipeline import MotionPipeline
from models.rendering import render_frames
from motion.flow import resize_maps
from motion.looping import Playback
from motion.spectrum import FPS, NUM_FRAMES

logger = logging.getLogger(__name__)

# What costs a clip and not the run.
CLIP_ERRORS = (MediaError, SourceError, ClipSetError)
# Rates that differ by more get a warning.
RATE_TOLERANCE = 0.02


@dataclass(frozen=True)
class ClipVideos:
    """One clip in every way: real (T, 3, H, W) in [0, 1], and {row name: generated (T, 3, H, W)}, all of one T."""

    name: str
    real: Tensor
    generated: dict[str, Tensor]


def centre_crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale frames (..., 3, h, w) until they just cover `size` = (H, W), and cut its middle out.

    An image of 256 x 160 loses 16 px above and below for 256 x 128, and is not resampled.
    """
    height, width = frames.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    scaled = tuple(max(wanted, round(side * scale)) for wanted, side in zip(size, (height, width), strict=True))
    if scaled != (height, width):
        frames = resize_maps(frames, scaled)
    top, left = ((have - want) // 2 for have, want in zip(scaled, size, strict=True))
    return frames[..., top : top + size[0], left : left + size[1]]


class FolderVideos:
    """Videos, or folders of frames, that have the same name in a folder of real and one or more of generated ones.

    Args:
        real: the folder of real videos.
        generated: folders, each a row of the table.
        crop: (H, W) px.
        num_frames: at most so many frames of each, from the first on.
        fps: rate that all are read at; None takes the frames as they are.

    Attributes:
        names: of the clips.
        rows: names of the ways in which they were generated.
        lengths: how many frames each clip will have, as headers and tables tell.

    Raises:
        EvaluationError: a folder is missing or empty, two videos have one name, or no name is in all folders.
    """

    def __init__(
        self, real: Path, generated: list[Path], *, crop: tuple[int, int], num_frames: int, fps: float | None = None
    ) -> None:
        self.crop, self.num_frames, self.fps, self.folder = crop, num_frames, fps, real
        self._real = _videos_in(real)
        try:
            self.rows = column_names(generated)
        except ValueError:
            raise EvaluationError("generated: a folder is named twice; right: each once") from None
        folders = [_videos_in(folder) for folder in generated]
        self._generated = dict(zip(self.rows, folders, strict=True))
        self.names = sorted(set(self._real).intersection(*folders))
        if not self.names:
            example = next(iter(folders[0]))
            raise EvaluationError(f"{generated[0]}: no video has the name of one in {real} (first: {example})")
        unmatched = sorted(set(self._real).union(*folders) - set(self.names))
        if unmatched:
            logger.warning("left out: %d names that are not in all folders (first: %s)", len(unmatched), unmatched[0])
        self.lengths = [self._length(name) for name in self.names]

    def _length(self, name: str) -> int:
        """Return the frames of the shortest video of a name, 0 where one cannot be read; warn of rates that differ."""
        try:
            found = [_probe(videos[name], self.fps) for videos in (self._real, *self._generated.values())]
        except MediaError:
            return 0  # reading it says why
        rates = [rate for _, rate in found if rate is not None]
        if self.fps is None and rates and max(rates) > (1 + RATE_TOLERANCE) * min(rates):
            logger.warning(
                "%s: videos of %g and %g frames/s, whose windows last differently; a common fps reads all at one rate",
                name, min(rates), max(rates),
            )  # fmt: skip
        return min(self.num_frames, *(frames for frames, _ in found))

    def read(self, name: str) -> ClipVideos:
        """Read one clip from every folder, all as long as the shortest; one of CLIP_ERRORS where it cannot be read."""
        real = self._frames(self._real[name])
        generated = {row: self._frames(videos[name]) for row, videos in self._generated.items()}
        length = min(len(real), *(len(frames) for frames in generated.values()))
        return ClipVideos(name, real[:length], {row: frames[:length] for row, frames in generated.items()})

    def _frames(self, path: Path) -> Tensor:
        if path.is_dir():
            frames: Iterable[Tensor] = map(read_image, list_images(path))
        else:
            frames = (frame for _, frame in iterate_video(path, fps=self.fps))
        cropped = [centre_crop(frame, self.crop).clone() for frame in islice(frames, self.num_frames)]
        return torch.stack(cropped)  # (T, 3, H, W)

    def note(self) -> str:
        """Name the folders, for the table."""
        rate = "their own rates" if self.fps is None else f"{self.fps:g} frames/s"
        return f"data: real {self.folder}, {len(self.names)} names in all folders, frames at {rate}"


def _videos_in(folder: Path) -> dict[str, Path]:
    """Return {name: video file or folder of frames} of a folder."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder; right: one that holds videos, or a folder of frames each")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        is_video = path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
        is_frames = path.is_dir() and any(inside.suffix.lower() in IMAGE_SUFFIXES for inside in path.iterdir())
        if path.name.startswith(".") or not (is_video or is_frames):
            continue
        name = path.stem if is_video else path.name
        if name in found:
            raise EvaluationError(f"{folder}: {found[name].name} and {path.name} have one name; right: one of them")
        found[name] = path
    if not found:
        raise EvaluationError(f"{folder}: holds neither videos nor folders of frames; right: one or the other")
    return found


def _probe(path: Path, fps: float | None) -> tuple[int, float | None]:
    """Return how many frames will be read and the rate; None for a folder of frames, which has none."""
    if path.is_dir():
        if fps is not None:
            raise EvaluationError(f"fps {fps:g}: {path} is a folder of frames, which have no rate; right: without fps")
        return len(list_images(path)), None
    info = probe_video(path)
    return (info.frames if fps is None else round(info.seconds * fps)), info.fps


class PredictedVideos:
    """Clips of a set beside what a checkpoint makes of their frame 0, rendered at the clip's own time stamps.

    Args:
        clip_set: the set; its sources must be at hand.
        rows: the clips.
        pipeline: predicts the motion.
        renderers: {row name: model}.
        sampling: of `MotionPipeline.predict`: seed, precision and more; each clip has start noise of its own.
        crop: (H, W) px.
        num_frames: at most so many frames of each.
        full_strength: undo the amplitude limit of predicted motion.
        device: where to render.

    Attributes:
        names, rows, lengths: as those of `FolderVideos`.
    """

    def __init__(
        self,
        clip_set: ClipSet,
        rows: Iterable[ClipRow],
        pipeline: MotionPipeline,
        renderers: dict[str, FrameSynthesis],
        sampling: dict[str, Any],
        *,
        crop: tuple[int, int],
        num_frames: int,
        full_strength: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.clip_set, self.pipeline, self.renderers, self.sampling = clip_set, pipeline, renderers, sampling
        self.crop, self.num_frames, self.full_strength, self.device = crop, num_frames, full_strength, device
        self._clips = {row.id: row for row in rows}
        self.names, self.rows = list(self._clips), list(renderers)
        lengths = [NUM_FRAMES if row.source.startswith(SCENE_PREFIX) else row.frames for row in self._clips.values()]
        self.lengths = [min(num_frames, length) for length in lengths]
        self.limits: list[float] = []

    def read(self, name: str) -> ClipVideos:
        """Read the clip, predict a motion for its frame 0, and render it."""
        frames, times_s = self._real(self._clips[name])
        first = frames[0]
        seed = (self.sampling["seed"] << 32) + zlib.crc32(name.encode())  # of the clip, whatever others are measured
        motion = self.pipeline.predict(first, **self.sampling | {"seed": seed})
        self.limits.append(motion.meta["amplitude_limit_scale"])
        if self.full_strength:
            motion = motion.controlled(magnify=1 / motion.meta["amplitude_limit_scale"])
        playback = Playback(times_s / motion.period_s, FPS, loop=False)
        options = {"device": self.device, "precision": self.sampling.get("precision", "no")}
        generated = {}
        for row, model in self.renderers.items():
            batches = render_frames(first, motion, playback, model=model, **options)
            generated[row] = torch.cat([centre_crop(batch, self.crop) for batch in batches])  # (T, 3, H, W)
        return ClipVideos(name, centre_crop(frames, self.crop), generated)

    def _real(self, row: ClipRow) -> tuple[Tensor, Tensor]:
        """Return the clip's frames (T, 3, h, w) on its grid and their times (T,), s."""
        source = read_source(self.clip_set, row, self.clip_set.first(row.id))
        if isinstance(source, Scene):
            times_s = torch.arange(min(self.num_frames, NUM_FRAMES), dtype=torch.float64) / FPS
            return torch.stack([source.frame(float(time_s)) for time_s in times_s]), times_s
        return source.frames[: self.num_frames], source.times_s[: self.num_frames]

    def note(self) -> str:
        """Name the set and the amplitude limit, for the table."""
        limit = sum(self.limits) / max(1, len(self.limits))
        undone = "undone" if self.full_strength else "as animate.py does"
        return (
            f"data: {self.clip_set.folder}, {len(self.names)} clips; motion is predicted for frame 0 on the clip's "
            f"grid and rendered at the clip's own time stamps; its amplitude is limited to {limit:.2f} of the "
            f"predicted one on average, {undone}"
        )
