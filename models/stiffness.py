"""Straight things stay straight: stems, trunks, rails."""

import math

import numpy as np
import torch
from torch import Tensor

from models.displacement import gaussian_mean
from models.image_edges import straight_lines
from motion.flow import MOVING_PX, default_grid_scale

# Of the longer side; px of a grid of 256 x 160 of the blur before lines are sought.
LEAST_LENGTH, BLUR_PX = 0.05, 0.5
# How far around a line motion follows it: standard deviation of a Gaussian, px of a grid of 256 x 160.
REACH_PX = 2.0
# A line of which less than this fraction is expected to move by MOVING_PX stands still.
LEAST_MOVING = 0.5


def stiff_lines(
    image: Tensor,  # (3, scale H, scale W) in [0, 1]
    scale: float,  # of the image over the motion grid
    by_class: Tensor,  # (1, h, w) log odds that a place can move, see `models.placement.Placement`
) -> np.ndarray:
    """Find what is stiff: upright lines, and all lines amid plants or water, such as rails, roads and shores.

    Others may be a flag's stripes: MOSAIC takes it for sky or buildings. Returns (N, 2, 2) ends (x, y), px of the grid.
    """
    lines = straight_lines(image.float().cpu(), LEAST_LENGTH, BLUR_PX)
    across, down = np.abs(lines[:, 1] - lines[:, 0]).T
    maps = by_class[0].float().cpu().numpy()
    middle = lines.mean(1) * np.divide(maps.shape, image.shape[-2:])[::-1]
    x, y = np.minimum(middle, np.array(maps.shape[::-1]) - 1).astype(int).T
    return (lines[(down > across) | (maps[y, x] > 0)] + 0.5) / scale - 0.5


def straighten(
    spectrum: Tensor,  # (K, 4, H, W) px
    expected_px: Tensor,  # (1, H, W) mean displacement, px
    lines: np.ndarray,  # (N, 2, 2) ends (x, y), px of the grid
) -> Tensor:
    """Let lines move, turn and stretch, but not bend: motion along each is replaced by its linear fit.

    Ours. Motion nearby follows, ever less with the distance. A line of which most is expected to be still, is still.
    """
    height, width = spectrum.shape[-2:]
    per_px = default_grid_scale(height, width)
    flat, moves = spectrum.flatten(0, 1).flatten(1), (expected_px.flatten() * per_px) > MOVING_PX  # (4 K, H W), (H W,)
    difference, count = torch.zeros_like(flat), flat.new_zeros(height * width)
    for start, end in torch.from_numpy(lines).to(spectrum):
        number = 2 * math.ceil(float((end - start).norm())) + 1
        along = torch.linspace(-1, 1, number, device=spectrum.device)
        x, y = ((start + end)[:, None] / 2 + (end - start)[:, None] / 2 * along).round().long()
        places = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)  # (n,)
        if not bool(moves[places].any()):
            continue
        values = flat[:, places]
        fit = values.mean(1, keepdim=True) + (values @ along)[:, None] / along.square().sum() * along  # (4 K, n)
        difference.index_add_(1, places, fit * (moves[places].float().mean() >= LEAST_MOVING) - values)
        count.index_add_(0, places, torch.ones_like(along))
    on_line = (count > 0).to(flat).view(1, height, width)
    difference = (difference / count.clamp(min=1)).view(-1, height, width)
    sigma_px = REACH_PX / per_px
    near = gaussian_mean(on_line, sigma_px)
    spread = gaussian_mean(difference, sigma_px) / near.clamp(min=1e-6)
    # Beside one line `near` is this times the Gaussian of the distance.
    weight = (near / (math.sqrt(2 * math.pi) * sigma_px)).clamp(max=1)
    return spectrum + (spread * weight).view_as(spectrum)
