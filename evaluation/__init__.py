"""The tables of evaluate.py, a module each: `add_flags` for its command line, `make_table` to measure and write."""

from __future__ import annotations

import argparse
from pathlib import Path

from cli.parser import UsageError, check_writable

DEFAULT_OUT = Path("outputs/evaluate")


def out_folder(args: argparse.Namespace, name: str) -> Path:
    """Return the folder of the tables, --out or one of this name; UsageError where it cannot be one."""
    out = check_writable(args.out or DEFAULT_OUT / name)
    if out.is_file():
        raise UsageError(f"--out {out}: is a file; name a folder")
    return out
