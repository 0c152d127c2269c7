"""Where networks compute, and in which precision."""

import functools
import logging
import time
from pathlib import Path

import torch

from models.gridnet import ConvBlock

logger = logging.getLogger(__name__)

AUTOCAST_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# bfloat16 costs digits, which a gain within the noise of the measurement is not worth.
LEAST_SPEED_UP = 1.1
CHECKED_SIZE, CHECKED_TIMES = (80, 128), 5


class ArgumentError(ValueError):
    """An argument that cannot be honoured; the message begins with its name, "steps 0: ..." or "data: ..."."""

    is_user_error = True


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device for auto|cpu|cuda[:N]|mps; ArgumentError where this machine lacks it."""
    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if num_cuda else "mps" if has_mps else "cpu")
    present = ["auto", "cpu"] + [f"cuda:{index}" for index in range(num_cuda)] + ["mps"] * has_mps
    if name not in present and not (name == "cuda" and num_cuda):
        lacks = "has no CUDA device" if name.startswith("cuda") and not num_cuda else "does not have it"
        raise ArgumentError(f"device {name}: this machine {lacks}; right: {', '.join(present)}")
    return torch.device(name)


def check_precision(precision: str, device: torch.device) -> str:
    """Return the precision, one of AUTOCAST_DTYPES; ArgumentError where the device cannot compute in it.

    "auto" is float16 on a CUDA GPU, bfloat16 on a CPU where that is faster, else float32; a logged line says which.
    """
    if precision == "auto":
        return _automatic_precision(device.type)
    if precision not in AUTOCAST_DTYPES:
        raise ArgumentError(f"precision {precision}: right: {', '.join(AUTOCAST_DTYPES)}")
    if precision == "fp16" and device.type == "cpu":
        raise ArgumentError("precision fp16: needs a GPU; right: no, bf16")
    if precision == "bf16" and device.type == "cpu":
        _note_slow_bfloat16()
    return precision


@functools.cache
def _automatic_precision(device_type: str) -> str:
    if device_type == "cuda":
        precision, why = "fp16", "a CUDA GPU"
    elif device_type != "cpu":
        precision, why = "no", device_type
    elif not has_bfloat16_units():
        precision, why = "no", "this CPU has no units for bfloat16"
    else:
        speed_up = bfloat16_speed_up()
        precision, only = ("bf16", "") if speed_up >= LEAST_SPEED_UP else ("no", "only ")
        why = f"bfloat16 is {only}{speed_up:.2f} times as fast"
    logger.info("precision %s: %s", precision, why)
    return precision


@functools.cache
def _note_slow_bfloat16() -> None:
    speed_up = bfloat16_speed_up()
    if speed_up < 1:
        logger.info("precision bf16: slower than float32 on this CPU (%.2f times as fast); right: auto, no", speed_up)


def has_bfloat16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU multiplies bfloat16 matrices (AMX, AVX512-BF16); False where the system does not say."""
    try:
        words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return bool(words & {"amx_bf16", "avx512_bf16"})


def bfloat16_speed_up() -> float:
    """Return how many times as fast as in float32 this CPU computes a block of GridNet's in bfloat16."""
    block, maps = ConvBlock(32, 32), torch.zeros(1, 32, *CHECKED_SIZE)
    seconds: dict[str, list[float]] = {"no": [], "bf16": []}
    with torch.no_grad():
        for _ in range(1 + CHECKED_TIMES):
            for precision, times in seconds.items():
                start = time.perf_counter()
                with autocast(maps.device, precision):
                    block(maps)
                times.append(time.perf_counter() - start)
    return min(seconds["no"][1:]) / min(seconds["bf16"][1:])  # the first call prepares


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which networks compute in `precision`: "no" (float32), "bf16" or "fp16"."""
    dtype = AUTOCAST_DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
