"""What tests measure of a simulation of modes, and the inverse of the web page's bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from motion.modal import CODE_STEPS, EXTENT_PX, ZERO_CODE, Modes, Simulation


class PageSimulation(Simulation):
    """A simulation with what the web page can do beside: flick a point, and let modes take no part."""

    def set_active(self, mode: int, active: bool) -> None:
        """Let a mode take part, or hold it at 0."""
        self.active[mode] = active
        self.q[mode] = self.velocity[mode] = 0
        self._find_target()

    def flick(self, x: float, y: float, dx: float, dy: float, *, extent_px: float = EXTENT_PX) -> None:
        """Add the velocity (dx, dy), px/s, to the point (x, y), px of the grid: q' changes and q does not jump.

        As much of it is added as keeps `reach` within the limit, or where it already is.
        """
        modes = self.modes
        change = self._solve([(x, y, dx, dy, extent_px)], modes.mobility)
        # Where does the square of a pixel's swing, a + b s + c s^2 in the fraction s of the change, reach the limit's?
        squared = modes.amplitude.double().square()
        speeds = 1 / modes.omega.square()
        a = self._squared_swing()
        b = torch.einsum("mhw,m->hw", squared, 2 * speeds * (self.velocity.conj() * change).real)
        c = torch.einsum("mhw,m->hw", squared, speeds * change.abs().square())
        room = (max(self.limit_px * self.strength, float(a.max()) ** 0.5) ** 2 - a).clamp(min=0)
        fractions = torch.where(c > 0, ((b * b + 4 * c * room).sqrt() - b) / (2 * c), torch.inf)
        self.velocity = self.velocity + min(1.0, float(fractions.min())) * change

    def reach(self) -> float:
        """Return max_x sqrt(sum_k |S_k(x)|^2 (|q|^2 + |q'|^2 / w^2)), px: how far a pixel swings, phases apart."""
        return float(self._squared_swing().max()) ** 0.5

    def _squared_swing(self) -> Tensor:
        swing = self.q.abs().square() + (self.velocity.abs() / self.modes.omega).square()
        return torch.einsum("mhw,m->hw", self.modes.amplitude.double().square(), swing)


def energy(simulation: Simulation) -> float:
    """Return sum_k m_k (|q'|^2 + w^2 |q|^2) / 2, px^2/s^2: it never grows unless held, flicked or blown at."""
    modes = simulation.modes
    kinetic = simulation.velocity.abs().square() + (modes.omega * simulation.q.abs()).square()
    return float((modes.mass * kinetic).sum() / 2)


def displacement_at(simulation: Simulation, x: float, y: float, extent_px: float = 0.0) -> tuple[float, float]:
    """Return (dx, dy) at a point, px, read as `Modes.sample` does."""
    dx, dy = (simulation.modes.sample(x, y, extent_px) * simulation.q[:, None]).sum(0).real.tolist()
    return dx, dy


def dequantise(codes: Tensor, scale: Tensor, frequency_hz: Tensor) -> Modes:
    """Invert `quantise`: the modes that the web page swings."""
    v = (codes.float() - ZERO_CODE) / CODE_STEPS
    parts = v * v.abs() * scale.view(-1, 1, 1, 1)  # (M, 4, H, W)
    return Modes(torch.complex(parts[:, 0::2], parts[:, 1::2]), frequency_hz)
