"""The sequences that evaluate.py measures on: every N-th frame of a clip, with the flow from frame 0 to each.

Flow comes from where the clip came from: exact for rendered scenes, estimated once and kept in the set's cache/ for
videos. Where the source is not at hand, the few pairs that the set stores stand in.
"""

from __future__ import annotations

import logging
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from data.clips import KEPT, PAIRS_ONLY, ClipRow, ClipSet, ClipSetError, source_name
from data.media import MediaError, atomic_path
from data.optical_flow import FLOW_VERSION, estimate_flow, static_pixels, visible_flow, weights_digest
from data.prepare_clip import read_clip
from data.scenes.scene import Scene, make_scene
from data.video import Video
from evaluation import EvaluationError
from motion.flow import resize_flow, resize_maps
from motion.motion_file import ASPECT_TOLERANCE
from motion.spectrum import FPS, NUM_FRAMES, mean_displacement

logger = logging.getLogger(__name__)

SCENE_PREFIX = "scene:"
# A source read anew must be the one that the set was made from: frame 0 may differ by the rounding of a PNG.
SAME_FRAME_LIMIT = 1 / 255


class SourceError(ValueError):
    """A clip's source is not at hand, or is not the one that the clip was made from."""


@dataclass(frozen=True)
class EvaluationClip:
    """One sequence, frame 0 left out.

    Attributes:
        id: of the clip.
        source: the video that it was cut from; clips of one source are not independent.
        origin: "scene", "video" or "pairs": where frames and flow come from.
        first: (3, H, W) in [0, 1], frame 0.
        importance: (1, H, W), px.
        times_s: (N) seconds from frame 0, in the order of the frames.
        targets: (N, 3, H, W) in [0, 1].
        flow: (N, 2, H, W), frame 0 -> t, px.
    """

    id: str
    source: str
    origin: str
    first: Tensor
    importance: Tensor
    times_s: tuple[float, ...]
    targets: Tensor
    flow: Tensor


def choose_clips(clip_set: ClipSet, split: str, count: int | None, seed: int) -> list[ClipRow]:
    """Return the clips of a split that can be rendered, or `count` of them drawn by `seed`, in the table's order.

    Raises:
        ClipSetError: there is none.
    """
    rows = clip_set.rows(split, status=(KEPT, PAIRS_ONLY))
    rows = [row for row in rows if row.status == KEPT or clip_set.has_pairs(row.id)]
    if not rows:
        raise ClipSetError(f"{clip_set.folder}: no clip of split {split} can be rendered; prepare more clips")
    if count is None or count >= len(rows):
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), size=count, replace=False)
    return [rows[index] for index in sorted(chosen)]


def check_flow_method(clip_set: ClipSet, rows: list[ClipRow], raft_weights: Path | None) -> None:
    """Fail now rather than in the middle where RAFT still has to estimate the flow of videos, and cannot.

    Raises:
        EvaluationError, FlowError: the weights are missing, not those of the set, or their file cannot be used.
    """
    if flow_method(clip_set) != "raft":
        return
    if raft_weights is not None:
        estimate_flow(torch.zeros(3, 64, 64), torch.zeros(0, 3, 64, 64), method="raft", weights=raft_weights)
        made_with = _settings(clip_set).get("raft_weights")
        if made_with is not None and made_with != weights_digest(raft_weights):
            raise EvaluationError(
                f"raft_weights {raft_weights}: not the weights that {clip_set.folder} was made with; give those"
            )
    elif any(Path(row.source).is_file() and not cache_path(clip_set, row).is_file() for row in rows):
        raise EvaluationError(f"raft_weights: the flow of {clip_set.folder} was made by RAFT; right: its weights")


def warn_of_sources(clip_set: ClipSet) -> None:
    """Warn once of a set whose scenes show a user's photographs, which it does not keep."""
    if _settings(clip_set).get("photographs"):
        logger.warning(
            "%s: rendered with photographs, which a set does not keep: of the scenes that show one, only the stored "
            "pairs are measured",
            clip_set.folder,
        )


def flow_method(clip_set: ClipSet) -> str:
    """Return how the flow of a set's videos was estimated."""
    return _settings(clip_set).get("method", "dis")


def open_clip(
    clip_set: ClipSet, row: ClipRow, every: int, *, raft_weights: Path | None = None, device: str = "cpu"
) -> EvaluationClip:
    """Open one clip's sequence: frames N, 2 N, ... of its source, or its stored pairs where that is not at hand.

    `raft_weights` and `device` are those of `estimate_flow`, where flow has to be estimated.
    """
    first = clip_set.first(row.id)
    size, name = tuple(first.shape[-2:]), f"{clip_set.folder}: clip {row.id}"
    try:
        source = read_source(clip_set, row, first)
    except SourceError as error:
        if not clip_set.has_pairs(row.id):
            raise ClipSetError(f"{name} has no stored pairs, and its source fails: {error}") from error
        if not _settings(clip_set).get("photographs"):
            logger.warning("%s: only its stored pairs are measured (%s)", row.id, error)
        pairs = clip_set.pairs(row.id)[0]
        times_s = [pair.time_s for pair in pairs]
        flow = fit_flow(torch.stack([pair.flow for pair in pairs]), size, name)
        origin, targets = "pairs", torch.stack([pair.target for pair in pairs])  # (N, 3, H, W)
    else:
        if isinstance(source, Scene):
            times_s = [index / FPS for index in _every(every, NUM_FRAMES)]
            flow = torch.stack([source.flow(time_s) for time_s in times_s])  # (N, 2, H, W)
            origin, targets = "scene", torch.stack([source.frame(time_s) for time_s in times_s])
        else:
            indices = _every(every, len(source.frames))
            times_s = [float(source.times_s[index] - source.times_s[0]) for index in indices]
            flow = cached_flow(clip_set, row, source, indices, raft_weights=raft_weights, device=device)
            origin, targets, flow = "video", source.frames[indices], fit_flow(flow, size, name)
    kept = row.status == KEPT
    importance = mean_displacement(clip_set.spectrum(row.id)[0]) if kept else clip_set.pairs(row.id)[1]  # (1, H, W)
    importance = resize_maps(importance, size)
    return EvaluationClip(row.id, source_name(row), origin, first, importance, tuple(times_s), targets, flow)


def fit_flow(flow: Tensor, size: tuple[int, int], name: str) -> Tensor:
    """Return flow (N, 2, H, W) for an image of size (H', W'): resized and rescaled, with a warning, where sizes differ.

    Raises:
        ClipSetError: flow of another aspect than the image's, or not finite; the message begins with `name`.
    """
    if not bool(flow.isfinite().all()):
        raise ClipSetError(f"{name}: its flow holds NaN or Inf; right: finite numbers, prepare it again")
    own = tuple(flow.shape[-2:])
    if own == size:
        return flow
    if abs(math.log(own[1] / own[0]) - math.log(size[1] / size[0])) > ASPECT_TOLERANCE:
        raise ClipSetError(
            f"{name}: its flow is {own[1]} x {own[0]} px, its image {size[1]} x {size[0]}; "
            "right: flow of the image's aspect ratio"
        )
    logger.warning(
        "%s: flow of %d x %d px is resized and rescaled to its image's %d x %d px", name, *own[::-1], *size[::-1]
    )
    return resize_flow(flow, size)


def read_source(clip_set: ClipSet, row: ClipRow, first: Tensor) -> Scene | Video:
    """Return the scene or the frames that a clip was made from, `first` (3, H, W) being its frame 0.

    Raises:
        SourceError: it is not at hand, or shows something else now.
    """
    size = tuple(first.shape[-2:])
    if row.source.startswith(SCENE_PREFIX):
        try:
            _, seed, kind = row.source.split(":")
            scene = make_scene(int(seed), size=size, kind=kind)
        except ValueError as error:
            raise SourceError(f"{row.source}: {error}") from error
        difference = (scene.picture() - first).abs()
        if _settings(clip_set).get("photographs"):
            # the grain of a photograph on a small thing changes the mean by next to nothing
            if float(difference.max()) > SAME_FRAME_LIMIT:
                raise SourceError(f"{row.source} shows photographs, which the set does not keep")
        elif float(difference.mean()) > SAME_FRAME_LIMIT:
            raise SourceError(f"this version draws another {row.source}")
        return scene
    try:
        fps = _settings(clip_set).get("fps", FPS)
        video = read_clip(Path(row.source), start_s=row.start_s, fps=fps, size=size)
    except (MediaError, OSError) as error:
        raise SourceError(str(error)) from error
    difference = (video.frames[0] - first).abs()
    if float(difference.mean()) > SAME_FRAME_LIMIT or len(video.frames) < max(row.frames, 2):
        raise SourceError(f"{row.source} is not the video that the clip was made from")
    return Video(video.frames[: row.frames], video.times_s[: row.frames], video.fps, video.source_fps)


def cached_flow(
    clip_set: ClipSet,
    row: ClipRow,
    video: Video,
    indices: list[int],
    *,
    raft_weights: Path | None = None,
    device: str = "cpu",
) -> Tensor:
    """Return the visible flow from frame 0 to frames `indices`, (N, 2, H, W) px, from the set's cache where it has it.

    Estimated with the method that the set was made with, cleaned by `visible_flow` as in training, and rounded to
    float16 whether it comes from the cache or not.
    """
    method = flow_method(clip_set)
    path = cache_path(clip_set, row)
    known = _read_cache(path, tuple(video.frames.shape[-2:]), len(video.frames))
    missing = [index for index in indices if index not in known]
    if missing:
        # The result of DIS depends on how many threads share an image.
        cv2.setNumThreads(1)
        options = {"weights": raft_weights, "device": device} if method == "raft" else {}
        # of the whole clip, so that a frame's flow does not depend on which others are asked for
        still = static_pixels(video.frames[0], video.frames)
        flow = estimate_flow(video.frames[0], video.frames[missing], method=method, still=still, **options)
        flow, _ = visible_flow(video.frames[0], video.frames[missing], flow, still=still)
        known |= dict(zip(missing, flow.to(torch.float16).numpy(), strict=True))
        _write_cache(path, known, len(video.frames))
    return torch.from_numpy(np.stack([known[index] for index in indices]).astype(np.float32))


def cache_path(clip_set: ClipSet, row: ClipRow) -> Path:
    """Return where the flow of a clip is kept."""
    return clip_set.folder / "cache" / "flow" / f"{row.id}.{flow_method(clip_set)}-v{FLOW_VERSION}.npz"


def _settings(clip_set: ClipSet) -> dict:
    return clip_set.statistics.get("settings", {})


def _every(every: int, num_frames: int) -> list[int]:
    return list(range(min(every, num_frames - 1), num_frames, every))


def _read_cache(path: Path, size: tuple[int, int], num_frames: int) -> dict[int, np.ndarray]:
    """Return {frame: flow (2, H, W) float16}; {} where the file is missing, damaged or of another clip."""
    try:
        with np.load(path, allow_pickle=False) as file:
            index, flow, frames = file["index"], file["flow"], int(file["num_frames"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return {}
    if flow.shape != (len(index), 2, *size) or frames != num_frames or not np.isfinite(flow).all():
        return {}
    return dict(zip(index.tolist(), flow, strict=True))


def _write_cache(path: Path, known: dict[int, np.ndarray], num_frames: int) -> None:
    index = sorted(known)
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, index=np.array(index), flow=np.stack([known[i] for i in index]), num_frames=num_frames)
    except MediaError as error:
        logger.warning("flow is not kept for the next time: %s", error)
