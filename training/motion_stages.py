"""The stages of motion training: what each trains, on which data, and what is measured and drawn on the way."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.media import list_images, read_image
from models.unet import FrequencyUNet
from models.vae import MotionVAE
from training import displacement, processes
from training import motion_diffusion as diffusion
from training.data_sets import WeightedSets, sets_with
from training.displacement import DisplacementDataset
from training.latents import LatentDataset, variant_sizes

# Long side at which a photograph of --still-pictures is kept: crops of a tenth of it fill a sample of 256 x 160 px.
STILL_PICTURE_PX = 640


@dataclass
class Stage:
    """What `loop.train` is given: the module of a stage, its data, its loss, and `validate` and `sample`."""

    model: nn.Module
    dataset: Dataset
    loss: Callable
    measures: dict[str, Callable] = field(default_factory=dict)


def prepare(
    args: Namespace,
    unet: FrequencyUNet,
    vae: MotionVAE,
    schedule: SchedulerMixin,
    sets: WeightedSets,
    device: torch.device,
    batch: int,
) -> Stage:
    """Prepare the stage of train_unet.py's flags; latents that are not cached yet are encoded.

    Args:
        args: the flags.
        unet, vae, schedule: the models.
        sets: checked.
        device: where the VAE encodes.
        batch: samples of one step of all processes; one shape fills it.
    """
    if args.stage == "displacement":
        return _displacement(args, unet, sets, batch)
    dataset, validation = _encoded(args, sets, vae, device, batch)
    # What the encoder says is fixed in stage "denoiser": hiding parts of it would only blur the magnitudes.
    seen = {"num_features": unet.image_encoder.num_features}
    seen["feature_dropout"] = _feature_dropout(args, learns_pictures=args.stage != "denoiser")
    if args.stage == "picture":
        measures = {"validate": partial(diffusion.validation_magnitude, dataset=validation)} if validation else {}
        return Stage(diffusion.PictureStage(unet), dataset, partial(diffusion.picture_loss, **seen), measures)
    shown = {"vae": vae, "schedule": schedule, "dataset": validation or dataset}
    measures = {"sample": partial(diffusion.write_sample_sheet, **shown)}
    if validation:
        measures["validate"] = partial(diffusion.validation_loss, dataset=validation, schedule=schedule)
    loss = partial(diffusion.diffusion_loss, schedule=schedule, weighting=args.weighting, **seen)
    return Stage(unet, dataset, loss, measures)


def _displacement(args: Namespace, unet: FrequencyUNet, sets: WeightedSets, batch: int) -> Stage:
    sizes = (args.grid,) if args.no_augment else variant_sizes(*args.grid)
    still = _still_pictures(args.still_pictures)
    dataset = DisplacementDataset(sets, "train", sizes=sizes, augment=not args.no_augment, multiple=batch, still=still)
    test_sets = sets_with(sets, "test")
    validation = DisplacementDataset(test_sets, "test", sizes=(args.grid,), augment=False) if test_sets else None
    measures = {"sample": partial(displacement.write_displacement_sheet, dataset=validation or dataset)}
    if validation:
        measures["validate"] = partial(displacement.validation_displacement, dataset=validation)
    seen = {"num_features": unet.displacement_head.num_features, "feature_dropout": _feature_dropout(args)}
    loss = partial(displacement.displacement_loss, **seen)
    return Stage(displacement.DisplacementStage(unet), dataset, loss, measures)


def _still_pictures(paths: list[Path]) -> list[Tensor]:
    """Read photographs in which nothing moves, at most at the size that crops of them are shown at."""
    found = list_images(paths) if paths else []
    return [read_image(path, max_side=STILL_PICTURE_PX) for path in found]


def _feature_dropout(args: Namespace, *, learns_pictures: bool = True) -> float:
    if args.feature_dropout is not None:
        return args.feature_dropout
    return diffusion.FEATURE_DROPOUT if learns_pictures and not args.no_augment else 0.0


def _encoded(
    args: Namespace, sets: WeightedSets, vae: MotionVAE, device: torch.device, batch: int
) -> tuple[LatentDataset, LatentDataset | None]:
    """Encode the training and the held-out latents (None without test clips), the first process for all."""
    options = {"vae": vae, "num_bins": args.bins, "folder": args.cache, "seed": args.seed}
    sizes = (args.grid,) if args.no_augment else variant_sizes(*args.grid)
    dataset = LatentDataset(sets, "train", sizes=sizes, augment=not args.no_augment, multiple=batch, **options)
    test_sets = sets_with(sets, "test")
    validation = LatentDataset(test_sets, "test", sizes=(args.grid,), augment=False, **options) if test_sets else None
    with processes.main_first():
        for latents in filter(None, (dataset, validation)):
            if processes.is_main():
                latents.encode(vae, device, progress=True)
    return dataset, validation
