"""An image and its motion to a video file: inputs, the plan of its frames, the renderer, and the file."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from animation.options import DEFAULT_SIZE_PX, PlaybackOptions
from data.files import OUTPUT_MARK
from data.media import read_image, read_mask, write_image
from data.video_writer import check_video, write_video
from data.visualisation import magnitude_over
from models.checkpoints import DEFAULT_CHECKPOINT, CheckpointError
from models.device import ArgumentError
from models.frame_synthesis import FrameSynthesis
from models.rendering import render_frames
from motion.flow import resize_maps
from motion.looping import Playback, is_whole_periods, loop_phase_of, plan_playback
from motion.motion_file import Motion, MotionFileError, is_other_image, load_motion
from motion.spectrum import PERIOD_S

logger = logging.getLogger(__name__)


def read_images(path: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read an image's file at the video's long side `size`, and as motion is predicted from it, (3, H, W) each."""
    image = read_image(path, max_side=size)
    whole = max(image.shape[-2:]) < min(size, DEFAULT_SIZE_PX)
    source = image if whole or size == DEFAULT_SIZE_PX else read_image(path, max_side=DEFAULT_SIZE_PX)
    return image, source


def read_motion(path: Path, source: torch.Tensor) -> Motion:
    """Read the motion file of an image (3, H, W) and log what its sizes suggest; MotionFileError if it is no use."""
    motion = load_motion(path)
    height, width = source.shape[-2:]
    motion.check_aspect(height, width, str(path))
    size = motion.image_size
    if motion.spectrum is None and tuple(motion.flow.shape[-2:]) != (height, width):
        sizes = (*reversed(motion.flow.shape[-2:]), width, height)
        logger.info("%s: flow of %d x %d px is resized and rescaled to the image of %d x %d px", path, *sizes)
    elif is_other_image(motion, source):
        logger.warning("%s: was made for another image than this one; right: the motion of this image", path)
    elif size not in (None, (height, width)):
        sizes = (*reversed(size), width, height)
        logger.info("%s: made for an image of %d x %d px, this one has %d x %d; is it the same?", path, *sizes)
    return motion


def read_inputs(
    path: Path, size: int, playback: PlaybackOptions, *, mask: Path | None = None, motion: Path | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Motion | None]:
    """Read the files of one video: the two images of `read_images`, the mask at the first one's size, the motion."""
    image, source = read_images(path, size)
    mask_map = read_mask(mask, tuple(image.shape[-2:])) if mask else None
    known = read_motion(motion, source) if motion else None
    if known is not None:
        try:
            plan(playback, known)
        except MotionFileError as error:
            raise MotionFileError(f"{motion}: {error}") from error
    return image, source, mask_map, known


def plan(options: PlaybackOptions, motion: Motion | None = None, *, loop_phase: float = 1.0) -> Playback:
    """Return the playback that the options ask for; ArgumentError or MotionFileError where they give no video.

    Without a motion, of one with the usual period that closes at `loop_phase`.
    """
    if motion is not None:
        try:
            loop_phase = loop_phase_of(motion.meta)
        except ValueError as error:
            raise MotionFileError(f"{error}; right: a motion file of generate_motion.py") from error
    if not options.loop or is_whole_periods(loop_phase):
        loop_phase = 1.0
    period_s = motion.period_s if motion is not None else PERIOD_S
    # A motion that was made to loop elsewhere is played for one round; else the length does not depend on `slow`.
    default_s = period_s if loop_phase == 1 else loop_phase * period_s * options.slow
    drift = not options.loop and options.drift is not False and (motion is None or motion.spectrum is not None)
    shared = {"fps": options.fps, "slow": options.slow, "loop": options.loop, "loop_phase": loop_phase, "drift": drift}
    try:
        return plan_playback(seconds=options.seconds or default_s, period_s=period_s, **shared)
    except ValueError as error:
        raise ArgumentError(str(error)) from error


def load_renderer(checkpoint: Path | None, operator: str) -> FrameSynthesis:
    """Load checkpoint/frame_synthesis_OPERATOR (None: of the default checkpoint); CheckpointError if it is no use."""
    folder = Path(checkpoint or DEFAULT_CHECKPOINT) / f"frame_synthesis_{operator}"
    model = FrameSynthesis.from_pretrained(folder)
    if model.config.operator != operator:
        raise CheckpointError(f"{folder}: was trained with the operator {model.config.operator}; right: {operator}")
    return model


def write_frames(
    path: Path, batches: Iterable[torch.Tensor], playback: Playback, *, video_format: str | None = None
) -> None:
    """Write batches of frames as a video, with a progress bar on a terminal; it appears when it is complete."""
    batches = iter(batches)
    # Before the bar, which would foresee hours: with the first batch the image is encoded, and kernels may be compiled.
    first = next(batches)
    height, width = first.shape[-2:]
    with tqdm(total=playback.num_frames, desc=path.name, unit="frame", dynamic_ncols=True, disable=None) as bar:

        def counted() -> Iterator[torch.Tensor]:
            for batch in itertools.chain([first], batches):
                yield batch
                bar.update(len(batch))

        write_video(path, counted(), playback.fps, format=video_format, comment=OUTPUT_MARK)
    logger.info("%s: %d frames of %d x %d px", path, playback.num_frames, width, height)


def played(motion: Motion, options: PlaybackOptions, mask: torch.Tensor | None = None) -> Motion:
    """Return a motion as it is played: magnified, masked (1, H, W), and without drift where there is to be none."""
    motion = motion.controlled(magnify=options.magnify, mask=mask)
    return motion.without_drift() if options.loop or options.drift is False else motion


def show_motion(path: Path, image: torch.Tensor, motion: Motion) -> None:
    """Write image (3, H, W) with the motion's mean magnitude over it, from nothing over red to white at 4 px."""
    write_image(path, magnitude_over(image, resize_maps(motion.importance(), tuple(image.shape[-2:]))))
    logger.info("%s: grey stands still; red, yellow, white move ever further", path)


def render_video(
    path: Path,  # the video, or the folder for "frames"
    image: torch.Tensor,  # (3, H, W) in [0, 1], at the video's size
    motion: Motion,  # for this image; its own grid
    options: PlaybackOptions,
    *,
    video_format: str,  # "mp4", "gif", "webm" or "frames"
    mask: torch.Tensor | None,  # (1, H, W) in [0, 1] where to move; None: everywhere
    **rendering: Any,  # arguments of `models.rendering.render_frames`
) -> None:
    """Render an image along its motion into a video, as a stream; ArgumentError or MediaError."""
    playback = plan(options, motion)
    for note in playback.notes:
        logger.info("%s: %s", path.name, note)
    if options.loop and motion.spectrum is None:
        logger.info("%s: a plain flow loops only if its last frame leads to its first", path.name)
    motion = played(motion, options, mask)
    write_frames(path, render_frames(image, motion, playback, **rendering), playback, video_format=video_format)


def synthesize(
    operator: str, *, image: Path, motion: Path, outdir: Path, video_format: str, checkpoint: Path | None,
    mask: Path | None, size: int, preview: bool, playback: PlaybackOptions, rendering: dict[str, Any],
) -> None:  # fmt: skip
    """Render an image file along a motion file into OUTDIR/OPERATOR_result.SUFFIX, as synthesize_*.py say."""
    path = outdir / (f"{operator}_result" + ("" if video_format == "frames" else f".{video_format}"))
    check_video(path, fps=playback.fps, format=video_format)
    plan(playback)
    shown, _, where, moved = read_inputs(image, size, playback, mask=mask, motion=motion)
    model = None if preview else load_renderer(checkpoint, operator)
    options = {"video_format": video_format, "mask": where, "operator": operator, "model": model}
    render_video(path, shown, moved, playback, **options, **rendering)
