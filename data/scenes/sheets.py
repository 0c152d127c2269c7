"""Flames and cloth of the procedural scenes: sheets that waves travel through. Lengths are px."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as Array

from data.scenes.elements import Wave, add_sheet
from data.scenes.mesh import FLAT
from data.scenes.stage import Stage, palette

# Waves of a flame: Hz, drive, radians over its height, direction
FLAME_WAVES = (
    ((0.3, 0.9), 0.16, (0.5, 1.5), (1, 0.1)),
    ((1.2, 3.0), 0.1, (2, 4), (1, 0)),
    ((3.0, 7.0), 0.07, (4, 7), (1, 0)),
    ((0.8, 5.0), 0.1, (0.5, 1.5), (0, 1)),
)


def flame(
    stage: Stage,
    foot: tuple[float, float],
    height: float,
    half_width: float,
    depth: float,
    fire: bool = False,
    lean: float = 0.0,
    heat: float = 1.0,
) -> None:
    """Add a flame pinned at its foot: white to orange, travelling bends and a flickering height."""
    rng = stage.rng
    s, across = np.linspace(0, 1, 14)[:, None], np.linspace(-1, 1, 9)[None]
    profile = np.sin(math.pi * np.clip(s, 0.02, 1) ** (0.62 if fire else 0.5)) ** (0.8 if fire else 0.9)
    profile = np.maximum(profile, 0.5 * (1 - s)) * (1 - s**6)
    wiggle = (0.3 * half_width * s * np.sin(5 * s + rng.uniform(0, 6))) if fire else 0.0
    x = foot[0] + half_width * profile * across + lean * height * s**2 + wiggle
    grid = np.stack([x, foot[1] - height * s + 0 * across], -1)
    core = np.clip(1.15 - np.abs(across) ** 2 * 0.9 - (0.75 if fire else 0.25) * s, 0, 1) ** 0.8 * heat
    cold = np.clip(1 - s * 7, 0, 1) * (0 if fire else 1)
    red = np.clip(0.55 + 1.2 * core, 0, 1) - 0.55 * cold
    green = np.clip(1.25 * core**1.1 + 0.05, 0, 1) - 0.3 * cold
    blue = np.clip(1.5 * core - 0.62, 0, 1) * (0.7 if fire else 1) + 0.3 * cold
    colour = np.clip(np.stack([red, green, blue], -1), 0, 1)
    waves = [
        Wave(rng.uniform(*band), gain, rng.uniform(*number), np.array(direction), 0.3, 0.4)
        for band, gain, number, direction in FLAME_WAVES
    ]
    hold, reach = (s**1.4 + 0 * across) * height, s + 0 * across
    add_sheet(stage.mesh, grid, colour, hold, reach, waves, depth=depth, strength=0.0, layer=2, material=FLAT)


def cloth(
    stage: Stage, corner: tuple[float, float], width: float, height: float, colour: Array, *, pinned: str
) -> None:
    """Add cloth held at its left ("pole"), right ("pole_right") or upper edge ("line"); colour (R, C, 3): its cells."""
    rng, hangs = stage.rng, pinned == "line"
    rows, columns = colour.shape[0] + 1, colour.shape[1] + 1
    v, u = np.linspace(0, 1, rows)[:, None], np.linspace(0, 1, columns)[None]
    away = {"pole": u + 0 * v, "pole_right": 1 - u + 0 * v, "line": v + 0 * u}[pinned]
    side = u + 0 * v if hangs else v + 0 * u
    folds = rng.uniform(1, 4) if hangs else rng.uniform(4, 11)
    phase = folds * away + rng.uniform(-2.5, 2.5) * side * (5 if hangs else 1) + rng.uniform(0, 6)
    ripple = np.sin(phase) * away**0.7
    droop = 0.0 if hangs else rng.uniform(0.02, 0.3)
    x = corner[0] + width * u + (0.03 * width * ripple if hangs else 0 * v)
    y = corner[1] + height * v + droop * height * away**1.3 + 0.06 * height * ripple * (not hangs)
    if not hangs:
        x = x + (-1 if pinned == "pole" else 1) * 0.05 * width * away * (1 + 0.3 * ripple)
    grid = np.stack([x + 0 * y, y + 0 * x], -1)
    light = 1 + rng.uniform(0.12, 0.35) * np.cos(phase + 0.6) * away**0.5
    cells = colour * ((light[:-1, :-1] + light[1:, 1:]) / 2)[..., None]
    main = np.array([1.0, 0.25]) if hangs else np.array([0.35, 1.0])
    force = 0.6 if hangs else 1.0
    waves = [
        Wave(rng.uniform(*band), gain, rng.uniform(*number), direction * force, damping, 0.55)
        for band, gain, number, direction, damping in (
            ((0.15, 0.5), 0.09, (0.5, 2), main, 0.3),
            ((0.6, 1.4), 0.09, (3, 6), main, 0.15),
            ((1.3, 2.8), 0.05, (6, 11), main[::-1] * [1, -0.6], 0.15),
        )
    ]
    hold, reach = away**1.1 * (0.8 * width if hangs else height), away + 0.3 * side
    add_sheet(stage.mesh, grid, np.clip(cells, 0, 1), hold, reach, waves, depth=0.0)


FLAG_COLOURS = np.array(palette("80 10 12, 95 95 93, 10 20 50, 5 45 20, 95 80 10, 6 6 7, 95 50 10, 35 60 85"))


def flag_colours(rng: np.random.Generator) -> Array:
    """Colours (24, 30, 3) of the cells of a flag: bands, stripes with a corner, a cross, or plain."""
    some = FLAG_COLOURS[rng.permutation(len(FLAG_COLOURS))]
    cells = np.zeros((24, 30, 3))
    style = rng.choice(["rows", "columns", "stripes", "cross", "plain"])
    if style == "rows":
        cells[:] = some[np.arange(24) // 8][:, None]
    elif style == "columns":
        cells[:] = some[np.arange(30) // 10][None]
    elif style == "stripes":
        cells[:] = some[(np.arange(24) // 2) % 2][:, None]
        cells[:12, :13] = some[2]
    else:
        cells[:] = some[0]
        if style == "cross":
            cells[10:14] = some[1]
            cells[:, 9:13] = some[1]
    return cells
