"""Flags of the tables of benchmark.py."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from animation.flags import DEFAULT_SIZE_PX, SAMPLER_NAMES
from benchmarks import DEFAULT_OUT
from cli.flags import add_shared_flags
from cli.parser import non_negative_float, non_negative_int, positive_float, positive_int, size_px

PRESETS = ("tiny", "small", "paper")


SIZES = ((160, 256), (320, 512), (640, 1024), (1080, 1920))


SPLATS = ("sum", "average", "softmax", "gaussian", "ewa")


def tensor_size(text: str) -> tuple[int, ...]:
    """Parse BxCxHxW."""
    numbers = [int(number) for number in text.lower().split("x")] if re.fullmatch(r"\d+([xX]\d+){3}", text) else [0]
    if not all(numbers):
        raise argparse.ArgumentTypeError(f"expected BxCxHxW, each at least 1, such as 1x36x160x256, got {text!r}")
    return tuple(numbers)


SIZES_PX = (512, 1024)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


FLOW_METHODS = ("dis_fast", "dis", "dis_x2", "farneback")


RENDERERS = ("preview", "softmax", "gaussian")


def add_animate_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("animate", help="picture -> video: each part, beside image-space rendering")
    group = parser.add_argument_group("what is measured")
    group.add_argument("--picture", type=Path, metavar="FILE", help="default: a sample of data/samples")
    group.add_argument("--size", type=positive_int, default=DEFAULT_SIZE_PX, metavar="PX", help="long side")
    group.add_argument("--frames", type=positive_int, default=30, metavar="N", help="frames of each row")
    group.add_argument("--steps", type=positive_int, default=20, metavar="N", help="network calls of the sampler")
    group.add_argument("--repeats", type=positive_int, default=3, metavar="N", help="measure so often, take the median")
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: checkpoints/default")
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT}
    add_shared_flags(parser, "seed", "device", "out", "precision", out=out)


def add_motion_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("motion", help="predicting motion by sampler and steps, beside sequential sampling")
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    add("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")
    add("--preset", choices=PRESETS, help="untrained networks of this size instead: time does not depend on weights")
    add("--grid", type=size_px, default=(160, 256), metavar="WxH", help="motion grid, sides multiples of 32 px")
    add("--samplers", choices=SAMPLER_NAMES, nargs="+", default=list(SAMPLER_NAMES), metavar="NAME", help="to compare")
    add("--steps", type=positive_int, nargs="+", default=[20, 50], metavar="N", help="network calls, a row each")
    add("--guidance", type=non_negative_float, default=1.0, metavar="W", help="classifier-free guidance; 0 = none")
    add("--samples", type=positive_int, nargs="+", default=[1], metavar="N", help="in one batch, a row each")
    add("--repeats", type=positive_int, default=3, metavar="N", help="laps, of which the median counts")
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "motion"}
    add_shared_flags(parser, "seed", "device", "precision", "out", out=out)


def add_render_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("render", help="frames a second and memory by size, beside the preview")
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    sizes = f"default: {' '.join(f'{width}x{height}' for height, width in SIZES)}"
    add("--sizes", type=size_px, nargs="+", metavar="WxH", help=sizes)
    add(
        "--methods",
        choices=RENDERERS,
        nargs="+",
        default=list(RENDERERS),
        metavar="NAME",
        help="the preview comes along",
    )
    add("--frames", type=positive_int, default=4, metavar="N", help="in each lap")
    add("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")
    add("--preset", choices=PRESETS, help="untrained networks of this size instead: time does not depend on weights")
    add("--batch-size", type=positive_int, metavar="N", help="frames computed together; default: by size and device")
    add("--tile", type=non_negative_int, metavar="PX", help="of the decoder, 0 = never; default: by size and memory")
    add("--threads", type=positive_int, metavar="N", help="of a CPU; default: torch's")
    add("--repeats", type=positive_int, default=3, metavar="N", help="laps, of which the median counts")
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "render"}
    add_shared_flags(parser, "seed", "device", "out", "precision", out=out)


def add_splatting_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("splatting", help="operators and backends, beside hand-written torch and a copy")
    group = parser.add_argument_group("what is measured")
    sizes = "1x36x160x256 8x36x160x256 1x36x512x512, on a CUDA GPU also 4x64x1080x1920"
    group.add_argument("--sizes", type=tensor_size, nargs="+", metavar="BxCxHxW", help=f"default: {sizes}")
    ops = f"default: all of {', '.join(SPLATS)}"
    group.add_argument("--ops", choices=SPLATS, nargs="+", metavar="OP", help=ops)
    group.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that can run on the device")
    group.add_argument("--repeats", type=positive_int, default=7, metavar="N", help="laps, of which the median counts")
    group.add_argument(
        "--threads", type=positive_int, metavar="N", help="of torch and the cpu backend; default: torch's"
    )
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "splatting"}
    add_shared_flags(parser, "seed", "device", "out", out=out)


def add_data_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("data", help="scenes for training a second, flow methods, reading a set")
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    add("--scenes", type=positive_int, default=8, metavar="N", help="rendered in each row, a kind after the other")
    add("--size", type=size_px, default=(160, 256), metavar="WxH", help="of the pictures")
    add(
        "--methods", choices=FLOW_METHODS, nargs="+", default=list(FLOW_METHODS), metavar="NAME", help="of optical flow"
    )
    add("--pairs", type=positive_int, default=8, metavar="N", help="of frames that flow is estimated between")
    add("--data", type=Path, metavar="SET", help="clip set that training items are read from; default: none")
    workers = {"default": 1, "type": positive_int, "help": "processes that render, each with one thread"}
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "data"}
    add_shared_flags(parser, "seed", "workers", "out", out=out, workers=workers)


def add_page_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("page", help="the page of interact.py in a browser: first frame, frames a second")
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    add("--picture", type=Path, metavar="FILE", help="default: a sample of data/samples")
    add("--sizes", type=positive_int, nargs="+", default=list(SIZES_PX), metavar="PX",
        help="long sides of the picture in the page, enlarged where it is smaller")  # fmt: skip
    add("--seconds", type=positive_float, default=5.0, metavar="S", help="over which frames are counted")
    add("--minutes", type=non_negative_float, default=0.0, metavar="MIN",
        help="wind and pulls over which the growth of memory is measured; 0 = not")  # fmt: skip
    add("--browser", metavar="FILE", help=f"default: {', '.join(BROWSERS)}, whichever there is")
    add("--repeats", type=positive_int, default=3, metavar="N", help="openings, of which the median counts")
    add("--checkpoint", type=Path, metavar="DIR", help="default: checkpoints/default")
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "page"}
    add_shared_flags(parser, "seed", "device", "out", out=out)
