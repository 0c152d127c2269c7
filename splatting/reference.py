"""The splatting operators in plain torch: the definition that the other backends are held against.

Any device, float16 to float64, gradients by autograd. `functional.py` checks the arguments and applies the weighting;
here the importance already is the exponent z.

A source has taps: pixels around its landing point, each with a spatial weight. What must not arrive (taps outside the
image, sources without a finite flow or importance) is sent to a spare row below the image, NaN included.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Standard deviation of the Gaussian footprint, px of the grid that is splatted.
DEFAULT_SIGMA_PX = 0.45
EWA_MIN_STRETCH, EWA_MAX_STRETCH = 0.5, 2.5  # limits of J's singular values
EWA_VARIANCE_FLOOR = 1e-4  # px^2
# A sum of weights below this cannot be divided by, twice in the backward pass, within float32.
MIN_TAP_WEIGHT = 1e-30
# Landing points are clamped this far outside the image: no tap gets back in, and no integer overflows.
MARGIN_PX = 4
# Keeps the singular values of J finite where neighbours fly apart; they are clamped far below it anyway.
MAX_DERIVATIVE = 1e6


class Landing(NamedTuple):
    """Where the sources land: the pixel up and left of p + flow(p), and the rest of the way."""

    column: Tensor  # (B, H, W) int64
    row: Tensor  # (B, H, W) int64
    fx: Tensor  # (B, H, W) in [0, 1], 1 where it rounds to it, differentiable
    fy: Tensor  # (B, H, W)
    valid: Tensor  # (B, H, W) bool: the flow and the importance are finite


Taps = list[tuple[Tensor, Tensor]]  # target index (B, N) int64 and spatial weight (B, N), one pair a tap


def splat(
    values: Tensor, flow: Tensor, importance: Tensor | None, sigma: float | Tensor | None, ewa: bool, normalise: bool
) -> tuple[Tensor, Tensor]:
    """Sum what arrives, and with `normalise` divide it by its weights; return (output, sum of the weights).

    The weights are bilinear, or those of a 2-D Gaussian where there is a sigma, times
    exp(importance - per-target maximum) where there is an importance.
    """
    dtype = summing_dtype(values, flow, importance)
    landing = _land(flow.to(dtype), importance)
    taps = _bilinear_taps(landing) if sigma is None else _gaussian_taps(landing, flow.to(dtype), sigma, ewa)
    if importance is not None:
        taps = _weigh_by_importance(taps, importance.to(dtype), landing.valid)
    total, weight = _accumulate(values.to(dtype), taps)
    if normalise:
        arrived = weight > 0
        total = torch.where(arrived, total / torch.where(arrived, weight, 1.0), 0.0)
    return total.to(values.dtype).contiguous(), weight_in(weight, values.dtype)


def summing_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return the dtype that sums are computed in: float64 where a tensor is, else float32."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def _land(flow: Tensor, importance: Tensor | None) -> Landing:
    height, width = flow.shape[-2:]
    valid = flow.isfinite().all(dim=1)  # (B, H, W)
    if importance is not None:
        valid = valid & importance[:, 0].isfinite()
    # Masked before any arithmetic: a NaN would come back in the backward pass as NaN times zero.
    dx, dy = torch.where(valid[:, None], flow, 0.0).unbind(1)
    x = (dx + torch.arange(width, device=flow.device)).clamp(-MARGIN_PX, width + MARGIN_PX)
    y = (dy + torch.arange(height, device=flow.device)[:, None]).clamp(-MARGIN_PX, height + MARGIN_PX)
    left, top = x.detach().floor(), y.detach().floor()
    return Landing(left.long(), top.long(), x - left, y - top, valid)


def _bilinear_taps(landing: Landing) -> Taps:
    across, down = (1 - landing.fx, landing.fx), (1 - landing.fy, landing.fy)
    return _make_taps(landing, (0, 1), lambda i, j: across[i] * down[j])


def _gaussian_taps(landing: Landing, flow: Tensor, sigma: float | Tensor, ewa: bool) -> Taps:
    """Make the 4 x 4 taps floor - 1 .. floor + 2 with the weights of a normalised Gaussian."""
    offsets = (-1, 0, 1, 2)
    sigma = torch.as_tensor(sigma, dtype=flow.dtype, device=flow.device).reshape(())
    dx = [offset - landing.fx for offset in offsets]
    dy = [offset - landing.fy for offset in offsets]
    if not ewa:
        # A round Gaussian is the product of two: 8 exponentials instead of 16.
        scale = 1 / (math.sqrt(2 * math.pi) * sigma)
        across = [scale * torch.exp(-0.5 * (d / sigma).square()) for d in dx]
        down = [scale * torch.exp(-0.5 * (d / sigma).square()) for d in dy]
        return _make_taps(landing, offsets, lambda i, j: across[i] * down[j])

    # S^-1 = [[a, c], [c, b]] from the two variances along the axes of J J^T
    stretch_1, stretch_2, cos, sin = _local_stretch(flow.detach(), landing.valid)
    variance_1 = (sigma * stretch_1).square() + EWA_VARIANCE_FLOOR
    variance_2 = (sigma * stretch_2).square() + EWA_VARIANCE_FLOOR
    mean, difference = 0.5 / variance_1 + 0.5 / variance_2, 0.5 / variance_1 - 0.5 / variance_2
    a, b, c = mean + difference * cos, mean - difference * cos, difference * sin
    scale = 1 / (2 * math.pi * (variance_1 * variance_2).sqrt())
    across, mixed = [-0.5 * a * d.square() for d in dx], [-c * d for d in dx]
    down = [-0.5 * b * d.square() for d in dy]
    return _make_taps(landing, offsets, lambda i, j: scale * torch.exp(across[i] + down[j] + mixed[i] * dy[j]))


def _make_taps(landing: Landing, offsets: tuple[int, ...], weight_at: Callable[[int, int], Tensor]) -> Taps:
    """Pair each tap's target index with its weight; what must not arrive goes to the spare row with weight 0.

    Taps inside the image whose weight is exactly 0 stay: at integer landing points they carry the gradient.
    """
    height, width = landing.fx.shape[-2:]
    spare = height * width + torch.arange(width, device=landing.fx.device)  # (W,)
    columns = [landing.column + offset for offset in offsets]
    columns_inside = [landing.valid & (column >= 0) & (column < width) for column in columns]
    taps = []
    for j, offset in enumerate(offsets):
        row = landing.row + offset
        row_inside, row_start = (row >= 0) & (row < height), row * width
        for i, column in enumerate(columns):
            weight = weight_at(i, j)
            arrives = columns_inside[i] & row_inside & ((weight >= MIN_TAP_WEIGHT) | (weight == 0))
            index = torch.where(arrives, row_start + column, spare)
            taps.append((index.flatten(1), torch.where(arrives, weight, 0.0).flatten(1)))  # (B, N)
    return taps


def _local_stretch(flow: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the clamped singular values s1 >= s2 of J = I + d flow / d p, and cos and sin, each (B, H, W), with

    J J^T = (s1^2 + s2^2)/2 I + (s1^2 - s2^2)/2 [[cos, sin], [sin, -cos]].
    """
    along_x, along_y = _derivative(flow, valid, -1), _derivative(flow, valid, -2)
    # J as the sum of a rotation scaled by q = |(e, h)| and a reflection scaled by r = |(f, g)|
    e, f = 1 + (along_x[:, 0] + along_y[:, 1]) / 2, (along_x[:, 0] - along_y[:, 1]) / 2
    g, h = (along_x[:, 1] + along_y[:, 0]) / 2, (along_x[:, 1] - along_y[:, 0]) / 2
    q, r = torch.hypot(e, h), torch.hypot(f, g)
    # Where q or r is 0 both singular values agree and the angle is of no account.
    e, h = e / torch.where(q > 0, q, 1.0), h / torch.where(q > 0, q, 1.0)
    f, g = f / torch.where(r > 0, r, 1.0), g / torch.where(r > 0, r, 1.0)
    stretch_1 = (q + r).clamp(EWA_MIN_STRETCH, EWA_MAX_STRETCH)
    stretch_2 = (q - r).abs().clamp(EWA_MIN_STRETCH, EWA_MAX_STRETCH)
    return stretch_1, stretch_2, e * f - g * h, e * g + f * h


def _derivative(flow: Tensor, valid: Tensor, dim: int) -> Tensor:
    """Differentiate flow (B, 2, H, W): central, one-sided at borders, 0 beside a source that is not valid."""
    size = flow.shape[dim]
    here = torch.arange(size, device=flow.device)
    after, before = (here + 1).clamp(max=size - 1), (here - 1).clamp(min=0)
    flow = torch.where(valid[:, None], flow, 0.0)
    difference = flow.index_select(dim, after) - flow.index_select(dim, before)
    distance = (after - before).clamp(min=1)
    known = valid.index_select(dim, after) & valid.index_select(dim, before)
    slope = difference / (distance if dim == -1 else distance[:, None])
    return torch.where(known[:, None], slope, 0.0).clamp(-MAX_DERIVATIVE, MAX_DERIVATIVE)


def _weigh_by_importance(taps: Taps, importance: Tensor, valid: Tensor) -> Taps:
    _, height, width = valid.shape
    z = torch.where(valid, importance[:, 0], 0.0).flatten(1)  # (B, N)
    largest = z.new_full((z.shape[0], (height + 1) * width), -math.inf)
    for index, weight in taps:
        # Detached, as no_grad would not end forward derivatives.
        largest.scatter_reduce_(1, index, torch.where(weight.detach() > 0, z.detach(), -math.inf), "amax")
    weighed = []
    for index, weight in taps:
        exponent = z - largest.gather(1, index)
        # A tap of weight 0 is not in the maximum and may lie above it, where 0 times infinity waits. Not by clamp:
        # at its limit, where each target's largest source lies, its gradient is 1 or 0 by the version of torch.
        exponent = torch.where(exponent > 0, 0.0, exponent)
        weighed.append((index, weight * torch.exp(exponent)))
    return weighed


def _accumulate(values: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = values.shape
    flat = values.flatten(2)  # (B, C, N)
    weighted = flat * taps[0][1][:, None]  # (B, C, N)
    # New tensors of what depends on all arguments: vmap writes batches into no others.
    total = weighted.new_zeros(batch, channels, (height + 1) * width)
    total_weight = taps[0][1].new_zeros(batch, (height + 1) * width)
    # Measured: scatter_add_ along the last axis takes a quarter of the time of index_add_ on channels-last rows.
    for number, (index, weight) in enumerate(taps):
        if weighted.requires_grad:
            weighted = flat * weight[:, None]
        elif number > 0:
            # Without a graph one buffer serves all taps: at large sizes its allocation would cost as much as the sum.
            # Not by `out`, which has no forward derivative.
            weighted = weighted.copy_(flat).mul_(weight[:, None])
        total.scatter_add_(2, index[:, None].expand(-1, channels, -1), weighted)
        total_weight.scatter_add_(1, index, weight)
    total = total.view(batch, channels, height + 1, width)[:, :, :height]
    return total, total_weight.view(batch, 1, height + 1, width)[:, :, :height]


def weight_in(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a weight so that no positive one becomes 0, which stands for "nothing arrived"."""
    if torch.finfo(dtype).bits < torch.finfo(weight.dtype).bits:
        weight = torch.where(weight > 0, weight.clamp(min=torch.finfo(dtype).tiny), 0.0)
    return weight.to(dtype).contiguous()
