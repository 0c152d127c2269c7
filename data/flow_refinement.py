"""Refine flow, which DIS smooths, on the colours of the images: zero where that explains a frame, then Gauss-Newton."""

import cv2
import numpy as np

# sigma of the window in which a pixel's residual is judged, and in which its step is fitted
JUDGE_SIGMA_PX = 1.5
WINDOW_SIGMA_PX = 1.2
# rest wins unless the estimate's residual is lower by this: background between moving leaves must not follow them
REST_MARGIN = 0.004
# differences above this count linearly instead of squared: occlusions and noise
ROBUST_SCALE = 0.04
# pull toward the blurred flow: weight (in squared gradients per difference), sigma of that blur
SMOOTHNESS = 0.1
SMOOTH_SIGMA_PX = 1.2
ITERATIONS = 10
# the linearisation holds for about a pixel
LARGEST_STEP_PX = 1.0

_MEAN = np.full((1, 3), 1 / 3, np.float32)
_SUM = np.ones((1, 3), np.float32)
_SLOPE = np.array([[-0.5, 0.0, 0.5]], np.float32)


def refine_flow(first: np.ndarray, frame: np.ndarray, flow: np.ndarray, *, iterations: int = ITERATIONS) -> np.ndarray:
    """Refine `flow` (H, W, 2) float32 px, frame 0 -> `frame`; both images (H, W, 3) float32 in [0, 1].

    Minimises sum_c rho(I_t(p + F) - I_0(p)) over a Gaussian window by Gauss-Newton steps, each pulled toward the
    blurred flow: (A + s) dF = s (blur(F) - F) - b, with A and b the windowed products of the slopes and of slope
    and difference (Lucas and Kanade, 1981; weights 1 / sqrt(d^2 + 0.04^2)). The slope is the mean of both images'.
    """
    rests = _residual(first, frame) - REST_MARGIN <= _residual(first, _warp(frame, flow))  # (H, W)
    flow = np.where(rests[..., None], np.float32(0), flow)
    slopes = _slopes(first)
    for _ in range(iterations):
        flow += _step(first, slopes, _warp(frame, flow), flow)
    return flow


def _warp(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    y, x = np.indices(flow.shape[:2], dtype=np.float32)
    x, y = x + flow[..., 0], y + flow[..., 1]
    return cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # (H, W, 3)


def _residual(first: np.ndarray, warped: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(cv2.transform(cv2.absdiff(warped, first), _MEAN), (0, 0), JUDGE_SIGMA_PX)  # (H, W)


def _slopes(image: np.ndarray) -> list[np.ndarray]:
    return [cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE) for kernel in (_SLOPE, _SLOPE.T)]


def _step(first: np.ndarray, slopes: list[np.ndarray], warped: np.ndarray, flow: np.ndarray) -> np.ndarray:
    difference = warped - first  # (H, W, 3)
    slope_x, slope_y = (0.5 * (a + b) for a, b in zip(slopes, _slopes(warped), strict=True))
    weight = 1 / np.sqrt(cv2.transform(difference * difference, _MEAN) + ROBUST_SCALE**2)  # (H, W)
    products = (slope_x * slope_x, slope_x * slope_y, slope_y * slope_y, slope_x * difference, slope_y * difference)
    a, b, c, u, v = (
        cv2.GaussianBlur(cv2.transform(product, _SUM) * weight, (0, 0), WINDOW_SIGMA_PX) for product in products
    )  # (H, W) each
    pull = SMOOTHNESS * (cv2.GaussianBlur(flow, (0, 0), SMOOTH_SIGMA_PX) - flow)  # (H, W, 2)
    a, c = a + SMOOTHNESS, c + SMOOTHNESS
    u, v = pull[..., 0] - u, pull[..., 1] - v
    step = np.stack([c * u - b * v, a * v - b * u], -1) / (a * c - b * b)[..., None]  # (H, W, 2)
    return np.clip(step, -LARGEST_STEP_PX, LARGEST_STEP_PX)
