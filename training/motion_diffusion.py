"""Training of the denoiser: the loss, held-out figures, sample sheets."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from torch import Tensor

from data.clips import SampleKey
from data.media import contact_sheet, write_image
from models.motion_pipeline import denoise, start_noise
from models.unet import FrequencyUNet
from models.vae import MotionVAE
from motion.flow import magnitude, resize_maps
from motion.spectrum import mean_displacement, spectrum_to_flow

from .data_order import sample_noise, sample_uniform
from .latents import LatentDataset

CONDITION_DROPOUT = 0.1
# Share of the schedule at which held-out loss is measured.
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)

TRAINING_PRESETS: dict[str, dict] = {
    "tiny": {"steps": 300, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 20, "ema_decay": 0.98},
    "small": {"steps": 20_000, "batch_size": 8, "learning_rate": 4e-4, "warmup_steps": 200, "ema_decay": 0.999},
    "paper": {"steps": 500_000, "batch_size": 16, "learning_rate": 1e-4, "warmup_steps": 2000, "ema_decay": 0.9999},
}


def diffusion_target(schedule: SchedulerMixin, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return what the network learns to predict: the noise, or the velocity sqrt(a) eps - sqrt(1 - a) x."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(clean, noise, timestep)
    return noise


def diffusion_loss(model: torch.nn.Module, batch: dict[str, Tensor], *, schedule: SchedulerMixin) -> dict[str, Tensor]:
    """Return the mean squared error of the prediction at a random noise level, weighted by confidence.

    Args:
        model: called as model(noisy, timestep, image=..., keep=...).
        batch: "image" (B, 3, H, W), "latents" (B, K, C, h, w), "confidence" (B, 1, h, w), "seed" (B,).
        schedule: the noise schedule.
    """
    clean, seeds = batch["latents"], batch["seed"]
    device, count = clean.device, len(clean)
    noise = sample_noise(clean.shape, seeds, device)
    timestep = (sample_uniform((count,), seeds, device) * schedule.config.num_train_timesteps).long()  # (B,)
    keep = (sample_uniform((count,), seeds, device, stream=2) >= CONDITION_DROPOUT).float()  # (B,)
    noisy = schedule.add_noise(clean, noise, timestep)
    target = diffusion_target(schedule, clean, noise, timestep)
    prediction = model(noisy, timestep, image=batch["image"], keep=keep).float()
    return {"loss": _weighted_error(prediction, target, batch["confidence"]).mean()}


def _weighted_error(prediction: Tensor, target: Tensor, confidence: Tensor) -> Tensor:
    """Return each sample's confidence-weighted mean squared error, (B,)."""
    error = (prediction - target).square().mean(dim=(1, 2))  # (B, h, w)
    weight = confidence[:, 0]
    return (error * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1.0)


@torch.no_grad()
def held_out_loss(
    model: FrequencyUNet, dataset: LatentDataset, *, schedule: SchedulerMixin, limit: int = 24
) -> dict[str, float]:
    """Measure the loss on held-out latents per noise level, with the same noise each time; keeps every condition."""
    device = next(model.parameters()).device
    step = max(1, dataset.count // limit)
    totals = {level: [] for level in VALIDATION_LEVELS}
    for item in range(0, dataset.count, step):
        sample = {name: tensor[None].to(device) for name, tensor in dataset[SampleKey(item, 0, 0)].items()}
        condition = model.encode_image(sample["image"])
        for index, level in enumerate(VALIDATION_LEVELS):
            timestep = torch.tensor([round(level * (schedule.config.num_train_timesteps - 1))], device=device)
            noise = sample_noise(sample["latents"].shape, [item], device, stream=10 + index)
            noisy = schedule.add_noise(sample["latents"], noise, timestep)
            target = diffusion_target(schedule, sample["latents"], noise, timestep)
            prediction = model(noisy, timestep, condition).float()
            totals[level].append(float(_weighted_error(prediction, target, sample["confidence"])))
    figures = {f"held_out_level_{level:g}": sum(t) / len(t) for level, t in totals.items()}
    return {"held_out_loss": sum(figures.values()) / len(figures)} | figures


@torch.no_grad()
def write_sample_sheet(
    model: FrequencyUNet,
    step: int,
    folder: Path,
    *,
    vae: MotionVAE,
    schedule: SchedulerMixin,
    dataset: LatentDataset,
    count: int = 6,
    seed: int = 0,
) -> None:
    """Write a PNG, a row a held-out picture: it, then magnitude and x-t slice of two samples and of the truth."""
    device, rows = next(model.parameters()).device, []
    vae = vae.to(device)
    for item in range(0, dataset.count, max(1, dataset.count // count)):
        if len(rows) == count:
            break
        sample = dataset[SampleKey(item, 0, 0)]
        condition = model.encode_image(sample["image"][None].to(device))
        truth = sample["latents"][None].to(device)
        noise = [start_noise(tuple(truth.shape[1:]), seed, n)[None].to(device) for n in range(2)]
        drawn = [denoise(model, schedule, condition, n) for n in noise]
        spectra = [vae.decode_spectrum(z)[0].float().cpu() for z in [*drawn, truth]]
        image = sample["image"]
        pictures = [image]
        for spectrum in spectra:
            pictures += [magnitude_picture(mean_displacement(spectrum)), x_t_slice(image, spectrum)]
        rows.append(pictures)
    write_image(folder / f"samples-{step:07d}.png", contact_sheet(rows))


def magnitude_picture(displacement: Tensor, full_px: float = 4.0) -> Tensor:
    """Show mean displacement (1, H, W), px, as a grey picture (3, H, W): white is `full_px`, on a square-root scale."""
    return (displacement / full_px).clamp(0, 1).sqrt().expand(3, -1, -1)


def x_t_slice(image: Tensor, spectrum: Tensor, num_frames: int = 150) -> Tensor:
    """Show a row of the picture over time, (3, H, W): the row of the largest motion, followed backward along the flow.

    Args:
        image: (3, H, W).
        spectrum: (K, 4, H, W), px of the same grid.
        num_frames: time steps over one period, resized to H rows.
    """
    height, width = image.shape[-2:]
    flow = spectrum_to_flow(spectrum, torch.arange(num_frames) / num_frames)  # (N, 2, H, W)
    row = int(magnitude(flow).mean(0)[0].mean(1).argmax())
    x = torch.arange(width) - flow[:, 0, row]  # (N, W)
    y = row - flow[:, 1, row]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)  # (N, W, 2)
    lines = F.grid_sample(image[None], grid[None], align_corners=True, padding_mode="border")[0]  # (3, N, W)
    return resize_maps(lines, (height, width))
