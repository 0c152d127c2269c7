"""evaluate.py video: FID, KID, FVD and DTFVD of generated videos, over feature networks that the user names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from animation.flags import check_steps
from animation.rendering import load_renderer
from data.clips import ClipSet, choose_rows
from data.result_tables import write_results
from evaluation import EvaluationError, out_folder
from evaluation.flags import VIDEO_METRICS
from evaluation.video.measure import COLUMN_NOTES, SLIDING, SLIDING_NOTE, VideoComparison
from evaluation.video.networks import FeatureNetwork
from evaluation.video.sources import CLIP_ERRORS, FolderVideos, PredictedVideos
from models.checkpoints import DEFAULT_CHECKPOINT
from models.device import check_precision, choose_device
from models.motion_pipeline import MotionPipeline
from models.sampling import DEFAULT_STEPS

logger = logging.getLogger(__name__)


def make_table(
    *, data: Path | None, real: Path | None, generated: list[Path], fps: float | None, crop: tuple[int, int],
    frames: int, seed: int, device: str, precision: str, out: Path | None, command: str, **options: Any,
) -> bool:  # fmt: skip
    """Compare real and generated videos, print the tables and write them; return False when a video was left out.

    `options` has the windows, the networks of `load_networks` and, for a clip set, what `predicted_videos` needs.
    """
    # Early checks
    place = choose_device(device)
    check_precision(precision, place)
    if (data is None) == (real is None or not generated) or (data is not None and (real is not None or generated)):
        raise EvaluationError("data: right: either a clip set, or real DIR with generated DIR")
    if data is not None and fps is not None:
        raise EvaluationError(f"fps {fps:g}: a clip set is compared at its clips' own time stamps; right: without it")
    name = f"{data.name}-{options['split']}" if data is not None else real.resolve().name
    out = out_folder(out, f"video-{name}")
    networks, missing = load_networks(options, crop, place)
    cut, model_notes = {"crop": crop, "num_frames": frames}, []
    if data is None:
        source = FolderVideos(real, generated, fps=fps, **cut)
    else:
        source, model_notes = predicted_videos(data, seed, place, precision, options, **cut)

    # Measure
    names = ("windows", "window_step", "slide_step", "batch_size", "kid_subsets", "kid_subset_size")
    comparison = VideoComparison(source.rows, networks, **{name: options[name] for name in names}, seed=seed)
    left_out = []
    for clip in tqdm(source.names, unit="clip", disable=None, dynamic_ncols=True):
        try:
            comparison.add(source.read(clip))
        except CLIP_ERRORS as error:
            logger.warning("left out: %s (%s)", clip, error)
            left_out.append(f"{clip} ({error})")
    comparison.check_counts()
    for note in comparison.bias_notes():
        logger.warning("%s", note)

    # Write
    notes = [
        source.note() + (f"; left out as not readable {len(left_out)}: {', '.join(left_out)}" if left_out else ""),
        f"protocol: the first {frames} frames at most, scaled to cover {crop[1]} x {crop[0]} px, centre crop",
        *[*comparison.notes(), *missing, *model_notes],
        f"device {place}, precision {precision}; seed {seed}; command: {command}",
    ]
    print(write_results(out, comparison.table(), title=f"Videos, {name}", notes=[*COLUMN_NOTES, *notes]))
    if sliding := comparison.sliding_table():
        print(write_results(out / "sliding", sliding, title=f"Along the videos, {name}", notes=[SLIDING_NOTE, *notes]))
    logger.info("written to %s", out)
    return not left_out


def load_networks(
    options: dict[str, Any], crop: tuple[int, int], device: torch.device
) -> tuple[dict[str, FeatureNetwork], list[str]]:
    """Load and try out the networks; return them by metric, and a line for each that is missing."""
    networks, missing = {}, []
    for name, (metric, wanted) in VIDEO_METRICS.items():
        if options[f"{name}_network"] is None:
            missing.append(f"left out: {metric}; the {name} network is {wanted}")
            continue
        kind, path = options[f"{name}_network"]
        form = options[f"{name}_input"]
        networks[metric] = FeatureNetwork(path, on_videos=name != "image", kind=kind, form=form, device=device)
        slides = [SLIDING[metric]] if metric in SLIDING and options["slide_step"] else []
        networks[metric].check(crop, [*options["windows"], *slides])
    if not networks:
        raise EvaluationError(f"image_network: nothing is measured without a network; {'; '.join(missing)}")
    for line in missing:
        logger.warning("%s", line)
    return networks, missing


def predicted_videos(
    data: Path, seed: int, device: torch.device, precision: str, options: dict[str, Any], **cut: Any
) -> tuple[PredictedVideos, list[str]]:
    """Open a clip set and load a checkpoint; return the videos and the note about the models."""
    sampling = {"seed": seed, "sampler": options["sampler"], "steps": check_steps(options["steps"])}
    sampling |= {"guidance": options["guidance"], "wind_px": options["wind_px"], "precision": precision}
    clip_set, split = ClipSet(data), options["split"]
    rows = choose_rows(clip_set, None if split == "all" else split, options["clips"], seed)
    checkpoint = options["checkpoint"] or DEFAULT_CHECKPOINT
    pipeline = MotionPipeline.from_pretrained(checkpoint).to(device)
    renderers = {f"model {splat}": load_renderer(checkpoint, splat) for splat in dict.fromkeys(options["splat"])}
    cut |= {"full_strength": options["full_strength"], "device": device}
    steps = sampling["steps"] or DEFAULT_STEPS[sampling["sampler"]]
    note = f"checkpoint {checkpoint}; sampler {sampling['sampler']}, {steps} steps, guidance {sampling['guidance']:g}"
    return PredictedVideos(clip_set, rows, pipeline, renderers, sampling, **cut), [f"{note}; one sample a clip"]
