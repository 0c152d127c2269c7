"""benchmark.py data: a complete table, known rates and ratios, bad flags in one line."""

from __future__ import annotations

from contextlib import contextmanager

import cv2
import pytest
import torch
from result_tables import read_rows

import benchmark
from benchmarks import data as data_benchmark
from benchmarks.flags import FLOW_METHODS
from cluster.items import ItemResult
from data.optical_flow import METHODS


@pytest.fixture(autouse=True)
def threads():
    """Give torch and OpenCV their numbers of threads back."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def run_data(*flags: object) -> int:
    return benchmark.main(["data", *map(str, flags)])


def test_data_table(tmp_path, capsys, scene_set, monkeypatch):
    monkeypatch.setattr(data_benchmark, "READ_ITEMS", 2)
    monkeypatch.setattr(data_benchmark, "NUM_FRAMES", 60)  # of the slow baseline: enough for the fit of 24 bins
    monkeypatch.setattr(data_benchmark, "FPS", 12.0)
    flags = ["--scenes", 2, "--size", "64x32", "--methods", "farneback", "--pairs", 1, "--repeats", 1]
    assert run_data(*flags, "--data", scene_set.folder, "--out", tmp_path) == 0
    rows = read_rows(tmp_path)
    assert list(rows) == [
        "scene, motion item",
        "scene, motion item by fit (baseline)",
        "scene, frame pair",
        "set, motion item, augmented",
        "flow, dis_fast (baseline)",
        "flow, farneback",
    ]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert "command: benchmark.py data --scenes 2" in capsys.readouterr().out


def test_rates_of_several_processes_add_up(monkeypatch):
    asked = []

    @contextmanager
    def run_items(function, items, workers, unit, *, progress):
        asked.append(([(function.args[0].__name__, item, function.args[1]) for item in items], workers.count))
        yield (ItemResult(item, 0.5 if function.args[0] is data_benchmark.motion_item else 2.0) for item in items)

    monkeypatch.setattr(data_benchmark, "run_items", run_items)
    rows = data_benchmark.measure_scenes(5, size=(64, 96), seed=10, workers=2)
    names = ("items_per_s", "seconds", "times_as_fast")
    # 2 processes, 2 scenes a second each, or one in 2 s
    assert [rows[0][name] for name in names] == [4.0, 0.25, 4.0] and [rows[1][name] for name in names] == [1, 1, 1]
    assert asked[0] == ([("motion_item", [10, 12, 14], (64, 96)), ("motion_item", [11, 13], (64, 96))], 2)
    assert asked[1][0] == [("motion_item_by_fit", [10], (64, 96)), ("motion_item_by_fit", [11], (64, 96))]


def test_flow_is_timed_a_pair_beside_its_baseline(monkeypatch):
    found = {"dis_fast": {"seconds": 1.0}, "farneback": {"seconds": 3.0}}
    monkeypatch.setattr(data_benchmark, "measure", lambda works, *_: {name: found[name] for name in works})
    rows = data_benchmark.measure_flow(["farneback"], 2, size=(32, 64), seed=0, repeats=1)
    known = {"items_per_s": pytest.approx(2 / 3), "seconds": 1.5, "times_as_long": 3.0}
    assert rows[1] == {"row": "flow, farneback"} | known and rows[0]["row"] == "flow, dis_fast (baseline)"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--size", "16x16"], "--size: expected at least 32x32, got '16x16'"),
        (["--methods", "raft"], "--methods raft: right: dis_fast, dis"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--scenes", 0], "--scenes"),
    ],
)
def test_bad_data_flags_are_one_line(tmp_path, capsys, flags, named):
    assert run_data("--out", tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_methods_of_the_flag_exist():
    assert set(FLOW_METHODS) <= set(METHODS)
