"""Load the trained pipeline, and tell which part of a period a loop is."""

from pathlib import Path

import torch

from models.checkpoints import DEFAULT_CHECKPOINT
from models.device import ArgumentError
from models.motion_pipeline import MotionPipeline
from motion.looping import MAX_FRAMES
from motion.spectrum import FPS, PERIOD_S

FEWEST_LOOP_FRAMES = 2


def load_pipeline(checkpoint: Path | None, device: torch.device) -> MotionPipeline:
    """Load a checkpoint folder (None: the default one) onto a device; CheckpointError when it cannot be used."""
    return MotionPipeline.from_pretrained(checkpoint or DEFAULT_CHECKPOINT).to(device)


def loop_phase(loop_seconds: float, *, period_s: float = PERIOD_S, fps: float = FPS, slow: float = 1.0) -> float:
    """Return which part of the period a loop is, in whole frames of the video; ArgumentError for too few or many."""
    if not FEWEST_LOOP_FRAMES <= round(min(loop_seconds * fps, 2 * MAX_FRAMES)) <= MAX_FRAMES:
        right = f"{FEWEST_LOOP_FRAMES / fps:.3g} to {MAX_FRAMES / fps:.6g} s at {fps:g} frames/s"
        raise ArgumentError(f"loop_seconds {loop_seconds:g}: right: {right}")
    return round(loop_seconds * fps) / fps / (period_s * slow)
