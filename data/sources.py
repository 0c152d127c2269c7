"""Measure the motion of a clip of a video: read its frames, estimate flow, fit the series, judge the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import torch

from motion.flow import MOTION_AREA_PX, magnitude, motion_grid_size
from motion.spectrum import FPS, MINIMUM_COVERAGE, PERIOD_S, fit_spectrum

from .clips import DROPPED, KEPT, PAIRS_ONLY, STORED_BINS, ClipContent, ClipRow, Pair, motion_figures, write_clip
from .media import MediaError
from .optical_flow import estimate_flow, visible_flow
from .video import Video, iterate_video, probe_video

# how the reason of a clip that could not be read begins
UNREADABLE = "unreadable: "
# a clip is still when fewer of its pixels move, and its flow has failed when it explains less of the frames
STILL_FRACTION = 0.01
MIN_RELIABILITY = 0.25
# A frame repeats the one before when it differs by less than this, and by less than a share of what its neighbours do.
REPEAT_DIFFERENCE = 0.75 / 255
REPEAT_SHARE = 0.4
REPEAT_WINDOW = 5


@dataclass(frozen=True)
class ClipJob:
    """One clip to prepare: where it is, and all that its result depends on.

    Attributes:
        id: name of its files in the set.
        path: the video.
        split: train or test.
        start_s: where frame 0 lies.
        seconds: how much may be used; None: a period.
        fps: highest frame rate to use.
        area: area of the motion grid, px.
        num_pairs: how many target frames to keep.
        method: of optical flow; `raft_weights` and `device` belong to it.
    """

    id: str
    path: Path
    split: str
    start_s: float = 0.0
    seconds: float | None = None
    fps: float = FPS
    area: int = MOTION_AREA_PX
    num_pairs: int = 6
    method: str = "dis"
    raft_weights: Path | None = None
    device: str = "cpu"


def prepare_clip(folder: Path, job: ClipJob) -> ClipRow:
    """Prepare a clip, write its files into the set, and return its row; an unreadable video becomes a dropped row."""
    # the result of DIS depends on how many threads share a picture
    cv2.setNumThreads(1)
    row = ClipRow(job.id, str(job.path), start_s=job.start_s, split=job.split)
    try:
        video = read_clip(
            job.path, start_s=job.start_s, seconds=min(PERIOD_S, job.seconds or PERIOD_S), fps=job.fps, area=job.area
        )
    except (MediaError, OSError) as error:
        return replace(row, status=DROPPED, reason=f"{UNREADABLE}{error}")
    row = replace(row, fps=round(video.fps, 3), frames=len(video.frames))
    row, content = measure_motion(row, video, job)
    if content is not None:
        write_clip(folder, job.id, content)
    return row


def measure_motion(row: ClipRow, video: Video, job: ClipJob) -> tuple[ClipRow, ClipContent | None]:
    """Estimate a clip's motion; return its row with figures and verdict, and its content (None when dropped)."""
    first, count = video.frames[0], len(video.frames)
    if count < 2:
        return replace(row, status=DROPPED, reason="a single frame"), None
    flow = estimate_flow(
        first, video.frames, method=job.method, weights=job.raft_weights, device=job.device
    )  # (T, 2, H, W)
    if not torch.isfinite(flow).all():
        return replace(row, status=DROPPED, reason="flow failed: NaN or Inf"), None
    flow, reliability = visible_flow(first, video.frames, flow)
    confidence = reliability.mean(0)  # (1, H, W)
    displacement = magnitude(flow).mean(0)  # (1, H, W)
    row = replace(row, **motion_figures(displacement))
    reason = _why_dropped(float(confidence.mean()), row.moving_fraction)
    if reason:
        return replace(row, status=DROPPED, reason=reason), None

    chosen = {round((i + 1) * (count - 1) / job.num_pairs) for i in range(job.num_pairs)} - {0}
    pairs = tuple(Pair(video.frames[i], flow[i], reliability[i], float(video.times_s[i])) for i in sorted(chosen))
    reason = _why_no_spectrum(video.times_s)
    if reason:
        content = ClipContent(first, pairs=pairs, importance=displacement)
        return replace(row, status=PAIRS_ONLY, reason=reason), content
    spectrum = fit_spectrum(flow, video.times_s, num_bins=STORED_BINS, period_s=PERIOD_S)
    return replace(row, status=KEPT), ClipContent(first, spectrum, confidence, pairs)


def _why_dropped(reliability: float, moving_fraction: float) -> str:
    if reliability < MIN_RELIABILITY:
        return f"flow failed: mean reliability {reliability:.2f} is below {MIN_RELIABILITY}"
    if moving_fraction < STILL_FRACTION:
        return f"still: {moving_fraction:.2%} of the pixels move, {STILL_FRACTION:.0%} is wanted"
    return ""


def _why_no_spectrum(times_s: torch.Tensor) -> str:
    count = len(times_s)
    # the interval after the last frame counts, as in fit_spectrum
    covered_s = float(times_s[-1]) * count / (count - 1)
    if covered_s < MINIMUM_COVERAGE * PERIOD_S:
        return f"covers {covered_s:.2f} s, a spectrum needs {MINIMUM_COVERAGE * PERIOD_S:g} s"
    if count < 2 * STORED_BINS:
        return f"{count} different frames, {STORED_BINS} bins need {2 * STORED_BINS}"
    return ""


def read_clip(
    path: str | Path,
    *,
    start_s: float = 0.0,
    seconds: float = PERIOD_S,
    fps: float = FPS,
    area: int = MOTION_AREA_PX,
    size: tuple[int, int] | None = None,
) -> Video:
    """Read a clip on its motion grid, at its own time stamps, without repeated frames.

    A source faster than `fps` is thinned to it; frames keep their own stamps, which the fit of the series takes as they
    are.

    Args:
        path: the video.
        start_s: where frame 0 lies, s.
        seconds: how much to read, s.
        fps: the highest frame rate wanted.
        area: area of the motion grid, px, when `size` is absent.
        size: the grid (H, W).

    Returns:
        A Video with frames (T, 3, H, W) and times_s (T,) from 0.

    Raises:
        MediaError: the video cannot be read.
    """
    info = probe_video(path)
    grid = size or motion_grid_size(info.height, info.width, area=area)
    frames, times_s = [], []
    for time_s, frame in iterate_video(path, start_s=start_s, seconds=seconds, size=grid):
        # thinned to the rate on average; resampling would give frames stamps that are not theirs
        if time_s >= len(frames) / fps - 0.5 / info.fps - 1e-6:
            frames.append(frame)
            times_s.append(time_s)
    video = Video(torch.stack(frames), torch.tensor(times_s, dtype=torch.float64), min(fps, info.fps), info.fps)
    keep = repeated_frames(video.frames).logical_not()
    return replace(video, frames=video.frames[keep], times_s=video.times_s[keep])


def repeated_frames(frames: torch.Tensor) -> torch.Tensor:
    """Find frames that repeat the one before, as a conversion from 24 or 25 to 30 frames/s leaves them.

    A clip in which most frames look like repeats is one where hardly anything moves: nothing is marked there.

    Args:
        frames: (T, 3, H, W) in [0, 1].

    Returns:
        (T,) bool, never true for frame 0.
    """
    repeated = torch.zeros(len(frames), dtype=torch.bool)
    if len(frames) < 3:
        return repeated
    steps = torch.stack([(b - a).abs().mean() for a, b in zip(frames[:-1], frames[1:], strict=True)])  # (T-1,)
    padded = torch.cat([steps[1 : REPEAT_WINDOW + 1].flip(0), steps, steps[-REPEAT_WINDOW - 1 : -1].flip(0)])
    around = padded.unfold(0, len(padded) - len(steps) + 1, 1).median(1).values  # (T-1,)
    both = torch.stack([torch.cat([steps[1:2], steps[:-1]]), torch.cat([steps[1:], steps[-2:-1]])])
    neighbour = both.min(0).values  # (T-1,)
    # where motion turns back the steps shrink little by little; a repeat is a dip of one frame
    is_dip = (steps < REPEAT_SHARE * neighbour) & (neighbour > 0.5 * around)
    repeated[1:] = (steps < REPEAT_DIFFERENCE) & is_dip
    return repeated if repeated.float().mean() < 0.5 else torch.zeros_like(repeated)
