"""Figures that compare pictures: PSNR, SSIM, LPIPS, feature distance; by frame and by sequence.

Pictures are RGB (N, 3, H, W) in [0, 1]; they are clipped to that range and not rounded. Figures are named with their
unit and returned as dicts that serve training and evaluation alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn

from training.losses import PerceptualLoss, load_feature_weights
from training.results import write_results

__all__ = ["Lpips", "SequenceMetrics", "frame_metrics", "image_metrics", "load_lpips", "write_results"]

logger = logging.getLogger(__name__)

# Error below which a frame counts as exact: 100 dB instead of infinity, so that means exist.
LEAST_SQUARED_ERROR = 1e-10
_CHUNK = 16  # frames that go through SSIM and the networks together

LpipsNetwork = Literal["alex", "vgg", "squeeze"]
_BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


class Lpips(nn.Module):
    """LPIPS with torchmetrics' linear heads over a backbone from a torchvision state dict.

    Args:
        network: alex, vgg or squeeze.
        weights: torchvision's ImageNet weights of alexnet, vgg16 or squeezenet1_1 (.pth, .safetensors).
        flag: the flag that named `weights`, for the error.

    Raises:
        UsageError: the file is missing, unreadable or of another network.
    """

    def __init__(self, network: LpipsNetwork, weights: Path | str, *, flag: str = "--lpips-weights") -> None:
        super().__init__()
        from torchmetrics.functional.image.lpips import _LPIPS

        if Path(weights).suffix == ".npz":
            from training.cli import UsageError

            raise UsageError(
                f"{flag} {weights}: LPIPS needs torchvision's {_BACKBONES[network]} as .pth or .safetensors"
            )
        self.name = f"lpips_{network}"
        self.net = _LPIPS(pretrained=True, net=network, pnet_rand=True)  # pnet_rand: the backbone is not downloaded
        backbone = _Flat(self.net.net)
        backbone.load_state_dict(load_feature_weights(weights, backbone.state_dict(), flag))
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return (N,) distances of pictures (N, 3, H, W) in [0, 1]."""
        return self.net(pred, target, normalize=True).flatten()


def load_lpips(network: LpipsNetwork, weights: Path | str | None, *, flag: str = "--lpips-weights") -> Lpips | None:
    """Return Lpips, or None with a line that says why where no weights are named: nothing is downloaded."""
    if weights is None:
        logger.warning(
            "lpips_%s is left out: no weights at hand; give torchvision's ImageNet %s by %s FILE.pth",
            network,
            _BACKBONES[network],
            flag,
        )
        return None
    return Lpips(network, weights, flag=flag)


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Return (N,) float64 mean squared errors of frames, after clipping to [0, 1]; on the CPU for Apple's devices."""
    _check(pred, target)
    difference = pred.clamp(0, 1) - target.clamp(0, 1)
    if difference.device.type == "mps":
        difference = difference.cpu()  # no float64 there
    return difference.double().square().flatten(1).mean(1)


def decibel(error: Tensor) -> Tensor:
    """Return the PSNR in dB of mean squared errors of pictures in [0, 1]; at most 100 dB."""
    return -10 * torch.log10(error.clamp_min(LEAST_SQUARED_ERROR))


def frame_metrics(
    pred: Tensor, target: Tensor, *, lpips: Lpips | None = None, features: PerceptualLoss | None = None
) -> dict[str, Tensor]:
    """Return figures of each frame.

    Args:
        pred, target: (N, 3, H, W).
        lpips: adds "lpips_<network>".
        features: adds "feature_distance".

    Returns:
        "squared_error", "psnr_db" (float64), "ssim" (Gaussian window of 11, deviation 1.5) and what was asked for:
        (N,) each, on the CPU.
    """
    error = squared_error(pred, target)
    pred, target = pred.clamp(0, 1), target.clamp(0, 1)
    figures = {"squared_error": error, "psnr_db": decibel(error), "ssim": _chunked(_ssim, pred, target)}
    if lpips is not None:
        figures[lpips.name] = _chunked(lpips, pred, target)
    if features is not None:
        figures["feature_distance"] = _chunked(features.feature_distance, pred, target)
    return {name: value.detach().cpu() for name, value in figures.items()}


def image_metrics(
    pred: Tensor, target: Tensor, *, lpips: Lpips | None = None, features: PerceptualLoss | None = None
) -> dict[str, float]:
    """Return the means of `frame_metrics` over frames, for validation during training."""
    figures = frame_metrics(pred, target, lpips=lpips, features=features)
    figures.pop("squared_error")
    return {name: float(value.double().mean()) for name, value in figures.items()}


class SequenceMetrics:
    """Figures over sequences, by the protocol of method.md section 6.

    The caller leaves frame 0 out. The squared error is pooled over a sequence before the logarithm, the other figures
    are averaged over its frames; then every sequence counts the same. "psnr_frames_db", the mean over the frames' own
    values, stands beside it.

    Args:
        lpips, features: as in `frame_metrics`; without `lpips` the figure "lpips_alex" is None.
    """

    def __init__(self, *, lpips: Lpips | None = None, features: PerceptualLoss | None = None) -> None:
        self.lpips, self.features = lpips, features
        self.sequences: dict[str, dict[str, float]] = {}
        self._frames: list[dict[str, Tensor]] = []

    def add(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Add frames (N, 3, H, W) of the current sequence; return their own figures."""
        figures = frame_metrics(pred, target, lpips=self.lpips, features=self.features)
        self._frames.append(figures)
        return figures

    def finish(self, name: str) -> dict[str, float]:
        """End the current sequence; return its figures, kept as `sequences[name]`.

        Raises:
            ValueError: no frame was added, or the name was used.
        """
        if not self._frames:
            raise ValueError(f"sequence {name}: expected at least one frame, got none")
        if name in self.sequences:
            raise ValueError(f"sequence {name}: is there already")
        frames = {key: torch.cat([part[key] for part in self._frames]).double() for key in self._frames[0]}
        self._frames = []
        pooled = float(decibel(frames.pop("squared_error").mean()))
        figures = {key: float(value.mean()) for key, value in frames.items()}
        per_frame = figures.pop("psnr_db")
        self.sequences[name] = {
            "psnr_db": pooled,
            **figures,
            "psnr_frames_db": per_frame,
            "frames": len(frames["ssim"]),
        }
        return self.sequences[name]

    def summary(self) -> dict[str, float | None]:
        """Return the means over the sequences, "sequences" and "frames" in all; a flat row for `write_results`."""
        if not self.sequences:
            raise ValueError("expected at least one finished sequence, got none")
        rows = list(self.sequences.values())
        means = {key: fmean(row[key] for row in rows) for key in rows[0] if key != "frames"}
        ordered = {"psnr_db": means.pop("psnr_db"), "ssim": means.pop("ssim")}
        if self.lpips is None:
            ordered["lpips_alex"] = None
        counts = {"sequences": len(rows), "frames": sum(row["frames"] for row in rows)}
        return {**ordered, **means, **counts}


class _Flat:
    """The backbone of torchmetrics' LPIPS under torchvision's layer names: "slice2.3.weight" is "3.weight"."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    @staticmethod
    def _layer(key: str) -> str:
        parts = key.split(".")
        return ".".join(parts[2:] if parts[0] == "slices" else parts[1:])

    def state_dict(self) -> dict[str, Tensor]:
        return {self._layer(key): value for key, value in self.net.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.net.load_state_dict({key: state[self._layer(key)] for key in self.net.state_dict()})


def _ssim(pred: Tensor, target: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(pred, target, data_range=1.0, reduction="none")
    return found.reshape(-1)


def _chunked(measure: Callable[[Tensor, Tensor], Tensor], pred: Tensor, target: Tensor) -> Tensor:
    pairs = zip(pred.split(_CHUNK), target.split(_CHUNK), strict=True)
    return torch.cat([measure(one, other) for one, other in pairs])


def _check(pred: Tensor, target: Tensor) -> None:
    if pred.ndim != 4 or pred.shape[1] != 3 or not len(pred):
        raise ValueError(f"pred: expected (N, 3, H, W) with N > 0, got {tuple(pred.shape)}")
    if pred.shape != target.shape:
        raise ValueError(f"target: expected the shape of pred {tuple(pred.shape)}, got {tuple(target.shape)}")
