"""benchmark.py splatting: operators and backends, beside hand-written torch and a copy (`training.splat_benchmark`)."""

from __future__ import annotations

import argparse
import re

from training.cli import add_shared_flags, positive_int

from . import DEFAULT_OUT, check_out_and_device

SPLATS = ("sum", "average", "softmax", "gaussian", "ewa")


def add_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("splatting", help="operators and backends, beside hand-written torch and a copy")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is measured")
    sizes = "1x36x160x256 8x36x160x256 1x36x512x512, on a CUDA GPU also 4x64x1080x1920"
    group.add_argument("--sizes", type=tensor_size, nargs="+", metavar="BxCxHxW", help=f"default: {sizes}")
    ops = f"default: all of {', '.join(SPLATS)}"
    group.add_argument("--ops", choices=SPLATS, nargs="+", metavar="OP", help=ops)
    group.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that can run on the device")
    group.add_argument("--repeats", type=positive_int, default=7, metavar="N", help="laps, of which the median counts")
    group.add_argument(
        "--threads", type=positive_int, metavar="N", help="of torch and the cpu backend; default: torch's"
    )
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "splatting"}
    add_shared_flags(parser, "seed", "device", "out", out=out)


def tensor_size(text: str) -> tuple[int, ...]:
    """Parse BxCxHxW."""
    numbers = [int(number) for number in text.lower().split("x")] if re.fullmatch(r"\d+([xX]\d+){3}", text) else [0]
    if not all(numbers):
        raise argparse.ArgumentTypeError(f"expected BxCxHxW, each at least 1, such as 1x36x160x256, got {text!r}")
    return tuple(numbers)


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the tables; return them."""
    device = check_out_and_device(args)

    import torch

    from training.splat_benchmark import choose_backends, choose_sizes, measure_splatting, notes_of, write_tables

    from .measuring import machine

    backends, sizes = choose_backends(args.backends, device), choose_sizes(args.sizes, device)
    ops = list(dict.fromkeys(args.ops or SPLATS))
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = measure_splatting(
        sizes=sizes, ops=ops, backends=backends, repeats=args.repeats, seed=args.seed, device=device
    )
    notes = [machine(device), args.command, *notes_of(device, args.repeats, args.seed)]
    return write_tables(args.out, rows, title="benchmark splatting", notes=notes)
