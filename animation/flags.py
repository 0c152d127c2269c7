"""Flags of sampling, playback, rendering and interaction, their checks, and what they ask for."""

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from animation.options import DEFAULT_SIZE_PX, PlaybackOptions
from cli.flags import add_shared_flags
from cli.parser import (
    Arguments,
    Parser,
    UsageError,
    check_output_file,
    finite_float,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_flags,
    whole_number,
)
from models import choices
from models.segmentation_classes import check_words
from motion.wind import DEFAULT_DAMPING, WINDS, parse_wind

SMALLEST_TILE_PX = 32  # with smaller ones the overlap would be most of a tile
FORMATS = ("mp4", "gif", "webm", "frames")
# Bounds of the default schedule's 1000 training steps; the samplers need two to interpolate between.
FEWEST_STEPS, MOST_STEPS = 2, 1000
SECONDS_AFTER = 4.0  # of a video, after its last interaction
PREDICTION_FLAGS = ("--sampler", "--steps", "--guidance", "--wind", "--seed")  # no use where no motion is predicted
LOOP_FLAGS = ("--loop-guidance", "--loop-weight", "--loop-recurrences")  # of --loop-seconds alone
VIDEO_FLAGS = ("--poke", "--seconds", "--fps", "--damping", "--gusts", "--splat", "--preview")  # of --video alone
CHECKPOINT = dict(type=Path, metavar="DIR", help="trained models; default: checkpoints/default")


def add_playback_flags(parser: Parser) -> None:
    """Add the group that animate.py and synthesize_*.py have in common."""
    add = parser.add_argument_group("playback").add_argument
    add("--seconds", type=positive_float, metavar="S", help="length of the video; default: one period, 5 s")
    add("--fps", type=positive_float, default=30.0, metavar="HZ", help="frames a second, at unchanged speed")
    add("--loop", action="store_true", help="whole periods nearest to the length, no drift; the speed is adjusted")
    add("--slow", type=positive_float, default=1.0, metavar="X", help="stretch the period, not the length")
    magnify = "scale the motion (predicted: that of a light wind)"
    add("--magnify", type=finite_float, default=1.0, metavar="X", help=magnify)
    add("--mask", type=Path, metavar="PNG", help="where to move: white moves, black stays; at the image's aspect")
    add("--drift", action=argparse.BooleanOptionalAction, help="what does not swing back; default: unless --loop")
    add("--size", type=whole_number(16), default=DEFAULT_SIZE_PX, metavar="PX", help="long side; never enlarged")
    add("--format", choices=FORMATS, help="default: by the output's name, else mp4")
    add("--preview", action="store_true", help="render in image space, without the network")
    add("--batch-size", type=positive_int, metavar="N", help="frames rendered together; default: by size and device")
    add("--tile", type=non_negative_int, metavar="PX", help="decode in tiles, 0 = never; default: by size and memory")
    add("--compile", dest="compiled", action="store_true", help="torch.compile the decoder, which takes a minute")


def check_playback_flags(args: Arguments) -> None:
    """Raise UsageError for combinations that contradict each other, before anything is loaded."""
    if args.loop and args.drift:
        raise UsageError("--drift: a loop has none; right: --loop alone, or --drift without --loop")
    if args.tile and args.tile < SMALLEST_TILE_PX:
        raise UsageError(f"--tile {args.tile}: right: 0 for never, or at least {SMALLEST_TILE_PX} px")
    if args.preview:
        refuse_flags(args, ("--tile", "--compile"), "belongs to the network; right: this or --preview")


def playback_options(args: Arguments) -> PlaybackOptions:
    return PlaybackOptions(**{field.name: getattr(args, field.name) for field in fields(PlaybackOptions)})


def rendering_options(args: Arguments) -> dict[str, Any]:
    """Return the arguments of `models.rendering.render_frames` that the flags give; the device is checked."""
    device, precision = checked_device(args, networks=not args.preview)
    names = [name for name in ("batch_size", "tile", "compiled") if name in args]
    return {"device": device, "precision": precision, **{name: getattr(args, name) for name in names}}


def checked_device(args: Arguments, *, networks: bool = True) -> tuple[Any, str]:
    """Return the torch device and the precision, measured for "auto" only where `networks` run; or ArgumentError."""
    from models.device import check_precision, choose_device

    device = choose_device(args.device)
    precision = "no" if args.precision == "auto" and not networks else args.precision
    return device, check_precision(precision, device)


def parse_synthesis(description: str, argv: list[str] | None) -> dict[str, Any]:
    """Parse and check the command line of synthesize_*.py; return arguments of `animation.rendering.synthesize`."""
    parser = Parser(description=description)
    add = parser.add_argument_group("input and output").add_argument
    add("--image", type=Path, required=True, metavar="IMAGE", help="the photograph")
    add("--motion", "--flow", type=Path, required=True, metavar="FILE.npz", help="its motion file, or a plain flow")
    add("--outdir", "--out", type=Path, default=Path("outputs"), metavar="DIR", help="where to write")
    add("--checkpoint", **CHECKPOINT)
    add_playback_flags(parser)
    add_shared_flags(parser, "device", "precision", "threads")
    args = parser.parse_args(argv)
    check_playback_flags(args)
    if args.preview:
        refuse_flags(args, ("--checkpoint", "--precision"), "no network runs with --preview; right: one of them")
    names = ("image", "motion", "outdir", "checkpoint", "mask", "size", "preview")
    options = {name: getattr(args, name) for name in names} | {"video_format": args.format or "mp4"}
    return options | {"playback": playback_options(args), "rendering": rendering_options(args)}


def add_sampling_flags(parser: Parser) -> None:
    """Add the group of all scripts that predict motion."""
    add = parser.add_argument_group("motion").add_argument
    samplers = {"choices": choices.SAMPLERS, "default": choices.DEFAULT_SAMPLER}
    add("--sampler", help="DPM-Solver++, DDIM (the paper's), UniPC", **samplers)
    steps, calls = whole_number(FEWEST_STEPS, MOST_STEPS), choices.DEFAULT_STEPS
    add("--steps", type=steps, metavar="N", help=f"network calls; default: {calls['dpm']}, DDIM {calls['ddim']}")
    guidance = "classifier-free guidance; 0 = none"
    add("--guidance", type=non_negative_float, metavar="W", default=choices.DEFAULT_GUIDANCE, help=guidance)
    winds = f"{', '.join(WINDS)}, or how far what moves most does, px at 256 x 160; default: as the photograph suggests"
    add("--wind", dest="wind_px", type=wind, metavar="WIND", help=winds)
    add("--checkpoint", **CHECKPOINT)


def wind(text: str) -> float:
    try:
        return parse_wind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def class_words(text: str) -> tuple[str, ...]:
    """Parse words between commas."""
    return tuple(word.strip().lower() for word in text.split(","))


def add_class_flags(parser: Parser) -> None:
    """Add the group of all scripts in which words say what may move."""
    add = parser.add_argument_group("what may move", "CLASS: person, water, tree, flower, grass, ...").add_argument
    add("--move", type=class_words, default=(), metavar="CLASS,...", help="these alone")
    freeze = "all but these; list: print what the photograph shows, and stop"
    add("--freeze", type=class_words, default=(), metavar="CLASS,...|list", help=freeze)
    add("--show-motion", type=Path, metavar="PNG", help="also write the photograph with the motion's magnitude over it")


def print_classes(args: Arguments, inputs: list[Path]) -> bool:
    """Print what images, or those of folders, show if --freeze list asks for it; returns whether it did."""
    if args.freeze != ("list",):
        return False
    from animation.class_control import list_classes

    print(*list_classes(inputs, args.checkpoint), sep="\n")
    return True


def check_class_flags(args: Arguments) -> None:
    """Raise ClassNameError for a word that names no class, UsageError for a --show-motion that cannot be written."""
    check_words(args.move, args.freeze)
    if args.show_motion:
        check_output_file(args.show_motion, "--show-motion", (".png",))


def add_loop_flags(parser: Parser) -> None:
    """Add the group of loops whose length is no whole number of periods, at unchanged speed."""
    group = parser.add_argument_group("loops of any length", "at unchanged speed; a whole period needs none of this")
    add = group.add_argument
    add("--loop-seconds", type=positive_float, metavar="S", help="predict motion that is back at its start after S")
    guidance = "closing: only the sampled motion is projected; projection: each step's too; gradient: the paper's"
    add("--loop-guidance", choices=choices.LOOP_METHODS, default=choices.DEFAULT_LOOP_METHOD, help=guidance)
    add("--loop-weight", type=non_negative_float, metavar="U", default=choices.LOOP_WEIGHT, help="of the gradient")
    add("--loop-recurrences", type=positive_int, metavar="N", default=1, help="how often a step is taken; paper: 2")


def sampling_options(args: Arguments) -> dict[str, Any]:
    """Return the arguments of `MotionPipeline.predict` that the flags give."""
    options = {name: getattr(args, name) for name in ("seed", "sampler", "steps", "guidance", "wind_px")}
    predicted = getattr(args, "motion", None) is None
    return options | {"precision": checked_device(args, networks=predicted)[1]}


def check_loop_flags(args: Arguments) -> None:
    """Raise UsageError for flags of loops that would do nothing."""
    if args.loop_seconds is None:
        refuse_flags(args, LOOP_FLAGS, "belongs to --loop-seconds S; right: both, or neither")
    if args.loop_guidance != "gradient":
        refuse_flags(args, ["--loop-weight"], "is of the gradient; right: --loop-guidance gradient beside it")
    if args.loop_guidance == "closing":
        refuse_flags(args, ["--loop-recurrences"], "--loop-guidance closing takes no steps; right: one of the two")


def loop_guidance(args: Arguments, **timing: float) -> Any:
    """Return the `LoopGuidance` to a loop of --loop-seconds, None without; `timing`: of `sampling.loop_phase`."""
    if args.loop_seconds is None:
        return None
    from animation.sampling import loop_phase
    from models.self_guidance import LoopGuidance

    options = {"method": args.loop_guidance, "weight": args.loop_weight, "recurrences": args.loop_recurrences}
    return LoopGuidance(loop_phase(args.loop_seconds, **timing), **options)


def parse_interaction(text: str) -> tuple[float, ...]:
    """Parse X,Y,DX,DY@SECONDS: the point (x, y) is drawn by (dx, dy), px of the image file, from a time on."""
    numbers, _, start = text.partition("@")
    try:
        x, y, dx, dy, start_s = interaction = tuple(map(float, (*numbers.split(","), start or 0)))
        if all(map(math.isfinite, interaction)) and start_s >= 0:
            return interaction
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text}: right: X,Y,DX,DY@SECONDS, such as 300,200,40,-10@0.5")


def add_interaction_flags(parser: Parser) -> None:
    """Add the group of flags that make a video in place of a page."""
    group = parser.add_argument_group("video of interactions", "the page's simulation, by the neural renderer")
    add = group.add_argument
    add("--video", type=Path, metavar="OUT.mp4", help="write this video, and no page")
    poke = "drag the point X,Y by DX,DY at a time and let go 0.4 s later; px of the image file; may be repeated"
    many = {"nargs": "+", "action": "extend", "default": []}
    add("--poke", type=parse_interaction, metavar="X,Y,DX,DY@S", help=poke, **many)
    add("--seconds", type=positive_float, metavar="S", help="length; default: to 4 s after the last --poke")
    add("--fps", type=positive_float, default=30.0, metavar="N", help="frames a second")
    add("--damping", type=positive_float, default=DEFAULT_DAMPING, metavar="XI", help="of all modes, 1 is critical")
    add("--gusts", type=non_negative_float, default=0.0, metavar="X", help="1: as far as the predicted motion")
    add("--splat", choices=choices.OPERATORS, default="softmax", help="how pixels are carried")
    add("--preview", action="store_true", help="in image space, without the network")


def check_interaction_flags(args: Arguments) -> None:
    """Check the flags before anything is loaded; UsageError or MediaError name the flag."""
    if args.motion:
        refuse_flags(args, PREDICTION_FLAGS, "--motion is there already, none is predicted; right: one of them")
    if args.motion and (args.video is None or args.preview) and not (args.move or args.freeze):
        refuse_flags(args, ("--checkpoint", "--precision"), "no network runs with --motion for a page or a preview")
    if args.video is None:
        refuse_flags(args, VIDEO_FLAGS, "belongs to a video; right: --video OUT.mp4 beside it")
        if args.motion:
            refuse_flags(args, ["--device"], "a page is made of --motion without it")
        return
    if not args.poke and not args.gusts:
        raise UsageError("--video: nothing would move; right: --poke X,Y,DX,DY@S, or --gusts 1")
    if args.out:
        raise UsageError("--out: is the page's; right: --video OUT.mp4 alone, or --out PAGE.html alone")

    from data.video_writer import check_video
    from motion.looping import MAX_FRAMES

    check_video(args.video, fps=args.fps)
    if not 1 <= num_frames(args) <= MAX_FRAMES:
        raise UsageError(f"--seconds, --fps: {num_frames(args)} frames; right: 1 to {MAX_FRAMES}")


def num_frames(args: Arguments) -> int:
    """Return the number of frames of the video of interactions."""
    last_s = max((start_s for *_, start_s in args.poke), default=0.0)
    return round((args.seconds or last_s + SECONDS_AFTER) * args.fps)
