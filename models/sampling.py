"""Sampling latents: the noise schedule's samplers, the start noise of each sample, and the loop over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor

from models.checkpoints import CheckpointError, one_line, read_config
from models.choices import DEFAULT_SAMPLER, DEFAULT_STEPS, SAMPLERS
from models.device import autocast
from models.displacement import gaussian_mean
from models.self_guidance import LoopGuidance
from models.unet import PREDICTION_TYPES, FrequencyUNet
from models.vae import MotionVAE

# Standard deviation of the Gaussian over which correlated start noise is shared, latents.
CORRELATION_CELLS = 3.0


def load_schedule(folder: str | Path) -> DDPMScheduler:
    """Load the noise schedule of a folder and try every sampler on it; CheckpointError when it cannot be used."""
    path = Path(folder) / "scheduler_config.json"
    config = read_config(path)
    try:
        schedule = DDPMScheduler.from_config(config)
        predicts, alphas_cumprod = schedule.config.prediction_type, schedule.alphas_cumprod
        if predicts not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {predicts!r}; right: {' or '.join(PREDICTION_TYPES)}")
        if not bool(((alphas_cumprod >= 0) & (alphas_cumprod <= 1)).all()):
            raise ValueError("its noise levels leave 0 to 1; right: the betas that training wrote")
        for name in SAMPLERS:
            make_sampler(schedule, name).set_timesteps(2)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: no noise schedule ({one_line(error)})") from error
    return schedule


def make_sampler(schedule: SchedulerMixin, name: str) -> SchedulerMixin:
    """Build a sampler over the noise schedule a model was trained with.

    "dpm" is DPM-Solver++ of second order, "ddim" the deterministic DDIM of [GID], "unipc" UniPC.
    """
    # A schedule that was never saved lacks the spacing, and diffusers' samplers differ in their defaults.
    options = {"timestep_spacing": schedule.config.timestep_spacing}
    if name == "ddim":
        return DDIMScheduler.from_config(schedule.config, clip_sample=False, **options)
    options["final_sigmas_type"] = "zero"
    if name == "dpm":
        options |= {"algorithm_type": "dpmsolver++", "solver_order": 2}
        return DPMSolverMultistepScheduler.from_config(schedule.config, **options)
    if name == "unipc":
        return UniPCMultistepScheduler.from_config(schedule.config, **options)
    raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {name!r}")


def sample_generator(seed: int, sample: int, *purpose: int) -> torch.Generator:
    """Return the CPU generator of one sample and purpose: the batch and the device do not change its numbers."""
    state = np.random.SeedSequence([seed, sample, *purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def start_noise(shape: tuple[int, ...], seed: int, sample: int, correlated: float = 0.0) -> Tensor:
    """Draw a sample's start noise on the CPU, of unit variance: `shape`, which ends in (h, w).

    `correlated`: fraction of the variance that neighbours share, 0 to 1. Ours: else parts of one leaf that start apart
    stay apart. Ge et al., "Preserve Your Own Correlation", 2023, let the frames of a video share noise.
    """
    noise = torch.randn(shape, generator=sample_generator(seed, sample))
    if correlated == 0:
        return noise
    shared = gaussian_mean(noise, CORRELATION_CELLS) / gaussian_mean(torch.ones_like(noise), CORRELATION_CELLS)
    return (1 - correlated) ** 0.5 * noise + correlated**0.5 * shared / shared.std()


class NoiseLevel:
    """z = alpha z0 + sigma eps at one time step (None: after the last one), and conversions of a prediction.

    The network predicts eps, or the velocity alpha eps - sigma z0.
    """

    def __init__(self, schedule: SchedulerMixin, timestep: Tensor | None) -> None:
        alphas_cumprod = 1.0 if timestep is None else float(schedule.alphas_cumprod[int(timestep)])
        self.alpha, self.sigma = alphas_cumprod**0.5, (1 - alphas_cumprod) ** 0.5
        self.ratio = self.sigma / self.alpha
        self.predicts = schedule.config.prediction_type

    def clean(self, latents: Tensor, prediction: Tensor) -> Tensor:
        """Return z0."""
        if self.predicts == "v_prediction":
            return self.alpha * latents - self.sigma * prediction
        return (latents - self.sigma * prediction) / self.alpha

    def prediction(self, latents: Tensor, clean: Tensor) -> Tensor:
        """Return the prediction for which z0 = clean."""
        if self.predicts == "v_prediction":
            return (self.alpha * latents - clean) / self.sigma
        return self.noise(latents, clean)

    def noise(self, latents: Tensor, clean: Tensor) -> Tensor:
        """Return eps."""
        return (latents - self.alpha * clean) / self.sigma


def add_noise_again(
    latents: Tensor, clean: Tensor, here: NoiseLevel, there: NoiseLevel, generators: Sequence[torch.Generator]
) -> Tensor:
    """Go to the next lower noise level by DDIM and back by fresh noise: a recurrence of a step."""
    lower = there.alpha * clean + there.sigma * here.noise(latents, clean)
    fresh = torch.stack([torch.randn(latents.shape[1:], generator=one) for one in generators]).to(latents)
    ratio = here.alpha / there.alpha
    return ratio * lower + (1 - ratio**2) ** 0.5 * fresh


def predict_guided(
    unet: FrequencyUNet, latents: Tensor, timestep: Tensor, condition: Tensor, guidance: float
) -> Tensor:
    """Return the U-Net's float32 prediction (B, K, C, h, w) with classifier-free guidance, in one batched call.

    eps = (1 + w) eps(z, c) - w eps(z, none), where w is `guidance`; w = 0 makes half a call.
    """
    if guidance == 0:
        return unet(latents, timestep.expand(len(latents)), condition).float()
    latents, conditions = torch.cat([latents, latents]), torch.cat([condition, torch.zeros_like(condition)])
    conditional, unconditional = unet(latents, timestep.expand(len(latents)), conditions).float().chunk(2)
    return (1 + guidance) * conditional - guidance * unconditional


@torch.no_grad()
def denoise(
    unet: FrequencyUNet,
    schedule: SchedulerMixin,
    condition: Tensor,
    noise: Tensor,
    *,
    sampler: str = DEFAULT_SAMPLER,
    steps: int | None = None,  # None takes the sampler's default
    guidance: float = 0.0,  # w of `predict_guided`
    precision: str = "no",  # of the network
    loop: LoopGuidance | None = None,  # guide the motion to a loop; needs `vae`
    vae: MotionVAE | None = None,
    generators: Sequence[torch.Generator] = (),  # one a sample, on the CPU, for the loop's recurrences
) -> Tensor:
    """Turn noise into latents (B, K, C, h, w) of unit scale; the sampler's arithmetic is float32.

    `condition` (B, Cc + K C, h, w) is of `FrequencyUNet.encode_image`, `noise` (B, K, C, h, w) standard normal.
    """
    scheduler = make_sampler(schedule, sampler)
    scheduler.set_timesteps(steps or DEFAULT_STEPS[sampler], device=noise.device)
    latents = noise.float() * scheduler.init_noise_sigma

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        scaled = scheduler.scale_model_input(latents, timestep)
        with autocast(scaled.device, precision):
            return predict_guided(unet, scaled, timestep, condition, guidance)

    for timestep, following in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        prediction = predict(latents, timestep)
        if loop is not None and loop.guides_sampling:
            here, there, last = NoiseLevel(schedule, timestep), NoiseLevel(schedule, following), following is None
            if here.ratio <= loop.highest_noise or last:
                clean = here.clean(latents, prediction)
                for recurrence in range(loop.recurrences):
                    if recurrence > 0:
                        latents = add_noise_again(latents, clean, here, there, generators)
                        clean = here.clean(latents, predict(latents, timestep))
                    clean = loop.guide(vae, clean, here.ratio, last=last, precision=precision)
                prediction = here.prediction(latents, clean)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents
