"""benchmark.py motion and data: complete tables that agree with themselves, the sequential scheme is the same maths."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import benchmark
from benchmarks import data as data_benchmark
from benchmarks import data as data_flags
from benchmarks import motion as motion_benchmark
from benchmarks import motion as motion_flags
from benchmarks.measuring import meter_is_right, peak_memory_mb, reset_peak_memory, take_turns
from benchmarks.motion import BATCHED, SEQUENTIAL, Job
from models.motion_pipeline import MotionPipeline
from models.unet import FrequencyUNet

CPU = torch.device("cpu")


@pytest.fixture
def no_processes(monkeypatch):
    """Fresh processes take seconds each: they say nothing here."""
    monkeypatch.setattr(motion_benchmark, "ask_process", lambda code, asked, **environment: 12.5)


def a_job(checkpoint, **changes) -> Job:
    job = Job(str(checkpoint), (32, 64), "dpm", 3, 1.0, "no", seed=0, samples=1, device="cpu")
    return replace(job, **changes)


def run_motion(*flags: object) -> int:
    return benchmark.main(["motion", "--device", "cpu", *map(str, flags)])


def test_motion_table_is_complete_and_agrees_with_itself(checkpoint, tmp_path, capsys, no_processes):
    flags = ["--grid", "64x32", "--samplers", "dpm", "ddim", "--steps", 2, 3, "--samples", 1, 2, "--repeats", 1]
    assert run_motion("--checkpoint", checkpoint, "--out", tmp_path, *flags) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["row"] for row in rows] == [
        "dpm, 2 steps, batched",
        "dpm, 2 steps, sequential (baseline)",
        "dpm, 3 steps, batched",
        "ddim, 2 steps, batched",
        "ddim, 3 steps, batched",
        "dpm, 2 steps, 2 samples, batched",
        "dpm, 2 steps, 2 samples, sequential (baseline)",
        "dpm, 3 steps, 2 samples, batched",
        "ddim, 2 steps, 2 samples, batched",
        "ddim, 3 steps, 2 samples, batched",
    ]
    by_name = {row["row"]: row for row in rows}
    for name, row in by_name.items():
        samples, steps = (2 if "2 samples" in name else 1), (2 if "2 steps" in name else 3)
        batch = ", 2 samples" if samples == 2 else ""
        slow = by_name[f"dpm, 2 steps{batch}, sequential (baseline)"]
        assert row["seconds_a_sample"] == pytest.approx(row["seconds"] / samples)
        assert row["ms_a_step"] == pytest.approx(1000 * row["seconds"] / steps)
        if steps == 2:
            assert row["times_sequential"] == pytest.approx(slow["seconds"] / row["seconds"])
        else:
            assert row["times_sequential"] is None
        assert row["peak_memory_mb"] == 12.5
    # Equally large: the same network with K = 1, but for the head that expects magnitudes of one bin instead of four.
    sizes = {row["parameters_m"] for row in rows}
    assert max(sizes) < 1.01 * min(sizes)
    printed = capsys.readouterr().out
    assert "command: benchmark.py motion --device cpu" in printed and "grid 64 x 32, guidance 1" in printed


def test_sequential_and_batched_sampling_are_the_same_work(checkpoint, monkeypatch):
    """In mode "independent", and told the frequency of bin 0 alone, K = 1 must give what the batch gives for bin 0."""
    # The power of a position is that of all its bins, of which the others were told another frequency.
    monkeypatch.setattr(FrequencyUNet, "with_expected_power", lambda unet, latents, condition: latents)
    pipeline = MotionPipeline.load(checkpoint)
    pipeline.unet.register_to_config(mode="independent")
    for level in [*pipeline.unet.down, pipeline.unet.middle, *pipeline.unet.up]:
        level.coordination = None
    single = motion_benchmark.one_frequency(pipeline.unet)
    assert single.config.num_bins == 1
    image = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    job = a_job(checkpoint, samples=2)
    batched = motion_benchmark.predict(pipeline, single, image, job)
    sequential = motion_benchmark.predict(pipeline, single, image, replace(job, scheme=SEQUENTIAL))
    assert batched.shape == sequential.shape == (1, 2, 4, 4, 32, 64)
    torch.testing.assert_close(batched[:, :, 0, 1::2], sequential[:, :, 0, 1::2], atol=1e-4, rtol=1e-3)
    assert (batched - sequential)[:, :, 1:].abs().max() > 1e-3  # those were told another frequency


def test_sequential_sampling_calls_the_network_for_each_frequency(checkpoint, monkeypatch):
    pipeline, calls = MotionPipeline.load(checkpoint), []
    single = motion_benchmark.one_frequency(pipeline.unet)
    for name, unet in ((BATCHED, pipeline.unet), (SEQUENTIAL, single)):
        unet.conv_in.register_forward_hook(lambda module, inputs, output, n=name: calls.append((n, len(inputs[0]))))
    image = torch.rand(1, 3, 32, 64)
    for scheme in (BATCHED, SEQUENTIAL):
        motion_benchmark.predict(pipeline, single, image, a_job(checkpoint, scheme=scheme))
    # 3 steps; 4 bins and both halves of the guidance in a call, or 4 chains of both halves
    assert calls == 3 * [(BATCHED, 8)] + 12 * [(SEQUENTIAL, 2)]


@pytest.mark.parametrize("mode", ["coordinated", "independent", "volume"])
def test_presets_need_no_checkpoint(mode, monkeypatch, checkpoint):
    monkeypatch.setitem(
        motion_benchmark.UNET_PRESETS,
        "tiny",
        {"block_channels": (16, 16), "condition_channels": 16, "num_heads": 2, "backbone": "none", "mode": mode},
    )
    pipeline = motion_benchmark.load_networks(a_job("tiny"))
    single = motion_benchmark.one_frequency(pipeline.unet)
    for scheme in (BATCHED, SEQUENTIAL):
        found = motion_benchmark.predict(
            pipeline, single, torch.rand(1, 3, 32, 64), a_job("tiny", steps=2, scheme=scheme)
        )
        assert found.shape == (1, 1, 16, 4, 32, 64) and torch.isfinite(found).all()


@pytest.mark.skipif(not meter_is_right(), reason="this system does not tell a process's peak memory")
def test_memory_of_a_row_is_that_of_its_own_process(checkpoint, monkeypatch, capsys):
    """Eight samples in a batch take more than one, though both are asked of the same program."""
    small, large = (
        motion_benchmark._memory_of(a_job(checkpoint, samples=n, grid=(64, 128)), lambda: None, CPU) for n in (1, 8)
    )
    assert 0.5 < small < large < 300 and large > 2 * small


@pytest.mark.skipif(not meter_is_right(), reason="this system does not tell a process's peak memory")
def test_peak_memory_in_one_process_is_counted_anew():
    reset_peak_memory(CPU)
    torch.ones(50_000_000)  # 200 MB, freed at once
    large = peak_memory_mb(CPU)
    reset_peak_memory(CPU)
    assert peak_memory_mb(CPU) < large - 150


def test_all_take_turns():
    order: list[int] = []
    seconds = take_turns([lambda n=n: order.append(n) for n in range(3)], 2, CPU)
    assert order == [0, 1, 2, 0, 1, 2] and len(seconds) == 3


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--grid", "100x64"], "--grid 100x64: right: sides that are multiples of 32 px"),
        (["--steps", 1], "--steps 1: right: 2 to 1000"),
        (["--samplers", "euler"], "--samplers euler: right: dpm, ddim, unipc"),
        (["--preset", "tiny", "--checkpoint", "x"], "--preset: --checkpoint has its own size"),
        (["--checkpoint", "/nowhere"], "/nowhere: no such checkpoint folder"),
        (["--precision", "fp16"], "--precision fp16: needs a GPU"),
        (["--out", "FILE"], "is a file"),
    ],
)
def test_bad_motion_flags_are_one_line(tmp_path, capsys, monkeypatch, flags, named):
    (tmp_path / "file").touch()
    flags = [str(flag).replace("FILE", str(tmp_path / "file")) for flag in flags]
    assert run_motion("--out", tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_presets_of_the_flag_exist():
    assert set(motion_flags.PRESETS) == set(motion_benchmark.UNET_PRESETS) == set(motion_benchmark.VAE_PRESETS)


# ---------------------------------------------------------------------------------------------- data


def run_data(*flags: object) -> int:
    return benchmark.main(["data", *map(str, flags)])


def test_data_table(tmp_path, capsys, scene_set, monkeypatch):
    monkeypatch.setattr(data_benchmark, "READ_ITEMS", 2)
    monkeypatch.setattr(data_benchmark, "NUM_FRAMES", 60)  # of the slow baseline: enough for the fit of 24 bins
    monkeypatch.setattr(data_benchmark, "FPS", 12.0)
    threads = torch.get_num_threads()
    flags = ["--scenes", 2, "--size", "96x64", "--methods", "farneback", "--pairs", 2, "--data", scene_set.folder]
    assert run_data(*flags, "--out", tmp_path) == 0
    assert torch.get_num_threads() == threads
    rows = {row["row"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert list(rows) == [
        "scene, motion item",
        "scene, motion item by fit (baseline)",
        "scene, frame pair",
        "set, motion item, augmented",
        "flow, dis_fast (baseline)",
        "flow, farneback",
    ]
    for row in rows.values():
        assert row["items_per_s"] == pytest.approx(1 / row["seconds"]) and row["seconds"] > 0
    slow = rows["scene, motion item by fit (baseline)"]
    item, flow = rows["scene, motion item"], rows["flow, farneback"]
    assert item["times_baseline"] == pytest.approx(item["items_per_s"] / slow["items_per_s"])
    assert flow["times_baseline"] == pytest.approx(flow["seconds"] / rows["flow, dis_fast (baseline)"]["seconds"])
    assert "command: benchmark.py data --scenes 2" in capsys.readouterr().out


def test_rates_of_several_processes_add_up(monkeypatch):
    asked = []

    def run_jobs(function, jobs, workers):
        asked.append((list(jobs), workers))
        yield from (0.5 for _ in jobs)

    monkeypatch.setattr(data_benchmark, "run_jobs", run_jobs)
    rows = data_benchmark.measure_scenes(5, size=(64, 96), seed=10, workers=2)
    assert rows[0]["items_per_s"] == 4.0  # 2 a second each
    assert asked[0] == (
        [("scene, motion item", [10, 12, 14], (64, 96)), ("scene, motion item", [11, 13], (64, 96))],
        2,
    )
    slow = "scene, motion item by fit (baseline)"
    assert asked[1][0] == [(slow, [10], (64, 96)), (slow, [11], (64, 96))]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--size", "16x16"], "--size 16x16: right: at least 32x32"),
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
    from data.optical_flow import METHODS

    assert set(data_flags.METHODS) <= set(METHODS)
