"""What the procedural scenes show: for each kind a composition of background, moving things and still ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from data.scenes import backgrounds, plants, rigid, vegetation
from data.scenes.backgrounds import Finish, still_quad
from data.scenes.elements import add_blobs, add_leaves, add_strips
from data.scenes.flowers import FLOWERS, flower_heads
from data.scenes.mesh import FOLIAGE, MOTTLED, PLANKS, VEINS, Mesh, along, bend, still
from data.scenes.plants import GREENS, PETALS, UP, pick, vary
from data.scenes.sheets import cloth, flag_colours, flame
from data.scenes.stage import Stage, meadow_blades, stems_with_heads


def _potted(stage: Stage) -> None:
    rng = stage.rng
    edge = stage.room()
    foot, x = edge + stage.height * rng.uniform(0.02, 0.09), stage.width * rng.uniform(0.25, 0.75)
    wide = stage.height * rng.uniform(0.2, 0.36)
    tall = wide * rng.uniform(0.6, 1.3)
    rigid.pot(stage.mesh, rng, x, foot, wide, tall, 2.0)
    colour, top = pick(rng, GREENS), foot - tall
    count = int(rng.integers(8, 26))
    base = np.stack([x + rng.normal(0, 0.16, count) * wide, np.full(count, top + 2.0)], -1)
    if stage.chance(0.5):
        size = stage.height * rng.uniform(0.3, 0.6) * np.exp(rng.normal(0, 0.25, count))
        angle = UP + rng.normal(0, 0.5, count)
        line = along(base, angle, size * 0.55, rng.normal(0, 0.4, count) + 0.5 * np.sign(angle - UP), 5)
        carried = bend(stage.mesh, still(count), line, hertz=1.2, gain=0.12)
        depth = rng.uniform(0, 1.5, count)
        add_strips(
            stage.mesh,
            carried,
            line,
            np.full((count, 5), 0.6 * stage.scale),
            vary(rng, colour * 0.8, count),
            depth=depth - 0.01,
        )
        end, heading, carrier = plants.tips(line, carried)
        add_leaves(
            stage.mesh,
            carrier,
            end,
            heading + rng.normal(0, 0.2, count),
            size * 0.6,
            size * rng.uniform(0.12, 0.42),
            vary(rng, colour, count),
            depth=depth,
            bow=rng.normal(0, 0.2, count),
            shape=str(rng.choice(["lance", "oval", "heart"])),
            hertz=1.6,
        )
    else:
        head = np.stack([x + rng.normal(0, 0.5, count) * wide, top - stage.height * rng.uniform(0.1, 0.35, count)], -1)
        radius = wide * rng.uniform(0.14, 0.26)
        sort = str(rng.choice(FLOWERS[:7]))
        stems_with_heads(stage, base, head, radius, sort, pick(rng, PETALS), np.array([0.8, 0.6, 0.15]), colour, 1)


def _flag(stage: Stage) -> None:
    rng = stage.rng
    if stage.chance(0.5):
        stage.landscape(rng.uniform(0.75, 1.1))
    else:
        stage.background = backgrounds.sky(rng, stage.size, stage.mood)
        stage.horizon = stage.height
    stage.distract(0.6, front=False)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        wide = stage.width * rng.uniform(0.18, 0.65)
        tall = wide * rng.uniform(0.5, 0.8)
        x, y = stage.width * rng.uniform(0.05, 0.8), stage.height * rng.uniform(0.04, 0.4)
        right = x + wide > stage.width * 1.1
        cloth(
            stage.mesh,
            rng,
            (x - wide if right else x, y),
            wide,
            tall,
            pinned="pole_right" if right else "pole",
            colour=flag_colours(rng),
            depth=0.0,
        )
        rigid.pole(
            stage.mesh,
            rng,
            x,
            stage.height * 1.05,
            stage.height * 1.05 - y + 6 * stage.scale,
            max(wide * 0.03, 1.2),
            0.5,
        )


def _laundry(stage: Stage) -> None:
    rng = stage.rng
    if stage.chance(0.5):
        stage.landscape(rng.uniform(0.5, 0.9))
        stage.distract(0.7, front=False)
    else:
        stage.wall()
    y, x = stage.height * rng.uniform(0.08, 0.35), -stage.width * 0.05
    still_quad(
        stage.mesh, -3, y - 0.5 * stage.scale, stage.width + 6, stage.scale, np.full(3, rng.uniform(0.1, 0.9)), 0.5
    )
    while x < stage.width:
        wide = stage.width * rng.uniform(0.1, 0.3)
        colour = np.broadcast_to(rng.uniform(0.15, 0.98, 3) * 0.6 + 0.38 * rng.uniform(0, 1), (16, 14, 3)).copy()
        if stage.chance(0.4):
            colour[:: int(rng.integers(2, 5))] *= rng.uniform(0.3, 0.9, 3)
        if stage.chance(0.85):
            cloth(
                stage.mesh,
                rng,
                (x, y),
                wide,
                stage.height * rng.uniform(0.3, 0.6),
                pinned="line",
                colour=colour,
                depth=0.0,
            )
            for share in (0.08, 0.92):
                still_quad(
                    stage.mesh,
                    x + share * wide,
                    y - 2 * stage.scale,
                    1.5 * stage.scale,
                    5 * stage.scale,
                    np.array([0.7, 0.5, 0.3]),
                    0.6,
                )
        x += wide * rng.uniform(1.02, 1.3)
    stage.lawn(0.2)


def _candle(stage: Stage) -> None:
    rng = stage.rng
    wide, tall = stage.height * rng.uniform(0.1, 0.4), stage.height * rng.uniform(0.15, 0.7)
    x, foot = stage.width * rng.uniform(0.25, 0.75), stage.height * rng.uniform(0.8, 1.1)
    top = foot - tall
    if stage.chance(0.25):
        stage.background = backgrounds.bokeh(rng, stage.size, rng.uniform(0.1, 0.5, 3), stage.scale).astype(np.float32)
    else:
        tint = np.array([1.0, 0.55, 0.25]) * (1 + rng.normal(0, 0.15, 3))
        stage.background = backgrounds.dark(rng, stage.size, (x, top - 5), tint)
    if stage.chance(0.6):
        still_quad(
            stage.mesh,
            -2,
            foot - wide * 0.15,
            stage.width + 4,
            stage.height,
            pick(rng, ((0.25, 0.15, 0.08), (0.1, 0.08, 0.07), (0.4, 0.35, 0.3))),
            -1.0,
            material=PLANKS,
            gradient=(0.9, 0.3),
        )
    stage.changes.update(
        glow=rng.uniform(0.1, 0.6),
        exposure=rng.uniform(0.8, 1.2),
        haze=0.0,
        blurs=(0.0, 0.0, stage.scale * rng.uniform(0.35, 1.1)),
    )
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        body = pick(rng, ((0.95, 0.6, 0.2), (0.9, 0.85, 0.75), (0.7, 0.15, 0.1), (0.75, 0.65, 0.8)))
        line = np.stack([np.full(6, x), np.linspace(foot, top, 6)], -1)[None]
        glow = (np.linspace(0.25, 1.2, 6) ** 1.3)[None, :, None] * body
        add_strips(
            stage.mesh,
            still(6),
            line,
            np.full((1, 6), wide / 2),
            glow,
            depth=0.0,
            shade=(0.55, 1.0, 0.6),
            material=MOTTLED,
            strength=0.1,
        )
        add_blobs(
            stage.mesh,
            still(1),
            np.array([[x, top]]),
            np.array([[wide / 2, wide * 0.1]]),
            np.clip(body * 1.25, 0, 1)[None],
            depth=0.1,
            rng=rng,
            rough=0.02,
            rim=0.9,
        )
        wick = stage.height * 0.035
        still_quad(stage.mesh, x - 0.7 * stage.scale, top - wick, 1.4 * stage.scale, wick, np.full(3, 0.06), 0.2)
        high = stage.height * rng.uniform(0.16, 0.42)
        flame(stage.mesh, rng, (x, top - wick * 0.4), high, high * rng.uniform(0.1, 0.19), depth=0.3, layer=2)
        x, wide = x + wide * rng.choice([-1, 1]) * rng.uniform(1.2, 2), wide * rng.uniform(0.6, 1.1)
        top = foot - tall * rng.uniform(0.5, 1.1)


def _campfire(stage: Stage) -> None:
    rng = stage.rng
    x, foot = stage.width * rng.uniform(0.3, 0.7), stage.height * rng.uniform(0.75, 1.0)
    stage.background = backgrounds.dark(rng, stage.size, (x, foot), np.array([0.9, 0.45, 0.2]))
    stage.horizon = foot
    rigid.boulders(stage.mesh, rng, stage.size, foot - 0.02 * stage.height, 3.0, int(rng.integers(3, 12)), stage.scale)
    stage.changes.update(glow=rng.uniform(0.1, 0.5), haze=0.0, blurs=(0.0, 0.0, stage.scale * rng.uniform(0.4, 1.4)))
    spread = stage.width * rng.uniform(0.08, 0.25)
    for n in range(int(rng.integers(3, 7))):
        line = along(
            np.array([[x + rng.normal(0, 0.5) * spread, foot + rng.uniform(0, 6) * stage.scale]]),
            np.array([rng.uniform(-math.pi, 0)]),
            np.array([spread * rng.uniform(0.6, 1.5)]),
            np.zeros(1),
            4,
        )
        add_strips(
            stage.mesh,
            still(4),
            line,
            np.full((1, 4), spread * 0.09),
            np.array([[0.16, 0.09, 0.06]]) * rng.uniform(0.5, 2.5),
            depth=0.1 * n,
            material=FOLIAGE,
            strength=0.6,
        )
    tongues = int(rng.integers(14, 40))
    for n in range(tongues):
        back = 1 - n / tongues
        high = stage.height * rng.uniform(0.15, 0.5) * (0.45 + 0.75 * back)
        spot = (x + rng.normal(0, 0.55) * spread, foot + rng.uniform(-2, 3) * stage.scale)
        flame(
            stage.mesh,
            rng,
            spot,
            high,
            high * rng.uniform(0.08, 0.24),
            depth=1.0 + n * 0.05,
            fire=True,
            layer=2,
            lean=rng.normal(0, 0.15),
            heat=rng.uniform(0.6, 0.8) + 0.35 * (1 - back),
        )


def _lilies(stage: Stage) -> None:
    """Pads and blossoms on water, reeds at its edge."""
    rng = stage.rng
    stage.landscape(rng.uniform(0.1, 0.45), floor="water")
    stage.distract(0.4, front=False)
    count = int(rng.integers(15, 70))
    near = np.sort(rng.uniform(0, 1, count))
    centre = np.stack(
        [rng.uniform(0, 1, count) * stage.width, stage.horizon + (0.06 + 0.95 * near) * (stage.height - stage.horizon)],
        -1,
    )
    radius = stage.scale * rng.uniform(5, 14) * (0.25 + near)
    bob = stage.mesh.add_freedoms(centre, hertz=rng.uniform(0.25, 0.5), gain=4 * stage.scale, scatter=0.3, limit=99.0)
    carrier = still(count).with_freedoms(
        bob[:, None], np.stack([0.2 + near, 0.35 * rng.normal(0, 1, count)], -1)[:, None], np.zeros((count, 1))
    )
    add_blobs(
        stage.mesh,
        carrier,
        centre,
        np.stack([radius * 1.5, radius * 0.5], -1),
        vary(rng, pick(rng, GREENS), count),
        depth=near * 2,
        rng=rng,
        rough=0.04,
        rim=0.9,
        material=VEINS,
        strength=0.3,
    )
    some = np.flatnonzero(rng.random(count) < 0.2)
    flower_heads(
        stage.mesh,
        rng,
        carrier.take(some),
        centre[some] - [0, 2],
        radius[some] * 0.6,
        np.full(len(some), UP),
        style="lily",
        colour=pick(rng, PETALS),
        heart=np.array([0.9, 0.75, 0.2]),
        depth=near[some] * 2 + 0.05,
    )
    if stage.chance(0.6):
        meadow_blades(stage, int(rng.integers(30, 200)), rng.uniform(0.2, 0.6), top=stage.height * 0.95)


def _still(stage: Stage) -> None:
    rng = stage.rng
    choice = str(rng.choice(["street", "rocks", "room", "hills", "wall", "trunks"]))
    if choice == "room":
        edge = stage.room()
        if stage.chance(0.5):
            rigid.pot(
                stage.mesh,
                rng,
                stage.width * 0.5,
                edge + 8,
                stage.height * 0.2,
                stage.height * rng.uniform(0.2, 0.4),
                1.0,
            )
        return
    if choice == "wall":
        stage.wall()
        stage.horizon = stage.height * 0.9
        rigid.house(stage.mesh, rng, stage.width * 0.2, stage.height * 1.02, stage.width * 0.6, stage.height * 0.8, 0.0)
        return
    if choice == "trunks":
        stage.background = backgrounds.forest(rng, stage.size, pick(rng, GREENS) * 0.5, stage.scale)
        stage.horizon = stage.height * rng.uniform(0.6, 0.85)
        backgrounds.ground(rng, stage.background, stage.horizon, np.array([0.35, 0.26, 0.15]), "earth")
        for n in range(int(rng.integers(2, 9))):
            foot = stage.horizon + (stage.height - stage.horizon) * rng.uniform(0, 1)
            rigid.trunk(
                stage.mesh, rng, rng.uniform(0, 1) * stage.width, foot, -9, stage.scale * rng.uniform(4, 20), 0.1 * n
            )
        return
    stage.landscape(floor=None if choice != "street" else str(rng.choice(["road", "earth", "grass"])))
    if choice == "street":
        x = -stage.width * rng.uniform(0, 0.15)
        while x < stage.width:
            wide = stage.width * rng.uniform(0.14, 0.4)
            rigid.house(
                stage.mesh,
                rng,
                x,
                stage.horizon + stage.height * 0.08,
                wide,
                wide * rng.uniform(0.5, 1.5),
                rng.uniform(-1, 0),
            )
            x += wide * rng.uniform(0.95, 1.6)
    else:
        rigid.boulders(
            stage.mesh,
            rng,
            stage.size,
            stage.horizon + 5,
            0.0,
            int(rng.integers(3, 60)),
            stage.scale * (2 if choice == "rocks" else 0.8),
        )
    stage.distract(0.5)


_DRAW: dict[str, tuple[Callable[[Stage], None], float]] = {
    "tree": (vegetation.round_tree, 0.11),
    "bare_tree": (vegetation.bare_tree, 0.04),
    "pines": (vegetation.pines, 0.03),
    "bush": (vegetation.bush, 0.07),
    "foliage": (vegetation.foliage, 0.17),
    "meadow": (vegetation.meadow, 0.1),
    "reeds": (vegetation.reeds, 0.085),
    "flowers": (vegetation.flowers, 0.12),
    "flower_close": (vegetation.flower_close, 0.09),
    "blossom": (vegetation.blossom, 0.035),
    "hanging": (vegetation.hanging, 0.065),
    "palm": (vegetation.palm, 0.045),
    "potted": (_potted, 0.03),
    "flag": (_flag, 0.055),
    "laundry": (_laundry, 0.04),
    "candle": (_candle, 0.035),
    "campfire": (_campfire, 0.02),
    "lilies": (_lilies, 0.025),
    "still": (_still, 0.025),
}
KINDS = tuple(_DRAW)
SHARES = np.array([share for _, share in _DRAW.values()]) / sum(share for _, share in _DRAW.values())
STRENGTH = {
    "bare_tree": 0.8,
    "pines": 0.8,
    "tree": 1.0,
    "palm": 1.3,
    "flag": 1.6,
    "lilies": 0.8,
    "potted": 0.7,
    "campfire": 1.6,
}


def draw(
    kind: str, rng: np.random.Generator, size: tuple[int, int], atlas: np.ndarray
) -> tuple[Mesh, np.ndarray, Finish]:
    """Draw a picture of a kind with the textures of atlas (M, S, S): mesh, background (H, W, 3) float32, finish."""
    stage = Stage(rng, size, atlas)
    _DRAW[kind][0](stage)
    finish = Finish.draw(rng, stage.scale, **stage.changes)
    return stage.mesh, np.clip(stage.background, 0, 1).astype(np.float32), finish
