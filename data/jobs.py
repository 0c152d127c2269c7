"""Run jobs in worker processes, with a progress bar."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from tqdm import tqdm

logger = logging.getLogger(__name__)


def usable_workers(workers: int) -> int:
    """Return `workers`, or 0 with a warning where processes have nothing to share memory by."""
    try:
        if workers > 0:
            multiprocessing.Lock()
    except OSError as error:
        logger.warning("/dev/shm cannot be used (%s): no worker processes, which is slower; make it writable", error)
        return 0
    return workers


@contextmanager
def run_jobs(
    function: Callable[..., Any], jobs: Sequence[tuple], workers: int, unit: str, *, progress: bool = True
) -> Iterator[Iterable[Any]]:
    """Give function(*job) of every job, as they end, from `workers` processes (0 or 1: in this one, in order).

    Each process computes with one thread. An error in the block ends them at once. The bar counts the jobs by `unit`.
    """
    bar = {"total": len(jobs), "unit": unit, "disable": not progress or not jobs}
    if workers <= 1 or len(jobs) <= 1 or usable_workers(workers) == 0:
        yield tqdm((function(*job) for job in jobs), **bar)
        return
    # fork would copy threads of torch and OpenCV in an unknown state
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker)
    try:
        # Ctrl-C reaches the whole group: workers inherit that they do not get it, and the parent ends them.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            running = as_completed([pool.submit(function, *job) for job in jobs])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        yield tqdm((done.result() for done in running), **bar)
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    # the parent ends its workers itself; but one that was killed cannot
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
