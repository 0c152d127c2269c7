"""What the procedural scenes show: for each kind a composition of background, moving things and still ones."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy import ndarray as Array

from data.scenes import backgrounds, rigid, vegetation
from data.scenes.backgrounds import Finish
from data.scenes.elements import add_blobs, add_leaves, add_rectangle, add_strips
from data.scenes.flowers import FLOWERS, flower_heads
from data.scenes.mesh import FOLIAGE, MOTTLED, PLANKS, VEINS, Chain, Mesh, Spots, along, bend, still
from data.scenes.plants import UP
from data.scenes.sheets import cloth, flag_colours, flame
from data.scenes.stage import GREENS, PETALS, Stage, palette
from data.scenes.surroundings import distract, landscape, lawn, meadow, room, stems_with_heads, wall

DARK_TABLES = palette("25 15 8, 10 8 7, 40 35 30")
CANDLES = palette("95 60 20, 90 85 75, 70 15 10, 75 65 80")


def _potted(stage: Stage) -> None:
    rng, mesh = stage.rng, stage.mesh
    foot, x = room(stage) + stage.height * rng.uniform(0.02, 0.09), stage.width * rng.uniform(0.25, 0.75)
    wide = stage.height * rng.uniform(0.2, 0.36)
    tall = wide * rng.uniform(0.6, 1.3)
    rigid.pot(stage, x, foot, wide, tall, 2.0)
    colour, top, count = stage.pick(GREENS), foot - tall, stage.number(8, 26)
    base = np.stack([x + rng.normal(0, 0.16, count) * wide, np.full(count, top + 2.0)], -1)
    if stage.chance(0.5):
        size = stage.height * rng.uniform(0.3, 0.6) * np.exp(rng.normal(0, 0.25, count))
        angle = UP + rng.normal(0, 0.5, count)
        line = along(base, angle, size * 0.55, rng.normal(0, 0.4, count) + 0.5 * np.sign(angle - UP), 5)
        stems = bend(mesh, still(count), line, hertz=1.2, gain=0.12)
        depth = rng.uniform(0, 1.5, count)
        add_strips(mesh, stems, 0.6 * stage.scale, stage.vary(colour * 0.8, count), depth=depth - 0.01)
        ends = stems.tips()
        turn, width = ends.heading + rng.normal(0, 0.2, count), size * rng.uniform(0.12, 0.42)
        tint, bow = stage.vary(colour, count), rng.normal(0, 0.2, count)
        look = {"depth": depth, "bow": bow, "shape": stage.choice(["lance", "oval", "heart"]), "hertz": 1.6}
        add_leaves(mesh, ends.carrier, ends.place, turn, size * 0.6, width, tint, **look)
    else:
        head = np.stack([x + rng.normal(0, 0.5, count) * wide, top - stage.height * rng.uniform(0.1, 0.35, count)], -1)
        radius, style, petals = wide * rng.uniform(0.14, 0.26), stage.choice(FLOWERS[:7]), stage.pick(PETALS)
        flower = {"style": style, "colour": petals, "heart": np.array([0.8, 0.6, 0.15])}
        stems_with_heads(stage, base, head, radius, colour, 1, **flower)


def _flag(stage: Stage) -> None:
    rng, (height, width) = stage.rng, stage.size
    if stage.chance(0.5):
        landscape(stage, rng.uniform(0.75, 1.1))
    else:
        stage.background = backgrounds.sky(rng, stage.size, stage.mood)
        stage.horizon = height
    distract(stage, front=False)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        wide = width * rng.uniform(0.18, 0.65)
        tall = wide * rng.uniform(0.5, 0.8)
        x, y = width * rng.uniform(0.05, 0.8), height * rng.uniform(0.04, 0.4)
        right = x + wide > width * 1.1
        corner, pinned = (x - wide if right else x, y), "pole_right" if right else "pole"
        cloth(stage, corner, wide, tall, flag_colours(rng), pinned=pinned)
        rigid.pole(stage, x, height * 1.05, height * 1.05 - y + 6 * stage.scale, max(wide * 0.03, 1.2), 0.5)


def _laundry(stage: Stage) -> None:
    rng, mesh, scale, (height, width) = stage.rng, stage.mesh, stage.scale, stage.size
    if stage.chance(0.5):
        landscape(stage, rng.uniform(0.5, 0.9))
        distract(stage, 0.7, front=False)
    else:
        wall(stage)
    y, x, peg = height * rng.uniform(0.08, 0.35), -width * 0.05, np.array([0.7, 0.5, 0.3])
    add_rectangle(mesh, -3, y - 0.5 * scale, width + 6, scale, np.full(3, rng.uniform(0.1, 0.9)), 0.5)
    while x < width:
        wide = width * rng.uniform(0.1, 0.3)
        colour = np.broadcast_to(rng.uniform(0.15, 0.98, 3) * 0.6 + 0.38 * rng.uniform(0, 1), (16, 14, 3)).copy()
        if stage.chance(0.4):
            colour[:: stage.number(2, 5)] *= rng.uniform(0.3, 0.9, 3)
        if stage.chance(0.85):
            cloth(stage, (x, y), wide, height * rng.uniform(0.3, 0.6), colour, pinned="line")
            for place in (0.08, 0.92):
                add_rectangle(mesh, x + place * wide, y - 2 * scale, 1.5 * scale, 5 * scale, peg, 0.6)
        x += wide * rng.uniform(1.02, 1.3)
    lawn(stage, 0.2)


def _candle(stage: Stage) -> None:
    rng, mesh, scale, (height, width) = stage.rng, stage.mesh, stage.scale, stage.size
    wide, tall = height * rng.uniform(0.1, 0.4), height * rng.uniform(0.15, 0.7)
    x, foot = width * rng.uniform(0.25, 0.75), height * rng.uniform(0.8, 1.1)
    top = foot - tall
    if stage.chance(0.25):
        stage.background = backgrounds.bokeh(rng, stage.size, rng.uniform(0.1, 0.5, 3), scale)
    else:
        tint = np.array([1.0, 0.55, 0.25]) * (1 + rng.normal(0, 0.15, 3))
        stage.background = backgrounds.dark(rng, stage.size, (x, top - 5), tint)
    if stage.chance(0.6):
        look = {"material": PLANKS, "gradient": (0.9, 0.3)}
        add_rectangle(mesh, -2, foot - wide * 0.15, width + 4, height, stage.pick(DARK_TABLES), -1.0, **look)
    stage.changes.update(glow=rng.uniform(0.1, 0.6), exposure=rng.uniform(0.8, 1.2), haze=0.0)
    stage.blurs[2] = scale * rng.uniform(0.35, 1.1)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        body = stage.pick(CANDLES)
        glow = (np.linspace(0.25, 1.2, 6) ** 1.3)[None, :, None] * body
        look = {"depth": 0.0, "shade": (0.55, 1.0, 0.6), "material": MOTTLED, "strength": 0.1}
        rigid.column(stage, x, foot, top, np.full(6, wide / 2), glow, **look)
        centre, radius = np.array([[x, top]]), np.array([[wide / 2, wide * 0.1]])
        rim = {"depth": 0.1, "rough": 0.02, "rim": 0.9}
        add_blobs(mesh, rng, still(1), centre, radius, np.clip(body * 1.25, 0, 1)[None], **rim)
        wick = height * 0.035
        add_rectangle(mesh, x - 0.7 * scale, top - wick, 1.4 * scale, wick, np.full(3, 0.06), 0.2)
        high = height * rng.uniform(0.16, 0.42)
        flame(stage, (x, top - wick * 0.4), high, high * rng.uniform(0.1, 0.19), depth=0.3)
        x, wide = x + wide * rng.choice([-1, 1]) * rng.uniform(1.2, 2), wide * rng.uniform(0.6, 1.1)
        top = foot - tall * rng.uniform(0.5, 1.1)


def _campfire(stage: Stage) -> None:
    rng, (height, width) = stage.rng, stage.size
    x, foot = width * rng.uniform(0.3, 0.7), height * rng.uniform(0.75, 1.0)
    stage.background = backgrounds.dark(rng, stage.size, (x, foot), np.array([0.9, 0.45, 0.2]))
    stage.horizon = foot
    rigid.boulders(stage, foot - 0.02 * height, 3.0, stage.number(3, 12), stage.scale)
    stage.changes.update(glow=rng.uniform(0.1, 0.5), haze=0.0)
    stage.blurs[2] = stage.scale * rng.uniform(0.4, 1.4)
    spread = width * rng.uniform(0.08, 0.25)
    for n in range(stage.number(3, 7)):
        base = np.array([[x + rng.normal(0, 0.5) * spread, foot + rng.uniform(0, 6) * stage.scale]])
        angle, long = np.array([rng.uniform(-math.pi, 0)]), np.array([spread * rng.uniform(0.6, 1.5)])
        log, colour = along(base, angle, long, np.zeros(1), 4), np.array([[0.16, 0.09, 0.06]]) * rng.uniform(0.5, 2.5)
        look = {"depth": 0.1 * n, "material": FOLIAGE, "strength": 0.6}
        add_strips(stage.mesh, Chain(log, still(4)), spread * 0.09, colour, **look)
    tongues = stage.number(14, 40)
    for n in range(tongues):
        back = 1 - n / tongues
        high = height * rng.uniform(0.15, 0.5) * (0.45 + 0.75 * back)
        spot = (x + rng.normal(0, 0.55) * spread, foot + rng.uniform(-2, 3) * stage.scale)
        thick, lean = high * rng.uniform(0.08, 0.24), rng.normal(0, 0.15)
        heat = rng.uniform(0.6, 0.8) + 0.35 * (1 - back)
        flame(stage, spot, high, thick, depth=1.0 + n * 0.05, fire=True, lean=lean, heat=heat)


def _lilies(stage: Stage) -> None:
    """Pads and blossoms on water, reeds at its edge."""
    rng, mesh = stage.rng, stage.mesh
    landscape(stage, rng.uniform(0.1, 0.45), floor="water")
    distract(stage, 0.4, front=False)
    count = stage.number(15, 70)
    near = np.sort(rng.uniform(0, 1, count))
    x, y = rng.uniform(0, 1, count) * stage.width, stage.horizon + (0.06 + 0.95 * near) * (stage.height - stage.horizon)
    centre = np.stack([x, y], -1)
    radius = stage.scale * rng.uniform(5, 14) * (0.25 + near)
    bob = mesh.add_freedoms(centre, hertz=rng.uniform(0.25, 0.5), gain=4 * stage.scale, scatter=0.3, limit=99.0)
    carrier = still(count).with_freedoms(bob, np.stack([0.2 + near, 0.35 * rng.normal(0, 1, count)], -1))
    shape, tint = np.stack([radius * 1.5, radius * 0.5], -1), stage.vary(stage.pick(GREENS), count)
    look = {"depth": near * 2, "rough": 0.04, "rim": 0.9, "material": VEINS, "strength": 0.3}
    add_blobs(mesh, rng, carrier, centre, shape, tint, **look)
    some = np.flatnonzero(rng.random(count) < 0.2)
    spots = Spots(centre[some] - [0, 2], np.full(len(some), UP), carrier.take(some))
    look = {"style": "lily", "colour": stage.pick(PETALS), "heart": np.array([0.9, 0.75, 0.2])}
    flower_heads(stage, spots, radius[some] * 0.6, depth=near[some] * 2 + 0.05, **look)
    if stage.chance(0.6):
        meadow(stage, stage.number(30, 200), rng.uniform(0.2, 0.6), top=stage.height * 0.95)


def _still(stage: Stage) -> None:
    rng, (height, width) = stage.rng, stage.size
    choice = stage.choice(["street", "rocks", "room", "hills", "wall", "trunks"])
    if choice == "room":
        edge = room(stage)
        if stage.chance(0.5):
            rigid.pot(stage, width * 0.5, edge + 8, height * 0.2, height * rng.uniform(0.2, 0.4), 1.0)
        return
    if choice == "wall":
        wall(stage)
        stage.horizon = height * 0.9
        rigid.house(stage, width * 0.2, height * 1.02, width * 0.6, height * 0.8, 0.0)
        return
    if choice == "trunks":
        stage.background = backgrounds.forest(rng, stage.size, stage.pick(GREENS) * 0.5, stage.scale)
        stage.horizon = height * rng.uniform(0.6, 0.85)
        backgrounds.ground(rng, stage.background, stage.horizon, np.array([0.35, 0.26, 0.15]), "earth")
        for n in range(stage.number(2, 9)):
            foot = stage.horizon + (height - stage.horizon) * rng.uniform(0, 1)
            rigid.trunk(stage, rng.uniform(0, 1) * width, foot, stage.scale * rng.uniform(4, 20), 0.1 * n)
        return
    landscape(stage, floor=None if choice != "street" else stage.choice(["road", "earth", "grass"]))
    if choice == "street":
        x = -width * rng.uniform(0, 0.15)
        while x < width:
            wide = width * rng.uniform(0.14, 0.4)
            tall, depth = wide * rng.uniform(0.5, 1.5), rng.uniform(-1, 0)
            rigid.house(stage, x, stage.horizon + height * 0.08, wide, tall, depth)
            x += wide * rng.uniform(0.95, 1.6)
    else:
        scale = stage.scale * (2 if choice == "rocks" else 0.8)
        rigid.boulders(stage, stage.horizon + 5, 0.0, stage.number(3, 60), scale)
    distract(stage, 0.5)


# Of each kind: what draws it, how often it is drawn (relative), and how strongly the wind moves it.
_KINDS: dict[str, tuple[Callable[[Stage], None], float, float]] = {
    "tree": (partial(vegetation.trees, style="round"), 0.11, 1.0),
    "bare_tree": (partial(vegetation.trees, style="bare"), 0.04, 0.8),
    "pines": (partial(vegetation.trees, style="cone"), 0.03, 0.8),
    "bush": (vegetation.bush, 0.07, 1.0),
    "foliage": (vegetation.foliage, 0.17, 1.0),
    "meadow": (vegetation.long_grass, 0.1, 1.0),
    "reeds": (vegetation.reeds, 0.085, 1.0),
    "flowers": (vegetation.flowers, 0.12, 1.0),
    "flower_close": (vegetation.flower_close, 0.09, 1.0),
    "blossom": (partial(vegetation.hanging, blossom=True), 0.035, 1.0),
    "hanging": (partial(vegetation.hanging, blossom=False), 0.065, 1.0),
    "palm": (vegetation.palms, 0.045, 1.3),
    "potted": (_potted, 0.03, 0.7),
    "flag": (_flag, 0.055, 1.6),
    "laundry": (_laundry, 0.04, 1.0),
    "candle": (_candle, 0.035, 1.0),
    "campfire": (_campfire, 0.02, 1.6),
    "lilies": (_lilies, 0.025, 0.8),
    "still": (_still, 0.025, 1.0),
}
KINDS = tuple(_KINDS)
KIND_PROBABILITIES = np.array([often for _, often, _ in _KINDS.values()])
KIND_PROBABILITIES /= sum(often for _, often, _ in _KINDS.values())
WIND_STRENGTH = {kind: strength for kind, (_, _, strength) in _KINDS.items()}


def draw(kind: str, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Mesh, Array, Finish]:
    """Draw an image of a kind: mesh, background (H, W, 3) float32, finish."""
    stage = Stage(rng, size)
    _KINDS[kind][0](stage)
    finish = Finish.draw(rng, stage.scale, blurs=tuple(stage.blurs), **stage.changes)
    return stage.mesh, np.clip(stage.background, 0, 1).astype(np.float32), finish
