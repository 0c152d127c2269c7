"""Losses against values worked out by hand; feature distances with small random weights."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import squeezenet1_1, vgg16

from metrics.perceptual import PerceptualLoss, masked_mean
from models.image_encoder import load_squeezenet_features, squeezenet_features
from models.weights import WeightsError, load_weights
from training.losses import multi_scale_gradient

SHARED = Path(__file__).resolve().parents[2] / "shared/weights/squeezenet1_1_features.npz"


def test_a_masked_mean_weighs_samples_alike():
    error = torch.tensor([[[[1.0, 2.0]]], [[[5.0, 0.0]]]])
    assert float(masked_mean(error)) == pytest.approx((1.5 + 2.5) / 2)
    mask = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 3.0]]]])
    assert float(masked_mean(error, mask)) == pytest.approx((1.0 + 5 / 4) / 2)
    assert float(masked_mean(error, mask * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))) == pytest.approx(5 / 8)
    halves = [masked_mean(error[i : i + 1], mask[i : i + 1]) for i in (0, 1)]
    assert float(masked_mean(error, mask)) == pytest.approx(float(sum(halves)) / 2)


def test_masked_values_get_no_gradient():
    pred = torch.ones(1, 2, 1, 2, requires_grad=True)
    masked_mean(pred.square(), torch.tensor([[[[1.0, 0.0]]]])).backward()
    assert pred.grad.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]


def test_multi_scale_gradient_by_hand():
    # One scale, asymmetric: x differences of (0 1 4 / 0 0 0): 1 3 0 0, y differences: 0 -1 -4.
    pred = torch.tensor([[[[0.0, 1.0, 4.0], [0.0, 0.0, 0.0]]]])
    zero = torch.zeros_like(pred)
    ones = torch.ones(1, 1, 2, 3)
    assert float(multi_scale_gradient(pred, zero, ones, scales=1)) == pytest.approx((4 / 4 + 5 / 3) / 2)
    # A mask without the right column leaves x: 1 and 0 of the pairs (0, 1); y: 0 and 1.
    mask = torch.tensor([[[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]]])
    assert float(multi_scale_gradient(pred, zero, mask, scales=1)) == pytest.approx((1 / 2 + 1 / 2) / 2)
    # Two scales of a 4 x 4 ramp along x with slope 1: x terms 1 then 2, y terms 0.
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    mask = torch.ones(1, 1, 4, 4)
    assert float(multi_scale_gradient(ramp, 0 * ramp, mask, scales=3)) == pytest.approx((1 + 0 + 2 + 0) / 4)
    assert float(multi_scale_gradient(ramp, ramp + 7, mask)) == 0.0


def test_multi_scale_gradient_takes_volumes():
    ramp = 3 * torch.arange(8.0).expand(2, 5, 4, 8, 8)
    mask = torch.ones(2, 1, 1, 8, 8)
    expected = (3 + 6 + 12) / 6
    assert float(multi_scale_gradient(ramp, torch.zeros_like(ramp), mask)) == pytest.approx(expected)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    state = {f"features.{key}": value for key, value in squeezenet1_1(weights=None).features.state_dict().items()}
    named = {key.replace(".squeeze.", ".squeeze1x1."): value.numpy() for key, value in state.items()}
    np.savez(folder / "caffe.npz", **named)
    torch.save(state, folder / "torchvision.pth")
    return folder


def test_perceptual_loss_is_the_stated_distance(random_weights):
    torch.manual_seed(1)
    pred, target = torch.rand(2, 3, 40, 48), torch.rand(2, 3, 40, 48)
    loss = PerceptualLoss(random_weights / "torchvision.pth")
    net = squeezenet1_1(weights=None).eval()
    net.load_state_dict(torch.load(random_weights / "torchvision.pth"), strict=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    first = [net.features[:2]((picture - mean) / std) for picture in (pred, target)]
    first = [value / value.norm(dim=1, keepdim=True) for value in first]
    expected = (first[0] - first[1]).abs().sum(1).mean().item()
    assert float(loss.distances(pred, target)[0]) == pytest.approx(expected, rel=1e-4)
    assert float(loss(pred, target)) == pytest.approx(float(loss.distances(pred, target).mean()))
    assert float(loss(pred, pred)) == 0.0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_perceptual_loss_uses_caffes_input_for_npz(random_weights):
    torch.manual_seed(1)
    picture = torch.rand(1, 3, 40, 40)
    caffe, plain = (PerceptualLoss(random_weights / name) for name in ("caffe.npz", "torchvision.pth"))
    bgr = 255 * picture[:, [2, 1, 0]] - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    expected = plain.features[:2](bgr)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(caffe.layers(picture)[0], expected, atol=1e-4, rtol=1e-3)


def test_condition_and_loss_read_the_same_features(random_weights):
    """The image encoder's folded first layer and the loss's explicit input convention are one network."""
    picture = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    for name in ("caffe.npz", "torchvision.pth"):
        net = squeezenet_features()
        net.load_state_dict(load_squeezenet_features(random_weights / name))
        folded = net[:2](picture)
        folded = folded / folded.norm(dim=1, keepdim=True)
        layer = PerceptualLoss(random_weights / name).layers(picture)[0]
        torch.testing.assert_close(layer, folded, atol=1e-4, rtol=1e-3)


def test_perceptual_loss_mask_gradient_and_batches(random_weights):
    torch.manual_seed(2)
    pred, target = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    loss = PerceptualLoss(random_weights / "caffe.npz")
    half = torch.zeros(2, 1, 64, 64)
    half[..., :32] = 1
    same_left = torch.cat([target[..., :48], pred[..., 48:]], -1)
    whole, left = loss(same_left, target), loss.distances(same_left, target, half)
    assert float(left[0]) == 0.0 and float(left.mean()) < float(whole)
    pred.requires_grad_()
    loss(pred, target).backward()
    assert torch.isfinite(pred.grad).all() and float(pred.grad.abs().sum()) > 0
    single = loss.feature_distance(pred.detach(), target)
    assert single.shape == (2,) and float(single.mean()) == pytest.approx(float(loss(pred, target).detach()), rel=1e-4)


def test_network_is_the_one_that_the_file_fits(random_weights, tmp_path, monkeypatch):
    assert PerceptualLoss(random_weights / "caffe.npz").network == "squeezenet"
    state = vgg16(weights=None).state_dict()
    state |= {name: torch.zeros(1) for name in state if name.startswith("classifier.")}  # 490 MB that are not read
    torch.save(state | {"features.0.bias": state["features.0.bias"] + torch.nan}, tmp_path / "broken.pth")
    with pytest.raises(WeightsError, match=r"0.bias holds numbers that are not finite"):
        PerceptualLoss(tmp_path / "broken.pth")
    (tmp_path / "broken.pth").unlink()
    torch.save(state, tmp_path / "vgg16-397923af.pth")
    assert PerceptualLoss(tmp_path / "vgg16-397923af.pth").network == "vgg16"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "vgg16-397923af.pth").rename(tmp_path / "checkpoints" / "vgg16-397923af.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert PerceptualLoss("hub").network == "vgg16"


def test_bad_weights_are_one_line(random_weights, tmp_path):
    with pytest.raises(WeightsError, match="none.npz: no such file"):
        PerceptualLoss(tmp_path / "none.npz")
    text = tmp_path / "text.npz"
    text.write_text("no weights")
    for path, message in ((text, "not readable as weights"), (random_weights / "torchvision.pth", "another network")):
        with pytest.raises(WeightsError, match=message) as caught:
            PerceptualLoss(path, "squeezenet" if path is text else "vgg16")
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/weights here")
def test_shared_weights_order_blur_and_noise():
    loss = PerceptualLoss(SHARED)
    torch.manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (64, 64), mode="bicubic").clamp(0, 1)
    small, large = (picture + scale * torch.randn(1, 3, 64, 64) for scale in (0.02, 0.2))
    assert 0 < float(loss.feature_distance(small, picture)) < float(loss.feature_distance(large, picture))


def test_weights_take_no_more_memory_than_their_file(tmp_path):
    """A compressed archive, and one number that strides of zero repeat, would else be gigabytes."""
    wanted = {"0.weight": (1,)}
    torch.save({"features.0.weight": torch.zeros(1 << 20)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "packed.pth", "w", 8) as packed:
        for member in whole.infolist():
            packed.writestr(member.filename, whole.read(member))
    torch.save({"features.0.weight": torch.zeros(1, dtype=torch.float16).expand(1 << 40)}, tmp_path / "repeated.pth")
    for name in ("packed.pth", "repeated.pth"):
        with pytest.raises(WeightsError, match=rf"{name}: .*its tensors are much larger than the file"):
            load_weights(tmp_path / name, wanted)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="list.pth: .*holds list; right: a state dict"):
        load_weights(tmp_path / "list.pth", wanted)
