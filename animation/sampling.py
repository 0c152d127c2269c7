"""What the scripts that predict motion share: the sampler's flags and loading the trained pipeline."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cli.parser import (
    Arguments,
    UsageError,
    refuse_flags,
)

if TYPE_CHECKING:
    from models.motion_pipeline import MotionPipeline
    from models.self_guidance import LoopGuidance

FEWEST_LOOP_FRAMES = 2
# Flags of no use where no motion is predicted.
PREDICTION_FLAGS = ("--sampler", "--steps", "--guidance", "--seed")
LOOP_FLAGS = ("--loop-guidance", "--loop-weight", "--loop-recurrences")


def check_loop_guidance(args: Arguments) -> None:
    """Raise UsageError for flags of `add_loop_flags` that the others leave without effect."""
    if args.loop_seconds is None:
        refuse_flags(args, LOOP_FLAGS, "belongs to --loop-seconds S; right: both, or neither")
    if args.loop_guidance != "gradient":
        refuse_flags(args, ["--loop-weight"], "is of the gradient; right: --loop-guidance gradient beside it")
    if args.loop_guidance == "closing":
        refuse_flags(args, ["--loop-recurrences"], "--loop-guidance closing takes no steps; right: one of the two")


def loop_guidance(
    args: argparse.Namespace, *, period_s: float | None = None, fps: float | None = None, slow: float = 1.0
) -> LoopGuidance | None:
    """Return what --loop-seconds asks for, None without it.

    Args:
        args: the flags of `add_loop_flags`.
        period_s: T of the model, seconds; None: the usual one.
        fps: of the video that is to loop after a whole number of its frames; None: of the motion.
        slow: how much slower it plays.

    Raises:
        UsageError: --loop-seconds of less than two frames, or of a day.
    """
    if args.loop_seconds is None:
        return None

    from models.self_guidance import LoopGuidance

    phase = loop_phase(args.loop_seconds, period_s=period_s, fps=fps, slow=slow)
    options = {"weight": args.loop_weight, "recurrences": args.loop_recurrences}
    if args.loop_guidance == "gradient":
        options["highest_noise"] = float("inf")  # all steps, as in the paper
    return LoopGuidance(phase, method=args.loop_guidance, **options)


def loop_phase(seconds: float, *, period_s: float | None = None, fps: float | None = None, slow: float = 1.0) -> float:
    """Return which part of the period a loop of `seconds` is, in whole frames; UsageError for none or too many."""
    from motion.looping import MAX_FRAMES
    from motion.spectrum import FPS, PERIOD_S

    fps, period_s = fps or FPS, (period_s or PERIOD_S) * slow
    if not FEWEST_LOOP_FRAMES <= round(min(seconds * fps, 2 * MAX_FRAMES)) <= MAX_FRAMES:
        right = f"{FEWEST_LOOP_FRAMES / fps:.3g} to {MAX_FRAMES / fps:.6g} s at {fps:g} frames/s"
        raise UsageError(f"--loop-seconds {seconds:g}: right: {right}")
    return round(seconds * fps) / fps / period_s


def load_pipeline(args: argparse.Namespace) -> MotionPipeline:
    """Load the pipeline of --checkpoint onto --device; CheckpointError or UsageError in one line."""
    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.device import choose_device
    from models.motion_pipeline import MotionPipeline

    device = choose_device(args.device)  # before anything is loaded
    pipeline = MotionPipeline.load(args.checkpoint or DEFAULT_CHECKPOINT)
    pipeline.to(device)
    return pipeline
