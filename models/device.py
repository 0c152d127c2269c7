"""Where networks compute, and in which precision."""

from __future__ import annotations

import torch

AUTOCAST_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """Return the precision, one of AUTOCAST_DTYPES; ArgumentError where the device cannot compute in it."""
    if precision not in AUTOCAST_DTYPES:
        raise ArgumentError(f"precision {precision}: right: {', '.join(AUTOCAST_DTYPES)}")
    if precision == "fp16" and device.type == "cpu":
        raise ArgumentError("precision fp16: needs a GPU; right: no, bf16")
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which networks compute in `precision`: "no" (float32), "bf16" or "fp16"."""
    dtype = AUTOCAST_DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
