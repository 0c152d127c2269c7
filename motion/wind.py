"""Wind: how strongly a scene moves, as one number.

It is the 95th percentile over an image of mean |F_t|, in px of a grid of 256 x 160. A still does not show it.
"""

from __future__ import annotations

import math

from torch import Tensor

from motion.flow import default_grid_scale
from motion.spectrum import mean_displacement

QUANTILE = 0.95
# What the words of --wind stand for, px.
WINDS = {"calm": 0.8, "breeze": 1.6, "windy": 3.2, "gusty": 6.4}
LEAST_WIND_PX, MOST_WIND_PX = 0.2, 20.0


def wind_of(spectrum: Tensor, confidence: Tensor | None = None) -> float:
    """Measure the wind of a packed spectrum (K, 4, H, W) px, where `confidence` (1, H, W) is above a half.

    0 where it is nowhere; None counts every pixel.
    """
    moved_px = mean_displacement(spectrum)[0]  # (H, W)
    if confidence is not None:
        moved_px = moved_px[confidence[0] > 0.5]
    if moved_px.numel() == 0:
        return 0.0
    return float(moved_px.flatten().quantile(QUANTILE)) * default_grid_scale(*spectrum.shape[-2:])


def wind_position(wind_px: Tensor) -> Tensor:
    """Place winds (B,) px between 0 and 1000 on a logarithmic scale, as time steps are; bounded."""
    low, high = math.log(LEAST_WIND_PX), math.log(MOST_WIND_PX)
    return 1000 * ((wind_px.clamp(LEAST_WIND_PX, MOST_WIND_PX).log() - low) / (high - low))
