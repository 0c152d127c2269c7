"""Elements of the procedural scenes in batches: ribbons, leaves, rounded patches, quadrilaterals.

`depth`, `layer`, `material` and `strength` are those of `Look`.
"""

from typing import Any

import numpy as np
from numpy import ndarray as Array

from data.scenes.mesh import FIBRE, FLAT, MOTTLED, TEXELS, VEINS, Carrier, Chain, Look, Mesh, normals, perp, still, unit


def add_strips(
    mesh: Mesh,
    chain: Chain,
    half_width: Array | float,
    colour: Array,
    *,
    shade: tuple[float, float, float] = (0.75, 1.05, 0.9),
    **look: Any,
) -> None:
    """Add ribbons along a chain: half_width px (N, P), colour (N, 3) or (N, P, 3), shade left, middle, right."""
    items, points = chain.line.shape[:2]
    sides, half_width = np.array([-1.0, 0.0, 1.0]), np.broadcast_to(half_width, (items, points))
    offsets = sides[:, None] * half_width[:, :, None, None] * normals(chain.line)[:, :, None]
    vertices = chain.line[:, :, None] + offsets
    moves = chain.carrier.moves(vertices.reshape(-1, 3, 2))
    moves = tuple(array.reshape(items, 3 * points, *array.shape[2:]) for array in moves)
    tint = colour[:, None, None] if colour.ndim == 2 else colour[:, :, None]
    tint = tint * np.asarray(shade)[:, None] * np.ones((items, points, 3, 1))
    look = Look(**{"strength": 0.2, "material": FIBRE, **look})
    scale = 4.0 if look.material == FIBRE else 2.0
    lengthwise = np.cumsum(np.linalg.norm(np.gradient(chain.line, axis=1), axis=-1), 1) * scale
    offset = (np.arange(items) * 37.0 % TEXELS)[:, None, None]
    across = sides * half_width[..., None] * scale + offset
    uv = np.stack([across, np.broadcast_to(lengthwise[..., None], across.shape) + offset], -1)
    n = np.arange(points - 1)[:, None] * 3
    quads = np.concatenate([n + [[0, 1, 3]], n + [[1, 4, 3]], n + [[1, 2, 4]], n + [[2, 5, 4]]])
    vertices, tint, uv = (array.reshape(items, 3 * points, -1) for array in (vertices, tint, uv))
    mesh.add(vertices, quads, tint, moves, uv, look)


PROFILES: dict[str, tuple[float, ...]] = {
    "lance": (0.4, 1.0, 0.75, 0.3),
    "oval": (0.5, 0.93, 1.0, 0.8, 0.4),
    "round": (0.55, 0.9, 1.0, 0.93, 0.6),
    "petal": (0.22, 0.55, 0.88, 1.0, 0.7),
    "small": (1.0,),
    "heart": (0.85, 1.0, 0.85, 0.55, 0.2),
}


def leaf_outline(shape: str) -> tuple[Array, Array, Array]:
    """Unit leaf from (0, 0) to (1, 0): points (P, 2), triangles (M, 3), and the side of each point (-1, 0, 1)."""
    if shape == "maple":
        radii = np.array([0.25, 0.6, 0.42, 0.75, 0.45, 0.95, 0.42, 1.0, 0.42, 0.95, 0.45, 0.75, 0.42, 0.6])
        angle = np.linspace(-np.pi, np.pi, len(radii), endpoint=False)
        rim = np.stack([0.42 + 0.58 * radii * np.cos(angle), 0.58 * radii * np.sin(angle) * 1.15], -1)
        count = len(rim)
        fan = np.stack([np.zeros(count, int), 1 + np.arange(count), 1 + (np.arange(count) + 1) % count], -1)
        points = np.concatenate([[[0.4, 0.0]], rim])
        return points, fan, np.sign(np.round(points[:, 1], 6))
    profile = PROFILES[shape]
    sections = len(profile)
    t = (1 - np.cos(np.pi * (np.arange(sections) + 1.0) / (sections + 1.0))) / 2 if sections > 1 else np.array([0.45])
    rows = [[[x, -w / 2], [x, 0.0], [x, w / 2]] for x, w in zip(t, profile, strict=True)]
    points = np.concatenate([[[0.0, 0.0]], np.concatenate(rows), [[1.0, 0.0]]])
    last = len(points) - 1
    triangles = [[0, 1, 2], [0, 2, 3], [last, last - 3, last - 2], [last, last - 2, last - 1]]
    for row in range(sections - 1):
        a = 1 + 3 * row
        triangles += [[a, a + 1, a + 3], [a + 1, a + 4, a + 3], [a + 1, a + 2, a + 4], [a + 2, a + 5, a + 4]]
    return points, np.array(triangles), np.sign(points[:, 1])


def add_leaves(
    mesh: Mesh,
    carrier: Carrier,
    base: Array,
    angle: Array,
    length: Array,
    width: Array,
    colour: Array,
    *,
    shape: str = "oval",
    bow: Array | float = 0.0,
    hertz: float = 2.5,
    flutter: float = 0.3,
    fold: float = 0.12,
    tip: float = 1.0,
    twist: bool = True,
    squash: tuple[Array, float, float] | None = None,
    **look: Any,
) -> None:
    """Add leaves or petals that ride on carrier (N items) at base (N, 2), swing about it and turn on their midrib.

    fold: brightness step across the midrib; tip: brightness of the tip relative to the base.
    squash (centre (N, 2), direction, factor): a flower head seen aslant, squeezed toward its centre.
    """
    outline, triangles, side = leaf_outline(shape)
    x, y = outline.T
    forward, sideways = unit(angle), perp(unit(angle))
    lift = np.broadcast_to(np.asarray(bow, float), (len(base),))[:, None] * (x**2)[None] * length[:, None]
    breadth = y[:, None] * (width[:, None, None] * sideways[:, None])
    points = base[:, None] + x[:, None] * length[:, None, None] * forward[:, None] + breadth
    points = points + lift[..., None] * sideways[:, None]
    if squash is not None:
        centre, direction, factor = squash
        axis = unit(np.asarray(direction))
        points = points - (1 - factor) * ((points - centre[:, None]) @ axis)[..., None] * axis
    # No two leaves swing alike: their natural frequencies spread by golden-ratio steps, without a generator.
    pace = hertz * np.exp(0.8 * ((np.arange(len(base)) * 0.61803) % 1 - 0.5))
    gain = flutter * (sideways[:, 0] + 0.6 * sideways[:, 1])
    own = mesh.add_freedoms(base, hertz=pace, gain=gain, scatter=0.7, limit=0.6)
    extra = [(own, perp(points - base[:, None]) * np.clip(x * 3.0, 0.0, 1.0)[:, None])]
    if twist:
        roll = mesh.add_freedoms(base, hertz=pace * 1.3, gain=flutter, scatter=1.0, limit=0.6)
        extra.append((roll, breadth))
    freedoms, directions = carrier.moves(points)
    for number, way in extra:
        freedoms = np.concatenate([freedoms, np.broadcast_to(number[:, None, None], (*way.shape[:2], 1))], 2)
        directions = np.concatenate([directions, way[:, :, None]], 2)
    tint = colour[:, None] * ((1 + fold * side) * (1 + (tip - 1) * x))[None, :, None]
    uv = np.stack([128 + 110 * y, 250 * x], -1)[None] + np.zeros((len(base), 1, 1))
    look = Look(**{"strength": 0.25, "material": VEINS, **look})
    mesh.add(points, triangles, tint, (freedoms, directions), uv, look)


def add_blobs(
    mesh: Mesh,
    rng: np.random.Generator,
    carrier: Carrier,
    centre: Array,
    radius: Array,
    colour: Array,
    *,
    rough: float = 0.15,
    rim: float = 0.75,
    corners: int = 12,
    **look: Any,
) -> None:
    """Add rounded patches on carrier (N items): stones, clumps, flower centres. radius (N,) or (N, 2); rim shades."""
    items, light = len(centre), -2.2  # the direction that the light comes from
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 1, (items, 1))
    stretch = radius if radius.ndim == 2 else np.stack([radius, radius], -1)
    around = unit(angle) * (1 + rough * rng.standard_normal((items, corners, 1)))
    top = centre[:, None] + 0.25 * unit(np.asarray(light)) * stretch[:, None]
    rings = [centre[:, None] + size * around * stretch[:, None] for size in (0.5, 1.0)]
    points = np.concatenate([top, *rings], 1)
    lit = (1 - rim) * np.cos(angle - light)
    bright = np.concatenate([np.full((items, 1), 1.15), 1.0 + lit * 0.6, rim + lit], 1)
    n = np.arange(corners)
    inner, after = 1 + n, 1 + (n + 1) % corners
    outer, last = inner + corners, after + corners
    corners_of = ((np.zeros_like(n), inner, after), (inner, outer, after), (after, outer, last))
    triangles = np.concatenate([np.stack(three, -1) for three in corners_of])
    uv = points * 3.0 + rng.uniform(0, TEXELS, (items, 1, 2))
    look = Look(**{"strength": 0.3, "material": MOTTLED, **look})
    mesh.add(points, triangles, colour[:, None] * bright[..., None], carrier.moves(points), uv, look)


def add_quad(
    mesh: Mesh, corners: Array, colour: Array, depth: float, *, gradient=(1.0, 1.0), texel: float = 3.0, **look: Any
) -> None:
    """Add a rigid, still quadrilateral (4, 2) px, corners in turn; gradient: brightness of its first and last edge."""
    corners = np.asarray(corners, float)
    # A grid keeps the texture from tearing along the diagonal.
    t = np.linspace(0, 1, 5)
    top = corners[0] + (corners[1] - corners[0]) * t[:, None]
    bottom = corners[3] + (corners[2] - corners[3]) * t[:, None]
    grid = (top[None] * (1 - t)[:, None, None] + bottom[None] * t[:, None, None]).reshape(1, -1, 2)
    n = (np.arange(4)[:, None] * 5 + np.arange(4)).reshape(-1, 1)
    triangles = np.concatenate([n + [[0, 1, 5]], n + [[1, 6, 5]]])
    tint = (np.asarray(colour) * np.repeat(np.linspace(*gradient, 5), 5)[:, None])[None]
    look = Look(depth, **{"strength": 0.3, "material": FLAT, **look})
    mesh.add(grid, triangles, tint, still(1).moves(grid), grid * texel, look)


def add_rectangle(mesh: Mesh, x: float, y: float, w: float, h: float, colour: Array, depth: float, **look: Any) -> None:
    """Add an upright `add_quad` with its top left corner at (x, y)."""
    add_quad(mesh, np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]), colour, depth, **look)
