"""What tests measure of a simulation of modes, and the inverse of the web page's bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from motion.modal import CODE_STEPS, ZERO_CODE, Modes, Simulation


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
