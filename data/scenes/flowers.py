"""Heads of flowers, grain and reed of the procedural scenes. Lengths are px."""

from __future__ import annotations

import math

import numpy as np

from data.scenes.elements import add_blobs, add_leaves, add_strips
from data.scenes.mesh import FIBRE, MOTTLED, Carrier, Mesh, along, bend, unit
from data.scenes.plants import tips, vary

FLOWERS = ("daisy", "poppy", "rose", "tulip", "bell", "cluster", "spike", "lily")

# Rings of petals of a flower: how many, how far out, length and width by the radius, brightness.
RINGS = {
    "poppy": [(5, 0.0, 1.0, 0.95, 0.85), (4, 0.0, 0.85, 0.8, 1.05)],
    "lily": [(3, 0.0, 1.0, 0.42, 0.85), (3, 0.0, 0.95, 0.5, 1.05)],
    "rose": [
        (8, 0.25, 0.8, 0.6, 0.7),
        (7, 0.2, 0.62, 0.55, 0.85),
        (6, 0.12, 0.46, 0.45, 0.95),
        (5, 0.04, 0.33, 0.36, 1.1),
    ],
    "tulip": [(3, 0.0, 1.0, 0.62, 0.75), (2, 0.0, 1.0, 0.7, 1.0), (1, 0.0, 0.95, 0.75, 1.15)],
    "bell": [(4, 0.0, 1.0, 0.5, 0.9), (3, 0.0, 0.9, 0.45, 1.1)],
}


def _petal_angles(rng: np.random.Generator, heading: np.ndarray, petals: int, cup: bool) -> np.ndarray:
    """Directions (N * petals,): a fan about the stem's heading in a cup, else all around."""
    count = len(heading)
    which, number = np.repeat(np.arange(count), petals), np.tile(np.arange(petals), count)
    if cup:
        return heading[which] + (number - (petals - 1) / 2) * (0.42 if petals > 1 else 0.0)
    return 2 * math.pi * number / petals + rng.uniform(0, 6, count)[which] + rng.normal(0, 0.07, len(which))


def flower_heads(
    mesh: Mesh,
    rng: np.random.Generator,
    carrier: Carrier,
    centre: np.ndarray,
    radius: np.ndarray,
    heading: np.ndarray,
    *,
    style: str,
    colour: np.ndarray,
    heart: np.ndarray,
    depth: np.ndarray,
    layer: int = 1,
) -> None:
    """Add flowers of one style at centre (N, 2) with radius (N,); heading: direction of the stem's end."""
    count = len(centre)
    if style in ("cluster", "spike"):
        _florets(mesh, rng, carrier, centre, radius, heading, style, colour, depth, layer)
        return
    rings = RINGS[style] if style != "daisy" else [(int(rng.integers(11, 22)), 0.16, 1.0, 0.2, 1.0)]
    cup = style in ("tulip", "bell")
    tilt, factor = rng.uniform(0, math.pi), 1.0 if cup else float(rng.uniform(0.5, 1.0))
    for order, (petals, out, length, wide, bright) in enumerate(rings):
        which = np.repeat(np.arange(count), petals)
        angle = _petal_angles(rng, heading, petals, cup)
        size = radius[which] * length * np.exp(rng.normal(0, 0.08, len(which)))
        tint = vary(rng, colour * bright, len(which), 0.09, 0.03)
        add_leaves(
            mesh,
            carrier.take(which),
            centre[which] + out * radius[which, None] * unit(angle) * 0.7,
            angle,
            size,
            size * wide * (rng.uniform(0.75, 1.1, len(which))),
            tint,
            shape="petal" if style != "lily" else "oval",
            depth=depth[which] + 0.01 * (order + rng.uniform(0, 1, len(which))),
            bow=rng.normal(0, 0.12, len(which)),
            hertz=2.6,
            flutter=0.12,
            fold=0.08,
            tip=rng.uniform(0.9, 1.15),
            strength=0.18,
            layer=layer,
            squash=(centre[which], tilt, factor),
        )
    if not cup and style != "rose":
        big = {"daisy": 0.27, "poppy": 0.22, "lily": 0.16}[style]
        add_blobs(
            mesh,
            carrier,
            centre,
            radius * big,
            vary(rng, heart, count, 0.08),
            depth=depth + 0.05,
            rng=rng,
            rough=0.07,
            material=MOTTLED,
            strength=0.45,
            layer=layer,
        )


def _florets(
    mesh: Mesh,
    rng: np.random.Generator,
    carrier: Carrier,
    centre: np.ndarray,
    radius: np.ndarray,
    heading: np.ndarray,
    style: str,
    colour: np.ndarray,
    depth: np.ndarray,
    layer: int,
) -> None:
    """Heads of many small flowers: a ball (hydrangea, yarrow) or a spike (lavender, goldenrod)."""
    per = 46 if style == "cluster" else 22
    which = np.repeat(np.arange(len(centre)), per)
    if style == "cluster":
        angle, r = rng.uniform(0, 2 * math.pi, len(which)), np.sqrt(rng.uniform(0, 1, len(which)))
        place = unit(angle) * (r * radius[which])[:, None]
        size = 0.19 * radius[which] * rng.uniform(0.7, 1.2, len(which))
        bright = 1.1 - 0.45 * r * (0.5 + 0.5 * np.sin(angle))
    else:
        s = np.tile(np.linspace(-0.3, 2.2, per), len(centre))
        place = (
            unit(heading[which]) * (s * radius[which])[:, None]
            + rng.normal(0, 0.16, (len(which), 2)) * radius[which, None]
        )
        size = 0.3 * radius[which] * (1.1 - 0.3 * s)
        bright = rng.uniform(0.75, 1.15, len(which))
    add_blobs(
        mesh,
        carrier.take(which),
        centre[which] + place,
        size,
        vary(rng, colour, len(which), 0.1) * bright[:, None],
        depth=depth[which] + 0.02 * rng.uniform(0, 1, len(which)),
        rng=rng,
        rough=0.13,
        rim=0.7,
        corners=9,
        strength=0.2,
        layer=layer,
    )


def fibre_plume(
    mesh: Mesh,
    rng: np.random.Generator,
    line: np.ndarray,
    carried: Carrier,
    length: float,
    colour: np.ndarray,
    *,
    depth: np.ndarray,
    thick: float,
    awns: int,
    layer: int = 1,
) -> None:
    """Add ears of grain or plumes of reed at the tips of stems (N, P, 2)."""
    end, heading, carrier = tips(line, carried)
    count = len(end)
    nod = heading + rng.normal(0, 0.3, count)
    ear = along(end, nod, np.full(count, length) * np.exp(rng.normal(0, 0.2, count)), rng.normal(0.3, 0.4, count), 5)
    moved = bend(mesh, carrier, ear, hertz=1.9, gain=0.12, scatter=0.5, modes=1)
    widths = np.array([0.4, 1.0, 0.95, 0.7, 0.15]) * thick * np.ones((count, 1))
    add_strips(
        mesh,
        moved,
        ear,
        widths,
        vary(rng, colour, count, 0.12),
        depth=depth + 0.02,
        strength=0.5,
        material=FIBRE,
        layer=layer,
    )
    if awns:
        which = np.repeat(np.arange(count), awns)
        at = rng.integers(1, 5, len(which))
        angle = nod[which] + rng.normal(0, 0.45, len(which))
        size = length * rng.uniform(0.35, 0.8, len(which))
        add_leaves(
            mesh,
            moved.take(which * 5 + at),
            ear[which, at],
            angle,
            size,
            np.full(len(which), max(0.35, 0.16 * thick)) * 2,
            vary(rng, np.minimum(colour * 1.15, 1), len(which), 0.12),
            depth=depth[which] + 0.03,
            shape="small",
            twist=False,
            layer=layer,
        )
