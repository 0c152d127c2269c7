"""PSNR, SSIM, LPIPS and feature distance of RGB images (N, 3, H, W), clipped to [0, 1] and not rounded."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.image.lpips import _LPIPS

from metrics.perceptual import PerceptualLoss
from models.weights import HUB, WeightsError, hub_weights, load_weights, shapes_of

# Error below which a frame counts as exact: 100 dB instead of infinity, so that means exist.
LEAST_SQUARED_ERROR = 1e-10
_CHUNK = 16  # frames that go through SSIM and the networks together

LpipsNetwork = Literal["alex", "vgg", "squeeze"]
LPIPS_BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


class Lpips(nn.Module):
    """LPIPS over torchvision's ImageNet weights, a file or "hub" for torch.hub's; WeightsError for unusable ones."""

    def __init__(self, network: LpipsNetwork, weights: Path | str) -> None:
        super().__init__()
        self.name = f"lpips_{network}"
        # The public class downloads its backbone; with pnet_rand this one does not.
        self.net = _LPIPS(pretrained=True, net=network, pnet_rand=True)
        # torchmetrics' "slice2.3.weight" or "slices.1.3.weight" is torchvision's "3.weight"
        slots = {key: re.sub(r"^slices?\.?\d+\.", "", key) for key in self.net.net.state_dict()}
        path = hub_weights(LPIPS_BACKBONES[network]) if str(weights) == HUB else Path(weights)
        loaded = load_weights(path, {slots[key]: shape for key, shape in shapes_of(self.net.net).items()})
        if path.suffix == ".npz" and "squeeze1x1" in " ".join(np.load(path).files):  # as SqueezeNet's authors name it
            wanted = f"LPIPS needs torchvision's {LPIPS_BACKBONES[network]}"
            raise WeightsError(f"{path}: was converted from Caffe, whose weights are others; {wanted}")
        self.net.net.load_state_dict({key: loaded[name] for key, name in slots.items()})
        self.requires_grad_(False)
        self.eval()
        self._last: tuple[Tensor, list[Tensor]] | None = None  # target, its features: many renderings have one target

    @torch.no_grad()
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return (N,) distances of images (N, 3, H, W) in [0, 1]."""
        if self._last is None or not torch.equal(self._last[0], target):
            self._last = target, self._features(target)
        pairs = zip(self.net.lins, self._features(pred), self._last[1], strict=True)
        return sum(layer((ours - theirs).square()).mean((1, 2, 3)) for layer, ours, theirs in pairs)

    def _features(self, image: Tensor) -> list[Tensor]:
        """Return the unit-normalised features (N, C_l, H_l, W_l) of images in [0, 1]."""
        layers = self.net.net(self.net.scaling_layer(2 * image - 1))
        return [x / x.square().sum(1, keepdim=True).add(1e-8).sqrt() for x in layers]


def mean_squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Return (N,) float64 mean squared errors of frames, after clipping to [0, 1]; on the CPU for Apple's devices."""
    difference = pred.clamp(0, 1) - target.clamp(0, 1)
    if difference.device.type == "mps":
        difference = difference.cpu()  # no float64 there
    return difference.double().square().flatten(1).mean(1)


def psnr_of_mse(error: Tensor) -> Tensor:
    """Return the PSNR in dB of mean squared errors of images in [0, 1]; at most 100 dB."""
    return -10 * torch.log10(error.clamp_min(LEAST_SQUARED_ERROR))


def frame_metrics(
    pred: Tensor, target: Tensor, *, lpips: Sequence[Lpips] = (), features: PerceptualLoss | None = None
) -> dict[str, Tensor]:
    """Return {metric: (N,) on the CPU} of frames (N, 3, H, W).

    These are "squared_error", "psnr_db" (float64), "ssim" (Gaussian window of 11, deviation 1.5), "lpips_NETWORK" of
    each network given, and with `features` "feature_distance".
    """
    error = mean_squared_error(pred, target)
    pred, target = pred.clamp(0, 1), target.clamp(0, 1)
    ssim = partial(structural_similarity_index_measure, data_range=1.0, reduction="none")
    metrics = {"squared_error": error, "psnr_db": psnr_of_mse(error), "ssim": _chunked(ssim, pred, target)}
    metrics |= {network.name: _chunked(network, pred, target) for network in lpips}
    if features is not None:
        metrics["feature_distance"] = _chunked(features.feature_distance, pred, target)
    return {name: value.detach().cpu() for name, value in metrics.items()}


def pool_frames(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Pool metrics (N,) of frames: "psnr_db" of the mean squared error, "psnr_frames_db" and the others as means."""
    frames = {key: value.double() for key, value in metrics.items()}
    pooled = float(psnr_of_mse(frames.pop("squared_error").mean()))
    means = {key: float(value.mean()) for key, value in frames.items()}
    per_frame = means.pop("psnr_db")
    return {"psnr_db": pooled, **means, "psnr_frames_db": per_frame, "frames": len(frames["ssim"])}


def _chunked(measure: Callable[[Tensor, Tensor], Tensor], pred: Tensor, target: Tensor) -> Tensor:
    pairs = zip(pred.split(_CHUNK), target.split(_CHUNK), strict=True)
    return torch.cat([measure(one, other) for one, other in pairs])
