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
from typing import Any

from animation import flags
from cli.flags import add_shared_flags
from cli.parser import Arguments, Parser, UsageError, check_output_file, positive_int
from data.files import file_name

logger = logging.getLogger("__main__")


@command
def main(argv: list[str] | None = None) -> int:
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
    from animation.rendering import read_images, read_motion, show_motion
    from animation.sampling import load_pipeline
    from data.media import read_image_size

    # Image and motion
    height, width = read_image_size(args.image)
    for x, y, *_ in args.poke:
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f"--poke {x:g},{y:g}: outside the image, which has {width} x {height} px")
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
        write_video(args, image, modes, (height, width), motion.importance(), rendering)
    else:
        write_page(out, image, modes, args.image.stem.replace("_", " "), motion)
    return 0


def write_video(
    args: Arguments, image: Any, modes: Any, file_size: tuple[int, int], depth_order: Any, rendering: dict[str, Any]
) -> None:
    """Simulate the interactions, px of an image file of `file_size` (H, W), and render image (3, H, W) along them."""
    import torch

    from animation.rendering import load_renderer, write_frames
    from models.rendering import render_frames
    from motion.looping import Playback
    from motion.modal import Interaction, InteractiveMotion, Simulation, simulate_interactions

    down, across = modes.size[0] / file_size[0], modes.size[1] / file_size[1]
    on_grid = [
        Interaction((x + 0.5) * across - 0.5, (y + 0.5) * down - 0.5, dx * across, dy * down, start_s)
        for x, y, dx, dy, start_s in args.poke
    ]
    simulation, num_frames = Simulation(modes, damping=args.damping), flags.num_frames(args)
    simulation.wind = args.gusts  # 1: as far as the predicted motion
    flow = simulate_interactions(simulation, on_grid, num_frames, args.fps)  # (T, 2, h, w)
    moved = InteractiveMotion(flow=flow, num_frames=num_frames, fps=args.fps, depth_order=depth_order)
    playback = Playback(torch.arange(num_frames, dtype=torch.float64) / num_frames, args.fps)
    model = None if args.preview else load_renderer(args.checkpoint, args.splat)
    frames = render_frames(image, moved, playback, operator=args.splat, model=model, **rendering)
    write_frames(args.video, frames, playback)


if __name__ == "__main__":
    sys.exit(run(main))
