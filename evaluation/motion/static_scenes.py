"""evaluate.py still: how much motion is predicted where nothing can move."""

from __future__ import annotations

import argparse
import logging
import statistics
from typing import TYPE_CHECKING, Any

from animation.flags import sampling_options
from animation.sampling import load_pipeline
from evaluation import out_folder

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# `prepare_data.py scenes --seed S` renders the scenes from 1,000,000 S on: no training set has those of such an S.
FIRST_SCENE_SEED, SCENE_SEEDS = 900_000_000, 1_000_000
SHEET_COLUMNS = 4
SHEET_SIZE = (160, 256)


def make_table(args: argparse.Namespace) -> int:
    """Predict motion for the pictures, print the table, and write it and a sheet of pictures and motion to --out."""
    from tqdm import tqdm

    from data.media import contact_sheet, write_image
    from data.result_tables import write_results
    from models.checkpoints import DEFAULT_CHECKPOINT

    # Early checks
    out = out_folder(args, "still")
    options = sampling_options(args)
    pictures = [(crop.path.stem, "photograph", crop.read()) for crop in args.pictures]
    pictures += _still_scenes(args.scenes, args.seed)
    pipeline = load_pipeline(args)

    # Predict and measure
    rows, cells = [], []
    for name, origin, image in tqdm(pictures, unit="picture", disable=None, dynamic_ncols=True):
        motion = _mean_motion(pipeline, image, num_samples=args.samples, **options)  # (M, 1, h, w)
        figures = {"mean_motion_px": float(motion.mean()), "largest_motion_px": float(motion.max())}
        rows.append({"row": name, "origin": origin, **figures})
        cells.append(_sheet_cells(image, motion[0]))
    rows += [_mean_row(rows, origin) for origin in dict.fromkeys(row["origin"] for row in rows)]

    # Write
    notes = [
        "mean |F| over frames, pixels and samples, px of the motion grid (256 x 160 px in area), before what is "
        "predicted is calmed; largest: of any pixel, mean over frames",
        f"rendered: scenes of kind still, seeds {_first_scene(args.seed)} and on",
        f"{args.samples} samples a picture; checkpoint {args.checkpoint or DEFAULT_CHECKPOINT}; sampler {args.sampler}",
        f"seed {args.seed}; device {pipeline.device}; command: {args.command}",
    ]
    columns = range(0, len(cells), SHEET_COLUMNS)
    write_image(out / "sheet.png", contact_sheet([sum(cells[i : i + SHEET_COLUMNS], []) for i in columns]))
    print(write_results(out, rows, title="Motion predicted where nothing can move", notes=notes))
    logger.info("written to %s", out)
    return 0


def _still_scenes(count: int, seed: int) -> list[tuple[str, str, Tensor]]:
    from data.scenes.scene import make_scene

    first = _first_scene(seed)
    return [(f"scene {n}", "rendered", make_scene(n, kind="still").picture()) for n in range(first, first + count)]


def _first_scene(seed: int) -> int:
    return FIRST_SCENE_SEED + SCENE_SEEDS * seed


def _mean_motion(pipeline: Any, image: Tensor, **options: Any) -> Tensor:
    """Return the mean displacement (M, 1, h, w) px of M samples on the motion grid."""
    from motion.flow import motion_grid_size, resize_maps
    from motion.spectrum import mean_displacement

    grid = motion_grid_size(*image.shape[-2:])
    return mean_displacement(pipeline(resize_maps(image, grid)[None], **options)[0].float().cpu())


def _sheet_cells(image: Tensor, motion: Tensor) -> list[Tensor]:
    """Return the picture and its motion (black 0, white 4 px or more), both (3, 160, 256)."""
    from evaluation.motion.measure import magnitude_image
    from motion.flow import resize_maps

    return [resize_maps(maps, SHEET_SIZE) for maps in (image, magnitude_image(motion, 4.0))]


def _mean_row(rows: list[dict[str, Any]], origin: str) -> dict[str, Any]:
    of = [row for row in rows if row["origin"] == origin]
    mean = statistics.fmean(row["mean_motion_px"] for row in of)
    largest = max(row["largest_motion_px"] for row in of)
    return {
        "row": f"mean of {len(of)}, {origin}",
        "origin": origin,
        "mean_motion_px": mean,
        "largest_motion_px": largest,
        "highest_mean_px": max(row["mean_motion_px"] for row in of),
    }
