"""Filter an image with weights that a network predicts for each place [Jia et al., Dynamic Filter Networks, 2016].

So the image is sharpened or blurred at full size, while the network runs at a part of it.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

# The neighbours that are weighed, (down, right) px: eight each at these distances.
RINGS_PX = (1, 2, 4)
OFFSETS_PX = [(r * y, r * x) for r in RINGS_PX for y in (-1, 0, 1) for x in (-1, 0, 1) if x or y]
REACH_PX = max(RINGS_PX)


def filter_image(image: Tensor, others: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return image + sum_k w_k (neighbour_k - image) + sum_j w_j (other_j - image), (B, C, H, W).

    `image`, `others`: (B, C, H, W), beyond whose border it is repeated; `weights`: (B, K, H / n, W / n) of blocks of
    n x n pixels, first those of the neighbours.
    """
    height, width = image.shape[-2:]
    weights = F.interpolate(weights.contiguous(), size=(height, width))  # nearest; as it comes it takes twice the time
    padded = F.pad(image, [REACH_PX] * 4, mode="replicate")
    neighbours = [
        padded[..., REACH_PX + down : REACH_PX + down + height, REACH_PX + right : REACH_PX + right + width]
        for down, right in OFFSETS_PX
    ]
    out = image * (1 - weights.sum(1, keepdim=True))
    for weight, maps in zip(weights.split(1, dim=1), [*neighbours, *others], strict=True):
        out = out.addcmul_(weight, maps)
    return out


def to_blocks(maps: Tensor, side: int) -> Tensor:
    """Return (B, C side^2, H / side, W / side) of maps (B, C, H, W): F.pixel_unshuffle in a fifth of its time."""
    blocks = maps.unflatten(-1, (-1, side)).unflatten(-3, (-1, side)).permute(0, 1, 3, 5, 2, 4)
    return blocks.flatten(1, 3)
