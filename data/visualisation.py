"""Pictures of motion for sheets and logs."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.media import from_bytes, to_bytes
from motion.flow import magnitude, resize_maps
from motion.spectrum import amplitude, spectrum_to_flow


def magnitude_image(displacement: Tensor, full_px: float = 4.0) -> Tensor:
    """Show mean displacement (1, H, W), px, as a grey picture (3, H, W): white is `full_px`, on a square-root scale."""
    return (displacement / full_px).clamp(0, 1).sqrt().expand(3, -1, -1)


def magnitude_over(image: Tensor, displacement: Tensor, full_px: float = 4.0) -> Tensor:
    """Lay mean displacement (1, H, W), px, as heat over the greyed photograph (3, H, W).

    Nothing at 0 px, over red and yellow to white at `full_px`, on a square-root scale.
    """
    level = (displacement / full_px).clamp(0, 1).sqrt()  # (1, H, W)
    heat = torch.cat([3 * level, 3 * level - 1, 3 * level - 2]).clamp(0, 1)  # (3, H, W)
    return image.mean(0, keepdim=True) * (1 - level) + heat * level


def spectrum_bars(spectrum: Tensor, full_px: float = 4.0) -> Tensor:
    """Draw the mean amplitude of each bin of (K, 4, H, W), px, as a black bar on white, (3, H, W / 2).

    From the left the drift, then rising frequencies. The full height is `full_px`, on a square-root scale.
    """
    height, width = spectrum.shape[-2], spectrum.shape[-1] // 2
    level = (amplitude(spectrum).mean((-2, -1)) / full_px).clamp(0, 1).sqrt()  # (K,)
    bin_of_column = torch.arange(width) * len(level) // width  # (W / 2,)
    from_bottom = torch.arange(height, 0, -1)[:, None]  # (H, 1)
    free = from_bottom > (level * height).round()[bin_of_column]  # (H, W / 2)
    free = free | (torch.diff(bin_of_column, prepend=torch.tensor([-1])) > 0)  # a gap of a column between bars
    return free.float().expand(3, -1, -1)


def x_t_slice(image: Tensor, spectrum: Tensor, num_frames: int = 150) -> Tensor:
    """Show a row of the picture over time, (3, H, W): the row of the largest motion, followed backward along the flow.

    Args:
        image: (3, H, W).
        spectrum: (K, 4, H, W), px of the same grid.
        num_frames: time steps over one period, resized to H rows.
    """
    height, width = image.shape[-2:]
    flow = spectrum_to_flow(spectrum, torch.arange(num_frames) / num_frames)  # (N, 2, H, W)
    row = int(magnitude(flow).mean(0)[0].mean(1).argmax())
    x = torch.arange(width) - flow[:, 0, row]  # (N, W)
    y = row - flow[:, 1, row]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)  # (N, W, 2)
    lines = F.grid_sample(image[None], grid[None], align_corners=True, padding_mode="border")[0]  # (3, N, W)
    return resize_maps(lines, (height, width))


CELL_WIDTH = 128


TITLE_HEIGHT = 11


# frames of an X-t slice that is made from the spectrum
SLICE_FRAMES = 100


def _moved_slice(picture: torch.Tensor, spectrum: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Look the row that moves most up in frame 0 at p - F_t(p): (3, T, W), near enough to see how it swings."""
    row = int(displacement[0].mean(1).argmax())
    flow = spectrum_to_flow(spectrum[:, :, row : row + 1], torch.linspace(0, 1, SLICE_FRAMES))[:, :, 0]  # (T, 2, W)
    x = torch.arange(picture.shape[-1]) - flow[:, 0]  # (T, W)
    pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())  # (H, W, 3)
    section = cv2.remap(
        pixels, x.numpy(), (row - flow[:, 1]).numpy(), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return torch.from_numpy(section).permute(2, 0, 1)


def title_strip(text: str, width: int = CELL_WIDTH) -> torch.Tensor:
    """Write a line of text, what of it fits: (3, h, w), dark on white."""
    strip = np.ascontiguousarray(to_bytes(torch.ones(3, TITLE_HEIGHT, width)))  # (h, w, 3)
    text = text[: 24 * width // CELL_WIDTH]
    cv2.putText(strip, text, (1, TITLE_HEIGHT - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (0, 0, 0), 1, cv2.LINE_8)
    return from_bytes(strip)
