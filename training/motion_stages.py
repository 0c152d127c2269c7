"""The stages of U-Net training: what each trains, on which data, and what is measured and drawn on the way."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import SchedulerMixin
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.datasets import WeightedSets
from data.files import atomic_path
from data.masks import MaskedPhotograph, find_masked_photographs
from data.media import list_images
from models.device import ArgumentError
from models.placement import ConditionMaps, PlacementHead
from models.segmentation import SegmentationModel
from models.unet import UNET_PRESETS, FrequencyUNet
from models.vae import MotionVAE
from training import motion_diffusion as diffusion
from training import placement, placement_samples
from training.data_sets import sets_with
from training.latents import LatentDataset, fingerprint, variant_sizes

logger = logging.getLogger(__name__)

# Cropped and recoloured variants of each image that the placement head sees; more did not help it.
VARIANTS = 2
# Variants of each masked photograph with parts of others pasted in.
COMPOSITES = 6
NETWORKS = 3  # of a new head
COMPONENT_IMAGES = 64  # that its principal components are taken from
COMPONENTS = "components.safetensors"
# Parts of a U-Net that ablations leave out, and their options.
PARTS = {"wind": "wind", "placement": "placement_channels", "spatial-attention": "spatial_attention"}


def make_unet(
    vae: MotionVAE, preset: str, *, backbone: str, weights: Path | None, without: Sequence[str] = (), **config: Any
) -> FrequencyUNet:
    """Make an untrained U-Net for the latents of a VAE, of a preset of UNET_PRESETS.

    backbone "vae" is a frozen copy of the VAE's encoder; `weights` (WeightsError): of the backbone "squeezenet", which
    are then frozen; `without`: of PARTS; `config`: num_bins, mode and prediction_type.
    """
    config |= {"latent_channels": vae.latent_channels, "downsample_factor": vae.downsample_factor}
    config |= {"period_s": vae.config.period_s, "backbone": backbone, **_parts(without)}
    config["backbone_frozen"] = backbone == "vae"  # of the others: only once weights are loaded
    if backbone == "vae":
        config["image_vae"] = vae.encoder_config
    unet = FrequencyUNet(**UNET_PRESETS[preset], **config)
    if weights is not None:
        unet.load_backbone(weights)
    elif backbone == "vae":
        unet.image_encoder.copy_encoder(vae)
    elif backbone == "squeezenet":
        logger.info("no backbone weights: the image network trains from scratch")
    return unet


def _parts(without: Sequence[str]) -> dict[str, bool]:
    return {"wind": "wind" not in without, "spatial_attention": "spatial-attention" not in without}


def add_missing_parts(unet: FrequencyUNet, placement: PlacementHead | None, without: Sequence[str]) -> FrequencyUNet:
    """Return a U-Net that has all of PARTS but `without`; those it lacked begin as the identity."""
    for part in without:
        if unet.config[PARTS[part]]:
            raise ArgumentError(f"without {part}: the U-Net of init has it already; right: leave it out")
    config: dict[str, Any] = _parts(without)
    if placement is not None and "placement" not in without:
        config["placement_channels"] = placement.condition_channels
    new = FrequencyUNet(**{name: value for name, value in unet.config.items() if name[0] != "_"} | config)
    new.load_state_dict(unet.state_dict(), strict=False)
    if new.config.backbone_frozen:
        new.image_encoder.freeze_backbone()
    return new


def load_unet(folder: Path, **wanted: Any) -> FrequencyUNet:
    """Load a U-Net to train on; ArgumentError where its config differs from `wanted`."""
    unet = FrequencyUNet.from_pretrained(folder)
    for name, value in wanted.items():
        if unet.config[name] != value:
            raise ArgumentError(f"init {folder}: its {name} is {unet.config[name]}, not {value}")
    if unet.config.backbone_frozen:
        unet.image_encoder.freeze_backbone()
    logger.info("network and backbone are those of %s; the preset means the training only", folder)
    return unet


def denoising_stage(
    name: str,  # "joint", "image-encoder", "denoiser", "slices" or "coordination"
    unet: FrequencyUNet,
    vae: MotionVAE,
    schedule: SchedulerMixin,
    sets: WeightedSets,
    *,
    segmentation: SegmentationModel,  # tells what cannot move
    placement: PlacementHead | None = None,  # that a U-Net of `placement_channels` reads
    weighting: str = "none",  # of the noise levels
    feature_dropout: float | None = None,  # None: FEATURE_DROPOUT where the encoder trains on augmented samples, else 0
    grid: tuple[int, int],
    augment: bool,
    batch: int,  # samples of one step of one process; those of all processes have one shape
    seed: int,
    cache: Path,
    device: torch.device,  # where the VAE encodes
) -> dict[str, Any]:
    """Return the arguments of `train` for a stage that trains on latents; those not cached yet are encoded."""
    if feature_dropout is None:
        # In stage "denoiser" the encoder is fixed: hiding parts of it would only blur the magnitudes.
        feature_dropout = diffusion.FEATURE_DROPOUT if name != "denoiser" and augment else 0.0
    reads_placement = unet.config.placement_channels > 0
    reader = ConditionMaps(placement, unet.image_encoder, segmentation) if reads_placement else None

    # Latents to train and, where there are test clips, to validate with; the main process encodes for all
    options = {"vae": vae, "num_bins": unet.config.num_bins, "folder": cache, "seed": seed, "wind": unet.config.wind}
    options |= {"segmentation": segmentation, "read_image": reader}
    sizes = variant_sizes(*grid) if augment else (grid,)
    state = PartialState()
    multiple = batch * state.num_processes
    dataset = LatentDataset(sets, "train", sizes=sizes, augment=augment, multiple=multiple, **options)
    test_sets = sets_with(sets, "test")
    validation = LatentDataset(test_sets, "test", sizes=(grid,), augment=False, **options) if test_sets else None
    with state.main_process_first():
        for latents in filter(None, (dataset, validation)):
            if state.is_main_process:
                latents.encode(device)

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


def masked_photographs(
    photos: Path | None, masks: Path | None, table: Path | None, static: Sequence[Path]
) -> tuple[list[MaskedPhotograph], list[MaskedPhotograph]]:
    """Return the photographs to train and to validate on; those of `static`, files and folders, can nowhere move."""
    training = [MaskedPhotograph(path, None, path.stem, "static") for path in list_images(static)] if static else []
    if photos is None:
        return training, []
    if table is None:
        return training + find_masked_photographs(photos, masks), []
    tested = find_masked_photographs(photos, masks, table, "test", may_be_empty=True)
    return training + find_masked_photographs(photos, masks, table, "train"), tested


def load_placement(unet_folder: Path | None, unet: FrequencyUNet) -> PlacementHead | None:
    """Load the placement head of the checkpoint that a U-Net's folder belongs to; None where there is none.

    One whose image network trains on is left out, saying so. ArgumentError: it was trained with another image network.
    """
    folder = unet_folder.parent / "placement" if unet_folder else None
    if folder is None or not folder.is_dir():
        return None
    encoder = unet.image_encoder
    if encoder.backbone is not None and any(parameter.requires_grad for parameter in encoder.backbone.parameters()):
        logger.warning("%s: left out, because the image network that it reads is trained here", folder)
        return None
    head = PlacementHead.from_pretrained(folder)
    try:
        head.check_image_channels(encoder.tap_channels)
    except ValueError as error:
        raise ArgumentError(f"init {unet_folder}: {error}; right: without {folder}") from error
    return head


def prepare_unet(
    unet: FrequencyUNet, folder: Path | None, stage: str, without: Sequence[str]
) -> tuple[FrequencyUNet, PlacementHead | None]:
    """Choose what trains; return the U-Net, loaded ones with the parts they lacked, and `folder`'s placement head."""
    unet.set_stage(stage)
    placement = load_placement(folder, unet)  # which asks what trains
    if folder is not None and stage in ("joint", "image-encoder", "denoiser"):
        unet = add_missing_parts(unet, placement, without)
        unet.set_stage(stage)
    return unet, placement


def placement_stage(
    folder: Path,  # of the run; a new head's components are kept there, for the other processes and a resume
    head: PlacementHead | None,  # to go on from; None: a new one, its principal components taken from the images
    unet: FrequencyUNet,  # whose image network is read
    segmentation: SegmentationModel,
    sets: WeightedSets,
    photographs: Sequence[MaskedPhotograph],  # to train on
    tested: Sequence[MaskedPhotograph],  # to validate on
    *,
    augment: bool,
    seed: int,
    cache: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Return the arguments of `train` for the placement head; samples that are not cached yet are made."""
    backbone = unet.to(device).image_encoder.backbone_features
    segmentation = segmentation.to(device)
    torch.manual_seed(seed)
    state = PartialState()
    samples = []
    with state.main_process_first():
        if head is None:
            head = PlacementHead(unet.image_encoder.tap_channels, networks=NETWORKS).to(device)
            path = folder / COMPONENTS
            if not path.is_file():
                images = placement_samples.read_images(sets, photographs, at_most=COMPONENT_IMAGES)
                head.fit_components((image.to(device) for image in images), backbone, segmentation)
                with atomic_path(path) as temporary:
                    save_file(head.components.state_dict(), temporary)
            head.components.load_state_dict(load_file(path))
        head = head.to(device)
        depends_on = [fingerprint(network) for network in (head.components, unet.image_encoder, segmentation)]

        def features(image: Tensor) -> Tensor:
            return head.features(image[None].to(device), backbone, segmentation)[0].cpu()

        for split, masked in (("train", photographs), ("test", tested)):
            of_split = sets if split == "train" else sets_with(sets, "test")
            variants, composites = (VARIANTS, COMPOSITES) if augment and split == "train" else (0, 0)
            options = {"variants": variants, "composites": composites, "seed": seed}
            options |= {"cache": cache, "depends_on": depends_on}
            samples.append(placement_samples.make_samples(of_split, masked, split, features, **options))
    training, validation = samples
    return {
        "model": head,
        "dataset": placement.PlacementDataset(training),
        "loss_function": partial(placement.placement_loss, parts=head.parts),
        "validate": partial(placement.validation_placement, samples=validation) if validation else None,
        "sample": partial(placement.write_placement_sheet, samples=validation or training),
    }
