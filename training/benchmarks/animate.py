"""benchmark.py animate: picture -> video, each part, beside image-space rendering."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from training.cli import UsageError, check_precision, positive_int
from training.playback import DEFAULT_SIZE_PX, add_rendering_flags, load_renderer, read_pictures
from training.sampling import check_steps

from . import DEFAULT_OUT, check_out_and_device

if TYPE_CHECKING:
    import torch

FEWEST_FRAMES = 2
SMALLEST_PX = 16
SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"


def add_flags(commands: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = commands.add_parser("animate", help="picture -> video: each part, beside image-space rendering")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--picture", type=Path, metavar="FILE", help="default: a sample of data/samples")
    group.add_argument("--size", type=positive_int, default=DEFAULT_SIZE_PX, metavar="PX", help="long side")
    group.add_argument("--frames", type=positive_int, default=30, metavar="N", help="frames of each row")
    group.add_argument("--steps", type=positive_int, default=20, metavar="N", help="network calls of the sampler")
    group.add_argument("--repeats", type=positive_int, default=3, metavar="N", help="measure so often, take the median")
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: checkpoints/default")
    out = {"metavar": "DIR", "help": "folder of the tables", "default": DEFAULT_OUT}
    add_rendering_flags(parser, "seed", "device", "out", out=out)


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the table; return it."""
    check_flags(args)
    device = check_out_and_device(args)
    check_precision(args.precision, device)

    from training.results import write_results

    from .measuring import machine

    rows = measure_animate(args, device)
    notes = [
        f"{machine(device)}; median of {args.repeats}",
        f"picture at {args.size} px, {args.frames} frames, precision {args.precision}, seed {args.seed}",
        args.command,
        "peak_memory_mb: in that row, of the allocator (GPU) or of the process with all that is loaded (CPU; where the "
        "system is not Linux, of the process until then)",
    ]
    return write_results(args.out, rows, title="benchmark animate", notes=notes)


def check_flags(args: argparse.Namespace) -> None:
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

    from .measuring import measure

    checkpoint = args.checkpoint or DEFAULT_CHECKPOINT
    picture = args.picture or list_pictures([SAMPLES])[0]
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
