"""Measure what a cluster costs on this machine: python tests/cluster_measurements.py [throughput|memory|rates]

throughput: scenes by one and two workers of a pool and of Ray, started and under way; memory: that of the driver over
20,000 tiny items; rates: seconds of preparing, animating and reading an item, for docs/scale.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cluster_items  # noqa: E402

from cluster.items import Workers, run_items  # noqa: E402


def measured(function, items, workers: Workers) -> tuple[float, float, float]:
    """Return the seconds in all, those to the first result, and the items a second from a tenth of them on."""
    began, ends = time.perf_counter(), []
    with run_items(function, items, workers, "item", progress=False) as results:
        for done in results:
            done.value()
            ends.append(time.perf_counter())
    start = len(ends) // 10
    rate = (len(ends) - 1 - start) / (ends[-1] - ends[start])
    return time.perf_counter() - began, ends[0] - began, rate


def throughput(count: int = 64) -> None:
    import ray

    results = {}
    for name, workers in (
        ("pool, 1 process", Workers(0)),
        ("pool, 2 processes", Workers(2)),
        ("Ray, 1 worker", Workers(1, "local")),
        ("Ray, 2 workers", Workers(2, "local")),
    ):
        seconds, first, rate = measured(cluster_items.busy, range(count), workers)
        results[name] = rate
        print(f"{name:20} {seconds:7.1f} s in all, first result after {first:5.1f} s, then {rate:6.3f} items/s")
        ray.shutdown()
    print(f"Ray: two workers {results['Ray, 2 workers'] / results['Ray, 1 worker']:.2f} times one, ", end="")
    print(f"{100 * (results['pool, 2 processes'] / results['Ray, 2 workers'] - 1):.1f} % more time than the pool")


def memory(count: int = 20_000) -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    tenth, began, before = count // 10, 0.0, 0.0
    with run_items(cluster_items.tiny, range(count), Workers(2, "local"), "item", progress=False) as results:
        for number, _ in enumerate(results):
            if number == 0:
                before = resident_mb()
                began = time.perf_counter()
            if number and number % tenth == 0 or number == count - 1:
                now = time.perf_counter()
                print(f"{number:6d} items: {resident_mb() - before:+6.1f} MB, {tenth / (now - began):6.0f} items/s")
                began = now


def rates() -> None:
    from data.clip_writer import ClipSetWriter
    from data.clips import ClipSet
    from data.scenes.render_set import render_scene_set
    from data.shards import write_shards

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        render_scene_set(Path(folder) / "warm", 1, seed=0)
        began = time.perf_counter()
        made = render_scene_set(Path(folder) / "set", 8, seed=1)
        print(f"scene of 256 x 160 px with 2 pairs: {(time.perf_counter() - began) / 8:.2f} s")
        size = sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file())
        print(f"scene on disk: {size / 8 / 1e6:.2f} MB")
        began = time.perf_counter()
        for row in made.rows():
            made.spectrum(row.id, 24)
        print(f"spectrum read for the statistics: {(time.perf_counter() - began) / 8 * 1000:.0f} ms")
        began = time.perf_counter()
        write_shards(made.folder, Path(folder) / "shards", 8)
        print(f"clip into a shard: {(time.perf_counter() - began) / 8 * 1000:.0f} ms")
        rows = [replace(made.rows()[0], id=f"clip{number:06d}") for number in range(20_000)]
        with ClipSetWriter(Path(folder) / "rows", {}) as writer:
            began = time.perf_counter()
            for row in rows:
                writer.add(row)
            print(f"row added: {(time.perf_counter() - began) / len(rows) * 1e6:.0f} us")
        tracemalloc.start()
        began = time.perf_counter()
        table = ClipSet(Path(folder) / "rows")
        print(f"{len(table.rows())} rows read, with a tracer: {time.perf_counter() - began:.2f} s")
        print(f"row in memory: {tracemalloc.get_traced_memory()[0] / len(rows):.0f} bytes")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["throughput", "memory", "rates"]:
        {"throughput": throughput, "memory": memory, "rates": rates}[name]()
