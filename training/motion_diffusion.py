"""Training of the denoiser: the loss, validation, sample sheets."""

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from data.clips import SampleKey
from data.media import contact_sheet, write_image
from data.order import evenly
from data.visualisation import magnitude_over, spectrum_bars, x_t_slice
from models.motion_pipeline import EncodedImages, decode_and_rescale
from models.sampling import denoise, start_noise
from models.unet import GAUSSIAN_MEDIAN, WIND_OF_LATENTS_PX, FrequencyUNet
from models.vae import MotionVAE
from motion.spectrum import mean_displacement
from training.data_order import sample_noise, sample_uniform
from training.latents import LatentDataset

CONDITION_DROPOUT = 0.1
# Fraction of the features hidden from a training sample: else the encoder memorises few clips (AP 0.46, with it 0.51).
FEATURE_DROPOUT = 0.3
# Of the magnitude's loss beside the denoising loss: enough that the head stays true while the features change.
MAGNITUDE_WEIGHT = 0.2
MIN_SNR_GAMMA = 5.0
WEIGHTINGS = ("none", "min-snr")
# Fractions of the schedule at which the validation loss is measured.
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
SHEET_ROWS = 6

# Samples are drawn on the way: a loss curve does not show what the motion looks like.
TRAINING_PRESETS: dict[str, dict] = {
    "tiny": {"steps": 300, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 20, "ema_decay": 0.98}
    | {"validate_every": 100, "sample_every": 150},
    "small": {"steps": 20_000, "batch_size": 8, "learning_rate": 4e-4, "warmup_steps": 200, "ema_decay": 0.999}
    | {"validate_every": 1000, "sample_every": 1000},
    "paper": {"steps": 500_000, "batch_size": 16, "learning_rate": 1e-4, "warmup_steps": 2000, "ema_decay": 0.9999}
    | {"validate_every": 5000, "sample_every": 5000},
}


def diffusion_target(schedule: SchedulerMixin, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return what the network learns to predict: the noise, or the velocity sqrt(a) eps - sqrt(1 - a) x."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(clean, noise, timestep)
    return noise


def noise_weights(schedule: SchedulerMixin, timestep: Tensor, weighting: str) -> Tensor:
    """Return each sample's weight of the loss, (B,).

    "min-snr" is min(SNR, 5) / SNR for noise and min(SNR, 5) / (SNR + 1) for velocity (Hang et al., "Efficient Diffusion
    Training via Min-SNR Weighting Strategy", 2023, section 3.4). "none", the default, is 1: velocity already weighs
    the clean signal by SNR + 1, and min-SNR would reduce high noise, where place and size of the motion are decided.
    """
    if weighting == "none":
        return torch.ones(len(timestep), device=timestep.device)
    alphas_cumprod = schedule.alphas_cumprod.to(timestep.device)[timestep]  # (B,)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    velocity = schedule.config.prediction_type == "v_prediction"
    return snr.clamp(max=MIN_SNR_GAMMA) / (snr + 1 if velocity else snr)


def feature_dropout_mask(
    features: int, seeds: Tensor, device: torch.device, dropout: float = FEATURE_DROPOUT
) -> Tensor:
    """Return (B, F): 0 for the fraction `dropout` < 1 of features hidden from a sample, else 1 / (1 - dropout)."""
    return (sample_uniform((len(seeds), features), seeds, device, stream=3) >= dropout) / (1 - dropout)


def magnitude_error(log_s: Tensor, latents: Tensor) -> Tensor:
    """Return | 0.6745 s - |z| | (B, K, C, h, w), which is least where s is the median of |z| / 0.6745."""
    return (GAUSSIAN_MEDIAN * log_s.exp() - latents.abs()).abs()


def encoding_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what `FrequencyUNet.encode_image` is given beside the image, for a network that reads it."""
    return {name: batch[name] for name in ("maps", "wind_px") if name in batch}


def diffusion_loss(
    model: torch.nn.Module,
    batch: dict[str, Tensor],
    *,
    schedule: SchedulerMixin,
    num_features: int,
    weighting: str = "none",
    feature_dropout: float = FEATURE_DROPOUT,
) -> dict[str, Tensor]:
    """Return "loss", the sum of "denoising" and 0.2 "magnitude", the mean `magnitude_error`, weighted by confidence.

    "denoising" is the mean squared error of the prediction at a random noise level. batch: "image" (B, 3, H, W),
    "latents" (B, K, C, h, w), "confidence" (B, 1, h, w), "seed" (B,), `encoding_inputs`; num_features: the encoder's.
    """
    clean, seeds = batch["latents"], batch["seed"]
    device, count = clean.device, len(clean)
    noise = sample_noise(clean.shape, seeds, device)
    timestep = (sample_uniform((count,), seeds, device) * schedule.config.num_train_timesteps).long()  # (B,)
    keep = (sample_uniform((count,), seeds, device, stream=2) >= CONDITION_DROPOUT).float()  # (B,)
    noisy = schedule.add_noise(clean, noise, timestep)
    target = diffusion_target(schedule, clean, noise, timestep)
    mask = feature_dropout_mask(num_features, seeds, device, feature_dropout)
    condition = {"image": batch["image"], "feature_dropout_mask": mask, "keep": keep, **encoding_inputs(batch)}
    prediction, log_s = model(noisy, timestep, **condition, return_magnitude=True)
    weights = noise_weights(schedule, timestep, weighting)
    denoising = (_weighted_mean((prediction.float() - target).square(), batch).mean(1) * weights).mean()
    magnitude = _weighted_mean(magnitude_error(log_s.float(), clean), batch).mean()
    loss = denoising + MAGNITUDE_WEIGHT * magnitude
    return {"loss": loss, "denoising": denoising.detach(), "magnitude": magnitude.detach()}


class ImageEncoderStage(torch.nn.Module):
    """The module that stage "image-encoder" trains: images (B, 3, H, W) to log s of their latents (B, K, C, h, w)."""

    def __init__(self, unet: FrequencyUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, image: Tensor, feature_dropout_mask: Tensor | None = None, **encoding: Tensor) -> Tensor:
        return self.unet.split_condition(self.unet.encode_image(image, feature_dropout_mask, **encoding))[1]


def image_encoder_loss(
    model: torch.nn.Module, batch: dict[str, Tensor], *, num_features: int, feature_dropout: float = FEATURE_DROPOUT
) -> dict[str, Tensor]:
    """Return the mean error of the magnitudes of an `ImageEncoderStage`, weighted by confidence."""
    mask = feature_dropout_mask(num_features, batch["seed"], batch["image"].device, feature_dropout)
    log_s = model(batch["image"], mask, **encoding_inputs(batch)).float()
    return {"loss": _weighted_mean(magnitude_error(log_s, batch["latents"]), batch).mean()}


def _weighted_mean(error: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean of (B, K, C, h, w) over channels and pixels, weighted by confidence, also of bins: (B, K)."""
    error, confidence = error.mean(2), batch["confidence"]  # (B, K, h, w)
    mean = (error * confidence).sum((2, 3)) / confidence.sum((2, 3)).clamp(min=1.0)
    return mean * batch["bin_confidence"] if "bin_confidence" in batch else mean


def _validation_samples(dataset: LatentDataset, device: torch.device, limit: int) -> Iterator[tuple[int, dict]]:
    for item in evenly(dataset.count, limit):
        yield item, {name: tensor[None].to(device) for name, tensor in dataset[SampleKey(item, 0, 0)].items()}


@torch.no_grad()
def validation_loss(
    model: FrequencyUNet, dataset: LatentDataset, *, schedule: SchedulerMixin, limit: int = 24
) -> dict[str, float]:
    """Measure the denoising loss on validation latents, with the same noise each time and every condition kept.

    validation_loss is the mean of validation_level_L over fractions L of the schedule; validation_bin_KK the mean over
    levels of one bin; validation_magnitude is as in `diffusion_loss`.
    """
    device = next(model.parameters()).device
    errors, magnitudes = [], []
    for item, sample in _validation_samples(dataset, device, limit):
        condition = model.encode_image(sample["image"], **encoding_inputs(sample))
        _, log_s = model.split_condition(condition)
        magnitudes.append(_weighted_mean(magnitude_error(log_s.float(), sample["latents"]), sample).mean())
        for index, level in enumerate(VALIDATION_LEVELS):
            timestep = torch.tensor([round(level * (schedule.config.num_train_timesteps - 1))], device=device)
            noise = sample_noise(sample["latents"].shape, [item], device, stream=10 + index)
            noisy = schedule.add_noise(sample["latents"], noise, timestep)
            target = diffusion_target(schedule, sample["latents"], noise, timestep)
            prediction = model(noisy, timestep, condition).float()
            errors.append(_weighted_mean((prediction - target).square(), sample)[0])
    table = torch.stack(errors).unflatten(0, (-1, len(VALIDATION_LEVELS))).mean(0)  # (levels, K)
    named = zip(VALIDATION_LEVELS, table, strict=True)
    levels = {f"validation_level_{level:g}": float(row.mean()) for level, row in named}
    bins = {f"validation_bin_{index:02d}": float(column.mean()) for index, column in enumerate(table.T)}
    means = {"validation_loss": float(table.mean()), "validation_magnitude": float(torch.stack(magnitudes).mean())}
    return means | levels | bins


@torch.no_grad()
def validation_magnitude(model: ImageEncoderStage, dataset: LatentDataset, *, limit: int = 64) -> dict[str, float]:
    """Measure validation_magnitude as `validation_loss` does, and validation_even, that of expecting s = 1."""
    device = next(model.parameters()).device
    losses, even = [], []
    for _, sample in _validation_samples(dataset, device, limit):
        log_s = model(sample["image"], **encoding_inputs(sample)).float()
        for values, expected in ((losses, log_s), (even, torch.zeros_like(log_s))):
            values.append(_weighted_mean(magnitude_error(expected, sample["latents"]), sample).mean())
    means = [float(torch.stack(values).mean()) for values in (losses, even)]
    return {"validation_magnitude": means[0], "validation_even": means[1]}


@torch.no_grad()
def write_sample_sheet(
    model: FrequencyUNet, step: int, folder: Path, *, vae: MotionVAE, schedule: SchedulerMixin, dataset: LatentDataset
) -> None:
    """Write a PNG with a row an image: it, then magnitude, spectrum and x-t slice of two samples and of the truth."""
    device, rows = next(model.parameters()).device, []
    vae = vae.to(device)
    for _, sample in _validation_samples(dataset, device, SHEET_ROWS):
        image, truth = sample["image"][0].cpu(), sample["latents"]
        condition, wind_px = model.encode_image(sample["image"], **encoding_inputs(sample)), sample.get("wind_px")
        encoded = EncodedImages(condition, model.expected_displacement(sample["image"]), wind_px, None, None, {}, [])
        shape, shared = tuple(truth.shape[1:]), model.start_correlation
        noise = [start_noise(shape, 0, n, shared)[None].to(device) for n in range(2)]
        drawn = [denoise(model, schedule, condition, n) for n in noise]
        spectra = [decode_and_rescale(vae, model, z, encoded) for z in drawn]
        scale = 1.0 if wind_px is None else float(wind_px) / WIND_OF_LATENTS_PX
        spectra.append(vae.decode_spectrum(truth) * scale)
        cells = [image]
        for spectrum in (spectrum[0].float().cpu() for spectrum in spectra):
            heat = magnitude_over(image, mean_displacement(spectrum))
            cells += [heat, spectrum_bars(spectrum), x_t_slice(image, spectrum)]
        rows.append(cells)
    write_image(folder / f"samples-{step:07d}.png", contact_sheet(rows))
