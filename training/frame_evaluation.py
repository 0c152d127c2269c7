"""What `evaluate.py frames` computes: the same sequences rendered in every way, measured by one protocol."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from models.checkpoints import CheckpointError, load_model
from models.frame_synthesis import FrameSynthesis, splat_image
from models.rendering import AUTOCAST_DTYPES
from training.evaluation_clips import EvaluationClip
from training.losses import PerceptualLoss
from training.metrics import Lpips, SequenceMetrics

logger = logging.getLogger(__name__)

BATCH_SIZE = 4
OPERATOR_FOLDERS = ("frame_synthesis_softmax", "frame_synthesis_gaussian")
REMAP_ROW, STILL_ROW = "OpenCV remap", "frame 0 repeated"
IMAGE_ROWS = {"average": "average splat", "softmax": "softmax splat", "gaussian": "gaussian splat"}

# (flow (n, 2, H, W), importance (1, 1, H, W)) -> frames (n, 3, H, W)
Render = Callable[[Tensor, Tensor], Tensor]
# first (1, 3, H, W) -> Render: what depends on the picture alone is computed once
Method = Callable[[Tensor], Render]


def find_models(folders: Iterable[Path]) -> dict[str, FrameSynthesis]:
    """Load {row name: model} from checkpoint folders, or folders that are one model themselves.

    Raises:
        CheckpointError: a folder holds no frame synthesis model, or a damaged one.
    """
    found: dict[str, FrameSynthesis] = {}
    folders = list(folders)
    for folder in folders:
        inside = [folder / name for name in OPERATOR_FOLDERS if (folder / name).is_dir()]
        if (folder / "config.json").is_file():
            inside = [folder]
        if not inside:
            raise CheckpointError(
                f"--checkpoint {folder}: no frame synthesis model; right: a folder with {' or '.join(OPERATOR_FOLDERS)}"
            )
        for path in inside:
            model = load_model(FrameSynthesis, path, component="frame synthesis")
            name = f"model {model.config.operator}"
            found[name if len(folders) == 1 else f"{name} ({folder.name})"] = model
    return found


def make_methods(models: dict[str, FrameSynthesis], device: torch.device, precision: str) -> dict[str, Method]:
    """Return {row name: method}: the models, image-space splats, OpenCV's remap, and the still picture."""
    methods: dict[str, Method] = {
        name: _model_method(model.to(device), device, AUTOCAST_DTYPES[precision]) for name, model in models.items()
    }
    methods |= {name: _splat_method(operator) for operator, name in IMAGE_ROWS.items()}
    methods[REMAP_ROW] = lambda first: lambda flow, _importance: remap(first[0], flow)
    methods[STILL_ROW] = lambda first: lambda flow, _importance: first.expand(len(flow), -1, -1, -1)
    return methods


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
    lpips: Lpips | None = None,
    features: PerceptualLoss | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """Render and measure every clip with every method, all with the same flow, one clip in memory at a time.

    Returns:
        the rows of the table (one a method), rows by clip (one a clip and method), and how many sequences came from
        "scene", "video" and "pairs".
    """
    metrics = {name: SequenceMetrics(lpips=lpips, features=features) for name in methods}
    by_clip: list[dict[str, Any]] = []
    origins: dict[str, int] = {}
    for clip in clips:
        first, importance = clip.first[None].to(device), clip.importance[None].to(device)
        renderers = {name: method(first) for name, method in methods.items()}
        for targets, flow in clip.batches(BATCH_SIZE):
            targets, flow = targets.to(device), flow.to(device)
            for name, render in renderers.items():
                metrics[name].add(render(flow, importance), targets)
        for name in methods:
            figures = metrics[name].finish(clip.id)
            by_clip.append({"row": name, "clip": clip.id, "mean_motion_px": clip.motion_px, **figures})
        origins[clip.origin] = origins.get(clip.origin, 0) + 1
    return [{"row": name, **metrics[name].summary()} for name in methods], by_clip, origins


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
    args: argparse.Namespace, clips: int, row: dict, origins: dict[str, int], device: object, models: list[str]
) -> list[str]:
    """Say what the table of `evaluate.py frames` was made from: its flags, clips, their origins, and the protocol."""
    origin_names = {
        "scene": "rendered scenes with exact flow",
        "video": "videos with estimated flow, unseen flow zeroed as in training",
        "pairs": "clips whose source is not at hand: stored pairs only",
    }
    checkpoint = ", ".join(map(str, args.checkpoint or ["checkpoints/default"])) if models else "none"
    return [
        f"data: {args.data}, split {args.split}, {row['sequences']} sequences ({clips} kept clips in the split), "
        f"{row['frames']} frames, every {args.every}; "
        + "; ".join(f"{count} {origin_names[name]}" for name, count in sorted(origins.items())),
        "protocol: frame 0 excluded; output clipped to [0, 1], not rounded; squared error pooled over a sequence "
        "before the logarithm (psnr_db), then the mean over sequences; psnr_frames_db is the mean of the frames' own "
        "values; a sequence without error counts as 100 dB",
        "all rows use the same flow and importance; holes of image-space splats are filled from frame 0; still pixels "
        "copy it; gaussian: sigma .45 px, EWA",
        "OpenCV remap: cv2.remap of frame 0 at p - F(p), bilinear, border held (the flow at p stands in for that at "
        "the source of p)",
        f"models: {checkpoint}; precision {args.precision}; device {device}; seed {args.seed} (choice of clips)",
        f"command: {args.command}",
    ]


def _splat_method(operator: str) -> Method:
    def method(first: Tensor) -> Render:
        def render(flow: Tensor, importance: Tensor) -> Tensor:
            shape = (len(flow), -1, -1, -1)
            return splat_image(first.expand(shape), flow, importance.expand(shape), operator=operator)[0]

        return render

    return method
