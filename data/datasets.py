"""Training datasets over clip sets, their augmentation, and the small rendered set that scripts fall back to.

A dataset is indexed by a SampleKey, and what it returns depends on nothing but the key: the order of samples, the
number of processes and a resumed run change no sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from data.augmentation import draw_geometry, jitter_colours
from data.clips import (
    KEPT,
    PAIRS_ONLY,
    STORED_BINS,
    ClipRow,
    ClipSet,
    ClipSetError,
    SampleKey,
)
from motion.spectrum import NUM_BINS

WeightedSets = Sequence[tuple[ClipSet, float]]

# weights above this are a slip of the finger: an epoch would have no end
LARGEST_WEIGHT = 1000.0
# a rendering crop is at most this much larger or smaller than the sample (natural logarithm of the side)
RENDERING_ZOOM = 0.25


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
        validation = {row.source for row in tested.rows("test", status=used)}
        for clip_set in sets:
            rows = clip_set.rows("train", status=used) if clip_set is not tested else []
            source = next((row.source for row in rows if row.source in validation), None)
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
