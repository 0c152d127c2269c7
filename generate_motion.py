"""Predict how an image could move: image -> motion file (.npz); or a folder of images -> a folder of them."""

from cli.run import command, run

import logging
import sys
from functools import partial
from pathlib import Path

from animation import flags
from animation.options import DEFAULT_SIZE_PX
from cli.flags import add_shared_flags
from cli.parser import Arguments, Parser, UsageError, check_output_file, check_writable, refuse_flags
from cluster.flags import add_cluster_flags, cluster_workers, run_each, without_existing
from cluster.storage import is_folder, local_input, path_or_url

logger = logging.getLogger("__main__")


class Predictor:
    """The loaded models and the options that every image of a call shares, in each worker."""

    def __init__(self, args: Arguments) -> None:
        from animation.class_control import ClassControl
        from animation.sampling import load_pipeline

        self.args, self.options = args, flags.sampling_options(args)
        self.control = ClassControl.load(args.checkpoint, args.move, args.freeze)
        self.pipeline = load_pipeline(args.checkpoint, flags.checked_device(args, networks=False)[0])
        self.options["loop"] = flags.loop_guidance(args, period_s=self.pipeline.unet.config.period_s)

    def predict(self, job: tuple[Path, Path]) -> None:
        """Predict the motion of one image file and write its motion file."""
        from animation.rendering import show_motion
        from data.files import atomic_path
        from data.media import read_image
        from motion.flow import MOVING_PX
        from motion.motion_file import save_motion

        path, output = job
        with local_input(path) as file:
            image = read_image(file, max_side=DEFAULT_SIZE_PX)
        motion = self.control.apply(self.pipeline.predict(image, **self.options), image, path.name)
        if self.args.show_motion:
            show_motion(self.args.show_motion, image, motion)
        with atomic_path(output) as temporary:
            save_motion(temporary, motion, dense=self.args.dense)
        moved_px = motion.importance()
        moving = 100 * float((moved_px > MOVING_PX).float().mean())
        moves = "%.0f %% of the image moves more than %g px (of the motion grid, mean over time; on average %.2f px)"
        logger.info("%s: " + moves, output, moving, MOVING_PX, float(moved_px.mean()))


@command
def main(argv: list[str] | None = None) -> int:
    """Predict motion files; returns 0, 3 when it failed for some images of a folder, 2 when it did for all."""
    parser = Parser(description=__doc__)
    add = parser.add_argument_group("input and output").add_argument
    images = "the photograph, or a folder of them; also URLs"
    add("--input", "--image", type=path_or_url, required=True, metavar="IMAGE|FOLDER", help=images)
    output = "the motion file to write; of a folder, the folder for them"
    add("--output", "--out", type=path_or_url, default=Path("outputs/flow.npz"), metavar="FILE.npz|DIR", help=output)
    add("--skip-existing", action="store_true", help="of a folder, leave out images whose motion file is there")
    add("--dense", action="store_true", help="also store the flow of all 150 frames (49 MB)")
    flags.add_sampling_flags(parser)
    flags.add_class_flags(parser)
    flags.add_loop_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision", "threads")
    add_cluster_flags(parser)
    args = parser.parse_args(argv)
    if flags.print_classes(args, [args.input]):
        return 0
    workers, many = cluster_workers(args), is_folder(args.input)
    flags.check_loop_flags(args)
    flags.check_class_flags(args)
    flags.loop_guidance(args)  # its errors come before a model is loaded

    from data.files import output_names
    from data.media import list_images, read_image_size

    if many:
        refuse_flags(args, ["--show-motion"], "belongs to one image; right: one image")
        folder = check_writable(args.output if {"--output", "--out"} & args.typed else Path("outputs"))
        if folder.suffix == ".npz" and not is_folder(folder):
            raise UsageError(f"--output {folder}: a file, but --input is a folder; right: a folder")
        images = list_images([args.input])
        jobs = [(image, folder / f"{name}.npz") for image, name in zip(images, output_names(images), strict=True)]
        jobs = without_existing(jobs) if args.skip_existing else jobs
    else:
        jobs = [(args.input, check_output_file(args.output, "--output", (".npz",)))]
        refuse_flags(args, ["--skip-existing"], "belongs to a folder of images; right: both, or neither")
        with local_input(args.input) as file:
            read_image_size(file)
    if jobs and not workers.cluster:  # whose workers may have what this machine lacks
        flags.checked_device(args)
    return run_each("generate_motion.py", Predictor.predict, jobs, workers, load=partial(Predictor, args), many=many)


if __name__ == "__main__":
    sys.exit(run(main))
