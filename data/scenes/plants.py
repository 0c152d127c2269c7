"""Plants of the procedural scenes: grass, twigs, trees, palms. Lengths are px."""

import math

import numpy as np
from numpy import ndarray as Array

from data.scenes.elements import add_blobs, add_leaves, add_strips
from data.scenes.mesh import BARK, FOLIAGE, STONE, Carrier, Chain, Spots, along, bend, still, unit
from data.scenes.stage import BARKS, Stage

UP = -math.pi / 2


def leafy_twigs(
    stage: Stage,
    carrier: Carrier,
    base: Array,
    angle: Array,
    length: Array,
    colour: Array,
    *,
    leaf: float,
    per: int,
    shape: str,
    slim: float,
    depth: Array,
    layer: int = 1,
    droop: float = 0.0,
    wood: Array | None = None,
    light: float = 0.2,
) -> Chain:
    """Add twigs with leaves on both sides, riding on carrier (N items); returns the twigs."""
    rng, count, points = stage.rng, len(base), 5
    line = along(base, angle, length, rng.normal(0, 0.4, count), points)
    twigs = bend(stage.mesh, carrier, line, hertz=1.1 * np.exp(rng.normal(0, 0.25, count)), gain=0.16, scatter=0.4)
    wood = np.array([0.25, 0.2, 0.12]) if wood is None else wood
    widths = np.linspace(1.0, 0.4, points) * np.maximum(0.035 * leaf, 0.35)
    add_strips(stage.mesh, twigs, widths, stage.vary(wood, count), depth=depth - 0.01, layer=layer)
    where, which = np.tile(np.linspace(0.2, 1.0, per), count), np.repeat(np.arange(count), per)
    place, many = where * (points - 1), per * count
    low = np.minimum(place.astype(int), points - 2)
    further = (place - low)[:, None]
    start = line[which, low] * (1 - further) + line[which, low + 1] * further
    side = np.where(np.arange(many) % 2 == 0, 1.0, -1.0) * np.where(where > 0.95, 0.1, 1.0)
    turn = twigs.at(which, low + 1).heading + side * 0.9 * np.exp(rng.normal(0, 0.25, many)) + rng.normal(0, 0.2, many)
    turn = turn + droop * np.sin(math.pi / 2 - turn) * 0.7
    size = leaf * np.exp(rng.normal(0, 0.2, many)) * (1.1 - 0.35 * where)
    wide, tint = size * slim * rng.uniform(0.5, 1.1, many), stage.vary(colour, many, light)
    look = {"shape": shape, "depth": depth[which] + rng.uniform(0, 0.5, many), "bow": rng.normal(0, 0.15, many)}
    ride = twigs.carrier.take(which * points + low + (further[:, 0] > 0.5))
    tip = rng.uniform(0.85, 1.2)
    add_leaves(stage.mesh, ride, start, turn, size, wide, tint, layer=layer, hertz=2.2, tip=tip, **look)
    return twigs


# Of the styles of trees: height of the trunk, thickness, and half width, half height and middle of an oval crown.
STEM = {"round": 0.55, "tall": 0.6, "cone": 0.92, "bare": 0.6, "bush": 0.12}
THICK = {"bush": 0.4, "cone": 0.6}
CROWNS = {"round": (0.36, 0.3, 0.66), "tall": (0.2, 0.36, 0.62), "bare": (0.38, 0.34, 0.66), "bush": (0.62, 0.44, 0.38)}


def tree(
    stage: Stage,
    foot: tuple[float, float],
    height: float,
    colour: Array,
    *,
    depth: float,
    style: str = "round",
    leaf: float = 3.0,
    density: float = 1.0,
) -> None:
    """Add a tree: trunk, boughs into the crown, clumps of leaves; style round, tall, cone, bare or bush."""
    rng, mesh, stem = stage.rng, stage.mesh, STEM[style]
    wood, lean, bow = stage.pick(BARKS), np.array([UP + rng.normal(0, 0.06)]), rng.normal(0, 0.25, 1)
    trunk = along(np.array([foot]), lean, np.array([height * stem]), bow, 7)
    pace = (60 / max(height, 8)) ** 0.35
    held = bend(mesh, still(1), trunk, hertz=rng.uniform(0.35, 0.7) * pace, gain=0.06, scatter=0.2)
    thick = height * rng.uniform(0.022, 0.04) * THICK.get(style, 1.0)
    bark = {"material": BARK, "strength": 0.5, "shade": (0.6, 1.1, 0.8)}
    add_strips(mesh, held, np.linspace(1.25, 0.5, 7) * thick, wood[None], depth=depth - 0.5, **bark)
    many = density * (1.6 if style == "cone" else 1.0)
    clumps = int(np.clip(rng.integers(38, 75) * many, 12, 120))
    centre, spread = _crown(rng, style, foot, height, clumps)
    level = (foot[1] - centre[:, 1]) / height * 4.5 / max(stem, 0.1)
    start = np.clip(level.astype(int), 1 if style == "bush" else 2, 6)
    reach = centre - trunk[0, start]
    length = np.linalg.norm(reach, axis=1) + 1
    curve = rng.normal(0, 0.4, clumps)
    line = along(trunk[0, start], np.arctan2(reach[:, 1], reach[:, 0]) - curve / 2, length, curve, 5)
    hertz = rng.uniform(0.6, 1.2) * pace * np.exp(rng.normal(0, 0.2, clumps))
    boughs = bend(mesh, held.carrier.take(start), line, hertz=hertz, gain=0.09, scatter=0.35)
    near = rng.uniform(-0.4, 0.4, clumps)
    widths, tint = np.linspace(0.5, 0.12, 5) * thick, stage.vary(wood, clumps, 0.1)
    add_strips(mesh, boughs, widths, tint, depth=depth + near - 0.45, **bark)
    if style == "bare":
        _bare_twigs(stage, boughs, height, wood, depth)
    else:
        _clumps_of_leaves(stage, boughs.tips(), spread, height, colour, leaf, depth + near)


def _clumps_of_leaves(
    stage: Stage, ends: Spots, spread: Array, height: float, colour: Array, leaf: float, near: Array
) -> None:
    """Add clumps of leaves of radius spread (N,) about the ends of a crown's boughs, lit from one side."""
    rng, mesh, end, clumps = stage.rng, stage.mesh, ends.place, len(ends.place)
    above = np.clip((end[:, 1].max() - end[:, 1]) / height, 0, 1)
    sun = unit(np.array(rng.uniform(-2.7, -0.45)))
    facing = (end - end.mean(0)) @ sun / (0.3 * height)
    contrast = rng.uniform(0.15, 0.45)
    lit = np.clip(0.7 + 0.2 * above + contrast * facing + 0.3 * (near - near.mean()), 0.3, 1.4)[:, None]
    shadow = stage.vary(colour * 0.5, clumps, 0.12) * lit
    look = {"depth": near - 0.3, "rough": 0.3, "corners": 16, "material": FOLIAGE, "strength": 0.5}
    add_blobs(mesh, rng, ends.carrier, end, spread * 0.8, shadow, **look)
    per = int(np.clip(13 * (spread.mean() / leaf) ** 1.5, 14, 85))
    which, many = np.repeat(np.arange(clumps), per), clumps * per
    offset = rng.normal(0, 0.5, (many, 2)) * spread[which, None]
    top = np.clip(0.85 + (contrast + 0.15) * (offset @ sun) / spread[which], 0.35, 1.6)[:, None]
    outward = np.arctan2(offset[:, 1] + 0.4 * spread[which], offset[:, 0]) + rng.normal(0, 0.8, many)
    size = leaf * np.exp(rng.normal(0, 0.3, many))
    wide = size * rng.uniform(0.35, 0.75, many)
    tint = np.clip(stage.vary(colour, many, 0.22) * lit[which] * top, 0, 1)
    depth = near[which] + rng.uniform(-0.25, 0.25, many) - 0.15 * offset[:, 1] / spread[which]
    look = {"shape": "small", "depth": depth, "twist": False, "hertz": 2.3}
    add_leaves(mesh, ends.carrier.take(which), end[which] + offset, outward, size, wide, tint, **look)


def _crown(
    rng: np.random.Generator, style: str, foot: tuple[float, float], height: float, clumps: int
) -> tuple[Array, Array]:
    """Centres (N, 2) and radii (N,) of the clumps of leaves of a crown."""
    if style == "cone":
        up = rng.uniform(0.07, 1.0, clumps) ** 0.9
        x = rng.uniform(-1, 1, clumps) * 0.26 * (1.03 - up)
        centre = np.stack([foot[0] + x * height, foot[1] - up * height + np.abs(x) * 0.35 * height], -1)
        return centre, height * (0.03 + 0.06 * (1 - up))
    angle, r = rng.uniform(0, 2 * math.pi, clumps), np.sqrt(rng.uniform(0.02, 1, clumps))
    wide, high, middle = CROWNS[style]
    shape = np.stack([wide * np.cos(angle), high * np.sin(angle)], -1) * r[:, None]
    lobes = 1 + 0.16 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.12 * np.sin(5 * angle + rng.uniform(0, 6))
    centre = np.array(foot) + height * (shape * lobes[:, None] - [0, middle])
    if style == "bush":
        centre[:, 1] = np.minimum(centre[:, 1], foot[1] - 0.03 * height)
    return centre, height * rng.uniform(0.07, 0.14, clumps) * (1.15 - 0.4 * r)


def _bare_twigs(stage: Stage, boughs: Chain, height: float, wood: Array, depth: float) -> None:
    rng, chains, length = stage.rng, boughs, height * 0.17
    for generation, per in enumerate((4, 3)):
        count, points = chains.line.shape[:2]
        which, many = np.repeat(np.arange(count), per), count * per
        spots = chains.at(which, rng.integers(2, points, many))
        angle = spots.heading + rng.choice([-1, 1], many) * rng.uniform(0.25, 0.9, many)
        size, bow = length * np.exp(rng.normal(0, 0.3, many)), rng.normal(0, 0.4, many)
        line = along(spots.place, angle + (UP - angle) * 0.15, size, bow, 4)
        chains = bend(stage.mesh, spots.carrier, line, hertz=1.3 + generation, gain=0.1)
        widths = np.maximum(np.linspace(1, 0.5, 4) * height * (0.006 - 0.0025 * generation), 0.22)
        add_strips(stage.mesh, chains, widths, stage.vary(wood * 0.9, many, 0.1), depth=depth + 0.1 * generation)
        length *= 0.55


def palm(stage: Stage, foot: tuple[float, float], tall: float, colour: Array) -> None:
    """Add a palm: a trunk and fronds, ribs with leaflets on both sides."""
    rng, mesh, scale = stage.rng, stage.mesh, stage.scale
    line = along(np.array([foot]), np.array([UP + rng.normal(0, 0.12)]), np.array([tall]), rng.normal(0, 0.3, 1), 7)
    trunk = bend(mesh, still(1), line, hertz=rng.uniform(0.3, 0.6), gain=0.06)
    thick, bark = np.linspace(1.2, 0.8, 7) * scale * rng.uniform(1.5, 4), stage.pick(BARKS)[None]
    add_strips(mesh, trunk, thick, bark, depth=-0.2, strength=0.5, material=STONE)
    top, fronds = trunk.tips(), stage.number(9, 20)
    angle = np.linspace(-math.pi * 1.15, math.pi * 0.15, fronds) + rng.normal(0, 0.1, fronds)
    long = tall * rng.uniform(0.35, 0.75) * np.exp(rng.normal(0, 0.1, fronds))
    bow = 1.3 * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.5
    line = along(np.repeat(top.place, fronds, 0), angle, long, bow, 9)
    held = top.carrier.take(np.zeros(fronds, int))
    ribs = bend(mesh, held, line, hertz=rng.uniform(0.6, 1.2), gain=0.16, scatter=0.4)
    add_strips(mesh, ribs, np.linspace(1, 0.3, 9) * 0.8 * scale, stage.vary(colour, fronds), depth=0.0)
    per = 44
    which, at = np.repeat(np.arange(fronds), per), np.tile(np.repeat(np.arange(1, 9), 6)[:per], fronds)
    spots, many = ribs.at(which, at), fronds * per
    side = np.tile(np.where(np.arange(per) % 2 == 0, 1.0, -1.0), fronds)
    start = spots.place - (spots.place - line[which, at - 1]) * rng.uniform(0, 1, (many, 1))
    size = long[which] * 0.3 * np.sin(np.pi * (at + 1.5) / 11)
    turn = spots.heading + side * rng.uniform(0.5, 0.8)
    tint, depth = stage.vary(colour, many, 0.2), rng.uniform(0, 1, many)
    look = {"shape": "small", "bow": 0.12 * np.sign(np.cos(turn)), "twist": False}
    add_leaves(mesh, spots.carrier, start, turn, size, size * 0.17, tint, depth=depth, **look)
