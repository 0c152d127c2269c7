"""Limit the threads of libraries to the cores that this process may use, before they are imported."""

import logging
import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

logger = logging.getLogger(__name__)

# Read by torch (OpenMP, MKL), numpy, Numba and OpenCV when they are imported.
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
# Threads that wait for work sleep. By default they spin, which our splats' threads, ffmpeg and other programs pay for.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_cpus(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> int:
    """Return how many cores affinity and cgroups' quotas (v1, v2; rounded up) leave to this process, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([allowed, *_quotas(membership, mount)])))


def _quotas(membership: Path, mount: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of the process's cgroups and their parents."""
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container sees its own cgroup at the mount, under a path of the host's.
        inside = Path(os.path.normpath(f"/{place}").lstrip("/"))
        for root in (mount / controllers, mount / ("cpu" if controllers else "unified")):
            for folder in (inside, *inside.parents):
                yield _quota(root / folder)


def _quota(folder: Path) -> float:
    """Return the quota of one cgroup in cores, infinity where it has none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf  # "max", or -1: none
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def set_thread_defaults(environment: MutableMapping[str, str] = os.environ, cpus: int | None = None) -> None:
    """Let libraries that are imported later start as many threads as there are cores, which sleep while they wait.

    What the user has set stays, and OMP_NUM_THREADS holds for all. On a whole machine each library decides.
    """
    if not any(name in environment for name in WAITING):
        environment.update(WAITING)
    cpus = available_cpus() if cpus is None else cpus
    restricted = str(cpus) if cpus < (os.cpu_count() or 1) else None
    count = environment.get("OMP_NUM_THREADS", restricted)
    if count and count.isdigit():
        for name in COUNTS:
            environment.setdefault(name, count)


def use_threads(count: int) -> None:
    """Let libraries compute with `count` threads, torch also where it is imported already."""
    os.environ.update(dict.fromkeys(COUNTS, str(count)))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
    cpus = available_cpus()
    if count > cpus:
        logger.info("--threads %d: more than the cores that this process may use (%d)", count, cpus)
