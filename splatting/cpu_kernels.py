"""The loops of `cpu.py`, compiled by Numba: splat by bands of target rows, and gather the gradients.

Kernels take the arrays of a whole batch and tasks (item, first row, last row + 1) that write different elements. S is
the summing type (float32 or float64), P the padding, px, that keeps taps outside the image inside the buffers (1
bilinear, 3 Gaussian), T the number of taps of a source (2 x 2 bilinear, 4 x 4 Gaussian). `place` = (b, y, x0, n) are
the n sources from (y, x0) on, and `window` = (first, last, side, pad) the target rows that are written. An array of
shape (0, 1, 1, 1) stands for one that is absent: z without importance, conic for the bilinear footprint.
"""

import math

import numpy as np
from numba import njit

from splatting.cpu_preparation import EXACT_OPTIONS, GONE, OPTIONS, TILE
from splatting.reference import MIN_TAP_WEIGHT

# Channels of the buffers are rounded up to a multiple of this: no scalar remainder after the vectors (measured: 12 %).
LANES = 8

# As in cpu_preparation.py
assert (TILE, GONE, MIN_TAP_WEIGHT) == (256, -(1 << 30), 1e-30)
_LOG_MIN_TAP_WEIGHT = math.log(MIN_TAP_WEIGHT)


@njit(**OPTIONS)
def _footprint(landing, conic, place, taps):
    """Write taps (T, n), row by row: bilinear weights, or ln(Gaussian weight / scale), -inf where there is no tap."""
    _, _, fx, fy = landing
    b, y, x0, n = place
    number = fx.dtype.type
    right, below = fx[b, y, x0 : x0 + n], fy[b, y, x0 : x0 + n]
    if conic.shape[0] == 0:
        one, least_weight = number(1), number(MIN_TAP_WEIGHT)
        for k in range(4):
            tap = taps[k]
            for j in range(n):
                weight = (right[j] if k % 2 else one - right[j]) * (below[j] if k > 1 else one - below[j])
                tap[j] = weight if weight >= least_weight else 0
        return
    half, nothing = number(-0.5), number(-np.inf)
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


@njit(**EXACT_OPTIONS)
def _exponentiate(taps, n):
    """Replace taps (T, n), at most 0 or nearly, by their exponentials.

    In float32 by a polynomial that runs on vectors: the system's function took a third of the whole Gaussian splat.
    exp(x) = 2^k exp(r), |r| <= ln 2 / 2, exp(r) by its Taylor series.
    """
    power = np.empty(TILE, np.int32)
    two_to_the_power = power.view(np.float32)
    for t in range(taps.shape[0]):
        tap = taps[t]
        if taps.itemsize != 4:
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


@njit(**OPTIONS)
def _weigh(landing, conic, place, window, z, largest, taps, decay):
    """Weigh by importance: decay (4, n) becomes exp(z - largest); Gaussian exponents, taps (16, n), whole weights."""
    b, y, x0, n = place
    side = window[2]
    exponents = taps if side == 4 else decay
    if side == 2:
        decay[:] = 0
    if z.shape[0] > 0:
        _meet_largest(landing, place, window, z, largest, exponents, False)
    _exponentiate(exponents, n)
    if side == 4:
        scale = conic[3, b, y, x0 : x0 + n]
        for k in range(16):
            tap = taps[k]
            for j in range(n):
                tap[j] *= scale[j]


@njit(**OPTIONS)
def _transpose(values, place, channel, count, tile, load):
    """Copy `count` channels of n pixels of values (B, C, H, W) to tile (n, >= count), channels last, or back."""
    b, y, x0, n = place
    # Four channels at a time: their loads or stores meet in one vector (measured: 12 % of a whole splat).
    whole = 0 if values.strides[1] < values.strides[3] else count // 4 * 4
    for c in range(0, whole, 4):
        line_0, line_1 = values[b, channel + c, y, x0 : x0 + n], values[b, channel + c + 1, y, x0 : x0 + n]
        line_2, line_3 = values[b, channel + c + 2, y, x0 : x0 + n], values[b, channel + c + 3, y, x0 : x0 + n]
        for j in range(n):
            pixel = tile[j, c : c + 4]
            if load:
                pixel[0], pixel[1], pixel[2], pixel[3] = line_0[j], line_1[j], line_2[j], line_3[j]
            else:
                line_0[j], line_1[j], line_2[j], line_3[j] = pixel[0], pixel[1], pixel[2], pixel[3]
    for j in range(n):
        for c in range(whole, count):
            if load:
                tile[j, c] = values[b, channel + c, y, x0 + j]
            else:
                values[b, channel + c, y, x0 + j] = tile[j, c]


@njit(**OPTIONS)
def splat_bands(tasks, values, z, landing, conic, limits, channels, normalise, tall, out, weight, largest):
    """Splat the bands of target rows that the tasks name.

    Args:
        values: (B, C, H, W) S, the channels [channels[0], channels[1]) of it are splatted.
        z: (B, 1, H, W) S, or absent.  landing, limits: column, row, fx, fy and top, bottom, as `land` wrote them.
        conic: (4, B, H, W) S as `make_conics` wrote it, or absent.
        normalise: divide by the sum of the weights.  tall: rows of the tallest band.
        out: (B, C, H, W) S, weight and largest: (B, 1, H, W) S, written; largest is absent without importance.
    """
    column, row, _, _ = landing
    top, bottom = limits
    gaussian, has_importance = conic.shape[0] > 0, z.shape[0] > 0
    side, pad = (4, 3) if gaussian else (2, 1)
    low, high = (-1, 2) if gaussian else (0, 1)
    width, count = values.shape[3], channels[1] - channels[0]
    # One more channel holds the weight.
    padded = (count + LANES) // LANES * LANES
    total = np.empty((tall + 2 * pad, width + 2 * pad, padded), values.dtype)
    band_largest = np.empty((tall + 2 * pad, width + 2 * pad), values.dtype)
    tile = np.ones((TILE, padded), values.dtype)
    taps, decay = np.empty((side * side, TILE), values.dtype), np.ones((side * side, TILE), values.dtype)
    for t in range(tasks.shape[0]):
        b, first, last = tasks[t, 0], tasks[t, 1], tasks[t, 2]
        window = (first, last, side, pad)
        total[: last - first + 2 * pad] = 0
        band_largest[: last - first + 2 * pad] = -np.inf
        for find_largest in range(1 if has_importance else 0, -1, -1):
            for y in range(top.shape[1]):
                for k in range(top.shape[2]):
                    if bottom[b, y, k] + high < first or top[b, y, k] + low >= last:
                        continue
                    place = (b, y, k * TILE, min(TILE, width - k * TILE))
                    _footprint(landing, conic, place, taps)
                    if find_largest:
                        _meet_largest(landing, place, window, z, band_largest, taps, True)
                        continue
                    if gaussian or has_importance:
                        _weigh(landing, conic, place, window, z, band_largest, taps, decay)
                        taps *= decay
                    _transpose(values, place, channels[0], count, tile, True)
                    _add(column, row, place, window, taps, tile, total)
        _write(total, band_largest, b, window, channels[0], count, normalise, out, weight, largest)


@njit(**OPTIONS)
def _meet_largest(landing, place, window, z, largest, taps, rising):
    """Raise largest (rows + 2 P, W + 2 P) to the largest z of the sources whose taps (T, n) touch it.

    Not `rising`, add z - largest to the taps, exponents, where it is negative.
    """
    column, row, _, _ = landing
    b, y, x0, n = place
    first, last, side, pad = window
    low, number = -(side // 2 - 1), largest.dtype.type
    # What does not arrive is a weight of 0, or an exponent of -inf.
    nothing = number(-np.inf if side == 4 else 0)
    for j in range(n):
        x = x0 + j
        if row[b, y, x] + side // 2 < first or row[b, y, x] + low >= last:
            continue
        left, importance = column[b, y, x] + pad + low, z[b, 0, y, x]
        for ky in range(side):
            line = largest[row[b, y, x] - first + pad + low + ky, left : left + side]
            for kx in range(side):
                if not rising:
                    # Where nothing arrives the difference is infinite, and the weight 0 anyway.
                    taps[side * ky + kx, j] += min(importance - line[kx], number(0))
                elif taps[side * ky + kx, j] > nothing and importance > line[kx]:
                    line[kx] = importance


@njit(**OPTIONS)
def _add(column, row, place, window, taps, tile, total):
    """Add taps * tile to total (rows + 2 P, W + 2 P, channels)."""
    b, y, x0, n = place
    first, last, side, pad = window
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


@njit(**OPTIONS)
def _write(total, band_largest, b, window, channel, count, normalise, out, weight, largest):
    """Divide a band's sums by its weights and write them as out (B, C, H, W)."""
    first, last, _, pad = window
    width, number = out.shape[3], out.dtype.type
    scale = np.empty(TILE, out.dtype)
    for y in range(first, last):
        for x0 in range(0, width, TILE):
            n = min(TILE, width - x0)
            sums = total[y - first + pad, x0 + pad : x0 + pad + n]
            for j in range(n):
                w = sums[j, count]
                weight[b, 0, y, x0 + j] = w
                if largest.shape[0] > 0:
                    largest[b, 0, y, x0 + j] = band_largest[y - first + pad, x0 + pad + j]
                scale[j] = number(1) / w if w > 0 else number(0)
            if normalise:
                for j in range(n):
                    for c in range(count):
                        sums[j, c] *= scale[j]
            _transpose(out, (b, y, x0, n), channel, count, sums, False)


@njit(**OPTIONS)
def gather_gradients(tasks, values, z, landing, conic, target, sigma, floor, weights_too, gradients):
    """Gather the gradients of the source rows that the tasks name.

    Args:
        values, z, landing, conic: as in `splat_bands`.
        target: (B, H + 2 P, W + 2 P, C), (B, H + 2 P, W + 2 P) twice, S: the gradients to the sums of w v and of w, and
            the largest importance; 0 outside the image.
        sigma, floor: the Gaussian's sigma, px, and what EWA adds to its variance, px^2.
        weights_too: other gradients than those of the values are wanted; else they are not written.
        gradients: to values (B, C, H, W), flow (B, 2, H, W) and z (B, 1, H, W), or absent, and each source's part of
            that to sigma (B, 1, H, W), or absent; S, written.
    """
    column, row, fx, fy = landing
    grad_total, grad_mass, largest = target
    grad_values, grad_flow, grad_z, grad_sigma = gradients
    gaussian = conic.shape[0] > 0
    side, pad = (4, 3) if gaussian else (2, 1)
    count, height, width = values.shape[1:]
    window = (0, height, side, pad)
    tile, grad_tile = np.empty((TILE, count), values.dtype), np.empty((TILE, count), values.dtype)
    taps, decay = np.empty((side * side, TILE), values.dtype), np.ones((side * side, TILE), values.dtype)
    dots = np.empty((side * side, TILE), values.dtype)
    for t in range(tasks.shape[0]):
        b = tasks[t, 0]
        sums = (grad_total[b], grad_mass[b])
        for y in range(tasks[t, 1], tasks[t, 2]):
            for x0 in range(0, width, TILE):
                place = (b, y, x0, min(TILE, width - x0))
                _footprint(landing, conic, place, taps)
                if gaussian or z.shape[0] > 0:
                    _weigh(landing, conic, place, window, z, largest[b], taps, decay)
                _transpose(values, place, 0, count, tile, True)
                _dot(column, row, place, window, taps, decay, tile, sums, weights_too, dots, grad_tile)
                _transpose(grad_values, place, 0, count, grad_tile, False)
                if weights_too and gaussian:
                    _gaussian_gradients(fx, fy, conic, place, taps, dots, sigma, floor, grad_flow, grad_z, grad_sigma)
                elif weights_too:
                    _bilinear_gradients(fx, fy, place, taps, decay, dots, grad_flow, grad_z)


@njit(**OPTIONS)
def _dot(column, row, place, window, taps, decay, tile, sums, weights_too, dots, grad_tile):
    """Write dL/dw = dL/dN . v + dL/dD of every tap as dots (T, n), and dL/dv = sum of w dL/dN as grad_tile (n, C)."""
    b, y, x0, n = place
    _, _, side, pad = window
    low = -(side // 2 - 1)
    grad_total, grad_mass = sums
    for j in range(n):
        x = x0 + j
        source, gradient = tile[j], grad_tile[j]
        gradient[:] = 0
        for k in range(side * side):
            dots[k, j] = 0
            if row[b, y, x] == GONE:
                continue
            w = taps[k, j] * decay[k, j]
            r, c = row[b, y, x] + pad + low + k // side, column[b, y, x] + pad + low + k % side
            target = grad_total[r, c]
            if not weights_too:
                for i in range(source.shape[0]):
                    gradient[i] += w * target[i]
                continue
            dot = grad_mass[r, c]
            for i in range(source.shape[0]):
                dot += target[i] * source[i]
                gradient[i] += w * target[i]
            dots[k, j] = dot


@njit(**OPTIONS)
def _bilinear_gradients(fx, fy, place, taps, decay, dots, grad_flow, grad_z):
    b, y, x0, n = place
    one = fx.dtype.type(1)
    for j in range(n):
        x = x0 + j
        across, down, importance = one - one, one - one, one - one
        right, below = fx[b, y, x], fy[b, y, x]
        for k in range(4):
            d = dots[k, j] * decay[k, j]
            importance += d * taps[k, j]
            across += d * (below if k > 1 else one - below) * (one if k % 2 else -one)
            down += d * (right if k % 2 else one - right) * (one if k > 1 else -one)
        grad_flow[b, 0, y, x], grad_flow[b, 1, y, x] = across, down
        if grad_z.shape[0] > 0:
            grad_z[b, 0, y, x] = importance


@njit(**OPTIONS)
def _gaussian_gradients(fx, fy, conic, place, taps, dots, sigma, floor, grad_flow, grad_z, grad_sigma):
    # With d = tap - landing point, A = [[a, c], [c, b]] and q = A d:  dw/d landing = w q, and, since d S / d sigma =
    # 2 (S - floor I) / sigma,  dw/d sigma = w (d . q - floor |q|^2 - 2 + floor tr A) / sigma.
    b, y, x0, n = place
    number = fx.dtype.type
    floor = number(floor)
    for j in range(n):
        x = x0 + j
        across, down, importance, width = number(0), number(0), number(0), number(0)
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
        grad_sigma[b, 0, y, x] = width / number(sigma)
