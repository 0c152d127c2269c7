"""Make an image one can drag: one HTML file that opens by double click, without network or server; or a video of it.

python interact.py photo.jpg                            predicts the motion and writes outputs/photo.html
python interact.py photo.jpg --motion outputs/flow.npz  takes a motion file of generate_motion.py
python interact.py photo.jpg --video poke.mp4 --poke "300,200,20,-5@0.5" "120,80,-15,0@2"

outputs/poke.gif shows such a video.
"""

from cli.run import command, run

import logging
import sys
from pathlib import Path

from animation import flags
from cli.flags import add_shared_flags
from cli.parser import Parser, check_output_file, positive_int
from data.files import file_name

logger = logging.getLogger("__main__")


@command
def main(argv: list[str] | None = None) -> int:
    """Write one page or video; returns the exit code."""
    parser = Parser(description=__doc__)
    add = parser.add_argument_group("input and output").add_argument
    add("image", type=Path, metavar="IMAGE", help="the photograph")
    add("--motion", "--flow", type=Path, metavar="FILE.npz", help="use this motion instead of predicting one")
    add("--out", type=Path, metavar="PAGE.html", help="the page; default: outputs/NAME.html")
    add("--size", type=positive_int, default=1024, metavar="PX", help="long side of the image in the page")
    flags.add_sampling_flags(parser)
    flags.add_class_flags(parser)
    flags.add_interaction_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision", "threads")
    args = parser.parse_args(argv)
    if flags.print_classes(args, [args.image]):
        return 0
    out = args.out or Path("outputs") / f"{file_name(args.image.stem)}.html"
    if not args.video:
        check_output_file(out, "--out", (".html", ".htm"))
    flags.check_interaction_flags(args)
    flags.check_class_flags(args)

    from animation.class_control import ClassControl
    from animation.interactive_page import page_modes, write_page
    from animation.interactive_video import render_interactions
    from animation.rendering import load_renderer, read_images, read_motion, show_motion
    from animation.sampling import load_pipeline
    from data.media import read_image_size

    # Image and motion
    height, width = read_image_size(args.image)
    flags.check_interactions(args.poke, height, width)
    image, source = read_images(args.image, args.size)
    if max(height, width) > args.size:
        logger.info("%s: %d x %d px, scaled to %d x %d (--size)", args.image, width, height, *image.shape[:0:-1])
    sampling, device = flags.sampling_options(args), flags.checked_device(args, networks=False)[0]
    rendering = flags.rendering_options(args) if args.video else {}
    control = ClassControl.load(args.checkpoint, args.move, args.freeze)
    if args.motion:
        motion = read_motion(args.motion, source)
    else:
        motion = load_pipeline(args.checkpoint, device).predict(source, **sampling)
    motion = control.apply(motion, source, args.image.name)
    if args.show_motion:
        show_motion(args.show_motion, image, motion)
    modes = page_modes(motion, str(args.motion or args.image))
    if float(modes.amplitude.max()) == 0:
        logger.info("%s: nothing in it moves, the page will hold a static image", args.motion or args.image)

    if args.video:
        model = None if args.preview else load_renderer(args.checkpoint, args.splat)
        options = {"file_size": (height, width), "num_frames": flags.num_frames(args), "fps": args.fps}
        options |= {"damping": args.damping, "wind": args.gusts, "model": model, "operator": args.splat}
        render_interactions(args.video, image, modes, motion, args.poke, **options, **rendering)
    else:
        write_page(out, image, modes, args.image.stem.replace("_", " "), motion)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
