"""benchmark.py motion: predicting motion by sampler and steps, beside the frequencies sampled one after the other."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from training.cli import (
    UsageError,
    add_shared_flags,
    check_precision,
    non_negative_float,
    positive_int,
    size_px,
)
from training.sampling import SAMPLER_NAMES, check_steps

from . import DEFAULT_OUT, check_out_and_device

if TYPE_CHECKING:
    from training.motion_benchmark import Job

logger = logging.getLogger(__name__)

PRESETS = ("tiny", "small", "paper")


def add_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("motion", help="predicting motion by sampler and steps, beside sequential sampling")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    add("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")
    add("--preset", choices=PRESETS, help="untrained networks of this size instead: time does not depend on weights")
    add("--grid", type=size_px, default=(160, 256), metavar="WxH", help="motion grid, sides multiples of 32 px")
    add("--samplers", choices=SAMPLER_NAMES, nargs="+", default=list(SAMPLER_NAMES), metavar="NAME", help="to compare")
    add("--steps", type=positive_int, nargs="+", default=[20, 50], metavar="N", help="network calls, a row each")
    add("--guidance", type=non_negative_float, default=1.0, metavar="W", help="classifier-free guidance; 0 = none")
    add("--samples", type=positive_int, nargs="+", default=[1], metavar="N", help="in one batch, a row each")
    add("--repeats", type=positive_int, default=3, metavar="N", help="laps, of which the median counts")
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "motion"}
    precision = {"help": "of the U-Net; fp16 needs a GPU"}
    add_shared_flags(parser, "seed", "device", "precision", "out", out=out, precision=precision)


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the table; return it."""
    if args.checkpoint and args.preset:
        raise UsageError("--preset: --checkpoint has its own size; right: one of them")
    if any(side % 32 for side in args.grid):
        raise UsageError(f"--grid {args.grid[1]}x{args.grid[0]}: right: sides that are multiples of 32 px")
    for steps in args.steps:
        check_steps(steps)
    device = check_out_and_device(args)
    check_precision(args.precision, device)

    from models.checkpoints import DEFAULT_CHECKPOINT
    from training.motion_benchmark import Job, measure_motion, notes_of
    from training.results import write_results

    from .measuring import machine

    source = args.preset or str(args.checkpoint or DEFAULT_CHECKPOINT)
    common = {"source": source, "grid": args.grid, "guidance": args.guidance, "precision": args.precision}
    common |= {"seed": args.seed, "device": str(device)}
    jobs: list[Job] = [
        Job(sampler=sampler, steps=steps, samples=samples, **common)
        for samples in dict.fromkeys(args.samples)
        for sampler in dict.fromkeys(args.samplers)
        for steps in dict.fromkeys(args.steps)
    ]
    rows = measure_motion(jobs, args.repeats)
    notes = [machine(device), args.command, *notes_of(jobs[0], args.repeats)]
    return write_results(args.out, rows, title="benchmark motion", notes=notes)
