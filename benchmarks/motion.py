"""benchmark.py motion: predicting motion by sampler and steps, beside the frequencies sampled one after the other."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from animation.flags import check_steps
from benchmarks import check_out_and_device
from benchmarks.measuring import (
    ask_process,
    meter_is_right,
    peak_memory_mb,
    reset_peak_memory,
    resident_growth_mb,
    take_turns,
)
from cli.parser import UsageError, check_precision
from models.motion_pipeline import MotionPipeline, denoise, start_noise
from models.unet import UNET_PRESETS, FrequencyUNet
from models.vae import VAE_PRESETS, MotionVAE
from motion.spectrum import NUM_BINS

logger = logging.getLogger(__name__)


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the table; return it."""
    if args.checkpoint and args.preset:
        raise UsageError("--preset: --checkpoint has its own size; right: one of them")
    if any(side % 32 for side in args.grid):
        raise UsageError(f"--grid {args.grid[1]}x{args.grid[0]}: right: sides that are multiples of 32 px")
    for steps in args.steps:
        check_steps(steps)
    device = check_out_and_device(args)
    check_precision(args.precision, device)

    from benchmarks.measuring import machine
    from data.result_tables import write_results
    from models.checkpoints import DEFAULT_CHECKPOINT

    source = args.preset or str(args.checkpoint or DEFAULT_CHECKPOINT)
    common = {"source": source, "grid": args.grid, "guidance": args.guidance, "precision": args.precision}
    common |= {"seed": args.seed, "device": str(device)}
    jobs: list[Job] = [
        Job(sampler=sampler, steps=steps, samples=samples, **common)
        for samples in dict.fromkeys(args.samples)
        for sampler in dict.fromkeys(args.samplers)
        for steps in dict.fromkeys(args.steps)
    ]
    rows = measure_motion(jobs, args.repeats)
    notes = [machine(device), args.command, *notes_of(jobs[0], args.repeats)]
    return write_results(args.out, rows, title="benchmark motion", notes=notes)


BATCHED, SEQUENTIAL = "batched", "sequential (baseline)"
# Latents and the solver's memory of earlier steps are all there after so many: more steps take no more memory.
STEPS_FOR_MEMORY = 4


@dataclass(frozen=True)
class Job:
    """One row: what is sampled, how, and on what.

    Attributes:
        source: a checkpoint folder, or one of UNET_PRESETS for untrained networks of that size.
        grid: (H, W) px.
        sampler, steps, guidance, precision, seed: as in `MotionPipeline`.
        samples: motions of one picture in one batch.
        device: name.
        scheme: BATCHED or SEQUENTIAL.
    """

    source: str
    grid: tuple[int, int]
    sampler: str
    steps: int
    guidance: float
    precision: str
    seed: int
    samples: int
    device: str
    scheme: str = BATCHED

    def __str__(self) -> str:
        batch = f", {self.samples} samples" if self.samples > 1 else ""
        return f"{self.sampler}, {self.steps} steps{batch}, {self.scheme}"


def load_networks(job: Job) -> MotionPipeline:
    """Load the checkpoint of a job, or make its untrained networks, on its device."""
    if job.source in UNET_PRESETS:
        torch.manual_seed(job.seed)
        vae = MotionVAE(**VAE_PRESETS[job.source], motion_scale_px=[1.0] * NUM_BINS).eval()
        unet = FrequencyUNet(**UNET_PRESETS[job.source], factor=vae.factor).eval()
        pipeline = MotionPipeline(vae, unet, DDPMScheduler(prediction_type="v_prediction", clip_sample=False))
    else:
        pipeline = MotionPipeline.load(job.source)
    return pipeline.to(job.device)


def one_frequency(unet: FrequencyUNet) -> FrequencyUNet:
    """Return the same network, weights and all, for K = 1: what one chain of the sequential scheme runs."""
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    single = FrequencyUNet(**{**config, "num_bins": 1})
    if unet.config.mode != "volume":  # where the first and last layer see all frequencies at once
        # The magnitudes of all frequencies come with the condition; a chain is given its own.
        single.load_state_dict({**unet.state_dict(), **single.magnitude.state_dict(prefix="magnitude.")})
    return single.to(unet.device).eval()


def predict(pipeline: MotionPipeline, single: FrequencyUNet, image: Tensor, job: Job) -> Tensor:
    """Predict the motions of a picture (1, 3, H, W) by the scheme of the job: (1, M, K, 4, H, W) px."""
    options = {
        "sampler": job.sampler,
        "steps": job.steps,
        "guidance": job.guidance,
        "precision": job.precision,
    }
    if job.scheme == BATCHED:
        return pipeline(image, num_samples=job.samples, seed=job.seed, max_batch=job.samples, **options)
    with torch.no_grad():
        condition, expected_px = pipeline.read_images(image, job.precision)  # (1, Cc + K C, h, w)
        features, magnitudes = condition.tensor_split([pipeline.unet.config.condition_channels], dim=1)
        own = [torch.cat([features, part], dim=1) for part in magnitudes.split(pipeline.vae.latent_channels, dim=1)]
        shape = (pipeline.unet.config.num_bins, pipeline.vae.latent_channels, *condition.shape[-2:])
        spectra = []
        for sample in range(job.samples):
            noise = start_noise(shape, job.seed, sample).to(condition.device)  # (K, C, h, w)
            chains = [
                denoise(single, pipeline.scheduler, part, z[None, None], **options)
                for part, z in zip(own, noise, strict=True)
            ]
            latents = torch.cat(chains, dim=1)  # (1, K, C, h, w)
            spectra.append(pipeline.finish(latents, condition, expected_px, job.precision).cpu())  # (1, K, 4, H, W)
    return torch.stack(spectra, dim=1)  # (1, M, K, 4, H, W)


def measure_motion(jobs: Sequence[Job], repeats: int) -> list[dict]:
    """Return a row for each job, and one of the sequential scheme for each number of samples.

    All take turns. The sequential scheme runs with the sampler and steps of the first job; "times_sequential" is told
    for the rows of as many steps, since a step of each sampler is a call of the network and little more.
    """
    pipeline = load_networks(jobs[0])
    single = one_frequency(pipeline.unet)
    device = torch.device(jobs[0].device)
    image = torch.rand(1, 3, *jobs[0].grid, generator=torch.Generator().manual_seed(jobs[0].seed))
    listed: list[Job] = []
    for job in jobs:
        listed.append(job)
        if not any(other.samples == job.samples for other in listed[:-1]):
            listed.append(replace(job, scheme=SEQUENTIAL))
    works = [functools.partial(predict, pipeline, single, image, job) for job in listed]
    for job in {(job.scheme, job.samples): job for job in listed}.values():
        predict(pipeline, single, image, replace(job, steps=2))  # warms up
    logger.info("%d rows, %d laps", len(listed), repeats)
    seconds = take_turns(works, repeats, device)
    memory = [_memory_of(job, work, device) for job, work in zip(listed, works, strict=True)]
    parameters = {BATCHED: pipeline.unet, SEQUENTIAL: single}
    rows = []
    for job, taken, peak in zip(listed, seconds, memory, strict=True):
        slow_steps, slow = next(
            (other.steps, time)
            for other, time in zip(listed, seconds, strict=True)
            if other.scheme == SEQUENTIAL and other.samples == job.samples
        )
        rows.append(
            {
                "row": str(job),
                "seconds": taken,
                "seconds_a_sample": taken / job.samples,
                "ms_a_step": 1000 * taken / job.steps,
                "times_sequential": slow / taken if slow_steps == job.steps else None,
                "peak_memory_mb": peak,
                "parameters_m": sum(p.numel() for p in parameters[job.scheme].parameters()) / 1e6,
            }
        )
    return rows


def _memory_of(job: Job, work: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak memory of a row beyond the loaded networks, MB; on the CPU that of a fresh process."""
    if device.type == "cpu":
        code = "from benchmarks.motion import print_memory; print_memory()"
        job = replace(job, steps=min(job.steps, STEPS_FOR_MEMORY))
        asked = {**asdict(job), "threads": torch.get_num_threads()}
        # See `splat_benchmark.memory_on_cpu`.
        return ask_process(code, asked, MALLOC_MMAP_THRESHOLD_="65536")
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
    job = Job(**{**asked, "grid": tuple(asked["grid"])})
    pipeline = load_networks(job)
    single = one_frequency(pipeline.unet)
    image = torch.rand(1, 3, *job.grid)
    # Loads code and starts threads, which are no part of the figure.
    predict(pipeline, single, image, replace(job, steps=2, samples=1))
    work = functools.partial(predict, pipeline, single, image, job)
    print(json.dumps(resident_growth_mb(work) if meter_is_right() else None))


def notes_of(job: Job, repeats: int) -> list[str]:
    """Say what was measured and how."""
    memory = (
        "as torch's allocator has it"
        if job.device.startswith("cuda")
        else f"of a fresh process that samples up to {STEPS_FOR_MEMORY} steps (more take no more); empty where the "
        "system cannot tell (Linux can)"
    )
    return [
        f"networks: {job.source}; grid {job.grid[1]} x {job.grid[0]}, guidance {job.guidance:g} (both halves in one "
        f"call), precision {job.precision}, seed {job.seed}; the picture is noise",
        f"seconds: picture in, spectra out, decoding included; median of {repeats} laps in which all rows take turns, "
        "after a warm-up",
        "sequential: K chains of batch 1, one after the other, through the same network with K = 1 (its attention "
        "across frequencies sees one); times_sequential: at equal steps",
        f"peak_memory_mb: beyond the loaded networks; {memory}",
    ]
