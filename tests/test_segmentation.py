"""MOSAIC against TensorFlow Lite's own outputs, at other sizes, and its file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints import load_model
from models.segmentation import SegmentationModel, resize_from_corner
from models.segmentation_tflite import load_tflite

SHARED = Path(__file__).resolve().parents[2] / "shared"
R4 = SHARED / "weights/mosaic_ade20k31_r4.tflite"
R3 = SHARED / "weights/mosaic_ade20k31_r3.tflite"
PHOTOGRAPH = SHARED / "photos/ginkgo_palace.jpg"
REFERENCE = SHARED / "weights/reference_outputs.npz"
needs_weights = pytest.mark.skipif(not R4.exists() or not REFERENCE.exists(), reason="no ../shared/weights here")
needs_photograph = pytest.mark.skipif(not PHOTOGRAPH.exists(), reason="no ../shared/photos here")


def photograph() -> torch.Tensor:
    image = Image.open(PHOTOGRAPH).convert("RGB").resize((512, 512), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


@needs_weights
@needs_photograph
def test_half_precision_folder_gives_the_references_outputs(tmp_path):
    load_tflite(R4).half().save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4e6
    model = load_model(SegmentationModel, tmp_path, component="segmentation")
    with torch.inference_mode():
        logits = model(photograph())[0]
    archive = np.load(REFERENCE)
    error = logits - torch.from_numpy(archive["mosaic_logits_128"].astype(np.float32))
    assert error.square().mean().sqrt() < 0.05
    classes = resize_from_corner(logits[None], (512, 512)).argmax(1)[0].numpy()
    assert (classes == archive["mosaic_argmax_litert"]).mean() > 0.99


@needs_weights
@needs_photograph
def test_both_releases_agree_on_the_photograph():
    image = photograph()
    with torch.inference_mode():
        first, second = (load_tflite(path)(image).argmax(1) for path in (R3, R4))
    assert (first == second).float().mean() > 0.85
