"""Measure on held-out clips and write tables.

frames    how well frame t is made from frame 0 and its flow: models, image-space splats, and what any of them must beat
splats    one picture under a strong smooth flow, by each splatting operator, side by side
data      clip sets side by side: how much moves at which frequency, number of clips, confidence
flow      optical flow methods on videos, and on rendered scenes whose flow is known
"""

from __future__ import annotations

import argparse
import functools
import logging
import shlex
import sys
from pathlib import Path

from training.cli import (
    Parser,
    UsageError,
    add_shared_flags,
    check_precision,
    check_writable,
    command,
    non_negative_int,
    positive_float,
    positive_int,
    run,
)
from training.playback import add_rendering_flags

logger = logging.getLogger(__name__)

DEFAULT_OUT = Path("outputs/evaluate")


@command(memory_flags=("--device",))
def main(argv: list[str] | None = None) -> int:
    """Parse the flags and make one table."""
    parser = Parser(description=__doc__, raw_description=True)
    tables = parser.add_subparsers(dest="table", required=True, metavar="frames|splats|data|flow")
    _add_frames(tables)
    _add_splats(tables)
    _add_data(tables)
    _add_flow(tables)
    args = parser.parse_args(argv)
    args.command = shlex.join(["evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    return args.make_table(args)


def _out_folder(args: argparse.Namespace, name: str) -> Path:
    """Return the folder of the tables, --out or one of this name; UsageError where it cannot be one."""
    out = check_writable(args.out or DEFAULT_OUT / name)
    if out.is_file():
        raise UsageError(f"--out {out}: is a file; name a folder")
    return out


# ------------------------------------------------------------------------------------------------ frames


def _add_frames(tables: argparse._SubParsersAction) -> None:
    parser = tables.add_parser("frames", help="PSNR, SSIM, LPIPS of frames rendered from frame 0 and their flow")
    parser.set_defaults(make_table=make_frames_table)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--data", type=Path, required=True, metavar="SET", help="clip set of prepare_data.py")
    group.add_argument("--split", choices=("test", "train"), default="test", help="clips of this split")
    group.add_argument("--clips", type=positive_int, metavar="N", help="only N clips, drawn by --seed")
    group.add_argument("--every", type=positive_int, default=1, metavar="N", help="only frames N, 2 N, ...")
    group.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders that hold frame_synthesis_softmax or frame_synthesis_gaussian, or are one; "
        "by default checkpoints/default",
    )
    group = parser.add_argument_group("networks that measure; nothing is downloaded")
    group.add_argument("--lpips-weights", type=Path, metavar="FILE", help="torchvision's ImageNet weights for LPIPS")
    group.add_argument("--lpips-network", choices=("alex", "vgg", "squeeze"), default="alex", help="what FILE holds")
    group.add_argument("--feature-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1 for feature_distance")
    group.add_argument(
        "--raft-weights", type=Path, metavar="FILE", help="state dict of torchvision's RAFT, for a set made with it"
    )
    out = {"metavar": "DIR", "help": f"folder of the tables; default: {DEFAULT_OUT}/frames-SET-SPLIT"}
    add_rendering_flags(parser, "seed", "device", "out", out=out)


def make_frames_table(args: argparse.Namespace) -> int:
    """Render the clips in every way with the same flow, print the table, and write it to --out."""
    from tqdm import tqdm

    from data.clips import ClipSet
    from training.cli import choose_device
    from training.evaluation_clips import check_flow_method, choose_clips, open_clip
    from training.frame_evaluation import frames_notes, make_methods, measure
    from training.losses import PerceptualLoss
    from training.metrics import load_lpips, write_results

    # Early checks
    out = _out_folder(args, f"frames-{args.data.name}-{args.split}")
    device = choose_device(args.device)
    check_precision(args.precision, device)
    clip_set = ClipSet(args.data)
    rows = choose_clips(clip_set, args.split, args.clips, args.seed)
    check_flow_method(clip_set, rows, args.raft_weights)
    models = _load_models(args)
    lpips = load_lpips(args.lpips_network, args.lpips_weights)
    features = None
    if args.feature_weights is not None:
        features = PerceptualLoss(args.feature_weights, flag="--feature-weights").to(device)
    else:
        logger.warning("feature_distance is left out: no weights at hand; give SqueezeNet's by --feature-weights FILE")

    # Measure
    methods = make_methods(models, device, args.precision)
    bar = tqdm(rows, unit="clip", disable=None, dynamic_ncols=True)
    clips = (open_clip(clip_set, row, args.every, raft_weights=args.raft_weights, device=str(device)) for row in bar)
    lpips = lpips.to(device) if lpips is not None else None
    table, by_clip, origins = measure(clips, methods, device, lpips=lpips, features=features)

    # Write
    notes = frames_notes(args, len(clip_set.rows(args.split)), table[0], origins, device, list(models))
    print(write_results(out, table, title=f"Frame synthesis, {args.data.name}, split {args.split}", notes=notes))
    write_results(out / "by_clip", by_clip, title="The same by clip", notes=notes)
    logger.info("written to %s", out)
    return 0


def _load_models(args: argparse.Namespace) -> dict:
    from models.checkpoints import DEFAULT_CHECKPOINT
    from training.frame_evaluation import OPERATOR_FOLDERS, find_models

    if args.checkpoint is not None:
        return find_models(args.checkpoint)
    if not any((DEFAULT_CHECKPOINT / name).is_dir() for name in OPERATOR_FOLDERS):
        logger.warning("no rows of models: %s has none; give --checkpoint DIR", DEFAULT_CHECKPOINT)
        return {}
    return find_models([DEFAULT_CHECKPOINT])


# ------------------------------------------------------------------------------------------------ splats


def _add_splats(tables: argparse._SubParsersAction) -> None:
    parser = tables.add_parser("splats", help="one picture under a strong smooth flow, by each operator, side by side")
    parser.set_defaults(make_table=make_splats_table)
    group = parser.add_argument_group("what is splatted")
    group.add_argument("--image", type=Path, required=True, metavar="FILE", help="a picture")
    group.add_argument("--size", type=positive_int, default=256, metavar="PX", help="its long side")
    group.add_argument("--sigma", type=positive_float, metavar="PX", help="of the Gaussian footprints; default: .45")
    add_shared_flags(parser, "out", out={"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/splats"})


def make_splats_table(args: argparse.Namespace) -> int:
    """Write splats.png and the table to --out."""
    from data.media import read_image
    from splatting.functional import DEFAULT_SIGMA_PX
    from training.metrics import write_results
    from training.splat_comparison import MAGNIFICATION, compare_splats, write_sheet

    out = _out_folder(args, "splats")
    image = read_image(args.image, max_side=args.size)
    sigma = args.sigma or DEFAULT_SIGMA_PX
    try:
        rows, pictures = compare_splats(image[None], sigma)
    except ValueError as error:
        raise UsageError(f"--sigma {sigma}: {error}") from None
    notes = [
        f"data: {args.image} at {tuple(image.shape[-2:])} px, under a lens that enlarges its middle {MAGNIFICATION} "
        f"times and twists it; importance: length of the flow; Gaussian sigma {sigma} px",
        "psnr_db: where something arrives, against the picture sampled (bicubic) at the inverse of the flow",
        f"command: {args.command}",
    ]
    print(write_results(out, rows, title="Splats of one picture", notes=notes))
    write_sheet(out / "splats.png", rows, pictures)
    logger.info("written to %s", out)
    return 0


# -------------------------------------------------------------------------------------------------- data


def _add_data(tables: argparse._SubParsersAction) -> None:
    parser = tables.add_parser("data", help="clip sets side by side: mean amplitude per bin, clips, confidence")
    parser.set_defaults(make_table=make_data_table)
    group = parser.add_argument_group("what is measured")
    data_help = "clip sets of prepare_data.py; ratios are to the first"
    group.add_argument("--data", type=Path, nargs="+", required=True, metavar="SET", help=data_help)
    group.add_argument("--split", choices=("train", "test", "all"), default="train", help="kept clips of this split")
    group.add_argument("--clips", type=positive_int, metavar="N", help="only N clips of each set, drawn by --seed")
    add_shared_flags(parser, "seed", "out", out={"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/data"})


def make_data_table(args: argparse.Namespace) -> int:
    """Measure the sets, print the tables of bins and of sets, and write them to --out and --out/sets."""
    from tqdm import tqdm

    from data.clips import ClipSet
    from training.metrics import write_results
    from training.set_comparison import bin_rows, choose_rows, column_names, disagreement, measure_set

    # Early checks
    out = _out_folder(args, "data")
    clip_sets = [ClipSet(folder) for folder in args.data]
    try:
        names = column_names(args.data)
    except ValueError as error:
        raise UsageError(f"--data: {error}; name each once") from error
    split = None if args.split == "all" else args.split
    chosen = [choose_rows(clip_set, split, args.clips, args.seed) for clip_set in clip_sets]

    # Measure
    sets = []
    for name, clip_set, rows in zip(names, clip_sets, chosen, strict=True):
        bar = functools.partial(tqdm, desc=name, unit="clip", disable=None, dynamic_ncols=True)
        sets.append(measure_set(name, clip_set, rows, bar))
    periods = {figures.period_s for figures in sets}
    if len(periods) > 1:
        raise UsageError(f"--data: the sets have different periods, {sorted(periods)} s; their bins do not compare")

    # Write
    table, summary = bin_rows(sets), [figures.summary() for figures in sets]
    notes = [
        f"data: {', '.join(map(str, args.data))}, split {args.split}, kept clips: "
        + ", ".join(f"{row['row']} {row['clips']} of {row['source_files']} source files" for row in summary),
        "amplitude: |S_k| over both directions (bin 0: the drift), px of the motion grid; mean over the pixels of a "
        "clip weighted by confidence, then mean (and median) over clips",
        *disagreement(table, sets),
        f"seed {args.seed} (choice of clips); computed on the CPU",
        f"command: {args.command}",
    ]
    print(write_results(out / "sets", summary, title="Clip sets", notes=notes[:1] + notes[-2:]))
    print(write_results(out, table, title="Mean amplitude per bin", notes=notes))
    logger.info("written to %s", out)
    return 0


# -------------------------------------------------------------------------------------------------- flow


def _add_flow(tables: argparse._SubParsersAction) -> None:
    parser = tables.add_parser("flow", help="flow methods on videos, and on rendered scenes whose flow is known")
    parser.set_defaults(make_table=make_flow_table)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--videos", type=Path, nargs="+", default=[], metavar="FILE", help="videos, or folders of them")
    group.add_argument("--scenes", type=non_negative_int, default=16, metavar="N", help="rendered scenes of ~2 px")
    group.add_argument("--methods", nargs="+", metavar="NAME", help="default: dis_fast dis_x2 dis farneback")
    group.add_argument("--every", type=positive_int, default=12, metavar="N", help="only frames N, 2 N, ... of a video")
    out = {"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/flow"}
    add_shared_flags(parser, "seed", "out", out=out, seed={"default": 5000, "help": "first seed of the scenes"})


def make_flow_table(args: argparse.Namespace) -> int:
    """Measure the methods, print the table and write it to --out, by clip to --out/by_clip."""
    from data.clip_sources import list_videos
    from data.optical_flow import METHODS
    from training.flow_evaluation import COLUMN_NOTES, TABLE_METHODS, find_scenes, measure_flow
    from training.metrics import write_results

    out = _out_folder(args, "flow")
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


if __name__ == "__main__":
    sys.exit(run(main))
