"""What the scripts that predict motion share: the sampler's flags and loading the trained pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import Parser, UsageError, choose_device, non_negative_float, positive_float, positive_int

if TYPE_CHECKING:
    from models.motion_pipeline import MotionPipeline
    from models.self_guidance import LoopGuidance

SAMPLER_NAMES = ("dpm", "ddim", "unipc")
# Bounds of the default schedule's 1000 training steps; one step has nothing to interpolate between.
FEWEST_STEPS, MOST_STEPS = 2, 1000
FEWEST_LOOP_FRAMES = 2


def add_sampling_flags(parser: Parser) -> None:
    """Add the group that animate.py and generate_motion.py have in common."""
    group = parser.add_argument_group("motion")
    add = group.add_argument
    add("--sampler", choices=SAMPLER_NAMES, default="dpm", help="DPM-Solver++, DDIM (the paper's), UniPC")
    add("--steps", type=positive_int, metavar="N", help="network calls; default: 20, DDIM 250")
    add("--guidance", type=non_negative_float, metavar="W", default=0.0, help="classifier-free guidance; 0 = none")
    add("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")


def add_loop_flags(parser: Parser) -> None:
    """Add the group of loops whose length is no whole number of periods, at unchanged speed."""
    group = parser.add_argument_group("loops of any length", "at unchanged speed; a whole period needs none of this")
    add = group.add_argument
    add("--loop-seconds", type=positive_float, metavar="S", help="predict motion that is back at its start after S")
    add(
        "--loop-guidance",
        choices=("closing", "projection", "gradient"),
        default="projection",
        help="closing: only the finished motion is projected; projection: each step's too; gradient: the paper's",
    )
    add("--loop-weight", type=non_negative_float, metavar="U", default=200.0, help="of the gradient")
    add("--loop-recurrences", type=positive_int, metavar="N", default=1, help="how often a step is taken; paper: 2")


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


def check_steps(steps: int | None) -> int | None:
    """Return the sampler's network calls; UsageError where the noise schedule does not allow so many or so few."""
    if steps is not None and not FEWEST_STEPS <= steps <= MOST_STEPS:
        raise UsageError(f"--steps {steps}: right: {FEWEST_STEPS} to {MOST_STEPS}")
    return steps


def sampling_options(args: argparse.Namespace) -> dict:
    """Return the arguments of `MotionPipeline.predict` that the flags give."""
    steps = check_steps(args.steps)
    return {"seed": args.seed, "sampler": args.sampler, "steps": steps, "guidance": args.guidance}


def load_pipeline(args: argparse.Namespace) -> MotionPipeline:
    """Load the pipeline of --checkpoint onto --device; CheckpointError or UsageError in one line."""
    device = choose_device(args.device)

    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.motion_pipeline import MotionPipeline

    pipeline = MotionPipeline.load(args.checkpoint or DEFAULT_CHECKPOINT)
    pipeline.to(device)
    return pipeline
