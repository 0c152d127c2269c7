"""How strong a motion is: its wind, and how far it can be strengthened before it tears the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from motion.flow import default_grid_scale, squared_gradient
from motion.spectrum import mean_displacement, spectrum_to_flow
from motion.wind import LEAST_WIND_PX, MOST_WIND_PX

WIND_QUANTILE = 0.95
# Largest change of displacement from pixel to pixel over time, in the median of the pixels that move: towards the limit
# motion saturates. At 0.2 frames look like photographs, at 0.3 petals and blades stretch, above 0.5 things fold.
STRAIN_LIMIT, STRAIN_QUANTILE, STRAIN_PHASES = 0.27, 0.5, 25
# What moves most is not limited below this wind, px: crowns of small leaves have much strain, and tear less.
LEAST_LIMIT_PX = 3.6
# A pixel moves above this fraction of the largest displacement: a flame is a hundredth of its image.
MOVING_FRACTION = 0.1


def wind_of(spectrum: Tensor, confidence: Tensor | None = None) -> float:
    """Measure the wind of a packed spectrum (K, 4, H, W) px where `confidence` (1, H, W) is above a half, else 0."""
    moved_px = mean_displacement(spectrum)[0]  # (H, W)
    if confidence is not None:
        moved_px = moved_px[confidence[0] > 0.5]
    if moved_px.numel() == 0:
        return 0.0
    return float(moved_px.flatten().quantile(WIND_QUANTILE)) * default_grid_scale(*spectrum.shape[-2:])


def wind_position(wind_px: Tensor) -> Tensor:
    """Place winds (B,) px between 0 and 1000 on a logarithmic scale, as time steps are; bounded."""
    low, high = math.log(LEAST_WIND_PX), math.log(MOST_WIND_PX)
    return 1000 * ((wind_px.clamp(LEAST_WIND_PX, MOST_WIND_PX).log() - low) / (high - low))


def _moving(moved_px: Tensor) -> Tensor:
    """Return where an image moves by its mean |F| (H, W), as booleans."""
    return (moved_px >= MOVING_FRACTION * moved_px.max()) & (moved_px > 0)


def strain(spectrum: Tensor, moved_px: Tensor | None = None) -> float:
    """Return the largest |grad F_t| over time of a spectrum (K, 4, H, W), at STRAIN_QUANTILE of what moves; or 0."""
    moved_px = mean_displacement(spectrum)[0] if moved_px is None else moved_px
    flow = spectrum_to_flow(spectrum, torch.arange(1, STRAIN_PHASES + 1) / STRAIN_PHASES)  # (N, 2, H, W)
    largest = squared_gradient(flow).amax(0).sqrt()[_moving(moved_px)[:-1, :-1]]
    return float(largest.quantile(STRAIN_QUANTILE)) if largest.numel() else 0.0


def amplitude_limit_scale(spectrum: Tensor) -> float:
    """Return the factor, at most 1, by which motion is weakened so that it does not tear the image.

    The wind saturates at that of STRAIN_LIMIT, or at LEAST_LIMIT_PX if that is more: what is stronger stays stronger.
    """
    moved_px = mean_displacement(spectrum)[0]  # (H, W)
    found = strain(spectrum, moved_px)
    if found == 0:
        return 1.0
    wind_px = float(moved_px[_moving(moved_px)].quantile(WIND_QUANTILE)) * default_grid_scale(*spectrum.shape[-2:])
    return 1 / (1 + min(found / STRAIN_LIMIT, wind_px / LEAST_LIMIT_PX))
