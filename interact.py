"""Make a picture one can poke: one HTML file that opens by double click, without network or server; or a video of it.

python interact.py photo.jpg                          predicts the motion and writes outputs/photo.html
python interact.py photo.jpg --flow outputs/flow.npz  takes a motion file of generate_motion.py
python interact.py photo.jpg --video poke.mp4 --poke "300,200,20,-5@0.5" "120,80,-15,0@2"

outputs/poke.gif shows such a video.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from animation.flags import add_sampling_flags, sampling_options
from animation.interactive_page import build_page, page_modes
from animation.interactive_video import (
    add_interaction_flags,
    check_interaction_flags,
    check_interactions,
    video_of_interaction,
)
from animation.rendering import note_sizes, read_images
from animation.sampling import load_pipeline
from cli.flags import add_shared_flags
from cli.parser import Parser, check_output_file, positive_int
from cli.run import command, run

logger = logging.getLogger("__main__")

PAGE_SIZE_PX = 1024


def make_parser() -> Parser:
    """Build the command line."""
    parser = Parser(description=__doc__, raw_description=True)
    group = parser.add_argument_group("input and output")
    add = group.add_argument
    add("picture", type=Path, metavar="PICTURE", help="the photograph")
    add("--flow", type=Path, metavar="MOTION.npz", help="use this motion instead of predicting one")
    add("--out", type=Path, metavar="PAGE.html", help="the page; default: outputs/NAME.html")
    add("--size", type=positive_int, default=PAGE_SIZE_PX, metavar="PX",
        help="long side of the picture in the page; never enlarged")  # fmt: skip
    add_sampling_flags(parser)
    add_interaction_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Write one page; returns the exit code."""
    args = make_parser().parse_args(argv)
    out = args.out or Path("outputs") / f"{args.picture.stem}.html"
    if not args.video:
        check_output_file(out, "--out", (".html", ".htm"))
    check_interaction_flags(args)
    options = sampling_options(args)

    from data.media import atomic_path, read_image_size
    from motion.motion_file import load_motion

    # Picture and motion
    height, width = read_image_size(args.picture)
    check_interactions(args.poke, height, width)
    image, source = read_images(args.picture, args.size)
    if max(height, width) > args.size:
        size = (width, height, image.shape[-1], image.shape[-2])
        logger.info("%s: %d x %d px, scaled to %d x %d (--size)", args.picture, *size)
    if args.flow:
        motion = load_motion(args.flow)
        motion.check_aspect(*source.shape[-2:], str(args.flow))
        note_sizes(motion, source, str(args.flow))
    else:
        motion = load_pipeline(args).predict(source, **options)
    modes = page_modes(motion, str(args.flow or args.picture))
    if float(modes.amplitude.max()) == 0:
        logger.info("%s: nothing in it moves, the page will hold a still picture", args.flow or args.picture)
    if args.video:
        return video_of_interaction(args, image, modes, motion)

    # Page
    title = args.picture.stem.replace("_", " ").encode("utf-8", "replace").decode()  # file names may be any bytes
    page = build_page(image, modes, title, motion)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    logger.info("%s: %.1f MB, %d modes; open it in a browser", out, len(page) / 1e6, len(modes.shapes))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
