"""Splatting: hand-computed cases, what must contribute nothing, and what a caller gets wrong."""

from __future__ import annotations

import functools
import logging
import math

import pytest
import torch

import splatting
from splatting import average_splat, cpu, functional, fused, gaussian_splat, reference, softmax_splat, sum_splat

AUTOMATIC_BACKEND = functional._automatic_backend.__wrapped__


def constant_flow(dx: float, dy: float, height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.tensor([dx, dy], dtype=torch.float32).view(1, 2, 1, 1).repeat(batch, 1, height, width)


def plane(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows)[None, None]


pytestmark = pytest.mark.usefixtures("each_backend")

# Every operator with the importance filled in, so that one test serves all four.
OPERATORS = {
    "softmax": lambda v, f, **k: softmax_splat(v, f, torch.zeros_like(v[:, :1]), **k),
    "gaussian": lambda v, f, **k: gaussian_splat(v, f, torch.zeros_like(v[:, :1]), **k),
    "average": average_splat,
    "sum": sum_splat,
}
BILINEAR = {name: OPERATORS[name] for name in ("softmax", "average", "sum")}
each_operator = pytest.mark.parametrize("splat", OPERATORS.values(), ids=OPERATORS)
each_bilinear = pytest.mark.parametrize("splat", BILINEAR.values(), ids=BILINEAR)


# By hand -------------------------------------------------------------------------------------------------------


def test_sum_by_hand():
    # One source of 8 at row 0, column 1 lands at x = 2.25, y = 1.5; swapped axes would put it at x = 1.5, y = 2.25.
    values = torch.zeros(1, 1, 3, 4)
    values[0, 0, 0, 1] = 8.0
    flow = torch.full((1, 2, 3, 4), math.nan)
    flow[0, :, 0, 1] = torch.tensor([1.25, 1.5])
    out, weight = sum_splat(values, flow, return_weight=True)
    expected = plane([[0, 0, 0, 0], [0, 0, 3.0, 1.0], [0, 0, 3.0, 1.0]])
    assert torch.equal(out, expected)
    assert torch.equal(weight, expected / 8)


def test_average_by_hand():
    # Row (1, 5, 9) moves right by 0.25 and down by 1: between two sources 0.25 of the left one arrives.
    values = plane([[1.0, 5.0, 9.0], [0, 0, 0]])
    flow = constant_flow(0.25, 1.0, 2, 3)
    out, weight = average_splat(values, flow, return_weight=True)
    assert torch.equal(out, plane([[0, 0, 0], [1.0, 4.0, 8.0]]))
    assert torch.equal(weight, plane([[0, 0, 0], [0.75, 1.0, 1.0]]))


def test_softmax_collision_by_hand():
    # Columns 0 and 1 of row 0 both land on column 2 of row 1; they mix as 1 : 3 with importances 0 and ln 3.
    values = plane([[2.0, 6.0, 0.0], [0.0, 0.0, 0.0]])
    flow = torch.full((1, 2, 2, 3), math.inf)
    flow[0, :, 0, 0] = torch.tensor([2.0, 1.0])
    flow[0, :, 0, 1] = torch.tensor([1.0, 1.0])
    importance = plane([[0.0, math.log(3.0), 50.0], [50.0, 50.0, 50.0]])
    out, weight = softmax_splat(values, flow, importance, return_weight=True)
    torch.testing.assert_close(out, plane([[0, 0, 0], [0, 0, 5.0]]))
    torch.testing.assert_close(weight, plane([[0, 0, 0], [0, 0, 1 + 1 / 3]]))


def test_softmax_gaussian_weighting_by_hand():
    # Importances 0 and 2 with s = 2: exponents 0 and -0.5.
    values = plane([[2.0, 6.0, 0.0]])
    flow = torch.tensor([[[[2.0, 1.0, 9.0]], [[0.0, 0.0, 9.0]]]])
    importance = plane([[0.0, 2.0, 0.0]])
    out = softmax_splat(values, flow, importance, weighting="gaussian", weight_sigma=2.0)
    expected = (2 + 6 * math.exp(-0.5)) / (1 + math.exp(-0.5))
    torch.testing.assert_close(out, plane([[0.0, 0.0, expected]]))


def test_gaussian_weighting_tells_large_importances_apart():
    values = plane([[1.0, 2.0]])
    flow = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]])
    out = softmax_splat(values, flow, plane([[3e17, 2e16]]), weighting="gaussian")
    assert torch.equal(out, plane([[0.0, 2.0]]))


def test_gaussian_by_hand():
    # A lone source lands at x = 2.25, y = 1; its taps are columns 1 .. 4 and rows 0 .. 3.
    values, flow = torch.full((1, 1, 5, 7), 3.0), torch.full((1, 2, 5, 7), math.nan)
    flow[0, :, 3, 0] = torch.tensor([2.25, -2.0])
    out, weight = gaussian_splat(values, flow, torch.zeros(1, 1, 5, 7), sigma=0.5, ewa=False, return_weight=True)
    expected = torch.zeros(1, 1, 5, 7)
    for row in range(0, 4):
        for column in range(1, 5):
            square = (column - 2.25) ** 2 + (row - 1) ** 2
            expected[0, 0, row, column] = math.exp(-square / 0.5) / (2 * math.pi * 0.25)
    torch.testing.assert_close(weight, expected)
    torch.testing.assert_close(out, 3.0 * (expected > 0))


def test_ewa_footprint_stretches_along_the_flow():
    # dx grows by 0.5 a column: 1.5 times the spread across, none down; swapped axes would exchange the two.
    height, width = 5, 9
    flow = torch.zeros(1, 2, height, width)
    flow[:, 0] = 0.5 * (torch.arange(width) - 4.0)
    values = torch.zeros(1, 1, height, width)
    values[0, 0, 2, 4] = 1.0
    _, weight = gaussian_splat(values, flow, torch.zeros_like(values), sigma=0.5, return_weight=True)
    across, down = (0.5 * 1.5) ** 2 + 1e-4, 0.5**2 + 1e-4
    expected = 0.0
    for row in range(height):
        for column in range(width):
            landing = column + 0.5 * (column - 4)
            if -1 <= 4 - math.floor(landing) <= 2 and -1 <= 2 - row <= 2:
                square = (4 - landing) ** 2 / across + (2 - row) ** 2 / down
                expected += math.exp(-square / 2) / (2 * math.pi * math.sqrt(across * down))
    assert weight[0, 0, 2, 4].item() == pytest.approx(expected, rel=1e-5)


@each_bilinear
@pytest.mark.parametrize("channels", [1, 3])
def test_zero_flow_is_the_identity(splat, channels):
    values = torch.randn(2, channels, 3, 5)
    out, weight = splat(values, torch.zeros(2, 2, 3, 5), return_weight=True)
    assert torch.equal(out, values)
    assert torch.equal(weight, torch.ones(2, 1, 3, 5))


@each_bilinear
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 2160, 3840)], ids=["small", "4K"])
def test_integer_flow_shifts_and_leaves_holes(splat, shape):
    values = torch.rand(shape) + 1
    out, weight = splat(values, constant_flow(2, -1, *shape[2:], batch=shape[0]), return_weight=True)
    expected = torch.zeros_like(values)
    expected[..., :-1, 2:] = values[..., 1:, :-2]
    assert torch.equal(out, expected)
    assert torch.equal(weight, (expected[:, :1] > 0).float())


# Importance ----------------------------------------------------------------------------------------------------


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, 6, 9, generator=generator)
    flow = 4 * torch.randn(2, 2, 6, 9, generator=generator)
    return values, flow, 3 * torch.rand(2, 1, 6, 9, generator=generator)


@pytest.mark.parametrize("splat", [softmax_splat, gaussian_splat])
@pytest.mark.parametrize("constant", [-512.0, 1024.0])
def test_a_constant_added_to_the_importance_changes_nothing(splat, constant, scene):
    values, flow, importance = scene
    importance = (importance * 64).round() / 64  # so that the sum is exact
    expected = splat(values, flow, importance, return_weight=True)
    for got, want in zip(splat(values, flow, importance + constant, return_weight=True), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("splat", [softmax_splat, gaussian_splat])
def test_huge_importance_stays_finite_and_makes_no_holes(splat, scene):
    values, flow, importance = scene
    importance = torch.where(importance > 1.5, 1e4, -1e4).requires_grad_()
    out, weight = splat(values.requires_grad_(), flow.requires_grad_(), importance, return_weight=True)
    plain = splat(values, flow, torch.zeros_like(importance), return_weight=True)[1]
    assert torch.equal(weight > 0, plain > 0)
    assert out.min() >= 0 and out.max() <= 1 + 1e-6
    for gradient in torch.autograd.grad(out.square().sum() + weight.sum(), (values, flow, importance)):
        assert gradient.isfinite().all()


def test_the_maximum_is_taken_per_target():
    # The left source is 2e4 below the right one, but alone where it lands; in the middle the right one wins whole.
    values = plane([[1.0, 2.0, 3.0, 4.0, 5.0]])
    flow = torch.tensor([[[[0.0, 1.0, 0.0, 0.0, 0.0]], [[0.0] * 5]]])
    importance = plane([[-1e4, 0.0, 1e4, 0.0, 1e4]])
    out, weight = softmax_splat(values, flow, importance, return_weight=True)
    assert torch.equal(out, plane([[1.0, 0.0, 3.0, 4.0, 5.0]]))
    assert torch.equal(weight, plane([[1.0, 0.0, 1.0, 1.0, 1.0]]))


def test_a_neighbour_that_does_not_touch_is_not_in_the_maximum():
    # Zero flow gives the important left source a tap of weight 0 on its neighbour.
    values, importance = plane([[1.0, 2.0]]), plane([[1e4, -1e4]])
    values.requires_grad_()
    out = softmax_splat(values, torch.zeros(1, 2, 1, 2, requires_grad=True), importance)
    assert torch.equal(out, values)
    out.sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))


# What contributes nothing --------------------------------------------------------------------------------------


@each_operator
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channel", [0, 1])
def test_flow_that_is_not_finite_contributes_nothing(splat, bad, channel, scene):
    values, flow, _ = scene
    bad_values, bad_flow, gone_flow = values.clone(), flow.clone(), flow.clone()
    bad_flow[:, channel, 2, 3] = bad
    bad_values[:, :, 2, 3] = math.nan
    gone_flow[:, :, 2, 3] = math.nan
    bad_values.requires_grad_(), bad_flow.requires_grad_()
    out, weight = splat(bad_values, bad_flow, return_weight=True)
    expected, expected_weight = splat(values, gone_flow, return_weight=True)
    assert torch.equal(out, expected) and torch.equal(weight, expected_weight)
    (out.square().sum() + weight.square().sum()).backward()
    assert bad_values.grad.isfinite().all() and bad_flow.grad.isfinite().all()
    assert not bad_values.grad[:, :, 2, 3].any() and not bad_flow.grad[:, :, 2, 3].any()


@pytest.mark.parametrize("weighting", ["exp", "gaussian", None])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_importance_that_is_not_finite_contributes_nothing(bad, weighting, scene):
    values, flow, importance = scene
    keywords = {} if weighting is None else {"weighting": weighting}
    splat = gaussian_splat if weighting is None else softmax_splat
    importance[:, :, 2, 3] = bad
    importance.requires_grad_(), flow.requires_grad_()
    out, weight = splat(values, flow, importance, return_weight=True, **keywords)
    gone = torch.where(importance.isfinite(), flow, math.nan).detach()
    safe = torch.where(importance.isfinite(), importance, 0.0).detach()
    assert torch.equal(out, splat(values, gone, safe, **keywords))
    (out.square().sum() + weight.square().sum()).backward()
    assert importance.grad.isfinite().all() and flow.grad.isfinite().all()
    assert not importance.grad[:, :, 2, 3].any()


@each_operator
@pytest.mark.parametrize("dx", [1e9, -1e9, 3e38, 40.0, -40.0])
def test_everything_out_of_frame(splat, dx):
    values = torch.ones(1, 2, 3, 5, requires_grad=True)
    flow = constant_flow(dx, dx, 3, 5).requires_grad_()
    out, weight = splat(values, flow, return_weight=True)
    assert not out.any() and not weight.any()
    (out.sum() + weight.sum()).backward()
    assert not values.grad.any() and not flow.grad.any()


def test_nothing_wraps_around_the_border():
    # Half a pixel to the left: column 0 loses half of its weight, the last column of the row above gains none.
    out, weight = sum_splat(plane([[4.0, 0, 0], [8.0, 0, 0]]), constant_flow(-0.5, 0, 2, 3), return_weight=True)
    assert torch.equal(out, plane([[2.0, 0, 0], [4.0, 0, 0]]))
    assert torch.equal(weight, plane([[1.0, 1.0, 0.5], [1.0, 1.0, 0.5]]))


# Layouts and types ---------------------------------------------------------------------------------------------


@each_operator
def test_strided_and_expanded_inputs(splat, scene):
    values, flow, _ = scene
    expected = splat(values, flow)
    strided = values.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(splat(strided, flow.flip(-1).contiguous().flip(-1)), expected)
    torch.testing.assert_close(
        splat(values[:1].expand(4, -1, -1, -1), flow[:1].expand(4, -1, -1, -1)),
        splat(values[:1], flow[:1]).expand(4, -1, -1, -1),
    )
    torch.testing.assert_close(splat(values[:, :1], flow), expected[:, :1])


@each_operator
def test_empty_batch(splat):
    values, flow = torch.zeros(0, 3, 4, 5, requires_grad=True), torch.zeros(0, 2, 4, 5)
    out, weight = splat(values, flow, return_weight=True)
    assert out.shape == (0, 3, 4, 5) and weight.shape == (0, 1, 4, 5)
    out.sum().backward()


@each_operator
@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (4, 1)])
def test_thin_pictures(splat, height, width):
    values = torch.rand(1, 2, height, width)
    assert splat(values, torch.zeros(1, 2, height, width)).isfinite().all()


@each_operator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(splat, dtype, scene):
    values, flow = scene[0].to(dtype), scene[1]
    out, weight = splat(values, flow, return_weight=True)
    expected, expected_weight = splat(values.float(), flow, return_weight=True)
    assert out.dtype == dtype and weight.dtype == dtype
    assert torch.equal(out, expected.to(dtype))
    assert torch.equal(weight > 0, expected_weight > 0)


def test_double_stays_double(scene):
    values, flow, importance = (tensor.double() for tensor in scene)
    assert gaussian_splat(values, flow, importance).dtype == torch.float64


# Mistakes and backends -----------------------------------------------------------------------------------------

GOOD = {"values": (2, 3, 4, 5), "flow": (2, 2, 4, 5), "importance": (2, 1, 4, 5)}


@pytest.mark.parametrize(
    "name, bad, message",
    [
        ("values", torch.zeros(3, 4, 5), r"values: expected \(B, C, H, W\), got \(3, 4, 5\)"),
        ("values", torch.zeros(2, 3, 0, 5), r"values: expected .* at least 1, got \(2, 3, 0, 5\)"),
        (
            "values",
            torch.zeros(2, 3, 4, 5, dtype=torch.uint8),
            r"values: expected a floating.*got torch.uint8",
        ),
        ("values", None, r"values: expected a tensor .*, got NoneType"),
        (
            "values",
            torch.zeros(2, 3, 4, 5).to(torch.float8_e4m3fn),
            r"values: expected a floating.*got torch.float8_e4m3fn",
        ),
        ("flow", torch.zeros(2, 2, 5, 4), r"flow: expected \(2, 2, 4, 5\).*, got \(2, 2, 5, 4\)"),
        ("flow", torch.zeros(2, 3, 4, 5), r"flow: expected \(2, 2, 4, 5\).*, got \(2, 3, 4, 5\)"),
        ("flow", torch.zeros(2, 2, 4, 5, dtype=torch.int64), r"flow: expected a floating-point.*torch.int64"),
        ("flow", torch.zeros(2, 2, 4, 5, device="meta"), r"flow: expected a tensor on cpu.*, got meta"),
        ("importance", torch.zeros(2, 4, 5), r"importance: expected \(2, 1, 4, 5\), got \(2, 4, 5\)"),
        ("importance", torch.zeros(1, 1, 4, 5), r"importance: expected \(2, 1, 4, 5\).*, got \(1, 1, 4, 5\)"),
    ],
)
def test_a_wrong_tensor_is_named(name, bad, message):
    arguments = {key: torch.zeros(shape) for key, shape in GOOD.items()} | {name: bad}
    for splat in (softmax_splat, gaussian_splat):
        with pytest.raises(ValueError, match=message):
            splat(**arguments)
    if name != "importance":
        del arguments["importance"]
        for splat in (average_splat, sum_splat):
            with pytest.raises(ValueError, match=message):
                splat(**arguments)


@pytest.mark.parametrize(
    "splat, keywords, message",
    [
        (softmax_splat, {"weighting": "linear"}, "weighting: expected one of .*, got 'linear'"),
        (softmax_splat, {"weight_sigma": 0.0}, "weight_sigma: expected a number > 0, got 0.0"),
        (gaussian_splat, {"sigma": -1}, "sigma: expected a number > 0, got -1"),
        (gaussian_splat, {"sigma": math.nan}, "sigma: expected a number > 0, got nan"),
        (gaussian_splat, {"sigma": 1e-25}, "sigma: expected 0.001 to 1000 px, got 1e-25"),
        (
            gaussian_splat,
            {"sigma": torch.ones(2)},
            r"sigma: expected .* one element, got torch.float32 \(2,\)",
        ),
        (gaussian_splat, {"backend": "fast"}, "backend: expected one of .*, got 'fast'"),
    ],
)
def test_a_wrong_option_is_named(splat, keywords, message):
    tensors = [torch.zeros(shape) for shape in GOOD.values()]
    with pytest.raises(ValueError, match=message):
        splat(*tensors, **keywords)


def test_a_backend_that_is_not_there_names_the_remedy(monkeypatch):
    monkeypatch.setattr(
        functional, "_unavailable_reason", lambda name: None if name == "reference" else f"no {name}: get it"
    )
    assert splatting.available_backends() == ("reference",)
    values, flow = torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)
    for backend in ("cpu", "cuda"):
        with pytest.raises(RuntimeError, match=f"no {backend}: get it"):
            average_splat(values, flow, backend=backend)


@pytest.mark.parametrize("error", [ImportError("Numba needs NumPy 2.3 or less"), RuntimeError("no locator")])
def test_a_numba_that_cannot_be_imported_leaves_the_reference(monkeypatch, error):
    def broken():
        raise error

    monkeypatch.setattr(cpu, "_kernels", broken)
    assert str(error) in cpu.unavailable_reason.__wrapped__()
    assert "pip install -U numba" in cpu.unavailable_reason.__wrapped__()


def test_a_backend_refuses_tensors_of_another_device(monkeypatch):
    monkeypatch.setattr(functional, "_unavailable_reason", lambda name: None)
    with pytest.raises(RuntimeError, match="needs cuda tensors, got values on cpu"):
        average_splat(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2), backend="cuda")


def test_reference_and_cpu_are_there_and_take_their_names(monkeypatch):
    assert splatting.available_backends()[:2] == ("reference", "cpu")
    values, flow = torch.rand(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)
    asked = []
    monkeypatch.setattr(reference, "splat", lambda *_: asked.append("reference") or (values, values))
    monkeypatch.setattr(fused, "splat", lambda *_: asked.append("fused") or (values, values))
    for backend in ("reference", "cpu"):
        average_splat(values, flow, backend=backend)
    assert asked == ["reference", "fused"]


def test_the_automatic_choice_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(functional, "_automatic_backend", functools.cache(AUTOMATIC_BACKEND))
    monkeypatch.setattr(functional, "_unavailable_reason", lambda name: None if name == "reference" else f"get {name}")
    with caplog.at_level(logging.INFO, logger="splatting.functional"):
        for _ in range(3):
            average_splat(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2))
    assert len(caplog.records) == 1
    assert "'reference'" in caplog.text and "get cpu" in caplog.text


def test_the_automatic_choice_on_a_cpu_is_the_fast_one():
    assert AUTOMATIC_BACKEND("cpu") == "cpu"
    assert AUTOMATIC_BACKEND("meta") == "reference"
