"""Estimate optical flow from frame 0 to every other frame of a clip, and rate where it can be believed.

Flow is forward (frame 0 -> t), float32, in pixels of the frames' own grid, channel 0 = dx (right), 1 = dy (down).
"""

import functools
import hashlib
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from data.media import to_bytes
from motion.flow import magnitude, sample_at

# Part of the settings of clip sets, so that flow of different versions is not mixed: raise it when flow changes.
FLOW_VERSION = 3
METHODS = ("dis", "dis_fast", "dis_x2", "farneback", "raft", "pyflow")

BLUR_SIGMA_PX = 1.5  # of the blur that every photometric difference passes through
UNCHANGED = 2.5 / 255  # a pixel whose blurred change is below this shows no motion
# A pixel is static if it changes by less than this on average over at least MANY_FRAMES frames. In one frame all 3 x 3
# must change less, or the blurred surroundings less than QUIET_CHANGE: one may meet its own colour by chance.
STATIC_CHANGE, MANY_FRAMES = 2 / 255, 4
STATIC_SIDE_PX, QUIET_CHANGE = 3, 4 / 255
MOVING_CHANGE = 8 / 255  # a static pixel moves in the frames in which it changes by this or more, as in a gust
# zero flow wins unless the estimate lowers the blurred residual by more than this, relatively and absolutely
ZERO_MARGIN_RELATIVE, ZERO_MARGIN = 0.05, 0.25 / 255
RELIABILITY_RESIDUAL = 16 / 255  # the photometric residual at which reliability is one half
CHUNK = 16

# Of `refine_flow`: sigma of the window in which a pixel's residual is judged, and in which its step is fitted
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

# frame (3, H, W) -> flow (2, H, W) from the frame 0 it was made for
FlowTo = Callable[[torch.Tensor], torch.Tensor]


class FlowError(ValueError):
    """A flow method that cannot run here."""

    is_user_error = True


def estimate_flow(
    first: torch.Tensor,  # (3, H, W) float32 in [0, 1], frame 0
    frames: torch.Tensor,  # (T, 3, H, W), consecutive frames of the clip
    *,
    method: str = "dis",
    weights: str | Path | None = None,  # for "raft": a state dict of torchvision's raft_small or raft_large
    device: str = "cpu",  # where RAFT runs; the other methods run on the CPU
    static: torch.Tensor | None = None,  # `static_pixels` (1, H, W) of the clip where `frames` are only a part of it
) -> torch.Tensor:
    """Estimate the flow from one image to each of several frames: (T, 2, H, W) float32 px, no gradients.

    Methods are "dis" (tuned DIS, `refine_flow`, then 0 where `static_frames` holds), "dis_fast" (tuned DIS alone),
    "dis_x2" (tuned DIS on images enlarged twice), "farneback", "raft" (torchvision's) and "pyflow" (built here).
    Raises FlowError for a method that is unknown or cannot run here.
    """
    methods: dict[str, Callable[[torch.Tensor], FlowTo]] = {
        "dis": _refined_dis,
        "dis_fast": _dis,
        "dis_x2": functools.partial(_dis, enlarge=2),
        "farneback": _farneback,
        "raft": functools.partial(_raft, weights=weights, device=device),
        "pyflow": _pyflow,
    }
    if method not in methods:
        raise FlowError(f"flow method {method!r}: choose one of {', '.join(METHODS)}")
    flow_to = methods[method](first)
    flow = torch.empty(len(frames), 2, *first.shape[1:])  # (T, 2, H, W)
    for index, frame in enumerate(frames):
        flow[index] = flow_to(frame)
    return flow.masked_fill_(static_frames(first, frames, static=static), 0.0) if method == "dis" else flow


def estimate_backward_flow(
    first: torch.Tensor, frames: torch.Tensor, *, method: str = "dis", **options: Any
) -> torch.Tensor:
    """Estimate the flow from every frame back to frame 0, "dis_fast" in place of "dis": (T, 2, H, W) px of frame t."""
    method = "dis_fast" if method == "dis" else method
    return torch.cat([estimate_flow(frame, first[None], method=method, **options) for frame in frames])


def static_pixels(first: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Find static pixels (1, H, W) by a rule of our own: mean |I_t - I_0| below 2/255; none in under 4 frames."""
    if len(frames) < MANY_FRAMES:
        return torch.zeros_like(first[:1], dtype=torch.bool)
    return sum(_change(first, frame[None])[0] for frame in frames) / len(frames) < STATIC_CHANGE


def static_frames(first: torch.Tensor, frames: torch.Tensor, *, static: torch.Tensor | None = None) -> torch.Tensor:
    """Find where frames (T, 3, H, W) show no motion, by the images alone: (T, 1, H, W) bool. This rule is our own.

    True at a static pixel of the clip unless it changes by 8/255 or more in this frame. Also true where a pixel and its
    eight neighbours change by less than 2/255, or the pixel by less than that and its blurred surroundings by 4/255.
    """
    static = static_pixels(first, frames) if static is None else static
    found = torch.empty(len(frames), 1, *first.shape[1:], dtype=torch.bool)  # (T, 1, H, W)
    for index, frame in enumerate(frames):
        change = _change(first, frame[None])  # (1, 1, H, W)
        largest = F.max_pool2d(change, STATIC_SIDE_PX, 1, STATIC_SIDE_PX // 2)  # (1, 1, H, W)
        quiet = (change < STATIC_CHANGE) & (_blur(change) < QUIET_CHANGE)  # (1, 1, H, W)
        found[index] = (largest < STATIC_CHANGE)[0] | quiet[0] | (static & (change < MOVING_CHANGE)[0])
    return found


@torch.no_grad()
def visible_flow(
    first: torch.Tensor, frames: torch.Tensor, flow: torch.Tensor, *, static: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero the flow that cannot be seen, and rate the rest by how well it explains the frame. This rule is our own.

    With r(F) = blur(mean_c |I_t(p + F) - I_0(p)|), F_t(p) becomes 0 where r(0) < 2.5/255, where zero flow explains the
    frame as well, r(0) <= 1.05 r(F) + 0.25/255, and where `static_frames` holds. Reliability is
    1 / (1 + (r / (16/255))^2) for the flow returned, and 0 where p + F leaves the image by more than half a pixel.
    Takes and returns flow (T, 2, H, W), px; reliability is (T, 1, H, W) in [0, 1]. `static` is as for `estimate_flow`.
    """
    visible, reliability = torch.empty_like(flow), torch.empty_like(flow[:, :1])  # (T, 2, H, W), (T, 1, H, W)
    static = static_pixels(first, frames) if static is None else static  # (1, H, W)
    for start in range(0, len(frames), CHUNK):
        part = slice(start, start + CHUNK)
        shown = flow[part].masked_fill(static_frames(first, frames[part], static=static), 0.0)  # (N, 2, H, W)
        at_rest = _blur(_change(first, frames[part]))  # (N, 1, H, W)
        moved = _blur(_change(first, sample_at(frames[part], shown)))  # (N, 1, H, W)
        unseen = (at_rest < UNCHANGED) | (at_rest <= moved * (1 + ZERO_MARGIN_RELATIVE) + ZERO_MARGIN)
        residual = torch.where(unseen, at_rest, moved)
        visible[part] = shown.masked_fill(unseen, 0.0)
        reliability[part] = (_inside(shown) | unseen) / (1 + (residual / RELIABILITY_RESIDUAL).square())
    return visible, reliability


@torch.no_grad()
def forward_backward_error(flow: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """Return |F_t(p) + B_t(p + F_t(p))| of flows to frame t and back, (T, 2, H, W) px: (T, 1, H, W), no gradients."""
    return magnitude(flow + sample_at(backward, flow))


def _change(first: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    return (frames - first).abs().mean(1, keepdim=True)  # (N, 1, H, W)


def _inside(flow: torch.Tensor) -> torch.Tensor:
    """Return whether p + flow (N, 2, H, W) leads into the image: (N, 1, H, W)."""
    height, width = flow.shape[-2:]
    x = torch.arange(width, dtype=flow.dtype) + flow[:, 0]  # (N, H, W)
    y = torch.arange(height, dtype=flow.dtype)[:, None] + flow[:, 1]  # (N, H, W)
    return ((x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5))[:, None]


def _blur(values: torch.Tensor) -> torch.Tensor:
    radius = math.ceil(3 * BLUR_SIGMA_PX)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / BLUR_SIGMA_PX).square())
    taps = (taps / taps.sum()).to(values)
    mode = "reflect" if min(values.shape[-2:]) > radius else "replicate"
    values = F.pad(values, (radius, radius, radius, radius), mode=mode)
    return F.conv2d(F.conv2d(values, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))


def _luminance(image: torch.Tensor, enlarge: int = 1) -> np.ndarray:
    grey = cv2.cvtColor(to_bytes(image), cv2.COLOR_RGB2GRAY)  # (H, W)
    return cv2.resize(grey, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC) if enlarge > 1 else grey


def _pixels(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy(), np.float32)  # (H, W, 3)


def _as_flow(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))  # (2, H, W)


def _dis(first: torch.Tensor, *, enlarge: int = 1, intensity_weight: float = 5.0) -> FlowTo:
    # tuned for small motion, of which the presets lose a third to a half
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    dis.setPatchSize(8)
    dis.setPatchStride(2)
    dis.setGradientDescentIterations(50)
    dis.setVariationalRefinementIterations(10)
    dis.setVariationalRefinementDelta(intensity_weight)
    reference = _luminance(first, enlarge)

    def flow_to(frame: torch.Tensor) -> torch.Tensor:
        flow = dis.calc(reference, _luminance(frame, enlarge), None)  # (sH, sW, 2)
        if enlarge > 1:
            flow = cv2.resize(flow, first.shape[:0:-1], interpolation=cv2.INTER_AREA) / enlarge  # (H, W, 2)
        return _as_flow(flow)

    return flow_to


def _refined_dis(first: torch.Tensor) -> FlowTo:
    # twice OpenCV's weight: 0.3 dB on eight training clips before the refinement, and lower errors on scenes
    start_of = _dis(first, intensity_weight=10.0)
    return lambda frame: _as_flow(refine_flow(_pixels(first), _pixels(frame), _pixels(start_of(frame))))


def refine_flow(first: np.ndarray, frame: np.ndarray, flow: np.ndarray, *, iterations: int = ITERATIONS) -> np.ndarray:
    """Refine `flow` (H, W, 2) float32 px, frame 0 -> `frame`, which DIS smooths; images (H, W, 3) float32 in [0, 1].

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


def _farneback(first: torch.Tensor) -> FlowTo:
    reference = _luminance(first)  # (H, W)
    parameters = (None, 0.5, 5, 13, 5, 5, 1.1, 0)
    return lambda frame: _as_flow(cv2.calcOpticalFlowFarneback(reference, _luminance(frame), *parameters))


def _raft(first: torch.Tensor, *, weights: str | Path | None, device: str) -> FlowTo:
    if weights is None:
        raise FlowError("flow method raft: needs the file of torchvision's RAFT weights")
    if not Path(weights).is_file():
        raise FlowError(f"{weights}: no such file; give torchvision's RAFT weights")
    model = _load_raft(Path(weights), Path(weights).stat().st_mtime_ns).to(device)
    height, width = first.shape[1:]
    # RAFT works on multiples of 8, and its correlation pyramid needs at least 128 px a side
    pad = (0, max(128, -(-width // 8) * 8) - width, 0, max(128, -(-height // 8) * 8) - height)

    @torch.no_grad()
    def flow_to(frame: torch.Tensor) -> torch.Tensor:
        pair = torch.stack([first, frame]).to(device) * 2 - 1  # (2, 3, H, W), RAFT's own range
        pair = F.pad(pair, pad, mode="replicate")  # (2, 3, H', W')
        return model(pair[:1], pair[1:])[-1][0, :, :height, :width].float().cpu()  # (2, H, W)

    return flow_to


@functools.lru_cache(maxsize=1)
def _load_raft(path: Path, _modified_ns: int) -> torch.nn.Module:
    from torchvision.models.optical_flow import raft_large, raft_small

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        width = state["feature_encoder.convnormrelu.0.weight"].shape[0]
        model = (raft_small if width == 32 else raft_large)(weights=None, progress=False)
        model.load_state_dict(state)
    except Exception as error:  # torch.load raises many types for a bad file
        reason = str(error).splitlines()[0][:120]
        raise FlowError(f"{path}: not a state dict of raft_small or raft_large ({reason})") from None
    return model.eval()


def _pyflow(first: torch.Tensor) -> FlowTo:
    try:
        module: Any = importlib.import_module("pyflow")
    except ImportError:
        module = None
    if not hasattr(module, "coarse2fine_flow"):  # `pip install pyflow` is another program
        how = "clone github.com/pathak22/pyflow, run `python setup.py build_ext -i` in it and put it on PYTHONPATH"
        raise FlowError(f"flow method pyflow: not built here; {how}")

    def flow_to(frame: torch.Tensor) -> torch.Tensor:
        pair = (_pixels(image).astype(np.float64) for image in (first, frame))
        dx, dy, _ = module.coarse2fine_flow(*pair, 0.012, 0.75, 20, 7, 1, 30, 0)
        return torch.from_numpy(np.stack([dx, dy]).astype(np.float32))  # (2, H, W)

    return flow_to


def weights_digest(path: str | Path) -> str:
    """Return 16 digits of the SHA-256 of a file of weights."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def flow_settings(method: str, weights: str | Path | None, device: str) -> dict[str, Any]:
    """Return what a method's flow depends on beside its name; FlowError where the method cannot run here."""
    image = torch.zeros(3, 64, 64)
    estimate_flow(image, image[None], method=method, weights=weights, device=device)
    return {"flow_version": FLOW_VERSION} | ({"raft_weights": weights_digest(weights)} if weights else {})
