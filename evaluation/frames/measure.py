"""What `evaluate.py frames` computes: the same sequences rendered in every way and measured alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from evaluation import EvaluationError
from evaluation.clips import EvaluationClip
from evaluation.frames.models import TrainedRenderer
from evaluation.frames.statistics import AVERAGE_ROW, ClipMetrics
from evaluation.frames.videos import ClipVideo
from metrics.images import Lpips, frame_metrics
from metrics.perceptual import LEAST_SIDE_PX, PerceptualLoss
from models.device import AUTOCAST_DTYPES
from models.frame_synthesis import FrameSynthesis, splat_image
from motion.flow import default_grid_scale, magnitude

BATCH_SIZE = 4
REMAP_ROW, FRAME_0_ROW = "OpenCV remap", "frame 0 repeated"
# Rows of models.frame_synthesis.splat_image, and its options.
SPLAT_ROWS: dict[str, dict[str, Any]] = {
    AVERAGE_ROW: {"operator": "average"},
    "softmax splat": {"operator": "softmax"},
    "gaussian splat EWA": {"operator": "gaussian"},
    "gaussian splat iso": {"operator": "gaussian", "ewa": False},
    "Gaussian importance splat": {"operator": "gaussian_importance"},
}

# (flow (n, 2, H, W), importance (1, 1, H, W)) -> frames (n, 3, H, W)
Render = Callable[[Tensor, Tensor], Tensor]
# first (1, 3, H, W) -> Render: what depends on the image alone is computed once
Method = Callable[[Tensor], Render]


def make_methods(models: Sequence[TrainedRenderer], device: torch.device, precision: str) -> dict[str, Method]:
    """Return {name: method}: the models, image-space splats, OpenCV's remap, and frame 0 itself."""
    methods = {one.name: _model_method(one.model.to(device), device, AUTOCAST_DTYPES[precision]) for one in models}
    methods |= {name: _splat_method(options) for name, options in SPLAT_ROWS.items()}
    methods[REMAP_ROW] = lambda first: lambda flow, _importance: remap(first[0], flow)
    methods[FRAME_0_ROW] = lambda first: lambda flow, _importance: first.expand(len(flow), -1, -1, -1)
    return methods


def make_rows(models: Sequence[TrainedRenderer]) -> dict[str, list[str]]:
    """Return {row of the table: names of its methods}: a row's models are its training seeds."""
    rows: dict[str, list[str]] = {}
    for one in models:
        rows.setdefault(one.row, []).append(one.name)
    return rows | {name: [name] for name in (*SPLAT_ROWS, REMAP_ROW, FRAME_0_ROW)}


def remap(image: Tensor, flow: Tensor) -> Tensor:
    """Warp backwards with cv2.remap: out(p) = image(p - F(p)), bilinear, the border held.

    The usual cheap approximation: the true source of p is q with q + F(q) = p, and F is read at p instead of q.

    Args:
        image: (3, H, W).
        flow: (N, 2, H, W) px, forward.

    Returns:
        (N, 3, H, W).
    """
    pixels = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())  # (H, W, 3)
    rows, columns = np.indices(pixels.shape[:2], dtype=np.float32)
    frames = []
    for dx, dy in flow.cpu().numpy():
        warped = cv2.remap(pixels, columns - dx, rows - dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        frames.append(torch.from_numpy(warped).permute(2, 0, 1))
    return torch.stack(frames).to(flow.device)  # (N, 3, H, W)


@torch.no_grad()
def measure(
    clips: Iterable[EvaluationClip],
    methods: dict[str, Method],
    device: torch.device,
    *,
    lpips: Sequence[Lpips] = (),
    features: PerceptualLoss | None = None,
    video_of: Callable[[EvaluationClip], AbstractContextManager[ClipVideo | None]] = lambda clip: nullcontext(),
) -> list[ClipMetrics]:
    """Render and measure every clip with every method, all with the same flow, one clip in memory at a time.

    Args:
        clips: the sequences.
        methods: of `make_methods`.
        device: where to render and to measure.
        lpips, features: as in `metrics.images.frame_metrics`.
        video_of: opens the video that a clip's frames are written to, or None.

    Raises:
        EvaluationError: a model renders frames that are not finite, or images are too small for the networks.
    """
    found = []
    for clip in clips:
        height, width = clip.first.shape[-2:]
        if (lpips or features) and min(height, width) < LEAST_SIDE_PX:
            right = f"right: sides of at least {LEAST_SIDE_PX} px for LPIPS and feature_distance"
            raise EvaluationError(f"data: clip {clip.id} has {width} x {height} px; {right}")
        first, importance = clip.first[None].to(device), clip.importance[None].to(device)
        renderers = {name: method(first) for name, method in methods.items()}
        parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in methods}
        motion_px: list[Tensor] = []
        with video_of(clip) as video:
            for targets, flow in clip.batches(BATCH_SIZE):
                targets, flow = targets.to(device), flow.to(device)
                motion_px.append(
                    (magnitude(flow).flatten(1).mean(1) * default_grid_scale(height, width)).double().cpu()
                )
                frames = {name: render(flow, importance) for name, render in renderers.items()}
                for name, rendered in frames.items():
                    _check_finite(rendered, name, clip.id)
                    parts[name].append(frame_metrics(rendered, targets, lpips=lpips, features=features))
                if video is not None:
                    video.add(targets, frames)
        metrics = {name: {key: torch.cat([one[key] for one in of]) for key in of[0]} for name, of in parts.items()}
        time_s = torch.tensor(clip.times_s, dtype=torch.float64)
        found.append(ClipMetrics(clip.id, clip.source, clip.origin, time_s, torch.cat(motion_px), metrics))
    return found


def _check_finite(frames: Tensor, name: str, clip: str) -> None:
    if not bool(frames.isfinite().all()):
        raise EvaluationError(
            f"{name}: the frames it renders of clip {clip} are not finite; right: precision no, or a model whose "
            "training did not break down"
        )


def _model_method(model: FrameSynthesis, device: torch.device, dtype: torch.dtype | None) -> Method:
    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def method(first: Tensor) -> Render:
        with autocast():
            features = model.encode(first)

        def render(flow: Tensor, importance: Tensor) -> Tensor:
            with autocast():
                return model.synthesize(first, features, flow, importance).clamp(0, 1)

        return render

    return method


def _splat_method(options: dict[str, Any]) -> Method:
    def method(first: Tensor) -> Render:
        def render(flow: Tensor, importance: Tensor) -> Tensor:
            shape = (len(flow), -1, -1, -1)
            return splat_image(first.expand(shape), flow, importance.expand(shape), **options)[0]

        return render

    return method
