"""`evaluate.py frames --protocol seed`: train on the first five seconds of a video, test on the next, as the seed did.

The seed repository compared its operators on one clip, trained on one half and tested on the other. Training and test
show the same scene, so its figures say little about other pictures; method.md section 6 has them. Here all operators
get the same budget, data, order and seeds.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.parser import UsageError
from data.clip_writer import ClipSetWriter
from data.clips import DROPPED, ClipSet
from data.files import remove_folder
from data.prepare_clip import ClipJob, prepare_video
from data.video import probe_video
from evaluation.frames.models import TrainedRenderer, find_models, find_seeds
from motion.spectrum import FPS, PERIOD_S
from training.frame_synthesis import train_renderer

logger = logging.getLogger(__name__)

TRAINED_PART, TESTED_PART = "first", "next"
# Target frames that training draws from. All of five seconds would make a file that every sample reads in vain.
NUM_PAIRS = 48
# A video may lack so much of its ten seconds: containers round.
SLACK_S = 0.1
# {part of the run's name: (operator, its entries of the model's config)}
OPERATORS = {
    "softmax": ("softmax", {}),
    "gaussian-ewa": ("gaussian", {"ewa": True}),
    "gaussian-iso": ("gaussian", {"ewa": False}),
    "seed-weighting": ("gaussian", {"weighting": "gaussian"}),
}
NOTE = (
    "protocol seed: trained on the first five seconds of the video and tested on the next five, from their own frame "
    "0 on; training and test show the same scene, so these figures do not tell what happens on other pictures"
)


def check_videos(videos: Sequence[Path]) -> list[tuple[Path, float]]:
    """Return file and start (s) of the two halves; UsageError where a single video is shorter than ten seconds.

    Args:
        videos: one of ten seconds or more, or two, the first five seconds and the next.
    """
    if len(videos) > 2:
        raise UsageError(f"--video: {len(videos)} files; right: one of {2 * PERIOD_S:g} s, or its two halves")
    seconds = [probe_video(path).seconds for path in videos]
    if len(videos) == 2:
        return [(path, 0.0) for path in videos]
    if seconds[0] < 2 * PERIOD_S - SLACK_S:
        raise UsageError(
            f"--video {videos[0]}: {seconds[0]:.2f} s; right: {2 * PERIOD_S:g} s or more, or two files, the first "
            f"{PERIOD_S:g} s and the next"
        )
    return [(videos[0], 0.0), (videos[0], PERIOD_S)]


def prepare_halves(folder: Path, halves: Sequence[tuple[Path, float]], *, method: str = "dis") -> ClipSet:
    """Make the clip set of the two halves anew: the clips "first", of split train, and "next", of split test.

    Raises:
        UsageError: a half cannot be used; the message says why.
    """
    remove_folder(folder)
    settings = {"made_of": "videos", "fps": FPS, "method": method, "protocol": "seed"}
    with ClipSetWriter(folder, settings) as writer:
        names = (TRAINED_PART, TESTED_PART)
        for name, split, (path, start_s) in zip(names, ("train", "test"), halves, strict=True):
            # The seed looked at no camera either: whoever names a video wants that one.
            camera = {"max_camera_px": float("inf")}
            job = ClipJob(
                name, path, split, start_s=start_s, seconds=PERIOD_S, num_pairs=NUM_PAIRS, method=method, **camera
            )
            rows = [row for row in prepare_video(folder, job) if row.id == name]
            if rows[0].status == DROPPED:
                raise UsageError(f"--video {path}: the part at {start_s:g} s cannot be used: {rows[0].reason}")
            writer.add(*rows)
        return writer.finish()


def train_operators(clip_set: ClipSet, args: argparse.Namespace, out: Path) -> list[TrainedRenderer]:
    """Train every operator with every seed on the first half, into out/NAME-seedN; return the models.

    Args:
        clip_set: of `prepare_halves`.
        args: preset, steps, minutes, batch_size, crop, perceptual_weights, seed, num_seeds, device, precision.
        out: folder of the runs; those there are replaced.
    """
    folders = []
    for seed in range(args.seed, args.seed + args.num_seeds):
        for name, (operator, options) in OPERATORS.items():
            run = out / f"{name}-seed{seed}"
            remove_folder(run)
            logger.info("training %s, seed %d", name, seed)
            train_renderer(operator, options, data=[str(clip_set.folder)], out=run, **_training_options(args, seed))
            folders.append(run / f"frame_synthesis_{operator}")
    return find_seeds(folders) if args.num_seeds > 1 else _only_models(folders)


def _training_options(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the arguments of `train_renderer` that are the same for every operator."""
    same = "preset device precision steps minutes batch_size crop perceptual_weights".split()
    return {"seed": seed, **{name: getattr(args, name) for name in same}}


def _only_models(folders: Sequence[Path]) -> list[TrainedRenderer]:
    return [model for folder in folders for model in find_models([folder])]
