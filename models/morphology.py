"""Greyscale morphology of maps (B, C, H, W) by squares."""

import torch.nn.functional as F
from torch import Tensor


def dilate(maps: Tensor, radius: int) -> Tensor:
    """Return the largest value within so many px, rows and columns."""
    across = F.max_pool2d(maps, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(across, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


def closing(maps: Tensor, radius: int) -> Tensor:
    """Remove what is darker than its surroundings and narrower than 2 radius + 1 px."""
    return -dilate(-dilate(maps, radius), radius)


def spread(maps: Tensor, radius: int) -> Tensor:
    """Dilate, then average over the same square: the border falls off over 2 radius px."""
    return F.avg_pool2d(dilate(maps, radius), 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
