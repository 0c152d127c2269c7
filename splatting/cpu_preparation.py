"""What precedes the loops of `cpu_kernels.py`, whose conventions hold: landing points, Gaussians, gradients to sums."""

import math
import os
import stat
import tempfile

import numba
import numpy as np
from numba import njit

from splatting.reference import EWA_MAX_STRETCH, EWA_MIN_STRETCH, EWA_VARIANCE_FLOOR, MARGIN_PX, MAX_DERIVATIVE

# Sources of one row that are handled together: long enough runs of a channel for the memory (at 32 the transposition
# takes twice the time), and their values, transposed, stay in the L1 and L2 cache.
TILE = 256
# Row of a source that arrives nowhere.
GONE = -(1 << 30)


def _can_keep_kernels() -> bool:
    """Return whether compiled kernels can be kept for the next process, if need be in the folder for temporary files.

    Numba itself tries the folder of the code and the user's cache. Machine code is read only from a folder that nobody
    else can write to.
    """
    try:
        njit(cache=True)(_can_keep_kernels)
        return True
    except RuntimeError:  # no folder that can be written
        if not hasattr(os, "getuid"):
            return False
    folder = os.path.join(tempfile.gettempdir(), f"numba-cache-{os.getuid()}")
    try:
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        return False
    numba.config.CACHE_DIR = folder
    return True


# Sums may be reordered so that they run on vectors; NaN and infinity keep their meaning.
OPTIONS = {"cache": _can_keep_kernels(), "nogil": True, "error_model": "numpy"}
OPTIONS["fastmath"] = {"reassoc", "contract", "arcp", "nsz"}
EXACT_OPTIONS = {**OPTIONS, "fastmath": {"contract"}}
# Numba's cache notices a change of the file that a kernel is in, not of what it imports: so the values stand here too.
assert (EWA_MIN_STRETCH, EWA_MAX_STRETCH, EWA_VARIANCE_FLOOR, MARGIN_PX, MAX_DERIVATIVE) == (0.5, 2.5, 1e-4, 4, 1e6)


@njit(**OPTIONS)
def land(tasks, flow, z, low, high, column, row, fx, fy, top, bottom):
    """Find where the sources land.

    Args:
        flow: (B, 2, H, W) S.  z: (B, 1, H, W) S, or absent.  low, high: offsets of the first and the last tap.
        column, row: (B, H, W) int32, written: the pixel up and left of the landing point; row GONE where no tap is
            inside the image.  fx, fy: (B, H, W) S in [0, 1], written: the rest of the way.
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


@njit(**EXACT_OPTIONS)
def make_conics(tasks, flow, z, sigma, ewa, conic):
    """Write each source's Gaussian as conic (4, B, H, W) S: a, b, c, s of s exp(-(a dx^2 + b dy^2)/2 - c dx dy).

    [[a, c], [c, b]] is the inverse of sigma^2 I, or with ewa of J (sigma^2 I) J^T + EWA_VARIANCE_FLOOR I.
    """
    width = flow.shape[3]
    number = flow.dtype.type
    one, half, two_pi = number(1), number(0.5), number(2 * math.pi)
    sigma, floor = number(sigma), number(EWA_VARIANCE_FLOOR)
    least, most, nothing = number(EWA_MIN_STRETCH), number(EWA_MAX_STRETCH), number(1e-18)
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
                # Where one of them vanishes both singular values agree, and the angle does not matter.
                inverse = one / product if product > nothing else number(0)
                cos, sin = (e * f - g * h) * inverse, (e * g + f * h) * inverse
                variance_1 = sigma * min(max(rotation + reflection, least), most)
                variance_2 = sigma * min(max(abs(rotation - reflection), least), most)
                variance_1, variance_2 = variance_1 * variance_1 + floor, variance_2 * variance_2 + floor
                mean = half / variance_1 + half / variance_2
                difference = half / variance_1 - half / variance_2
                a[x], b[x], c[x] = mean + difference * cos, mean - difference * cos, difference * sin
                s[x] = one / (two_pi * math.sqrt(variance_1 * variance_2))


@njit(**OPTIONS)
def _is_valid(flow, z, b, y, x):
    known = np.isfinite(flow[b, 0, y, x]) and np.isfinite(flow[b, 1, y, x])
    return known and (z.shape[0] == 0 or np.isfinite(z[b, 0, y, x]))


@njit(**OPTIONS)
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


@njit(**OPTIONS)
def weigh_gradients(tasks, grad_out, grad_weight, out, weight, normalise, pad, grad_total, grad_mass):
    """Pull the gradients back through out = N / D:  dL/dN = G / D,  dL/dD = g - (G . out) / D,  or 0 and g at holes.

    Args:
        grad_out: (B, C, H, W) S, G.  weight: (B, 1, H, W) S, D.  grad_weight: (B, 1, H, W) S, g, or absent: 0.
        out: (B, C, H, W) S, or absent: not normalised, or dL/dD is not wanted.
        grad_total, grad_mass: (B, H + 2 P, W + 2 P, C), (B, H + 2 P, W + 2 P) S, written but for the padding.
    """
    channels, _, width = grad_out.shape[1:]
    number = grad_out.dtype.type
    scale, mass = np.empty(TILE, grad_out.dtype), np.empty(TILE, grad_out.dtype)
    for t in range(tasks.shape[0]):
        b = tasks[t, 0]
        for y in range(tasks[t, 1], tasks[t, 2]):
            for x0 in range(0, width, TILE):
                n = min(TILE, width - x0)
                for j in range(n):
                    w = weight[b, 0, y, x0 + j]
                    scale[j] = number(1) if not normalise else number(1) / w if w > 0 else number(0)
                    mass[j] = grad_weight[b, 0, y, x0 + j] if grad_weight.shape[0] > 0 else number(0)
                total = grad_total[b, y + pad, x0 + pad : x0 + pad + n]
                for c in range(channels):
                    upstream = grad_out[b, c, y, x0 : x0 + n]
                    for j in range(n):
                        # What comes back to a hole, NaN included, goes no further.
                        total[j, c] = upstream[j] * scale[j] if scale[j] > 0 else number(0)
                    if out.shape[0] > 0:
                        mean = out[b, c, y, x0 : x0 + n]
                        for j in range(n):
                            mass[j] -= total[j, c] * mean[j]
                grad_mass[b, y + pad, x0 + pad : x0 + pad + n] = mass[:n]
