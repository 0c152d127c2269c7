"""ResNet-34 as the renderer's encoder: torchvision's features from torchvision's files, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet34

import models.resnet_encoder
import train_frame_synthesis_gaussian
from models.frame_synthesis import FrameSynthesis
from models.resnet_encoder import ResNetPyramid

SMALL = {"channels": (4, 8, 12), "columns": 2}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Torchvision's network with weights and batch statistics that are nowhere trivial."""
    torch.manual_seed(0)
    network = resnet34(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


@pytest.fixture(scope="module")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(network.state_dict(), folder / "resnet34.pth")
    save_file(network.state_dict(), folder / "resnet34.safetensors")
    return folder


@pytest.mark.parametrize("name", ["resnet34.pth", "resnet34.safetensors"])
def test_features_are_those_of_torchvision(network: nn.Module, weights: Path, name: str) -> None:
    encoder = ResNetPyramid((4, 8, 12, 16)).eval()
    encoder.load_weights(weights / name)
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    network.conv1.stride = (1, 1)
    with torch.no_grad():
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        hidden = network.relu(network.bn1(network.conv1((image - mean) / std)))
        expected = [hidden]
        hidden = network.maxpool(hidden)
        for layer in (network.layer1, network.layer2, network.layer3):
            hidden = layer(hidden)
            expected.append(hidden)
        found = encoder.stages(image)
        features = encoder(image)
    assert [tuple(maps.shape[-2:]) for maps in found] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    for maps, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(maps, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert [maps.shape[1] for maps in features] == [4, 8, 12, 16]


def test_a_model_with_it_is_one_folder(weights: Path, tmp_path: Path) -> None:
    """What is saved needs neither torchvision's file nor its names; gradients reach all of it."""
    torch.manual_seed(0)
    model = FrameSynthesis(encoder="resnet34", **SMALL)
    model.load_encoder(weights / "resnet34.pth")
    nn.init.normal_(model.decoder.tail[-1].weight, std=0.1)
    image, flow = torch.rand(1, 3, 22, 29), torch.randn(1, 2, 22, 29)
    frame = model(image, flow, flow[:, :1].abs())
    frame.square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    model.eval().save_pretrained(tmp_path)
    again = FrameSynthesis.from_pretrained(tmp_path)
    assert again.config.encoder == "resnet34"
    assert torch.equal(again(image, flow, flow[:, :1].abs()), frame)


def test_old_configs_have_the_pyramid(tmp_path: Path) -> None:
    old = {"operator": "gaussian", "channels": [4, 8, 12], "columns": 2, "sigma": 0.5, "ewa": True}
    model = FrameSynthesis.from_config(old)
    assert (model.config.encoder, model.config.learn_sigma, model.sigma_px) == ("pyramid", False, 0.5)


def test_a_hub_name_says_what_is_downloaded_from_where_to_where(weights: Path, monkeypatch, caplog) -> None:
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(weights / "resnet34.safetensors")

    monkeypatch.setattr(models.resnet_encoder.huggingface_hub, "hf_hub_download", download)
    with caplog.at_level("INFO"):
        ResNetPyramid((4, 8)).load_weights("timm/resnet34.tv_in1k")
    assert asked == [("timm/resnet34.tv_in1k", "model.safetensors")]
    constants = models.resnet_encoder.huggingface_hub.constants
    assert "downloading timm/resnet34.tv_in1k, file model.safetensors" in caplog.text
    assert constants.ENDPOINT in caplog.text and constants.HF_HUB_CACHE in caplog.text

    def fail(*arguments: str) -> str:
        raise OSError("no network\nhere")

    monkeypatch.setattr(models.resnet_encoder.huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ValueError, match="timm/resnet34: no such file, and it cannot be downloaded .no network here."):
        ResNetPyramid((4, 8)).load_weights("timm/resnet34")


def test_weights_that_are_none_are_one_line(weights: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "text.pth").write_text("hello")
    state = torch.load(weights / "resnet34.pth", weights_only=True)
    save_file({name: value for name, value in state.items() if "bn2" not in name}, tmp_path / "cut.safetensors")
    save_file({**state, "conv1.weight": torch.rand(64, 1, 7, 7)}, tmp_path / "grey.safetensors")
    common = ["--data", "nowhere", "--out", str(tmp_path / "run"), "--device", "cpu", "--dry-run"]
    for flags, said in (
        (["--encoder-weights", "x.pth"], "--encoder-weights: --encoder pyramid takes none; right: --encoder resnet34"),
        (["--encoder", "resnet50"], "--encoder resnet50: right: pyramid, resnet34"),
    ):
        assert train_frame_synthesis_gaussian.main([*common, *flags]) == 2
        assert said in capsys.readouterr().err
    encoder = ResNetPyramid((4, 8))
    for name, said in (
        ("missing.pth", "no such file; right: a .pth"),
        ("text.pth", "not readable as weights"),
        ("cut.safetensors", r"of another network: layer1.0.bn2.weight expected of shape \(64,\), got none"),
        ("grey.safetensors", r"conv1.weight expected of shape \(64, 3, 7, 7\), got \(64, 1, 7, 7\)"),
    ):
        with pytest.raises(ValueError, match=said):
            encoder.load_weights(tmp_path / name)
    with pytest.raises(ValueError, match="x.pth: the encoder is pyramid, which takes no weights"):
        FrameSynthesis(**SMALL).load_encoder("x.pth")
    with pytest.raises(ValueError, match="encoder: expected one of pyramid, resnet34, got 'vgg'"):
        FrameSynthesis(encoder="vgg", **SMALL)
