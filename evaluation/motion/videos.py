"""FVD of clips' first frames moved by predicted motion, beside the same frames moved by other motions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from animation.rendering import load_renderer
from data.clips import ClipRow, ClipSet, source_name
from data.result_tables import write_results
from evaluation import EvaluationError
from evaluation.motion.measure import MODEL, OTHER, another_clip
from evaluation.video.measure import COLUMN_NOTES, VideoComparison
from evaluation.video.networks import FeatureNetwork
from evaluation.video.sources import CLIP_ERRORS, ClipVideos, clip_seed, read_frames
from models.checkpoints import DEFAULT_CHECKPOINT
from models.frame_synthesis import FrameSynthesis
from models.motion_pipeline import MotionPipeline
from models.rendering import render_frames
from motion.looping import Playback
from motion.motion_file import Motion
from motion.spectrum import FPS, NUM_FRAMES

logger = logging.getLogger(__name__)

OWN_ROW = "the clip's own motion"
WINDOWS = (16, 32)
_BATCH_WINDOWS = 2  # of 32 frames: a batch of more is no faster on a CPU

FVD_NOTE = (
    "each row moves frame 0 of a clip, rendered by the checkpoint's softmax splatting on the clip's grid at its time "
    f"stamps; model: one sample as animate.py predicts it; {OWN_ROW}: its stored bins of the model's number; {OTHER}: "
    "a training clip of another source drawn by the seed, resized"
)


class MotionVideos:
    """Clips of a set, and their frame 0 moved by each of several motions.

    `pipelines` are {row name: pipeline}, the first of which says how many bins of a clip's own motion count; `model`
    renders all rows (None: image-space splatting). `sampling` holds arguments of `MotionPipeline.predict`.
    """

    def __init__(
        self, clip_set: ClipSet, rows: Sequence[ClipRow], pipelines: dict[str, MotionPipeline],
        model: FrameSynthesis | None, sampling: dict[str, Any], *, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.clip_set, self.pipelines, self.model, self.sampling = clip_set, pipelines, model, sampling
        self.device, self.limits = device, list[float]()
        config = next(iter(pipelines.values())).unet.config
        self.num_bins, self.period_frames = config.num_bins, round(config.period_s * FPS)
        self._clips = {row.id: row for row in rows}
        self._others = {row.id: another_clip(clip_set, row, sampling["seed"]) for row in rows}
        self.names = list(self._clips)
        self.rows = [*pipelines, OWN_ROW, *([OTHER] if all(self._others.values()) else [])]

    def read(self, name: str) -> ClipVideos:
        """Read the clip and render every row; one of CLIP_ERRORS where it or the other clip cannot be read."""
        row = self._clips[name]
        frames, times_s = read_frames(self.clip_set, row, NUM_FRAMES)  # (T, 3, H, W)
        seed = clip_seed(self.sampling["seed"], name)
        motions = {key: one.predict(frames[0], **self.sampling | {"seed": seed}) for key, one in self.pipelines.items()}
        self.limits.append(motions[next(iter(motions))].meta["amplitude_limit_scale"])
        motions[OWN_ROW] = self._stored(name)
        if OTHER in self.rows:
            motions[OTHER] = self._stored(self._others[name].id)
        options = {"model": self.model, "device": self.device, "precision": self.sampling.get("precision", "no")}
        generated = {}
        for key, motion in motions.items():
            playback = Playback(times_s / motion.period_s, FPS, loop=False)
            generated[key] = torch.cat([*render_frames(frames[0], motion, playback, **options)])  # (T, 3, H, W)
        return ClipVideos(name, frames, generated, source_name(row))

    def _stored(self, name: str) -> Motion:
        spectrum, _ = self.clip_set.spectrum(name, self.num_bins)
        return Motion(spectrum, num_frames=self.period_frames, fps=FPS)


def open_videos(
    clip_set: ClipSet, rows: Sequence[ClipRow], pipeline: MotionPipeline, checkpoint: Path | None,
    baseline_checkpoint: Path | None, sampling: dict[str, Any], device: torch.device,
) -> MotionVideos:  # fmt: skip
    """Load the renderer, and the baseline's pipeline where it is given."""
    pipelines = {MODEL: pipeline}
    if baseline_checkpoint:
        baseline = MotionPipeline.from_pretrained(baseline_checkpoint).to(device)
        pipelines[f"{MODEL} of {baseline_checkpoint}"] = baseline
    model = load_renderer(checkpoint or DEFAULT_CHECKPOINT, "softmax")
    return MotionVideos(clip_set, rows, pipelines, model, sampling, device=device)


def load_network(kind: str, path: Path, device: torch.device) -> FeatureNetwork:
    """Load the network and try it out on windows; NetworkError for one that is none."""
    network = FeatureNetwork(path, on_videos=True, kind=kind, device=device)
    network.check((160, 256), WINDOWS[:1])
    return network


def write_fvd(out: Path, videos: MotionVideos, network: FeatureNetwork, *, seed: int, notes: Sequence[str]) -> bool:
    """Measure every clip whose source can be read, print the table and write it; return whether all could be."""
    networks, left_out = {"fvd": network}, list[str]()
    comparison = VideoComparison(videos.rows, networks, windows=WINDOWS, batch_size=_BATCH_WINDOWS, seed=seed)
    for name in tqdm(videos.names, unit="clip", disable=None, dynamic_ncols=True):
        try:
            comparison.add(videos.read(name))
        except CLIP_ERRORS as error:
            logger.warning("left out of FVD: %s (%s)", name, error)
            left_out.append(name)
    if not comparison.lengths:
        problem = f"the source of none of its {len(left_out)} clips can be read"
        raise EvaluationError(f"data {videos.clip_set.folder}: {problem}; right: a set whose sources are there")
    comparison.check_counts()
    rows = comparison.table()
    used = [column for column in rows[0] if any(row[column] is not None for row in rows)]
    limit = sum(videos.limits) / len(videos.limits)
    notes = [
        FVD_NOTE,
        *COLUMN_NOTES,
        f"amplitude limit: {limit:.2f} of the strength on average"
        + (f"; left out as not readable {len(left_out)}: {', '.join(left_out)}" if left_out else ""),
        *comparison.notes(),
        *notes,
    ]
    table = [{column: row[column] for column in used} for row in rows]
    print(write_results(out, table, title="FVD of rendered videos", notes=notes))
    return not left_out
