"""Copy-paste augmentation (Ghiasi et al., CVPR 2021) of photographs with masks of what can move.

Lengths are px of photographs of a few hundred px a side.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, label
from torch import Tensor

PARTS = (1, 4)  # that are tried, at least and at most
STATIC_FRACTION = 0.7  # of the parts cannot move
SIDES = (0.08, 0.5)  # of a part, fractions of its photograph's
ASPECT = (0.6, 1.4)  # factors of either side
TRIES = 12  # to find a part and a place for it
LEAST_FILLED = 0.1  # fraction of its box that a part fills
WHOLE_BOX = 0.6  # what fills more of it has no outline of its own: one is drawn, as for static parts
LEAST_SIDE_PX = 16
BORDER_PX = (0.5, 1.5)  # sigma of its soft border
LIT_ALIKE = (0.0, 0.6)  # how far a static part takes on the mean colour of where it lies


class Labelled(NamedTuple):
    """A photograph and what is known of it."""

    image: Tensor  # (3, H, W) in [0, 1]
    movable: Tensor  # (1, H, W) whether a place can move
    known: Tensor  # (1, H, W) whether that is known


def paste_parts(photograph: Labelled, others: Sequence[Callable[[], Labelled]], rng: np.random.Generator) -> Labelled:
    """Paste parts of other photographs: what cannot move amid what can, and what can amid what cannot or is unsure."""
    photograph = Labelled(*(maps.clone() for maps in photograph))
    for _ in range(rng.integers(*PARTS, endpoint=True)):
        other = others[int(rng.integers(len(others)))]()
        is_static = rng.random() < STATIC_FRACTION
        for _ in range(TRIES):
            if _paste(photograph, other, is_static, rng):
                break
    return photograph


def _paste(photograph: Labelled, other: Labelled, is_static: bool, rng: np.random.Generator) -> bool:
    """Draw a part and a place and paste it in place; return whether they suit."""
    scale = np.exp(rng.uniform(*np.log(SIDES)))
    sizes = zip(other.image.shape[-2:], photograph.image.shape[-2:], strict=True)
    size = tuple(min(int(scale * rng.uniform(*ASPECT) * own), own, there) for own, there in sizes)
    if min(size) < LEAST_SIDE_PX:
        return False
    part, place = _draw_box(other, size, rng), _draw_box(photograph, size, rng)
    shape = (part.known[0] > 0).numpy() & ((part.movable[0] > 0).numpy() != is_static)
    if not is_static:
        parts, _ = label(shape)
        shape &= parts == np.bincount(parts[shape], minlength=1).argmax()
    if is_static or shape.mean() > WHOLE_BOX:
        shape &= _blob(size, rng)
    if shape.mean() < LEAST_FILLED:
        return False
    inside = torch.from_numpy(shape)
    if (float((place.movable * place.known)[0, inside].mean()) > 0.5) != is_static:
        return False
    image = part.image
    if is_static:
        ratio = (place.image.mean((1, 2), keepdim=True) + 0.05) / (image.mean((1, 2), keepdim=True) + 0.05)
        image = (image * (1 + rng.uniform(*LIT_ALIKE) * (ratio - 1))).clamp(0, 1)
    opacity = torch.from_numpy(gaussian_filter(shape.astype(np.float32), rng.uniform(*BORDER_PX)))
    place.image.lerp_(image, opacity.expand_as(image))
    place.movable[0, inside] = float(not is_static)
    place.known[0, inside] = 1.0
    return True


def _draw_box(photograph: Labelled, size: tuple[int, int], rng: np.random.Generator) -> Labelled:
    """Return a view of a box of it."""
    top, left = (int(rng.integers(own - cut + 1)) for own, cut in zip(photograph.image.shape[-2:], size, strict=True))
    return Labelled(*(maps[:, top : top + size[0], left : left + size[1]] for maps in photograph))


def _blob(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth shape (H, W) that almost fills its box."""
    noise = gaussian_filter(rng.standard_normal(size), min(size) / rng.uniform(4, 9))
    down, across = (np.abs(np.linspace(-1, 1, side)) ** rng.uniform(1.5, 4) for side in size)
    return 0.75 + 0.35 * noise / noise.std() > down[:, None] + across
