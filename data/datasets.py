"""Training datasets over clip sets, their augmentation, and the small rendered set that scripts fall back to.

A dataset is indexed by a SampleKey, and what it returns depends on nothing but the key: the order of samples, the
number of processes and a resumed run change no sample.
"""

from __future__ import annotations

import functools
import hashlib
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from motion.spectrum import NUM_BINS, PERIOD_S, mean_displacement

from .augmentation import draw_geometry, jitter_colours
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
    rows_of_set,
    write_clip,
)

WeightedSets = Sequence[tuple[ClipSet, float]]

# weights above this are a slip of the finger: an epoch would have no end
LARGEST_WEIGHT = 1000.0
# a rendering crop is at most this much larger or smaller than the sample (natural logarithm of the side)
RENDERING_ZOOM = 0.25
# one in this many rendered scenes is a test scene
TEST_EVERY = 20
_SEEDS_A_SET = 1_000_000


# ---------------------------------------------------------------------------------------- which samples


def parse_set_flags(flags: Iterable[str | Path]) -> list[tuple[ClipSet, float]]:
    """Open the sets of `--data SETA SETB:0.3`: a folder each, with a weight after a colon (1 without).

    Raises:
        ClipSetError: not a set, a bad weight, a set named twice, or a source that one set trains on and another tests.
    """
    sets: list[tuple[ClipSet, float]] = []
    for flag in map(str, flags):
        folder, weight = _split_weight(flag)
        clip_set = ClipSet(folder)
        if any(clip_set.folder.resolve() == other.folder.resolve() for other, _ in sets):
            raise ClipSetError(f"--data {flag}: named twice; name a set once, SET:2 doubles its clips")
        sets.append((clip_set, weight))
    _check_sources([clip_set for clip_set, _ in sets])
    return sets


def _split_weight(flag: str) -> tuple[str, float]:
    head, colon, tail = flag.rpartition(":")
    if not colon or Path(flag).is_dir():  # a folder may have a colon in its name
        return flag, 1.0
    if not head:
        raise ClipSetError(f"--data {flag}: names no set before the colon; right: SET or SET:WEIGHT")
    try:
        weight = float(tail)
    except ValueError:
        raise ClipSetError(
            f"--data {flag}: not a clip set, and {tail!r} is no weight; right: SET or SET:WEIGHT, such as {head}:0.3"
        ) from None
    if not 0 < weight <= LARGEST_WEIGHT:
        raise ClipSetError(
            f"--data {flag}: the weight after the colon must be above 0 and at most {LARGEST_WEIGHT:.0f}"
        )
    return head, weight


def _check_sources(sets: Sequence[ClipSet]) -> None:
    """Refuse sets of which one trains on a source that another tests with: held-out figures would mean nothing."""
    used = (KEPT, PAIRS_ONLY)
    for tested in sets:
        held_out = {row.source for row in tested.rows("test", status=used)}
        for clip_set in sets:
            rows = clip_set.rows("train", status=used) if clip_set is not tested else []
            source = next((row.source for row in rows if row.source in held_out), None)
            if source is not None:
                raise ClipSetError(
                    f"--data: {source} is a training clip in {clip_set.folder} and a test clip in {tested.folder}; "
                    "give it the same split in both"
                )


class _Part(NamedTuple):
    """The clips of one set, and how many items of an epoch are theirs."""

    clip_set: ClipSet
    rows: list[ClipRow]
    count: int


class WeightedItems:
    """The items of an epoch: each clip of a set of weight w comes w times, on average over the epochs.

    With w = 2 an epoch holds each clip twice. With w = .3 it holds a third of the clips and the next epochs the others,
    in an order that is drawn anew for each round through the set: what goes round with the epochs, the shapes of
    cached latents above all, meets every clip.
    """

    def __init__(
        self, sets: WeightedSets, split: str | None, status: tuple[str, ...], needs: Callable[[ClipSet, ClipRow], bool]
    ) -> None:
        self.parts: list[_Part] = []
        for clip_set, weight in sets:
            rows = [row for row in clip_set.rows(split, status=status) if needs(clip_set, row)]
            if not rows:
                raise ClipSetError(
                    f"{clip_set.folder}: holds no clip for this of split {split or 'any'}; prepare more clips"
                )
            self.parts.append(_Part(clip_set, rows, max(1, round(len(rows) * weight))))
        if not self.parts:
            raise ClipSetError("--data: expected at least one clip set")

    def __len__(self) -> int:
        return sum(part.count for part in self.parts)

    def __getitem__(self, key: SampleKey) -> tuple[ClipSet, ClipRow]:
        number, index, _ = self.place(key)
        return self.parts[number].clip_set, self.parts[number].rows[index]

    def place(self, key: SampleKey) -> tuple[int, int, int]:
        """Return which set a key's clip belongs to, which of its rows it is, and how often it came in this epoch."""
        item = key.item
        if item < 0:
            raise IndexError(item)
        for number, (_, rows, count) in enumerate(self.parts):
            if item >= count:
                item -= count
                continue
            times, rest = divmod(count, len(rows))
            if item < times * len(rows):
                return number, item % len(rows), item // len(rows)
            round_, place = divmod(key.epoch * rest + item - times * len(rows), len(rows))
            return number, int(_round_order(len(rows), number, round_)[place]), times
        raise IndexError(key.item)

    def repeats(self, number: int) -> int:
        """Return how often a clip of set `number` may come in an epoch, at most."""
        return -(-self.parts[number].count // len(self.parts[number].rows))


@functools.lru_cache(maxsize=16)
def _round_order(length: int, number: int, round_: int) -> np.ndarray:
    """Return the order in which round `round_` goes through the clips of set `number`."""
    # SeedSequence is stable across numpy versions; Generator.permutation is not promised to be.
    return np.argsort(np.random.SeedSequence([number, round_]).generate_state(length, np.uint64), kind="stable")


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
        self.items = WeightedItems(sets, split, (KEPT,), lambda _set, _row: True)
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
        geometry = draw_geometry(image.shape[-2:], self.size, rng)
        image = geometry.maps(image)  # (3, H, W)
        spectrum = geometry.spectrum(spectrum)  # (K, 4, H, W)
        confidence = geometry.maps(confidence)  # (1, H, W)
        if rng is not None:
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
        self.items = WeightedItems(sets, split, (KEPT, PAIRS_ONLY), lambda clip_set, row: clip_set.has_pairs(row.id))
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
        area = (shares[0], min(shares[1], 1.0))
        geometry = draw_geometry(grid, self.size, rng, area=area, reverse=False)
        sample = {
            "image": geometry.maps(image),  # (3, h, w)
            "target": geometry.maps(pair.target),  # (3, h, w)
            "flow": geometry.flow(pair.flow),  # (2, h, w)
            "reliability": geometry.maps(pair.reliability),  # (1, h, w)
            # stays in px of the motion grid at every size (method.md section 3)
            "importance": geometry.maps(importance),  # (1, h, w)
        }
        if rng is not None:
            both = jitter_colours(torch.stack([sample["image"], sample["target"]]), rng)  # (2, 3, h, w)
            sample["image"], sample["target"] = both[0], both[1]
        return {name: maps.contiguous() for name, maps in sample.items()}


# ---------------------------------------------------------------------------------------- rendered sets


def render_scene_set(
    folder: str | Path,
    num: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (160, 256),
    kinds: Sequence[str] | None = None,
    pairs: int = 2,
    backgrounds: Sequence[Path] = (),
    textures: Sequence[Path] = (),
    workers: int = 0,
    progress: bool = False,
) -> ClipSet:
    """Render a clip set of procedural scenes; one that is there already goes on, up to `num` scenes.

    Args:
        folder: the set.
        num: how many scenes.
        seed: scene i has seed `seed * 1000000 + i`; one in 20 of them, and of each of `kinds`, is a test scene.
        size: (H, W) px.
        kinds: of data.scenes.KINDS, taken in turn; None draws a kind for each.
        pairs: later frames with exact flow a scene, for rendering; 0 makes the set quicker.
        backgrounds, textures: photographs to mix in, see `data.scenes.make_scene`.
        workers: processes; 0 or 1 renders in this one.
        progress: show a progress bar.

    Returns:
        The finished set, the same for any number of workers and interruptions.

    Raises:
        ClipSetError: the folder holds something else, or a set made with other settings, photographs or scenes.
        MediaError: a photograph that cannot be read; another run is writing the set.
    """
    settings = scene_settings(
        seed=seed, size=size, kinds=kinds, pairs=pairs, backgrounds=backgrounds, textures=textures
    )
    there = rows_of_set(folder, settings)
    if there and all(scene_id(seed * _SEEDS_A_SET + index) in there for index in range(num)):
        clip_set = ClipSet(folder)
        if clip_set.is_finished:
            return clip_set  # several programs may read it at once
    with ClipSetWriter(folder, settings) as writer:
        jobs = []
        for index in range(num):
            split = "test" if _is_test_scene(index, len(kinds or [None])) else "train"
            kind = kinds[index % len(kinds)] if kinds else None
            job = (writer.folder, seed * _SEEDS_A_SET + index, split, tuple(size), kind, pairs, backgrounds, textures)
            if scene_id(job[1]) not in writer.rows:
                jobs.append(job)
        with closing(run_jobs(_render_scene, jobs, workers)) as rows:
            for row in show_progress(rows, len(jobs), "scene", progress):
                writer.add(row)
        return writer.finish()


def scene_settings(
    *,
    seed: int,
    size: tuple[int, int],
    kinds: Sequence[str] | None,
    pairs: int,
    backgrounds: Sequence[Path],
    textures: Sequence[Path],
) -> dict[str, Any]:
    """Return what a set of `render_scene_set` depends on, for its statistics.json."""
    from .scenes import SCENES_VERSION

    settings = {"made_of": "scenes", "seed": seed, "size": list(size), "kinds": list(kinds or []), "pairs": pairs}
    settings |= {"scenes_version": SCENES_VERSION, "photographs": _digest_of(backgrounds, textures)}
    if math.gcd(len(kinds or [None]), TEST_EVERY) > 1:
        # those of before had kinds of which all scenes, or none, were test scenes
        settings["test_scenes"] = "of each kind"
    return settings


def _is_test_scene(index: int, num_kinds: int) -> bool:
    """Choose one scene in 20, and one in 20 of each kind, where `num_kinds` are taken in turn.

    Every 20th scene would always meet the same kinds where 20 and their number have a common divisor. So the choice
    moves on by a scene after each common period, until it has met all.
    """
    shift = index // math.lcm(num_kinds, TEST_EVERY) % math.gcd(num_kinds, TEST_EVERY)
    return (index + shift) % TEST_EVERY == TEST_EVERY // 4


def scene_id(seed: int) -> str:
    """Name the clip of a scene's seed."""
    return f"scene_{seed:09d}"


def _digest_of(backgrounds: Sequence[Path], textures: Sequence[Path]) -> str:
    """Return a short digest of the names and sizes of photographs; "" for none."""
    if not backgrounds and not textures:
        return ""
    found = [[(path.name, path.stat().st_size) for path in paths] for paths in (backgrounds, textures)]
    return hashlib.sha1(repr(found).encode()).hexdigest()[:12]


def _render_scene(
    folder: Path,
    seed: int,
    split: str,
    size: tuple[int, int],
    kind: str | None,
    pairs: int,
    backgrounds: Sequence[Path],
    textures: Sequence[Path],
) -> ClipRow:
    from .scenes import make_scene

    scene = make_scene(seed, size=size, kind=kind, backgrounds=backgrounds, textures=textures)
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
