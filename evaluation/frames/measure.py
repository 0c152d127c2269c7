"""What `evaluate.py frames` computes: the same sequences rendered in every way and measured alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from data.clips import ClipRow
from evaluation import EvaluationError
from evaluation.clips import EvaluationClip
from evaluation.frames.models import TrainedRenderer
from evaluation.frames.statistics import AVERAGE_ROW, ClipMetrics
from evaluation.frames.visuals import Add
from metrics.images import Lpips, frame_metrics
from metrics.perceptual import LEAST_SIDE_PX, PerceptualLoss
from models.device import autocast, choose_device
from models.frame_synthesis import FrameSynthesis, splat_image
from motion.flow import default_grid_scale, magnitude

BATCH_SIZE = 4
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
    methods = {one.name: partial(_by_model, one.model.to(device), device, precision) for one in models}
    methods |= {name: partial(_by_splat, options) for name, options in SPLAT_ROWS.items()}
    methods["OpenCV remap"] = lambda first: lambda flow, _importance: remap(first[0], flow)
    methods["frame 0 repeated"] = lambda first: lambda flow, _importance: first.expand(len(flow), -1, -1, -1)
    return methods


def remap(image: Tensor, flow: Tensor) -> Tensor:
    """Warp (3, H, W) backwards by forward flows (N, 2, H, W) px, image(p - F(p)): the usual cheap approximation."""
    pixels = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())  # (H, W, 3)
    rows, columns = np.indices(pixels.shape[:2], dtype=np.float32)
    frames = []
    for dx, dy in flow.cpu().numpy():
        warped = cv2.remap(pixels, columns - dx, rows - dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        frames.append(torch.from_numpy(warped).permute(2, 0, 1))
    return torch.stack(frames).to(flow.device)  # (N, 3, H, W)


@dataclass
class FrameMeasurement:
    """What renders and measures clips with every method, all with the same flow."""

    open: Callable[..., EvaluationClip]  # of a row and a device
    models: Sequence[TrainedRenderer]
    show: Callable[[EvaluationClip], AbstractContextManager[Add]]  # opens what takes the frames, to look at them
    device: str | torch.device  # "auto" or a device; chosen by `load`
    precision: str
    lpips: Sequence[Lpips]
    features: PerceptualLoss | None

    def load(self) -> FrameMeasurement:
        self.device = choose_device(self.device)
        self.methods = make_methods(self.models, self.device, self.precision)
        for network in filter(None, (*self.lpips, self.features)):
            network.to(self.device)
        return self

    @torch.no_grad()
    def measure(self, row: ClipRow) -> dict[str, Any]:
        """Return ClipMetrics' fields and "device"; EvaluationError for frames that are not finite or too small."""
        clip = self.open(row, device=str(self.device))
        height, width = clip.first.shape[-2:]
        if (self.lpips or self.features) and min(height, width) < LEAST_SIDE_PX:
            right = f"right: sides of at least {LEAST_SIDE_PX} px for LPIPS and feature_distance"
            raise EvaluationError(f"data: clip {clip.id} has {width} x {height} px; {right}")
        first, importance = clip.first[None].to(self.device), clip.importance[None].to(self.device)
        renderers = {name: method(first) for name, method in self.methods.items()}
        parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in renderers}
        motion_px, hole_percent = list[Tensor](), list[Tensor]()
        with self.show(clip) as add:
            for start in range(0, len(clip.times_s), BATCH_SIZE):
                targets, flow = (maps.to(self.device) for maps in clip.read(slice(start, start + BATCH_SIZE)))
                moved_px = magnitude(flow).flatten(1).mean(1) * default_grid_scale(height, width)
                motion_px.append(moved_px.double().cpu())
                _, mass = splat_image(first, flow, importance, operator="average")
                hole_percent.append(100 * (mass == 0).double().flatten(1).mean(1).cpu())
                rendered = {name: render(flow, importance) for name, render in renderers.items()}
                for name, frames in rendered.items():
                    if not bool(frames.isfinite().all()):
                        right = "right: precision no, or a model whose training did not break down"
                        raise EvaluationError(f"{name}: its frames of clip {clip.id} are not finite; {right}")
                    parts[name].append(frame_metrics(frames, targets, lpips=self.lpips, features=self.features))
                add(targets, rendered)
        metrics = {name: {key: torch.cat([one[key] for one in of]) for key in of[0]} for name, of in parts.items()}
        time_s = torch.tensor(clip.times_s, dtype=torch.float64)
        columns = time_s, torch.cat(motion_px), torch.cat(hole_percent)
        return vars(ClipMetrics(clip.id, clip.source, clip.origin, *columns, metrics)) | {"device": str(self.device)}


def _by_model(model: FrameSynthesis, device: torch.device, precision: str, first: Tensor) -> Render:
    with autocast(device, precision):
        features = model.encode(first)

    def render(flow: Tensor, importance: Tensor) -> Tensor:
        with autocast(device, precision):
            return model.synthesize(first, features, flow, importance).clamp(0, 1)

    return render


def _by_splat(options: dict[str, Any], first: Tensor) -> Render:
    return lambda flow, importance: splat_image(first, flow, importance, **options)[0]
