"""The segmentation network: TensorFlow Lite's own outputs, other sizes, files that are not its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.segmentation import FEATURE_CHANNELS, SegmentationModel, resize_from_corner
from models.segmentation_classes import CLASSES, SYNONYMS
from models.segmentation_tflite import load_tflite

SHARED = Path(__file__).resolve().parents[2] / "shared"
WEIGHTS = SHARED / "weights"
PHOTOGRAPH = SHARED / "photos/ginkgo_palace.jpg"
R4, R3 = WEIGHTS / "mosaic_ade20k31_r4.tflite", WEIGHTS / "mosaic_ade20k31_r3.tflite"
needs_shared = pytest.mark.skipif(not (R4.exists() and PHOTOGRAPH.exists()), reason="no ../shared here")


@pytest.fixture(scope="module")
def untrained() -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel().eval()


def photograph(height: int = 512, width: int = 512) -> torch.Tensor:
    image = Image.open(PHOTOGRAPH).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


@needs_shared
def test_half_precision_folder_gives_the_references_outputs(tmp_path):
    load_tflite(R4).half().save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4e6
    model = SegmentationModel.from_pretrained(tmp_path)
    with torch.inference_mode():
        logits = model(photograph())
    reference = np.load(WEIGHTS / "reference_outputs.npz")
    error = logits[0] - torch.from_numpy(reference["mosaic_logits_128"].astype(np.float32))
    assert error.square().mean().sqrt() < 0.05
    classes = resize_from_corner(logits, (512, 512)).argmax(1)[0].numpy()
    assert (classes == reference["mosaic_argmax_litert"]).mean() > 0.99


@needs_shared
def test_both_releases_see_the_same_at_the_photographs_own_aspect():
    image = photograph(518, 421)
    with torch.inference_mode():
        first, second = (load_tflite(path)(image)[0].argmax(0) for path in (R3, R4))
    assert first.shape == (130, 106)
    assert (first == second).float().mean() > 0.85
    for name in ("tree", "building", "sky"):
        assert (second == CLASSES.index(name)).float().mean() > 0.05, name


@pytest.mark.parametrize("size", [(512, 512), (240, 427), (333, 130), (48, 528), (1, 1)])
def test_any_size_goes_in(untrained, size):
    height, width = size
    image = torch.rand(2, 3, height, width)
    with torch.inference_mode():
        logits, features = untrained(image), untrained.features(image)
    assert logits.shape == (2, len(CLASSES), -(-height // 4), -(-width // 4))
    assert logits.isfinite().all()
    padded = (-(-height // 16) * 16, -(-width // 16) * 16)
    for maps, channels, stride in zip(features, FEATURE_CHANNELS, (4, 8, 16), strict=True):
        assert maps.shape == (2, channels, padded[0] // stride, padded[1] // stride)


def test_batch_and_repeated_border_change_nothing(untrained):
    images = torch.rand(2, 3, 60, 90)
    with torch.inference_mode():
        together = untrained(images)
        alone = untrained(torch.nn.functional.pad(images[1:], (0, 6, 0, 4), mode="replicate"))
    torch.testing.assert_close(together[1:], alone[..., :15, :23], rtol=0, atol=1e-5)


def test_gradients_reach_the_first_layer(untrained):
    untrained(torch.rand(1, 3, 32, 48)).square().mean().backward()
    assert untrained.stem[0].weight.grad.abs().max() > 0
    untrained.zero_grad(set_to_none=True)


def test_resize_by_hand():
    maps = torch.tensor([[0.0, 2.0], [4.0, 8.0]])[None, None]
    expected = [[0, 1, 2, 2], [2, 3.5, 5, 5], [4, 6, 8, 8], [4, 6, 8, 8]]
    assert resize_from_corner(maps, (4, 4))[0, 0].tolist() == expected
    thirds = resize_from_corner(torch.arange(3.0).view(1, 1, 1, 3), (1, 9))[0, 0, 0]
    torch.testing.assert_close(thirds, torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 6]) / 3)


def test_classes_and_their_everyday_words():
    assert len(set(CLASSES)) == len(CLASSES) == 32
    for word, classes in SYNONYMS.items():
        assert word not in CLASSES and classes and set(classes) <= set(CLASSES), word


@needs_shared
def test_classes_are_the_published_ones():
    assert list(CLASSES) == (WEIGHTS / "mosaic_labels.txt").read_text().split()


def test_files_of_another_kind_are_one_line(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"\x08\x07\x12\x07pytorch" * 9)
    (tmp_path / "empty.tflite").touch()
    (tmp_path / "head.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    said = {
        "no.tflite": "cannot be read",
        "a.onnx": "not a TensorFlow Lite file",
        "empty.tflite": "not a TensorFlow Lite file",
        "head.tflite": "damaged",
    }
    for name, reason in said.items():
        with pytest.raises(ValueError, match=rf"{name}: {reason}.*; right: .*mosaic_ade20k31_r4.tflite") as caught:
            load_tflite(tmp_path / name)
        assert "\n" not in str(caught.value)


@needs_shared
def test_truncated_files_and_other_networks_are_one_line(tmp_path):
    data, path = R4.read_bytes(), tmp_path / "x.tflite"
    for kept in (100, 50_000, len(data) // 2, len(data) - 2000):
        path.write_bytes(data[:kept])
        with pytest.raises(ValueError, match="x.tflite: damaged, .*; right: a whole mosaic_ade20k31_r4.tflite"):
            load_tflite(path)
    # a first expansion from 96 channels to 32, where it is from 32 to 96
    own, other = (np.array([4, *shape], "<i4").tobytes() for shape in [(96, 1, 1, 32), (32, 1, 1, 96)])
    assert own in data
    path.write_bytes(data.replace(own, other))
    name = "MobilenetV3/expanded_conv/expand/Conv2D_Fold"
    with pytest.raises(ValueError, match=rf"{name} is \(32, 96, 1, 1\), expected \(96, 32, 1, 1\) for blocks.0.expand"):
        load_tflite(path)
