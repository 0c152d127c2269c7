"""Worker processes, begun in each way that Python knows, and where there is no shared memory."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from clip_sets import files_of
from videos import FAST

import prepare_data
from cluster.items import Workers, run_items
from data.datasets import MotionDataset
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


@pytest.fixture(params=["fork", "spawn"])
def start_method(request):
    """Begin processes in this way, as a system or a user's own program may."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def test_processes_load_and_prepare_as_one_does(scene_set, videos, tmp_path, start_method):
    motions = MotionDataset([(scene_set, 1.0)], num_bins=4, size=(64, 96))
    order = ResumableBatchSampler(len(motions), 2, 5, first=0, last=3)
    # one that is spawned imports all anew, for seconds
    several = 2 if start_method == "fork" else 1
    alone, both = (list(make_loader(motions, order, workers=workers)) for workers in (0, several))
    for batch, other in zip(alone, both, strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in ("spectrum", "seed", "item"))
    flags = ["videos", *(str(videos / f"{name}.mp4") for name in ("short", "still")), *FAST]
    for workers in ("1", "2"):
        assert prepare_data.main([*flags, "--out", str(tmp_path / workers), "--workers", workers]) == 0
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
