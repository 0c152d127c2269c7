"""When each frame of a video is shown: length, frame rate, slow motion, loops."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .spectrum import FPS, PERIOD_S

# Nine hours at 30 frames a second: what is longer is a slip of the keyboard, and would fill the memory with phases.
MAX_FRAMES = 1_000_000


@dataclass(frozen=True)
class Playback:
    """The phase of every frame.

    Attributes:
        phase: (N,) float64, t / T; the drift is held beyond 1.
        fps: frames a second.
        loop: frame N would equal frame 0 (with D = 0).
        notes: what was adjusted, one line each, for the user.
    """

    phase: Tensor
    fps: float
    loop: bool
    notes: tuple[str, ...] = field(default=())

    @property
    def num_frames(self) -> int:
        """N."""
        return len(self.phase)


def plan_playback(
    *,
    seconds: float,
    fps: float = FPS,
    period_s: float = PERIOD_S,
    slow: float = 1.0,
    loop: bool = False,
    drift: bool = True,
) -> Playback:
    """Choose the phases of a video.

    `slow` stretches the period, not the length; `fps` resamples at unchanged speed. A loop shows a whole number of
    periods, the one nearest to `seconds`; its speed is adjusted so that the frames come out even, and a note says so.
    `drift` tells whether the motion has one; only then is there a note that it is held beyond the period.

    Raises:
        ValueError: a number that is not positive and finite, or a video of less than two frames, of more than
            `MAX_FRAMES` or of as many periods.
    """
    for name, value in {"seconds": seconds, "fps": fps, "period_s": period_s, "slow": slow}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if seconds * fps > MAX_FRAMES:
        raise ValueError(f"seconds x fps: expected at most {MAX_FRAMES} frames, got {seconds * fps:g}")
    num_frames = round(seconds * fps)
    if num_frames < 2:
        raise ValueError(f"seconds x fps: expected at least 2 frames, got {num_frames}")
    period_s = period_s * slow
    if not seconds / MAX_FRAMES <= period_s < math.inf:
        raise ValueError(
            f"period_s x slow: expected at most {MAX_FRAMES} periods in a video, got one of {period_s:g} s"
        )
    index = torch.arange(num_frames, dtype=torch.float64)
    notes = []
    if loop:
        length_s = num_frames / fps
        periods = max(1, round(length_s / period_s))
        phase = index * periods / num_frames
        speed = periods * period_s / length_s
        if abs(speed - 1) > 1e-6:
            notes.append(f"loop: {periods} whole period(s) in {length_s:g} s, speed adjusted to {speed:.3f} x")
    else:
        phase = index / (fps * period_s)
        if drift and float(phase[-1]) > 1:
            notes.append(f"longer than the period of {period_s:g} s: the drift is held from there, the swing goes on")
    return Playback(phase, fps, loop, tuple(notes))
