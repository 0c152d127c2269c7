"""Procedural scenes that sway in the wind, with the exact forward displacement of every pixel of frame 0.

`make_scene` draws an image (data/scenes/kinds.py) as triangles whose vertices move linearly in damped oscillators. A
travelling gust field drives these, so their motion is a sum of known sinusoids, exact but for occlusions and blur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor

from data.scenes import rasteriser
from data.scenes.backgrounds import Finish, texture_atlas
from data.scenes.kinds import KIND_PROBABILITIES, KINDS, WIND_STRENGTH, draw
from data.scenes.stage import px_scale
from motion.spectrum import FPS, NUM_FRAMES, PERIOD_S, fit_spectrum

SCENES_VERSION = 2  # raised whenever the same seed shows or moves something else
# Lines of the gusts (Hz): dense on a logarithmic scale, from 1 Hz on at least one in each bin of 1 / PERIOD_S.
GUST_HZ = np.concatenate([np.geomspace(0.025, 1.0, 30), np.arange(1.13, 6.2, 0.14)])
NUM_GUSTS = len(GUST_HZ)
# |F| (px at 256 x 160) that a fiftieth of what moves may exceed: 12 px to either side.
LARGEST_PX = 24.0
SAMPLES = 3  # along a pixel's side; odd, so that its middle sample is its centre


class Wind:
    """Gusts as travelling waves: frequency in Hz, amplitude, wave vector (rad/px), phase, and a seed for turbulence."""

    def __init__(self, seed: int, scale: float) -> None:
        """Draw the wind of one seed; scale: pixels of this image per pixel of a 256 x 160 one."""
        rng, self.seed = np.random.default_rng([seed, 2]), seed
        hertz = self.hertz = GUST_HZ * np.exp(rng.uniform(-0.03, 0.03, NUM_GUSTS))
        # The free wind's f^-p with p about 5/3, and the small eddies that leaves and stems shed themselves; a line
        # stands for the band between its neighbours. Below 0.05 Hz there is little left in five seconds.
        density = hertz ** -rng.uniform(1.8, 2.6) + math.exp(rng.normal(0.85, 0.6)) * hertz**-0.2
        power = density * np.gradient(GUST_HZ) * np.minimum(hertz / 0.05, 1.0) ** 2
        self.amplitude = np.sqrt(power) * rng.rayleigh(0.8, NUM_GUSTS)
        speed = scale * math.exp(rng.uniform(math.log(50), math.log(400)))
        heading = rng.choice([0.0, math.pi]) + rng.normal(0, 0.35, NUM_GUSTS)
        self.wave = 2 * math.pi * (hertz / speed)[:, None] * np.stack([np.cos(heading), np.sin(heading)], -1)
        # One in seven hardly moves; all together move about as much as real clips do in every bin.
        median_px, spread = (0.7, 0.6) if rng.random() < 0.14 else (14.0, 0.7)
        self.strength_px = float(np.clip(median_px * math.exp(rng.normal(0, spread)), 0.2, 16.0)) * scale
        self.phase = rng.uniform(0, 2 * math.pi, NUM_GUSTS)

    def respond(self, oscillators: Array) -> Array:
        """Amplitude of each oscillator in each gust, q_j(t) = Re sum_m C_jm exp(2 pi i f_m t): (J, 2 M) Re C, Im C."""
        position, (hertz, gain, damping, scatter, quadrature, _, group) = oscillators[:, :2], oscillators[:, 2:].T
        ratio = (self.hertz[None] / np.maximum(hertz, 1e-3)[:, None]).astype(np.float32)
        rng = np.random.default_rng([self.seed, 4])
        own = rng.random((int(group.max()) + 1, NUM_GUSTS), np.float32)[group.astype(int)]
        own = np.float32(2 * math.pi) * own - np.float32(math.pi)
        # Small eddies differ from leaf to leaf, large gusts take everything along.
        local = np.clip(scatter[:, None] * (0.35 + 0.65 * np.minimum(self.hertz / 1.2, 1.0)), 0, 1).astype(np.float32)
        travel = (position @ self.wave.T).astype(np.float32)
        angle = self.phase.astype(np.float32) - travel * (1 - 0.5 * local) + own * local
        angle -= quadrature[:, None].astype(np.float32)
        # An oscillator's answer to a unit force lags by the angle of its impedance.
        stiff, slow = 1 - ratio**2, 2 * damping[:, None].astype(np.float32) * ratio
        angle -= np.arctan2(slow, stiff)
        size = (gain[:, None] * self.amplitude).astype(np.float32) / np.sqrt(stiff**2 + slow**2)
        response = np.concatenate([size * np.cos(angle), size * np.sin(angle)], 1)
        response[0] = 0
        return response


def _clock(hertz: Array, times_s: Array) -> Array:
    """Real and imaginary parts of exp(2 pi i f t) - 1, as (2 M, T): rows that Re(C) and Im(C) are multiplied with."""
    angle = 2 * math.pi * hertz[:, None] * times_s[None]
    return np.concatenate([np.cos(angle) - 1, -np.sin(angle)])


@dataclass
class Scene:
    """One image that can move. All displacements are pixels of its own grid, x right, y down, relative to frame 0."""

    kind: str
    size: tuple[int, int]
    seed: int
    mesh: dict[str, Array] = field(repr=False)
    background: Array = field(repr=False)
    finish: Finish = field(repr=False)
    _wind: Wind = field(repr=False)
    magnify: float = 1.0  # of the motion of `frame` and `flow`

    @property
    def moving(self) -> bool:
        return len(self.mesh["oscillators"]) > 1

    @cached_property
    def _response(self) -> Array:
        """Real (J, 2 M) amplitudes of the oscillators, as strong as the wind, within what bends sensibly."""
        if not self.moving:
            return np.zeros((1, 2 * NUM_GUSTS), np.float32)
        response = self._wind.respond(self.mesh["oscillators"])
        movable = np.flatnonzero(self.mesh["freedoms"].max(1) > 0)
        some = movable[np.random.default_rng([self.seed, 5]).integers(0, len(movable), 900)]
        inside = ((self.mesh["vertices"][some] > 0) & (self.mesh["vertices"][some] < self.size[::-1])).all(1)
        some = some[inside] if inside.sum() > 20 else some
        angles = response @ _clock(self._wind.hertz, np.linspace(0, PERIOD_S, 40)).astype(np.float32)
        wanted = WIND_STRENGTH[self.kind] * self._wind.strength_px
        gain = wanted / max(float(np.linalg.norm(self._apply(angles, some), axis=1).mean()), 1e-9)
        # What bends far grows stiffer: a stem would fold over, a leaf stretch, a tall blade leave the image.
        scale = px_scale(self.size)
        reach = np.zeros(len(response))  # how far a unit of each moves any vertex at most, px
        np.maximum.at(reach, self.mesh["freedoms"], np.hypot(*np.moveaxis(self.mesh["directions"], -1, 0)))
        limit = np.minimum(self.mesh["oscillators"][:, 7], 0.76 * LARGEST_PX * scale / np.maximum(reach, 1e-9))
        peak = gain * np.abs(angles).max(1) / np.maximum(limit, 1e-9)
        gain = (gain * (1 + peak**4) ** -0.25)[:, None].astype(np.float32)
        size = np.linalg.norm(self._apply(angles * gain, some), axis=1)
        return response * gain * np.float32(min(1.0, LARGEST_PX * scale / max(float(np.percentile(size, 98)), 1e-9)))

    def _apply(self, amounts: Array, some: Array | slice = slice(None)) -> Array:
        """Values (J, C) of the oscillators to vertices: (V, 2, C)."""
        freedoms, directions = self.mesh["freedoms"][some], self.mesh["directions"][some]
        return rasteriser.apply_degrees(freedoms, directions, np.ascontiguousarray(amounts, np.float32))

    def _vertices_at(self, time_s: float) -> Array:
        """Displacement of every vertex: (V, 2)."""
        clock = self.magnify * _clock(self._wind.hertz, np.array([time_s]))
        return self._apply(self._response @ clock.astype(np.float32))[..., 0]

    @cached_property
    def _layers(self) -> list[tuple[int, Array, Array]]:
        """(layer, its triangles, their materials) of the layers present, far to near."""
        layers, triangles, materials = (self.mesh[name] for name in ("layers", "triangles", "materials"))
        return [(int(n), triangles[layers == n], materials[layers == n]) for n in np.unique(layers)]

    def _draw(self, vertices: Array) -> tuple[Array, list[tuple[Array, Array]]]:
        """Draw the layers over the background: (H, W, 3) in [0, 1]; also each layer's ids and its coverage (H, W)."""
        out, drawn = self.background.copy(), []
        for layer, triangles, materials in self._layers:
            ids = rasteriser.paint_ids(vertices, triangles, self.size, SAMPLES)
            looks = (materials, self.mesh["looks"], texture_atlas())
            painted = rasteriser.shade_ids(ids, vertices, triangles, *looks, SAMPLES)
            sigma = self.finish.blurs[layer]
            if sigma > 0.3:
                painted = cv2.GaussianBlur(painted, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
            drawn.append((ids, painted[..., 3]))
            out = out * (1 - painted[..., 3:]) + painted[..., :3]
        return out, drawn

    @cached_property
    def _first(self) -> tuple[Array, list[tuple[Array, Array]]]:
        return self._draw(self.mesh["vertices"])

    def frame(self, time_s: float) -> Tensor:
        """Return the frame at time_s, (3, H, W) float32 in [0, 1], with grain of its own; at 0 the photograph."""
        frame, _ = self._first if time_s == 0 else self._draw(self.mesh["vertices"] + self._vertices_at(time_s))
        frame = self.finish.apply(frame, np.random.default_rng([self.seed, 3, round(time_s * 1000)]))
        return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))

    def _at_pixels(self, values: Array, vertices: Array, drawn: list[tuple[Array, Array]]) -> Array:
        """Vertex values (V, C) at the frontmost thing of every pixel centre, (H, W, C); 0 on the background."""
        out = np.zeros((*self.size, values.shape[1]), np.float32)
        for (ids, coverage), (layer, triangles, _) in zip(drawn, self._layers, strict=True):
            centre = np.ascontiguousarray(ids[SAMPLES // 2 :: SAMPLES, SAMPLES // 2 :: SAMPLES])
            sources = _sources(centre, coverage, self.finish.blurs[layer])
            rasteriser.interpolate_at_centres(vertices, triangles, centre, sources, values, out)
        return out

    def flow(self, time_s: float) -> Tensor:
        """Return the exact displacement of every pixel of frame 0 at time_s: (2, H, W) px; 0 where nothing moves."""
        if not self.moving or time_s == 0:
            return torch.zeros(2, *self.size)
        out = self._at_pixels(self._vertices_at(time_s), self.mesh["vertices"], self._first[1])
        return torch.from_numpy(out.transpose(2, 0, 1).copy())

    def spectrum(self, num_bins: int = 24, period_s: float = PERIOD_S) -> Tensor:
        """Return the packed spectrum of the motion, fitted over one period at 30 frames/s: (K, 4, H, W) px."""
        times = np.arange(round(NUM_FRAMES * period_s / PERIOD_S)) / FPS
        # The fit is linear: fit the gusts' own sinusoids, then combine them for every oscillator and vertex.
        clock = torch.from_numpy(_clock(self._wind.hertz, times).T.copy())  # (T, 2M)
        clock = clock.reshape(len(times), 2, -1, 1)
        fitted = fit_spectrum(clock, torch.from_numpy(times), num_bins=num_bins, period_s=period_s)
        # (K, 4, M, 1): two values at a "pixel" are the first and the second half of the rows of the clock.
        parts = torch.stack([fitted[:, 0::2, :, 0], fitted[:, 1::2, :, 0]], 1)  # (K, re/im, 2, M)
        basis = parts.reshape(2 * num_bins, -1).T.float().numpy()  # (2M, 2K)
        vertices = self._apply(self._response @ basis)  # (V, 2, 2K)
        values = np.ascontiguousarray(vertices.reshape(len(vertices), -1))
        packed = self._at_pixels(values, self.mesh["vertices"], self._first[1])  # (H, W, 2 * 2K)
        packed = packed.reshape(*self.size, 2, num_bins, 2).transpose(3, 2, 4, 0, 1)  # (K, x/y, re/im, H, W)
        return torch.from_numpy(np.ascontiguousarray(packed)).reshape(num_bins, 4, *self.size)


def _sources(ids: Array, coverage: Array, sigma: float) -> Array:
    """Pixel whose triangle moves each pixel, row * W + column (H, W); -1 where the layer is not in front."""
    present = ids >= 0
    if sigma <= 0.6 or not present.any():
        return np.where(present, np.arange(ids.size).reshape(ids.shape), -1)
    # Out of focus a thing is seen beyond its outline: there the nearest point of it lends its motion.
    absent = np.logical_not(present).astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(absent, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    nearest = np.zeros(labels.max() + 1, np.int64)
    nearest[labels[present]] = np.flatnonzero(present)
    return np.where(coverage > 0.5, nearest[labels], -1)


def _step_closer(mesh: dict[str, Array], background: Array, rng: np.random.Generator) -> Array:
    """Enlarge a part of most scenes up to 2.3 times, the one that moves most; returns its background (H, W, 3)."""
    height, width = background.shape[:2]
    zoom = math.exp(rng.uniform(0, math.log(2.3)))
    corners = rng.uniform(0, 1 - 1 / zoom, (12, 2)) * [width, height]
    if rng.random() < 0.12:
        return background
    movable = mesh["vertices"][mesh["freedoms"].max(1) > 0]
    movable = movable[:: max(1, len(movable) // 1500)]
    inside = [((movable > c) & (movable < c + np.array([width, height]) / zoom)).all(1).sum() for c in corners]
    x, y = corners[int(np.argmax(inside))]
    mesh["vertices"] = (mesh["vertices"] - [x, y]) * zoom
    mesh["directions"] = mesh["directions"] * np.float32(zoom)
    mesh["oscillators"][:, :2] = (mesh["oscillators"][:, :2] - [x, y]) * zoom
    shift = np.array([[1 / zoom, 0, x], [0, 1 / zoom, y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(background, shift, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def make_scene(seed: int, *, size: tuple[int, int] = (160, 256), kind: str | None = None) -> Scene:
    """Draw the scene of a seed, the same on every machine; ValueError for an unknown kind or under 16 px a side.

    All lengths scale with `size` (H, W) px. Without `kind` the seed draws one of `KINDS`.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if min(size) < 16:
        raise ValueError(f"size: expected at least 16 x 16 px, got {size[0]} x {size[1]}")
    rng = np.random.default_rng([seed, 1, SCENES_VERSION])
    drawn = KINDS[int(rng.choice(len(KINDS), p=KIND_PROBABILITIES))]
    kind = kind or drawn
    mesh, background, finish = draw(kind, rng, size)
    arrays = mesh.finish()
    background = _step_closer(arrays, background, rng)
    oscillators = arrays["oscillators"]
    # Young and slack, or dry and stiff: first modes stay below 3 Hz.
    pace = math.exp(abs(rng.normal(0, 0.4)))
    oscillators[:, 2] = np.where(oscillators[:, 2] < 3, np.minimum(oscillators[:, 2] * pace, 3), oscillators[:, 2])
    return Scene(kind, tuple(size), seed, arrays, background, finish, Wind(seed, px_scale(size)))
