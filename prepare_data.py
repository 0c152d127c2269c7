"""Prepare a clip set for training: from videos (flow, spectra, rendering pairs), rendered scenes, or another set.

Run it again with the same flags to go on after an interruption, or with more videos or scenes to extend the set.
"""

from cli.run import EXIT_SKIPPED, command, run

import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from cli.flags import add_shared_flags
from cli.parser import (
    Parser,
    UsageError,
    check_writable,
    fraction,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_flags,
    size_px,
)
from cluster.flags import add_cluster_flags, cluster_workers
from cluster.storage import is_folder, path_or_url
from data.cpus import available_cpus


@command
def main(argv: list[str] | None = None) -> int:
    """Parse the flags and prepare the set; returns 3 when a video had to be skipped."""
    args = _parser().parse_args(argv)
    check_writable(args.out)
    return {"videos": _videos, "scenes": _scenes, "select": _select, "shards": _shards}[args.what](args)


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="videos|scenes|select|shards")
    size: dict[str, Any] = {"type": size_px, "default": (160, 256), "metavar": "WxH_PX"}
    workers = {"default": available_cpus(), "help": "processes that prepare; 0 = this one"}
    several: dict[str, Any] = {"type": path_or_url, "nargs": "+", "metavar": "PATH|URL"}
    out: dict[str, Any] = {"type": path_or_url, "metavar": "PATH|URL", "required": True, "help": "the clip set"}

    videos = kinds.add_parser("videos", help="prepare clips of videos")
    videos.add_argument("paths", help="videos, folders, CSV files: path,start,seconds,split,source", **several)
    add = videos.add_argument_group("clips").add_argument
    add("--fps", type=positive_float, default=30.0, metavar="HZ", help="highest frame rate to use")
    add("--size", help="area of the motion grid; aspects are kept", **size)
    add("--pairs", type=non_negative_int, default=6, metavar="N", help="target frames kept of a clip")
    add("--clips-per-video", type=positive_int, default=1, metavar="N", help="clips taken of a video")
    add("--stride", type=positive_float, default=5.0, metavar="S", help="from the start of a clip to the next one's")
    add("--max-camera-px", type=positive_float, default=0.75, metavar="PX", help="camera motion allowed, at 256x160")
    add("--max-clips", type=positive_int, metavar="N", help="use the first N videos, or parts of videos, alone")
    add("--split-from", type=Path, action="append", default=[], metavar="CSV", help="look up splits by file name")
    add = videos.add_argument_group("optical flow").add_argument
    methods = ("dis", "dis_fast", "dis_x2", "farneback", "raft", "pyflow")
    add("--method", choices=methods, default="dis", help="how flow is estimated")
    add("--raft-weights", type=Path, metavar="FILE", help="state dict of torchvision's RAFT")
    add_shared_flags(videos, "device", "out", "workers", "dry-run", device={"default": "cpu"}, out=out, workers=workers)
    add_cluster_flags(videos)

    scenes = kinds.add_parser("scenes", help="render scenes whose motion is known")
    add = scenes.add_argument_group("scenes").add_argument
    add("--num", type=positive_int, required=True, metavar="N", help="how many scenes")
    add("--size", help="size of the images", **size)
    add("--kinds", metavar="A,B", help="kinds of scenes, taken in turn; without it all kinds")
    add("--pairs", type=non_negative_int, default=2, metavar="N", help="later frames rendered of a scene")
    add_shared_flags(scenes, "seed", "out", "workers", "dry-run", out=out, workers=workers)
    add_cluster_flags(scenes)

    select = kinds.add_parser("select", help="make a set of some clips of another, such as the calm ones")
    select.add_argument("set", type=Path, metavar="SET", help="the set to choose from")
    add = select.add_argument_group("choice").add_argument
    add("--max-mean-px", type=positive_float, metavar="PX", help="largest mean displacement, at 256x160")
    add("--min-confidence", type=fraction, metavar="FRACTION", help="least mean confidence, 0 to 1")
    add("--only", action="append", default=[], metavar="PATTERN", help="ids, with * and ?; may be repeated")
    add_shared_flags(select, "out", out={"required": True, "help": "the clip set"})

    shards = kinds.add_parser("shards", help="write a set's kept clips into few large files, to train on millions")
    shards.add_argument("set", type=path_or_url, metavar="SET", help="a finished set")
    shards.add_argument("--clips-per-shard", type=positive_int, default=1000, metavar="N", help="clips of a file")
    add_shared_flags(shards, "out", out=out)
    return parser


def _scenes(args: Any) -> int:
    from data.clip_writer import rows_of_set
    from data.media import MIN_SIDE_PX
    from data.prepare_clip import is_unreadable
    from data.scenes.render_set import render_scene_set, scene_settings
    from data.scenes.scene import KINDS

    workers = cluster_workers(args)
    kinds = args.kinds.split(",") if args.kinds else None
    unknown = [kind for kind in kinds or [] if kind not in KINDS]
    if unknown:
        raise UsageError(f"--kinds {unknown[0]}: no such kind; right: {', '.join(KINDS)}")
    if min(args.size) < MIN_SIDE_PX:
        raise UsageError(f"--size {args.size[1]}x{args.size[0]}: right: at least {MIN_SIDE_PX} px to either side")
    what = {"seed": args.seed, "size": args.size, "kinds": kinds, "pairs": args.pairs}
    if args.dry_run:
        rows_of_set(args.out, scene_settings(**what))
        print(f"{args.num} scenes of {', '.join(kinds or KINDS)} at {args.size[1]}x{args.size[0]} px into {args.out}")
        return 0
    clip_set = _report(render_scene_set(args.out, args.num, **what, workers=workers, progress=True))
    return EXIT_SKIPPED if any(map(is_unreadable, clip_set.rows(status=("dropped",)))) else 0


def _select(args: Any) -> int:
    from data.clip_writer import select_clips
    from data.clips import ClipSet

    choice = {"max_mean_px": args.max_mean_px, "min_confidence": args.min_confidence, "only": args.only}
    if not any(value not in (None, []) for value in choice.values()):
        raise UsageError("--max-mean-px, --min-confidence, --only: say what to choose")
    clip_set = _report(select_clips(ClipSet(args.set), args.out, **choice))
    if not clip_set.rows(status=("kept", "pairs_only")):
        raise UsageError("--max-mean-px, --min-confidence, --only: no clip passes; the set is empty")
    return 0


def _shards(args: Any) -> int:
    from data.shards import write_shards

    print(write_shards(args.set, args.out, args.clips_per_shard))
    return 0


def _videos(args: Any) -> int:
    from data.clip_writer import ClipSetWriter, rows_of_set
    from data.find_clips import check_splits, find_clips, list_videos, unfinished_jobs
    from data.prepare_clip import is_unreadable, prepare_videos

    workers = cluster_workers(args)
    options = {"fps": args.fps, "area": args.size[0] * args.size[1], "method": args.method}
    options |= {"clips": args.clips_per_video, "stride_s": args.stride, "max_camera_px": args.max_camera_px}
    more = {"num_pairs": args.pairs, "raft_weights": args.raft_weights, "device": args.device}
    jobs = find_clips(args.paths, args.split_from, options | more)[: args.max_clips]
    if not jobs:
        raise UsageError(f"{', '.join(map(str, args.paths))}: no videos there; name videos, their folder, or a CSV")
    empty = [path for path in args.paths if is_folder(path) and not list_videos(path)]
    for path in empty:
        print(f"{path}: no videos in this folder", file=sys.stderr)
    settings = {"made_of": "videos", "pairs": args.pairs, **options, **_flow_settings(args)}
    if args.dry_run:
        check_splits(jobs, rows_of_set(args.out, settings))
        return _dry_run(jobs, workers, bool(empty))
    with ClipSetWriter(args.out, settings) as writer:
        todo = unfinished_jobs(jobs, writer)
        if len(todo) < len(jobs):
            print(f"{len(jobs) - len(todo)} of {len(jobs)} videos are done already")
        with closing(prepare_videos(args.out, todo, workers)) as results:
            for rows in results:
                writer.add(*rows)
                if is_unreadable(rows[-1]):
                    print(f"{rows[-1].id}: {rows[-1].reason}", file=sys.stderr)
        _report(writer.finish(workers))
        return EXIT_SKIPPED if empty or any(is_unreadable(writer.rows[job.id]) for job in jobs) else 0


def _flow_settings(args: Any) -> dict[str, Any]:
    """Return what the flow depends on beside its method; fail now when the method cannot run."""
    from data.optical_flow import FlowError, flow_settings
    from models.device import choose_device

    choose_device(args.device)
    if args.method != "raft":
        refuse_flags(args, ["--raft-weights"], "belongs to --method raft; right: both, or neither")
    try:
        return flow_settings(args.method, args.raft_weights, args.device)
    except FlowError as error:
        raise UsageError(f"{'--raft-weights FILE' if args.method == 'raft' else '--method'}: {error}") from None


def _dry_run(jobs: list[Any], workers: Any, skipped: bool) -> int:
    """List what would be kept and why, by a few frames of each clip."""
    from data.prepare_clip import describe_clip, is_unreadable, prepare_videos

    found = [row for rows in prepare_videos(None, jobs, workers) for row in rows]
    for row in sorted(found, key=lambda row: (row.source, row.start_s)):
        skipped |= is_unreadable(row)
        print(f"{row.status:10} {row.split:5} {row.id}: {describe_clip(row)}")
    counts = Counter(row.status for row in found)
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) + " by a first look")
    return EXIT_SKIPPED if skipped else 0


def _report(clip_set: Any) -> Any:
    from data.visualisation import describe_set, write_contact_sheet

    print("\n".join(describe_set(clip_set)) + f", contact sheet {write_contact_sheet(clip_set) or 'none'}")
    return clip_set


if __name__ == "__main__":
    sys.exit(run(main))
