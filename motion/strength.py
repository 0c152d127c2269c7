"""How strong a motion is: its wind, and how far it can be strengthened before it tears the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from motion.flow import default_grid_scale
from motion.spectrum import mean_displacement, spectrum_to_flow
from motion.wind import LEAST_WIND_PX, MOST_WIND_PX

WIND_QUANTILE = 0.95
# Largest change of displacement from pixel to pixel, over time, at the quantile of the pixels that move: towards the
# limit motion saturates. At 0.4 frames look like photographs, at 0.6 petals and blades stretch, above 1 things fold.
STRAIN_LIMIT, STRAIN_QUANTILE = 0.45, 0.9
# A pixel moves above this fraction of the largest displacement: a flame is a hundredth of its image.
MOVING_FRACTION = 0.1


def wind_of(spectrum: Tensor, confidence: Tensor | None = None) -> float:
    """Measure the wind of a packed spectrum (K, 4, H, W) px, where `confidence` (1, H, W) is above a half.

    0 where it is nowhere; None counts every pixel.
    """
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


def strain(spectrum: Tensor, num_phases: int = 25) -> float:
    """Return the largest |grad F_t| over time of a packed spectrum (K, 4, H, W), at STRAIN_QUANTILE of what moves.

    |grad F| is the root of the squared differences to the right and lower neighbours; 0 where nothing moves.
    """
    flow = spectrum_to_flow(spectrum, torch.arange(1, num_phases + 1) / num_phases)  # (N, 2, H, W)
    right = (flow[..., :-1, 1:] - flow[..., :-1, :-1]).square().sum(1)  # (N, H-1, W-1)
    down = (flow[..., 1:, :-1] - flow[..., :-1, :-1]).square().sum(1)
    moved_px = mean_displacement(spectrum)[0, :-1, :-1]
    moving = (moved_px >= MOVING_FRACTION * moved_px.max()) & (moved_px > 0)
    largest = (right + down).amax(0).sqrt()[moving]
    return float(largest.quantile(STRAIN_QUANTILE)) if largest.numel() else 0.0


def untorn_scale(spectrum: Tensor) -> float:
    """Return the factor, at most 1, by which motion is weakened so that its strain stays below STRAIN_LIMIT.

    A stronger motion stays the stronger one.
    """
    return (1 + (strain(spectrum) / STRAIN_LIMIT) ** 2) ** -0.5
