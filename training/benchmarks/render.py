"""benchmark.py render: frames a second and peak memory by size, with each network, beside the preview."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.cli import UsageError, check_precision, non_negative_int, positive_int, size_px
from training.playback import add_rendering_flags, check_tile

from . import DEFAULT_OUT, check_out_and_device

SIZES = ((160, 256), (320, 512), (640, 1024), (1080, 1920))
METHODS = ("preview", "softmax", "gaussian")
PRESETS = ("tiny", "small", "paper")
SMALLEST_PX = 16


def add_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("render", help="frames a second and memory by size, beside the preview")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    sizes = f"default: {' '.join(f'{width}x{height}' for height, width in SIZES)}"
    add("--sizes", type=size_px, nargs="+", metavar="WxH", help=sizes)
    add("--methods", choices=METHODS, nargs="+", default=list(METHODS), metavar="NAME", help="the preview comes along")
    add("--frames", type=positive_int, default=4, metavar="N", help="in each lap")
    add("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")
    add("--preset", choices=PRESETS, help="untrained networks of this size instead: time does not depend on weights")
    add("--batch-size", type=positive_int, metavar="N", help="frames computed together; default: by size and device")
    add("--tile", type=non_negative_int, metavar="PX", help="of the decoder, 0 = never; default: by size and memory")
    add("--threads", type=positive_int, metavar="N", help="of a CPU; default: torch's")
    add("--repeats", type=positive_int, default=3, metavar="N", help="laps, of which the median counts")
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "render"}
    add_rendering_flags(parser, "seed", "device", "out", out=out)


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the table; return it."""
    if args.checkpoint and args.preset:
        raise UsageError("--preset: --checkpoint has its own size; right: one of them")
    sizes = list(dict.fromkeys(args.sizes or SIZES))
    for height, width in sizes:
        if min(height, width) < SMALLEST_PX:
            raise UsageError(f"--sizes {width}x{height}: right: at least {SMALLEST_PX}x{SMALLEST_PX}")
    check_tile(args.tile)
    device = check_out_and_device(args)
    check_precision(args.precision, device)

    import torch

    from models.checkpoints import DEFAULT_CHECKPOINT
    from training.render_benchmark import Job, measure_render, notes_of
    from training.results import write_results

    from .measuring import machine

    if args.threads:
        torch.set_num_threads(args.threads)
    common = {"source": args.preset or str(args.checkpoint or DEFAULT_CHECKPOINT), "frames": args.frames}
    common |= {"precision": args.precision, "batch_size": args.batch_size, "tile": args.tile}
    common |= {"seed": args.seed, "device": str(device)}
    jobs = [Job(method=method, size=size, **common) for size in sizes for method in args.methods]
    rows = measure_render(jobs, args.repeats)
    notes = [machine(device), args.command, *notes_of(jobs[0], args.repeats)]
    return write_results(args.out, rows, title="benchmark render", notes=notes)
