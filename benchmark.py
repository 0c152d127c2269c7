"""Measure speed and memory, always beside a baseline in the same run."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from training.cli import (
    Parser,
    UsageError,
    add_shared_flags,
    check_precision,
    check_writable,
    choose_device,
    command,
    positive_int,
    run,
)
from training.playback import DEFAULT_SIZE_PX, add_rendering_flags, load_renderer, read_pictures
from training.sampling import check_steps

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("__main__")

DEFAULT_OUT = Path("outputs/benchmark")
FEWEST_FRAMES = 2
SMALLEST_PX = 16
SPLATS = ("sum", "average", "softmax", "gaussian", "ewa")


def make_parser() -> Parser:
    """Build the command line."""
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    animate = commands.add_parser("animate", help="picture -> video: each part, beside image-space rendering")
    group = animate.add_argument_group("what is measured")
    group.add_argument("--picture", type=Path, metavar="FILE", help="default: a sample of data/samples")
    group.add_argument("--size", type=positive_int, default=DEFAULT_SIZE_PX, metavar="PX", help="long side")
    group.add_argument("--frames", type=positive_int, default=30, metavar="N", help="frames of each row")
    group.add_argument("--steps", type=positive_int, default=20, metavar="N", help="network calls of the sampler")
    group.add_argument("--repeats", type=positive_int, default=3, metavar="N", help="measure so often, take the median")
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: checkpoints/default")
    out = {"metavar": "DIR", "help": "folder of the tables"}
    add_rendering_flags(animate, "seed", "device", "out", out={**out, "default": DEFAULT_OUT})

    splatting = commands.add_parser("splatting", help="operators and backends, beside hand-written torch and a copy")
    group = splatting.add_argument_group("what is measured")
    sizes = "1x36x160x256 8x36x160x256 1x36x512x512, on a CUDA GPU also 4x64x1080x1920"
    group.add_argument("--sizes", type=tensor_size, nargs="+", metavar="BxCxHxW", help=f"default: {sizes}")
    ops = f"default: all of {', '.join(SPLATS)}"
    group.add_argument("--ops", choices=SPLATS, nargs="+", metavar="OP", help=ops)
    group.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that can run on the device")
    group.add_argument("--repeats", type=positive_int, default=7, metavar="N", help="laps, of which the median counts")
    group.add_argument(
        "--threads", type=positive_int, metavar="N", help="of torch and the cpu backend; default: torch's"
    )
    out["default"] = DEFAULT_OUT / "splatting"
    add_shared_flags(splatting, "seed", "device", "out", out=out)
    return parser


def tensor_size(text: str) -> tuple[int, ...]:
    """Parse BxCxHxW."""
    numbers = [int(number) for number in text.lower().split("x")] if re.fullmatch(r"\d+([xX]\d+){3}", text) else [0]
    if not all(numbers):
        raise argparse.ArgumentTypeError(f"expected BxCxHxW, each at least 1, such as 1x36x160x256, got {text!r}")
    return tuple(numbers)


def measure(work: Callable[[], object], repeats: int, device: torch.device) -> dict:
    """Return the median wall-clock seconds of `work`, after one call that warms up, and its peak memory."""
    import torch

    def timed() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timed()
    seconds = sorted(timed() for _ in range(repeats))[repeats // 2]
    return {"seconds": seconds, "peak_memory_mb": peak_memory_mb(device)}


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the peak memory, MB: of the GPU's allocator since it was reset, else of this process; None: untold."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)


def check_flags(args: argparse.Namespace) -> torch.device:
    """Return the device; UsageError for flags that cannot be measured, before anything is loaded or made."""
    if args.what == "animate":
        check_animate_flags(args)
    if args.out.is_file():
        raise UsageError(f"--out {args.out}: is a file; right: a folder")
    # The tables lie in the folder, which is made last.
    check_writable(args.out / "results.json")
    device = choose_device(args.device)
    if args.what == "animate":
        check_precision(args.precision, device)
    return device


def check_animate_flags(args: argparse.Namespace) -> None:
    """Raise UsageError for a picture, a number of frames or of steps that cannot be measured."""
    from motion.looping import MAX_FRAMES

    if not FEWEST_FRAMES <= args.frames <= MAX_FRAMES:
        raise UsageError(f"--frames {args.frames}: right: {FEWEST_FRAMES} to {MAX_FRAMES}")
    if args.size < SMALLEST_PX:
        raise UsageError(f"--size {args.size}: right: at least {SMALLEST_PX} px")
    check_steps(args.steps)


def measure_animate(args: argparse.Namespace, device: torch.device) -> list[dict]:
    """Time prediction and rendering of one picture; every render row says its speed relative to the preview."""
    from data.media import list_pictures
    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.motion_pipeline import MotionPipeline
    from models.rendering import render_frames
    from motion.looping import plan_playback

    checkpoint = args.checkpoint or DEFAULT_CHECKPOINT
    picture = args.picture or list_pictures([Path(__file__).parent / "data" / "samples"])[0]
    image, source = read_pictures(picture, args.size)
    playback = plan_playback(seconds=args.frames / 30, fps=30)
    renderers = {
        "render, image space (baseline)": (None, "softmax"),
        "render, softmax": (load_renderer(checkpoint, "softmax"), "softmax"),
        "render, gaussian": (load_renderer(checkpoint, "gaussian"), "gaussian"),
    }
    began = time.perf_counter()
    pipeline = MotionPipeline.load(checkpoint)
    pipeline.to(device)
    rows = [{"row": "load the checkpoint", "seconds": time.perf_counter() - began}]

    options = {"seed": args.seed, "steps": args.steps}
    motion = pipeline.predict(source, **options)
    for guidance in (0.0, 1.0):
        name = f"predict motion, {args.steps} steps, {'guided' if guidance else 'no guidance'}"
        figures = measure(lambda g=guidance: pipeline.predict(source, guidance=g, **options), args.repeats, device)
        rows.append({"row": name, **figures})

    baseline = None
    for name, (model, operator) in renderers.items():

        def render(model=model, operator=operator) -> None:
            frames = render_frames(
                image, motion, playback, model=model, operator=operator, device=device, precision=args.precision
            )
            for _ in frames:
                pass

        figures = measure(render, args.repeats, device)
        baseline = baseline or figures["seconds"]
        rows.append(
            {
                "row": name,
                **figures,
                "frames_per_s": playback.num_frames / figures["seconds"],
                "times_the_baseline": figures["seconds"] / baseline,
            }
        )
    return rows


def animate(args: argparse.Namespace, device: torch.device, command_line: str) -> str:
    """Measure `benchmark.py animate`; return its table."""
    from training.results import write_results

    rows = measure_animate(args, device)
    notes = [
        f"{machine(device)}; median of {args.repeats}",
        f"picture at {args.size} px, {args.frames} frames, precision {args.precision}, seed {args.seed}",
        command_line,
        "peak_memory_mb: of the allocator in that row (GPU), of the process until then (CPU)",
    ]
    return write_results(args.out, rows, title="benchmark animate", notes=notes)


def splatting(args: argparse.Namespace, device: torch.device, command_line: str) -> str:
    """Measure `benchmark.py splatting`; return its tables."""
    import torch

    from training.splat_benchmark import choose_backends, choose_sizes, measure_splatting, notes_of, write_tables

    backends, sizes = choose_backends(args.backends, device), choose_sizes(args.sizes, device)
    ops = list(dict.fromkeys(args.ops or SPLATS))
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = measure_splatting(
        sizes=sizes, ops=ops, backends=backends, repeats=args.repeats, seed=args.seed, device=device
    )
    notes = [machine(device), command_line, *notes_of(device, args.repeats, args.seed)]
    return write_tables(args.out, rows, title="benchmark splatting", notes=notes)


def machine(device: torch.device) -> str:
    """Say what computes."""
    import torch

    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{place}, {torch.get_num_threads()} threads, torch {torch.__version__}"


@command(memory_flags=("--size", "--sizes"))
def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    args = make_parser().parse_args(argv)

    device = check_flags(args)
    command_line = f"command: benchmark.py {shlex.join(map(str, sys.argv[1:] if argv is None else argv))}"
    print({"animate": animate, "splatting": splatting}[args.what](args, device, command_line))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
