"""Estimate optical flow from frame 0 to every other frame of a clip, and say where it can be believed.

Flow is forward (frame 0 -> t), float32, in pixels of the frames' own grid, channel 0 = dx (right), 1 = dy (down).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from data.flow_refinement import FlowRefinement
from data.media import to_bytes

# Part of the settings of clip sets, so that flow of different versions is not mixed: raise it when flow changes.
FLOW_VERSION = 3
METHODS = ("dis", "dis_fast", "dis_x2", "farneback", "raft", "pyflow")

# visible_flow: sigma of the blur that every photometric difference passes through
BLUR_SIGMA_PX = 1.5
# a pixel whose blurred change is below this shows no motion (method.md section 5 measured at most .01 dB lost)
UNCHANGED = 2.5 / 255
# A pixel that changes by less than this on average over so many frames stands still. In a single frame many a moving
# pixel meets its own colour by chance, so there a square of this side must not change, or its surroundings (the blurred
# change) only by so little. Side 1 would leave no flow on any pixel that looks the same, and cost .13 dB of the
# estimate and .13 of the motion fitted to it.
STILL_CHANGE = 2 / 255
MANY_FRAMES = 4
STILL_SIDE_PX = 3
QUIET_CHANGE = 4 / 255
# a pixel that stands still but for a gust moves in the frames in which it changes by this or more
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
    """Estimate the flow from one picture to each of several frames.

    Methods: "dis" (tuned DIS, then `flow_refinement`), "dis_fast" (tuned DIS alone), "dis_x2" (tuned DIS on pictures
    enlarged twice, four times slower), "farneback", "raft" (torchvision, needs `weights`), "pyflow" (when built here).
    Every frame is taken by itself, but "dis" then sets to 0 what `static_frames` finds, which from 4 frames on depends
    on all that are given: of a clip given in pieces, pass `still`. docs/training.md has what the methods reach.

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
    _check_pictures(first, frames)
    flow_to = _find_method(method, weights, device)(first)
    flow = torch.empty(frames.shape[0], 2, *first.shape[1:])  # (T, 2, H, W)
    for index, frame in enumerate(frames):
        flow[index] = flow_to(frame)
    return flow.masked_fill_(static_frames(first, frames, still=still), 0.0) if method == "dis" else flow


def _check_pictures(first: torch.Tensor, frames: torch.Tensor) -> None:
    if first.ndim != 3 or first.shape[0] != 3:
        raise ValueError(f"first: expected (3, H, W), got {tuple(first.shape)}")
    if frames.ndim != 4 or frames.shape[1:] != first.shape:
        raise ValueError(f"frames: expected (T, {', '.join(map(str, first.shape))}), got {tuple(frames.shape)}")
    _check_types(first=first, frames=frames)


def _check_types(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name}: expected float32, got {str(tensor.dtype).removeprefix('torch.')}")


def static_pixels(first: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Tell which pixels a clip shows at rest: mean over t and colours of |I_t - I_0| below 2/255. Ours.

    Args:
        first: (3, H, W) in [0, 1].
        frames: (T, 3, H, W) in [0, 1]; of fewer than 4 frames nothing can be told, and no pixel is named.

    Returns:
        (1, H, W) bool.
    """
    if frames.shape[0] < MANY_FRAMES:
        return torch.zeros_like(first[:1], dtype=torch.bool)
    total = torch.zeros_like(first[:1])
    for frame in frames:
        total += _change(first, frame[None])[0]
    return total / frames.shape[0] < STILL_CHANGE


def static_frames(first: torch.Tensor, frames: torch.Tensor, *, still: torch.Tensor | None = None) -> torch.Tensor:
    """Tell where nothing is to be seen of motion, by the pictures alone. Ours (method.md section 1).

    Where the clip shows a static pixel (`static_pixels`), but in frames where it changes by 8/255 or more all the same;
    and in one frame where a pixel changes by less than 2/255, and so do its eight neighbours, or its surroundings (blur
    of sigma 1.5 px) by less than 4/255. Changes are means over colours.

    Args:
        first: (3, H, W) in [0, 1].
        frames: (T, 3, H, W) in [0, 1].
        still: (1, H, W) bool, `static_pixels` of the whole clip where `frames` are only some of it.

    Returns:
        (T, 1, H, W) bool.
    """
    still = static_pixels(first, frames) if still is None else still
    resting = torch.empty(frames.shape[0], 1, *first.shape[1:], dtype=torch.bool)  # (T, 1, H, W)
    for index, frame in enumerate(frames):
        change = _change(first, frame[None])  # (1, 1, H, W)
        largest = F.max_pool2d(change, STILL_SIDE_PX, 1, STILL_SIDE_PX // 2)  # (1, 1, H, W)
        quiet = (change < STILL_CHANGE) & (_blur(change) < QUIET_CHANGE)  # (1, 1, H, W)
        resting[index] = (largest < STILL_CHANGE)[0] | quiet[0] | (still & (change < MOVING_CHANGE)[0])
    return resting


def visible_flow(
    first: torch.Tensor, frames: torch.Tensor, flow: torch.Tensor, *, still: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero the flow that cannot be seen, and rate the rest by how well it explains the frame.

    With r(F) = blur(mean_c |I_t(p + F) - I_0(p)|), F_t(p) becomes 0 where r(0) < 2.5/255, or where zero flow
    explains the frame as well as the estimate does: r(0) <= 1.05 r(F) + .25/255; and where `static_frames` sees no
    motion, whatever moves beside it.
    Reliability = 1 / (1 + (r / (16/255))^2) with r of the flow that is returned; 0 where p + F leaves the picture
    by more than half a pixel, for that cannot be checked. Ours (method.md sections 1 and 5).

    Args:
        first: (3, H, W) float32 in [0, 1].
        frames: (T, 3, H, W) float32 in [0, 1].
        flow: (T, 2, H, W) float32 px, frame 0 -> t.
        still: as for `static_frames`.

    Returns:
        flow (T, 2, H, W) px, and reliability (T, 1, H, W) in [0, 1]. No gradients.

    Raises:
        ValueError: a tensor of the wrong shape or type.
    """
    _check_pictures(first, frames)
    _check_types(flow=flow)
    if flow.shape != (frames.shape[0], 2, *first.shape[1:]):
        raise ValueError(f"flow: expected {(frames.shape[0], 2, *first.shape[1:])}, got {tuple(flow.shape)}")
    visible = torch.empty_like(flow)  # (T, 2, H, W)
    reliability = torch.empty_like(flow[:, :1])  # (T, 1, H, W)
    with torch.no_grad():
        still = static_pixels(first, frames) if still is None else still  # (1, H, W)
        for start in range(0, frames.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            shown = flow[part].masked_fill(static_frames(first, frames[part], still=still), 0.0)
            visible[part], reliability[part] = _visible_chunk(first[None], frames[part], shown)
    return visible, reliability


def estimate_backward_flow(
    first: torch.Tensor,
    frames: torch.Tensor,
    *,
    method: str = "dis_fast",
    weights: str | Path | None = None,
    device: str = "cpu",
) -> torch.Tensor:
    """Estimate the flow from every frame back to frame 0, for `forward_backward_error`.

    Each frame is taken by itself. For a check the coarser estimate suffices: "dis" is answered by "dis_fast" here.

    Args:
        first: (3, H, W) in [0, 1], frame 0.
        frames: (T, 3, H, W) in [0, 1].
        method: one of METHODS; "dis_fast" suffices for a check.
        weights, device: as in `estimate_flow`.

    Returns:
        (T, 2, H, W) float32 px on the grid of frame t: where the point seen at q of frame t was in frame 0, minus q.

    Raises:
        FlowError: the method is unknown or cannot run here.
        ValueError: a tensor of the wrong shape or type.
    """
    _check_pictures(first, frames)
    method = "dis_fast" if method == "dis" else method
    flow = torch.empty(frames.shape[0], 2, *first.shape[1:])  # (T, 2, H, W)
    make = _find_method(method, weights, device)
    for index, frame in enumerate(frames):
        flow[index] = make(frame)(first)
    return flow


def forward_backward_error(flow: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """Return |F_t(p) + B_t(p + F_t(p))|: how far from p the way there and back ends.

    Large where p is covered in frame t, where nothing holds the flow, or where either estimate is wrong. Where p + F
    leaves the picture the border's answer is taken.

    Args:
        flow: (T, 2, H, W) px, frame 0 -> t, on the grid of frame 0.
        backward: (T, 2, H, W) px, frame t -> 0, on the grid of frame t.

    Returns:
        (T, 1, H, W) px, no gradients.

    Raises:
        ValueError: tensors of the wrong shape.
    """
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow: expected (T, 2, H, W), got {tuple(flow.shape)}")
    if backward.shape != flow.shape:
        raise ValueError(f"backward: expected {tuple(flow.shape)}, got {tuple(backward.shape)}")
    with torch.no_grad():
        back, _ = _look_up(backward, flow)  # (T, 2, H, W)
        return (flow + back).square().sum(1, keepdim=True).sqrt()  # (T, 1, H, W)


def _change(first: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Mean over colours of |I_t - I_0|: (N, 1, H, W) of frames (N, 3, H, W)."""
    return (frames - first).abs().mean(1, keepdim=True)


def _visible_chunk(first: torch.Tensor, frames: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    warped, inside = _look_up(frames, flow)
    still = _blur(_change(first, frames))  # (N, 1, H, W)
    moved = _blur(_change(first, warped))  # (N, 1, H, W)
    unseen = (still < UNCHANGED) | (still <= moved * (1 + ZERO_MARGIN_RELATIVE) + ZERO_MARGIN)
    residual = torch.where(unseen, still, moved)
    reliability = 1 / (1 + (residual / RELIABILITY_RESIDUAL).square())
    return flow.masked_fill(unseen, 0.0), reliability * (inside | unseen)


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
    """Return what makes the estimator of a picture; what is the same for all pictures (RAFT) is made here, once."""
    if method == "dis":
        return _refined_method
    if method in ("dis_fast", "dis_x2"):
        return functools.partial(_dis_method, enlarge=2 if method == "dis_x2" else 1)
    if method == "farneback":
        return _farneback_method
    if method == "raft":
        return _raft_method(weights, device)
    if method == "pyflow":
        return _pyflow_method
    raise FlowError(f"flow method {method!r}: choose one of {', '.join(METHODS)}")


def _luminance(image: torch.Tensor, enlarge: int = 1) -> np.ndarray:
    grey = cv2.cvtColor(to_bytes(image), cv2.COLOR_RGB2GRAY)  # (H, W)
    if enlarge == 1:
        return grey
    return cv2.resize(grey, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)


def _dis_method(first: torch.Tensor, *, enlarge: int, intensity_weight: float = 5.0) -> FlowTo:
    """DIS tuned for small motion; the presets lose a third to a half of it (method.md section 5)."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    dis.setPatchSize(8)
    dis.setPatchStride(2)
    dis.setGradientDescentIterations(50)
    dis.setVariationalRefinementIterations(10)
    dis.setVariationalRefinementDelta(intensity_weight)
    height, width = first.shape[1:]
    reference = _luminance(first, enlarge)  # (sH, sW)

    def flow_to(frame: torch.Tensor) -> torch.Tensor:
        flow = dis.calc(reference, _luminance(frame, enlarge), None)  # (sH, sW, 2)
        if enlarge > 1:
            flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / enlarge  # (H, W, 2)
        return torch.from_numpy(np.ascontiguousarray(flow.transpose(2, 0, 1)))  # (2, H, W)

    return flow_to


def _refined_method(first: torch.Tensor) -> FlowTo:
    # twice OpenCV's weight: .3 dB on eight training clips before the refinement, and lower errors on scenes
    start_of = _dis_method(first, enlarge=1, intensity_weight=10.0)
    refinement = FlowRefinement(_pixels(first))

    def flow_to(frame: torch.Tensor) -> torch.Tensor:
        start = np.ascontiguousarray(start_of(frame).permute(1, 2, 0).numpy())  # (H, W, 2)
        flow = refinement.refine(_pixels(frame), start)  # (H, W, 2)
        return torch.from_numpy(np.ascontiguousarray(flow.transpose(2, 0, 1)))  # (2, H, W)

    return flow_to


def _pixels(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy(), np.float32)  # (H, W, 3)


def _farneback_method(first: torch.Tensor) -> FlowTo:
    reference = _luminance(first)  # (H, W)

    def flow_to(frame: torch.Tensor) -> torch.Tensor:
        flow = cv2.calcOpticalFlowFarneback(reference, _luminance(frame), None, 0.5, 5, 13, 5, 5, 1.1, 0)  # (H, W, 2)
        return torch.from_numpy(np.ascontiguousarray(flow.transpose(2, 0, 1)))  # (2, H, W)

    return flow_to


def _raft_method(weights: str | Path | None, device: str) -> MakeFlowTo:
    if weights is None:
        raise FlowError("--method raft: name the file of torchvision's RAFT weights with --raft-weights FILE")
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
    """Return what tells one file of weights from another, wherever it lies: 16 digits of its SHA-256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _load_raft(path: Path) -> torch.nn.Module:
    from torchvision.models.optical_flow import raft_large, raft_small

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        width = state["feature_encoder.convnormrelu.0.weight"].shape[0]
        model = (raft_small if width == 32 else raft_large)(weights=None, progress=False)
        model.load_state_dict(state)
    except FileNotFoundError:
        raise FlowError(f"--raft-weights {path}: no such file") from None
    except Exception as error:  # torch.load raises many types for a bad file
        reason = str(error).splitlines()[0][:120]
        raise FlowError(f"--raft-weights {path}: not a state dict of raft_small or raft_large ({reason})") from None
    return model.eval()


def _pyflow_method(first: torch.Tensor) -> FlowTo:
    try:
        import pyflow
    except ImportError:
        pyflow = None
    # PyPI has an unrelated program of this name
    if not hasattr(pyflow, "coarse2fine_flow"):
        raise FlowError(
            "--method pyflow: not built here; clone github.com/pathak22/pyflow, run "
            "`python setup.py build_ext -i` in it and put it on PYTHONPATH (`pip install pyflow` is another program)"
        )
    module: Any = pyflow

    def doubles(image: torch.Tensor) -> np.ndarray:
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy().astype(np.float64))  # (H, W, 3)

    def flow_to(frame: torch.Tensor) -> torch.Tensor:
        u, v, _ = module.coarse2fine_flow(doubles(first), doubles(frame), 0.012, 0.75, 20, 7, 1, 30, 0)
        return torch.from_numpy(np.stack([u, v]).astype(np.float32))  # (2, H, W)

    return flow_to
