"""evaluate.py flow: optical flow methods on videos, and on rendered scenes whose flow is known."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from training.cli import UsageError, add_shared_flags, non_negative_int, positive_int

from . import DEFAULT_OUT, out_folder

logger = logging.getLogger(__name__)


def add_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("flow", help="flow methods on videos, and on rendered scenes whose flow is known")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--videos", type=Path, nargs="+", default=[], metavar="FILE", help="videos, or folders of them")
    group.add_argument("--scenes", type=non_negative_int, default=16, metavar="N", help="rendered scenes of ~2 px")
    group.add_argument("--methods", nargs="+", metavar="NAME", help="default: dis_fast dis_x2 dis farneback")
    group.add_argument("--every", type=positive_int, default=12, metavar="N", help="only frames N, 2 N, ... of a video")
    out = {"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/flow"}
    add_shared_flags(parser, "seed", "out", out=out, seed={"default": 5000, "help": "first seed of the scenes"})


def make_table(args: argparse.Namespace) -> int:
    """Measure the methods, print the table and write it to --out, by clip to --out/by_clip."""
    from data.clip_sources import list_videos
    from data.optical_flow import METHODS
    from training.flow_evaluation import COLUMN_NOTES, TABLE_METHODS, find_scenes, measure_flow
    from training.metrics import write_results

    out = out_folder(args, "flow")
    methods = args.methods or TABLE_METHODS
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise UsageError(f"--methods {unknown[0]}: no such method; right: {', '.join(METHODS)}")
    videos = [video for path in args.videos for video in list_videos(path)]
    if not videos and not args.scenes:
        raise UsageError("--videos: name videos, or give --scenes N")
    scenes = find_scenes(args.scenes, first_seed=args.seed)
    rows, by_clip = measure_flow(videos, methods, every=args.every, scenes=scenes)
    notes = [
        f"data: {len(videos)} videos, every {args.every}th frame; {len(scenes)} scenes from seed {args.seed} on with a "
        "mean motion of 1.5 to 2.5 px, every 24th frame",
        *COLUMN_NOTES,
        f"command: {args.command}",
    ]
    print(write_results(out, rows, title="Optical flow", notes=notes))
    write_results(out / "by_clip", by_clip, title="The same by clip and scene", notes=notes)
    logger.info("written to %s", out)
    return 0
