"""Flames, which MOSAIC has no class for."""

import cv2
import numpy as np
import torch
from torch import Tensor

from models.morphology import closing, dilate, spread

# A place glows where red is above RED and exceeds blue by OVER_BLUE; both count in full RAMP above that.
RED, OVER_BLUE, RAMP = 0.75, 0.15, 0.15
# The core beside what glows is white or yellow: red and green are above WHITE, in full WHITE_RAMP above that.
WHITE, WHITE_RAMP = 0.88, 0.05
CORE_PX = 12  # its largest radius, and how far a single flame reaches from it, px of the motion grid; wider is paper
FIRE_PX = 48  # how far a fire, whose tongues are orange, reaches from a core, px of the motion grid
WIDEST = 0.2  # width of a single flame, as a fraction of the image's; it is taller than wide
MOST_MOVABLE = 0.2  # there, of the classes that move, for petals and leaves glow as well
TIP, HEIGHT_POWER = 1.5, 0.7  # it moves TIP times as far at its tip, not at all at its foot
# Petals and walls glow in daylight, flames in the dark. What glows is a flame where the mean brightness around it, 0 to
# 1, is below DIM, and flickers where it is below DARK; both fade over SOFT below the limit. In 388 images surroundings
# of fires are at 0.05 to 0.24, of all else but a dark wood above 0.25; of candles in rooms up to 0.41.
DIM, DARK, SOFT = 0.43, 0.26, 0.02
# Surroundings are what lies between these distances from what glows, px of the motion grid.
BORDER_PX, SURROUNDINGS_PX = 2, 12
MOST_GAIN = 20.0  # by which the amplitude of one bin of fire is raised, at most
AROUND_PX = 3  # what is around it goes along, ever less up to twice as many px of the motion grid


def find_flames(image: Tensor) -> tuple[Tensor, Tensor]:
    """Find what glows near a white core, which wax, orange walls and lit paper lack.

    Ours. `image` (B, 3, H, W) in [0, 1] on the motion grid. Returns maps of what lies within FIRE_PX and within CORE_PX
    of a core, (B, 1, H, W) each, 0 to 1. Both are 0 where the surroundings are brighter than DIM.
    """
    red, green, blue = image.split(1, dim=1)
    glow = (red - RED).clamp(0, RAMP) * (red - blue - OVER_BLUE).clamp(0, RAMP) / RAMP**2
    glow = dilate(glow, 2)
    white = ((torch.minimum(red, green) - WHITE) / WHITE_RAMP).clamp(0, 1)
    for _ in range(CORE_PX):
        glow = torch.maximum(glow, white * dilate(glow, 1))
    wide = -closing(-white, CORE_PX)  # paper, walls
    core = glow * (white - wide)
    fire = glow * dilate(core, FIRE_PX)
    dim = dark_surroundings(DIM, fire, image)
    return dim * fire, dim * glow * dilate(core, CORE_PX)


def move_flames(
    displacement: Tensor,  # (B, 1, H, W) how far places move, in any unit
    flame: Tensor,  # (B, 1, H, W) the second map of `find_flames`
    movable: Tensor,  # (B, 1, H, W) probability of the classes that move
) -> Tensor:
    """Let single flames stand at their foot, move most at their tip and take what is around them along.

    Ours. A flame that moves before a still background is torn at its soft outline.
    """
    factors = np.zeros(flame.shape, np.float32)
    rows = np.arange(flame.shape[-2])[:, None] + 0.5
    by_image = zip(factors[:, 0], flame[:, 0].cpu(), movable[:, 0].detach().float().cpu().numpy(), strict=True)
    for factor, flame_map, movable_map in by_image:
        _, labels, boxes, _ = cv2.connectedComponentsWithStats((flame_map > 0.5).byte().numpy())
        for n, (_, top, width, height, _) in enumerate(boxes[1:], start=1):
            inside = labels == n
            if width < min(height, WIDEST * flame.shape[-1]) and movable_map[inside].mean() < MOST_MOVABLE:
                above_foot = (1 - (rows - top) / height).clip(1e-3, 1)  # (H, 1)
                factor[inside] = np.broadcast_to(TIP * above_foot**HEIGHT_POWER, inside.shape)[inside]
    of_flames = torch.from_numpy(factors).to(displacement)
    single = displacement * of_flames
    around = spread(single, AROUND_PX)
    # Also in the flame, whose dim outline is less sure to move.
    return torch.maximum(torch.where(of_flames > 0, single, displacement), around)


def dark_surroundings(limit: float, fire: Tensor, image: Tensor) -> Tensor:
    """Return 1 where the mean brightness around the fire (B, 1, H, W) of an image (B, 3, H, W) is below `limit` - SOFT.

    0 above `limit`, linear between: (B, 1, 1, 1), one number for all the fire of an image.
    """
    around = dilate(fire, SURROUNDINGS_PX) - dilate(fire, BORDER_PX)
    brightness = (image.mean(1, keepdim=True) * around).sum((2, 3), keepdim=True)
    brightness = brightness / around.sum((2, 3), keepdim=True).clamp(min=1e-6)
    return ((limit - brightness) / SOFT).clamp(0, 1)


def flicker(spectrum: Tensor, fire: Tensor) -> Tensor:
    """Remove the drift of fire (B, 1, H, W), 0 to 1, and give its other bins equal power: (B, K, 4, H, W) px.

    Ours. Optical flow loses track of flames, so that training clips show a false drift; where it does not, their
    spectrum is flat.
    """
    fire = fire[:, None]  # (B, 1, 1, H, W)
    power = (spectrum[:, 1:].square() * fire).sum((2, 3, 4), keepdim=True)  # (B, K - 1, 1, 1, 1)
    gain = (power.mean(1, keepdim=True) / power.clamp(min=1e-12)).sqrt().clamp(max=MOST_GAIN)
    flat = torch.cat([torch.zeros_like(spectrum[:, :1]), gain * spectrum[:, 1:]], dim=1)
    return torch.lerp(spectrum, flat, fire)
