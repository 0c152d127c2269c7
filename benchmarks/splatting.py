"""benchmark.py splatting: operators and backends, beside hand-written torch and a plain copy."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import MEMORY_NOTE, machine, measure
from models.device import ArgumentError
from splatting import available_backends, average_splat, gaussian_splat, softmax_splat, sum_splat

logger = logging.getLogger(__name__)

Size = tuple[int, int, int, int]  # B, C, H, W
Case = tuple[str, str, str]  # operator, backend, pass

DEFAULT_SIZES: tuple[Size, ...] = ((1, 36, 160, 256), (8, 36, 160, 256), (1, 36, 512, 512), (4, 64, 1080, 1920))
SIZES_ON_CPU = 3  # by default; the last one takes minutes a repeat there
FORWARD, BOTH = ("forward", "forward+backward")
# Standard deviation of the noise that is enlarged to the flow, and by how much it is enlarged.
FLOW_PX, FLOW_SCALE = 3.0, 16
# Written before each timed call: larger than the caches of today's chips.
FLUSH_BYTES = 256_000_000


class Inputs(NamedTuple):
    values: Tensor  # (B, C, H, W)
    flow: Tensor  # (B, 2, H, W) px
    importance: Tensor  # (B, 1, H, W)
    upstream: Tensor  # (B, C, H, W) gradient of the output
    copied: Tensor  # (B, C, H, W) where the plain copy writes


OPS: dict[str, Callable[[Inputs, str], Tensor]] = {
    "sum": lambda x, backend: sum_splat(x.values, x.flow, backend=backend),
    "average": lambda x, backend: average_splat(x.values, x.flow, backend=backend),
    "softmax": lambda x, backend: softmax_splat(x.values, x.flow, x.importance, backend=backend),
    "gaussian": lambda x, backend: gaussian_splat(x.values, x.flow, x.importance, ewa=False, backend=backend),
    "ewa": lambda x, backend: gaussian_splat(x.values, x.flow, x.importance, backend=backend),
}
WITH_IMPORTANCE = ("softmax", "gaussian", "ewa")


def make_table(
    *, sizes: Sequence[Size] | None, ops: Sequence[str], backends: Sequence[str] | None, repeats: int, seed: int,
    device: torch.device,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    cases = make_cases(ops, choose_backends(backends, device))
    flush = torch.zeros(FLUSH_BYTES // 4, device=device)
    rows = []
    for size in dict.fromkeys(sizes or DEFAULT_SIZES[: None if device.type == "cuda" else SIZES_ON_CPU]):
        name = "x".join(map(str, size))
        logger.info("%s: %d cases, %d repeats", name, len(cases), repeats)
        inputs = make_inputs(size, seed, device)
        works = {case: partial(run_once, case, call, inputs) for case, call in cases.items()}
        found = measure(works, repeats, device, flush=flush)
        rows += [{"row": f"{name}, {', '.join(case)}"} | make_row(case, found, size) for case in found]
    return rows, [
        f"{machine(device)}; float32; values and upstream gradients are normal; flow: noise of {FLOW_PX:g} px, "
        f"enlarged {FLOW_SCALE} times (bicubic); importance: its magnitude; seed {seed}",
        f"ms, min_ms, max_ms: median, least and most of {repeats} repeats in which all cases of a size take turns; "
        f"{FLUSH_BYTES // 10**6} MB are written before each call, so that caches are cold",
        "gb_per_s: of the least bytes, each input read and each output written once; fraction_of_copy: time of a copy "
        "of as many bytes over this time",
        "times_torch: how many times as fast as the faster hand-written average of the same pass; times_average: time "
        "over that of the same backend's average, same pass",
        MEMORY_NOTE,
    ]


def choose_backends(names: Sequence[str] | None, device: torch.device) -> list[str]:
    """Return the backends asked for, by default all that can run on the device; ArgumentError for one that cannot."""
    for name in names or ():
        tiny = torch.zeros(1, 1, 1, 1, device=device), torch.zeros(1, 2, 1, 1, device=device)
        try:
            average_splat(*tiny, backend=name)
        except (RuntimeError, ValueError) as error:
            raise ArgumentError(f"backends: {name} cannot run on {device}: {error}") from error
    there = [name for name in available_backends() if name in ("reference", device.type)]
    return list(dict.fromkeys(names or there))


def make_cases(ops: Sequence[str], backends: Sequence[str]) -> dict[Case, Callable[[Inputs], Tensor]]:
    """Return what is timed: the copy, both hand-written averages, and every operator of every backend."""
    calls: dict[Case, Callable[[Inputs], Tensor]] = {("copy", "torch", FORWARD): lambda x: x.copied.copy_(x.values)}
    for direction in (FORWARD, BOTH):
        calls["average", "scatter_add", direction] = lambda x: average_by_scatter_add(x.values, x.flow)
        calls["average", "index_add", direction] = lambda x: average_by_index_add(x.values, x.flow)
        calls |= {(op, backend, direction): partial(OPS[op], backend=backend) for op in ops for backend in backends}
    return calls


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


def run_once(case: Case, call: Callable[[Inputs], Tensor], inputs: Inputs) -> None:
    """Run one pass; the backward one gives the gradients to all inputs that the operator has."""
    op, _, direction = case
    if direction == FORWARD:
        with torch.no_grad():
            call(inputs)
        return
    wanted = inputs[: 3 if op in WITH_IMPORTANCE else 2]
    torch.autograd.grad(call(inputs), wanted, inputs.upstream)


def make_row(case: Case, found: dict[Case, dict[str, float | None]], size: Size) -> dict[str, float | None]:
    """Return the columns of a case, beside the others that were measured at its size."""
    (op, backend, direction), seconds = case, found[case]["seconds"]
    by_hand = [("average", name, direction) for name in ("scatter_add", "index_add")]
    by_hand = [found[baseline]["seconds"] for baseline in by_hand if baseline in found and op != "copy"]
    average, copy = found.get(("average", backend, direction)), found.get(("copy", "torch", FORWARD))
    least = least_bytes(op, direction, size)
    copied = copy and copy["seconds"] * least / least_bytes("copy", FORWARD, size)  # a copy of as many bytes
    return {
        "ms": 1000 * seconds,
        "min_ms": 1000 * found[case]["min_s"],
        "max_ms": 1000 * found[case]["max_s"],
        "gb_per_s": least / seconds / 1e9,
        "fraction_of_copy": copied and copied / seconds,
        "times_torch": min(by_hand) / seconds if by_hand else None,
        "times_average": average and seconds / average["seconds"],
        "peak_memory_mb": found[case]["peak_memory_mb"],
    }


def least_bytes(op: str, direction: str, size: Size) -> int:
    """Return the float32 bytes that must move: inputs and upstream gradient read once, output and gradients written."""
    batch, channels, height, width = size
    inputs = channels if op == "copy" else channels + (3 if op in WITH_IMPORTANCE else 2)
    numbers = inputs + channels if direction == FORWARD else 3 * inputs + 2 * channels
    return 4 * batch * height * width * numbers


def average_by_scatter_add(values: Tensor, flow: Tensor) -> Tensor:
    """Splat channel planes (C, N), image by image: the fastest of seven layouts tried on a CPU."""
    means = []
    for image, index, weight in zip(values, *bilinear_taps(flow), strict=True):
        planes = image.flatten(1)  # (C, N)
        total, arrived = torch.zeros_like(planes), torch.zeros_like(planes[0])
        for i, w in zip(index, weight, strict=True):
            total.scatter_add_(1, i.expand_as(planes), planes * w)
            arrived = arrived.scatter_add(0, i, w)
        means.append((total / (arrived + (arrived == 0))).view_as(image))
    return torch.stack(means)


def average_by_index_add(values: Tensor, flow: Tensor) -> Tensor:
    """Splat rows of channels (B N, C), the batch at once: memory that belongs together is added together."""
    batch, channels, height, width = values.shape
    index, weight = bilinear_taps(flow)
    index = index + torch.arange(batch, device=index.device)[:, None, None] * (height * width)
    rows = values.permute(0, 2, 3, 1).reshape(-1, channels)  # (B N, C)
    total, arrived = torch.zeros_like(rows), rows.new_zeros(len(rows))
    for i, w in zip(index.transpose(0, 1).flatten(1), weight.transpose(0, 1).flatten(1), strict=True):
        total.index_add_(0, i, rows * w[:, None])
        arrived = arrived.index_add(0, i, w)
    mean = total / (arrived + (arrived == 0))[:, None]
    return mean.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()


def bilinear_taps(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four targets of each source, index within its image (B, 4, N), and their weights (B, 4, N)."""
    height, width = flow.shape[-2:]
    x = flow[:, 0] + torch.arange(width, device=flow.device)  # (B, H, W)
    y = flow[:, 1] + torch.arange(height, device=flow.device)[:, None]
    left, top = x.detach().floor(), y.detach().floor()
    fx, fy = x - left, y - top
    indices, weights = [], []
    for y, down in ((top.long(), 1 - fy), (top.long() + 1, fy)):
        for x, across in ((left.long(), 1 - fx), (left.long() + 1, fx)):
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            # Outside, weight 0 to the nearest pixel of the border: no mask is needed further on.
            indices.append((y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1))
            weights.append((across * down * inside).flatten(1))
    return torch.stack(indices, dim=1), torch.stack(weights, dim=1)
