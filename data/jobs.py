"""Run jobs in worker processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch


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
