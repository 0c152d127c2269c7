"""Seconds and peak memory of a call, and what computed it."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def measure(work: Callable[[], object], repeats: int, device: torch.device) -> dict:
    """Return the median wall-clock seconds of `work`, after one call that warms up, and its peak memory."""
    reset_peak_memory(device)
    timed(work, device)
    seconds = statistics.median(timed(work, device) for _ in range(repeats))
    return {"seconds": seconds, "peak_memory_mb": peak_memory_mb(device)}


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall-clock seconds of one call, a GPU's work included."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def take_turns(works: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Return the median seconds of each call; all take turns, so that what disturbs the machine hits all alike."""
    laps = [[timed(work, device) for work in works] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*laps, strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` count from here on, where the system can (a GPU, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux, or a process that may not: the peak counts from the process's start
        return


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the peak memory, MB, since it was reset: of the GPU's allocator, else of this process; None: untold."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024 / 1e6
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)


def machine(device: torch.device) -> str:
    """Say what computes."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{place}, {torch.get_num_threads()} threads, torch {torch.__version__}"
