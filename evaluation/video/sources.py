"""The videos that `evaluate.py video` compares, one clip at a time: from folders, or a clip set and a checkpoint."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from data.clips import ClipRow, ClipSet, ClipSetError, distinct_names, source_name
from data.files import is_hidden
from data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaError, list_images, read_image
from data.scenes.scene import Scene
from data.video import iterate_video, probe_video
from evaluation import EvaluationError
from evaluation.clips import SourceError, another_clip, clip_seed, read_source
from evaluation.flags import BLUR_SIGMAS
from models.frame_synthesis import FrameSynthesis
from models.motion_pipeline import MotionPipeline
from models.rendering import render_frames
from motion.flow import resize_maps
from motion.looping import Playback
from motion.motion_file import Motion
from motion.spectrum import FPS, NUM_FRAMES

logger = logging.getLogger(__name__)

Row = tuple[str, str | int]
# What costs a clip and not the run.
CLIP_ERRORS = (MediaError, SourceError, ClipSetError)
ROW_NOTE = (
    "rows move frame 0 of a clip, rendered by the checkpoint's softmax or Gaussian splatting (average: image-space "
    "average splat) at the clip's time stamps; model: one sample as animate.py predicts it; own: the clip's stored "
    "bins of the model's number; other: those of a training clip of another source drawn by the seed, resized; blur N: "
    "real frames under a Gaussian of N px; shuffle N: in another order within each N frames"
)
# Rates whose ratio is above this are reported.
RATE_TOLERANCE = 1.02


@dataclass(frozen=True)
class ClipVideos:
    """One clip in every way: real (T, 3, H, W) in [0, 1], and {row name: generated (T, 3, H, W)}, all of one T."""

    name: str
    real: Tensor
    generated: dict[str, Tensor]
    source: str = ""  # the video that it was cut from, where known: its clips are not independent
    aligned: Sequence[str] = ()  # rows whose frame t shows what the real frame t shows


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
        self.rows = distinct_names(generated, "generated")
        self._folders = [_videos_in(folder) for folder in (real, *generated)]
        self.names = sorted(set.intersection(*map(set, self._folders)))
        if not self.names:
            example = next(iter(self._folders[1]))
            raise EvaluationError(f"{generated[0]}: no video has the name of one in {real} (first: {example})")
        unmatched = sorted(set().union(*self._folders).difference(self.names))
        if unmatched:
            logger.warning("left out: %d names that are not in all folders (first: %s)", len(unmatched), unmatched[0])

    def read(self, name: str) -> ClipVideos:
        """Read one clip from every folder, all as long as the shortest; one of CLIP_ERRORS where it cannot be read."""
        paths = [videos[name] for videos in self._folders]
        rates = [probe_video(path, count_frames=False).fps for path in paths if not path.is_dir()]
        if self.fps is None and rates and max(rates) > RATE_TOLERANCE * min(rates):
            problem = f"{min(rates):g} and {max(rates):g} frames/s, so that its windows last differently"
            logger.warning("%s: %s; fps HZ reads all at one rate", name, problem)
        videos = [self._frames(path) for path in paths]
        length = min(map(len, videos))
        real, *generated = (frames[:length] for frames in videos)
        return ClipVideos(name, real, dict(zip(self.rows, generated, strict=True)))

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


def blurred(frames: Tensor, sigma_px: int) -> Tensor:
    """Blur frames (T, 3, H, W) by a Gaussian."""
    return gaussian_blur(frames, 2 * BLUR_SIGMAS * sigma_px + 1, float(sigma_px))


def shuffled(frames: Tensor, block: int) -> Tensor:
    """Return frames (T, ...) in another order within blocks of so many frames, the same for every video."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in frames.split(block)])


DISTORTIONS = {"blur": blurred, "shuffle": shuffled}


class RenderedVideos:
    """Clips of a set beside `rows`: frame 0 moved by a motion at the clip's time stamps, or the frames distorted.

    `rows` are ("model", "own" or "other", "average" or a key of `renderers`), or (key of DISTORTIONS, amount).
    `pipelines` are {label in the row's name: pipeline}; each has rows of "model", and the first says how many bins
    count; distortions need none. `sampling` holds arguments of `MotionPipeline.predict`; each clip has start noise of
    its own. The rest is as in `FolderVideos`.
    """

    def __init__(
        self, clip_set: ClipSet, clips: Iterable[ClipRow], rows: Iterable[Row], pipelines: dict[str, MotionPipeline],
        renderers: dict[str, FrameSynthesis], sampling: dict[str, Any], *, crop: tuple[int, int], num_frames: int,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.clip_set, self.pipelines, self.renderers, self.sampling = clip_set, pipelines, renderers, sampling
        self.crop, self.num_frames, self.device = crop, num_frames, device
        self._clips = {row.id: row for row in clips}
        rows, self._others = list(rows), {}
        if any(kind == "other" for kind, _ in rows):
            self._others = {name: another_clip(clip_set, row, sampling["seed"]) for name, row in self._clips.items()}
            if not all(self._others.values()):
                problem = "the set has none to train on of another source"
                logger.warning("left out: rows of another clip's motion, as %s", problem)
                rows = [row for row in rows if row[0] != "other"]
        # {name: (motion or distortion, splat or amount, label of the pipeline)}
        self._rows = {
            f"{kind} {value}" + (f" of {label}" if label else ""): (kind, value, label)
            for kind, value in rows
            for label in (pipelines if kind == "model" else [""])
        }
        self.names, self.rows = list(self._clips), list(self._rows)
        self.limits: list[float] = []

    def read(self, name: str) -> ClipVideos:
        """Read the clip and make every row; one of CLIP_ERRORS where it or the other clip cannot be read."""
        clip = self._clips[name]
        source = read_source(self.clip_set, clip, self.clip_set.first(clip.id))
        if isinstance(source, Scene):
            times_s = torch.arange(min(self.num_frames, NUM_FRAMES), dtype=torch.float64) / FPS
            frames = torch.stack([source.frame(float(time_s)) for time_s in times_s])  # (T, 3, H, W)
        else:
            frames, times_s = source.frames[: self.num_frames], source.times_s[: self.num_frames]
        real, generated = centre_crop(frames, self.crop), {}
        motion_of = cache(lambda kind, label: self._motion(kind, label, clip, frames[0]))  # several splats of each
        for row, (kind, value, label) in self._rows.items():
            if kind in DISTORTIONS:
                generated[row] = DISTORTIONS[kind](real, value)
                continue
            motion = motion_of(kind, label)
            playback = Playback(times_s / motion.period_s, FPS)
            options = {"device": self.device, "precision": self.sampling.get("precision", "no")}
            options |= {"operator": value, "model": self.renderers.get(value)}
            batches = render_frames(frames[0], motion, playback, **options)
            generated[row] = torch.cat([centre_crop(batch, self.crop) for batch in batches])  # (T, 3, H, W)
        aligned = [row for row, (kind, *_) in self._rows.items() if kind in ("own", "blur")]
        return ClipVideos(name, real, generated, source_name(clip), aligned)

    def _motion(self, kind: str, label: str, clip: ClipRow, first: Tensor) -> Motion:
        if kind != "model":
            chosen = clip if kind == "own" else self._others[clip.id]
            config = next(iter(self.pipelines.values())).unet.config
            spectrum, _ = self.clip_set.spectrum(chosen.id, config.num_bins)
            return Motion(spectrum, num_frames=round(config.period_s * FPS), fps=FPS)
        seed = clip_seed(self.sampling["seed"], clip.id)
        motion = self.pipelines[label].predict(first, **self.sampling | {"seed": seed})
        self.limits += [] if label else [motion.meta["amplitude_limit_scale"]]
        return motion

    def note(self) -> str:
        note = f"data: {self.clip_set.folder}, {len(self.names)} clips; {ROW_NOTE}"
        if self.limits:
            note += f"; model: its amplitude is limited to {fmean(self.limits):.2f} on average, as animate.py does"
        return note
