"""Image metrics against values worked out by hand and torchmetrics' own; tables as files."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from apple_device import AppleDevice, on_apple
from conftest import SHARED
from safetensors.torch import load_file, save_file
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import alexnet, squeezenet1_1

from data.result_tables import write_results
from metrics.images import Lpips, frame_metrics, mean_squared_error, pool_frames, psnr_of_mse
from models.weights import WeightsError


def frames(*levels: float, size: int = 16) -> torch.Tensor:
    return torch.stack([torch.full((3, size, size), level) for level in levels])


def test_psnr_pools_the_error_before_the_logarithm():
    found = pool_frames(frame_metrics(frames(0.6, 0.8), frames(0.5, 0.5)))  # squared errors 0.01 and 0.09
    assert found["psnr_db"] == pytest.approx(-10 * math.log10(0.05), abs=1e-4)
    assert found["psnr_frames_db"] == pytest.approx((20 - 10 * math.log10(0.09)) / 2, abs=1e-4)
    assert found["frames"] == 2
    figures = {"squared_error": torch.tensor([0.01, 0.03]), "psnr_db": torch.tensor([20.0, 15.0])}
    found = pool_frames(figures | {"ssim": torch.tensor([0.5, 0.7])})
    assert found == pytest.approx({"psnr_db": 16.9897, "ssim": 0.6, "psnr_frames_db": 17.5, "frames": 2}, abs=1e-4)


def test_output_is_clipped_not_rounded_and_exact_frames_have_100_db():
    found = frame_metrics(frames(1.7, 0.5004, 0.3), frames(1.0, 0.5, 0.3))
    assert found["psnr_db"][0] == 100 and found["psnr_db"][2] == 100
    assert float(found["psnr_db"][1]) == pytest.approx(-20 * math.log10(0.0004), abs=0.01)


def test_apple_devices_get_no_float64():
    pred, target = frames(0.6, 0.8), frames(0.5, 0.5)
    with AppleDevice():
        error = mean_squared_error(on_apple(pred), on_apple(target))
        found = psnr_of_mse(error)
    assert error.dtype == torch.float64 and error.device.type == "cpu"
    assert found.tolist() == pytest.approx([20, -10 * math.log10(0.09)], abs=1e-4)


def test_figures_equal_torchmetrics():
    torch.manual_seed(0)
    pred, target = torch.rand(20, 3, 24, 32), torch.rand(20, 3, 24, 32)
    found = frame_metrics(pred, target)
    for index in (0, 19):
        one, other = pred[index : index + 1], target[index : index + 1]
        assert float(found["psnr_db"][index]) == pytest.approx(
            float(peak_signal_noise_ratio(one, other, data_range=1.0)), abs=1e-4
        )
        expected = structural_similarity_index_measure(one, other, data_range=1.0)
        assert float(found["ssim"][index]) == pytest.approx(float(expected), abs=1e-6)


@pytest.fixture(scope="module")
def alex_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    state = alexnet(weights=None).features.state_dict()
    torch.save({f"features.{key}": value for key, value in state.items()}, path)
    return path


def test_lpips_takes_its_backbone_from_the_file(alex_weights):
    torch.manual_seed(1)
    lpips = Lpips("alex", alex_weights)
    state = torch.load(alex_weights)
    assert torch.equal(lpips.net.net.slice3[1].weight, state["features.6.weight"])
    pred, target = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    found = frame_metrics(pred, target, lpips=[lpips])["lpips_alex"]
    assert found.shape == (2,) and (found > 0).all()
    assert float(lpips(pred, pred).abs().max()) == 0.0


def test_lpips_of_squeezenet(tmp_path):
    torch.manual_seed(2)
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet.pth")
    pred, target = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    found = frame_metrics(pred, target, lpips=[Lpips("squeeze", tmp_path / "squeezenet.pth")])
    assert list(found)[-1] == "lpips_squeeze" and (found["lpips_squeeze"] > 0).all()


@pytest.mark.parametrize("network", ["alex", "squeeze", "real alex"])
def test_lpips_is_that_of_torchmetrics(network, tmp_path, monkeypatch):
    torch.manual_seed(3)
    real, network = network.startswith("real"), network.split()[-1]
    features = SHARED / "weights" / "alexnet_features.safetensors"
    if real and not features.is_file():
        pytest.skip("the weights of AlexNet are not here")
    state = {"alex": alexnet, "squeeze": squeezenet1_1}[network](weights=None).state_dict()
    state |= load_file(features) if real else {}
    # torchmetrics takes its backbone from torch.hub's cache, where a file of this name is
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = {"alex": "alexnet-owt-7be5be79", "squeeze": "squeezenet1_1-b8a52dc0"}[network]
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, cached := tmp_path / "checkpoints" / f"{name}.pth")
    kept = {key: value for key, value in state.items() if key.startswith("features.")}
    np.savez(tmp_path / "weights.npz", **{key: value.numpy() for key, value in kept.items()})
    save_file(kept, tmp_path / "weights.safetensors")
    pred, target = torch.rand(3, 3, 64, 80), torch.rand(3, 3, 64, 80)
    expected = LearnedPerceptualImagePatchSimilarity(network, normalize=True)(pred, target)
    for weights in (cached, tmp_path / "weights.npz", tmp_path / "weights.safetensors", "hub"):
        lpips = Lpips(network, weights)
        lpips(pred, pred)  # features of another target are not used again
        found = lpips(pred, target)
        assert float(found.mean()) == pytest.approx(float(expected), abs=1e-6), weights
    assert float(expected) > 1e-4


def test_wrong_weights_of_lpips(alex_weights, tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(alex_weights.read_bytes()[:1000])
    state = squeezenet1_1(weights=None).state_dict()
    caffe = {key.replace(".squeeze.", ".squeeze1x1."): value.numpy() for key, value in state.items()}
    np.savez(tmp_path / "caffe.npz", **caffe)
    cut = tmp_path / "cut.safetensors"
    save_file({"features.0.bias": torch.zeros(64), "features.0.weight": torch.zeros(64, 3, 11, 11)}, cut)
    cut.write_bytes(cut.read_bytes()[:-500])
    for message, network, weights in (
        ("another network", "vgg", alex_weights),
        ("none.pth: no such file", "alex", tmp_path / "none.pth"),
        ("needs torchvision's squeezenet1_1", "squeeze", tmp_path / "caffe.npz"),
        ("cut.safetensors: cut short within features.0.weight; right: the whole file", "alex", cut),
        ("broken.pth: not readable as weights", "alex", broken),
    ):
        with pytest.raises(WeightsError, match=message):
            Lpips(network, weights)


def test_lpips_from_the_hub(alex_weights, tmp_path, monkeypatch, caplog):
    """Downloaded once, with a line that says what, from where and to where; one line where it cannot be had."""
    caplog.set_level(logging.INFO)
    asked = []

    def download(url, path, hash_prefix, progress):
        asked.append((url, hash_prefix))
        if "alexnet" not in url:
            raise OSError("no network")
        shutil.copy(alex_weights, path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    lpips = Lpips("alex", "hub")
    assert lpips.name == "lpips_alex"
    url = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    assert asked == [(url, "7be5be79")]
    assert f"from {url} to {tmp_path / 'checkpoints' / 'alexnet-owt-7be5be79.pth'}" in caplog.text
    Lpips("alex", "hub")
    assert len(asked) == 1
    with pytest.raises(WeightsError, match="https://.*vgg16.*cannot be downloaded .no network."):
        Lpips("vgg", "hub")


def test_results_in_four_formats(tmp_path):
    rows = [
        {"row": "softmax", "psnr_db": 24.156, "ssim": torch.tensor(0.8803), "frames": 149},
        {"row": "repeat | frame 0", "psnr_db": float("inf"), "lpips_alex": None},
    ]
    text = write_results(tmp_path / "out", rows, title="Frames", notes=["2 clips"])
    assert (tmp_path / "out/results.md").read_text() == text
    assert "| softmax | 24.16 | 0.8803 | 149 | - |" in text and "- 2 clips" in text
    assert "| repeat \\| frame 0 | - | - | - | - |" in text
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written[0]["psnr_db"] == 24.156 and written[1]["psnr_db"] is None
    with open(tmp_path / "out/results.csv") as file:
        table = list(csv.DictReader(file))
    assert table[0]["frames"] == "149" and table[1]["lpips_alex"] == ""
