"""Rendered clips to look at: a comparison video with error maps, and X-t slices, of clips that are being measured."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from data.media import contact_sheet, write_image
from data.video_writer import VideoWriter
from data.visualisation import title_strip
from evaluation.clips import EvaluationClip

# Errors in [0, 1] are small: they are shown so many times as bright.
ERROR_GAIN = 4.0
FPS_RANGE = (1.0, 60.0)
# An X-t slice is at least so tall, px.
LEAST_SLICE_PX = 32
ORIGINAL, CHANGE, STILL = "original", "change since frame 0", "frame 0"


class FrameViewer:
    """Writes videos/CLIP.mp4 and slices/CLIP.png of some clips while they are measured.

    A frame of the video has the original and each rendering above, and below them how the original differs from frame
    0 and how each rendering differs from the original (|difference| x 4). The slices show one row of pixels, that
    which moves most, over time, downwards.

    Args:
        folder: of the two folders.
        ids: of the clips that are shown.
        shown: {title: method}, the renderings from left to right.
    """

    def __init__(self, folder: Path, ids: Collection[str], shown: Mapping[str, str]) -> None:
        self.folder, self.ids, self.shown = Path(folder), set(ids), dict(shown)

    @contextmanager
    def clip(self, clip: EvaluationClip) -> Iterator[ClipImages | None]:
        """Open the pictures of a clip, None where it is not shown; they appear when the block ends well."""
        if clip.id not in self.ids:
            yield None
            return
        with VideoWriter(self.folder / "videos" / f"{clip.id}.mp4", fps=frames_per_second(clip.times_s)) as writer:
            pictures = ClipImages(clip, self.shown, writer)
            yield pictures
        write_image(self.folder / "slices" / f"{clip.id}.png", pictures.slices())


class ClipImages:
    """Takes the frames of one clip: writes them into the video and keeps one row of pixels of each."""

    def __init__(self, clip: EvaluationClip, shown: Mapping[str, str], writer: VideoWriter) -> None:
        self.first, self.shown, self.writer = clip.first, shown, writer
        self.row = int(clip.importance[0].mean(1).argmax())
        # time 0 is frame 0 in all
        self.lines = {title: [clip.first[:, self.row]] for title in (ORIGINAL, *shown, STILL)}  # (3, W) each

    def add(self, targets: Tensor, frames: Mapping[str, Tensor]) -> None:
        """Add the next originals (n, 3, H, W) and {method: renderings of the same shape}."""
        for place, target in enumerate(targets.cpu()):
            rendered = {title: frames[method][place].cpu().clamp(0, 1) for title, method in self.shown.items()}
            above = {ORIGINAL: target} | rendered
            cells = [titled(name, picture) for name, picture in above.items()]
            errors = [titled(CHANGE, _error(self.first, target))]
            errors += [titled(f"error x {ERROR_GAIN:g}", _error(one, target)) for one in rendered.values()]
            self.writer.write(contact_sheet([cells, errors]))
            for title, picture in (above | {STILL: self.first}).items():
                self.lines[title].append(picture[:, self.row])

    def slices(self) -> Tensor:
        """Return the X-t slices side by side, as a sheet (3, h, w)."""
        cells = []
        for title, lines in self.lines.items():
            section = torch.stack(lines, dim=1)  # (3, T, W)
            tall = section.repeat_interleave(-(-LEAST_SLICE_PX // section.shape[1]), dim=1)
            cells.append(titled(title, tall))
        return contact_sheet([cells])


def titled(title: str, picture: Tensor) -> Tensor:
    """Return a picture (3, h, w) under a line of text."""
    return torch.cat([title_strip(title, picture.shape[-1]), picture], 1)


def frames_per_second(times_s: Collection[float]) -> float:
    """Return the rate that shows frames of these times at natural speed, 1 to 60 frames a second."""
    times_s = [0.0, *times_s]
    steps = [later - earlier for earlier, later in zip(times_s, times_s[1:], strict=False) if later > earlier]
    lowest, highest = FPS_RANGE
    return min(max(1 / statistics.median(steps), lowest), highest) if steps else lowest


def _error(picture: Tensor, target: Tensor) -> Tensor:
    return ((picture - target).abs() * ERROR_GAIN).clamp(0, 1)
