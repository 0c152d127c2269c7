"""Worker processes where there is no shared memory."""

from __future__ import annotations

import multiprocessing

from cluster.items import Workers, run_items
from training.data_order import ResumableBatchSampler, make_loader


def test_without_shared_memory_one_process_does_all(monkeypatch, caplog):
    def refuse() -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    with run_items(lambda job: job[0] * job[1], [(1, 2), (3, 4)], Workers(2), "job", progress=False) as results:
        assert [done.result for done in results] == [2, 12]
    order = ResumableBatchSampler(4, 2, 0, first=0, last=2)
    assert make_loader([], order, workers=3).num_workers == 0
    assert caplog.text.count("/dev/shm cannot be used") == 2 and "make it writable" in caplog.text
