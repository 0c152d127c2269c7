"""Work on many items: in this process, in processes of this machine, or on a Ray cluster; with a progress bar."""

import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from tqdm import tqdm

logger = logging.getLogger(__name__)

Work = Callable[[Any], Any]  # of an item


class ClusterError(RuntimeError):
    """A cluster that cannot be used, or an item that its workers cannot finish."""

    is_user_error = True


@dataclass(frozen=True)
class Workers:
    """Who works on items, each worker on one at a time."""

    count: int | None = 0  # processes of this machine (0, 1: this one); workers of a cluster (None: all that fit)
    cluster: str | None = None  # Ray: "local" starts it here, "auto" finds it, else the address of its head
    cpus: int = 1  # of a cluster, for each worker: so many cores and threads
    gpus: float = 0.0  # of a cluster, for each worker; several may share one
    item_seconds: float | None = None  # on a cluster an item that takes longer is tried again, then given up


class ItemResult(NamedTuple):
    """What became of an item."""

    item: Any
    result: Any = None
    error: Exception | None = None  # that the function raised, or why a cluster gave the item up

    @property
    def reason(self) -> str:
        """Return the error in a line."""
        text = " ".join(str(self.error).split())
        return text if getattr(self.error, "is_user_error", False) else f"{type(self.error).__name__}: {text}"

    def value(self) -> Any:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result


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
def run_items(
    function: Callable[..., Any],
    items: Sequence[Any],
    workers: Workers,
    unit: str,
    *,
    load: Callable[[], Any] | None = None,
    progress: bool | None = True,
) -> Iterator[Iterator[ItemResult]]:
    """Yield an `ItemResult` for each item as it ends; items are taken as workers become free, results are not kept.

    The function is called with an item, or with load() and an item; what it raises is the item's error. `load` is
    called once in each worker. `unit` is what the progress bar counts; with `progress` None it is shown on a terminal
    alone. The end of the block ends the workers. Raises ClusterError, and whatever `load` raises.
    """
    if workers.cluster:
        from cluster.ray_workers import on_ray as results_of
    elif (workers.count or 0) <= 1 or len(items) <= 1 or usable_workers(workers.count) == 0:
        results_of = _in_this_process
    else:
        results_of = _in_processes
    with closing(results_of(functools.partial(_load, function, load), items, workers)) as results:
        hidden = None if progress is None else not progress or not items
        yield tqdm(results, total=len(items), unit=unit, disable=hidden, smoothing=0.05)


def _load(function: Callable[..., Any], load: Callable[[], Any] | None) -> Work:
    return functools.partial(function, load()) if load else function


def _in_this_process(start: Callable[[], Work], items: Sequence[Any], _: Workers) -> Iterator[ItemResult]:
    work = start()
    for item in items:
        try:
            done = ItemResult(item, work(item))
        except Exception as error:
            done = ItemResult(item, error=error)
        yield done


def _in_processes(start: Callable[[], Work], items: Sequence[Any], workers: Workers) -> Iterator[ItemResult]:
    # fork would copy threads of torch and OpenCV in an unknown state
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers.count, mp_context=context, initializer=_start_process, initargs=(start,))
    waiting, running = iter(items), {}
    try:
        while True:
            # two for each process: none waits for this one
            taken = list(islice(waiting, 2 * workers.count - len(running)))
            # Ctrl-C reaches the whole group: processes inherit that they do not get it, and the parent ends them.
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                running |= {pool.submit(_work_started, item): item for item in taken}
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield ItemResult(running.pop(future), None if error else future.result(), error)
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _work_started(item: Any) -> Any:
    return _work(item)


def _start_process(start: Callable[[], Work]) -> None:
    import cv2
    import torch

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    global _work
    # the parent ends its workers itself; but one that was killed cannot
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _work = start()


_work: Work  # of a worker process
