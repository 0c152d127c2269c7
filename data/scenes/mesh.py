"""Mesh of a procedural scene: triangles in batches, each vertex tied to the degrees of freedom that move it.

The displacement of a vertex p is linear in the degrees of freedom q_d(t): sum_d q_d(t) (shift_d + turn_d perp(p)),
perp(x, y) = (-y, x). A child (leaf on twig on branch) inherits what moves its carrier, so motion grows from zero at the
root. Batches are arrays: N items, P points an item, D degrees of freedom.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

FLAT, MOTTLED, FIBRE, BRICK, PLANKS, BARK, STONE, VEINS, FOLIAGE, TILES, WEAVE = range(11)
TEXELS = 256


class Carrier(NamedTuple):
    """What moves each of N points: freedoms (N, D) int, shift (N, D, 2) and turn (N, D); column 0 never moves."""

    freedoms: Array
    shift: Array
    turn: Array

    def take(self, index: Array) -> Carrier:
        """Carriers of the items `index` (any shape of whole numbers, flattened)."""
        index = np.asarray(index).reshape(-1)
        return Carrier(*(array[index] for array in self))

    def with_freedoms(self, freedoms: Array, shift: Array, turn: Array | float = 0.0) -> Carrier:
        """Carriers with one more degree of freedom: freedoms (N,), shift (N, 2), turn (N,)."""
        added = (freedoms, shift, np.broadcast_to(turn, freedoms.shape))
        return Carrier(*(np.concatenate([old, new[:, None]], 1) for old, new in zip(self, added, strict=True)))

    def moves(self, points: Array) -> tuple[Array, Array]:
        """Freedoms (N, P, D) and directions (N, P, D, 2) of points (N, P, 2) that are rigidly carried."""
        directions = self.shift[:, None] + self.turn[:, None, :, None] * perp(points)[:, :, None]
        return np.repeat(self.freedoms[:, None], points.shape[1], 1), directions


class Spots(NamedTuple):
    """Points of chains: place (N, 2), heading of the chain there (N,), and carriers of the N points."""

    place: Array
    heading: Array
    carrier: Carrier


class Chain(NamedTuple):
    """Centre lines (N, P, 2), and carriers of their N * P points."""

    line: Array
    carrier: Carrier

    def at(self, item: Array, point: Array | int) -> Spots:
        """Points number `point` (M,) of the chains `item` (M,)."""
        step = self.line[item, point] - self.line[item, point - 1]
        heading = np.arctan2(step[:, 1], step[:, 0])
        return Spots(self.line[item, point], heading, self.carrier.take(item * self.line.shape[1] + point))

    def tips(self) -> Spots:
        return self.at(np.arange(len(self.line)), self.line.shape[1] - 1)

    def take(self, items: Array) -> Chain:
        points = self.line.shape[1]
        return Chain(self.line[items], self.carrier.take(items[:, None] * points + np.arange(points)))


def still(count: int) -> Carrier:
    """Carriers of `count` points that never move."""
    return Carrier(np.zeros((count, 1), np.int64), np.zeros((count, 1, 2)), np.zeros((count, 1)))


def perp(vector: Array) -> Array:
    """Quarter turn (x, y) -> (-y, x) of vectors (..., 2)."""
    return np.stack([-vector[..., 1], vector[..., 0]], -1)


def unit(angle: Array) -> Array:
    """Direction (..., 2) of an angle: 0 right, pi/2 down, -pi/2 up."""
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def normals(line: Array) -> Array:
    """Unit normals (N, P, 2) of centre lines (N, P, 2)."""
    tangent = np.gradient(line, axis=1)
    return perp(tangent / (np.linalg.norm(tangent, axis=-1, keepdims=True) + 1e-9))


class Look(NamedTuple):
    """Where in its layer (0 far, 1, 2 near) a batch is painted, (N,) or one number, and with which texture."""

    depth: Array | float
    strength: float
    material: int
    layer: int = 1


class Mesh:
    """All triangles of a scene, gathered in batches and sorted by (layer, depth), far to near."""

    def __init__(self) -> None:
        self._batches: list[tuple[Array, ...]] = []
        self._oscillators: list[Array] = [np.zeros((1, 9))]
        self._vertex_count, self._group_count = 0, 0

    def add_freedoms(self, position: Array, *, same_group: bool = False, **oscillator: Array | float) -> Array:
        """Add damped oscillators at position (N, 2) driven by the wind; returns their numbers (N,).

        hertz: natural frequency; gain: signed drive; damping: 0.12; scatter: fraction of its own randomness in the
        phases of fast gusts, 0.3 (1: as if alone); quadrature: phase offset (radians), so that two of one group make a
        travelling wave; limit: the largest sensible peak of q, 0.5, which bounds the strength of the wind.
        """
        count = len(position)
        if not same_group:
            self._group_count += count
        oscillator = {"damping": 0.12, "scatter": 0.3, "quadrature": 0.0, "limit": 0.5, **oscillator}
        columns = [oscillator[name] for name in ("hertz", "gain", "damping", "scatter", "quadrature", "limit")]
        group, first = np.arange(self._group_count - count, self._group_count), sum(map(len, self._oscillators))
        self._oscillators.append(np.stack(np.broadcast_arrays(*position.T, *columns, group), 1, dtype=float))
        return np.arange(first, first + count)

    def add(
        self, points: Array, triangles: Array, colour: Array, moves: tuple[Array, Array], uv: Array, look: Look
    ) -> None:
        """Add N copies of a patch: points (N, P, 2) px, triangles (M, 3) of one item, colour (N, 1 or P, 3).

        moves: freedoms (N, P, D) and directions (N, P, D, 2); uv (N, P, 2) texels.
        """
        items, patch = points.shape[:2]
        if items == 0:
            return
        looks = np.zeros((items, patch, 6), np.float32)
        looks[..., :3], looks[..., 3:5], looks[..., 5] = colour, uv, look.strength
        numbers = np.arange(items)[:, None, None] * patch + triangles[None] + self._vertex_count
        each = items * len(triangles)
        order = np.repeat(np.broadcast_to(np.asarray(look.depth, float), (items,)), len(triangles))
        freedoms, directions = (array.reshape(items * patch, *array.shape[2:]) for array in moves)
        looks, numbers = looks.reshape(-1, 6), numbers.reshape(-1, 3)
        materials, layers = np.full(each, look.material, np.int32), np.full(each, look.layer, np.int32)
        self._batches.append((points.reshape(-1, 2), looks, numbers, materials, order, layers, freedoms, directions))
        self._vertex_count += items * patch

    def finish(self) -> dict[str, Array]:
        """Arrays of the whole mesh, triangles in painting order."""
        if not self._batches:
            outside = np.full((1, 3, 2), -9.0)
            moves = still(1).moves(outside)
            self.add(outside, np.array([[0, 1, 2]]), np.zeros((1, 1, 3)), moves, 3 * outside, Look(0.0, 0.0, FLAT))
        vertices, looks, triangles, materials, orders, layers, freedoms, directions = zip(*self._batches, strict=True)
        order = np.lexsort((np.concatenate(orders), np.concatenate(layers)))
        width = max(batch.shape[1] for batch in freedoms)
        freedoms = [np.pad(batch, ((0, 0), (0, width - batch.shape[1]))) for batch in freedoms]
        directions = [np.pad(batch, ((0, 0), (0, width - batch.shape[1]), (0, 0))) for batch in directions]
        return {
            "vertices": np.concatenate(vertices).astype(np.float64),
            "looks": np.concatenate(looks),
            "triangles": np.concatenate(triangles)[order].astype(np.int32),
            "materials": np.concatenate(materials)[order],
            "layers": np.concatenate(layers)[order],
            "freedoms": np.concatenate(freedoms).astype(np.int32),
            "directions": np.concatenate(directions).astype(np.float32),
            "oscillators": np.concatenate(self._oscillators),
        }


def bend(
    mesh: Mesh, carrier: Carrier, line: Array, hertz: float | Array, gain: float, scatter: float = 0.3, modes: int = 2
) -> Chain:
    """Let chains (N, P, 2), held at their first point by carrier (N items), bend in the shapes of a clamped bar."""
    items, points = line.shape[:2]
    ends = line[:, -1] - line[:, 0]
    length = np.linalg.norm(np.diff(line, axis=1), axis=-1).sum(1)
    s, normal = np.linspace(0.0, 1.0, points), normals(line)
    across = perp(ends / (np.linalg.norm(ends, axis=-1, keepdims=True) + 1e-9))
    # Wind blows along x; what lies along the wind is lifted and dropped instead.
    drive = gain * (across[:, 0] + 0.45 * across[:, 1])
    shapes = [
        (s**2 * (3 - s) / 2, 3 * s - 1.5 * s**2, 1.0, 1.0),
        (4 * s**2 * (s - 0.78), 12 * s**2 - 6.24 * s, 2.7, 0.7),
    ]
    carried, bar = carrier.take(np.repeat(np.arange(items), points)), {"damping": 0.09, "limit": 0.55}
    for shape, slope, faster, weaker in shapes[:modes]:
        pace, drives = np.asarray(hertz) * faster, drive * weaker
        number = mesh.add_freedoms(line[:, -1], hertz=pace, gain=drives, scatter=scatter, **bar)
        turn = np.broadcast_to(slope, (items, points))
        shift = (length[:, None] * shape)[..., None] * normal - turn[..., None] * perp(line)
        carried = carried.with_freedoms(np.repeat(number, points), shift.reshape(-1, 2), turn.reshape(-1))
    return Chain(line, carried)


def along(base: Array, angle: Array, length: Array, bow: Array | float, points: int) -> Array:
    """Curved centre lines (N, P, 2) from base (N, 2): direction `angle` turns by `bow` radians over the length."""
    s = np.linspace(0.0, 1.0, points)
    heading = np.asarray(angle)[:, None] + np.asarray(bow)[..., None] * ((s[1:] + s[:-1]) / 2)
    steps = unit(heading) * (np.asarray(length)[:, None] / (points - 1))[..., None]
    return np.concatenate([base[:, None], base[:, None] + np.cumsum(steps, 1)], 1)
