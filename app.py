"""A page in the browser over the same functions: upload a picture, choose, look at the video and download it."""

from __future__ import annotations

import collections
import itertools
import logging
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animation.flags import DEFAULT_SIZE_PX
from cli.flags import add_shared_flags
from cli.parser import Parser, UsageError, positive_int
from cli.run import command, run, user_message

if TYPE_CHECKING:
    import torch

    from models.frame_synthesis import FrameSynthesis
    from models.motion_pipeline import MotionPipeline

logger = logging.getLogger("__main__")

HOST = "127.0.0.1"
SPLATS = ("softmax", "gaussian")
MOST_SECONDS = 20.0
MOST_STRENGTH = 5.0
LARGEST_SEED = 2**31 - 1
MOST_UPLOAD = "30mb"
MOST_WAITING = 16
# Videos, and pages to poke, that stay on disk; the page has a copy of its own of what it shows.
KEPT_VIDEOS = 8


class Studio:
    """The loaded models, and the one thing the page does with them: a picture and choices to a video file.

    Attributes:
        pipeline: predicts motion.
        renderers: one network per splat; a splat that has None is rendered in image space.
        folder: where videos are written.
        size_px: long side of the videos; larger pictures are reduced.
    """

    def __init__(
        self,
        pipeline: MotionPipeline,
        renderers: dict[str, FrameSynthesis | None],
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        precision: str = "no",
        size_px: int = DEFAULT_SIZE_PX,
    ) -> None:
        self.pipeline, self.renderers, self.folder = pipeline, renderers, Path(folder)
        self.device, self.precision, self.size_px = device, precision, size_px
        self._numbers, self._made = itertools.count(), collections.deque()

    def animate(
        self,
        picture: str | Path | None,
        *,
        splat: str = "softmax",
        strength: float = 1.0,
        loop: bool = True,
        seconds: float = 5.0,
        seed: int = 0,
        progress: Callable[[float], Any] | None = None,
    ) -> tuple[Path, Path]:
        """Animate a picture.

        Args:
            picture: the file that a browser uploaded; None when there is none yet.
            splat: one of `renderers`.
            strength: scales the motion, 0 to 5.
            loop: whole periods without drift.
            seconds: length, at most 20 s.
            seed: of the motion; another seed, another wind.
            progress: called with the share that is done.

        Returns:
            An mp4 in `folder`, and a page beside it on which the picture can be poked.

        Raises:
            UsageError, MediaError: a picture or a choice that cannot be used.
        """
        from animation.interactive_page import build_page, page_modes
        from data.video_writer import VideoWriter
        from models.rendering import render_frames
        from motion.looping import plan_playback

        _check_choices(self.renderers, splat, strength, seconds, seed)
        image, source = read_upload(picture, self.size_px)
        if progress is not None:
            progress(0.0)
        motion = self.pipeline.predict(source, seed=int(seed), precision=self.precision).controlled(magnify=strength)
        if loop:
            motion = motion.without_drift()
        playback = plan_playback(seconds=seconds, fps=motion.fps, period_s=motion.period_s, loop=loop, drift=not loop)
        frames = render_frames(
            image,
            motion,
            playback,
            model=self.renderers[splat],
            operator=splat,
            device=self.device,
            precision=self.precision,
        )
        path = self.folder / f"animated-{next(self._numbers):04d}.mp4"
        with VideoWriter(path, fps=playback.fps) as writer:
            for batch in frames:
                writer.write(batch)
                if progress is not None:
                    progress(writer.num_frames / playback.num_frames)
        page = path.with_suffix(".html")
        page.write_text(
            build_page(image, page_modes(motion, "the motion"), "A picture to poke", motion), encoding="utf-8"
        )
        self._made.append((path, page))
        while len(self._made) > KEPT_VIDEOS:
            for old in self._made.popleft():
                old.unlink(missing_ok=True)
        return path, page


def read_upload(picture: str | Path | None, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an upload as (3, H, W) in [0, 1] at the video's long side, and as motion is predicted from it.

    Raises:
        MediaError: none, or one that `data.media.read_image` refuses; one line that calls it what its owner does.
    """
    from animation.rendering import read_images
    from data.media import MediaError

    if picture is None:
        raise MediaError("no picture yet; upload one first")
    try:
        return read_images(Path(picture), size_px)
    except MediaError as error:
        raise MediaError(str(error).replace(str(picture), Path(picture).name)) from error


def _check_choices(splats: dict, splat: str, strength: float, seconds: float, seed: int) -> None:
    """Check again what the page's sliders allow: a request need not come from the page."""
    if splat not in splats:
        raise UsageError(f"splat {splat}: right: {', '.join(splats)}")
    for name, value, lowest, highest in (
        ("strength", strength, 0, MOST_STRENGTH),
        ("seconds", seconds, 0.5, MOST_SECONDS),
        ("seed", seed, 0, LARGEST_SEED),
    ):
        if value is None or not (math.isfinite(value) and lowest <= value <= highest):
            raise UsageError(f"{name} {value}: right: {lowest:g} to {highest:g}")


def make_page(gradio: Any, studio: Studio) -> Any:
    """Lay out the page and connect it to the studio; returns the gradio.Blocks."""

    def animate(picture, splat, strength, loop, seconds, seed, progress=gradio.Progress()):  # noqa: B008
        try:
            video, page = studio.animate(
                picture,
                splat=splat,
                strength=strength,
                loop=loop,
                seconds=seconds,
                seed=seed,
                progress=lambda share: progress(share, desc="frames" if share else "motion"),
            )
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            raise gradio.Error(message) from error
        return str(video), str(page)

    with gradio.Blocks(title="Generative Image Dynamics", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown("# A photograph in, a moving picture out")
        with gradio.Row():
            with gradio.Column():
                picture = gradio.Image(label="Picture", type="filepath", sources=["upload"])
                # Gradio would decode the file itself: other formats, depths and giants, and messages of its own.
                picture.preprocess = lambda upload: upload and upload.path
                splat = gradio.Radio(list(studio.renderers), value=next(iter(studio.renderers)), label="Splat")
                strength = gradio.Slider(0, MOST_STRENGTH, value=1, step=0.1, label="Strength of the motion")
                loop = gradio.Checkbox(value=True, label="Loop")
                seconds = gradio.Slider(1, MOST_SECONDS, value=5, step=0.5, label="Length, seconds")
                seed = gradio.Number(value=0, precision=0, minimum=0, maximum=LARGEST_SEED, label="Seed")
                button = gradio.Button("Animate", variant="primary")
            with gradio.Column():
                video = gradio.Video(label="Video", autoplay=True, loop=True, interactive=False)
                poke = gradio.File(label="The picture to poke: open this page in a browser", interactive=False)
        button.click(animate, [picture, splat, strength, loop, seconds, seed], [video, poke], concurrency_limit=1)
    page.queue(max_size=MOST_WAITING)
    return page


def launch(gradio: Any, page: Any, *, port: int | None, wait: bool = True) -> tuple[Any, str, str]:
    """Serve the page to this machine alone, until Ctrl-C if `wait`; port None takes a free one."""
    # Fonts of this machine: the default theme asks a font server for its own.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return page.launch(
        server_name=HOST,
        server_port=port,
        max_file_size=MOST_UPLOAD,
        theme=theme,
        share=False,
        prevent_thread_lock=not wait,
        quiet=not wait,
    )


def import_gradio() -> Any:
    """Import gradio, or raise a UsageError that says how to get it."""
    try:
        import gradio
    except ImportError as error:
        raise UsageError(f"gradio cannot be imported ({error}); pip install -r requirements-app.txt") from error
    return gradio


@command
def main(argv: list[str] | None = None) -> int:
    """Serve the page on this machine until Ctrl-C; returns the exit code."""
    parser = Parser(description=__doc__)
    group = parser.add_argument_group("page")
    group.add_argument("--port", type=positive_int, default=7860, metavar="N", help=f"serve on http://{HOST}:N")
    group.add_argument(
        "--size", type=positive_int, default=DEFAULT_SIZE_PX, metavar="PX", help="long side of the videos"
    )
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")
    add_shared_flags(parser, "device", "precision")
    args = parser.parse_args(argv)
    if args.port > 65535:
        raise UsageError(f"--port {args.port}: right: 1 to 65535")
    from models.device import check_precision, choose_device

    device = choose_device(args.device)
    check_precision(args.precision, device)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the folder goes
    with tempfile.TemporaryDirectory(prefix="animate-app-") as folder:
        # Uploads, and Gradio's copies of what it serves, go with the rest and are of nobody else; read at its import.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
        gradio = import_gradio()

        from animation.rendering import load_renderer
        from animation.sampling import load_pipeline
        from models.checkpoints import DEFAULT_CHECKPOINT

        pipeline = load_pipeline(args)
        renderers = {splat: load_renderer(args.checkpoint or DEFAULT_CHECKPOINT, splat) for splat in SPLATS}
        options = {"device": device, "precision": args.precision, "size_px": args.size}
        studio = Studio(pipeline, renderers, Path(folder), **options)
        try:
            launch(gradio, make_page(gradio, studio), port=args.port)
        except OSError as error:
            raise UsageError(f"--port {args.port}: cannot be served on ({error}); right: a free port") from error
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
