"""Prepare a clip set for training: from videos (flow, spectra, rendering pairs), rendered scenes, or another set.

Run it again with the same flags to go on after an interruption, or with more videos or scenes to extend the set.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from cli.run import EXIT_SKIPPED, command, run

if TYPE_CHECKING:
    from data.clips import ClipRow, ClipSet
    from data.prepare_clip import ClipJob


# Only RAFT computes on a device.
@command
def main(argv: list[str] | None = None) -> int:
    """Parse the flags and prepare the set; returns 3 when a video had to be skipped."""
    args = _parser().parse_args(argv)
    if args.out is None:
        raise UsageError("--out: name the folder of the clip set, e.g. --out outputs/sets/clips")
    check_writable(args.out)
    return {"videos": _videos, "scenes": _scenes, "select": _select}[args.what](args)


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="videos|scenes|select")

    videos = kinds.add_parser("videos", help="prepare clips of videos")
    videos.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="videos, folders, CSV files: path,start,seconds,split,source",
    )
    group = videos.add_argument_group("clips")
    group.add_argument("--fps", type=positive_float, default=30.0, metavar="HZ", help="highest frame rate to use")
    group.add_argument(
        "--size", type=size_px, default=(160, 256), metavar="WxH_PX", help="area of the motion grid; aspects are kept"
    )
    group.add_argument("--pairs", type=non_negative_int, default=6, metavar="N", help="target frames kept of a clip")
    group.add_argument("--clips-per-video", type=positive_int, default=1, metavar="N", help="clips taken of a video")
    group.add_argument(
        "--stride", type=positive_float, default=5.0, metavar="S", help="from the start of a clip to the next one's"
    )
    group.add_argument(
        "--max-camera-px", type=positive_float, default=0.75, metavar="PX", help="camera motion allowed, at 256x160"
    )
    group.add_argument("--max-clips", type=positive_int, metavar="N", help="stop after the first N videos")
    repeated = {"action": "append", "default": []}
    group.add_argument(
        "--split-from",
        type=Path,
        metavar="CSV",
        help="look up splits by file name; repeat the flag for more",
        **repeated,
    )
    group = videos.add_argument_group("optical flow")
    methods = ("dis", "dis_fast", "dis_x2", "farneback", "raft", "pyflow")
    group.add_argument("--method", choices=methods, default="dis", help="how flow is estimated")
    group.add_argument("--raft-weights", type=Path, metavar="FILE", help="state dict of torchvision's RAFT")
    add_shared_flags(videos, "device", "out", "workers", "dry-run", device={"default": "cpu"})

    scenes = kinds.add_parser("scenes", help="render scenes whose motion is known")
    group = scenes.add_argument_group("scenes")
    group.add_argument("--num", type=positive_int, required=True, metavar="N", help="how many scenes")
    group.add_argument("--size", type=size_px, default=(160, 256), metavar="WxH_PX", help="size of the pictures")
    group.add_argument("--kinds", metavar="A,B", help="kinds of scenes, taken in turn; without it all kinds")
    group.add_argument(
        "--pairs", type=non_negative_int, default=2, metavar="N", help="later frames rendered of a scene"
    )
    photographs = {"nargs": "+", "type": Path, "default": [], "metavar": "PATH"}
    group.add_argument("--backgrounds", **photographs, help="photographs, or folders of them, to stand behind scenes")
    group.add_argument("--textures", **photographs, help="photographs whose light and dark becomes grain of surfaces")
    add_shared_flags(scenes, "seed", "out", "workers", "dry-run")

    select = kinds.add_parser("select", help="make a set of some clips of another, such as the calm ones")
    select.add_argument("set", type=Path, metavar="SET", help="the set to choose from")
    group = select.add_argument_group("choice")
    group.add_argument(
        "--max-mean-px", type=positive_float, metavar="PX", help="largest mean displacement of a clip, at 256x160"
    )
    group.add_argument("--min-confidence", type=fraction, metavar="SHARE", help="least mean confidence, 0 to 1")
    group.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="ids, with * and ?; may be repeated"
    )
    add_shared_flags(select, "out")
    return parser


# ------------------------------------------------------------------------------------------------ scenes


def _scenes(args: Any) -> int:
    from data.clip_writer import rows_of_set
    from data.scenes.render_set import render_scene_set, scene_settings
    from data.scenes.scene import KINDS

    kinds = args.kinds.split(",") if args.kinds else None
    unknown = [kind for kind in kinds or [] if kind not in KINDS]
    if unknown:
        raise UsageError(f"--kinds {unknown[0]}: no such kind; right: {', '.join(KINDS)}")
    backgrounds, textures = (_photographs(flag, getattr(args, flag)) for flag in ("backgrounds", "textures"))
    what = {"seed": args.seed, "size": args.size, "kinds": kinds, "pairs": args.pairs}
    what |= {"backgrounds": backgrounds, "textures": textures}
    if args.dry_run:
        rows_of_set(args.out, scene_settings(**what))
        print(f"{args.num} scenes of {', '.join(kinds or KINDS)} at {args.size[1]}x{args.size[0]} px into {args.out}")
        return 0
    clip_set = render_scene_set(args.out, args.num, **what, workers=args.workers, progress=True)
    _report(clip_set)
    return 0


def _photographs(flag: str, paths: list[Path]) -> list[Path]:
    from data.media import MediaError, list_images

    try:
        return list_images(paths) if paths else []
    except MediaError as error:
        raise UsageError(f"--{flag}: {error}") from None


# ------------------------------------------------------------------------------------------------ select


def _select(args: Any) -> int:
    from data.clips import ClipSet
    from data.selection import select_clips

    if args.max_mean_px is None and args.min_confidence is None and not args.only:
        raise UsageError("--max-mean-px, --min-confidence, --only: say what to choose")
    source = ClipSet(args.set)
    clip_set = select_clips(
        source, args.out, max_mean_px=args.max_mean_px, min_confidence=args.min_confidence, only=args.only
    )
    _report(clip_set)
    if not clip_set.rows(status=("kept", "pairs_only")):
        raise UsageError("--max-mean-px, --min-confidence, --only: no clip passes; the set is empty")
    return 0


# ------------------------------------------------------------------------------------------------ videos


def _videos(args: Any) -> int:
    from data.clip_writer import ClipSetWriter, remove_clip, rows_of_set
    from data.find_clips import find_clips, fit_to_set, list_videos, name_groups, orphaned_clips
    from data.jobs import run_jobs, show_progress
    from data.prepare_clip import prepare_video

    options = {"fps": args.fps, "area": args.size[0] * args.size[1], "method": args.method}
    options |= {"clips": args.clips_per_video, "stride_s": args.stride, "max_camera_px": args.max_camera_px}
    more = {"num_pairs": args.pairs, "raft_weights": args.raft_weights, "device": args.device}
    jobs = list(find_clips(args.paths, args.split_from, options | more))[: args.max_clips]
    if not jobs:
        raise UsageError(f"{', '.join(map(str, args.paths))}: no videos there; name videos, their folder, or a CSV")
    empty = [path for path in args.paths if path.is_dir() and not list_videos(path)]
    for path in empty:
        print(f"{path}: no videos in this folder", file=sys.stderr)
    _check_method(args)
    settings = {"made_of": "videos", "pairs": args.pairs, **options, **_flow_settings(args)}
    if args.dry_run:
        return _dry_run(fit_to_set(jobs, rows_of_set(args.out, settings)), args.workers, bool(empty))

    with ClipSetWriter(args.out, settings) as writer:
        jobs = fit_to_set(jobs, writer.rows)
        writer.rows |= {row.id: row for row in name_groups(jobs, writer.rows.values())}
        # what could not be read is tried again: the file may have been mended
        todo = [job for job in jobs if job.id not in writer.rows or _is_unreadable(writer.rows[job.id])]
        new = [job for job in todo if job.id not in writer.rows]
        writer.remove(*orphaned_clips(new, writer.rows))
        for job in new:
            remove_clip(writer.folder, job.id)
        if len(todo) < len(jobs):
            print(f"{len(jobs) - len(todo)} of {len(jobs)} videos are done already")
        with closing(run_jobs(prepare_video, [(writer.folder, job) for job in todo], args.workers)) as results:
            for rows in show_progress(results, len(todo), "video"):
                writer.add(*rows)
                if _is_unreadable(rows[-1]):
                    print(f"{rows[-1].id}: {rows[-1].reason}", file=sys.stderr)
        clip_set = writer.finish()
    _report(clip_set)
    skipped = {row.id for row in writer.rows.values() if _is_unreadable(row)}
    return EXIT_SKIPPED if empty or any(job.id in skipped for job in jobs) else 0


def _is_unreadable(row: ClipRow) -> bool:
    from data.prepare_clip import UNREADABLE

    return row.reason.startswith(UNREADABLE)


def _check_method(args: Any) -> None:
    """Fail now rather than at the first clip when the flow method cannot run."""
    import torch

    from cli.parser import choose_device
    from data.optical_flow import estimate_flow

    if args.method != "raft":
        refuse_flags(args, ["--raft-weights"], "belongs to --method raft; right: both, or neither")
    choose_device(args.device)
    picture = torch.zeros(3, 64, 64)
    estimate_flow(picture, picture[None], method=args.method, weights=args.raft_weights, device=args.device)


def _flow_settings(args: Any) -> dict[str, Any]:
    """Return what the flow depends on but for its method: our version, and RAFT's weights by their content."""
    from data.optical_flow import FLOW_VERSION, weights_digest

    settings: dict[str, Any] = {"flow_version": FLOW_VERSION}
    if args.method == "raft":
        settings["raft_weights"] = weights_digest(args.raft_weights)
    return settings


def _dry_run(jobs: list[ClipJob], workers: int, skipped: bool) -> int:
    """List what would be kept and why, judged by a few frames of each clip; write nothing."""
    from data.jobs import run_jobs, show_progress
    from data.prepare_clip import prepare_video

    found: dict[str, list[ClipRow]] = {}
    with closing(run_jobs(prepare_video, [(None, job) for job in jobs], workers)) as results:
        for rows in show_progress(results, len(jobs), "video"):
            found[rows[-1].id] = rows
    for job in jobs:
        for row in sorted(found[job.id], key=lambda row: row.start_s):
            skipped |= _is_unreadable(row)
            print(f"{row.status:10} {row.split:5} {row.id}: {_describe(job, row)}")
    counts = Counter(row.status for rows in found.values() for row in rows)
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) + " by a first look")
    return EXIT_SKIPPED if skipped else 0


def _describe(job: ClipJob, row: ClipRow) -> str:
    from data.video import probe_video

    if not row.frames:
        return row.reason
    info = probe_video(job.path)
    return (
        f"{info.width}x{info.height} {info.fps:.4g} fps {info.seconds:.2f} s, from {row.start_s:g} s "
        f"{row.frames} frames, median {row.median_flow_px:.2f} px, {row.moving_fraction:.0%} move"
        + (f"; {row.reason}" if row.reason else "")
    )


# ----------------------------------------------------------------------------------------------- report


def _report(clip_set: ClipSet) -> None:
    from data.contact_sheets import write_contact_sheet
    from data.set_report import describe_set

    sheet = write_contact_sheet(clip_set)
    print("\n".join(describe_set(clip_set)) + f", contact sheet {sheet or 'none'}")


if __name__ == "__main__":
    sys.exit(run(main))
