"""What the browser's page of app.py does: an uploaded image and choices to a video and an interactive page."""

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from animation.class_control import ClassControl
from animation.interactive_page import page_modes, write_page
from animation.options import AS_SUGGESTED, CHOICES, DEFAULT_SIZE_PX, PlaybackOptions
from animation.rendering import plan, played, read_images
from data.files import OUTPUT_MARK
from data.media import MediaError
from data.video_writer import VideoWriter
from models.device import ArgumentError
from models.frame_synthesis import FrameSynthesis
from models.motion_pipeline import MotionPipeline
from models.rendering import render_frames
from motion.wind import parse_wind


class Studio:
    """The loaded models, and the page's one function: an image and choices to a video file."""

    def __init__(
        self,
        pipeline: MotionPipeline,
        renderers: dict[str, FrameSynthesis | None],  # per splat; None is rendered in image space
        folder: Path,  # where videos are written
        *,
        size_px: int = DEFAULT_SIZE_PX,  # long side of the videos; larger images are reduced
        **rendering: Any,  # device and precision, see `models.rendering.render_frames`
    ) -> None:
        self.pipeline, self.renderers, self.folder, self.size_px = pipeline, renderers, Path(folder), size_px
        self.rendering = {"device": "cpu", "precision": "no", **rendering}

    def animate(
        self,
        upload: str | Path | None,  # the file that a browser uploaded
        *,
        splat: str = "softmax",
        wind: str = AS_SUGGESTED,  # or a word or number of `motion.wind`
        strength: float = 1.0,  # scales the motion
        loop: bool = True,  # whole periods without drift
        seconds: float = 5.0,
        seed: int = 0,  # of the motion
        move: Sequence[str] = (),  # words for what alone may move
        freeze: Sequence[str] = (),  # words for what stays still
    ) -> Iterator[float | tuple[Path, Path]]:
        """Animate an image: yield fractions that are done, at last the paths of an mp4 and of an interactive page.

        Closed early, it leaves no file. ArgumentError, ClassNameError, CheckpointError, MediaError: what is of no use.
        """
        # A request need not come from the page, whose sliders allow no others.
        if splat not in self.renderers:
            raise ArgumentError(f"splat {splat}: right: {', '.join(self.renderers)}")
        for name, value in {"strength": strength, "seconds": seconds, "seed": seed}.items():
            lowest, highest = CHOICES[name]
            if value is None or not lowest <= value <= highest:
                raise ArgumentError(f"{name} {value}: right: {lowest:g} to {highest:g}")
        sampling = {"seed": int(seed), "precision": self.rendering["precision"]}
        if wind != AS_SUGGESTED:
            try:
                sampling["wind_px"] = parse_wind(str(wind))
            except ValueError as error:
                raise ArgumentError(f"wind {error}") from error
        image, source = read_upload(upload, self.size_px)
        yield 0.0
        motion = self.pipeline.predict(source, **sampling)
        motion = ClassControl(self.pipeline.segmentation, move, freeze).apply(motion, source, Path(upload).name)
        options = PlaybackOptions(seconds=seconds, fps=motion.fps, loop=loop, magnify=strength)
        playback, motion = plan(options, motion), played(motion, options)
        rendering = {"model": self.renderers[splat], "operator": splat, **self.rendering}

        path = self.folder / f"animated-{secrets.token_hex(8)}.mp4"  # Gradio serves the folder to whoever knows a name
        with VideoWriter(path, fps=playback.fps, comment=OUTPUT_MARK) as video:
            for batch in render_frames(image, motion, playback, **rendering):
                video.write(batch)
                yield video.num_frames / playback.num_frames
        page = path.with_suffix(".html")
        write_page(page, image, page_modes(motion, "the motion"), "An image to drag", motion)
        yield path, page


def read_upload(upload: str | Path | None, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read an upload as `read_images` does; MediaError names the uploaded file alone, not its folder."""
    if upload is None:
        raise MediaError("no image yet; upload one first")
    try:
        return read_images(Path(upload), size_px)
    except MediaError as error:
        raise MediaError(str(error).replace(str(upload), Path(upload).name)) from error
