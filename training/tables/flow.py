"""evaluate.py flow: optical flow methods on videos, and on rendered scenes whose flow is known."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from training.cli import (
    EXIT_SKIPPED,
    UsageError,
    add_shared_flags,
    choose_device,
    non_negative_int,
    positive_int,
)

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
    group.add_argument("--raft-weights", type=Path, metavar="FILE", help="state dict of torchvision's RAFT, for raft")
    group.add_argument("--every", type=positive_int, default=12, metavar="N", help="only frames N, 2 N, ... of a video")
    out = {"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/flow"}
    seed = {"default": 5000, "help": "first seed of the scenes"}
    device = {"default": "cpu", "help": "where RAFT computes; the others use the CPU"}
    add_shared_flags(parser, "seed", "device", "out", out=out, seed=seed, device=device)


def make_table(args: argparse.Namespace) -> int:
    """Measure the methods; write --out, --out/by_clip and --out/unchanged; 3 when a video is bad or a folder empty."""
    from data.clip_sources import list_videos
    from data.optical_flow import METHODS
    from training.flow_evaluation import COLUMN_NOTES, TABLE_METHODS, UNCHANGED_NOTES, find_scenes, measure_flow
    from training.metrics import write_results

    # Early checks
    out = out_folder(args, "flow")
    methods = args.methods or TABLE_METHODS
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise UsageError(f"--methods {unknown[0]}: no such method; right: {', '.join(METHODS)}")
    if args.raft_weights is not None and "raft" not in methods:
        raise UsageError("--raft-weights: only for RAFT; give --methods raft, and the others that you want")
    device = choose_device(args.device)
    found = {path: list_videos(path) for path in args.videos}
    empty = [path for path in found if not found[path]]
    for path in empty:
        logger.warning("%s: no videos in this folder", path)
    videos = [video for path in args.videos for video in found[path]]
    if not videos and not args.scenes:
        raise UsageError("--videos: name videos, or give --scenes N")

    # Measure
    scenes = find_scenes(args.scenes, first_seed=args.seed)
    options = {"weights": args.raft_weights, "device": str(device)}
    tables = measure_flow(videos, methods, every=args.every, scenes=scenes, **options)
    if not tables.methods:
        raise UsageError(f"--videos: none of the {len(videos)} can be measured")

    # Write
    left_out = "".join(f"; left out: {path} ({reason})" for path, reason in tables.left_out)
    data = (
        f"data: {len(videos) - len(tables.left_out)} videos, every {args.every}th frame{left_out}; "
        f"{len(scenes)} scenes from seed {args.seed} on with a mean motion of 1.5 to 2.5 px, every 24th frame; "
        f"device {device}"
    )
    command = f"command: {args.command}"
    print(write_results(out, tables.methods, title="Optical flow", notes=[data, *COLUMN_NOTES, command]))
    write_results(out / "by_clip", tables.by_clip, title="The same by clip and scene", notes=[data, command])
    if tables.unchanged:
        notes = [data, *UNCHANGED_NOTES, command]
        print(write_results(out / "unchanged", tables.unchanged, title="Flow where nothing changes", notes=notes))
    logger.info("written to %s", out)
    return EXIT_SKIPPED if tables.left_out or empty else 0
