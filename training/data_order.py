"""Which samples a step sees, and their noise: pure functions of (seed, step), whatever the number of processes.

Sample number n of a training is the same image with the same seed however many processes and micro-batches it takes:
micro-batch a of step s in process p has at place j of its B samples n = ((s A + a) P + p) B + j.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cluster.items import usable_workers
from data.clips import SampleKey
from data.order import block_order, permutation

_ORDER, _SAMPLE, _BLOCKS = 1, 2, 3  # keeps the uses of one training seed apart


def sample_seed(item: int, seed: int, epoch: int = 0) -> int:
    """Return the 63-bit seed of an item in an epoch of a training with `seed`."""
    word = np.random.SeedSequence([_SAMPLE, seed, epoch, item]).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))


class ResumableBatchSampler:
    """The batches of keys that one process takes; a batch sampler of DataLoader.

    length: items of the data set; first, last: micro-batches (steps times accumulation) from .. to, the last excluded;
    block: so many items lie together in a shard, see `block_order`; None: every epoch is a permutation of all.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, *, first: int, last: int, process: int = 0, processes: int = 1,
        block: int | None = None,
    ) -> None:  # fmt: skip
        self.length, self.batch_size, self.seed, self.block = length, batch_size, seed, block
        self.first, self.last = first, last
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for index in range(self.first, self.last):
            start = (index * self.processes + self.process) * self.batch_size
            yield [self.key(number) for number in range(start, start + self.batch_size)]

    def key(self, number: int) -> SampleKey:
        """Return the key of a training's sample `number`."""
        epoch, place = divmod(number, self.length)
        if self.block is None:
            item = int(permutation(self.length, _ORDER, self.seed, epoch)[place])
        else:
            item = block_order(self.length, self.block, place, _BLOCKS, self.seed, epoch)
        return SampleKey(item, epoch, sample_seed(item, self.seed, epoch))


def make_loader(dataset: Dataset, order: ResumableBatchSampler, *, workers: int = 0, pin: bool = False) -> DataLoader:
    """Return a loader of collated dicts with "seed" and "item" (B,) int64 added to what the data set gives."""
    options = {"num_workers": usable_workers(workers), "pin_memory": pin, "worker_init_fn": _use_one_opencv_thread}
    generator = torch.Generator()  # its own, so that a resume does not shift the global one
    return DataLoader(_Keyed(dataset), batch_sampler=order, generator=generator, **options)


class _Keyed(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return {**self.dataset[key], "seed": torch.tensor(key.seed), "item": torch.tensor(key.item)}


def _use_one_opencv_thread(_: int) -> None:
    cv2.setNumThreads(0)  # threads of every loader process would fight for the cores


def sample_noise(
    shape: Sequence[int], seeds: Tensor | Sequence[int], device: torch.device | str = "cpu", *, stream: int = 0
) -> Tensor:
    """Draw float32 normal noise (B, ...) from CPU generators of seeds (B,); `stream` tells further draws apart."""
    return torch.stack([torch.randn(tuple(shape[1:]), generator=own) for own in _generators(seeds, stream)]).to(device)


def sample_uniform(
    shape: Sequence[int], seeds: Tensor | Sequence[int], device: torch.device | str = "cpu", *, stream: int = 1
) -> Tensor:
    """Draw from [0, 1) as `sample_noise` draws."""
    return torch.stack([torch.rand(tuple(shape[1:]), generator=own) for own in _generators(seeds, stream)]).to(device)


def _generators(seeds: Tensor | Sequence[int], stream: int) -> list[torch.Generator]:
    # Odd multiplier: another seed for each stream of one sample, without meeting those of another by counting up.
    mixed = [(int(seed) + stream * 0x9E3779B97F4A7C15) & 0x7FFFFFFFFFFFFFFF for seed in seeds]
    return [torch.Generator().manual_seed(seed) for seed in mixed]
