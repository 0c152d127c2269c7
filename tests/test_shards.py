"""Clip sets in shards: the same clips, read in blocks, by any number of processes, without a list of all."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from processes import torchrun

import prepare_data
import train_vae
from data.clip_writer import ClipSetWriter
from data.clips import PAIRS_ONLY, ClipRow, ClipSet, ClipSetError
from data.datasets import MotionDataset, RenderingDataset, WeightedItems, open_weighted_sets
from data.order import MIXED_BLOCKS, block_order
from data.shards import OPEN_AT_ONCE, ShardedSet, open_set, write_shards
from training.data_order import ResumableBatchSampler, make_loader
from training.data_sets import motion_sets


@pytest.fixture
def shards(scene_set, tmp_path) -> ShardedSet:
    return write_shards(scene_set.folder, tmp_path / "shards", 2)


def test_a_set_in_shards_holds_the_same_clips(scene_set, shards):
    for split in ("train", "test", None):
        rows = shards.rows(split)
        assert len(rows) == len(scene_set.rows(split))
        assert {row.source for row in rows} == {row.source for row in scene_set.rows(split)}
    by_source = {row.source: row.id for row in scene_set.rows()}
    for row in shards.rows():
        assert shards.first(row.id).equal(scene_set.first(by_source[row.source]))
        assert all(map(torch.equal, shards.spectrum(row.id), scene_set.spectrum(by_source[row.source])))
        assert shards.pairs(row.id)[1].equal(scene_set.pairs(by_source[row.source])[1])
    assert shards.normalisation().scale.equal(scene_set.normalisation().scale)
    assert isinstance(open_set(shards.folder), ShardedSet) and type(open_set(scene_set.folder)) is ClipSet
    with pytest.raises(IndexError):
        shards.rows("test")[1]


def test_few_shards_are_open_and_damage_is_named(scene_set, tmp_path):
    shards = write_shards(scene_set.folder, tmp_path / "one", 1)
    assert len([shards.first(row.id) for row in shards.rows()]) == 8 and len(shards._open) <= OPEN_AT_ONCE
    (tmp_path / "one" / "train-00003.zip").write_bytes(b"nothing")
    again = ShardedSet(tmp_path / "one")
    with pytest.raises(ClipSetError, match="train-00003.zip: cannot be read .*; write the shards again"):
        again.rows("train")[3]
    (tmp_path / "one" / "shards.json").write_text("{}")
    with pytest.raises(ClipSetError, match="shards.json: is damaged"):
        open_set(tmp_path / "one")


def test_a_set_without_a_kept_clip_is_refused(tmp_path, capsys):
    with ClipSetWriter(tmp_path / "set", {}) as writer:
        writer.add(ClipRow("short", "short.mp4", status=PAIRS_ONLY, reason="covers 1 s"))
        writer.finish()
    assert prepare_data.main(["shards", str(tmp_path / "set"), "--out", str(tmp_path / "shards")]) == 2
    assert "set: has no kept clip" in capsys.readouterr().err and not (tmp_path / "shards").exists()


@pytest.mark.parametrize(("length", "block"), [(1000, 7), (56, 7), (5, 7), (57, 7), (13, 1)])
def test_an_epoch_in_blocks_meets_every_item_once_and_mixes_near_ones(length, block):
    for epoch in (0, 1):
        order = [block_order(length, block, place, 3, epoch) for place in range(length)]
        assert sorted(order) == list(range(length))
        window = order[: MIXED_BLOCKS * block]
        assert len({item // block for item in window}) <= MIXED_BLOCKS + 1
    if length > 100:
        assert order != [block_order(length, block, place, 3, 0) for place in range(length)]
        assert window[:block] != sorted(window[:block])


class NotRead(ShardedSet):
    """A set of 200 shards of 10 clips, the last one not full, whose files nobody asks for."""

    def __init__(self) -> None:
        self.folder, self.clips_per_shard = Path("not_read"), 10

    def rows(self, split=None, *, status=()) -> range:
        return range(1995)


@pytest.mark.parametrize("weight", [0.3, 1, 2.4])
def test_a_weighted_set_in_shards_opens_each_a_few_times_and_meets_every_clip(weight):
    items = WeightedItems([(NotRead(), weight)], "train", (), lambda _set, _row: True)
    order = ResumableBatchSampler(len(items), 1, 7, first=0, last=10 * len(items), block=items.block_size)
    near, opened, met = OrderedDict(), 0, Counter()
    for (key,) in order:
        _, index, _ = items.place(key)
        met[index] += 1
        opened += index // 10 not in near
        near[index // 10] = True
        near.move_to_end(index // 10)
        if len(near) > OPEN_AT_ONCE:
            near.popitem(last=False)
    # ten clips of a shard are read by two openings at most, but for ends of epochs and rounds
    assert opened < 0.25 * len(items) * 10
    assert set(met) == set(range(1995)) and max(met.values()) - min(met.values()) <= 1


def test_processes_share_an_epoch_of_shards_as_one_would_take_it(shards):
    sets = motion_sets(open_weighted_sets([shards.folder]), (64, 96), 4)
    dataset = MotionDataset(sets, num_bins=4, size=(64, 96))
    assert dataset.block_size == 2 and len(dataset) == 7

    def keys(processes: int, batch: int) -> list:
        parts = [
            ResumableBatchSampler(7, batch, 0, first=0, last=3, process=p, processes=processes, block=2)
            for p in range(processes)
        ]
        return [key for batches in zip(*parts, strict=True) for keys in batches for key in keys]

    assert keys(1, 4) == keys(2, 2) == keys(4, 1)
    order = ResumableBatchSampler(7, 2, 0, first=0, last=3, block=dataset.block_size)
    alone = [batch["spectrum"] for batch in make_loader(dataset, order)]
    assert all(map(torch.equal, alone, [batch["spectrum"] for batch in make_loader(dataset, order, workers=2)]))
    assert len(RenderingDataset(sets, size=(32, 32))) == 7


def test_the_order_of_a_hundred_million_items_takes_no_memory():
    tracemalloc.start()
    order = ResumableBatchSampler(100_000_000, 4, 0, first=10**9, last=10**9 + 5, block=1000)
    assert len({key.item for batch in order for key in batch}) == 20
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_training_reads_shards(scene_set, tmp_path, capsys):
    folder = tmp_path / "shards"
    assert prepare_data.main(["shards", str(scene_set.folder), "--out", str(folder), "--clips-per-shard", "3"]) == 0
    assert "7 train, 1 test, 3 clips a shard" in capsys.readouterr().out
    flags = [
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--grid",
        "96x64",
        "--crop",
        "64x64",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
    assert train_vae.main(["--data", str(folder), *flags]) == 0
    assert prepare_data.main(["shards", str(tmp_path), "--out", str(folder)]) == 2


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_two_nodes_train_as_one_process_and_another_number_of_processes_goes_on(shards, tmp_path, capsys):
    flags = ["--data", str(shards.folder), "--steps", "6", "--grid", "96x64", "--crop", "64x64", "--log-every", "1"]
    flags += ["--device", "cpu", "--out"]
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    assert train_vae.main([*flags, whole, "--batch-size", "4"]) == 0
    on_two_nodes = ["train_vae.py", *flags, parts, "--batch-size", "1", "--stop-at", "3"]
    torchrun(2, *on_two_nodes, nodes=2, log=tmp_path / "log.txt")
    mark = json.loads((tmp_path / "parts/checkpoints/step-0000003/state.json").read_text())
    assert mark["processes"] == 4 and mark["batch_size"] == 4
    other = ["--batch-size", "3", "--resume", "auto"]
    assert train_vae.main([*flags, parts, *other]) == 2 and "batch_size (was 4, now 3)" in capsys.readouterr().err
    other = ["--batch-size", "2", "--gradient-accumulation-steps", "2", "--resume", "auto"]
    assert train_vae.main([*flags, parts, *other]) == 0
    found, expected = losses(tmp_path / "parts"), losses(tmp_path / "whole")
    assert sorted(found) == [1, 2, 3, 4, 5, 6] and found == pytest.approx(expected, rel=1e-4)
