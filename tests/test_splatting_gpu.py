"""The CUDA backend on a GPU: against the reference, streams, graphs, determinism, torch.compile, gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from splatting_scenes import (
    SCENES,
    Scene,
    assert_near,
    assert_same,
    compare,
    each_dtype,
    each_operator,
    random_scene,
)

from splatting import average_splat, cuda, gaussian_splat, softmax_splat, sum_splat

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def splat(operator: str, values, flow, importance, sigma, backend="cuda") -> tuple[torch.Tensor, torch.Tensor]:
    keywords = {"backend": backend, "return_weight": True}
    if operator in ("sum", "average"):
        return (sum_splat if operator == "sum" else average_splat)(values, flow, **keywords)
    if operator == "softmax":
        return softmax_splat(values, flow, importance, **keywords)
    return gaussian_splat(values, flow, importance, sigma=sigma, ewa=operator == "ewa", **keywords)


def leaves_of(scene: Scene, dtype: torch.dtype = torch.float32, device: str = "cuda") -> list[torch.Tensor]:
    """Return values, flow, importance and sigma; those that an operator does not take stay unused."""
    return [tensor.to(device, dtype).requires_grad_() for tensor in (*scene, torch.tensor(0.5))]


def both_passes(splat_them, leaves: list[torch.Tensor]) -> tuple[tuple, tuple]:
    """Return (out, weight) and the gradients."""
    outputs = splat_them(*leaves)
    upstream = [torch.arange(output.numel(), device=output.device).cos().view(output.shape) for output in outputs]
    return outputs, torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)


def test_gpu_is_available():
    assert cuda.unavailable_reason() is None


@each_operator
@each_dtype
def test_gpu_against_the_reference(operator, dtype):
    for scene in SCENES.values():
        compare(operator, scene(), dtype, "cuda")


@each_operator
def test_gpu_through_the_public_operators(operator):
    scene = random_scene(2, 20, 60, 70)
    expected = both_passes(partial(splat, operator, backend="reference"), leaves_of(scene, device="cpu"))
    for backend in ("auto", "cuda"):
        outputs, gradients = both_passes(partial(splat, operator, backend=backend), leaves_of(scene))
        for got, wanted in zip((*outputs, *gradients[:3]), (*expected[0], *expected[1][:3]), strict=True):
            assert got is wanted is None or assert_near(got.cpu(), wanted, 1e-4, backend) is None
        if gradients[3] is not None:  # the sum of 8,400 terms of the size of the flow's
            assert_near(gradients[3].cpu(), expected[1][3], 1e-4, "sigma", 10 * float(expected[1][1].abs().max()))
    built = cuda._program.cache_info().misses
    both_passes(partial(splat, operator), leaves_of(random_scene(1, 7, 31, 45)))
    assert cuda._program.cache_info().misses == built  # another size compiles nothing


@each_operator
def test_gpu_deterministic_mode_is_equal_to_the_last_bit(deterministic, operator):
    leaves = leaves_of(random_scene(2, 20, 150, 170, 5.0))
    results = [both_passes(partial(splat, operator), leaves) for _ in range(5)]
    for result in results[1:]:
        assert_same(result, results[0])


def test_gpu_work_is_queued_on_the_current_stream():
    values, flow = torch.zeros(1, 4, 64, 64, device="cuda"), torch.zeros(1, 2, 64, 64, device="cuda")
    average_splat(values, flow, backend="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second, until when values are still 0
        values.fill_(1.0)
        out = average_splat(values, flow, backend="cuda")
        torch.cuda.current_stream().synchronize()
    assert torch.equal(out, torch.ones_like(out))


@each_operator
def test_gpu_a_graph_captures_it(operator):
    """Nothing waits for the GPU, else the capture would fail; nor does a sigma that is a number."""
    leaves = [*(leaf.detach() for leaf in leaves_of(random_scene(1, 5, 20, 30))[:3]), 0.5]
    expected = splat(operator, *leaves)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = splat(operator, *leaves)[0]
    out.zero_()
    graph.replay()
    torch.testing.assert_close(out, expected)


def test_gpu_the_last_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    compare("ewa", random_scene(2, 3, 7, 9), torch.float32, f"cuda:{torch.cuda.device_count() - 1}")
    assert torch.cuda.current_device() == 0


@each_operator
def test_gpu_torch_compile(deterministic, operator):
    leaves = leaves_of(random_scene(1, 5, 20, 30))
    compiled = torch.compile(partial(splat, operator), fullgraph=True)
    assert_same(both_passes(compiled, leaves), both_passes(partial(splat, operator), leaves), 1e-5)


@pytest.mark.parametrize("operator", ["sum", "average", "softmax", "round"])
def test_gpu_gradcheck(operator):
    """Not EWA, which holds J constant, nor the weights of softmax, which hold the maximum constant."""
    values, flow, importance = random_scene(2, 2, 3, 4)
    flow = flow.floor() + 0.2 + 0.3 * (flow - flow.floor())  # away from integers
    leaves = leaves_of((values, flow, importance), torch.float64)
    count = 2 if operator in ("sum", "average") else 1
    assert torch.autograd.gradcheck(lambda *leaves: splat(operator, *leaves)[:count], leaves, nondet_tol=1e-12)
