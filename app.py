"""A page in the browser over the same functions: upload an image, choose, look at the video and download it."""

from cli.run import command, run, user_message

import html
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from animation.flags import CHECKPOINT, checked_device
from animation.options import AS_SUGGESTED, CHOICES, DEFAULT_SIZE_PX
from animation.web_server import LARGEST_UPLOAD_BYTES, RequestGuard, limit_requests, removing_old_files
from cli.flags import add_shared_flags
from cli.parser import Parser, UsageError, checked, positive_int, whole_number
from models.choices import OPERATORS
from models.segmentation_classes import CLASSES
from motion.wind import WINDS

logger = logging.getLogger("__main__")

HOST, LONGEST_QUEUE = "127.0.0.1", 16
root_path = checked(
    lambda text: text.rstrip("/"), re.compile(r"(https?:/)?/[^\s?#]+").fullmatch, "a path such as /animate"
)


def make_page(gradio: Any, studio: Any) -> Any:
    """Lay out the page and connect it to an `animation.studio.Studio`; returns the gradio.Blocks."""

    def animate(image, splat, strength, loop, seconds, seed, move, freeze, wind, progress=gradio.Progress()):  # noqa: B008
        choices = {"splat": splat, "wind": wind, "strength": strength, "loop": loop, "seconds": seconds, "seed": seed}
        choices |= {"move": move or (), "freeze": freeze or ()}
        # Gradio closes it at a yield when who asked has left.
        try:
            for done in studio.animate(image, **choices):
                if isinstance(done, float):
                    progress(done, desc="frames" if done else "motion")
                    yield gradio.skip(), gradio.skip()
                else:
                    yield tuple(map(str, done))
        except Exception as error:
            message = user_message(error)
            if message is None:
                logger.exception("the image was not animated")
                message = "failed; the server's log says why"
            raise gradio.Error(html.escape(message), print_exception=False) from error

    def uploaded(upload: Any) -> str | None:
        # Gradio looks only at files that are marked as such, and a request may leave the mark out.
        if upload is None or not upload.path:
            return None
        if Path(gradio.utils.get_upload_folder()).resolve() not in Path(upload.path).resolve().parents:
            raise gradio.Error("only an uploaded file is read", print_exception=False)
        return upload.path

    with gradio.Blocks(title="Generative Image Dynamics", analytics_enabled=False) as page:
        gradio.Markdown("# A photograph in, a video out")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(label="Image", type="filepath", sources=["upload"])
                # Gradio would decode the file itself: other formats, depths and giants, and messages of its own.
                image.preprocess = uploaded
                splat = gradio.Radio(list(studio.renderers), value=next(iter(studio.renderers)), label="Splat")
                wind = gradio.Dropdown([AS_SUGGESTED, *WINDS], value=AS_SUGGESTED, label="Wind")
                strength = gradio.Slider(*CHOICES["strength"], value=1, step=0.1, label="Strength of the motion")
                loop = gradio.Checkbox(value=True, label="Loop")
                seconds = gradio.Slider(1, CHOICES["seconds"][1], value=5, step=0.5, label="Length, seconds")
                seed = gradio.Number(value=0, precision=0, minimum=0, maximum=CHOICES["seed"][1], label="Seed")
                move, freeze = (
                    gradio.Dropdown(CLASSES, value=[], multiselect=True, label=label)
                    for label in ("Only these move (none: everything)", "These stay still")
                )
                button = gradio.Button("Animate", variant="primary")
            with gradio.Column():
                video = gradio.Video(label="Video", autoplay=True, loop=True, interactive=False)
                drag = gradio.File(label="The image to drag: open this page in a browser", interactive=False)
        choices = [image, splat, strength, loop, seconds, seed, move, freeze, wind]
        button.click(animate, choices, [video, drag], concurrency_limit=1)
    page.queue(max_size=LONGEST_QUEUE, api_open=False)  # no request passes the queue by
    limit_requests(gradio, page)
    return page


def launch(
    gradio: Any, page: Any, *, port: int | None, root_path: str | None = None, wait: bool = True
) -> tuple[Any, str, str]:
    """Serve the page to this machine, or a proxy at `root_path`, until Ctrl-C if `wait`; port None takes a free one."""
    # Fonts of this machine: the default theme asks a font server for its own.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    folder = Path(gradio.utils.get_upload_folder())
    web = {"middleware": [(RequestGuard, (folder,), {})], "lifespan": lambda _: removing_old_files(folder)}
    options = {"max_file_size": LARGEST_UPLOAD_BYTES, "theme": theme, "share": False, "app_kwargs": web}
    options |= {"server_name": HOST, "server_port": port, "root_path": root_path}
    return page.launch(prevent_thread_lock=not wait, quiet=not wait, **options)


@command
def main(argv: list[str] | None = None) -> int:
    """Serve the page on this machine until Ctrl-C; returns the exit code."""
    parser = Parser(description=__doc__)
    add = parser.add_argument_group("page").add_argument
    add("--port", type=whole_number(1, 65535), default=7860, metavar="N", help=f"serve on http://{HOST}:N")
    add("--root-path", type=root_path, metavar="PATH", help="where a proxy in front serves the page, such as /animate")
    add("--size", type=positive_int, default=DEFAULT_SIZE_PX, metavar="PX", help="long side of the videos")
    add("--checkpoint", **CHECKPOINT)
    add_shared_flags(parser, "device", "precision", "threads")
    args = parser.parse_args(argv)
    device, precision = checked_device(args)
    with tempfile.TemporaryDirectory(prefix="animate-app-") as temporary:
        # Uploads, what is made, and Gradio's copies of it are removed with the folder; read when it is imported.
        folder = Path(temporary) / "gradio"
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        try:
            import gradio
        except ImportError as error:
            raise UsageError(f"gradio cannot be imported ({error}); pip install -r requirements-app.txt") from error

        from animation.rendering import load_renderer
        from animation.sampling import load_pipeline
        from animation.studio import Studio

        pipeline = load_pipeline(args.checkpoint, device)
        renderers = {splat: load_renderer(args.checkpoint, splat) for splat in OPERATORS}
        studio = Studio(pipeline, renderers, folder / "made", size_px=args.size, device=device, precision=precision)
        try:
            launch(gradio, make_page(gradio, studio), port=args.port, root_path=args.root_path)
        except OSError as error:
            raise UsageError(f"--port {args.port}: cannot be served on ({error}); right: a free port") from error
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
