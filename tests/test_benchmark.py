"""benchmark.py: a whole table of tiny networks, memory of each row by itself, bad flags in one line."""

from __future__ import annotations

import json

import pytest
import torch

import benchmark


def run_benchmark(checkpoint, photograph, out, *flags: object) -> int:
    common = ["--picture", photograph, "--checkpoint", checkpoint, "--out", out, "--device", "cpu"]
    return benchmark.main(["animate", *map(str, common), *map(str, flags)])


def test_the_table_has_every_part_beside_the_baseline(checkpoint, photograph, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    flags = ["--size", 64, "--frames", 2, "--steps", 2, "--repeats", 1, "--precision", "bf16"]
    assert run_benchmark(checkpoint, photograph, out, *flags) == 0
    rows = {row["row"]: row for row in json.loads((out / "results.json").read_text())}
    assert list(rows) == [
        "load the checkpoint",
        "predict motion, 2 steps, no guidance",
        "predict motion, 2 steps, guided",
        "render, image space (baseline)",
        "render, softmax",
        "render, gaussian",
    ]
    baseline, softmax = rows["render, image space (baseline)"], rows["render, softmax"]
    assert baseline["times_the_baseline"] == 1
    assert softmax["times_the_baseline"] == pytest.approx(softmax["seconds"] / baseline["seconds"])
    assert softmax["frames_per_s"] == pytest.approx(2 / softmax["seconds"])
    printed = capsys.readouterr().out
    assert (
        "picture at 64 px, 2 frames, precision bf16, seed 0" in printed and "command: benchmark.py animate" in printed
    )


def test_memory_of_a_row_is_its_own(monkeypatch):
    """An allocator that keeps its peak until it is reset: the small second row must not show the first one's."""
    peak = [0.0]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, 0.0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def allocate(number: float) -> None:
        peak[0] = max(peak[0], number)

    device = torch.device("cuda:0")
    assert benchmark.measure(lambda: allocate(5e6), 1, device)["peak_memory_mb"] == 5
    assert benchmark.measure(lambda: allocate(2e6), 1, device)["peak_memory_mb"] == 2


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--frames", 1], "--frames 1: right: 2 to"),
        (["--steps", 1], "--steps 1: right: 2 to 1000"),
        (["--steps", 1001], "--steps 1001: right: 2 to 1000"),
        (["--size", 8], "--size 8: right: at least 16 px"),
        (["--precision", "fp16"], "--precision fp16: needs a GPU"),
        (["--out", "FILE"], "is a file"),
        (["--out", "FILE/new"], "its folder cannot be made"),
        (["--picture", "nowhere.jpg"], "nowhere.jpg"),
        (["--frames", 10**9], "--frames"),
    ],
)
def test_bad_flags_cost_nothing(checkpoint, photograph, tmp_path, capsys, monkeypatch, flags, named):
    monkeypatch.setattr(benchmark, "load_renderer", lambda *a: pytest.fail("models were loaded"))
    before = sorted(tmp_path.rglob("*"))
    flags = [str(flag).replace("FILE", str(photograph)) for flag in flags]
    assert run_benchmark(checkpoint, photograph, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
