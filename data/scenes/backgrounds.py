"""What is painted behind the things of a procedural scene, the textures on them, and the camera's finish."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy import ndarray as Array

from data.scenes.mesh import TEXELS


def noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[float, float], octaves: int = 3) -> Array:
    """Value noise (H, W) of mean 0 and about unit spread; cells: lattice cells of the first octave, down and across."""
    out = np.zeros(size, np.float32)
    for octave in range(octaves):
        shape = [max(2, min(2 * n, round(c * 2**octave))) for n, c in zip(size, cells, strict=True)]
        lattice = rng.standard_normal(shape, np.float32)
        out += cv2.resize(lattice, size[::-1], interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return out / 0.9


def _tiled_noise(rng: np.random.Generator, cells: tuple[int, int], octaves: int = 3) -> Array:
    out = np.zeros((TEXELS, TEXELS), np.float32)
    for octave in range(octaves):
        lattice = rng.standard_normal([min(TEXELS, c * 2**octave) for c in cells], np.float32)
        big = cv2.resize(np.tile(lattice, (3, 3)), (3 * TEXELS, 3 * TEXELS), interpolation=cv2.INTER_LINEAR)
        out += big[TEXELS : 2 * TEXELS, TEXELS : 2 * TEXELS] * 0.6**octave
    return np.clip(out / 2.2, -1, 1)


@lru_cache(maxsize=1)
def texture_atlas() -> Array:
    """Tileable brightness textures (M, S, S) in [-1, 1], in the order of the material numbers of mesh.py."""
    rng = np.random.default_rng(20231)
    v, u = np.mgrid[0:TEXELS, 0:TEXELS].astype(np.float32)
    grain = _tiled_noise(rng, (32, 32))
    fibre = _tiled_noise(rng, (8, 64))
    course = np.floor(v / 16)
    shifted = u + 16 * (course % 2)
    joint = np.minimum(v % 16, shifted % 32)
    tone = rng.uniform(-0.6, 0.5, (16, 16))[course.astype(int) % 16, ((shifted % TEXELS) // 32).astype(int)]
    brick = np.where(joint < 2, 0.75, tone * 0.8 - 0.1) + 0.25 * grain
    board = np.floor(u / 32).astype(int)
    planks = np.where(u % 32 < 1.5, -1.0, rng.uniform(-0.35, 0.35, 8)[board]) + 0.4 * fibre
    bark = np.sign(fibre) * np.abs(fibre) ** 0.6 + 0.3 * grain
    stone = _tiled_noise(rng, (6, 6), 5) * 1.2
    veins = 0.5 * np.cos(2 * np.pi * (v / 32 - np.abs(u - 128) / 64)) ** 5 + 0.5 * grain
    veins = np.where(np.abs(u - 128) < 5, veins + 0.7, veins)
    foliage = np.sign(grain) * np.abs(_tiled_noise(rng, (48, 48), 2)) ** 0.7
    tiles = ((v % 16) / 16 - 0.6) + 0.35 * np.cos(2 * np.pi * u / 16) + 0.2 * grain
    weave = 0.4 * np.cos(2 * np.pi * u / 4) * np.cos(2 * np.pi * v / 4) + 0.4 * grain
    mottled = _tiled_noise(rng, (12, 12), 4)
    layers = [np.zeros_like(u), mottled, fibre, brick, planks, bark, stone, veins, foliage, tiles, weave]
    return np.clip(np.stack(layers), -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Finish:
    """Camera and development: blur of each layer and of all (px), glow, exposure, colour, vignette and grain."""

    blurs: tuple[float, ...] = (0.0, 0.0, 0.0)
    blur: float = 0.0
    glow: float = 0.0
    exposure: float = 1.0
    gamma: float = 1.0
    saturation: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vignette: float = 0.0
    haze: float = 0.0
    grain: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, scale: float, **changes: object) -> Finish:
        """Draw a finish; `changes` override single values."""
        warm = rng.normal(0, 0.05)
        values: dict[str, object] = {
            "blur": scale * float(rng.choice([0.0, rng.uniform(0.3, 0.5), rng.uniform(0.5, 0.8)], p=[0.5, 0.4, 0.1])),
            "glow": float(rng.choice([0.0, rng.uniform(0.05, 0.35)])),
            "exposure": math.exp(rng.normal(0.03, 0.17)),
            "gamma": math.exp(rng.normal(0, 0.16)),
            "saturation": 0.0 if rng.random() < 0.04 else float(np.clip(rng.normal(1.05, 0.25), 0.4, 1.6)),
            "cast": (1 + warm, 1 + rng.normal(0, 0.015), 1 - warm),
            "vignette": float(rng.choice([0.0, rng.uniform(0.1, 0.5)])),
            "haze": float(rng.choice([0.0, rng.uniform(0.02, 0.22)], p=[0.7, 0.3])),
            "grain": float(rng.choice([0.0, rng.uniform(0.003, 0.01), rng.uniform(0.01, 0.025)], p=[0.45, 0.42, 0.13])),
        }
        return cls(**{**values, **changes})  # type: ignore[arg-type]

    def apply(self, frame: Array, rng: np.random.Generator) -> Array:
        """Develop a frame (H, W, 3): values in [0, 1] float32."""
        height, width = frame.shape[:2]
        if self.blur > 0:
            frame = cv2.GaussianBlur(frame, (0, 0), self.blur)
        if self.glow > 0:
            bright = np.maximum(frame - 0.75, 0)
            small = cv2.resize(bright, (max(2, width // 4), max(2, height // 4)), interpolation=cv2.INTER_AREA)
            small = cv2.GaussianBlur(small, (0, 0), max(1.0, width / 40))
            frame = frame + self.glow * 6 * cv2.resize(small, (width, height))
        frame = np.clip(frame * (self.exposure * np.asarray(self.cast, np.float32)), 0, 4)
        frame = frame / (1 + np.maximum(frame - 0.8, 0) * 0.6)
        frame = frame**self.gamma
        grey = frame @ np.array([0.3, 0.59, 0.11], np.float32)
        frame = grey[..., None] + self.saturation * (frame - grey[..., None])
        frame = frame * (1 - self.haze) + 0.85 * self.haze
        if self.vignette > 0:
            y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
            frame = frame * (1 - self.vignette * 0.5 * (x * x + y * y))[..., None]
        if self.grain > 0:
            frame = frame + self.grain * rng.standard_normal((height, width, 1), np.float32)
            frame = frame + 0.4 * self.grain * rng.standard_normal((height, width, 3), np.float32)
        return np.clip(frame, 0, 1).astype(np.float32)


# Colours of the sky by mood: above, at the horizon, of the clouds
SKIES = {
    "day": ((0.20, 0.45, 0.82), (0.72, 0.86, 0.96), (1, 1, 1)),
    "overcast": ((0.62, 0.66, 0.72), (0.84, 0.85, 0.87), (0.78, 0.79, 0.81)),
    "sunset": ((0.38, 0.36, 0.52), (0.98, 0.62, 0.32), (1.0, 0.72, 0.55)),
    "dusk": ((0.14, 0.18, 0.32), (0.52, 0.45, 0.52), (0.42, 0.36, 0.42)),
    "white": ((0.90, 0.93, 0.96), (0.99, 0.99, 0.98), None),
}


def sky(rng: np.random.Generator, size: tuple[int, int], mood: str) -> Array:
    """Sky (H, W, 3): mood day, overcast, sunset, dusk or white."""
    height, width = size
    down = np.linspace(0, 1, height)[:, None] * np.ones((1, width))
    *colours, white = SKIES[mood]
    top, low = np.array(colours) + rng.normal(0, 0.04, 3)
    out = top + (low - top) * (down ** rng.uniform(0.6, 1.6))[..., None]
    amount = rng.choice([0.0, rng.uniform(0.2, 1.0)], p=[0.3, 0.7])
    if white is not None and amount > 0:
        clouds = noise(rng, size, (rng.uniform(2, 5), rng.uniform(1.5, 4)), 5)
        cover = np.clip((clouds - rng.uniform(-0.4, 0.9)) * 1.1, 0, 1) * amount
        shade = 1 - 0.28 * np.clip(noise(rng, size, (3, 3), 3) * 0.5 + 0.3, 0, 1)
        out = out * (1 - cover[..., None]) + np.array(white) * shade[..., None] * cover[..., None]
    if mood == "sunset" or (mood == "white" and rng.random() < 0.3):
        y, x = np.mgrid[0:height, 0:width]
        cy, cx = height * rng.uniform(0.2, 0.8), width * rng.uniform(0.1, 0.9)
        r = np.hypot(y - cy, x - cx) / height
        out = out + (np.exp(-((r / 0.25) ** 2)) * 0.45 + (r < 0.05) * 0.6)[..., None] * np.array([1.0, 0.85, 0.55])
    return np.clip(out, 0, 1).astype(np.float32)


def hills(rng: np.random.Generator, image: Array, horizon: float, colour: Array, rows: int = 2) -> None:
    """Paint ridges, hazy to near, over image (H, W, 3) above the row `horizon`."""
    height, width = image.shape[:2]
    y = np.arange(height)[:, None]
    far = image[max(0, min(height - 1, int(horizon) - 2))].mean(0)
    rugged = rng.uniform(0.2, 1.4)
    for row in range(rows):
        ridge = noise(rng, (2, width), (2, rng.uniform(2, 5)), 6 if rugged > 0.7 else 3)[0]
        top = horizon - height * (0.02 + 0.09 * rugged * (rows - row) * (1 + 0.5 * ridge)).clip(0.0)
        inside = np.clip(y - top[None] + 0.5, 0, 1)
        near = (row + 1) / (rows + 0.6)
        tint = far * (1 - near) + colour * near
        detail = 1 + 0.18 * near * noise(rng, (height, width), (18, 26), 3)
        image[:] = image * (1 - inside[..., None]) + (tint * detail[..., None]) * inside[..., None]


def ground(rng: np.random.Generator, image: Array, horizon: float, colour: Array, kind: str) -> None:
    """Paint ground below the row `horizon` with a texture in perspective: kind grass, earth, road, sand or water."""
    height, width = image.shape[:2]
    first = int(np.clip(horizon, 0, height - 1))
    rows = height - first
    if rows < 2:
        return
    depth = 1.0 / (np.arange(rows) / rows + 0.06)
    texture = noise(rng, (256, 512), (64, 130) if kind != "water" else (60, 24), 3)
    x = (np.arange(width) / width - 0.5)[None] * depth[:, None] * 130 + 256
    y = np.broadcast_to((depth * 60)[:, None], x.shape)
    wave = cv2.remap(texture, (x % 511).astype(np.float32), (y % 255).astype(np.float32), cv2.INTER_LINEAR)
    wave *= np.clip(np.arange(rows) / rows + 0.25, 0, 1)[:, None]
    patches = noise(rng, (rows, width), (4, 5), 3)
    strength = {"grass": 0.22, "earth": 0.2, "road": 0.07, "sand": 0.08, "water": 0.25}[kind]
    shade = 1 + strength * wave + 0.09 * patches
    near = np.linspace(1.08, 0.85, rows)[:, None]
    base = np.asarray(colour)
    if kind == "water":
        mirror = image[max(0, first - rows) : first][::-1]
        mirror = cv2.resize(mirror, (width, rows)) if len(mirror) else np.ones((rows, width, 3)) * base
        shift = (np.arange(width)[None] + 2.5 * wave + 0 * x).astype(np.float32)
        lines = (np.arange(rows)[:, None] + 3.0 * wave).astype(np.float32)
        mirror = cv2.remap(mirror.astype(np.float32), shift, lines, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        image[first:] = 0.55 * mirror + 0.45 * base * (shade * near)[..., None]
        return
    image[first:] = base * (shade * near)[..., None]
    if kind == "road":
        down = np.arange(rows)[:, None] / rows
        offset = np.abs(np.arange(width)[None] - width / 2 * (1 + rng.uniform(-0.5, 0.5) * (1 - down)))
        verge = np.clip(offset - width * (0.03 + 0.45 * down), 0, 1)[..., None]
        grass = np.array([0.25, 0.36, 0.14]) * (1 + 0.25 * wave)[..., None]
        image[first:] = image[first:] * (1 - verge) + grass * verge


def bokeh(rng: np.random.Generator, size: tuple[int, int], colour: Array, scale: float) -> Array:
    """Out-of-focus foliage (H, W, 3): soft patches of light and shade, and often discs of light."""
    base = np.asarray(colour)
    tone = noise(rng, size, (rng.uniform(2, 5), rng.uniform(3, 7)), 3)
    out = base * (0.75 + rng.uniform(0.15, 0.4) * tone[..., None])
    out = out + 0.05 * noise(rng, size, (3, 4), 2)[..., None] * base[::-1]
    discs = np.zeros((*size, 3), np.float32)
    for _ in range(int(rng.integers(0, 45))):
        centre = (int(rng.uniform(0, size[1])), int(rng.uniform(0, size[0] * rng.uniform(0.4, 1.0))))
        disc = np.zeros(size, np.float32)
        cv2.circle(disc, centre, int(rng.uniform(2, 9) * scale) + 1, float(rng.uniform(0.05, 0.35)), -1, cv2.LINE_AA)
        discs += disc[..., None] * (base / base.max() * 0.5 + 0.5)
    blurred = cv2.GaussianBlur(np.clip(out, 0, 1).astype(np.float32), (0, 0), 5 * scale)
    return np.clip(blurred + cv2.GaussianBlur(discs, (0, 0), 1.2 * scale), 0, 1)


def surface(rng: np.random.Generator, size: tuple[int, int], colour: Array, material: int, scale: float) -> Array:
    """A wall or board seen face on (H, W, 3) with uneven light."""
    tile = texture_atlas()[material]
    zoom = rng.uniform(0.5, 1.6) * scale
    # What has no joints or boards would look like clouds if it were as strong.
    strength = rng.uniform(0.1, 0.35) * (0.4 if np.abs(np.diff(tile)).mean() < 0.05 else 1.0)
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    wall = cv2.remap(tile, (x / zoom * 2) % (TEXELS - 1), (y / zoom * 2) % (TEXELS - 1), cv2.INTER_LINEAR)
    light = 1 + 0.12 * noise(rng, size, (1.5, 1.5), 2) + 0.07 * noise(rng, size, (20, 20), 3)
    lean = np.linspace(-1, 1, size[1])[None] * rng.uniform(-0.25, 0.25) + np.linspace(0.1, -0.1, size[0])[:, None]
    shade = (1 + strength * wall) * light * (1 + lean)
    return np.clip(np.asarray(colour) * shade[..., None], 0, 1).astype(np.float32)


def dark(rng: np.random.Generator, size: tuple[int, int], centre: tuple[float, float], tint: Array) -> Array:
    """A night room (H, W, 3) lit from `centre` (x, y) px by a flame."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    r = np.hypot(x - centre[0], y - centre[1]) / (max(size) * rng.uniform(0.15, 0.6))
    light = rng.uniform(0.0, 0.5) * np.exp(-r) + rng.choice([0.004, 0.03])
    pattern = 1 + 0.25 * noise(rng, size, (5, 7), 4)
    return np.clip(np.asarray(tint) * (light * pattern)[..., None], 0, 1).astype(np.float32)


def forest(rng: np.random.Generator, size: tuple[int, int], colour: Array, scale: float) -> Array:
    """Edge of a wood (H, W, 3): dark foliage, gaps of sky, trunks."""
    out = np.asarray(colour) * np.clip(0.6 + 0.42 * noise(rng, size, (8, 11), 5), 0.08, 2)[..., None]
    gaps = np.clip((noise(rng, size, (7, 9), 4) - rng.uniform(0.4, 1.4)) * 3, 0, 1)
    gaps = gaps * np.linspace(1, 0.1, size[0])[:, None]
    out = out * (1 - gaps[..., None]) + np.array([0.86, 0.92, 0.9]) * gaps[..., None]
    columns = np.zeros(size, np.float32)
    for _ in range(int(rng.integers(2, 12))):
        x, w = rng.uniform(0, size[1]), rng.uniform(1, 5) * scale
        lean = rng.normal(0, 6) * scale
        corners = np.array([[x, size[0]], [x + lean, 0], [x + lean + w * 0.7, 0], [x + w, size[0]]])
        cv2.fillPoly(columns, [np.round(corners * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    trunk = np.array([0.2, 0.16, 0.12]) * (1 + 0.3 * noise(rng, size, (30, 20), 2))[..., None]
    out = out * (1 - 0.8 * columns[..., None]) + trunk * 0.8 * columns[..., None]
    sigma = rng.choice([0.5, rng.uniform(1, 4)]) * scale
    return cv2.GaussianBlur(np.clip(out, 0, 1).astype(np.float32), (0, 0), sigma)
