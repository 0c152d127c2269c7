"""Flags of the tables of benchmark.py."""

import argparse
from pathlib import Path

from animation.flags import CHECKPOINT, DEFAULT_SIZE_PX, FEWEST_STEPS, MOST_STEPS, SMALLEST_TILE_PX
from cli.flags import FIXED_PRECISION, add_shared_flags
from cli.parser import checked, non_negative_float, positive_float, positive_int, size_px, whole_number
from models.choices import SAMPLERS

DEFAULT_OUT = Path("outputs/benchmark")
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "samples" / "blossom.jpg"
PRESETS = ("tiny", "small", "paper")
SIZES = ((160, 256), (320, 512), (640, 1024), (1080, 1920))
SPLATS = ("sum", "average", "softmax", "gaussian", "ewa")
BACKENDS = ("reference", "cpu", "cuda")
FLOW_METHODS = ("dis_fast", "dis", "dis_x2", "farneback")
RENDERERS = ("preview", "softmax", "gaussian")

Group = argparse._ArgumentGroup
steps = whole_number(FEWEST_STEPS, MOST_STEPS)
tensor_size = checked(
    lambda text: tuple(int(side) for side in text.lower().split("x")),
    lambda size: len(size) == 4 and min(size) > 0,
    "BxCxHxW, each at least 1, such as 1x36x160x256",
)
# WIDTHxHEIGHT, read as (height, width)
image_size = checked(size_px, lambda size: min(size) >= 32, "at least 32x32")
grid_size = checked(size_px, lambda size: not any(side % 32 for side in size), "sides that are multiples of 32 px")
tile_px = f"0 for never, or at least {SMALLEST_TILE_PX} px"
tile_size = checked(int, lambda tile: tile == 0 or tile >= SMALLEST_TILE_PX, tile_px)


def add_tables(commands: argparse._SubParsersAction) -> None:
    """Add a subcommand for each table, with its flags and the shared ones that it honours."""
    for name, (help_text, add_flags, shared) in TABLES.items():
        parser = commands.add_parser(name, help=help_text)
        add_flags(parser.add_argument_group("what is measured"))
        repeats = {"default": 7 if name == "splatting" else 3, "help": "measure so often, take the median"}
        parser.add_argument("--repeats", type=positive_int, metavar="N", **repeats)
        out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT / name}
        workers = {"default": 1, "type": positive_int, "help": "processes that render, each with one thread"}
        add_shared_flags(parser, "seed", *shared.split(), "out", out=out, workers=workers, precision=FIXED_PRECISION)


def _add_networks(group: Group) -> None:
    add = group.add_mutually_exclusive_group().add_argument
    add("--checkpoint", **CHECKPOINT)
    add("--preset", choices=PRESETS, help="untrained networks of this size instead: time does not depend on weights")


def _add_animate(group: Group) -> None:
    add = group.add_argument
    add("--image", "--picture", type=Path, metavar="FILE", help="default: a sample of data/samples")
    add("--size", type=whole_number(16), default=DEFAULT_SIZE_PX, metavar="PX", help="long side")
    add("--frames", type=whole_number(2, 10_000), default=30, metavar="N", help="frames of each row")
    add("--steps", type=steps, default=20, metavar="N", help="network calls of the sampler")
    add("--checkpoint", **CHECKPOINT)


def _add_motion(group: Group) -> None:
    _add_networks(group)
    add = group.add_argument
    add("--grid", type=grid_size, default=(160, 256), metavar="WxH", help="motion grid, sides multiples of 32 px")
    add("--samplers", choices=SAMPLERS, nargs="+", default=list(SAMPLERS), metavar="NAME", help="to compare")
    add("--steps", type=steps, nargs="+", default=[20, 50], metavar="N", help="network calls, a row each")
    add("--guidance", type=non_negative_float, default=1.0, metavar="W", help="classifier-free guidance; 0 = none")
    add("--samples", type=positive_int, nargs="+", default=[1], metavar="N", help="in one batch, a row each")


def _add_render(group: Group) -> None:
    _add_networks(group)
    add = group.add_argument
    sizes = f"default: {' '.join(f'{width}x{height}' for height, width in SIZES)}"
    add("--sizes", type=image_size, nargs="+", metavar="WxH", help=sizes)
    methods = {"choices": RENDERERS, "default": list(RENDERERS), "metavar": "NAME"}
    add("--methods", nargs="+", help="the preview is always measured", **methods)
    add("--frames", type=positive_int, default=4, metavar="N", help="in each repeat")
    add("--batch-size", type=positive_int, metavar="N", help="frames computed together; default: by size and device")
    add("--tile", type=tile_size, metavar="PX", help="of the decoder, 0 = never; default: by size and memory")


def _add_splatting(group: Group) -> None:
    add = group.add_argument
    sizes = "1x36x160x256 8x36x160x256 1x36x512x512, on a CUDA GPU also 4x64x1080x1920"
    add("--sizes", type=tensor_size, nargs="+", metavar="BxCxHxW", help=f"default: {sizes}")
    add("--ops", choices=SPLATS, nargs="+", default=list(SPLATS), metavar="OP", help="to compare")
    add("--backends", choices=BACKENDS, nargs="+", metavar="NAME", help="default: all that can run on the device")


def _add_data(group: Group) -> None:
    add = group.add_argument
    add("--scenes", type=positive_int, default=8, metavar="N", help="rendered in each row, a kind after the other")
    add("--size", type=image_size, default=(160, 256), metavar="WxH", help="of the images")
    methods = {"choices": FLOW_METHODS, "default": list(FLOW_METHODS), "metavar": "NAME"}
    add("--methods", nargs="+", help="of optical flow", **methods)
    add("--pairs", type=positive_int, default=8, metavar="N", help="of frames that flow is estimated between")
    add("--data", type=Path, metavar="SET", help="clip set that training items are read from; default: none")


def _add_page(group: Group) -> None:
    add = group.add_argument
    add("--image", "--picture", type=Path, metavar="FILE", help="default: a sample of data/samples")
    sizes = "long sides of the image in the page, enlarged where it is smaller"
    add("--sizes", type=whole_number(32), nargs="+", default=[512, 1024], metavar="PX", help=sizes)
    add("--seconds", type=positive_float, default=5.0, metavar="S", help="over which frames are counted")
    minutes = "wind and pulls over which the growth of memory is measured; 0 = not"
    add("--minutes", type=non_negative_float, default=0.0, metavar="MIN", help=minutes)
    add("--browser", metavar="FILE", help="default: chromium, chromium-browser or google-chrome, whichever there is")
    add("--checkpoint", **CHECKPOINT)


# {table: help, its flags, the shared ones that it honours}
TABLES = {
    "animate": ("image -> video: each part, beside image-space rendering", _add_animate, "device precision"),
    "motion": ("predicting motion, beside sequential sampling", _add_motion, "device precision"),
    "render": ("frames a second and memory by size, beside the preview", _add_render, "device precision threads"),
    "splatting": ("operators and backends, beside hand-written torch and a copy", _add_splatting, "device threads"),
    "data": ("scenes for training a second, flow methods, reading a set", _add_data, "workers"),
    "page": ("the page of interact.py in a browser: first frame, frames a second", _add_page, "device"),
}
