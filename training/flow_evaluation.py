"""What `evaluate.py flow` computes: every optical flow method on real clips and on rendered scenes, in one table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.optical_flow import estimate_flow, visible_flow
from data.scenes import Scene, make_scene
from data.sources import read_clip
from models.frame_synthesis import splat_image
from motion.flow import MOTION_AREA_PX, magnitude
from motion.spectrum import FPS, NUM_FRAMES, mean_displacement
from splatting import sum_splat
from training.metrics import SequenceMetrics

TABLE_METHODS = ("dis_fast", "dis_x2", "dis", "farneback")
# a pixel that changes by less than this shows nothing
UNCHANGED = 2 / 255
# slope of the luminance, blurred over 1.5 px, from which a pixel counts as textured, per px
TEXTURED_SLOPE = 0.02
# neighbours whose exact flow differs by more than this have an edge between them
EDGE_JUMP_PX = 0.5
EDGE_DISTANCE_PX = 2
# where more than this many pixels of frame 0 arrive, one hides another
HIDDEN_MASS = 1.5

COLUMN_NOTES = (
    "psnr_db, ssim: frame 0 splatted (average) along the estimate; visible_: after unseen flow was set to zero",
    "unchanged_px, unchanged_pixel_px: mean |F| of the visible flow, the largest of a clip, over pixels that change by "
    "less than 2/255, with their neighbours and whatever the neighbours do",
    "epe_px: median over scenes of the mean end-point error on textured pixels more than 2 px from an occlusion edge "
    "and not hidden (clear_share of all)",
)


@dataclass(frozen=True)
class FlowClip:
    """Frame 0 (3, H, W), frames (T, 3, H, W) to find the flow to, and the exact flow (T, 2, H, W) px where known."""

    name: str
    first: Tensor
    frames: Tensor
    exact: Tensor | None = None


def read_flow_clip(path: Path, every: int, *, area: int = MOTION_AREA_PX) -> FlowClip:
    """Read every N-th frame of a video on its motion grid; MediaError when it cannot be read."""
    video = read_clip(path, area=area)
    return FlowClip(path.stem, video.frames[0], video.frames[min(every, len(video.frames) - 1) :: every])


def find_scenes(count: int, *, first_seed: int = 0, motion_px: tuple[float, float] = (1.5, 2.5)) -> list[Scene]:
    """Return the first `count` scenes from `first_seed` on whose mean displacement, px, lies between two bounds."""
    scenes: list[Scene] = []
    seed = first_seed
    while len(scenes) < count:
        scene = make_scene(seed)
        if motion_px[0] <= float(mean_displacement(scene.spectrum()).mean()) <= motion_px[1]:
            scenes.append(scene)
        seed += 1
    return scenes


def render_flow_clip(scene: Scene, every: int) -> FlowClip:
    """Render every N-th frame of a scene as it is seen (blur, grain), with the exact flow to it."""
    times_s = [index / FPS for index in range(every, NUM_FRAMES, every)]
    frames = torch.stack([scene.frame(time_s) for time_s in times_s])
    exact = torch.stack([scene.flow(time_s) for time_s in times_s])
    return FlowClip(f"{scene.kind} {scene.seed}", scene.picture(), frames, exact)


def measure_flow(
    videos: Sequence[Path],
    methods: Iterable[str] = TABLE_METHODS,
    *,
    every: int = 12,
    scenes: Sequence[Scene] = (),
    scene_every: int = 24,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure flow methods on real clips and on rendered scenes.

    Args:
        videos: real clips.
        methods: of `estimate_flow`.
        every: which frames of a clip are measured: N, 2 N ...
        scenes: of `find_scenes`.
        scene_every: the same for scenes.
        options: further arguments of `estimate_flow` (weights, device).

    Returns:
        Rows of the table, one a method, and rows by clip, one a method and clip or scene.

        Over clips: "psnr_db", "ssim" of frame 0 splatted along the estimate ("average", holes filled from frame 0),
        "visible_psnr_db", "visible_ssim" after `visible_flow`, and of the visible flow, over pixels that change by less
        than 2/255, "unchanged_px": mean |F| where the pixel's eight neighbours do not change either, and
        "unchanged_pixel_px" where it alone need not: there moving texture meets its own colour by chance. The table
        holds the largest of a clip. Over scenes: "epe_px", "visible_epe_px": median over scenes of the mean error of
        the estimate and of the visible flow, on textured pixels more than 2 px from an occlusion edge and not hidden.
        "cpu_s_per_pair" is process time of the estimate.

    Raises:
        MediaError, FlowError: a video cannot be read, or a method cannot run.
    """
    methods, rows, by_clip = list(methods), [], []
    # the result of DIS, and its time, depend on how many threads share a picture
    cv2.setNumThreads(1)
    figures: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for source in [*videos, *scenes]:
        clip = render_flow_clip(source, scene_every) if isinstance(source, Scene) else read_flow_clip(source, every)
        for method in methods:
            found = {"row": method, "clip": clip.name, **_measure_clip(clip, method, options)}
            figures[method].append(found)
            by_clip.append(found)
    for method in methods:
        rows.append({"row": method, **_summarise(figures[method])})
    return rows, by_clip


def clear_texture(first: Tensor, exact: Tensor) -> Tensor:
    """Find the pixels whose flow can be told from the pictures.

    Textured (the luminance's slope, blurred over 1.5 px, is above .02 a px), and more than 2 px from an occlusion edge:
    from a jump of the exact flow of more than .5 px between neighbours, and from pixels that share the place where they
    arrive with another, one of which is hidden in frame t.

    Args:
        first: (3, H, W) in [0, 1].
        exact: (2, H, W) px.

    Returns:
        (H, W) bool.
    """
    grey = first.mean(0).numpy()
    slope = np.hypot(cv2.Sobel(grey, -1, 1, 0) / 8, cv2.Sobel(grey, -1, 0, 1) / 8)
    textured = cv2.GaussianBlur(slope, (0, 0), 1.5) > TEXTURED_SLOPE
    edge = torch.zeros(exact.shape[1:], dtype=torch.bool)
    across = (exact.diff(dim=2).abs() > EDGE_JUMP_PX).any(0)  # (H, W-1)
    down = (exact.diff(dim=1).abs() > EDGE_JUMP_PX).any(0)  # (H-1, W)
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    mass = sum_splat(torch.ones(1, 1, *edge.shape), exact[None])[0, 0].numpy()
    rows, columns = np.indices(edge.shape, dtype=np.float32)
    dx, dy = exact.numpy()
    # outside nothing can be told either
    arrived = cv2.remap(
        mass, columns + dx, rows + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=9.0
    )
    unclear = edge.numpy() | (arrived > HIDDEN_MASS)
    side = 2 * EDGE_DISTANCE_PX + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return torch.from_numpy(textured & ~cv2.dilate(unclear.astype(np.uint8), disc).astype(bool))


@torch.no_grad()
def _measure_clip(clip: FlowClip, method: str, options: dict[str, Any]) -> dict[str, Any]:
    started = time.process_time()
    flow = estimate_flow(clip.first, clip.frames, method=method, **options)
    cpu_s = (time.process_time() - started) / len(clip.frames)
    visible, _ = visible_flow(clip.first, clip.frames, flow)
    figures: dict[str, Any] = {"frames": len(clip.frames), "cpu_s_per_pair": cpu_s}
    if clip.exact is not None:
        return figures | _end_point_errors(clip, flow, visible)
    for prefix, values in (("", flow), ("visible_", visible)):
        found = _splat_figures(clip, values)
        figures |= {f"{prefix}psnr_db": found["psnr_db"], f"{prefix}ssim": found["ssim"]}
    change = (clip.frames - clip.first).abs().mean(1, keepdim=True)  # (T, 1, H, W)
    size = magnitude(visible)
    figures["unchanged_px"] = _mean(size[F.max_pool2d(change, 3, 1, 1) < UNCHANGED])
    figures["unchanged_pixel_px"] = _mean(size[change < UNCHANGED])
    return figures


def _splat_figures(clip: FlowClip, flow: Tensor) -> dict[str, float]:
    metrics = SequenceMetrics()
    for values, frames in zip(flow.split(4), clip.frames.split(4), strict=True):
        first = clip.first.expand(len(frames), -1, -1, -1)
        metrics.add(splat_image(first, values, torch.zeros_like(values[:, :1]), operator="average")[0], frames)
    return metrics.finish(clip.name)


def _end_point_errors(clip: FlowClip, flow: Tensor, visible: Tensor) -> dict[str, float | None]:
    errors: dict[str, list[float]] = {"epe_px": [], "visible_epe_px": []}
    shares = []
    for exact, one, other in zip(clip.exact, flow, visible, strict=True):
        clear = clear_texture(clip.first, exact)
        shares.append(float(clear.float().mean()))
        if not clear.any():
            continue
        for name, values in (("epe_px", one), ("visible_epe_px", other)):
            errors[name].append(float(magnitude((values - exact)[None])[0, 0][clear].mean()))
    means = {name: fmean(values) if values else None for name, values in errors.items()}
    return {**means, "clear_share": fmean(shares)}


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0


def _summarise(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over real clips, the largest flow of an unchanged area, medians over scenes, seconds over all pairs."""
    real = [clip for clip in clips if "psnr_db" in clip]
    rendered = [clip for clip in clips if clip.get("epe_px") is not None]
    row: dict[str, Any] = {}
    if real:
        row |= {name: fmean(clip[name] for clip in real) for name in ("psnr_db", "ssim")}
        row |= {name: fmean(clip[name] for clip in real) for name in ("visible_psnr_db", "visible_ssim")}
        row |= {name: max(clip[name] for clip in real) for name in ("unchanged_px", "unchanged_pixel_px")}
    if rendered:
        row |= {name: median(clip[name] for clip in rendered) for name in ("epe_px", "visible_epe_px")}
        row["clear_share"] = fmean(clip["clear_share"] for clip in rendered)
    pairs = sum(clip["frames"] for clip in clips)
    seconds = sum(clip["cpu_s_per_pair"] * clip["frames"] for clip in clips)
    return {**row, "cpu_s_per_pair": seconds / pairs, "clips": len(real), "scenes": len(rendered), "pairs": pairs}
