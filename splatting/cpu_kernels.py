"""The loops of `cpu.py`, compiled by Numba: splat by bands of target rows, and the way back.

Each kernel takes the arrays of a whole batch and a list of tasks (item, first row, last row + 1), so that threads which
share out the tasks never write the same element, and every sum has one order whatever their number.

S is the summing type (float32 or float64), P the padding, px, that keeps taps outside the picture inside the buffers,
T the number of taps of a source (2 x 2 bilinear, 4 x 4 Gaussian). Arrays of both layouts come as (B, C, H, W) views.
All is in one file: Numba's cache notices a change of the file that a kernel is in, not of what it imports.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from splatting.reference import (
    EWA_MAX_STRETCH,
    EWA_MIN_STRETCH,
    EWA_VARIANCE_FLOOR,
    MARGIN_PX,
    MAX_DERIVATIVE,
    MIN_TAP_WEIGHT,
)

# Sources of one row that are handled together: long enough runs of a channel for the memory (at 32 the transposition
# takes twice the time), and their values, transposed, stay in the L1 and L2 cache.
TILE = 256
# Channels of the buffers are rounded up to a multiple of this: no scalar remainder after the vectors (measured: 12 %).
LANES = 8
# Row of a source that arrives nowhere.
GONE = -(1 << 30)

# Sums may be reordered so that they run on vectors; NaN and infinity keep their meaning.
_OPTIONS = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}
_EXACT_OPTIONS = {**_OPTIONS, "fastmath": {"contract"}}
# Repeated here so that a change of theirs is one of this file, and Numba's cache notices.
assert (EWA_MIN_STRETCH, EWA_MAX_STRETCH, EWA_VARIANCE_FLOOR) == (0.5, 2.5, 1e-4)
assert (MARGIN_PX, MAX_DERIVATIVE, MIN_TAP_WEIGHT) == (4, 1e6, 1e-30)
# ln of the weight below which a tap does not exist
_LOG_MIN_TAP_WEIGHT = math.log(MIN_TAP_WEIGHT)


# Landing -------------------------------------------------------------------------------------------------------


@njit(**_OPTIONS)
def _is_valid(flow, z, b, y, x):
    known = np.isfinite(flow[b, 0, y, x]) and np.isfinite(flow[b, 1, y, x])
    return known and (z.shape[0] == 0 or np.isfinite(z[b, 0, y, x]))


@njit(**_OPTIONS)
def land(tasks, flow, z, low, high, column, row, fx, fy, top, bottom):
    """Find where the sources land.

    Args:
        flow: (B, 2, H, W) S.
        z: (B, 1, H, W) S, or (0, 1, 1, 1) without importance.
        low, high: offsets of the first and the last tap.
        column, row: (B, H, W) int32, written: the pixel up and left of the landing point; row GONE where no tap is
            inside the picture.
        fx, fy: (B, H, W) S in [0, 1], written: the rest of the way (1 where it rounds to it).
        top, bottom: (B, H, tiles) int32, written: smallest and largest row of each tile's sources that arrive.
    """
    height, width = flow.shape[2:]
    number = flow.dtype.type
    for t in range(tasks.shape[0]):
        b = tasks[t, 0]
        for y in range(tasks[t, 1], tasks[t, 2]):
            for tile in range(top.shape[2]):
                x0 = tile * TILE
                x1 = min(width, x0 + TILE)
                first, last = np.int32(height + MARGIN_PX), np.int32(GONE)
                dx, dy = flow[b, 0, y, x0:x1], flow[b, 1, y, x0:x1]
                importance = z[b, 0, y, x0:x1] if z.shape[0] > 0 else dx
                columns, rows = column[b, y, x0:x1], row[b, y, x0:x1]
                right, below = fx[b, y, x0:x1], fy[b, y, x0:x1]
                for j in range(x1 - x0):
                    # Selections in place of branches: so the loop runs on vectors.
                    valid = np.isfinite(dx[j]) & np.isfinite(dy[j]) & np.isfinite(importance[j])
                    across = dx[j] + number(x0 + j) if valid else number(0)
                    down = dy[j] + number(y) if valid else number(0)
                    across = min(max(across, number(-MARGIN_PX)), number(width + MARGIN_PX))
                    down = min(max(down, number(-MARGIN_PX)), number(height + MARGIN_PX))
                    left, above = np.floor(across), np.floor(down)
                    right[j], below[j] = across - left, down - above
                    inside = (left + high >= 0) & (left + low < width) & (above + high >= 0) & (above + low < height)
                    columns[j] = np.int32(left)
                    landed = np.int32(above) if valid & inside else np.int32(GONE)
                    rows[j] = landed
                    first, last = min(first, landed if landed > GONE else first), max(last, landed)
                top[b, y, tile], bottom[b, y, tile] = first, last


@njit(**_EXACT_OPTIONS)
def make_conics(tasks, flow, z, sigma, ewa, conic):
    """Write each source's Gaussian as conic (4, B, H, W) S: a, b, c, s of s exp(-(a dx^2 + b dy^2)/2 - c dx dy).

    [[a, c], [c, b]] is the inverse of sigma^2 I, or with ewa of J (sigma^2 I) J^T + EWA_VARIANCE_FLOOR I.
    """
    width = flow.shape[3]
    number = flow.dtype.type
    one, half, two_pi = number(1), number(0.5), number(2 * math.pi)
    sigma, floor = number(sigma), number(EWA_VARIANCE_FLOOR)
    least, most = number(EWA_MIN_STRETCH), number(EWA_MAX_STRETCH)
    nothing = number(1e-18)  # far from where its inverse overflows
    slopes = np.zeros((4, width), flow.dtype)
    for t in range(tasks.shape[0]):
        item = tasks[t, 0]
        for y in range(tasks[t, 1], tasks[t, 2]):
            a, b, c, s = conic[0, item, y], conic[1, item, y], conic[2, item, y], conic[3, item, y]
            if not ewa:
                a[:] = b[:] = one / (sigma * sigma)
                c[:] = 0
                s[:] = one / (two_pi * sigma * sigma)
                continue
            _differentiate(flow, z, item, y, slopes)
            for x in range(width):
                xx, yx, xy, yy = slopes[0, x], slopes[1, x], slopes[2, x], slopes[3, x]
                # J as the sum of a rotation scaled by |(e, h)| and a reflection scaled by |(f, g)|
                e, f = one + (xx + yy) * half, (xx - yy) * half
                g, h = (yx + xy) * half, (yx - xy) * half
                rotation, reflection = math.sqrt(e * e + h * h), math.sqrt(f * f + g * g)
                product = rotation * reflection
                # Where one of them vanishes both singular values agree, and the angle is of no account.
                inverse = one / product if product > nothing else number(0)
                cos, sin = (e * f - g * h) * inverse, (e * g + f * h) * inverse
                variance_1 = sigma * min(max(rotation + reflection, least), most)
                variance_2 = sigma * min(max(abs(rotation - reflection), least), most)
                variance_1, variance_2 = variance_1 * variance_1 + floor, variance_2 * variance_2 + floor
                mean = half / variance_1 + half / variance_2
                difference = half / variance_1 - half / variance_2
                a[x], b[x], c[x] = mean + difference * cos, mean - difference * cos, difference * sin
                s[x] = one / (two_pi * math.sqrt(variance_1 * variance_2))


@njit(**_OPTIONS)
def _differentiate(flow, z, b, y, slopes):
    """Write d dx/dx, d dy/dx, d dx/dy, d dy/dy of a row as slopes (4, W): central, one-sided at borders."""
    height, width = flow.shape[2:]
    limit = flow.dtype.type(MAX_DERIVATIVE)
    above, below = max(y - 1, 0), min(y + 1, height - 1)
    for x in range(width):
        before, after = max(x - 1, 0), min(x + 1, width - 1)
        for channel in range(2):
            across = flow[b, channel, y, after] - flow[b, channel, y, before]
            down = flow[b, channel, below, x] - flow[b, channel, above, x]
            slopes[channel, x] = min(max(across / max(after - before, 1), -limit), limit)
            slopes[2 + channel, x] = min(max(down / max(below - above, 1), -limit), limit)
        # Nothing is known beside a source that is not valid.
        if not (_is_valid(flow, z, b, y, before) and _is_valid(flow, z, b, y, after)):
            slopes[0, x] = slopes[1, x] = 0
        if not (_is_valid(flow, z, b, above, x) and _is_valid(flow, z, b, below, x)):
            slopes[2, x] = slopes[3, x] = 0


# Taps ----------------------------------------------------------------------------------------------------------


@njit(**_OPTIONS)
def _bilinear_weights(fx, fy, b, y, x0, n, taps):
    """Write the weights of n sources from (y, x0) on as taps (4, n): left, right, then the row below."""
    one, least = fx.dtype.type(1), fx.dtype.type(MIN_TAP_WEIGHT)
    across, down = fx[b, y, x0 : x0 + n], fy[b, y, x0 : x0 + n]
    for k in range(4):
        tap = taps[k]
        for j in range(n):
            weight = (across[j] if k % 2 else one - across[j]) * (down[j] if k > 1 else one - down[j])
            tap[j] = weight if weight >= least else 0


@njit(**_OPTIONS)
def _gaussian_exponents(fx, fy, conic, b, y, x0, n, taps):
    """Write ln(weight / scale) of n sources from (y, x0) on as taps (16, n), row by row; -inf where no tap is."""
    number = fx.dtype.type
    half, nothing = number(-0.5), number(-np.inf)
    right, below = fx[b, y, x0 : x0 + n], fy[b, y, x0 : x0 + n]
    xx, yy, xy = conic[0, b, y, x0 : x0 + n], conic[1, b, y, x0 : x0 + n], conic[2, b, y, x0 : x0 + n]
    scale = conic[3, b, y, x0 : x0 + n]
    least = np.empty(n, fx.dtype)
    for j in range(n):
        least[j] = _LOG_MIN_TAP_WEIGHT - math.log(scale[j])
    for k in range(16):
        tap = taps[k]
        offset_x, offset_y = number(k % 4 - 1), number(k // 4 - 1)
        for j in range(n):
            across, down = offset_x - right[j], offset_y - below[j]
            exponent = half * (xx[j] * across * across + yy[j] * down * down) - xy[j] * across * down
            tap[j] = exponent if exponent >= least[j] else nothing


@njit(**_OPTIONS)
def _footprint(fx, fy, conic, b, y, x0, n, taps):
    """Write the footprints of n sources from (y, x0) on as taps (T, n): bilinear weights, or Gaussian exponents."""
    if conic.shape[0] > 0:
        _gaussian_exponents(fx, fy, conic, b, y, x0, n, taps)
    else:
        _bilinear_weights(fx, fy, b, y, x0, n, taps)


@njit(**_EXACT_OPTIONS)
def _exponentiate(taps, n, single, power, two_to_the_power):
    """Replace taps (T, n), at most 0 or nearly, by their exponentials.

    In float32 by a polynomial, exact to the last bits, that runs on vectors: the system's function, called number by
    number, took a third of the whole Gaussian splat. exp(x) = 2^k exp(r), |r| <= ln 2 / 2, r by its Taylor series.

    Args:
        single: S is float32.
        power, two_to_the_power: (TILE,) int32 and the same memory as float32.
    """
    for t in range(taps.shape[0]):
        tap = taps[t]
        if not single:
            for j in range(n):
                tap[j] = math.exp(tap[j])
            continue
        for j in range(n):
            # Below -87 the result would be a denormal number: 0.
            x = max(tap[j], np.float32(-87))
            # Truncation of a number below 0, minus a half: the nearest integer.
            k = np.int32(x * np.float32(1.44269504) - np.float32(0.5))
            # ln 2 in two parts, of which k times the first is exact
            r = (x - np.float32(k) * np.float32(0.693359375)) + np.float32(k) * np.float32(2.12194440e-4)
            p = np.float32(1 / 5040) * r + np.float32(1 / 720)
            p = p * r + np.float32(1 / 120)
            p = p * r + np.float32(1 / 24)
            p = p * r + np.float32(1 / 6)
            p = p * r + np.float32(0.5)
            p = (p * r + np.float32(1)) * r + np.float32(1)
            power[j] = (k + np.int32(127)) << np.int32(23)
            tap[j] = p if tap[j] >= np.float32(-87) else np.float32(0)
        for j in range(n):
            tap[j] *= two_to_the_power[j]


# Forward -------------------------------------------------------------------------------------------------------


@njit(**_OPTIONS)
def splat_bands(tasks, values, z, landing, conic, limits, channels, normalise, tall, out, weight, largest):
    """Splat the bands of target rows that the tasks name.

    Args:
        values: (B, C, H, W) S, the channels [channels[0], channels[1]) of it are splatted.
        z: (B, 1, H, W) S, or (0, 1, 1, 1) without importance.
        landing, limits: column, row, fx, fy and top, bottom, as `land` wrote them.
        conic: (4, B, H, W) S as `make_conics` wrote it, or (0, 1, 1, 1) for the bilinear footprint.
        normalise: divide by the sum of the weights.
        tall: rows of the tallest band.
        out: (B, C, H, W) S, written.
        weight, largest: (B, 1, H, W) S, written; largest is (0, 1, 1, 1) without importance.
    """
    gaussian, has_importance, single = conic.shape[0] > 0, z.shape[0] > 0, values.itemsize == 4
    column, row, fx, fy = landing
    top, bottom = limits
    side, pad = (4, 3) if gaussian else (2, 1)
    low, high = (-1, 2) if gaussian else (0, 1)
    width, count = values.shape[3], channels[1] - channels[0]
    # One more channel holds the weight.
    padded = (count + LANES) // LANES * LANES
    total = np.empty((tall + 2 * pad, width + 2 * pad, padded), values.dtype)
    peak = np.empty((tall + 2 * pad, width + 2 * pad), values.dtype)
    tile = np.ones((TILE, padded), values.dtype)
    taps = np.empty((side * side, TILE), values.dtype)
    power = np.empty(TILE, np.int32)
    for t in range(tasks.shape[0]):
        b, first, last = tasks[t, 0], tasks[t, 1], tasks[t, 2]
        total[: last - first + 2 * pad] = 0
        peak[: last - first + 2 * pad] = -np.inf
        for find_peaks in range(1 if has_importance else 0, -1, -1):
            for y in range(top.shape[1]):
                for k in range(top.shape[2]):
                    if bottom[b, y, k] + high < first or top[b, y, k] + low >= last:
                        continue
                    x0, n = k * TILE, min(TILE, width - k * TILE)
                    _footprint(fx, fy, conic, b, y, x0, n, taps)
                    if find_peaks:
                        _raise_peak(column, row, b, y, x0, n, taps, z, first, last, side, pad, peak)
                        continue
                    if gaussian or has_importance:
                        _weigh(column, row, b, y, x0, n, z, conic, first, last, side, pad, peak, single, power, taps)
                    _load(values, b, y, x0, n, channels[0], count, tile)
                    _add(column, row, b, y, x0, n, first, last, side, pad, taps, tile, total)
        _write(total, peak, b, first, last, pad, channels[0], count, normalise, out, weight, largest)


@njit(**_OPTIONS)
def _raise_peak(column, row, b, y, x0, n, taps, z, first, last, side, pad, peak):
    """Raise peak (rows + 2 P, W + 2 P) to the largest z of the sources whose taps touch it."""
    low = -(side // 2 - 1)
    # What does not arrive is a weight of 0, or an exponent of -inf.
    nothing = peak.dtype.type(-np.inf if side == 4 else 0)
    for j in range(n):
        x = x0 + j
        if row[b, y, x] + side // 2 < first or row[b, y, x] + low >= last:
            continue
        left, importance = column[b, y, x] + pad + low, z[b, 0, y, x]
        for ky in range(side):
            line = peak[row[b, y, x] - first + pad + low + ky, left : left + side]
            for kx in range(side):
                if taps[side * ky + kx, j] > nothing and importance > line[kx]:
                    line[kx] = importance


@njit(**_OPTIONS)
def _weigh(column, row, b, y, x0, n, z, conic, first, last, side, pad, peak, single, power, taps):
    """Turn taps (T, n) from footprints (bilinear weights, Gaussian exponents) into weights with the importance."""
    low, number = -(side // 2 - 1), taps.dtype.type
    has_importance = z.shape[0] > 0
    exponents = taps if side == 4 else np.zeros_like(taps)
    if has_importance:
        for j in range(n):
            x = x0 + j
            if row[b, y, x] + side // 2 < first or row[b, y, x] + low >= last:
                continue
            left, importance = column[b, y, x] + pad + low, z[b, 0, y, x]
            for ky in range(side):
                line = peak[row[b, y, x] - first + pad + low + ky, left : left + side]
                for kx in range(side):
                    # Where nothing arrives the difference is infinite, and the weight 0 anyway.
                    exponents[side * ky + kx, j] += min(importance - line[kx], number(0))
    _exponentiate(exponents, n, single, power, power.view(np.float32))
    for k in range(side * side):
        tap, factor = taps[k], conic[3, b, y, x0 : x0 + n] if side == 4 else exponents[k]
        for j in range(n):
            tap[j] *= factor[j]


@njit(**_OPTIONS)
def _load(values, b, y, x0, n, channel, count, tile):
    """Copy `count` channels of n pixels of (B, C, H, W) to tile (n, > count), channels last."""
    if values.strides[1] < values.strides[3]:
        for j in range(n):
            for c in range(count):
                tile[j, c] = values[b, channel + c, y, x0 + j]
    else:
        # Four channels at a time: their stores meet in one vector (measured: 12 % of a whole splat).
        whole = count // 4 * 4
        for c in range(0, whole, 4):
            line_0, line_1 = values[b, channel + c, y, x0 : x0 + n], values[b, channel + c + 1, y, x0 : x0 + n]
            line_2, line_3 = values[b, channel + c + 2, y, x0 : x0 + n], values[b, channel + c + 3, y, x0 : x0 + n]
            for j in range(n):
                pixel = tile[j, c : c + 4]
                pixel[0], pixel[1], pixel[2], pixel[3] = line_0[j], line_1[j], line_2[j], line_3[j]
        for c in range(whole, count):
            for j in range(n):
                tile[j, c] = values[b, channel + c, y, x0 + j]


@njit(**_OPTIONS)
def _add(column, row, b, y, x0, n, first, last, side, pad, taps, tile, total):
    """Add taps * tile to total (rows + 2 P, W + 2 P, channels)."""
    low = -(side // 2 - 1)
    for j in range(n):
        x = x0 + j
        if row[b, y, x] + side // 2 < first or row[b, y, x] + low >= last:
            continue
        source = tile[j]
        for ky in range(side):
            line = total[row[b, y, x] - first + pad + low + ky]
            # Two neighbours at a time: the source is read once for both.
            for kx in range(0, side, 2):
                w_left, w_right = taps[side * ky + kx, j], taps[side * ky + kx + 1, j]
                at = column[b, y, x] + pad + low + kx
                left, right = line[at], line[at + 1]
                if w_left != 0 and w_right != 0:
                    for c in range(source.shape[0]):
                        left[c] += w_left * source[c]
                        right[c] += w_right * source[c]
                elif w_left != 0 or w_right != 0:  # nothing arrives at the other, not even a NaN
                    w, only = (w_left, left) if w_left != 0 else (w_right, right)
                    for c in range(source.shape[0]):
                        only[c] += w * source[c]


@njit(**_OPTIONS)
def _write(total, peak, b, first, last, pad, channel, count, normalise, out, weight, largest):
    """Divide a band's sums by its weights and write them as out (B, C, H, W)."""
    width = out.shape[3]
    number = out.dtype.type
    scale = np.empty(TILE, out.dtype)
    for y in range(first, last):
        for x0 in range(0, width, TILE):
            n = min(TILE, width - x0)
            sums = total[y - first + pad, x0 + pad : x0 + pad + n]
            for j in range(n):
                w = sums[j, count]
                weight[b, 0, y, x0 + j] = w
                if largest.shape[0] > 0:
                    largest[b, 0, y, x0 + j] = peak[y - first + pad, x0 + pad + j]
                scale[j] = number(1) / w if w > 0 else number(0)
            if normalise:
                for j in range(n):
                    for c in range(count):
                        sums[j, c] *= scale[j]
            _store(sums, b, y, x0, n, channel, count, out)


@njit(**_OPTIONS)
def _store(tile, b, y, x0, n, channel, count, values):
    """Copy tile (n, > count) to `count` channels of n pixels of values (B, C, H, W)."""
    if values.strides[1] < values.strides[3]:
        for j in range(n):
            for c in range(count):
                values[b, channel + c, y, x0 + j] = tile[j, c]
    else:
        # Four channels at a time, as in `_load`
        whole = count // 4 * 4
        for c in range(0, whole, 4):
            line_0, line_1 = values[b, channel + c, y, x0 : x0 + n], values[b, channel + c + 1, y, x0 : x0 + n]
            line_2, line_3 = values[b, channel + c + 2, y, x0 : x0 + n], values[b, channel + c + 3, y, x0 : x0 + n]
            for j in range(n):
                pixel = tile[j, c : c + 4]
                line_0[j], line_1[j], line_2[j], line_3[j] = pixel[0], pixel[1], pixel[2], pixel[3]
        for c in range(whole, count):
            for j in range(n):
                values[b, channel + c, y, x0 + j] = tile[j, c]


# Backward ------------------------------------------------------------------------------------------------------


@njit(**_OPTIONS)
def weigh_gradients(tasks, grad_out, grad_weight, out, weight, normalise, grad_total, grad_mass):
    """Pull the gradients back through the division, to the sums of w v and of w.

    out = N / D:  dL/dN = G / D,  dL/dD = g - (G . out) / D;  where nothing arrives dL/dN = 0, dL/dD = g.

    Args:
        grad_out: (B, C, H, W) S, G.  weight: (B, 1, H, W) S, D.
        out: (B, C, H, W) S, or (0, 1, 1, 1): not normalised, or dL/dD is not wanted.
        grad_weight: (B, 1, H, W) S, g, or (0, 1, 1, 1) for none.
        grad_total: (B, H, W, C) S, written, dL/dN.  grad_mass: (B, H, W) S, written, dL/dD.
    """
    count, _, width = grad_out.shape[1:]
    number = grad_out.dtype.type
    upstream, mean = np.empty((TILE, count), grad_out.dtype), np.zeros((TILE, count), grad_out.dtype)
    for t in range(tasks.shape[0]):
        b = tasks[t, 0]
        for y in range(tasks[t, 1], tasks[t, 2]):
            for x0 in range(0, width, TILE):
                n = min(TILE, width - x0)
                _load(grad_out, b, y, x0, n, 0, count, upstream)
                if out.shape[0] > 0:
                    _load(out, b, y, x0, n, 0, count, mean)
                for j in range(n):
                    mass = grad_weight[b, 0, y, x0 + j] if grad_weight.shape[0] > 0 else number(0)
                    w = weight[b, 0, y, x0 + j]
                    total, source, average = grad_total[b, y, x0 + j], upstream[j], mean[j]
                    if normalise and w == 0:
                        # What comes back to a hole, NaN included, goes no further.
                        total[:] = 0
                    else:
                        scale, dot = number(1) / w if normalise else number(1), number(0)
                        for c in range(count):
                            g = source[c] * scale
                            total[c] = g
                            dot += g * average[c]
                        mass -= dot
                    grad_mass[b, y, x0 + j] = mass


@njit(**_OPTIONS)
def gather_gradients(
    tasks, values, z, landing, conic, largest, grad_total, grad_mass, sigma, floor, weights_too, grad_values, grad_flow,
    grad_z, grad_sigma,
):  # fmt: skip
    """Gather the gradients of the source rows that the tasks name.

    Args:
        values, z, landing, conic, largest: as in `splat_bands`.
        grad_total, grad_mass: (B, H, W, C), (B, H, W) S, as `weigh_gradients` wrote them.
        sigma, floor: the Gaussian's sigma, px, and what EWA adds to its variance, px^2.
        weights_too: other gradients than those of the values are wanted; else they are not written.
        grad_values: (B, C, H, W) S, written.  grad_flow: (B, 2, H, W) S, written.
        grad_z: (B, 1, H, W) S, written; (0, 1, 1, 1) without importance.
        grad_sigma: (B, H, W) S, written: each source's part; (0, 1, 1) for the bilinear footprint.
    """
    gaussian, single = conic.shape[0] > 0, values.itemsize == 4
    side = 4 if gaussian else 2
    column, row, fx, fy = landing
    count, _, width = values.shape[1:]
    tile, grad_tile = np.empty((TILE, count), values.dtype), np.empty((TILE, count), values.dtype)
    taps, decay = np.empty((side * side, TILE), values.dtype), np.empty((side * side, TILE), values.dtype)
    dots, power = np.empty((side * side, TILE), values.dtype), np.empty(TILE, np.int32)
    for t in range(tasks.shape[0]):
        b = tasks[t, 0]
        for y in range(tasks[t, 1], tasks[t, 2]):
            for x0 in range(0, width, TILE):
                n = min(TILE, width - x0)
                _footprint(fx, fy, conic, b, y, x0, n, taps)
                _decay(column, row, b, y, x0, n, z, conic, largest, side, single, power, taps, decay)
                _load(values, b, y, x0, n, 0, count, tile)
                sums = (grad_total, grad_mass)
                _dot(column, row, b, y, x0, n, side, taps, decay, tile, sums, weights_too, dots, grad_tile)
                if weights_too and gaussian:
                    _gaussian_gradients(
                        row, fx, fy, conic, b, y, x0, n, taps, dots, sigma, floor, grad_flow, grad_z, grad_sigma
                    )
                elif weights_too:
                    _bilinear_gradients(row, fx, fy, b, y, x0, n, taps, decay, dots, grad_flow, grad_z)
                _store(grad_tile, b, y, x0, n, 0, count, grad_values)


@njit(**_OPTIONS)
def _decay(column, row, b, y, x0, n, z, conic, largest, side, single, power, taps, decay):
    """Write exp(z - largest) as decay (T, n), 0 for taps outside the picture.

    A Gaussian's taps become whole weights, and its decay 1 where there is one.
    """
    low, number = -(side // 2 - 1), taps.dtype.type
    height, width = row.shape[1:]
    has_importance, gaussian = z.shape[0] > 0, side == 4
    exponents = taps if gaussian else decay
    for j in range(n):
        x = x0 + j
        for k in range(side * side):
            exponent = taps[k, j] if gaussian else number(0)
            r, c = row[b, y, x] + low + k // side, column[b, y, x] + low + k % side
            if row[b, y, x] == GONE or r < 0 or r >= height or c < 0 or c >= width:
                exponent = number(-np.inf)
            elif has_importance and exponent > -np.inf:
                exponent += min(z[b, 0, y, x] - largest[b, 0, r, c], number(0))
            exponents[k, j] = exponent
    _exponentiate(exponents, n, single, power, power.view(np.float32))
    if gaussian:
        scale = conic[3, b, y, x0 : x0 + n]
        for k in range(16):
            for j in range(n):
                taps[k, j] *= scale[j]
                decay[k, j] = number(1 if taps[k, j] > 0 else 0)


@njit(**_OPTIONS)
def _dot(column, row, b, y, x0, n, side, taps, decay, tile, sums, weights_too, dots, grad_tile):
    """Write dL/dw = dL/dN . v + dL/dD of every tap as dots (T, n), and dL/dv = sum of w dL/dN as grad_tile (n, C)."""
    grad_total, grad_mass = sums
    low = -(side // 2 - 1)
    for j in range(n):
        x = x0 + j
        source, gradient = tile[j], grad_tile[j]
        gradient[:] = 0
        for k in range(side * side):
            dots[k, j] = 0
            if decay[k, j] == 0:
                continue
            w = taps[k, j] * decay[k, j]
            r, c = row[b, y, x] + low + k // side, column[b, y, x] + low + k % side
            target = grad_total[b, r, c]
            if not weights_too:
                for i in range(source.shape[0]):
                    gradient[i] += w * target[i]
                continue
            dot = grad_mass[b, r, c]
            for i in range(source.shape[0]):
                dot += target[i] * source[i]
                gradient[i] += w * target[i]
            dots[k, j] = dot


@njit(**_OPTIONS)
def _bilinear_gradients(row, fx, fy, b, y, x0, n, taps, decay, dots, grad_flow, grad_z):
    """Write the gradients of n sources' flow and importance."""
    one = fx.dtype.type(1)
    for j in range(n):
        x = x0 + j
        across, down, importance = one - one, one - one, one - one
        if row[b, y, x] != GONE:
            right, below = fx[b, y, x], fy[b, y, x]
            for k in range(4):
                d = dots[k, j] * decay[k, j]
                importance += d * taps[k, j]
                across += d * (below if k > 1 else one - below) * (one if k % 2 else -one)
                down += d * (right if k % 2 else one - right) * (one if k > 1 else -one)
        grad_flow[b, 0, y, x], grad_flow[b, 1, y, x] = across, down
        if grad_z.shape[0] > 0:
            grad_z[b, 0, y, x] = importance


@njit(**_OPTIONS)
def _gaussian_gradients(row, fx, fy, conic, b, y, x0, n, taps, dots, sigma, floor, grad_flow, grad_z, grad_sigma):
    """Write the gradients of n sources' flow, importance and sigma.

    With d = tap - landing point, A = [[a, c], [c, b]] and q = A d:  dw/d landing = w q, and, since d S / d sigma =
    2 (S - floor I) / sigma,  dw/d sigma = w (d . q - floor |q|^2 - 2 + floor tr A) / sigma.
    """
    number = fx.dtype.type
    floor = number(floor)
    for j in range(n):
        x = x0 + j
        across, down, importance, width = number(0), number(0), number(0), number(0)
        if row[b, y, x] != GONE:
            xx, yy, xy = conic[0, b, y, x], conic[1, b, y, x], conic[2, b, y, x]
            constant = floor * (xx + yy) - number(2)
            for k in range(16):
                d = dots[k, j] * taps[k, j]
                dx, dy = number(k % 4 - 1) - fx[b, y, x], number(k // 4 - 1) - fy[b, y, x]
                qx, qy = xx * dx + xy * dy, xy * dx + yy * dy
                across, down, importance = across + d * qx, down + d * qy, importance + d
                width += d * (dx * qx + dy * qy - floor * (qx * qx + qy * qy) + constant)
        grad_flow[b, 0, y, x], grad_flow[b, 1, y, x] = across, down
        if grad_z.shape[0] > 0:
            grad_z[b, 0, y, x] = importance
        grad_sigma[b, y, x] = width / number(sigma)
