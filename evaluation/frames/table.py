"""evaluate.py frames: how well frame t is made from frame 0 and its flow."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.clips import ClipRow, ClipSet
from data.result_tables import markdown_table, write_results
from evaluation import EvaluationError, out_folder
from evaluation.clips import EvaluationClip, check_flow_method, choose_clips, open_clip, warn_of_sources
from evaluation.frames.measure import make_methods, make_rows, measure
from evaluation.frames.models import OPERATOR_FOLDERS, TrainedRenderer, find_models, find_seeds, model_notes
from evaluation.frames.single_video import NOTE, check_video, prepare_halves, train_operators
from evaluation.frames.statistics import BUCKET_NOTE, INTERVAL_NOTE, PAIRED_NOTE, ClipMetrics, FrameTables, spread
from evaluation.frames.videos import ClipVideo, open_video
from metrics.images import HUB, LPIPS_BACKBONES, Lpips
from metrics.perceptual import PerceptualLoss
from models.checkpoints import DEFAULT_CHECKPOINT
from models.device import check_precision, choose_device

logger = logging.getLogger(__name__)

ORIGINS = {
    "scene": "rendered scenes with exact flow",
    "video": "videos with estimated flow, unseen flow zeroed as in training",
    "pairs": "clips whose source is not at hand: stored pairs only",
}


def make_table(
    *,
    out: Path | None,
    command: str,
    protocol: str,
    data: Path | None,
    split: str,
    clips: int | None,
    every: int,
    videos: int | None,
    checkpoint: Sequence[Path] | None,
    seeds_of: Sequence[Path] | None,
    raft_weights: Path | None,
    video: Path | None,
    lpips_network: Sequence[str],
    lpips_weights: Sequence[str] | None,
    feature_weights: Path | None,
    seed: int,
    device: str,
    precision: str,
    **training: Any,
) -> bool:
    """Render the clips in every way with the same flow, print the tables, and write them to `out`.

    The arguments are the flags of `add_frames_flags`; `training` goes to `train_operators`.
    """
    # Early checks
    out = out_folder(out, f"frames-{data.name}-{split}" if data else "frames-single-video")
    device = choose_device(device)
    check_precision(precision, device)
    if video:
        check_video(video)
    networks, absent = _load_networks(lpips_network, lpips_weights, feature_weights, device)

    # Data and models
    if video:
        clip_set = prepare_halves(out / "set", video)
        training |= {"seed": seed, "device": device, "precision": precision}
        models = train_operators(clip_set, out / "training", **training)
    else:
        clip_set, models = ClipSet(data), _find_models(checkpoint, seeds_of)
    rows = choose_clips(clip_set, split, clips, seed)
    check_flow_method(clip_set, rows, raft_weights)
    warn_of_sources(clip_set)

    # Measure
    bar = tqdm(rows, unit="clip", disable=None, dynamic_ncols=True)
    opened = (open_clip(clip_set, row, every, raft_weights=raft_weights, device=str(device)) for row in bar)
    video_of = _choose_videos(out, rows, videos, models)
    measured = measure(opened, make_methods(models, device, precision), device, **networks, video_of=video_of)

    # Write
    model_rows, seeds = list(dict.fromkeys(one.row for one in models)), {one.name: one.seed for one in models}
    tables = FrameTables(make_rows(models), measured, seed, model_rows, seeds, absent)
    notes = [NOTE] if video else []
    notes += [f"data: {clip_set.folder}, split {split}, every {every}; {_origins(measured)}", *METHOD_NOTES]
    notes += [*model_notes(models), f"precision {precision}; device {device}; seed {seed} (clips, bootstrap)"]
    notes += [f"command: {command}", *_absent_notes(absent)]
    _write(out, tables, "one video" if video else f"{data.name}, split {split}", notes)
    return True


METHOD_NOTES = (
    "protocol: frame 0 excluded; output clipped to [0, 1], not rounded; squared error pooled over a sequence before "
    "the logarithm (psnr_db), then the mean over sequences; psnr_frames_db is the mean of the frames' own values; a "
    "sequence without error counts as 100 dB; of several training seeds the mean of their metrics",
    "all rows use the same flow and importance; holes of image-space splats are filled from frame 0; static pixels "
    "copy it; gaussian: sigma 0.45 px, with EWA or isotropic; Gaussian importance: exp(-importance^2 / 2) over the "
    "bilinear footprint",
    "OpenCV remap: cv2.remap of frame 0 at p - F(p), bilinear, border held (the flow at p stands in for that at the "
    "source of p)",
)


def _load_networks(
    lpips_network: Sequence[str],
    lpips_weights: Sequence[str] | None,
    feature_weights: Path | None,
    device: torch.device,
) -> tuple[dict[str, Any], list[str]]:
    """Return the networks, as `measure` takes them, and the metrics for which there are no weights."""
    lpips = load_lpips(lpips_network, lpips_weights)
    features = None if feature_weights is None else PerceptualLoss(feature_weights).to(device)
    absent = [] if lpips else [f"lpips_{network}" for network in lpips_network]
    absent += [] if features else ["feature_distance"]
    return {"lpips": [network.to(device) for network in lpips], "features": features}, absent


def load_lpips(networks: Sequence[str], weights: Sequence[str | Path] | None) -> list[Lpips]:
    """Return an Lpips for each of alex, vgg, squeeze; nothing where no weights are named.

    Args:
        networks: names of the networks.
        weights: a file for each, in this order, or "hub"; a single "hub" serves all.

    Raises:
        EvaluationError: another number of weights than networks, or a network named twice.
        WeightsError: weights that cannot be used or downloaded.
    """
    names = " ".join(networks)
    if len(set(networks)) < len(networks):
        raise EvaluationError(f"lpips_network {names}: names a network twice")
    if weights is None:
        return []
    if list(map(str, weights)) == [HUB]:
        weights = [HUB] * len(networks)
    if len(weights) != len(networks):
        raise EvaluationError(f"lpips_weights: {len(weights)} for {names}; right: one for each network, or {HUB}")
    return [Lpips(network, file) for network, file in zip(networks, weights, strict=True)]


def _absent_notes(absent: Sequence[str]) -> list[str]:
    files = {f"lpips_{network}": name for network, name in LPIPS_BACKBONES.items()}
    files["feature_distance"] = "squeezenet1_1"
    listed = ", ".join(f"{metric} ({files[metric]})" for metric in absent)
    return [f"not measured, as no weights are given: {listed}"] if absent else []


def _find_models(checkpoint: Sequence[Path] | None, seeds_of: Sequence[Path] | None) -> list[TrainedRenderer]:
    if not checkpoint and not seeds_of:
        if not any((DEFAULT_CHECKPOINT / name).is_dir() for name in OPERATOR_FOLDERS):
            logger.warning("no rows of models: %s has none", DEFAULT_CHECKPOINT)
            return []
        checkpoint = [DEFAULT_CHECKPOINT]
    return find_models(checkpoint or []) + find_seeds(seeds_of or [])


def _choose_videos(
    out: Path, rows: Sequence[ClipRow], count: int | None, models: Sequence[TrainedRenderer]
) -> Callable[[EvaluationClip], AbstractContextManager[ClipVideo | None]]:
    """Return what opens the video of a clip if it is one of `count`, spread over all; each row by its first seed."""
    shown = {model.row.removeprefix("model "): model.name for model in reversed(models)}
    shown = dict(reversed(shown.items())) or {name: name for name in ("softmax splat", "gaussian splat EWA")}
    count = min(count or 0, len(rows))
    ids = {rows[place * len(rows) // count].id for place in range(count)}
    return lambda clip: open_video(out, clip, shown) if clip.id in ids else nullcontext()


def _origins(clips: Sequence[ClipMetrics]) -> str:
    return "; ".join(f"{n} {ORIGINS[name]}" for name, n in sorted(Counter(clip.origin for clip in clips).items()))


def _write(out: Path, tables: FrameTables, name: str, notes: list[str]) -> None:
    intervals, buckets = [INTERVAL_NOTE, *notes], [BUCKET_NOTE, INTERVAL_NOTE, *notes]
    motion_note = "motion_px: mean |F| of a frame over the image, px of a grid of 256 x 160"
    further = {
        "paired": ("Differences on the same clips", tables.paired(), [PAIRED_NOTE, *intervals]),
        "by_motion": ("By motion", tables.by_motion(), [motion_note, *buckets]),
        "by_time": ("By distance in time", tables.by_time(), ["time_s: from frame 0", *buckets]),
        "intervals": ("Intervals", tables.intervals(), intervals),
        "by_clip": ("The same by clip", tables.by_clip(), notes),
    }
    print(write_results(out, tables.table(), title=f"Frame synthesis, {name}", notes=intervals))
    columns = {"by_motion": "motion_px", "by_time": "time_s"}
    for folder, (title, rows, lines) in further.items():
        if not rows:
            continue
        write_results(out / folder, rows, title=f"{title}, {name}", notes=lines)
        if folder == "paired":
            print(markdown_table(rows, list(rows[0]), title, []))
        elif folder in columns:
            wide = spread(rows, columns[folder], "psnr_db")
            heading = f"{title} ({columns[folder]}), psnr_db; the rest in {folder}/"
            print(markdown_table(wide, list(wide[0]), heading, []))
    logger.info("written to %s", out)
