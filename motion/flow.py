"""Conventions of dense flow: direction, channel order, units, and the only functions that resize it.

Flow is forward, frame 0 to t, float32, px of its own grid; channel 0 is dx (right), 1 dy (down); centres are integers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOTION_AREA_PX = 256 * 160
GRID_MULTIPLE = 32
# A pixel moves when its mean displacement is above this, px on a grid of 256 x 160.
MOVING_PX = 0.25


def magnitude(flow: Tensor) -> Tensor:
    """Return the L2 norm of flow (..., 2, H, W) as (..., 1, H, W), px."""
    return flow.square().sum(-3, keepdim=True).sqrt()


def squared_gradient(flow: Tensor) -> Tensor:
    """Return |grad F|^2 of flow (..., 2, H, W), by differences to the right and lower neighbours: (..., H-1, W-1)."""
    corner = flow[..., :-1, :-1]
    return (flow[..., :-1, 1:] - corner).square().sum(-3) + (flow[..., 1:, :-1] - corner).square().sum(-3)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (..., C, H, W) bilinearly to (H', W'), anti-aliased when they shrink; values stay as they are."""
    height, width = maps.shape[-2:]
    if (height, width) == tuple(size):
        return maps
    shrinks = size[0] < height or size[1] < width
    flat = maps.reshape(-1, 1, height, width)
    # Apple's devices have no anti-aliased interpolation.
    flat = flat.to("cpu" if shrinks and maps.device.type == "mps" else maps.device)
    flat = F.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)
    return flat.to(maps.device).reshape(*maps.shape[:-2], *size)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize flow (..., 2, H, W) to (H', W') and rescale its values to px of the new grid."""
    height, width = flow.shape[-2:]
    scale = flow.new_tensor([size[1] / width, size[0] / height]).view(2, 1, 1)
    return resize_maps(flow, size) * scale


def resize_spectrum(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a packed spectrum (..., K, 4, H, W) like the flow it stands for: the series is linear in it."""
    height, width = spectrum.shape[-2:]
    scale = spectrum.new_tensor([size[1] / width] * 2 + [size[0] / height] * 2).view(4, 1, 1)
    return resize_maps(spectrum, size) * scale


def sample_at(maps: Tensor, flow: Tensor) -> Tensor:
    """Return maps (B, C, H, W) bilinearly sampled where the flow (B, 2, H, W) leads; the border is repeated."""
    height, width = flow.shape[-2:]
    x = flow[:, 0] + torch.arange(width, device=flow.device)  # (B, H, W)
    y = flow[:, 1] + torch.arange(height, device=flow.device)[:, None]
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)


def motion_grid_size(height: int, width: int, *, area: int = MOTION_AREA_PX) -> tuple[int, int]:
    """Choose multiples of GRID_MULTIPLE, about `area` px at an aspect, with the least error of both (log ratios)."""
    aspect, multiple = width / height, GRID_MULTIPLE
    best, best_cost = (multiple, multiple), math.inf
    ideal_rows = math.sqrt(area / aspect) / multiple
    for rows in range(max(1, math.floor(ideal_rows)), math.ceil(ideal_rows) + 2):
        ideal_columns = area / (rows * multiple) / multiple
        for choice in {math.floor(ideal_columns), math.ceil(ideal_columns), round(rows * aspect)}:
            columns = max(1, choice)
            cost = abs(math.log(columns / rows / aspect)) + 0.5 * abs(math.log(rows * columns * multiple**2 / area))
            if cost < best_cost:
                best, best_cost = (rows * multiple, columns * multiple), cost
    return best


def default_grid_scale(height: int, width: int) -> float:
    """Return how many px of a default motion grid one px of a height x width grid is, by their areas."""
    return math.sqrt(MOTION_AREA_PX / (height * width))
