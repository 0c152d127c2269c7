"""Training datasets over clip sets; what one returns depends on nothing but the SampleKey that it is indexed by."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from data.augmentation import draw_geometry, jitter_colours
from data.clips import KEPT, PAIRS_ONLY, STORED_BINS, ClipRow, ClipSet, ClipSetError, SampleKey
from data.order import block_order, permutation
from data.shards import ShardedSet, open_set
from motion.spectrum import NUM_BINS

WeightedSets = Sequence[tuple[ClipSet, float]]

LARGEST_WEIGHT = 1000.0
# a rendering crop is at most this much larger or smaller than the sample (natural logarithm of the side)
RENDERING_ZOOM = 0.25


def open_weighted_sets(names: Iterable[str | Path]) -> list[tuple[ClipSet, float]]:
    """Open sets named SETA or SETB:0.3, a weight; ClipSetError for a bad name, or a source trained on and tested."""
    sets: list[tuple[ClipSet, float]] = []
    for name in map(str, names):
        folder, weight = _split_weight(name)
        clip_set = open_set(folder)
        if any(clip_set.folder.resolve() == other.folder.resolve() for other, _ in sets):
            raise ClipSetError(f"{name}: named twice; name a set once, SET:2 doubles its clips")
        sets.append((clip_set, weight))
    _check_sources([clip_set for clip_set, _ in sets])
    return sets


def _split_weight(name: str) -> tuple[str, float]:
    folder, colon, text = name.rpartition(":")
    if not colon or Path(name).is_dir():  # a folder may have a colon in its name
        return name, 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not folder or not 0 < weight <= LARGEST_WEIGHT:
        right = f"right: SET or SET:WEIGHT with a weight above 0 and at most {LARGEST_WEIGHT:.0f}"
        raise ClipSetError(f"{name}: not a clip set; {right}")
    return folder, weight


def _check_sources(sets: Sequence[ClipSet]) -> None:
    used = (KEPT, PAIRS_ONLY)
    for tested in sets:
        validation = {name for row in tested.rows("test", status=used) for name in (row.source, row.group) if name}
        for clip_set in sets:
            rows = clip_set.rows("train", status=used) if clip_set is not tested else []
            shared = next((row for row in rows if not validation.isdisjoint((row.source, row.group))), None)
            if shared is not None:
                name = shared.group if shared.group in validation else shared.source
                where = f"in the training split of {clip_set.folder} ({shared.id}) and in the test split of"
                raise ClipSetError(f"source {name} is {where} {tested.folder}; give it the same split in both")


class _Part(NamedTuple):
    clip_set: ClipSet
    rows: Sequence[ClipRow]
    count: int  # how many items of an epoch are theirs


class WeightedItems:
    """The items of an epoch: each clip of a set of weight w comes w times, on average over the epochs.

    With w = 0.3 an epoch holds a third of the clips and the next epochs the others, in an order drawn for each round.
    """

    def __init__(
        self, sets: WeightedSets, split: str | None, status: tuple[str, ...], needs: Callable[[ClipSet, ClipRow], bool]
    ) -> None:
        self.parts: list[_Part] = []
        for clip_set, weight in sets:
            rows = clip_set.rows(split, status=status)
            # in shards all clips are alike, and their rows are never all in memory
            if isinstance(rows, list) or not all(needs(clip_set, row) for row in islice(rows, 1)):
                rows = [row for row in rows if needs(clip_set, row)]
            if not rows:
                raise ClipSetError(f"{clip_set.folder}: no such clip of split {split or 'any'}; prepare more clips")
            self.parts.append(_Part(clip_set, rows, max(1, round(len(rows) * weight))))

    def __len__(self) -> int:
        return sum(part.count for part in self.parts)

    def __getitem__(self, key: SampleKey) -> tuple[ClipSet, ClipRow]:
        number, index, _ = self.place(key)
        return self.parts[number].clip_set, self.parts[number].rows[index]

    def place(self, key: SampleKey) -> tuple[int, int, int]:
        """Return the number of a key's set, its clip's row there, and how often that clip came before in the epoch."""
        item = key.item
        if not 0 <= item < len(self):
            raise IndexError(item)
        ends = list(accumulate(part.count for part in self.parts))
        number = bisect_right(ends, item)
        part = self.parts[number]
        item -= ends[number] - part.count
        num_rows = len(part.rows)
        times, rest = divmod(part.count, num_rows)
        if item < times * num_rows:
            return number, item % num_rows, item // num_rows
        round_, place = divmod(key.epoch * rest + item - times * num_rows, num_rows)
        if isinstance(part.clip_set, ShardedSet):  # one shard after another: those of a few are open at a time
            index = block_order(num_rows, part.clip_set.clips_per_shard, place, number, round_, mixed=1)
        else:
            index = int(permutation(num_rows, number, round_)[place])
        return number, index, times

    @property
    def block_size(self) -> int | None:
        """Return how many items that follow one another lie together, None where all are as near."""
        return next((one.clip_set.clips_per_shard for one in self.parts if isinstance(one.clip_set, ShardedSet)), None)

    def repeats(self, number: int) -> int:
        """Return how often a clip of set `number` may come in an epoch, at most."""
        return -(-self.parts[number].count // len(self.parts[number].rows))


class _ClipDataset(Dataset):
    def __init__(self, items: WeightedItems, size: tuple[int, int], augment: bool) -> None:
        self.items, self.size, self.augment, self.block_size = items, tuple(size), augment, items.block_size

    def __len__(self) -> int:
        return len(self.items)


class MotionDataset(_ClipDataset):
    """Frame 0 and spectrum of kept clips, for the motion VAE and the U-Net.

    dataset[SampleKey] -> {"image" (3, H, W) in [0, 1], "spectrum" (K, 4, H, W) px, "confidence" (1, H, W)}, augmented,
    or the largest box of the sample's aspect in the middle of the image.
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
        """Take the kept clips of a split (None: of all); `size` is (H, W) of the samples."""
        if not 1 <= num_bins <= STORED_BINS:
            raise ClipSetError(f"number of bins: clip sets hold {STORED_BINS}, {num_bins} are wanted")
        super().__init__(WeightedItems(sets, split, (KEPT,), lambda _set, _row: True), size, augment)
        self.num_bins = num_bins

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        clip_set, row = self.items[key]
        image = clip_set.first(row.id)  # (3, h, w)
        spectrum, confidence = clip_set.spectrum(row.id, self.num_bins)  # (K, 4, h, w), (1, h, w)
        rng = np.random.default_rng(key.seed) if self.augment else None
        geometry = draw_geometry(image.shape[-2:], self.size, rng)
        sample = {
            "image": geometry.maps(image),  # (3, H, W)
            "spectrum": geometry.spectrum(spectrum),  # (K, 4, H, W)
            "confidence": geometry.maps(confidence),  # (1, H, W)
        }
        if rng is not None:
            sample["image"] = jitter_colours(sample["image"], rng)
        return {name: maps.contiguous() for name, maps in sample.items()}


class RenderingDataset(_ClipDataset):
    """Frame 0, a later frame and the flow between them, for frame synthesis.

    dataset[SampleKey] -> {"image" and "target" (3, h, w) in [0, 1], "flow" (2, h, w) px of the sample, "reliability"
    (1, h, w), "importance" (1, h, w) px of the motion grid}, augmented, or the image's middle, if possible unscaled.
    """

    def __init__(
        self, sets: WeightedSets, *, split: str | None = "train", size: Sequence[int] = (128, 128), augment: bool = True
    ) -> None:
        """Take the clips of a split (None: of all) that have pairs; `size` is (h, w) of the samples."""
        items = WeightedItems(sets, split, (KEPT, PAIRS_ONLY), lambda clip_set, row: clip_set.has_pairs(row.id))
        super().__init__(items, size, augment)

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        clip_set, row = self.items[key]
        image = clip_set.first(row.id)
        pairs, importance = clip_set.pairs(row.id)
        rng = np.random.default_rng(key.seed) if self.augment else None
        pair = pairs[(key.item + key.epoch) % len(pairs) if rng is None else int(rng.integers(len(pairs)))]
        grid = image.shape[-2:]
        # the fraction of the largest box at which the sample keeps the image's scale
        own = min(1.0, max(self.size[0] / grid[0], self.size[1] / grid[1])) ** 2
        zoom = 0.0 if rng is None else 2 * RENDERING_ZOOM
        area = (own * math.exp(-zoom), min(own * math.exp(zoom), 1.0))
        geometry = draw_geometry(grid, self.size, rng, area=area, reverse=False)
        sample = {
            "image": geometry.maps(image),  # (3, h, w)
            "target": geometry.maps(pair.target),  # (3, h, w)
            "flow": geometry.flow(pair.flow),  # (2, h, w)
            "reliability": geometry.maps(pair.reliability),  # (1, h, w)
            "importance": geometry.maps(importance),  # (1, h, w), px of the motion grid at every size
        }
        if rng is not None:
            sample["image"], sample["target"] = jitter_colours(torch.stack([sample["image"], sample["target"]]), rng)
        return {name: maps.contiguous() for name, maps in sample.items()}
