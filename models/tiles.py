"""Convolutions over an image tile by tile: the same result as on the whole, in the memory of a tile.

Tiles, all of one size, overlap by the network's receptive field; what does not depend on the cut is kept of each.
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(maps: Tensor, multiple: int) -> Tensor:
    """Return (B, C, H, W), its border repeated at the bottom and the right until H and W are multiples."""
    bottom, right = (-side % multiple for side in maps.shape[-2:])
    return F.pad(maps, (0, right, 0, bottom), mode="replicate") if bottom or right else maps


def windows(length: int, tile: int, margin: int, multiple: int) -> list[tuple[int, int, int, int]]:
    """Cut an axis into tiles (start, stop, and of the part that is kept: start, stop), all multiples of `multiple`."""
    tile, margin = (-(-value // multiple) * multiple for value in (tile, margin))
    size = tile + 2 * margin
    if length <= size:
        return [(0, length, 0, length)]
    starts = [*range(0, length - size, tile), length - size]
    stops = [*(start + size - margin for start in starts[:-1]), length]
    return list(zip(starts, [start + size for start in starts], [0, *stops[:-1]], stops, strict=True))


def in_tiles(
    network: Callable[[list[Tensor]], Sequence[Tensor]],  # maps of several scales to maps of several scales
    inputs: Sequence[Tensor],  # (B, C, H / 2^r, W / 2^r); the first at full size, sides multiples of `multiple`
    *,
    tile: int,  # side of the kept part of a tile, px of the first map; 0: the whole at once
    margin: int,  # at least half the network's receptive field, px of the first map
    multiple: int,  # the reduction of the coarsest map, of inputs and outputs
) -> list[Tensor]:
    """Return network(inputs), computed in tiles."""
    height, width = inputs[0].shape[-2:]
    rows, columns = (windows(length, tile or length, margin, multiple) for length in (height, width))
    if len(rows) == len(columns) == 1:
        return list(network(list(inputs)))
    outputs: list[Tensor] = []
    for row, column in product(rows, columns):
        pieces = []
        for maps in inputs:
            top, bottom, left, right = (side // (height // maps.shape[-2]) for side in (*row[:2], *column[:2]))
            pieces.append(maps[..., top:bottom, left:right])
        parts = network(pieces)
        reductions = [(row[1] - row[0]) // part.shape[-2] for part in parts]
        if not outputs:
            outputs = [_whole(part, height // r, width // r) for part, r in zip(parts, reductions, strict=True)]
        for whole, part, r in zip(outputs, parts, reductions, strict=True):
            y, x, top, bottom, left, right = (side // r for side in (row[0], column[0], *row[2:], *column[2:]))
            whole[..., top:bottom, left:right] = part[..., top - y : bottom - y, left - x : right - x]
    return outputs


def _whole(part: Tensor, height: int, width: int) -> Tensor:
    """Return memory for the whole of which `part` is a piece, in its layout."""
    last = part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((*part.shape[:2], height, width), dtype=part.dtype, device=part.device, memory_format=layout)
