"""benchmark.py data: rendering scenes for training, reading a clip set, and optical flow by method."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.cli import UsageError, add_shared_flags, positive_int, size_px

from . import DEFAULT_OUT, check_out_and_device

METHODS = ("dis_fast", "dis", "dis_x2", "farneback")


def add_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("data", help="scenes for training a second, flow methods, reading a set")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    add("--scenes", type=positive_int, default=8, metavar="N", help="rendered in each row, a kind after the other")
    add("--size", type=size_px, default=(160, 256), metavar="WxH", help="of the pictures")
    add("--methods", choices=METHODS, nargs="+", default=list(METHODS), metavar="NAME", help="of optical flow")
    add("--pairs", type=positive_int, default=8, metavar="N", help="of frames that flow is estimated between")
    add("--data", type=Path, metavar="SET", help="clip set that training items are read from; default: none")
    workers = {"default": 1, "type": positive_int, "help": "processes that render, each with one thread"}
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "data"}
    add_shared_flags(parser, "seed", "workers", "out", out=out, workers=workers)


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the table; return it."""
    args.device = "cpu"
    check_out_and_device(args)
    if min(args.size) < 32:
        raise UsageError(f"--size {args.size[1]}x{args.size[0]}: right: at least 32x32")

    import torch

    from data.clips import ClipSet
    from training.data_benchmark import measure_flow_methods, measure_reading, measure_scenes
    from training.results import write_results

    clip_set = ClipSet(args.data) if args.data else None
    rows = measure_scenes(args.scenes, size=args.size, seed=args.seed, workers=args.workers)
    if clip_set is not None:
        rows.append(measure_reading(clip_set, size=args.size, seed=args.seed))
    methods = ["dis_fast", *(name for name in dict.fromkeys(args.methods) if name != "dis_fast")]
    rows += measure_flow_methods(methods, args.pairs, size=args.size, seed=args.seed)
    notes = [
        f"CPU, torch {torch.__version__}; scenes: {args.workers} processes; the rest: one; each with one thread",
        f"pictures of {args.size[1]} x {args.size[0]} px, seed {args.seed}; set: {args.data or 'none'}",
        args.command,
        "scene, motion item: frame 0 and the spectrum (24 bins) of a new scene; baseline: the same spectrum fitted to "
        "its 150 frames' flow",
        "scene, frame pair: frame 0, a later frame and the exact flow between them, of a new scene",
        "times_baseline: so many times as fast (scenes) or so many times as long (flow, against dis_fast)",
    ]
    return write_results(args.out, rows, title="benchmark data", notes=notes)
