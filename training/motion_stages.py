"""The stages of U-Net training: what each trains, on which data, and what is measured and drawn on the way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import SchedulerMixin

from data.datasets import WeightedSets
from data.media import list_images, read_image
from models.device import ArgumentError
from models.unet import UNET_PRESETS, FrequencyUNet
from models.vae import MotionVAE
from training import displacement
from training import motion_diffusion as diffusion
from training.data_sets import sets_with
from training.latents import LatentDataset, variant_sizes

logger = logging.getLogger(__name__)

STATIC_IMAGE_PX = 640  # long side of static images: crops of a tenth of one fill a sample of 256 x 160 px


def make_unet(
    vae: MotionVAE, preset: str, *, num_bins: int, mode: str, prediction_type: str, backbone: str, weights: Path | None
) -> FrequencyUNet:
    """Make an untrained U-Net for the latents of a VAE, of a preset of UNET_PRESETS.

    backbone "vae" is a frozen copy of the VAE's encoder; `weights`: ImageNet weights of the backbone "squeezenet",
    which are then frozen. ArgumentError: weights that cannot be used.
    """
    config = {"latent_channels": vae.latent_channels, "downsample_factor": vae.downsample_factor}
    config |= {"period_s": vae.config.period_s, "num_bins": num_bins, "mode": mode, "backbone": backbone}
    config["prediction_type"] = prediction_type
    config["backbone_frozen"] = backbone == "vae"  # of the others: only once weights are loaded
    if backbone == "vae":
        config["image_vae"] = vae.encoder_config
    unet = FrequencyUNet(**UNET_PRESETS[preset], **config)
    if weights is not None:
        try:
            unet.load_backbone(weights)
        except (ValueError, RuntimeError) as error:
            raise ArgumentError(f"backbone_weights: {str(error).splitlines()[0]}") from error
    elif backbone == "vae":
        unet.image_encoder.copy_encoder(vae)
    elif backbone == "squeezenet":
        logger.info("no backbone weights: the image network trains from scratch")
    return unet


def load_unet(folder: Path, *, num_bins: int, mode: str, prediction_type: str, backbone: str) -> FrequencyUNet:
    """Load a U-Net to train on; ArgumentError where its config differs from the arguments."""
    unet = FrequencyUNet.from_pretrained(folder)
    wanted = {"num_bins": num_bins, "mode": mode, "prediction_type": prediction_type}
    if backbone == "vae":
        wanted["backbone"] = backbone
    for name, value in wanted.items():
        if unet.config[name] != value:
            raise ArgumentError(f"init {folder}: its {name} is {unet.config[name]}, not {value}")
    if unet.config.backbone_frozen:
        unet.image_encoder.freeze_backbone()
    logger.info("network and backbone are those of %s; the preset means the training only", folder)
    return unet


def denoising_stage(
    name: str,
    unet: FrequencyUNet,
    vae: MotionVAE,
    schedule: SchedulerMixin,
    sets: WeightedSets,
    *,
    weighting: str = "none",
    feature_dropout: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return the arguments of `train` for a stage that trains on latents; those not cached yet are encoded.

    Args:
        name: "joint", "image-encoder", "denoiser", "slices" or "coordination".
        weighting: of the noise levels.
        feature_dropout: fraction of the image's features hidden from a sample; None: FEATURE_DROPOUT where the encoder
            trains on augmented samples, else 0.
        options: of `_encoded`.
    """
    if feature_dropout is None:
        # In stage "denoiser" the encoder is fixed: hiding parts of it would only blur the magnitudes.
        learns_images = name != "denoiser" and options["augment"]
        feature_dropout = diffusion.FEATURE_DROPOUT if learns_images else 0.0
    dataset, validation = _encoded(sets, vae, num_bins=unet.config.num_bins, **options)
    seen = {"num_features": unet.image_encoder.num_features, "feature_dropout": feature_dropout}
    if name == "image-encoder":
        model, loss, sample = diffusion.ImageEncoderStage(unet), partial(diffusion.image_encoder_loss, **seen), None
        validate = diffusion.validation_magnitude
    else:
        model, loss = unet, partial(diffusion.diffusion_loss, schedule=schedule, weighting=weighting, **seen)
        sample = partial(diffusion.write_sample_sheet, vae=vae, schedule=schedule, dataset=validation or dataset)
        validate = partial(diffusion.validation_loss, schedule=schedule)
    validate = partial(validate, dataset=validation) if validation else None
    return {"model": model, "dataset": dataset, "loss_function": loss, "validate": validate, "sample": sample}


def _encoded(
    sets: WeightedSets,
    vae: MotionVAE,
    *,
    grid: tuple[int, int],
    num_bins: int,
    augment: bool,
    batch: int,
    seed: int,
    cache: Path,
    device: torch.device,
) -> tuple[LatentDataset, LatentDataset | None]:
    """Encode the latents to train and, where there are test clips, to validate with; the main process for all.

    batch: samples of one step of all processes, which one shape fills; device: where the VAE encodes.
    """
    options = {"vae": vae, "num_bins": num_bins, "folder": cache, "seed": seed}
    sizes = variant_sizes(*grid) if augment else (grid,)
    dataset = LatentDataset(sets, "train", sizes=sizes, augment=augment, multiple=batch, **options)
    test_sets = sets_with(sets, "test")
    validation = LatentDataset(test_sets, "test", sizes=(grid,), augment=False, **options) if test_sets else None
    state = PartialState()
    with state.main_process_first():
        for latents in filter(None, (dataset, validation)):
            if state.is_main_process:
                latents.encode(vae, device)
    return dataset, validation


def displacement_stage(
    unet: FrequencyUNet,
    sets: WeightedSets,
    *,
    grid: tuple[int, int],
    augment: bool = True,
    batch: int = 1,
    feature_dropout: float | None = None,
    static_images: Sequence[Path] = (),
) -> dict[str, Any]:
    """Return the arguments of `train` for the displacement head; options as in `denoising_stage` and `_encoded`.

    `static_images`: photographs, or folders of them, in which nothing moves; augmented samples show crops of them.
    """
    if feature_dropout is None:
        feature_dropout = diffusion.FEATURE_DROPOUT if augment else 0.0
    sizes = variant_sizes(*grid) if augment else (grid,)
    images = list_images(static_images) if static_images else []
    static = [read_image(path, max_side=STATIC_IMAGE_PX) for path in images]
    make = displacement.DisplacementDataset
    dataset = make(sets, "train", sizes=sizes, augment=augment, multiple=batch, static=static)
    test_sets = sets_with(sets, "test")
    validation = make(test_sets, "test", sizes=(grid,), augment=False) if test_sets else None
    seen = {"num_features": unet.displacement_head.num_features, "feature_dropout": feature_dropout}
    return {
        "model": displacement.DisplacementStage(unet),
        "dataset": dataset,
        "loss_function": partial(displacement.displacement_loss, **seen),
        "validate": partial(displacement.validation_displacement, dataset=validation) if validation else None,
        "sample": partial(displacement.write_displacement_sheet, dataset=validation or dataset),
    }
