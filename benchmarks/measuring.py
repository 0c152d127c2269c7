"""Seconds and peak memory of a call, and what computed it."""

from __future__ import annotations

import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


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


ROOT = Path(__file__).resolve().parents[1]


# The memory meter is trusted where it reads a tensor of known size this well.
METER_BYTES, METER_ERROR = 64_000_000, 0.05


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a GPU's memory is exhausted, or the CPU's (for which torch has no class of its own)."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def meter_is_right() -> bool:
    """Tell whether `resident_growth_mb` reads a tensor of known size, twice: the second time it was freed before."""
    try:
        read = [resident_growth_mb(lambda: torch.ones(METER_BYTES // 4)) for _ in range(2)]
    except OSError:  # no Linux, or a process that may not reset its own peak
        return False
    return all(abs(megabytes * 1e6 / METER_BYTES - 1) < METER_ERROR for megabytes in read)


def resident_growth_mb(work: Callable[[], object]) -> float:
    """Return by how much this process's resident memory rises at most during `work`, MB (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _resident_mb("VmRSS")
    work()
    return max(0.0, _resident_mb("VmHWM") - before)


def _resident_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kib) * 1024 / 1e6


def ask_process(code: str, job: dict, **environment: str) -> Any:
    """Run Python code in a fresh process with a job as its argument; return its last line's JSON, None if it died."""
    command = [sys.executable, "-c", code, json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    said = done.stderr.strip().splitlines() or ["nothing"]
    logger.warning("a process that measures ended with code %d and said: %s", done.returncode, said[-1])
    return None
