"""What `evaluate.py flow` computes: every optical flow method on real clips and on rendered scenes, in one table."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from data.optical_flow import METHODS, estimate_flow, visible_flow
from data.prepare_clip import read_clip
from data.result_tables import write_results
from data.scenes.scene import Scene, make_scene
from evaluation import EvaluationError, out_folder
from metrics.images import frame_metrics, pool_frames
from models.device import choose_device
from models.frame_synthesis import splat_image
from motion.flow import MOTION_AREA_PX, magnitude
from motion.spectrum import FPS, NUM_FRAMES, mean_displacement
from splatting import sum_splat

logger = logging.getLogger(__name__)

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
    "epe_px: median over scenes of the mean end-point error on textured pixels more than 2 px from an occlusion edge "
    "and not hidden (clear_fraction of all)",
    "visible_epe_px: that of the flow after unseen flow was set to zero; cpu_s_per_pair: process time of the estimate",
)
UNCHANGED_NOTES = (
    "mean |F|, px, over the pixels that change by less than 2/255, largest of all clips; the change is |I_t - I_0| of "
    "the colour where it is largest, or (mean_colour_) its mean over colours",
    "clip_max, clip_p95, clip_mean: over the measured frames; area: the largest of a pixel and its eight neighbours in "
    "a frame; pixel: in a frame, where moving texture meets its own colour by chance",
    "fraction_: of all pixels that these are, mean over clips",
)


@dataclass(frozen=True)
class FlowClip:
    """Frame 0 (3, H, W), frames (T, 3, H, W) to find the flow to, and the exact flow (T, 2, H, W) px where known."""

    name: str
    first: Tensor
    frames: Tensor
    exact: Tensor | None = None


@dataclass
class FlowTables:
    """What `measure_flow` found.

    Attributes:
        methods: rows of the table, one a method.
        by_clip: one a method and clip or scene.
        unchanged: one a method and "estimate" or "visible": flow where nothing changes, by reading.
        left_out: (video, why) of those that could not be measured.
    """

    methods: list[dict[str, Any]] = field(default_factory=list)
    by_clip: list[dict[str, Any]] = field(default_factory=list)
    unchanged: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)


def read_flow_clip(path: Path, every: int, *, area: int = MOTION_AREA_PX) -> FlowClip:
    """Read every N-th frame of a video on its motion grid; MediaError when it cannot be read or is a single frame."""
    video = read_clip(path, area=area)
    if len(video.frames) < 2:
        raise MediaError(f"{path}: holds a single frame; give a video that moves")
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
    methods: Sequence[str],
    *,
    every: int = 12,
    scenes: Sequence[Scene] = (),
    scene_every: int = 24,
    **options: Any,
) -> FlowTables:
    """Measure flow methods on real clips and on rendered scenes; COLUMN_NOTES and UNCHANGED_NOTES name the columns.

    A video that cannot be read is logged in one line and left out.

    Args:
        videos: real clips.
        methods: of `estimate_flow`.
        every: which frames of a clip are measured: N, 2 N ...
        scenes: of `find_scenes`.
        scene_every: the same for scenes.
        options: further arguments of `estimate_flow` (weights, device).

    Raises:
        FlowError: a method cannot run.
    """
    tables = FlowTables()
    # the result of DIS, and its time, depend on how many threads share an image
    cv2.setNumThreads(1)
    # before the first clip is measured: a method that cannot run
    for method in methods:
        estimate_flow(torch.zeros(3, 64, 64), torch.zeros(0, 3, 64, 64), method=method, **options)
    unchanged: list[dict[str, Any]] = []
    for source in [*videos, *scenes]:
        try:
            clip = render_flow_clip(source, scene_every) if isinstance(source, Scene) else read_flow_clip(source, every)
            found = [_measure_clip(clip, method, options) for method in methods]
        except (MediaError, OSError, cv2.error) as error:
            reason = " ".join(str(error).split())
            logger.warning("%s is left out: %s", source, reason)
            tables.left_out.append((source, reason))
            continue
        tables.by_clip += [metrics for metrics, _ in found]
        unchanged += [row for _, rows in found for row in rows]
    for method in methods if tables.by_clip else ():
        clips = [row for row in tables.by_clip if row["row"] == method]
        tables.methods.append({"row": method, **_summarise(clips)})
    for name in dict.fromkeys(row["row"] for row in unchanged):
        tables.unchanged.append({"row": name, **_largest([row for row in unchanged if row["row"] == name])})
    return tables


def clear_texture(first: Tensor, exact: Tensor) -> Tensor:
    """Find the pixels whose flow the images show.

    These are textured (the luminance's slope, blurred over 1.5 px, is above 0.02 a px), and more than 2 px from an
    occlusion edge. Such an edge is a jump of the exact flow of more than 0.5 px between neighbours, or where two pixels
    arrive at one place, so that one of them is hidden in frame t.

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
    # what leaves the image is unclear too
    arrived = cv2.remap(
        mass, columns + dx, rows + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=9.0
    )
    unclear = edge.numpy() | (arrived > HIDDEN_MASS)
    side = 2 * EDGE_DISTANCE_PX + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return torch.from_numpy(textured & ~cv2.dilate(unclear.astype(np.uint8), disc).astype(bool))


@torch.no_grad()
def _measure_clip(clip: FlowClip, method: str, options: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a clip's metrics, and its rows of flow where nothing changes (none for a scene)."""
    started = time.process_time()
    flow = estimate_flow(clip.first, clip.frames, method=method, **options)
    cpu_s = (time.process_time() - started) / len(clip.frames)
    visible, _ = visible_flow(clip.first, clip.frames, flow)
    metrics: dict[str, Any] = {"row": method, "clip": clip.name, "frames": len(clip.frames), "cpu_s_per_pair": cpu_s}
    if clip.exact is not None:
        return metrics | _end_point_errors(clip, flow, visible), []
    unchanged = []
    for prefix, kind, values in (("", "estimate", flow), ("visible_", "visible", visible)):
        found = _splat_metrics(clip, values)
        metrics |= {f"{prefix}psnr_db": found["psnr_db"], f"{prefix}ssim": found["ssim"]}
        unchanged.append({"row": f"{method}, {kind}", **unchanged_flow(clip, values)})
    return metrics, unchanged


def unchanged_flow(clip: FlowClip, flow: Tensor) -> dict[str, float]:
    """Return mean |F|, px, over the pixels that change by less than 2/255, for each reading of that (UNCHANGED_NOTES).

    Args:
        clip: with frames (T, 3, H, W).
        flow: (T, 2, H, W) px.

    Returns:
        The readings, and "fraction_" of each: how many of all pixels it means.
    """
    size, metrics, fractions = magnitude(flow), {}, {}
    by_colour = (clip.frames - clip.first).abs()  # (T, 3, H, W)
    for prefix, change in (("", by_colour.amax(1, keepdim=True)), ("mean_colour_", by_colour.mean(1, keepdim=True))):
        readings = {
            "clip_max": change.amax(0, keepdim=True),
            "clip_p95": change.quantile(0.95, dim=0, keepdim=True),
            "clip_mean": change.mean(0, keepdim=True),
            "area": F.max_pool2d(change, 3, 1, 1),
            "pixel": change,
        }
        for name, values in readings.items():
            unchanged = (values < UNCHANGED).expand_as(size)
            metrics[prefix + name] = float(size[unchanged].mean()) if unchanged.any() else 0.0
            fractions[f"fraction_{prefix}{name}"] = float(unchanged.float().mean())
    return metrics | fractions


def _largest(rows: list[dict[str, Any]]) -> dict[str, float]:
    names = [name for name in rows[0] if name != "row"]
    return {name: (fmean if name.startswith("fraction_") else max)(row[name] for row in rows) for name in names}


def _splat_metrics(clip: FlowClip, flow: Tensor) -> dict[str, float]:
    parts = []
    for values, frames in zip(flow.split(4), clip.frames.split(4), strict=True):
        first = clip.first.expand(len(frames), -1, -1, -1)
        splat = splat_image(first, values, torch.zeros_like(values[:, :1]), operator="average")[0]
        parts.append(frame_metrics(splat, frames))
    return pool_frames({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _end_point_errors(clip: FlowClip, flow: Tensor, visible: Tensor) -> dict[str, float | None]:
    found: dict[str, list[float]] = {"epe_px": [], "visible_epe_px": [], "clear_fraction": []}
    for exact, one, other in zip(clip.exact, flow, visible, strict=True):
        clear = clear_texture(clip.first, exact)
        found["clear_fraction"].append(float(clear.float().mean()))
        if clear.any():
            for name, values in (("epe_px", one), ("visible_epe_px", other)):
                found[name].append(float(magnitude((values - exact)[None])[0, 0][clear].mean()))
    return {name: fmean(values) if values else None for name, values in found.items()}


def _summarise(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over real clips, medians over scenes, seconds over all pairs."""
    real = [clip for clip in clips if "psnr_db" in clip]
    rendered = [clip for clip in clips if clip.get("epe_px") is not None]
    row: dict[str, Any] = {}
    if real:
        names = ("psnr_db", "ssim", "visible_psnr_db", "visible_ssim")
        row |= {name: fmean(clip[name] for clip in real) for name in names}
    if rendered:
        row |= {name: median(clip[name] for clip in rendered) for name in ("epe_px", "visible_epe_px")}
        row["clear_fraction"] = fmean(clip["clear_fraction"] for clip in rendered)
    pairs = sum(clip["frames"] for clip in clips)
    seconds = sum(clip["cpu_s_per_pair"] * clip["frames"] for clip in clips)
    return {**row, "cpu_s_per_pair": seconds / pairs, "clips": len(real), "scenes": len(rendered), "pairs": pairs}


def make_table(
    *,
    videos: list[Path],
    scenes: int,
    methods: list[str],
    raft_weights: Path | None,
    every: int,
    seed: int,
    device: str,
    out: Path | None,
    command: str,
) -> bool:
    """Measure the methods, print and write the tables; return False where a video is bad or a folder is empty."""
    # Early checks
    out = out_folder(out, "flow")
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise EvaluationError(f"methods {unknown[0]}: no such method; right: {', '.join(METHODS)}")
    if raft_weights is not None and "raft" not in methods:
        raise EvaluationError("raft_weights: only for RAFT; right: raft among the methods")
    place = choose_device(device)
    found = {path: list_videos(path) for path in videos}
    empty = [path for path in found if not found[path]]
    for path in empty:
        logger.warning("%s: no videos in this folder", path)
    files = [file for path in videos for file in found[path]]
    if not files and not scenes:
        raise EvaluationError("videos: right: some videos, or scenes")

    # Measure
    options = {"weights": raft_weights, "device": str(place), "scenes": find_scenes(scenes, first_seed=seed)}
    tables = measure_flow(files, methods, every=every, **options)
    if not tables.methods:
        raise EvaluationError(f"videos: none of the {len(files)} can be measured")

    # Write
    left_out = "".join(f"; left out: {path} ({reason})" for path, reason in tables.left_out)
    data = (
        f"data: {len(files) - len(tables.left_out)} videos, every {every}th frame{left_out}; {scenes} scenes from seed "
        f"{seed} on with a mean motion of 1.5 to 2.5 px, every 24th frame; device {place}"
    )
    notes = [data, f"command: {command}"]
    print(write_results(out, tables.methods, title="Optical flow", notes=[*COLUMN_NOTES, *notes]))
    write_results(out / "by_clip", tables.by_clip, title="The same by clip and scene", notes=notes)
    if tables.unchanged:
        notes = [*UNCHANGED_NOTES, *notes]
        print(write_results(out / "unchanged", tables.unchanged, title="Flow where nothing changes", notes=notes))
    logger.info("written to %s", out)
    return not (tables.left_out or empty)
