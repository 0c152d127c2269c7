"""The ablation: variants of the method trained with one budget and measured by one yardstick.

Every variant of the motion prediction is trained by train_vae.py and train_unet.py, called with the flags that anybody
could give by hand; the commands are part of the result. What is finished lies in a folder of its own with a
result.json and is not made again.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from cli.flags import add_renderer_flags
from cli.parser import Parser, UsageError
from data.clips import STORED_BINS, ClipSet, ClipSetError, choose_rows
from data.files import remove_folder, write_text
from evaluation.motion.measure import HEADLINE, MODEL, GroundTruth, MotionComparison, predict
from metrics.motion import bin_ratios, factor
from metrics.statistics import mean_by_source
from motion.normalisation import Normalisation
from motion.spectrum import NUM_BINS
from training.data_sets import WeightedSets, combined_normalisation
from training.export import RECORD
from training.frame_synthesis import CROPS_PX, train_renderer
from training.run_folder import CHECKPOINT_MARK, OPTIONS, find_checkpoints

if TYPE_CHECKING:
    from models.motion_pipeline import MotionPipeline

logger = logging.getLogger(__name__)

Run = Callable[[str, Sequence[str], Path], None]

ROOT = Path(__file__).resolve().parents[2]
RESULT, SETTINGS, LOG = "result.json", "ablation.json", "train.log"
# With --minutes the number of steps is open: no rate could fall to 0 at its end.
OPEN_END = ("--schedule", "constant", "--steps", "1000000000")
# What is told of the motion beside gain and shape; see evaluation/motion/measure.py.
COLUMNS = (HEADLINE, "ap_lead", "motion_px", "epe_best_px", "epe_best_relative", "diversity", "normalised_gradient")
# A train_vae.py crop; smaller grids are taken whole.
CROP_PX = 128


@dataclass(frozen=True)
class MotionVariant:
    """One way to predict motion: what differs from the method.

    Attributes:
        key: its name at the command line and on disk.
        title: its row.
        num_bins: K.
        mode: of train_unet.py.
        normalisation: of train_vae.py: "adaptive", per bin and with a square root, or "linear", one scale for all.
    """

    key: str
    title: str
    num_bins: int = NUM_BINS
    mode: str = "coordinated"
    normalisation: str = "adaptive"

    @property
    def vae(self) -> str:
        """Name of its VAE; variants that need the same one share it."""
        return f"{self.normalisation}-{self.num_bins}"


@dataclass(frozen=True)
class RendererVariant:
    """One way to render: entries of models.frame_synthesis.FrameSynthesis that differ from the method."""

    key: str
    title: str
    options: dict[str, Any] = field(default_factory=dict)


MOTION_VARIANTS = (
    MotionVariant("full", f"full method, K = {NUM_BINS}"),
    MotionVariant("linear", "no adaptive normalisation", normalisation="linear"),
    MotionVariant("independent", "independent slices", mode="independent"),
    MotionVariant("volume", "one volume", mode="volume"),
    *(MotionVariant(f"k{bins}", f"K = {bins}", num_bins=bins) for bins in (4, 8, 24)),
)
RENDERER_VARIANTS = (
    RendererVariant("multi-scale", "renderer: multi-scale, fixed importance"),
    RendererVariant(
        "single-scale", "renderer: single scale, learned importance", {"scales": 1, "importance": "learned"}
    ),
)
VARIANTS = {variant.key: variant for variant in (*MOTION_VARIANTS, *RENDERER_VARIANTS)}


@dataclass(frozen=True)
class Settings:
    """What all variants share; two calls on one folder must agree in it.

    Attributes:
        data: values of --data, SET or SET:WEIGHT.
        measured_on: folders of the sets whose test clips are measured.
        preset, grid, batch_size, seed, device, precision, workers, backbone, backbone_weights: flags of the scripts.
        steps, minutes: the budget of each training, one of them None.
        clips, samples: pictures a set (None: all) and motions a picture that are measured.
    """

    data: tuple[str, ...]
    measured_on: tuple[str, ...]
    preset: str = "tiny"
    grid: tuple[int, int] = (160, 256)
    steps: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "no"
    workers: int = 0
    backbone: str = "none"
    backbone_weights: str | None = None
    clips: int | None = None
    samples: int = 4

    @property
    def budget(self) -> tuple[str, ...]:
        """The flags of the budget."""
        if self.steps is not None:
            return ("--steps", str(self.steps))
        return ("--minutes", f"{self.minutes:g}", *OPEN_END)

    def shared_flags(self) -> list[str]:
        """Return the flags that every training script gets."""
        flags = ["--data", *self.data, "--preset", self.preset, *self.budget, "--seed", str(self.seed)]
        flags += ["--device", self.device, "--precision", self.precision, "--workers", str(self.workers)]
        return flags + (["--batch-size", str(self.batch_size)] if self.batch_size else [])


# ------------------------------------------------------------------------------------------------ commands


def vae_flags(variant: MotionVariant, settings: Settings, out: Path) -> list[str]:
    """Return the flags of train_vae.py for the VAE that a variant needs."""
    height, width = settings.grid
    flags = ["--bins", str(variant.num_bins), "--grid", f"{width}x{height}"]
    flags += ["--crop", f"{min(width, CROP_PX)}x{min(height, CROP_PX)}"]
    if variant.normalisation != "adaptive":
        flags += ["--normalisation", variant.normalisation]
    return [*settings.shared_flags(), *flags, "--out", str(out)]


def unet_flags(variant: MotionVariant, settings: Settings, out: Path, vae: Path, cache: Path) -> list[str]:
    """Return the flags of train_unet.py for a variant."""
    height, width = settings.grid
    flags = ["--bins", str(variant.num_bins), "--grid", f"{width}x{height}", "--mode", variant.mode]
    flags += ["--backbone", settings.backbone]
    if settings.backbone_weights:
        flags += ["--backbone-weights", settings.backbone_weights]
    return [*settings.shared_flags(), *flags, "--vae", str(vae), "--cache", str(cache), "--out", str(out)]


def run_script(script: str, flags: Sequence[str], log: Path) -> None:
    """Run a training script as its own process, what it says going to `log`.

    Raises:
        UsageError: it failed; the message is its last line and names the log.
    """
    with open(log, "a", encoding="utf-8") as file:
        command = [sys.executable, str(ROOT / script), *flags]
        print(shlex.join(command), file=file, flush=True)
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1].rpartition("\r")[2]
        raise UsageError(f"{last.removeprefix(f'{script}: error: ')} (exit code {done.returncode}; see {log})")


# ------------------------------------------------------------------------------------------------ an ablation


class Ablation:
    """Variants below one folder: vaes/NAME, variants/KEY, latents; settings in ablation.json.

    Args:
        folder: made where it is missing.
        settings: what all variants share.
        sets: those of settings.data, opened.
        test_sets: those of settings.measured_on, opened.
        run: trains, (script, flags, log file); None: `run_script`.
        dry_run: only for `commands`; writes nothing.

    Raises:
        UsageError: the folder holds an ablation of other settings; the message lists them.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        sets: WeightedSets,
        test_sets: Sequence[ClipSet],
        run: Run | None = None,
        *,
        dry_run: bool = False,
    ) -> None:
        self.folder, self.settings, self.run = Path(folder), settings, run or run_script
        self.sets, self.test_sets = sets, list(test_sets)
        self._normalisation = combined_normalisation(sets, STORED_BINS)
        self.check_settings()
        if dry_run:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / SETTINGS, json.dumps(asdict(settings), indent=1) + "\n")

    def check_settings(self) -> None:
        """Raise UsageError where the folder's results were made with other settings."""
        path = self.folder / SETTINGS
        if not path.is_file():
            return
        before, now = json.loads(path.read_text()), json.loads(json.dumps(asdict(self.settings)))
        # Where and how it is computed may change under way.
        keys = [key for key in now if key not in ("device", "workers") and before.get(key) != now[key]]
        if keys:
            listed = ", ".join(f"{key} (was {before.get(key)}, now {now[key]})" for key in keys)
            raise UsageError(f"--out {self.folder}: made with other settings: {listed}; use those, or name another")

    def commands(self, keys: Sequence[str]) -> Iterator[str]:
        """Yield the command lines that train variants, a shared VAE's once."""
        seen = set()
        for variant in (VARIANTS[key] for key in keys):
            if isinstance(variant, RendererVariant):
                if any(_has_pairs(clip_set) for clip_set, _ in self.sets):
                    line = shlex.join(["train_frame_synthesis_softsplat.py", *self._renderer_flags(variant)])
                    # Entries of the model's config that the script has no flags for.
                    yield line + "".join(f" [{name}={value}]" for name, value in variant.options.items())
            else:
                folder, vae = self._folder(variant), self._vae_folder(variant)
                if variant.vae not in seen:
                    yield shlex.join(["train_vae.py", *vae_flags(variant, self.settings, vae / "run")])
                seen.add(variant.vae)
                flags = unet_flags(variant, self.settings, folder / "run", vae / "run" / "vae", self._cache)
                yield shlex.join(["train_unet.py", *flags])

    def result(self, key: str) -> dict[str, Any] | None:
        """Return a finished variant's row, None where it is not finished."""
        path = self._folder(VARIANTS[key]) / RESULT
        return json.loads(path.read_text()) if path.is_file() else None

    def make(self, key: str) -> dict[str, Any]:
        """Train and measure a variant, or return its row where that was done before.

        Raises:
            UsageError: a training failed.
        """
        row = self.result(key)
        if row is not None:
            logger.info("%s: finished before", key)
            return row
        variant = VARIANTS[key]
        row = self._make_motion(variant) if isinstance(variant, MotionVariant) else self._make_renderer(variant)
        row = {"row": variant.title} | row
        write_text(self._folder(variant) / RESULT, json.dumps(row, indent=1) + "\n")
        return row

    # -------------------------------------------------------------------------------------------- motion

    def _make_motion(self, variant: MotionVariant) -> dict[str, Any]:
        from cli.parser import choose_device
        from models.motion_pipeline import MotionPipeline

        vae, folder = self._vae_folder(variant), self._folder(variant)
        flags = vae_flags(variant, self.settings, vae / "run")
        spent_vae = self._train("train_vae.py", flags, vae)
        flags = unet_flags(variant, self.settings, folder / "run", vae / "run" / "vae", self._cache)
        spent = self._train("train_unet.py", flags, folder)
        pipeline = MotionPipeline.load(folder / "run" / "pipeline")
        pipeline.to(choose_device(self.settings.device))
        parameters = {"unet": pipeline.unet.num_parameters(), "vae": pipeline.vae.num_parameters()}
        return {
            "bins": variant.num_bins,
            "parameters_m": parameters["unet"] / 1e6,
            **spent,
            "vae_parameters_m": parameters["vae"] / 1e6,
            **{f"vae_{name}": value for name, value in spent_vae.items()},
            **measure_motion(pipeline, self.test_sets, self._normalisation, self.settings),
        }

    def _train(self, script: str, flags: list[str], folder: Path, run_script: Run | None = None) -> dict[str, Any]:
        """Train into folder/run, or go on there, unless it is finished; return steps, samples and seconds."""
        run, done = folder / "run", folder / "trained.json"
        if not done.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if (run / OPTIONS).is_file() and self.settings.steps is not None:
                flags = [*flags, "--resume", "auto"]
            else:
                # A budget of minutes is that of one call: what was cut short is made anew.
                remove_folder(run)
            logger.info("%s", shlex.join([script, *flags]))
            began = time.monotonic()
            (run_script or self.run)(script, flags, folder / LOG)
            spent = {**_spent(run), "seconds": round(time.monotonic() - began, 1)}
            write_text(done, json.dumps(spent, indent=1) + "\n")
        return json.loads(done.read_text())

    # -------------------------------------------------------------------------------------------- renderer

    def _renderer_flags(self, variant: RendererVariant) -> list[str]:
        """Return the flags of train_frame_synthesis_softsplat.py; UsageError where no set has pairs."""
        data = [flag for flag, (clip_set, _) in zip(self.settings.data, self.sets, strict=True) if _has_pairs(clip_set)]
        if not data:
            raise UsageError("--data: no set has rendering pairs; right: sets made with --pairs of at least 1")
        crop = min(CROPS_PX[self.settings.preset], *self.settings.grid)
        flags = [*replace(self.settings, data=tuple(data)).shared_flags(), "--crop", str(crop)]
        return [*flags, "--out", str(self._folder(variant) / "run")]

    def _make_renderer(self, variant: RendererVariant) -> dict[str, Any]:
        """Train a renderer in this process; its figures are those of its own held-out pairs."""
        folder, flags = self._folder(variant), self._renderer_flags(variant)

        def train(script: str, flags: Sequence[str], log: Path) -> None:
            parser = Parser()
            add_renderer_flags(parser)
            train_renderer("softmax", variant.options, **vars(parser.parse_args(flags)))

        spent = self._train("train_frame_synthesis_softsplat.py", flags, folder, train)

        from models.checkpoints import load_model
        from models.frame_synthesis import FrameSynthesis

        model = load_model(FrameSynthesis, folder / "run" / "frame_synthesis_softmax", component="renderer")
        record = json.loads((folder / "run" / RECORD).read_text())["frame_synthesis_softmax"]
        validation = record.get("validation_after") or record.get("held_out_after", {})
        names = {"psnr_db": "model", "psnr_average_splat_db": "average_splat", "psnr_frame_0_db": "frame_0"}
        figures = {name: validation.get(f"validation_{of}_psnr_db") for name, of in names.items()}
        return {"parameters_m": model.num_parameters() / 1e6, **spent, **figures}

    # -------------------------------------------------------------------------------------------- folders

    def _folder(self, variant: MotionVariant | RendererVariant) -> Path:
        return self.folder / "variants" / variant.key

    def _vae_folder(self, variant: MotionVariant) -> Path:
        return self.folder / "vaes" / variant.vae

    @property
    def _cache(self) -> Path:
        return self.folder / "latents"


def _has_pairs(clip_set: ClipSet) -> bool:
    return any(clip_set.has_pairs(row.id) for row in clip_set.rows("train"))


def _spent(run: Path) -> dict[str, int]:
    """Return steps and samples of a finished run, from its last state."""
    mark = json.loads((find_checkpoints(run)[-1] / CHECKPOINT_MARK).read_text(encoding="utf-8"))
    return {"steps": mark["step"], "samples": mark["step"] * mark["batch_size"] * mark["gradient_accumulation_steps"]}


# ------------------------------------------------------------------------------------------------ measuring


def measure_motion(
    pipeline: MotionPipeline, test_sets: Sequence[ClipSet], normalisation: Normalisation, settings: Settings
) -> dict[str, Any]:
    """Measure a pipeline on test clips by the figures of `evaluate.py motion`, the same for every K.

    Clips and samples are compared as series of all 24 bins that a set stores, so that a variant of fewer bins pays for
    the motion that it cannot show; gain and shape are over the bins it has.

    Args:
        pipeline: the trained variant.
        test_sets: their test clips are measured, settings.clips of each.
        normalisation: of 24 bins, the same for all variants.
        settings: samples, clips and seed.

    Raises:
        UsageError: no clip can be read, or what the pipeline predicts is not finite.
    """
    num_bins = pipeline.unet.config.num_bins
    comparison = MotionComparison(normalisation, settings.seed)
    for clip_set in test_sets:
        for row in choose_rows(clip_set, "test", settings.clips, settings.seed):
            try:
                truth = GroundTruth.read(clip_set, row, STORED_BINS)
            except ClipSetError as error:
                logger.warning("not measured: %s", error)
                continue
            samples = predict(
                pipeline, truth.image, num_samples=settings.samples, seed=settings.seed, precision=settings.precision
            )
            if not bool(samples.isfinite().all()):
                raise UsageError(f"the motion it predicts for clip {row.id} is not finite")
            comparison.add(replace(truth, id=f"{clip_set.folder.name}/{row.id}"), with_stored_bins(samples))
    if not comparison.sources:
        raise UsageError("no test clip can be measured; prepare the sets again")
    (table,) = [row for row in comparison.table() if row["row"] == MODEL]
    strength = []
    for name, real_px in comparison.real_px.items():
        ratios = bin_ratios(comparison.predicted_px[name][:num_bins], real_px[:num_bins])
        if ratios is not None:
            figures = {"gain": ratios[0], "shape_factor": factor(ratios[1].tolist())}
            strength.append({"source": comparison.sources[name], **figures})
    geometric = {key: mean_by_source(strength, key, geometric=True) for key in ("gain", "shape_factor")}
    return {key: table.get(key) for key in COLUMNS} | geometric | {"clips": len(comparison.sources)}


def with_stored_bins(spectra: Tensor) -> Tensor:
    """Return spectra (..., K, 4, H, W) as ones of 24 bins, the further ones still: the same series."""
    return F.pad(spectra, (0, 0, 0, 0, 0, 0, 0, STORED_BINS - spectra.shape[-4]))
