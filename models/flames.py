"""Flames, which MOSAIC has no class for."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# What glows: red is above RED and exceeds blue by OVER_BLUE, both in full after another RAMP. So does the core beside
# it, to CORE_PX px of the motion grid: red and green are above WHITE, in full after WHITE_RAMP; blue may be less, for
# cores are yellow or white. What is white over more than 2 CORE_PX + 1 px is paper or a wall.
RED, OVER_BLUE, RAMP = 0.75, 0.15, 0.15
WHITE, WHITE_RAMP, CORE_PX = 0.88, 0.05, 12
# A single flame is taller than wide, narrower than this fraction of the image, and less probably than MOST_MOVABLE of
# the classes that move: petals and leaves glow as well. It moves TIP times as far at its tip, not at all at its foot,
# and what is around it along, ever less up to 2 AROUND_PX px of the motion grid.
WIDEST, MOST_MOVABLE = 0.2, 0.2
TIP, HEIGHT_POWER = 1.5, 0.7
AROUND_PX = 3


def find_flames(image: Tensor) -> tuple[Tensor, Tensor]:
    """Find what glows as flames do, and what of it lies near a white core, which wax and lit paper lack.

    Ours. `image` (B, 3, H, W) in [0, 1] on the motion grid. Returns how surely, (B, 1, H, W) each, 0 to 1.
    """
    red, green, blue = image.split(1, dim=1)
    glow = (red - RED).clamp(0, RAMP) * (red - blue - OVER_BLUE).clamp(0, RAMP) / RAMP**2
    glow = _largest(glow, 2)
    white = ((torch.minimum(red, green) - WHITE) / WHITE_RAMP).clamp(0, 1)
    for _ in range(CORE_PX):
        glow = torch.maximum(glow, white * _largest(glow, 1))
    wide = _largest(-_largest(-white, CORE_PX), CORE_PX)  # paper, walls
    return glow, glow * _largest(glow * (white - wide), CORE_PX)


def move_flames(
    displacement: Tensor,  # (B, 1, H, W) how far places move, in any unit
    flame: Tensor,  # (B, 1, H, W) the second map of `find_flames`
    movable: Tensor,  # (B, 1, H, W) probability of the classes that move
) -> Tensor:
    """Let single flames stand at their foot, move most at their tip and take what is around them along.

    Ours. A flame that moves before a still background is torn at its soft outline.
    """
    factor = np.zeros(flame.shape, np.float32)
    rows = np.arange(flame.shape[-2])[:, None] + 0.5
    together = zip(factor[:, 0], flame[:, 0].cpu(), movable[:, 0].detach().float().cpu().numpy(), strict=True)
    for found, one, moves in together:
        _, labels, boxes, _ = cv2.connectedComponentsWithStats((one > 0.5).byte().numpy())
        for n, (_, top, width, height, _) in enumerate(boxes[1:], start=1):
            inside = labels == n
            if width < min(height, WIDEST * flame.shape[-1]) and moves[inside].mean() < MOST_MOVABLE:
                above_foot = (1 - (rows - top) / height).clip(1e-3, 1)  # (H, 1)
                found[inside] = np.broadcast_to(TIP * above_foot**HEIGHT_POWER, inside.shape)[inside]
    height = torch.from_numpy(factor).to(displacement)
    single = displacement * height
    around = F.avg_pool2d(_largest(single, AROUND_PX), 2 * AROUND_PX + 1, stride=1, padding=AROUND_PX)
    # Also in the flame, whose dim outline is less sure to move.
    return torch.maximum(torch.where(height > 0, single, displacement), around)


def _largest(maps: Tensor, reach: int) -> Tensor:
    across = F.max_pool2d(maps, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return F.max_pool2d(across, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
