"""Animate photographs: trees sway, flowers nod, candles flicker, and what is rigid stays still.

python animate.py photo.jpg                    writes outputs/photo.mp4, 5 s at 30 frames/s
python animate.py photos/ --loop --out loops   every picture of a folder, as seamless loops; --skip-existing goes on
python animate.py photo.jpg --loop-seconds 3   a loop of 3 s at the motion's own speed
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from animation.flags import (
    FORMATS,
    add_loop_flags,
    add_playback_flags,
    add_sampling_flags,
    check_playback_flags,
    sampling_options,
)
from animation.rendering import (
    check_video_flags,
    load_renderer,
    note_sizes,
    plan,
    read_images,
    read_mask_of,
    render_video,
)
from animation.sampling import (
    LOOP_FLAGS,
    PREDICTION_FLAGS,
    check_loop_guidance,
    load_pipeline,
    loop_guidance,
    loop_phase,
)
from cli.flags import add_shared_flags
from cli.parser import Arguments, Parser, UsageError, check_output_file, refuse_flags
from cli.run import command, run, user_message

logger = logging.getLogger("__main__")

VIDEO_NAMES = {f".{name}": name for name in FORMATS if name != "frames"}


def make_parser() -> Parser:
    """Build the command line."""
    parser = Parser(description=__doc__, raw_description=True)
    group = parser.add_argument_group("input and output")
    add = group.add_argument
    add("pictures", nargs="+", type=Path, metavar="PICTURE|FOLDER", help="photographs, or folders of them")
    add("--out", type=Path, default=Path("outputs"), metavar="DIR|FILE", help="folder, or a file for one picture")
    add("--skip-existing", action="store_true", help="leave out pictures whose output is there; default: write it anew")
    add("--splat", choices=("softmax", "gaussian"), default="softmax", help="how pixels are carried")
    add("--motion", type=Path, metavar="FILE.npz", help="use this motion instead of predicting one")
    add("--motion-out", type=Path, metavar="FILE.npz", help="also keep the predicted motion")
    add_playback_flags(parser)
    add_sampling_flags(parser)
    add_loop_flags(parser)
    add_shared_flags(parser, "seed", "device", "precision")
    return parser


def choose_outputs(pictures: list[Path], out: Path, wanted: str | None) -> tuple[list[Path], str]:
    """Return one output path a picture and the format: --out may be a file for one picture, else it is a folder."""
    from data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES

    named = VIDEO_NAMES.get(out.suffix.lower())
    if named and not out.is_dir():
        if wanted not in (None, named):
            raise UsageError(f"--format {wanted}: --out {out} says {named}; right: one of them")
        if len(pictures) > 1:
            raise UsageError(f"--out {out}: a file, but there are {len(pictures)} pictures; right: a folder")
        return [out], named
    if not named and out.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES and not out.is_dir():
        right = ", ".join(VIDEO_NAMES)
        raise UsageError(f"--out {out}: {out.suffix} is not written; right: a name that ends in {right}, or a folder")
    video_format = wanted or "mp4"
    suffix = "" if video_format == "frames" else f".{video_format}"
    stems = [picture.stem for picture in pictures]
    # Two pictures of one name (a.jpg, a.png) keep their suffix in the output's name.
    names = [
        s if stems.count(s) == 1 else picture.name.replace(".", "_") for s, picture in zip(stems, pictures, strict=True)
    ]
    outputs = [out / f"{name}{suffix}" for name in names]
    if len(set(outputs)) < len(outputs):
        raise UsageError("PICTURE: two pictures have one name; right: animate them into different folders")
    return outputs, video_format


def read_inputs(args: argparse.Namespace, picture: Path) -> tuple:
    """Read what one picture is animated from: the picture, the one to predict from, the mask or None, --motion or None.

    Raises:
        MediaError, MotionFileError: a file that cannot be used, or belongs to another picture.
        UsageError: flags that give no video of this motion.
    """
    from motion.motion_file import load_motion

    image, source = read_images(picture, args.size)
    mask = read_mask_of(args, image)
    motion = load_motion(args.motion) if args.motion else None
    if motion is not None:
        motion.check_aspect(*source.shape[-2:], str(args.motion))
        plan(args, motion)
    return image, source, mask, motion


def check_motion_flags(args: Arguments) -> float:
    """Check how motion is had; --loop-seconds implies --loop and the length. Return the phase at which it closes, or 1.

    Raises:
        UsageError: no or too many frames, or flags that would do nothing.
    """
    if args.motion:
        there = "--motion is there already; right: generate_motion.py --loop-seconds, or --loop"
        refuse_flags(args, ("--loop-seconds", *LOOP_FLAGS), there)
        refuse_flags(args, PREDICTION_FLAGS, "--motion is there already, none is predicted; right: one of them")
        if args.preview:
            refuse_flags(args, ("--checkpoint", "--precision"), "no network runs with --motion and --preview")
    check_loop_guidance(args)
    if args.loop_seconds is None:
        return 1.0
    args.loop, args.seconds = True, args.seconds or args.loop_seconds
    return loop_phase(args.loop_seconds, fps=args.fps, slow=args.slow)


class Animator:
    """The loaded models and flags that every picture of a call shares."""

    def __init__(self, args: argparse.Namespace) -> None:
        from models.checkpoints import DEFAULT_CHECKPOINT
        from models.device import choose_device

        self.args = args
        self.device = choose_device(args.device)
        self.options = sampling_options(args)
        self.pipeline = None if args.motion else load_pipeline(args)
        self.loop = None
        if self.pipeline is not None:
            period_s = self.pipeline.unet.config.period_s
            self.loop = loop_guidance(args, period_s=period_s, fps=args.fps, slow=args.slow)
        checkpoint = args.checkpoint or DEFAULT_CHECKPOINT
        self.renderer = None if args.preview else load_renderer(checkpoint, args.splat)

    def animate(self, picture: Path, output: Path, video_format: str) -> None:
        """Predict or load the motion of one picture and render its video."""
        from motion.motion_file import save_motion

        image, source, mask, motion = read_inputs(self.args, picture)
        if motion is None:
            motion = self.pipeline.predict(source, loop=self.loop, **self.options)
        else:
            note_sizes(motion, source, str(self.args.motion))
        if self.args.motion_out:
            save_motion(self.args.motion_out, motion)
        render_video(
            output,
            image,
            motion,
            self.args,
            renderer=self.renderer,
            operator=self.args.splat,
            device=self.device,
            video_format=video_format,
            mask=mask,
            progress=True,
        )


@command
def main(argv: list[str] | None = None) -> int:
    """Animate every picture; returns 0, or 2 when a picture could not be animated."""
    args = make_parser().parse_args(argv)
    phase = check_motion_flags(args)
    check_playback_flags(args)
    sampling_options(args)

    from data.media import list_images, read_mask

    # Input and output
    many = len(args.pictures) > 1 or any(path.is_dir() for path in args.pictures)
    pictures = list_images(args.pictures)
    for flag, path in (("--motion", args.motion), ("--motion-out", args.motion_out)):
        if path and len(pictures) > 1:
            raise UsageError(f"{flag} {path}: belongs to one picture, there are {len(pictures)}; right: one picture")
    if args.motion and args.motion_out:
        raise UsageError("--motion-out: there is nothing to predict with --motion; right: one of them")
    if args.motion_out:
        check_output_file(args.motion_out, "--motion-out", (".npz",))
    outputs, video_format = choose_outputs(pictures, args.out, args.format)
    check_video_flags(args, outputs, video_format, loop_phase=phase)
    jobs = list(zip(pictures, outputs, strict=True))
    if args.skip_existing:
        there = [output for output in outputs if output.exists()]
        jobs = [(picture, output) for picture, output in jobs if output not in there]
        if there:
            logger.info("%d of %d are there already and are skipped (first: %s)", len(there), len(outputs), there[0])
        if not jobs:
            return 0

    # A single bad picture must cost nothing; in a folder the others go on.
    if not many:
        read_inputs(args, pictures[0])
    elif args.mask:
        read_mask(args.mask, (args.size, args.size), any_aspect=True)
    animator, failed = Animator(args), 0
    for picture, output in jobs:
        try:
            animator.animate(picture, output, video_format)
        except Exception as error:
            message = user_message(error)
            if message is None or not many:
                raise
            print(f"animate.py: error: {message}", file=sys.stderr)
            failed += 1
    if failed:
        print(f"animate.py: {failed} of {len(jobs)} pictures were not animated", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(run(main))
