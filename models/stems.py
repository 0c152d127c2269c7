"""Stems, ears and twigs sway as wholes. MOSAIC is too coarse for them and takes those in front of the sky for sky.

Lengths are px of the motion grid, so that on another grid other things are stems.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.displacement import gaussian_mean
from models.image_edges import upright_edges
from models.morphology import closing, dilate, spread

THIN_PX = 4  # radius of the closing: what is up to 8 px of the motion grid wide is thin
# A thin thing is darker in blue than the closing by this fraction, in full at CONTRAST + RAMP.
CONTRAST, RAMP = 0.2, 0.15
# No stem is seen before a background with less blue, 0 to 1, than the first; from the second more on, in full.
LEAST_BLUE, BLUE_RAMP = 0.15, 0.1
# A place counts as sky above the first probability, in full above the second.
NO_SKY_BELOW, SKY_ABOVE = 0.3, 0.6
REACH_PX = 80  # how far thin things are followed from what moves
# The edges of a stem are upright: sigma and the sum of squared gradients that is no edge, see `upright_edges`.
UPRIGHT_PX, FAINT = 2.0, 1e-5
LEVEL_BELOW, UPRIGHT_ABOVE = 0.1, 0.4
# It is long: in so many of the rows up to RUN_PX above and below there is stem, BESIDE_PX beside it at most.
RUN_PX, BESIDE_PX = 20, 4
SHORT_BELOW, LONG_ABOVE = 0.4, 0.65
EVEN_PX = (20.0, 2.0)  # sigma, down and across, over which all of a stem moves as far
# What is around goes along, ever less up to twice as many px: sky that moves is not seen, a torn stem is.
AROUND_PX = 1


def move_stems(
    displacement: Tensor,  # (B, 1, H, W) how far places move, in any unit
    sky: Tensor,  # (B, 1, H, W) probability of sky
    image: Tensor,  # (B, 3, H, W) in [0, 1], on the motion grid
) -> Tensor:
    """Move thin things against the sky as far as what they are attached to (geodesic dilation): (B, 1, H, W). Ours."""
    before_sky = ((sky - NO_SKY_BELOW) / (SKY_ABOVE - NO_SKY_BELOW)).clamp(0, 1)
    limit = before_sky * _thin(image.float()) * displacement.amax((-2, -1), keepdim=True)
    reached = displacement
    for _ in range(REACH_PX):
        before, reached = reached, torch.maximum(displacement, torch.minimum(dilate(reached, 1), limit))
        if torch.equal(before, reached):
            break
    return torch.maximum(displacement, before_sky * spread(torch.minimum(reached, limit), AROUND_PX))


def find_stems(image: Tensor) -> Tensor:
    """Return a map (B, 1, H, W), 0 to 1, of thin upright dark things in images (B, 3, H, W) in [0, 1]. Ours."""
    image = image.float()
    with torch.autocast(image.device.type, enabled=False):
        upright = upright_edges(image.mean(1, keepdim=True), UPRIGHT_PX, FAINT)
    thin = _thin(image) * ((upright - LEVEL_BELOW) / (UPRIGHT_ABOVE - LEVEL_BELOW)).clamp(0, 1)
    rows = {"kernel_size": (2 * RUN_PX + 1, 1), "stride": 1, "padding": (RUN_PX, 0), "count_include_pad": False}
    run = F.avg_pool2d(dilate(thin, BESIDE_PX), **rows)
    long = ((run - SHORT_BELOW) / (LONG_ABOVE - SHORT_BELOW)).clamp(0, 1)
    return spread(thin * dilate(long, 1), AROUND_PX)


def even_along(displacement: Tensor, stems: Tensor) -> Tensor:
    """Take the mean displacement (B, 1, H, W) along `stems` (B, 1, H, W), 0 to 1: what moves unevenly bends."""
    weight = stems + 1e-4
    with torch.autocast(stems.device.type, enabled=False):
        mean = gaussian_mean(displacement * weight, EVEN_PX) / gaussian_mean(weight, EVEN_PX)
    return displacement + stems * (mean - displacement)


def _thin(image: Tensor) -> Tensor:
    """Return a relative black top-hat of the blue channel of images (B, 3, H, W): (B, 1, H, W), 1 on thin dark things.

    Plants are dark in blue; gaps between clouds are as bright as clouds.
    """
    blue = image[:, 2:]
    background = closing(blue, THIN_PX).clamp(min=LEAST_BLUE)
    darker = ((1 - blue / background - CONTRAST) / RAMP).clamp(0, 1)
    return darker * ((background - LEAST_BLUE) / BLUE_RAMP).clamp(max=1)
