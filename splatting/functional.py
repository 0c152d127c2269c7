"""The public splatting operators: argument checks, weighting, and the choice of a backend.

Conventions: values (B, C, H, W); flow (B, 2, H, W) forward, in pixels of its own grid, channel 0 = dx (right) and
1 = dy (down); importance (B, 1, H, W). Pixel centres lie at integers, so the source at pixel p lands at p + flow(p).
Values are taken to be finite where the flow is: NaN and infinity spread to what their source touches, and whether taps
of weight exactly 0 count as touching differs between backends.

Backends: "reference" (`reference.py`, plain torch, the definition), and "cpu" (`cpu.py`) and "cuda" (`cuda.py`) behind
`fused.py`. A backend's `unavailable_reason()` is None where it can run, else a sentence with the reason and the remedy.
"""

import functools
import importlib
import logging
import math
import numbers

import torch
from torch import Tensor

from splatting import fused, reference
from splatting.reference import DEFAULT_SIGMA_PX

logger = logging.getLogger(__name__)

BACKENDS = ("reference", "cpu", "cuda")
WEIGHTINGS = ("exp", "gaussian")
# The squares of these are just far enough from overflow; larger scaled importances would tie.
_LARGEST_SCALED_IMPORTANCE = {torch.float32: 1e18, torch.float64: 1e150}
# Narrower Gaussians than EWA's floor, and wider ones than any image, end in overflows.
SIGMA_RANGE_PX = (1e-3, 1e3)
FLOATING_POINT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def softmax_splat(
    values: Tensor,  # (B, C, H, W), float16, bfloat16, float32 or float64; half precision is summed in float32
    flow: Tensor,  # (B, 2, H, W) px; a source whose flow is not finite, or that lands outside, contributes nothing
    importance: Tensor,  # (B, 1, H, W); a source whose importance is not finite contributes nothing
    *,
    weighting: str = "exp",  # z = importance; or "gaussian": z = -importance^2 / (2 weight_sigma^2)
    weight_sigma: float = 1.0,  # scale of the "gaussian" weighting, > 0, in the unit of the importance
    backend: str = "auto",  # or "reference" (any device), "cpu", "cuda"
    return_weight: bool = False,  # also return the denominator
) -> Tensor | tuple[Tensor, Tensor]:
    """Splat values along flow with a bilinear footprint and let the importance decide collisions.

    out(q) = sum_i b_i(q) exp(z_i - m(q)) v_i / sum_i b_i(q) exp(z_i - m(q)), b the bilinear weight of source i at
    target q [Niklaus and Liu, Softmax Splatting, CVPR 2020]. Ours: m(q) is the largest z among the sources that
    touch q, taken per target and detached, so that no importance overflows and none makes a false hole.

    Returns (B, C, H, W) in the dtype of values, and with return_weight also (B, 1, H, W); both are exactly 0 where
    nothing arrives. Raises ValueError for an argument of a wrong shape, dtype, device or value, RuntimeError for a
    backend that cannot run here. Gradients reach values, flow and importance. The weight's own gradient holds the
    maximum constant. At integer landing points the gradient to flow is the derivative from the right, or from below.
    """
    _check_tensors(values, flow, importance)
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting: expected one of {WEIGHTINGS}, got {weighting!r}")
    _check_positive("weight_sigma", weight_sigma)
    if weighting == "gaussian":
        importance = _gaussian_log_weight(importance, weight_sigma)
    return _splat(backend, return_weight, values, flow, importance)


def gaussian_splat(
    values: Tensor,
    flow: Tensor,
    importance: Tensor,
    *,
    sigma: float | Tensor = DEFAULT_SIGMA_PX,  # px, from 0.001 to 1000, or a tensor where it is learned (not checked)
    ewa: bool = True,  # stretch the footprint with the flow
    backend: str = "auto",
    return_weight: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Splat each source as a 2-D Gaussian over 4 x 4 taps and let the importance decide collisions.

    The footprint is exp(-d^T S^-1 d / 2) / (2 pi sqrt(det S)) around p + flow(p); it is multiplied by
    exp(importance - per-target maximum) and normalised as in `softmax_splat`. S = sigma^2 I, or with ewa
    J (sigma^2 I) J^T + 1e-4 I [Zwicker et al., EWA Splatting, 2002] with J = I + d flow / d p by central
    differences. Ours: the singular values of J are clamped to [0.5, 2.5] and J is detached. The 4 x 4 taps hold
    Gaussians up to a standard deviation of about 0.65.

    The rest is as in `softmax_splat`. Gradients reach values, flow (through the position, not J), importance and sigma.
    """
    _check_tensors(values, flow, importance)
    if isinstance(sigma, Tensor):
        if sigma.numel() != 1 or not sigma.is_floating_point():
            got = f"{sigma.dtype} {tuple(sigma.shape)}"
            raise ValueError(f"sigma: expected a number or a floating-point tensor with one element, got {got}")
        if sigma.ndim > 0 and sigma.device != values.device:
            raise ValueError(f"sigma: expected a tensor on {values.device}, got {sigma.device}")
    else:
        _check_positive("sigma", sigma)
        if not SIGMA_RANGE_PX[0] <= sigma <= SIGMA_RANGE_PX[1]:
            raise ValueError(f"sigma: expected {SIGMA_RANGE_PX[0]:g} to {SIGMA_RANGE_PX[1]:g} px, got {sigma}")
        sigma = float(sigma)
    return _splat(backend, return_weight, values, flow, importance, sigma, ewa)


def average_splat(
    values: Tensor, flow: Tensor, *, backend: str = "auto", return_weight: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Average what arrives at a pixel: sum_i b_i(q) v_i / sum_i b_i(q); otherwise as `softmax_splat`."""
    _check_tensors(values, flow)
    return _splat(backend, return_weight, values, flow)


def sum_splat(
    values: Tensor, flow: Tensor, *, backend: str = "auto", return_weight: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Add up what arrives at a pixel: sum_i b_i(q) v_i, not normalised; otherwise as `softmax_splat`."""
    _check_tensors(values, flow)
    return _splat(backend, return_weight, values, flow, normalise=False)


def available_backends() -> tuple[str, ...]:
    """List the backends that can run here, "reference" first."""
    return tuple(name for name in BACKENDS if _unavailable_reason(name) is None)


def _splat(backend, return_weight, values, flow, importance=None, sigma=None, ewa=False, normalise=True):
    chosen = reference if _backend_name(backend, values.device.type) == "reference" else fused
    pair = chosen.splat(values, flow, importance, sigma, ewa, normalise)
    return pair if return_weight else pair[0]


def _gaussian_log_weight(importance: Tensor, weight_sigma: float) -> Tensor:
    importance = importance.to(torch.promote_types(importance.dtype, torch.float32))
    finite = importance.isfinite()
    limit = _LARGEST_SCALED_IMPORTANCE[importance.dtype]
    scaled = (torch.where(finite, importance, 0.0) / weight_sigma).clamp(-limit, limit)
    # What is not finite stays so: the backends leave such a source out.
    return torch.where(finite, -0.5 * scaled.square(), math.nan)


@functools.cache
def _unavailable_reason(name: str) -> str | None:
    if name == "reference":
        return None
    return importlib.import_module(f"{__package__}.{name}").unavailable_reason()


def _backend_name(backend: str, device: str) -> str:
    if backend == "auto":
        return _automatic_backend(device)
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {('auto', *BACKENDS)}, got {backend!r}")
    if (reason := _unavailable_reason(backend)) is not None:
        raise RuntimeError(f"splatting: {reason}")
    if backend != "reference" and backend != device:
        remedy = "move them there, or use backend='auto'"
        raise RuntimeError(f"splatting: backend={backend!r} needs {backend} tensors, got values on {device}: {remedy}")
    return backend


# What torch.compiler.assume_constant_result does, which would import all of the compiler (a second) for it:
# torch.compile calls the function instead of tracing its imports and its log line.
_backend_name._dynamo_marked_constant = True


@functools.cache
def _automatic_backend(device: str) -> str:
    """Return the fastest backend for a device type, and log the choice the first time."""
    reason = _unavailable_reason(device) if device in BACKENDS else f"there is no kernel for {device} tensors"
    chosen = device if reason is None else "reference"
    note = "" if reason is None else f" (plain torch, slower): {reason}"
    logger.info("splatting %s tensors with the %r backend%s", device, chosen, note)
    return chosen


def _check_tensors(values: Tensor, flow: Tensor, importance: Tensor | None = None) -> None:
    _check_tensor("values", values, "(B, C, H, W)")
    batch, _, height, width = values.shape
    if height == 0 or width == 0:
        raise ValueError(f"values: expected (B, C, H, W) with H and W at least 1, got {tuple(values.shape)}")
    others = [("flow", flow, 2)] + ([] if importance is None else [("importance", importance, 1)])
    for name, tensor, channels in others:
        expected = (batch, channels, height, width)
        _check_tensor(name, tensor, f"{expected}")
        if tensor.shape != expected:
            raise ValueError(f"{name}: expected {expected} to match values, got {tuple(tensor.shape)}")
        if tensor.device != values.device:
            raise ValueError(f"{name}: expected a tensor on {values.device} like values, got {tensor.device}")


def _check_tensor(name: str, tensor: Tensor, expected: str) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a tensor {expected}, got {type(tensor).__name__}")
    if tensor.ndim != 4:
        raise ValueError(f"{name}: expected {expected}, got {tuple(tensor.shape)}")
    if tensor.dtype not in FLOATING_POINT:
        raise ValueError(f"{name}: expected a floating-point tensor of 16, 32 or 64 bits, got {tensor.dtype}")


def _check_positive(name: str, number: float) -> None:
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise ValueError(f"{name}: expected a number > 0, got {type(number).__name__}")
    # Not by math.isfinite, which torch.compile cannot trace for a number that changes.
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a number > 0, got {number}")
