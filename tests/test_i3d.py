"""I3D against the outputs of another implementation, FVD over it on real clips, and files that are not its weights."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from safetensors.torch import save_file
from torch import Tensor

from data.video import iterate_video
from evaluation.flags import video_network
from evaluation.video.measure import VideoComparison
from evaluation.video.networks import FeatureNetwork
from evaluation.video.sources import ClipVideos, blurred, shuffled
from metrics.i3d import I3D, pad_same
from models.weights import WeightsError

WEIGHTS = SHARED / "weights" / "i3d_kinetics400.safetensors"
OUTPUTS = SHARED / "weights" / "reference_outputs.npz"
CLIPS = [SHARED / "clips" / f"{name}.mp4" for name in ("apple_leaves_rain_a", "flag_usa_close_a")]
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="the weights of I3D are not here")
FIRST = "params/Conv3d_1a_7x7/Conv_0/kernel"


@pytest.mark.parametrize(
    ("length", "width", "step", "pads"),
    [(224, 7, 2, (2, 3)), (112, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (8, 3, 1, (1, 1)), (8, 2, 2, (0, 0))],
)  # fmt: skip
def test_padding_is_that_of_tensorflow(length: int, width: int, step: int, pads: tuple[int, int]) -> None:
    # of one axis alone, and of each at its place
    for axis in range(3):
        shape, kernel, stride = [1, 1, 1], [1, 1, 1], [1, 1, 1]
        shape[axis], kernel[axis], stride[axis] = length, width, step
        padded = pad_same(torch.ones(1, 1, *shape), tuple(kernel), tuple(stride)).flatten()
        before, behind = pads
        assert padded.tolist() == [0.0] * before + [1.0] * length + [0.0] * behind


@pytest.mark.skipif(not (WEIGHTS.is_file() and OUTPUTS.is_file()), reason="the weights of I3D are not here")
def test_logits_are_those_of_another_implementation() -> None:
    video = (np.random.default_rng(0).random((1, 3, 16, 224, 224)) * 2 - 1).astype(np.float32)
    with np.load(OUTPUTS) as file:
        expected = torch.from_numpy(file["i3d_logits"])
    with torch.inference_mode():
        found = I3D(WEIGHTS)(torch.from_numpy(video))
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())


@needs_weights
def test_videos_that_it_cannot_read() -> None:
    network = I3D(WEIGHTS)
    with pytest.raises(ValueError, match=r"video: expected \(B, 3, T, 224, 224\), got \(1, 3, 16, 32, 32\)"):
        network(torch.zeros(1, 3, 16, 32, 32))
    with pytest.raises(ValueError, match="video: expected at least 9 frames, got 8"):
        network(torch.zeros(1, 3, 8, 224, 224))


@needs_weights
@pytest.mark.skipif(not all(path.is_file() for path in CLIPS), reason="the clips are not here")
def test_fvd_grows_with_blur_and_with_shuffled_frames() -> None:
    network = FeatureNetwork(WEIGHTS, on_videos=True, kind="i3d")
    rows = ["the same", "blur 1 px", "blur 3 px", "shuffled by 4", "shuffled by 16"]
    comparison = VideoComparison(rows, {"fvd": network}, windows=(16,), batch_size=1)
    for path in CLIPS:
        real = torch.stack([frame for _, frame in islice(iterate_video(path), 16)])  # (16, 3, H, W)
        made = [real, blurred(real, 1), blurred(real, 3), shuffled(real, 4), shuffled(real, 16)]
        comparison.add(ClipVideos(path.stem, real, dict(zip(rows, made, strict=True))))
    table = {row["row"]: row for row in comparison.table()}
    assert table["the same"]["fvd_16"] < 1e-3 and table["the same"]["windows_16"] == 2
    assert 1 < table["blur 1 px"]["fvd_16"] < table["blur 3 px"]["fvd_16"]
    assert 1 < table["shuffled by 4"]["fvd_16"] < table["shuffled by 16"]["fvd_16"]
    for row in list(table.values())[1:]:
        assert row["fvd_16_low"] <= row["fvd_16"] <= row["fvd_16_high"]


def test_files_that_are_not_its_weights(tmp_path: Path) -> None:
    def load(name: str, tensors: dict[str, Tensor] | None = None, cut: int = 0) -> None:
        path = tmp_path / name
        if tensors:
            save_file(tensors, path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
        with pytest.raises(WeightsError) as raised:
            I3D(path)
        assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
        raise raised.value

    kernel = torch.zeros(7, 7, 7, 3, 64)
    with pytest.raises(WeightsError, match="no such file"):
        load("gone.safetensors")
    with pytest.raises(WeightsError, match=f"of another network: {FIRST} expected of shape .*, got none"):
        load("other.safetensors", {"conv1.weight": kernel})
    with pytest.raises(WeightsError, match=rf"{FIRST} expected of shape \(7, 7, 7, 3, 64\), got \(1, 7, 7, 3, 64\)"):
        load("flat.safetensors", {FIRST: kernel[:1]})
    with pytest.raises(WeightsError, match=f"{FIRST} holds numbers that are not finite"):
        load("nan.safetensors", {FIRST: kernel / 0})
    with pytest.raises(WeightsError, match="cut short within b;"):  # the first of those that are not whole
        load("cut.safetensors", {name: torch.zeros(100) for name in "abc"}, cut=500)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(WeightsError, match="not readable as weights"):
        load("text.safetensors")
    with pytest.raises(WeightsError, match="other.safetensors: weights of another network"):
        FeatureNetwork(tmp_path / "other.safetensors", on_videos=True, kind="i3d")


def test_its_flag() -> None:
    assert video_network("i3d:folder/weights.safetensors") == ("i3d", Path("folder/weights.safetensors"))
