"""Procedural scenes that sway in the wind, with the exact forward displacement of every pixel of frame 0.

`make_scene` draws a picture (data/scene_kinds.py) as triangles whose vertices move linearly in damped oscillators.
A travelling gust field drives these, so their motion is a sum of known sinusoids: frame 0 and its spectrum come
without rendering a single further frame, and flow is exact outside occlusions, before blur and grain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

from data import rasteriser, scene_backgrounds, scene_kinds
from motion.spectrum import FPS, NUM_FRAMES, PERIOD_S, fit_spectrum

KINDS = scene_kinds.KINDS
REFERENCE_AREA = 160 * 256
NUM_GUSTS = 44


@dataclass(frozen=True)
class Wind:
    """Gusts as travelling waves: frequency in Hz, amplitude, wave vector (rad/px), phase, and a seed for turbulence."""

    seed: int
    hertz: np.ndarray
    amplitude: np.ndarray
    wave: np.ndarray
    phase: np.ndarray
    strength_px: float

    @classmethod
    def draw(cls, seed: int, scale: float) -> Wind:
        """Draw the wind of one seed; scale: pixels of this picture per pixel of a 256 x 160 one."""
        rng = np.random.default_rng([seed, 2])
        hertz = np.geomspace(0.035, 7.5, NUM_GUSTS) * np.exp(rng.uniform(-0.05, 0.05, NUM_GUSTS))
        # Log-spaced lines of a power law f^-5/3, gustier or calmer; below 0.1 Hz there is little left.
        amplitude = hertz ** -rng.uniform(-0.05, 0.4) * rng.rayleigh(0.8, NUM_GUSTS)
        amplitude *= np.minimum(hertz / 0.12, 1.0)
        speed = scale * math.exp(rng.uniform(math.log(50), math.log(400)))
        heading = rng.choice([0.0, math.pi]) + rng.normal(0, 0.35, NUM_GUSTS)
        wave = 2 * math.pi * (hertz / speed)[:, None] * np.stack([np.cos(heading), np.sin(heading)], -1)
        strength = float(np.clip(math.exp(rng.normal(math.log(2.0), 0.8)), 0.2, 8.0)) * scale
        return cls(seed, hertz, amplitude, wave, rng.uniform(0, 2 * math.pi, NUM_GUSTS), strength)

    def respond(self, oscillators: np.ndarray) -> np.ndarray:
        """Complex amplitude (J, M) of each oscillator in each gust: q_j(t) = Re sum_m C_jm exp(2 pi i f_m t)."""
        position, (hertz, gain, damping, scatter, quadrature, _, group) = oscillators[:, :2], oscillators[:, 2:].T
        ratio = self.hertz[None] / np.maximum(hertz, 1e-3)[:, None]
        response = gain[:, None] * self.amplitude / (1 - ratio**2 + 2j * damping[:, None] * ratio)
        rng = np.random.default_rng([self.seed, 4])
        own = rng.uniform(-math.pi, math.pi, (int(group.max()) + 1, NUM_GUSTS))[group.astype(int)]
        # Small eddies differ from leaf to leaf, large gusts take everything along.
        local = np.clip(scatter[:, None] * (0.35 + 0.65 * np.minimum(self.hertz / 1.2, 1.0)), 0, 1)
        angle = self.phase - position @ self.wave.T * (1 - 0.5 * local) + own * local - quadrature[:, None]
        response = response * np.exp(1j * angle)
        response[0] = 0
        return response


def _clock(hertz: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Real and imaginary parts of exp(2 pi i f t) - 1, as (2 M, T): rows that Re(C) and Im(C) are multiplied with."""
    angle = 2 * math.pi * hertz[:, None] * times_s[None]
    return np.concatenate([np.cos(angle) - 1, -np.sin(angle)])


@dataclass
class Scene:
    """One picture that can move. All displacements are pixels of its own grid, x right, y down, relative to frame 0."""

    kind: str
    size: tuple[int, int]
    seed: int
    wind_seed: int
    mesh: dict[str, np.ndarray] = field(repr=False)
    background: np.ndarray = field(repr=False)
    finish: scene_backgrounds.Finish = field(repr=False)
    _wind: Wind = field(repr=False)
    _samples: int = 3  # odd, so that a pixel's middle sample is its centre

    @property
    def moving(self) -> bool:
        """Whether anything in the scene moves."""
        return len(self.mesh["oscillators"]) > 1

    @cached_property
    def _response(self) -> np.ndarray:
        """Real (J, 2 M) amplitudes of the oscillators, scaled to the wind's strength within what bends sensibly."""
        if not self.moving:
            return np.zeros((1, 2 * NUM_GUSTS), np.float32)
        complex_amplitude = self._wind.respond(self.mesh["oscillators"])
        response = np.concatenate([complex_amplitude.real, complex_amplitude.imag], 1).astype(np.float32)
        movable = np.flatnonzero((self.mesh["freedoms"] > 0).any(1))
        some = movable[np.random.default_rng([self.seed, 5]).integers(0, len(movable), 900)]
        angles = response @ _clock(self._wind.hertz, np.linspace(0, PERIOD_S, 40)).astype(np.float32)
        moved = self._apply(angles, some)
        size = np.sqrt((moved**2).sum(1))
        inside = ((self.mesh["vertices"][some] > 0) & (self.mesh["vertices"][some] < self.size[::-1])).all(1)
        size = size[inside] if inside.sum() > 20 else size
        share = scene_kinds.STRENGTH.get(self.kind, 1.0)
        wanted = share * self._wind.strength_px / max(float(size.mean()), 1e-9)
        peak = np.abs(angles[1:]).max(1) / self.mesh["oscillators"][1:, 7]
        scale = math.sqrt(self.size[0] * self.size[1] / REFERENCE_AREA)
        # Beyond these a stem would fold over, a leaf stretch, or half the picture leave the frame.
        bound = min(1.0 / max(float(np.percentile(peak, 97)), 1e-9), 16 * scale / float(np.percentile(size, 99)))
        return response * np.float32(min(wanted, bound))

    def _apply(self, amounts: np.ndarray, some: np.ndarray | None = None) -> np.ndarray:
        """Values (J, C) of the oscillators to vertices: (V, 2, C)."""
        freedoms, directions = self.mesh["freedoms"], self.mesh["directions"]
        if some is not None:
            freedoms, directions = freedoms[some], directions[some]
        out = np.zeros((len(freedoms), 2, amounts.shape[1]), np.float32)
        rasteriser.apply_degrees(freedoms, directions, np.ascontiguousarray(amounts, np.float32), out)
        return out

    def _vertices_at(self, time_s: float) -> np.ndarray:
        """Displacement of every vertex at time_s: (V, 2)."""
        return self._apply(self._response @ _clock(self._wind.hertz, np.array([time_s])).astype(np.float32))[..., 0]

    @cached_property
    def _layer_triangles(self) -> list[tuple[int, int, int]]:
        """(layer, first triangle, last triangle + 1) of the layers present, far to near."""
        layers = self.mesh["layers"]
        return [(int(n), int((layers < n).sum()), int((layers <= n).sum())) for n in np.unique(layers)]

    def _blur_of(self, layer: int) -> float:
        return float(self.finish.blurs[layer])

    def _paint(self, vertices: np.ndarray) -> list[np.ndarray]:
        return [
            rasteriser.paint_ids(vertices, self.mesh["triangles"][first:last], self.size, self._samples)
            for _, first, last in self._layer_triangles
        ]

    @cached_property
    def _first_ids(self) -> list[np.ndarray]:
        return self._paint(self.mesh["vertices"])

    def _compose(
        self, ids: list[np.ndarray], vertices: np.ndarray, *, blur: bool
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Shade the layers over the background: (H, W, 3) in [0, 1], and each layer's coverage (H, W)."""
        out, coverage = self.background.copy(), []
        for number, (layer, first, last) in zip(ids, self._layer_triangles, strict=True):
            painted = rasteriser.shade_ids(
                number,
                vertices,
                self.mesh["triangles"][first:last],
                self.mesh["materials"][first:last],
                self.mesh["looks"],
                scene_backgrounds.texture_atlas(),
                self._samples,
            )
            sigma = self._blur_of(layer)
            if blur and sigma > 0.3:
                painted = cv2.GaussianBlur(painted, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
            coverage.append(painted[..., 3])
            out = out * (1 - painted[..., 3:]) + painted[..., :3]
        return out, coverage

    @cached_property
    def _first_frame(self) -> tuple[np.ndarray, list[np.ndarray]]:
        return self._compose(self._first_ids, self.mesh["vertices"], blur=True)

    def _finished(self, frame: np.ndarray, time_s: float) -> Tensor:
        seed = [self.seed, 3, round(time_s * 1000)]
        frame = self.finish.apply(frame, np.random.default_rng(seed))
        return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))

    def picture(self) -> Tensor:
        """Return frame 0, the photograph: (3, H, W) float32 in [0, 1]."""
        return self._finished(self._first_frame[0], 0.0)

    def frame(self, time_s: float) -> Tensor:
        """Return the frame at time_s, (3, H, W): the same things moved, grain of its own; frame(0) is picture()."""
        if time_s == 0:
            return self.picture()
        vertices = self.mesh["vertices"] + self._vertices_at(time_s)
        return self._finished(self._compose(self._paint(vertices), vertices, blur=True)[0], time_s)

    def clean_frame(self, time_s: float) -> Tensor:
        """Return the frame at time_s before blur, glow, vignette and grain, where flow is exact: (3, H, W)."""
        vertices = self.mesh["vertices"] + self._vertices_at(time_s)
        frame, _ = self._compose(self._paint(vertices), vertices, blur=False)
        return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))

    def _sources(self, ids: np.ndarray, coverage: np.ndarray | None, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """Pixel whose triangle moves each pixel, rows and columns (H, W) int32; -1 where the layer is not in front."""
        rows, columns = np.indices(ids.shape, dtype=np.int32)
        present = ids >= 0
        if coverage is None or sigma <= 0.6 or not present.any():
            return np.where(present, rows, -1).astype(np.int32), columns
        # Out of focus a thing is seen beyond its outline: there the nearest point of it lends its motion.
        _, labels = cv2.distanceTransformWithLabels(
            np.where(present, 0, 255).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        place = np.zeros(labels.max() + 1, np.int64)
        place[labels[present]] = np.flatnonzero(present.reshape(-1))
        nearest = place[labels]
        seen = coverage > 0.5
        return (
            np.where(seen, nearest // ids.shape[1], -1).astype(np.int32),
            (nearest % ids.shape[1]).astype(np.int32),
        )

    def _at_pixels(self, values: np.ndarray, *, sharp: bool = False) -> np.ndarray:
        """Vertex values (V, C) at the frontmost thing of every pixel centre of frame 0; 0 on the background."""
        out = np.zeros((*self.size, values.shape[1]), np.float32)
        middle = self._samples // 2
        coverage = self._first_frame[1] if not sharp else [None] * len(self._first_ids)
        for ids, alpha, (layer, first, last) in zip(self._first_ids, coverage, self._layer_triangles, strict=True):
            centre = np.ascontiguousarray(ids[middle :: self._samples, middle :: self._samples])
            rasteriser.interpolate_at_centres(
                centre,
                self.mesh["vertices"],
                self.mesh["triangles"][first:last],
                values,
                out,
                self._sources(centre, alpha, 0.0 if sharp else self._blur_of(layer)),
            )
        return out

    def flow(self, time_s: float, *, sharp: bool = False) -> Tensor:
        """Return the exact displacement of every pixel of frame 0 at time_s: (2, H, W) px; 0 where nothing moves.

        What is out of focus is counted in front where it covers more than half of a pixel, as it is seen; with `sharp`
        where its outline was before the blur, which is what `clean_frame` shows.
        """
        if not self.moving or time_s == 0:
            return torch.zeros(2, *self.size)
        return torch.from_numpy(self._at_pixels(self._vertices_at(time_s), sharp=sharp).transpose(2, 0, 1).copy())

    def spectrum(self, num_bins: int = 24, period_s: float = PERIOD_S) -> Tensor:
        """Return the packed spectrum of the motion, fitted over one period at 30 frames/s: (K, 4, H, W) px."""
        if not self.moving:
            return torch.zeros(num_bins, 4, *self.size)
        times = np.arange(round(NUM_FRAMES * period_s / PERIOD_S)) / FPS
        # The fit is linear: fit the gusts' own sinusoids, then combine them for every oscillator and vertex.
        clock = torch.from_numpy(_clock(self._wind.hertz, times).T.copy())  # (T, 2M)
        fitted = fit_spectrum(
            clock.reshape(len(times), 2, -1, 1), torch.from_numpy(times), num_bins=num_bins, period_s=period_s
        )
        # (K, 4, M, 1): two values at a "pixel" are the first and the second half of the rows of the clock.
        parts = torch.stack([fitted[:, 0::2, :, 0], fitted[:, 1::2, :, 0]], 1)  # (K, re/im, 2, M)
        basis = parts.reshape(2 * num_bins, -1).T.float().numpy()  # (2M, 2K)
        vertices = self._apply(self._response @ basis)  # (V, 2, 2K)
        packed = self._at_pixels(np.ascontiguousarray(vertices.reshape(len(vertices), -1)))  # (H, W, 2 * 2K)
        packed = packed.reshape(*self.size, 2, num_bins, 2).transpose(3, 2, 4, 0, 1)  # (K, x/y, re/im, H, W)
        return torch.from_numpy(np.ascontiguousarray(packed)).reshape(num_bins, 4, *self.size)


def make_scene(
    seed: int,
    *,
    size: tuple[int, int] = (160, 256),
    kind: str | None = None,
    wind_seed: int | None = None,
) -> Scene:
    """Draw the scene of a seed: the same for the same (seed, size, kind, wind_seed) on every machine.

    Args:
        seed: whole number >= 0; the picture.
        size: (H, W) px, at least 16 each; all lengths scale with it.
        kind: one of `KINDS`, or None for one drawn by the seed.
        wind_seed: how it moves; the seed itself when None. The picture does not depend on it.

    Raises:
        ValueError: unknown kind, or a size that is too small.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if min(size) < 16:
        raise ValueError(f"size: expected at least 16 x 16 px, got {size[0]} x {size[1]}")
    rng = np.random.default_rng([seed, 1])
    drawn = KINDS[int(rng.choice(len(KINDS), p=scene_kinds.SHARES))]
    kind = kind or drawn
    mesh, background, finish = scene_kinds.draw(kind, rng, size)
    wind_seed = seed if wind_seed is None else wind_seed
    scale = math.sqrt(size[0] * size[1] / REFERENCE_AREA)
    arrays = mesh.finish()
    return Scene(kind, tuple(size), seed, wind_seed, arrays, background, finish, Wind.draw(wind_seed, scale))
