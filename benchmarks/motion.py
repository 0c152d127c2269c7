"""benchmark.py motion: predicting motion by sampler and steps, beside the frequencies sampled one after the other."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from benchmarks.measuring import MEMORY_NOTE, machine, measure
from models.checkpoints import DEFAULT_CHECKPOINT
from models.motion_pipeline import MotionPipeline, decode_and_rescale
from models.sampling import denoise, start_noise
from models.unet import UNET_PRESETS, FrequencyUNet
from models.vae import VAE_PRESETS, MotionVAE
from motion.spectrum import NUM_BINS


def load_networks(checkpoint: Path | None, preset: str | None, seed: int) -> MotionPipeline:
    """Load a checkpoint folder, or make untrained networks of a preset's size."""
    if preset is None:
        return MotionPipeline.from_pretrained(checkpoint or DEFAULT_CHECKPOINT)
    torch.manual_seed(seed)
    vae = MotionVAE(**VAE_PRESETS[preset], motion_scale_px=[1.0] * NUM_BINS).eval()
    unet = FrequencyUNet(**UNET_PRESETS[preset], downsample_factor=vae.downsample_factor).eval()
    return MotionPipeline(vae, unet, DDPMScheduler(prediction_type="v_prediction", clip_sample=False))


def one_frequency(unet: FrequencyUNet) -> FrequencyUNet:
    """Return the same network, weights and all, for K = 1: what one chain of the sequential scheme runs."""
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    single = FrequencyUNet(**{**config, "num_bins": 1})
    if unet.config.mode != "volume":  # where the first and last layer see all frequencies at once
        # The magnitudes of all frequencies come with the condition; a chain is given its own.
        single.load_state_dict({**unet.state_dict(), **single.magnitude.state_dict(prefix="magnitude.")})
    return single.to(unet.device).eval()


@torch.no_grad()
def predict_sequentially(
    pipeline: MotionPipeline, single: FrequencyUNet, image: Tensor, *, num_samples: int, seed: int,
    precision: str = "no", **options: Any,
) -> Tensor:  # fmt: skip
    """Predict the motions of an image (1, 3, H, W), one frequency after the other: (1, M, K, 4, H, W) px."""
    encoded = pipeline.encode_images(image, precision)
    condition = encoded.condition  # (1, Cc + K C, h, w)
    features, log_s = pipeline.unet.split_condition(condition)
    own = [torch.cat([features, part], dim=1) for part in log_s.unbind(1)]
    shape = (pipeline.unet.config.num_bins, pipeline.vae.latent_channels, *condition.shape[-2:])
    spectra = []
    for sample in range(num_samples):
        noise = start_noise(shape, seed, sample).to(condition.device)  # (K, C, h, w)
        chains = [
            denoise(single, pipeline.scheduler, part, z[None, None], precision=precision, **options)
            for part, z in zip(own, noise, strict=True)
        ]
        latents = torch.cat(chains, dim=1)  # (1, K, C, h, w)
        spectrum = decode_and_rescale(pipeline.vae, pipeline.unet, latents, encoded, precision)
        spectra.append(spectrum.cpu())  # (1, K, 4, H, W)
    return torch.stack(spectra, dim=1)  # (1, M, K, 4, H, W)


def make_table(
    *, checkpoint: Path | None, preset: str | None, grid: tuple[int, int], samplers: Sequence[str],
    steps: Sequence[int], guidance: float, samples: Sequence[int],
    repeats: int, seed: int, device: torch.device, precision: str,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    """Time every sampler, number of steps and number of samples; return rows and notes.

    The sequential scheme runs once for each number of samples, with the first sampler and steps. A step of each sampler
    is a call of the network and little more, so "times_sequential" is given for all rows of as many steps.
    """
    pipeline = load_networks(checkpoint, preset, seed).to(device)
    single = one_frequency(pipeline.unet)
    image = torch.rand(1, 3, *grid, generator=torch.Generator().manual_seed(seed))
    works: dict[str, Callable[[], object]] = {}
    about: dict[str, tuple[int, int, str]] = {}  # steps, samples, and the row of the sequential scheme
    for count in dict.fromkeys(samples):
        baseline = ""
        for sampler, number in product(dict.fromkeys(samplers), dict.fromkeys(steps)):
            options = {"sampler": sampler, "steps": number, "guidance": guidance, "precision": precision}
            options |= {"num_samples": count, "seed": seed}
            name = f"{sampler}, {number} steps" + (f", {count} samples" if count > 1 else "")
            works[f"{name}, batched"] = partial(pipeline, image, max_batch=count, **options)
            if not baseline:
                baseline = f"{name}, sequential (baseline)"
                works[baseline] = partial(predict_sequentially, pipeline, single, image, **options)
                about[baseline] = (number, count, baseline)
            about[f"{name}, batched"] = (number, count, baseline)

    found, rows = measure(works, repeats, device), []
    for name, metrics in found.items():
        (number, count, baseline), taken = about[name], metrics["seconds"]
        slow = found[baseline]["seconds"] if baseline in found and about[baseline][0] == number else None
        row = {"row": name, "seconds": taken, "seconds_a_sample": taken / count, "ms_a_step": 1000 * taken / number}
        row |= {"times_sequential": slow and slow / taken, "peak_memory_mb": metrics["peak_memory_mb"]}
        rows.append(row)
    return rows, [
        f"{machine(device)}; networks: {preset or checkpoint or DEFAULT_CHECKPOINT}; grid {grid[1]} x {grid[0]}, "
        f"guidance {guidance:g}, precision {precision}, seed {seed}; the image is noise",
        f"seconds: from image to spectra, decoding included; median of {repeats} repeats in which all rows take turns",
        "sequential: K chains of batch 1, one after the other, through the same network with K = 1",
        "times_sequential: how many times as fast as the sequential scheme of as many steps",
        MEMORY_NOTE,
    ]
