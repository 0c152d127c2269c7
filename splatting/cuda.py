"""The splatting kernels on NVIDIA GPUs: CUDA C++ in kernels/*.cu, compiled and launched by CuPy.

The order in which the forward pass adds up is that of an atomic exchange, so that a sum may differ in its last bits
from run to run. Under torch.use_deterministic_algorithms(True) the lists are sorted first. Backward is deterministic.

NVRTC compiles one program for each dtype of the values and each device at its first use (about a second). CuPy keeps
the result in ~/.cupy/kernel_cache or $CUPY_CACHE_DIR. It compiles with -ftz=true: float32 numbers below 1.2e-38 count
as 0. Work is queued on torch's current stream; nothing waits for the GPU.
"""

import functools
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from splatting import reference
from splatting.fused import Saved

KERNELS = ("link_sources", "sort_lists", "gather_2x2", "gather_4x4")
KERNELS += ("target_gradients", "source_gradients_2x2", "source_gradients_4x4")
COMPILE_OPTIONS = ("--std=c++17",)  # CuPy adds the architecture, -ftz=true and its include folders
TILE_WIDTH, TILE_HEIGHT = 32, 8  # a block: a tile of this many pixels, as wide as a warp
CHUNK = 16  # channels that a thread of the gather kernels sums up in registers

_SHARED_CONSTANTS = ("MIN_TAP_WEIGHT", "MARGIN_PX", "MAX_DERIVATIVE")  # of reference.py
_SHARED_CONSTANTS += ("EWA_MIN_STRETCH", "EWA_MAX_STRETCH", "EWA_VARIANCE_FLOOR")
_MOST_INT = 2**31 - 1
_build_lock = threading.Lock()  # autograd calls backward from a thread of its own


def forward(
    values: Tensor, flow: Tensor, importance: Tensor | None, sigma: Tensor | None, ewa: bool, normalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Splat; arguments and results as in `fused.py`. ValueError: an image with 2^31 pixels or more."""
    batch, channels, height, width = values.shape
    side = 2 if sigma is None else 4
    # The kernels count pixels and cells in int, landing points beyond the image's margin included.
    if (height + 4 * reference.MARGIN_PX) * (width + 4 * reference.MARGIN_PX) > _MOST_INT:
        raise ValueError(f"values: expected fewer than 2^31 pixels, margin included, got {height} x {width}")
    values, flow, importance = _contiguous(values, flow, importance)
    out = _empty((batch, channels, height, width), values)
    weight = _empty((batch, 1, height, width), flow)
    largest = _empty((0,) if importance is None else (batch, 1, height, width), flow)
    if weight.numel() == 0:
        return out, weight, largest

    cells_down, cells_across = height + side - 1, width + side - 1
    heads = _empty((batch, cells_down, cells_across), flow, torch.int32).fill_(-1)
    sources = _empty((batch, height, width, 4), flow)
    gaussians = _empty((batch, height, width, 4), flow) if sigma is not None and ewa else None
    tiles = batch * _tiles(height, width)
    _run("link_sources", tiles, values, flow, importance, sigma, heads, sources, gaussians, height, width)
    if torch.are_deterministic_algorithms_enabled():
        cell_tiles = batch * _tiles(cells_down, cells_across)
        _run("sort_lists", cell_tiles, values, heads, sources, cells_down, cells_across, height * width)
    chunks = max(1, -(-channels // CHUNK))
    inputs = (values, sigma, heads, sources, gaussians)
    outputs = (out, weight, None if importance is None else largest)
    _run(f"gather_{side}x{side}", tiles * chunks, values, *inputs, *outputs, channels, height, width, normalise)
    return out, weight, largest


def backward(
    grad_out: Tensor, grad_weight: Tensor | None, saved: Saved, ewa: bool, normalise: bool, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Differentiate; as in `fused.py`. Half-precision outputs, and so gradients to the flow, are rounded."""
    values, flow, importance, sigma, out, weight, largest = saved
    batch, channels, height, width = values.shape
    side = 2 if sigma is None else 4
    gradients = []  # to values, flow, importance and sigma, of which each source has its part
    for needed, of, count in zip(needs, (values, flow, importance, sigma), (channels, 2, 1, 1), strict=True):
        like = values if of is values else flow
        gradients.append(_empty((batch, count, height, width), like) if needed and of is not None else None)
    if weight.numel() > 0 and any(gradient is not None for gradient in gradients):
        values, flow, importance, grad_out, grad_weight, out, weight, largest = _contiguous(
            values, flow, importance, grad_out, grad_weight, out, weight, largest
        )
        sizes = (channels, height, width)
        tiles = batch * _tiles(height, width)
        targets = _empty((batch, height, width, 4), flow)
        # The gradient to the values alone does not need that to D, which takes a pass over out.
        mean = out if normalise and any(gradient is not None for gradient in gradients[1:]) else None
        at_targets = (weight, None if importance is None else largest, targets)
        _run("target_gradients", tiles, values, grad_out, grad_weight, mean, *at_targets, *sizes, normalise)
        inputs = (grad_out, targets, values, flow, importance, sigma)
        _run(f"source_gradients_{side}x{side}", tiles, values, *inputs, *gradients, *sizes, ewa)
    return *gradients[:3], None if gradients[3] is None else gradients[3].sum()


def unavailable_reason() -> str | None:
    """Return in one sentence why the kernels cannot run here and what to do; None where they can."""
    cuda = torch.version.cuda
    if cuda is None:
        return "this torch was built without CUDA: install one with CUDA, see https://pytorch.org/get-started/locally"
    major = cuda.split(".")[0]
    problem, remedy = "torch cannot use CUDA", "check the GPU and its driver with nvidia-smi"
    try:
        if not torch.cuda.is_available():
            return f"torch finds no NVIDIA GPU that it can use: {remedy}"
        problem = "the CUDA kernels need CuPy"
        remedy = f"pip install cupy-cuda{major}x, which matches the CUDA {cuda} of this torch"
        import cupy

        if cupy.cuda.runtime.getDeviceCount() < torch.cuda.device_count():
            raise RuntimeError("it sees fewer GPUs than torch")
        problem = "CuPy finds no NVRTC to compile the kernels with"
        remedy = f"pip install nvidia-cuda-nvrtc{'' if int(major) >= 13 else f'-cu{major}'}"
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # a broken installation must not break the other backends
        # CuPy frames its messages with lines of "=".
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" =")]
        return f"{problem} ({lines[0] if lines else type(error).__name__}): {remedy}"
    return None


def source(dtype: torch.dtype) -> str:
    """Return the program for values of this dtype: the constants, then kernels/*.cu one after another."""
    constants = {f"VALUES_{str(dtype).removeprefix('torch.').upper()}": "", "CHUNK": CHUNK, "PI": math.pi}
    constants |= {"THREADS": TILE_WIDTH * TILE_HEIGHT, "TILE_WIDTH": TILE_WIDTH, "TILE_HEIGHT": TILE_HEIGHT}
    constants |= {name: f"Sum({getattr(reference, name)!r})" for name in _SHARED_CONSTANTS}
    parts = [f"#define {name} {value}\n" for name, value in constants.items()]
    for name in ("taps.cu", "forward.cu", "backward.cu"):
        text = (Path(__file__).parent / "kernels" / name).read_text(encoding="utf-8")
        parts.append(f'#line 1 "{name}"\n{text}')
    return "".join(parts)


def _empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate what a kernel writes. Torch's allocator knows the stream, so that nothing has to be kept alive."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _tiles(height: int, width: int) -> int:
    return -(-height // TILE_HEIGHT) * -(-width // TILE_WIDTH)


def _run(kernel: str, blocks: int, values: Tensor, *arguments: Tensor | int | None) -> None:
    if blocks > _MOST_INT:
        raise ValueError(f"values: expected at most 2^31 - 1 blocks of work, got {blocks} for {tuple(values.shape)}")
    _launch(kernel, blocks, tuple(map(_scalar, arguments)), values.dtype, values.device)


def _scalar(argument: Tensor | int | None) -> np.generic:
    """Return the bytes that stand for an argument: a pointer, null for None, or an int. CuPy goes by their number."""
    if argument is None:
        return np.uint64(0)
    return np.uint64(argument.data_ptr()) if isinstance(argument, Tensor) else np.int32(argument)


# The only functions that touch CuPy are those below; tests put an emulator in the place of _launch.


def _launch(
    kernel: str, blocks: int, arguments: tuple[np.generic, ...], dtype: torch.dtype, device: torch.device
) -> None:
    import cupy

    with cupy.cuda.Device(device.index):
        with _build_lock:
            function = _program(dtype, device.index)[kernel]
        with _as_cupy_stream(torch.cuda.current_stream(device)):
            function((blocks,), (TILE_WIDTH * TILE_HEIGHT,), arguments)


@functools.cache
def _program(dtype: torch.dtype, device_index: int) -> dict[str, Any]:
    """Compile the kernels, or take them from CuPy's cache, and load them on the current device."""
    import cupy

    module = cupy.RawModule(code=source(dtype), options=COMPILE_OPTIONS)
    return {name: module.get_function(name) for name in KERNELS}


class _Stream(NamedTuple):
    """A stream of torch in the CUDA stream protocol. Torch speaks it too, but not in all versions that we support."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _as_cupy_stream(stream: torch.cuda.Stream) -> Any:
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external"):  # CuPy 14
        return cupy.cuda.Stream.from_external(_Stream(stream.cuda_stream))
    return cupy.cuda.ExternalStream(stream.cuda_stream, stream.device_index)
