"""What a photograph shows, by the classes of the segmentation network, and masks of where it may move."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.displacement import guided_filter
from models.segmentation import SegmentationModel, resize_from_corner
from models.segmentation_classes import CLASSES, check_words, classes_of
from motion.flow import motion_grid_size, resize_maps

# Long side at which the network looks: it was trained at 512 x 512.
SEEN_SIZE_PX = 512
# Below the first probability a pixel is not of a class, above the second it wholly is; edges lie between.
UNLIKELY, LIKELY = 0.25, 0.75
# A class that is the most probable one at a smaller fraction of the pixels is not in the photograph.
SMALLEST_FRACTION = 1e-3


@torch.no_grad()
def class_probabilities(network: SegmentationModel, image: Tensor) -> Tensor:
    """Return the probabilities (32, H, W) of `CLASSES` at each pixel of image (3, H, W) in [0, 1], on its device."""
    height, width = image.shape[-2:]
    scale = SEEN_SIZE_PX / max(height, width)
    seen = resize_maps(image, (max(1, round(scale * height)), max(1, round(scale * width))))
    logits = network(seen[None].to(network.device, network.dtype)).to(image)
    return resize_from_corner(logits, (height, width)).softmax(1)[0]  # (32, H, W)


def class_fractions(probabilities: Tensor) -> dict[str, float]:
    """Return the fraction of pixels at which each class is the most probable one, largest first, for those present."""
    counts = torch.bincount(probabilities.argmax(0).flatten(), minlength=len(CLASSES))
    found = sorted(zip(CLASSES, (counts / counts.sum()).tolist(), strict=True), key=lambda one: -one[1])
    return {name: fraction for name, fraction in found if fraction >= SMALLEST_FRACTION}


def class_mask(
    network: SegmentationModel, image: Tensor, *, move: Sequence[str] = (), freeze: Sequence[str] = ()
) -> tuple[Tensor, list[str]]:
    """Return where a photograph (3, H, W) in [0, 1] may move by the classes it shows.

    `move` are words of `CLASSES` and `SYNONYMS` for what alone may move, () for everything, `freeze` for what stays
    still (ClassNameError). Returns a mask (1, h, w) in [0, 1] on the motion grid, and the words for what is not there.
    """
    check_words(move, freeze)
    probabilities = class_probabilities(network, image)
    grid = motion_grid_size(*image.shape[-2:])
    guide, maps = resize_maps(image, grid), resize_maps(probabilities, grid)

    def membership(words: Sequence[str]) -> Tensor:
        chosen = maps[[CLASSES.index(name) for name in sorted(classes_of(words))]].sum(0, keepdim=True)
        along_edges = guided_filter(guide[None], chosen[None])[0]  # (1, h, w)
        return ((along_edges - UNLIKELY) / (LIKELY - UNLIKELY)).clamp(0, 1)

    mask = membership(move) if move else torch.ones_like(maps[:1])
    if freeze:
        mask = mask * (1 - membership(freeze))
    present = class_fractions(probabilities)
    return mask, [word for word in (*move, *freeze) if not classes_of([word]) & set(present)]
