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
ORIGINAL, CHANGE, FRAME_0 = "original", "change since frame 0", "frame 0"


class ClipVideo:
    """The video and the X-t slices of one clip, opened by `open_video`.

    A frame of the video has the original and each rendering above, and below them how the original differs from frame
    0 and how each rendering differs from the original (|difference| x 4). The slices show one row of pixels, that
    which moves most, over time, downwards.

    Args:
        clip: the clip.
        shown: {title: method}, the renderings from left to right.
        writer: of the video.
    """

    def __init__(self, clip: EvaluationClip, shown: Mapping[str, str], writer: VideoWriter) -> None:
        self.first, self.shown, self.writer = clip.first, shown, writer
        self.row = int(clip.importance[0].mean(1).argmax())
        # time 0 is frame 0 in all
        self.lines = {title: [clip.first[:, self.row]] for title in (ORIGINAL, *shown, FRAME_0)}  # (3, W) each

    def add(self, targets: Tensor, frames: Mapping[str, Tensor]) -> None:
        """Add the next originals (n, 3, H, W) and {method: renderings of the same shape}."""
        for place, target in enumerate(targets.cpu()):
            rendered = {title: frames[method][place].cpu().clamp(0, 1) for title, method in self.shown.items()}
            above = {ORIGINAL: target} | rendered
            cells = [_titled(name, image) for name, image in above.items()]
            errors = [_titled(CHANGE, _error(self.first, target))]
            errors += [_titled(f"error x {ERROR_GAIN:g}", _error(one, target)) for one in rendered.values()]
            self.writer.write(contact_sheet([cells, errors]))
            for title, image in (above | {FRAME_0: self.first}).items():
                self.lines[title].append(image[:, self.row])

    def slices(self) -> Tensor:
        """Return the X-t slices side by side, as a sheet (3, h, w)."""
        cells = []
        for title, lines in self.lines.items():
            section = torch.stack(lines, dim=1)  # (3, T, W)
            cells.append(_titled(title, section.repeat_interleave(-(-LEAST_SLICE_PX // section.shape[1]), dim=1)))
        return contact_sheet([cells])


@contextmanager
def open_video(folder: Path, clip: EvaluationClip, shown: Mapping[str, str]) -> Iterator[ClipVideo]:
    """Yield the video of a clip; videos/CLIP.mp4 and slices/CLIP.png appear in `folder` when the block ends well."""
    with VideoWriter(folder / "videos" / f"{clip.id}.mp4", fps=frames_per_second(clip.times_s)) as writer:
        video = ClipVideo(clip, shown, writer)
        yield video
    write_image(folder / "slices" / f"{clip.id}.png", video.slices())


def frames_per_second(times_s: Collection[float]) -> float:
    """Return the rate that shows frames of these times at natural speed, 1 to 60 frames a second."""
    times_s = [0.0, *times_s]
    steps = [later - earlier for earlier, later in zip(times_s, times_s[1:], strict=False) if later > earlier]
    lowest, highest = FPS_RANGE
    return min(max(1 / statistics.median(steps), lowest), highest) if steps else lowest


def _titled(title: str, image: Tensor) -> Tensor:
    return torch.cat([title_strip(title, image.shape[-1]), image], 1)


def _error(image: Tensor, target: Tensor) -> Tensor:
    return ((image - target).abs() * ERROR_GAIN).clamp(0, 1)
