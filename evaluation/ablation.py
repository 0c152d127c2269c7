"""evaluate.py ablation: variants of the method, trained with one budget and measured alike.

The commands that train a variant are part of the result. A variant that is finished is not made again.
"""

import json
import logging
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from animation.rendering import load_renderer
from data.clips import STORED_BINS, ClipSet, ClipSetError, choose_rows
from data.files import write_text
from evaluation import EvaluationError, Report
from evaluation.clips import clip_seed
from evaluation.motion import measure
from evaluation.motion.measure import COHERENCE, HEADLINE, MODEL, GroundTruth, MotionTables
from evaluation.training_scripts import as_flags, run_script
from evaluation.video.measure import VideoComparison
from evaluation.video.networks import FeatureNetwork
from evaluation.video.sources import CLIP_ERRORS, RenderedVideos
from metrics.statistics import mean_by_source
from models.checkpoints import DEFAULT_CHECKPOINT, one_line
from models.device import check_precision, choose_device
from models.frame_synthesis import FrameSynthesis
from models.motion_pipeline import MotionPipeline
from motion.normalisation import Normalisation
from motion.spectrum import NUM_BINS
from training.data_sets import combined_normalisation, open_sets
from training.export import RECORD
from training.frame_synthesis import CROPS_PX

logger = logging.getLogger(__name__)

# What is reported of the motion beside amplitude_ratio and shape; see evaluation/motion/measure.py.
COLUMNS = (
    HEADLINE, "ap_lead", *COHERENCE,
    "motion_px", "epe_best_px", "epe_best_relative", "diversity", "normalised_gradient",
)  # fmt: skip
# Videos for FVD: the first frames of each test clip, cut into windows that touch.
FVD_FRAMES, FVD_WINDOW, FVD_CROP = 48, 16, (128, 256)
# Steps of a training that ends after minutes.
OPEN_END = 1_000_000_000
# A train_vae.py crop; smaller grids are taken whole.
CROP_PX = 128
# {key: (title, what differs from the full method in motion prediction, or flags of a renderer's training)}
MOTION_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": (f"full method, K = {NUM_BINS}", {}),
    "linear": ("no adaptive normalisation", {"normalisation": "linear"}),
    "independent": ("independent slices", {"mode": "independent"}),
    "volume": ("one volume", {"mode": "volume"}),
    "k4": ("K = 4", {"bins": 4}),
    "k8": ("K = 8", {"bins": 8}),
    "k24": ("K = 24", {"bins": 24}),
}
RENDERER_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "multi-scale": ("renderer: multi-scale, fixed importance", {}),
    "single-scale": ("renderer: single scale, learned importance", {"scales": 1, "importance": "learned"}),
}
VARIANTS = MOTION_VARIANTS | RENDERER_VARIANTS
NOTES = (
    "variants that need the same VAE share one; hours: of the last call of the script",
    "motion is compared as series of 24 bins, amplitude_ratio and shape over a variant's own; columns as in "
    "`evaluate.py motion`",
    f"fvd_{FVD_WINDOW}: frame 0 moved by one sample, by the default softmax renderer, for {FVD_FRAMES} frames; fewer "
    "windows than features make it too large, alike in all rows",
    "renderer: psnr_db of validation pairs, beside their average splat and frame 0",
)


@dataclass(frozen=True)
class Settings:
    """What all variants share: the flags of the table, those of the training scripts among them."""

    data: Sequence[str]
    steps: int | None  # of each training; None: as many as `minutes` allow
    minutes: float | None = None
    test_data: Sequence[Path] = ()
    preset: str = "tiny"
    grid: tuple[int, int] = (160, 256)
    batch_size: int | None = None
    backbone: str = "none"
    backbone_weights: Path | None = None
    clips: int | None = None
    samples: int = 4
    fvd_network: tuple[str, Path] | None = None  # kind and file, of evaluation.video.networks
    seed: int = 0
    device: str = "auto"
    precision: str = "no"
    workers: int = 0


class Training(NamedTuple):
    """One call of a training script: its flags, its run folder, and the model that it leaves there."""

    script: str
    flags: list[str]
    run: Path
    model: Path


def make_table(report: Report, *, variants: Sequence[str], dry_run: bool = False, **settings: Any) -> bool:
    """Train and measure what is not finished, and report the table; an EvaluationError at last names what failed."""
    # Early checks
    out, settings = report.out, Settings(**settings)
    check_precision(settings.precision, choose_device(settings.device))
    sets = open_sets(settings.data, settings.seed)
    test_sets = [ClipSet(folder) for folder in settings.test_data] or [clip_set for clip_set, _ in sets]
    test_sets = [clip_set for clip_set in test_sets if clip_set.rows("test")]
    if not test_sets:
        raise EvaluationError("test_data: no clip of split test to measure; right: another set")
    network = None
    if settings.fvd_network:
        kind, path = settings.fvd_network
        network = FeatureNetwork(path, on_videos=True, kind=kind, device=choose_device(settings.device))
        network.check(FVD_CROP, [FVD_WINDOW])
    named = zip(settings.data, sets, strict=True)
    pairs = [name for name, (found, _) in named if any(found.has_pairs(row.id) for row in found.rows("train"))]
    keys = [key for key in VARIANTS if key in variants]
    failed = {key: "no set has rendering pairs" for key in keys if key in RENDERER_VARIANTS and not pairs}
    plan = {key: trainings(key, settings, pairs, out) for key in keys if key not in failed}
    commands = dict.fromkeys(shlex.join([run.script, *run.flags]) for runs in plan.values() for run in runs)
    if dry_run:
        print("\n".join(commands))
        return True
    _keep_settings(out / "ablation.json", settings)

    # Train and measure
    normalisation = combined_normalisation(sets, STORED_BINS)
    for key, runs in tqdm(plan.items(), unit="variant", disable=None, dynamic_ncols=True):
        if (out / f"{key}.json").is_file():
            continue
        try:
            row = _make_row(key, runs, test_sets, normalisation, settings)
            write_text(out / f"{key}.json", json.dumps(row, indent=1) + "\n")
        except Exception as error:  # one that fails, for memory above all, must not keep the others from their turn
            failed[key] = _failure(error)
            logger.warning("%s failed: %s", key, failed[key])
    if network:
        finished = [key for key in plan if key in MOTION_VARIANTS and key not in failed]
        try:
            _add_fvd({key: plan[key][-1].model.parent for key in finished}, network, test_sets, settings, out)
        except Exception as error:  # the other columns are there
            failed["fvd_network"] = _failure(error)

    failures = [f"{key} failed: {why}" for key, why in failed.items()]
    _write(report, settings, test_sets, commands, failures)
    if failed:
        raise EvaluationError(f"variants: {'; '.join(failures)}")
    return True


def _failure(error: Exception) -> str:
    """Return on one line why a part of the table failed; raise an error that is neither the user's nor of memory."""
    if not (getattr(error, "is_user_error", False) or isinstance(error, torch.OutOfMemoryError)):
        raise error
    return one_line(error, 2000)


def _write(
    report: Report, settings: Settings, test_sets: Sequence[ClipSet], commands: Sequence[str], failures: Sequence[str]
) -> None:
    """Report the variants that are finished; EvaluationError where none is."""
    results = [report.out / f"{key}.json" for key in VARIANTS]
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in results if path.is_file()]
    if not rows:
        raise EvaluationError(f"variants: none could be trained; {'; '.join(failures)}")
    measured_on = ", ".join(str(clip_set.folder) for clip_set in test_sets)
    budget = f"{settings.steps} steps" if settings.steps else f"{settings.minutes:g} minutes"
    notes = [
        f"data: {', '.join(settings.data)}; measured on {settings.clips or 'all'} test clips of each of {measured_on}",
        f"budget: {budget} for each training, preset {settings.preset}, grid {'x'.join(map(str, settings.grid[::-1]))} "
        f"px, in measuring its area; {settings.samples} samples an image by the default sampler and guidance, seed "
        f"{settings.seed}",
        *NOTES,
    ]
    report.add(rows, "Ablation", [*notes, *commands, *failures])


def trainings(key: str, settings: Settings, pairs: Sequence[str], out: Path) -> list[Training]:
    """Return the calls that train a renderer on `pairs`, the data that has rendering pairs, or a VAE and U-Net."""
    (_, changes), run = VARIANTS[key], out / key
    height, width = settings.grid
    same = ("preset", "batch_size", "seed", "device", "precision", "workers")
    shared = {"steps": settings.steps or OPEN_END, "finish_in": settings.minutes}
    shared |= {name: getattr(settings, name) for name in same}
    if key in RENDERER_VARIANTS:
        crop = min(CROPS_PX[settings.preset], height, width)
        flags = as_flags(data=pairs, **shared, crop=crop, **changes, out=run)
        return [Training("train_frame_synthesis_softsplat.py", flags, run, run / "frame_synthesis_softmax")]
    changes = {"bins": NUM_BINS, "normalisation": "adaptive", "mode": "coordinated"} | changes
    shared |= {"data": settings.data, "bins": changes["bins"], "grid": f"{width}x{height}"}
    crop = f"{min(width, CROP_PX)}x{min(height, CROP_PX)}"
    vae_run = out / f"vae-{changes['normalisation']}-{changes['bins']}"
    vae_flags = as_flags(**shared, crop=crop, normalisation=changes["normalisation"], out=vae_run)
    backbone = {"backbone": settings.backbone, "backbone_weights": settings.backbone_weights}
    folders = {"vae": vae_run / "vae", "cache": out / "latents", "out": run}
    unet_flags = as_flags(**shared, mode=changes["mode"], **backbone, **folders)
    return [
        Training("train_vae.py", vae_flags, vae_run, vae_run / "vae"),
        Training("train_unet.py", unet_flags, run, run / "pipeline" / "unet"),
    ]


def _keep_settings(path: Path, settings: Settings) -> None:
    """Write the settings; EvaluationError where those there are others."""
    now = json.loads(json.dumps(asdict(settings), default=str))
    now["measurement"] = 2  # to be raised when variants are measured in another way
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
    # Where and how it is computed, and what else is measured, may change under way.
    changing = ("device", "workers", "fvd_network")
    keys = [key for key in now if key not in changing and before.get(key) != now[key]]
    if keys:
        listed = ", ".join(f"{key} (was {before.get(key)}, now {now[key]})" for key in keys)
        raise EvaluationError(f"out {path.parent}: made with other settings: {listed}; use those, or name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(now, indent=1) + "\n")


def _make_row(
    key: str, runs: Sequence[Training], test_sets: Sequence[ClipSet], normalisation: Normalisation, settings: Settings
) -> dict[str, Any]:
    """Train a variant, or go on with what was cut short, unless its model is there, and measure it."""
    records = []
    for run in runs:
        if not run.model.is_dir():
            flags = [*run.flags, "--resume", "auto"]
            logger.info("%s", shlex.join([run.script, *flags]))
            run_script(run.script, flags, run.run.with_suffix(".log"))
        records.append(json.loads((run.model.parent / RECORD).read_text(encoding="utf-8"))[run.model.name])
    row = {"row": VARIANTS[key][0], "steps": records[-1]["steps"], "hours": records[-1]["hours_of_last_call"]}
    if key in RENDERER_VARIANTS:
        model = FrameSynthesis.from_pretrained(runs[-1].model)
        names = {"psnr_db": "model", "psnr_average_splat_db": "average_splat", "psnr_frame_0_db": "frame_0"}
        validation = records[-1].get("validation_after", {})
        metrics = {name: validation.get(f"validation_{of}_psnr_db") for name, of in names.items()}
        return row | {"parameters_m": model.num_parameters() / 1e6, **metrics}
    pipeline = MotionPipeline.from_pretrained(runs[-1].model.parent)
    pipeline.to(choose_device(settings.device))
    row |= {"bins": pipeline.unet.config.num_bins, "parameters_m": pipeline.unet.num_parameters() / 1e6}
    row |= {"vae_parameters_m": pipeline.vae.num_parameters() / 1e6, "vae_hours": records[0]["hours_of_last_call"]}
    return row | measure_motion(pipeline, test_sets, normalisation, settings)


def measure_motion(
    pipeline: MotionPipeline, test_sets: Sequence[ClipSet], normalisation: Normalisation, settings: Settings
) -> dict[str, Any]:
    """Measure a pipeline on test clips by the metrics of `evaluate.py motion`, the same for every K.

    Clips and samples are compared as series of all 24 bins that a set stores, so that a variant of fewer bins pays for
    the motion that it cannot show; amplitude_ratio and shape are over the bins it has. `normalisation` is of 24 bins.
    """
    num_bins = pipeline.unet.config.num_bins
    clips = []
    for clip_set in test_sets:
        for row in choose_rows(clip_set, "test", settings.clips, settings.seed):
            try:
                truth = GroundTruth.read(clip_set, row, STORED_BINS)
            except ClipSetError as error:
                logger.warning("not measured: %s", error)
                continue
            options = {"num_samples": settings.samples, "precision": settings.precision}
            options["seed"] = clip_seed(settings.seed, row.id)  # one start noise for all would tilt the means
            samples = measure.predict(pipeline, truth.image, area=math.prod(settings.grid), **options)
            truth = replace(truth, id=f"{clip_set.folder.name}/{row.id}")
            clips.append(measure.measure_clip(truth, with_stored_bins(samples), normalisation, settings.seed))
    if not clips:
        raise EvaluationError("test_data: no test clip can be measured; right: prepare the sets again")
    (table,) = [row for row in MotionTables(clips, normalisation, settings.seed).table() if row["row"] == MODEL]
    both_px = [(clip.source, clip.predicted_px[:num_bins], clip.real_px[:num_bins]) for clip in clips]
    strength = [{"source": source} | measure.amplitude_metrics(*px) for source, *px in both_px]
    geometric = {key: mean_by_source(strength, key, geometric=True) for key in ("amplitude_ratio", "shape_factor")}
    return {key: table.get(key) for key in COLUMNS} | geometric | {"clips": len(clips)}


def _add_fvd(
    pipelines: dict[str, Path], network: FeatureNetwork, test_sets: Sequence[ClipSet], settings: Settings, out: Path
) -> None:
    """Measure the FVD of the variants whose result lacks it, {key: pipeline folder}, and write it there."""
    results = {key: json.loads((out / f"{key}.json").read_text(encoding="utf-8")) for key in pipelines}
    column = f"fvd_{FVD_WINDOW}"
    missing = {key: folder for key, folder in pipelines.items() if results[key].get("fvd_network") != network.name}
    if not missing:
        return
    device = choose_device(settings.device)
    models = {key: MotionPipeline.from_pretrained(folder).to(device) for key, folder in missing.items()}
    sampling = {"seed": settings.seed, "precision": settings.precision, "area": math.prod(settings.grid)}
    renderers = {"softmax": load_renderer(DEFAULT_CHECKPOINT, "softmax")}
    comparison = None
    for clip_set in test_sets:
        clips = choose_rows(clip_set, "test", settings.clips, settings.seed)
        cut = {"crop": FVD_CROP, "num_frames": FVD_FRAMES, "device": device}
        videos = RenderedVideos(clip_set, clips, [("model", "softmax")], models, renderers, sampling, **cut)
        comparison = comparison or VideoComparison(videos.rows, {"fvd": network}, [FVD_WINDOW], seed=settings.seed)
        for name in tqdm(videos.names, unit="clip", desc=column, disable=None, dynamic_ncols=True):
            try:
                comparison.add(videos.read(name))
            except CLIP_ERRORS as error:
                logger.warning("left out of %s: %s", column, error)
    comparison.check_counts()
    table = {row["row"]: row for row in comparison.table()}
    for key in missing:
        row = table[f"model softmax of {key}"]
        found = {name: row.get(name) for name in (column, f"{column}_low", f"{column}_high", f"windows_{FVD_WINDOW}")}
        found["fvd_network"] = network.name
        write_text(out / f"{key}.json", json.dumps(results[key] | found, indent=1) + "\n")


def with_stored_bins(spectra: Tensor) -> Tensor:
    """Return spectra (..., K, 4, H, W) as ones of 24 bins, the further ones zero: the same series."""
    return F.pad(spectra, (0, 0, 0, 0, 0, 0, 0, STORED_BINS - spectra.shape[-4]))
