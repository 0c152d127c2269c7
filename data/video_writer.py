"""Write videos as a stream through moviepy's ffmpeg writer, in memory that does not grow with their length."""

from __future__ import annotations

import re
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from data.files import writing_problem
from data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaError, atomic_path, to_bytes, write_image

FORMATS = ("mp4", "webm", "gif", "frames")
MAX_GIF_FPS = 50.0  # browsers show a GIF frame of less than 2/100 s for 10/100 s instead

# The matrix is stated so that players need not guess it from the height; OpenCV before 5 always assumes this one.
_BT601 = "-vf scale=out_color_matrix=bt601:out_range=tv -colorspace smpte170m -color_range tv"
# A palette of the first frames: one for the whole film would need all frames first, and one for each frame makes
# unmoving areas flicker and the file two to three times as large. Ordered dither keeps still areas still.
_GIF_FILTER = "split[a][b];[a]trim=end_frame=16,palettegen[p];[b][p]paletteuse=dither=bayer:bayer_scale=4"
_VP9 = "-crf 22 -b:v 0 -deadline good -cpu-used 4 -row-mt 1 -pix_fmt yuv420p"
_CODECS = {
    "mp4": ("libx264", f"-crf 17 {_BT601} -movflags +faststart -f mp4"),
    "webm": ("libvpx-vp9", f"{_VP9} {_BT601} -f webm"),
    "gif": ("gif", f"-vf {_GIF_FILTER} -loop 0 -f gif"),
}


class VideoWriter:
    """Write frames one after another as mp4, webm, gif or a folder of PNGs, in constant memory.

        with VideoWriter("out.mp4", fps=30) as writer:
            writer.write(frame)

    mp4 is h264 (yuv420p, CRF 17, index in front), webm is VP9, gif loops for ever with the best 256 colours of its
    first 16 frames, frames is a folder of 00000.png, 00001.png, ... Video codecs need even sizes, so mp4 and webm
    repeat the last column or row of an odd size once; gif and frames keep it. The final name appears when the block
    ends well and replaces what was there; on an exception, Ctrl-C included, ffmpeg is ended and nothing stays.

    Args:
        path: the file, or the folder for "frames".
        fps: frames per second; ffmpeg is told it to 1/100 (gif: at most 50, and it counts in 1/100 s).
        format: "mp4", "webm", "gif" or "frames"; None decides by the suffix (none at all: frames).

    Raises MediaError at construction for an unknown format or suffix, a rate that cannot be written, a folder that is
    not writable or holds other things; and in `write` or at the end when ffmpeg fails or no frame was written.
    """

    def __init__(self, path: str | Path, *, fps: float, format: str | None = None) -> None:
        self.path = Path(path)
        self.fps = float(fps)
        self.format = check_video(self.path, fps=self.fps, format=format)
        self.num_frames = 0
        self._size: tuple[int, int] | None = None
        self._stack = ExitStack()
        self._temporary: Path | None = None
        self._writer = None
        self._process = None

    def __enter__(self) -> VideoWriter:
        self._temporary = self._stack.enter_context(atomic_path(self.path))
        if self.format == "frames":
            self._temporary.mkdir()
        return self

    def write(self, frames: torch.Tensor) -> None:
        """Add frames (N, 3, H, W) or one frame (3, H, W), values in [0, 1], all of one size.

        Raises ValueError for a wrong tensor or a size other than the first frame's, MediaError when ffmpeg fails.
        """
        if self._temporary is None:
            raise RuntimeError("VideoWriter is used in a with block")
        if frames.dim() not in (3, 4) or frames.shape[-3] != 3:
            raise ValueError(f"frames: expected shape (N, 3, H, W) or (3, H, W), got {tuple(frames.shape)}")
        if self._size is None:
            self._size = tuple(frames.shape[-2:])
        if tuple(frames.shape[-2:]) != self._size:
            raise ValueError(f"frames: expected size {self._size} as before, got {tuple(frames.shape[-2:])}")
        for frame in frames.reshape(-1, *frames.shape[-3:]):
            if self.format == "frames":
                write_image(self._temporary / f"{self.num_frames:05d}.png", frame)
            else:
                self._write_bytes(to_bytes(frame))
            self.num_frames += 1

    def _write_bytes(self, array: np.ndarray) -> None:
        if self.format != "gif":
            height, width = array.shape[:2]
            array = np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._writer is None:
            self._start(array.shape[1], array.shape[0])
        try:
            self._writer.write_frame(array)
        except OSError as error:
            raise self._failure(str(error)) from error

    def _start(self, width: int, height: int) -> None:
        codec, options = _CODECS[self.format]
        try:
            # Imported here because moviepy looks for ffmpeg when it is imported, and may not find it.
            from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

            self._writer = FFMPEG_VideoWriter(
                str(self._temporary), (width, height), self.fps, codec=codec, ffmpeg_params=options.split()
            )
        except (OSError, RuntimeError) as error:
            raise MediaError(f"{self.path}: ffmpeg cannot be started ({error}); pip install imageio-ffmpeg") from error
        self._process = self._writer.proc

    def _failure(self, message: str) -> MediaError:
        # moviepy puts a headline before what ffmpeg said and sometimes advice after it.
        said = message.partition("MoviePy error:")[2].partition("\n")[2] if "MoviePy error:" in message else message
        lines = said.partition("The video export failed")[0].strip().splitlines() or ["it ended early"]
        return MediaError(f"{self.path}: ffmpeg could not write it ({lines[-1].strip()}); try another format or folder")

    def _finish(self) -> None:
        if self.num_frames == 0:
            raise MediaError(f"{self.path}: no frames were written; a video needs at least one")
        if self._process is None:
            return
        # moviepy's close() forgets the exit status, by which a full disk shows.
        _, message = self._process.communicate()
        if self._process.returncode != 0:
            raise self._failure(message.decode(errors="replace"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as failure:
            self._end_process()
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
        # ffmpeg has to be done with the temporary before the stack renames or removes it.
        self._end_process()
        self._stack.__exit__(kind, error, trace)

    def _end_process(self) -> None:
        self._temporary = None
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stderr):
            # What is still in the pipe's buffer has nowhere to go any more.
            with suppress(OSError):
                pipe.close()
        self._process.wait()
        self._process = None


def fps_limits(format: str) -> tuple[float, float]:
    """Return the lowest and the highest frame rate that a format is written at."""
    return 0.1, MAX_GIF_FPS if format == "gif" else 1000.0


def check_video(path: str | Path, *, fps: float, format: str | None = None) -> str:
    """Check, and make nothing, whether a `VideoWriter` could write here; return the format.

    Raises:
        MediaError: as `VideoWriter` does at construction.
    """
    path = Path(path)
    format = _format_of(path, format)
    lowest, highest = fps_limits(format)
    if not lowest <= fps <= highest:
        raise MediaError(
            f"{path}: cannot be written at {fps:g} frames/s; {format} takes {lowest:g} to {highest:g} frames/s"
        )
    problem = writing_problem(path)
    if problem:
        raise MediaError(f"{path}: {problem}")
    if format == "frames":
        _check_frame_folder(path)
    elif path.is_dir():
        raise MediaError(f"{path}: is a folder; give the name of a {format} file")
    return format


def _format_of(path: Path, format: str | None) -> str:
    suffix = path.suffix.lower()
    if format is None:
        if suffix[1:] in FORMATS[:3]:
            return suffix[1:]
        if suffix == "":
            return "frames"
        raise MediaError(f"{path}: cannot write a video named '{suffix}'; use .mp4, .webm, .gif or a folder for frames")
    if format not in FORMATS:
        raise MediaError(f"{path}: unknown video format '{format}'; use one of {', '.join(FORMATS)}")
    if format == "frames" and suffix in VIDEO_SUFFIXES + IMAGE_SUFFIXES:
        raise MediaError(f"{path}: is a folder's name in the format frames; leave '{suffix}' away")
    if format != "frames" and suffix != f".{format}":
        raise MediaError(f"{path}: the format {format} needs a name ending in .{format}")
    return format


def _check_frame_folder(path: Path) -> None:
    """Refuse to replace anything but a folder of frames written earlier."""
    if path.exists() and not path.is_dir():
        raise MediaError(f"{path}: is a file; name a folder for the frames")
    if path.is_dir() and not all(re.fullmatch(r"\d{5,}\.png", inside.name) for inside in path.iterdir()):
        raise MediaError(f"{path}: holds other things than numbered frames; name a new folder")
