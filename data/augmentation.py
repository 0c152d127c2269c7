"""Augmentation of clips: drawn once as a Geometry, then applied alike to images, spectra, flow and maps.

All of it is exact for the motion: boxes of any aspect, scale, left-right mirrors, and the motion played backwards.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from motion.flow import resize_flow, resize_maps, resize_spectrum

# a crop's fraction of the largest box that fits, by area
CROP_AREA = (0.4, 1.0)
# a crop may be this much wider or narrower than the sample it fills (natural logarithm of the ratio)
ASPECT_JITTER = 0.1
COLOUR_JITTER = 0.15
# What a sample's geometry depends on besides its seed. A version for each way to draw it: cached latents are made anew.
GEOMETRY_SETTINGS = {"version": 1, "crop_area": list(CROP_AREA), "aspect_jitter": ASPECT_JITTER}


class Geometry(NamedTuple):
    """Where a sample is cut from a clip's grid, the size it is brought to, and how it is turned."""

    top: int  # the box, px of the clip's grid
    left: int
    height: int
    width: int
    size: tuple[int, int]  # (H', W') px of the sample
    mirrored: bool = False  # left and right change places
    backwards: bool = False  # the motion is played from its end; the photograph stays the same

    def _cut(self, maps: torch.Tensor) -> torch.Tensor:
        return maps[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def maps(self, maps: torch.Tensor) -> torch.Tensor:
        """Apply to images or maps whose values are no lengths: (..., C, H, W) to (..., C, H', W')."""
        maps = resize_maps(self._cut(maps), self.size)
        return maps.flip(-1) if self.mirrored else maps

    def flow(self, flow: torch.Tensor) -> torch.Tensor:
        """Apply to flow (..., 2, H, W), px, which gives px of the sample; it cannot be played backwards."""
        assert not self.backwards
        flow = resize_flow(self._cut(flow), self.size)
        return flow.flip(-1) * flow.new_tensor([-1.0, 1.0]).view(2, 1, 1) if self.mirrored else flow

    def spectrum(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Apply to a packed spectrum (..., K, 4, H, W), px; gives px of the sample."""
        spectrum = resize_spectrum(self._cut(spectrum), self.size)
        if self.mirrored:
            spectrum = flip_spectrum(spectrum)
        return reverse_spectrum(spectrum) if self.backwards else spectrum


def draw_geometry(
    grid: Sequence[int],
    size: Sequence[int],
    rng: np.random.Generator | None,
    *,
    area: tuple[float, float] = CROP_AREA,
    reverse: bool = True,
) -> Geometry:
    """Draw how a sample of `size` (H', W') px is taken from a clip's grid (H, W) px; without `rng` the middle box.

    The box has the aspect of `size` within the jitter, and a fraction drawn from `area` of the largest such box;
    without `rng` no jitter and the largest fraction. With `reverse` half of the samples play backwards.
    """
    aspect, fraction = size[1] / size[0], area[1]
    if rng is not None:
        aspect *= math.exp(rng.uniform(-ASPECT_JITTER, ASPECT_JITTER))
        fraction = rng.uniform(*area)
    height = min(grid[0], grid[1] / aspect)
    width = height * aspect
    height = min(grid[0], max(1, round(height * math.sqrt(fraction))))
    width = min(grid[1], max(1, round(width * math.sqrt(fraction))))
    free = (grid[0] - height, grid[1] - width)
    if rng is None:
        return Geometry(free[0] // 2, free[1] // 2, height, width, tuple(size))
    top, left = int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))
    mirrored = bool(rng.random() < 0.5)
    return Geometry(top, left, height, width, tuple(size), mirrored, reverse and bool(rng.random() < 0.5))


def flip_spectrum(spectrum: torch.Tensor) -> torch.Tensor:
    """Mirror a packed spectrum (..., K, 4, H, W) left to right: positions swap, and dx changes its sign."""
    return spectrum.flip(-1) * spectrum.new_tensor([-1.0, -1.0, 1.0, 1.0]).view(4, 1, 1)


def reverse_spectrum(spectrum: torch.Tensor) -> torch.Tensor:
    """Play the motion of a packed spectrum (..., K, 4, H, W) backwards: F'_t = F_(T-t) - F_T, exactly."""
    # cos(2 pi k (T-t)/T) stays, sin changes its sign, and so does the drift
    return spectrum * spectrum.new_tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1)


def jitter_colours(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change brightness, contrast, saturation and colour balance of (..., 3, H, W) mildly, all images alike."""
    gain, contrast, saturation = np.exp(rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3))
    balance = np.exp(rng.uniform(-COLOUR_JITTER / 3, COLOUR_JITTER / 3, 3))
    images = images * images.new_tensor(gain * balance).view(3, 1, 1)
    grey = images.mean(-3, keepdim=True)  # (..., 1, H, W)
    images = grey + (images - grey) * float(saturation)
    return (0.5 + (images - 0.5) * float(contrast)).clamp(0, 1)
