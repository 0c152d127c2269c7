"""Estimate optical flow from frame 0 to every other frame of a clip, and rate where it can be believed.

Flow is forward (frame 0 -> t), float32, in pixels of the frames' own grid, channel 0 = dx (right), 1 = dy (down).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from data.flow_refinement import FlowRefinement
from data.media import to_bytes

# Part of the settings of clip sets, so that flow of different versions is not mixed: raise it when flow changes.
FLOW_VERSION = 3
METHODS = ("dis", "dis_fast", "dis_x2", "farneback", "raft", "pyflow")

# sigma of the blur that every photometric difference passes through
BLUR_SIGMA_PX = 1.5
# a pixel whose blurred change is below this shows no motion (measured: at most 0.01 dB lost)
UNCHANGED = 2.5 / 255
# A pixel that changes by less than this on average over so many frames is static. In a single frame many a moving pixel
# meets its own colour by chance, so there a square of this side must not change, or its surroundings (the blurred
# change) only by so little. Side 1 would leave no flow on any pixel that looks the same, and cost 0.13 dB of the
# estimate and 0.13 dB of the motion fitted to it.
STILL_CHANGE = 2 / 255
MANY_FRAMES = 4
STILL_SIDE_PX = 3
QUIET_CHANGE = 4 / 255
# a pixel that is static but for a gust moves in the frames in which it changes by this or more
MOVING_CHANGE = 8 / 255
# zero flow wins unless the estimate lowers the blurred residual by more than this, relatively and absolutely
ZERO_MARGIN_RELATIVE = 0.05
ZERO_MARGIN = 0.25 / 255
# the photometric residual at which reliability is one half
RELIABILITY_RESIDUAL = 16 / 255
CHUNK = 16

# frame (3, H, W) -> flow (2, H, W) from the frame 0 it was made for
FlowTo = Callable[[torch.Tensor], torch.Tensor]
# frame 0 (3, H, W) -> FlowTo
MakeFlowTo = Callable[[torch.Tensor], FlowTo]


class FlowError(ValueError):
    """A flow method that cannot run here: the message says what is missing and how to get it."""

    is_user_error = True


def estimate_flow(
    first: torch.Tensor,
    frames: torch.Tensor,
    *,
    method: str = "dis",
    weights: str | Path | None = None,
    device: str = "cpu",
    still: torch.Tensor | None = None,
) -> torch.Tensor:
    """Estimate the flow from one image to each of several frames.

    Methods: "dis" (tuned DIS, then `flow_refinement`), "dis_fast" (tuned DIS alone), "dis_x2" (tuned DIS on images
    enlarged twice), "farneback", "raft" (torchvision, needs `weights`), "pyflow" (when built here). Every frame is
    taken by itself, but "dis" then sets to 0 what `static_frames` finds.

    Args:
        first: (3, H, W) float32 in [0, 1], frame 0.
        frames: (T, 3, H, W) float32 in [0, 1], consecutive frames of the clip.
        method: one of METHODS.
        weights: file with a state dict of torchvision's raft_small or raft_large; only for "raft".
        device: where RAFT runs; the other methods run on the CPU.
        still: (1, H, W) bool, `static_pixels` of the whole clip where `frames` are only some of it.

    Returns:
        (T, 2, H, W) float32 px, no gradients.

    Raises:
        FlowError: the method is unknown or cannot run here.
        ValueError: a tensor of the wrong shape or type.
    """
    _check_tensors(first, frames)
    flow_to = _find_method(method, weights, device)(first)
    flow = torch.empty(len(frames), 2, *first.shape[1:])  # (T, 2, H, W)
    for index, frame in enumerate(frames):
        flow[index] = flow_to(frame)
    return flow.masked_fill_(static_frames(first, frames, still=still), 0.0) if method == "dis" else flow


def estimate_backward_flow(
    first: torch.Tensor,
    frames: torch.Tensor,
    *,
    method: str = "dis_fast",
    weights: str | Path | None = None,
    device: str = "cpu",
) -> torch.Tensor:
    """Estimate the flow from every frame back to frame 0, for `forward_backward_error`.

    Arguments and errors are those of `estimate_flow`. The coarser "dis_fast" stands in for "dis": it is only a check.

    Returns:
        (T, 2, H, W) float32 px on the grid of frame t: where the point seen at q of frame t was in frame 0, minus q.
    """
    _check_tensors(first, frames)
    make = _find_method("dis_fast" if method == "dis" else method, weights, device)
    flow = torch.empty(len(frames), 2, *first.shape[1:])  # (T, 2, H, W)
    for index, frame in enumerate(frames):
        flow[index] = make(frame)(first)
    return flow


def _check_tensors(first: torch.Tensor, frames: torch.Tensor, flow: torch.Tensor | None = None) -> None:
    if first.ndim != 3 or first.shape[0] != 3:
        raise ValueError(f"first: expected (3, H, W), got {tuple(first.shape)}")
    _check_shape("frames", frames, ("T", *first.shape))
    tensors = {"first": first, "frames": frames}
    if flow is not None:
        _check_shape("flow", flow, (len(frames), 2, *first.shape[1:]))
        tensors["flow"] = flow
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name}: expected float32, got {str(tensor.dtype).removeprefix('torch.')}")


def _check_shape(name: str, tensor: torch.Tensor, expected: tuple[int | str, ...]) -> None:
    """Raise ValueError unless the tensor has this shape, in which a letter stands for any number."""
    sizes = zip(tensor.shape, expected, strict=False)
    if tensor.ndim != len(expected) or any(isinstance(want, int) and size != want for size, want in sizes):
        raise ValueError(f"{name}: expected ({', '.join(map(str, expected))}), got {tuple(tensor.shape)}")


def static_pixels(first: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Find the static pixels of a clip, (1, H, W) bool: mean over t and colours of |I_t - I_0| below 2/255. Ours.

    Of fewer than 4 frames (T, 3, H, W) none is named.
    """
    if len(frames) < MANY_FRAMES:
        return torch.zeros_like(first[:1], dtype=torch.bool)
    total = torch.zeros_like(first[:1])
    for frame in frames:
        total += _change(first, frame[None])[0]
    return total / len(frames) < STILL_CHANGE


def static_frames(first: torch.Tensor, frames: torch.Tensor, *, still: torch.Tensor | None = None) -> torch.Tensor:
    """Find where frames (T, 3, H, W) show no motion, by the images alone: (T, 1, H, W) bool. Ours.

    At static pixels of the clip, but in frames where they change by 8/255 or more all the same; and in one frame where
    a pixel changes by less than 2/255, and so do its eight neighbours, or its surroundings (blur of sigma 1.5 px) by
    less than 4/255. Changes are means over colours. `still` is as for `estimate_flow`.
    """
    still = static_pixels(first, frames) if still is None else still
    static = torch.empty(len(frames), 1, *first.shape[1:], dtype=torch.bool)  # (T, 1, H, W)
    for index, frame in enumerate(frames):
        change = _change(first, frame[None])  # (1, 1, H, W)
        largest = F.max_pool2d(change, STILL_SIDE_PX, 1, STILL_SIDE_PX // 2)  # (1, 1, H, W)
        quiet = (change < STILL_CHANGE) & (_blur(change) < QUIET_CHANGE)  # (1, 1, H, W)
        static[index] = (largest < STILL_CHANGE)[0] | quiet[0] | (still & (change < MOVING_CHANGE)[0])
    return static


@torch.no_grad()
def visible_flow(
    first: torch.Tensor, frames: torch.Tensor, flow: torch.Tensor, *, still: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero the flow that cannot be seen, and rate the rest by how well it explains the frame.

    With r(F) = blur(mean_c |I_t(p + F) - I_0(p)|), F_t(p) becomes 0 where r(0) < 2.5/255, or where zero flow explains
    the frame as well as the estimate does: r(0) <= 1.05 r(F) + 0.25/255; and where `static_frames` sees no motion.
    Reliability = 1 / (1 + (r / (16/255))^2) with r of the flow that is returned; 0 where p + F leaves the image by more
    than half a pixel, for that cannot be checked. Ours.

    Takes and returns flow (T, 2, H, W), px, frame 0 -> t; reliability is (T, 1, H, W) in [0, 1]. No gradients. `still`
    is as for `estimate_flow`. Raises ValueError for a tensor of the wrong shape or type.
    """
    _check_tensors(first, frames, flow)
    visible, reliability = torch.empty_like(flow), torch.empty_like(flow[:, :1])  # (T, 2, H, W), (T, 1, H, W)
    still = static_pixels(first, frames) if still is None else still  # (1, H, W)
    for start in range(0, len(frames), CHUNK):
        part = slice(start, start + CHUNK)
        shown = flow[part].masked_fill(static_frames(first, frames[part], still=still), 0.0)
        visible[part], reliability[part] = _visible_chunk(first[None], frames[part], shown)
    return visible, reliability


def _visible_chunk(first: torch.Tensor, frames: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    warped, inside = _look_up(frames, flow)
    still = _blur(_change(first, frames))  # (N, 1, H, W)
    moved = _blur(_change(first, warped))  # (N, 1, H, W)
    unseen = (still < UNCHANGED) | (still <= moved * (1 + ZERO_MARGIN_RELATIVE) + ZERO_MARGIN)
    residual = torch.where(unseen, still, moved)
    reliability = 1 / (1 + (residual / RELIABILITY_RESIDUAL).square())
    return flow.masked_fill(unseen, 0.0), reliability * (inside | unseen)


@torch.no_grad()
def forward_backward_error(flow: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """Return |F_t(p) + B_t(p + F_t(p))|, px: how far from p the way there and back ends; (T, 1, H, W), no gradients.

    Large where p is covered in frame t, where nothing holds the flow, or where either estimate is wrong. Where p + F
    leaves the image the border's answer is taken. `flow` (T, 2, H, W) px lies on the grid of frame 0, `backward`
    (T, 2, H, W) px on that of frame t; ValueError for other shapes.
    """
    _check_shape("flow", flow, ("T", 2, "H", "W"))
    _check_shape("backward", backward, tuple(flow.shape))
    back, _ = _look_up(backward, flow)  # (T, 2, H, W)
    return (flow + back).square().sum(1, keepdim=True).sqrt()  # (T, 1, H, W)


def _change(first: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Mean over colours of |I_t - I_0|: (N, 1, H, W) of frames (N, 3, H, W)."""
    return (frames - first).abs().mean(1, keepdim=True)


def _look_up(frames: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Read frames (N, 3, H, W) at p + flow, bilinear, the border held; also whether p + flow is inside."""
    height, width = frames.shape[-2:]
    x = torch.arange(width, dtype=flow.dtype) + flow[:, 0]  # (N, H, W)
    y = torch.arange(height, dtype=flow.dtype)[:, None] + flow[:, 1]  # (N, H, W)
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], -1)  # (N, H, W, 2)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    warped = F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return warped, inside[:, None]


def _blur(values: torch.Tensor) -> torch.Tensor:
    """Blur (N, 1, H, W) with a Gaussian, the border mirrored."""
    radius = math.ceil(3 * BLUR_SIGMA_PX)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / BLUR_SIGMA_PX).square())
    taps = (taps / taps.sum()).to(values)
    mode = "reflect" if min(values.shape[-2:]) > radius else "replicate"
    values = F.pad(values, (radius, radius, radius, radius), mode=mode)
    return F.conv2d(F.conv2d(values, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))


def _find_method(method: str, weights: str | Path | None, device: str) -> MakeFlowTo:
    """Return what makes the estimator of an image; what is the same for all images (RAFT) is made here, once."""
    if method == "raft":
        return _raft_method(weights, device)
    methods: dict[str, MakeFlowTo] = {
        "dis": _refined_method,
        "dis_fast": functools.partial(_dis_method, enlarge=1),
        "dis_x2": functools.partial(_dis_method, enlarge=2),
        "farneback": _farneback_method,
        "pyflow": _pyflow_method,
    }
    if method not in methods:
        raise FlowError(f"flow method {method!r}: choose one of {', '.join(METHODS)}")
    return methods[method]


def _luminance(image: torch.Tensor) -> np.ndarray:
    return cv2.cvtColor(to_bytes(image), cv2.COLOR_RGB2GRAY)  # (H, W)


def _pixels(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy(), np.float32)  # (H, W, 3)


def _as_flow(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))  # (2, H, W)


def _dis_method(first: torch.Tensor, *, enlarge: int, intensity_weight: float = 5.0) -> FlowTo:
    """DIS tuned for small motion; the presets lose a third to a half of it."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    dis.setPatchSize(8)
    dis.setPatchStride(2)
    dis.setGradientDescentIterations(50)
    dis.setVariationalRefinementIterations(10)
    dis.setVariationalRefinementDelta(intensity_weight)

    def enlarged(image: torch.Tensor) -> np.ndarray:
        grey = _luminance(image)
        if enlarge == 1:
            return grey
        return cv2.resize(grey, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)  # (sH, sW)

    reference = enlarged(first)

    def flow_to(frame: torch.Tensor) -> torch.Tensor:
        flow = dis.calc(reference, enlarged(frame), None)  # (sH, sW, 2)
        if enlarge > 1:
            flow = cv2.resize(flow, first.shape[:0:-1], interpolation=cv2.INTER_AREA) / enlarge  # (H, W, 2)
        return _as_flow(flow)

    return flow_to


def _refined_method(first: torch.Tensor) -> FlowTo:
    # twice OpenCV's weight: 0.3 dB on eight training clips before the refinement, and lower errors on scenes
    start_of = _dis_method(first, enlarge=1, intensity_weight=10.0)
    refinement = FlowRefinement(_pixels(first))
    return lambda frame: _as_flow(refinement.refine(_pixels(frame), _pixels(start_of(frame))))


def _farneback_method(first: torch.Tensor) -> FlowTo:
    reference = _luminance(first)  # (H, W)
    parameters = (None, 0.5, 5, 13, 5, 5, 1.1, 0)
    return lambda frame: _as_flow(cv2.calcOpticalFlowFarneback(reference, _luminance(frame), *parameters))


def _raft_method(weights: str | Path | None, device: str) -> MakeFlowTo:
    if weights is None:
        raise FlowError("flow method raft: needs the file of torchvision's RAFT weights")
    model = _load_raft(Path(weights)).to(device)

    def make(first: torch.Tensor) -> FlowTo:
        height, width = first.shape[1:]

        @torch.no_grad()
        def flow_to(frame: torch.Tensor) -> torch.Tensor:
            # RAFT works on multiples of 8, and its correlation pyramid needs at least 128 px a side
            pad = (0, max(128, -(-width // 8) * 8) - width, 0, max(128, -(-height // 8) * 8) - height)
            pair = torch.stack([first, frame]).to(device) * 2 - 1  # (2, 3, H, W), RAFT's own range
            pair = F.pad(pair, pad, mode="replicate")  # (2, 3, H', W')
            return model(pair[:1], pair[1:])[-1][0, :, :height, :width].float().cpu()  # (2, H, W)

        return flow_to

    return make


def weights_digest(path: str | Path) -> str:
    """Return what distinguishes one file of weights from another, wherever it lies: 16 digits of its SHA-256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _load_raft(path: Path) -> torch.nn.Module:
    from torchvision.models.optical_flow import raft_large, raft_small

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        width = state["feature_encoder.convnormrelu.0.weight"].shape[0]
        model = (raft_small if width == 32 else raft_large)(weights=None, progress=False)
        model.load_state_dict(state)
    except FileNotFoundError:
        raise FlowError(f"{path}: no such file; give torchvision's RAFT weights") from None
    except Exception as error:  # torch.load raises many types for a bad file
        reason = str(error).splitlines()[0][:120]
        raise FlowError(f"{path}: not a state dict of raft_small or raft_large ({reason})") from None
    return model.eval()


def _pyflow_method(first: torch.Tensor) -> FlowTo:
    try:
        from pyflow import coarse2fine_flow
    except ImportError:  # also PyPI's unrelated program of this name
        raise FlowError(
            "flow method pyflow: not built here; clone github.com/pathak22/pyflow, run "
            "`python setup.py build_ext -i` in it and put it on PYTHONPATH (`pip install pyflow` is another program)"
        ) from None

    def flow_to(frame: torch.Tensor) -> torch.Tensor:
        images = (_pixels(image).astype(np.float64) for image in (first, frame))  # (H, W, 3)
        u, v, _ = coarse2fine_flow(*images, 0.012, 0.75, 20, 7, 1, 30, 0)
        return torch.from_numpy(np.stack([u, v]).astype(np.float32))  # (2, H, W)

    return flow_to
