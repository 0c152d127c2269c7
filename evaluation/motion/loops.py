"""How near self-guidance brings a motion to a loop of L != T frames, beside samples that are drawn freely."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from evaluation import Row
from models.motion_pipeline import MotionPipeline
from models.self_guidance import LoopGuidance
from motion.looping import closed, loop_closure_error
from motion.spectrum import FPS, mean_displacement, without_drift

LOOP_NOTES = (
    "loop_closure_error: the objective of [GID] eq. 5, mean over pixels of |F_L - F_0|_1 + |V_L - V_0|_1, px, of a "
    "motion without drift, before the finished motion is closed exactly; times: free over guided, of one start noise",
    "motion: mean |F| of the guided motion over the free one, as sampled and closed; means of times and motion are "
    "geometric",
)
_LEAST = 1e-9


class LoopComparison:
    """Collects guided and free samples of images, for loops of `frames` (30 a second) by a method of LoopGuidance."""

    def __init__(self, frames: Sequence[int], period_s: float, method: str) -> None:
        self.frames, self.period_s, self.method = frames, period_s, method
        # {(L, metric): a number for each sample}
        self.found: dict[tuple[int, str], list[float]] = defaultdict(list)

    def guidance(self, length: int) -> LoopGuidance:
        """Return the guidance to a loop of `length` frames."""
        highest = {"highest_noise": math.inf} if self.method == "gradient" else {}  # all steps, as in the paper
        return LoopGuidance(length / (FPS * self.period_s), method=self.method, **highest)

    def add(self, pipeline: MotionPipeline, image: Tensor, free: Tensor, **options: Any) -> None:
        """Sample loops of an image (3, H, W) on its motion grid beside its free samples (M, K, 4, H, W) px."""
        free = without_drift(free)
        for length in self.frames:
            loop = self.guidance(length)
            guided = without_drift(pipeline(image[None], num_samples=len(free), loop=loop, **options)[0])
            for before, after in zip(free, guided, strict=True):
                moved_px = max(float(mean_displacement(before).mean()), _LEAST)
                values = {
                    "free": float(loop_closure_error(before, loop.phase)),
                    "guided": float(loop_closure_error(after, loop.phase)),
                    "sampled_motion": float(mean_displacement(after).mean()) / moved_px,
                    "closed_motion": float(mean_displacement(closed(after, loop.phase)).mean()) / moved_px,
                }
                for name, value in values.items():
                    self.found[length, name].append(value)

    def table(self) -> list[Row]:
        """Return a row for each length."""
        rows = []
        for length in self.frames:
            free, guided = self.found[length, "free"], self.found[length, "guided"]
            times = [before / max(after, _LEAST) for before, after in zip(free, guided, strict=True)]
            row: Row = {"row": f"{length} frames, {self.method}", "samples": len(times)}
            row["free_loop_closure_error_px"] = statistics.fmean(free)
            row["guided_loop_closure_error_px"] = statistics.fmean(guided)
            row |= {"times": statistics.geometric_mean(times), "times_worst": min(times)}
            for name in ("sampled_motion", "closed_motion"):
                found = [max(value, _LEAST) for value in self.found[length, name]]
                row |= {name: statistics.geometric_mean(found), f"{name}_least": min(found), f"{name}_most": max(found)}
            rows.append(row)
        return rows
