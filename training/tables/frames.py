"""evaluate.py frames: how well frame t is made from frame 0 and its flow."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from training.cli import check_precision, positive_int
from training.playback import add_rendering_flags

from . import DEFAULT_OUT, out_folder

logger = logging.getLogger(__name__)


def add_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("frames", help="PSNR, SSIM, LPIPS of frames rendered from frame 0 and their flow")
    parser.set_defaults(make_table=make_table)
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


def make_table(args: argparse.Namespace) -> int:
    """Render the clips in every way with the same flow, print the table, and write it to --out."""
    from tqdm import tqdm

    from data.clips import ClipSet
    from training.cli import choose_device
    from training.evaluation_clips import check_flow_method, choose_clips, open_clip, warn_of_sources
    from training.frame_evaluation import frames_notes, make_methods, measure
    from training.losses import PerceptualLoss
    from training.metrics import load_lpips, write_results

    # Early checks
    out = out_folder(args, f"frames-{args.data.name}-{args.split}")
    device = choose_device(args.device)
    check_precision(args.precision, device)
    clip_set = ClipSet(args.data)
    rows = choose_clips(clip_set, args.split, args.clips, args.seed)
    check_flow_method(clip_set, rows, args.raft_weights)
    warn_of_sources(clip_set)
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
