"""The single-video protocol of `evaluate.py frames`: train on five seconds of a video, test on the next five.

All operators get the same budget, data, order and seeds.
"""

import logging
from itertools import product
from pathlib import Path
from typing import Any

from data.clip_writer import ClipSetWriter
from data.clips import DROPPED, ClipSet
from data.files import remove_folder
from data.prepare_clip import ClipJob, prepare_video
from data.video import probe_video
from evaluation import EvaluationError
from evaluation.frames.models import TrainedRenderer, find_models, find_seeds
from evaluation.training_scripts import as_flags, run_script
from motion.spectrum import FPS, PERIOD_S

logger = logging.getLogger(__name__)

# Target frames that training draws from. All of five seconds would make a file that every sample reads in vain.
NUM_PAIRS = 48
# A video may lack so much of its ten seconds: containers round.
SLACK_S = 0.1
# {part of the run's name: (training script, its own flags)}
OPERATORS = {
    "softmax": ("train_frame_synthesis_softsplat.py", []),
    "gaussian-ewa": ("train_frame_synthesis_gaussian.py", ["--ewa"]),
    "gaussian-iso": ("train_frame_synthesis_gaussian.py", ["--no-ewa"]),
    "gaussian-importance": ("train_frame_synthesis_gaussian.py", ["--weighting", "gaussian"]),
}
NOTE = (
    "single-video protocol: trained on the first five seconds of the video and tested on the next five, from their own "
    "frame 0 on; training and test show the same scene, so this does not show how a model does on other images; "
    "published: the figures that an earlier re-implementation gives for another video, trained and tested likewise "
    "(LPIPS: which network is not stated)"
)
# Of an earlier re-implementation, whose Gaussian splatting weights by importance over the bilinear footprint.
PUBLISHED_ROWS = [
    {"row": "published softmax", "psnr_db": 24.16, "ssim": 0.8803, "lpips_alex": 0.0517},
    {"row": "published Gaussian", "psnr_db": 24.11, "ssim": 0.8807, "lpips_alex": 0.0508},
]


def prepare_halves(folder: Path, video: Path) -> ClipSet:
    """Make the clip set of a video's halves anew: the clips "first", of split train, and "next", of split test.

    EvaluationError for a video that is shorter than both, or a half that cannot be used.
    """
    seconds = probe_video(video).seconds
    if seconds < 2 * PERIOD_S - SLACK_S:
        raise EvaluationError(f"video {video}: {seconds:.2f} s; right: {2 * PERIOD_S:g} s or more")
    remove_folder(folder)
    settings = {"made_of": "videos", "fps": FPS, "method": "dis", "protocol": "single-video"}
    with ClipSetWriter(folder, settings) as writer:
        for name, split, start_s in (("first", "train", 0.0), ("next", "test", PERIOD_S)):
            # Whoever names a video wants that one, even if its camera moves.
            options = {"start_s": start_s, "seconds": PERIOD_S, "num_pairs": NUM_PAIRS, "max_camera_px": float("inf")}
            rows = [row for row in prepare_video(folder, ClipJob(name, video, split, **options)) if row.id == name]
            if rows[0].status == DROPPED:
                raise EvaluationError(f"video {video}: the part at {start_s:g} s cannot be used: {rows[0].reason}")
            writer.add(*rows)
        return writer.finish()


def train_operators(
    clip_set: ClipSet, out: Path, *, seed: int, num_seeds: int, **options: Any
) -> list[TrainedRenderer]:
    """Train every operator with `num_seeds` seeds from `seed` on, anew below `out`; `options` are flags for all."""
    folders = []
    for one, (name, (script, own_flags)) in product(range(seed, seed + num_seeds), OPERATORS.items()):
        run = out / f"{name}-seed{one}"
        remove_folder(run)
        logger.info("training %s, seed %d", name, one)
        flags = as_flags(data=clip_set.folder, seed=one, out=run, **options)
        run_script(script, [*flags, *own_flags], out / f"{run.name}.log")
        folders.append(run)
    return find_seeds(folders) if num_seeds > 1 else [model for folder in folders for model in find_models([folder])]
