"""benchmark.py: whole tables of tiny networks and tensors, figures that agree with each other, bad flags in one line.

No time is held against a limit.
"""

from __future__ import annotations

import csv
import json
import logging
from types import SimpleNamespace

import pytest
import torch

import benchmark
import benchmarks.animate
from benchmarks import splatting_cases as splat_benchmark
from benchmarks.flags import SPLATS
from benchmarks.measuring import measure
from cli.parser import UsageError
from splatting import average_splat, sum_splat


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
    assert measure(lambda: allocate(5e6), 1, device)["peak_memory_mb"] == 5
    assert measure(lambda: allocate(2e6), 1, device)["peak_memory_mb"] == 2


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
    monkeypatch.setattr(benchmarks.animate, "load_renderer", lambda *a: pytest.fail("models were loaded"))
    before = sorted(tmp_path.rglob("*"))
    flags = [str(flag).replace("FILE", str(photograph)) for flag in flags]
    assert run_benchmark(checkpoint, photograph, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------------------------------- splatting

CPU = torch.device("cpu")


def run_splatting(out, *flags: object) -> int:
    return benchmark.main(["splatting", "--device", "cpu", "--out", str(out), *map(str, flags)])


@pytest.fixture
def no_processes(monkeypatch):
    """Fresh processes take seconds each: they say nothing here."""
    monkeypatch.setattr(splat_benchmark, "ask_process", lambda code, job, **environment: None)


@pytest.fixture
def threads():
    """Give torch its number of threads back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_splatting_table_is_complete_and_agrees_with_itself(tmp_path, capsys, no_processes):
    out = tmp_path / "new" / "folder"
    assert run_splatting(out, "--sizes", "1x3x10x14", "2x2X9x8", "--repeats", 3, "--seed", 5) == 0
    rows = json.loads((out / "results.json").read_text())
    backends = splat_benchmark.choose_backends(None, CPU)
    assert "reference" in backends
    wanted = [("copy", "torch", "forward")]
    for direction in ("forward", "forward+backward"):
        for op in ("sum", "average", "softmax", "gaussian", "ewa"):
            by_hand = ["scatter_add", "index_add"] if op in ("sum", "average") else []
            wanted += [(op, backend, direction) for backend in [*by_hand, *backends]]
    first = [("average", backend, "first call") for backend in backends]
    assert [(row["op"], row["backend"], row["pass"]) for row in rows] == wanted + wanted + first
    assert len({row["row"] for row in rows}) == len(rows)

    for size, channels, pixels in (("1x3x10x14", 3, 140), ("2x2x9x8", 2, 144)):
        of_size = {(r["op"], r["backend"], r["pass"]): r for r in rows if r["size"] == size and "seconds" not in r}
        copy = of_size["copy", "torch", "forward"]
        for (op, backend, direction), row in of_size.items():
            assert 0 < row["min_ms"] <= row["ms"] <= row["max_ms"]
            inputs = channels + {"copy": 0, "sum": 2, "average": 2}.get(op, 3)
            numbers = inputs + channels + (inputs + channels + inputs if "backward" in direction else 0)
            assert row["gb_per_s"] == pytest.approx(4 * pixels * numbers / (row["ms"] / 1000) / 1e9)
            assert row["share_of_copy"] == pytest.approx(row["gb_per_s"] / copy["gb_per_s"])
            if op == "copy":
                assert row["times_torch"] is None and row["times_average"] is None
                continue
            written = [of_size[op if op == "sum" else "average", "scatter_add", direction]["ms"]]
            if op in ("sum", "average"):
                written.append(of_size[op, "index_add", direction]["ms"])
            assert row["times_torch"] == pytest.approx(min(written) / row["ms"])
            assert row["times_average"] == pytest.approx(row["ms"] / of_size["average", backend, direction]["ms"])

    printed = capsys.readouterr().out
    assert printed == (out / "results.md").read_text() + "\n"
    assert "### 1x3x10x14\n" in printed and "### 2x2x9x8\n" in printed and "### first call\n" in printed
    assert "seed 5" in printed and "of 3 laps" in printed and "command: benchmark.py splatting --device cpu" in printed
    for table in printed.split("### ")[1:]:
        assert len({len(line) for line in table.splitlines() if line.startswith("|")}) == 1, "cells are not padded"
    with open(out / "results.csv", newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == [row["row"] for row in rows]


def test_splatting_flags_choose_what_runs(tmp_path, capsys, no_processes, threads):
    flags = ["--ops", "sum", "sum", "--backends", "reference", "--threads", 1, "--repeats", 1]
    assert run_splatting(tmp_path, "--sizes", "1x1x1x1", *flags) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["op"] for row in rows] == ["copy"] + 6 * ["sum"] + ["average"]
    assert all(row["times_average"] is None for row in rows[:-1])  # there is none to be held against
    assert ", 1 threads, " in capsys.readouterr().out
    # What is held against the average brings the hand-written average along.
    found = splat_benchmark.make_cases(["ewa"], ["reference"], CPU)
    assert [c.op for c in found] == ["copy", "average", "average", "ewa", "average", "average", "ewa"]


def test_splatting_sizes_by_default(caplog):
    with caplog.at_level(logging.INFO, "benchmarks.splatting_cases"):
        assert splat_benchmark.choose_sizes(None, CPU) == list(splat_benchmark.DEFAULT_SIZES[:3])
    assert "--sizes 4x64x1080x1920" in caplog.text
    assert splat_benchmark.choose_sizes(None, torch.device("cuda")) == list(splat_benchmark.DEFAULT_SIZES)
    large = (4, 64, 1080, 1920)
    assert splat_benchmark.choose_sizes([large, large], CPU) == [large]


def test_splatting_help_says_what_there_is(capsys):
    assert SPLATS == tuple(splat_benchmark.OPS)
    assert benchmark.main(["splatting", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(splat_benchmark.name_of(size) in said for size in splat_benchmark.DEFAULT_SIZES)


@pytest.mark.parametrize("name", ["scatter_add", "index_add", "scatter_add rows", "index_add rows"])
@pytest.mark.parametrize("op", [sum_splat, average_splat])
def test_hand_written_splats_agree_with_the_reference(name, op):
    """Also where sources leave the picture, and with the buffers of the pass without gradients."""
    splat = splat_benchmark.hand_written(torch.device("cuda"))[name]
    assert set(splat_benchmark.hand_written(CPU)) == {"scatter_add", "index_add"}
    inputs = splat_benchmark.make_inputs((2, 3, 11, 17), 0, CPU)
    far = (inputs.flow.detach() * 2).requires_grad_()
    inputs = inputs._replace(flow=far)
    wanted = op(inputs.values, far, backend="reference")
    wanted_gradients = torch.autograd.grad(wanted, (inputs.values, far), inputs.upstream)
    normalise = op is average_splat
    with torch.no_grad():
        torch.testing.assert_close(splat(inputs, normalise=normalise), wanted)
    out = splat(inputs, normalise=normalise)
    torch.testing.assert_close(out, wanted)
    assert out.is_contiguous()
    # Float32 sums in another order; the average's gradient divides by small weights.
    gradients = torch.autograd.grad(out, (inputs.values, far), inputs.upstream)
    torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-4, atol=1e-4)


def test_splatting_inputs_are_those_of_the_seed():
    first, again, other = (splat_benchmark.make_inputs((1, 2, 40, 60), seed, CPU) for seed in (0, 0, 1))
    assert torch.equal(first.values, again.values) and torch.equal(first.flow, again.flow)
    assert not torch.equal(first.values, other.values) and not torch.equal(first.flow, other.flow)
    torch.testing.assert_close(first.importance, first.flow.square().sum(1, keepdim=True).sqrt())
    assert 1 < first.flow.std() < 5  # px
    assert first.flow.diff(dim=-1).abs().max() < 2  # smooth


def test_what_exhausts_the_memory_is_left_out(tmp_path, capsys, monkeypatch, no_processes, caplog):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(splat_benchmark, "softmax_splat", exhausted)
    flags = ["--sizes", "1x1x6x6", "--backends", "reference", "--repeats", 1]
    assert run_splatting(tmp_path, *flags) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    empty = {row["op"] for row in rows if row["pass"] != "first call" and "ms" not in row}
    assert empty == {"softmax"} and "softmax, reference, forward is left out: out of memory" in caplog.text

    monkeypatch.setattr(splat_benchmark, "make_inputs", exhausted)
    assert run_splatting(tmp_path / "none", *flags) == 2
    assert "--sizes 1x1x6x6: none fits into the memory" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(not splat_benchmark.meter_is_right(), reason="this system does not tell a process's peak memory")
def test_memory_on_the_cpu_is_that_of_the_pass():
    size = (1, 32, 256, 256)  # 8.4 MB of values
    names = [c[:3] for c in splat_benchmark.make_cases(["average"], ["reference"], CPU)]
    memory = dict(zip(names, splat_benchmark.memory_on_cpu(size, ["average"], ["reference"], 0), strict=True))
    assert memory["copy", "torch", "forward"] < 1
    for backend in ("scatter_add", "reference"):
        forward, both = (memory["average", backend, direction] for direction in splat_benchmark.PASSES)
        # Forward: at least the output; backward: at least that, or the gradient, and a product of the same size.
        assert 8.4 < forward < 84 and 16.8 < both < 336


def test_memory_on_a_gpu_is_the_peak_beyond_the_inputs(monkeypatch):
    peak = [9e6]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5e6)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.__setitem__(0, 5e6))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak[0])
    monkeypatch.setattr(splat_benchmark, "run_once", lambda case, inputs: peak.__setitem__(0, peak[0] + 2e6))
    on_gpu, on_cpu = (SimpleNamespace(values=SimpleNamespace(is_cuda=is_cuda)) for is_cuda in (True, False))
    assert splat_benchmark.memory_on_cuda(None, on_gpu) == 2
    assert splat_benchmark.memory_on_cuda(None, on_cpu) is None


def test_first_call_is_a_fresh_process_with_a_warm_cache():
    row = splat_benchmark.first_call("reference", (1, 2, 8, 8), CPU)
    assert row["row"] == "first call, reference" and row["size"] == "1x2x8x8"
    assert row["seconds"] > 0 and row["import_torch_seconds"] > 0


def test_a_process_that_dies_costs_its_figures_only(caplog):
    assert splat_benchmark.ask_process("raise RuntimeError('of its own')", {}) is None
    assert "of its own" in caplog.text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--sizes", "1x36x160"], "--sizes: expected BxCxHxW, each at least 1"),
        (["--sizes", "1x36x0x256"], "got '1x36x0x256'"),
        (["--sizes", "1x36x160x256", "ten"], "got 'ten'"),
        (["--ops", "mean"], "--ops mean: right: sum, average"),
        (["--backends", "numba"], "--backends numba: right: reference, cpu, cuda"),
        (["--repeats", 0], "--repeats"),
        (["--threads", 0], "--threads"),
        (["--out", "FILE"], "is a file"),
    ],
)
def test_bad_splatting_flags_cost_nothing(tmp_path, capsys, monkeypatch, flags, named):
    monkeypatch.setattr(splat_benchmark, "measure_splatting", lambda **k: pytest.fail("something was measured"))
    (tmp_path / "file").touch()
    flags = [str(flag).replace("FILE", str(tmp_path / "file")) for flag in flags]
    assert run_splatting(tmp_path / "out", "--sizes", "1x1x4x4", *flags) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_backend_that_cannot_run_names_the_remedy(monkeypatch):
    monkeypatch.setattr(splat_benchmark, "available_backends", lambda: ("reference", "cuda"))
    assert splat_benchmark.choose_backends(None, CPU) == ["reference"]
    assert splat_benchmark.choose_backends(None, SimpleNamespace(type="cuda")) == ["reference", "cuda"]
    with pytest.raises(UsageError, match="--backends cuda: cannot run with --device cpu; right: --device cuda"):
        splat_benchmark.choose_backends(["cuda"], CPU)

    def refuse(*args, backend):
        raise RuntimeError(f"splatting: the {backend!r} backend needs a thing: get it")

    monkeypatch.setattr(splat_benchmark, "average_splat", refuse)
    with pytest.raises(UsageError, match="--backends cpu: splatting: the 'cpu' backend needs a thing: get it"):
        splat_benchmark.choose_backends(["reference", "cpu"], CPU)
