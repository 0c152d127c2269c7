"""Prepare a clip set for training: from videos (flow, spectra, rendering pairs), or from rendered scenes.

Run it again with the same flags to go on after an interruption, or with more videos or scenes to extend the set.
"""

from __future__ import annotations

import csv
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.cli import (
    Parser,
    UsageError,
    add_shared_flags,
    check_writable,
    command,
    non_negative_int,
    positive_float,
    positive_int,
    run,
    size_px,
)

if TYPE_CHECKING:
    from data.clips import ClipSet
    from data.sources import ClipJob

EXIT_SKIPPED = 3
TEST_PERCENT = 10
# what the contact sheet shows white, px
SHEET_PX = 8.0


@command
def main(argv: list[str] | None = None) -> int:
    """Parse the flags and prepare the set; returns 3 when a video had to be skipped."""
    args = _parser().parse_args(argv)
    if args.out is None:
        raise UsageError("--out: name the folder of the clip set, e.g. --out outputs/sets/clips")
    check_writable(args.out)
    return _videos(args) if args.what == "videos" else _scenes(args)


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="videos|scenes")

    videos = kinds.add_parser("videos", help="prepare clips of videos")
    videos.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="videos, folders, or CSV files: path,start,seconds,split"
    )
    group = videos.add_argument_group("clips")
    group.add_argument("--fps", type=positive_float, default=30.0, metavar="HZ", help="highest frame rate to use")
    group.add_argument(
        "--size", type=size_px, default=(160, 256), metavar="WxH_PX", help="area of the motion grid; aspects are kept"
    )
    group.add_argument("--pairs", type=non_negative_int, default=6, metavar="N", help="target frames kept of a clip")
    group.add_argument("--max-clips", type=positive_int, metavar="N", help="stop after the first N clips")
    group.add_argument(
        "--split-from", nargs="+", type=Path, default=[], metavar="CSV", help="look up splits by file name"
    )
    group = videos.add_argument_group("optical flow")
    methods = ("dis", "dis_fast", "farneback", "raft", "pyflow")
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
    add_shared_flags(scenes, "seed", "out", "workers", "dry-run")
    return parser


# ------------------------------------------------------------------------------------------------ scenes


def _scenes(args: Any) -> int:
    from data.datasets import render_scene_set
    from data.scenes import KINDS

    kinds = args.kinds.split(",") if args.kinds else None
    unknown = [kind for kind in kinds or [] if kind not in KINDS]
    if unknown:
        raise UsageError(f"--kinds {unknown[0]}: no such kind; right: {', '.join(KINDS)}")
    if args.dry_run:
        print(f"{args.num} scenes of {', '.join(kinds or KINDS)} at {args.size[1]}x{args.size[0]} px into {args.out}")
        return 0
    clip_set = render_scene_set(
        args.out,
        args.num,
        seed=args.seed,
        size=args.size,
        kinds=kinds,
        pairs=args.pairs,
        workers=args.workers,
        progress=True,
    )
    _report(clip_set)
    return 0


# ------------------------------------------------------------------------------------------------ videos


def _videos(args: Any) -> int:
    from data.clips import ClipSetWriter
    from data.datasets import run_jobs, show_progress
    from data.sources import UNREADABLE, prepare_clip

    settings = {"made_of": "videos", "fps": args.fps, "area": args.size[0] * args.size[1], "pairs": args.pairs}
    settings["method"] = args.method
    options = {key: settings[key] for key in ("fps", "area", "method")}
    options |= {"num_pairs": args.pairs, "raft_weights": args.raft_weights, "device": args.device}
    jobs = list(find_clips(args.paths, args.split_from, options))[: args.max_clips]
    if not jobs:
        raise UsageError(f"{', '.join(map(str, args.paths))}: no videos there; name videos, their folder, or a CSV")
    if args.dry_run:
        return _list_clips(jobs)
    _check_method(args)

    with ClipSetWriter(args.out, settings) as writer:
        # what could not be read is tried again: the file may have been mended
        todo = [job for job in jobs if job.id not in writer.rows or writer.rows[job.id].reason.startswith(UNREADABLE)]
        if len(todo) < len(jobs):
            print(f"{len(jobs) - len(todo)} of {len(jobs)} clips are done already")
        with closing(run_jobs(prepare_clip, [(writer.folder, job) for job in todo], args.workers)) as rows:
            for row in show_progress(rows, len(todo), "clip"):
                writer.add(row)
                if row.reason.startswith(UNREADABLE):
                    print(f"{row.id}: {row.reason}", file=sys.stderr)
        clip_set = writer.finish()
    _report(clip_set)
    wanted = {job.id for job in jobs}
    skipped = [row for row in clip_set.rows(status=("dropped",)) if row.reason.startswith(UNREADABLE)]
    return EXIT_SKIPPED if any(row.id in wanted for row in skipped) else 0


def find_clips(paths: Iterable[Path], split_from: Iterable[Path], options: dict[str, Any]) -> Iterator[ClipJob]:
    """Yield the clips of videos, folders and CSV files, each with an id of its own."""
    from data.sources import ClipJob

    known = {Path(cells["path"]).name: cells for path in split_from for cells in _read_csv(path)}
    found: list[dict[str, Any]] = []
    for path in paths:
        if path.suffix.lower() == ".csv":
            found += _read_csv(path)
        else:
            found += [{"path": video} | {k: known.get(video.name, {}).get(k) for k in ("split", "source")}
                      for video in _list_videos(path)]  # fmt: skip
    names = [_clip_id(cells) for cells in found]
    times = Counter(names)
    for name, cells in zip(names, found, strict=True):
        if times[name] > 1:
            name += "-" + hashlib.sha1(str(Path(cells["path"]).resolve()).encode()).hexdigest()[:6]
        # the clips of a source share its split, or the test split would be known from training
        split = cells.get("split") or _split_of(cells.get("source") or Path(cells["path"]).name)
        start_s = cells.get("start") or 0.0
        yield ClipJob(name, Path(cells["path"]).resolve(), split, start_s, cells.get("seconds"), **options)


def _list_videos(path: Path) -> list[Path]:
    from data.media import VIDEO_SUFFIXES

    if path.is_dir():
        videos = [file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES]
        if not videos:
            print(f"{path}: no videos in this folder", file=sys.stderr)
        return sorted(videos)
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder")
    return [path]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Read rows with file or path (relative to the CSV), and start, seconds, split, source, kind where given."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file; give a CSV with the columns path,start,seconds,split") from None
    clips = []
    for line, row in enumerate(rows, 2):
        name = row.get("path") or row.get("file")
        if not name:
            raise UsageError(f"{path}: line {line} names no file; a column `path` or `file` is needed")
        if (row.get("kind") or "clip") != "clip":
            continue
        if row.get("split") not in (None, "", "train", "test"):
            raise UsageError(f"{path}: line {line}: split {row['split']!r}; right: train, test")
        try:
            numbers = {key: float(row[key]) if row.get(key) else None for key in ("start", "seconds")}
        except ValueError:
            raise UsageError(f"{path}: line {line}: start and seconds must be numbers") from None
        if (numbers["start"] or 0) < 0 or (numbers["seconds"] is not None and numbers["seconds"] <= 0):
            raise UsageError(f"{path}: line {line}: start must be 0 or above and seconds above 0")
        clips.append({"path": path.parent / name, "split": row.get("split"), "source": row.get("source"), **numbers})
    return clips


def _clip_id(cells: dict[str, Any]) -> str:
    start_s = cells.get("start") or 0.0
    name = Path(cells["path"]).stem + (f"_{start_s:g}s" if start_s else "")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _split_of(source: str) -> str:
    return "test" if int(hashlib.sha1(source.encode()).hexdigest(), 16) % 100 < TEST_PERCENT else "train"


def _check_method(args: Any) -> None:
    """Fail now rather than at the first clip when the flow method cannot run."""
    import torch

    from data.optical_flow import estimate_flow
    from training.cli import choose_device

    choose_device(args.device)
    picture = torch.zeros(3, 64, 64)
    estimate_flow(picture, picture[None], method=args.method, weights=args.raft_weights, device=args.device)


def _list_clips(jobs: list[ClipJob]) -> int:
    from data.media import MediaError
    from data.sources import UNREADABLE
    from data.video import probe_video

    skipped = 0
    for job in jobs:
        try:
            info = probe_video(job.path)
            what = f"{info.width}x{info.height} {info.fps:.4g} fps {info.seconds:.2f} s"
        except (MediaError, OSError) as error:
            what, skipped = f"{UNREADABLE}{error}", skipped + 1
        print(f"{job.split:5} {job.id}: {what} from {job.start_s:g} s  {job.path}")
    return EXIT_SKIPPED if skipped else 0


# ----------------------------------------------------------------------------------------------- report


def _report(clip_set: ClipSet) -> None:
    from data.clips import DROPPED, KEPT, PAIRS_ONLY

    sheet = write_contact_sheet(clip_set)
    rows = clip_set.rows(status=(KEPT, PAIRS_ONLY, DROPPED))
    counts = Counter((row.status, row.split) for row in rows)
    for (status, split), count in sorted(counts.items()):
        print(f"{count:6d} {status:10} {split}")
    for row in rows:
        if row.status == DROPPED:
            print(f"dropped {row.id}: {row.reason}")
    print(f"{clip_set.folder}: {len(rows)} clips" + (f", contact sheet {sheet}" if sheet else ""))


def write_contact_sheet(clip_set: ClipSet, *, max_clips: int = 24, columns: int = 3) -> Path | None:
    """Write contact.png: frame 0 and mean displacement of clips spread over the set, black 0 px to white 8 px."""
    import torch

    from data.clips import KEPT, PAIRS_ONLY
    from data.media import contact_sheet, resize_image, write_image
    from motion.flow import magnitude
    from motion.spectrum import mean_displacement

    rows = clip_set.rows(status=(KEPT, PAIRS_ONLY))
    rows = [row for row in rows if row.status == KEPT or clip_set.has_pairs(row.id)]
    cells = []
    for row in rows[:: max(1, -(-len(rows) // max_clips))]:
        if row.status == KEPT:
            displacement = mean_displacement(clip_set.spectrum(row.id)[0])  # (1, H, W)
        else:
            displacement = torch.stack([magnitude(pair.flow) for pair in clip_set.pairs(row.id)[0]]).mean(0)
        # a square root, so that small motion is seen beside large; black, red, yellow, white
        heat = (displacement / SHEET_PX).clamp(0, 1).sqrt() * 3
        ramp = torch.cat([heat, heat - 1, heat - 2]).clamp(0, 1)  # (3, H, W)
        picture = clip_set.first(row.id)
        size = (128, max(1, round(128 * picture.shape[-1] / picture.shape[-2])))
        cells.append([resize_image(picture, size), resize_image(ramp, size)])
    if not cells:
        return None
    path = clip_set.folder / "contact.png"
    write_image(path, contact_sheet([sum(cells[i : i + columns], []) for i in range(0, len(cells), columns)]))
    return path


if __name__ == "__main__":
    sys.exit(run(main))
