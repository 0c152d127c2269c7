"""Measure on held-out clips and write tables; `evaluate.py TABLE --help` shows the flags of one."""

from cli.run import EXIT_SKIPPED, command, run

import importlib
import logging
import shlex
import sys

from cli.parser import Parser
from evaluation import Report, flags

logger = logging.getLogger("__main__")

# {table: what it measures, the module whose make_table measures and writes it}
TABLES = {
    "frames": ("PSNR, SSIM, LPIPS of frames rendered from frame 0 and their flow", "evaluation.frames.table"),
    "splats": ("one image under a strong smooth flow, by each operator, side by side", "evaluation.splats"),
    "motion": ("motion predicted for the first frames of clips against their own", "evaluation.motion.table"),
    "placement": ("motion predicted for photographs by masks of what can move", "evaluation.placement"),
    "video": ("FID, KID, FVD, DTFVD of generated videos against real ones", "evaluation.video.table"),
    "ablation": ("variants trained with the same budget; called again it goes on", "evaluation.ablation"),
    "data": ("clip sets side by side: mean amplitude per bin, clips, confidence", "evaluation.clip_sets"),
    "sources": ("the sources of clip sets with their licences, for a model card", "evaluation.licences"),
    "flow": ("flow methods on videos, and on rendered scenes whose flow is known", "evaluation.flow"),
}
# {table: its earlier names, which still work}
EARLIER_NAMES = {"placement": ["still"]}
# What is in `workers` already, and what makes the report.
NOT_OF_TABLES = ("table", "out", "cluster", "cpus_per_worker", "gpus_per_worker", "item_seconds")


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="table", required=True, metavar="|".join(TABLES))
    for name, (help_text, _) in TABLES.items():
        table = commands.add_parser(name, help=help_text, aliases=EARLIER_NAMES.get(name, []))
        getattr(flags, f"add_{name}_flags")(table)
        table.set_defaults(table=name)
    args = parser.parse_args(argv)
    getattr(flags, f"check_{args.table}_flags", lambda _: None)(args)
    out = flags.choose_folder(args)
    report = Report(out, shlex.join(["evaluate.py", *(sys.argv[1:] if argv is None else argv)]))
    options = {name: value for name, value in vars(args).items() if name not in NOT_OF_TABLES}
    complete = importlib.import_module(TABLES[args.table][1]).make_table(report, **options)
    if not options.get("dry_run"):
        logger.info("written to %s", out)
    return 0 if complete else EXIT_SKIPPED


if __name__ == "__main__":
    sys.exit(run(main))
