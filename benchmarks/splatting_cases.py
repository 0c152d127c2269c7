"""Time and memory of the splatting operators beside hand-written torch and beside a plain copy of the same bytes.

What is counted as the least that must move, in float32 numbers a pixel: forward reads values (C), flow (2) and, where
the operator has one, importance (1), each once, and writes the output (C). Backward reads the upstream gradient (C)
and the same inputs and writes the inputs' gradients; what a backend saves between the two is not counted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import ask_process, is_out_of_memory, meter_is_right, resident_growth_mb
from cli.parser import UsageError
from data.files import write_text
from data.result_tables import markdown_table, write_results
from splatting import available_backends, average_splat, gaussian_splat, softmax_splat, sum_splat
from splatting.functional import BACKENDS

logger = logging.getLogger(__name__)

Size = tuple[int, int, int, int]  # B, C, H, W

DEFAULT_SIZES: tuple[Size, ...] = ((1, 36, 160, 256), (8, 36, 160, 256), (1, 36, 512, 512), (4, 64, 1080, 1920))
SIZES_ON_CPU = 3  # by default; the last one takes minutes a lap there
PASSES = ("forward", "forward+backward")
COPY = ("copy", "torch", PASSES[0])
WARM_UP_LAPS = 2
# Standard deviation of the noise that is enlarged to the flow, and by how much it is enlarged.
FLOW_PX, FLOW_SCALE = 3.0, 16
# Written before each timed call, so that none finds its inputs in a cache: larger than those of today's chips.
FLUSH_BYTES = 256_000_000
# On a GPU the flush is queued so often that the launches of what is timed are done before it begins.
FLUSHES_ON_CUDA = 32


class Inputs(NamedTuple):
    values: Tensor  # (B, C, H, W)
    flow: Tensor  # (B, 2, H, W) px
    importance: Tensor  # (B, 1, H, W)
    upstream: Tensor  # (B, C, H, W) gradient of the output
    copied: Tensor  # (B, C, H, W) where the plain copy writes


class Case(NamedTuple):
    """What is timed: `call` makes the output, and its gradients are taken where the pass says so."""

    op: str
    backend: str
    direction: str
    call: Callable[[Inputs], Tensor]

    def __str__(self) -> str:
        return f"{self.op}, {self.backend}, {self.direction}"


OPS: dict[str, Callable[[Inputs, str], Tensor]] = {
    "sum": lambda x, backend: sum_splat(x.values, x.flow, backend=backend),
    "average": lambda x, backend: average_splat(x.values, x.flow, backend=backend),
    "softmax": lambda x, backend: softmax_splat(x.values, x.flow, x.importance, backend=backend),
    "gaussian": lambda x, backend: gaussian_splat(x.values, x.flow, x.importance, ewa=False, backend=backend),
    "ewa": lambda x, backend: gaussian_splat(x.values, x.flow, x.importance, backend=backend),
}
WITH_IMPORTANCE = ("softmax", "gaussian", "ewa")


# What runs ------------------------------------------------------------------------------------------------------


def choose_sizes(sizes: Sequence[Size] | None, device: torch.device) -> list[Size]:
    """Return the sizes asked for, by default those of this kind of device."""
    if sizes:
        return list(dict.fromkeys(sizes))
    if device.type == "cuda":
        return list(DEFAULT_SIZES)
    for size in DEFAULT_SIZES[SIZES_ON_CPU:]:
        logger.info("%s is left out without a CUDA GPU; it is measured with --sizes %s", name_of(size), name_of(size))
    return list(DEFAULT_SIZES[:SIZES_ON_CPU])


def choose_backends(names: Sequence[str] | None, device: torch.device) -> list[str]:
    """Return the backends asked for, by default all that can run on the device.

    Raises:
        UsageError: one that cannot, with the remedy.
    """
    there = [name for name in available_backends() if name in ("reference", device.type)]
    for name in names or ():
        if name in there:
            continue
        if name not in BACKENDS:
            raise UsageError(f"--backends {name}: right: {', '.join(BACKENDS)}")
        if name in available_backends():
            raise UsageError(f"--backends {name}: cannot run with --device {device}; right: --device {name}")
        try:
            average_splat(torch.zeros(1, 1, 1, 1), torch.zeros(1, 2, 1, 1), backend=name)
        except RuntimeError as error:  # says why, and what to do about it
            raise UsageError(f"--backends {name}: {error}") from error
    return list(dict.fromkeys(names or there))


def make_cases(ops: Sequence[str], backends: Sequence[str], device: torch.device) -> list[Case]:
    """List what is timed: the copy, what the operators are held against, and every operator of every backend."""
    found = [Case(*COPY, lambda x: x.copied.copy_(x.values))]
    # Every other operator is held against the average.
    by_hand = [op for op in ("sum", "average") if op in ops or op == "average" and set(ops) != {"sum"}]
    for direction in PASSES:
        for op, splat in OPS.items():
            if op in by_hand:
                for name, written in hand_written(device).items():
                    call = functools.partial(written, normalise=op == "average")
                    found.append(Case(op, name, direction, call))
            if op in ops:
                found += [Case(op, b, direction, functools.partial(splat, backend=b)) for b in backends]
    return found


def make_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    """Make random values and gradients, a smooth random flow of a few pixels, and its magnitude as importance."""
    batch, _, height, width = size
    there = torch.Generator(device).manual_seed(seed)
    # The flow comes from the CPU: every device moves the same way.
    coarse = batch, 2, max(2, height // FLOW_SCALE), max(2, width // FLOW_SCALE)
    noise = FLOW_PX * torch.randn(coarse, generator=torch.Generator().manual_seed(seed))
    flow = F.interpolate(noise, size=(height, width), mode="bicubic").to(device)  # (B, 2, H, W)
    values, upstream = (torch.randn(size, generator=there, device=device) for _ in range(2))
    importance = flow.norm(dim=1, keepdim=True)  # (B, 1, H, W)
    copied = values.clone()
    for tensor in (values, flow, importance):
        tensor.requires_grad_()
    return Inputs(values, flow, importance, upstream, copied)


def run_once(case: Case, inputs: Inputs) -> None:
    """Run one pass; the backward one gives the gradients to all inputs that the operator has."""
    if case.direction == PASSES[0]:
        with torch.no_grad():
            case.call(inputs)
        return
    wanted = inputs[: 3 if case.op in WITH_IMPORTANCE else 2]
    torch.autograd.grad(case.call(inputs), wanted, inputs.upstream)


# Hand-written in torch ------------------------------------------------------------------------------------------


def hand_written(device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """Return the bilinear splats that one would write by hand, splat(inputs, *, normalise), by name.

    Measured on two CPU cores with torch 2.15: planes, sample by sample, are up to 1.7 times as fast as planes of the
    whole batch and 4 times as fast as rows of channels. On a GPU both layouts are timed, and the faster one counts.
    """
    splats: dict[str, Callable[..., Tensor]] = {}
    for layout, splat in {"": splat_planes, " rows": splat_rows}.items():
        if not layout or device.type == "cuda":
            splats["scatter_add" + layout] = functools.partial(splat, add=scatter_add)
            splats["index_add" + layout] = functools.partial(splat, add=index_add)
    return splats


def scatter_add(total: Tensor, dim: int, index: Tensor, part: Tensor) -> None:
    """Add the slices of `part` along `dim` to those of `total` that `index` (N,) names."""
    shaped = index[:, None] if dim == 0 else index
    total.scatter_add_(dim, shaped.expand_as(part), part)


def index_add(total: Tensor, dim: int, index: Tensor, part: Tensor) -> None:
    """Do the same as `scatter_add`."""
    total.index_add_(dim, index, part)


def bilinear_taps(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four targets of each source, index within its picture (4, B, N), and their weights (4, B, N)."""
    height, width = flow.shape[-2:]
    x = flow[:, 0] + torch.arange(width, device=flow.device)  # (B, H, W)
    y = flow[:, 1] + torch.arange(height, device=flow.device)[:, None]
    left, top = x.detach().floor(), y.detach().floor()
    fx, fy = x - left, y - top
    column, row = left.long(), top.long()
    indices, weights = [], []
    for y, down in ((row, 1 - fy), (row + 1, fy)):
        for x, across in ((column, 1 - fx), (column + 1, fx)):
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            # Outside, weight 0 to the nearest pixel of the border: no mask is needed further on.
            indices.append((y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1))
            weights.append((across * down * inside).flatten(1))
    return torch.stack(indices), torch.stack(weights)


def splat_planes(inputs: Inputs, *, add: Callable[..., None], normalise: bool) -> Tensor:
    """Splat sample by sample with the layout (C, N)."""
    values = inputs.values
    indices, weights = bilinear_taps(inputs.flow)
    samples = values.flatten(2).unbind()  # (C, N) each
    if torch.is_grad_enabled():
        totals, buffer = [torch.zeros_like(sample) for sample in samples], None
    else:
        # Without a graph the sums grow in the output itself, and one buffer serves all.
        out = torch.zeros_like(values)
        totals, buffer = out.flatten(2).unbind(), torch.empty_like(samples[0])
    means = []
    for sample, total, index, weight in zip(samples, totals, indices.unbind(1), weights.unbind(1), strict=True):
        for i, w in zip(index, weight, strict=True):
            add(total, 1, i, torch.mul(sample, w, out=buffer))
        if normalise:
            arrived = weight.new_zeros(weight.shape[-1]).index_add_(0, index.flatten(), weight.flatten())
            arrived = arrived + (arrived == 0)
            total = total / arrived if buffer is None else total.div_(arrived)
        means.append(total)
    return torch.stack(means).view(values.shape) if buffer is None else out


def splat_rows(inputs: Inputs, *, add: Callable[..., None], normalise: bool) -> Tensor:
    """Splat the batch at once with the layout (B N, C)."""
    batch, channels, height, width = inputs.values.shape
    indices, weights = bilinear_taps(inputs.flow)
    indices = indices + torch.arange(batch, device=indices.device)[:, None] * (height * width)
    indices, weights = indices.flatten(1), weights.flatten(1)  # (4, B N)
    rows = inputs.values.permute(0, 2, 3, 1).reshape(-1, channels)
    total = torch.zeros_like(rows)
    buffer = None if torch.is_grad_enabled() else torch.empty_like(rows)
    for index, weight in zip(indices, weights, strict=True):
        add(total, 0, index, torch.mul(rows, weight[:, None], out=buffer))
    if normalise:
        arrived = weights.new_zeros(len(rows)).index_add_(0, indices.flatten(), weights.flatten())[:, None]
        total = total / (arrived + (arrived == 0))
    return total.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()


# Time -----------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Time one call, in milliseconds, with cold caches; on a GPU by its own events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush = torch.zeros(FLUSH_BYTES // 4, device=device)

    def __call__(self, work: Callable[[], None]) -> float:
        if self.device.type == "cuda":
            for _ in range(FLUSHES_ON_CUDA):
                self.flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)
        self.flush.zero_()
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return 1000 * (time.perf_counter() - began)

    def _wait(self) -> None:
        if self.device.type == "mps":
            torch.mps.synchronize()


def measure_splatting(
    *,
    sizes: Sequence[Size],
    ops: Sequence[str],
    backends: Sequence[str],
    repeats: int,
    seed: int,
    device: torch.device,
) -> list[dict]:
    """Return the rows of all sizes, then those of the first calls; what does not fit into memory is left out."""
    cases = make_cases(ops, backends, device)
    rows: list[dict] = []
    measured = []
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for size in sizes:
            logger.info("%s: %d cases, %d laps", name_of(size), len(cases), WARM_UP_LAPS + repeats)
            try:
                inputs, stopwatch = make_inputs(size, seed, device), Stopwatch(device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                logger.warning("%s is left out: its tensors do not fit into the memory", name_of(size))
                continue
            milliseconds, memory = run_repeats(cases, inputs, stopwatch, repeats)
            del inputs, stopwatch
            if device.type == "cpu":
                memory = memory_on_cpu(size, ops, backends, seed)
            rows += make_rows(size, cases, milliseconds, memory)
            measured.append(size)
    if not measured:
        raise UsageError(f"--sizes {' '.join(map(name_of, sizes))}: none fits into the memory; right: smaller ones")
    return rows + [first_call(backend, measured[0], device) for backend in backends]


def run_repeats(
    cases: Sequence[Case], inputs: Inputs, stopwatch: Stopwatch, repeats: int
) -> tuple[list[list[float]], list[float | None]]:
    """Time the cases in turn, so that what disturbs the machine hits all alike.

    Returns:
        per case its times (ms), none where the memory is exhausted, and its peak memory (MB, None off CUDA).
    """
    milliseconds: list[list[float]] = [[] for _ in cases]
    memory: list[float | None] = [None for _ in cases]
    left_out = set()
    for lap in range(WARM_UP_LAPS + repeats):
        for index, case in enumerate(cases):
            if index in left_out:
                continue
            try:
                taken = stopwatch(functools.partial(run_once, case, inputs))
                if lap < WARM_UP_LAPS:
                    memory[index] = memory_on_cuda(case, inputs)
                else:
                    milliseconds[index].append(taken)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                logger.warning("%s is left out: out of memory", case)
                left_out.add(index)
                milliseconds[index], memory[index] = [], None
                if inputs.values.is_cuda:
                    torch.cuda.empty_cache()
    return milliseconds, memory


def make_rows(
    size: Size, cases: Sequence[Case], milliseconds: Sequence[list[float]], memory: Sequence[float | None]
) -> list[dict]:
    """Return one flat row a case."""
    times = {c[:3]: statistics.median(taken) for c, taken in zip(cases, milliseconds, strict=True) if taken}
    rows = []
    for case, taken, peak in zip(cases, milliseconds, memory, strict=True):
        op, backend, direction = case[:3]
        name = f"{name_of(size)}, {case}"
        row: dict[str, Any] = {"row": name, "size": name_of(size), "op": op, "backend": backend, "pass": direction}
        rows.append(row)
        if not taken:
            continue
        own, least = times[op, backend, direction], least_bytes(op, direction, size)
        # A copy of as many bytes would take the copy's time in proportion.
        copied = times[COPY] * least / least_bytes(*COPY[::2], size) if COPY in times else None
        rivals = [ms for key, ms in times.items() if is_baseline(key, op, direction)]
        average = times.get(("average", backend, direction))
        row |= {"ms": own, "min_ms": min(taken), "max_ms": max(taken), "gb_per_s": least / own / 1e6}
        row |= {
            "share_of_copy": copied and copied / own,
            "times_torch": min(rivals) / own if rivals else None,
            "times_average": average and own / average,
            "peak_memory_mb": peak,
        }
    return rows


def is_baseline(key: tuple[str, str, str], op: str, direction: str) -> bool:
    """Tell whether an operator's speed is held against `key`: same op by hand, or for those without, the average."""
    hand_written_op, name, its_direction = key
    if its_direction != direction or name.split()[0] not in ("scatter_add", "index_add"):
        return False
    if op in WITH_IMPORTANCE:
        return hand_written_op == "average" and name.startswith("scatter_add")
    return hand_written_op == op


def least_bytes(op: str, direction: str, size: Size) -> int:
    """Return the bytes that must move at least, see the head of this file."""
    batch, channels, height, width = size
    inputs = channels if op == "copy" else channels + (3 if op in WITH_IMPORTANCE else 2)
    numbers = inputs + channels
    if direction != PASSES[0]:
        numbers += channels + 2 * inputs
    return 4 * batch * height * width * numbers


# Memory ---------------------------------------------------------------------------------------------------------


def memory_on_cuda(case: Case, inputs: Inputs) -> float | None:
    """Return how far torch's allocator rises above the inputs in one pass, MB; None off CUDA."""
    if not inputs.values.is_cuda:
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_once(case, inputs)
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def memory_on_cpu(size: Size, ops: Sequence[str], backends: Sequence[str], seed: int) -> list[float | None]:
    """Return per case how far a fresh process rises above the inputs in one pass, MB; None where unknown."""
    unknown = [None] * len(make_cases(ops, backends, torch.device("cpu")))
    job = {"size": size, "ops": ops, "backends": backends, "seed": seed, "threads": torch.get_num_threads()}
    # With a fixed threshold glibc hands every freed tensor back, so that the next pass has to ask for it again.
    code = "from benchmarks.splatting_cases import print_memory; print_memory()"
    return ask_process(code, job, MALLOC_MMAP_THRESHOLD_="65536") or unknown


def print_memory() -> None:
    """Be the fresh process of `memory_on_cpu`: print what was asked for, or null where the meter cannot be trusted."""
    job, cpu = json.loads(sys.argv[1]), torch.device("cpu")
    torch.set_num_threads(job["threads"])
    if not meter_is_right():
        print("null")
        return
    inputs = make_inputs(tuple(job["size"]), job["seed"], cpu)
    found = []
    for case in make_cases(job["ops"], job["backends"], cpu):
        run_once(case, inputs)  # loads its code and starts its threads, which are no part of the figure
        found.append(resident_growth_mb(functools.partial(run_once, case, inputs)))
    print(json.dumps(found))


# First call -----------------------------------------------------------------------------------------------------

FIRST_CALL = """
import json, sys, time
job = json.loads(sys.argv[1])
began = time.perf_counter()
import torch
import_torch = time.perf_counter() - began
torch.set_num_threads(job["threads"])
batch, channels, height, width = job["size"]
wait = (lambda: torch.cuda.synchronize(job["device"])) if job["device"].startswith("cuda") else lambda: None
values = torch.rand(batch, channels, height, width, device=job["device"])
flow = torch.rand(batch, 2, height, width, device=job["device"])
wait()
began = time.perf_counter()
import splatting
splatting.average_splat(values, flow, backend=job["backend"])
wait()
print(json.dumps([time.perf_counter() - began, import_torch]))
"""


def first_call(backend: str, size: Size, device: torch.device) -> dict:
    """Return the row of a fresh process's first average splat, once another one has filled the caches on disk."""
    job = {"backend": backend, "size": size, "device": str(device), "threads": torch.get_num_threads()}
    ask_process(FIRST_CALL, job)
    seconds, import_torch = ask_process(FIRST_CALL, job) or (None, None)
    row = {"row": f"first call, {backend}", "size": name_of(size), "op": "average", "backend": backend}
    return {**row, "pass": "first call", "seconds": seconds, "import_torch_seconds": import_torch}


# Tables ---------------------------------------------------------------------------------------------------------


def name_of(size: Size) -> str:
    """Write a size as the flag takes it."""
    return "x".join(map(str, size))


def notes_of(device: torch.device, repeats: int, seed: int) -> list[str]:
    """Say what was measured and how."""
    timed, memory = {
        "cuda": (
            f"GPU time by events; launches are queued behind {FLUSHES_ON_CUDA} such writes, so that they do not count",
            "as torch's allocator has it; what a backend takes elsewhere is not in it",
        ),
        "cpu": (
            "wall-clock time",
            "how far a fresh process's resident memory rises, to about 1 MB; empty where the system cannot tell "
            "(Linux can)",
        ),
    }.get(device.type, ("wall-clock time", "not measured on this device"))
    return [
        f"float32; values and upstream gradients normal; flow: noise of {FLOW_PX:g} px, enlarged {FLOW_SCALE} times "
        f"(bicubic); importance: its magnitude; seed {seed}",
        "forward+backward: gradients to values, flow and, where there is one, importance",
        f"ms: {timed}; median, least and most of {repeats} laps in which all take turns, after {WARM_UP_LAPS} laps to "
        f"warm up; {FLUSH_BYTES // 10**6} MB are written before each call, so that caches are cold",
        "gb_per_s: of the least bytes: forward, each input read once and the output written once; backward, the "
        "upstream gradient and each input read once and the inputs' gradients written once",
        "share_of_copy: a copy of as many bytes takes this share of the time; it is timed on values, into memory that "
        "is there already (row copy)",
        "times_torch: so many times as fast as the fastest hand-written torch of the same pass; scatter_add and "
        "index_add for sum and average, for the others the average with scatter_add",
        "times_average: so many times the time of the same backend's average, same pass",
        f"peak_memory_mb: beyond the inputs, output included; {memory}",
        "first call: import of splatting and an average splat in a fresh process, after another one has filled the "
        "caches on disk; import of torch and making the tensors are not in it",
    ]


def write_tables(out: Path, rows: Sequence[dict], *, title: str, notes: Sequence[str]) -> str:
    """Write results.json and .csv with all rows and results.md with one table a size; return the latter."""
    write_results(out, rows, title=title, notes=notes)
    first_calls = [row for row in rows if row["pass"] == "first call"]
    others = [row for row in rows if row["pass"] != "first call"]
    groups = {row["size"]: [other for other in others if other["size"] == row["size"]] for row in others}
    parts = [f"## {title}\n"]
    for heading, group in {**groups, "first call": first_calls}.items():
        said = ("row", "pass" if group is first_calls else "size")
        columns = [key for key in dict.fromkeys(key for row in group for key in row) if key not in said]
        parts.append("#" + align(markdown_table(group, columns, heading, ())))
    text = "\n".join(parts) + "\n" + "".join(f"- {note}\n" for note in notes)
    write_text(out / "results.md", text)
    return text


def align(markdown: str) -> str:
    """Pad the cells of a Markdown table so that it can be read as it stands."""
    lines = markdown.splitlines()
    cells = {i: line.strip("|").split("|") for i, line in enumerate(lines) if line.startswith("|")}
    widths = [max(len(cell.strip()) for cell in column) for column in zip(*cells.values(), strict=True)]
    for i, row in cells.items():
        fill = "-" if set("".join(row)) <= set("-:") else " "
        lines[i] = "| " + " | ".join(c.strip().rjust(w, fill) for c, w in zip(row, widths, strict=True)) + " |"
    return "\n".join(lines) + "\n"
