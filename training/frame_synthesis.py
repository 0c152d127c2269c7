"""Training of the frame synthesis network: loss, validation, and the whole training of one renderer."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from data.clips import KEPT, PAIRS_ONLY, SampleKey
from data.datasets import RenderingDataset, WeightedSets
from data.media import contact_sheet, write_image
from data.order import evenly
from metrics.images import mean_squared_error, psnr_of_mse
from metrics.perceptual import Network, PerceptualLoss, masked_mean
from models.device import ArgumentError, check_precision
from models.frame_synthesis import HOLE_MASS, FrameSynthesis, splat_image
from models.frame_synthesis import PRESETS as MODEL_PRESETS
from models.weights import HUB
from splatting import average_splat
from training.data_sets import open_sets
from training.export import export_model
from training.loop import LoopOptions, start_processes, train
from training.losses import multi_scale_gradient
from training.run_folder import open_run

logger = logging.getLogger(__name__)

# [GID] gives no weights. The gradient term is of the size of the L1 term, the feature distance about 60 times as large:
# SqueezeNet's weighs as much as both, VGG-16's leads, which lowers LPIPS-alex by 1 % and costs 0.1 dB.
GRADIENT_WEIGHT = 0.5
PERCEPTUAL_WEIGHTS = {"squeezenet": 0.01, "vgg16": 0.05, "vgg19": 0.05}
ERROR_GAIN = 4.0  # of the errors on sample sheets
VALIDATION_PAIRS = 24
SHEET_ROWS = 4
CROP_MULTIPLE, SMALLEST_CROP_PX = 4, 32

# `tiny` takes minutes on two CPU cores, `small` some hours there or minutes on a GPU, `paper` is meant for a GPU.
TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 300, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 20, "ema_decay": 0.98},
    "fast": {"steps": 20_000, "batch_size": 8, "learning_rate": 5e-4, "warmup_steps": 200, "validate_every": 1000},
    "small": {"steps": 20_000, "batch_size": 8, "learning_rate": 5e-4, "warmup_steps": 200, "validate_every": 1000},
    "paper": {"steps": 200_000, "batch_size": 16, "learning_rate": 2e-4, "warmup_steps": 1000, "validate_every": 5000},
}
CROPS_PX = {"tiny": 96, "fast": 128, "small": 128, "paper": 256}


def renderer_loss(
    model: nn.Module, batch: dict[str, Tensor], *, perceptual: PerceptualLoss | None = None
) -> dict[str, Tensor]:
    """Return the `loss_terms` of a batch of data.datasets.RenderingDataset, and "sigma_px" where it is learned."""
    frame = model(batch["image"], batch["flow"], batch["importance"])  # (B, 3, h, w)
    reliability = arriving_reliability(batch["reliability"], batch["flow"])
    terms = loss_terms(frame, batch["target"], reliability, perceptual)
    renderer = extract_model_from_parallel(model)  # several processes and torch.compile wrap it
    if isinstance(renderer, FrameSynthesis) and renderer.config.learn_sigma:
        terms["sigma_px"] = renderer.sigma_px.detach()
    return terms


def loss_terms(
    frame: Tensor, target: Tensor, reliability: Tensor, perceptual: PerceptualLoss | None = None
) -> dict[str, Tensor]:
    """Return "loss" and its terms for frames (B, 3, h, w) and weights (B, 1, h, w) of their pixels.

    These are L1, multi-scale gradients and a feature distance; [GID] uses the VGG perceptual loss alone.
    """
    frame = frame.float()
    terms = {"l1": masked_mean((frame - target).abs(), reliability)}
    terms["gradient"] = multi_scale_gradient(frame, target, reliability)
    loss = terms["l1"] + GRADIENT_WEIGHT * terms["gradient"]
    if perceptual is not None:
        terms["perceptual"] = perceptual.to(frame.device)(frame, target, reliability)
        loss = loss + PERCEPTUAL_WEIGHTS[perceptual.network] * terms["perceptual"]
    return {"loss": loss, **terms}


@torch.no_grad()
def arriving_reliability(reliability: Tensor, flow: Tensor) -> Tensor:
    """Carry reliability (B, 1, h, w) from the pixels of frame 0 to where their flow leads; 1 in holes."""
    arrived, mass = average_splat(reliability, flow, return_weight=True)
    return torch.where(mass > HOLE_MASS, arrived, 1.0)


class Validation:
    """Pairs spread over the test clips: metrics of them, and a sheet of images."""

    def __init__(self, sets: WeightedSets, crop: int, perceptual: PerceptualLoss | None) -> None:
        self.perceptual = perceptual
        used = {clip_set: clip_set.rows("test", status=(KEPT, PAIRS_ONLY)) for clip_set, _ in sets}
        sets = [(one, 1.0) for one, rows in used.items() if any(one.has_pairs(row.id) for row in rows)]
        self.dataset = RenderingDataset(sets, split="test", size=(crop, crop), augment=False) if sets else []
        self.items = evenly(len(self.dataset), VALIDATION_PAIRS)

    def _render(self, model: FrameSynthesis, item: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return one pair as a batch of one, the model's frame and the average splat, both (1, 3, h, w)."""
        batch = {name: maps[None].to(model.device) for name, maps in self.dataset[SampleKey(item, 0, 0)].items()}
        warp = (batch["image"], batch["flow"], batch["importance"])
        average, _ = splat_image(*warp, operator="average")
        return batch, model(*warp), average

    @torch.no_grad()
    def validate(self, model: FrameSynthesis) -> dict[str, float]:
        """Return the mean loss, and the mean PSNR of the model, of the image's average splat and of no motion."""
        sums: dict[str, float] = {}
        for item in self.items:
            batch, frame, average = self._render(model, item)
            target = batch["target"]
            weights = arriving_reliability(batch["reliability"], batch["flow"])
            metrics = {"validation_loss": loss_terms(frame, target, weights, self.perceptual)["loss"]}
            for name, image in {"model": frame, "average_splat": average, "frame_0": batch["image"]}.items():
                metrics[f"validation_{name}_psnr_db"] = psnr_of_mse(mean_squared_error(image, target))
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {name: value / len(self.items) for name, value in sums.items()}

    @torch.no_grad()
    def sample(self, model: FrameSynthesis, step: int, folder: Path) -> None:
        """Write step-NNNNNNN.png: source, target, average splat, output, error (amplified), a row each pair."""
        rows = []
        for item in self.items[:: max(1, len(self.items) // SHEET_ROWS)][:SHEET_ROWS]:
            batch, frame, average = self._render(model, item)
            frame = frame.clamp(0, 1)
            error = ((frame - batch["target"]).abs() * ERROR_GAIN).clamp(0, 1)
            rows.append([maps[0] for maps in (batch["image"], batch["target"], average, frame, error)])
        write_image(folder / f"step-{step:07d}.png", contact_sheet(rows))


def _load_renderer(folder: Path, operator: str) -> FrameSynthesis:
    model = FrameSynthesis.from_pretrained(folder)
    model.register_to_config(_name_or_path="")  # no path of this machine goes into the config
    if model.config.operator != operator:
        raise ArgumentError(f"init {folder}: its operator is {model.config.operator}, not {operator}")
    logger.info("the network is that of %s; the preset means the training only", folder)
    return model


def train_renderer(
    operator: str, model_options: Mapping[str, Any], record: Mapping[str, Any], *, data: Sequence[str] | None,
    preset: str, crop: int | None, encoder: str, encoder_weights: str | None, importance: str, init: Path | None,
    perceptual_weights: Path | str | None, perceptual_network: Network | None, export: Path | None,
    export_precision: str, out: Path | None, resume: str | None, dry_run: bool, **loop: Any,
) -> None:  # fmt: skip
    """Train a "softmax" or "gaussian" renderer and export it; ArgumentError, ClipSetError: what cannot be used.

    `record`: all flags, for the run's folder; `model_options`: entries of the model's config; the rest: cli/flags.py.
    """
    options = LoopOptions.from_preset(TRAINING_PRESETS[preset], loop)
    crop = crop or CROPS_PX[preset]
    if crop % CROP_MULTIPLE or crop < SMALLEST_CROP_PX:
        raise ArgumentError(f"crop {crop}: right: a multiple of {CROP_MULTIPLE} px, at least {SMALLEST_CROP_PX}")
    check_precision(options.precision, start_processes(options.device))
    perceptual = None
    if perceptual_weights and not (dry_run and perceptual_weights == HUB):
        with PartialState().main_process_first():  # which may download
            perceptual = PerceptualLoss(perceptual_weights, perceptual_network)
    # Runs without the loss have always recorded this one.
    record = {**record, "perceptual_network": perceptual.network if perceptual else "squeezenet"}
    sets = open_sets(data, options.seed) if data or not dry_run else []
    config = {**MODEL_PRESETS[preset], "encoder": encoder, "importance": importance, **model_options}
    if encoder == "resnet34":
        config["unshuffle"] = 1  # it sees every pixel
    torch.manual_seed(options.seed)
    model = _load_renderer(init, operator) if init else FrameSynthesis(operator=operator, **config)
    if encoder_weights:
        model.load_encoder(encoder_weights)
    logger.info("%s, preset %s, %.2f M parameters, %d px crops", operator, preset, model.num_parameters() / 1e6, crop)
    if dry_run:
        where = ", ".join(data or ["a small rendered scene set"])
        logger.info("dry run: would train %d steps of %d crops on %s", options.steps, options.batch_size, where)
        return
    loss, validation = partial(renderer_loss, perceptual=perceptual), Validation(sets, crop, perceptual)
    dataset = RenderingDataset(sets, split="train", size=(crop, crop))
    hooks = {"validate": validation.validate, "sample": validation.sample} if validation.items else {}
    if not hooks:
        logger.warning("data: no pairs of split test, so there is no validation and no samples are drawn")
    script = f"train_frame_synthesis_{'softsplat' if operator == 'softmax' else operator}"
    with open_run(out, script, record, resume=resume, name=preset) as run:
        result = train(model, dataset, loss, options, run, progress=True, **hooks)
        if model.config.learn_sigma:  # config.json has the learned value, as the weights do
            model.register_to_config(sigma=round(model.sigma_px.item(), 4))
            logger.info("learned sigma: %.4g px", model.config.sigma)
        folder = export or run.path / f"frame_synthesis_{operator}"
        export_model(model, folder, run, result, half=export_precision == "fp16", init_folder=init)
