"""Training of the motion VAE: slices, losses, validation."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.clips import SampleKey
from data.datasets import MotionDataset
from data.order import evenly
from metrics.perceptual import masked_mean
from models.vae import MotionVAE
from motion.normalisation import Normalisation
from motion.spectrum import amplitude
from training.data_order import sample_noise
from training.losses import multi_scale_gradient

# [GID] appendix: L1 : multi-scale gradient : KL.
GRADIENT_WEIGHT = 0.2
KL_WEIGHT = 1e-6

TRAINING_PRESETS: dict[str, dict] = {
    "tiny": {"steps": 300, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 20, "ema_decay": 0.99},
    "small": {"steps": 4000, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 200, "ema_decay": 0.999},
    "paper": {"steps": 200_000, "batch_size": 16, "learning_rate": 1e-4, "warmup_steps": 1000, "ema_decay": 0.9999},
}


class SliceDataset(Dataset):
    """A few normalised slices of each item, bins and a window drawn anew for each sample.

    dataset[SampleKey] -> {"slices" (N, 4, h, w), "confidence" (1, h, w)}. The window (h, w) keeps the grid's own scale.
    """

    def __init__(
        self, motions: MotionDataset, normalisation: Normalisation, slices_per_item: int, window: tuple[int, int]
    ) -> None:
        self.motions, self.normalisation = motions, normalisation.truncated(motions.num_bins)
        self.slices_per_item, self.window, self.block_size = slices_per_item, window, motions.block_size

    def __len__(self) -> int:
        return len(self.motions)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        sample = self.motions[key]
        generator = torch.Generator().manual_seed(key.seed)
        bins = torch.randperm(self.motions.num_bins, generator=generator)[: self.slices_per_item]
        height, width = self.window
        top, left = (
            int(torch.randint(whole - part + 1, (), generator=generator))
            for whole, part in zip(self.motions.size, self.window, strict=True)
        )
        box = (..., slice(top, top + height), slice(left, left + width))
        spectrum, confidence = sample["spectrum"][box], sample["confidence"][box]
        return {"slices": self.normalisation.normalise(spectrum)[bins], "confidence": confidence}  # (N, 4, h, w)


def vae_loss(model: MotionVAE, batch: dict[str, Tensor], *, latent_shape: Sequence[int]) -> dict[str, Tensor]:
    """Return L1 + 0.2 multi-scale gradient + 1e-6 KL of slices (B, N, 4, H, W), weighted by confidence (B, 1, H, W)."""
    slices = batch["slices"]
    batch_size, per_item = slices.shape[:2]
    noise = sample_noise((batch_size, per_item, *latent_shape), batch["seed"], slices.device).flatten(0, 1)
    slices = slices.flatten(0, 1)  # (B N, 4, H, W)
    mask = batch["confidence"].repeat_interleave(per_item, dim=0)  # (B N, 1, H, W)
    output, divergence = model(slices, noise)
    absolute = masked_mean((output.float() - slices).abs(), mask)
    gradient = multi_scale_gradient(output.float(), slices, mask)
    loss = absolute + GRADIENT_WEIGHT * gradient + KL_WEIGHT * divergence
    return {"loss": loss, "l1": absolute.detach(), "gradient": gradient.detach(), "kl": divergence.detach()}


def _some_spectra(model: MotionVAE, motions: MotionDataset, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield spectra (K, 4, H, W) of at most `limit` items, on the model's device, px and normalised."""
    device, normalisation = next(model.parameters()).device, model.normalisation.truncated(motions.num_bins)
    for item in evenly(len(motions), limit):
        spectrum = motions[SampleKey(item, 0, 0)]["spectrum"].to(device)
        yield spectrum, normalisation.normalise(spectrum)


@torch.no_grad()
def reconstruction_metrics(model: MotionVAE, motions: MotionDataset, limit: int = 32) -> dict[str, float]:
    """Measure the reconstruction of whole spectra of at most `limit` items, evenly spread over the set.

    mae_normalised: mean |x' - x| in normalised units over slices and channels, without bin 0's dependent ones;
    relative_error_bin_KK: sum |S' - S| / sum |S| in px over all pixels and items, of bins in which anything moves.
    """
    normalisation = model.normalisation.truncated(motions.num_bins)
    total, numbers = 0.0, 0
    error, size = torch.zeros(motions.num_bins), torch.zeros(motions.num_bins)
    for spectrum, x in _some_spectra(model, motions, limit):
        output = model.decode(model.encode(x)).float()
        output[0, 0::2] = 0
        total += float((output - x).abs().sum())
        numbers += x.numel() - 2 * x[0, 0].numel()
        error += amplitude(normalisation.denormalise(output) - spectrum).flatten(1).sum(1).cpu()
        size += amplitude(spectrum).flatten(1).sum(1).cpu()
    metrics = {"mae_normalised": total / numbers}
    relative = {f"relative_error_bin_{k:02d}": float(error[k] / size[k]) for k in range(len(size)) if size[k] > 0}
    return metrics | relative


@torch.no_grad()
def latent_scale(model: MotionVAE, motions: MotionDataset, limit: int = 64) -> float:
    """Return the factor that gives latents of the training split unit standard deviation."""
    squares, numbers = 0.0, 0
    for _, x in _some_spectra(model, motions, limit):
        latents = model.encode(x).float() / model.config.scaling_factor
        squares += float(latents.square().sum())
        numbers += latents.numel()
    return (numbers / max(squares, 1e-12)) ** 0.5
