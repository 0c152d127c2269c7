"""What the parts of one procedural scene share: random numbers, size, mesh, background and colours."""

from __future__ import annotations

import math

import numpy as np

from data.scenes.mesh import Mesh

MOODS = ("day", "day", "day", "overcast", "overcast", "sunset", "dusk", "white")

Palette = tuple[tuple[float, float, float], ...]
GREENS: Palette = (
    (0.22, 0.40, 0.10),
    (0.36, 0.52, 0.16),
    (0.15, 0.30, 0.11),
    (0.45, 0.60, 0.18),
    (0.28, 0.42, 0.22),
    (0.50, 0.62, 0.10),
    (0.12, 0.24, 0.12),
)
AUTUMN: Palette = ((0.85, 0.55, 0.10), (0.80, 0.30, 0.08), (0.90, 0.70, 0.18), (0.60, 0.16, 0.08), (0.68, 0.45, 0.18))
STRAW: Palette = ((0.78, 0.64, 0.36), (0.62, 0.46, 0.24), (0.82, 0.74, 0.52), (0.58, 0.36, 0.28), (0.45, 0.42, 0.2))
BARKS: Palette = ((0.30, 0.22, 0.15), (0.42, 0.36, 0.30), (0.20, 0.15, 0.11), (0.55, 0.52, 0.47))
PETALS: Palette = (
    (0.95, 0.93, 0.90),
    (0.95, 0.80, 0.10),
    (0.85, 0.10, 0.12),
    (0.90, 0.45, 0.65),
    (0.45, 0.25, 0.75),
    (0.25, 0.40, 0.90),
    (0.95, 0.50, 0.08),
    (0.75, 0.15, 0.45),
    (0.70, 0.55, 0.90),
    (0.98, 0.92, 0.60),
)


class Stage:
    """A scene while it is drawn.

    Attributes:
        rng: the only source of randomness.
        size, height, width: px; scale: px of this image per px of one of 256 x 160.
        atlas: the textures (M, S, S).
        mesh: what is in the scene; background (H, W, 3): what is painted behind it.
        horizon: its row.
        blurs: of the layers far, middle and near, px; changes: of the camera's finish.
        mood: of the light, one of MOODS.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], atlas: np.ndarray) -> None:
        self.rng, self.size, self.atlas = rng, size, atlas
        self.height, self.width = size
        self.scale = math.sqrt(size[0] * size[1] / (160 * 256))
        self.mesh = Mesh()
        self.background = np.zeros((*size, 3), np.float32)
        self.horizon = self.height * 0.6
        self.blurs = [0.0, 0.0, 0.0]
        self.changes: dict[str, object] = {}
        self.mood = str(rng.choice(MOODS))

    def chance(self, fraction: float) -> bool:
        """True in `fraction` of the scenes."""
        return bool(self.rng.random() < fraction)

    def choice(self, options: list[str] | tuple[str, ...], p: list[float] | None = None) -> str:
        """One of some names."""
        return str(self.rng.choice(options, p=p))

    def number(self, low: int, high: int) -> int:
        """A whole number, `low` to `high - 1`."""
        return int(self.rng.integers(low, high))

    def in_the_dark(self, factor: float, otherwise: float = 1.0) -> float:
        """`factor` at sunset and dusk."""
        return factor if self.mood in ("dusk", "sunset") else otherwise

    def pick(self, palette: Palette, spread: float = 0.04) -> np.ndarray:
        """One colour (3,) of a palette, varied."""
        colour = np.asarray(palette[int(self.rng.integers(len(palette)))])
        return np.clip(colour + self.rng.normal(0, spread, 3), 0.02, 1)

    def vary(self, colour: np.ndarray, count: int, light: float = 0.18, hue: float = 0.05) -> np.ndarray:
        """Colours (N, 3) about one: each with a brightness and a hue of its own."""
        bright = np.exp(self.rng.normal(0, light, (count, 1)))
        return np.clip(colour * bright * (1 + self.rng.normal(0, hue, (count, 3))), 0.01, 1.0)

    def foliage_colour(self, autumn: float) -> np.ndarray:
        """A colour of leaves, in the fraction `autumn` of the cases that of autumn."""
        return self.pick(AUTUMN if self.chance(autumn) else GREENS)
