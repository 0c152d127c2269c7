"""An image in, its motion out: the trained VAE, U-Net and noise schedule as one saved pipeline."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

from models.checkpoints import CheckpointError, one_line, read_config
from models.choices import DEFAULT_GUIDANCE
from models.class_maps import fine_class_probabilities, movement_of_classes
from models.device import AUTOCAST_DTYPES, autocast
from models.displacement import UNATTENDED_COHERENCE_PX, rescale_to_displacement, smooth_by_parts, smooth_spectrum
from models.flames import flicker
from models.placement import (
    DETAIL,
    PlacementHead,
    bare_stems,
    coherent_parts,
    flickering,
    placed_displacement,
    suggested_wind,
)
from models.sampling import DEFAULT_SAMPLER, DEFAULT_STEPS, denoise, load_schedule, sample_generator, start_noise
from models.segmentation import SegmentationModel
from models.self_guidance import LoopGuidance
from models.stiffness import stiff_lines, straighten
from models.unet import WIND_OF_LATENTS_PX, FrequencyUNet
from models.vae import MotionVAE
from motion.flow import GRID_MULTIPLE, MOTION_AREA_PX, motion_grid_size, resize_maps
from motion.looping import closed, loop_closure_error
from motion.motion_file import Motion, thumbnail
from motion.spectrum import FPS, bin_frequencies_hz, mean_displacement, without_drift
from motion.strength import amplitude_limit_scale
from motion.wind import WINDS

logger = logging.getLogger(__name__)

DEFAULT_WIND_PX = WINDS["breeze"]  # of checkpoints without a placement head, which would suggest one
CPU_BATCH_MB = 2000.0  # activations of one batch on the CPU, where larger batches are no faster
BYTES_A_NUMBER = 60.0  # peak of the U-Net's activations by slices x positions x channels of its first level, measured


class EncodedImages(NamedTuple):
    """What the samples of an image share; None or empty where the checkpoint has no such part."""

    condition: Tensor  # (B, Cc + K C, h, w) of the U-Net
    expected_px: Tensor | None  # (B, 1, H, W) expected displacement, px
    wind_px: Tensor | None  # (B,) the wind, see `motion.wind`, given or suggested by the images
    flickering: Tensor | None  # (B, 1, H, W) how far a place flickers as fire does, 0 to 1
    stems: Tensor | None  # (B, 1, H, W) how far a place is of a stem, 0 to 1
    parts: dict[tuple[float, float], Tensor]  # (B, 1, H, W) each, of `coherent_parts`
    lines: list[np.ndarray]  # of each image those that do not bend, see `models.stiffness`

    def at(self, places: Tensor) -> EncodedImages:
        """Return those of some of the images, by their numbers (b,)."""
        parts = {sway: fraction[places] for sway, fraction in self.parts.items()}
        lines = [self.lines[int(place)] for place in places] if self.lines else []
        return EncodedImages(*(None if found is None else found[places] for found in self[:5]), parts, lines)


def decode_and_rescale(
    vae: MotionVAE, unet: FrequencyUNet, latents: Tensor, encoded: EncodedImages, precision: str = "no",
    *, loop: LoopGuidance | None = None,
) -> Tensor:  # fmt: skip
    """Decode sampled latents (B, K, C, h, w) to spectra (B, K, 4, H, W), px, as strong as is expected.

    With `loop` the bins are not rescaled one by one, for they cancel each other where the loop closes. Nothing lags
    and fire does not flicker then.
    """
    of_bins = loop is None or not loop.guides_sampling
    spectrum = vae.decode_spectrum(unet.with_expected_power(latents, encoded.condition, of_bins=of_bins), precision)
    if encoded.expected_px is not None:
        if unet.config.spatial_attention:
            hertz = bin_frequencies_hz(spectrum.shape[1], unet.config.period_s) if of_bins else None
            smooth = smooth_by_parts(spectrum, encoded.expected_px, encoded.parts, encoded.stems, hertz=hertz)
        else:
            smooth = smooth_spectrum(spectrum, encoded.expected_px, UNATTENDED_COHERENCE_PX)
        if encoded.flickering is not None and of_bins:
            smooth = flicker(smooth, encoded.flickering)
        spectrum = rescale_to_displacement(smooth, encoded.expected_px)
        if encoded.lines:
            together = zip(spectrum, encoded.expected_px, encoded.lines, strict=True)
            spectrum = torch.stack([straighten(*one) for one in together])
        return spectrum
    if unet.config.wind:
        spectrum = spectrum * (encoded.wind_px / WIND_OF_LATENTS_PX).view(-1, 1, 1, 1, 1)
    return spectrum


def choose_max_batch(unet: FrequencyUNet, size: tuple[int, int], *, guided: bool) -> int:
    """Return how many samples of latents of `size` (h, w) the U-Net takes at once, at least 1.

    Activations may take half of what is free on a GPU, CPU_BATCH_MB elsewhere; `guided` samples take two calls.
    """
    on_gpu = unet.device.type == "cuda"
    budget_mb = torch.cuda.mem_get_info(unet.device)[0] / 2e6 if on_gpu else CPU_BATCH_MB
    slices = unet.config.num_bins if unet.config.mode != "volume" else 1
    numbers = slices * size[0] * size[1] * unet.config.block_channels[0] * (2 if guided else 1)
    return max(1, int(budget_mb * 1e6 / (BYTES_A_NUMBER * numbers)))


class MotionPipeline(DiffusionPipeline):
    """Predict spectral volumes from images; a diffusers folder of vae, unet, scheduler, segmentation and placement.

    The segmentation network says what a photograph shows (`models.class_masks`). The placement head reads it and says
    how far each place moves. Without a placement head a sample keeps its own amplitude, or that of a head in the U-Net.
    """

    _optional_components = ["segmentation", "placement"]  # noqa: RUF012

    def __init__(
        self,
        vae: MotionVAE,
        unet: FrequencyUNet,
        scheduler: SchedulerMixin,
        segmentation: SegmentationModel | None = None,
        placement: PlacementHead | None = None,
    ) -> None:
        super().__init__()
        networks = {"vae": vae, "unet": unet, "segmentation": segmentation, "placement": placement}
        self.register_modules(scheduler=scheduler, **networks)
        check_components(vae, unet, scheduler)
        if placement is not None:
            if segmentation is None:
                raise ValueError("placement reads segmentation, which is not there; right: both, or neither")
            placement.check_image_channels(unet.image_encoder.tap_channels)
        read = 0 if placement is None else placement.condition_channels
        if unet.config.placement_channels not in (0, read):
            raise ValueError(f"unet reads {unet.config.placement_channels} maps of placement, which gives {read}")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MotionPipeline:
        """Load a checkpoint folder, in float32 on the CPU; CheckpointError when it cannot be used."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such checkpoint folder; right: one that holds vae/, unet/, scheduler/")
        index = read_config(folder / "model_index.json")
        missing = {"vae", "unet", "scheduler"} - set(index)
        if missing:
            raise CheckpointError(f"{folder}/model_index.json: lacks {sorted(missing)}; right: a motion checkpoint")
        schedule = load_schedule(folder / "scheduler")
        vae, unet = MotionVAE.from_pretrained(folder / "vae"), FrequencyUNet.from_pretrained(folder / "unet")
        # A copied folder counts too: the way to bring an older checkpoint up to date.
        optional = {
            name: kind.from_pretrained(folder / name)
            for name, kind in (("segmentation", SegmentationModel), ("placement", PlacementHead))
            if index.get(name) not in (None, [None, None]) or (folder / name).exists()
        }
        try:
            return cls(vae, unet, schedule, **optional)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: {one_line(error)}") from error

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,  # (B, 3, H, W) float32 RGB in [0, 1] on the motion grid, sides multiples of 32 px
        *,
        # (B, 3, 2 H, 2 W) the same, for the placement head. None: enlarged, which blurs them and changes the strength.
        detailed: Tensor | None = None,
        num_samples: int = 1,  # M different motions an image
        wind_px: float | None = None,  # see `motion.wind`; None: what the images suggest
        seed: int = 0,  # fixes, with the sample's number, the start noise, whatever the batch size and device
        guidance: float = DEFAULT_GUIDANCE,  # w of classifier-free guidance; 0: none, at half the cost
        max_batch: int | None = None,  # samples in one batch of the network; None: by memory
        precision: str = "no",  # or "bf16", "fp16"; of all networks, by autocast
        **sampling: Any,  # sampler, steps and loop of `denoise`
    ) -> Tensor:
        """Sample spectra (B, M, K, 4, H, W) for images of one size: packed, px of the grid, on the CPU.

        A motion guided to a loop still has a drift and a small closure error.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % GRID_MULTIPLE for side in images.shape[-2:]):
            raise ValueError(f"images: expected (B, 3, H, W) with sides multiples of 32, got {tuple(images.shape)}")
        if precision not in AUTOCAST_DTYPES:
            raise ValueError(f"precision: expected one of {', '.join(AUTOCAST_DTYPES)}, got {precision!r}")
        if wind_px is not None and not self.unet.config.wind:
            raise CheckpointError("wind_px: this checkpoint was trained without wind; right: none, or another one")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch: expected at least 1, got {max_batch}")
        if max_batch is None:
            size = tuple(side // self.vae.downsample_factor for side in images.shape[-2:])
            max_batch = choose_max_batch(self.unet, size, guided=guidance > 0)
        jobs = [(index, sample) for index in range(len(images)) for sample in range(num_samples)]
        spectra: list[Tensor] = []
        for start in range(0, len(jobs), max_batch):
            batch = jobs[start : start + max_batch]
            chosen = sorted({index for index, _ in batch})
            closer = None if detailed is None else detailed[chosen]
            encoded = self.encode_images(images[chosen], precision, closer, wind_px)
            batch = [(chosen.index(index), sample) for index, sample in batch]
            spectra += self._sample_batch(encoded, batch, seed, guidance=guidance, precision=precision, **sampling)
        return torch.cat(spectra).unflatten(0, (len(images), num_samples))  # (B, M, K, 4, H, W)

    def _sample_batch(
        self, encoded: EncodedImages, batch: list[tuple[int, int]], seed: int, *, precision: str, **sampling: Any
    ) -> list[Tensor]:
        """Return a spectrum (1, K, 4, H, W) for each (index of an image of `encoded`, number of the sample)."""
        encoded = encoded.at(torch.tensor([index for index, _ in batch], device=self.unet.device))
        shape = (self.unet.config.num_bins, self.vae.latent_channels, *encoded.condition.shape[-2:])
        shared = self.unet.start_correlation
        latents = denoise(
            self.unet,
            self.scheduler,
            encoded.condition,
            torch.stack([start_noise(shape, seed, sample, shared) for _, sample in batch]).to(self.unet.device),
            precision=precision,
            vae=self.vae,
            generators=[sample_generator(seed, sample, 1) for _, sample in batch],
            **sampling,
        )
        # One volume at a time: decoding takes the most memory, and a batch would not make it faster.
        one_by_one = zip(latents.split(1), torch.arange(len(batch)).split(1), strict=True)
        decode = partial(decode_and_rescale, self.vae, self.unet, precision=precision, loop=sampling.get("loop"))
        return [decode(z, encoded.at(n)).cpu() for z, n in one_by_one]

    def encode_images(
        self,
        images: Tensor,
        precision: str = "no",
        detailed: Tensor | None = None,
        wind_px: float | None = None,
    ) -> EncodedImages:
        """Encode images as `__call__` takes them, once for all their samples."""
        images = images.to(self.unet.device, self.unet.dtype)
        given_px = DEFAULT_WIND_PX if wind_px is None else wind_px
        given = images.new_full((len(images),), given_px, dtype=torch.float32)
        with autocast(images.device, precision):
            if self.placement is None:
                wind = given if self.unet.config.wind else None
                condition = self.unet.encode_image(images, wind_px=wind)
                return EncodedImages(condition, self.unet.expected_displacement(images), wind, None, None, {}, [])
            detailed = self._detailed(images, detailed)
            features = self.placement.features(detailed, self.unet.image_encoder.backbone_features, self.segmentation)
            placement = self.placement.predict(features)
            wind = suggested_wind(placement) if wind_px is None else given
            reads_placement = self.unet.config.placement_channels > 0
            maps = self.placement.condition_maps(features, placement, images) if reads_placement else None
            condition = self.unet.encode_image(images, maps=maps, wind_px=wind)
            fine = fine_class_probabilities(self.segmentation, detailed)
            placement = placement._replace(**movement_of_classes(fine))
            expected_px = placed_displacement(placement, images, wind)
            by_image = zip(detailed, placement.by_class, strict=True)
            lines = [stiff_lines(image, DETAIL, by_class) for image, by_class in by_image]
            flickers, stems = flickering(placement, images), bare_stems(placement, images)
        parts = coherent_parts(features, tuple(images.shape[-2:]))
        return EncodedImages(condition, expected_px, wind, flickers, stems, parts, lines)

    def _detailed(self, images: Tensor, detailed: Tensor | None) -> Tensor:
        """Return what the placement head reads: `detailed` images, or enlarged ones."""
        size = tuple(DETAIL * side for side in images.shape[-2:])
        if detailed is None:
            return resize_maps(images, size)
        if detailed.shape != (len(images), 3, *size):
            raise ValueError(f"detailed: expected {(len(images), 3, *size)}, got {tuple(detailed.shape)}")
        return detailed.to(images)

    def predict(
        self, image: Tensor, *, seed: int = 0, loop: LoopGuidance | None = None, area: int = MOTION_AREA_PX,
        **options: Any,
    ) -> Motion:  # fmt: skip
        """Predict one motion for an image of any size, (3, H, W) in [0, 1], on its motion grid of about `area` px.

        Motion that would tear the image is scaled down (`motion.strength`); "amplitude_limit_scale" in the meta is the
        factor, "wind_px" the wind that was given, or null. With `loop` the motion has no drift and closes exactly after
        that part of the period; "loop" in the meta holds the method and the closure error before (px). `options`: of
        `__call__`.
        """
        height, width = image.shape[-2:]
        grid = motion_grid_size(height, width, area=area)
        if loop is not None and not loop.is_needed:
            logger.info("the loop is a whole number of periods, which any motion without drift closes: not guided")
            loop = None
        detailed = resize_maps(image, tuple(DETAIL * side for side in grid))[None]
        spectrum = self(resize_maps(image, grid)[None], detailed=detailed, seed=seed, loop=loop, **options)[0, 0]
        sampler = options.get("sampler", DEFAULT_SAMPLER)
        meta = {
            "seed": seed,
            "sampler": sampler,
            "steps": options.get("steps") or DEFAULT_STEPS[sampler],
            "guidance": options.get("guidance", DEFAULT_GUIDANCE),
            "wind_px": options.get("wind_px"),
            "drift": loop is None,
            "picture": thumbnail(image),
        }
        if not bool(torch.isfinite(spectrum).all()):
            raise CheckpointError("precision: the predicted motion is not finite; right: other weights or precision")
        if loop is not None:
            spectrum, meta["loop"] = self._close(spectrum, loop)
        meta["amplitude_limit_scale"] = scale = amplitude_limit_scale(spectrum)
        num_frames = round(self.unet.config.period_s * FPS)
        return Motion(spectrum * scale, None, num_frames, FPS, (height, width), meta)

    def _close(self, spectrum: Tensor, loop: LoopGuidance) -> tuple[Tensor, dict[str, Any]]:
        """Close a guided motion exactly; return it and its record for the motion file."""
        sampled = without_drift(spectrum)
        spectrum = closed(sampled, loop.phase)
        before, after = (float(loop_closure_error(x, loop.phase)) for x in (sampled, spectrum))
        kept = float(mean_displacement(spectrum).mean() / mean_displacement(sampled).mean().clamp(min=1e-12))
        logger.info(
            "loop of %.2f s (%s): closure error %.3f px as sampled, %.4f px closed; keeps %.0f %% of the mean motion",
            *(loop.phase * self.unet.config.period_s, loop.method, before, after, 100 * kept),
        )
        record = {"phase": loop.phase, "method": loop.method}
        record |= {"loop_closure_error_px": before, "closed_loop_closure_error_px": after}
        record |= {"weight": loop.weight} if loop.method == "gradient" else {}
        return spectrum, record | ({"recurrences": loop.recurrences} if loop.guides_sampling else {})


def check_components(vae: MotionVAE, unet: FrequencyUNet, schedule: SchedulerMixin) -> None:
    """Raise ValueError when a VAE, a U-Net and a noise schedule were not made for each other."""
    pairs = {
        "latent_channels": (vae.latent_channels, unet.config.latent_channels),
        "downsample_factor": (vae.downsample_factor, unet.config.downsample_factor),
        "period_s": (vae.config.period_s, unet.config.period_s),
    }
    for name, (have, want) in pairs.items():
        if have != want:
            raise ValueError(f"the VAE's {name} is {have}, the U-Net's {want}; right: the VAE it was trained with")
    known, wanted = vae.normalisation.num_bins, unet.config.num_bins
    if known < wanted:
        right = "right: the VAE it was trained with"
        raise ValueError(f"the VAE's statistics have K = {known}, the U-Net K = {wanted}; {right}")
    predicts = schedule.config.prediction_type
    if predicts != unet.config.prediction_type:
        raise ValueError(f"the schedule is for {predicts!r}, the U-Net predicts {unet.config.prediction_type!r}")
    levels, trained = schedule.alphas_cumprod.cpu(), unet.alphas_cumprod.cpu()
    if levels.shape != trained.shape or not torch.allclose(levels, trained, atol=1e-5):
        raise ValueError("the schedule's noise levels are not those that the U-Net was trained with")
