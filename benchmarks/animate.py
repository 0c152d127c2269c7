"""benchmark.py animate: picture -> video, each part, beside image-space rendering."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from animation.flags import check_steps
from animation.rendering import load_renderer, read_images
from benchmarks import check_out_and_device
from cli.parser import UsageError, check_precision

if TYPE_CHECKING:
    import torch

FEWEST_FRAMES = 2
SMALLEST_PX = 16
SAMPLES = Path(__file__).resolve().parents[1] / "data" / "samples"


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the table; return it."""
    check_flags(args)
    device = check_out_and_device(args)
    check_precision(args.precision, device)

    from benchmarks.measuring import machine
    from data.result_tables import write_results

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
    from benchmarks.measuring import measure
    from data.media import list_images
    from models.checkpoints import DEFAULT_CHECKPOINT
    from models.motion_pipeline import MotionPipeline
    from models.rendering import render_frames
    from motion.looping import plan_playback

    checkpoint = args.checkpoint or DEFAULT_CHECKPOINT
    picture = args.picture or list_images([SAMPLES])[0]
    image, source = read_images(picture, args.size)
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

    options = {"seed": args.seed, "steps": args.steps, "precision": args.precision}
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
