"""Edges of a photograph at which motion ends, and straight lines."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motion.flow import default_grid_scale

# Blur before edges are sought, px of a grid of 256 x 160, which takes texture away; Canny's thresholds of the gradient,
# 8 bit; length, fraction of the longer side.
LONG_BLUR_PX, LONG_GRADIENTS, LEAST_LONG = 2.5, (20, 60), 0.2
# Held in full where the fraction of surfaces is above the second, not below the first, in proportion between; likewise
# where what is static has these probabilities within so many px of the image: outlines of flowers in a field move.
OBJECT_BELOW, SURFACE_ABOVE = 0.4, 0.7
MOVABLE_BELOW, STATIC_ABOVE, STATIC_REACH_PX = 0.3, 0.6, 4


def held_by_edges(surface: Tensor, static: Tensor, image: Tensor) -> Tensor:
    """Return how far long edges hold the surfaces that end at them: a shore, the rim of a pool, a path.

    Ours. All are (B, 1, H, W) and from 0 to 1, the images (B, 3, H, W); `surface`: how far a place is of a surface
    rather than of an object; `static`: the probability that it cannot move.
    """
    surface = ((surface - OBJECT_BELOW) / (SURFACE_ABOVE - OBJECT_BELOW)).clamp(0, 1)
    static = F.max_pool2d(static, 2 * STATIC_REACH_PX + 1, stride=1, padding=STATIC_REACH_PX)
    surface = surface * ((static - MOVABLE_BELOW) / (STATIC_ABOVE - MOVABLE_BELOW)).clamp(0, 1)
    edges = torch.stack([long_edges(one.float().cpu()) for one in image]).to(surface)
    return surface * F.avg_pool2d(F.max_pool2d(edges, 3, stride=1, padding=1), 3, stride=1, padding=1)


def long_edges(image: Tensor) -> Tensor:
    """Return 1 on the connected edges (Canny) that extend far in an image (3, H, W) in [0, 1], else 0: (1, H, W)."""
    edges = np.maximum.reduce([cv2.Canny(channel, *LONG_GRADIENTS) for channel in _blurred(image, LONG_BLUR_PX)])
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(edges)
    lengths = np.hypot(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT])
    is_long = lengths >= LEAST_LONG * max(image.shape[-2:])
    is_long[0] = False  # what is no edge
    return torch.from_numpy(is_long[labels]).float()[None]


def straight_lines(image: Tensor, least: float, blur_px: float) -> np.ndarray:
    """Find straight lines (LSD, Grompone von Gioi et al., 2012) of an image (3, H, W) in [0, 1].

    `least` length, as a fraction of the longer side; `blur_px` of a Gaussian before, px of a grid of 256 x 160. Returns
    (N, 2, 2) ends (x, y), px of the image.
    """
    detector, found = cv2.createLineSegmentDetector(), [np.zeros((0, 2, 2), np.float32)]
    for channel in _blurred(image, blur_px):
        lines = detector.detect(channel)[0]
        found += [] if lines is None else [lines.reshape(-1, 2, 2)]
    lines = np.concatenate(found)
    return lines[np.linalg.norm(lines[:, 1] - lines[:, 0], axis=-1) >= least * max(image.shape[-2:])]


def _blurred(image: Tensor, sigma_px: float) -> list[np.ndarray]:
    """Return the channels (H, W) of an image in CIELAB, 8 bit, under a Gaussian."""
    pixels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    pixels = cv2.GaussianBlur(pixels, (0, 0), sigma_px / default_grid_scale(*image.shape[-2:]))
    return [np.ascontiguousarray(channel) for channel in cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB))]
