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

from data.clips import ClipRow, ClipSet, ClipSetError, column_names, source_name
from data.files import is_hidden
from data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaError, list_images, read_image
from data.scenes.scene import Scene
from data.video import iterate_video, probe_video
from evaluation import EvaluationError
from evaluation.clips import SourceError, read_source
from models.frame_synthesis import FrameSynthesis
from models.motion_pipeline import MotionPipeline
from models.rendering import render_frames
from motion.flow import resize_maps
from motion.looping import Playback
from motion.spectrum import FPS, NUM_FRAMES

logger = logging.getLogger(__name__)

# What costs a clip and not the run.
CLIP_ERRORS = (MediaError, SourceError, ClipSetError)
# Rates whose ratio is above this are told.
RATE_TOLERANCE = 1.02


@dataclass(frozen=True)
class ClipVideos:
    """One clip in every way: real (T, 3, H, W) in [0, 1], and {row name: generated (T, 3, H, W)}, all of one T."""

    name: str
    real: Tensor
    generated: dict[str, Tensor]
    source: str = ""  # the video that it was cut from, where known: its clips are not independent


def centre_crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale frames (..., 3, h, w) until they just cover `size` = (H, W), and cut its middle out."""
    height, width = frames.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    scaled = tuple(max(wanted, round(side * scale)) for wanted, side in zip(size, (height, width), strict=True))
    if scaled != (height, width):
        frames = resize_maps(frames, scaled)
    top, left = ((have - want) // 2 for have, want in zip(scaled, size, strict=True))
    return frames[..., top : top + size[0], left : left + size[1]]


class FolderVideos:
    """Videos, or folders of frames, of the same name in a folder of real and one or more of generated ones.

    `rows` name the folders of generated ones, `names` the clips. Each is read to `num_frames` frames at most, cropped
    to `crop` = (H, W); `fps` reads all at one rate. EvaluationError where a folder is missing or empty, two videos have
    one name, or no name is in all folders.
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

    def read(self, name: str) -> ClipVideos:
        """Read one clip from every folder, all as long as the shortest; one of CLIP_ERRORS where it cannot be read."""
        self._warn_of_rates(name)
        real = self._frames(self._real[name])
        generated = {row: self._frames(videos[name]) for row, videos in self._generated.items()}
        length = min(len(real), *(len(frames) for frames in generated.values()))
        return ClipVideos(name, real[:length], {row: frames[:length] for row, frames in generated.items()})

    def _warn_of_rates(self, name: str) -> None:
        paths = [videos[name] for videos in (self._real, *self._generated.values())]
        rates = [probe_video(path).fps for path in paths if not path.is_dir()]
        if self.fps is None and rates and max(rates) > RATE_TOLERANCE * min(rates):
            problem = f"{min(rates):g} and {max(rates):g} frames/s, so that its windows last differently"
            logger.warning("%s: %s; fps HZ reads all at one rate", name, problem)

    def _frames(self, path: Path) -> Tensor:
        if not path.is_dir():
            frames = (frame for _, frame in iterate_video(path, fps=self.fps))
        elif self.fps is not None:
            raise EvaluationError(f"fps {self.fps:g}: {path} is a folder of frames, which have no rate; right: without")
        else:
            frames = map(read_image, list_images(path))
        cropped = [centre_crop(frame, self.crop).clone() for frame in islice(frames, self.num_frames)]
        return torch.stack(cropped)  # (T, 3, H, W)

    def note(self) -> str:
        """Name the folders, for the table."""
        rate = "their own rates" if self.fps is None else f"{self.fps:g} frames/s"
        return f"data: real {self.folder}, {len(self.names)} names in all folders, frames at {rate}"


def _videos_in(folder: Path) -> dict[str, Path]:
    """Return {name: video file, or folder of frames}."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder; right: one that holds videos")
    suffixes = {path: {file.suffix.lower() for file in (path.iterdir() if path.is_dir() else [path])}
                for path in sorted(folder.iterdir()) if not is_hidden(path, folder)}  # fmt: skip
    paths = [path for path in suffixes if suffixes[path] & set(IMAGE_SUFFIXES if path.is_dir() else VIDEO_SUFFIXES)]
    found = {path.name if path.is_dir() else path.stem: path for path in paths}
    if not found or len(found) < len(paths):
        problem = "two videos have one name" if found else "holds neither videos nor folders of frames"
        raise EvaluationError(f"{folder}: {problem}; right: videos of different names")
    return found


def read_frames(clip_set: ClipSet, row: ClipRow, num_frames: int) -> tuple[Tensor, Tensor]:
    """Read at most so many frames of a clip's source: (T, 3, H, W) in [0, 1] and their seconds (T,) from frame 0 on."""
    source = read_source(clip_set, row, clip_set.first(row.id))
    if isinstance(source, Scene):
        times_s = torch.arange(min(num_frames, NUM_FRAMES), dtype=torch.float64) / FPS
        return torch.stack([source.frame(float(time_s)) for time_s in times_s]), times_s
    return source.frames[:num_frames], source.times_s[:num_frames]


def clip_seed(seed: int, name: str) -> int:
    """Return the seed of a clip's start noise, the same whatever other clips are measured."""
    return (seed << 32) + zlib.crc32(name.encode())


class PredictedVideos:
    """Clips of a set beside what a checkpoint makes of their frame 0, rendered at the clip's own time stamps.

    `renderers` are {row name: model}; `sampling` holds arguments of `MotionPipeline.predict`; each clip has start noise
    of its own. `full_strength` undoes the amplitude limit of predicted motion. The rest is as in `FolderVideos`.
    """

    def __init__(
        self, clip_set: ClipSet, rows: Iterable[ClipRow], pipeline: MotionPipeline,
        renderers: dict[str, FrameSynthesis], sampling: dict[str, Any], *, crop: tuple[int, int], num_frames: int,
        full_strength: bool = False, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.clip_set, self.pipeline, self.renderers, self.sampling = clip_set, pipeline, renderers, sampling
        self.crop, self.num_frames, self.full_strength, self.device = crop, num_frames, full_strength, device
        self._clips = {row.id: row for row in rows}
        self.names, self.rows = list(self._clips), list(renderers)
        self.limits: list[float] = []

    def read(self, name: str) -> ClipVideos:
        """Read the clip, predict a motion for its frame 0, and render it."""
        frames, times_s = read_frames(self.clip_set, self._clips[name], self.num_frames)
        first = frames[0]
        motion = self.pipeline.predict(first, **self.sampling | {"seed": clip_seed(self.sampling["seed"], name)})
        self.limits.append(motion.meta["amplitude_limit_scale"])
        if self.full_strength:
            motion = motion.controlled(magnify=1 / motion.meta["amplitude_limit_scale"])
        playback = Playback(times_s / motion.period_s, FPS, loop=False)
        options = {"device": self.device, "precision": self.sampling.get("precision", "no")}
        generated = {}
        for row, model in self.renderers.items():
            batches = render_frames(first, motion, playback, model=model, **options)
            generated[row] = torch.cat([centre_crop(batch, self.crop) for batch in batches])  # (T, 3, H, W)
        return ClipVideos(name, centre_crop(frames, self.crop), generated, source_name(self._clips[name]))

    def note(self) -> str:
        """Name the set and the amplitude limit, for the table."""
        limit = sum(self.limits) / max(1, len(self.limits))
        undone = "undone" if self.full_strength else "as animate.py does"
        return (
            f"data: {self.clip_set.folder}, {len(self.names)} clips; motion is predicted for frame 0 and rendered at "
            f"the clip's own time stamps; its amplitude is limited to {limit:.2f} on average, {undone}"
        )
