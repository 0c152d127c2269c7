"""benchmark.py motion: a complete table, known figures, the sequential scheme is the same maths."""

from __future__ import annotations

import pytest
import torch
from result_tables import read_list, read_rows

import benchmark
from benchmarks import motion as motion_benchmark
from benchmarks.flags import PRESETS
from benchmarks.motion import load_networks, one_frequency, predict_sequentially
from models.motion_pipeline import MotionPipeline
from models.unet import FrequencyUNet

OPTIONS = {"sampler": "dpm", "steps": 3, "guidance": 1.0, "precision": "no", "seed": 0, "num_samples": 1}


def run_motion(*flags: object) -> int:
    return benchmark.main(["motion", "--device", "cpu", *map(str, flags)])


def test_motion_table_is_complete(checkpoint, tmp_path, capsys):
    flags = ["--grid", "64x32", "--samplers", "dpm", "ddim", "--steps", 2, 3, "--samples", 1, 2, "--repeats", 1]
    assert run_motion("--checkpoint", checkpoint, "--out", tmp_path, *flags) == 0
    rows = read_list(tmp_path)
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
    assert all(row["seconds"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "command: benchmark.py motion --device cpu" in printed and "grid 64 x 32, guidance 1" in printed


def test_times_are_a_sample_a_step_and_beside_the_baseline(checkpoint, tmp_path, monkeypatch):
    def found(works, *_):
        return {name: {"seconds": 12.0 if "sequential" in name else 3.0, "peak_memory_mb": None} for name in works}

    monkeypatch.setattr(motion_benchmark, "measure", found)
    flags = ["--samplers", "dpm", "ddim", "--steps", 2, 3, "--samples", 1, 2]
    assert run_motion("--checkpoint", checkpoint, "--out", tmp_path, *flags) == 0
    rows, columns = read_rows(tmp_path), ("seconds_a_sample", "ms_a_step", "times_sequential")
    assert [rows["ddim, 2 steps, 2 samples, batched"][column] for column in columns] == [1.5, 1500, 4]
    assert [rows["dpm, 2 steps, sequential (baseline)"][column] for column in columns] == [12, 6000, 1]
    assert [rows["dpm, 3 steps, batched"][column] for column in columns] == [3, 1000, None]  # of other steps


def test_sequential_and_batched_sampling_are_the_same_work(checkpoint, monkeypatch):
    """In mode "independent", and told the frequency of bin 0 alone, K = 1 must give what the batch gives for bin 0."""
    # The power of a position is that of all its bins, of which the others were told another frequency.
    monkeypatch.setattr(FrequencyUNet, "with_expected_power", lambda unet, latents, condition, **_: latents)
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    pipeline.unet.register_to_config(mode="independent")
    for level in [*pipeline.unet.down, pipeline.unet.middle, *pipeline.unet.up]:
        level.coordination = None
    single = one_frequency(pipeline.unet)
    assert single.config.num_bins == 1
    image = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    options = OPTIONS | {"num_samples": 2}
    batched = pipeline(image, max_batch=2, **options)
    sequential = predict_sequentially(pipeline, single, image, **options)
    assert batched.shape == sequential.shape == (1, 2, 4, 4, 32, 64)
    torch.testing.assert_close(batched[:, :, 0, 1::2], sequential[:, :, 0, 1::2], atol=1e-4, rtol=1e-3)
    assert (batched - sequential)[:, :, 1:].abs().max() > 1e-3  # those were told another frequency


def test_sequential_sampling_calls_the_network_for_each_frequency(checkpoint, monkeypatch):
    pipeline, calls = MotionPipeline.from_pretrained(checkpoint), []
    single = one_frequency(pipeline.unet)
    for name, unet in (("batched", pipeline.unet), ("sequential", single)):
        unet.conv_in.register_forward_hook(lambda module, inputs, output, n=name: calls.append((n, len(inputs[0]))))
    image = torch.rand(1, 3, 32, 64)
    pipeline(image, **OPTIONS)
    predict_sequentially(pipeline, single, image, **OPTIONS)
    # 3 steps; 4 bins and both halves of the guidance in a call, or 4 chains of both halves
    assert calls == 3 * [("batched", 8)] + 12 * [("sequential", 2)]


@pytest.mark.parametrize("mode", ["coordinated", "independent", "volume"])
def test_presets_need_no_checkpoint(mode, monkeypatch, checkpoint):
    monkeypatch.setitem(
        motion_benchmark.UNET_PRESETS,
        "tiny",
        {"block_channels": (16, 16), "condition_channels": 16, "num_heads": 2, "backbone": "none", "mode": mode},
    )
    pipeline = load_networks(None, "tiny", 0)
    single, options = one_frequency(pipeline.unet), OPTIONS | {"steps": 2}
    for predict in (pipeline, lambda image, **o: predict_sequentially(pipeline, single, image, **o)):
        found = predict(torch.rand(1, 3, 32, 64), **options)
        assert found.shape == (1, 1, 16, 4, 32, 64) and torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--grid", "100x64"], "--grid: expected sides that are multiples of 32 px, got '100x64'"),
        (["--steps", 1], "--steps: expected a whole number from 2 to 1000"),
        (["--samplers", "euler"], "--samplers euler: right: dpm, ddim, unipc"),
        (["--preset", "tiny", "--checkpoint", "x"], "--checkpoint: not allowed with argument --preset"),
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
    assert set(PRESETS) == set(motion_benchmark.UNET_PRESETS) == set(motion_benchmark.VAE_PRESETS)
