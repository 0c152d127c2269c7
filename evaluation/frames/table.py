"""evaluate.py frames: how well frame t is made from frame 0 and its flow."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.items import Workers
from data.clips import ClipSet, choose_rows
from evaluation import Report
from evaluation.clips import open_clip
from evaluation.frames import statistics
from evaluation.frames.measure import SPLAT_ROWS, FrameMeasurement
from evaluation.frames.models import find_models, find_seeds, model_notes
from evaluation.frames.single_video import NOTE, PUBLISHED_ROWS, prepare_halves, train_operators
from evaluation.frames.statistics import BUCKETS, ClipMetrics, FrameTables
from evaluation.frames.visuals import comparison_video, write_differences
from evaluation.per_clip import measure_each
from metrics.images import Lpips, LpipsNetwork
from metrics.perceptual import PerceptualLoss
from models.checkpoints import DEFAULT_CHECKPOINT
from models.device import check_precision, choose_device
from splatting.functional import DEFAULT_SIGMA_PX

ORIGINS = {
    "scene": "rendered scenes with exact flow",
    "video": "videos with estimated flow, unseen flow zeroed as in training",
    "pairs": "clips whose source is not at hand: stored pairs only",
}
METHOD_NOTES = (
    "protocol: frame 0 excluded; output clipped to [0, 1], not rounded; squared error pooled over a sequence (psnr_db) "
    "or PSNR averaged over its frames (psnr_frames_db), then the mean over sequences; exact frames count as 100 dB",
    "all rows use the same flow and importance; image-space splats fill holes from around them; gaussian: sigma "
    f"{DEFAULT_SIGMA_PX:g} px; Gaussian importance: exp(-importance^2 / 2) over the bilinear footprint",
    "OpenCV remap: cv2.remap of frame 0 at p - F(p), bilinear, border held",
)


def make_table(
    report: Report, *, protocol: str, data: Path | None, split: str, clips: int | None, every: int,
    magnify: float, videos: int, checkpoint: Sequence[Path] | None, seeds_of: Sequence[Path] | None,
    raft_weights: Path | None, video: Path | None, lpips_network: Sequence[LpipsNetwork], lpips_weights: Sequence[str],
    feature_weights: Path | None, seed: int, device: str, precision: str, workers: Workers, **training: Any,
) -> bool:  # fmt: skip
    """Render the clips in every way with the same flow, and report the tables; `training`: of `train_operators`."""
    # Early checks
    if not workers.cluster:  # whose workers may have what this machine lacks
        device = str(choose_device(device))
        check_precision(precision, choose_device(device))
    lpips = [Lpips(*network) for network in zip(lpips_network, lpips_weights, strict=False)]
    features = PerceptualLoss(feature_weights, "squeezenet") if feature_weights else None

    # Data and models
    if video:
        clip_set = prepare_halves(report.out / "set", video)
        training |= {"seed": seed, "device": device, "precision": precision}
        models = train_operators(clip_set, report.out / "training", **training)
    else:
        checkpoint = checkpoint or ([] if seeds_of else [DEFAULT_CHECKPOINT])
        clip_set, models = ClipSet(data), find_models(checkpoint) + find_seeds(seeds_of or [])
    rows = choose_rows(clip_set, split, clips, seed, pairs=True)
    methods: dict[str, list[str]] = {}  # of each row, one a seed
    for one in models:
        methods.setdefault(one.row, []).append(one.name)

    # Measure
    opened = partial(open_clip, clip_set, every=every, magnify=magnify, raft_weights=raft_weights)
    count = min(videos, len(rows))
    ids = {rows[place * len(rows) // count].id for place in range(count)}
    shown = {row.removeprefix("model "): names[0] for row, names in methods.items()}  # of several seeds the first
    show = partial(comparison_video, folder=report.out, ids=ids, shown=shown)
    measurement = FrameMeasurement(opened, models, show, device, precision, lpips, features)
    cache_key = [every, magnify, videos, precision, clip_set.statistics, *lpips, features]
    cache_key += [part for one in models for part in (one.name, one.model)]
    measured, failed = measure_each(measurement, rows, workers, cache_dir=report.out / "clips", cache_key=cache_key)
    devices = sorted({one.pop("device") for one in measured})
    measured = [ClipMetrics(**one) for one in measured]

    # Write
    absent = [] if lpips else [f"lpips_{network}" for network in lpips_network]
    absent += [] if features else ["feature_distance"]
    seeds = {one.name: one.seed for one in models}
    of_splats = {name: [name] for name in (*SPLAT_ROWS, "OpenCV remap", "frame 0 repeated")}
    tables = FrameTables(methods | of_splats, measured, seed, list(methods), seeds, absent)
    notes = [NOTE] if video else []
    origins = sorted(Counter(clip.origin for clip in tables.clips).items())
    notes.append(
        f"data: {clip_set.folder}, split {split}, {len(tables.clips)} sequences of {tables.counts['sources']} sources "
        f"({len(clip_set.rows(split))} kept clips in the split), {tables.frames['frames']} frames, every {every}; "
        + "; ".join(f"{number} {ORIGINS[name]}" for name, number in origins)
    )
    notes += [*METHOD_NOTES, *model_notes(models)]
    notes += [f"motion {magnify:g} times as strong, drawn so"] if magnify != 1 else []
    notes += [f"precision {precision}; device {', '.join(devices)}; seed {seed}"]
    notes += [f"not measured, as no weights are given: {', '.join(absent)}"] if absent else []
    notes += [f"given up, and in no row: {', '.join(failed)}"] if failed else []
    _report(report, tables, "one video" if video else f"{data.name}, split {split}", notes, bool(video))
    return not failed


def _report(report: Report, tables: FrameTables, name: str, notes: list[str], with_published: bool) -> None:
    notes = [statistics.INTERVAL_NOTE, *notes]
    report.add(tables.table() + (PUBLISHED_ROWS if with_published else []), f"Frame synthesis, {name}", notes)
    report.add(tables.intervals(), f"Intervals, {name}", notes, folder="intervals", shown=False)
    report.add(tables.by_clip(), f"The same by clip, {name}", notes, folder="by_clip", shown=False)
    paired_notes = [statistics.PAIRED_NOTE, *notes]
    paired_by = {column: tables.paired_buckets(column) for column in BUCKETS}
    if paired := tables.paired():
        report.add(paired, f"Differences on the same clips, {name}", paired_notes, folder="paired")
        write_differences(report.out / "differences.png", paired_by)
    notes, paired_notes = ([statistics.BUCKET_NOTE, *of] for of in (notes, paired_notes))
    for folder, column in zip(("by_motion", "by_time", "by_holes"), BUCKETS, strict=True):
        rows, title = tables.buckets(column), f"By {column}, {name}"
        if paired := paired_by[column]:
            report.add(paired, f"Differences by {column}, {name}", paired_notes, folder=f"{folder}/paired", shown=False)
        report.add(rows, title, notes, folder=folder, shown=False)
        wide = statistics.pivot(rows, column, "psnr_db")
        report.add(wide, f"{title}: PSNR, dB; the rest in {folder}/", notes, folder=f"{folder}/psnr_db")
