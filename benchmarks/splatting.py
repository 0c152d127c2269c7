"""benchmark.py splatting: operators and backends, beside hand-written torch and a copy."""

from __future__ import annotations

import argparse

from benchmarks import check_out_and_device
from benchmarks.flags import SPLATS


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the tables; return them."""
    device = check_out_and_device(args)

    import torch

    from benchmarks.measuring import machine
    from benchmarks.splatting_cases import choose_backends, choose_sizes, measure_splatting, notes_of, write_tables

    backends, sizes = choose_backends(args.backends, device), choose_sizes(args.sizes, device)
    ops = list(dict.fromkeys(args.ops or SPLATS))
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = measure_splatting(
        sizes=sizes, ops=ops, backends=backends, repeats=args.repeats, seed=args.seed, device=device
    )
    notes = [machine(device), args.command, *notes_of(device, args.repeats, args.seed)]
    return write_tables(args.out, rows, title="benchmark splatting", notes=notes)
