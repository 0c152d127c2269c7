"""An image and its motion to a video file: inputs, the plan of its frames, the renderer, and the file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from animation.options import DEFAULT_SIZE_PX, PlaybackOptions
from data.media import read_image, read_mask
from data.video_writer import check_video, fps_limits, write_video
from models.checkpoints import DEFAULT_CHECKPOINT, CheckpointError
from models.device import ArgumentError
from models.frame_synthesis import FrameSynthesis
from models.rendering import render_frames
from motion.looping import Playback, is_whole_periods, loop_phase_of, plan_playback
from motion.motion_file import Motion, MotionFileError, is_other_image, load_motion
from motion.spectrum import PERIOD_S

logger = logging.getLogger(__name__)


def read_images(path: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read an image twice: at the video's long side `size`, and as motion is predicted from it, (3, H, W) each.

    Each is read from the file itself, so that scripts which need only one get the very same image.
    """
    image = read_image(path, max_side=size)
    whole = max(image.shape[-2:]) < min(size, DEFAULT_SIZE_PX)
    source = image if whole or size == DEFAULT_SIZE_PX else read_image(path, max_side=DEFAULT_SIZE_PX)
    return image, source


def read_motion(path: Path, source: torch.Tensor) -> Motion:
    """Read the motion file of an image and log what its sizes suggest.

    Args:
        path: the file.
        source: the image (3, H, W) that motion would be predicted from.

    Raises:
        MotionFileError: a file that cannot be used, or one for an image of another aspect.
    """
    motion = load_motion(path)
    height, width = source.shape[-2:]
    motion.check_aspect(height, width, str(path))
    if motion.spectrum is None and tuple(motion.flow.shape[-2:]) != (height, width):
        rows, columns = motion.flow.shape[-2:]
        logger.info(
            "%s: flow of %d x %d px is resized to the image and rescaled (at %d x %d px: dx by %.3g, dy by %.3g)",
            *(path, columns, rows, width, height, width / columns, height / rows),
        )
    elif is_other_image(motion, source):
        logger.warning("%s: was made for another image than this one; right: the motion of this image", path)
    elif motion.image_size not in (None, (height, width)):
        logger.info(
            "%s: made for an image of %d x %d px, this one has %d x %d of the same aspect; is it the same image?",
            *(path, motion.image_size[1], motion.image_size[0], width, height),
        )
    return motion


def read_inputs(
    path: Path, size: int, playback: PlaybackOptions, *, mask: Path | None = None, motion: Path | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Motion | None]:
    """Read the files of one video: the two images of `read_images`, the mask at the first one's size, the motion.

    Raises:
        MediaError, MotionFileError: a file that cannot be used, or belongs to another image.
        ArgumentError: the options give no video of this motion.
    """
    image, source = read_images(path, size)
    mask_map = read_mask(mask, tuple(image.shape[-2:])) if mask else None
    known = read_motion(motion, source) if motion else None
    if known is not None:
        plan(playback, known)
    return image, source, mask_map, known


def plan(options: PlaybackOptions, motion: Motion | None = None, *, loop_phase: float = 1.0) -> Playback:
    """Return the frames that the options ask for.

    Args:
        options: how to play.
        motion: what will be played; None, before it is known, stands for one of the usual period.
        loop_phase: where such a motion will close; a given motion holds this itself.

    Raises:
        ArgumentError: they give no video. MotionFileError: the motion's own loop is malformed.
    """
    if motion is not None:
        try:
            loop_phase = loop_phase_of(motion.meta)
        except ValueError as error:
            raise MotionFileError(f"the motion file's {error}; right: one as generate_motion.py writes it") from error
    if not options.loop or is_whole_periods(loop_phase):
        loop_phase = 1.0

    period_s = motion.period_s if motion is not None else PERIOD_S
    has_drift = not options.loop and options.drift is not False and (motion is None or motion.spectrum is not None)
    # A motion that was made to loop elsewhere is played for one round; else the length does not depend on `slow`.
    default_s = period_s if loop_phase == 1 else loop_phase * period_s * options.slow
    try:
        return plan_playback(
            seconds=options.seconds or default_s,
            fps=options.fps,
            period_s=period_s,
            slow=options.slow,
            loop=options.loop,
            loop_phase=loop_phase,
            drift=has_drift,
        )
    except ValueError as error:
        raise ArgumentError(str(error)) from error


def check_outputs(
    outputs: Sequence[Path], video_format: str, options: PlaybackOptions, *, loop_phase: float = 1.0
) -> None:
    """Check, before a model is loaded and with nothing made, that the options give videos that can be written.

    `loop_phase`: see `plan`.

    Raises:
        ArgumentError, MediaError: one line that names the argument or the file.
    """
    lowest, highest = fps_limits(video_format)
    if not lowest <= options.fps <= highest:
        raise ArgumentError(f"fps {options.fps:g}: right: {lowest:g} to {highest:g} for {video_format}")
    plan(options, loop_phase=loop_phase)
    for output in outputs:
        check_video(output, fps=options.fps, format=video_format)


def load_renderer(checkpoint: Path | None, operator: str) -> FrameSynthesis:
    """Load checkpoint/frame_synthesis_OPERATOR (None: of the default checkpoint).

    Raises:
        CheckpointError: it is missing, damaged or of another operator.
    """
    folder = Path(checkpoint or DEFAULT_CHECKPOINT) / f"frame_synthesis_{operator}"
    model = FrameSynthesis.from_pretrained(folder)
    if model.config.operator != operator:
        raise CheckpointError(f"{folder}: was trained with the operator {model.config.operator}; right: {operator}")
    return model


def show_progress(batches: Iterable[torch.Tensor], total: int, name: str) -> Iterator[torch.Tensor]:
    """Yield batches of frames, with a progress bar on a terminal."""
    with tqdm(total=total, desc=name, unit="frame", dynamic_ncols=True, disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def render_video(
    path: Path,
    image: torch.Tensor,
    motion: Motion,
    options: PlaybackOptions,
    *,
    video_format: str | None = None,
    mask: torch.Tensor | None = None,
    **rendering: Any,
) -> None:
    """Render an image along its motion into a video, as a stream.

    Args:
        path: the video, or the folder for "frames"; appears only when it is complete.
        image: (3, H, W) in [0, 1], at the video's size.
        motion: for this image; its own grid.
        options: how it is played.
        video_format: one of FORMATS; None: by the name.
        mask: (1, H, W) in [0, 1] where to move, or None for everywhere.
        rendering: arguments of `models.rendering.render_frames`.

    Raises:
        ArgumentError: options that give no video. MediaError: an output that fails. RenderingError: compiling fails.
    """
    playback = plan(options, motion)
    for note in playback.notes:
        logger.info("%s: %s", path.name, note)
    if options.loop and motion.spectrum is None:
        logger.info("%s: a plain flow loops only if its last frame leads to its first", path.name)
    motion = motion.controlled(magnify=options.magnify, mask=mask)
    if options.loop or options.drift is False:
        motion = motion.without_drift()
    frames = show_progress(render_frames(image, motion, playback, **rendering), playback.num_frames, path.name)
    write_video(path, frames, options.fps, format=video_format)
    height, width = image.shape[-2:]
    logger.info("%s: %d frames of %d x %d px", path, playback.num_frames, width, height)


def synthesize(
    operator: str,
    *,
    image: Path,
    motion: Path,
    outdir: Path,
    video_format: str,
    checkpoint: Path | None,
    mask: Path | None,
    size: int,
    preview: bool,
    playback: PlaybackOptions,
    rendering: dict[str, Any],
) -> None:
    """Render an image file along a motion file into OUTDIR/OPERATOR_result.SUFFIX: synthesize_*.py.

    Args:
        operator: "softmax" or "gaussian".
        preview: render in image space, without the network.
        rendering: see `render_video`.
    """
    path = outdir / (f"{operator}_result" + ("" if video_format == "frames" else f".{video_format}"))
    check_outputs([path], video_format, playback)
    shown, _, where, moved = read_inputs(image, size, playback, mask=mask, motion=motion)
    model = None if preview else load_renderer(checkpoint, operator)
    options = {"video_format": video_format, "mask": where, "operator": operator, "model": model}
    render_video(path, shown, moved, playback, **options, **rendering)
