"""Things of the procedural scenes that never move: houses, fences, stones, pots, furniture. Lengths are px."""

import numpy as np
from numpy import ndarray as Array

from data.scenes.elements import add_blobs, add_quad, add_rectangle, add_strips
from data.scenes.mesh import BARK, BRICK, FLAT, MOTTLED, PLANKS, STONE, TILES, WEAVE, Chain, still
from data.scenes.stage import BARKS, Stage, palette

WALLS = palette("72 68 60, 60 30 22, 85 82 75, 78 62 42, 55 58 62, 42 28 18, 80 72 70")
ROOFS = palette("45 18 12, 28 26 28, 38 27 20, 20 22 26")
STONES = palette("45 44 42, 55 50 44, 33 33 35, 62 60 57")
FENCES = palette("85 84 80, 45 33 22, 30 28 27, 50 45 38")
POTS = palette("72 38 24, 90 89 86, 30 32 36, 35 50 55, 20 17 15")
POLES = palette("75 75 76, 35 33 32, 50 36 22")
BENCHES = palette("50 34 20, 30 35 30, 60 58 52")
FRAMES = palette("20 14 10, 90 90 88, 60 50 30")
TRUNKS = BARKS[:2] + palette("20 16 12")


def house(stage: Stage, x: float, foot: float, width: float, height: float, depth: float) -> None:
    """Add a house front with roof, windows and a door, its lower left corner at (x, foot)."""
    rng, mesh, top = stage.rng, stage.mesh, foot - height
    wall, roof = stage.pick(WALLS), stage.pick(ROOFS)
    material = int(rng.choice([BRICK, MOTTLED, PLANKS]))
    texel = 256 / max(width, 30) * (2.2 if material == BRICK else 1.0)
    look = {"material": material, "strength": 0.35, "texel": texel, "gradient": (1.05, 0.85)}
    add_rectangle(mesh, x, top, width, height, wall, depth, **look)

    # a gable or hipped roof, perhaps with a chimney
    if stage.chance(0.8):
        rise, over = width * rng.uniform(0.2, 0.5), width * 0.06
        ridge = width * rng.choice([0.5, rng.uniform(0.12, 0.3)])
        upper = [[x + ridge, top - rise], [x + width - ridge, top - rise]]
        corners = np.array([*upper, [x + width + over, top + 2], [x - over, top + 2]])
        add_quad(mesh, corners, roof, depth=depth + 0.02, material=TILES, strength=0.4, texel=texel * 1.3)
        if stage.chance(0.5):
            left, look = x + width * rng.uniform(0.55, 0.75), {"material": BRICK, "texel": 6}
            add_rectangle(mesh, left, top - rise * 1.15, width * 0.09, rise * 0.7, wall * 0.8, depth + 0.01, **look)

    # rows of framed windows, and a door below
    columns, rows = stage.number(2, 5), max(1, int(round(height / width * rng.uniform(1.5, 3))))
    glass = np.array([0.14, 0.18, 0.24]) * rng.uniform(0.5, 2.5)
    frame = rng.choice([0.92, 0.3]) * np.ones(3)
    cell_w, cell_h = width / columns, height / rows
    w, h = cell_w * rng.uniform(0.35, 0.55), cell_h * rng.uniform(0.45, 0.62)
    door, edge = stage.number(0, columns), max(0.7, w * 0.09)
    pane = {"gradient": (1.8, 0.7), "material": MOTTLED, "strength": 0.4}
    for row, column in np.ndindex(rows, columns):
        wx, wy = x + (column + 0.5) * cell_w - w / 2, top + (row + 0.5) * cell_h - h / 2
        if row == rows - 1 and column == door:
            add_rectangle(mesh, wx, wy, w, foot - wy, stage.pick(ROOFS) * 1.2, depth + 0.03, material=PLANKS)
            continue
        add_rectangle(mesh, wx - edge, wy - edge, w + 2 * edge, h + 2 * edge, frame, depth + 0.03)
        add_rectangle(mesh, wx, wy, w, h, glass * rng.uniform(0.7, 1.4), depth + 0.04, **pane)
        add_rectangle(mesh, wx + w / 2 - edge / 3, wy, edge * 0.7, h, frame, depth + 0.05)


def fence(stage: Stage, foot: float, height: float, depth: float) -> None:
    """Add a fence across the image: posts and rails, or boards."""
    rng, mesh, width, colour = stage.rng, stage.mesh, stage.width, stage.pick(FENCES)
    gap = height * rng.uniform(0.25, 0.9)
    post = gap * rng.uniform(0.15, 0.6)
    for rail in (0.25, 0.7):
        y, thick = foot - height * rail, height * 0.1
        add_rectangle(mesh, -5, y, width + 10, thick, colour * 0.85, depth, material=PLANKS)
    for x in np.arange(rng.uniform(-gap, 0), width, gap):
        top, lean = foot - height, rng.normal(0, 0.02) * height
        corners = np.array([[x + lean, top], [x + post + lean, top], [x + post, foot], [x, foot]])
        add_quad(mesh, corners, colour * rng.uniform(0.85, 1.1), depth=depth + 0.01, material=PLANKS)


def boulders(stage: Stage, foot: float, depth: float, count: int, scale: float) -> None:
    """Scatter stones about the row `foot` and below, nearer ones larger, all flatter than high."""
    rng, (height, width) = stage.rng, stage.size
    y = foot + rng.uniform(0, 1, count) ** 1.5 * max(height - foot, 4)
    near = (y - foot) / max(height - foot, 4)
    radius = scale * rng.uniform(2, 9, count) * (0.4 + 1.6 * near)
    centre = np.stack([rng.uniform(0, width, count), y], -1)
    colour = np.clip(stage.pick(STONES) * np.exp(rng.normal(0, 0.2, (count, 1))), 0, 1)
    shape = np.stack([radius * rng.uniform(0.9, 1.6, count), radius * rng.uniform(0.55, 0.95, count)], -1)
    look = {"rough": 0.07, "rim": 0.62, "material": STONE, "strength": 0.5, "corners": 14}
    add_blobs(stage.mesh, rng, still(count), centre, shape, colour, depth=depth + near, **look)


def column(
    stage: Stage, x: float, foot: float, top: float, half_width: Array | float, colour: Array, **looks: object
) -> None:
    """Add something round and upright with its axis at x, in sections of half_width (P,); looks: of `add_strips`."""
    points = np.size(half_width)
    line = np.stack([np.broadcast_to(x, points), np.linspace(foot, top, points)], -1)[None]
    add_strips(stage.mesh, Chain(line, still(points)), half_width, colour, **looks)  # type: ignore[arg-type]


def pot(stage: Stage, x: float, foot: float, width: float, height: float, depth: float) -> None:
    """Add a flower pot or vase standing on (x, foot), x its middle."""
    rng, colour, s = stage.rng, stage.pick(POTS), np.linspace(0, np.pi, 6)
    shape = np.linspace(rng.uniform(0.55, 0.9), 1.0, 6) + rng.uniform(-0.1, 0.3) * np.sin(s)
    look = {"shade": (0.6, 1.1, 0.7), "material": MOTTLED, "strength": 0.12}
    column(stage, x, foot, foot - height, width / 2 * shape, colour[None], depth=depth, **look)
    top = foot - height - width * 0.06
    add_rectangle(stage.mesh, x - width * 0.54, top, width * 1.08, width * 0.13, colour * 1.05, depth + 0.01)


def pole(stage: Stage, x: float, foot: float, height: float, width: float, depth: float) -> None:
    """Add an upright round pole, x its middle."""
    look = {"shade": (0.6, 1.15, 0.7), "material": MOTTLED, "strength": 0.1}
    column(stage, x, foot, foot - height, np.full(4, width / 2), stage.pick(POLES)[None], depth=depth, **look)


def trunk(stage: Stage, x: float, foot: float, width: float, depth: float) -> None:
    """Add a still trunk from row foot on that leaves the image at its top."""
    middle = x + np.cumsum(stage.rng.normal(0, 0.12 * width, 7))
    look = {"material": BARK, "strength": 0.5, "shade": (0.55, 1.1, 0.75)}
    widths = width / 2 * np.linspace(1.25, 0.8, 7)
    column(stage, middle, foot, -9, widths, stage.pick(TRUNKS)[None], depth=depth, **look)


def bench(stage: Stage, x: float, foot: float, width: float, depth: float) -> None:
    """Add a garden bench seen from the front, its left foot at (x, foot)."""
    wood, height = stage.pick(BENCHES), width * 0.5
    for place in (0.08, 0.86):
        add_rectangle(stage.mesh, x + width * place, foot - height, width * 0.06, height, wood * 0.5, depth)
    for level in (1.0, 0.84, 0.68, 0.48, 0.4):
        add_rectangle(stage.mesh, x, foot - height * level, width, height * 0.1, wood, depth + 0.01, material=PLANKS)


def furniture(stage: Stage, floor: float) -> None:
    """Add the things of a room before its wall: pictures, a cupboard, bottles."""
    rng, mesh, (height, width) = stage.rng, stage.mesh, stage.size
    for _ in range(stage.number(1, 4)):
        w = width * rng.uniform(0.1, 0.25)
        h = w * rng.uniform(0.7, 1.4)
        x, y = rng.uniform(0, width - w), rng.uniform(0.02, 0.35) * height
        add_rectangle(mesh, x, y, w, h, stage.pick(FRAMES), -3.0, material=PLANKS)
        edge, tint = w * rng.uniform(0.05, 0.12), rng.uniform(0.1, 0.95, 3)
        look = {"strength": 0.6, "material": int(rng.choice([STONE, WEAVE, MOTTLED, FLAT]))}
        look["gradient"] = tuple(rng.uniform(0.5, 1.3, 2))
        add_rectangle(mesh, x + edge, y + edge, w - 2 * edge, h - 2 * edge, tint, -2.9, **look)
    if stage.chance(0.7):
        w, h = width * rng.uniform(0.2, 0.5), height * rng.uniform(0.2, 0.5)
        x, wood = rng.uniform(-0.1, 0.8) * width, stage.pick(WALLS)
        add_rectangle(mesh, x, floor - h, w, h * 1.1, wood, -2.0, material=PLANKS, gradient=(1.1, 0.8))
        for n in range(3):
            y, handle = floor - h * (0.95 - 0.31 * n), floor - h * (0.84 - 0.31 * n)
            add_rectangle(mesh, x + w * 0.06, y, w * 0.88, h * 0.26, wood * 0.85, -1.9, material=PLANKS)
            add_rectangle(mesh, x + w * 0.45, handle, w * 0.1, h * 0.03, np.full(3, 0.2), -1.8)
    for _ in range(stage.number(0, 5)):
        w = stage.scale * rng.uniform(5, 14)
        pot(stage, rng.uniform(0, width), floor + stage.scale * rng.uniform(2, 16), w, w * rng.uniform(1, 2.4), -1.0)
