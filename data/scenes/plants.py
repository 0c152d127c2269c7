"""Plants of the procedural scenes, built from the batches of scene_elements. Lengths are px."""

from __future__ import annotations

import math

import numpy as np

from data.scenes.elements import add_blobs, add_leaves, add_strips
from data.scenes.mesh import BARK, FOLIAGE, STONE, Carrier, Mesh, along, bend, still, unit

UP = -math.pi / 2

GREENS = (
    (0.22, 0.40, 0.10),
    (0.36, 0.52, 0.16),
    (0.15, 0.30, 0.11),
    (0.45, 0.60, 0.18),
    (0.28, 0.42, 0.22),
    (0.50, 0.62, 0.10),
    (0.12, 0.24, 0.12),
)
AUTUMN = ((0.85, 0.55, 0.10), (0.80, 0.30, 0.08), (0.90, 0.70, 0.18), (0.60, 0.16, 0.08), (0.68, 0.45, 0.18))
STRAW = ((0.78, 0.64, 0.36), (0.62, 0.46, 0.24), (0.82, 0.74, 0.52), (0.58, 0.36, 0.28), (0.45, 0.42, 0.2))
BARKS = ((0.30, 0.22, 0.15), (0.42, 0.36, 0.30), (0.20, 0.15, 0.11), (0.55, 0.52, 0.47))
PETALS = (
    (0.95, 0.93, 0.90),
    (0.95, 0.80, 0.10),
    (0.85, 0.10, 0.12),
    (0.90, 0.45, 0.65),
    (0.45, 0.25, 0.75),
    (0.25, 0.40, 0.90),
    (0.95, 0.50, 0.08),
    (0.75, 0.15, 0.45),
    (0.70, 0.55, 0.90),
    (0.98, 0.92, 0.60),
)


def pick(rng: np.random.Generator, palette: tuple[tuple[float, ...], ...], spread: float = 0.04) -> np.ndarray:
    """One colour (3,) of a palette, varied."""
    return np.clip(np.asarray(palette[int(rng.integers(len(palette)))]) + rng.normal(0, spread, 3), 0.02, 1)


def vary(
    rng: np.random.Generator, colour: np.ndarray, count: int, light: float = 0.18, hue: float = 0.05
) -> np.ndarray:
    """Colours (N, 3) about one: each with a brightness and a hue of its own."""
    bright = np.exp(rng.normal(0, light, (count, 1)))
    return np.clip(colour * bright * (1 + rng.normal(0, hue, (count, 3))), 0.01, 1.0)


def foliage_colour(rng: np.random.Generator, autumn: float = 0.15) -> np.ndarray:
    """A colour of leaves, sometimes of autumn."""
    return pick(rng, AUTUMN if rng.random() < autumn else GREENS)


def grass(
    mesh: Mesh,
    rng: np.random.Generator,
    base: np.ndarray,
    height: np.ndarray,
    colour: np.ndarray,
    *,
    half_width: float | np.ndarray,
    lean: float = 0.0,
    spread: float = 0.25,
    bow: float = 0.6,
    depth: np.ndarray | float = 0.0,
    layer: int = 1,
    hertz: float = 1.3,
    gain: float = 0.25,
    points: int = 5,
) -> tuple[np.ndarray, Carrier]:
    """Add tapering blades that stand on base (N, 2); returns their centre lines (N, P, 2) and point carriers."""
    count = len(base)
    angle = UP + lean + rng.normal(0, spread, count)
    line = along(base, angle, height, rng.normal(0.5 * lean, bow, count), points)
    natural = hertz * (np.median(height) / np.maximum(height, 1.0)) ** 0.5 * np.exp(rng.normal(0, 0.15, count))
    carried = bend(mesh, still(count), line, hertz=natural, gain=gain, scatter=0.35)
    taper = np.linspace(1, 0.12, points) ** 0.8
    widths = np.broadcast_to(np.asarray(half_width, float), (count,))[:, None] * taper
    shade = np.linspace(0.55, 1.15, points)[None, :, None] * colour[:, None]
    add_strips(mesh, carried, line, widths, shade, depth=depth, layer=layer)
    return line, carried


def tips(line: np.ndarray, carried: Carrier, point: int = -1) -> tuple[np.ndarray, np.ndarray, Carrier]:
    """Position (N, 2), heading (N,) and carrier of one point of every chain (N, P, 2)."""
    count, points = line.shape[:2]
    point %= points
    step = line[:, point] - line[:, point - 1]
    return line[:, point], np.arctan2(step[:, 1], step[:, 0]), carried.take(np.arange(count) * points + point)


def leafy_twigs(
    mesh: Mesh,
    rng: np.random.Generator,
    carrier: Carrier,
    base: np.ndarray,
    angle: np.ndarray,
    length: np.ndarray,
    colour: np.ndarray,
    *,
    leaf: float,
    per: int,
    shape: str,
    depth: np.ndarray,
    slim: float = 0.45,
    layer: int = 1,
    hertz: float = 1.1,
    gain: float = 0.16,
    bow: float = 0.4,
    droop: float = 0.0,
    wood: np.ndarray | None = None,
    light: float = 0.2,
    open_angle: float = 0.9,
) -> tuple[np.ndarray, Carrier]:
    """Add twigs with leaves on both sides, riding on carrier (N items); returns the twigs' lines and carriers."""
    count, points = len(base), 5
    line = along(base, angle, length, rng.normal(0, bow, count), points)
    carried = bend(mesh, carrier, line, hertz=hertz * np.exp(rng.normal(0, 0.25, count)), gain=gain, scatter=0.4)
    wood = np.array([0.25, 0.2, 0.12]) if wood is None else wood
    widths = np.linspace(1.0, 0.4, points) * np.maximum(0.035 * leaf, 0.35) * np.ones((count, 1))
    add_strips(mesh, carried, line, widths, vary(rng, wood, count), depth=depth - 0.01, layer=layer)
    where = np.tile(np.linspace(0.2, 1.0, per), count)
    which = np.repeat(np.arange(count), per)
    place = where * (points - 1)
    low = np.minimum(place.astype(int), points - 2)
    share = (place - low)[:, None]
    start = line[which, low] * (1 - share) + line[which, low + 1] * share
    heading = np.arctan2(*(line[which, low + 1] - line[which, low]).T[::-1])
    side = np.where(np.arange(per * count) % 2 == 0, 1.0, -1.0) * np.where(where > 0.95, 0.1, 1.0)
    turn = heading + side * open_angle * np.exp(rng.normal(0, 0.25, len(which))) + rng.normal(0, 0.2, len(which))
    turn = turn + droop * np.sin(math.pi / 2 - turn) * 0.7
    size = leaf * np.exp(rng.normal(0, 0.2, len(which))) * (1.1 - 0.35 * where)
    add_leaves(
        mesh,
        carried.take(which * points + low + (share[:, 0] > 0.5)),
        start,
        turn,
        size,
        size * slim * rng.uniform(0.5, 1.1, len(which)),
        vary(rng, colour, len(which), light),
        shape=shape,
        depth=depth[which] + rng.uniform(0, 0.5, len(which)),
        bow=rng.normal(0, 0.15, len(which)),
        layer=layer,
        hertz=2.2,
        tip=rng.uniform(0.85, 1.2),
    )
    return line, carried


def tree(
    mesh: Mesh,
    rng: np.random.Generator,
    foot: tuple[float, float],
    height: float,
    *,
    depth: float,
    layer: int = 1,
    style: str = "round",
    colour: np.ndarray | None = None,
    wood: np.ndarray | None = None,
    leaf: float = 3.0,
    density: float = 1.0,
) -> None:
    """Add a tree: trunk, boughs into the crown, clumps of leaves; style round, tall, cone, bare or bush."""
    colour = foliage_colour(rng) if colour is None else colour
    wood = pick(rng, BARKS) if wood is None else wood
    stem = {"round": 0.55, "tall": 0.6, "cone": 0.92, "bare": 0.6, "bush": 0.12}[style]
    lean, bow = np.array([UP + rng.normal(0, 0.06)]), rng.normal(0, 0.25, 1)
    trunk = along(np.array([foot]), lean, np.array([height * stem]), bow, 7)
    pace = (60 / max(height, 8)) ** 0.35
    carried = bend(mesh, still(1), trunk, hertz=rng.uniform(0.35, 0.7) * pace, gain=0.06, scatter=0.2)
    thick = height * rng.uniform(0.022, 0.04) * {"bush": 0.4, "cone": 0.6}.get(style, 1.0)
    bark = {"material": BARK, "strength": 0.5, "shade": (0.6, 1.1, 0.8), "layer": layer}
    add_strips(mesh, carried, trunk, np.linspace(1.25, 0.5, 7)[None] * thick, wood[None], depth=depth - 0.5, **bark)
    many = density * (1.6 if style == "cone" else 1.0)
    clumps = int(np.clip(rng.integers(38, 75) * many, 12, 120))
    centre, spread = _crown(rng, style, foot, height, clumps)
    level = (foot[1] - centre[:, 1]) / height * 4.5 / max(stem, 0.1)
    start = np.clip(level.astype(int), 1 if style == "bush" else 2, 6)
    root = trunk[0, start]
    reach = centre - root
    length = np.linalg.norm(reach, axis=1) + 1
    curve = rng.normal(0, 0.4, clumps)
    boughs = along(root, np.arctan2(reach[:, 1], reach[:, 0]) - curve / 2, length, curve, 5)
    hertz = rng.uniform(0.6, 1.2) * pace * np.exp(rng.normal(0, 0.2, clumps))
    moved = bend(mesh, carried.take(start), boughs, hertz=hertz, gain=0.09, scatter=0.35)
    near = rng.uniform(-0.4, 0.4, clumps)
    widths = np.linspace(0.5, 0.12, 5) * thick * np.ones((clumps, 1))
    add_strips(mesh, moved, boughs, widths, vary(rng, wood, clumps, 0.1), depth=depth + near - 0.45, **bark)
    end, _, ends = tips(boughs, moved)
    if style == "bare":
        _bare_twigs(mesh, rng, boughs, moved, height, wood, depth, layer)
        return
    _clumps_of_leaves(mesh, rng, ends, end, spread, height, colour, leaf, depth + near, layer)


def _clumps_of_leaves(
    mesh: Mesh,
    rng: np.random.Generator,
    ends: Carrier,
    end: np.ndarray,
    spread: np.ndarray,
    height: float,
    colour: np.ndarray,
    leaf: float,
    near: np.ndarray,
    layer: int,
) -> None:
    """Leaves of a crown lit from one side: clumps of radius spread (N,) about the ends (N, 2) of its boughs."""
    clumps = len(end)
    above = np.clip((end[:, 1].max() - end[:, 1]) / height, 0, 1)
    sun = unit(np.array(rng.uniform(-2.7, -0.45)))
    facing = (end - end.mean(0)) @ sun / (0.3 * height)
    contrast = rng.uniform(0.15, 0.45)
    lit = np.clip(0.7 + 0.2 * above + contrast * facing + 0.3 * (near - near.mean()), 0.3, 1.4)[:, None]
    add_blobs(
        mesh,
        ends,
        end,
        spread * 0.8,
        vary(rng, colour * 0.5, clumps, 0.12) * lit,
        depth=near - 0.3,
        rng=rng,
        rough=0.3,
        rim=0.75,
        corners=16,
        material=FOLIAGE,
        strength=0.5,
        layer=layer,
    )
    per = int(np.clip(13 * (spread.mean() / leaf) ** 1.5, 14, 85))
    which = np.repeat(np.arange(clumps), per)
    offset = rng.normal(0, 0.5, (len(which), 2)) * spread[which, None]
    top = np.clip(0.85 + (contrast + 0.15) * (offset @ sun) / spread[which], 0.35, 1.6)[:, None]
    outward = np.arctan2(offset[:, 1] + 0.4 * spread[which], offset[:, 0]) + rng.normal(0, 0.8, len(which))
    size = leaf * np.exp(rng.normal(0, 0.3, len(which)))
    add_leaves(
        mesh,
        ends.take(which),
        end[which] + offset,
        outward,
        size,
        size * rng.uniform(0.35, 0.75, len(which)),
        np.clip(vary(rng, colour, len(which), 0.22) * lit[which] * top, 0, 1),
        shape="small",
        depth=near[which] + rng.uniform(-0.25, 0.25, len(which)) - 0.15 * offset[:, 1] / spread[which],
        layer=layer,
        twist=False,
        hertz=2.3,
    )


def _crown(
    rng: np.random.Generator, style: str, foot: tuple[float, float], height: float, clumps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (N, 2) and radii (N,) of the clumps of leaves of a crown."""
    if style == "cone":
        up = rng.uniform(0.07, 1.0, clumps) ** 0.9
        x = rng.uniform(-1, 1, clumps) * 0.26 * (1.03 - up)
        centre = np.stack([foot[0] + x * height, foot[1] - up * height + np.abs(x) * 0.35 * height], -1)
        return centre, height * (0.03 + 0.06 * (1 - up))
    angle, r = rng.uniform(0, 2 * math.pi, clumps), np.sqrt(rng.uniform(0.02, 1, clumps))
    wide, high, middle = {
        "round": (0.36, 0.3, 0.66),
        "tall": (0.2, 0.36, 0.62),
        "bare": (0.38, 0.34, 0.66),
        "bush": (0.62, 0.44, 0.38),
    }[style]
    shape = np.stack([wide * np.cos(angle), high * np.sin(angle)], -1) * r[:, None]
    lobes = 1 + 0.16 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.12 * np.sin(5 * angle + rng.uniform(0, 6))
    centre = np.array(foot) + height * (shape * lobes[:, None] - [0, middle])
    if style == "bush":
        centre[:, 1] = np.minimum(centre[:, 1], foot[1] - 0.03 * height)
    return centre, height * rng.uniform(0.07, 0.14, clumps) * (1.15 - 0.4 * r)


def _bare_twigs(
    mesh: Mesh,
    rng: np.random.Generator,
    boughs: np.ndarray,
    moved: Carrier,
    height: float,
    wood: np.ndarray,
    depth: float,
    layer: int,
) -> None:
    """Two generations of leafless twigs on boughs (N, P, 2)."""
    lines, carried, length = boughs, moved, height * 0.17
    for generation in range(2):
        count, points = lines.shape[:2]
        which = np.repeat(np.arange(count), 4 if generation == 0 else 3)
        at = rng.integers(2, points, len(which))
        step = lines[which, at] - lines[which, at - 1]
        angle = np.arctan2(step[:, 1], step[:, 0]) + rng.choice([-1, 1], len(which)) * rng.uniform(
            0.25, 0.9, len(which)
        )
        lines_next = along(
            lines[which, at],
            angle + (UP - angle) * 0.15,
            length * np.exp(rng.normal(0, 0.3, len(which))),
            rng.normal(0, 0.4, len(which)),
            4,
        )
        carried = bend(mesh, carried.take(which * points + at), lines_next, hertz=1.3 + generation, gain=0.1)
        widths = np.linspace(1, 0.5, 4) * height * (0.006 - 0.0025 * generation) * np.ones((len(which), 1))
        add_strips(
            mesh,
            carried,
            lines_next,
            np.maximum(widths, 0.22),
            vary(rng, wood * 0.9, len(which), 0.1),
            depth=depth + 0.1 * generation,
            layer=layer,
        )
        lines, length = lines_next, length * 0.55


def palm(
    mesh: Mesh, rng: np.random.Generator, foot: tuple[float, float], tall: float, colour: np.ndarray, scale: float
) -> None:
    """Add a palm: a trunk and fronds, ribs with leaflets on both sides."""
    trunk = along(np.array([foot]), np.array([UP + rng.normal(0, 0.12)]), np.array([tall]), rng.normal(0, 0.3, 1), 7)
    carried = bend(mesh, still(1), trunk, hertz=rng.uniform(0.3, 0.6), gain=0.06)
    add_strips(
        mesh,
        carried,
        trunk,
        np.linspace(1.2, 0.8, 7)[None] * scale * rng.uniform(1.5, 4),
        pick(rng, BARKS)[None],
        depth=-0.2,
        strength=0.5,
        material=STONE,
    )
    end, _, carrier = tips(trunk, carried)
    fronds = int(rng.integers(9, 20))
    angle = np.linspace(-math.pi * 1.15, math.pi * 0.15, fronds) + rng.normal(0, 0.1, fronds)
    long = tall * rng.uniform(0.35, 0.75) * np.exp(rng.normal(0, 0.1, fronds))
    crown = np.repeat(end, fronds, 0)
    bow = 1.3 * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.5
    ribs = along(crown, angle, long, bow, 9)
    moved = bend(mesh, carrier.take(np.zeros(fronds, int)), ribs, hertz=rng.uniform(0.6, 1.2), gain=0.16, scatter=0.4)
    add_strips(
        mesh,
        moved,
        ribs,
        np.linspace(1, 0.3, 9) * 0.8 * scale * np.ones((fronds, 1)),
        vary(rng, colour, fronds),
        depth=0.0,
    )
    which, at = np.repeat(np.arange(fronds), 44), np.tile(np.repeat(np.arange(1, 9), 6)[:44], fronds)
    step = ribs[which, at] - ribs[which, at - 1]
    side = np.tile(np.where(np.arange(44) % 2 == 0, 1.0, -1.0), fronds)
    start = ribs[which, at] - step * rng.uniform(0, 1, (len(which), 1))
    size = long[which] * 0.3 * np.sin(np.pi * (at + 1.5) / 11)
    turn = np.arctan2(step[:, 1], step[:, 0]) + side * rng.uniform(0.5, 0.8)
    add_leaves(
        mesh,
        moved.take(which * 9 + at),
        start,
        turn,
        size,
        size * 0.17,
        vary(rng, colour, len(which), 0.2),
        depth=rng.uniform(0, 1, len(which)),
        shape="small",
        bow=0.12 * np.sign(np.cos(turn)),
        twist=False,
    )
