"""Edges of a photograph at which motion ends, trunks, and straight lines."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.displacement import gaussian_mean
from models.morphology import dilate, spread
from motion.flow import default_grid_scale

LONG_BLUR_PX = 2.5  # of a grid of 256 x 160, before edges are sought: takes texture away
LONG_GRADIENTS = (20, 60)  # Canny's thresholds of the gradient, 8 bit
LEAST_LONG = 0.2  # length of an edge, fraction of the longer side
NO_SURFACE_BELOW = 0.4
SURFACE_ABOVE = 0.7  # in full
# Edges hold within so many px, of the same grid, of what is static: outlines of flowers in a field move.
STATIC_REACH_PX = 4
TRUNK_PX = 8.0  # sigma of the neighbourhood in which upright and level edges are compared, px of the same grid
FAINT = 0.01  # sum of squared gradients over that neighbourhood, weighted by the Gaussian, below which there is no edge
NO_TRUNK_BELOW, TRUNK_ABOVE = 0.4, 0.8  # how far upright edges outweigh level ones
TRUNK_RED, TOO_RED = 0.06, 0.1  # how far red exceeds green: a trunk in full, none


def held_by_edges(
    surface: Tensor,  # (B, 1, H, W) how far a place is of a surface rather than of an object, 0 to 1
    static: Tensor,  # (B, 1, H, W) how far it is static, 0 to 1
    image: Tensor,  # (B, 3, H, W) in [0, 1]
) -> Tensor:
    """Return how far, 0 to 1, long edges hold the surfaces that end at them: a shore, the rim of a pool. Ours."""
    surface = ((surface - NO_SURFACE_BELOW) / (SURFACE_ABOVE - NO_SURFACE_BELOW)).clamp(0, 1)
    reach = round(STATIC_REACH_PX / default_grid_scale(*image.shape[-2:]))
    static = dilate(static, reach)
    edges = torch.stack([long_edges(one.float().cpu()) for one in image]).to(surface)
    return surface * static * spread(edges, 1)


def long_edges(image: Tensor) -> Tensor:
    """Return 1 on the connected edges (Canny) that extend far in an image (3, H, W) in [0, 1], else 0: (1, H, W)."""
    edges = np.maximum.reduce([cv2.Canny(channel, *LONG_GRADIENTS) for channel in _blurred(image, LONG_BLUR_PX)])
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(edges)
    lengths = np.hypot(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT])
    is_long = lengths >= LEAST_LONG * max(image.shape[-2:])
    is_long[0] = False  # what is no edge
    return torch.from_numpy(is_long[labels]).float()[None]


def find_trunks(image: Tensor) -> Tensor:
    """Return how far trees are trunks, 0 to 1, in images (B, 3, H, W) in [0, 1]: (B, 1, H, W). Ours.

    Upright edges outweigh level ones, and it is not red as flags may be.
    """
    sigma_px = TRUNK_PX / default_grid_scale(*image.shape[-2:])
    with torch.autocast(image.device.type, enabled=False):  # its matrix products would be rounded to 8 bits
        grey = F.avg_pool2d(image.mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
        upright = upright_edges(grey, sigma_px, FAINT)
        red = gaussian_mean(image[:, :1] - image[:, 1:2], sigma_px) / gaussian_mean(torch.ones_like(grey), sigma_px)
    upright = ((upright - NO_TRUNK_BELOW) / (TRUNK_ABOVE - NO_TRUNK_BELOW)).clamp(0, 1)
    return upright * ((TOO_RED - red) / (TOO_RED - TRUNK_RED)).clamp(0, 1)


def upright_edges(grey: Tensor, sigma_px: float, faint: float) -> Tensor:
    """Return how far upright edges outweigh level ones near places of images (B, 1, H, W), from -1 to 1.

    The difference of squared gradients across and down over their sum (structure tensor, Bigun and Granlund, 1987),
    each summed under a Gaussian of `sigma_px`; sums far below `faint` count as no edge.
    """
    down, across = (gaussian_mean(part.square(), sigma_px) for part in torch.gradient(grey, dim=(-2, -1)))
    return (across - down) / (across + down + faint)


def straight_lines(image: Tensor, least: float, blur_px: float) -> np.ndarray:
    """Find straight lines (LSD, Grompone von Gioi et al., 2012) of an image (3, H, W) in [0, 1].

    `least`: length, fraction of the longer side; `blur_px`: of the Gaussian before they are sought, px of a grid of
    256 x 160. Returns (N, 2, 2) ends (x, y), px of the image.
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
