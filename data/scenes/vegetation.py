"""Kinds of procedural scenes that are about plants: compositions of background, plants and still things."""

from __future__ import annotations

import math

import numpy as np

from data.scenes import backgrounds, plants
from data.scenes.elements import add_strips
from data.scenes.flowers import FLOWERS, fibre_plume, flower_heads
from data.scenes.mesh import Carrier, along, bend, still
from data.scenes.plants import GREENS, PETALS, STRAW, pick, vary
from data.scenes.stage import Stage, chain_carriers, heads_on, meadow_blades, stems_with_heads


def _tree(stage: Stage, style: str) -> None:
    rng = stage.rng
    stage.landscape(floor=str(rng.choice(["grass", "grass", "grass", "earth", "road"])))
    stage.distract(0.55)
    autumn = foliage = None
    for number in range(int(rng.choice([1, 2, 2, 3, 5, 8]))):
        if foliage is None or stage.chance(0.5):
            autumn = rng.random() < (0.08 if style == "cone" else 0.3)
            foliage = plants.foliage_colour(rng, float(autumn)) * (0.72 if stage.mood in ("dusk", "sunset") else 1.0)
        tall = stage.height * (
            math.exp(rng.uniform(math.log(0.7), math.log(2.2))) if number == 0 else rng.uniform(0.25, 0.9)
        )
        near = np.clip(tall / stage.height - 0.2, 0, 1)
        foot = stage.horizon + (stage.height - stage.horizon) * near * rng.uniform(0.2, 1.0) + 2
        spot = (stage.width * rng.uniform(0.08, 0.92), foot)
        this = style if style != "round" else str(rng.choice(["round", "round", "tall"]))
        plants.tree(
            stage.mesh,
            rng,
            spot,
            tall,
            depth=near * 2 - 2 + 0.05 * number,
            style=this,
            colour=foliage,
            leaf=stage.scale * rng.uniform(1.8, 3.8) * (0.5 + tall / stage.height * 0.5),
            density=1.0 if number == 0 else 0.6,
        )
    stage.lawn(0.65)


def round_tree(stage: Stage) -> None:
    """Trees in leaf."""
    _tree(stage, "round")


def bare_tree(stage: Stage) -> None:
    """Trees without leaves."""
    _tree(stage, "bare")


def pines(stage: Stage) -> None:
    """Conifers."""
    _tree(stage, "cone")


def bush(stage: Stage) -> None:
    """Bushes in the open or before a wall."""
    rng = stage.rng
    if stage.chance(0.5):
        stage.landscape(rng.uniform(0.3, 0.7))
        stage.distract(0.6)
    else:
        stage.wall()
        stage.horizon = stage.height * rng.uniform(0.8, 0.95)
        backgrounds.ground(
            rng, stage.background, stage.horizon, pick(rng, GREENS), str(rng.choice(["grass", "earth", "road"]))
        )
    colour = plants.foliage_colour(rng, 0.2)
    for number in range(int(rng.integers(1, 5))):
        tall = stage.height * rng.uniform(0.35, 0.85)
        spot = (
            stage.width * rng.uniform(0.0, 1.0),
            min(stage.horizon + stage.height * rng.uniform(0.05, 0.3), stage.height * 1.05),
        )
        plants.tree(
            stage.mesh,
            rng,
            spot,
            tall,
            depth=number * 0.8 - 1,
            style="bush",
            colour=np.clip(colour * rng.uniform(0.8, 1.2), 0, 1),
            leaf=stage.scale * rng.uniform(2.5, 5.5),
            density=0.9,
        )
    stage.lawn(0.65)


def foliage(stage: Stage) -> None:
    """Leaves that fill the frame."""
    rng = stage.rng
    colour = plants.foliage_colour(rng, 0.2)
    stage.background = backgrounds.forest(rng, stage.size, colour * 0.35, stage.scale)
    if stage.chance(0.4):
        stage.background = backgrounds.sky(rng, stage.size, stage.mood)
    leaf = stage.scale * math.exp(rng.uniform(math.log(7), math.log(34)))
    count = int(np.clip(0.9 * stage.height * stage.width / (leaf * 0.9) ** 2, 20, 600) * rng.uniform(0.7, 1.7))
    base = rng.uniform(-0.1, 1.1, (count, 2)) * [stage.width, stage.height]
    main = rng.uniform(0, 2 * math.pi)
    depth = np.sort(rng.uniform(0, 4, count))
    tint = vary(rng, colour, count, 0.12) * (0.4 + 0.18 * depth[:, None])
    own = stage.mesh.add_freedoms(base, hertz=rng.uniform(0.5, 1.0), gain=0.5 * leaf, scatter=0.5, limit=99.0)
    lean = np.stack([np.ones(count), rng.uniform(-0.5, 0.5, count)], -1)[:, None]
    carrier = still(count).with_freedoms(own[:, None], lean, np.zeros((count, 1)))
    style = str(rng.choice(["oval", "lance", "heart", "round"]))
    # Each twig has a colour of its own, so the batch is cut by nearness.
    for part in np.array_split(np.arange(count), 5):
        plants.leafy_twigs(
            stage.mesh,
            rng,
            carrier.take(part),
            base[part],
            main + rng.normal(0, 0.7, len(part)),
            leaf * rng.uniform(1.5, 3.2, len(part)),
            tint[part].mean(0),
            leaf=leaf,
            per=6,
            shape=style,
            depth=depth[part],
            slim={"lance": 0.3, "oval": 0.45, "heart": 0.8, "round": 0.7}[style],
            light=0.28,
        )
    if stage.chance(0.3):
        stage.distract(1.0)


def meadow(stage: Stage) -> None:
    """Long grass, perhaps with flowers."""
    rng = stage.rng
    stage.landscape(rng.uniform(0.0, 0.75), floor="grass")
    stage.distract(0.5)
    if stage.chance(0.35):
        plants.tree(
            stage.mesh,
            rng,
            (stage.width * rng.uniform(0, 1), stage.horizon + 3),
            stage.height * rng.uniform(0.2, 0.6),
            depth=-2.5,
            leaf=2 * stage.scale,
            density=0.6,
        )
    tall = rng.uniform(0.1, 0.5)
    lean = rng.normal(0, 0.3)
    count = int(np.clip(450 / tall, 1000, 3500))
    colour = None
    line, carried, near = meadow_blades(stage, count, tall, colour, lean=lean)
    if stage.chance(0.55):
        some = np.flatnonzero(rng.random(count) < rng.uniform(0.01, 0.12))
        heads_on(
            stage,
            line[some],
            chain_carriers(carried, some, line.shape[1]),
            near[some],
            stage.height * tall * rng.uniform(0.05, 0.12),
        )
    if stage.chance(0.25):
        stage.near_blur(rng.uniform(2, 5))
        meadow_blades(stage, 40, 0.8, top=stage.height, layer=2)


def reeds(stage: Stage) -> None:
    """Reeds or grain."""
    rng = stage.rng
    if stage.chance(0.6):
        stage.landscape(rng.uniform(0.45, 0.95))
    else:
        stage.soft()
        stage.horizon = stage.height * rng.uniform(0.5, 0.95)
    stage.distract(0.35)
    colour = pick(rng, STRAW if stage.chance(0.7) else GREENS)
    tall, count = rng.uniform(0.4, 0.85), int(rng.integers(40, 260))
    lean = rng.normal(0, 0.4)
    if stage.chance(0.5):
        meadow_blades(stage, 1500, tall * 0.55, colour * rng.uniform(0.6, 1.0), lean=lean)
    line, carried, near = meadow_blades(
        stage, count, tall, colour, top=stage.horizon + 0.1 * stage.height, lean=lean, gain=0.2
    )
    long = stage.height * tall * rng.uniform(0.1, 0.26)
    fibre_plume(
        stage.mesh,
        rng,
        line,
        carried,
        long,
        np.clip(pick(rng, STRAW) * rng.uniform(0.6, 1.2), 0, 1),
        depth=near * 4,
        thick=max(long * rng.uniform(0.06, 0.13), 0.5),
        awns=int(rng.choice([0, 6, 12])),
    )


def flowers(stage: Stage) -> None:
    """A bed of flowers, seen from the side or from above."""
    rng = stage.rng
    if stage.chance(0.5):
        stage.landscape(rng.uniform(0.0, 0.5), floor="grass")
    else:
        stage.soft()
        stage.horizon = stage.height * rng.uniform(0.0, 0.6)
    stage.distract(0.4)
    dense = stage.chance(0.45)
    meadow_blades(
        stage,
        int(rng.integers(700, 1800)),
        rng.uniform(0.15, 0.4),
        np.clip(pick(rng, GREENS) * rng.uniform(0.5, 1.1), 0, 1),
    )
    count = int(rng.integers(60, 170)) if dense else int(rng.integers(8, 45))
    line, carried, near = meadow_blades(stage, count, rng.uniform(0.2, 0.5), pick(rng, GREENS), gain=0.22)
    heads_on(stage, line, carried, near, stage.height * rng.uniform(0.05, 0.1))


def flower_close(stage: Stage) -> None:
    """A few large blossoms on stems before something out of focus."""
    rng = stage.rng
    stage.soft()
    stage.horizon = stage.height * 0.9
    stage.far_blur(rng.uniform(1.5, 4.5))
    colour, heart = pick(rng, PETALS), pick(rng, ((0.9, 0.7, 0.1), (0.3, 0.2, 0.08), (0.95, 0.9, 0.4)))
    style, green = str(rng.choice(FLOWERS[:7])), pick(rng, GREENS)
    for layer, count in ((0, int(rng.integers(0, 7))), (1, int(rng.choice([1, 1, 2, 3, 4])))):
        radius = stage.height * rng.uniform(0.14, 0.34) * (0.75 if count > 2 else 1.0) * (0.8 if layer == 0 else 1.0)
        head = np.stack([rng.uniform(0.15, 0.85, count) * stage.width, rng.uniform(0.2, 0.6, count) * stage.height], -1)
        foot = np.stack(
            [
                head[:, 0] + rng.normal(0, 0.12, count) * stage.width,
                np.full(count, stage.height * rng.uniform(1.02, 1.4)),
            ],
            -1,
        )
        stems_with_heads(stage, foot, head, radius, style, colour, heart, green, layer)
    if stage.chance(0.5):
        meadow_blades(
            stage,
            int(rng.integers(10, 120)),
            rng.uniform(0.2, 0.6),
            green,
            top=stage.height * 0.95,
            layer=int(rng.choice([0, 1])),
        )
    stage.distract(0.2)


def hanging(stage: Stage, blossom: bool = False) -> None:
    """Twigs that reach into the picture from its upper edge or its sides."""
    rng = stage.rng
    if stage.chance(0.55):
        stage.background = backgrounds.sky(rng, stage.size, stage.mood)
    elif stage.chance(0.5):
        stage.landscape()
        stage.distract(0.6, front=False)
    else:
        stage.soft()
    stage.far_blur(rng.uniform(1.5, 5))
    colour = plants.foliage_colour(rng, 0.3) * (
        0.4 if stage.mood in ("dusk", "sunset", "overcast") and stage.chance(0.5) else 1.0
    )
    side = str(rng.choice(["top", "top", "left", "right"]))
    leaf = stage.scale * math.exp(rng.uniform(math.log(4), math.log(26)))
    shape = str(rng.choice(["oval", "lance", "maple", "heart"]))
    for layer, boughs in ((0, int(rng.integers(0, 4))), (1, int(rng.integers(5, 17)))):
        if boughs == 0:
            continue
        long = rng.uniform(0.25, 0.75, boughs) * (stage.height if side == "top" else 0.7 * stage.width)
        spread = rng.uniform(-0.05, 1.05, boughs)
        if side == "top":
            base, angle = (
                np.stack([spread * stage.width, np.full(boughs, -4.0)], -1),
                math.pi / 2 + rng.normal(0, 0.6, boughs),
            )
        else:
            x, way = (-4.0, 0.0) if side == "left" else (stage.width + 4.0, math.pi)
            base = np.stack([np.full(boughs, x), spread * 0.7 * stage.height], -1)
            angle = way + rng.normal(0.15 if side == "left" else -0.15, 0.4, boughs)
        _bough(stage, base, angle, long, colour, leaf, shape, layer, blossom)


def _bough(
    stage: Stage,
    base: np.ndarray,
    angle: np.ndarray,
    long: np.ndarray,
    colour: np.ndarray,
    leaf: float,
    shape: str,
    layer: int,
    blossom: bool,
) -> None:
    rng, count, points = stage.rng, len(base), 7
    line = along(base, angle, long, rng.normal(0, 0.5, count), points)
    carried = bend(stage.mesh, still(count), line, hertz=rng.uniform(0.4, 0.9), gain=0.12, scatter=0.3)
    wood = pick(rng, plants.BARKS) * 0.7
    depth = rng.uniform(0, 3, count)
    add_strips(
        stage.mesh,
        carried,
        line,
        np.linspace(1.6, 0.6, points) * max(0.07 * leaf, 0.5) * np.ones((count, 1)),
        vary(rng, wood, count, 0.1),
        depth=depth - 0.2,
        layer=layer,
    )
    per = int(np.clip(long.mean() / leaf * 0.9, 3, 14))
    which = np.repeat(np.arange(count), per)
    at = rng.integers(1, points, len(which))
    step = line[which, at] - line[which, at - 1]
    turn = np.arctan2(step[:, 1], step[:, 0]) + rng.choice([-1, 1], len(which)) * rng.uniform(0.2, 0.9, len(which))
    carrier = carried.take(which * points + at)
    start, droop = line[which, at], float(rng.uniform(0, 0.8))
    twig = leaf * rng.uniform(1.2, 2.6, len(which))
    slim = {"lance": 0.28, "oval": 0.48, "heart": 0.8, "maple": 1.0}[shape]
    lines, tips = plants.leafy_twigs(
        stage.mesh,
        rng,
        carrier,
        start,
        turn,
        twig,
        colour,
        leaf=leaf,
        per=3 if blossom else 5,
        shape=shape,
        slim=slim,
        depth=depth[which],
        layer=layer,
        droop=droop,
        wood=wood,
    )
    if blossom:
        _open_blossoms(stage, lines, tips, leaf, depth[which] + 0.6, layer)


def _open_blossoms(
    stage: Stage, lines: np.ndarray, carried: Carrier, leaf: float, depth: np.ndarray, layer: int
) -> None:
    """A blossom at the tip of every twig (N, P, 2)."""
    rng = stage.rng
    end, heading, ends = plants.tips(lines, carried)
    pinks = ((0.96, 0.78, 0.85), (0.97, 0.95, 0.93), (0.9, 0.5, 0.7), (0.85, 0.15, 0.12))
    flower_heads(
        stage.mesh,
        rng,
        ends,
        end,
        leaf * rng.uniform(0.5, 0.9, len(end)),
        heading,
        style="poppy",
        colour=pick(rng, pinks),
        heart=np.array([0.75, 0.35, 0.3]),
        depth=depth,
        layer=layer,
    )


def blossom(stage: Stage) -> None:
    """Twigs in blossom that reach into the picture."""
    hanging(stage, blossom=True)


def palm(stage: Stage) -> None:
    """Palms or big fronds: ribs with leaflets."""
    rng = stage.rng
    if stage.chance(0.6):
        stage.landscape(rng.uniform(0.6, 0.95))
        stage.distract(0.4)
    else:
        stage.soft()
    colour = pick(rng, GREENS) * (0.5 if stage.mood in ("dusk", "sunset") else 1.0)
    for _ in range(int(rng.integers(1, 3))):
        spot = (stage.width * rng.uniform(0.15, 0.85), stage.height * rng.uniform(0.9, 1.05))
        plants.palm(stage.mesh, rng, spot, stage.height * rng.uniform(0.4, 0.8), colour, stage.scale)
