"""Work on items on a Ray cluster, whose workers and nodes may come and go.

Each worker is a Ray actor that has one item at a time. An item whose worker dies or takes too long goes to another one,
and is given up after `ATTEMPTS`; what its function raises is its result and is not tried again.
"""

import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cluster.items import ClusterError, ItemResult, Work, Workers

ATTEMPTS = 3
# Workers in a row that may die before the first is ready.
FAILED_STARTS = 5
LOOK_EVERY_S = 5.0  # for nodes that have come or gone, and items that take too long
_CONNECT_S = 5.0
_OBJECT_STORE_BYTES = 80 << 20  # of a cluster that is started here: results are small
INSTALL = "pip install -r requirements-cluster.txt"


def on_ray(start: Callable[[], Work], items: Iterable[Any], workers: Workers) -> Iterator[ItemResult]:
    """Yield an `ItemResult` for each item as it ends; a worker calls `start` once, and what it returns with items."""
    try:
        import ray
    except ImportError:
        raise ClusterError(f"cluster {workers.cluster}: the package ray is not installed; right: {INSTALL}") from None
    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            _connect(ray, workers)
        yield from _Pool(ray, start, workers).results(items)
    finally:
        if is_ours:
            ray.shutdown()


def _connect(ray: Any, workers: Workers) -> None:
    """Start or join a cluster; ClusterError where there is none, or one of another version."""
    address = workers.cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers over the network
    options: dict[str, Any] = {"logging_level": "error", "configure_logging": True}
    if address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")  # else 15, and they would wait for whatever else runs
        cpus = None if workers.count is None else workers.count * workers.cpus
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    elif address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        except (OSError, ValueError, OverflowError):
            right = "right: local, auto, or HOST:PORT of the node where `ray start --head` runs (port 6379)"
            raise ClusterError(f"cluster {address}: no Ray cluster answers there; {right}") from None
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        right = "no Ray cluster runs here; right: `ray start --head` on this machine first, or --cluster local"
        if address != "auto":
            said = str(error).strip().splitlines()[0]
            right = f"{said}; right: its token, and RAY_AUTH_MODE=token, where it asks for one"
        raise ClusterError(f"cluster {address}: {right}") from None
    except RuntimeError as error:
        raise ClusterError(f"cluster {address}: {' '.join(str(error).split())}") from error


class _Worker:
    """Lives in a process of the cluster."""

    def start(self, start: Callable[[], Work], folder: str, threads: int) -> None:
        import cv2
        import torch

        if os.path.isdir(folder):
            os.chdir(folder)  # the driver's: relative paths mean the same
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        self._work = start()

    def work(self, item: Any) -> Any:
        return self._work(item)


class _Pool:
    """The workers of one call, and what each does."""

    def __init__(self, ray: Any, start: Callable[[], Work], workers: Workers) -> None:
        self.ray, self.workers = ray, workers
        self.to_start = (start, os.getcwd(), workers.cpus)
        self.actor = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=0)(_Worker)
        self.starting: dict[Any, Any] = {}  # {reference: worker}
        self.running: dict[Any, tuple[Any, Any, int, float]] = {}  # {reference: (worker, item, attempt, since)}
        self.idle: list[Any] = []
        self.again: deque[tuple[Any, int]] = deque()  # items whose worker died, and which attempt is next
        self.late: set[Any] = set()  # references of items that took too long
        self.failed_starts, self.looked = 0, -math.inf
        self.every_s = min(LOOK_EVERY_S, (workers.item_seconds or math.inf) / 4)
        if not workers.count and not self._room():
            asked = f"{workers.cpus} cores" + (f" and {workers.gpus:g} GPUs" if workers.gpus else "")
            raise ClusterError(f"cluster {workers.cluster}: no node has {asked} for a worker; right: fewer")

    def results(self, items: Iterable[Any]) -> Iterator[ItemResult]:
        """Yield an `ItemResult` for each item; as many are in flight as there are workers."""
        fresh = ((item, 1) for item in items)
        try:
            while True:
                self._start_and_end_workers()
                while self.idle:
                    item, attempt = self.again.popleft() if self.again else next(fresh, (None, 0))
                    if not attempt:
                        break
                    worker = self.idle.pop()
                    self.running[worker.work.remote(item)] = (worker, item, attempt, time.monotonic())
                if self.idle and not self.running:
                    return
                ready, _ = self.ray.wait([*self.running, *self.starting], timeout=self.every_s, fetch_local=False)
                for reference in ready:
                    if reference in self.starting:
                        self._started(reference)
                    elif result := self._ended(reference):
                        yield result
        finally:
            for worker in [*self.idle, *self.starting.values(), *(running[0] for running in self.running.values())]:
                self.ray.kill(worker)

    def _start_and_end_workers(self) -> None:
        """Start workers where nodes have room for them, and end those whose item takes too long."""
        now = time.monotonic()
        if now - self.looked < self.every_s:
            return
        self.looked, count = now, len(self.idle) + len(self.starting) + len(self.running)
        for _ in range((self.workers.count or self._room()) - count):
            worker = self.actor.remote()
            self.starting[worker.start.remote(*self.to_start)] = worker
        for reference, (worker, _, _, since) in self.running.items():
            if now - since > (self.workers.item_seconds or math.inf) and reference not in self.late:
                self.late.add(reference)
                self.ray.kill(worker)

    def _room(self) -> int:
        """Return how many workers the nodes hold."""
        need = {"CPU": self.workers.cpus, "GPU": self.workers.gpus}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(min(int(node.get(kind, 0) / of) for kind, of in need.items() if of) for node in nodes)

    def _started(self, reference: Any) -> None:
        worker = self.starting.pop(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            self.ray.kill(worker)
            raise _cause(error) from None
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= FAILED_STARTS:
                why = f"workers die while they start ({str(error).strip().splitlines()[-1][:200]})"
                right = "this repository and its requirements at one path on every node"
                raise ClusterError(f"cluster {self.workers.cluster}: {why}; right: {right}") from None
        else:
            self.failed_starts = 0
            self.idle.append(worker)

    def _ended(self, reference: Any) -> ItemResult | None:
        worker, item, attempt, _ = self.running.pop(reference)
        late = reference in self.late
        self.late.discard(reference)
        try:
            done = ItemResult(item, self.ray.get(reference))
        except self.ray.exceptions.RayTaskError as error:
            done = ItemResult(item, error=_cause(error))
        except self.ray.exceptions.RayError:
            self.ray.kill(worker)  # where it is only out of reach, it must not go on beside the next attempt
            self.looked = -math.inf
            if attempt < ATTEMPTS:
                self.again.append((item, attempt + 1))
                return None
            why = f"took longer than {self.workers.item_seconds:g} s" if late else "its process ended"
            return ItemResult(item, error=ClusterError(f"{why}, in {ATTEMPTS} attempts"))
        if late:
            self.looked = -math.inf  # it ended just as its worker was killed
        else:
            self.idle.append(worker)
        return done


def _cause(error: Any) -> Exception:
    """Return what a worker's function raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
