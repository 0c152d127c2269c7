"""Edges of a photograph at which motion ends."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motion.flow import default_grid_scale

# px of a grid of 256 x 160: the blur before edges are sought, which takes texture away.
LONG_BLUR_PX, STRAIGHT_BLUR_PX = 2.5, 1.0
# Canny's thresholds of the gradient, 8 bit.
LONG_GRADIENTS = (20, 60)
# Fractions of the longer side.
LEAST_LONG, LEAST_STRAIGHT = 0.2, 0.08
# Held in full where the fraction of surfaces is above the second, not below the first, in proportion between.
OBJECT_BELOW, SURFACE_ABOVE = 0.4, 0.7
# Straight lines are rigid within so many px of the image of what is rigid by more than this probability, in full by
# twice as much.
STRAIGHT_REACH_PX, RIGID_BELOW = 3, 0.3


def held_by_edges(surface: Tensor, rigid: Tensor, image: Tensor) -> Tensor:
    """Return how far edges hold what is near them, 0 to 1.

    Ours. Surfaces end at long edges: a shore, the rim of a pool, a path, a ridge. Straight lines beside what is rigid,
    such as frames and poles, are rigid too.

    Args:
        surface: (B, 1, H, W) how far a place is of a surface rather than of an object, 0 to 1.
        rigid: (B, 1, H, W) probability that it is rigid.
        image: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 1, H, W).
    """
    surface = ((surface - OBJECT_BELOW) / (SURFACE_ABOVE - OBJECT_BELOW)).clamp(0, 1)
    rigid = ((rigid - RIGID_BELOW) / RIGID_BELOW).clamp(0, 1)
    rigid = F.max_pool2d(rigid, 2 * STRAIGHT_REACH_PX + 1, stride=1, padding=STRAIGHT_REACH_PX)
    images = [one.float().cpu() for one in image]
    long, straight = (torch.stack([find(one) for one in images]).to(surface) for find in (long_edges, straight_edges))
    return torch.maximum(_widened(long) * surface, _widened(straight) * rigid)


def _widened(edges: Tensor) -> Tensor:
    return F.avg_pool2d(F.max_pool2d(edges, 3, stride=1, padding=1), 3, stride=1, padding=1)


def long_edges(image: Tensor) -> Tensor:
    """Return 1 on the connected edges (Canny) that extend far in an image (3, H, W) in [0, 1], else 0: (1, H, W)."""
    edges = np.maximum.reduce([cv2.Canny(channel, *LONG_GRADIENTS) for channel in _blurred(image, LONG_BLUR_PX)])
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(edges)
    lengths = np.hypot(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT])
    is_long = lengths >= LEAST_LONG * max(image.shape[-2:])
    is_long[0] = False  # what is no edge
    return torch.from_numpy(is_long[labels]).float()[None]


def straight_edges(image: Tensor) -> Tensor:
    """Return 1 on `straight_lines` of an image (3, H, W) in [0, 1], else 0: (1, H, W)."""
    drawn = np.zeros(image.shape[-2:], np.float32)
    for start, end in straight_lines(image, LEAST_STRAIGHT, STRAIGHT_BLUR_PX):
        cv2.line(drawn, *(tuple(np.rint(point).astype(int).tolist()) for point in (start, end)), 1.0)
    return torch.from_numpy(drawn)[None]


def straight_lines(image: Tensor, least: float, blur_px: float) -> np.ndarray:
    """Find straight lines (LSD, Grompone von Gioi et al., 2012) of an image (3, H, W) in [0, 1].

    Args:
        image: as above.
        least: length, as a fraction of the longer side.
        blur_px: of the Gaussian before they are sought, px of a grid of 256 x 160.

    Returns:
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
