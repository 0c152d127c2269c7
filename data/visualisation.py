"""Images of motion for sheets and logs."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.media import from_bytes, to_bytes
from motion.flow import resize_maps
from motion.spectrum import amplitude, mean_displacement, spectrum_to_flow

TITLE_HEIGHT_PX = 11
_TITLE_CHARACTER_PX = 16 / 3


def magnitude_image(displacement: Tensor, full_px: float = 4.0) -> Tensor:
    """Show mean displacement (1, H, W), px, as a grey image (3, H, W): white is `full_px`, on a square-root scale."""
    return (displacement / full_px).clamp(0, 1).sqrt().expand(3, -1, -1)


def heat_image(displacement: Tensor, full_px: float = 4.0) -> Tensor:
    """Show the same from black (0 px) over red and yellow to white (`full_px`): (3, H, W)."""
    red = 3 * magnitude_image(displacement, full_px)[:1]
    return torch.cat([red, red - 1, red - 2]).clamp(0, 1)


def magnitude_over(image: Tensor, displacement: Tensor, full_px: float = 4.0) -> Tensor:
    """Lay mean displacement (1, H, W), px, as heat over the greyed image (3, H, W)."""
    level = magnitude_image(displacement, full_px)[:1]  # (1, H, W)
    return image.mean(0, keepdim=True) * (1 - level) + heat_image(displacement, full_px) * level


def spectrum_bars(spectrum: Tensor, full_px: float = 4.0) -> Tensor:
    """Draw the mean amplitude of each bin of (K, 4, H, W), px, as a black bar on white, (3, H, W / 2).

    The full height is `full_px`, on a square-root scale.
    """
    height, width = spectrum.shape[-2], spectrum.shape[-1] // 2
    level = (amplitude(spectrum).mean((-2, -1)) / full_px).clamp(0, 1).sqrt()  # (K,)
    bin_of_column = torch.arange(width) * len(level) // width  # (W / 2,)
    from_bottom = torch.arange(height, 0, -1)[:, None]  # (H, 1)
    free = from_bottom > (level * height).round()[bin_of_column]  # (H, W / 2)
    free = free | (torch.diff(bin_of_column, prepend=torch.tensor([-1])) > 0)  # a gap of a column between bars
    return free.float().expand(3, -1, -1)


def most_moving_row(displacement: Tensor) -> int:
    """Return which row of mean displacement (1, H, W) moves most."""
    return int(displacement[0].mean(1).argmax())


def x_t_slice(image: Tensor, spectrum: Tensor, num_frames: int = 150) -> Tensor:
    """Show the row of an image (3, H, W) that moves most over one period, looked up at p - F_t(p), time downwards.

    The spectrum is (K, 4, H, W), px. Its `num_frames` time steps are resized to (3, H, W).
    """
    height, width = image.shape[-2:]
    row = most_moving_row(mean_displacement(spectrum))
    flow = spectrum_to_flow(spectrum[:, :, row : row + 1], torch.arange(num_frames) / num_frames)[:, :, 0]  # (N, 2, W)
    x, y = torch.arange(width) - flow[:, 0], row - flow[:, 1]  # (N, W)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)  # (N, W, 2)
    lines = F.grid_sample(image[None], grid[None], align_corners=True, padding_mode="border")[0]  # (3, N, W)
    return resize_maps(lines, (height, width))


def title_strip(text: str, width: int) -> Tensor:
    """Write as much of a line of text as fits: (3, h, width), dark on white."""
    strip = np.ascontiguousarray(to_bytes(torch.ones(3, TITLE_HEIGHT_PX, width)))  # (h, w, 3)
    text = text[: int(width / _TITLE_CHARACTER_PX)]
    cv2.putText(strip, text, (1, TITLE_HEIGHT_PX - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (0, 0, 0), 1, cv2.LINE_8)
    return from_bytes(strip)
