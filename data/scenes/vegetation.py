"""Kinds of procedural scenes that are about plants: compositions of background, plants and still things."""

import math
from typing import Any

import numpy as np
from numpy import ndarray as Array

from data.scenes import backgrounds, plants
from data.scenes.elements import add_strips
from data.scenes.flowers import FLOWERS, flower_heads, plumes
from data.scenes.mesh import along, bend, still
from data.scenes.stage import BARKS, GREENS, PETALS, STRAW, Stage, palette
from data.scenes.surroundings import distract, heads_on, landscape, lawn, meadow, soft, stems_with_heads, wall

CLOSE_HEART_COLOURS = palette("90 70 10, 30 20 8, 95 90 40")
BLOSSOMS = palette("96 78 85, 97 95 93, 90 50 70, 85 15 12")
SLIM = {"lance": 0.28, "oval": 0.48, "heart": 0.8, "maple": 1.0}  # width of a leaf relative to its length
FOLIAGE_SLIM = {"oval": 0.45, "lance": 0.3, "heart": 0.8, "round": 0.7}


def trees(stage: Stage, style: str) -> None:
    """Trees: in leaf ("round"), without leaves ("bare") or conifers ("cone")."""
    rng = stage.rng
    landscape(stage, floor=stage.choice(["grass", "grass", "grass", "earth", "road"]))
    distract(stage, 0.55)
    colour = None
    for number in range(int(rng.choice([1, 2, 2, 3, 5, 8]))):
        if colour is None or stage.chance(0.5):
            autumn = stage.chance(0.08 if style == "cone" else 0.3)
            colour = stage.foliage_colour(float(autumn)) * stage.in_the_dark(0.72)
        tall = math.exp(rng.uniform(math.log(0.7), math.log(2.2))) if number == 0 else rng.uniform(0.25, 0.9)
        tall = stage.height * tall
        near = np.clip(tall / stage.height - 0.2, 0, 1)
        foot = stage.horizon + (stage.height - stage.horizon) * near * rng.uniform(0.2, 1.0) + 2
        spot = (stage.width * rng.uniform(0.08, 0.92), foot)
        this = style if style != "round" else stage.choice(["round", "round", "tall"])
        leaf = stage.scale * rng.uniform(1.8, 3.8) * (0.5 + tall / stage.height * 0.5)
        look = {"depth": near * 2 - 2 + 0.05 * number, "density": 1.0 if number == 0 else 0.6}
        plants.tree(stage, spot, tall, colour, style=this, leaf=leaf, **look)
    lawn(stage, 0.65)


def bush(stage: Stage) -> None:
    """Bushes in the open or before a wall."""
    rng = stage.rng
    if stage.chance(0.5):
        landscape(stage, rng.uniform(0.3, 0.7))
        distract(stage)
    else:
        wall(stage)
        stage.horizon = stage.height * rng.uniform(0.8, 0.95)
        green, floor = stage.pick(GREENS), stage.choice(["grass", "earth", "road"])
        backgrounds.ground(rng, stage.background, stage.horizon, green, floor)
    colour = stage.foliage_colour(0.2)
    for number in range(stage.number(1, 5)):
        tall, x = stage.height * rng.uniform(0.35, 0.85), stage.width * rng.uniform(0.0, 1.0)
        spot = (x, min(stage.horizon + stage.height * rng.uniform(0.05, 0.3), stage.height * 1.05))
        tint, leaf = np.clip(colour * rng.uniform(0.8, 1.2), 0, 1), stage.scale * rng.uniform(2.5, 5.5)
        plants.tree(stage, spot, tall, tint, depth=number * 0.8 - 1, style="bush", leaf=leaf, density=0.9)
    lawn(stage, 0.65)


def foliage(stage: Stage) -> None:
    """Leaves that fill the frame."""
    rng = stage.rng
    colour = stage.foliage_colour(0.2)
    stage.background = backgrounds.forest(rng, stage.size, colour * 0.35, stage.scale)
    if stage.chance(0.4):
        stage.background = backgrounds.sky(rng, stage.size, stage.mood)
    leaf = stage.scale * math.exp(rng.uniform(math.log(7), math.log(34)))
    count = int(np.clip(0.9 * stage.height * stage.width / (leaf * 0.9) ** 2, 20, 600) * rng.uniform(0.7, 1.7))
    base = rng.uniform(-0.1, 1.1, (count, 2)) * [stage.width, stage.height]
    main = rng.uniform(0, 2 * math.pi)
    depth = np.sort(rng.uniform(0, 4, count))
    tint = stage.vary(colour, count, 0.12) * (0.4 + 0.18 * depth[:, None])
    own = stage.mesh.add_freedoms(base, hertz=rng.uniform(0.5, 1.0), gain=0.5 * leaf, scatter=0.5, limit=99.0)
    carrier = still(count).with_freedoms(own, np.stack([np.ones(count), rng.uniform(-0.5, 0.5, count)], -1))
    shape = stage.choice(["oval", "lance", "heart", "round"])
    # Each twig has a colour of its own, so the batch is cut by depth.
    for part in np.array_split(np.arange(count), 5):
        angle, long = main + rng.normal(0, 0.7, len(part)), leaf * rng.uniform(1.5, 3.2, len(part))
        look = {"leaf": leaf, "shape": shape, "slim": FOLIAGE_SLIM[shape], "depth": depth[part], "light": 0.28}
        plants.leafy_twigs(stage, carrier.take(part), base[part], angle, long, tint[part].mean(0), per=6, **look)
    if stage.chance(0.3):
        distract(stage, 1.0)


def long_grass(stage: Stage) -> None:
    """Long grass, perhaps with flowers."""
    rng = stage.rng
    landscape(stage, rng.uniform(0.0, 0.75), floor="grass")
    distract(stage, 0.5)
    if stage.chance(0.35):
        spot, tall = (stage.width * rng.uniform(0, 1), stage.horizon + 3), stage.height * rng.uniform(0.2, 0.6)
        plants.tree(stage, spot, tall, stage.foliage_colour(0.15), depth=-2.5, leaf=2 * stage.scale, density=0.6)
    tall = rng.uniform(0.1, 0.5)
    lean = rng.normal(0, 0.3)
    count = int(np.clip(450 / tall, 1000, 3500))
    blades, near = meadow(stage, count, tall, lean=lean)
    if stage.chance(0.55):
        some = np.flatnonzero(rng.random(count) < rng.uniform(0.01, 0.12))
        heads_on(stage, blades.take(some), near[some], stage.height * tall * rng.uniform(0.05, 0.12))
    if stage.chance(0.25):
        stage.blurs[2] = rng.uniform(2, 5) * stage.scale
        meadow(stage, 40, 0.8, top=stage.height, layer=2)


def reeds(stage: Stage) -> None:
    """Reeds or grain."""
    rng = stage.rng
    if stage.chance(0.6):
        landscape(stage, rng.uniform(0.45, 0.95))
    else:
        soft(stage)
        stage.horizon = stage.height * rng.uniform(0.5, 0.95)
    distract(stage, 0.35)
    colour = stage.pick(STRAW if stage.chance(0.7) else GREENS)
    tall, count = rng.uniform(0.4, 0.85), stage.number(40, 260)
    lean = rng.normal(0, 0.4)
    if stage.chance(0.5):
        meadow(stage, 1500, tall * 0.55, colour * rng.uniform(0.6, 1.0), lean=lean)
    stems, near = meadow(stage, count, tall, colour, top=stage.horizon + 0.1 * stage.height, lean=lean, gain=0.2)
    long = stage.height * tall * rng.uniform(0.1, 0.26)
    straw = np.clip(stage.pick(STRAW) * rng.uniform(0.6, 1.2), 0, 1)
    thick, awns = max(long * rng.uniform(0.06, 0.13), 0.5), int(rng.choice([0, 6, 12]))
    plumes(stage, stems, long, straw, depth=near * 4, thick=thick, awns=awns)


def flowers(stage: Stage) -> None:
    """A bed of flowers, seen from the side or from above."""
    rng = stage.rng
    if stage.chance(0.5):
        landscape(stage, rng.uniform(0.0, 0.5), floor="grass")
    else:
        soft(stage)
        stage.horizon = stage.height * rng.uniform(0.0, 0.6)
    distract(stage, 0.4)
    dense, many, tall = stage.chance(0.45), stage.number(700, 1800), rng.uniform(0.15, 0.4)
    meadow(stage, many, tall, np.clip(stage.pick(GREENS) * rng.uniform(0.5, 1.1), 0, 1))
    count = stage.number(60, 170) if dense else stage.number(8, 45)
    stems, near = meadow(stage, count, rng.uniform(0.2, 0.5), stage.pick(GREENS), gain=0.22)
    heads_on(stage, stems, near, stage.height * rng.uniform(0.05, 0.1))


def flower_close(stage: Stage) -> None:
    """A few large blossoms on stems before something out of focus."""
    rng = stage.rng
    soft(stage)
    stage.horizon = stage.height * 0.9
    stage.blurs[0] = rng.uniform(1.5, 4.5) * stage.scale
    colour, heart = stage.pick(PETALS), stage.pick(CLOSE_HEART_COLOURS)
    style, green = stage.choice(FLOWERS[:7]), stage.pick(GREENS)
    for layer, count in ((0, stage.number(0, 7)), (1, int(rng.choice([1, 1, 2, 3, 4])))):
        radius = stage.height * rng.uniform(0.14, 0.34) * (0.75 if count > 2 else 1.0) * (0.8 if layer == 0 else 1.0)
        head = np.stack([rng.uniform(0.15, 0.85, count) * stage.width, rng.uniform(0.2, 0.6, count) * stage.height], -1)
        x = head[:, 0] + rng.normal(0, 0.12, count) * stage.width
        foot = np.stack([x, np.full(count, stage.height * rng.uniform(1.02, 1.4))], -1)
        stems_with_heads(stage, foot, head, radius, green, layer, style=style, colour=colour, heart=heart)
    if stage.chance(0.5):
        count, tall, layer = stage.number(10, 120), rng.uniform(0.2, 0.6), int(rng.choice([0, 1]))
        meadow(stage, count, tall, green, top=stage.height * 0.95, layer=layer)
    distract(stage, 0.2)


def hanging(stage: Stage, blossom: bool) -> None:
    """Twigs, perhaps in blossom, that reach into the image from its upper edge or its sides."""
    rng, (height, width) = stage.rng, stage.size
    if stage.chance(0.55):
        stage.background = backgrounds.sky(rng, stage.size, stage.mood)
    elif stage.chance(0.5):
        landscape(stage)
        distract(stage, front=False)
    else:
        soft(stage)
    stage.blurs[0] = rng.uniform(1.5, 5) * stage.scale
    colour = stage.foliage_colour(0.3)
    if stage.mood in ("dusk", "sunset", "overcast") and stage.chance(0.5):
        colour = colour * 0.4
    side = stage.choice(["top", "top", "left", "right"])
    leaf = stage.scale * math.exp(rng.uniform(math.log(4), math.log(26)))
    shape = stage.choice(["oval", "lance", "maple", "heart"])
    for layer, boughs in ((0, stage.number(0, 4)), (1, stage.number(5, 17))):
        if boughs == 0:
            continue
        long = rng.uniform(0.25, 0.75, boughs) * (height if side == "top" else 0.7 * width)
        spread = rng.uniform(-0.05, 1.05, boughs)
        if side == "top":
            base = np.stack([spread * width, np.full(boughs, -4.0)], -1)
            angle = math.pi / 2 + rng.normal(0, 0.6, boughs)
        else:
            x, way, droop = (-4.0, 0.0, 0.15) if side == "left" else (width + 4.0, math.pi, -0.15)
            base = np.stack([np.full(boughs, x), spread * 0.7 * height], -1)
            angle = way + rng.normal(droop, 0.4, boughs)
        _boughs(stage, base, angle, long, colour, blossom, leaf=leaf, shape=shape, layer=layer)


def _boughs(stage: Stage, base: Array, angle: Array, long: Array, colour: Array, blossom: bool, **look: Any) -> None:
    """Add boughs with twigs; look: leaf, shape and layer of `plants.leafy_twigs`."""
    rng, count, points, leaf, layer = stage.rng, len(base), 7, look["leaf"], look["layer"]
    line = along(base, angle, long, rng.normal(0, 0.5, count), points)
    boughs = bend(stage.mesh, still(count), line, hertz=rng.uniform(0.4, 0.9), gain=0.12, scatter=0.3)
    wood, depth = stage.pick(BARKS) * 0.7, rng.uniform(0, 3, count)
    widths, tint = np.linspace(1.6, 0.6, points) * max(0.07 * leaf, 0.5), stage.vary(wood, count, 0.1)
    add_strips(stage.mesh, boughs, widths, tint, depth=depth - 0.2, layer=layer)
    per = int(np.clip(long.mean() / leaf * 0.9, 3, 14))
    which, many = np.repeat(np.arange(count), per), count * per
    spots = boughs.at(which, rng.integers(1, points, many))
    turn = spots.heading + rng.choice([-1, 1], many) * rng.uniform(0.2, 0.9, many)
    look |= {"per": 3 if blossom else 5, "slim": SLIM[look["shape"]], "depth": depth[which], "wood": wood}
    look["droop"] = float(rng.uniform(0, 0.8))
    twig = leaf * rng.uniform(1.2, 2.6, many)
    twigs = plants.leafy_twigs(stage, spots.carrier, spots.place, turn, twig, colour, **look)
    if blossom:
        size, petals, heart = leaf * rng.uniform(0.5, 0.9, many), stage.pick(BLOSSOMS), np.array([0.75, 0.35, 0.3])
        flower_heads(stage, twigs.tips(), size, "poppy", petals, heart, depth[which] + 0.6, layer)


def palms(stage: Stage) -> None:
    """Palms: a trunk and ribs with leaflets."""
    rng = stage.rng
    if stage.chance(0.6):
        landscape(stage, rng.uniform(0.6, 0.95))
        distract(stage, 0.4)
    else:
        soft(stage)
    colour = stage.pick(GREENS) * stage.in_the_dark(0.5)
    for _ in range(stage.number(1, 3)):
        spot = (stage.width * rng.uniform(0.15, 0.85), stage.height * rng.uniform(0.9, 1.05))
        plants.palm(stage, spot, stage.height * rng.uniform(0.4, 0.8), colour)
