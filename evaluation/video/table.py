"""evaluate.py video: FID, KID, FVD and DTFVD of generated videos, over feature networks that the user names."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from animation.rendering import load_renderer
from data.clips import ClipSet, choose_rows
from evaluation import EvaluationError, Report
from evaluation.flags import VIDEO_METRICS
from evaluation.video.measure import COLUMN_NOTES, SLIDING, SLIDING_NOTE, VideoComparison
from evaluation.video.networks import FeatureNetwork
from evaluation.video.sources import CLIP_ERRORS, DISTORTIONS, FolderVideos, RenderedVideos
from metrics.images import Lpips, LpipsNetwork
from metrics.perceptual import LEAST_SIDE_PX
from models.checkpoints import DEFAULT_CHECKPOINT
from models.device import check_precision, choose_device
from models.motion_pipeline import MotionPipeline
from models.sampling import DEFAULT_STEPS
from motion.spectrum import NUM_FRAMES

logger = logging.getLogger(__name__)


def make_table(
    report: Report, *, data: Path | None, seed: int, device: str, precision: str, windows: list[int], slide_step: int,
    window_step: int | None = None, batch_size: int = 8, real: Path | None = None, generated: Sequence[Path] = (),
    fps: float | None = None, crop: tuple[int, int] = (128, 256), frames: int = NUM_FRAMES,
    lpips_network: Sequence[LpipsNetwork] = (), lpips_weights: Sequence[str] = (), **options: Any,
) -> bool:  # fmt: skip
    """Compare real and generated videos and report the tables; return False when a video was left out."""
    # Early checks
    device = choose_device(device)
    check_precision(precision, device)
    if lpips_weights and min(crop) < LEAST_SIDE_PX:
        raise EvaluationError(f"crop: LPIPS takes sides of at least {LEAST_SIDE_PX} px")
    networks, missing = load_networks(options, device)
    for metric, network in networks.items():
        network.check(crop, windows + [SLIDING[metric]] * bool(slide_step))
    lpips = [Lpips(*network).to(device) for network in zip(lpips_network, lpips_weights, strict=False)]
    cut, model_notes = {"crop": crop, "num_frames": frames}, []
    if data is None:
        source = FolderVideos(real, [*generated], fps=fps, **cut)
    else:
        source, model_notes = open_videos(data, seed, device, precision, options, **cut)

    # Measure
    shared = {"batch_size": batch_size, "seed": seed, "lpips": lpips}
    comparison = VideoComparison(source.rows, networks, windows, window_step, slide_step, **shared)
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
        f"device {device}, precision {precision}; seed {seed}",
    ]
    name = f"{data.name}-{options['split']}" if data else real.resolve().name
    report.add(comparison.table(), f"Videos, {name}", [*COLUMN_NOTES, *notes])
    if sliding := comparison.sliding_table():
        report.add(sliding, f"Along the videos, {name}", [SLIDING_NOTE, *notes], folder="sliding")
    return not left_out


def load_networks(options: dict[str, Any], device: torch.device) -> tuple[dict[str, FeatureNetwork], list[str]]:
    """Load the networks; return them by metric, and a line for each that is missing."""
    networks, missing = {}, []
    for name, (metric, wanted) in VIDEO_METRICS.items():
        if options.get(f"{name}_network") is None:
            missing.append(f"left out: {metric}; the {name} network is {wanted}")
            continue
        (kind, path), shown = options[f"{name}_network"], options.get(f"{name}_input")
        networks[metric] = FeatureNetwork(path, on_videos=name != "image", kind=kind, input_format=shown, device=device)
    if not networks:
        raise EvaluationError(f"image_network: nothing is measured without a network; {'; '.join(missing)}")
    for line in missing:
        logger.warning("%s", line)
    return networks, missing


def open_videos(
    data: Path, seed: int, device: torch.device, precision: str, options: dict[str, Any], **cut: Any
) -> tuple[RenderedVideos, list[str]]:
    """Open a clip set and load the models that its rows need; return the videos and the notes about these models."""
    sampling = {name: options[name] for name in ("sampler", "guidance", "wind_px")}
    sampling |= {"seed": seed, "steps": options["steps"], "precision": precision}
    clip_set, split = ClipSet(data), options["split"]
    clips = choose_rows(clip_set, None if split == "all" else split, options["clips"], seed)
    rows = options.get("rows") or [("model", "softmax")]
    checkpoint = options["checkpoint"] or DEFAULT_CHECKPOINT
    kinds = {kind for kind, _ in rows}
    folders = {"": checkpoint} if kinds - set(DISTORTIONS) else {}  # own and other motion have as many bins as a model
    if "model" in kinds:
        folders |= {str(folder): folder for folder in [options["baseline_checkpoint"]] if folder}
    pipelines = {label: MotionPipeline.from_pretrained(folder).to(device) for label, folder in folders.items()}
    splats = dict.fromkeys(splat for kind, splat in rows if kind not in DISTORTIONS and splat != "average")
    renderers = {splat: load_renderer(checkpoint, splat) for splat in splats}
    note = f"checkpoint {checkpoint}"
    if "model" in kinds:
        steps = sampling["steps"] or DEFAULT_STEPS[sampling["sampler"]]
        note += f"; sampler {sampling['sampler']}, {steps} steps, guidance {sampling['guidance']:g}; one sample a clip"
    videos = RenderedVideos(clip_set, clips, rows, pipelines, renderers, sampling, device=device, **cut)
    return videos, [note] if pipelines else []
