"""What the scripts that predict motion share: the sampler's flags and loading the trained pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import Parser, UsageError, choose_device, non_negative_float, positive_int

if TYPE_CHECKING:
    from models.motion_pipeline import MotionPipeline

# Bounds of the default schedule's 1000 training steps; one step has nothing to interpolate between.
FEWEST_STEPS, MOST_STEPS = 2, 1000


def add_sampling_flags(parser: Parser) -> None:
    """Add the group that animate.py and generate_motion.py have in common."""
    group = parser.add_argument_group("motion")
    add = group.add_argument
    add("--sampler", choices=("dpm", "ddim", "unipc"), default="dpm", help="DPM-Solver++, DDIM (the paper's), UniPC")
    add("--steps", type=positive_int, metavar="N", help="network calls; default: 20, DDIM 250")
    add("--guidance", type=non_negative_float, metavar="W", default=1.0, help="classifier-free guidance; 0 = none")
    add("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")


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
