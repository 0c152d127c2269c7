"""A photograph in, its motion out: the trained VAE, U-Net and noise schedule as one saved pipeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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

from models.checkpoints import CheckpointError, load_model, read_json
from models.displacement import rescale_to_displacement, smooth_spectrum
from models.precision import AUTOCAST_DTYPES, autocast
from models.self_guidance import LoopGuidance
from models.unet import PREDICTION_TYPES, FrequencyUNet
from models.vae import MotionVAE, decode_spectrum
from motion.flow import GRID_MULTIPLE, default_grid_scale, motion_grid_size, resize_maps
from motion.looping import closed, loop_closure_error
from motion.motion_file import Motion, thumbnail
from motion.spectrum import FPS, mean_displacement, without_drift

logger = logging.getLogger(__name__)

SAMPLERS = ("dpm", "ddim", "unipc")
DEFAULT_SAMPLER = "dpm"
DEFAULT_STEPS = {"dpm": 20, "ddim": 250, "unipc": 20}
# Measured with the default weights on held-out clips (docs/results.md): 1 places motion no better than 0 (average
# precision .52 for both), distorts the spectrum more (by a factor of 1.46 instead of 1.33) and takes twice as long.
DEFAULT_GUIDANCE = 0.0
# A predicted motion is brought down to this 95th percentile of its mean |F| over what moves at all (this share of what
# moves most: a flame is a hundredth of its picture), px of a grid of 256 x 160. The default weights learned storms;
# at full strength their samples tear close flowers (docs/results.md).
CALM_PX, MOVING_SHARE = 2.0, 0.1
# Activations of one batch on the CPU, where larger batches are no faster.
CPU_BATCH_MB = 2000.0
# Peak of the U-Net's activations by slices x positions x channels of its first level.
BYTES_A_NUMBER = 60.0


def make_sampler(schedule: SchedulerMixin, name: str) -> SchedulerMixin:
    """Build a sampler over the noise schedule a model was trained with.

    "dpm" is DPM-Solver++ of second order, "ddim" the deterministic DDIM of [GID], "unipc" UniPC.
    """
    # Said, since diffusers gives each sampler a default of its own where a schedule was made without it; one that was
    # saved and loaded has it.
    options = {"timestep_spacing": schedule.config.timestep_spacing}
    if name == "dpm":
        options |= {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
        return DPMSolverMultistepScheduler.from_config(schedule.config, **options)
    if name == "ddim":
        return DDIMScheduler.from_config(schedule.config, clip_sample=False, **options)
    if name == "unipc":
        return UniPCMultistepScheduler.from_config(schedule.config, final_sigmas_type="zero", **options)
    raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {name!r}")


def sample_generator(seed: int, sample: int, *purpose: int) -> torch.Generator:
    """Return the CPU generator of one sample and purpose: nothing else, such as the batch, changes its numbers."""
    state = np.random.SeedSequence([seed, sample, *purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def start_noise(shape: tuple[int, ...], seed: int, sample: int) -> Tensor:
    """Draw a sample's start noise from (seed, sample) alone, on the CPU: the same on any device and batch size."""
    return torch.randn(shape, generator=sample_generator(seed, sample))


class _NoiseLevel:
    """z = alpha z0 + sigma eps at one time step, and what a network's prediction says about z0."""

    def __init__(self, schedule: SchedulerMixin, timestep: Tensor | None) -> None:
        # After the last step nothing is left of the noise.
        remaining = 1.0 if timestep is None else float(schedule.alphas_cumprod[int(timestep)])
        self.alpha, self.sigma = remaining**0.5, (1 - remaining) ** 0.5
        self.predicts = schedule.config.prediction_type

    @property
    def ratio(self) -> float:
        """sigma / alpha."""
        return self.sigma / self.alpha

    def clean(self, latents: Tensor, prediction: Tensor) -> Tensor:
        """Return z0."""
        if self.predicts == "v_prediction":
            return self.alpha * latents - self.sigma * prediction
        if self.predicts == "epsilon":
            return (latents - self.sigma * prediction) / self.alpha
        return prediction

    def prediction(self, latents: Tensor, clean: Tensor) -> Tensor:
        """Return the prediction that says z0 = clean."""
        if self.predicts == "v_prediction":
            return (self.alpha * latents - clean) / self.sigma
        if self.predicts == "epsilon":
            return self.noise(latents, clean)
        return clean

    def noise(self, latents: Tensor, clean: Tensor) -> Tensor:
        """Return eps."""
        return (latents - self.alpha * clean) / self.sigma


def noised_again(
    latents: Tensor, clean: Tensor, here: _NoiseLevel, there: _NoiseLevel, generators: Sequence[torch.Generator]
) -> Tensor:
    """Go from one noise level to the next, lower one by DDIM and back by fresh noise: a recurrence of a step."""
    lower = there.alpha * clean + there.sigma * here.noise(latents, clean)
    shape = latents.shape[1:]
    fresh = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(latents)
    share = here.alpha / there.alpha
    return share * lower + (1 - share**2) ** 0.5 * fresh


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
    precision: str = "no",
    loop: LoopGuidance | None = None,
    vae: MotionVAE | None = None,
    generators: Sequence[torch.Generator] = (),
) -> Tensor:
    """Turn noise into latents: the definition of sampling.

    eps = (1 + w) eps(z, c) - w eps(z, none), both halves in one batched call; w = 0 makes one call without guidance.
    The latents and the sampler's arithmetic are float32 whatever the network computes in.

    Args:
        unet: the denoiser.
        schedule: the noise schedule it was trained with.
        condition: (B, Cc + K C, h, w) encoded photographs, see `FrequencyUNet.encode_image`.
        noise: (B, K, C, h, w) standard normal.
        sampler, steps: see `make_sampler`; steps None takes the sampler's default.
        guidance: w, at least 0.
        precision: "no", or "bf16" or "fp16" for the networks' convolutions and attention (autocast).
        loop: pull the motion toward a loop (see `LoopGuidance`); needs `vae`, with recurrences also `generators`.
        vae: the decoder that shows the latents' motion.
        generators: one on the CPU for each sample.

    Returns:
        (B, K, C, h, w) float32 latents of unit scale.
    """
    scheduler = make_sampler(schedule, sampler)
    scheduler.set_timesteps(steps or DEFAULT_STEPS[sampler], device=noise.device)
    latents = noise.float() * scheduler.init_noise_sigma
    if guidance > 0:
        condition = torch.cat([condition, torch.zeros_like(condition)])  # (2B, Cc + K C, h, w)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        model_input = scheduler.scale_model_input(latents, timestep)
        if guidance > 0:
            model_input = torch.cat([model_input, model_input])  # (2B, K, C, h, w)
        with autocast(model_input.device, precision):
            prediction = unet(model_input, timestep.expand(len(model_input)), condition)
        prediction = prediction.float()
        if guidance > 0:
            conditional, unconditional = prediction.chunk(2)
            prediction = (1 + guidance) * conditional - guidance * unconditional
        return prediction  # (B, K, C, h, w)

    for number, timestep in enumerate(scheduler.timesteps):
        prediction = predict(latents, timestep)
        if loop is not None and loop.pulls:
            after = scheduler.timesteps[number + 1] if number + 1 < len(scheduler.timesteps) else None
            here, there = _NoiseLevel(schedule, timestep), _NoiseLevel(schedule, after)
            if here.ratio <= loop.highest_noise or after is None:
                clean = loop.pull(
                    vae, here.clean(latents, prediction), here.ratio, last=after is None, precision=precision
                )
                for _ in range(loop.recurrences - 1):
                    latents = noised_again(latents, clean, here, there, generators)
                    clean = here.clean(latents, predict(latents, timestep))
                    clean = loop.pull(vae, clean, here.ratio, last=after is None, precision=precision)
                prediction = here.prediction(latents, clean)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents


def finished(
    vae: MotionVAE,
    unet: FrequencyUNet,
    latents: Tensor,
    condition: Tensor,
    expected_px: Tensor | None,
    precision: str = "no",
) -> Tensor:
    """Turn sampled latents (B, K, C, h, w) into spectra (B, K, 4, H, W), px, that move as far as is expected.

    Args:
        vae: the decoder.
        unet: which drew the latents.
        latents, condition: as `denoise` returns and takes them.
        expected_px: `FrequencyUNet.expected_displacement` of the pictures.
        precision: of the decoder, as in `denoise`.
    """
    spectrum = decode_spectrum(vae, unet.with_expected_power(latents, condition), precision)
    return (
        spectrum
        if expected_px is None
        else rescale_to_displacement(smooth_spectrum(spectrum, expected_px), expected_px)
    )


def choose_max_batch(unet: FrequencyUNet, size: tuple[int, int], *, guided: bool, budget_mb: float) -> int:
    """Return how many samples the U-Net takes at once within a budget, at least 1.

    Its memory grows with slices x latent positions x width, twice with guidance. `BYTES_A_NUMBER` was measured.

    Args:
        unet: the denoiser.
        size: (h, w) of the latents.
        guided: two calls a sample.
        budget_mb: for activations, MB.
    """
    slices = unet.config.num_bins if unet.config.mode != "volume" else 1
    numbers = slices * size[0] * size[1] * unet.config.block_channels[0] * (2 if guided else 1)
    return max(1, int(budget_mb * 1e6 / (BYTES_A_NUMBER * numbers)))


def batch_budget_mb(device: torch.device) -> float:
    """Return what one batch may take: half of what is free on a GPU, 2 GB elsewhere."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2e6
    return CPU_BATCH_MB


class MotionPipeline(DiffusionPipeline):
    """Predict spectral volumes from pictures; saved and loaded as a diffusers folder {vae, unet, scheduler}.

    The statistics of the training set travel in the VAE's config, the number of bins and their frequencies in the
    U-Net's.
    """

    def __init__(self, vae: MotionVAE, unet: FrequencyUNet, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        check_components(vae, unet, scheduler)

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
        max_batch: int | None = None,
        precision: str = "no",
        loop: LoopGuidance | None = None,
    ) -> Tensor:
        """Sample spectra for pictures of one size.

        Args:
            images: (B, 3, H, W) float32 RGB in [0, 1] on the motion grid, sides multiples of 32 px.
            num_samples: M different motions a picture.
            seed: with the sample's number it fixes the start noise, whatever the batch size and device.
            sampler: "dpm", "ddim" or "unipc".
            steps: network calls; None takes the sampler's default (20, 250, 20).
            guidance: w of classifier-free guidance; 0 means none and half the cost.
            max_batch: samples in one batch of the network; None takes what 2 GB hold, on a GPU half of its free memory.
            precision: "no", or "bf16" or "fp16" for all networks (autocast); sampler and displacements stay float32.
            loop: pull the motion toward a loop; drift, and what the pull leaves, are still in the result
                (`without_drift` and `motion.looping.closed` take them away).

        Returns:
            (B, M, K, 4, H, W) packed spectra, px of the grid, on the CPU.

        Raises:
            ValueError: images of another shape, or a side that is not a multiple of 32; an unknown precision.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % GRID_MULTIPLE for side in images.shape[-2:]):
            raise ValueError(f"images: expected (B, 3, H, W) with sides multiples of 32, got {tuple(images.shape)}")
        if precision not in AUTOCAST_DTYPES:
            raise ValueError(f"precision: expected one of {', '.join(AUTOCAST_DTYPES)}, got {precision!r}")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch: expected at least 1, got {max_batch}")
        device = self.unet.device
        if max_batch is None:
            size = (images.shape[-2] // self.vae.factor, images.shape[-1] // self.vae.factor)
            budget_mb = batch_budget_mb(device)
            max_batch = choose_max_batch(self.unet, size, guided=guidance > 0, budget_mb=budget_mb)
        jobs = [(picture, sample) for picture in range(len(images)) for sample in range(num_samples)]
        spectra = []
        for start in range(0, len(jobs), max_batch):
            batch = jobs[start : start + max_batch]
            pictures = sorted({picture for picture, _ in batch})
            condition, expected_px = self.read_images(images[pictures], precision)
            places = torch.tensor([pictures.index(picture) for picture, _ in batch], device=device)
            shape = (self.unet.config.num_bins, self.vae.latent_channels, *condition.shape[-2:])
            latents = denoise(
                self.unet,
                self.scheduler,
                condition[places],
                torch.stack([start_noise(shape, seed, sample) for _, sample in batch]).to(device),
                sampler=sampler,
                steps=steps,
                guidance=guidance,
                precision=precision,
                loop=loop,
                vae=self.vae,
                generators=[sample_generator(seed, sample, 1) for _, sample in batch],
            )
            # One volume at a time: decoding is the largest use of memory, and gains nothing from a batch.
            for z, place in zip(latents, places, strict=True):
                moved = None if expected_px is None else expected_px[place][None]
                spectra.append(self.finish(z[None], condition[place][None], moved, precision).cpu())
        return torch.cat(spectra).unflatten(0, (len(images), num_samples))  # (B, M, K, 4, H, W)

    def read_images(self, images: Tensor, precision: str = "no") -> tuple[Tensor, Tensor | None]:
        """Read pictures (B, 3, H, W) in [0, 1], once for all their samples.

        Returns:
            the U-Net's float32 condition (B, Cc + K C, h, w), and how far their pixels move, (B, 1, H, W) px; None
            where the U-Net has no `DisplacementHead`.
        """
        images = images.to(self.unet.device, self.unet.dtype)
        with autocast(images.device, precision):
            return self.unet.encode_image(images), self.unet.expected_displacement(images)

    def finish(self, latents: Tensor, condition: Tensor, expected_px: Tensor | None, precision: str = "no") -> Tensor:
        """Return what `finished` does, by this pipeline's VAE and U-Net."""
        return finished(self.vae, self.unet, latents, condition, expected_px, precision)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode float32 latents (B, K, C, h, w) to px in float32, also where the VAE's weights are cast."""
        return decode_spectrum(self.vae, latents)

    def predict(self, image: Tensor, *, seed: int = 0, loop: LoopGuidance | None = None, **options) -> Motion:
        """Predict one motion for a picture of any size: (3, H, W) in [0, 1] to a `Motion` on its motion grid.

        What moves more than a breeze is calmed (`CALM_PX`): "calmed" in the meta says by which factor.

        With `loop` the motion has no drift and closes exactly after that part of the period; "loop" in its meta says
        how, and how far from closing it was before (`loop_closure_error`, px).
        """
        height, width = image.shape[-2:]
        grid = motion_grid_size(height, width)
        if loop is not None and not loop.is_needed:
            logger.info("the loop is a whole number of periods, which any motion without drift closes: not guided")
            loop = None
        spectrum = self(resize_maps(image, grid)[None], seed=seed, loop=loop, **options)[0, 0]
        sampler = options.get("sampler", DEFAULT_SAMPLER)
        meta = {
            "seed": seed,
            "sampler": sampler,
            "steps": options.get("steps") or DEFAULT_STEPS[sampler],
            "guidance": options.get("guidance", DEFAULT_GUIDANCE),
            "drift": loop is None,
            "picture": thumbnail(image),
        }
        if not bool(torch.isfinite(spectrum).all()):
            raise CheckpointError("the predicted motion is not finite; right: other weights, or another --precision")
        if loop is not None:
            spectrum, meta["loop"] = self._close(spectrum, loop)
        moved = mean_displacement(spectrum)
        strongest = float(moved[moved >= MOVING_SHARE * moved.max()].quantile(0.95))
        meta["calmed"] = min(1.0, CALM_PX / (default_grid_scale(*grid) * max(strongest, 1e-12)))
        spectrum = spectrum * meta["calmed"]
        num_frames = round(self.unet.config.period_s * FPS)
        return Motion(spectrum, None, num_frames, FPS, (height, width), meta)

    def _close(self, spectrum: Tensor, loop: LoopGuidance) -> tuple[Tensor, dict]:
        """Close a guided motion exactly; return it and what the motion file says about it."""
        found = without_drift(spectrum)
        spectrum = closed(found, loop.phase, num_frames=loop.num_frames)
        before, after = (
            float(loop_closure_error(motion, loop.phase, num_frames=loop.num_frames)) for motion in (found, spectrum)
        )
        change = float(mean_displacement(spectrum).mean() / mean_displacement(found).mean().clamp(min=1e-12))
        logger.info(
            "loop of %.2f s (%s): closure error %.3f px as sampled, %.4f px closed; keeps %.0f %% of the mean motion",
            loop.phase * self.unet.config.period_s,
            loop.method,
            before,
            after,
            100 * change,
        )
        record = {
            "phase": loop.phase,
            "method": loop.method,
            "loop_closure_error_px": before,
            "closed_loop_closure_error_px": after,
        }
        if loop.method == "gradient":
            record["weight"] = loop.weight
        if loop.pulls:
            record["recurrences"] = loop.recurrences
        return spectrum, record


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


def check_components(vae: MotionVAE, unet: FrequencyUNet, schedule: SchedulerMixin) -> None:
    """Raise ValueError when a VAE, a U-Net and a noise schedule were not made for each other."""
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
    predicts = schedule.config.prediction_type
    if predicts != unet.config.prediction_type:
        raise ValueError(f"the schedule is for {predicts!r}, the U-Net predicts {unet.config.prediction_type!r}")
    levels = schedule.alphas_cumprod
    if levels.shape != unet.remaining.shape or not torch.allclose(levels.cpu(), unet.remaining.cpu(), atol=1e-5):
        raise ValueError("the schedule's noise levels are not those that the U-Net was trained with")
