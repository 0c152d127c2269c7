"""GridNet and the feature pyramid: shapes, paths through the grid, sizes."""

from __future__ import annotations

import pytest
import torch

from models.frame_synthesis import FeaturePyramid
from models.gridnet import ConvBlock, GridNet, PReLU


def make_inputs(channels: tuple[int, ...], height: int = 16, width: int = 24) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, c, height >> row, width >> row) for row, c in enumerate(channels)]


def randomise_tail(net: GridNet) -> None:
    torch.nn.init.normal_(net.tail[-1].weight, std=0.1)


def test_untrained_is_exactly_zero() -> None:
    net = GridNet((5, 6, 7), 3, (4, 8, 12), columns=4)
    output = net(make_inputs((5, 6, 7)))
    assert output.shape == (2, 3, 16, 24)
    assert torch.equal(output, torch.zeros_like(output))


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("columns", [2, 4, 6])
def test_every_row_reaches_the_output(row: int, columns: int) -> None:
    torch.manual_seed(1)
    net = GridNet((5, 6, 7), 3, (4, 8, 12), columns=columns)
    randomise_tail(net)
    inputs = make_inputs((5, 6, 7))
    before = net(inputs)
    inputs[row] = inputs[row] + 1
    assert (net(inputs) - before).abs().max() > 1e-4


@pytest.mark.parametrize("columns", [2, 4, 6])
def test_every_parameter_gets_a_gradient(columns: int) -> None:
    net = GridNet((5, 6, 7), 3, (4, 8, 12), columns=columns)
    randomise_tail(net)
    net(make_inputs((5, 6, 7))).square().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize(("resample", "size"), [("none", (6, 10)), ("down", (3, 5)), ("up", (12, 20))])
def test_block_sizes(resample: str, size: tuple[int, int]) -> None:
    assert ConvBlock(3, 5, resample)(torch.randn(1, 3, 6, 10)).shape == (1, 5, *size)


def test_wrong_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="columns: expected an even number"):
        GridNet((5, 6, 7), 3, (4, 8, 12), columns=3)


def test_pyramid_halves_and_sees_the_picture() -> None:
    pyramid = FeaturePyramid((4, 8, 12))
    image = torch.rand(2, 3, 16, 24, requires_grad=True)
    features = pyramid(image)
    assert [tuple(f.shape) for f in features] == [(2, 4, 16, 24), (2, 8, 8, 12), (2, 12, 4, 6)]
    features[2].sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_prelu_is_torchs_to_the_rounding_of_its_type(dtype: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 5, 7, dtype=torch.float64).to(dtype)
    ours, theirs = PReLU(3).to(torch.float64), torch.nn.PReLU(3).to(torch.float64)
    slopes = torch.tensor([0.25, -0.5, 2.0], dtype=torch.float64)
    grads = []
    for module, x in ((ours, hidden), (theirs, hidden.double())):
        module.weight.data.copy_(slopes)
        module.to(dtype if module is ours and dtype != torch.bfloat16 else torch.float64)
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.bfloat16 and module is ours):
            output = module(x)
        assert output.dtype == x.dtype
        grads.append((output.double(), *torch.autograd.grad(output.double().square().sum(), (x, module.weight))))
    tolerance = {torch.bfloat16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for ours_value, theirs_value in zip(*grads, strict=True):
        torch.testing.assert_close(ours_value.double(), theirs_value.double(), rtol=tolerance, atol=tolerance)
