"""Flames and cloth of the procedural scenes: sheets that waves travel through. Lengths are px."""

from __future__ import annotations

import math

import numpy as np

from data.scenes.elements import add_sheet
from data.scenes.mesh import FLAT, Mesh


def flame(
    mesh: Mesh,
    rng: np.random.Generator,
    foot: tuple[float, float],
    height: float,
    half_width: float,
    *,
    depth: float,
    fire: bool = False,
    layer: int = 1,
    lean: float = 0.0,
    heat: float = 1.0,
) -> None:
    """Add a flame pinned at its foot: white to orange, travelling bends and a flickering height."""
    s, across = np.linspace(0, 1, 14)[:, None], np.linspace(-1, 1, 9)[None]
    profile = np.sin(math.pi * np.clip(s, 0.02, 1) ** (0.62 if fire else 0.5)) ** (0.8 if fire else 0.9)
    profile = np.maximum(profile, 0.5 * (1 - s)) * (1 - s**6)
    wiggle = (0.3 * half_width * s * np.sin(5 * s + rng.uniform(0, 6))) if fire else 0.0
    x = foot[0] + half_width * profile * across + lean * height * s**2 + wiggle
    grid = np.stack([x, foot[1] - height * s + 0 * across], -1)
    core = np.clip(1.15 - np.abs(across) ** 2 * 0.9 - (0.75 if fire else 0.25) * s, 0, 1) ** 0.8 * heat
    blue = np.clip(1 - s * 7, 0, 1) * (0 if fire else 1)
    red = np.clip(0.55 + 1.2 * core, 0, 1)
    colour = np.stack(
        [
            red - 0.55 * blue,
            np.clip(1.25 * core**1.1 + 0.05, 0, 1) - 0.3 * blue,
            np.clip(1.5 * core - 0.62, 0, 1) * (0.7 if fire else 1) + 0.3 * blue,
        ],
        -1,
    )
    reach, hold = s + 0 * across, (s**1.4 + 0 * across) * height
    waves = [
        {
            "hertz": rng.uniform(*band),
            "gain": gain,
            "number": rng.uniform(*number),
            "direction": way,
            "damping": 0.3,
            "limit": 0.4,
        }
        for band, gain, number, way in (
            ((0.3, 0.9), 0.16, (0.5, 1.5), (1, 0.1)),
            ((1.2, 3.0), 0.1, (2, 4), (1, 0)),
            ((3.0, 7.0), 0.07, (4, 7), (1, 0)),
            ((0.8, 5.0), 0.1, (0.5, 1.5), (0, 1)),
        )
    ]
    add_sheet(
        mesh,
        grid,
        np.clip(colour, 0, 1),
        hold=hold,
        reach=reach,
        waves=waves,
        depth=depth,
        strength=0.0,
        layer=layer,
        material=FLAT,
    )


def cloth(
    mesh: Mesh,
    rng: np.random.Generator,
    corner: tuple[float, float],
    width: float,
    height: float,
    *,
    pinned: str,
    colour: np.ndarray,
    depth: float,
    layer: int = 1,
) -> None:
    """Add cloth held at its left ("pole"), right ("pole_right") or upper edge ("line"); colour (R, C, 3): its cells."""
    rows, columns = colour.shape[0] + 1, colour.shape[1] + 1
    v, u = np.linspace(0, 1, rows)[:, None], np.linspace(0, 1, columns)[None]
    away = {"pole": u + 0 * v, "pole_right": 1 - u + 0 * v, "line": v + 0 * u}[pinned]
    side = {"pole": v + 0 * u, "pole_right": v + 0 * u, "line": u + 0 * v}[pinned]
    folds = rng.uniform(4, 11) if pinned != "line" else rng.uniform(1, 4)
    phase = folds * away + rng.uniform(-2.5, 2.5) * side * (1 if pinned != "line" else 5) + rng.uniform(0, 6)
    ripple = np.sin(phase) * away**0.7
    droop = rng.uniform(0.02, 0.3) if pinned != "line" else 0.0
    x = corner[0] + width * u + (0.03 * width * ripple if pinned == "line" else 0 * v)
    y = corner[1] + height * v + droop * height * away**1.3 + 0.06 * height * ripple * (pinned != "line")
    if pinned != "line":
        x = x + (-1 if pinned == "pole" else 1) * 0.05 * width * away * (1 + 0.3 * ripple)
    grid = np.stack([x + 0 * y, y + 0 * x], -1)
    light = 1 + rng.uniform(0.12, 0.35) * np.cos(phase + 0.6) * away**0.5
    cells = colour * ((light[:-1, :-1] + light[1:, 1:]) / 2)[..., None]
    main = np.array([0.35, 1.0]) if pinned != "line" else np.array([1.0, 0.25])
    reach = away + 0.3 * side
    hold = away**1.1 * (height if pinned != "line" else 0.8 * width)
    waves = [
        {
            "hertz": rng.uniform(0.15, 0.5),
            "gain": 0.09,
            "number": rng.uniform(0.5, 2),
            "direction": main,
            "damping": 0.3,
        },
        {"hertz": rng.uniform(0.6, 1.4), "gain": 0.09, "number": rng.uniform(3, 6), "direction": main, "damping": 0.15},
        {
            "hertz": rng.uniform(1.3, 2.8),
            "gain": 0.05,
            "number": rng.uniform(6, 11),
            "direction": main[::-1] * [1, -0.6],
            "damping": 0.15,
        },
    ]
    for wave in waves:
        wave["limit"] = 0.55
        wave["direction"] = np.asarray(wave["direction"]) * (1.0 if pinned != "line" else 0.6)
    add_sheet(mesh, grid, np.clip(cells, 0, 1), hold=hold, reach=reach, waves=waves, depth=depth, layer=layer)


def flag_colours(rng: np.random.Generator) -> np.ndarray:
    """Colours (24, 30, 3) of the cells of a flag: bands, stripes with a corner, a cross, or plain."""
    palette = np.array(
        [
            [0.8, 0.1, 0.12],
            [0.95, 0.95, 0.93],
            [0.1, 0.2, 0.5],
            [0.05, 0.45, 0.2],
            [0.95, 0.8, 0.1],
            [0.06, 0.06, 0.07],
            [0.95, 0.5, 0.1],
            [0.35, 0.6, 0.85],
        ]
    )
    some = palette[rng.permutation(len(palette))]
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
