"""What MOSAIC's classes say of where a photograph can move."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.segmentation import SegmentationModel, resize_from_corner
from models.segmentation_classes import CLASSES
from motion.flow import resize_maps

# MOSAIC's classes are the mean of its probabilities at these scales of the image, of which no single one is best.
CLASS_SCALES = (0.5, 0.75, 1.0)
# Finer ones for the borders of what moves, where less then leaks. Figures: docs/experiments.md.
FINE_CLASS_SCALES = (0.5, 1.0, 1.5)
MOVABLE_CLASSES = ("tree", "grass", "plant", "curtain", "water", "sea", "field")
RIGID_CLASSES = tuple(name for name in CLASSES if name not in (*MOVABLE_CLASSES, "other", "sky", "person"))
# Long edges hold the first beside what is static, not the second (`models.image_edges`).
SURFACE_CLASSES = ("grass", "field", "water", "sea")
OBJECT_CLASSES = ("tree", "plant", "curtain", "person")
PLANT_CLASSES = ("tree", "plant", "grass", "field")
# How kinds of classes sway: sigma, px, of `models.displacement.smooth_spectrum`, and the frequency, Hz, from which on
# they lag behind the wind. MOSAIC takes close blooms for persons; they sway slowly and as wholes. Sigmas are chosen by
# the correlation of motion in clips, lags by the eye.
SWAY_OF_CLASSES = {
    (16.0, 1.0): ("person",),
    (5.0, 2.5): ("tree", "plant", "curtain"),
    (1.0, math.inf): SURFACE_CLASSES,
}
LARGEST_LOG_ODDS = 5.0  # of what MOSAIC's classes say
# Factors of a surface's displacement: at its upper edge, a whole image's height below it, and all over a surface that
# reaches the image's upper edge, as grass seen from the side or water seen from above does. Measured on water of clips.
# On level ground nearness grows with the rows below the horizon, of which the upper edge is an estimate.
PERSPECTIVE = {("water", "sea"): (0.4, 3.5, 1.5), ("grass", "field"): (0.3, 1.0, 1.0)}
PERSPECTIVE_POWER = 0.7  # of the rows below the upper edge
PRESENT_ABOVE = 0.3  # probability from which a place belongs to a surface
ABOVE_UPPER_EDGE = 0.02  # fraction of a surface's places that lie above its upper edge
LEAST_HEIGHT = 0.1  # fraction of the height within which an upper edge counts as the image's


def segmentation_maps(segmentation: SegmentationModel, image: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return what MOSAIC says of images (B, 3, H, W) in [0, 1], sides multiples of 8 px.

    The encoder's three feature maps, the logits, and the class probabilities, mean over CLASS_SCALES: (B, c, H/8, W/8).
    """
    height, width = image.shape[-2:]
    size = (height // 8, width // 8)
    features, probabilities = [], []
    for scale in CLASS_SCALES:
        scaled = resize_maps(image.float(), (round(scale * height), round(scale * width)))
        features = segmentation.features(scaled.to(image.dtype))
        logits = segmentation.decode(features)
        probabilities.append(_pooled(logits.softmax(1), size))
    # Those of the last scale, the image itself.
    return [_pooled(maps, size) for maps in features], _pooled(logits, size), torch.stack(probabilities).mean(0)


@torch.no_grad()
def fine_class_probabilities(segmentation: SegmentationModel, image: Tensor) -> Tensor:
    """Return MOSAIC's probabilities (B, 32, H/4, W/4) for images as `segmentation_maps`, mean of FINE_CLASS_SCALES."""
    height, width = image.shape[-2:]
    total = 0.0
    for scale in FINE_CLASS_SCALES:
        scaled = resize_maps(image.float(), (round(scale * height), round(scale * width))).to(image.dtype)
        total = total + _pooled(segmentation(scaled).float().softmax(1), (height // 4, width // 4))
    return total / len(FINE_CLASS_SCALES)


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize MOSAIC's maps so that cells lie where those of other maps do; pixel i of its own lies at their corner."""
    return F.avg_pool2d(resize_from_corner(maps, (2 * size[0], 2 * size[1])), 2)


def probability_of(probabilities: Tensor, names: Sequence[str]) -> Tensor:
    """Return the probability (B, 1, h, w) of the classes of these names, of those of all, (B, 32, h, w)."""
    return probabilities[:, [CLASSES.index(name) for name in names]].sum(1, keepdim=True)


def perspective(probabilities: Tensor) -> Tensor:
    """Return a factor (B, 1, h, w): near surfaces move farther than far ones.

    Ours. `probabilities` (B, 32, h, w) are of whole images: of crops it is another.
    """
    factor = torch.ones_like(probabilities[:, :1])
    height = factor.shape[-2]
    rows = torch.arange(height, device=factor.device)[:, None]  # (h, 1)
    for names, (far, near, at_the_top) in PERSPECTIVE.items():
        probability = probability_of(probabilities, names)  # (B, 1, h, w)
        area = (probability > PRESENT_ABOVE).sum(-1).cumsum(-1)  # (B, 1, h)
        first = (area < ABOVE_UPPER_EDGE * area[..., -1:]).sum(-1)[..., None, None]  # (B, 1, 1, 1)
        depth = ((rows - first) / height).clamp(min=0)  # (B, 1, h, 1)
        of_surface = far + (near - far) * depth**PERSPECTIVE_POWER
        of_surface = torch.where(first < LEAST_HEIGHT * height, at_the_top, of_surface)
        factor = factor + probability * (of_surface - 1)
    return factor


def movement_of_classes(probabilities: Tensor) -> dict[str, Tensor]:
    """Return what a `Placement` has of classes, by name, by their probabilities (B, 32, h, w)."""
    movable = probability_of(probabilities, MOVABLE_CLASSES)
    return {
        "by_class": movable.logit(1e-6).clamp(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS),
        "rigid": probability_of(probabilities, RIGID_CLASSES),
        "sky": probability_of(probabilities, ("sky",)),
        "surfaces": probability_of(probabilities, SURFACE_CLASSES),
        "objects": probability_of(probabilities, OBJECT_CLASSES),
        "trees": probability_of(probabilities, ("tree",)),
        "plants": probability_of(probabilities, PLANT_CLASSES),
        "perspective": perspective(probabilities),
    }
