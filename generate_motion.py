"""Predict how a picture could move: picture -> motion file (.npz)."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from training.cli import Parser, UsageError, add_shared_flags, command, run
from training.sampling import add_sampling_flags, load_pipeline, sampling_options

logger = logging.getLogger("__main__")


@command
def main(argv: list[str] | None = None) -> int:
    """Predict one motion file; returns the exit code."""
    parser = Parser(description=__doc__)
    group = parser.add_argument_group("input and output")
    group.add_argument("--input", type=Path, required=True, metavar="PICTURE", help="the photograph")
    group.add_argument(
        "--output", "--out", type=Path, default=Path("outputs/flow.npz"), metavar="FILE.npz", help="the motion file"
    )
    group.add_argument("--dense", action="store_true", help="also store the flow of all 150 frames (49 MB)")
    add_sampling_flags(parser)
    add_shared_flags(parser, "seed", "device")
    args = parser.parse_args(argv)
    if args.output.suffix != ".npz":
        raise UsageError(f"--output {args.output}: right: a name that ends in .npz")

    from data.media import check_writable, read_image
    from motion.motion_file import save_motion

    check_writable(args.output)
    image = read_image(args.input)
    pipeline = load_pipeline(args)
    motion = pipeline.predict(image, **sampling_options(args))
    save_motion(args.output, motion, dense=args.dense)
    moving = float((motion.importance() > 0.25).float().mean())
    logger.info("%s: %.0f %% of the picture moves", args.output, 100 * moving)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
