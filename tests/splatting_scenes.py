"""Scenes, tolerances and the comparison with the reference that the tests of the CUDA backend share."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from splatting import cuda, reference
from splatting.fused import Saved

DTYPES = {str(dtype).split(".")[1]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)

# Scenes: values (B, C, H, W), flow (B, 2, H, W), importance (B, 1, H, W), all float64 -----------------------------

Scene = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_scene(batch: int, channels: int, height: int, width: int, spread_px: float = 1.5) -> Scene:
    generator = torch.Generator().manual_seed(channels * 100 + height * 10 + width)

    def noise(count: int) -> torch.Tensor:
        return torch.randn(batch, count, height, width, generator=generator, dtype=torch.float64)

    return noise(channels), spread_px * noise(2), 2 * noise(1)


def with_flow(change, *size) -> Scene:
    values, flow, importance = random_scene(*(size or (2, 3, 5, 6)))
    return values, change(flow), importance


def not_finite(channel: int | None) -> Scene:
    """Flow (its channel) or importance (None) is not finite in places, and there the values are not either."""
    values, flow, importance = random_scene(2, 5, 6, 7)
    for number, bad in enumerate((math.nan, math.inf, -math.inf)):
        where = (importance if channel is None else flow)[:, channel or 0]
        where[0, 1, number] = where[1, 2, 2 * number] = bad
        values[0, :, 1, number] = values[1, :, 2, 2 * number] = bad
    return values, flow, importance


def collapse() -> Scene:
    values, flow, importance = random_scene(1, 3, 6, 7)
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    return values, (torch.tensor([3.3, 2.6]).view(2, 1, 1) - torch.stack([x, y]))[None].to(values), importance


def huge_importance() -> Scene:
    values, flow, importance = random_scene(1, 3, 6, 7)
    return values, flow, 1e4 * importance.sign()


def torn_apart(flow: torch.Tensor) -> torch.Tensor:
    flow[:, :, 2, 2], flow[:, :, 2, 4], flow[:, 0, 3, 2:4] = 3e38, -3e38, torch.tensor([1e5, -1e7], dtype=flow.dtype)
    return flow


SCENES = {
    "3 channels": lambda: random_scene(2, 3, 7, 9),
    "1 channel": lambda: random_scene(1, 1, 5, 6),
    "16 channels": lambda: random_scene(1, 16, 5, 6),
    "17 channels": lambda: random_scene(2, 17, 5, 6),
    "64 channels": lambda: random_scene(1, 64, 3, 5),
    "several tiles": lambda: random_scene(2, 2, 11, 37),
    "one row": lambda: random_scene(2, 2, 1, 6),
    "one column": lambda: random_scene(2, 2, 6, 1),
    "one pixel": lambda: random_scene(2, 2, 1, 1, 0.3),
    "zero flow": lambda: with_flow(torch.zeros_like),
    "integer flow": lambda: with_flow(torch.round),
    "over the edges": lambda: random_scene(2, 3, 5, 6, 6.0),
    "out of frame": lambda: with_flow(lambda flow: 1e9 * flow.sign()),
    "no channel": lambda: with_flow(lambda flow: flow, 1, 0, 3, 4),
    "dx not finite": lambda: not_finite(0),
    "dy not finite": lambda: not_finite(1),
    "collapse": collapse,
    "huge importance": huge_importance,
}
# operator -> its importance, sigma, ewa and normalise
OPERATORS = {
    "sum": (False, None, False, False),
    "average": (False, None, False, True),
    "softmax": (True, None, False, True),
    "round": (True, 0.6, False, True),
    "narrow": (True, 0.15, False, True),  # weights from 0 to below MIN_TAP_WEIGHT to 7
    "ewa": (True, 0.5, True, True),
}
each_operator = pytest.mark.parametrize("operator", OPERATORS)


def summing(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def inputs_of(operator: str, scene: Scene, dtype: torch.dtype) -> tuple:
    """Return values, flow, importance, sigma, ewa and normalise as `cuda.forward` takes them."""
    has_importance, sigma, ewa, normalise = OPERATORS[operator]
    values, flow, importance = scene[0].to(dtype), scene[1].to(summing(dtype)), scene[2].to(summing(dtype))
    sigma = None if sigma is None else torch.tensor(sigma, dtype=summing(dtype))
    return values, flow, importance if has_importance else None, sigma, ewa, normalise


def run(inputs: tuple, upstream: tuple | None = None, needs=(True,) * 4) -> tuple[tuple, tuple]:
    """Run both passes; return (out, weight, largest) and the gradients."""
    forward = cuda.forward(*inputs)
    grad_out, grad_weight = upstream_of(inputs) if upstream is None else upstream
    return forward, cuda.backward(grad_out, grad_weight, Saved(*inputs[:4], *forward), *inputs[4:], needs)


def assert_same(got: tuple, expected: tuple, tolerance: float = 0.0) -> None:
    """Compare what `run` returned twice."""
    for one, other in zip(itertools.chain(*got), itertools.chain(*expected), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def upstream_of(inputs: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    values, flow = inputs[:2]
    generator = torch.Generator().manual_seed(7)
    grad_weight = torch.randn(flow[:, :1].shape, generator=generator, dtype=flow.dtype)
    return torch.randn(values.shape, generator=generator, dtype=flow.dtype).to(values.dtype), grad_weight


def expected_of(inputs: tuple) -> tuple[tuple, tuple]:
    """Return the reference's (out, weight) and gradients, all in the summing type."""
    values, flow, importance, sigma, ewa, normalise = inputs
    leaves = [None if tensor is None else tensor.to(flow.dtype).requires_grad_() for tensor in inputs[:4]]
    values, flow, importance, sigma = leaves
    out, weight = reference.splat(values, flow, importance, sigma=sigma, ewa=ewa, normalise=normalise)
    grad_out, grad_weight = upstream_of(inputs)
    wanted = [leaf for leaf in leaves if leaf is not None]
    gradients = iter(torch.autograd.grad((out, weight), wanted, (grad_out.to(out.dtype), grad_weight)))
    return (out, weight), tuple(None if leaf is None else next(gradients) for leaf in leaves)


def assert_near(got: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str, scale: float = 0.0) -> None:
    # Relative to the largest element too: gradients are differences of numbers of that size.
    largest = max(scale, float(expected.detach().abs().max()) if expected.numel() else 0.0)
    expected = expected.detach().to(got.dtype)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * largest, msg=lambda m: f"{name}: {m}")


# Of out and its weight, of the gradient to the values, of the other gradients. float32: sums of up to 42 terms in
# another order, each rounded at 6e-8, and gradients that divide by weights and subtract. float64: the same, with room.
# Half precision: the last bit of the number itself, 2^-11 and 2^-8 of it; the other gradients start from the rounded
# out, and divide what it is off by small weights.
TOLERANCES = {
    torch.float16: (1e-3, 1e-3, 1e-2),
    torch.bfloat16: (8e-3, 8e-3, 8e-2),
    torch.float32: (1e-5, 1e-4, 1e-4),
    torch.float64: (1e-10, 1e-10, 1e-10),
}


def moved(items: tuple, device: str) -> tuple:
    return tuple(item.to(device) if isinstance(item, torch.Tensor) else item for item in items)


def compare(operator: str, scene: Scene, dtype: torch.dtype, device: str = "cpu") -> None:
    inputs = inputs_of(operator, scene, dtype)
    given = moved(inputs, device)
    results = run(given, moved(upstream_of(inputs), device))
    (out, weight, largest), gradients = (moved(result, "cpu") for result in results)
    (expected, expected_weight), expected_gradients = expected_of(inputs)
    of_out, of_values, of_others = TOLERANCES[dtype]
    assert out.dtype == dtype and weight.dtype == summing(dtype) and out.is_contiguous()
    assert_near(out, expected, of_out, "out")
    assert_near(weight, expected_weight, min(of_out, 1e-5), "weight")
    assert torch.equal(weight > 0, expected_weight > 0) and not out[(weight == 0).expand_as(out)].any()
    if inputs[2] is None:
        assert largest.shape == (0,)
    else:
        assert torch.equal(largest.isneginf(), weight == 0) and not largest.isnan().any()
    for name, got, wanted in zip(("values", "flow", "importance", "sigma"), gradients, expected_gradients, strict=True):
        if wanted is None:
            assert got is None
            continue
        assert got.dtype == (dtype if name == "values" else summing(dtype)) and got.shape == wanted.shape
        # That to sigma adds up terms like those of the flow's, of both signs, over all sources.
        scale = float(expected_gradients[1].abs().max()) if name == "sigma" else 0.0
        assert_near(got, wanted, of_values if name == "values" else of_others, f"gradient to {name}", scale)
