"""What the parts of one procedural scene share: random numbers, size, mesh, background and colours."""

import math

import numpy as np
from numpy import ndarray as Array

from data.scenes.mesh import Mesh
from motion.flow import MOTION_AREA_PX

MOODS = ("day", "day", "day", "overcast", "overcast", "sunset", "dusk", "white")

Palette = tuple[tuple[float, float, float], ...]


def palette(percent: str) -> Palette:
    """Colours from their percentages of red, green and blue: "22 40 10, 36 52 16"."""
    return tuple(tuple(int(part) / 100 for part in colour.split()) for colour in percent.split(","))


GREENS = palette("22 40 10, 36 52 16, 15 30 11, 45 60 18, 28 42 22, 50 62 10, 12 24 12")
AUTUMN = palette("85 55 10, 80 30 8, 90 70 18, 60 16 8, 68 45 18")
STRAW = palette("78 64 36, 62 46 24, 82 74 52, 58 36 28, 45 42 20")
BARKS = palette("30 22 15, 42 36 30, 20 15 11, 55 52 47")
PETALS = palette("95 93 90, 95 80 10, 85 10 12, 90 45 65, 45 25 75, 25 40 90, 95 50 8, 75 15 45, 70 55 90, 98 92 60")


def px_scale(size: tuple[int, int]) -> float:
    """Px of an image of this size (H, W) per px of one of 256 x 160."""
    return math.sqrt(size[0] * size[1] / MOTION_AREA_PX)


class Stage:
    """A scene while it is drawn; lengths are px."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, self.size = rng, size  # rng: the only source of randomness
        self.height, self.width = size
        self.scale = px_scale(size)
        self.mesh = Mesh()
        self.background = np.zeros((*size, 3), np.float32)
        self.horizon = self.height * 0.6  # a row
        self.blurs = [0.0, 0.0, 0.0]  # of the layers far, middle and near, px
        self.changes: dict[str, object] = {}  # of the camera's finish
        self.mood = str(rng.choice(MOODS))  # of the light

    def chance(self, fraction: float) -> bool:
        return bool(self.rng.random() < fraction)

    def choice(self, options: list[str] | tuple[str, ...], p: list[float] | None = None) -> str:
        return str(self.rng.choice(options, p=p))

    def number(self, low: int, high: int) -> int:
        """A whole number, `low` to `high - 1`."""
        return int(self.rng.integers(low, high))

    def in_the_dark(self, factor: float, otherwise: float = 1.0) -> float:
        """`factor` at sunset and dusk."""
        return factor if self.mood in ("dusk", "sunset") else otherwise

    def pick(self, colours: Palette, spread: float = 0.04) -> Array:
        """One colour (3,) of a palette, varied."""
        colour = np.asarray(colours[int(self.rng.integers(len(colours)))])
        return np.clip(colour + self.rng.normal(0, spread, 3), 0.02, 1)

    def vary(self, colour: Array, count: int, light: float = 0.18, hue: float = 0.05) -> Array:
        """Colours (N, 3) about one: each with a brightness and a hue of its own."""
        bright = np.exp(self.rng.normal(0, light, (count, 1)))
        return np.clip(colour * bright * (1 + self.rng.normal(0, hue, (count, 3))), 0.01, 1.0)

    def foliage_colour(self, autumn: float) -> Array:
        """A colour of leaves, in the fraction `autumn` of the cases that of autumn."""
        return self.pick(AUTUMN if self.chance(autumn) else GREENS)
