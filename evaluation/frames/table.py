"""evaluate.py frames: how well frame t is made from frame 0 and its flow."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.parser import UsageError, check_precision
from evaluation import out_folder

if TYPE_CHECKING:
    import torch

    from data.clips import ClipRow, ClipSet
    from evaluation.frames.models import TrainedRenderer
    from evaluation.frames.statistics import FrameTables
    from evaluation.frames.videos import FrameViewer

logger = logging.getLogger(__name__)

# Flags that only one protocol has, and what they are where they are not given.
_OF_CLIPS = {"data": None, "split": "test", "clips": None, "checkpoint": None, "seeds_of": None, "raft_weights": None}
_OF_SEED = {"video": None, "preset": "tiny", "steps": None, "minutes": None, "batch_size": None, "crop": None}
_OF_SEED |= {"perceptual_weights": None, "num_seeds": 1}


def make_table(**options: object) -> int:
    """Render the clips in every way with the same flow, print the tables, and write them to --out."""
    args = argparse.Namespace(**options)
    from tqdm import tqdm

    from cli.parser import choose_device
    from evaluation.clips import open_clip
    from evaluation.frames.measure import make_methods, make_rows, measure
    from evaluation.frames.one_video import check_videos
    from evaluation.frames.statistics import FrameTables

    # Early checks
    _check_protocol(args)
    of_seed = args.protocol == "seed"
    out = out_folder(args.out, "frames-seed" if of_seed else f"frames-{args.data.name}-{args.split}")
    device = choose_device(args.device)
    check_precision(args.precision, device)
    halves = check_videos(args.video) if of_seed else []
    lpips, features, missing, absent = _load_networks(args, device)
    clip_set, rows, models = _train(args, out, halves) if of_seed else _choose(args)

    # Measure
    by_row = make_rows(models)
    viewer = _make_viewer(args, out, rows, by_row, {one.row for one in models})
    bar = tqdm(rows, unit="clip", disable=None, dynamic_ncols=True)
    clips = (open_clip(clip_set, row, args.every, raft_weights=args.raft_weights, device=str(device)) for row in bar)
    methods = make_methods(models, device, args.precision)
    measured = measure(clips, methods, device, lpips=lpips, features=features, viewer=viewer)

    # Write
    model_rows = list(dict.fromkeys(one.row for one in models))
    seeds = {one.name: one.seed for one in models}
    tables = FrameTables(by_row, measured, args.seed, model_rows, seeds, absent)
    _write(args, out, tables, clip_set, models, missing)
    return 0


def _choose(args: argparse.Namespace) -> tuple[ClipSet, list[ClipRow], list[TrainedRenderer]]:
    """Open the set, its clips and the models of --protocol clips."""
    from data.clips import ClipSet
    from evaluation.clips import check_flow_method, choose_clips, warn_of_sources

    clip_set = ClipSet(args.data)
    rows = choose_clips(clip_set, args.split, args.clips, args.seed)
    check_flow_method(clip_set, rows, args.raft_weights)
    warn_of_sources(clip_set)
    return clip_set, rows, _load_models(args)


def _train(
    args: argparse.Namespace, out: Path, halves: list[tuple[Path, float]]
) -> tuple[ClipSet, list[ClipRow], list[TrainedRenderer]]:
    """Make the set of the two halves, and train the models of --protocol seed on the first."""
    from evaluation.clips import choose_clips
    from evaluation.frames.one_video import prepare_halves, train_operators

    args.data = out / "set"
    clip_set = prepare_halves(args.data, halves)
    models = train_operators(clip_set, args, out / "training")
    return clip_set, choose_clips(clip_set, args.split, None, args.seed), models


def _check_protocol(args: argparse.Namespace) -> None:
    """Refuse flags of the other protocol, and fill in the defaults of this one."""
    of_seed = args.protocol == "seed"
    stray = [name for name, value in (_OF_CLIPS if of_seed else _OF_SEED).items() if getattr(args, name) is not None]
    if stray:
        flag = f"--{stray[0].replace('_', '-')}"
        raise UsageError(f"{flag}: belongs to --protocol {'clips' if of_seed else 'seed'}, not {args.protocol}")
    if (args.video if of_seed else args.data) is None:
        raise UsageError("missing: --video, for --protocol seed" if of_seed else "missing: --data; see --help")
    for name, value in (_OF_CLIPS | _OF_SEED).items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def _load_models(args: argparse.Namespace) -> list[TrainedRenderer]:
    from evaluation.frames.models import OPERATOR_FOLDERS, find_models, find_seeds
    from models.checkpoints import DEFAULT_CHECKPOINT

    found = find_models(args.checkpoint) if args.checkpoint else []
    found += find_seeds(args.seeds_of) if args.seeds_of else []
    if args.checkpoint or args.seeds_of:
        return found
    if not any((DEFAULT_CHECKPOINT / name).is_dir() for name in OPERATOR_FOLDERS):
        logger.warning("no rows of models: %s has none; give --checkpoint DIR", DEFAULT_CHECKPOINT)
        return []
    return find_models([DEFAULT_CHECKPOINT])


def _load_networks(args: argparse.Namespace, device: torch.device) -> tuple[list, Any, list[str], list[str]]:
    """Return LPIPS networks, feature network, lines about what is missing, and its columns."""
    from metrics.images import load_lpips
    from metrics.perceptual import PerceptualLoss

    networks = args.lpips_network or ["alex"]
    lpips, missing = load_lpips(networks, args.lpips_weights)
    absent = [] if lpips else [f"lpips_{network}" for network in networks]
    features = None
    if args.feature_weights is not None:
        features = PerceptualLoss(args.feature_weights, flag="--feature-weights").to(device)
    else:
        line = "left out for want of weights: feature_distance (SqueezeNet 1.1); right: --feature-weights FILE"
        logger.warning(line)
        missing.append(line)
        absent.append("feature_distance")
    return [network.to(device) for network in lpips], features, missing, absent


def _make_viewer(
    args: argparse.Namespace, out: Path, rows: list[ClipRow], by_row: dict[str, list[str]], of_models: set[str]
) -> FrameViewer | None:
    """Show the models, by their first seed; without models the splats in image space."""
    from evaluation.frames.videos import FrameViewer

    if args.videos is None:
        return None
    count = min(args.videos, len(rows))
    ids = [rows[place * len(rows) // count].id for place in range(count)]
    names = [row for row in by_row if row in of_models] or ["softmax splat", "gaussian splat EWA"]
    return FrameViewer(out, ids, {name.removeprefix("model "): by_row[name][0] for name in names})


def _write(
    args: argparse.Namespace,
    out: Path,
    tables: FrameTables,
    clip_set: ClipSet,
    models: list[TrainedRenderer],
    missing: list[str],
) -> None:
    from data.result_tables import markdown_table, write_results
    from evaluation.frames.measure import frames_notes
    from evaluation.frames.one_video import NOTE
    from evaluation.frames.statistics import BUCKET_NOTE, INTERVAL_NOTE, PAIRED_NOTE, spread

    notes = [NOTE] if args.protocol == "seed" else []
    notes += [*frames_notes(args, tables, len(clip_set.rows(args.split)), models), *missing]
    name = "one video" if args.protocol == "seed" else f"{args.data.name}, split {args.split}"
    buckets = [BUCKET_NOTE, INTERVAL_NOTE, *notes]
    motion_note = "motion_px: mean |F| of a frame over the picture, px of a grid of 256 x 160"
    further = {
        "paired": ("Differences on the same clips", tables.paired(), [PAIRED_NOTE, INTERVAL_NOTE, *notes]),
        "by_motion": ("By motion", tables.by_motion(), [motion_note, *buckets]),
        "by_time": ("By distance in time", tables.by_time(), ["time_s: from frame 0", *buckets]),
        "intervals": ("Intervals", tables.intervals(), [INTERVAL_NOTE, *notes]),
        "by_clip": ("The same by clip", tables.by_clip(), notes),
    }
    print(write_results(out, tables.table(), title=f"Frame synthesis, {name}", notes=[INTERVAL_NOTE, *notes]))
    for folder, (title, rows, lines) in further.items():
        if not rows:
            continue
        write_results(out / folder, rows, title=f"{title}, {name}", notes=lines)
        if folder == "paired":
            print(markdown_table(rows, list(rows[0]), title, []))
        elif folder in ("by_motion", "by_time"):
            column = {"by_motion": "motion_px", "by_time": "time_s"}[folder]
            wide = spread(rows, column, "psnr_db")
            print(markdown_table(wide, list(wide[0]), f"{title} ({column}), psnr_db; the rest in {folder}/", []))
    if args.videos is not None:
        logger.info("videos and X-t slices: %s, %s", out / "videos", out / "slices")
    logger.info("written to %s", out)
