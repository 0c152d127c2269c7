"""evaluate.py motion: does predicted motion fall where the clips move, as strongly, and differently each time."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animation.flags import sampling_options
from animation.sampling import load_pipeline
from cli.parser import UsageError, refuse_flags
from evaluation import out_folder

if TYPE_CHECKING:
    from torch import Tensor

    from data.clips import ClipRow, ClipSet
    from evaluation.motion.loops import LoopComparison
    from evaluation.motion.measure import MotionComparison
    from models.motion_pipeline import MotionPipeline

logger = logging.getLogger(__name__)


def make_table(args: argparse.Namespace) -> int:
    """Predict motion for the clips' first frames, print the tables, and write them and a sheet a picture to --out."""
    from tqdm import tqdm

    from data.clips import ClipSet, choose_rows
    from data.result_tables import write_results
    from evaluation.motion.loops import LOOP_NOTE, LoopComparison
    from evaluation.motion.measure import BIN_NOTE, MotionComparison
    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.motion_pipeline import DEFAULT_STEPS

    # Early checks
    if not args.loop_frames:
        refuse_flags(args, ["--loop-guidance"], "belongs to --loop-frames L; right: both, or neither")
    out = out_folder(args, f"motion-{args.data.name}-{args.split}")
    options = sampling_options(args)
    clip_set = ClipSet(args.data)
    rows = choose_rows(clip_set, None if args.split == "all" else args.split, args.clips, args.seed)
    pipeline = load_pipeline(args)
    num_bins = _check_bins(pipeline, clip_set)

    # Predict and measure
    comparison = MotionComparison(pipeline.vae.normalisation.truncated(num_bins), args.seed)
    bar = tqdm(rows, unit="clip", disable=None, dynamic_ncols=True)
    options |= {"num_samples": args.samples}
    loops = LoopComparison(args.loop_frames, pipeline.unet.config.period_s, args.loop_guidance)
    skipped, seconds = _measure(comparison, loops, clip_set, bar, pipeline, options, out / "sheets")
    nearest = choose_rows(clip_set, "train", args.nearest, args.seed) if clip_set.rows("train") else []
    searched = comparison.find_nearest(_spectra(clip_set, nearest, num_bins))

    # Write
    notes = [
        *_data_notes(args, clip_set, comparison, skipped, searched),
        f"{args.samples} samples a picture, {num_bins} bins; checkpoint {args.checkpoint or DEFAULT_CHECKPOINT}; "
        f"sampler {args.sampler}, {args.steps or DEFAULT_STEPS[args.sampler]} steps, guidance {args.guidance:g}; "
        f"{seconds / args.samples:.2f} s a sample on {pipeline.device}, precision {args.precision}",
        f"seed {args.seed} (choice of clips, start noise, random row, bootstrap)",
        f"command: {args.command}",
    ]
    if args.loop_frames:
        print(write_results(out / "loops", loops.table(), title="Loops by self-guidance", notes=[LOOP_NOTE, *notes]))
    title = f"Predicted motion, {args.data.name}, split {args.split}"
    print(write_results(out / "by_bin", comparison.bin_table(), title="Amplitude per bin", notes=[BIN_NOTE, *notes]))
    print(write_results(out, comparison.table(), title=title, notes=[*comparison.notes(), *notes]))
    write_results(out / "by_clip", comparison.by_clip, title="The same by clip", notes=[*comparison.notes(), *notes])
    logger.info("written to %s", out)
    return 0


def _measure(
    comparison: MotionComparison,
    loops: LoopComparison,
    clip_set: ClipSet,
    rows: Iterable[ClipRow],
    pipeline: MotionPipeline,
    options: dict[str, Any],
    sheets: Path,
) -> tuple[list[str], float]:
    """Predict and measure clip by clip; return the clips that cannot be read, and the mean seconds of a prediction."""
    from data.clips import ClipSetError
    from evaluation.motion.measure import GroundTruth, predict, prediction_grid, write_clip_sheet
    from motion.flow import resize_maps, resize_spectrum

    skipped, seconds = [], []
    sampling = {name: value for name, value in options.items() if name != "num_samples"}
    for row in rows:
        try:
            truth = GroundTruth.read(clip_set, row, comparison.normalisation.num_bins)
        except ClipSetError as error:
            logger.warning("skipped: %s", error)
            skipped.append(row.id)
            continue
        started = time.perf_counter()
        samples = predict(pipeline, truth.image, **options)
        seconds.append(time.perf_counter() - started)
        if not bool(samples.isfinite().all()):
            raise UsageError(
                f"--checkpoint: the motion it predicts for clip {row.id} is not finite; right: --precision no, or a "
                "checkpoint whose training did not break down"
            )
        comparison.add(truth, samples)
        write_clip_sheet(sheets / f"{row.id}.png", truth, samples)
        if loops.frames:
            grid = prediction_grid(*truth.image.shape[-2:])
            image, free = resize_maps(truth.image, grid), resize_spectrum(samples, grid)
            loops.add(pipeline, image, free, **sampling)
    if not seconds:
        raise UsageError(f"--data {clip_set.folder}: none of its {len(skipped)} clips can be read; prepare them again")
    return skipped, statistics.fmean(seconds)


def _check_bins(pipeline: MotionPipeline, clip_set: ClipSet) -> int:
    """Return the model's K; UsageError where the set has fewer bins or another period."""
    from data.clips import STORED_BINS

    num_bins, period_s = pipeline.unet.config.num_bins, pipeline.unet.config.period_s
    if num_bins > STORED_BINS:
        raise UsageError(
            f"--checkpoint: has {num_bins} bins and a clip set {STORED_BINS}; right: at most {STORED_BINS}"
        )
    of_set = float(clip_set.statistics.get("period_s", period_s))
    if of_set != period_s:
        raise UsageError(
            f"--data {clip_set.folder}: its period is {of_set:g} s, the checkpoint's {period_s:g} s; "
            "right: a set of the checkpoint's period"
        )
    return num_bins


def _spectra(clip_set: ClipSet, rows: list[ClipRow], num_bins: int) -> Iterator[tuple[str, Tensor]]:
    """Read the training clips that samples may have been copied from; those that cannot be read are left out."""
    from data.clips import ClipSetError

    for row in rows:
        try:
            yield row.id, clip_set.spectrum(row.id, num_bins)[0]
        except ClipSetError as error:
            logger.warning("not searched for the nearest: %s", error)


def _data_notes(
    args: argparse.Namespace, clip_set: ClipSet, comparison: MotionComparison, skipped: list[str], searched: int
) -> list[str]:
    """Say which clips went in, and which did not."""
    kept = len(clip_set.rows(None if args.split == "all" else args.split))
    data = (
        f"data: {args.data}, split {args.split}, {len(comparison.sources)} of {kept} kept clips, "
        f"{len(set(comparison.sources.values()))} sources"
    )
    if skipped:
        data += f"; skipped as not readable {len(skipped)}: {', '.join(skipped)}"
    without = comparison.without_mask
    if without:
        data += f"; no average precision, for nothing or everything moves, {len(without)}: {', '.join(without)}"
    return [data, f"nearest of {searched} training clips of the same set"]
