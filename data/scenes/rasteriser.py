"""Triangle rasteriser of the procedural scenes: painter's order, several samples a pixel, textured vertex colours.

Pixel centres lie at whole numbers, x to the right and y down. Motion and colour have the same barycentric weights.
"""

import math

import numpy as np
from numba import njit
from numpy import ndarray as Array


def _can_keep_kernels() -> bool:
    try:
        return bool(njit(cache=True)(_can_keep_kernels))
    except RuntimeError:  # Numba finds no folder that can be written; then each process compiles
        return False


CACHE = _can_keep_kernels()


@njit(cache=CACHE, nogil=True)
def paint_ids(vertices: Array, triangles: Array, size: tuple[int, int], samples: int) -> Array:
    """Number of the frontmost triangle (N, 3) at each sample, -1: none; (H * samples, W * samples) int32."""
    height, width = size[0] * samples, size[1] * samples
    ids = np.full((height, width), -1, np.int32)
    for n in range(triangles.shape[0]):
        i, j, k = triangles[n, 0], triangles[n, 1], triangles[n, 2]
        ax, ay = (vertices[i, 0] + 0.5) * samples - 0.5, (vertices[i, 1] + 0.5) * samples - 0.5
        bx, by = (vertices[j, 0] + 0.5) * samples - 0.5, (vertices[j, 1] + 0.5) * samples - 0.5
        cx, cy = (vertices[k, 0] + 0.5) * samples - 0.5, (vertices[k, 1] + 0.5) * samples - 0.5
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        if area < 0.0:
            bx, by, cx, cy = cx, cy, bx, by
        top = max(0, int(math.ceil(min(ay, by, cy))))
        bottom = min(height - 1, int(math.floor(max(ay, by, cy))))
        for y in range(top, bottom + 1):
            low, high = 0.0, width - 1.0
            for px, py, qx, qy in ((ax, ay, bx, by), (bx, by, cx, cy), (cx, cy, ax, ay)):
                # Inside is where (q - p) x (r - p) >= 0, linear in x on this row.
                slope = -(qy - py)
                rest = (qx - px) * (y - py) + (qy - py) * px
                if slope > 0.0:
                    low = max(low, -rest / slope)
                elif slope < 0.0:
                    high = min(high, -rest / slope)
                elif rest < 0.0:
                    high = -1.0
            if high >= low:
                for x in range(int(math.ceil(low)), int(math.floor(high)) + 1):
                    ids[y, x] = n
    return ids


@njit(cache=CACHE, nogil=True, inline="always")
def _barycentric(vertices, i, j, k, x, y):
    ax, ay = vertices[i, 0], vertices[i, 1]
    ux, uy = vertices[j, 0] - ax, vertices[j, 1] - ay
    vx, vy = vertices[k, 0] - ax, vertices[k, 1] - ay
    area = ux * vy - uy * vx
    q = ((x - ax) * vy - (y - ay) * vx) / area
    r = (ux * (y - ay) - uy * (x - ax)) / area
    return 1.0 - q - r, q, r


@njit(cache=CACHE, nogil=True)
def shade_ids(
    ids: Array, vertices: Array, triangles: Array, materials: Array, looks: Array, atlas: Array, samples: int
) -> Array:
    """Colour the samples and reduce them to pixels: (H, W, 4) float32, premultiplied RGB and coverage.

    looks (V, 6): red, green, blue, texture u, v (texels), strength; materials (N,) into atlas (M, S, S) in [-1, 1].
    """
    height, width = ids.shape[0] // samples, ids.shape[1] // samples
    out = np.zeros((height, width, 4), np.float32)
    side = atlas.shape[1]
    part = np.float32(1.0 / (samples * samples))
    look = np.zeros(6, np.float32)
    for y in range(height):
        for x in range(width):
            for sub in range(samples * samples):
                row, column = y * samples + sub // samples, x * samples + sub % samples
                n = ids[row, column]
                if n < 0:
                    continue
                i, j, k = triangles[n, 0], triangles[n, 1], triangles[n, 2]
                p, q, r = _barycentric(vertices, i, j, k, (column + 0.5) / samples - 0.5, (row + 0.5) / samples - 0.5)
                for c in range(6):
                    look[c] = p * looks[i, c] + q * looks[j, c] + r * looks[k, c]
                u, v = look[3], look[4]
                u0, v0 = math.floor(u), math.floor(v)
                fu, fv = u - u0, v - v0
                x0, y0 = int(u0) % side, int(v0) % side
                x1, y1 = (x0 + 1) % side, (y0 + 1) % side
                m = materials[n]
                texel = (atlas[m, y0, x0] * (1 - fu) + atlas[m, y0, x1] * fu) * (1 - fv)
                texel += (atlas[m, y1, x0] * (1 - fu) + atlas[m, y1, x1] * fu) * fv
                gain = max(np.float32(0.05), np.float32(1.0 + look[5] * texel))
                for c in range(3):
                    out[y, x, c] += part * min(max(look[c] * gain, 0.0), 1.0)
                out[y, x, 3] += part
    return out


@njit(cache=CACHE, nogil=True)
def interpolate_at_centres(vertices, triangles, ids, sources, values, out):
    """Write barycentric values (V, C) into out (H, W, C), taken for each pixel at the pixel that is its source.

    ids (H, W): triangle at each pixel centre. sources (H, W) int64: row * W + column, -1 leaves out as it is.
    """
    height, width = ids.shape
    for y in range(height):
        for x in range(width):
            if sources[y, x] < 0:
                continue
            sy, sx = sources[y, x] // width, sources[y, x] % width
            n = ids[sy, sx]
            i, j, k = triangles[n, 0], triangles[n, 1], triangles[n, 2]
            p, q, r = _barycentric(vertices, i, j, k, float(sx), float(sy))
            for c in range(values.shape[1]):
                out[y, x, c] = p * values[i, c] + q * values[j, c] + r * values[k, c]


@njit(cache=CACHE, nogil=True)
def apply_degrees(freedoms, directions, amounts):
    """Sum directions (V, D, 2) times amounts (J, C) [freedoms (V, D)] over degrees of freedom d: (V, 2, C) float32."""
    out = np.zeros((len(freedoms), 2, amounts.shape[1]), np.float32)
    for v in range(freedoms.shape[0]):
        for d in range(freedoms.shape[1]):
            j = freedoms[v, d]
            if j == 0:
                continue
            dx, dy = directions[v, d, 0], directions[v, d, 1]
            for c in range(amounts.shape[1]):
                out[v, 0, c] += dx * amounts[j, c]
                out[v, 1, c] += dy * amounts[j, c]
    return out
