"""Measure on held-out clips and write tables.

frames    how well frame t is made from frame 0 and its flow: models, image-space splats, and baselines
splats    one image under a strong smooth flow, by each splatting operator, side by side
data      clip sets side by side: how much moves at which frequency, number of clips, confidence
sources   the sources of clip sets with their licences, for a model card
motion    predicted motion: does it fall where the clips move, how strong is each bin, how do samples differ
still     motion predicted for images in which nothing can move
video     generated videos against real ones: FID, KID, FVD, DTFVD, also along the video
ablation  variants of the method trained with the same budget, and measured alike
flow      optical flow methods on videos, and on rendered scenes whose flow is known
"""

from __future__ import annotations

import importlib
import shlex
import sys

from cli.parser import Parser
from cli.run import EXIT_SKIPPED, command, run
from evaluation import flags

# Name of the table, its flags, and the module whose make_table measures and writes it.
TABLES = (
    ("frames", flags.add_frames_flags, "evaluation.frames.table"),
    ("splats", flags.add_splats_flags, "evaluation.splats"),
    ("motion", flags.add_motion_flags, "evaluation.motion.table"),
    ("still", flags.add_still_flags, "evaluation.motion.static_scenes"),
    ("video", flags.add_video_flags, "evaluation.video.table"),
    ("ablation", flags.add_ablation_flags, "evaluation.ablation"),
    ("data", flags.add_data_flags, "evaluation.clip_sets"),
    ("sources", flags.add_sources_flags, "evaluation.licences"),
    ("flow", flags.add_flow_flags, "evaluation.flow"),
)


@command
def main(argv: list[str] | None = None) -> int:
    """Parse the flags and make one table."""
    parser = Parser(description=__doc__)
    names = "|".join(name for name, _, _ in TABLES)
    commands = parser.add_subparsers(dest="table", required=True, metavar=names)
    for _, add_flags, _ in TABLES:
        add_flags(commands)
    args = parser.parse_args(argv)
    options = vars(args)
    table, check = options.pop("table"), options.pop("check", None)
    if check:
        check(args)
    options["command"] = shlex.join(["evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    module = next(module for name, _, module in TABLES if name == table)
    complete = importlib.import_module(module).make_table(**options)
    return 0 if complete else EXIT_SKIPPED


if __name__ == "__main__":
    sys.exit(run(main))
