"""Seconds and peak memory of calls that take turns, and what computed them."""

import ctypes
import gc
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# On a GPU the flush is queued so often that the launches of what is timed are done before it begins.
FLUSHES_ON_CUDA = 32
MEMORY_NOTE = (
    "peak_memory_mb: how far memory rises during a call: on a GPU that of torch's allocator, on a CPU the resident "
    "memory of the process (Linux only)"
)


def measure(
    works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, *, flush: Tensor | None = None
) -> dict[str, dict[str, float | None]]:
    """Time {name: call} in turn, so that what disturbs the machine hits all alike.

    Returns {name: {"seconds" (the median), "min_s", "max_s", "peak_memory_mb"}} of `repeats` calls, after one that
    warms up and one whose memory is measured. `flush` is written before each timed call, so that its inputs are in no
    cache. A call that exhausts the memory is left out with a warning.
    """
    memory: dict[str, float | None] = {}
    gc.collect()
    for name, work in works.items():
        try:
            work()
            memory[name] = peak_memory_mb(work, device)
        except (RuntimeError, MemoryError) as error:
            # torch has no class of its own for the memory of a CPU
            full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
            if not full:
                raise
            logger.warning("%s is left out: out of memory", name)
    seconds: dict[str, list[float]] = {name: [] for name in memory}
    for _ in range(repeats):
        for name, found in seconds.items():
            found.append(timed(works[name], device, flush))
    names = ("seconds", "min_s", "max_s", "peak_memory_mb")
    return {
        name: dict(zip(names, (statistics.median(found), min(found), max(found), memory[name]), strict=True))
        for name, found in seconds.items()
    }


def timed(work: Callable[[], object], device: torch.device, flush: Tensor | None = None) -> float:
    """Return the seconds of one call; on a GPU by its own events."""
    if flush is not None:
        for _ in range(FLUSHES_ON_CUDA if device.type == "cuda" else 1):
            flush.zero_()
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    synchronize = torch.mps.synchronize if device.type == "mps" else lambda: None
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


@contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Run `count` other processes that compute without end, during a block."""
    # until their parent ends, however it does
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def peak_memory_mb(work: Callable[[], object], device: torch.device) -> float | None:
    """Return how far memory rises during a call, MB: a GPU's by its allocator, or this process's; None: unknown."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if device.type != "cpu" or sys.platform != "linux":
        return None
    # Give freed memory back to the system, and let the peak count from here on
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _resident_mb("VmRSS")
    work()
    return max(0.0, _resident_mb("VmHWM") - before)


def _resident_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kib) * 1024 / 1e6


def machine(device: torch.device) -> str:
    """Name the device, the number of threads and the version of torch."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{place}, {torch.get_num_threads()} threads, torch {torch.__version__}"
