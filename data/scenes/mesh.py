"""Mesh of a procedural scene: triangles in batches, each vertex tied to the degrees of freedom that move it.

The displacement of a vertex p is linear in the degrees of freedom q_d(t): sum_d q_d(t) (shift_d + turn_d perp(p)),
perp(x, y) = (-y, x). A child (leaf on twig on branch) inherits every degree of freedom of what carries it and adds
its own, so motion grows from zero at the root. Batches are arrays: N items, P points an item, D degrees of freedom.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FLAT, MOTTLED, FIBRE, BRICK, PLANKS, BARK, STONE, VEINS, FOLIAGE, TILES, WEAVE = range(11)
TEXELS = 256


class Carrier(NamedTuple):
    """What moves each of N points: freedoms (N, D) int, shift (N, D, 2) and turn (N, D); column 0 is stillness."""

    freedoms: np.ndarray
    shift: np.ndarray
    turn: np.ndarray

    def take(self, index: np.ndarray) -> Carrier:
        """Carriers of the items `index` (any shape of whole numbers, flattened)."""
        index = np.asarray(index).reshape(-1)
        return Carrier(self.freedoms[index], self.shift[index], self.turn[index])

    def with_freedoms(self, freedoms: np.ndarray, shift: np.ndarray, turn: np.ndarray) -> Carrier:
        """Carriers with further degrees of freedom: freedoms (N, E), shift (N, E, 2), turn (N, E)."""
        return Carrier(
            np.concatenate([self.freedoms, freedoms], 1),
            np.concatenate([self.shift, shift], 1),
            np.concatenate([self.turn, turn], 1),
        )


def still(count: int) -> Carrier:
    """Carriers of `count` points that never move."""
    return Carrier(np.zeros((count, 1), np.int64), np.zeros((count, 1, 2)), np.zeros((count, 1)))


def perp(vector: np.ndarray) -> np.ndarray:
    """Quarter turn (x, y) -> (-y, x) of vectors (..., 2)."""
    return np.stack([-vector[..., 1], vector[..., 0]], -1)


def unit(angle: np.ndarray) -> np.ndarray:
    """Direction (..., 2) of an angle: 0 right, pi/2 down, -pi/2 up."""
    return np.stack([np.cos(angle), np.sin(angle)], -1)


class Mesh:
    """All triangles of a scene, gathered in batches and sorted by (layer, depth), far to near."""

    def __init__(self) -> None:
        self._vertices: list[np.ndarray] = []
        self._looks: list[np.ndarray] = []
        self._triangles: list[np.ndarray] = []
        self._materials: list[np.ndarray] = []
        self._orders: list[np.ndarray] = []
        self._layers: list[np.ndarray] = []
        self._moves: list[tuple[np.ndarray, np.ndarray]] = []
        self._freedoms: list[np.ndarray] = [np.zeros((1, 9))]
        self._count = 0
        self._freedom_count = 1
        self._groups = 0

    def add_freedoms(
        self,
        position: np.ndarray,
        *,
        hertz: np.ndarray | float,
        gain: np.ndarray | float,
        damping: float = 0.12,
        scatter: float = 0.3,
        quadrature: float = 0.0,
        limit: float = 0.5,
        same_group: bool = False,
    ) -> np.ndarray:
        """Add damped oscillators at position (N, 2) driven by the wind; returns their numbers (N,).

        hertz: natural frequency; gain: signed drive; scatter: share of its own randomness in the phases of fast
        gusts (1: as if alone); quadrature: phase offset (radians), so that two of one group make a travelling wave;
        limit: the largest sensible peak of q, which bounds the strength of the wind.
        """
        count = len(position)
        if not same_group:
            self._groups += count
        group = np.arange(self._groups - count, self._groups)
        table = np.zeros((count, 9))
        table[:, 0:2] = position
        for column, value in enumerate((hertz, gain, damping, scatter, quadrature, limit), start=2):
            table[:, column] = value
        table[:, 8] = group
        self._freedoms.append(table)
        self._freedom_count += count
        return np.arange(self._freedom_count - count, self._freedom_count)

    def add(
        self,
        points: np.ndarray,
        triangles: np.ndarray,
        colour: np.ndarray,
        *,
        depth: np.ndarray | float,
        freedoms: np.ndarray | None = None,
        directions: np.ndarray | None = None,
        carrier: Carrier | None = None,
        uv: np.ndarray | None = None,
        strength: float = 0.0,
        material: int = FLAT,
        layer: int = 1,
    ) -> None:
        """Add N copies of a patch: points (N, P, 2) px, triangles (M, 3) of one item, colour (N, 1 or P, 3).

        The motion is either freedoms (N, P, D) with directions (N, P, D, 2), or a rigid carrier of N items.
        """
        items, patch = points.shape[:2]
        if items == 0:
            return
        if carrier is not None:
            freedoms = np.repeat(carrier.freedoms[:, None], patch, 1)
            directions = carrier.shift[:, None] + carrier.turn[:, None, :, None] * perp(points)[:, :, None]
        elif freedoms is None:
            freedoms, directions = np.zeros((items, patch, 1), np.int64), np.zeros((items, patch, 1, 2))
        looks = np.zeros((items, patch, 6), np.float32)
        looks[..., :3] = colour
        looks[..., 3:5] = points * 3.0 if uv is None else uv
        looks[..., 5] = strength
        numbers = np.arange(items)[:, None, None] * patch + triangles[None] + self._count
        each = items * len(triangles)
        self._vertices.append(points.reshape(-1, 2))
        self._looks.append(looks.reshape(-1, 6))
        self._triangles.append(numbers.reshape(-1, 3))
        self._materials.append(np.full(each, material, np.int32))
        self._orders.append(np.repeat(np.broadcast_to(np.asarray(depth, float), (items,)), len(triangles)))
        self._layers.append(np.full(each, layer, np.int32))
        width = freedoms.shape[-1]
        self._moves.append((freedoms.reshape(-1, width), directions.reshape(-1, width, 2)))
        self._count += items * patch

    def finish(self) -> dict[str, np.ndarray]:
        """Arrays of the whole mesh, triangles in painting order."""
        if not self._vertices:
            self.add(np.full((1, 3, 2), -9.0), np.array([[0, 1, 2]]), np.zeros((1, 1, 3)), depth=0.0)
        layers = np.concatenate(self._layers)
        order = np.lexsort((np.concatenate(self._orders), layers))
        width = max(move[0].shape[1] for move in self._moves)
        freedoms = np.zeros((self._count, width), np.int32)
        directions = np.zeros((self._count, width, 2), np.float32)
        start = 0
        for numbers, vectors in self._moves:
            freedoms[start : start + len(numbers), : numbers.shape[1]] = numbers
            directions[start : start + len(numbers), : numbers.shape[1]] = vectors
            start += len(numbers)
        return {
            "vertices": np.concatenate(self._vertices).astype(np.float64),
            "looks": np.concatenate(self._looks),
            "triangles": np.concatenate(self._triangles)[order].astype(np.int32),
            "materials": np.concatenate(self._materials)[order],
            "layers": layers[order],
            "freedoms": freedoms,
            "directions": directions,
            "oscillators": np.concatenate(self._freedoms),
        }


def bend(
    mesh: Mesh,
    carrier: Carrier,
    line: np.ndarray,
    *,
    hertz: float | np.ndarray,
    gain: float,
    scatter: float = 0.3,
    damping: float = 0.09,
    modes: int = 2,
    limit: float = 0.55,
) -> Carrier:
    """Let chains (N, P, 2), held at their first point by carrier (N items), bend; carriers of all N*P points.

    Two shapes of a clamped bar: its first bend, and a weaker second one at 2.7 times the frequency.
    """
    items, points = line.shape[:2]
    ends = line[:, -1] - line[:, 0]
    length = np.linalg.norm(np.diff(line, axis=1), axis=-1).sum(1)
    s = np.linspace(0.0, 1.0, points)
    tangent = np.gradient(line, axis=1)
    normal = perp(tangent / (np.linalg.norm(tangent, axis=-1, keepdims=True) + 1e-9))
    across = perp(ends / (np.linalg.norm(ends, axis=-1, keepdims=True) + 1e-9))
    # Wind blows along x; what lies along the wind is lifted and dropped instead.
    drive = gain * (across[:, 0] + 0.45 * across[:, 1])
    shapes = [(s**2 * (3 - s) / 2, 3 * s - 1.5 * s**2, 1.0, 1.0)]
    if modes > 1:
        shapes.append((4 * s**2 * (s - 0.78), 12 * s**2 - 6.24 * s, 2.7, 0.7))
    carried = carrier.take(np.repeat(np.arange(items), points))
    for shape, slope, faster, weaker in shapes:
        number = mesh.add_freedoms(
            line[:, -1],
            hertz=np.asarray(hertz) * faster,
            gain=drive * weaker,
            damping=damping,
            scatter=scatter,
            limit=limit,
        )
        turn = np.broadcast_to(slope, (items, points))
        shift = (length[:, None] * shape)[..., None] * normal - turn[..., None] * perp(line)
        carried = carried.with_freedoms(
            np.repeat(number, points)[:, None], shift.reshape(-1, 1, 2), turn.reshape(-1, 1).copy()
        )
    return carried


def along(base: np.ndarray, angle: np.ndarray, length: np.ndarray, bow: np.ndarray, points: int) -> np.ndarray:
    """Curved centre lines (N, P, 2) from base (N, 2): direction `angle` turns by `bow` radians over the length."""
    s = np.linspace(0.0, 1.0, points)
    middle = (s[1:] + s[:-1]) / 2
    heading = np.asarray(angle)[:, None] + np.asarray(bow)[:, None] * middle
    steps = unit(heading) * (np.asarray(length)[:, None] / (points - 1))[..., None]
    return np.concatenate([base[:, None], base[:, None] + np.cumsum(steps, 1)], 1)
