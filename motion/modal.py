"""An image as a sum of damped modes that can be held (Davis, Chen, Durand, Image-Space Modal Bases, 2015).

Every bin k >= 1 of a spectrum is a mode: its shape S_k(x), complex, px, and its frequency w_k / 2 pi = k / T. A complex
coordinate q_k per mode gives the displacement F(x) = sum_k Re(S_k(x) q_k), and obeys, for a force f at pixel p,

    q_k'' + 2 xi w_k q_k' + w_k^2 q_k = conj(S_k(p) . f) / m_k,    m_k = mean_x |S_k(x)|^2.

The modal mass m_k cancels the strength of the wind that made the spectrum; how much of a mode is at p counts. Ours:
f is solved for, so that the point under the pointer goes where the pointer is, up to a limit (`Simulation.hold`). Bin
0, the drift, takes no part.

Wind (ours) is noise that drives every mode so that E |q_k|^2 = wind^2 whatever the damping: at 1 the image moves as far
as its spectrum. It is drawn by a counter and a hash, so that the web page draws the same. A held image has no wind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from motion.motion_file import Motion
from motion.spectrum import PERIOD_S
from motion.wind import DEFAULT_DAMPING

LIMIT_FRACTION = 0.1  # highest displacement that a hold may lead to, of the grid's long side
HOLD_HZ = 3.0  # the hand is a critically damped spring of this frequency: about 0.1 s behind the pointer
EXTENT_PX = 1.5  # standard deviation of the Gaussian by which a touch takes hold of the image, px of the grid
# Stiffness of a hold. In a direction whose compliance equals the first fraction of the point's total, or the second of
# the image's largest, the point follows half way; where it is stiffer, less.
STIFF_FRACTIONS = (0.02, 0.002)
# A pixel moving less than the first fraction of the highest amplitude is static; above the second nothing changes.
STATIC_FRACTIONS = (0.02, 0.06)
LEAST_VARIANCE = 1e-11  # fraction of the wind's own variance below which that of a step is rounding
HOLD_S = 0.4  # how long an interaction holds its point
# Codes are 128 + round(127 v): zero has a code of its own, so static pixels stay exactly static.
ZERO_CODE, CODE_STEPS = 128, 127


@dataclass(frozen=True)
class Modes:
    """The shapes and frequencies of an image's modes."""

    shapes: Tensor  # (M, 2, H, W) complex S_k, px of the motion grid
    frequency_hz: Tensor  # (M,) float64, above 0

    @classmethod
    def from_spectrum(cls, spectrum: Tensor, period_s: float = PERIOD_S) -> Modes:
        """Take the bins k >= 1 of a packed spectrum (K, 4, H, W), px, as modes of k / period_s Hz, on the CPU."""
        spectrum = spectrum.cpu().float()
        shapes = torch.complex(spectrum[1:, 0::2], spectrum[1:, 1::2])  # (M, 2, H, W)
        return cls(shapes, torch.arange(1, len(spectrum), dtype=torch.float64) / period_s)

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.shapes.shape[-2:])

    @cached_property
    def omega(self) -> Tensor:
        """w_k, rad/s: (M,) float64."""
        return 2 * math.pi * self.frequency_hz

    @cached_property
    def amplitude(self) -> Tensor:
        """|S_k(x)| over both directions, px: (M, H, W)."""
        return self.shapes.abs().square().sum(1).sqrt()

    @cached_property
    def mass(self) -> Tensor:
        """m_k = mean_x |S_k(x)|^2, px^2: (M,) float64."""
        return self.amplitude.double().square().flatten(1).mean(1)

    @cached_property
    def mobility(self) -> Tensor:
        """1 / m_k, and 0 for a mode without any motion."""
        return torch.where(self.mass > 0, 1 / self.mass.clamp(min=1e-300), 0.0)

    def without_static_pixels(self) -> Modes:
        """Return the modes with hardly moving pixels, which pulling would drive far, set to exactly 0, smoothly."""
        amplitude = self.amplitude.square().sum(0).sqrt()  # (H, W)
        low, high = (fraction * float(amplitude.max()) for fraction in STATIC_FRACTIONS)
        if high == 0:
            return self
        ramp = ((amplitude - low) / (high - low)).clamp(0, 1)
        return Modes(self.shapes * (ramp * ramp * (3 - 2 * ramp)), self.frequency_hz)

    def sample(self, x: float, y: float, extent_px: float = 0.0) -> Tensor:
        """Return S_k (M, 2) at a point, px of the grid: a Gaussian mean of deviation `extent_px`, 0: bilinear."""
        height, width = self.size
        columns, weight_x = _axis_weights(x, width, extent_px)
        rows, weight_y = _axis_weights(y, height, extent_px)
        window = self.shapes[:, :, rows[0] : rows[1], columns[0] : columns[1]].to(torch.complex128)  # (M, 2, h, w)
        return torch.einsum("mchw,h,w->mc", window, weight_y.to(window), weight_x.to(window))


def _axis_weights(position: float, length: int, extent_px: float) -> tuple[tuple[int, int], Tensor]:
    """Return the range of pixels along one axis that a point reads, and their weights, which sum to 1."""
    position = min(max(position, 0.0), length - 1.0)
    if extent_px > 0:
        first = max(0, math.ceil(position - 3 * extent_px))
        end = min(length, math.floor(position + 3 * extent_px) + 1)
        # A Gaussian narrower than a pixel may have none within three deviations.
        if first < end:
            index = torch.arange(first, end, dtype=torch.float64)
            weights = torch.exp(-0.5 * ((index - position) / extent_px) ** 2)
            return (first, end), weights / weights.sum()
    first = max(0, min(math.floor(position), length - 2))
    end, weight = min(first + 2, length), position - first
    return (first, end), torch.tensor([1 - weight, weight], dtype=torch.float64)[: end - first]


Hold = tuple[float, float, float, float, float]  # x, y, dx, dy, extent, px of the grid


class Simulation:
    """Modal coordinates in time: hold, release, step."""

    def __init__(self, modes: Modes, *, damping: float = DEFAULT_DAMPING, limit_px: float | None = None) -> None:
        self.modes, self.damping = modes, damping  # xi >= 0, of all modes; 1 is critical
        self.strength = 1.0  # how many pixels the point moves for one of the pointer; it scales the limit too
        self.wind = 0.0  # how far the wind moves the image; 1: as far as its spectrum
        self.active = torch.ones(len(modes.shapes))  # 0 for a mode that takes no part
        # No pixel of a held pose is displaced further (times strength).
        self.limit_px = LIMIT_FRACTION * max(modes.size) if limit_px is None else limit_px
        self.q = torch.zeros(len(self.modes.shapes), dtype=torch.complex128)  # q_k
        self.velocity = torch.zeros_like(self.q)  # q_k'
        self._held: dict[int, Hold] = {}
        self._target: Tensor | None = None
        self._gusts = 0

    def hold(self, x: float, y: float, dx: float, dy: float, *, extent_px: float = EXTENT_PX, pointer: int = 0) -> None:
        """Draw the point (x, y) towards the displacement (dx, dy), px of the grid, until `release`.

        Its Gaussian mean ends there if no pixel is then displaced by more than the limit; else the same pose is scaled
        down to it. Each `pointer` holds one point; poses that contradict each other are solved by least squares.
        """
        self._held[pointer] = (x, y, dx, dy, extent_px)
        self._find_target()

    def release(self, pointer: int = 0) -> None:
        """Let go: once no pointer holds, the modes swing on from where they are."""
        self._held.pop(pointer, None)
        self._find_target()

    def _find_target(self) -> None:
        if not self._held:
            self._target = None
            return
        compliance = self.modes.mobility / self.modes.omega.square()  # 1 / (m_k w_k^2)
        target = self._solve(list(self._held.values()), compliance)
        furthest, limit = float(self.displacement(target).square().sum(0).max()) ** 0.5, self.limit_px * self.strength
        self._target = target * (limit / furthest) if furthest > limit else target

    def step(self, dt: float) -> None:
        """Advance by dt >= 0 seconds, exactly for any dt: free modes, or modes drawn to the held pose."""
        if self._target is None:
            self.q, self.velocity = oscillate(self.q, self.velocity, self.modes.omega, self.damping, dt)
            if self.wind > 0:
                self._blow(dt)
        else:
            omega = self.modes.omega.clamp(min=2 * math.pi * HOLD_HZ)
            offset, self.velocity = oscillate(self.q - self._target, self.velocity, omega, 1.0, dt)
            self.q = self._target + offset

    def _blow(self, dt: float) -> None:
        """Add the noise of a wind that keeps E |q_k|^2 = wind^2 and E |q_k'|^2 = w^2 wind^2, exactly for any dt.

        Real and imaginary part have the stationary covariance C = wind^2 / 2 diag(1, w^2), and the free step is the
        matrix P, so what dt adds has the covariance C - P C P^T, here by its Cholesky factor.
        """
        omega = self.modes.omega
        one, none = torch.ones_like(omega), torch.zeros_like(omega)
        (qq, vq), (qv, vv) = (oscillate(*start, omega, self.damping, dt) for start in ((one, none), (none, one)))
        var_q = self.wind**2 / 2
        var_v = var_q * omega.square()
        added_var = var_q - qq.square() * var_q - qv.square() * var_v
        # In a very short step it is only rounding.
        of_q = torch.where(added_var > LEAST_VARIANCE * var_q, added_var, torch.zeros_like(added_var)).sqrt()
        shared = torch.where(of_q > 0, -(qq * vq * var_q + qv * vv * var_v) / of_q, torch.zeros_like(of_q))
        of_v = (var_v - vq.square() * var_q - vv.square() * var_v - shared.square()).clamp(min=0).sqrt()
        noise = torch.tensor([gust(self._gusts, part) for part in range(4 * len(omega))], dtype=torch.float64)
        self._gusts += 1
        first, second = torch.view_as_complex(noise.view(-1, 2, 2)).T * self.active  # (M,) each
        self.q = self.q + of_q * first
        self.velocity = self.velocity + shared * first + of_v * second

    def displacement(self, q: Tensor | None = None) -> Tensor:
        """Return F(x) of now, or of coordinates q (M,), as (2, H, W) float32, px of the grid."""
        q = self.q if q is None else q
        return torch.einsum("mchw,m->chw", self.modes.shapes, q.to(self.modes.shapes)).real

    def _solve(self, holds: list[Hold], weights: Tensor) -> Tensor:
        """Return c_k = weights_k conj(sum_i S_k(p_i) . f_i), with sum_k Re(S_k(p_i) c_k) = strength (dx, dy)_i.

        The points' response to n forces is A f, A_ij = sum_k weights_k Re(S_k(p_i) S_k(p_j)^H), 2n x 2n. A is nearly
        singular where a point moves along a line only, so f minimises |A f - d|^2 + stiff^2 |f|^2.
        """
        largest = float(torch.einsum("m,mhw->hw", weights, self.modes.amplitude.double().square()).max())
        weights = weights * self.active
        shape = torch.cat([self.modes.sample(x, y, extent) for x, y, _, _, extent in holds], dim=1)  # (M, 2n)
        response = torch.einsum("m,mi,mj->ij", weights.to(shape), shape, shape.conj()).real  # (2n, 2n)
        stiff = max(STIFF_FRACTIONS[0] * float(response.trace()) / len(holds), STIFF_FRACTIONS[1] * largest)
        if stiff == 0:
            return torch.zeros_like(self.q)
        wanted = self.strength * torch.tensor([part for hold in holds for part in hold[2:4]], dtype=torch.float64)
        # In units of `stiff`, so that squares of tiny compliances do not vanish.
        response = response / stiff
        one = torch.eye(len(wanted), dtype=torch.float64)
        force = torch.linalg.solve(response @ response + one, response @ wanted) / stiff
        return weights * (shape @ force.to(shape)).conj()


def gust(number: int, part: int) -> float:
    """Return a number of mean 0 and variance 1, the same for the same arguments here and in web/simulation.js.

    32-bit integers are mixed as in "lowbias32" (Wellons 2018), which JavaScript has in Math.imul and >>>.
    """
    mixed = (number * 0x9E3779B1 + part * 0x85EBCA77 + 0x27D4EB2F) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    mixed ^= mixed >> 16
    return ((mixed + 0.5) / 2**31 - 1) * math.sqrt(3)


@dataclass(frozen=True)
class Interaction:
    """A hold of the point (x, y) at the displacement (dx, dy), px of the grid, from `start_s` on for HOLD_S seconds."""

    x: float
    y: float
    dx: float
    dy: float
    start_s: float


@dataclass
class InteractiveMotion(Motion):
    """The flow of a simulation, with the depth order of the motion whose modes it swings."""

    depth_order: Tensor | None = None  # (1, h, w), `Motion.importance` of that motion

    def importance(self) -> Tensor:
        return super().importance() if self.depth_order is None else self.depth_order


def simulate_interactions(
    simulation: Simulation, interactions: Sequence[Interaction], num_frames: int, fps: float
) -> Tensor:
    """Return the displacement of each frame, (T, 2, H, W) float32 px of the grid, the first at 0 s."""
    events = []
    for pointer, item in enumerate(interactions):
        hold = partial(simulation.hold, item.x, item.y, item.dx, item.dy, pointer=pointer)
        events += [(item.start_s, hold), (item.start_s + HOLD_S, partial(simulation.release, pointer))]
    frames, now = [], 0.0
    events += [(number / fps, lambda: frames.append(simulation.displacement())) for number in range(num_frames)]
    for time_s, happen in sorted(events, key=lambda event: event[0]):  # frames come last among those of one time
        simulation.step(max(time_s - now, 0.0))
        now = max(now, time_s)
        happen()
    return torch.stack(frames)


def oscillate(q: Tensor, velocity: Tensor, omega: Tensor, damping: float, dt: float) -> tuple[Tensor, Tensor]:
    """Advance z'' + 2 xi w z' + w^2 z = 0 by dt >= 0 seconds exactly, with each oscillator's 2 x 2 matrix exponential.

    q, velocity: (M,) complex z and z'; omega: (M,) w > 0, rad/s; damping: xi >= 0. Returns (z, z') after dt.
    """
    if not (math.isfinite(dt) and dt >= 0):
        raise ValueError(f"dt: expected seconds of at least 0, got {dt}")
    decay = damping * omega
    if damping < 1:
        ringing = omega * math.sqrt(1 - damping * damping)
        envelope = torch.exp(-decay * dt)
        cosine, sine = envelope * torch.cos(ringing * dt), envelope * torch.sin(ringing * dt) / ringing
    elif damping == 1:
        cosine = torch.exp(-decay * dt)
        sine = cosine * dt
    else:
        # Both exponents are negative, so nothing overflows as cosh alone would.
        spread = omega * math.sqrt(damping * damping - 1)
        slow, fast = torch.exp((spread - decay) * dt), torch.exp((-spread - decay) * dt)
        cosine, sine = (slow + fast) / 2, (slow - fast) / (2 * spread)
    next_velocity = (cosine - decay * sine) * velocity - omega * omega * sine * q
    return (cosine + decay * sine) * q + sine * velocity, next_velocity


def quantise(modes: Modes) -> tuple[Tensor, Tensor]:
    """Return one-byte codes (M, 4, H, W) of the shapes in the packing of spectra, and their scales s_k (M,), px.

    A component x of mode k becomes v = sign(x) sqrt(|x| / s_k), s_k the mode's largest component, and then the code
    128 + round(127 v). With e = 0.5 / 127 it comes back within s_k (2 sqrt(|x| / s_k) + e) e, and 0 as exactly 0.
    """
    parts = torch.view_as_real(modes.shapes).movedim(-1, 2).flatten(1, 2).float()  # (M, 4, H, W)
    scale = parts.abs().flatten(1).amax(1)  # (M,)
    ratio = parts / scale.clamp(min=1e-30).view(-1, 1, 1, 1)
    codes = (ratio.sign() * ratio.abs().sqrt() * CODE_STEPS).round() + ZERO_CODE
    return codes.to(torch.uint8), scale
