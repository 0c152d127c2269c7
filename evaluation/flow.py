"""evaluate.py flow: optical flow methods on videos, and on rendered scenes whose flow is known."""

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.find_clips import list_videos
from data.media import MediaError
from data.optical_flow import estimate_flow, visible_flow
from data.prepare_clip import read_clip
from data.scenes.scene import Scene, make_scene
from evaluation import EvaluationError, Report, Row
from metrics.images import frame_metrics, pool_frames
from metrics.statistics import known_mean
from models.checkpoints import one_line
from models.device import choose_device
from models.frame_synthesis import splat_image
from motion.flow import magnitude
from motion.spectrum import FPS, NUM_FRAMES, mean_displacement
from splatting import sum_splat

logger = logging.getLogger(__name__)

# A pixel that changes by less than this shows nothing.
UNCHANGED = 2 / 255
# Slope of the luminance, blurred over 1.5 px, from which a pixel counts as textured, per px.
TEXTURED_SLOPE = 0.02
# Neighbours whose exact flow differs by more than this have an edge between them.
EDGE_JUMP_PX = 0.5
EDGE_DISTANCE_PX = 2
# Where more than this many pixels of frame 0 arrive, one hides another.
HIDDEN_MASS = 1.5
# Mean displacement of the rendered scenes.
SCENE_MOTION_PX = (1.5, 2.5)
SCENE_EVERY = 24

COLUMN_NOTES = (
    "psnr_db, ssim: frame 0 splatted (average) along the estimate; visible_: after unseen flow was set to zero",
    f"epe_px: median over scenes of the mean end-point error on textured pixels more than {EDGE_DISTANCE_PX} px from "
    "an occlusion edge and not hidden (clear_fraction of all); cpu_s_per_pair: process time of the estimate",
    "unchanged_px: largest mean |F| of the clips over the pixels whose colours change by less than "
    f"{255 * UNCHANGED:g}/255 in all frames; unchanged_area_px: in a frame, the eight neighbours included",
)


@dataclass(frozen=True)
class FlowClip:
    """Frame 0 (3, H, W), frames (T, 3, H, W) to find the flow to, and the exact flow (T, 2, H, W) px where known."""

    name: str
    first: Tensor
    frames: Tensor
    exact: Tensor | None = None


def make_table(
    report: Report, *, videos: list[Path], scenes: int, methods: list[str], raft_weights: Path | None, every: int,
    seed: int, device: str,
) -> bool:  # fmt: skip
    """Measure the methods and report the tables; return False where a video is bad or a folder is empty."""
    # Early checks
    device = choose_device(device)
    found = {path: list_videos(path) for path in videos}
    empty = [path for path in found if not found[path]]
    for path in empty:
        logger.warning("%s: no videos in this folder", path)
    files = [file for path in videos for file in found[path]]
    if not files and not scenes:
        raise EvaluationError("videos: right: some videos, or scenes")
    raft = {"weights": raft_weights, "device": str(device)}
    for method in methods:  # one that cannot run fails before a scene is rendered
        estimate_flow(torch.zeros(3, 64, 64), torch.zeros(0, 3, 64, 64), method=method, **raft)

    # Measure
    by_clip, bad = measure_flow(files, methods, every=every, scenes=find_scenes(scenes, first_seed=seed), **raft)
    if not by_clip:
        raise EvaluationError(f"videos: none of the {len(files)} can be measured")
    rows = [{"row": method} | _summarise([row for row in by_clip if row["row"] == method]) for method in methods]

    # Write
    low, high = SCENE_MOTION_PX
    left_out = "".join(f"; left out: {path} ({reason})" for path, reason in bad)
    notes = [
        f"data: {len(files) - len(bad)} videos, every {every}th frame{left_out}; {scenes} scenes from seed "
        f"{seed} on with a mean motion of {low:g} to {high:g} px, every {SCENE_EVERY}th frame; device {device}",
    ]
    report.add(rows, "Optical flow", [*COLUMN_NOTES, *notes])
    report.add(by_clip, "The same by clip and scene", [*COLUMN_NOTES, *notes], folder="by_clip", shown=False)
    return not (bad or empty)


def find_scenes(count: int, *, first_seed: int) -> list[Scene]:
    """Return the first `count` scenes from `first_seed` on whose mean displacement is in SCENE_MOTION_PX."""
    low, high = SCENE_MOTION_PX
    scenes = (make_scene(seed) for seed in itertools.count(first_seed))
    moving = (scene for scene in scenes if low <= float(mean_displacement(scene.spectrum()).mean()) <= high)
    return list(itertools.islice(moving, count))


def measure_flow(
    videos: Sequence[Path], methods: Sequence[str], *, every: int, scenes: Sequence[Scene], **options: Any
) -> tuple[list[Row], list[tuple[Path, str]]]:
    """Measure methods of `estimate_flow` (`options`) on every N-th frame: rows, and (video, why) of those left out."""
    rows, left_out = [], []
    # The result of DIS, and its time, depend on how many threads share an image.
    cv2.setNumThreads(1)
    for source in [*videos, *scenes]:
        try:
            clip = _open(source, SCENE_EVERY if isinstance(source, Scene) else every)
            rows += [_measure_clip(clip, method, options) for method in methods]
        except (MediaError, OSError, cv2.error) as error:
            reason = one_line(error, 2000)
            logger.warning("%s is left out: %s", source, reason)
            left_out.append((source, reason))
    return rows, left_out


def _open(source: Path | Scene, every: int) -> FlowClip:
    if isinstance(source, Scene):
        times_s = [index / FPS for index in range(every, NUM_FRAMES, every)]
        frames, exact = (torch.stack([draw(time_s) for time_s in times_s]) for draw in (source.frame, source.flow))
        return FlowClip(f"{source.kind} {source.seed}", source.frame(0.0), frames, exact)
    frames = read_clip(source).frames
    if len(frames) < 2:
        raise MediaError(f"{source}: holds a single frame; give a video that moves")
    return FlowClip(source.stem, frames[0], frames[min(every, len(frames) - 1) :: every])


def clear_texture(first: Tensor, exact: Tensor) -> Tensor:
    """Find the pixels (H, W) of an image (3, H, W) whose exact flow (2, H, W) px the images show.

    These are textured, and more than 2 px from an occlusion edge. Such an edge is a jump of the exact flow between
    neighbours, or where two pixels arrive at one place, so that one of them is hidden in frame t.
    """
    grey = first.mean(0).numpy()
    slope = np.hypot(cv2.Sobel(grey, -1, 1, 0) / 8, cv2.Sobel(grey, -1, 0, 1) / 8)
    textured = cv2.GaussianBlur(slope, (0, 0), 1.5) > TEXTURED_SLOPE
    across = (exact.diff(dim=2).abs() > EDGE_JUMP_PX).any(0)  # (H, W-1)
    down = (exact.diff(dim=1).abs() > EDGE_JUMP_PX).any(0)  # (H-1, W)
    edge = F.pad(across, (0, 1)) | F.pad(across, (1, 0)) | F.pad(down, (0, 0, 0, 1)) | F.pad(down, (0, 0, 1, 0))
    mass = sum_splat(torch.ones(1, 1, *edge.shape), exact[None])[0, 0].numpy()
    rows, columns = np.indices(edge.shape, dtype=np.float32)
    dx, dy = exact.numpy()
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": 9.0}  # what leaves the image is unclear too
    arrived = cv2.remap(mass, columns + dx, rows + dy, cv2.INTER_LINEAR, **border)
    unclear = edge.numpy() | (arrived > HIDDEN_MASS)
    side = 2 * EDGE_DISTANCE_PX + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return torch.from_numpy(textured & ~cv2.dilate(unclear.astype(np.uint8), disc).astype(bool))


@torch.no_grad()
def _measure_clip(clip: FlowClip, method: str, options: dict[str, Any]) -> Row:
    started = time.process_time()
    flow = estimate_flow(clip.first, clip.frames, method=method, **options)
    cpu_s = (time.process_time() - started) / len(clip.frames)
    visible, _ = visible_flow(clip.first, clip.frames, flow)
    metrics: Row = {"row": method, "clip": clip.name, "frames": len(clip.frames), "cpu_s_per_pair": cpu_s}
    if clip.exact is not None:
        return metrics | _end_point_errors(clip, flow, visible)
    first, alike = clip.first[None], torch.zeros(1, 1, *flow.shape[-2:])
    for prefix, values in (("", flow), ("visible_", visible)):
        splats = [splat_image(first, part, alike, operator="average")[0] for part in values.split(4)]
        pooled = pool_frames(frame_metrics(torch.cat(splats), clip.frames))
        found = {name: pooled[name] for name in ("psnr_db", "ssim")} | unchanged_flow(clip, values)
        metrics |= {f"{prefix}{name}": value for name, value in found.items()}
    return metrics


def unchanged_flow(clip: FlowClip, flow: Tensor) -> dict[str, float]:
    """Return mean |F|, px, of a flow (T, 2, H, W) over the pixels that do not change in the clip, or in a frame."""
    size, change = magnitude(flow), (clip.frames - clip.first).abs().amax(1, keepdim=True)  # (T, 1, H, W)
    of_clip, in_frame = change.amax(0).expand_as(size), F.max_pool2d(change, 3, 1, 1)
    still = {"unchanged_px": size[of_clip < UNCHANGED], "unchanged_area_px": size[in_frame < UNCHANGED]}
    return {name: float(values.mean()) if len(values) else 0.0 for name, values in still.items()}


def _end_point_errors(clip: FlowClip, flow: Tensor, visible: Tensor) -> dict[str, float | None]:
    found: dict[str, list[float]] = {"epe_px": [], "visible_epe_px": [], "clear_fraction": []}
    for exact, one, other in zip(clip.exact, flow, visible, strict=True):
        clear = clear_texture(clip.first, exact)
        found["clear_fraction"].append(float(clear.float().mean()))
        if clear.any():
            for name, values in (("epe_px", one), ("visible_epe_px", other)):
                found[name].append(float(magnitude((values - exact)[None])[0, 0][clear].mean()))
    return {name: known_mean(values) for name, values in found.items()}


def _summarise(clips: list[Row]) -> Row:
    """Return means over real clips, medians over scenes, seconds over all pairs."""
    real = [clip for clip in clips if "psnr_db" in clip]
    rendered = [clip for clip in clips if clip.get("epe_px") is not None]
    row: Row = {}
    for of, mean, names in (
        (real, fmean, ("psnr_db", "ssim", "visible_psnr_db", "visible_ssim")),
        (real, max, ("unchanged_px", "unchanged_area_px", "visible_unchanged_px", "visible_unchanged_area_px")),
        (rendered, median, ("epe_px", "visible_epe_px")),
        (rendered, fmean, ("clear_fraction",)),
    ):
        row |= {name: mean([clip[name] for clip in of]) for name in names if of}
    pairs = sum(clip["frames"] for clip in clips)
    seconds = sum(clip["cpu_s_per_pair"] * clip["frames"] for clip in clips)
    return {**row, "cpu_s_per_pair": seconds / pairs, "clips": len(real), "scenes": len(rendered), "pairs": pairs}
