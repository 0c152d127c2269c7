"""evaluate.py still: how much motion is predicted where nothing can move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.media import read_image
from data.result_tables import write_results
from data.scenes.scene import make_scene
from evaluation import EvaluationError, out_folder
from evaluation.flags import Crop
from models.checkpoints import DEFAULT_CHECKPOINT
from models.device import check_precision, choose_device
from models.motion_pipeline import MotionPipeline
from motion.flow import motion_grid_size, resize_maps
from motion.spectrum import mean_displacement

# `prepare_data.py scenes --seed S` renders the scenes from 1,000,000 S on: no training set has those of such an S.
FIRST_SCENE_SEED, SCENE_SEEDS = 900_000_000, 1_000_000


def make_table(
    *, scenes: int, images: list[Crop], samples: int, checkpoint: Path | None, seed: int, device: str,
    out: Path | None, command: str, **sampling: Any,
) -> bool:  # fmt: skip
    """Predict motion for rendered scenes and parts of photographs, print the table, and write it."""
    out, place, sources = out_folder(out, "still"), choose_device(device), []
    check_precision(sampling["precision"], place)
    for crop in images:
        image, (left, top, right, bottom) = read_image(crop.path), crop.box
        height, width = image.shape[-2:]
        part = image[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
        if min(part.shape[-2:]) < 32:
            raise EvaluationError(f"images {crop.path}: a part of {part.shape[-1]} x {part.shape[-2]} px; right: 32 px")
        sources.append((crop.path.stem, "photograph", part))
    first = FIRST_SCENE_SEED + SCENE_SEEDS * seed
    sources += [(f"scene {n}", "rendered", make_scene(n, kind="still").picture()) for n in range(first, first + scenes)]
    pipeline, rows = MotionPipeline.from_pretrained(checkpoint or DEFAULT_CHECKPOINT).to(place), []
    for name, origin, image in tqdm(sources, unit="image", disable=None, dynamic_ncols=True):
        grid = motion_grid_size(*image.shape[-2:])
        spectra = pipeline(resize_maps(image, grid)[None], num_samples=samples, seed=seed, **sampling)[0]
        motion = mean_displacement(spectra.float().cpu())  # (M, 1, h, w)
        metrics = {"mean_motion_px": float(motion.mean()), "largest_motion_px": float(motion.max())}
        rows.append({"row": name, "origin": origin, **metrics})
    for origin in dict.fromkeys(row["origin"] for row in rows):
        of = [row for row in rows if row["origin"] == origin]
        means = [row["mean_motion_px"] for row in of]
        mean = {"row": f"mean of {len(means)}, {origin}", "origin": origin, "mean_motion_px": sum(means) / len(means)}
        mean["largest_motion_px"] = max(row["largest_motion_px"] for row in of)
        rows.append(mean | {"highest_mean_px": max(means)})
    notes = [
        "mean |F| over frames, pixels and samples, px of the motion grid, before its amplitude is limited",
        f"{samples} samples an image; checkpoint {checkpoint or DEFAULT_CHECKPOINT}; seed {seed}; command: {command}",
    ]
    print(write_results(out, rows, title="Motion predicted where nothing can move", notes=notes))
    return True
