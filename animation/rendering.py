"""What the scripts that write videos share: their flags, the renderer they load, and picture + motion -> video file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from animation.flags import DEFAULT_SIZE_PX
from cli.parser import (
    UsageError,
)

if TYPE_CHECKING:
    import torch

    from models.frame_synthesis import FrameSynthesis
    from motion.looping import Playback
    from motion.motion_file import Motion

logger = logging.getLogger(__name__)


def read_mask_of(args: argparse.Namespace, image: torch.Tensor) -> torch.Tensor | None:
    """Read --mask at the size of a picture (3, H, W); None without the flag."""
    from data.media import read_mask

    return read_mask(args.mask, tuple(image.shape[-2:])) if args.mask else None


def read_images(path: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a picture twice: at the video's long side `size`, and as motion is predicted from it, (3, H, W) each.

    Both come from the file and neither from the other, so each is the very picture that a script reading one has.
    """
    from data.media import read_image

    image = read_image(path, max_side=size)
    whole = max(image.shape[-2:]) < min(size, DEFAULT_SIZE_PX)
    source = image if whole or size == DEFAULT_SIZE_PX else read_image(path, max_side=DEFAULT_SIZE_PX)
    return image, source


def note_sizes(motion: Motion, source: torch.Tensor, name: str) -> None:
    """Log what a motion file's sizes say: a plain flow that is resized, a motion made for a picture of another size.

    Args:
        motion: as it was read, of an aspect that fits.
        source: the picture (3, H, W) that motion would be predicted from.
        name: the file, for the message.
    """
    from motion.motion_file import is_other_image

    height, width = source.shape[-2:]
    if motion.spectrum is None and tuple(motion.flow.shape[-2:]) != (height, width):
        rows, columns = motion.flow.shape[-2:]
        logger.info(
            "%s: flow of %d x %d px is resized to the picture and rescaled (at %d x %d px: dx by %.3g, dy by %.3g)",
            *(name, columns, rows, width, height, width / columns, height / rows),
        )
    elif is_other_image(motion, source):
        logger.warning("%s: was made for another picture than this one; right: the motion of this picture", name)
    elif motion.image_size not in (None, (height, width)):
        logger.info(
            "%s: made for a picture of %d x %d px, this one has %d x %d of the same aspect; is it the same picture?",
            *(name, motion.image_size[1], motion.image_size[0], width, height),
        )


def plan(args: argparse.Namespace, motion: Motion | None = None, *, loop_phase: float = 1.0) -> Playback:
    """Return the frames that the flags ask for; UsageError where they give no video.

    Args:
        args: the flags of `add_playback_flags`.
        motion: what will be played; None, before it is known, stands for one of the usual period.
        loop_phase: where such a motion will close; a given one says so itself.
    """
    from motion.looping import is_whole_periods, loop_phase_of, plan_playback
    from motion.spectrum import PERIOD_S

    if motion is not None:
        try:
            loop_phase = loop_phase_of(motion.meta)
        except ValueError as error:
            raise UsageError(f"the motion file's {error}; right: one as generate_motion.py writes it") from error
    if not args.loop or is_whole_periods(loop_phase):
        loop_phase = 1.0

    period_s = motion.period_s if motion is not None else PERIOD_S
    has_drift = not args.loop and args.drift is not False and (motion is None or motion.spectrum is not None)
    # A motion that was made to loop elsewhere shows one round; else the length does not depend on --slow.
    default_s = period_s if loop_phase == 1 else loop_phase * period_s * args.slow
    try:
        return plan_playback(
            seconds=args.seconds or default_s,
            fps=args.fps,
            period_s=period_s,
            slow=args.slow,
            loop=args.loop,
            loop_phase=loop_phase,
            drift=has_drift,
        )
    except ValueError as error:
        raise UsageError(f"--seconds, --fps, --slow: {error}") from error


def check_video_flags(
    args: argparse.Namespace, outputs: list[Path], video_format: str, *, loop_phase: float = 1.0
) -> None:
    """Check, before a model is loaded and with nothing made, that the flags give a video that can be written.

    `loop_phase`: see `plan`.

    Raises:
        UsageError, MediaError: one line that names the flag or the file.
    """
    from data.video_writer import check_video, fps_limits

    lowest, highest = fps_limits(video_format)
    if not lowest <= args.fps <= highest:
        raise UsageError(f"--fps {args.fps:g}: right: {lowest:g} to {highest:g} for {video_format}")
    plan(args, loop_phase=loop_phase)
    for output in outputs:
        check_video(output, fps=args.fps, format=video_format)


def load_renderer(checkpoint: Path, operator: str) -> FrameSynthesis:
    """Load checkpoint/frame_synthesis_OPERATOR; CheckpointError when it is missing, damaged or of another operator."""
    from models.checkpoints import CheckpointError, load_model
    from models.frame_synthesis import FrameSynthesis

    folder = Path(checkpoint) / f"frame_synthesis_{operator}"
    model = load_model(FrameSynthesis, folder, component="renderer")
    if model.config.operator != operator:
        raise CheckpointError(f"{folder}: was trained with the operator {model.config.operator}; right: {operator}")
    return model


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
    mask: torch.Tensor | None = None,
    progress: bool = False,
) -> None:
    """Render a picture along its motion into a video, as a stream.

    Args:
        path: the video, or the folder for "frames"; appears only when it is complete.
        image: (3, H, W) in [0, 1], at the video's size.
        motion: for this picture; its own grid.
        args: the flags of `add_playback_flags`, and precision.
        renderer: the network, or None for a preview in image space.
        operator: "softmax" or "gaussian".
        device: where to compute.
        video_format: one of FORMATS; None goes by the name.
        mask: (1, H, W) in [0, 1] where to move, or None for everywhere.
        progress: show a bar.

    Raises:
        UsageError: flags that give no video, a precision that the device lacks. MediaError: an output that fails.
        RenderingError: --compile fails.
    """
    from tqdm import tqdm

    from data.video_writer import VideoWriter
    from models.device import check_precision
    from models.rendering import render_frames

    playback = plan(args, motion)
    precision = check_precision(args.precision, device)
    for note in playback.notes:
        logger.info("%s: %s", path.name, note)
    if args.loop and motion.spectrum is None:
        logger.info("%s: a plain flow loops only if its last frame leads to its first", path.name)
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
        precision=precision,
        tile=args.tile,
        compiled=args.compile,
    )
    with VideoWriter(path, fps=args.fps, format=video_format) as writer:
        bar = tqdm(total=playback.num_frames, desc=path.name, unit="frame", dynamic_ncols=True, disable=not progress)
        with bar:
            for batch in frames:
                writer.write(batch)
                bar.update(len(batch))
    height, width = image.shape[-2:]
    logger.info("%s: %d frames of %d x %d px", path, playback.num_frames, width, height)
