"""What the scripts that write videos share: their flags, the renderer they load, and picture + motion -> video file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import Parser, UsageError, positive_float, positive_int

if TYPE_CHECKING:
    import torch

    from models.frame_synthesis import FrameSynthesis
    from motion.motion_file import Motion

logger = logging.getLogger(__name__)

DEFAULT_SIZE_PX = 512
FORMATS = ("mp4", "gif", "webm", "frames")


def add_playback_flags(parser: Parser) -> None:
    """Add the group that animate.py and synthesize_*.py have in common."""
    group = parser.add_argument_group("playback")
    add = group.add_argument
    add("--seconds", type=positive_float, metavar="S", help="length of the video; default: one period, 5 s")
    add("--fps", type=positive_float, default=30.0, metavar="HZ", help="frames a second, at unchanged speed")
    add("--loop", action="store_true", help="whole periods nearest to the length, no drift; the speed is adjusted")
    add("--slow", type=positive_float, default=1.0, metavar="X", help="stretch the period, not the length")
    add("--magnify", type=float, default=1.0, metavar="X", help="scale the motion")
    add("--mask", type=Path, metavar="PNG", help="where to move: white moves, black stays; at the picture's aspect")
    add(
        "--drift", action=argparse.BooleanOptionalAction, help="motion that does not swing back; default: unless --loop"
    )
    add("--size", type=positive_int, default=DEFAULT_SIZE_PX, metavar="PX", help="long side; never enlarged")
    add("--format", choices=FORMATS, help="default: what the output's name says, else mp4")
    add("--preview", action="store_true", help="render in image space, without the network")
    add("--batch-size", type=positive_int, default=2, metavar="N", help="frames rendered together")


def check_playback_flags(args: argparse.Namespace) -> None:
    """Raise UsageError for combinations that contradict each other, before anything is loaded."""
    import math

    if args.loop and args.drift:
        raise UsageError("--drift: a loop has none; right: --loop alone, or --drift without --loop")
    if not math.isfinite(args.magnify):
        raise UsageError(f"--magnify {args.magnify}: right: a finite number")
    if args.size < 16:
        raise UsageError(f"--size {args.size}: right: at least 16 px")


def load_renderer(checkpoint: Path, operator: str) -> FrameSynthesis:
    """Load checkpoint/frame_synthesis_OPERATOR; CheckpointError when it is missing or damaged."""
    from models.checkpoints import load_model
    from models.frame_synthesis import FrameSynthesis

    folder = Path(checkpoint) / f"frame_synthesis_{operator}"
    return load_model(FrameSynthesis, folder, component="renderer")


def render_video(
    path: Path,
    image: torch.Tensor,
    motion: Motion,
    args: argparse.Namespace,
    *,
    renderer: FrameSynthesis | None,
    operator: str,
    device: torch.device,
    video_format: str | None = None,
) -> None:
    """Render a picture along its motion into a video, as a stream.

    Args:
        path: the video, or the folder for "frames"; appears only when it is complete.
        image: (3, H, W) in [0, 1], at the video's size.
        motion: for this picture; its own grid.
        args: the flags of `add_playback_flags`.
        renderer: the network, or None for a preview in image space.
        operator: "softmax" or "gaussian".
        device: where to compute.
        video_format: one of FORMATS; None goes by the name.

    Raises:
        UsageError: flags that give no video. MediaError: a mask or an output that cannot be used.
    """
    from tqdm import tqdm

    from data.media import read_mask
    from data.video_writer import VideoWriter
    from models.rendering import render_frames
    from motion.looping import plan_playback

    try:
        playback = plan_playback(
            seconds=args.seconds or motion.period_s,
            fps=args.fps,
            period_s=motion.period_s,
            slow=args.slow,
            loop=args.loop,
        )
    except ValueError as error:
        raise UsageError(f"--seconds, --fps, --slow: {error}") from error
    for note in playback.notes:
        logger.info("%s: %s", path.name, note)
    if args.loop and motion.spectrum is None:
        logger.info("%s: a plain flow loops only if its last frame leads to its first", path.name)
    mask = read_mask(args.mask, tuple(image.shape[-2:])) if args.mask else None
    motion = motion.controlled(magnify=args.magnify, mask=mask)
    if args.loop or args.drift is False:
        motion = motion.without_drift()
    frames = render_frames(
        image,
        motion,
        playback,
        model=renderer,
        operator=operator,
        device=device,
        batch_size=args.batch_size,
        precision="no" if device.type == "cpu" else args.precision,
    )
    with VideoWriter(path, fps=args.fps, format=video_format) as writer:
        with tqdm(total=playback.num_frames, desc=path.name, unit="frame", dynamic_ncols=True) as bar:
            for batch in frames:
                writer.write(batch)
                bar.update(len(batch))
    logger.info("%s: %d frames", path, playback.num_frames)
