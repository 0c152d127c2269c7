"""benchmark.py data: rendering scenes for training, reading a clip set, and optical flow by method."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.measuring import machine, measure
from cluster.items import Workers, run_items
from data.clips import STORED_BINS, ClipSet, SampleKey
from data.datasets import MotionDataset
from data.optical_flow import estimate_flow
from data.scenes.scene import KINDS, Scene, make_scene
from motion.spectrum import FPS, NUM_FRAMES, PERIOD_S, fit_spectrum

Size = tuple[int, int]  # H, W
CPU = torch.device("cpu")
# Scenes of the baseline, which renders 150 flows for each.
SLOW_SCENES = 2
WARM_UP_SEED = 999_999
READ_ITEMS = 32
FLOW_BASELINE = "dis_fast"


def make_table(
    *, scenes: int, size: Size, methods: Sequence[str], pairs: int, data: Path | None, repeats: int, seed: int,
    workers: int,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    dataset = data and MotionDataset([(ClipSet(data), 1.0)], split=None, size=size)
    torch.set_num_threads(1)  # as the processes do that render a set
    cv2.setNumThreads(1)
    rows = measure_scenes(scenes, size=size, seed=seed, workers=workers)
    if dataset:
        keys = [SampleKey(item=number % len(dataset), seed=seed + number, epoch=0) for number in range(READ_ITEMS)]
        dataset[keys[0]]  # warms up
        began = time.perf_counter()
        for key in keys:
            dataset[key]
        rows.append(_row("set, motion item, augmented", (time.perf_counter() - began) / len(keys)))
    rows += measure_flow(methods, pairs, size=size, seed=seed, repeats=repeats)
    return rows, [
        f"{machine(CPU)}; scenes: {workers} processes; the rest: one; each with one thread",
        f"images of {size[1]} x {size[0]} px; seed {seed}; set: {data or 'none'}",
        f"scene, motion item: frame 0 and the spectrum ({STORED_BINS} bins) of a new scene; by fit: of the flow of "
        f"{NUM_FRAMES} frames",
        "scene, frame pair: frame 0, a later frame and the exact flow between them, of a new scene",
        f"flow, seconds: of one pair of frames, median of {repeats} passes over {pairs} pairs",
        f"times_as_fast: as the baseline of scenes; times_as_long: as {FLOW_BASELINE}",
    ]


def motion_item(scene: Scene) -> None:
    """Render what motion is trained with."""
    scene.frame(0.0)
    scene.spectrum(STORED_BINS, PERIOD_S)


def motion_item_by_fit(scene: Scene) -> None:
    """Render the same from the flow of every frame, as one would without knowing how the scene moves."""
    scene.frame(0.0)
    flow = torch.stack([scene.flow(frame / FPS) for frame in range(NUM_FRAMES)])  # (T, 2, H, W)
    fit_spectrum(flow, torch.arange(NUM_FRAMES) / FPS, num_bins=STORED_BINS)


def frame_pair(scene: Scene) -> None:
    """Render what the renderer is trained with."""
    for time_s in (0.0, PERIOD_S / 2):
        scene.frame(time_s)
    scene.flow(PERIOD_S / 2)


def seconds_of_scenes(work: Callable[[Scene], None], size: Size, seeds: Sequence[int]) -> float:
    """Return the seconds that a work takes for each new scene of `seeds`, their making included."""
    work(make_scene(WARM_UP_SEED, size=size, kind=KINDS[0]))  # compiles
    began = time.perf_counter()
    for seed in seeds:
        work(make_scene(seed, size=size, kind=KINDS[seed % len(KINDS)]))
    return (time.perf_counter() - began) / len(seeds)


def measure_scenes(count: int, *, size: Size, seed: int, workers: int) -> list[dict[str, Any]]:
    """Return how many scenes a second each work makes, by `workers` processes that all work meanwhile."""
    rates = {}
    for work in (motion_item, motion_item_by_fit, frame_pair):
        seeds = range(seed, seed + (min(count, SLOW_SCENES) if work is motion_item_by_fit else count))
        shares = [list(seeds[first::workers]) for first in range(min(workers, len(seeds)))]
        timed = partial(seconds_of_scenes, work, size)
        with run_items(timed, shares, Workers(workers), "process", progress=False) as found:
            rates[work] = sum(1 / done.value() for done in found)
    slow = rates[motion_item_by_fit]
    return [
        _row("scene, motion item", 1 / rates[motion_item], times_as_fast=rates[motion_item] / slow),
        _row("scene, motion item by fit (baseline)", 1 / slow, times_as_fast=1.0),
        _row("scene, frame pair", 1 / rates[frame_pair]),
    ]


def measure_flow(methods: Sequence[str], count: int, *, size: Size, seed: int, repeats: int) -> list[dict[str, Any]]:
    """Return the seconds a pair of each method on frames of scenes."""
    scenes = [make_scene(seed + number, size=size, kind=KINDS[number % len(KINDS)]) for number in range(count)]
    pairs = [(scene.frame(0.0), scene.frame(1.0)[None]) for scene in scenes]

    def estimate(method: str) -> None:
        for first, later in pairs:
            estimate_flow(first, later, method=method)

    works = {method: partial(estimate, method) for method in dict.fromkeys([FLOW_BASELINE, *methods])}
    seconds = {method: found["seconds"] / count for method, found in measure(works, repeats, CPU).items()}
    names = {method: f"flow, {method}" + " (baseline)" * (method == FLOW_BASELINE) for method in seconds}
    base = seconds[FLOW_BASELINE]
    return [_row(names[method], taken, times_as_long=taken / base) for method, taken in seconds.items()]


def _row(name: str, seconds: float, **times: float) -> dict[str, Any]:
    return {"row": name, "items_per_s": 1 / seconds, "seconds": seconds} | times
