"""evaluate.py still: how much motion is predicted where nothing can move."""

from __future__ import annotations

import argparse
import logging
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.cli import UsageError, add_shared_flags, check_precision, choose_device, positive_int
from training.sampling import add_sampling_flags, check_steps, load_pipeline

from . import DEFAULT_OUT, out_folder

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# `prepare_data.py scenes --seed S` renders the scenes from 1,000,000 S on: no training set has those of such an S.
FIRST_SCENE_SEED, SCENE_SEEDS = 900_000_000, 1_000_000
SHEET_COLUMNS = 4
SHEET_SIZE = (160, 256)


@dataclass(frozen=True)
class Crop:
    """A part of a picture: FILE, or FILE:LEFT,TOP,RIGHT,BOTTOM in shares of its sides."""

    path: Path
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    @classmethod
    def parse(cls, text: str) -> Crop:
        """Read the flag's value; argparse.ArgumentTypeError says what would be right."""
        name, colon, numbers = text.rpartition(":")
        if not colon or "," not in numbers:
            return cls(Path(text))
        try:
            left, top, right, bottom = (float(number) for number in numbers.split(","))
        except ValueError:
            left = top = right = bottom = -1.0
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            right_one = "FILE:LEFT,TOP,RIGHT,BOTTOM in shares of the sides, such as wall.jpg:0,0.5,1,1"
            raise argparse.ArgumentTypeError(f"{text}: right: {right_one}")
        return cls(Path(name), (left, top, right, bottom))

    def read(self) -> Tensor:
        """Return the part as (3, H, W) in [0, 1].

        Raises:
            UsageError: no such picture, or a part of less than 32 px.
        """
        from data.media import MediaError, read_image

        try:
            image = read_image(self.path)
        except MediaError as error:
            raise UsageError(f"--pictures {error}") from error
        height, width = image.shape[-2:]
        left, top, right, bottom = self.box
        part = image[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
        if min(part.shape[-2:]) < 32:
            size = f"{part.shape[-1]} x {part.shape[-2]} px"
            raise UsageError(f"--pictures {self.path}: the part has {size}; right: sides of at least 32 px")
        return part


def add_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("still", help="motion predicted for pictures in which nothing can move")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--scenes", type=positive_int, default=16, metavar="N", help="rendered walls, houses, rocks and furniture"
    )
    group.add_argument(
        "--pictures", type=Crop.parse, nargs="+", default=[], metavar="FILE[:LEFT,TOP,RIGHT,BOTTOM]",
        help="photographs without plant, cloth, water or flame, or parts of photographs, in shares of their sides",
    )  # fmt: skip
    group.add_argument("--samples", type=positive_int, default=2, metavar="M", help="motions for each picture")
    add_sampling_flags(parser)
    out = {"metavar": "DIR", "help": f"folder of tables and sheet; default: {DEFAULT_OUT}/still"}
    add_shared_flags(parser, "seed", "device", "precision", "out", out=out)


def make_table(args: argparse.Namespace) -> int:
    """Predict motion for the pictures, print the table, and write it and a sheet of pictures and motion to --out."""
    from tqdm import tqdm

    from data.media import contact_sheet, write_image
    from models.checkpoints import DEFAULT_CHECKPOINT
    from training.results import write_results

    # Early checks
    out = out_folder(args, "still")
    options = {"seed": args.seed, "sampler": args.sampler, "steps": check_steps(args.steps), "guidance": args.guidance}
    options["precision"] = check_precision(args.precision, choose_device(args.device))
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
    from data.scenes import make_scene

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
    from motion.flow import resize_maps
    from training.motion_comparison import magnitude_picture

    return [resize_maps(maps, SHEET_SIZE) for maps in (image, magnitude_picture(motion, 4.0))]


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
