"""How near self-guidance brings a motion to a loop of L != T frames, beside samples that are drawn freely."""

import statistics
from collections.abc import Mapping, Sequence
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


def loop_guidances(frames: Sequence[int], period_s: float, method: str) -> dict[int, LoopGuidance]:
    """Return {L: the guidance to a loop of L frames}, 30 a second, by a method of LoopGuidance."""
    return {length: LoopGuidance(length / (FPS * period_s), method=method) for length in frames}


def sample_loops(
    pipeline: MotionPipeline, image: Tensor, free: Tensor, loops: Mapping[int, LoopGuidance], **options: Any
) -> list[dict[str, float]]:
    """Sample loops of an image (3, H, W) on its motion grid beside its free samples (M, K, 4, H, W) px.

    Returns the numbers of each sample and each length of `loop_guidances`.
    """
    free, found = without_drift(free), []
    for length, loop in loops.items():
        guided = without_drift(pipeline(image[None], num_samples=len(free), loop=loop, **options)[0])
        for before, after in zip(free, guided, strict=True):
            moved_px = max(float(mean_displacement(before).mean()), _LEAST)
            found.append({
                "frames": length,
                "free": float(loop_closure_error(before, loop.phase)),
                "guided": float(loop_closure_error(after, loop.phase)),
                "sampled_motion": float(mean_displacement(after).mean()) / moved_px,
                "closed_motion": float(mean_displacement(closed(after, loop.phase)).mean()) / moved_px,
            })  # fmt: skip
    return found


def loop_table(loops: Mapping[int, LoopGuidance], found: Sequence[Mapping[str, float]]) -> list[Row]:
    """Return a row for each length of `loop_guidances` of what `sample_loops` found."""
    rows = []
    for length, loop in loops.items():
        samples = [one for one in found if one["frames"] == length]
        times = [one["free"] / max(one["guided"], _LEAST) for one in samples]
        row: Row = {"row": f"{length} frames, {loop.method}", "samples": len(samples)}
        for name in ("free", "guided"):
            row[f"{name}_loop_closure_error_px"] = statistics.fmean(one[name] for one in samples)
        row |= {"times": statistics.geometric_mean(times), "times_worst": min(times)}
        for name in ("sampled_motion", "closed_motion"):
            moved = [max(one[name], _LEAST) for one in samples]
            row |= {name: statistics.geometric_mean(moved), f"{name}_least": min(moved), f"{name}_most": max(moved)}
        rows.append(row)
    return rows
