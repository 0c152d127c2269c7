"""benchmark.py render: frames a second and peak memory by size, with each network, beside the direct warp (preview)."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from animation.rendering import load_renderer
from benchmarks.flags import SIZES
from benchmarks.measuring import MEMORY_NOTE, machine, measure
from models.checkpoints import DEFAULT_CHECKPOINT
from models.frame_synthesis import PRESETS, FrameSynthesis
from models.rendering import choose_batch_size, choose_tile, render_frames
from motion.flow import motion_grid_size
from motion.looping import Playback
from motion.motion_file import Motion

logger = logging.getLogger(__name__)

PREVIEW, SMALL = "preview", "small"
# What the operators of splatting/fused.py are called in a profile.
SPLAT_EVENT = "image_dynamics::splat"
# Of the motion, px of its grid, and in bins of the spectrum.
AMPLITUDE_PX = 2.0
MOVING_BINS = 4


def load_network(method: str, checkpoint: Path | None, preset: str | None, seed: int) -> FrameSynthesis | None:
    """Load a renderer, or make an untrained one of a preset's size; None for the preview."""
    if method == PREVIEW:
        return None
    if method == SMALL:
        return FrameSynthesis(**PRESETS[SMALL]).eval()
    if preset is None:
        return load_renderer(checkpoint or DEFAULT_CHECKPOINT, method)
    torch.manual_seed(seed)
    return FrameSynthesis(operator=method, **PRESETS[preset]).eval()


def make_inputs(
    size: tuple[int, int], frames: int, seed: int, *, still: float = 0.0
) -> tuple[torch.Tensor, Motion, Playback]:
    """Make noise (3, H, W), a smooth motion of it but for the upper fraction `still`, and frames that all differ."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, *size, generator=generator)
    coarse = torch.randn(MOVING_BINS, 4, 5, 8, generator=generator) * AMPLITUDE_PX / MOVING_BINS
    grid = motion_grid_size(*size)
    spectrum = torch.zeros(MOVING_BINS + 1, 4, *grid)
    spectrum[1:] = torch.nn.functional.interpolate(coarse, size=grid, mode="bicubic")
    spectrum[..., : round(still * grid[0]), :] = 0
    phase = (torch.arange(frames, dtype=torch.float64) + 0.5) / frames
    return image, Motion(spectrum, image_size=size), Playback(phase, 30.0)


def make_table(
    *, sizes: Sequence[tuple[int, int]] | None, methods: Sequence[str], frames: int, checkpoint: Path | None,
    preset: str | None, repeats: int, seed: int, device: torch.device, **options: Any,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    """Time the methods, those of a size (H, W) in turn; return rows and notes. `options` are of `render_frames`."""
    methods = dict.fromkeys([PREVIEW, SMALL, *methods])
    networks = {method: load_network(method, checkpoint, preset, seed) for method in methods}
    rows = []
    for size in dict.fromkeys(sizes or SIZES):
        logger.info("%d x %d px", size[1], size[0])
        inputs = {still: make_inputs(size, frames, seed, still=still) for still in (0.0, 0.5)}

        def render(model: FrameSynthesis | None, inputs: tuple) -> None:
            for _ in render_frames(*inputs, model=model, device=device, **options):
                pass

        cases = {method: (model, 0.0) for method, model in networks.items()}
        cases |= {f"{name}, half still": (networks[name], 0.5) for name in networks if name not in (PREVIEW, SMALL)}
        works = {name: partial(render, model, inputs[still]) for name, (model, still) in cases.items()}
        found = measure(works, repeats, device)
        batch_size = options["batch_size"] or choose_batch_size(size, device)
        small, preview = (found[name]["seconds"] if name in found else None for name in (SMALL, PREVIEW))
        for name, metrics in found.items():
            (model, _), seconds, tile = cases[name], metrics["seconds"], options["tile"]
            if model is not None and tile is None:
                tile = choose_tile(model, size, batch_size, device)
            row = {"row": f"{size[1]}x{size[0]}, {name}", "frames_per_s": frames / seconds}
            row |= {"ms_a_frame": 1000 * seconds / frames, "times_small": small and small / seconds}
            row["times_preview"] = preview and seconds / preview
            row |= {"splat_percent": splat_percent(works[name], device), "peak_memory_mb": metrics["peak_memory_mb"]}
            rows.append(row | {"batch": batch_size, "tile_px": tile if model is not None else None})
    return rows, [
        f"{machine(device)}; networks: {preset or checkpoint or DEFAULT_CHECKPOINT}; precision "
        f"{options['precision']}, seed {seed}; the image is noise, and moves by about {AMPLITUDE_PX:g} px",
        f"each repeat encodes the image and renders {frames} frames, which are not written to a file; median of "
        f"{repeats} repeats in which the rows of a size take turns",
        "small: an untrained renderer of that preset, the size of earlier weights; times_small: over its frames_per_s; "
        "half still: the upper half of the image does not move",
        "times_preview: how many times as long as the preview of that size, a softmax splat of the image",
        "splat_percent: of the time of the GPU's kernels or the CPU's operators; '-' where plain torch splats",
        MEMORY_NOTE,
    ]


def splat_percent(work: Callable[[], object], device: torch.device) -> float | None:
    """Return the percentage of compute time (GPU kernels or CPU operators) in our splats; None where torch splats."""
    on_gpu = device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # above the level of every message
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as recorded:
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    # A GPU's kernels are events of their own, and count once more in the operators that launch them.
    clock, counted = ("device_time_total", DeviceType.CUDA) if on_gpu else ("cpu_time_total", DeviceType.CPU)
    events = recorded.key_averages()
    total = sum(getattr(event, f"self_{clock}") for event in events if event.device_type == counted)
    splats = [getattr(event, clock) for event in events if event.key == SPLAT_EVENT]
    return 100 * sum(splats) / total if splats and total > 0 else None
