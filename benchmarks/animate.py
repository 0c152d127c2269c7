"""benchmark.py animate: image -> video, each part, beside image-space rendering."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from animation.rendering import load_renderer, read_images
from benchmarks.flags import SAMPLE
from benchmarks.measuring import MEMORY_NOTE, busy_neighbours, machine, measure
from data.cpus import available_cpus
from models.checkpoints import DEFAULT_CHECKPOINT
from models.motion_pipeline import MotionPipeline
from models.rendering import render_frames
from motion.looping import plan_playback

PREDICTION, BASELINE = "predict motion", "render, image space (baseline)"
BUSY = "beside a busy process on each core"


def make_table(
    *, image: Path | None, size: int, frames: int, steps: int, checkpoint: Path | None,
    repeats: int, seed: int, device: torch.device, precision: str,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    checkpoint = checkpoint or DEFAULT_CHECKPOINT
    shown, source = read_images(image or SAMPLE, size)
    playback = plan_playback(seconds=frames / 30, fps=30)
    renderers = {operator: load_renderer(checkpoint, operator) for operator in ("softmax", "gaussian")}
    began = time.perf_counter()
    pipeline = MotionPipeline.from_pretrained(checkpoint).to(device)
    rows: list[dict[str, Any]] = [{"row": "load the checkpoint", "seconds": time.perf_counter() - began}]

    predict = partial(pipeline.predict, source, seed=seed, steps=steps, precision=precision)
    motion = predict()

    def render(**options: Any) -> None:
        for _ in render_frames(shown, motion, playback, device=device, precision=precision, **options):
            pass

    works: dict[str, Callable[[], object]] = {
        PREDICTION: partial(predict, guidance=0.0),
        "predict motion, guided": partial(predict, guidance=1.0),
        BASELINE: render,
    }
    works |= {f"render, {operator}": partial(render, model=model) for operator, model in renderers.items()}
    found = measure(works, repeats, device)
    for name, metrics in found.items():
        seconds = metrics["seconds"]
        row = {"row": name, "seconds": seconds, "peak_memory_mb": metrics["peak_memory_mb"]}
        if name.startswith("render"):
            baseline = found[BASELINE]["seconds"] if BASELINE in found else None
            row |= {"frames_per_s": frames / seconds, "times_the_baseline": baseline and seconds / baseline}
        rows.append(row)
    if device.type == "cpu":
        chosen = {name: works[name] for name in (PREDICTION, "render, softmax") if name in found}
        with busy_neighbours(available_cpus()):
            busy = measure(chosen, repeats, device)
        for name, metrics in busy.items():
            seconds = metrics["seconds"]
            rows.append({"row": f"{name}, {BUSY}", "seconds": seconds, "times_idle": seconds / found[name]["seconds"]})
    return rows, [
        f"{machine(device)}; median of {repeats} repeats in which all rows take turns",
        f"image at {size} px, {frames} frames, {steps} steps, precision {precision}, seed {seed}",
        MEMORY_NOTE,
    ]
