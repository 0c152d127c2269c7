"""benchmark.py render: frames a second and peak memory by size, with each network, beside the preview."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from animation.flags import check_tile
from animation.rendering import load_renderer
from benchmarks import check_out_and_device
from benchmarks.flags import SIZES
from benchmarks.measuring import (
    ask_process,
    meter_is_right,
    peak_memory_mb,
    reset_peak_memory,
    resident_growth_mb,
    take_turns,
)
from cli.parser import UsageError, check_precision
from models.frame_synthesis import PRESETS, FrameSynthesis
from models.rendering import choose_batch_size, choose_tile, render_frames
from motion.flow import motion_grid_size
from motion.looping import Playback
from motion.motion_file import Motion

logger = logging.getLogger(__name__)

SMALLEST_PX = 16


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the table; return it."""
    if args.checkpoint and args.preset:
        raise UsageError("--preset: --checkpoint has its own size; right: one of them")
    sizes = list(dict.fromkeys(args.sizes or SIZES))
    for height, width in sizes:
        if min(height, width) < SMALLEST_PX:
            raise UsageError(f"--sizes {width}x{height}: right: at least {SMALLEST_PX}x{SMALLEST_PX}")
    check_tile(args.tile)
    device = check_out_and_device(args)
    check_precision(args.precision, device)

    import torch

    from benchmarks.measuring import machine
    from data.result_tables import write_results
    from models.checkpoints import DEFAULT_CHECKPOINT

    if args.threads:
        torch.set_num_threads(args.threads)
    common = {"source": args.preset or str(args.checkpoint or DEFAULT_CHECKPOINT), "frames": args.frames}
    common |= {"precision": args.precision, "batch_size": args.batch_size, "tile": args.tile}
    common |= {"seed": args.seed, "device": str(device)}
    jobs = [Job(method=method, size=size, **common) for size in sizes for method in args.methods]
    rows = measure_render(jobs, args.repeats)
    notes = [machine(device), args.command, *notes_of(jobs[0], args.repeats)]
    return write_results(args.out, rows, title="benchmark render", notes=notes)


PREVIEW = "preview"
# What the operators of splatting/fused.py are called in a profile.
SPLAT_EVENT = "image_dynamics::splat"
# Of the motion, px of its grid, and in bins of the spectrum.
AMPLITUDE_PX = 2.0
MOVING_BINS = 4


@dataclass(frozen=True)
class Job:
    """One row.

    Attributes:
        source: a checkpoint's folder, or a preset of models.frame_synthesis, untrained.
        method: one of RENDERERS.
        size: (H, W) px.
        frames: rendered in a lap.
        precision: of the convolutions.
        batch_size, tile: None: as render_frames chooses them.
        seed, device: of everything random; where to compute.
    """

    source: str
    method: str
    size: tuple[int, int]
    frames: int
    precision: str
    batch_size: int | None
    tile: int | None
    seed: int
    device: str

    def __str__(self) -> str:
        return f"{self.size[1]}x{self.size[0]}, {self.method}"


def load_network(job: Job) -> FrameSynthesis | None:
    """Load the renderer of a job, or make an untrained one; None for the preview."""
    if job.method == PREVIEW:
        return None
    if job.source not in PRESETS:
        return load_renderer(Path(job.source), job.method)
    torch.manual_seed(job.seed)
    return FrameSynthesis(operator=job.method, **PRESETS[job.source]).eval()


def make_image(job: Job) -> tuple[torch.Tensor, Motion, Playback]:
    """Make a picture (3, H, W) of noise, a smooth motion of it, and the frames to play, none of them at rest."""
    generator = torch.Generator().manual_seed(job.seed)
    image = torch.rand(3, *job.size, generator=generator)
    coarse = torch.randn(MOVING_BINS, 4, 5, 8, generator=generator) * AMPLITUDE_PX / MOVING_BINS
    grid = motion_grid_size(*job.size)
    spectrum = torch.zeros(MOVING_BINS + 1, 4, *grid)
    spectrum[1:] = torch.nn.functional.interpolate(coarse, size=grid, mode="bicubic")
    phase = (torch.arange(job.frames, dtype=torch.float64) + 0.5) / job.frames
    return image, Motion(spectrum, image_size=job.size), Playback(phase, 30.0, True)


def render(job: Job, model: FrameSynthesis | None, picture: tuple[torch.Tensor, Motion, Playback]) -> None:
    """Render the frames of a job and drop them."""
    frames = render_frames(
        *picture,
        model=model,
        device=job.device,
        batch_size=job.batch_size,
        precision=job.precision,
        tile=job.tile,
    )
    for _ in frames:
        pass


def measure_render(jobs: Sequence[Job], repeats: int) -> list[dict]:
    """Return a row for each job; those of a size take turns, and the preview of that size is their baseline."""
    device, rows = torch.device(jobs[0].device), []
    for size in dict.fromkeys(job.size for job in jobs):
        methods = [job.method for job in jobs if job.size == size]
        first = next(job for job in jobs if job.size == size)
        listed = [replace(first, method=method) for method in dict.fromkeys([PREVIEW, *methods])]
        picture, networks = make_image(first), [load_network(job) for job in listed]
        works = [functools.partial(render, job, model, picture) for job, model in zip(listed, networks, strict=True)]
        for job, work in zip(listed, works, strict=True):
            logger.info("%s", job)
            work()
        seconds = take_turns(works, repeats, device)
        for job, model, work, taken in zip(listed, networks, works, seconds, strict=True):
            rows.append(
                {
                    "row": str(job),
                    "frames_per_s": job.frames / taken,
                    "ms_a_frame": 1000 * taken / job.frames,
                    "times_preview": taken / seconds[0],
                    "splat_percent": splat_percent(work, device),
                    "peak_memory_mb": _memory_of(job, work, device),
                    **_chosen(job, model, device),
                }
            )
    return rows


def _chosen(job: Job, model: FrameSynthesis | None, device: torch.device) -> dict:
    batch_size = job.batch_size or choose_batch_size(job.size, device)
    tile = job.tile
    if model is not None and tile is None:
        tile = choose_tile(model, job.size, batch_size, device)
    return {"batch": batch_size, "tile_px": tile if model is not None else None}


def splat_percent(work: Callable[[], object], device: torch.device) -> float | None:
    """Return the share of the device's time that `work` spends in our splatting operators, %; None: they are not used.

    Of a GPU the time of its kernels, of a CPU the time of the operators.
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as recorded:
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = recorded.key_averages()
    of_all, of_one = (
        ("self_device_time_total", "device_time_total")
        if on_gpu
        else (
            "self_cpu_time_total",
            "cpu_time_total",
        )
    )
    total = sum(getattr(event, of_all) for event in events)
    splats = [getattr(event, of_one) for event in events if event.key == SPLAT_EVENT]
    return 100 * sum(splats) / total if splats and total > 0 else None


def _memory_of(job: Job, work: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak memory of a row beyond the loaded network, MB; on the CPU that of a fresh process."""
    if device.type == "cpu":
        code = "from benchmarks.render import print_memory; print_memory()"
        return ask_process(code, {**asdict(job), "threads": torch.get_num_threads()})
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    reset_peak_memory(device)
    work()
    return peak_memory_mb(device) - before / 1e6


def print_memory() -> None:
    """Be the fresh process of a row: print by how much it grows, or null where the meter cannot be trusted."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked.pop("threads"))
    job = Job(**{**asked, "size": tuple(asked["size"])})
    model = load_network(job)
    small = replace(job, size=(32, 32), frames=1)
    render(small, model, make_image(small))  # loads code and starts threads, which are no part of the figure
    print(json.dumps(resident_growth_mb(lambda: render(job, model, make_image(job))) if meter_is_right() else None))


def notes_of(job: Job, repeats: int) -> list[str]:
    """Say what was measured and how."""
    return [
        f"networks: {job.source}; precision {job.precision}, seed {job.seed}; a picture of noise, encoded in each lap, "
        f"that moves by about {AMPLITUDE_PX:g} px of its motion grid; {job.frames} frames a lap, not written to a file",
        f"median of {repeats} laps in which the rows of a size take turns, after a warm-up; times_preview: so many "
        "times as long as the preview (softmax splat of the picture) of that size",
        "splat_percent: of the time of the GPU's kernels, or of the CPU's operators; '-': plain torch splats",
        "peak_memory_mb: beyond the loaded network; of torch's allocator, or of a fresh process on a CPU (Linux only)",
        "batch, tile_px: frames computed together; tiles of the decoder, 0: the whole picture at once",
    ]
