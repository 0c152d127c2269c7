"""Splatting against slow direct loops written from the definition, and gradients in float64; reference and CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from splatting import average_splat, gaussian_splat, softmax_splat, sum_splat
from splatting.reference import _local_stretch

pytestmark = pytest.mark.usefixtures("each_backend")


def bilinear(x: float, y: float) -> dict[tuple[int, int], float]:
    left, top = math.floor(x), math.floor(y)
    return {
        (row, column): (1 - abs(x - column)) * (1 - abs(y - row))
        for row in (top, top + 1)
        for column in (left, left + 1)
    }


def gaussian(x: float, y: float, covariance: torch.Tensor) -> dict[tuple[int, int], float]:
    left, top = math.floor(x), math.floor(y)
    inverse, scale = covariance.inverse(), 1 / (2 * math.pi * math.sqrt(torch.linalg.det(covariance)))
    weights = {}
    for row in range(top - 1, top + 3):
        for column in range(left - 1, left + 3):
            d = torch.tensor([column - x, row - y], dtype=covariance.dtype)
            weights[row, column] = scale * math.exp(-0.5 * float(d @ inverse @ d))
    return weights


def direct(
    values: torch.Tensor,
    flow: torch.Tensor,
    importance: torch.Tensor,
    footprint: Callable[[int, int, float, float], dict[tuple[int, int], float]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Splat one picture (C, H, W) source by source; footprint(row, column, x, y) gives a source's taps."""
    _, height, width = values.shape
    arrivals: dict[tuple[int, int], list[tuple[float, float, torch.Tensor]]] = {}
    for row in range(height):
        for column in range(width):
            dx, dy = flow[:, row, column].tolist()
            if not (math.isfinite(dx) and math.isfinite(dy)):
                continue
            for target, weight in footprint(row, column, column + dx, row + dy).items():
                if 0 <= target[0] < height and 0 <= target[1] < width and weight > 0:
                    z = float(importance[0, row, column])
                    arrivals.setdefault(target, []).append((weight, z, values[:, row, column]))
    out, total = torch.zeros_like(values), torch.zeros_like(importance)
    for (row, column), sources in arrivals.items():
        largest = max(z for _, z, _ in sources)
        weights = [weight * math.exp(z - largest) for weight, z, _ in sources]
        total[0, row, column] = sum(weights)
        mixed = sum(w * v for w, (_, _, v) in zip(weights, sources, strict=True))
        out[:, row, column] = mixed / sum(weights)
    return out, total


def neighbours(index: int, size: int) -> tuple[int, int]:
    return max(index - 1, 0), min(index + 1, size - 1)


def svd_covariance(flow: torch.Tensor, row: int, column: int, sigma: float) -> torch.Tensor:
    _, height, width = flow.shape
    jacobian = torch.eye(2, dtype=flow.dtype)
    for axis, (index, size) in enumerate(((column, width), (row, height))):
        before, after = neighbours(index, size)
        at = (lambda i: flow[:, row, i]) if axis == 0 else (lambda i: flow[:, i, column])
        slope = (at(after) - at(before)) / max(after - before, 1)
        if bool(slope.isfinite().all()):
            jacobian[:, axis] += slope
    u, s, vh = torch.linalg.svd(jacobian)
    clamped = u @ torch.diag(s.clamp(0.5, 2.5)) @ vh
    return sigma**2 * clamped @ clamped.T + 1e-4 * torch.eye(2, dtype=flow.dtype)


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 3, 6, 7, generator=generator, dtype=torch.float64)
    flow = 1.3 * torch.randn(2, 2, 6, 7, generator=generator, dtype=torch.float64)
    flow[0, :, 2, 3] = math.nan
    importance = 4 * torch.rand(2, 1, 6, 7, generator=generator, dtype=torch.float64)
    return values, flow, importance


def compare(got: tuple[torch.Tensor, torch.Tensor], scene, footprints) -> None:
    values, flow, importance = scene
    for b in range(len(values)):
        out, weight = direct(values[b], flow[b], importance[b], footprints(flow[b]))
        # Float64 sums of at most a few dozen terms in another order.
        torch.testing.assert_close(got[0][b], out, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(got[1][b], weight, rtol=1e-9, atol=1e-12)


def test_softmax_against_the_direct_loop(scene):
    got = softmax_splat(*scene, return_weight=True)
    compare(got, scene, lambda flow: lambda row, column, x, y: bilinear(x, y))


def test_average_against_the_direct_loop(scene):
    values, flow, importance = scene
    got = average_splat(values, flow, return_weight=True)
    compare(
        got,
        (values, flow, torch.zeros_like(importance)),
        lambda flow: lambda row, column, x, y: bilinear(x, y),
    )


def test_gaussian_against_the_direct_loop(scene):
    got = gaussian_splat(*scene, sigma=0.6, ewa=False, return_weight=True)
    covariance = 0.36 * torch.eye(2, dtype=torch.float64)
    compare(got, scene, lambda flow: lambda row, column, x, y: gaussian(x, y, covariance))


def test_ewa_against_the_direct_loop(scene):
    got = gaussian_splat(*scene, sigma=0.6, ewa=True, return_weight=True)

    def footprints(flow):
        return lambda row, column, x, y: gaussian(x, y, svd_covariance(flow, row, column, 0.6))

    compare(got, scene, footprints)


def test_a_sum_is_the_average_times_its_weight(scene):
    values, flow, _ = scene
    total, weight = sum_splat(values, flow, return_weight=True)
    average, average_weight = average_splat(values, flow, return_weight=True)
    torch.testing.assert_close(weight, average_weight)
    torch.testing.assert_close(total, average * weight)


def test_inside_the_frame_nothing_is_lost():
    generator = torch.Generator().manual_seed(2)
    values = torch.rand(1, 2, 9, 11, generator=generator, dtype=torch.float64)
    flow = 0.9 * (2 * torch.rand(1, 2, 9, 11, generator=generator, dtype=torch.float64) - 1)
    values[..., [0, -1], :], values[..., [0, -1]] = 0, 0
    torch.testing.assert_close(sum_splat(values, flow).sum((2, 3)), values.sum((2, 3)))


JACOBIANS = {
    "zero": [[0.0, 0.0], [0.0, 0.0]],
    "identity": [[1.0, 0.0], [0.0, 1.0]],
    "symmetric": [[1.5, 0.4], [0.4, 0.9]],
    "reflection": [[-1.2, 0.0], [0.0, 0.8]],
    "rotation": [[0.6, -0.8], [0.8, 0.6]],
    "shear": [[1.0, 1.7], [0.0, 1.0]],
    "singular": [[1.0, 2.0], [2.0, 4.0]],
    "minus identity": [[-1.0, 0.0], [0.0, -1.0]],
    "large": [[300.0, -20.0], [1.0, 0.5]],
    "swap": [[0.0, 1.0], [1.0, 0.0]],
}


@pytest.mark.parametrize("matrix", JACOBIANS.values(), ids=JACOBIANS)
def test_local_stretch_against_the_svd(matrix):
    # A flow linear in the position has this J at every pixel, borders included.
    jacobian = torch.tensor(matrix, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    position = torch.stack([x, y]).double()
    flow = torch.einsum("ij,jhw->ihw", jacobian - torch.eye(2), position)[None]
    first, second, cos, sin = _local_stretch(flow, torch.ones(1, 3, 4, dtype=torch.bool))
    mean, difference = (first**2 + second**2) / 2, (first**2 - second**2) / 2
    got = torch.stack([mean + difference * cos, difference * sin, mean - difference * cos])[:, 0]
    u, s, vh = torch.linalg.svd(jacobian)
    clamped = u @ torch.diag(s.clamp(0.5, 2.5)) @ vh
    expected = (clamped @ clamped.T)[[0, 0, 1], [0, 1, 1]][:, None, None].expand(-1, 3, 4)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_neighbour_without_flow_does_not_poison_the_footprint():
    values = torch.rand(1, 1, 5, 6)
    flow = torch.zeros(1, 2, 5, 6)
    flow[0, 0, 2, 3] = math.nan
    flow[0, 1, 1, 1] = 3e38
    flow[0, 1, 1, 2] = -3e38
    flow.requires_grad_()
    out, weight = gaussian_splat(values, flow, torch.zeros_like(values), return_weight=True)
    assert out.isfinite().all() and weight.isfinite().all()
    out.sum().backward()
    assert flow.grad.isfinite().all()


# Gradients -----------------------------------------------------------------------------------------------------


@pytest.fixture
def smooth() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a small scene whose landing points stay away from integers, some of them out of frame."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64)
    whole = torch.randint(-1, 2, (2, 2, 3, 4), generator=generator)
    flow = whole + 0.2 + 0.6 * torch.rand(2, 2, 3, 4, generator=generator, dtype=torch.float64)
    importance = 2 * torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64)
    return values.requires_grad_(), flow.requires_grad_(), importance.requires_grad_()


@pytest.mark.parametrize("weighting", ["exp", "gaussian"])
def test_softmax_gradients(weighting, smooth):
    assert torch.autograd.gradcheck(
        lambda v, f, z: softmax_splat(v, f, z, weighting=weighting, weight_sigma=1.5), smooth
    )


def test_gaussian_gradients(smooth):
    # EWA holds J constant by definition, so only the round footprint has the flow's whole derivative.
    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, f, z, s: gaussian_splat(v, f, z, sigma=s, ewa=False), (*smooth, sigma))


def test_ewa_gradients(smooth):
    values, flow, importance = smooth
    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    flow = flow.detach()
    assert torch.autograd.gradcheck(lambda v, z, s: gaussian_splat(v, flow, z, sigma=s), (values, importance, sigma))


def test_ewa_gradient_to_a_common_shift_of_the_flow(smooth):
    # A shift of all sources leaves J alone, so here the detached J costs nothing.
    values, flow, importance = (tensor.detach() for tensor in smooth)
    shift = torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: gaussian_splat(values, flow + s, importance), (shift,))


@pytest.mark.parametrize("splat", [average_splat, sum_splat])
def test_gradients_of_output_and_weight(splat, smooth):
    values, flow, _ = smooth
    assert torch.autograd.gradcheck(lambda v, f: splat(v, f, return_weight=True), (values, flow))


@pytest.mark.parametrize("splat", [softmax_splat, gaussian_splat])
def test_gradients_of_the_weight_to_the_flow(splat, smooth):
    keywords = {"ewa": False} if splat is gaussian_splat else {}
    _, flow, importance = smooth
    values, importance = torch.zeros_like(flow), importance.detach()
    assert torch.autograd.gradcheck(lambda f: splat(values, f, importance, return_weight=True, **keywords)[1], (flow,))


def test_at_integer_flow_the_gradient_is_the_derivative_from_the_right():
    values = torch.tensor([[[[1.0, 5.0, 2.0]]]], dtype=torch.float64)
    upstream = torch.tensor([[[[0.5, -1.0, 3.0]]]], dtype=torch.float64)
    flow = torch.zeros(1, 2, 1, 3, dtype=torch.float64, requires_grad=True)
    (sum_splat(values, flow) * upstream).sum().backward()
    assert flow.grad[0, 0, 0].tolist() == [1.0 * (-1.0 - 0.5), 5.0 * (3.0 + 1.0), 2.0 * -3.0]
