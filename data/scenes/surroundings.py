"""Surroundings of a procedural scene, and the stands of grass and flowers that several kinds share."""

import math
from typing import Any

import numpy as np
from numpy import ndarray as Array

from data.scenes import backgrounds, plants, rigid
from data.scenes.elements import add_leaves, add_rectangle, add_strips
from data.scenes.flowers import FLOWERS, flower_heads
from data.scenes.mesh import BRICK, MOTTLED, PLANKS, STONE, Chain, along, bend, still
from data.scenes.stage import AUTUMN, GREENS, PETALS, STRAW, Stage, palette

FLOORS = {"earth": (0.42, 0.32, 0.22), "road": (0.45, 0.44, 0.44), "sand": (0.78, 0.68, 0.5), "water": (0.2, 0.34, 0.4)}
ROOM_TABLES = palette("50 33 20, 85 84 82, 30 20 14, 60 52 42")
HEART_COLOURS = palette("90 70 10, 35 20 8, 95 85 30")


def landscape(stage: Stage, horizon: float | None = None, floor: str | None = None) -> None:
    """Paint the sky, perhaps hills, and ground; horizon: as a fraction of the height."""
    rng = stage.rng
    stage.horizon = stage.height * (rng.uniform(0.35, 0.8) if horizon is None else horizon)
    stage.background = backgrounds.sky(rng, stage.size, stage.mood)
    tint = stage.pick(GREENS) * stage.in_the_dark(0.35, 0.8)
    if stage.chance(0.7):
        backgrounds.hills(rng, stage.background, stage.horizon, tint, stage.number(1, 4))
    floor = floor or stage.choice(["grass", "grass", "grass", "earth", "road", "water", "sand"])
    # Drawn in any case, so that all floors leave the generator alike.
    grass = stage.pick(GREENS if stage.chance(0.75) else STRAW)
    colour = np.array(FLOORS[floor]) if floor in FLOORS else grass
    backgrounds.ground(rng, stage.background, stage.horizon, colour * stage.in_the_dark(0.5), floor)


def soft(stage: Stage) -> None:
    """Paint a background out of focus: foliage, a wood, a wall, the sky or plain paper."""
    rng = stage.rng
    choices = ("bokeh", "forest", "wall", "sky", "plain", "landscape")
    choice = stage.choice(choices, p=[0.42, 0.14, 0.12, 0.16, 0.06, 0.1])
    if choice == "bokeh":
        colour = stage.pick(GREENS + AUTUMN + STRAW if stage.chance(0.3) else GREENS, 0.08) * rng.uniform(0.25, 1.3)
        stage.background = backgrounds.bokeh(rng, stage.size, colour, stage.scale)
    elif choice == "forest":
        stage.background = backgrounds.forest(rng, stage.size, stage.pick(GREENS) * 0.6, stage.scale)
    elif choice == "wall":
        wall(stage)
    elif choice == "sky":
        stage.background = backgrounds.sky(rng, stage.size, stage.mood)
    elif choice == "plain":
        tone = rng.choice([0.95, 0.06, 0.5]) * np.ones(3) * (1 + rng.normal(0, 0.05, 3))
        stage.background = backgrounds.surface(rng, stage.size, tone, MOTTLED, stage.scale)
    else:
        landscape(stage)
    if choice in ("bokeh", "forest") and stage.chance(0.85):
        _backdrop(stage)


def _backdrop(stage: Stage) -> None:
    """Let leaves far out of focus sway in layer 0, in the colours of what is painted behind them."""
    rng, leaf = stage.rng, stage.scale * stage.rng.uniform(9, 26)
    count = int(np.clip(0.55 * stage.height * stage.width / leaf**2, 15, 220) * rng.uniform(0.5, 1.3))
    spot = rng.uniform(-0.1, 1.1, (count, 2)) * [stage.width, stage.height]
    y, x = np.clip(spot[:, ::-1].astype(int), 0, [stage.height - 1, stage.width - 1]).T
    colour = np.clip(stage.vary(stage.background[y, x], count, 0.3, 0.06), 0.01, 1)
    # Leaves of one bough are near one another: the gusts' own correlation keeps them together.
    sway = stage.mesh.add_freedoms(spot, hertz=rng.uniform(0.5, 1.1), gain=0.3 * leaf, scatter=0.25, limit=99.0)
    carrier = still(count).with_freedoms(sway, np.stack([np.ones(count), rng.uniform(-0.4, 0.4, count)], -1))
    size = leaf * np.exp(rng.normal(0, 0.3, count))
    angle, wide = rng.uniform(0, 2 * math.pi, count), size * rng.uniform(0.4, 0.9, count)
    depth, shape = rng.uniform(-9, -8, count), stage.choice(["oval", "round", "lance"])
    add_leaves(stage.mesh, carrier, spot, angle, size * 1.6, wide, colour, depth=depth, shape=shape, layer=0)
    stage.blurs[0] = rng.uniform(2, 5) * stage.scale


def wall(stage: Stage) -> None:
    """Paint a wall face on."""
    material = int(stage.rng.choice([BRICK, PLANKS, MOTTLED, STONE]))
    stage.background = backgrounds.surface(stage.rng, stage.size, stage.pick(rigid.WALLS), material, stage.scale)


def room(stage: Stage) -> float:
    """Add a wall, furniture and a table or floor; returns the row of the table's edge."""
    wall(stage)
    edge = stage.height * stage.rng.uniform(0.68, 0.9)
    if stage.chance(0.7):
        rigid.furniture(stage, edge)
    look = {"material": PLANKS, "strength": 0.25, "gradient": (1.1, 0.75), "texel": 1.5 / stage.scale}
    tall = stage.height - edge + 4
    add_rectangle(stage.mesh, -2, edge, stage.width + 4, tall, stage.pick(ROOM_TABLES), -1.5, **look)
    return edge


def distract(stage: Stage, fraction: float = 0.6, *, front: bool = True) -> None:
    """Perhaps add still things behind, beside and partly before what moves."""
    rng, (height, width) = stage.rng, stage.size
    foot = min(stage.horizon + 0.08 * height, height)
    if not stage.chance(fraction):
        return
    choice = stage.choice(["house", "house", "fence", "stones", "bench", "trunk", "pole"])
    depth = float(rng.choice([-3.0, 6.0])) if front else -3.0
    if choice == "house":
        wide = width * rng.uniform(0.15, 0.5)
        rigid.house(stage, rng.uniform(-0.1, 0.85) * width, foot, wide, wide * rng.uniform(0.45, 1.1), -3.5)
    elif choice == "fence":
        rigid.fence(stage, height * 1.02 if depth > 0 else foot, height * rng.uniform(0.12, 0.28), depth)
    elif choice == "stones":
        rigid.boulders(stage, stage.horizon + 0.1 * height, 2.0, stage.number(2, 12), stage.scale)
    elif choice == "bench":
        rigid.bench(stage, rng.uniform(0, 0.7) * width, foot + 0.1 * height, width * rng.uniform(0.15, 0.3), depth)
    elif choice == "trunk":
        rigid.trunk(stage, rng.uniform(0, 1) * width, height * 1.05, stage.scale * rng.uniform(5, 26), depth)
    else:
        rigid.pole(stage, rng.uniform(0, 1) * width, foot + 5, height, stage.scale * rng.uniform(2, 6), depth)


def lawn(stage: Stage, fraction: float) -> None:
    """Perhaps let short grass grow in front."""
    if stage.chance(fraction):
        meadow(stage, stage.number(250, 900), stage.rng.uniform(0.05, 0.16))


def meadow(
    stage: Stage,
    count: int,
    tall: float,
    colour: Array | None = None,
    *,
    top: float | None = None,
    lean: float = 0.0,
    gain: float = 0.25,
    layer: int = 1,
) -> tuple[Chain, Array]:
    """Add blades in perspective below the horizon; returns them and how near they are (N,), 0 to 1 (larger ones)."""
    rng, points = stage.rng, 5
    top = stage.horizon if top is None else top
    near = np.sort(rng.uniform(0, 1, count) ** 0.75)
    base = np.stack([rng.uniform(-0.05, 1.05, count) * stage.width, top + near * (stage.height * 1.12 - top)], -1)
    height = stage.height * tall * (0.3 + 0.9 * near) * np.exp(rng.normal(0, 0.25, count))
    tint = stage.pick(GREENS if stage.chance(0.75) else STRAW) if colour is None else colour
    colours = stage.vary(tint * stage.in_the_dark(0.72), count, 0.22, 0.08) * (0.75 + 0.35 * near[:, None])
    half_width = np.maximum(rng.uniform(0.009, 0.02) * height, 0.4 * stage.scale)
    hertz = rng.uniform(0.8, 1.8)
    angle = plants.UP + lean + rng.normal(0, 0.25, count)
    line = along(base, angle, height, rng.normal(0.5 * lean, 0.6, count), points)
    pace = hertz * (np.median(height) / np.maximum(height, 1.0)) ** 0.5 * np.exp(rng.normal(0, 0.15, count))
    blades = bend(stage.mesh, still(count), line, hertz=pace, gain=gain, scatter=0.35)
    widths = half_width[:, None] * np.linspace(1, 0.12, points) ** 0.8
    shade = np.linspace(0.55, 1.15, points)[None, :, None] * np.clip(colours, 0, 1)[:, None]
    add_strips(stage.mesh, blades, widths, shade, depth=near * 4, layer=layer)
    return blades, near


def heads_on(stage: Stage, stems: Chain, near: Array, radius: float) -> None:
    """Add flowers of one or two sorts at the tips of stems."""
    rng, count = stage.rng, len(near)
    if count == 0:
        return
    for part in np.array_split(rng.permutation(count), stage.number(1, 3)):
        if len(part) == 0:
            continue
        style = stage.choice(FLOWERS, p=[0.3, 0.16, 0.08, 0.1, 0.08, 0.1, 0.1, 0.08])
        size = np.maximum(radius * (0.35 + 0.9 * near[part]) * np.exp(rng.normal(0, 0.15, len(part))), 1.0)
        look = {"style": style, "colour": stage.pick(PETALS), "heart": stage.pick(HEART_COLOURS)}
        flower_heads(stage, stems.take(part).tips(), size, depth=near[part] * 4 + 0.1, **look)


def stems_with_heads(
    stage: Stage, foot: Array, head: Array, radius: float, green: Array, layer: int, **flower: Any
) -> None:
    """Add a flower on a stem from each foot (N, 2) to its head (N, 2), with leaves on some; style, colour, heart."""
    rng, count = stage.rng, len(foot)
    if count == 0:
        return
    reach, depth = head - foot, rng.uniform(0, 1, count)
    bow = rng.normal(0, 0.25, count)
    line = along(foot, np.arctan2(reach[:, 1], reach[:, 0]) - bow / 2, np.linalg.norm(reach, axis=1), bow, 7)
    stems = bend(stage.mesh, still(count), line, hertz=rng.uniform(0.6, 1.4), gain=0.2, scatter=0.25)
    thick, tint = max(radius * rng.uniform(0.04, 0.09), 0.5), stage.vary(green, count, 0.1)
    add_strips(stage.mesh, stems, thick, tint, depth=depth - 0.2, layer=layer)
    ends, size = stems.tips(), radius * np.exp(rng.normal(0, 0.12, count))
    flower_heads(stage, ends, size, depth=depth + 0.1, layer=layer, **flower)
    which = np.repeat(np.arange(count), stage.number(0, 6))
    many = len(which)
    if many:
        spots, green = stems.at(which, rng.integers(1, 6, many)), stage.vary(green, many, 0.2)
        angle = ends.heading[which] + rng.choice([-1, 1], many) * rng.uniform(0.4, 1.3, many)
        size = radius * rng.uniform(0.5, 1.2, many)
        wide, depth = size * rng.uniform(0.2, 0.5), depth[which] + rng.uniform(-0.3, 0.05, many)
        look = {"depth": depth, "shape": "lance", "bow": rng.normal(0, 0.25, many), "layer": layer}
        add_leaves(stage.mesh, spots.carrier, spots.place, angle, size, wide, green, **look)
