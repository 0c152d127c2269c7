"""Pokes of a picture as a video: interact.py --video, its flags, and the frames."""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from animation.sampling import PREDICTION_FLAGS
from cli.parser import Arguments, Parser, UsageError, non_negative_float, positive_float, refuse_flags

if TYPE_CHECKING:
    import torch

    from motion.modal import Modes
    from motion.motion_file import Motion

logger = logging.getLogger(__name__)

DEFAULT_DAMPING = 0.08  # that of motion.modal, which --help is not to import
SECONDS_AFTER = 4.0


@dataclass(frozen=True)
class InteractionFlag:
    """A --poke in px of the picture's file: the point (x, y) is drawn by (dx, dy), from `start_s` on."""

    text: str
    x: float
    y: float
    dx: float
    dy: float
    start_s: float

    @classmethod
    def parse(cls, text: str) -> InteractionFlag:
        """Read X,Y,DX,DY@SECONDS; argparse.ArgumentTypeError says what would be right."""
        numbers, _, start = text.partition("@")
        try:
            x, y, dx, dy = (float(number) for number in numbers.split(","))
            poke = cls(text, x, y, dx, dy, float(start or 0))
        except ValueError:
            poke = None
        if poke is None or not all(map(math.isfinite, (x, y, dx, dy, poke.start_s))) or poke.start_s < 0:
            raise argparse.ArgumentTypeError(f"{text}: right: X,Y,DX,DY@SECONDS, such as 300,200,40,-10@0.5")
        return poke


def add_interaction_flags(parser: Parser) -> None:
    """Add the group of flags that make a video in place of a page."""
    group = parser.add_argument_group("video of pokes", "the same simulation, rendered by the neural renderer")
    add = group.add_argument
    add("--video", type=Path, metavar="OUT.mp4", help="write this video, and no page")
    poke = "draw the point X,Y by DX,DY at a time and let go, .4 s later; px of the picture's file; may be repeated"
    add("--poke", type=InteractionFlag.parse, nargs="+", action="extend", default=[], metavar="X,Y,DX,DY@S", help=poke)
    add("--seconds", type=positive_float, metavar="S", help="length; default: to 4 s after the last poke")
    add("--fps", type=positive_float, default=30.0, metavar="N", help="frames a second")
    add("--damping", type=positive_float, default=DEFAULT_DAMPING, metavar="XI", help="of all modes, 1 is critical")
    add("--wind", type=non_negative_float, default=0.0, metavar="X", help="1: as far as the predicted motion")
    add("--splat", choices=("softmax", "gaussian"), default="softmax", help="how pixels are carried")
    add("--preview", action="store_true", help="in image space, without the network")


# Those that a page has no use for.
VIDEO_FLAGS = ("--poke", "--seconds", "--fps", "--damping", "--wind", "--splat", "--preview")


def check_interactions(pokes: list[InteractionFlag], height: int, width: int) -> None:
    """Raise UsageError for a poke outside a picture of this size."""
    for poke in pokes:
        if not (0 <= poke.x < width and 0 <= poke.y < height):
            raise UsageError(f"--poke {poke.text}: outside the picture, which has {width} x {height} px")


def check_interaction_flags(args: Arguments) -> None:
    """Check the flags before anything is loaded.

    Raises:
        UsageError, MediaError: one line that names the flag.
    """
    if args.flow:
        refuse_flags(args, PREDICTION_FLAGS, "--flow is there already, none is predicted; right: one of them")
    if args.flow and (args.video is None or args.preview):
        refuse_flags(args, ("--checkpoint", "--precision"), "no network runs with --flow for a page or a preview")
    if args.video is None:
        refuse_flags(args, VIDEO_FLAGS, "belongs to a video; right: --video OUT.mp4 beside it")
        if args.flow:
            refuse_flags(args, ["--device"], "a page is made of --flow without it")
        return
    if not args.poke and not args.wind:
        raise UsageError("--video: nothing would move; right: --poke X,Y,DX,DY@S, or --wind 1")
    if args.out:
        raise UsageError("--out: is the page's; right: --video OUT.mp4 alone, or --out PAGE.html alone")

    from data.video_writer import check_video, fps_limits
    from motion.looping import MAX_FRAMES

    lowest, highest = fps_limits(check_video(args.video, fps=min(args.fps, 30.0)))
    if not lowest <= args.fps <= highest:
        raise UsageError(f"--fps {args.fps:g}: right: {lowest:g} to {highest:g} for {args.video.suffix or 'frames'}")
    if not 1 <= num_frames(args) <= MAX_FRAMES:
        raise UsageError(f"--seconds, --fps: {num_frames(args)} frames; right: 1 to {MAX_FRAMES}")


def num_frames(args: argparse.Namespace) -> int:
    """Return the number of frames that the flags ask for."""
    last = max((poke.start_s for poke in args.poke), default=0.0)
    return round((args.seconds or last + SECONDS_AFTER) * args.fps)


def video_of_interaction(args: argparse.Namespace, image: torch.Tensor, modes: Modes, motion: Motion) -> int:
    """Simulate the pokes of the flags and render them to --video; returns the exit code.

    Args:
        args: the flags of `add_interaction_flags`, and picture, checkpoint, device, precision.
        image: (3, H, W) in [0, 1], at the video's size.
        modes: of its motion.
        motion: what was predicted; it says what is near.

    Raises:
        CheckpointError, MediaError: as elsewhere.
    """
    import torch
    from tqdm import tqdm

    from animation.rendering import load_renderer
    from data.media import read_image_size
    from data.video_writer import VideoWriter
    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.device import choose_device
    from models.rendering import render_frames
    from motion.looping import Playback
    from motion.modal import Interaction, InteractiveMotion, Simulation, simulate_interactions

    # Pokes on the motion grid
    height, width = read_image_size(args.picture)
    down, across = modes.size[0] / height, modes.size[1] / width
    pokes = [
        Interaction((p.x + 0.5) * across - 0.5, (p.y + 0.5) * down - 0.5, p.dx * across, p.dy * down, p.start_s)
        for p in args.poke
    ]

    # Simulate and render
    simulation = Simulation(modes, damping=args.damping)
    simulation.wind = args.wind
    count = num_frames(args)
    renderer = None if args.preview else load_renderer(args.checkpoint or DEFAULT_CHECKPOINT, args.splat)
    flow = simulate_interactions(simulation, pokes, count, args.fps)  # (T, 2, h, w)
    poked = InteractiveMotion(flow=flow, num_frames=count, fps=args.fps, depth_order=motion.importance())
    playback = Playback(torch.arange(count, dtype=torch.float64) / count, args.fps, loop=False)
    options = {"operator": args.splat, "device": choose_device(args.device), "precision": args.precision}
    with (
        VideoWriter(args.video, fps=args.fps) as writer,
        tqdm(total=count, desc=args.video.name, unit="frame", dynamic_ncols=True, disable=None) as bar,
    ):
        for frames in render_frames(image, poked, playback, model=renderer, **options):
            writer.write(frames)
            bar.update(len(frames))
    logger.info("%s: %d frames", args.video, count)
    return 0
