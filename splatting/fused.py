"""The splatting operators as one custom operator of torch, with a fused forward and a fused backward pass.

`image_dynamics::splat` and its backward run on the module of the tensors' device: `cpu.py` (Numba) or `cuda.py` (CuPy).
torch.compile takes them as they are, and autocast leaves them alone: values keep their dtype, and flow, importance and
sigma are float32 or float64 in any case. Such a module has

    forward(values, flow, importance, sigma, ewa, normalise) -> (out, weight, largest)
    backward(grad_out, grad_weight, saved, ewa, normalise, needs)
        -> gradients of values, flow, importance and sigma, None where the four bools of `needs` say no

Second and forward-mode derivatives and the transforms of torch.func need `backend="reference"`; here: RuntimeError.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from splatting.reference import summing_dtype, weight_in


class Saved(NamedTuple):
    """What the forward pass leaves for the backward one. The summing type is float64 where values are, else float32."""

    values: Tensor  # (B, C, H, W) float16, bfloat16, float32 or float64, any strides
    flow: Tensor  # (B, 2, H, W) in the summing type
    importance: Tensor | None  # (B, 1, H, W) summing type, the exponent z; None for average and sum
    sigma: Tensor | None  # () summing type, on the same device; None: bilinear footprint, else Gaussian
    out: Tensor | None  # (B, C, H, W) like values, in the layout of `out_format`; None: backward does not need it
    weight: Tensor  # (B, 1, H, W) summing type, the sum of the weights
    largest: Tensor  # (B, 1, H, W) summing type, largest z that arrives, -inf where none; (0,) without importance


_FORWARD = (
    "(Tensor values, Tensor flow, Tensor? importance, Tensor? sigma, bool ewa, bool normalise)"
    " -> (Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor? grad_weight, Tensor values, Tensor flow, Tensor? importance, Tensor? sigma, Tensor? out,"
    " Tensor weight, Tensor largest, bool ewa, bool normalise, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)


def splat(
    values: Tensor, flow: Tensor, importance: Tensor | None, sigma: float | Tensor | None, ewa: bool, normalise: bool
) -> tuple[Tensor, Tensor]:
    """Do the same as `reference.splat`."""
    # Torch would drop the tangents of an operator that it knows no forward derivative of.
    tensors = [tensor for tensor in (values, flow, importance, sigma) if isinstance(tensor, Tensor)]
    if any(unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError("splatting: forward-mode derivatives need backend='reference'")
    dtype = summing_dtype(values, flow, importance)
    if importance is not None:
        importance = importance.to(dtype)
    if isinstance(sigma, Tensor):
        sigma = sigma.to(values.device, dtype).reshape(())
    elif sigma is not None:
        # Not by as_tensor, which would copy from the host and wait for the GPU.
        sigma = torch.full((), sigma, dtype=dtype, device=values.device)
    # Half precision stays as it is: the kernels read it, and sum in float32.
    source = values.to(dtype) if dtype == torch.float64 else values
    out, weight, _ = _forward(source, flow.to(dtype), importance, sigma, ewa, normalise)
    return out.to(values.dtype), weight_in(weight, values.dtype)


def _kernels(device: torch.device) -> ModuleType:
    return importlib.import_module(f"{__package__}.{device.type}")


@torch.library.custom_op("image_dynamics::splat", mutates_args=(), schema=_FORWARD)
def _forward(values, *others):
    return _kernels(values.device).forward(values, *others)


@torch.library.custom_op("image_dynamics::splat_backward", mutates_args=(), schema=_BACKWARD)
def _backward(grad_out, grad_weight, *others):
    """Differentiate `_forward`; a gradient that is not needed comes back as an empty (0,) tensor."""
    saved = Saved(*others[:7])
    gradients = _kernels(grad_out.device).backward(grad_out, grad_weight, saved, *others[7:])
    # A custom operator can return neither None nor one of its arguments.
    return tuple(saved.weight.new_empty(0) if gradient is None else gradient for gradient in gradients)


def out_format(values: Tensor) -> torch.memory_format:
    """Return the layout of the output: that of dense values on the CPU, otherwise channels first."""
    channels_last = values.device.type == "cpu" and not values.is_contiguous()
    if channels_last and values.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


@_forward.register_fake
def _(values, flow, importance, sigma, ewa, normalise):
    batch, _, height, width = values.shape
    plane = (batch, 1, height, width)
    out = torch.empty_like(values, memory_format=out_format(values))
    return out, flow.new_empty(plane), flow.new_empty(0 if importance is None else plane)


@_backward.register_fake
def _(grad_out, grad_weight, values, flow, importance, sigma, out, weight, largest, ewa, normalise, needs):
    gradients = []
    for needed, tensor in zip(needs, (values, flow, importance, sigma), strict=True):
        if not needed or tensor is None:
            gradients.append(weight.new_empty(0))
        elif tensor is values:
            gradients.append(torch.empty_like(values, memory_format=out_format(values)))
        else:
            gradients.append(tensor.new_empty(tensor.shape))
    return tuple(gradients)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.ewa, ctx.normalise = inputs
    out, weight, largest = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(largest)
    # A sum does not look back at its output, which the caller may then change.
    ctx.save_for_backward(*tensors, out if ctx.normalise else None, weight, largest)


def _autograd(ctx, grad_out, grad_weight, _):
    saved = Saved(*ctx.saved_tensors)
    if grad_out is None:
        # Then the output is not needed either.
        grad_out, saved = torch.zeros_like(saved.values), saved._replace(out=None)
    needs = list(ctx.needs_input_grad[:4])
    gradients = _backward(grad_out, grad_weight, *saved, ctx.ewa, ctx.normalise, needs)
    gradients = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]
    return *gradients, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
