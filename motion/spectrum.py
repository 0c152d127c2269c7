"""Displacement as an anchored Fourier series with a drift, and its packed form.

This is the one place that states the scaling. With period T and phase u = t / T,

    F_t(p) = D(p) u + sum_{k=1}^{K-1} [ a_k(p) (cos(2 pi k u) - 1) + b_k(p) sin(2 pi k u) ],   S_k = a_k - i b_k

so F_0 = 0 exactly and every coefficient is in pixels of its own grid (Li et al., Generative Image Dynamics, CVPR 2024,
section 3; ours: the anchor at frame 0 and the drift D). A spectrum is packed as real (K, 4, H, W) =
(re_x, im_x, re_y, im_y). Bin 0 holds D in its imaginary part; its real part, -sum_k a_k, follows from the other bins,
is ignored on decoding and left out of all metrics.
"""

import math

import torch
from torch import Tensor

NUM_BINS = 16
PERIOD_S = 5.0
FPS = 30.0
NUM_FRAMES = 150

MINIMUM_COVERAGE = 0.9  # of the period: below it the fit cannot tell the lowest harmonic from the drift
# Combinations of coefficients that the stamps determine worse than this (relative to the best) are left at zero: in a
# clip that covers 94 % of the period the fit put a drift of 250 px into the gap.
RELATIVE_CUTOFF = 5e-3
_LARGEST_PIECE, _SAMPLES_AT_ONCE = 1 << 20, 10  # displacements and times that `mean_displacement` computes at once


def bin_frequencies_hz(num_bins: int = NUM_BINS, period_s: float = PERIOD_S) -> Tensor:
    return torch.arange(num_bins, dtype=torch.float64) / period_s


def _exact(numbers: Tensor) -> Tensor:
    # First to the CPU: Apple's devices have no float64.
    return torch.as_tensor(numbers).cpu().to(torch.float64)


def harmonic_basis(phase: Tensor, num_bins: int) -> Tensor:
    """Return cos(2 pi k u) - 1, then sin(2 pi k u), k = 1 .. K-1, at phases u (N,): (N, 2 (K-1)) float64 on the CPU."""
    k = torch.arange(1, num_bins, dtype=torch.float64)  # (K-1,)
    angle = 2 * math.pi * _exact(phase)[:, None] * k  # (N, K-1)
    return torch.cat([torch.cos(angle) - 1, torch.sin(angle)], dim=1)  # (N, 2(K-1))


def fit_spectrum(flow: Tensor, times_s: Tensor, *, num_bins: int = NUM_BINS, period_s: float = PERIOD_S) -> Tensor:
    """Fit the anchored series to displacements by least squares over all time stamps, evenly spaced or not.

    `flow` (T, 2, H, W), px of its own grid, is the displacement of frame 0's pixels at `times_s` (T,). Returns the
    packed spectrum (K, 4, H, W), px, in its dtype. ValueError for stamps that cover too little of the period.
    """
    times_s = _exact(times_s)
    # A clip of n frames covers n frame intervals, the one after its last frame included.
    covered_s = float(times_s.max() - times_s.min()) * len(times_s) / max(len(times_s) - 1, 1)
    if covered_s < MINIMUM_COVERAGE * period_s:
        raise ValueError(f"times_s: expected at least {MINIMUM_COVERAGE * period_s:.2f} s, got {covered_s:.2f} s")
    unknowns = 2 * num_bins - 1
    if len(times_s) <= unknowns:
        raise ValueError(f"times_s: {unknowns} unknowns need more than {unknowns} stamps, got {len(times_s)}")

    phase = times_s / period_s
    basis = torch.cat([harmonic_basis(phase, num_bins), phase[:, None]], dim=1)  # (T, P), P = 2(K-1)+1
    frames, _, height, width = flow.shape
    # The solver matrix is tiny and needs float64; the product over pixels does not have to be held in float64 at once.
    computed_on = torch.device("cpu") if flow.device.type == "mps" else flow.device
    solver = torch.linalg.pinv(basis, rtol=RELATIVE_CUTOFF).to(computed_on)  # (P, T)
    rows = []
    for row in flow.split(64, dim=2):
        fitted = solver @ row.reshape(frames, -1).to(computed_on).to(torch.float64)
        rows.append(fitted.view(-1, 2, row.shape[2], width))
    coefficients = torch.cat(rows, 2)  # (P, 2, H, W)
    a, b, drift = coefficients.split([num_bins - 1, num_bins - 1, 1])  # (K-1, 2, H, W) twice, (1, 2, H, W)
    spectrum = coefficients.new_zeros((num_bins, 4, height, width))
    spectrum[1:, 0::2] = a
    spectrum[1:, 1::2] = -b
    spectrum[0, 0::2], spectrum[0, 1::2] = -a.sum(0), drift[0]
    return spectrum.to(flow.dtype).to(flow.device)  # (K, 4, H, W)


def spectrum_to_flow(spectrum: Tensor, phase: Tensor) -> Tensor:
    """Evaluate (..., K, 4, H, W) at phases (N,): (..., N, 2, H, W) px; beyond phase 1 the drift is held."""
    num_bins = spectrum.shape[-4]
    phase = _exact(phase)
    basis = torch.cat([harmonic_basis(phase, num_bins), phase.clamp(max=1.0)[:, None]], dim=1)
    a, b = spectrum[..., 1:, 0::2, :, :], -spectrum[..., 1:, 1::2, :, :]  # (..., K-1, 2, H, W)
    coefficients = torch.cat([a, b, spectrum[..., :1, 1::2, :, :]], dim=-4)  # (..., 2(K-1)+1, 2, H, W)
    basis = basis.to(spectrum.dtype).to(spectrum.device)
    return (basis @ coefficients.flatten(-3)).unflatten(-1, coefficients.shape[-3:])  # (..., N, 2, H, W)


def without_drift(spectrum: Tensor) -> Tensor:
    """Return a copy of a packed spectrum (..., K, 4, H, W) with D = 0: the motion that repeats exactly after T."""
    spectrum = spectrum.clone()
    spectrum[..., 0, 1::2, :, :] = 0
    return spectrum


def amplitude(spectrum: Tensor) -> Tensor:
    """Return |S_k| over both directions, (..., K, H, W) px; bin 0 gives |D|."""
    squared = spectrum.square()
    squared[..., 0, 0::2, :, :] = 0
    return squared.sum(-3).sqrt()


def mean_displacement(spectrum: Tensor, num_samples: int = 50) -> Tensor:
    """Return W(p) = mean over one period of |F_t(p)|, the importance of [GID] section 5: (..., 1, H, W) px."""
    phase = torch.arange(1, num_samples + 1, dtype=torch.float64) / num_samples
    # In pieces of rows and samples: all of a large grid at once would be the largest tensor of a run.
    rows = max(1, _LARGEST_PIECE // (_SAMPLES_AT_ONCE * spectrum[..., 0, 0, :1, :].numel()))
    means = []
    for part in spectrum.split(rows, dim=-2):
        flows = (spectrum_to_flow(part, some) for some in phase.split(_SAMPLES_AT_ONCE))
        norms = (flow.square().sum(-3, keepdim=True).sqrt().sum(-4) for flow in flows)  # (..., 1, rows, W)
        means.append(sum(norms) / num_samples)
    return torch.cat(means, dim=-2)


def truncate(spectrum: Tensor, num_bins: int) -> Tensor:
    """Keep the first `num_bins` bins of (..., K, 4, H, W) and make bin 0's dependent real part agree with them."""
    spectrum = spectrum[..., :num_bins, :, :, :].clone()
    spectrum[..., 0, 0::2, :, :] = -spectrum[..., 1:, 0::2, :, :].sum(-4)
    return spectrum
