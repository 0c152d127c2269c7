"""What train_frame_synthesis_softsplat.py and train_frame_synthesis_gaussian.py share: all but the operator's flags."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cli.parser import UsageError, check_precision, check_writable
from data.clips import KEPT, PAIRS_ONLY, ClipSet, SampleKey
from data.datasets import RenderingDataset
from data.media import contact_sheet, write_image
from metrics.images import decibel, squared_error
from metrics.perceptual import PerceptualLoss
from models.frame_synthesis import HOLE_MASS, FrameSynthesis, splat_image
from models.frame_synthesis import PRESETS as MODEL_PRESETS
from splatting import average_splat
from training import processes
from training.data_sets import export_model, open_sets
from training.frame_synthesis_flags import check_model_flags
from training.loop import LoopOptions, train, training_device
from training.losses import l1, multi_scale_gradient
from training.run_folder import open_run

logger = logging.getLogger(__name__)

# [GID] gives no weights. The gradient term is of the size of the L1 term, the feature distance about 60 times as large.
GRADIENT_WEIGHT = 0.5
PERCEPTUAL_WEIGHT = 0.01
# Shown on sample sheets: errors in [0, 1] are small.
ERROR_GAIN = 4.0
HELD_OUT_PAIRS = 24
SHEET_ROWS = 4
CROP_MULTIPLE = 4


@dataclass(frozen=True)
class Preset:
    """What one size is trained with; the network of the same name is in models/frame_synthesis.py."""

    crop: int  # px
    loop: dict[str, Any]


# `tiny` takes minutes on two CPU cores, `small` some hours there or minutes on a GPU, `paper` is meant for a GPU.
PRESETS = {
    "tiny": Preset(
        crop=96,
        loop={"steps": 300, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 20, "ema_decay": 0.98},
    ),
    "small": Preset(
        crop=128,
        loop={"steps": 20_000, "batch_size": 8, "learning_rate": 5e-4, "warmup_steps": 200, "validate_every": 1000},
    ),
    "paper": Preset(
        crop=256,
        loop={"steps": 200_000, "batch_size": 16, "learning_rate": 2e-4, "warmup_steps": 1000, "validate_every": 5000},
    ),
}


# ------------------------------------------------------------------------------------------------ loss


class FrameSynthesisLoss:
    """L1 + multi-scale gradients + feature distance, of what the flow can be believed about.

    Called as `loss(model, batch)` with a batch of data.datasets.RenderingDataset. Pixels weigh with the reliability of
    the flow that leads to them; holes, to which none leads, weigh fully. [GID] uses the VGG perceptual loss alone.

    Args:
        perceptual: the feature distance, or None to train without.
    """

    def __init__(self, perceptual: PerceptualLoss | None = None) -> None:
        self.perceptual = perceptual

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return "loss" and its terms as scalars, and sigma where the model learns it."""
        frame = model(batch["image"], batch["flow"], batch["importance"])  # (B, 3, h, w)
        terms = self.terms(frame, batch["target"], arriving_reliability(batch["reliability"], batch["flow"]))
        renderer = getattr(model, "module", model)  # several processes wrap it
        if isinstance(renderer, FrameSynthesis) and renderer.config.learn_sigma:
            terms["sigma_px"] = renderer.sigma_px.detach()
        return terms

    def terms(self, frame: Tensor, target: Tensor, reliability: Tensor) -> dict[str, Tensor]:
        """Return "loss" and its terms for frames (B, 3, h, w) and weights (B, 1, h, w) of their pixels."""
        frame = frame.float()
        terms = {
            "l1": l1(frame, target, reliability),
            "gradient": multi_scale_gradient(frame, target, reliability),
        }
        loss = terms["l1"] + GRADIENT_WEIGHT * terms["gradient"]
        if self.perceptual is not None:
            self.perceptual.to(frame.device)
            terms["perceptual"] = self.perceptual(frame, target, reliability)
            loss = loss + PERCEPTUAL_WEIGHT * terms["perceptual"]
        return {"loss": loss, **terms}


@torch.no_grad()
def arriving_reliability(reliability: Tensor, flow: Tensor) -> Tensor:
    """Carry reliability (B, 1, h, w) from the pixels of frame 0 to where their flow leads; 1 where none leads."""
    arrived, mass = average_splat(reliability, flow, return_weight=True)
    return torch.where(mass > HOLE_MASS, arrived, 1.0)


# ------------------------------------------------------------------------------------------------ held-out pairs


class Validation:
    """Held-out pairs, spread over the test clips, and what is looked at on them: figures, and a sheet of pictures."""

    def __init__(self, sets: list[tuple[ClipSet, float]], crop: int, loss: FrameSynthesisLoss) -> None:
        self.loss = loss
        sets = [(clip_set, 1.0) for clip_set, _ in sets if _has_test_pairs(clip_set)]
        self.dataset = RenderingDataset(sets, split="test", size=(crop, crop), augment=False) if sets else None
        count = len(self.dataset) if self.dataset is not None else 0
        self.items = list(range(0, count, max(1, -(-count // HELD_OUT_PAIRS))))

    def pair(self, item: int, device: torch.device) -> dict[str, Tensor]:
        """Return one pair as a batch of one."""
        assert self.dataset is not None
        sample = self.dataset[SampleKey(item, 0, 0)]
        return {name: maps[None].to(device) for name, maps in sample.items()}

    @torch.no_grad()
    def validate(self, model: FrameSynthesis) -> dict[str, float]:
        """Return the mean loss, and the mean PSNR of the model, of the picture's average splat and of no motion."""
        sums: dict[str, float] = {}
        for item in self.items:
            batch = self.pair(item, model.device)
            image, flow, importance, target = (batch[key] for key in ("image", "flow", "importance", "target"))
            frame = model(image, flow, importance)
            average, _ = splat_image(image, flow, importance, operator="average")
            weights = arriving_reliability(batch["reliability"], flow)
            figures = {"validation_loss": self.loss.terms(frame, target, weights)["loss"]}
            for name, picture in {"model": frame, "average_splat": average, "frame_0": image}.items():
                figures[f"validation_{name}_psnr_db"] = decibel(squared_error(picture, target))
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {name: value / len(self.items) for name, value in sums.items()}

    @torch.no_grad()
    def sample(self, model: FrameSynthesis, step: int, folder: Path) -> None:
        """Write step-NNNNNNN.png: source, target, average splat, output, error (amplified), a row each pair."""
        rows = []
        for item in self.items[:: max(1, len(self.items) // SHEET_ROWS)][:SHEET_ROWS]:
            batch = self.pair(item, model.device)
            image, flow, importance, target = (batch[key] for key in ("image", "flow", "importance", "target"))
            frame = model(image, flow, importance).clamp(0, 1)
            average, _ = splat_image(image, flow, importance, operator="average")
            error = ((frame - target).abs() * ERROR_GAIN).clamp(0, 1)
            rows.append([maps[0] for maps in (image, target, average, frame, error)])
        write_image(folder / f"step-{step:07d}.png", contact_sheet(rows))


def _has_test_pairs(clip_set: ClipSet) -> bool:
    return any(clip_set.has_pairs(row.id) for row in clip_set.rows("test", status=(KEPT, PAIRS_ONLY)))


# ------------------------------------------------------------------------------------------------ a training run


def run_training(args: argparse.Namespace, operator: str, model_options: dict[str, Any]) -> int:
    """Train, export, and return the exit code 0.

    Args:
        args: flags of cli.parser and of training/frame_synthesis_flags.py.
        operator: "softmax" or "gaussian".
        model_options: the operator's own entries of the model's config.
    """
    preset = PRESETS[args.preset]
    crop = args.crop or preset.crop
    options = LoopOptions.from_flags(args, **preset.loop)

    # Early checks
    if crop % CROP_MULTIPLE or crop < 32:
        raise UsageError(f"--crop {crop}: right: a multiple of {CROP_MULTIPLE} px, at least 32")
    check_precision(args.precision, training_device(args.device))
    check_model_flags(args)
    if args.export is not None:
        check_writable(args.export, "--export")
    perceptual = None
    if args.perceptual_weights is not None:
        perceptual = PerceptualLoss(args.perceptual_weights, args.perceptual_network, flag="--perceptual-weights")
    else:
        logger.info("training without a perceptual loss; --perceptual-weights FILE adds one")
    sets = open_sets(args.data, args.seed, args.device) if args.data else []
    torch.manual_seed(args.seed)
    model = build_model(args, operator, model_options)
    if args.dry_run:
        print(f"{operator}, preset {args.preset}, {crop} px crops, {options}, data {args.data or 'rendered scenes'}")
        return 0

    # Data
    sets = sets or open_sets(None, args.seed, args.device)
    dataset = RenderingDataset(sets, split="train", size=(crop, crop))
    loss = FrameSynthesisLoss(perceptual)
    validation = Validation(sets, crop, loss)
    if not validation.items:
        logger.warning("no pairs of the split test in --data: nothing is held out, no samples are drawn")

    # Train
    logger.info("%s: %.2f M parameters", args.preset, model.num_parameters() / 1e6)
    script = f"train_frame_synthesis_{'softsplat' if operator == 'softmax' else operator}"
    with open_run(args.out, script, vars(args), resume=args.resume, name=args.preset) as run:
        look = {"validate": validation.validate, "sample": validation.sample} if validation.items else {}
        result = train(model, dataset, loss, options, run, progress=processes.is_main(), **look)
        if model.config.learn_sigma:
            # config.json says what was learned; the weights have it too.
            model.register_to_config(sigma=round(model.sigma_px.item(), 4))
            logger.info("learned sigma: %.4g px", model.config.sigma)
        folder = args.export or run.path / f"frame_synthesis_{operator}"
        export_model(model, folder, run, result, half=args.export_precision == "fp16")
    return 0


def build_model(args: argparse.Namespace, operator: str, options: dict[str, Any]) -> FrameSynthesis:
    """Make the network of the flags, its encoder with weights where --encoder-weights names them.

    Args:
        args: flags of training/frame_synthesis_flags.py.
        operator: "softmax" or "gaussian".
        options: further entries of the model's config; they go before the flags.

    Raises:
        UsageError: weights that are missing or do not fit.
    """
    flags = {"encoder": args.encoder, "importance": args.importance}
    model = FrameSynthesis(operator=operator, **{**MODEL_PRESETS[args.preset], **flags, **options})
    if args.encoder_weights:
        try:
            model.load_encoder(args.encoder_weights)
        except ValueError as error:
            raise UsageError(f"--encoder-weights {str(error).splitlines()[0]}") from error
    elif args.encoder == "resnet34":
        logger.info("no --encoder-weights: ResNet-34 trains from scratch")
    return model
