"""The sequences that evaluate.py measures on: every N-th frame of a clip, with the flow from frame 0 to each.

Flow is exact for rendered scenes, and estimated once and kept in the set's cache/ for videos. Where the source is not
at hand, the few pairs that the set stores stand in.
"""

import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from cluster.storage import StorageError, local_input
from data.clips import ClipRow, ClipSet, ClipSetError, source_name
from data.media import MediaError, atomic_path
from data.optical_flow import FLOW_VERSION, estimate_flow, static_pixels, visible_flow
from data.prepare_clip import read_clip
from data.scenes.scene import Scene, make_scene
from data.video import Video
from motion.flow import resize_maps
from motion.motion_file import read_arrays
from motion.spectrum import FPS, NUM_FRAMES

logger = logging.getLogger(__name__)

# A source read anew must be the one that the set was made from: frame 0 may differ by the rounding of a PNG.
SAME_FRAME_LIMIT = 1 / 255


class SourceError(ValueError):
    """A clip's source is not at hand, or is not the one that the clip was made from."""


@dataclass(frozen=True)
class EvaluationClip:
    """One sequence, frame 0 left out."""

    id: str
    source: str  # the video that it was cut from; clips of one source are not independent
    origin: str  # "scene", "video" or "pairs": where frames and flow come from
    first: Tensor  # (3, H, W) in [0, 1], frame 0
    importance: Tensor  # (1, H, W), px
    times_s: tuple[float, ...]  # from frame 0
    read: Callable[[slice], tuple[Tensor, Tensor]]  # targets (n, 3, H, W) and flow (n, 2, H, W) px


def clip_seed(seed: int, name: str) -> int:
    """Return the seed of a clip's start noise, the same whatever other clips are measured."""
    return (seed << 32) + zlib.crc32(name.encode())


def another_clip(clip_set: ClipSet, row: ClipRow, seed: int) -> ClipRow | None:
    """Return a training clip of another source, drawn by the seed and the clip's name; None where there is none."""
    others = [one for one in clip_set.rows("train") if source_name(one) != source_name(row)]
    rng = np.random.default_rng([seed, zlib.crc32(row.id.encode())])
    return others[int(rng.integers(len(others)))] if others else None


def open_clip(
    clip_set: ClipSet, row: ClipRow, every: int, magnify: float = 1.0, *, raft_weights: Path | None = None,
    device: str = "cpu",
) -> EvaluationClip:  # fmt: skip
    """Open frames N, 2 N, ... of a clip's source, or its stored pairs; `magnify` scales the motion of scenes alone."""
    first = clip_set.first(row.id)
    size, name = tuple(first.shape[-2:]), f"{clip_set.folder}: clip {row.id}"
    try:
        source = read_source(clip_set, row, first)
    except SourceError as error:
        if not clip_set.has_pairs(row.id):
            raise ClipSetError(f"{name} has no stored pairs, and its source fails: {error}") from error
        logger.warning("%s: only its stored pairs are measured (%s)", row.id, error)
        pairs = clip_set.pairs(row.id)[0]
        origin, times_s = "pairs", [pair.time_s for pair in pairs]
        targets, flow = torch.stack([pair.target for pair in pairs]), torch.stack([pair.flow for pair in pairs])
        if flow.shape[-2:] != size:
            problem = f"its flow is {flow.shape[-1]} x {flow.shape[-2]} px, its image {size[1]} x {size[0]}"
            raise ClipSetError(f"{name}: {problem}; prepare it again") from error
    else:
        num_frames = NUM_FRAMES if isinstance(source, Scene) else len(source.frames)
        indices = list(range(min(every, num_frames - 1), num_frames, every))
        if isinstance(source, Scene):
            origin, times_s = "scene", [index / FPS for index in indices]
        else:
            origin, times_s = "video", (source.times_s[indices] - source.times_s[0]).tolist()
            targets = source.frames[indices]
            flow = cached_flow(clip_set, row, source, indices, weights=raft_weights, device=device)
    if magnify != 1:
        if origin != "scene":
            raise ClipSetError(f"{name} is no rendered scene: only these can be drawn with magnified motion")
        source = replace(source, magnify=magnify)

    def read(part: slice) -> tuple[Tensor, Tensor]:
        if origin != "scene":
            return targets[part], flow[part]
        rendered = [source.frame(time_s) for time_s in times_s[part]]
        return torch.stack(rendered), torch.stack([source.flow(time_s) for time_s in times_s[part]])

    importance = resize_maps(magnify * clip_set.displacement(row.id), size)  # (1, H, W)
    return EvaluationClip(row.id, source_name(row), origin, first, importance, tuple(times_s), read)


def read_source(clip_set: ClipSet, row: ClipRow, first: Tensor) -> Scene | Video:
    """Return the scene or the frames that a clip was made from; SourceError unless `first` (3, H, W) is frame 0."""
    size = tuple(first.shape[-2:])
    if row.is_scene:
        try:
            _, seed, kind = row.source.split(":")
            scene = make_scene(int(seed), size=size, kind=kind)
        except ValueError as error:
            raise SourceError(f"{row.source}: {error}") from error
        if float((scene.frame(0.0) - first).abs().mean()) > SAME_FRAME_LIMIT:
            raise SourceError(f"this version draws another {row.source}")
        return scene
    try:
        fps = _settings(clip_set).get("fps", FPS)
        with local_input(row.source) as path:
            video = read_clip(path, start_s=row.start_s, fps=fps, size=size)
    except (MediaError, OSError) as error:
        raise SourceError(str(error)) from error
    if float((video.frames[0] - first).abs().mean()) > SAME_FRAME_LIMIT or len(video.frames) < max(row.frames, 2):
        raise SourceError(f"{row.source} is not the video that the clip was made from")
    return Video(video.frames[: row.frames], video.times_s[: row.frames], video.fps)


def cached_flow(clip_set: ClipSet, row: ClipRow, video: Video, indices: list[int], **raft: Any) -> Tensor:
    """Return the visible flow from frame 0 to frames `indices`, (N, 2, H, W) px, from or into the set's cache.

    It is cleaned by `visible_flow` and rounded to float16; `raft`: weights and device of `estimate_flow`.
    """
    method = _settings(clip_set).get("method", "dis")
    path = clip_set.folder / "cache" / "flow" / f"{row.id}.{method}-v{FLOW_VERSION}.npz"
    known = _read_cache(path, tuple(video.frames.shape[-2:]), len(video.frames))
    missing = [index for index in indices if index not in known]
    if missing:
        # The result of DIS depends on how many threads share an image.
        cv2.setNumThreads(1)
        options = raft if method == "raft" else {}
        # of the whole clip, so that a frame's flow does not depend on which others are asked for
        still = static_pixels(video.frames[0], video.frames)
        flow = estimate_flow(video.frames[0], video.frames[missing], method=method, static=still, **options)
        flow, _ = visible_flow(video.frames[0], video.frames[missing], flow, static=still)
        known |= dict(zip(missing, flow.to(torch.float16).numpy(), strict=True))
        arrays = {"index": np.array(sorted(known)), "flow": np.stack([known[index] for index in sorted(known)])}
        try:
            with atomic_path(path) as temporary:
                np.savez(temporary, **arrays, num_frames=len(video.frames))
        except MediaError as error:
            logger.warning("flow is not kept for the next time: %s", error)
    return torch.from_numpy(np.stack([known[index] for index in indices]).astype(np.float32))


def _settings(clip_set: ClipSet) -> dict:
    return clip_set.statistics.get("settings", {})


def _read_cache(path: Path, size: tuple[int, int], num_frames: int) -> dict[int, np.ndarray]:
    """Return {frame: flow (2, H, W) float16}; {} where the file is missing, damaged or of another clip."""
    try:
        with local_input(path) as file:
            arrays = read_arrays(file, ("index", "flow", "num_frames"))
        index, flow, frames = arrays["index"], arrays["flow"], int(arrays["num_frames"])
    except (KeyError, ValueError, TypeError, StorageError):
        return {}
    if index.ndim != 1 or index.dtype.kind != "i" or flow.dtype.kind != "f":
        return {}
    if flow.shape != (len(index), 2, *size) or frames != num_frames or not np.isfinite(flow).all():
        return {}
    return dict(zip(index.tolist(), flow, strict=True))
