"""Measure on held-out clips and write tables.

frames    how well frame t is made from frame 0 and its flow: models, image-space splats, and what any of them must beat
splats    one picture under a strong smooth flow, by each splatting operator, side by side
data      clip sets side by side: how much moves at which frequency, number of clips, confidence
flow      optical flow methods on videos, and on rendered scenes whose flow is known
"""

from __future__ import annotations

import shlex
import sys

from training.cli import Parser, command, run
from training.tables import data, flow, frames, splats

TABLES = (frames, splats, data, flow)


@command(memory_flags=("--device",))
def main(argv: list[str] | None = None) -> int:
    """Parse the flags and make one table."""
    parser = Parser(description=__doc__, raw_description=True)
    names = "|".join(table.__name__.rpartition(".")[2] for table in TABLES)
    commands = parser.add_subparsers(dest="table", required=True, metavar=names)
    for table in TABLES:
        table.add_flags(commands)
    args = parser.parse_args(argv)
    args.command = shlex.join(["evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    return args.make_table(args)


if __name__ == "__main__":
    sys.exit(run(main))
