"""How far each place of an image moves on average: samples scaled to it, and the head of earlier checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motion.flow import default_grid_scale, resize_maps
from motion.spectrum import mean_displacement

# px of the image for one number of the map of a `DisplacementHead`.
STRIDE = 8
# Networks whose mean is taken, and the channels of each.
MEMBERS, WIDTH = 4, 32
# Displacements are compared as log(m / q + 0.1), q the 95th percentile of the image: which places move more is learned
# from a calm clip as well as from a windy one, and a tenth of what moves most is as good as static.
QUANTILE, STATIC_FRACTION = 0.95, 0.1
# Strength and log odds are weighted means over places, by (m / q + 0.1) to this power.
STRENGTH_POWER = 3.0
# Below the first fraction of q a place is static, above the second it moves as predicted.
STATIC_BELOW, MOVES_ABOVE = 0.15, 0.3
# Below the first probability that anything moves the whole image is static, above the second it moves in full.
UNLIKELY, LIKELY = 0.1, 0.3
# Edges of the map are drawn to those of the image: radius, px, and the variance of colour that counts as an edge.
EDGE_RADIUS_PX, EDGE_VARIANCE = 8, 1e-3
# What is nearer than this swings together, px of a grid of 256 x 160: standard deviation of the Gaussian over a sample.
COHERENCE_PX = 2.0
# Of stems, down and across: they sway as wholes, and beside each other.
STEM_COHERENCE_PX = (20.0, 4.0)
# Of networks without attention across places, which bend stems like worms.
UNATTENDED_COHERENCE_PX = 12.0
# A bin of a sample that is all but noise is made at most this many times as strong again.
MOST_COHERENCE_GAIN = 20.0
# A sample is made at most this many times as strong at a pixel, lest what it leaves still turns into noise.
MOST_GAIN = 100.0


def relative_displacement(displacement: Tensor, strength: Tensor) -> Tensor:
    """Return log(m / q + 0.1) of mean displacements m (B, 1, h, w) px and strengths q (B,) px."""
    return (displacement / strength.view(-1, 1, 1, 1) + STATIC_FRACTION).log()


class DisplacementHead(nn.Module):
    """Predict mean |F_t| over a period: where an image moves, how strongly, and whether at all.

    Ours, of earlier checkpoints; a `models.placement.PlacementHead` has taken its place. Four small networks read image
    features, maps of `feature_channels`, at one number for 8 x 8 px and compare each place with the mean of the image.
    """

    def __init__(self, feature_channels: Sequence[int]) -> None:
        super().__init__()
        width, groups = MEMBERS * WIDTH, {"groups": MEMBERS}
        self.feature_norms = nn.ModuleList(nn.GroupNorm(1, channels) for channels in feature_channels)
        self.read = nn.Conv2d(sum(feature_channels), width, 1)
        self.context = nn.Conv2d(width, width, 1, **groups)
        self.norm_fine, self.norm_out = nn.GroupNorm(4 * MEMBERS, width), nn.GroupNorm(4 * MEMBERS, width)
        self.coarse = nn.Conv2d(width, width, 3, padding=1, **groups)
        self.fine = nn.Conv2d(width, width, 3, padding=1, **groups)
        self.relative = nn.Conv2d(width, MEMBERS, 1, **groups)
        self.strength = nn.Conv2d(width, 2 * MEMBERS, 1, **groups)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what each network predicts of features (B, c, h', w') of any resolutions, as maps of `size` (h, w).

        These are log(m / q + 0.1) (B, MEMBERS, h, w), log of q in px of the image (B, MEMBERS), and the log odds that
        anything moves (B, MEMBERS).
        """
        maps = []
        for norm, found in zip(self.feature_norms, features, strict=True):
            found = found.float()
            found = found.sign() * found.abs().sqrt()  # few features are large
            found = F.adaptive_avg_pool2d(found, size) if found.shape[-1] > size[1] else resize_maps(found, size)
            maps.append(norm(found.to(norm.weight.dtype)))
        hidden = self.read(torch.cat(maps, dim=1))  # (B, W, h, w)
        hidden = F.silu(self.norm_fine(hidden + self.context(hidden.mean((2, 3), keepdim=True))))
        coarse = F.silu(self.coarse(F.avg_pool2d(hidden, 2, ceil_mode=True)))
        hidden = hidden + F.interpolate(coarse, size=size, mode="bilinear")
        hidden = F.silu(self.norm_out(self.fine(hidden)))
        relative = self.relative(hidden).float()  # (B, MEMBERS, h, w)
        # Read where the image moves most: a flame is a hundredth of it.
        weight = (STRENGTH_POWER * relative).flatten(2).softmax(-1)  # (B, MEMBERS, h w)
        found = self.strength(hidden).float().unflatten(1, (MEMBERS, 2)).flatten(3)  # (B, MEMBERS, 2, h w)
        strength, moves = (found * weight[:, :, None]).sum(-1).unbind(-1)  # (B, MEMBERS) each
        return relative, strength, moves


def expected_displacement(relative: Tensor, log_strength: Tensor, log_odds: Tensor) -> Tensor:
    """Return the mean displacement (B, 1, h, w) px that the networks of a `DisplacementHead` agree on."""
    fraction = (relative.mean(1, keepdim=True).exp() - STATIC_FRACTION).clamp(min=0)  # (B, 1, h, w)
    fraction = fraction * ((fraction - STATIC_BELOW) / (MOVES_ABOVE - STATIC_BELOW)).clamp(0, 1)
    whether = ((log_odds.mean(1).sigmoid() - UNLIKELY) / (LIKELY - UNLIKELY)).clamp(0, 1)  # (B,)
    return fraction * (whether * log_strength.mean(1).exp()).view(-1, 1, 1, 1)


def guided_filter(
    guide: Tensor,  # (B, 3, H, W) I, in [0, 1]
    maps: Tensor,  # (B, 1, H, W) p
    radius_px: int = EDGE_RADIUS_PX,  # windows have 2 r + 1 px a side; borders are continued
    variance: float = EDGE_VARIANCE,  # of colour in a window below which the map is only smoothed
) -> Tensor:
    """Smooth maps along the edges of a colour image (He, Sun, Tang, "Guided Image Filtering", 2013, section 3.5).

    In each window the map is the affine function of the colours that fits it best, q = a . I + b with
    a = (Cov(I) + variance)^-1 Cov(I, p), b = mean(p) - a . mean(I); each pixel takes the mean over its windows.
    """
    mean_guide, mean_map = _box_mean(guide, radius_px), _box_mean(maps, radius_px)
    with_map = _box_mean(guide * maps, radius_px) - mean_guide * mean_map  # (B, 3, H, W)
    products = (guide[:, :, None] * guide[:, None]).flatten(1, 2)  # (B, 9, H, W)
    of_guide = _box_mean(products, radius_px).unflatten(1, (3, 3)) - mean_guide[:, :, None] * mean_guide[:, None]
    damped = of_guide.permute(0, 3, 4, 1, 2) + variance * torch.eye(3, device=guide.device)  # (B, H, W, 3, 3)
    slope = torch.linalg.solve(damped, with_map.permute(0, 2, 3, 1))  # (B, H, W, 3)
    slope = slope.permute(0, 3, 1, 2)  # (B, 3, H, W)
    offset = mean_map - (slope * mean_guide).sum(1, keepdim=True)
    return (_box_mean(slope, radius_px) * guide).sum(1, keepdim=True) + _box_mean(offset, radius_px)


def _box_mean(maps: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(F.pad(maps, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)


def smooth_spectrum(
    spectrum: Tensor,  # (B, K, 4, H, W) px
    expected_px: Tensor,  # (B, 1, H, W) px
    sigma_px: float | tuple[float, float] = COHERENCE_PX,  # of the Gaussian, or (down, across), px of 256 x 160
) -> Tensor:
    """Let what is near swing together: the mean of a sample around each pixel, by how far its surroundings move.

    Ours. A briefly trained denoiser gives directions and phases of its own to parts of one leaf, and stems bend like
    worms. Static surroundings have no weight (a normalised convolution). Each bin keeps its power over the image, for
    fast bins are less coherent than slow ones and would be lost. `rescale_to_displacement` sets how far each pixel
    moves afterwards, so nothing spreads over the edge of what moves.
    """
    down, across = sigma_px if isinstance(sigma_px, tuple) else (sigma_px, sigma_px)
    per_px = default_grid_scale(*spectrum.shape[-2:])
    sigma_px = (down / per_px, across / per_px)
    weight = expected_px.to(spectrum)[:, None]  # (B, 1, 1, H, W)
    weight = weight + 1e-3 * weight.amax((-2, -1), keepdim=True).clamp(min=1e-6)
    mean = gaussian_mean(spectrum * weight, sigma_px) / gaussian_mean(weight, sigma_px)

    def power(maps: Tensor) -> Tensor:
        return (maps.square().sum(2, keepdim=True) * weight).mean((-2, -1), keepdim=True)  # (B, K, 1, 1, 1)

    gain = (power(spectrum) / power(mean).clamp(min=1e-12)).sqrt()
    return mean * gain.clamp(max=MOST_COHERENCE_GAIN)


def smooth_by_parts(
    spectrum: Tensor,  # (B, K, 4, H, W) px
    expected_px: Tensor,  # (B, 1, H, W) px
    parts: dict[tuple[float, float], Tensor],  # {(sigma_px, lag_hz): fraction (B, 1, H, W) of a place it holds for}
    stems: Tensor | None = None,  # (B, 1, H, W) how far a place is of a stem, 0 to 1
    *,
    hertz: Tensor | None = None,  # (K,) of the bins; None: nothing lags
) -> Tensor:
    """Smooth a sample as `smooth_spectrum` does, over lengths that differ from place to place.

    A part's amplitude at f Hz is divided by sqrt(1 + (f / lag_hz)^2), a first-order lag. Stems take STEM_COHERENCE_PX,
    among themselves; what is of no part COHERENCE_PX without a lag.
    """
    rest = (torch.ones_like(expected_px) - sum(parts.values())).clamp(min=0)
    smooth = 0.0
    for (sigma_px, lag_hz), fraction in [*parts.items(), ((COHERENCE_PX, math.inf), rest)]:
        part = fraction[:, None] * smooth_spectrum(spectrum, expected_px, sigma_px)
        if hertz is not None:
            part = part * (1 + (hertz.to(part) / lag_hz) ** 2).rsqrt().view(-1, 1, 1, 1)
        smooth = smooth + part
    if stems is None or not bool(stems.any()):
        return smooth
    of_stems = smooth_spectrum(spectrum, expected_px * stems, STEM_COHERENCE_PX)
    return smooth + stems[:, None] * (of_stems - smooth)


def gaussian_mean(maps: Tensor, sigma_px: float | tuple[float, float]) -> Tensor:
    """Filter (..., H, W) by a Gaussian, of which only what lies in the image counts when weights are filtered too.

    `sigma_px` may be two, (down, across).
    """
    down, across = sigma_px if isinstance(sigma_px, tuple) else (sigma_px, sigma_px)

    def weights(size: int, sigma_px: float) -> Tensor:
        distance = torch.arange(size, device=maps.device)
        distance = (distance[:, None] - distance).abs()
        return (torch.exp(-0.5 * (distance / sigma_px) ** 2) * (distance <= math.ceil(3 * sigma_px))).to(maps)

    # On CPUs two matrix products take a sixth of the time of convolutions.
    return weights(maps.shape[-2], down) @ (maps @ weights(maps.shape[-1], across))


def rescale_to_displacement(spectrum: Tensor, expected_px: Tensor) -> Tensor:
    """Scale a spectrum (..., K, 4, H, W) px pixel by pixel to the mean displacement (..., 1, H, W) px expected there.

    The sample keeps its directions, phases and frequencies; the photograph says how far it moves. Samples of a briefly
    trained denoiser have blobs of strong and weak motion in what moves as one. Their average precision is 0.43 on
    held-out clips, with one factor for 8 x 8 px 0.48, pixel by pixel 0.52. What is nearly still is made at most 100
    times as strong.
    """
    found_px = mean_displacement(spectrum)  # (..., 1, H, W)
    gain = (expected_px.to(found_px) / found_px.clamp(min=1e-6)).clamp(max=MOST_GAIN)
    return spectrum * gain[..., None, :, :, :]
