"""The operators on the CPU: the loops of `cpu_kernels.py` on all of torch's threads.

Forward: a source's landing point and footprint are found once; then every thread adds to bands of target rows of its
own, in a channels-last buffer that stays in its cache, what the sources near them send. So there are no atomics, and
results do not depend on the number of threads. Backward: every source gathers its own gradients, channels last.

The threads are Python's, the loops run without its lock: Numba's own threading layers abort in forked processes
(OpenMP) or when two threads call them (workqueue).
"""

import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from splatting.fused import Saved, out_format
from splatting.reference import EWA_VARIANCE_FLOOR

logger = logging.getLogger(__name__)

# Sums of one band of target rows. Half as much would fit the L2 cache, but send more sources to two bands (8 % slower).
BAND_BYTES = 1 << 21
# More channels than this are splatted in several rounds, or the band would hold too few rows.
MAX_CHANNELS = 64
# Below this many multiplications waking the other threads costs more than they save.
SMALLEST_FRACTION = 200_000
MAX_THREADS = 256
# How often a thread comes for more tasks.
CHUNKS = 4
# Scratch memory of the backward pass; larger batches go in several rounds.
SCRATCH_BYTES = 1 << 28
# Above this numpy asks for the system's large pages, torch does not: 38 MB are written in 2.7 ms instead of 18 ms.
LARGE_BYTES = 1 << 22


@functools.cache
def unavailable_reason() -> str | None:
    """Return None where Numba can be imported, else why not and what to do about it."""
    try:
        _kernels()
    except Exception as error:  # Numba refuses numpy versions that it does not know with an error of its own
        return f"the 'cpu' backend needs Numba ({error}): pip install -U numba, or use backend='reference'"
    return None


def _kernels() -> ModuleType:
    from splatting import cpu_kernels

    return cpu_kernels


def forward(
    values: Tensor, flow: Tensor, importance: Tensor | None, sigma: Tensor | None, ewa: bool, normalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Splat; arguments and results as in `fused.py`."""
    dtype, (batch, channels, height, width) = flow.dtype, values.shape
    values, flow, importance = _in_one_layout(values, flow, importance)
    out, weight = _empty_like(values, dtype), _empty((batch, 1, height, width), dtype)
    largest = flow.new_empty(0 if importance is None else (batch, 1, height, width))
    tensors = (values, importance, flow, out, weight, largest)
    source, z, flows, *results = (_array(tensor, dtype) for tensor in tensors)
    with nullcontext() if _kernels().splat_bands.signatures else _compilation_announced():
        landing = _land(flows, z, sigma, ewa)
        no_tasks = np.empty((0, 3), np.int64)  # the loops are loaded, or compiled
        _kernels().splat_bands(no_tasks, source, z, *landing, np.zeros(2, np.int64), normalise, 4, *results)

    # Bands of target rows, several a thread
    rounds = max(1, -(-channels // MAX_CHANNELS))
    count = -(-channels // rounds)
    rows = max(4, BAND_BYTES // ((width + 2) * (count + 1) * source.itemsize))
    work = batch * height * width * (count + 1) * (4 if sigma is None else 16)
    tasks, threads = _share(batch, height, work, 4, rows)
    for first in range(0, max(1, channels), max(1, count)):
        chosen = np.array([first, min(channels, first + count)])
        _run(_kernels().splat_bands, tasks, threads, source, z, *landing, chosen, normalise, rows, *results)
    return out.to(values.dtype), weight, largest


def backward(
    grad_out: Tensor, grad_weight: Tensor | None, saved: Saved, ewa: bool, normalise: bool, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Differentiate; arguments and results as in `fused.py`."""
    from splatting.cpu_preparation import weigh_gradients

    values, flow, importance, grad_weight = _in_one_layout(*saved[:3], grad_weight)
    sigma, out, weight, largest = saved[3:]
    dtype, (side, pad) = flow.dtype, (2, 1) if sigma is None else (4, 3)
    batch, channels, height, width = values.shape
    grad_values, grad_flow = _empty_like(values, dtype), _empty((batch, 2, height, width), dtype)
    grad_z = flow.new_empty(0 if importance is None else (batch, 1, height, width))
    grad_sigma = flow.new_empty(0 if sigma is None else (batch, 1, height, width))
    scale = (1.0, 0.0) if sigma is None else (float(sigma), EWA_VARIANCE_FLOOR if ewa else 0.0)
    item_bytes = height * width * (channels + 1) * flow.element_size()
    size = max(1, SCRATCH_BYTES // item_bytes)  # items a round
    for start in range(0, batch, size):
        part = functools.partial(_array, dtype=dtype, items=slice(start, start + size))
        source, z, flows = part(values), part(importance), part(flow)
        points, conic, _ = _land(flows, z, sigma, ewa)
        items = len(flows)
        tasks, threads = _share(items, height, items * height * width * (channels + 1) * side * side)
        # At the targets, with a margin of zeros
        total = np.zeros((items, height + 2 * pad, width + 2 * pad, channels), source.dtype)
        mass = np.zeros(total.shape[:3], source.dtype)
        largest_z = np.pad(part(weight if importance is None else largest)[:, 0], ((0, 0), (pad, pad), (pad, pad)))
        outer = map(part, (grad_out, grad_weight, out if normalise and any(needs[1:]) else None, weight))
        _run(weigh_gradients, tasks, threads, *outer, normalise, pad, total, mass)
        arguments = (points, conic, (total, mass, largest_z), *scale, any(needs[1:]))
        results = tuple(map(part, (grad_values, grad_flow, grad_z, grad_sigma)))
        _run(_kernels().gather_gradients, tasks, threads, source, z, *arguments, results)
    gradients = (grad_values.to(values.dtype), grad_flow, grad_z, grad_sigma.sum())
    return tuple(gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True))


def _in_one_layout(values: Tensor, *maps: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return tensors in one layout, so that one variant of the loops is compiled; values may be channels last, too."""
    values = values if values.is_contiguous(memory_format=torch.channels_last) else values.contiguous()
    return values, *(tensor if tensor is None else tensor.contiguous() for tensor in maps)


@contextmanager
def _compilation_announced() -> Iterator[None]:
    """Say that kernels are compiled and how long it took, where Numba's cache lacks them."""
    kernel, began = _kernels().splat_bands, time.monotonic()
    folder = kernel.stats.cache_path
    if folder is None or not any(Path(folder).glob(f"*{kernel.__name__}*.nbi")):
        logger.info("compiling the CPU kernels, once")
    yield
    if kernel.stats.cache_misses:
        logger.info("compiled the CPU kernels, once: %.0f s", time.monotonic() - began)


def _land(flow: np.ndarray, z: np.ndarray, sigma: Tensor | None, ewa: bool) -> tuple[tuple, np.ndarray, tuple]:
    """Return the landing points, Gaussians and limits of the sources, as `splat_bands` takes them."""
    from splatting.cpu_preparation import TILE, land, make_conics

    batch, _, height, width = flow.shape
    shape, tiles = (batch, height, width), (batch, height, -(-width // TILE))
    points = (*(np.empty(shape, np.int32) for _ in range(2)), *(np.empty(shape, flow.dtype) for _ in range(2)))
    limits = (np.empty(tiles, np.int32), np.empty(tiles, np.int32))
    conic = np.empty((0, 1, 1, 1) if sigma is None else (4, *shape), flow.dtype)
    low, high = (0, 1) if sigma is None else (-1, 2)
    tasks, threads = _share(batch, height, 10 * batch * height * width)
    _run(land, tasks, threads, flow, z, low, high, *points, *limits)
    if sigma is not None:
        _run(make_conics, tasks, threads, flow, z, float(sigma), ewa, conic)
    return points, conic, limits


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if math.prod(shape) * dtype.itemsize < LARGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(shape, np.float64 if dtype == torch.float64 else np.float32))


def _empty_like(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return memory of the shape of values, in the layout that `fused.out_format` promises."""
    batch, channels, height, width = values.shape
    if out_format(values) == torch.channels_last:
        return _empty((batch, height, width, channels), dtype).permute(0, 3, 1, 2)
    return _empty(values.shape, dtype)


def _array(tensor: Tensor | None, dtype: torch.dtype, items: slice | None = None) -> np.ndarray:
    """Return a tensor, or items of it, as an array; for none, or an empty one, (0, 1, 1, 1)."""
    if tensor is None or tensor.ndim == 1:
        tensor = torch.empty(0, 1, 1, 1)
    elif items is not None:
        tensor = tensor[items]
    return tensor.detach().to(dtype).numpy()


def _share(batch: int, height: int, work: int, fewest: int = 1, most: float = math.inf) -> tuple[np.ndarray, int]:
    """Cut a batch into tasks (item, first row, last row + 1); also return how many threads share this much work."""
    threads = max(1, min(torch.get_num_threads(), work // SMALLEST_FRACTION))
    rows = min(most, max(fewest, -(-batch * height // (CHUNKS * threads))))
    tasks = [(b, y, min(height, y + rows)) for b in range(batch) for y in range(0, height, rows)]
    return np.array(tasks, np.int64).reshape(-1, 3), threads


def _run(kernel: Callable, tasks: np.ndarray, threads: int, *arguments: object) -> None:
    """Call a kernel on all tasks. Each thread takes the next few when it is done with its last."""
    # Not in equal shares: torch's threads spin for some milliseconds after an operator, and slow ours beside them down.
    threads = max(1, min(threads, len(tasks)))
    waiting = iter(np.array_split(tasks, max(1, min(len(tasks), CHUNKS * threads))))

    def work() -> None:
        for chunk in waiting:  # from one iterator of a list, which threads may share
            kernel(chunk, *arguments)

    others = [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process, started as needed; those of a parent do not survive a fork."""
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="splatting")
