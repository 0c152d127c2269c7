"""A user's own photographs in the procedural scenes: still backgrounds, and the grain of surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from os import PathLike

import cv2
import numpy as np

from data.media import read_image
from data.scenes.mesh import BARK, BRICK, FIBRE, FOLIAGE, MOTTLED, PLANKS, STONE, TEXELS, TILES, WEAVE

FRACTION = 0.5  # of the scenes, and of the materials of a scene, that are made with photographs
READ_SIDE_PX = 640  # enough for images of 256 x 160 px
# A fire in daylight would not shine, and lily pads float on nothing but water.
DARK_KINDS = ("candle", "campfire")
NEVER_KINDS = ("lilies",)


@lru_cache(maxsize=32)
def _read(path: str) -> np.ndarray:
    return np.ascontiguousarray(read_image(path, max_side=READ_SIDE_PX).numpy().transpose(1, 2, 0))


def _pick(rng: np.random.Generator, paths: Sequence[str | PathLike[str]]) -> np.ndarray:
    return _read(str(paths[int(rng.integers(len(paths)))]))


def _crop(rng: np.random.Generator, image: np.ndarray, size: tuple[int, int], largest: float) -> np.ndarray:
    """Cut a part of image (H, W, 3) in the shape of size, enlarged up to `largest` times, perhaps mirrored."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1]) / rng.uniform(1, largest)
    rows, columns = max(2, round(size[0] * scale)), max(2, round(size[1] * scale))
    top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
    part = image[top : top + rows, left : left + columns]
    part = part[:, ::-1] if rng.random() < 0.5 else part
    way = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return np.clip(cv2.resize(np.ascontiguousarray(part), size[::-1], interpolation=way), 0, 1)


def background(
    paths: Sequence[str | PathLike[str]], rng: np.random.Generator, size: tuple[int, int], kind: str
) -> np.ndarray | None:
    """Draw the background (H, W, 3) of a scene from photographs, sharp or out of focus; None: keep the painted one."""
    if not paths or rng.random() >= FRACTION or kind in NEVER_KINDS:
        return None
    part = _crop(rng, _pick(rng, paths), size, 1.8)
    sigma = float(rng.choice([0.0, rng.uniform(0.5, 3.5)])) * (size[0] * size[1] / (160 * 256)) ** 0.5
    part = cv2.GaussianBlur(part, (0, 0), sigma) if sigma > 0 else part
    light = rng.uniform(0.05, 0.3) if kind in DARK_KINDS else np.exp(rng.normal(0, 0.15))
    return np.clip(part * light, 0, 1).astype(np.float32)


def textures(paths: Sequence[str | PathLike[str]], rng: np.random.Generator, atlas: np.ndarray) -> np.ndarray:
    """Replace some materials of the atlas (M, S, S) by the light and dark of photographs, mirrored to tile."""
    if not paths:
        return atlas
    atlas, half = atlas.copy(), TEXELS // 2
    for material in (MOTTLED, FIBRE, BRICK, PLANKS, BARK, STONE, FOLIAGE, TILES, WEAVE):
        if rng.random() >= FRACTION:
            continue
        tile = _crop(rng, _pick(rng, paths), (half, half), 3.0) @ np.array([0.3, 0.59, 0.11], np.float32)
        tile = tile - cv2.GaussianBlur(tile, (0, 0), half / 5)
        tile = np.clip(0.45 * tile / (tile.std() + 0.02), -1, 1)
        tile = np.concatenate([tile, tile[:, ::-1]], 1)
        atlas[material] = np.concatenate([tile, tile[::-1]])
    return atlas
