"""The interactive page as one HTML file: the modes of a motion, the image, and the scripts of web/."""

import base64
import html
import json
import logging
import re
import zlib
from pathlib import Path

import torch

from data.files import write_text
from data.media import encode_jpeg, encode_webp_loop
from models.rendering import render_frames
from motion import modal
from motion.flow import motion_grid_size, resize_maps, resize_spectrum
from motion.looping import plan_playback
from motion.modal import Modes
from motion.motion_file import Motion, MotionFileError
from motion.wind import DEFAULT_DAMPING

logger = logging.getLogger(__name__)

WEB_FOLDER = Path(__file__).resolve().parents[1] / "web"
SCRIPTS = ("simulation.js", "mesh.js", "renderer.js", "interaction.js")  # run in this order
SHADERS = ("displace_vertex", "displace_fragment", "draw_vertex", "draw_fragment")
# The loop for browsers without WebGL 2; a longer period is shown faster.
LOOP_SIZE_PX, LOOP_FPS, LOOP_LONGEST_S = 320, 10.0, 10.0
# The shader holds a coordinate for every mode; WebGL2 guarantees room for about 200.
MOST_MODES = 128
# A motion grid finer than this makes a page of tens of megabytes that moves no better.
LARGEST_GRID_PX = 4 * 256 * 160


def page_modes(motion: Motion, name: str) -> Modes:
    """Return a motion's modes, no finer than a page can show; MotionFileError for a plain flow or the drift alone."""
    spectrum = motion.spectrum
    if spectrum is None or len(spectrum) < 2:
        held = "a plain flow" if spectrum is None else "a spectrum of one bin"
        right = "a motion file of generate_motion.py"
        raise MotionFileError(f"{name}: holds {held}, which has no modes to swing; right: {right}")
    if len(spectrum) > MOST_MODES + 1:
        logger.info("%s: the first %d of %d modes are used", name, MOST_MODES, len(spectrum) - 1)
        spectrum = spectrum[: MOST_MODES + 1]
    height, width = spectrum.shape[-2:]
    if height * width > LARGEST_GRID_PX:
        size = motion_grid_size(height, width, area=LARGEST_GRID_PX)
        logger.info("%s: motion grid reduced from %d x %d to %d x %d px", name, width, height, size[1], size[0])
        spectrum = resize_spectrum(spectrum, size)
    return Modes.from_spectrum(spectrum, motion.period_s).without_static_pixels()


def build_page(image: torch.Tensor, modes: Modes, title: str, motion: Motion) -> str:
    """Return the page of image (3, H, W) in [0, 1] as text; browsers without WebGL 2 show a loop of the motion."""
    codes, scale = modal.quantise(modes)
    height, width = modes.size
    constants = {
        "damping": DEFAULT_DAMPING,
        "limitPx": modal.LIMIT_FRACTION * max(modes.size),
        "holdHz": modal.HOLD_HZ,
        "extentPx": modal.EXTENT_PX,
        "stiffFractions": modal.STIFF_FRACTIONS,
        "zeroCode": modal.ZERO_CODE,
        "codeSteps": modal.CODE_STEPS,
        "leastVariance": modal.LEAST_VARIANCE,
    }
    description = {"height": height, "width": width, "scales": scale.tolist(), "constants": constants}
    description["frequenciesHz"] = modes.frequency_hz.tolist()
    values = {
        "TITLE": html.escape(title.encode(errors="replace").decode()),  # file names may be any bytes
        "IMAGE": _base64(encode_jpeg(image)),
        "LOOP": _base64(encode_loop(image, motion)),
        "DAMPING": str(DEFAULT_DAMPING),
        "DESCRIPTION": _inline_json(description),
        "MODES": _base64(zlib.compress(differences(codes).numpy().tobytes(), 9)),
        "SHADERS": _inline_json({name: read_source(f"{name}.glsl") for name in SHADERS}),
        "SCRIPT": "\n".join(read_source(name) for name in SCRIPTS),
    }
    return fill_template(read_source("page.html"), values)


def write_page(path: Path, image: torch.Tensor, modes: Modes, title: str, motion: Motion) -> None:
    page = build_page(image, modes, title, motion)
    write_text(path, page)
    logger.info("%s: %.1f MB, %d modes; open it in a browser", path, len(page) / 1e6, len(modes.shapes))


def differences(codes: torch.Tensor) -> torch.Tensor:
    """Return uint8 maps (..., H, W) minus their left, then upper neighbours, modulo 256: they deflate better."""
    for axis in (-1, -2):
        before = codes.roll(1, axis)
        before.select(axis, 0).zero_()
        codes = codes - before
    return codes


def encode_loop(image: torch.Tensor, motion: Motion) -> bytes:
    """Render one period of a motion, without interaction, in image space, as a small looping WebP."""
    scale = min(1.0, LOOP_SIZE_PX / max(image.shape[-2:]))
    small = resize_maps(image, tuple(max(16, round(side * scale)) for side in image.shape[-2:]))
    seconds = min(max(motion.period_s, 2 / LOOP_FPS), LOOP_LONGEST_S)
    playback = plan_playback(seconds=seconds, fps=LOOP_FPS, period_s=seconds, loop=True)
    frames = torch.cat(list(render_frames(small, motion.without_drift(), playback)))
    return encode_webp_loop(frames, fps=LOOP_FPS)


def fill_template(template: str, values: dict[str, str]) -> str:
    """Replace every {{NAME}} in one pass, so that values are never searched for names; all names must be used."""
    used = set(re.findall(r"\{\{([A-Z_]+)\}\}", template))
    if used != set(values):
        raise ValueError(f"template: expected the names {sorted(values)}, got {sorted(used)}")
    return re.sub(r"\{\{([A-Z_]+)\}\}", lambda match: values[match[1]], template)


def read_source(name: str) -> str:
    return (WEB_FOLDER / name).read_text(encoding="utf-8")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _inline_json(value: dict) -> str:
    return json.dumps(value).replace("<", "\\u003c")  # inside a <script> only a "<" could end it
