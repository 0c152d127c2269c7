"""How well predicted motion falls on what can move in a photograph, by a checked mask of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metrics.motion import corrected_precision
from metrics.statistics import mean_by_source
from motion.flow import MOVING_PX, default_grid_scale, resize_maps

# A fraction of fewer known pixels than this says nothing: specks of 10 px are not seen, and the mask is no surer there.
LEAST_FRACTION = 0.01
METRICS = ("coverage", "leak", "ap", "static_mean_px", "static_largest_px", "mean_px")


def placement_metrics(displacement_px: Tensor, movable: Tensor, static: Tensor) -> dict[str, float | None]:
    """Compare a photograph's mean displacement with booleans (1, H, W) of what can move and what cannot in it.

    `displacement_px` (1, h, w) is mean |F_t| after the amplitude limit, px of its own grid. "coverage" and "leak" are
    the fractions of what can and of what cannot move that move by more than .25 px of a grid of 256 x 160, "ap" the
    chance-corrected average precision for what can move, the others displacements of what cannot move and of the whole
    photograph, px of that grid. None for what is taken over less than 1 % of the known pixels.
    """
    displacement_px = displacement_px.float() * default_grid_scale(*displacement_px.shape[-2:])
    displacement_px = resize_maps(displacement_px, tuple(movable.shape[-2:]))  # (1, H, W)
    there, elsewhere = displacement_px[movable], displacement_px[static]
    num_known = len(there) + len(elsewhere)
    least = max(1.0, LEAST_FRACTION * num_known)
    can_move, can_rest = len(there) >= least, len(elsewhere) >= least
    truth = torch.arange(num_known) < len(there)
    return {
        "coverage": float((there > MOVING_PX).float().mean()) if can_move else None,
        "leak": float((elsewhere > MOVING_PX).float().mean()) if can_rest else None,
        "ap": corrected_precision(torch.cat([there, elsewhere]), truth) if can_move and can_rest else None,
        "static_mean_px": float(elsewhere.mean()) if can_rest else None,
        "static_largest_px": float(elsewhere.max()) if can_rest else None,
        "mean_px": float(displacement_px.mean()),
    }


def mean_by_repository(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Average each metric over the photographs of a repository ("source"), then over repositories; None of nothing."""
    return {name: mean_by_source(rows, name) for name in METRICS}
