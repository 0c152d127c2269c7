"""benchmark.py animate: a whole table of tiny networks, known figures, bad flags in one line.

No time is held against a limit.
"""

from __future__ import annotations

import pytest
import torch
from result_tables import read_rows

import benchmark
import benchmarks.animate
from benchmarks.measuring import measure, peak_memory_mb

CPU = torch.device("cpu")


def run_benchmark(checkpoint, photograph, out, *flags: object) -> int:
    common = ["--picture", photograph, "--checkpoint", checkpoint, "--out", out, "--device", "cpu"]
    return benchmark.main(["animate", *map(str, common), *map(str, flags)])


def test_the_table_has_every_part_beside_the_baseline(checkpoint, photograph, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    flags = ["--size", 32, "--frames", 2, "--steps", 2, "--repeats", 1, "--precision", "bf16"]
    assert run_benchmark(checkpoint, photograph, out, *flags) == 0
    rows = read_rows(out)
    assert list(rows) == [
        "load the checkpoint",
        "predict motion",
        "predict motion, guided",
        "render, image space (baseline)",
        "render, softmax",
        "render, gaussian",
        "predict motion, beside a busy process on each core",
        "render, softmax, beside a busy process on each core",
    ]
    assert all(row["seconds"] > 0 for row in rows.values())
    printed = capsys.readouterr().out
    assert "image at 32 px, 2 frames, 2 steps, precision bf16, seed 0" in printed
    assert "command: benchmark.py animate" in printed


def test_rendering_is_beside_the_baseline_and_a_busy_machine_beside_an_idle_one(
    checkpoint, photograph, tmp_path, monkeypatch
):
    times = iter([{"render, softmax": 4.0}, {"render, softmax": 10.0}])  # idle, busy; all else takes 1 s

    def found(works, *_):
        seconds = dict.fromkeys(works, 1.0) | next(times)
        return {name: {"seconds": taken, "peak_memory_mb": None} for name, taken in seconds.items()}

    monkeypatch.setattr(benchmarks.animate, "measure", found)
    assert run_benchmark(checkpoint, photograph, tmp_path, "--size", 32, "--frames", 2, "--steps", 2) == 0
    rows = read_rows(tmp_path)
    softmax = rows["render, softmax"]
    assert (softmax["frames_per_s"], softmax["times_the_baseline"]) == (0.5, 4)
    assert rows["render, softmax, beside a busy process on each core"]["times_idle"] == 2.5


def test_parts_that_exhaust_the_memory_are_left_out(checkpoint, photograph, tmp_path, monkeypatch):
    left_out = ("render, image space (baseline)", "predict motion")
    found = {"seconds": 1.0, "peak_memory_mb": None}
    fake = lambda works, *_: {name: found for name in works if name not in left_out}  # noqa: E731
    monkeypatch.setattr(benchmarks.animate, "measure", fake)
    assert run_benchmark(checkpoint, photograph, tmp_path, "--size", 32, "--frames", 2, "--steps", 2) == 0
    rows = read_rows(tmp_path)
    assert rows["render, softmax"]["times_the_baseline"] is None and "predict motion" not in rows
    assert rows["render, softmax, beside a busy process on each core"]["times_idle"] == 1


def test_memory_on_a_gpu_is_the_peak_beyond_what_was_there(monkeypatch):
    """An allocator that keeps its peak until it is reset: a small second call must not show the first one's."""
    peak = [9e6]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5e6)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, 5e6))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    for megabytes in (5, 2):
        found = peak_memory_mb(lambda mb=megabytes: peak.__setitem__(0, 5e6 + mb * 1e6), torch.device("cuda:0"))
        assert found == megabytes


@pytest.mark.skipif(peak_memory_mb(lambda: None, CPU) is None, reason="this system does not tell the peak memory")
def test_memory_on_a_cpu_is_the_peak_of_the_call():
    for megabytes in (200, 60, 200):  # the second time what was freed must count again
        found = peak_memory_mb(lambda mb=megabytes: torch.ones(mb * 250_000), CPU)
        assert abs(found - megabytes) < 5


def test_all_take_turns_and_what_exhausts_the_memory_is_left_out(caplog):
    order: list[int] = []

    def exhausted() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    works = {"a": lambda: order.append(0), "b": lambda: order.append(1), "c": exhausted}
    found = measure(works, 2, CPU, flush=torch.zeros(8))
    assert order[-4:] == [0, 1, 0, 1] and list(found) == ["a", "b"] and "c is left out: out of memory" in caplog.text
    assert all(0 < row["min_s"] <= row["seconds"] <= row["max_s"] for row in found.values())
    with pytest.raises(RuntimeError, match="another"):
        measure({"d": lambda: (_ for _ in ()).throw(RuntimeError("another"))}, 1, CPU)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--frames", 1], "--frames: expected a whole number from 2 to"),
        (["--steps", 1], "--steps: expected a whole number from 2 to 1000"),
        (["--steps", 1001], "--steps: expected a whole number from 2 to 1000"),
        (["--size", 8], "--size: expected a whole number of at least 16"),
        (["--precision", "fp16"], "--precision fp16: needs a GPU"),
        (["--out", "FILE"], "is a file"),
        (["--out", "FILE/new"], "its folder cannot be made"),
        (["--picture", "nowhere.jpg"], "nowhere.jpg"),
        (["--frames", 10**9], "--frames"),
    ],
)
def test_bad_flags_cost_nothing(checkpoint, photograph, tmp_path, capsys, monkeypatch, flags, named):
    monkeypatch.setattr(benchmarks.animate, "load_renderer", lambda *a: pytest.fail("models were loaded"))
    before = sorted(tmp_path.rglob("*"))
    flags = [str(flag).replace("FILE", str(photograph)) for flag in flags]
    assert run_benchmark(checkpoint, photograph, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
