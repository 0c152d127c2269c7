"""evaluate.py still: how much motion is predicted where nothing can move."""

from __future__ import annotations

import logging
import statistics
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from animation.flags import check_steps
from data.media import contact_sheet, read_image, write_image
from data.result_tables import write_results
from data.scenes.scene import make_scene
from data.visualisation import magnitude_image
from evaluation import EvaluationError, out_folder
from evaluation.flags import Crop
from models.checkpoints import DEFAULT_CHECKPOINT
from models.device import check_precision, choose_device
from models.motion_pipeline import MotionPipeline
from motion.flow import motion_grid_size, resize_maps
from motion.spectrum import mean_displacement

logger = logging.getLogger(__name__)

# `prepare_data.py scenes --seed S` renders the scenes from 1,000,000 S on: no training set has those of such an S.
FIRST_SCENE_SEED, SCENE_SEEDS = 900_000_000, 1_000_000
SHEET_COLUMNS = 4
SHEET_SIZE = (160, 256)


def make_table(
    *,
    scenes: int,
    images: list[Crop],
    samples: int,
    checkpoint: Path | None,
    seed: int,
    device: str,
    out: Path | None,
    command: str,
    **sampling: Any,
) -> bool:
    """Predict motion for rendered scenes and photographs, print the table, and write it with a sheet of images.

    Args:
        sampling: sampler, steps, guidance and precision.
    """
    # Early checks
    out = out_folder(out, "still")
    place = choose_device(device)
    check_steps(sampling["steps"])
    check_precision(sampling["precision"], place)
    first = FIRST_SCENE_SEED + SCENE_SEEDS * seed
    sources = [(crop.path.stem, "photograph", read_crop(crop)) for crop in images]
    sources += [(f"scene {n}", "rendered", make_scene(n, kind="still").picture()) for n in range(first, first + scenes)]
    pipeline = MotionPipeline.from_pretrained(checkpoint or DEFAULT_CHECKPOINT).to(place)

    # Predict and measure
    rows, cells = [], []
    for name, origin, image in tqdm(sources, unit="image", disable=None, dynamic_ncols=True):
        grid = motion_grid_size(*image.shape[-2:])
        spectra = pipeline(resize_maps(image, grid)[None], num_samples=samples, seed=seed, **sampling)[0]
        motion = mean_displacement(spectra.float().cpu())  # (M, 1, h, w)
        metrics = {"mean_motion_px": float(motion.mean()), "largest_motion_px": float(motion.max())}
        rows.append({"row": name, "origin": origin, **metrics})
        cells += [resize_maps(maps, SHEET_SIZE) for maps in (image, magnitude_image(motion[0]))]
    rows += [_mean_row(rows, origin) for origin in dict.fromkeys(row["origin"] for row in rows)]

    # Write
    notes = [
        "mean |F| over frames, pixels and samples, px of the motion grid (256 x 160 px in area), before its amplitude "
        "is limited; largest: of any pixel, mean over frames",
        f"rendered: scenes of kind still, seeds {first} and on",
        f"{samples} samples an image; checkpoint {checkpoint or DEFAULT_CHECKPOINT}; sampler {sampling['sampler']}",
        f"seed {seed}; device {place}; command: {command}",
    ]
    width = 2 * SHEET_COLUMNS
    write_image(out / "sheet.png", contact_sheet([cells[at : at + width] for at in range(0, len(cells), width)]))
    print(write_results(out, rows, title="Motion predicted where nothing can move", notes=notes))
    logger.info("written to %s", out)
    return True


def read_crop(crop: Crop) -> Tensor:
    """Read a part of a photograph as (3, H, W) in [0, 1]; EvaluationError for a part of less than 32 px."""
    image = read_image(crop.path)
    height, width = image.shape[-2:]
    left, top, right, bottom = crop.box
    part = image[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    if min(part.shape[-2:]) < 32:
        size = f"{part.shape[-1]} x {part.shape[-2]} px"
        raise EvaluationError(f"images {crop.path}: the part has {size}; right: sides of at least 32 px")
    return part


def _mean_row(rows: list[dict[str, Any]], origin: str) -> dict[str, Any]:
    of = [row for row in rows if row["origin"] == origin]
    means = [row["mean_motion_px"] for row in of]
    row = {"row": f"mean of {len(of)}, {origin}", "origin": origin, "mean_motion_px": statistics.fmean(means)}
    largest = max(row["largest_motion_px"] for row in of)
    return row | {"largest_motion_px": largest, "highest_mean_px": max(means)}
