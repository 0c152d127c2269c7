"""Metrics of predicted motion: against real clips, px of a clip's own grid, and against masks of photographs."""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from metrics.statistics import mean_by_source
from motion.flow import MOVING_PX, default_grid_scale, magnitude, resize_maps, squared_gradient
from motion.spectrum import NUM_FRAMES, mean_displacement, spectrum_to_flow

# Blurs of the image gradient, px of a grid of 256 x 160.
GRADIENT_SIGMAS_PX = (0.0, 4.0, 8.0, 16.0, 32.0)
# Below this a bin, or a clip, has no motion that a ratio could be taken to.
LEAST_PX = 1e-3
# Distances between the pixels whose motion is correlated, px of a grid of 256 x 160.
COHERENCE_DISTANCES_PX = (4, 8, 16, 32)
# Parts of 180 degrees in a histogram of directions; the first is centred on the horizontal.
DIRECTION_PARTS = 12

# A fraction of fewer known pixels than this says nothing: specks of 10 px are not seen, and a mask is no surer there.
LEAST_FRACTION = 0.01
PLACEMENT_METRICS = ("coverage", "leak", "ap", "static_mean_px", "static_largest_px", "mean_px")

BASELINES = (
    "uniform",
    "random",
    *(f"image gradient, blur {sigma:g} px" if sigma else "image gradient" for sigma in GRADIENT_SIGMAS_PX),
)


def moving_mask(mean_px: Tensor) -> Tensor:
    """Return where mean |F| (1, H, W) px is above max(0.25 px of a 256 x 160 grid, half of its 95th percentile)."""
    least_px = MOVING_PX / default_grid_scale(*mean_px.shape[-2:])
    return mean_px > max(least_px, 0.5 * float(mean_px.flatten().float().quantile(0.95)))


def average_precision(scores: Tensor, mask: Tensor) -> float:
    """Return the average precision of `scores` for finding the pixels of `mask`, of the same shape, exactly.

    AP = sum_n (R_n - R_{n-1}) P_n over the distinct scores from the highest down, P_n and R_n being precision and
    recall of the pixels that score at least the n-th. Equal scores are one step. ValueError for NaN.
    """
    if bool(scores.isnan().any()):
        raise ValueError("scores: expected numbers, got NaN")
    scores, order = scores.detach().flatten().double().cpu().sort(descending=True)
    hits = mask.flatten().cpu()[order].double().cumsum(0)  # (N,) true ones among the first n
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])]).nonzero().flatten()  # end of each tie
    found = hits[last]
    recall_step = torch.diff(found, prepend=found.new_zeros(1)) / hits[-1]
    return float((recall_step * found / (last + 1)).sum())


def chance_corrected_ap(scores: Tensor, mask: Tensor) -> float | None:
    """Return (AP - p) / (1 - p), p the mask's fraction: 0 for a constant map, 1 at best; None where p is 0 or 1."""
    fraction = float(mask.double().mean()) if mask.numel() else 0.0
    if not 0 < fraction < 1:
        return None
    return (average_precision(scores, mask) - fraction) / (1 - fraction)


def image_gradient(image: Tensor, sigma_px: float) -> Tensor:
    """Return |grad| of the grey image (3, H, W) by central differences, blurred by a Gaussian (0: not): (1, H, W)."""
    size = torch.stack(torch.gradient(image.float().mean(0))).square().sum(0).sqrt()  # (H, W)
    if sigma_px == 0:
        return size[None]
    blurred = cv2.GaussianBlur(size.cpu().numpy(), (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
    return torch.from_numpy(blurred)[None]


def baseline_maps(image: Tensor, seed: int, name: str) -> dict[str, Tensor]:
    """Return maps (1, H, W) that a model must beat at finding motion; the random one depends on seed and name."""
    size = (1, *image.shape[-2:])
    noise = torch.from_numpy(np.random.default_rng([seed, zlib.crc32(name.encode())]).random(size))
    gradients = [image_gradient(image, px / default_grid_scale(*size[1:])) for px in GRADIENT_SIGMAS_PX]
    return dict(zip(BASELINES, [torch.ones(size), noise, *gradients], strict=True))


def weighted_mean(maps: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over the pixels of maps (..., H, W), weighted by (1, H, W); 0 where nothing has weight."""
    return (maps * weight).sum((-2, -1)) / weight.sum().clamp(min=1e-6)


def bin_ratios(predicted_px: Tensor, real_px: Tensor) -> tuple[float, Tensor] | None:
    """Split predicted over real amplitudes (K,) into geometric mean and ratios over it.

    Ratios are NaN where real is under 0.001 px. Predictions count as at least 0.001 px. None where no bin moves.
    """
    moves = real_px >= LEAST_PX
    if not bool(moves.any()):
        return None
    logs = (predicted_px.clamp(min=LEAST_PX) / real_px).log()
    mean = logs[moves].mean()
    return float(mean.exp()), torch.where(moves, (logs - mean).exp(), torch.nan)


def mean_fold_error(ratios: Iterable[float]) -> float | None:
    """Return the geometric mean of max(r, 1 / r); None of nothing. NaN is left out."""
    logs = [abs(math.log(ratio)) for ratio in ratios if not math.isnan(ratio)]
    return math.exp(sum(logs) / len(logs)) if logs else None


def mean_motion(spectrum: Tensor) -> Tensor:
    """Return mean |F_t| over the frames of one period, (..., 1, H, W) px; of a difference it is the end-point error."""
    return mean_displacement(spectrum, num_samples=NUM_FRAMES)


def normalised_gradient(spectrum: Tensor) -> float | None:
    """Return mean |grad F| / mean |F| over pixels and 30 frames, 1 / px; None where nothing moves."""
    flow = spectrum_to_flow(spectrum, torch.arange(1, 31) / 30)  # (N, 2, H, W)
    moved_px = float(magnitude(flow).mean())
    return float(squared_gradient(flow).sqrt().mean()) / moved_px if moved_px >= LEAST_PX else None


def coherence(spectrum: Tensor, weight: Tensor) -> dict[int, float | None]:
    """Return {distance: mean correlation over time of the motion of two pixels that far apart}.

    The correlation is sum_t F_t(p).F_t(q) / sqrt(sum_t |F_t(p)|^2 sum_t |F_t(q)|^2) over the frames of one period, F
    without its mean over time, of a spectrum (K, 4, H, W) px. Pairs lie along rows or columns and count by the product
    of `weight` (1, H, W), 0 outside of what moves. Distances: px of a grid of 256 x 160; None where no pair has weight.
    """
    flow = spectrum_to_flow(spectrum, torch.arange(1, NUM_FRAMES + 1) / NUM_FRAMES)  # (T, 2, H, W)
    flow = flow - flow.mean(0)
    flow = flow / flow.square().sum((0, 1)).sqrt().clamp(min=1e-9)
    scale, found = default_grid_scale(*flow.shape[-2:]), {}
    for distance in COHERENCE_DISTANCES_PX:
        step, total, pairs = max(1, round(distance / scale)), 0.0, 0.0
        for axis in (-2, -1):
            count = flow.shape[axis] - step
            if count < 1:
                continue
            ours, theirs = (flow.narrow(axis, start, count) for start in (0, step))  # (T, 2, h, w)
            both = weight[0].narrow(axis, 0, count) * weight[0].narrow(axis, step, count)  # (h, w)
            total += float(((ours * theirs).sum((0, 1)) * both).sum())
            pairs += float(both.sum())
        found[distance] = total / pairs if pairs > 0 else None
    return found


def direction_histogram(spectrum: Tensor, weight: Tensor) -> Tensor | None:
    """Return the fractions (12,) of motion along axes of 0, 15 ... 165 degrees, each within 7.5 degrees.

    A pixel's axis, from right to down, is the principal one of its displacements (K, 4, H, W) px of a period. It counts
    by their deviation times `weight` (1, H, W). None where nothing moves.
    """
    flow = spectrum_to_flow(spectrum, torch.arange(1, NUM_FRAMES + 1) / NUM_FRAMES)  # (T, 2, H, W)
    dx, dy = (flow - flow.mean(0)).unbind(1)  # (T, H, W)
    across, down, both = dx.square().mean(0), dy.square().mean(0), (dx * dy).mean(0)  # (H, W)
    angle = torch.atan2(2 * both, across - down) / 2  # (H, W) in (-pi/2, pi/2]
    part = (angle / (math.pi / DIRECTION_PARTS)).round().long() % DIRECTION_PARTS
    amount = ((across + down).sqrt() * weight[0]).flatten().double()
    total = float(amount.sum())
    return torch.bincount(part.flatten(), amount, minlength=DIRECTION_PARTS) / total if total > 0 else None  # (12,)


def direction_distance(one: Tensor | None, other: Tensor | None) -> float | None:
    """Return the total variation between two direction histograms, 0 to 1; None without both."""
    return None if one is None or other is None else float((one - other).abs().sum()) / 2


def spectral_slope(amplitudes_px: Tensor) -> float | None:
    """Return the slope of log amplitude (K,) over log frequency, of bins k > 0 that move; None under two."""
    numbers = [k for k in range(1, len(amplitudes_px)) if float(amplitudes_px[k]) >= LEAST_PX]
    if len(numbers) < 2:
        return None
    return float(np.polyfit(np.log(numbers), np.log(amplitudes_px[numbers].double().numpy()), 1)[0])


def diversity(spectra: Tensor) -> float | None:
    """Return mean |F_a - F_b| over the pairs of samples (M, K, 4, H, W), over their mean |F|; None without a pair."""
    moved_px = float(torch.stack([mean_motion(one).mean() for one in spectra]).mean())
    apart = [float(mean_motion(spectra[a] - spectra[b]).mean()) for a in range(len(spectra)) for b in range(a)]
    return sum(apart) / len(apart) / moved_px if apart and moved_px >= LEAST_PX else None


def placement_metrics(displacement_px: Tensor, movable: Tensor, static: Tensor) -> dict[str, float | None]:
    """Compare a photograph's mean displacement with booleans (1, H, W) of what can move and what cannot in it.

    `displacement_px` (1, h, w) is mean |F_t| in its own px. "coverage" and "leak" are the fractions of what can and
    cannot move that move by more than 0.25 px of a grid of 256 x 160, "ap" the chance-corrected average precision, the
    others displacements, px of that grid. None for what is taken over less than 1 % of the known pixels.
    """
    displacement_px = displacement_px.float() * default_grid_scale(*displacement_px.shape[-2:])
    displacement_px = resize_maps(displacement_px, tuple(movable.shape[-2:]))  # (1, H, W)
    there, elsewhere = displacement_px[movable], displacement_px[static]
    num_known = len(there) + len(elsewhere)
    least = max(1.0, LEAST_FRACTION * num_known)
    can_move, can_rest = len(there) >= least, len(elsewhere) >= least
    truth = torch.arange(num_known) < len(there)
    return {
        "coverage": float((there > MOVING_PX).float().mean()) if can_move else None,
        "leak": float((elsewhere > MOVING_PX).float().mean()) if can_rest else None,
        "ap": chance_corrected_ap(torch.cat([there, elsewhere]), truth) if can_move and can_rest else None,
        "static_mean_px": float(elsewhere.mean()) if can_rest else None,
        "static_largest_px": float(elsewhere.max()) if can_rest else None,
        "mean_px": float(displacement_px.mean()),
    }


def mean_over_sources(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Average each placement metric over the photographs of a source, then over sources; None of nothing."""
    return {name: mean_by_source(rows, name) for name in PLACEMENT_METRICS}
