"""Training datasets over clip sets, their augmentation, and the small rendered set that scripts fall back to.

A dataset is indexed by a SampleKey, and what it returns depends on nothing but the key: the order of samples, the
number of processes and a resumed run change no sample.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from motion.flow import resize_flow, resize_spectrum
from motion.spectrum import NUM_BINS, PERIOD_S, mean_displacement

from .clips import (
    KEPT,
    PAIRS_ONLY,
    STORED_BINS,
    ClipContent,
    ClipRow,
    ClipSet,
    ClipSetError,
    ClipSetWriter,
    Pair,
    SampleKey,
    motion_figures,
    write_clip,
)
from .media import resize_image

WeightedSets = Sequence[tuple[ClipSet, float]]

# a crop's share of the largest box that fits, by area
CROP_AREA = (0.4, 1.0)
# a crop may be this much wider or narrower than the sample it fills (natural logarithm of the ratio)
ASPECT_JITTER = 0.1
# a rendering crop is at most this much larger or smaller than the sample (natural logarithm of the side)
RENDERING_ZOOM = 0.25
COLOUR_JITTER = 0.15
# one in this many rendered scenes is a test scene
TEST_EVERY = 20
_SEEDS_A_SET = 1_000_000


# ---------------------------------------------------------------------------------------- which samples


def parse_set_flags(flags: Iterable[str | Path]) -> list[tuple[ClipSet, float]]:
    """Open the sets of `--data SETA SETB:0.3`: a folder each, with a weight after a colon (1 without)."""
    sets = []
    for flag in map(str, flags):
        folder, weight = flag, 1.0
        head, colon, tail = flag.rpartition(":")
        if colon and not Path(flag).is_dir():
            try:
                folder, weight = head, float(tail)
            except ValueError:
                folder = flag
        if not (weight > 0 and math.isfinite(weight)):
            raise ClipSetError(f"--data {flag}: the weight after the colon must be above 0")
        sets.append((ClipSet(folder), weight))
    return sets


class _WeightedItems:
    """The items of an epoch: each clip of a set of weight w comes w times, on average over the epochs.

    With w = .3 an epoch holds a third of the clips, the next epoch the following ones; with w = 2 each clip twice.
    """

    def __init__(
        self, sets: WeightedSets, split: str | None, status: tuple[str, ...], needs: Callable[[ClipSet, ClipRow], bool]
    ) -> None:
        self.parts: list[tuple[ClipSet, list[ClipRow], int]] = []
        for clip_set, weight in sets:
            rows = [row for row in clip_set.rows(split, status=status) if needs(clip_set, row)]
            if not rows:
                raise ClipSetError(
                    f"{clip_set.folder}: holds no clip for this of split {split or 'any'}; prepare more clips"
                )
            self.parts.append((clip_set, rows, max(1, round(len(rows) * weight))))
        if not self.parts:
            raise ClipSetError("--data: expected at least one clip set")

    def __len__(self) -> int:
        return sum(count for _, _, count in self.parts)

    def __getitem__(self, key: SampleKey) -> tuple[ClipSet, ClipRow]:
        item = key.item
        if item < 0:
            raise IndexError(item)
        for clip_set, rows, count in self.parts:
            if item < count:
                return clip_set, rows[(key.epoch * count + item) % len(rows)]
            item -= count
        raise IndexError(key.item)


class MotionDataset(Dataset):
    """Frame 0 and spectrum of kept clips, for the motion VAE and the U-Net.

    dataset[SampleKey] -> {"image" (3, H, W) in [0, 1], "spectrum" (K, 4, H, W) px, "confidence" (1, H, W)}.
    Augmented samples are flipped, reversed in time, cropped, zoomed and recoloured; others are the largest box of the
    sample's aspect in the middle of the picture. For portrait, square and wide samples use several sizes.
    """

    def __init__(
        self,
        sets: WeightedSets,
        *,
        split: str | None = "train",
        num_bins: int = NUM_BINS,
        size: tuple[int, int] = (160, 256),
        augment: bool = True,
    ) -> None:
        """Take the kept clips of a split (None: of all); `size` is (H, W) of the samples, any."""
        if not 1 <= num_bins <= STORED_BINS:
            raise ClipSetError(f"number of bins: clip sets hold {STORED_BINS}, {num_bins} are wanted")
        self.items = _WeightedItems(sets, split, (KEPT,), lambda _set, _row: True)
        self.num_bins, self.size, self.augment = num_bins, tuple(size), augment

    def __len__(self) -> int:
        """Return the number of items of an epoch."""
        return len(self.items)

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        """Read and augment one sample; ClipSetError names a clip that cannot be used."""
        clip_set, row = self.items[key]
        image = clip_set.first(row.id)  # (3, h, w)
        spectrum, confidence = clip_set.spectrum(row.id, self.num_bins)  # (K, 4, h, w), (1, h, w)
        rng = np.random.default_rng(key.seed) if self.augment else None
        top, left, height, width = choose_box(image.shape[-2:], self.size, rng, CROP_AREA)
        box = (..., slice(top, top + height), slice(left, left + width))
        image = resize_image(image[box], self.size)  # (3, H, W)
        spectrum = resize_spectrum(spectrum[box], self.size)  # (K, 4, H, W)
        confidence = resize_image(confidence[box], self.size)  # (1, H, W)
        if rng is not None:
            if rng.random() < 0.5:
                image, confidence = image.flip(-1), confidence.flip(-1)
                spectrum = flip_spectrum(spectrum)
            if rng.random() < 0.5:
                spectrum = reverse_spectrum(spectrum)
            image = jitter_colours(image, rng)
        return {"image": image.contiguous(), "spectrum": spectrum.contiguous(), "confidence": confidence.contiguous()}


class RenderingDataset(Dataset):
    """Frame 0, a later frame and the flow between them, for frame synthesis.

    dataset[SampleKey] -> {"image" and "target" (3, h, w) in [0, 1], "flow" (2, h, w) px of the sample, "reliability"
    (1, h, w), "importance" (1, h, w) px of the motion grid}. Unaugmented samples are the middle of the picture at
    its own scale where it is large enough.
    """

    def __init__(
        self,
        sets: WeightedSets,
        *,
        split: str | None = "train",
        size: tuple[int, int] = (128, 128),
        augment: bool = True,
    ) -> None:
        """Take the clips of a split (None: of all) that have pairs, those too short for a spectrum included."""
        self.items = _WeightedItems(sets, split, (KEPT, PAIRS_ONLY), lambda clip_set, row: clip_set.has_pairs(row.id))
        self.size, self.augment = tuple(size), augment

    def __len__(self) -> int:
        """Return the number of items of an epoch."""
        return len(self.items)

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        """Read and augment one sample; ClipSetError names a clip that cannot be used."""
        clip_set, row = self.items[key]
        image = clip_set.first(row.id)
        pairs, importance = clip_set.pairs(row.id)
        rng = np.random.default_rng(key.seed) if self.augment else None
        pair = pairs[(key.item + key.epoch) % len(pairs) if rng is None else int(rng.integers(len(pairs)))]
        grid = image.shape[-2:]
        # the share of the largest box at which the sample keeps the picture's scale
        own = min(1.0, max(self.size[0] / grid[0], self.size[1] / grid[1])) ** 2
        shares = (
            (own, own) if rng is None else (own * math.exp(-2 * RENDERING_ZOOM), own * math.exp(2 * RENDERING_ZOOM))
        )
        top, left, height, width = choose_box(grid, self.size, rng, (shares[0], min(shares[1], 1.0)))
        box = (..., slice(top, top + height), slice(left, left + width))
        sample = {
            "image": resize_image(image[box], self.size),  # (3, h, w)
            "target": resize_image(pair.target[box], self.size),  # (3, h, w)
            "flow": resize_flow(pair.flow[box], self.size),  # (2, h, w)
            "reliability": resize_image(pair.reliability[box], self.size),  # (1, h, w)
            # stays in px of the motion grid at every size (method.md section 3)
            "importance": resize_image(importance[box], self.size),  # (1, h, w)
        }
        if rng is not None:
            if rng.random() < 0.5:
                sample = {name: maps.flip(-1) for name, maps in sample.items()}
                sample["flow"] = sample["flow"] * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
            both = jitter_colours(torch.stack([sample["image"], sample["target"]]), rng)  # (2, 3, h, w)
            sample["image"], sample["target"] = both[0], both[1]
        return {name: maps.contiguous() for name, maps in sample.items()}


# ------------------------------------------------------------------------------------------ augmentation


def flip_spectrum(spectrum: torch.Tensor) -> torch.Tensor:
    """Mirror a packed spectrum (..., K, 4, H, W) left to right: positions swap, and dx changes its sign."""
    return spectrum.flip(-1) * spectrum.new_tensor([-1.0, -1.0, 1.0, 1.0]).view(4, 1, 1)


def reverse_spectrum(spectrum: torch.Tensor) -> torch.Tensor:
    """Play the motion backwards: F'_t = F_(T-t) - F_T, exactly.

    cos(2 pi k (T-t)/T) stays, sin changes its sign, and so does the drift: S is conjugated and D negated, which in the
    packed (..., K, 4, H, W) is one sign on every imaginary part. The photograph stays the same.
    """
    return spectrum * spectrum.new_tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1)


def choose_box(
    grid: Sequence[int], size: tuple[int, int], rng: np.random.Generator | None, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Choose the box (top, left, height, width) of a picture (H, W) that is resized to `size`.

    The box has the aspect of `size`, within the jitter, and a share of the area of the largest such box drawn from
    `area`; without `rng` it lies in the middle, without jitter, and has the largest share where this is 1.
    """
    aspect = size[1] / size[0]
    share = area[1]
    if rng is not None:
        aspect *= math.exp(rng.uniform(-ASPECT_JITTER, ASPECT_JITTER))
        share = rng.uniform(*area)
    height = min(grid[0], grid[1] / aspect)
    width = height * aspect
    height = min(grid[0], max(1, round(height * math.sqrt(share))))
    width = min(grid[1], max(1, round(width * math.sqrt(share))))
    free = (grid[0] - height, grid[1] - width)
    if rng is None:
        return free[0] // 2, free[1] // 2, height, width
    return int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1)), height, width


def jitter_colours(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change brightness, contrast, saturation and colour balance of (..., 3, H, W) mildly, all pictures alike."""
    gain, contrast, saturation = np.exp(rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3))
    balance = np.exp(rng.uniform(-COLOUR_JITTER / 3, COLOUR_JITTER / 3, 3))
    images = images * images.new_tensor(gain * balance).view(3, 1, 1)
    grey = images.mean(-3, keepdim=True)  # (..., 1, H, W)
    images = grey + (images - grey) * float(saturation)
    return (0.5 + (images - 0.5) * float(contrast)).clamp(0, 1)


# ---------------------------------------------------------------------------------------- rendered sets


def render_scene_set(
    folder: str | Path,
    num: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (160, 256),
    kinds: Sequence[str] | None = None,
    pairs: int = 2,
    workers: int = 0,
    progress: bool = False,
) -> ClipSet:
    """Render a clip set of procedural scenes; one that is there already goes on, up to `num` scenes.

    Args:
        folder: the set.
        num: how many scenes.
        seed: scene i has seed `seed * 1000000 + i`; one in 20 of them is a test scene.
        size: (H, W) px.
        kinds: of data.scenes.KINDS, taken in turn; None draws a kind for each.
        pairs: later frames with exact flow a scene, for rendering; 0 makes the set quicker.
        workers: processes; 0 or 1 renders in this one.
        progress: show a progress bar.

    Returns:
        The finished set, the same for any number of workers and interruptions.

    Raises:
        ClipSetError: the folder holds something else, or a set made with other settings.
    """
    settings = {"made_of": "scenes", "seed": seed, "size": list(size), "kinds": list(kinds or []), "pairs": pairs}
    with ClipSetWriter(folder, settings) as writer:
        jobs = []
        for index in range(num):
            split = "test" if index % TEST_EVERY == TEST_EVERY // 4 else "train"
            kind = kinds[index % len(kinds)] if kinds else None
            job = (writer.folder, seed * _SEEDS_A_SET + index, split, tuple(size), kind, pairs)
            if scene_id(job[1]) not in writer.rows:
                jobs.append(job)
        with closing(run_jobs(_render_scene, jobs, workers)) as rows:
            for row in show_progress(rows, len(jobs), "scene", progress):
                writer.add(row)
        return writer.finish()


def scene_id(seed: int) -> str:
    """Name the clip of a scene's seed."""
    return f"scene_{seed:09d}"


def _render_scene(folder: Path, seed: int, split: str, size: tuple[int, int], kind: str | None, pairs: int) -> ClipRow:
    from .scenes import make_scene

    scene = make_scene(seed, size=size, kind=kind)
    spectrum = scene.spectrum(STORED_BINS, PERIOD_S)  # (24, 4, H, W)
    # spread over the period, away from frame 0
    times_s = (np.arange(pairs) + np.random.default_rng([seed, 7]).random(pairs)) / max(pairs, 1) * PERIOD_S
    reliable = torch.ones(1, *size)
    content = ClipContent(
        scene.picture(),
        spectrum,
        pairs=tuple(Pair(scene.frame(t), scene.flow(t), reliable, t) for t in times_s.tolist()),
    )
    write_clip(folder, scene_id(seed), content)
    figures = motion_figures(mean_displacement(spectrum))
    return ClipRow(scene_id(seed), f"scene:{seed}:{scene.kind}", fps=30.0, frames=150, split=split, **figures)


def show_progress(items: Iterable[Any], total: int, unit: str, show: bool = True) -> Iterator[Any]:
    """Pass items on, with a progress bar where wanted and there is anything to wait for."""
    if not show or not total:
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, total=total, unit=unit)


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple], workers: int) -> Iterator[Any]:
    """Yield function(*job) of every job, as they end, from `workers` processes (0 or 1: in this one, in order).

    Each process computes with one thread. Closing the generator, or an error, ends the processes at once.
    """
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield function(*job)
        return
    # fork would copy threads of torch and OpenCV in an unknown state
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker)
    ended_well = False
    try:
        for done in as_completed([pool.submit(function, *job) for job in jobs]):
            yield done.result()
        ended_well = True
    finally:
        started = set() if ended_well else set(multiprocessing.active_children()) - before
        for process in started:
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        for process in started:
            process.join()


def _start_worker() -> None:
    import signal

    import cv2

    # Ctrl-C reaches the whole group: the parent ends its workers itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # and a parent that was killed cannot: without it they would wait for jobs for ever
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
