"""Flags of the tables of benchmark.py."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from animation.flags import DEFAULT_SIZE_PX, FEWEST_STEPS, MOST_STEPS, SAMPLER_NAMES, SMALLEST_TILE_PX
from cli.flags import add_shared_flags
from cli.parser import Parser, non_negative_float, positive_float, positive_int, size_px, whole_number

DEFAULT_OUT = Path("outputs/benchmark")
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "samples" / "blossom.jpg"
PRESETS = ("tiny", "small", "paper")
SIZES = ((160, 256), (320, 512), (640, 1024), (1080, 1920))
SPLATS = ("sum", "average", "softmax", "gaussian", "ewa")
BACKENDS = ("reference", "cpu", "cuda")
FLOW_METHODS = ("dis_fast", "dis", "dis_x2", "farneback")
RENDERERS = ("preview", "softmax", "gaussian")

steps = whole_number(FEWEST_STEPS, MOST_STEPS)


def tensor_size(text: str) -> tuple[int, ...]:
    """Parse BxCxHxW."""
    numbers = [int(number) for number in text.lower().split("x")] if re.fullmatch(r"\d+([xX]\d+){3}", text) else [0]
    if not all(numbers):
        raise argparse.ArgumentTypeError(f"expected BxCxHxW, each at least 1, such as 1x36x160x256, got {text!r}")
    return tuple(numbers)


def image_size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT of an image; return (height, width)."""
    size = size_px(text)
    if min(size) < 32:
        raise argparse.ArgumentTypeError(f"expected at least 32x32, got {text!r}")
    return size


def grid_size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT of a motion grid; return (height, width)."""
    size = size_px(text)
    if any(side % 32 for side in size):
        raise argparse.ArgumentTypeError(f"expected sides that are multiples of 32 px, got {text!r}")
    return size


def _tile(text: str) -> int:
    tile = whole_number(0)(text)
    if 0 < tile < SMALLEST_TILE_PX:
        raise argparse.ArgumentTypeError(f"expected 0 for never, or at least {SMALLEST_TILE_PX} px, got {text!r}")
    return tile


def _add_parser(
    commands: argparse._SubParsersAction, name: str, description: str
) -> tuple[Parser, argparse._ArgumentGroup]:
    parser = commands.add_parser(name, help=description)
    return parser, parser.add_argument_group("what is measured")


def _add_common(parser: Parser, name: str, *flags: str, repeats: int = 3, **changes: dict) -> None:
    """Add --repeats, and those of the shared flags that the table honours."""
    help_text = "measure so often, take the median"
    parser.add_argument("--repeats", type=positive_int, default=repeats, metavar="N", help=help_text)
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / name}
    add_shared_flags(parser, "seed", *flags, "out", out=out, **changes)


def _add_networks(group: argparse._ArgumentGroup) -> None:
    """Add --checkpoint and --preset, of which one can be given."""
    add = group.add_mutually_exclusive_group().add_argument
    add("--checkpoint", type=Path, metavar="DIR", help="trained models; default: checkpoints/default")
    add("--preset", choices=PRESETS, help="untrained networks of this size instead: time does not depend on weights")


def add_animate_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser, group = _add_parser(commands, "animate", "image -> video: each part, beside image-space rendering")
    add = group.add_argument
    add("--image", "--picture", type=Path, metavar="FILE", help="default: a sample of data/samples")
    add("--size", type=whole_number(16), default=DEFAULT_SIZE_PX, metavar="PX", help="long side")
    add("--frames", type=whole_number(2, 10_000), default=30, metavar="N", help="frames of each row")
    add("--steps", type=steps, default=20, metavar="N", help="network calls of the sampler")
    add("--checkpoint", type=Path, metavar="DIR", help="default: checkpoints/default")
    _add_common(parser, "", "device", "precision")


def add_motion_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser, group = _add_parser(
        commands, "motion", "predicting motion by sampler and steps, beside sequential sampling"
    )
    add = group.add_argument
    _add_networks(group)
    add("--grid", type=grid_size, default=(160, 256), metavar="WxH", help="motion grid, sides multiples of 32 px")
    add("--samplers", choices=SAMPLER_NAMES, nargs="+", default=list(SAMPLER_NAMES), metavar="NAME", help="to compare")
    add("--steps", type=steps, nargs="+", default=[20, 50], metavar="N", help="network calls, a row each")
    add("--guidance", type=non_negative_float, default=1.0, metavar="W", help="classifier-free guidance; 0 = none")
    add("--samples", type=positive_int, nargs="+", default=[1], metavar="N", help="in one batch, a row each")
    _add_common(parser, "motion", "device", "precision")


def add_render_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser, group = _add_parser(commands, "render", "frames a second and memory by size, beside the preview")
    add = group.add_argument
    sizes = f"default: {' '.join(f'{width}x{height}' for height, width in SIZES)}"
    add("--sizes", type=image_size, nargs="+", metavar="WxH", help=sizes)
    methods = {"choices": RENDERERS, "default": list(RENDERERS), "metavar": "NAME"}
    add("--methods", nargs="+", help="the preview is always measured", **methods)
    add("--frames", type=positive_int, default=4, metavar="N", help="in each repeat")
    _add_networks(group)
    add("--batch-size", type=positive_int, metavar="N", help="frames computed together; default: by size and device")
    add("--tile", type=_tile, metavar="PX", help="of the decoder, 0 = never; default: by size and memory")
    add("--threads", type=positive_int, metavar="N", help="of a CPU; default: torch's")
    _add_common(parser, "render", "device", "precision")


def add_splatting_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser, group = _add_parser(commands, "splatting", "operators and backends, beside hand-written torch and a copy")
    add = group.add_argument
    sizes = "1x36x160x256 8x36x160x256 1x36x512x512, on a CUDA GPU also 4x64x1080x1920"
    add("--sizes", type=tensor_size, nargs="+", metavar="BxCxHxW", help=f"default: {sizes}")
    add("--ops", choices=SPLATS, nargs="+", default=list(SPLATS), metavar="OP", help="to compare")
    add("--backends", choices=BACKENDS, nargs="+", metavar="NAME", help="default: all that can run on the device")
    add("--threads", type=positive_int, metavar="N", help="of torch and the cpu backend; default: torch's")
    _add_common(parser, "splatting", "device", repeats=7)


def add_data_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser, group = _add_parser(commands, "data", "scenes for training a second, flow methods, reading a set")
    add = group.add_argument
    add("--scenes", type=positive_int, default=8, metavar="N", help="rendered in each row, a kind after the other")
    add("--size", type=image_size, default=(160, 256), metavar="WxH", help="of the images")
    methods = {"choices": FLOW_METHODS, "default": list(FLOW_METHODS), "metavar": "NAME"}
    add("--methods", nargs="+", help="of optical flow", **methods)
    add("--pairs", type=positive_int, default=8, metavar="N", help="of frames that flow is estimated between")
    add("--data", type=Path, metavar="SET", help="clip set that training items are read from; default: none")
    workers = {"default": 1, "type": positive_int, "help": "processes that render, each with one thread"}
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / "data"}
    add_shared_flags(parser, "seed", "workers", "out", out=out, workers=workers)


def add_page_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser, group = _add_parser(commands, "page", "the page of interact.py in a browser: first frame, frames a second")
    add = group.add_argument
    add("--image", "--picture", type=Path, metavar="FILE", help="default: a sample of data/samples")
    sizes = "long sides of the image in the page, enlarged where it is smaller"
    add("--sizes", type=whole_number(32), nargs="+", default=[512, 1024], metavar="PX", help=sizes)
    add("--seconds", type=positive_float, default=5.0, metavar="S", help="over which frames are counted")
    minutes = "wind and pulls over which the growth of memory is measured; 0 = not"
    add("--minutes", type=non_negative_float, default=0.0, metavar="MIN", help=minutes)
    add("--browser", metavar="FILE", help="default: chromium, chromium-browser or google-chrome, whichever there is")
    add("--checkpoint", type=Path, metavar="DIR", help="default: checkpoints/default")
    _add_common(parser, "page", "device")
