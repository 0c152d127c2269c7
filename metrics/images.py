"""Figures that compare pictures: PSNR, SSIM, LPIPS, feature distance; by frame and by sequence.

Pictures are RGB (N, 3, H, W) in [0, 1]; they are clipped to that range and not rounded. Figures are named with their
unit and returned as dicts that serve training and evaluation alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn

from data.result_tables import write_results
from metrics.perceptual import PerceptualLoss, load_feature_weights

__all__ = [
    "Lpips", "SequenceMetrics", "frame_metrics", "image_metrics", "load_lpips", "pool_frames", "write_results",
]  # fmt: skip

logger = logging.getLogger(__name__)

# Error below which a frame counts as exact: 100 dB instead of infinity, so that means exist.
LEAST_SQUARED_ERROR = 1e-10
HUB = "hub"  # in place of a file: torchvision's own weights
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
            from cli.parser import UsageError

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


def load_lpips(
    networks: Sequence[LpipsNetwork], weights: Sequence[str | Path] | None, *, flag: str = "--lpips-weights"
) -> tuple[list[Lpips], list[str]]:
    """Return an Lpips for each network, or, where no weights are named, lines that say what is left out and why.

    Args:
        networks: any of alex, vgg, squeeze.
        weights: a file for each, in this order, or "hub": torchvision's own, from torch.hub's cache or downloaded into
            it; a single "hub" serves all. None: nothing is loaded or downloaded.
        flag: the flag that named `weights`.

    Raises:
        UsageError: another number of weights than networks, a network named twice, weights that cannot be used or had.
    """
    from cli.parser import UsageError

    if len(set(networks)) < len(networks):
        raise UsageError(f"--lpips-network {' '.join(networks)}: names a network twice")
    if weights is None:
        missing = ", ".join(f"lpips_{network} ({_BACKBONES[network]})" for network in networks)
        line = (
            f"left out for want of weights: {missing}; right: torchvision's ImageNet weights by {flag} FILE.pth or hub"
        )
        logger.warning(line)
        return [], [line]
    if [str(one) for one in weights] == [HUB]:
        weights = [HUB] * len(networks)
    if len(weights) != len(networks):
        raise UsageError(
            f"{flag}: {len(weights)} for --lpips-network {' '.join(networks)}; right: one for each, or {HUB}"
        )
    files = [hub_weights(n, flag) if str(one) == HUB else one for n, one in zip(networks, weights, strict=True)]
    return [Lpips(network, file, flag=flag) for network, file in zip(networks, files, strict=True)], []


def hub_weights(network: LpipsNetwork, flag: str) -> Path:
    """Return torchvision's ImageNet weights of an LPIPS backbone in torch.hub's cache, downloaded where they are not.

    Raises:
        UsageError: they cannot be fetched.
    """
    from torchvision.models import get_model_weights

    from cli.parser import UsageError

    url = get_model_weights(_BACKBONES[network]).IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    logger.info("downloading torchvision's %s from %s to %s", _BACKBONES[network], url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the name ends in the first digits of the file's hash
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UsageError(f"{flag} {HUB}: {url} cannot be had ({reason}); right: that file as {flag} FILE") from error
    return path


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
    pred: Tensor, target: Tensor, *, lpips: Sequence[Lpips] = (), features: PerceptualLoss | None = None
) -> dict[str, Tensor]:
    """Return figures of each frame.

    Args:
        pred, target: (N, 3, H, W).
        lpips: each adds "lpips_<network>".
        features: adds "feature_distance".

    Returns:
        "squared_error", "psnr_db" (float64), "ssim" (Gaussian window of 11, deviation 1.5) and what was asked for:
        (N,) each, on the CPU.
    """
    error = squared_error(pred, target)
    pred, target = pred.clamp(0, 1), target.clamp(0, 1)
    figures = {"squared_error": error, "psnr_db": decibel(error), "ssim": _chunked(_ssim, pred, target)}
    for one in lpips:
        figures[one.name] = _chunked(one, pred, target)
    if features is not None:
        figures["feature_distance"] = _chunked(features.feature_distance, pred, target)
    return {name: value.detach().cpu() for name, value in figures.items()}


def image_metrics(
    pred: Tensor, target: Tensor, *, lpips: Sequence[Lpips] = (), features: PerceptualLoss | None = None
) -> dict[str, float]:
    """Return the means of `frame_metrics` over frames, for validation during training."""
    figures = frame_metrics(pred, target, lpips=lpips, features=features)
    figures.pop("squared_error")
    return {name: float(value.double().mean()) for name, value in figures.items()}


def pool_frames(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Pool the figures (N,) of frames, those of `frame_metrics`, into one of the sequence that they are.

    Returns:
        "psnr_db" of the squared error averaged before the logarithm; the other figures averaged over the frames;
        "psnr_frames_db", the mean of the frames' own PSNR; "frames", N.
    """
    frames = {key: value.double() for key, value in figures.items()}
    pooled = float(decibel(frames.pop("squared_error").mean()))
    means = {key: float(value.mean()) for key, value in frames.items()}
    per_frame = means.pop("psnr_db")
    return {"psnr_db": pooled, **means, "psnr_frames_db": per_frame, "frames": len(frames["ssim"])}


class SequenceMetrics:
    """Figures over sequences, by the protocol of method.md section 6.

    The caller leaves frame 0 out. The squared error is pooled over a sequence before the logarithm, the other figures
    are averaged over its frames; then every sequence counts the same. "psnr_frames_db", the mean over the frames' own
    values, stands beside it.

    Args:
        lpips, features: as in `frame_metrics`.
    """

    def __init__(self, *, lpips: Sequence[Lpips] = (), features: PerceptualLoss | None = None) -> None:
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
        self.sequences[name] = pool_frames({k: torch.cat([part[k] for part in self._frames]) for k in self._frames[0]})
        self._frames = []
        return self.sequences[name]

    def summary(self) -> dict[str, float]:
        """Return the means over the sequences, "sequences" and "frames" in all; a flat row for `write_results`."""
        if not self.sequences:
            raise ValueError("expected at least one finished sequence, got none")
        rows = list(self.sequences.values())
        means = {key: fmean(row[key] for row in rows) for key in rows[0] if key != "frames"}
        ordered = {"psnr_db": means.pop("psnr_db"), "ssim": means.pop("ssim")}
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
