"""Things of the procedural scenes that never move: houses, fences, stones, pots, furniture. Lengths are px."""

from __future__ import annotations

import numpy as np

from data.scenes.backgrounds import still_quad
from data.scenes.elements import add_blobs, add_quad, add_strips
from data.scenes.mesh import BARK, BRICK, FLAT, MOTTLED, PLANKS, STONE, TILES, WEAVE, Mesh, still
from data.scenes.plants import pick

WALLS = (
    (0.72, 0.68, 0.60),
    (0.60, 0.30, 0.22),
    (0.85, 0.82, 0.75),
    (0.78, 0.62, 0.42),
    (0.55, 0.58, 0.62),
    (0.42, 0.28, 0.18),
    (0.80, 0.72, 0.70),
)
ROOFS = ((0.45, 0.18, 0.12), (0.28, 0.26, 0.28), (0.38, 0.27, 0.2), (0.2, 0.22, 0.26))
STONES = ((0.45, 0.44, 0.42), (0.55, 0.5, 0.44), (0.33, 0.33, 0.35), (0.62, 0.6, 0.57))


def house(
    mesh: Mesh,
    rng: np.random.Generator,
    x: float,
    foot: float,
    width: float,
    height: float,
    depth: float,
    layer: int = 1,
) -> None:
    """Add a house front with roof, windows and a door, its lower left corner at (x, foot)."""
    wall, roof = pick(rng, WALLS), pick(rng, ROOFS)
    material = int(rng.choice([BRICK, MOTTLED, PLANKS]))
    texel = 256 / max(width, 30) * (2.2 if material == BRICK else 1.0)
    top = foot - height
    still_quad(
        mesh,
        x,
        top,
        width,
        height,
        wall,
        depth,
        material=material,
        strength=0.35,
        texel=texel,
        layer=layer,
        gradient=(1.05, 0.85),
    )
    if rng.random() < 0.8:
        _roof(mesh, rng, x, top, width, wall, roof, texel, depth, layer)
    _windows(mesh, rng, x, foot, width, height, depth, layer)


def _roof(
    mesh: Mesh,
    rng: np.random.Generator,
    x: float,
    top: float,
    width: float,
    wall: np.ndarray,
    roof: np.ndarray,
    texel: float,
    depth: float,
    layer: int,
) -> None:
    """A gable or hipped roof, perhaps with a chimney."""
    rise, over = width * rng.uniform(0.2, 0.5), width * 0.06
    ridge = width * rng.choice([0.5, rng.uniform(0.12, 0.3)])
    corners = [
        [x + ridge, top - rise],
        [x + width - ridge, top - rise],
        [x + width + over, top + 2],
        [x - over, top + 2],
    ]
    add_quad(
        mesh,
        np.array(corners),
        roof,
        depth=depth + 0.02,
        material=TILES,
        strength=0.4,
        texel=texel * 1.3,
        layer=layer,
    )
    if rng.random() < 0.5:
        still_quad(
            mesh,
            x + width * rng.uniform(0.55, 0.75),
            top - rise * 1.15,
            width * 0.09,
            rise * 0.7,
            wall * 0.8,
            depth + 0.01,
            material=BRICK,
            texel=6,
            layer=layer,
        )


def _windows(
    mesh: Mesh, rng: np.random.Generator, x: float, foot: float, width: float, height: float, depth: float, layer: int
) -> None:
    """Rows of framed windows, and a door below."""
    top = foot - height
    columns, rows = int(rng.integers(2, 5)), max(1, int(round(height / width * rng.uniform(1.5, 3))))
    glass = np.array([0.14, 0.18, 0.24]) * rng.uniform(0.5, 2.5)
    frame = rng.choice([0.92, 0.3]) * np.ones(3)
    cell_w, cell_h = width / columns, height / rows
    w, h = cell_w * rng.uniform(0.35, 0.55), cell_h * rng.uniform(0.45, 0.62)
    door = int(rng.integers(columns))
    for row in range(rows):
        for column in range(columns):
            wx, wy = x + (column + 0.5) * cell_w - w / 2, top + (row + 0.5) * cell_h - h / 2
            if row == rows - 1 and column == door:
                still_quad(
                    mesh, wx, wy, w, foot - wy, pick(rng, ROOFS) * 1.2, depth + 0.03, material=PLANKS, layer=layer
                )
                continue
            edge = max(0.7, w * 0.09)
            still_quad(mesh, wx - edge, wy - edge, w + 2 * edge, h + 2 * edge, frame, depth + 0.03, layer=layer)
            still_quad(
                mesh,
                wx,
                wy,
                w,
                h,
                glass * rng.uniform(0.7, 1.4),
                depth + 0.04,
                gradient=(1.8, 0.7),
                layer=layer,
                material=MOTTLED,
                strength=0.4,
            )
            still_quad(mesh, wx + w / 2 - edge / 3, wy, edge * 0.7, h, frame, depth + 0.05, layer=layer)


def fence(
    mesh: Mesh, rng: np.random.Generator, foot: float, height: float, width: float, depth: float, layer: int = 1
) -> None:
    """Add a fence across the picture: posts and rails, or boards."""
    colour = pick(rng, ((0.85, 0.84, 0.8), (0.45, 0.33, 0.22), (0.3, 0.28, 0.27), (0.5, 0.45, 0.38)))
    gap = height * rng.uniform(0.25, 0.9)
    post = gap * rng.uniform(0.15, 0.6)
    for rail in (0.25, 0.7):
        still_quad(
            mesh, -5, foot - height * rail, width + 10, height * 0.1, colour * 0.85, depth, material=PLANKS, layer=layer
        )
    for x in np.arange(rng.uniform(-gap, 0), width, gap):
        lean = rng.normal(0, 0.02) * height
        add_quad(
            mesh,
            np.array([[x + lean, foot - height], [x + post + lean, foot - height], [x + post, foot], [x, foot]]),
            colour * rng.uniform(0.85, 1.1),
            depth=depth + 0.01,
            material=PLANKS,
            layer=layer,
        )


def stones(
    mesh: Mesh,
    rng: np.random.Generator,
    centre: np.ndarray,
    radius: np.ndarray,
    depth: float | np.ndarray,
    layer: int = 1,
) -> None:
    """Add stones at centre (N, 2) of radius (N,), flatter than high."""
    count = len(centre)
    colour = np.clip(pick(rng, STONES) * np.exp(rng.normal(0, 0.2, (count, 1))), 0, 1)
    shape = np.stack([radius * rng.uniform(0.9, 1.6, count), radius * rng.uniform(0.55, 0.95, count)], -1)
    add_blobs(
        mesh,
        still(count),
        centre,
        shape,
        colour,
        depth=depth,
        rng=rng,
        rough=0.07,
        rim=0.62,
        material=STONE,
        strength=0.5,
        layer=layer,
        corners=14,
    )


def pot(mesh: Mesh, rng: np.random.Generator, x: float, foot: float, width: float, height: float, depth: float) -> None:
    """Add a flower pot or vase standing on (x, foot), x its middle."""
    colour = pick(rng, ((0.72, 0.38, 0.24), (0.9, 0.89, 0.86), (0.3, 0.32, 0.36), (0.35, 0.5, 0.55), (0.2, 0.17, 0.15)))
    points = 6
    line = np.stack([np.full(points, x), np.linspace(foot, foot - height, points)], -1)[None]
    shape = np.linspace(rng.uniform(0.55, 0.9), 1.0, points) + rng.uniform(-0.1, 0.3) * np.sin(
        np.linspace(0, np.pi, points)
    )
    add_strips(
        mesh,
        still(points),
        line,
        (width / 2 * shape)[None],
        colour[None],
        depth=depth,
        shade=(0.6, 1.1, 0.7),
        material=MOTTLED,
        strength=0.12,
    )
    still_quad(
        mesh, x - width * 0.54, foot - height - width * 0.06, width * 1.08, width * 0.13, colour * 1.05, depth + 0.01
    )


def pole(
    mesh: Mesh,
    rng: np.random.Generator,
    x: float,
    foot: float,
    height: float,
    width: float,
    depth: float,
    layer: int = 1,
) -> None:
    """Add an upright round pole, x its middle."""
    line = np.stack([np.full(4, x), np.linspace(foot, foot - height, 4)], -1)[None]
    add_strips(
        mesh,
        still(4),
        line,
        np.full((1, 4), width / 2),
        pick(rng, ((0.75, 0.75, 0.76), (0.35, 0.33, 0.32), (0.5, 0.36, 0.22)))[None],
        depth=depth,
        shade=(0.6, 1.15, 0.7),
        material=MOTTLED,
        strength=0.1,
        layer=layer,
    )


def bench(mesh: Mesh, rng: np.random.Generator, x: float, foot: float, width: float, depth: float) -> None:
    """Add a garden bench seen from the front, its left foot at (x, foot)."""
    wood = pick(rng, ((0.5, 0.34, 0.2), (0.3, 0.35, 0.3), (0.6, 0.58, 0.52)))
    height = width * 0.5
    for share in (0.08, 0.86):
        still_quad(mesh, x + width * share, foot - height, width * 0.06, height, wood * 0.5, depth)
    for level in (1.0, 0.84, 0.68, 0.48, 0.4):
        still_quad(mesh, x, foot - height * level, width, height * 0.1, wood, depth + 0.01, material=PLANKS)


def boulders(
    mesh: Mesh, rng: np.random.Generator, size: tuple[int, int], foot: float, depth: float, count: int, scale: float
) -> None:
    """Scatter stones about the row `foot` and below, nearer ones larger."""
    height, width = size
    y = foot + rng.uniform(0, 1, count) ** 1.5 * max(height - foot, 4)
    near = (y - foot) / max(height - foot, 4)
    radius = scale * rng.uniform(2, 9, count) * (0.4 + 1.6 * near)
    stones(mesh, rng, np.stack([rng.uniform(0, width, count), y], -1), radius, depth + near)


def furniture(mesh: Mesh, rng: np.random.Generator, size: tuple[int, int], floor: float, scale: float) -> None:
    """Add the things of a room before its wall: pictures, a shelf, a cupboard, a window, bottles."""
    height, width = size
    for _ in range(int(rng.integers(1, 4))):
        w = width * rng.uniform(0.1, 0.25)
        h = w * rng.uniform(0.7, 1.4)
        x, y = rng.uniform(0, width - w), rng.uniform(0.02, 0.35) * height
        frame = pick(rng, ((0.2, 0.14, 0.1), (0.9, 0.9, 0.88), (0.6, 0.5, 0.3)))
        still_quad(mesh, x, y, w, h, frame, -3.0, material=PLANKS)
        edge = w * rng.uniform(0.05, 0.12)
        still_quad(
            mesh,
            x + edge,
            y + edge,
            w - 2 * edge,
            h - 2 * edge,
            rng.uniform(0.1, 0.95, 3),
            -2.9,
            strength=0.6,
            material=int(rng.choice([STONE, WEAVE, MOTTLED, FLAT])),
            gradient=tuple(rng.uniform(0.5, 1.3, 2)),
        )
    if rng.random() < 0.7:
        w, h = width * rng.uniform(0.2, 0.5), height * rng.uniform(0.2, 0.5)
        x, wood = rng.uniform(-0.1, 0.8) * width, pick(rng, WALLS)
        still_quad(mesh, x, floor - h, w, h * 1.1, wood, -2.0, material=PLANKS, gradient=(1.1, 0.8))
        for n in range(3):
            still_quad(
                mesh,
                x + w * 0.06,
                floor - h * (0.95 - 0.31 * n),
                w * 0.88,
                h * 0.26,
                wood * 0.85,
                -1.9,
                material=PLANKS,
            )
            still_quad(mesh, x + w * 0.45, floor - h * (0.84 - 0.31 * n), w * 0.1, h * 0.03, np.full(3, 0.2), -1.8)
    for _ in range(int(rng.integers(0, 5))):
        w = scale * rng.uniform(5, 14)
        pot(mesh, rng, rng.uniform(0, width), floor + scale * rng.uniform(2, 16), w, w * rng.uniform(1, 2.4), -1.0)


def trunk(
    mesh: Mesh, rng: np.random.Generator, x: float, foot: float, top: float, width: float, depth: float, layer: int = 1
) -> None:
    """Add a still trunk from row foot to row top that leaves the picture."""
    points = 7
    line = np.stack([x + np.cumsum(rng.normal(0, 0.12 * width, points)), np.linspace(foot, top, points)], -1)[None]
    add_strips(
        mesh,
        still(points),
        line,
        width / 2 * np.linspace(1.25, 0.8, points)[None],
        pick(rng, ((0.30, 0.22, 0.15), (0.42, 0.36, 0.30), (0.2, 0.16, 0.12)))[None],
        depth=depth,
        material=BARK,
        strength=0.5,
        shade=(0.55, 1.1, 0.75),
        layer=layer,
    )
