"""The tables of benchmark.py, a module each: `add_flags` for its command line, `make_table` to measure and write."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cli.parser import UsageError, check_writable, choose_device

if TYPE_CHECKING:
    import torch

DEFAULT_OUT = Path("outputs/benchmark")


def check_out_and_device(args: argparse.Namespace) -> torch.device:
    """Return the device; UsageError for an --out that cannot be a folder, before anything is loaded or made."""
    if args.out.is_file():
        raise UsageError(f"--out {args.out}: is a file; right: a folder")
    # The tables lie in the folder, which is made last.
    check_writable(args.out / "results.json")
    return choose_device(args.device)
