"""Predict how a picture could move: picture -> motion file (.npz)."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from animation.flags import DEFAULT_SIZE_PX, add_loop_flags, add_sampling_flags, sampling_options
from animation.sampling import check_loop_guidance, load_pipeline, loop_guidance, loop_phase
from cli.flags import add_shared_flags
from cli.parser import Parser, check_output_file
from cli.run import command, run

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
    add_loop_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision")
    args = parser.parse_args(argv)
    options = sampling_options(args)
    check_loop_guidance(args)
    if args.loop_seconds is not None:
        loop_phase(args.loop_seconds)
    check_output_file(args.output, "--output", (".npz",))

    from data.media import read_image
    from motion.flow import MOVING_PX
    from motion.motion_file import save_motion

    image = read_image(args.input, max_side=DEFAULT_SIZE_PX)
    pipeline = load_pipeline(args)
    motion = pipeline.predict(image, loop=loop_guidance(args, period_s=pipeline.unet.config.period_s), **options)
    save_motion(args.output, motion, dense=args.dense)
    moved_px = motion.importance()
    moving = 100 * float((moved_px > MOVING_PX).float().mean())
    said = "%.0f %% of the picture moves more than %g px (of the motion grid, mean over time; on average %.2f px)"
    logger.info("%s: " + said, args.output, moving, MOVING_PX, float(moved_px.mean()))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
