"""evaluate.py splats: one picture under a strong smooth flow, by each operator, side by side."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from training.cli import UsageError, add_shared_flags, positive_float, positive_int

from . import DEFAULT_OUT, out_folder

logger = logging.getLogger(__name__)


def add_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("splats", help="one picture under a strong smooth flow, by each operator, side by side")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is splatted")
    group.add_argument("--image", type=Path, required=True, metavar="FILE", help="a picture")
    group.add_argument("--size", type=positive_int, default=256, metavar="PX", help="its long side")
    group.add_argument("--sigma", type=positive_float, metavar="PX", help="of the Gaussian footprints; default: .45")
    add_shared_flags(parser, "out", out={"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/splats"})


def make_table(args: argparse.Namespace) -> int:
    """Write splats.png and the table to --out."""
    from data.media import read_image
    from splatting.functional import DEFAULT_SIGMA_PX
    from training.metrics import write_results
    from training.splat_comparison import MAGNIFICATION, compare_splats, write_sheet

    out = out_folder(args, "splats")
    image = read_image(args.image, max_side=args.size)
    sigma = args.sigma or DEFAULT_SIGMA_PX
    try:
        rows, pictures = compare_splats(image[None], sigma)
    except ValueError as error:
        raise UsageError(f"--sigma {sigma}: {error}") from None
    notes = [
        f"data: {args.image} at {tuple(image.shape[-2:])} px, under a lens that enlarges its middle {MAGNIFICATION} "
        f"times and twists it; importance: length of the flow; Gaussian sigma {sigma} px",
        "psnr_db: where something arrives, against the picture sampled (bicubic) at the inverse of the flow",
        f"command: {args.command}",
    ]
    print(write_results(out, rows, title="Splats of one picture", notes=notes))
    write_sheet(out / "splats.png", rows, pictures)
    logger.info("written to %s", out)
    return 0
