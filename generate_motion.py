"""Predict how an image could move: image -> motion file (.npz)."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from animation import flags
from animation.options import DEFAULT_SIZE_PX
from cli.flags import add_shared_flags
from cli.parser import Parser, check_output_file
from cli.run import command, run

logger = logging.getLogger("__main__")


@command
def main(argv: list[str] | None = None) -> int:
    """Predict one motion file; returns the exit code."""
    parser = Parser(description=__doc__)
    add = parser.add_argument_group("input and output").add_argument
    add("--input", "--image", type=Path, required=True, metavar="IMAGE", help="the photograph")
    output = Path("outputs/flow.npz")
    add("--output", "--out", type=Path, default=output, metavar="FILE.npz", help="the motion file to write")
    add("--dense", action="store_true", help="also store the flow of all 150 frames (49 MB)")
    flags.add_sampling_flags(parser)
    flags.add_class_flags(parser)
    flags.add_loop_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision", "threads")
    args = parser.parse_args(argv)
    if args.freeze == ("list",):
        from animation.class_control import list_classes

        print(*list_classes([args.input], args.checkpoint), sep="\n")
        return 0
    options, loop, classes = flags.sampling_options(args), flags.loop_options(args), flags.class_options(args)
    check_output_file(args.output, "--output", (".npz",))

    from animation.class_control import ClassControl
    from animation.rendering import show_motion
    from animation.sampling import load_pipeline, loop_guidance
    from data.media import read_image
    from motion.flow import MOVING_PX
    from motion.motion_file import save_motion

    loop_guidance(**loop)  # its errors come before a model is loaded
    image = read_image(args.input, max_side=DEFAULT_SIZE_PX)
    control = ClassControl.load(args.checkpoint, **classes)
    pipeline = load_pipeline(args.checkpoint, flags.checked_device(args, networks=False)[0])
    motion = pipeline.predict(image, loop=loop_guidance(**loop, period_s=pipeline.unet.config.period_s), **options)
    motion = control.apply(motion, image, args.input.name)
    if args.show_motion:
        show_motion(args.show_motion, image, motion)
    save_motion(args.output, motion, dense=args.dense)
    moved_px = motion.importance()
    moving = 100 * float((moved_px > MOVING_PX).float().mean())
    moves = "%.0f %% of the image moves more than %g px (of the motion grid, mean over time; on average %.2f px)"
    logger.info("%s: " + moves, args.output, moving, MOVING_PX, float(moved_px.mean()))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
