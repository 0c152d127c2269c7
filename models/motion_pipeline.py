"""A photograph in, its motion out: the trained VAE, U-Net and noise schedule as one saved pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from motion.flow import GRID_MULTIPLE, motion_grid_size, resize_maps
from motion.motion_file import Motion
from motion.spectrum import FPS

from .checkpoints import CheckpointError, load_model, read_json
from .unet import FrequencyUNet
from .vae import MotionVAE

SAMPLERS = ("dpm", "ddim", "unipc")
DEFAULT_SAMPLER = "dpm"
# What a schedule's network may predict. diffusers also knows "sample", which FrequencyUNet is not trained for.
PREDICTION_TYPES = ("epsilon", "v_prediction")
DEFAULT_STEPS = {"dpm": 20, "ddim": 250, "unipc": 20}
# Measured with the first default weights on held-out sources (docs/results.md): doubles their timid motion and places
# it a little better than 0; 2.5 places it worse.
DEFAULT_GUIDANCE = 1.0


def make_sampler(schedule: SchedulerMixin, name: str) -> SchedulerMixin:
    """Build a sampler over the noise schedule a model was trained with.

    "dpm" is DPM-Solver++ of second order, "ddim" the deterministic DDIM of [GID], "unipc" UniPC.
    """
    if name == "dpm":
        return DPMSolverMultistepScheduler.from_config(
            schedule.config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
        )
    if name == "ddim":
        return DDIMScheduler.from_config(schedule.config, clip_sample=False)
    if name == "unipc":
        return UniPCMultistepScheduler.from_config(schedule.config, final_sigmas_type="zero")
    raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {name!r}")


def start_noise(shape: tuple[int, ...], seed: int, sample: int) -> Tensor:
    """Draw a sample's start noise from (seed, sample) alone, on the CPU: the same on any device and batch size."""
    state = np.random.SeedSequence([seed, sample]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state) & (2**63 - 1))
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def denoise(
    unet: FrequencyUNet,
    schedule: SchedulerMixin,
    condition: Tensor,
    noise: Tensor,
    *,
    sampler: str = DEFAULT_SAMPLER,
    steps: int | None = None,
    guidance: float = 0.0,
) -> Tensor:
    """Turn noise into latents: the definition of sampling.

    eps = (1 + w) eps(z, c) - w eps(z, none), both halves in one batched call; w = 0 makes one call without guidance.

    Args:
        unet: the denoiser.
        schedule: the noise schedule it was trained with.
        condition: (B, Cc, h, w) encoded photographs.
        noise: (B, K, C, h, w) standard normal.
        sampler, steps: see `make_sampler`; steps None takes the sampler's default.
        guidance: w, at least 0.

    Returns:
        (B, K, C, h, w) latents of unit scale.
    """
    scheduler = make_sampler(schedule, sampler)
    scheduler.set_timesteps(steps or DEFAULT_STEPS[sampler], device=noise.device)
    latents = noise * scheduler.init_noise_sigma
    if guidance > 0:
        condition = torch.cat([condition, torch.zeros_like(condition)])  # (2B, Cc, h, w)
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(latents, timestep)
        if guidance > 0:
            model_input = torch.cat([model_input, model_input])  # (2B, K, C, h, w)
        prediction = unet(model_input, timestep.expand(len(model_input)), condition)
        if guidance > 0:
            conditional, unconditional = prediction.chunk(2)
            prediction = (1 + guidance) * conditional - guidance * unconditional
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents


class MotionPipeline(DiffusionPipeline):
    """Predict spectral volumes from pictures; saved and loaded as a diffusers folder {vae, unet, scheduler}.

    The statistics of the training set travel in the VAE's config, the number of bins and their frequencies in the
    U-Net's.
    """

    def __init__(self, vae: MotionVAE, unet: FrequencyUNet, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        check_components(vae, unet)

    @classmethod
    def load(cls, folder: str | Path) -> MotionPipeline:
        """Load a checkpoint folder, in float32 on the CPU, with one-line errors.

        Raises:
            CheckpointError: a file is missing or damaged, a config holds what makes no model or noise schedule, or the
                parts do not belong together (another K, f, period or latent).
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such checkpoint folder; right: one that holds vae/, unet/, scheduler/")
        index = read_json(folder / "model_index.json")
        missing = {"vae", "unet", "scheduler"} - set(index)
        if missing:
            raise CheckpointError(f"{folder}/model_index.json: lacks {sorted(missing)}; right: a motion checkpoint")
        schedule = load_schedule(folder / "scheduler")
        vae = load_model(MotionVAE, folder / "vae", component="vae")
        unet = load_model(FrequencyUNet, folder / "unet", component="unet")
        try:
            return cls(vae, unet, schedule)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: {_one_line(error)}") from error

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        *,
        num_samples: int = 1,
        seed: int = 0,
        sampler: str = DEFAULT_SAMPLER,
        steps: int | None = None,
        guidance: float = DEFAULT_GUIDANCE,
        max_batch: int = 8,
    ) -> Tensor:
        """Sample spectra for pictures of one size.

        Args:
            images: (B, 3, H, W) float32 RGB in [0, 1] on the motion grid, sides multiples of 32 px.
            num_samples: M different motions a picture.
            seed: with the sample's number it fixes the start noise, whatever the batch size and device.
            sampler: "dpm", "ddim" or "unipc".
            steps: network calls; None takes the sampler's default (20, 250, 20).
            guidance: w of classifier-free guidance; 0 means none and half the cost.
            max_batch: samples in one batch of the network.

        Returns:
            (B, M, K, 4, H, W) packed spectra, px of the grid, on the CPU.

        Raises:
            ValueError: images of another shape, or a side that is not a multiple of 32.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % GRID_MULTIPLE for side in images.shape[-2:]):
            raise ValueError(f"images: expected (B, 3, H, W) with sides multiples of 32, got {tuple(images.shape)}")
        device, dtype = self.unet.device, self.unet.dtype
        condition = self.unet.encode_image(images.to(device, dtype))  # (B, Cc, h, w)
        shape = (self.unet.config.num_bins, self.vae.latent_channels, *condition.shape[-2:])
        jobs = [(picture, sample) for picture in range(len(images)) for sample in range(num_samples)]
        spectra = []
        for start in range(0, len(jobs), max_batch):
            batch = jobs[start : start + max_batch]
            noise = torch.stack([start_noise(shape, seed, sample) for _, sample in batch]).to(device, dtype)
            pictures = torch.tensor([picture for picture, _ in batch], device=device)
            latents = denoise(
                self.unet,
                self.scheduler,
                condition[pictures],
                noise,
                sampler=sampler,
                steps=steps,
                guidance=guidance,
            )
            # One volume at a time: decoding is the largest use of memory, and gains nothing from a batch.
            spectra += [self.vae.decode_spectrum(z[None]).float().cpu() for z in latents]
        return torch.cat(spectra).unflatten(0, (len(images), num_samples))  # (B, M, K, 4, H, W)

    def predict(self, image: Tensor, *, seed: int = 0, **options) -> Motion:
        """Predict one motion for a picture of any size: (3, H, W) in [0, 1] to a `Motion` on its motion grid."""
        height, width = image.shape[-2:]
        grid = motion_grid_size(height, width)
        spectrum = self(resize_maps(image, grid)[None], seed=seed, **options)[0, 0]
        sampler = options.get("sampler", DEFAULT_SAMPLER)
        meta = {
            "seed": seed,
            "sampler": sampler,
            "steps": options.get("steps") or DEFAULT_STEPS[sampler],
            "guidance": options.get("guidance", DEFAULT_GUIDANCE),
            "drift": True,
        }
        num_frames = round(self.unet.config.period_s * FPS)
        return Motion(spectrum, None, num_frames, FPS, (height, width), meta)


def load_schedule(folder: str | Path) -> DDPMScheduler:
    """Load the noise schedule of a folder with scheduler_config.json and try the samplers that will run over it.

    Raises:
        CheckpointError: the file is missing or malformed, predicts neither noise nor velocity, or no sampler takes it.
    """
    path = Path(folder) / "scheduler_config.json"
    config = read_json(path)
    try:
        schedule = DDPMScheduler.from_config(config)
        predicts, remaining = schedule.config.prediction_type, schedule.alphas_cumprod
        if predicts not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {predicts!r}; right: {' or '.join(PREDICTION_TYPES)}")
        if not bool(((remaining >= 0) & (remaining <= 1)).all()):
            raise ValueError("its noise levels leave 0 to 1; right: the betas that training wrote")
        for name in SAMPLERS:
            make_sampler(schedule, name).set_timesteps(2)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: no noise schedule ({_one_line(error)})") from error
    return schedule


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_components(vae: MotionVAE, unet: FrequencyUNet) -> None:
    """Raise ValueError when a VAE and a U-Net were not made for each other."""
    num_bins = unet.config.num_bins
    if not isinstance(num_bins, int) or num_bins < 1:
        raise ValueError(f"the U-Net's num_bins is {num_bins!r}; right: a whole number above 0")
    pairs = {
        "latent_channels": (vae.latent_channels, unet.config.latent_channels),
        "factor": (vae.factor, unet.config.factor),
        "period_s": (vae.config.period_s, unet.config.period_s),
    }
    for name, (have, want) in pairs.items():
        if have != want:
            raise ValueError(f"the VAE's {name} is {have}, the U-Net's {want}; right: the VAE it was trained with")
    if vae.normalisation.num_bins < unet.config.num_bins:
        raise ValueError(
            f"the VAE's statistics have K = {vae.normalisation.num_bins}, the U-Net K = {unet.config.num_bins}; "
            "right: the VAE it was trained with"
        )
