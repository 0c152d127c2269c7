"""The CPU backend against the reference: outputs, gradients, layouts, threads, processes, torch.compile, autocast."""

from __future__ import annotations

import math
import multiprocessing
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from splatting import average_splat, cpu, cpu_kernels, gaussian_splat, softmax_splat, sum_splat

# Every operator as a function of values, flow, importance and sigma.
OPERATORS: dict[str, Callable] = {
    "sum": lambda v, f, z, s, **k: sum_splat(v, f, **k),
    "average": lambda v, f, z, s, **k: average_splat(v, f, **k),
    "softmax": lambda v, f, z, s, **k: softmax_splat(v, f, z, **k),
    "gaussian weighting": lambda v, f, z, s, **k: softmax_splat(v, f, z, weighting="gaussian", weight_sigma=2.0, **k),
    "round": lambda v, f, z, s, **k: gaussian_splat(v, f, z, sigma=s, ewa=False, **k),
    "ewa": lambda v, f, z, s, **k: gaussian_splat(v, f, z, sigma=s, **k),
}
each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)

# Relative to the largest element, at least 1. Outputs: float32 rounds at 6e-8, and both sides add up to about a hundred
# terms, in another order, with weights that are exponentials of exponents down to -70 (4e-6). Gradients: differences of
# sums that nearly cancel, divided by weights down to the corner of a footprint.
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-11)}


def make_scene(batch: int, channels: int, height: int, width: int, dtype=torch.float32, spread: float = 3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    values, flow = noise(batch, channels, height, width), spread * noise(batch, 2, height, width)
    return values, flow, 2 * noise(batch, 1, height, width), torch.tensor(0.5, dtype=dtype)


def results(operator: Callable, inputs: tuple[Tensor, ...], backend: str, seed: int = 1) -> list[Tensor]:
    """Return output, weight and the gradients of all inputs that the operator uses, under a random upstream one."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out, weight = operator(*inputs, backend=backend, return_weight=True)
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(tensor.shape, generator=generator).to(tensor.dtype) for tensor in (out, weight)]
    loss = (out * upstream[0]).sum() + (weight * upstream[1]).sum()
    return [out, weight, *torch.autograd.grad(loss, inputs, allow_unused=True)]


def compare(operator: Callable, inputs: tuple[Tensor, ...]) -> None:
    tolerances = TOLERANCES[torch.float64 if inputs[0].dtype == torch.float64 else torch.float32]
    pairs = zip(results(operator, inputs, "cpu"), results(operator, inputs, "reference"), strict=True)
    for position, (got, expected) in enumerate(pairs):
        assert (got is None) == (expected is None)
        if got is None:
            continue
        assert got.shape == expected.shape and got.dtype == expected.dtype
        largest = expected.abs().max().item() if expected.numel() else 0.0
        # At least that of numbers of the size of the values: gradients that cancel leave the rounding of their terms.
        tolerance = tolerances[position > 1] * max(largest, 1.0)
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance, msg=lambda m, p=position: f"result {p}: {m}")


# Agreement -----------------------------------------------------------------------------------------------------


@each_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(2, 3, 7, 9), (1, 1, 33, 131), (1, 64, 11, 17), (1, 67, 5, 40), (3, 2, 1, 6), (1, 2, 6, 1), (1, 1, 1, 1)]
)
def test_outputs_and_gradients(operator, shape, dtype):
    compare(operator, make_scene(*shape, dtype=dtype))


FLOWS = {
    "zero": lambda flow: torch.zeros_like(flow),
    "whole": lambda flow: flow.round(),
    "out of frame": lambda flow: flow + 100,
    "far out of frame": lambda flow: flow * 1e30,
    "collapsed": lambda flow: (
        5.3 - torch.stack(torch.meshgrid(torch.arange(21), torch.arange(13), indexing="xy"))[None]
    ),
    "not finite": lambda flow: torch.where(flow > 2, math.nan, torch.where(flow < -3, math.inf, flow)),
}


@each_operator
@pytest.mark.parametrize("make_flow", FLOWS.values(), ids=FLOWS)
def test_flows_that_are_special(operator, make_flow):
    values, flow, importance, sigma = make_scene(1, 5, 13, 21, spread=2.0)
    flow = make_flow(flow)
    # What is not valid must not be looked at.
    values = torch.where(flow.isfinite().all(1, keepdim=True), values, math.nan)
    compare(operator, (values, flow, importance, sigma))


@each_operator
@pytest.mark.parametrize("scale", [1e4, -1e4, 40.0])
def test_importances_that_are_large(operator, scale):
    values, flow, importance, sigma = make_scene(1, 3, 9, 14)
    importance = torch.where(importance > 3, math.nan, scale * importance.sign())
    compare(operator, (values, flow, importance, sigma))


@pytest.mark.parametrize("width", [70, 250])
@pytest.mark.parametrize("exponent", range(-24, -16))
def test_ewa_of_flow_that_hardly_changes(exponent, width):
    # The smooth end of a fall-off: squares of its derivatives, and inverses of their products, leave float32.
    values, flow, importance, sigma = make_scene(1, 2, 12, width, spread=10.0**exponent)
    compare(OPERATORS["ewa"], (values, flow, importance, sigma))


def test_ewa_where_everything_nearly_collapses():
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    flow = torch.stack([4 - x, 3 - y + (y == 3) * 1e-22 * x])[None]
    importance = 10 * torch.rand(1, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    importance[0, 0, 3, 5] = 50
    values = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    out = gaussian_splat(values, flow, importance, backend="cpu")
    torch.testing.assert_close(out, gaussian_splat(values, flow, importance, backend="reference"))


@pytest.mark.parametrize("operator", ["average", "softmax", "ewa"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_comes_back_to_a_hole_goes_no_further(operator, bad):
    values, flow, importance, sigma = make_scene(1, 2, 6, 8)
    flow[:, 0] = 4.3  # the columns on the left stay empty
    values.requires_grad_(), flow.requires_grad_()
    out, weight = OPERATORS[operator](values, flow, importance, sigma, backend="cpu", return_weight=True)
    assert (weight == 0).any()
    out.backward(torch.where(weight == 0, bad, 1.0).expand_as(out))
    assert values.grad.isfinite().all() and flow.grad.isfinite().all()


def test_a_sum_may_be_changed_in_place():
    values, flow, *_ = make_scene(1, 2, 6, 8)
    values.requires_grad_()
    sum_splat(values, flow, backend="cpu").relu_().sum().backward()
    assert values.grad.any()


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.65])
@pytest.mark.parametrize("operator", ["round", "ewa"])
def test_narrow_and_wide_gaussians(operator, sigma):
    *scene, _ = make_scene(1, 2, 12, 15, spread=1.0)
    compare(OPERATORS[operator], (*scene, torch.tensor(sigma)))


@pytest.mark.parametrize("operator", ["softmax", "round", "ewa"])
def test_many_bands_and_tiles(operator, monkeypatch):
    # Four rows a band, so that sources send to several, and flow that crosses them.
    monkeypatch.setattr(cpu, "BAND_BYTES", 1)
    monkeypatch.setattr(cpu, "SMALLEST_FRACTION", 1)
    monkeypatch.setattr(cpu, "SCRATCH_BYTES", 1)
    monkeypatch.setattr(cpu, "MAX_CHANNELS", 4)
    compare(OPERATORS[operator], make_scene(2, 10, 40, 300, spread=12.0))


@each_operator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(operator, dtype):
    values, flow, importance, sigma = make_scene(1, 4, 8, 11)
    got, expected = (
        results(operator, (values.to(dtype), flow, importance, sigma), backend) for backend in ("cpu", "reference")
    )
    for one, other in zip(got, expected, strict=True):
        if one is not None:
            assert one.dtype == other.dtype
            # The backward pass starts from the output as it was rounded: one unit of the type, times a few.
            tolerance = 4 * torch.finfo(dtype).eps * max(other.abs().max().item(), 1.0)
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


# Layouts -------------------------------------------------------------------------------------------------------


@each_operator
@pytest.mark.parametrize("layout", ["channels last", "strided", "expanded"])
def test_layouts(operator, layout):
    values, flow, importance, sigma = make_scene(2, 5, 9, 20)
    plain = results(operator, (values, flow, importance, sigma), "cpu")
    if layout == "expanded":
        leaves = [tensor[:1].clone().requires_grad_() for tensor in (values, flow, importance)]
        expanded = operator(*(leaf.expand(3, -1, -1, -1) for leaf in leaves), sigma, backend="cpu")
        repeated = operator(*(leaf.repeat(3, 1, 1, 1) for leaf in leaves), sigma, backend="cpu")
        assert torch.equal(expanded, repeated)
        upstream = torch.randn(expanded.shape, generator=torch.Generator().manual_seed(1))
        found, expected = (torch.autograd.grad(o, leaves, upstream, allow_unused=True) for o in (expanded, repeated))
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        return

    def rearrange(tensor: Tensor) -> Tensor:
        if layout == "channels last":
            return tensor.contiguous(memory_format=torch.channels_last)
        wide = torch.full((*tensor.shape[:3], 2 * tensor.shape[3]), math.nan)
        wide[..., ::2] = tensor
        return wide[..., ::2]

    leaves = [tensor.clone().requires_grad_() for tensor in (values, flow, importance)]
    out, weight = operator(*(rearrange(leaf) for leaf in leaves), sigma, backend="cpu", return_weight=True)
    assert out.is_contiguous(memory_format=torch.channels_last) == (layout == "channels last")
    torch.testing.assert_close(out, plain[0])
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(tensor.shape, generator=generator) for tensor in (out, weight)]
    gradients = torch.autograd.grad(
        (rearrange(out) * upstream[0]).sum() + (weight * upstream[1]).sum(), leaves, allow_unused=True
    )
    for got, expected in zip(gradients, plain[2:5], strict=True):
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@each_operator
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)])
def test_empty(operator, shape):
    compare(operator, make_scene(*shape))


def test_only_the_gradients_that_are_asked_for():
    scene = make_scene(1, 2, 6, 7)
    _, _, *expected = results(OPERATORS["ewa"], scene, "cpu")
    for chosen in range(4):
        inputs = [tensor.clone() for tensor in scene]
        inputs[chosen].requires_grad_()
        out, weight = OPERATORS["ewa"](*inputs, backend="cpu", return_weight=True)
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(tensor.shape, generator=generator) for tensor in (out, weight)]
        ((out * upstream[0]).sum() + (weight * upstream[1]).sum()).backward()
        assert [tensor.grad is not None for tensor in inputs] == [index == chosen for index in range(4)]
        torch.testing.assert_close(inputs[chosen].grad, expected[chosen])


def test_the_inputs_are_left_alone():
    scene = [tensor.requires_grad_() for tensor in make_scene(1, 3, 9, 14)]
    before = [tensor.detach().clone() for tensor in scene]
    OPERATORS["ewa"](*scene, backend="cpu").square().sum().backward()
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(scene, before, strict=True))


# Threads and processes -----------------------------------------------------------------------------------------


@each_operator
def test_the_number_of_threads_changes_nothing(operator, monkeypatch):
    monkeypatch.setattr(cpu, "SMALLEST_FRACTION", 1)
    scene = make_scene(2, 6, 37, 50)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(operator, scene, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for got, expected in zip(other, found[0], strict=True):
            assert got is expected is None or torch.equal(got, expected)


def test_two_threads_at_once(monkeypatch):
    monkeypatch.setattr(cpu, "SMALLEST_FRACTION", 1)
    scene = make_scene(1, 6, 60, 70)
    expected, found = results(OPERATORS["ewa"], scene, "cpu"), []
    threads = [threading.Thread(target=lambda: found.append(results(OPERATORS["ewa"], scene, "cpu"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert all(torch.equal(got, want) for one in found for got, want in zip(one, expected, strict=True))


def _splat_in_child(queue, scene) -> None:
    cpu.SMALLEST_FRACTION = 1
    torch.set_num_threads(2)
    queue.put(average_splat(scene[0], scene[1], backend="cpu").sum().item())


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    # Numba's own OpenMP threads would end the child.
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    monkeypatch.setattr(cpu, "SMALLEST_FRACTION", 1)
    scene = make_scene(1, 6, 60, 70)
    expected = average_splat(scene[0], scene[1], backend="cpu").sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_splat_in_child, args=(queue, scene))
    child.start()
    try:
        assert queue.get(timeout=60) == pytest.approx(expected, rel=1e-5)
    finally:
        child.join(10)
        child.kill()


# torch ---------------------------------------------------------------------------------------------------------


class Splat(torch.nn.Module):
    """A convolution, a splat, a convolution."""

    def __init__(self, operator: Callable) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(5, 3, 1)
        self.operator = operator

    def forward(self, values: Tensor, flow: Tensor, importance: Tensor, sigma: Tensor) -> Tensor:
        out, weight = self.operator(self.first(values), flow, importance, sigma, return_weight=True)
        return self.last(torch.cat([out, weight], dim=1))


@pytest.mark.parametrize("name", OPERATORS)
def test_torch_compile(name):
    torch.manual_seed(0)
    module = Splat(OPERATORS[name])
    scene = [tensor.requires_grad_() for tensor in make_scene(2, 3, 9, 14)]
    # fullgraph: no falling back to Python in the middle
    compiled = torch.compile(module, fullgraph=True, backend="inductor" if name in ("softmax", "ewa") else "aot_eager")
    got, expected = compiled(*scene), module(*scene)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(expected)
    inputs = {"sum": 2, "average": 2, "softmax": 3, "gaussian weighting": 3}.get(name, 4)
    used = [*scene[:inputs], *module.parameters()]
    for one, other in zip(
        torch.autograd.grad(got, used, upstream), torch.autograd.grad(expected, used, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["average", "softmax", "ewa"])
def test_the_custom_operator_keeps_torchs_rules(name):
    # Schema, fake tensors, strides, autograd registration
    values, flow, importance, sigma = make_scene(1, 3, 6, 8)
    arguments = (
        values.contiguous(memory_format=torch.channels_last).requires_grad_(),
        flow.requires_grad_(),
        None if name == "average" else importance.requires_grad_(),
        sigma.requires_grad_() if name == "ewa" else None,
        name == "ewa",
        True,
    )
    torch.library.opcheck(torch.ops.image_dynamics.splat.default, arguments)


@each_operator
def test_autocast_leaves_positions_alone(operator):
    scene = make_scene(1, 4, 9, 300)
    expected = operator(*scene, backend="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = operator(*scene, backend="cpu")
        half = operator(scene[0].bfloat16(), *scene[1:], backend="cpu")
    # Flow in bfloat16 would be wrong by whole pixels at column 300.
    assert torch.equal(out, expected)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=2e-2, atol=2e-2)


def test_a_second_derivative_is_refused():
    values, flow, *_ = make_scene(1, 2, 5, 6)
    flow.requires_grad_()
    (gradient,) = torch.autograd.grad(average_splat(values, flow, backend="cpu").sum(), flow, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), flow)


@pytest.mark.parametrize("name", ["softmax", "gaussian weighting", "ewa"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_torch_compile_with_sizes_and_numbers_that_change(name, backend):
    def splat(values: Tensor, flow: Tensor, importance: Tensor, number: float) -> Tensor:
        if name == "ewa":
            return gaussian_splat(values, flow, importance, sigma=number, backend=backend)
        weighting = {} if name == "softmax" else {"weighting": "gaussian", "weight_sigma": number}
        return softmax_splat(values, flow, importance, backend=backend, **weighting)

    torch.compiler.reset()
    # The reference is torch's own operations: lowering one of them shows what lowering all would, half a minute sooner.
    compiler = "eager" if backend == "reference" and name != "softmax" else "aot_eager"
    compiled = torch.compile(splat, fullgraph=True, dynamic=True, backend=compiler)
    calls = [(0.4, (1, 3, 8, 9)), (0.5, (2, 3, 10, 12)), (0.6, (2, 4, 11, 7))]
    if backend == "reference" and name != "gaussian weighting":
        # torch compiles a batch of 1, and one of as many as flow has channels, apart: seconds more, once is enough.
        calls = [(0.4, (4, 3, 8, 9)), (0.5, (5, 6, 11, 7))]
    for number, size in calls:
        scene = [tensor.requires_grad_() for tensor in make_scene(*size)[:3]]
        got, expected = compiled(*scene, number), splat(*scene, number)
        torch.testing.assert_close(got, expected)
        upstream = torch.randn_like(got)
        for one, other in zip(*(torch.autograd.grad(out, scene, upstream) for out in (got, expected)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@each_operator
def test_forward_derivatives_agree_with_backward_ones_or_are_refused(operator):
    scene = make_scene(1, 2, 3, 4, dtype=torch.float64)
    tangents = tuple(torch.randn_like(tensor) for tensor in scene)

    def both(backend: str) -> Callable:
        return lambda *inputs: torch.cat(operator(*inputs, backend=backend, return_weight=True), dim=1)

    out, tangent = torch.func.jvp(both("reference"), scene, tangents)
    upstream = torch.randn_like(out)
    gradients = torch.func.vjp(both("reference"), *scene)[1](upstream)
    expected = sum((gradient * direction).sum() for gradient, direction in zip(gradients, tangents, strict=True))
    torch.testing.assert_close((tangent * upstream).sum(), expected)
    # jacfwd and jacrev batch both kinds of derivatives by vmap.
    jacobians = [jacobian(both("reference"), argnums=1)(*scene) for jacobian in (torch.func.jacfwd, torch.func.jacrev)]
    torch.testing.assert_close(*jacobians)
    with pytest.raises(RuntimeError, match="forward-mode derivatives need backend='reference'"):
        torch.func.jvp(both("cpu"), scene, tangents)
    with pytest.raises(RuntimeError, match="forward-mode derivatives need backend='reference'"):
        torch.func.jacfwd(both("cpu"), argnums=1)(*scene)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@each_operator
def test_what_is_not_finite_in_one_item_stays_there(operator, backend):
    scene = make_scene(2, 3, 6, 7)
    for tensor in scene[:3]:
        tensor[1] = torch.nan
    alone = results(operator, (*(tensor[:1] for tensor in scene[:3]), scene[3]), backend)
    inputs = [tensor.requires_grad_() for tensor in scene]
    out, weight = operator(*inputs, backend=backend, return_weight=True)
    assert (weight[1] == 0).all() and (out[1] == 0).all()
    torch.testing.assert_close(out[:1], alone[0])
    gradients = torch.autograd.grad(out[:1].sum() + weight[:1].square().sum(), inputs, allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


# Compilation ---------------------------------------------------------------------------------------------------


def test_compilation_is_announced_and_counted_where_the_cache_lacks_the_kernels(tmp_path, monkeypatch, caplog):
    stats = SimpleNamespace(cache_path=str(tmp_path), cache_misses={"a signature": 1})
    kernel = SimpleNamespace(__name__="splat_bands", stats=stats)
    monkeypatch.setattr(cpu, "_kernels", lambda: SimpleNamespace(splat_bands=kernel))
    caplog.set_level("INFO", logger="splatting")
    with cpu._compilation_announced():
        assert caplog.messages == ["compiling the CPU kernels, once"]
    assert caplog.messages[1:] == ["compiled the CPU kernels, once: 0 s"]
    (tmp_path / "cpu_kernels.splat_bands-134.py311.nbi").touch()
    stats.cache_misses = {}
    with cpu._compilation_announced():
        pass
    assert len(caplog.messages) == 2


def test_parts_and_copies_of_maps_need_no_further_compilation():
    values, flow, importance, _ = make_scene(1, 5, 13, 21)
    part = (slice(None), slice(None), slice(2, 12), slice(3, 20))
    expected = softmax_splat(*(maps[part].contiguous() for maps in (values, flow, importance)))
    compiled = list(cpu_kernels.splat_bands.signatures)
    assert torch.equal(softmax_splat(*(maps[part] for maps in (values, flow, importance))), expected)
    softmax_splat(values.expand(2, -1, -1, -1), *(maps.expand(2, -1, -1, -1) for maps in (flow, importance)))
    assert cpu_kernels.splat_bands.signatures == compiled
