"""Stems, ears and twigs before the sky, too thin for MOSAIC, which takes them for sky."""

import torch
from torch import Tensor

from models.image_edges import dilate, spread

# Half the width below which something is thin, px of the motion grid.
THIN_PX = 4
# It is darker than what is around by more than this fraction of the blue, in full by RAMP more.
CONTRAST, RAMP = 0.2, 0.15
LEAST_BLUE, BLUE_RAMP = 0.15, 0.1  # of a sky, in full by so much more
# A place counts as sky above the first probability, in full above the second.
NO_SKY_BELOW, SKY_ABOVE = 0.3, 0.6
# How far thin things are followed from what moves, px of the motion grid.
REACH_PX = 80
# What is around goes along, ever less up to twice as many px: sky that moves is not seen, a torn stem is.
AROUND_PX = 1


def move_stems(
    displacement: Tensor,  # (B, 1, H, W) how far places move, as a fraction of the wind
    sky: Tensor,  # (B, 1, H, W) probability of sky
    image: Tensor,  # (B, 3, H, W) in [0, 1], on the motion grid
) -> Tensor:
    """Let thin things before the sky move as far as what they grow out of. Ours."""
    before_sky = ((sky - NO_SKY_BELOW) / (SKY_ABOVE - NO_SKY_BELOW)).clamp(0, 1)
    thin, reached = before_sky * _thin(image.float()), displacement
    for _ in range(REACH_PX):
        reached = torch.maximum(displacement, torch.minimum(dilate(reached, 1), thin))
    return torch.maximum(displacement, before_sky * spread(thin * reached, AROUND_PX))


def _thin(image: Tensor) -> Tensor:
    """Return how far places of images (B, 3, H, W) are of thin things before a brighter sky, (B, 1, H, W) from 0 to 1.

    In the blue channel plants are dark, and gaps between clouds as bright as clouds.
    """
    blue = image[:, 2:]
    sky = (-dilate(-dilate(blue, THIN_PX), THIN_PX)).clamp(min=LEAST_BLUE)
    darker = ((1 - blue / sky - CONTRAST) / RAMP).clamp(0, 1)
    return darker * ((sky - LEAST_BLUE) / BLUE_RAMP).clamp(max=1)
