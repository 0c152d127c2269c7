"""Heads of flowers, grain and reed of the procedural scenes. Lengths are px."""

import math

import numpy as np
from numpy import ndarray as Array

from data.scenes.elements import add_blobs, add_leaves, add_strips
from data.scenes.mesh import Chain, Spots, along, bend, unit
from data.scenes.stage import Stage

FLOWERS = ("daisy", "poppy", "rose", "tulip", "bell", "cluster", "spike", "lily")

# Rings of petals of a flower: how many, how far out, length and width by the radius, brightness.
RINGS = {
    "poppy": [(5, 0.0, 1.0, 0.95, 0.85), (4, 0.0, 0.85, 0.8, 1.05)],
    "lily": [(3, 0.0, 1.0, 0.42, 0.85), (3, 0.0, 0.95, 0.5, 1.05)],
    "rose": [(8, 0.25, 0.8, 0.6, 0.7), (7, 0.2, 0.62, 0.55, 0.85)]
    + [(6, 0.12, 0.46, 0.45, 0.95), (5, 0.04, 0.33, 0.36, 1.1)],
    "tulip": [(3, 0.0, 1.0, 0.62, 0.75), (2, 0.0, 1.0, 0.7, 1.0), (1, 0.0, 0.95, 0.75, 1.15)],
    "bell": [(4, 0.0, 1.0, 0.5, 0.9), (3, 0.0, 0.9, 0.45, 1.1)],
}
HEART_RADII = {"daisy": 0.27, "poppy": 0.22, "lily": 0.16}


def flower_heads(
    stage: Stage, ends: Spots, radius: Array, style: str, colour: Array, heart: Array, depth: Array, layer: int = 1
) -> None:
    """Add flowers of one style with radius (N,) at the ends of N stems."""
    if style in ("cluster", "spike"):
        _florets(stage, ends, radius, style, colour, depth, layer)
        return
    rng, count, centre = stage.rng, len(radius), ends.place
    rings = RINGS[style] if style != "daisy" else [(stage.number(11, 22), 0.16, 1.0, 0.2, 1.0)]
    cup = style in ("tulip", "bell")
    tilt, factor = rng.uniform(0, math.pi), 1.0 if cup else float(rng.uniform(0.5, 1.0))
    look = {"hertz": 2.6, "flutter": 0.12, "fold": 0.08, "strength": 0.18, "layer": layer}
    look["shape"] = "petal" if style != "lily" else "oval"
    for order, (petals, out, length, wide, bright) in enumerate(rings):
        which, many = np.repeat(np.arange(count), petals), count * petals
        number = np.tile(np.arange(petals), count)
        if cup:
            angle = ends.heading[which] + 0.42 * (number - (petals - 1) / 2)
        else:
            angle = 2 * math.pi * number / petals + rng.uniform(0, 6, count)[which] + rng.normal(0, 0.07, many)
        size = radius[which] * length * np.exp(rng.normal(0, 0.08, many))
        tint = stage.vary(colour * bright, many, 0.09, 0.03)
        base = centre[which] + out * radius[which, None] * unit(angle) * 0.7
        look["squash"], width = (centre[which], tilt, factor), size * wide * rng.uniform(0.75, 1.1, many)
        look["depth"] = depth[which] + 0.01 * (order + rng.uniform(0, 1, many))
        look["bow"], look["tip"] = rng.normal(0, 0.12, many), rng.uniform(0.9, 1.15)
        add_leaves(stage.mesh, ends.carrier.take(which), base, angle, size, width, tint, **look)
    if style in HEART_RADII:
        middle = {"depth": depth + 0.05, "rough": 0.07, "strength": 0.45, "layer": layer}
        tint = stage.vary(heart, count, 0.08)
        add_blobs(stage.mesh, rng, ends.carrier, centre, radius * HEART_RADII[style], tint, **middle)


def _florets(stage: Stage, ends: Spots, radius: Array, style: str, colour: Array, depth: Array, layer: int) -> None:
    """Heads of many small flowers: a ball (hydrangea, yarrow) or a spike (lavender, goldenrod)."""
    rng, per = stage.rng, 46 if style == "cluster" else 22
    which, many = np.repeat(np.arange(len(radius)), per), len(radius) * per
    if style == "cluster":
        angle, r = rng.uniform(0, 2 * math.pi, many), np.sqrt(rng.uniform(0, 1, many))
        place = unit(angle) * (r * radius[which])[:, None]
        size = 0.19 * radius[which] * rng.uniform(0.7, 1.2, many)
        bright = 1.1 - 0.45 * r * (0.5 + 0.5 * np.sin(angle))
    else:
        s = np.tile(np.linspace(-0.3, 2.2, per), len(radius))
        place = unit(ends.heading[which]) * (s * radius[which])[:, None]
        place = place + rng.normal(0, 0.16, (many, 2)) * radius[which, None]
        size = 0.3 * radius[which] * (1.1 - 0.3 * s)
        bright = rng.uniform(0.75, 1.15, many)
    tint = stage.vary(colour, many, 0.1) * bright[:, None]
    look = {"depth": depth[which] + 0.02 * rng.uniform(0, 1, many), "rough": 0.13, "rim": 0.7, "corners": 9}
    carrier, centre = ends.carrier.take(which), ends.place[which] + place
    add_blobs(stage.mesh, rng, carrier, centre, size, tint, strength=0.2, layer=layer, **look)


def plumes(stage: Stage, stems: Chain, length: float, colour: Array, depth: Array, thick: float, awns: int) -> None:
    """Add ears of grain or plumes of reed at the tips of stems."""
    rng, mesh, ends = stage.rng, stage.mesh, stems.tips()
    count = len(ends.place)
    nod = ends.heading + rng.normal(0, 0.3, count)
    long, bow = np.full(count, length) * np.exp(rng.normal(0, 0.2, count)), rng.normal(0.3, 0.4, count)
    ears = bend(mesh, ends.carrier, along(ends.place, nod, long, bow, 5), hertz=1.9, gain=0.12, scatter=0.5, modes=1)
    widths, tint = np.array([0.4, 1.0, 0.95, 0.7, 0.15]) * thick, stage.vary(colour, count, 0.12)
    add_strips(mesh, ears, widths, tint, depth=depth + 0.02, strength=0.5)
    if awns:
        which, many = np.repeat(np.arange(count), awns), count * awns
        spots = ears.at(which, rng.integers(1, 5, many))
        angle = nod[which] + rng.normal(0, 0.45, many)
        size, wide = length * rng.uniform(0.35, 0.8, many), np.full(many, max(0.35, 0.16 * thick)) * 2
        tint = stage.vary(np.minimum(colour * 1.15, 1), many, 0.12)
        look = {"depth": depth[which] + 0.03, "shape": "small", "twist": False}
        add_leaves(mesh, spots.carrier, spots.place, angle, size, wide, tint, **look)
