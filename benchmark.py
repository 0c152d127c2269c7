"""Measure speed and memory, always beside a baseline in the same run."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from training.cli import Parser, add_shared_flags, command, positive_int, run

logger = logging.getLogger("__main__")


def make_parser() -> Parser:
    """Build the command line."""
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    animate = commands.add_parser("animate", help="picture -> video: each part, beside image-space rendering")
    group = animate.add_argument_group("what is measured")
    group.add_argument("--picture", type=Path, metavar="FILE", help="default: a sample of data/samples")
    group.add_argument("--size", type=positive_int, default=512, metavar="PX", help="long side")
    group.add_argument("--frames", type=positive_int, default=30, metavar="N", help="frames of each row")
    group.add_argument("--steps", type=positive_int, default=20, metavar="N", help="network calls of the sampler")
    group.add_argument("--repeats", type=positive_int, default=3, metavar="N", help="measure so often, take the median")
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: checkpoints/default")
    add_shared_flags(animate, "device", "precision", "seed", "out")
    return parser


def median_seconds(work: Callable[[], object], repeats: int, device_type: str) -> float:
    """Return the median wall-clock seconds of `work`, after one call that warms up."""
    import torch

    def timed() -> float:
        began = time.perf_counter()
        work()
        if device_type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    timed()
    return sorted(timed() for _ in range(repeats))[repeats // 2]


def peak_memory_mb(device_type: str) -> float:
    """Return the peak memory so far, MB: of the GPU's allocator, else of this process."""
    import torch

    if device_type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)


def measure_animate(args) -> list[dict]:
    """Time prediction and rendering of one picture; every render row says its speed relative to the preview."""
    from data.media import list_pictures, read_image
    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.motion_pipeline import MotionPipeline
    from models.rendering import render_frames
    from motion.looping import plan_playback
    from training.cli import choose_device
    from training.playback import load_renderer

    device = choose_device(args.device)
    checkpoint = args.checkpoint or DEFAULT_CHECKPOINT
    picture = args.picture or list_pictures([Path(__file__).parent / "data" / "samples"])[0]
    image = read_image(picture, max_side=args.size)
    began = time.perf_counter()
    pipeline = MotionPipeline.load(checkpoint)
    pipeline.to(device)
    rows = [{"row": "load the checkpoint", "seconds": time.perf_counter() - began}]

    options = {"seed": args.seed, "steps": args.steps}
    motion = pipeline.predict(image, **options)
    for guidance in (0.0, 1.0):
        seconds = median_seconds(
            lambda g=guidance: pipeline.predict(image, guidance=g, **options), args.repeats, device.type
        )
        name = f"predict motion, {args.steps} steps, {'guided' if guidance else 'no guidance'}"
        rows.append({"row": name, "seconds": seconds, "peak_memory_mb": peak_memory_mb(device.type)})

    playback = plan_playback(seconds=args.frames / 30, fps=30)
    renderers = {
        "render, image space (baseline)": (None, "softmax"),
        "render, softmax": (load_renderer(checkpoint, "softmax"), "softmax"),
        "render, gaussian": (load_renderer(checkpoint, "gaussian"), "gaussian"),
    }
    baseline = None
    for name, (model, operator) in renderers.items():

        def render(model=model, operator=operator) -> None:
            precision = "no" if device.type == "cpu" else args.precision
            frames = render_frames(
                image, motion, playback, model=model, operator=operator, device=device, precision=precision
            )
            for _ in frames:
                pass

        seconds = median_seconds(render, args.repeats, device.type)
        baseline = baseline or seconds
        rows.append(
            {
                "row": name,
                "seconds": seconds,
                "frames_per_s": playback.num_frames / seconds,
                "times_the_baseline": seconds / baseline,
                "peak_memory_mb": peak_memory_mb(device.type),
            }
        )
    return rows


@command(memory_flags=("--size",))
def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    args = make_parser().parse_args(argv)

    import torch

    from training.results import write_results

    rows = {"animate": measure_animate}[args.what](args)
    place = torch.cuda.get_device_name() if args.device != "cpu" and torch.cuda.is_available() else "CPU"
    notes = [
        f"{place}, {torch.get_num_threads()} threads, torch {torch.__version__}; median of {args.repeats}",
        f"picture at {args.size} px, {args.frames} frames",
        f"command: benchmark.py {' '.join(map(str, argv or sys.argv[1:]))}",
        "peak_memory_mb: of the process until then (CPU), of the allocator (GPU)",
    ]
    print(write_results(args.out or Path("outputs/benchmark"), rows, title=f"benchmark {args.what}", notes=notes))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
