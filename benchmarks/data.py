"""benchmark.py data: rendering scenes for training, reading a clip set, and optical flow by method."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch

from benchmarks import check_out_and_device
from cli.parser import UsageError
from data.clips import STORED_BINS, ClipSet, SampleKey
from data.datasets import MotionDataset
from data.jobs import run_jobs
from data.optical_flow import estimate_flow
from data.scenes.scene import KINDS, Scene, make_scene
from motion.spectrum import FPS, NUM_FRAMES, PERIOD_S, fit_spectrum


def make_table(args: argparse.Namespace) -> str:
    """Measure and write the table; return it."""
    args.device = "cpu"
    check_out_and_device(args)
    if min(args.size) < 32:
        raise UsageError(f"--size {args.size[1]}x{args.size[0]}: right: at least 32x32")

    import torch

    from data.clips import ClipSet
    from data.result_tables import write_results

    clip_set = ClipSet(args.data) if args.data else None
    rows = measure_scenes(args.scenes, size=args.size, seed=args.seed, workers=args.workers)
    if clip_set is not None:
        rows.append(measure_reading(clip_set, size=args.size, seed=args.seed))
    methods = ["dis_fast", *(name for name in dict.fromkeys(args.methods) if name != "dis_fast")]
    rows += measure_flow_methods(methods, args.pairs, size=args.size, seed=args.seed)
    notes = [
        f"CPU, torch {torch.__version__}; scenes: {args.workers} processes; the rest: one; each with one thread",
        f"pictures of {args.size[1]} x {args.size[0]} px, seed {args.seed}; set: {args.data or 'none'}",
        args.command,
        "scene, motion item: frame 0 and the spectrum (24 bins) of a new scene; baseline: the same spectrum fitted to "
        "its 150 frames' flow",
        "scene, frame pair: frame 0, a later frame and the exact flow between them, of a new scene",
        "times_baseline: so many times as fast (scenes) or so many times as long (flow, against dis_fast)",
    ]
    return write_results(args.out, rows, title="benchmark data", notes=notes)


Size = tuple[int, int]  # H, W

# Scenes of the baseline, which renders 150 flows for each.
SLOW_SCENES = 2
WARM_UP_SEED = 999_999
READ_ITEMS = 32


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and OpenCV compute with one thread, as the processes do that render a set."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def motion_item(scene: Scene) -> None:
    """Render what motion is trained with."""
    scene.picture()
    scene.spectrum(STORED_BINS, PERIOD_S)


def motion_item_by_fit(scene: Scene) -> None:
    """Render the same from the flow of every frame, as one would without knowing how the scene moves."""
    scene.picture()
    flow = torch.stack([scene.flow(frame / FPS) for frame in range(NUM_FRAMES)])  # (T, 2, H, W)
    fit_spectrum(flow, torch.arange(NUM_FRAMES) / FPS, num_bins=STORED_BINS)


def frame_pair(scene: Scene) -> None:
    """Render what the renderer is trained with."""
    scene.picture()
    time_s = float(np.random.default_rng([scene.seed, 7]).uniform(0.2, PERIOD_S))
    scene.frame(time_s)
    scene.flow(time_s)


WORKS: dict[str, Callable[[Scene], None]] = {
    "scene, motion item": motion_item,
    "scene, motion item by fit (baseline)": motion_item_by_fit,
    "scene, frame pair": frame_pair,
}


def seconds_of_scenes(name: str, seeds: Sequence[int], size: Size) -> float:
    """Return the seconds that a work takes for each new scene of `seeds`, their making included.

    The work is named, so that a process can be asked for it.
    """
    work = WORKS[name]
    work(make_scene(WARM_UP_SEED, size=size, kind=KINDS[0]))  # compiles
    began = time.perf_counter()
    for seed in seeds:
        work(make_scene(seed, size=size, kind=KINDS[seed % len(KINDS)]))
    return (time.perf_counter() - began) / len(seeds)


@one_thread()
def measure_scenes(count: int, *, size: Size, seed: int, workers: int) -> list[dict]:
    """Return how many scenes a second each work makes, by `workers` processes that all work meanwhile."""
    rates = {}
    for name in WORKS:
        number = min(count, SLOW_SCENES) if WORKS[name] is motion_item_by_fit else count
        shares = [[seed + place for place in range(number)][first::workers] for first in range(workers)]
        jobs = [(name, share, size) for share in shares if share]
        rates[name] = sum(1 / seconds for seconds in run_jobs(seconds_of_scenes, jobs, workers))
    slow = rates["scene, motion item by fit (baseline)"]
    return [
        {
            "row": name,
            "items_per_s": rate,
            "seconds": 1 / rate,
            "times_baseline": rate / slow if "motion item" in name else None,
        }
        for name, rate in rates.items()
    ]


@one_thread()
def measure_reading(clip_set: ClipSet, *, size: Size, seed: int) -> dict:
    """Return how many augmented motion items a second are read from a set."""
    dataset = MotionDataset([(clip_set, 1.0)], split=None, size=size)
    keys = [SampleKey(item=number % len(dataset), seed=seed + number, epoch=0) for number in range(READ_ITEMS)]
    dataset[keys[0]]
    began = time.perf_counter()
    for key in keys:
        dataset[key]
    seconds = (time.perf_counter() - began) / len(keys)
    return {"row": "set, motion item, augmented", "items_per_s": 1 / seconds, "seconds": seconds}


@one_thread()
def measure_flow_methods(methods: Sequence[str], count: int, *, size: Size, seed: int) -> list[dict]:
    """Return the seconds a pair of each method on frames of scenes; all take turns, the first is the baseline."""
    scenes = [make_scene(seed + number, size=size, kind=KINDS[number % len(KINDS)]) for number in range(count)]
    pairs = [(scene.picture(), scene.frame(1.0)[None]) for scene in scenes]
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for number, (first, later) in enumerate([pairs[0], *pairs]):
        for method in methods:
            began = time.perf_counter()
            estimate_flow(first, later, method=method)
            if number > 0:  # the first pair compiles
                seconds[method].append(time.perf_counter() - began)
    medians = {method: statistics.median(times) for method, times in seconds.items()}
    baseline = medians[methods[0]]
    return [
        {
            "row": f"flow, {method}" + (" (baseline)" if method == methods[0] else ""),
            "items_per_s": 1 / taken,
            "seconds": taken,
            "times_baseline": taken / baseline,
        }
        for method, taken in medians.items()
    ]
