"""Comparison videos and x-t slices of clips that `evaluate.py frames` measures."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from data.media import contact_sheet, write_image
from data.video_writer import VideoWriter
from data.visualisation import most_moving_row, title_strip
from evaluation.clips import EvaluationClip

# Errors in [0, 1] are small: they are shown so many times as bright.
ERROR_GAIN = 4
FPS_RANGE = (1.0, 60.0)
LEAST_SLICE_PX = 32
REAL, STATIC = "real", "frame 0"

# (targets (n, 3, H, W), {method: frames of the same shape}) of the next frames
Add = Callable[[Tensor, Mapping[str, Tensor]], None]


@contextmanager
def comparison_video(
    clip: EvaluationClip, *, folder: Path, ids: Collection[str], shown: Mapping[str, str]
) -> Iterator[Add]:
    """Yield what takes a clip's frames, and write videos/ID.mp4 and slices/ID.png if its id is one of `ids`.

    The video has the real frame and each rendering above, and below them 4 times |real - frame 0| and 4 times each
    |rendering - real|. The slices show the row of pixels that moves most, time downwards. `shown` are {title: method}.
    """
    if clip.id not in ids:
        yield lambda targets, frames: None
        return
    row = most_moving_row(clip.importance)
    lines = {title: [clip.first[:, row]] for title in (REAL, *shown, STATIC)}  # (3, W) each; time 0 is frame 0

    def add(targets: Tensor, frames: Mapping[str, Tensor]) -> None:
        for place, target in enumerate(targets.cpu()):
            images = {REAL: target} | {title: frames[method][place].cpu() for title, method in shown.items()}
            errors = [_titled(f"change x {ERROR_GAIN}", ERROR_GAIN * (target - clip.first).abs())]
            errors += [_titled(f"error x {ERROR_GAIN}", ERROR_GAIN * (images[title] - target).abs()) for title in shown]
            writer.write(contact_sheet([[_titled(*image) for image in images.items()], errors]))
            for title, image in (images | {STATIC: clip.first}).items():
                lines[title].append(image[:, row])

    with VideoWriter(folder / "videos" / f"{clip.id}.mp4", fps=frames_per_second(clip.times_s)) as writer:
        yield add
    repeats = -(-LEAST_SLICE_PX // len(lines[REAL]))
    slices = [_titled(title, torch.stack(of, 1).repeat_interleave(repeats, 1)) for title, of in lines.items()]
    write_image(folder / "slices" / f"{clip.id}.png", contact_sheet([slices]))


def frames_per_second(times_s: Sequence[float]) -> float:
    """Return the rate that shows frame 0 and frames of these times at natural speed, 1 to 60 frames a second."""
    low, high = FPS_RANGE
    steps = torch.tensor([0.0, *times_s]).diff().tolist()
    return min(max(1 / max(median(steps), 1 / high), low), high) if steps else low


def _titled(title: str, image: Tensor) -> Tensor:
    return torch.cat([title_strip(title, image.shape[-1]), image], 1)
