"""benchmark.py splatting: a whole table of tiny tensors, metrics that agree with each other, bad flags in one line.

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


def test_the_table_is_complete_and_agrees_with_itself(tmp_path, capsys):
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

    for size in ("1x3x10x14", "2x2x9x8"):
        copy = rows[f"{size}, copy, torch, forward"]
        batch, channels, height, width = map(int, size.split("x"))
        assert copy["times_torch"] is None and copy["times_average"] is None
        for name in wanted:
            (op, backend, direction), row = name.split(", "), rows[f"{size}, {name}"]
            assert 0 < row["min_ms"] <= row["ms"] <= row["max_ms"]
            # values, flow and importance, read; the output, written; and the same backwards
            inputs = channels + {"copy": 0, "sum": 2, "average": 2}.get(op, 3)
            numbers = inputs + channels + (channels + 2 * inputs) * (direction != "forward")
            moved = 4 * batch * height * width * numbers
            assert row["gb_per_s"] == pytest.approx(moved / row["ms"] / 1e6)
            assert row["fraction_of_copy"] == pytest.approx(row["gb_per_s"] / copy["gb_per_s"])
            if op != "copy":
                by_hand = [rows[f"{size}, average, {baseline}, {direction}"]["ms"] for baseline in BASELINES]
                assert row["times_torch"] == pytest.approx(min(by_hand) / row["ms"])
                average = rows[f"{size}, average, {backend}, {direction}"]["ms"]
                assert row["times_average"] == pytest.approx(row["ms"] / average)

    printed = capsys.readouterr().out
    assert printed == (out / "results.md").read_text() + "\n"
    assert "seed 5" in printed and "of 3 repeats" in printed and "command: benchmark.py splatting --device" in printed
    with open(out / "results.csv", newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == list(rows)


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
