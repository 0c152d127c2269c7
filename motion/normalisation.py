"""Frequency-adaptive normalisation of spectra ([GID] section 4.2): one object owns the ranges and scales of motion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motion.spectrum import PERIOD_S, amplitude

PERCENTILE = 95.0
# A bin that never moves in a set (rendered static scenes only) must not divide by zero.
MINIMUM_SCALE_PX = 1e-4
# Histogram of magnitudes: its first cell, and cells for each factor of e
LOWEST_PX, CELLS_PER_E, CELLS = 1e-5, 50, 1024


@dataclass(frozen=True)
class Normalisation:
    """Per-bin scales: x -> sign(x / s_k) sqrt(|x / s_k|), exactly invertible; linear ones: x -> x / s."""

    scale: Tensor  # (K,) s_k, px: 95th percentile of |S_k| over the training split (bin 0: of |D| alone)
    period_s: float = PERIOD_S  # of the series that the scales belong to
    adaptive: bool = True  # with the square root

    def __post_init__(self) -> None:
        scale = torch.as_tensor(self.scale, dtype=torch.float32)
        if scale.ndim != 1 or not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError(f"scale: expected (K,) positive finite numbers, got {scale.tolist()}")
        object.__setattr__(self, "scale", scale)

    @property
    def num_bins(self) -> int:
        return len(self.scale)

    def normalise(self, spectrum: Tensor) -> Tensor:
        """Map a spectrum (..., K, 4, H, W) in px to about [-1, 1]; bin 0's dependent real part becomes 0."""
        x = spectrum / self.scale.to(spectrum).view(-1, 1, 1, 1)
        if self.adaptive:
            x = x.sign() * x.abs().sqrt()
        x[..., 0, 0::2, :, :] = 0
        return x

    def denormalise(self, x: Tensor) -> Tensor:
        """Invert `normalise`: (..., K, 4, H, W) to px, with bin 0's real part set to -sum_k Re S_k."""
        spectrum = (x * x.abs() if self.adaptive else x) * self.scale.to(x).view(-1, 1, 1, 1)
        spectrum[..., 0, 0::2, :, :] = -spectrum[..., 1:, 0::2, :, :].sum(-4)
        return spectrum

    def truncated(self, num_bins: int) -> Normalisation:
        if not 1 <= num_bins <= self.num_bins:
            raise ValueError(f"num_bins: expected 1 to {self.num_bins}, got {num_bins}")
        return Normalisation(self.scale[:num_bins], self.period_s, self.adaptive)

    def linear(self) -> Normalisation:
        """Return one scale for all bins, the largest, without the square root: the ablation of [GID] table 2."""
        return Normalisation(self.scale.max().expand_as(self.scale).clone(), self.period_s, adaptive=False)

    def to_dict(self) -> dict:
        """Return a JSON-ready dictionary."""
        how = {"period_s": self.period_s, "adaptive": self.adaptive, "percentile": PERCENTILE}
        return {"scale_px": self.scale.tolist(), **how}

    @classmethod
    def from_dict(cls, data: dict) -> Normalisation:
        """Read what `to_dict` wrote; ValueError when a key is missing or a scale is not a positive number."""
        missing = {"scale_px", "period_s"} - set(data)
        if missing:
            raise ValueError(f"normalisation: expected the keys scale_px and period_s, missing {sorted(missing)}")
        return cls(torch.tensor(data["scale_px"]), float(data["period_s"]), bool(data.get("adaptive", True)))


class ScaleEstimator:
    """Collects magnitudes of many spectra in a histogram of 2 % wide cells and gives their per-bin 95th percentile."""

    def __init__(self, num_bins: int, period_s: float = PERIOD_S) -> None:
        self.num_bins, self.period_s = num_bins, period_s
        self.counts = torch.zeros(num_bins, CELLS, dtype=torch.float64)

    def add(self, spectrum: Tensor, confidence: Tensor | None = None) -> None:
        """Count the magnitudes of one packed spectrum (K, 4, H, W), px, weighted by confidence (1, H, W) in [0, 1]."""
        size = amplitude(spectrum[: self.num_bins].float()).flatten(1).cpu()  # (K, HW)
        weight = torch.ones_like(size) if confidence is None else confidence.float().cpu().flatten().expand_as(size)
        cell = ((size.clamp(min=LOWEST_PX) / LOWEST_PX).log() * CELLS_PER_E).long().clamp(max=CELLS - 1)
        self.counts.scatter_add_(1, cell, weight.to(torch.float64))

    def finish(self) -> Normalisation:
        """Return the scales; ValueError when nothing was added."""
        if not bool((self.counts.sum(1) > 0).all()):
            raise ValueError("no spectrum with any confidence was added")
        cell = (self.counts.cumsum(1) / self.counts.sum(1, keepdim=True) < PERCENTILE / 100).sum(1)
        scale = LOWEST_PX * torch.exp((cell + 0.5) / CELLS_PER_E)
        return Normalisation(scale.clamp(min=MINIMUM_SCALE_PX).float(), self.period_s)
