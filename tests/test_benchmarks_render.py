"""benchmark.py render: a whole table of tiny networks, known figures, bad flags in one line.

No time is held against a limit.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from result_tables import read_list
from torch.autograd import DeviceType

import benchmark
from benchmarks import render as render_benchmark
from benchmarks.flags import PRESETS, SIZES
from benchmarks.render import load_network, make_inputs, splat_percent
from models import frame_synthesis
from models.rendering import render_frames
from splatting import softmax_splat

CPU = torch.device("cpu")


def run_render(out, *flags: object) -> int:
    return benchmark.main(["render", "--device", "cpu", "--out", str(out), *map(str, flags)])


def test_the_table_has_a_row_for_each_size_and_method(tmp_path, capsys, checkpoint):
    sizes = ["--sizes", "48x32", "64x40"]
    flags = [*sizes, "--frames", 3, "--repeats", 1, "--checkpoint", checkpoint, "--tile", 32]
    assert run_render(tmp_path / "new", *flags) == 0
    rows = read_list(tmp_path / "new")
    names = ["preview", "small", "softmax", "gaussian", "softmax, half still", "gaussian, half still"]
    assert [row["row"] for row in rows] == [f"{size}, {name}" for size in ("48x32", "64x40") for name in names]
    for first in (0, 6):
        preview, small = rows[first : first + 2]
        assert preview["times_preview"] == small["times_small"] == 1 and preview["tile_px"] is None
        for row in rows[first : first + 6]:
            assert 0 < row["splat_percent"] < 100 and row["batch"] == 2 and row["frames_per_s"] > 0
    assert rows[1]["tile_px"] == 32
    printed = capsys.readouterr().out
    assert "renders 3 frames" in printed and "command: benchmark.py render --device cpu" in printed
    with open(tmp_path / "new" / "results.csv", newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == [row["row"] for row in rows]


def test_the_preview_comes_along(tmp_path, monkeypatch):
    seconds = {"preview": 0.5, "small": 4.0, "softmax": 2.0, "softmax, half still": 1.0}
    found = {name: {"seconds": taken, "peak_memory_mb": None} for name, taken in seconds.items()}
    monkeypatch.setattr(render_benchmark, "measure", lambda works, *_: {name: found[name] for name in works})
    monkeypatch.setattr(render_benchmark, "splat_percent", lambda *_: None)
    assert run_render(tmp_path, "--preset", "tiny", "--methods", "softmax") == 0
    rows = read_list(tmp_path)
    sizes = [f"{width}x{height}" for height, width in SIZES]
    names = ("preview", "small", "softmax", "softmax, half still")
    assert [row["row"] for row in rows] == [f"{size}, {name}" for size in sizes for name in names]
    known = {"frames_per_s": 2, "ms_a_frame": 500, "times_small": 2, "times_preview": 4}  # of 4 frames
    assert {name: rows[2][name] for name in known} == known
    assert set(PRESETS) < set(frame_synthesis.PRESETS)


def test_a_baseline_that_exhausts_the_memory_leaves_its_columns_empty(tmp_path, monkeypatch):
    found = {"seconds": 1.0, "peak_memory_mb": None}
    monkeypatch.setattr(render_benchmark, "measure", lambda works, *_: {n: found for n in works if n != "small"})
    monkeypatch.setattr(render_benchmark, "splat_percent", lambda *_: None)
    assert run_render(tmp_path, "--preset", "tiny", "--methods", "softmax", "--sizes", "48x32") == 0
    rows = read_list(tmp_path)
    assert [row["row"] for row in rows] == [f"48x32, {name}" for name in ("preview", "softmax", "softmax, half still")]
    assert all(row["times_small"] is None and row["times_preview"] == 1 for row in rows)


def test_what_is_rendered_moves_in_every_frame():
    inputs = make_inputs((32, 48), 3, 0)
    frames = torch.cat(list(render_frames(*inputs, model=load_network("softmax", None, "tiny", 0))))
    assert frames.shape == (3, 3, 32, 48)
    for frame in frames:
        assert ((frame - inputs[0]).abs().amax(0) > 0.01).float().mean() > 0.5
    image, motion, _ = make_inputs((64, 96), 3, 0, still=0.5)
    moved = motion.importance()
    assert moved[:, :64].max() == 0 and moved[:, 96:].min() > 0 and image.shape == (3, 64, 96)


def test_the_splats_share_is_that_of_the_operators(each_backend, capfd):
    """All of a call that only splats, none of one that does not; plain torch has no operator to be found."""
    values, flow, kernel = torch.rand(1, 16, 256, 256), torch.rand(1, 2, 256, 256), torch.rand(16, 16, 3, 3)

    def splat() -> None:
        for _ in range(10):  # on a busy machine any single operator may have to wait
            softmax_splat(values, flow, flow[:, :1])

    def convolve() -> None:
        for _ in range(100):
            torch.nn.functional.conv2d(values, kernel)

    splat()
    assert splat_percent(convolve, CPU) is None
    share = splat_percent(splat, CPU)
    if each_backend == "reference":
        assert share is None
    else:
        assert 40 < share <= 100
        assert splat_percent(lambda: (splat(), convolve()), CPU) < share
    assert "profiler" not in capfd.readouterr().err


def test_the_splats_share_on_a_gpu_is_of_its_kernels(monkeypatch):
    """What torch.profiler returns where a GPU is: each kernel, and its time again in the operator that launched it."""
    events = [
        SimpleNamespace(key=key, device_type=kind, self_device_time_total=itself, device_time_total=total)
        for key, kind, itself, total in (
            ("image_dynamics::splat", DeviceType.CPU, 20, 30),
            ("aten::fill_", DeviceType.CPU, 10, 10),
            ("aten::convolution", DeviceType.CPU, 90, 90),
            ("gather_2x2", DeviceType.CUDA, 20, 20),
            ("fill", DeviceType.CUDA, 10, 10),
            ("convolve", DeviceType.CUDA, 90, 90),
        )
    ]

    class Profile:
        def __init__(self, activities) -> None:
            assert torch.profiler.ProfilerActivity.CUDA in activities

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            pass

        def key_averages(self):
            return events

    monkeypatch.setattr(render_benchmark, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert splat_percent(lambda: None, torch.device("cuda:0")) == 25


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--sizes", "8x8"], "--sizes: expected at least 32x32, got '8x8'"),
        (["--sizes", "256"], "expected WIDTHxHEIGHT"),
        (["--methods", "magic"], "--methods magic: right: preview, softmax, gaussian"),
        (["--frames", 0], "--frames"),
        (["--tile", 8], "--tile: expected 0 for never, or at least 32 px, got '8'"),
        (["--preset", "tiny", "--checkpoint", "x"], "--checkpoint: not allowed with argument --preset"),
        (["--precision", "fp16"], "--precision fp16: needs a GPU"),
        (["--checkpoint", "/nowhere"], "/nowhere"),
        (["--out", "FILE"], "is a file"),
    ],
)
def test_bad_flags_cost_nothing(tmp_path: Path, capsys, flags, named):
    (tmp_path / "file").touch()
    flags = [str(flag).replace("FILE", str(tmp_path / "file")) for flag in flags]
    assert run_render(tmp_path / "out", "--sizes", "32x32", *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert named in error[-1] and "Traceback" not in "".join(error)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    shutil.rmtree(tmp_path)
