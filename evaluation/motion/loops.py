"""How near self-guidance brings a motion to a loop of L != T frames, beside samples that are drawn freely."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.motion_pipeline import MotionPipeline
from models.self_guidance import LoopGuidance
from motion.looping import closed, loop_closure_error
from motion.spectrum import FPS, mean_displacement, without_drift

LOOP_NOTE = (
    "loop_closure_error: the objective of [GID] eq. 5, mean over pixels of |F_L - F_0|_1 + |V_L - V_0|_1, px, of a "
    "motion without drift, before the finished motion is closed exactly; free: the same start noise without guidance; "
    "times: free over guided; motion: mean |F| of the guided motion over the free one, as sampled and closed; mean "
    "over images and samples, of times and ratios the geometric one; worst: of all samples"
)


@dataclass
class LoopComparison:
    """Collects guided and free samples of one picture after another.

    Attributes:
        frames: the lengths L, in frames of the motion (30 a second).
        period_s: of the model.
        method: of `LoopGuidance`.
        figures: {L: {figure: a number for each sample}}.
    """

    frames: Sequence[int]
    period_s: float
    method: str
    figures: dict[int, dict[str, list[float]]] = field(default_factory=dict)

    def guidance(self, length: int) -> LoopGuidance:
        """Return the guidance to a loop of `length` frames."""
        highest = {"highest_noise": math.inf} if self.method == "gradient" else {}  # all steps, as in the paper
        return LoopGuidance(length / (FPS * self.period_s), method=self.method, **highest)

    def add(self, pipeline: MotionPipeline, image: Tensor, free: Tensor, **options: Any) -> None:
        """Sample loops of a picture (3, H, W) on its motion grid beside its free samples (M, K, 4, H, W) px."""
        free = without_drift(free)
        for length in self.frames:
            loop = self.guidance(length)
            guided = without_drift(pipeline(image[None], num_samples=len(free), loop=loop, **options)[0])
            found = self.figures.setdefault(length, {})
            for before, after in zip(free, guided, strict=True):
                moved_px = float(mean_displacement(before).mean())
                values = {
                    "free_loop_closure_error_px": float(loop_closure_error(before, loop.phase)),
                    "guided_loop_closure_error_px": float(loop_closure_error(after, loop.phase)),
                    "sampled_motion": float(mean_displacement(after).mean()) / max(moved_px, 1e-9),
                    "closed_motion": float(mean_displacement(closed(after, loop.phase)).mean()) / max(moved_px, 1e-9),
                }
                for name, value in values.items():
                    found.setdefault(name, []).append(value)

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each length."""
        return [self._row(length) for length in self.frames if length in self.figures]

    def _row(self, length: int) -> dict[str, Any]:
        found = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.figures[length].items()}
        times = found["free_loop_closure_error_px"] / found["guided_loop_closure_error_px"].clamp(min=1e-9)
        row: dict[str, Any] = {"row": f"{length} frames, {self.method}", "samples": len(times)}
        row |= {
            name: float(found[name].mean()) for name in ("free_loop_closure_error_px", "guided_loop_closure_error_px")
        }
        row |= {"times": statistics.geometric_mean(times.tolist()), "times_worst": float(times.min())}
        for name in ("sampled_motion", "closed_motion"):
            row[name] = statistics.geometric_mean(found[name].clamp(min=1e-9).tolist())
            row[f"{name}_least"], row[f"{name}_most"] = float(found[name].min()), float(found[name].max())
        return row
