"""Flow that bleeds from what moves onto what cannot, such as the sky between leaves."""

import torch.nn.functional as F
from torch import Tensor

from models.class_maps import MOVABLE_CLASSES, probability_of
from models.segmentation_classes import CLASSES
from motion.flow import MOVING_PX

# Classes that never move. Petals are taken for a person, flames for other, so that flow may be true of these.
STATIC_CLASSES = tuple(name for name in CLASSES if name not in (*MOVABLE_CLASSES, "other", "person"))
# How far flow bleeds, px of a grid of 256 x 160, and the probability of a class above which it is sure.
BLEEDING_PX, SURE = 12, 0.8


def find_bleeding(displacement_px: Tensor, probabilities: Tensor, px_a_cell: float) -> Tensor:
    """Find where a clip's flow has bled: motion of what is surely static, near that of what surely can move.

    Far from anything else that moves it may be a flag or a flame taken for a wall. `displacement_px` is mean |F_t|
    (B, 1, h, w), px of a grid of 256 x 160, of which a number of the maps is `px_a_cell`; `probabilities` (B, 32, h, w)
    are those of MOSAIC's classes. Returns (B, 1, h, w) booleans.
    """
    moves = displacement_px > MOVING_PX
    reach = max(1, round(BLEEDING_PX / px_a_cell))
    movable = (moves & (probability_of(probabilities, MOVABLE_CLASSES) > SURE)).float()
    near = F.max_pool2d(movable, 2 * reach + 1, stride=1, padding=reach) > 0
    return moves & near & (probability_of(probabilities, STATIC_CLASSES) > SURE)
