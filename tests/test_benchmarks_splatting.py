"""benchmark.py splatting: a whole table of tiny tensors, known figures, bad flags in one line.

No time is held against a limit.
"""

from __future__ import annotations

import csv

import pytest
import torch
from result_tables import read_list, read_rows

import benchmark
from benchmarks import splatting
from benchmarks.flags import BACKENDS, SPLATS
from benchmarks.splatting import average_by_index_add, average_by_scatter_add, choose_backends, make_inputs
from data.cpus import COUNTS
from models.device import ArgumentError
from splatting import average_splat, functional

CPU = torch.device("cpu")
BASELINES = ("scatter_add", "index_add")


def run_splatting(out, *flags: object) -> int:
    return benchmark.main(["splatting", "--device", "cpu", "--out", str(out), *map(str, flags)])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Flush little, and give torch its number of threads back."""
    monkeypatch.setattr(splatting, "FLUSH_BYTES", 4000)
    before = torch.get_num_threads()
    for name in COUNTS:
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(before)


def test_the_table_is_complete(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert run_splatting(out, "--sizes", "1x3x10x14", "2x2X9x8", "--repeats", 3, "--seed", 5) == 0
    rows = read_rows(out)
    backends = choose_backends(None, CPU)
    assert "reference" in backends
    wanted = ["copy, torch, forward"]
    for direction in ("forward", "forward+backward"):
        wanted += [f"average, {name}, {direction}" for name in BASELINES]
        wanted += [f"{op}, {backend}, {direction}" for op in SPLATS for backend in backends]
    assert list(rows) == [f"{size}, {name}" for size in ("1x3x10x14", "2x2x9x8") for name in wanted]

    assert all(0 < row["min_ms"] <= row["ms"] <= row["max_ms"] for row in rows.values())
    printed = capsys.readouterr().out
    assert printed == (out / "results.md").read_text() + "\n"
    assert "seed 5" in printed and "of 3 repeats" in printed and "command: benchmark.py splatting --device" in printed
    with open(out / "results.csv", newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == list(rows)


def test_columns_beside_the_copy_the_hand_written_splats_and_the_average():
    ms = {("copy", "torch"): 1, ("average", "scatter_add"): 6, ("average", "index_add"): 4.5}
    ms |= {("average", "cpu"): 2, ("softmax", "cpu"): 3}
    found = {
        (*case, "forward"): {"seconds": taken / 1000, "min_s": 0.0, "max_s": 0.0, "peak_memory_mb": None}
        for case, taken in ms.items()
    }
    size = (2, 3, 10, 14)  # 280 pixels; the copy moves 6 numbers of each, softmax 9: C + 3 read and C written
    row = splatting.make_row(("softmax", "cpu", "forward"), found, size)
    known = {"ms": 3, "gb_per_s": 4 * 280 * 9 / 3e-3 / 1e9, "fraction_of_copy": 0.5}
    known |= {"times_torch": 1.5, "times_average": 1.5}
    assert {name: row[name] for name in known} == pytest.approx(known)
    row = splatting.make_row(("copy", "torch", "forward"), found, size)
    assert row["fraction_of_copy"] == 1 and row["times_torch"] is None and row["times_average"] is None
    # backwards also: upstream gradient and inputs read, gradients of all inputs written
    bytes_of = {op: splatting.least_bytes(op, "forward+backward", size) for op in ("sum", "gaussian")}
    assert bytes_of == {"sum": 4 * 280 * (8 + 13), "gaussian": 4 * 280 * (9 + 15)}


def test_flags_choose_what_runs(tmp_path, capsys):
    flags = ["--ops", "sum", "sum", "--backends", "reference", "--threads", 1, "--repeats", 1]
    assert run_splatting(tmp_path, "--sizes", "1x1x1x1", *flags) == 0
    rows = read_list(tmp_path)
    assert [row["row"].split(", ")[1] for row in rows] == ["copy"] + 2 * ["average", "average", "sum"]
    assert [row["times_average"] is None for row in rows] == [True, False, False, True, False, False, True]
    assert ", 1 threads, " in capsys.readouterr().out


def test_flags_and_sizes_are_those_that_there_are(capsys, monkeypatch, tmp_path):
    assert SPLATS == tuple(splatting.OPS) and BACKENDS == functional.BACKENDS
    assert benchmark.main(["splatting", "--help"]) == 0
    said = capsys.readouterr().out
    assert all("x".join(map(str, size)) in said for size in splatting.DEFAULT_SIZES)
    seen = []
    monkeypatch.setattr(splatting, "make_inputs", lambda size, *_: seen.append(size))
    monkeypatch.setattr(splatting, "measure", lambda *_, **__: {})
    assert run_splatting(tmp_path, "--repeats", 1) == 0
    assert seen == list(splatting.DEFAULT_SIZES[:3])  # the last one takes too long without a GPU


@pytest.mark.parametrize("splat", [average_by_scatter_add, average_by_index_add])
def test_hand_written_splats_agree_with_the_reference(splat):
    """Also where sources leave the image."""
    inputs = make_inputs((2, 3, 11, 17), 0, CPU)
    far = (inputs.flow.detach() * 2).requires_grad_()
    wanted = average_splat(inputs.values, far, backend="reference")
    wanted_gradients = torch.autograd.grad(wanted, (inputs.values, far), inputs.upstream)
    out = splat(inputs.values, far)
    torch.testing.assert_close(out, wanted)
    assert out.is_contiguous()
    # Float32 sums in another order; the average's gradient divides by small weights.
    gradients = torch.autograd.grad(out, (inputs.values, far), inputs.upstream)
    torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-4, atol=1e-4)


def test_inputs_are_those_of_the_seed():
    first, again, other = (make_inputs((1, 2, 40, 60), seed, CPU) for seed in (0, 0, 1))
    assert torch.equal(first.values, again.values) and torch.equal(first.flow, again.flow)
    assert not torch.equal(first.values, other.values) and not torch.equal(first.flow, other.flow)
    torch.testing.assert_close(first.importance, first.flow.square().sum(1, keepdim=True).sqrt())
    assert 1 < first.flow.std() < 5  # px
    assert first.flow.diff(dim=-1).abs().max() < 2  # smooth


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
def test_bad_flags_cost_nothing(tmp_path, capsys, monkeypatch, flags, named):
    monkeypatch.setattr(splatting, "make_table", lambda **k: pytest.fail("something was measured"))
    (tmp_path / "file").touch()
    flags = [str(flag).replace("FILE", str(tmp_path / "file")) for flag in flags]
    assert run_splatting(tmp_path / "out", "--sizes", "1x1x4x4", *flags) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_backend_that_cannot_run_names_the_remedy(monkeypatch):
    monkeypatch.setattr(splatting, "available_backends", lambda: ("reference", "cuda"))
    assert choose_backends(None, CPU) == ["reference"]

    def refuse(*args, backend):
        raise RuntimeError(f"splatting: the {backend!r} backend needs a thing: get it")

    monkeypatch.setattr(splatting, "average_splat", refuse)
    with pytest.raises(ArgumentError, match="backends: cpu cannot run on cpu: .* needs a thing: get it"):
        choose_backends(["cpu"], CPU)
