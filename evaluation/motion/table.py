"""evaluate.py motion: does predicted motion fall where the clips move, as strongly, and differently each time."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.items import Workers
from data.clips import STORED_BINS, ClipRow, ClipSet, ClipSetError, choose_rows, source_name
from evaluation import EvaluationError, Report
from evaluation.clips import another_clip, clip_seed
from evaluation.licences import UNKNOWN, read_source_table
from evaluation.motion import measure
from evaluation.motion.loops import LOOP_NOTES, loop_guidances, loop_table, sample_loops
from evaluation.motion.measure import ClipMotion, GroundTruth, MotionTables
from evaluation.per_clip import measure_each
from evaluation.video.table import make_table as make_video_table
from metrics.statistics import BOOTSTRAP_DRAWS
from models.checkpoints import DEFAULT_CHECKPOINT
from models.device import check_precision, choose_device
from models.motion_pipeline import MotionPipeline
from models.sampling import DEFAULT_STEPS
from models.self_guidance import LoopGuidance
from motion.flow import motion_grid_size, resize_maps, resize_spectrum
from motion.normalisation import Normalisation

logger = logging.getLogger(__name__)

FVD_ROWS = [("model", "softmax"), ("own", "softmax"), ("other", "softmax")]


def make_table(
    report: Report, *, data: Path, split: str, clips: int | None, samples: int, nearest: int, loop_frames: list[int],
    seed: int, loop_guidance: str, clip_table: Path | None, fvd_network: tuple[str, Path] | None,
    baseline_checkpoint: Path | None, checkpoint: Path | None, device: str, workers: Workers, **sampling: Any,
) -> bool:  # fmt: skip
    """Predict motion for the clips' first frames, report the tables, and write a sheet an image."""
    # Early checks
    if not workers.cluster:  # whose workers may have what this machine lacks
        check_precision(sampling["precision"], choose_device(device))
    clip_set = ClipSet(data)
    rows = choose_rows(clip_set, None if split == "all" else split, clips, seed)
    groups = clip_groups(rows, clip_table)
    pipeline = MotionPipeline.from_pretrained(checkpoint or DEFAULT_CHECKPOINT)
    num_bins, complete = check_bins(pipeline, clip_set), True
    if fvd_network:
        options = {"data": data, "split": split, "clips": clips, "seed": seed, "device": device}
        options |= {"rows": FVD_ROWS, "checkpoint": checkpoint, "baseline_checkpoint": baseline_checkpoint, **sampling}
        windows = {"fvd_network": fvd_network, "windows": [16, 32], "slide_step": 0}
        complete = make_video_table(replace(report, out=report.out / "fvd"), **options, **windows)

    # Predict and measure
    normalisation = pipeline.vae.normalisation.truncated(num_bins)
    loops = loop_guidances(loop_frames, pipeline.unet.config.period_s, loop_guidance)
    options = sampling | {"num_samples": samples, "seed": seed}
    measurement = ClipMeasurement(clip_set, pipeline, normalisation, loops, options, report.out / "sheets", device)
    read, skipped, failed = measure_clips(measurement, rows, workers, report.out / "clips")
    seconds = statistics.fmean(one["seconds"] for one in read)
    devices = ", ".join(sorted({one["device"] for one in read}))
    training = choose_rows(clip_set, "train", nearest, seed) if clip_set.rows("train") else []
    tables = MotionTables([ClipMotion(**one["motion"]) for one in read], normalisation, seed)
    searched = tables.find_nearest(read_spectra(clip_set, training, num_bins))

    # Write
    kept, unread = clip_set.rows(None if split == "all" else split), skipped + failed
    counts = f"{len(read)} of {len(kept)} kept clips, {len({clip.source for clip in tables.clips})} sources"
    counts += f"; skipped as not readable {len(unread)}: {', '.join(unread)}" if unread else ""
    if without_mask := [clip.clip for clip in tables.clips if not clip.has_mask]:
        counts += f"; nothing or everything moves, so no average precision: {', '.join(without_mask)}"
    notes = [
        f"data: {data}, split {split}, {counts}; nearest of {searched} training clips",
        f"{samples} samples an image, {num_bins} bins; checkpoint {checkpoint or DEFAULT_CHECKPOINT}; "
        f"sampler {sampling['sampler']}, {sampling['steps'] or DEFAULT_STEPS[sampling['sampler']]} steps, "
        f"guidance {sampling['guidance']:g}; {seconds / samples:.2f} s a sample on {devices}, "
        f"precision {sampling['precision']}",
        f"seed {seed} (choice of clips, start noise, random row, bootstrap)",
    ]
    if loops:
        of_loops = loop_table(loops, [sample for one in read for sample in one["loops"]])
        report.add(of_loops, "Loops by self-guidance", [*LOOP_NOTES, *notes], folder="loops")
    report.add(tables.bin_table(), "Amplitude per bin", [measure.BIN_NOTE, *notes], folder="by_bin")
    by_group = tables.group_table({clip.clip: groups[clip.clip] for clip in tables.clips})
    kind = "subject" if clip_table else "source"
    where = {"folder": f"by_{kind}", "shown": clip_table is not None}  # sources may be hundreds
    report.add(by_group, f"Predicted motion by {kind}", [measure.GROUP_NOTE, *notes], **where)
    best = tables.best_baseline()
    lead = f"ap_lead: over the best baseline, {best}; 95 % interval by {BOOTSTRAP_DRAWS} bootstrap draws of the sources"
    of_all = [*measure.COLUMN_NOTES, lead, *notes]
    report.add(tables.table(), f"Predicted motion, {data.name}, split {split}", of_all)
    report.add(tables.by_clip, "The same by clip", of_all, folder="by_clip", shown=False)
    return complete and not unread


def clip_groups(rows: list[ClipRow], clip_table: Path | None) -> dict[str, str]:
    """Return {clip: its subject by a CSV of sources or files}, or {clip: its source} without one."""
    if clip_table is None:
        return {row.id: source_name(row) for row in rows}
    known = read_source_table(clip_table, "clip_table")
    stated = {row.id: known.get(row.group) or known.get(Path(row.source).name, {}) for row in rows}
    return {name: found.get("subject", UNKNOWN) for name, found in stated.items()}


@dataclass(frozen=True)
class ClipMeasurement:
    clip_set: ClipSet
    pipeline: MotionPipeline
    normalisation: Normalisation
    loops: dict[int, LoopGuidance]
    sampling: dict[str, Any]
    sheets: Path
    device_name: str  # "auto" or a device

    def load(self) -> ClipMeasurement:
        self.pipeline.to(choose_device(self.device_name))
        return self

    def measure(self, row: ClipRow) -> dict[str, Any]:
        """Return what a clip adds to the tables, or that it cannot be read."""
        loops, seed = [], self.sampling["seed"]
        try:
            truth = GroundTruth.read(self.clip_set, row, self.normalisation.num_bins)
        except ClipSetError as error:
            logger.warning("skipped: %s", error)
            return {"skipped": row.id}
        # Each image has its own start noise: the chances of one would tilt the means of all.
        own = self.sampling | {"seed": clip_seed(seed, row.id)}
        started = time.perf_counter()
        predicted = measure.predict(self.pipeline, truth.image, **own)
        seconds = time.perf_counter() - started
        other = another_clip(self.clip_set, row, seed)
        others = read_spectra(self.clip_set, [other] if other else [], len(truth.spectrum))
        others = [resize_spectrum(spectrum, tuple(truth.spectrum.shape[-2:])) for _, spectrum in others]
        motion = measure.measure_clip(truth, predicted, self.normalisation, seed, *others)
        measure.write_clip_sheet(self.sheets / f"{row.id}.png", truth, predicted)
        if self.loops:
            height, width = truth.image.shape[-2:]
            grid = motion_grid_size(height, width, area=height * width)
            options = {name: value for name, value in own.items() if name != "num_samples"}
            image, free = resize_maps(truth.image, grid), resize_spectrum(predicted, grid)
            loops = sample_loops(self.pipeline, image, free, self.loops, **options)
        device = str(choose_device(self.device_name))
        return {"motion": vars(motion), "loops": loops, "seconds": seconds, "device": device}


def measure_clips(
    measurement: ClipMeasurement, rows: Sequence[ClipRow], workers: Workers, cache_dir: Path
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Return the measurements, the clips that cannot be read, and those given up."""
    cache_key = [*measurement.pipeline.components.values(), measurement.sampling, measurement.loops]
    cache_key += [measurement.clip_set.statistics]
    measured, failed = measure_each(measurement, rows, workers, cache_dir=cache_dir, cache_key=cache_key)
    read = [one for one in measured if "skipped" not in one]
    skipped = [one["skipped"] for one in measured if "skipped" in one]
    if not read:
        raise EvaluationError(f"data {measurement.clip_set.folder}: none of its {len(skipped)} clips can be read")
    return read, skipped, failed


def check_bins(pipeline: MotionPipeline, clip_set: ClipSet) -> int:
    """Return the model's K; EvaluationError where the set has fewer bins or another period."""
    num_bins, period_s = pipeline.unet.config.num_bins, pipeline.unet.config.period_s
    if num_bins > STORED_BINS:
        raise EvaluationError(f"checkpoint: has {num_bins} bins and a clip set {STORED_BINS}; right: at most as many")
    of_set = float(clip_set.statistics.get("period_s", period_s))
    if of_set != period_s:
        problem = f"its period is {of_set:g} s, the checkpoint's {period_s:g} s; right: a set of the same period"
        raise EvaluationError(f"data {clip_set.folder}: {problem}")
    return num_bins


def read_spectra(clip_set: ClipSet, rows: list[ClipRow], num_bins: int) -> Iterator[tuple[str, Tensor]]:
    """Yield source and spectrum of training clips, without those that cannot be read."""
    for row in rows:
        try:
            yield source_name(row), clip_set.spectrum(row.id, num_bins)[0]
        except ClipSetError as error:
            logger.warning("training clip left out: %s", error)
