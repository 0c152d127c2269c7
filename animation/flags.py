"""Flags of sampling, playback and rendering."""

from __future__ import annotations

import argparse
from pathlib import Path

from cli.parser import (
    Arguments,
    Parser,
    UsageError,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_flags,
)

# Long side of a video by default, and of the picture that motion is predicted from whatever the video's size: the same
# seed then moves a small and a large video alike, and no picture is ever held at full size.
DEFAULT_SIZE_PX = 512


# Below, the overlap is most of a tile.
SMALLEST_TILE_PX = 32


FORMATS = ("mp4", "gif", "webm", "frames")


def add_playback_flags(parser: Parser) -> None:
    """Add the group that animate.py and synthesize_*.py have in common."""
    group = parser.add_argument_group("playback")
    add = group.add_argument
    add("--seconds", type=positive_float, metavar="S", help="length of the video; default: one period, 5 s")
    add("--fps", type=positive_float, default=30.0, metavar="HZ", help="frames a second, at unchanged speed")
    add("--loop", action="store_true", help="whole periods nearest to the length, no drift; the speed is adjusted")
    add("--slow", type=positive_float, default=1.0, metavar="X", help="stretch the period, not the length")
    add("--magnify", type=float, default=1.0, metavar="X", help="scale the motion (predicted: that of a breeze)")
    add("--mask", type=Path, metavar="PNG", help="where to move: white moves, black stays; at the picture's aspect")
    add(
        "--drift", action=argparse.BooleanOptionalAction, help="motion that does not swing back; default: unless --loop"
    )
    add("--size", type=positive_int, default=DEFAULT_SIZE_PX, metavar="PX", help="long side; never enlarged")
    add("--format", choices=FORMATS, help="default: what the output's name says, else mp4")
    add("--preview", action="store_true", help="render in image space, without the network")
    add("--batch-size", type=positive_int, metavar="N", help="frames rendered together; default: by size and device")
    tile = "decode large pictures in tiles of this side, 0 = never; default: by size and memory"
    add("--tile", type=non_negative_int, metavar="PX", help=tile)
    add("--compile", action="store_true", help="torch.compile the decoder: about a minute first, for long videos")


def check_tile(tile: int | None) -> int | None:
    """Return --tile; UsageError where tiles would be nearly all overlap."""
    if tile and tile < SMALLEST_TILE_PX:
        raise UsageError(f"--tile {tile}: right: 0 for never, or at least {SMALLEST_TILE_PX} px")
    return tile


def check_playback_flags(args: Arguments) -> None:
    """Raise UsageError for combinations that contradict each other, before anything is loaded."""
    import math

    if args.loop and args.drift:
        raise UsageError("--drift: a loop has none; right: --loop alone, or --drift without --loop")
    if not math.isfinite(args.magnify):
        raise UsageError(f"--magnify {args.magnify}: right: a finite number")
    if args.size < 16:
        raise UsageError(f"--size {args.size}: right: at least 16 px")
    check_tile(args.tile)
    if args.preview:
        refuse_flags(args, ("--tile", "--compile"), "belongs to the network; right: this or --preview")


SAMPLER_NAMES = ("dpm", "ddim", "unipc")


# Bounds of the default schedule's 1000 training steps; one step has nothing to interpolate between.
FEWEST_STEPS, MOST_STEPS = 2, 1000


def add_sampling_flags(parser: Parser) -> None:
    """Add the group that animate.py and generate_motion.py have in common."""
    group = parser.add_argument_group("motion")
    add = group.add_argument
    add("--sampler", choices=SAMPLER_NAMES, default="dpm", help="DPM-Solver++, DDIM (the paper's), UniPC")
    add("--steps", type=positive_int, metavar="N", help="network calls; default: 20, DDIM 250")
    add("--guidance", type=non_negative_float, metavar="W", default=0.0, help="classifier-free guidance; 0 = none")
    add("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")


def add_loop_flags(parser: Parser) -> None:
    """Add the group of loops whose length is no whole number of periods, at unchanged speed."""
    group = parser.add_argument_group("loops of any length", "at unchanged speed; a whole period needs none of this")
    add = group.add_argument
    add("--loop-seconds", type=positive_float, metavar="S", help="predict motion that is back at its start after S")
    add(
        "--loop-guidance",
        choices=("closing", "projection", "gradient"),
        default="projection",
        help="closing: only the finished motion is projected; projection: each step's too; gradient: the paper's",
    )
    add("--loop-weight", type=non_negative_float, metavar="U", default=200.0, help="of the gradient")
    add("--loop-recurrences", type=positive_int, metavar="N", default=1, help="how often a step is taken; paper: 2")


def check_steps(steps: int | None) -> int | None:
    """Return the sampler's network calls; UsageError where the noise schedule does not allow so many or so few."""
    if steps is not None and not FEWEST_STEPS <= steps <= MOST_STEPS:
        raise UsageError(f"--steps {steps}: right: {FEWEST_STEPS} to {MOST_STEPS}")
    return steps


def sampling_options(args: argparse.Namespace) -> dict:
    """Return the arguments of `MotionPipeline.predict` that the flags give; UsageError where one is out of range."""
    options = {"seed": args.seed, "sampler": args.sampler, "steps": check_steps(args.steps), "guidance": args.guidance}
    from models.device import check_precision, choose_device

    return options | {"precision": check_precision(args.precision, choose_device(args.device))}
