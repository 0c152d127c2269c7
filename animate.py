"""Animate photographs: trees sway, flowers nod, candles flicker, and what is rigid stays still.

python animate.py photo.jpg                    writes outputs/photo.mp4, 5 s at 30 frames/s
python animate.py photos/ --loop --out loops   every image of a folder, as seamless loops; --skip-existing goes on
python animate.py photo.jpg --loop-seconds 3   a loop of 3 s at the motion's own speed
"""

from cli.run import command, run

import sys
from functools import partial
from pathlib import Path

from animation import flags
from cli.flags import add_shared_flags
from cli.parser import Arguments, Parser, UsageError, check_output_file, refuse_flags
from cluster.flags import add_cluster_flags, cluster_workers, run_each, without_existing
from cluster.storage import is_folder, local_input, path_or_url, url_of
from models.choices import OPERATORS

VIDEO_NAMES = {f".{name}": name for name in flags.FORMATS if name != "frames"}


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument_group("input and output").add_argument
    add("images", nargs="+", type=path_or_url, metavar="IMAGE|FOLDER", help="photographs or folders of them; also URLs")
    add("--out", type=path_or_url, default=Path("outputs"), metavar="DIR|FILE", help="folder, or a file for one image")
    add("--skip-existing", action="store_true", help="leave out images whose output is there; default: write it anew")
    add("--splat", choices=OPERATORS, default="softmax", help="how pixels are carried")
    add("--motion", type=Path, metavar="FILE.npz", help="use this motion instead of predicting one")
    add("--motion-out", type=Path, metavar="FILE.npz", help="also keep the predicted motion")
    flags.add_playback_flags(parser)
    flags.add_sampling_flags(parser)
    flags.add_class_flags(parser)
    flags.add_loop_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision", "threads")
    add_cluster_flags(parser)
    return parser


def choose_outputs(images: list[Path], out: Path, wanted: str | None) -> tuple[list[Path], str]:
    """Return one output path an image and the format: --out may be a file for one image, else it is a folder."""
    from data.files import output_names
    from data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    named = VIDEO_NAMES.get(out.suffix.lower())
    if wanted == "frames" and url_of(out):
        raise UsageError(f"--format frames: a folder cannot be put to {url_of(out)} at once; right: mp4, gif, webm")
    if named and not out.is_dir():
        if wanted not in (None, named):
            raise UsageError(f"--format {wanted}: --out {out} says {named}; right: one of them")
        if len(images) > 1:
            raise UsageError(f"--out {out}: a file, but there are {len(images)} images; right: a folder")
        return [out], named
    if not named and out.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES and not out.is_dir():
        right = ", ".join(VIDEO_NAMES)
        raise UsageError(f"--out {out}: {out.suffix} is not written; right: a name that ends in {right}, or a folder")
    video_format = wanted or "mp4"
    suffix = "" if video_format == "frames" else f".{video_format}"
    return [out / f"{name}{suffix}" for name in output_names(images)], video_format


def check_motion_flags(args: Arguments) -> None:
    if args.motion:
        right = "right: generate_motion.py --loop-seconds, or --loop"
        refuse_flags(args, ("--loop-seconds", *flags.LOOP_FLAGS), f"--motion is there already; {right}")
        why = "--motion is there already, none is predicted; right: one of them"
        refuse_flags(args, (*flags.PREDICTION_FLAGS, "--motion-out"), why)
        if args.preview and not (args.move or args.freeze):
            refuse_flags(args, ("--checkpoint", "--precision"), "no network runs with --motion and --preview")


class Animator:
    """The loaded models and the options that every image of a call shares, in each worker."""

    def __init__(self, args: Arguments) -> None:
        from animation.class_control import ClassControl
        from animation.rendering import load_renderer
        from animation.sampling import load_pipeline

        rendering = flags.rendering_options(args)
        self.args, self.sampling, self.playback = args, flags.sampling_options(args), flags.playback_options(args)
        self.classes = ClassControl.load(args.checkpoint, args.move, args.freeze)
        if not args.motion:
            self.pipeline = load_pipeline(args.checkpoint, rendering["device"])
            period_s = self.pipeline.unet.config.period_s
            self.sampling["loop"] = flags.loop_guidance(args, period_s=period_s, fps=args.fps, slow=args.slow)
        model = None if args.preview else load_renderer(args.checkpoint, args.splat)
        self.rendering = rendering | {"operator": args.splat, "model": model}

    def animate(self, job: tuple[Path, Path, str, tuple | None]) -> None:
        """Render one job (image, output, format, inputs); inputs: of `read_inputs`, or None if nothing is read yet."""
        from animation.rendering import played, read_inputs, render_video, show_motion
        from motion.motion_file import save_motion

        path, output, video_format, inputs = job
        if inputs is None:
            with local_input(path) as file:
                inputs = read_inputs(file, self.args.size, self.playback, mask=self.args.mask, motion=self.args.motion)
        image, source, mask, motion = inputs
        if motion is None:
            motion = self.pipeline.predict(source, **self.sampling)
        motion = self.classes.apply(motion, source, output.stem)
        if self.args.show_motion:
            show_motion(self.args.show_motion, image, played(motion, self.playback, mask))
        if self.args.motion_out:
            save_motion(self.args.motion_out, motion)
        options = {"video_format": video_format, "mask": mask, **self.rendering}
        render_video(output, image, motion, self.playback, **options)


@command
def main(argv: list[str] | None = None) -> int:
    """Animate every image; returns 0, 3 when some of the images could not be animated, 2 when none could."""
    args = make_parser().parse_args(argv)
    if flags.print_classes(args, args.images):
        return 0
    if args.loop_seconds is not None:  # implies --loop and the length
        args.loop, args.seconds = True, args.seconds or args.loop_seconds
    flags.check_class_flags(args)
    check_motion_flags(args)
    flags.check_loop_flags(args)
    flags.check_playback_flags(args)
    workers = cluster_workers(args)
    playback = flags.playback_options(args)

    from animation.rendering import plan, read_inputs
    from animation.sampling import loop_phase
    from data.media import list_images, read_mask
    from data.video_writer import check_video

    # Input and output
    phase = loop_phase(args.loop_seconds, fps=args.fps, slow=args.slow) if args.loop_seconds else 1.0
    many = len(args.images) > 1 or any(map(is_folder, args.images))
    images = list_images(args.images)
    if len(images) > 1:
        why = f"belongs to one image, there are {len(images)}; right: one image"
        refuse_flags(args, ("--motion", "--motion-out", "--show-motion"), why)
    if args.motion_out:
        check_output_file(args.motion_out, "--motion-out", (".npz",))
    outputs, video_format = choose_outputs(images, args.out, args.format)
    for output in outputs:
        check_video(output, fps=args.fps, format=video_format)
    plan(playback, loop_phase=phase)
    jobs = list(zip(images, outputs, strict=True))
    if args.skip_existing:
        jobs = without_existing(jobs)
        if not jobs:  # nothing is read either
            return 0

    # A single bad image is refused before models are loaded; in a folder the others go on.
    inputs = None
    if many and args.mask:
        read_mask(args.mask, (args.size, args.size), any_aspect=True)
    elif not many:
        with local_input(images[0]) as file:
            inputs = read_inputs(file, args.size, playback, mask=args.mask, motion=args.motion)
    if not workers.cluster:  # whose workers may have what this machine lacks
        flags.checked_device(args, networks=not (args.motion and args.preview))
    todo = [(*job, video_format, inputs) for job in jobs]
    return run_each("animate.py", Animator.animate, todo, workers, load=partial(Animator, args), many=many)


if __name__ == "__main__":
    sys.exit(run(main))
