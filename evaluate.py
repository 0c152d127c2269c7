"""Measure on held-out clips and write tables.

frames    how well frame t is made from frame 0 and its flow: models, image-space splats, and what any of them must beat
splats    one picture under a strong smooth flow, by each splatting operator, side by side
data      clip sets side by side: how much moves at which frequency, number of clips, confidence
sources   what clip sets were made from, with its licence, as a model card lists it
motion    predicted motion: does it fall where the clips move, how strong is each bin, how do samples differ
still     motion predicted for pictures in which nothing can move
video     generated videos against real ones: FID, KID, FVD, DTFVD, also along the video
ablation  variants of the method trained with the same budget, and measured alike
flow      optical flow methods on videos, and on rendered scenes whose flow is known
"""

from __future__ import annotations

import shlex
import sys

from training.cli import HALF_PRECISION, ON_CPU, Parser, command, run
from training.tables import ablation, data, flow, frames, motion, sources, splats, still, video

TABLES = (frames, splats, motion, still, video, ablation, data, sources, flow)
# Of those that compute on a device.
MEMORY_FLAGS = {
    "frames": (HALF_PRECISION, ON_CPU),
    "motion": ("--samples", "--guidance", HALF_PRECISION, ON_CPU),
    "still": ("--samples", "--guidance", HALF_PRECISION, ON_CPU),
    "ablation": ablation.MEMORY_FLAGS,
    "flow": (ON_CPU,),
    "video": ("--batch-size", HALF_PRECISION, ON_CPU),
}


@command(memory_flags=MEMORY_FLAGS)
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
