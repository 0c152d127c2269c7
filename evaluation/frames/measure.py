"""What `evaluate.py frames` computes: the same sequences rendered in every way, measured by one protocol."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from cli.parser import UsageError, choose_device
from evaluation.clips import EvaluationClip
from evaluation.frames.models import TrainedRenderer, model_notes
from evaluation.frames.statistics import AVERAGE_ROW, ClipMetrics, FrameTables
from evaluation.frames.videos import FrameViewer
from metrics.images import Lpips, frame_metrics
from metrics.perceptual import PerceptualLoss
from models.frame_synthesis import FrameSynthesis, splat_image
from models.precision import AUTOCAST_DTYPES
from motion.flow import default_grid_scale, magnitude

BATCH_SIZE = 4
# Smaller pictures have no features in the last layers of LPIPS and of feature_distance.
LEAST_SIDE_PX = 32
REMAP_ROW, STILL_ROW = "OpenCV remap", "frame 0 repeated"
# Rows of models.frame_synthesis.splat_image, and its options.
IMAGE_ROWS: dict[str, dict[str, Any]] = {
    AVERAGE_ROW: {"operator": "average"},
    "softmax splat": {"operator": "softmax"},
    "gaussian splat EWA": {"operator": "gaussian"},
    "gaussian splat iso": {"operator": "gaussian", "ewa": False},
    "seed's weighting splat": {"operator": "seed"},
}

# (flow (n, 2, H, W), importance (1, 1, H, W)) -> frames (n, 3, H, W)
Render = Callable[[Tensor, Tensor], Tensor]
# first (1, 3, H, W) -> Render: what depends on the picture alone is computed once
Method = Callable[[Tensor], Render]


def make_methods(models: Sequence[TrainedRenderer], device: torch.device, precision: str) -> dict[str, Method]:
    """Return {name: method}: the models, image-space splats, OpenCV's remap, and the still picture."""
    methods = {one.name: _model_method(one.model.to(device), device, AUTOCAST_DTYPES[precision]) for one in models}
    methods |= {name: _splat_method(options) for name, options in IMAGE_ROWS.items()}
    methods[REMAP_ROW] = lambda first: lambda flow, _importance: remap(first[0], flow)
    methods[STILL_ROW] = lambda first: lambda flow, _importance: first.expand(len(flow), -1, -1, -1)
    return methods


def make_rows(models: Sequence[TrainedRenderer]) -> dict[str, list[str]]:
    """Return {row of the table: names of its methods}: a row's models are its training seeds."""
    rows: dict[str, list[str]] = {}
    for one in models:
        rows.setdefault(one.row, []).append(one.name)
    return rows | {name: [name] for name in (*IMAGE_ROWS, REMAP_ROW, STILL_ROW)}


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
    height, width = pixels.shape[:2]
    rows, columns = np.indices((height, width), dtype=np.float32)
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
    viewer: FrameViewer | None = None,
) -> list[ClipMetrics]:
    """Render and measure every clip with every method, all with the same flow, one clip in memory at a time.

    Args:
        clips: the sequences.
        methods: of `make_methods`.
        device: where to render and to measure.
        lpips, features: as in `metrics.images.frame_metrics`.
        viewer: is shown the frames, and makes videos of some clips.

    Raises:
        UsageError: a model renders frames that are not finite, or pictures are too small for the networks.
    """
    found = []
    for clip in clips:
        if (lpips or features) and min(clip.first.shape[-2:]) < LEAST_SIDE_PX:
            width, height = clip.first.shape[-1], clip.first.shape[-2]
            raise UsageError(
                f"clip {clip.id} has {width} x {height} px; right: sides of at least {LEAST_SIDE_PX} px for "
                "--lpips-weights and --feature-weights"
            )
        first, importance = clip.first[None].to(device), clip.importance[None].to(device)
        renderers = {name: method(first) for name, method in methods.items()}
        parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in methods}
        motion_px: list[float] = []
        with nullcontext() if viewer is None else viewer.clip(clip) as shown:
            for targets, flow in clip.batches(BATCH_SIZE):
                targets, flow = targets.to(device), flow.to(device)
                grid_scale = default_grid_scale(*flow.shape[-2:])
                motion_px += (magnitude(flow).flatten(1).mean(1) * grid_scale).tolist()
                frames = {name: render(flow, importance) for name, render in renderers.items()}
                for name, rendered in frames.items():
                    _check_finite(rendered, name, clip.id)
                    parts[name].append(frame_metrics(rendered, targets, lpips=lpips, features=features))
                if shown is not None:
                    shown.add(targets, frames)
        figures = {name: _joined(of_batches) for name, of_batches in parts.items()}
        found.append(ClipMetrics(clip.id, clip.source, clip.origin, list(clip.times_s), motion_px, figures))
    return found


def _joined(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def _check_finite(frames: Tensor, name: str, clip: str) -> None:
    if not bool(frames.isfinite().all()):
        raise UsageError(
            f"{name}: the frames it renders of clip {clip} are not finite; right: --precision no, or a --checkpoint "
            "whose training did not break down"
        )


def _model_method(model: FrameSynthesis, device: torch.device, dtype: torch.dtype | None) -> Method:
    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def method(first: Tensor) -> Render:
        with autocast():
            features = model.encode(first)

        def render(flow: Tensor, importance: Tensor) -> Tensor:
            with autocast():
                return model.render(first, features, flow, importance)

        return render

    return method


def frames_notes(
    args: argparse.Namespace, tables: FrameTables, kept: int, models: Sequence[TrainedRenderer]
) -> list[str]:
    """Say what the tables of `evaluate.py frames` were made from: clips, their origins, the protocol, models, command.

    `kept` is the number of kept clips of the split.
    """
    origin_names = {
        "scene": "rendered scenes with exact flow",
        "video": "videos with estimated flow, unseen flow zeroed as in training",
        "pairs": "clips whose source is not at hand: stored pairs only",
    }
    origins = Counter(clip.origin for clip in tables.clips)
    frames = sum(len(clip.times_s) for clip in tables.clips)
    return [
        f"data: {args.data}, split {args.split}, {len(tables.clips)} sequences of {tables.num_sources} sources ({kept} "
        f"kept clips in the split), {frames} frames, every {args.every}; "
        + "; ".join(f"{count} {origin_names[name]}" for name, count in sorted(origins.items())),
        "protocol: frame 0 excluded; output clipped to [0, 1], not rounded; squared error pooled over a sequence "
        "before the logarithm (psnr_db), then the mean over sequences; psnr_frames_db is the mean of the frames' own "
        "values; a sequence without error counts as 100 dB; of several training seeds the mean of their figures",
        "all rows use the same flow and importance; holes of image-space splats are filled from frame 0; still pixels "
        "copy it; gaussian: sigma .45 px, with EWA or isotropic; seed's weighting: exp(-importance^2 / 2) over the "
        "bilinear footprint",
        "OpenCV remap: cv2.remap of frame 0 at p - F(p), bilinear, border held (the flow at p stands in for that at "
        "the source of p)",
        *model_notes(models),
        f"precision {args.precision}; device {choose_device(args.device)}; seed {args.seed} (clips, bootstrap)",
        f"command: {args.command}",
    ]


def _splat_method(options: dict[str, Any]) -> Method:
    def method(first: Tensor) -> Render:
        def render(flow: Tensor, importance: Tensor) -> Tensor:
            shape = (len(flow), -1, -1, -1)
            return splat_image(first.expand(shape), flow, importance.expand(shape), **options)[0]

        return render

    return method
