"""Flames and cloth of the procedural scenes: sheets that waves travel through. Lengths are px."""

import math
from collections.abc import Sequence

import numpy as np
from numpy import ndarray as Array

from data.scenes.mesh import FLAT, WEAVE, Look
from data.scenes.stage import Stage, palette

# Of each wave: range of Hz, drive, range of radians over the sheet's reach, direction, damping.
FLAME_WAVES = (
    ((0.3, 0.9), 0.16, (0.5, 1.5), (1, 0.1), 0.3),
    ((1.2, 3.0), 0.1, (2, 4), (1, 0), 0.3),
    ((3.0, 7.0), 0.07, (4, 7), (1, 0), 0.3),
    ((0.8, 5.0), 0.1, (0.5, 1.5), (0, 1), 0.3),
)
CLOTH_WAVES = (((0.15, 0.5), 0.09, (0.5, 2), 0.3), ((0.6, 1.4), 0.09, (3, 6), 0.15), ((1.3, 2.8), 0.05, (6, 11), 0.15))


def _add_sheet(
    stage: Stage, grid: Array, colour: Array, hold: Array, reach: Array, waves: Sequence, limit: float, look: Look
) -> None:
    """Add a waving sheet on grid (R, C, 2): cells coloured by colour (R-1, C-1, 3) or points (R, C, 3).

    A wave is two oscillators in quadrature: A hold cos(number reach - w t), hold and reach (R, C); hold 0: pinned.
    """
    rng, mesh, (rows, columns) = stage.rng, stage.mesh, grid.shape[:2]
    numbers, vectors, centre = [], [], grid.reshape(-1, 2).mean(0)[None]
    for band, gain, turns, direction, damping in waves:
        hertz, number = rng.uniform(*band), rng.uniform(*turns)
        swing = {"hertz": hertz, "gain": gain, "damping": damping, "limit": limit, "scatter": 1.0}
        for quadrature, amount in ((0.0, np.cos(number * reach)), (np.pi / 2, np.sin(number * reach))):
            numbers += list(mesh.add_freedoms(centre, quadrature=quadrature, same_group=quadrature > 0, **swing))
            vectors.append((hold * amount)[..., None] * np.asarray(direction))
    n = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1, 1)
    cells = n + np.array([[0, 1, columns + 1, columns]])
    points = grid.reshape(-1, 2)[cells]
    directions = np.stack(vectors, 2).reshape(-1, len(numbers), 2)[cells]
    of_cells = colour.shape[:2] == (rows - 1, columns - 1)
    tint = np.repeat(colour.reshape(-1, 1, 3), 4, 1) if of_cells else colour.reshape(-1, 3)[cells]
    moves = (np.broadcast_to(np.asarray(numbers), (*points.shape[:2], len(numbers))), directions)
    mesh.add(points, np.array([[0, 1, 2], [0, 2, 3]]), tint, moves, points * 5.0, look)


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
    hold, reach = (s**1.4 + 0 * across) * height, s + 0 * across
    _add_sheet(stage, grid, colour, hold, reach, FLAME_WAVES, 0.4, Look(depth, 0.0, FLAT, 2))


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
    main = np.array([1.0, 0.25]) * 0.6 if hangs else np.array([0.35, 1.0])
    directions = (main, main, main[::-1] * [1, -0.6])
    waves = [(*wave[:3], way, wave[3]) for wave, way in zip(CLOTH_WAVES, directions, strict=True)]
    hold, reach = away**1.1 * (0.8 * width if hangs else height), away + 0.3 * side
    _add_sheet(stage, grid, np.clip(cells, 0, 1), hold, reach, waves, 0.55, Look(0.0, 0.12, WEAVE))


FLAG_COLOURS = np.array(palette("80 10 12, 95 95 93, 10 20 50, 5 45 20, 95 80 10, 6 6 7, 95 50 10, 35 60 85"))


def flag_colours(rng: np.random.Generator) -> Array:
    """Colours (24, 30, 3) of the cells of a flag: bands, stripes with a corner, a cross, or plain."""
    some = FLAG_COLOURS[rng.permutation(len(FLAG_COLOURS))]
    cells = np.tile(some[0], (24, 30, 1))
    style = rng.choice(["rows", "columns", "stripes", "cross", "plain"])
    if style == "rows":
        cells[:] = some[np.arange(24) // 8][:, None]
    elif style == "columns":
        cells[:] = some[np.arange(30) // 10]
    elif style == "stripes":
        cells[:] = some[(np.arange(24) // 2) % 2][:, None]
        cells[:12, :13] = some[2]
    elif style == "cross":
        cells[10:14] = cells[:, 9:13] = some[1]
    return cells
