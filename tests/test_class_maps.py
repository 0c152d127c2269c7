"""Tests of models/class_maps.py: what MOSAIC's classes say at the places of the motion grid."""

import pytest
import torch
import torch.nn.functional as F

from models.checkpoints import DEFAULT_CHECKPOINT
from models.class_maps import fine_class_probabilities, perspective, segmentation_maps
from models.segmentation import SegmentationModel
from models.segmentation_classes import CLASSES


def test_segmentation_maps_lie_on_the_images_grid():
    torch.manual_seed(0)
    network = SegmentationModel().eval()
    with torch.no_grad():
        features, logits, probabilities = segmentation_maps(network, torch.rand(1, 3, 128, 192))
    assert [maps.shape[1:] for maps in features] == [(64, 16, 24), (192, 16, 24), (448, 16, 24)]
    assert logits.shape == probabilities.shape == (1, 32, 16, 24)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 16, 24))


def test_fine_classes_mark_the_same_places_more_finely():
    """Of the trained network: the mean of each cell is near the coarser maps', and classes sum to one."""
    network = SegmentationModel.from_pretrained(DEFAULT_CHECKPOINT / "segmentation").eval()
    image = F.interpolate(torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0)), size=(128, 192))
    fine = fine_class_probabilities(network, image)
    with torch.no_grad():
        _, _, coarse = segmentation_maps(network, image)
    assert fine.shape == (1, 32, 32, 48) and coarse.shape == (1, 32, 16, 24)
    torch.testing.assert_close(fine.sum(1), torch.ones(1, 32, 48))
    shifted = [(F.avg_pool2d(fine.roll(n, -1), 2) - coarse).abs().mean() for n in (-4, 0, 4)]
    assert shifted[1] < min(shifted[0], shifted[2])


def test_near_water_moves_farther_than_far_water():
    """Sky above the sea, a wall beside both; then water alone, seen from above, and lawn alone."""
    probabilities = torch.zeros(3, len(CLASSES), 40, 64)
    for image, first, last, name in ((0, 0, 20, "sky"), (0, 20, 40, "sea"), (1, 0, 40, "water"), (2, 0, 40, "grass")):
        probabilities[image, CLASSES.index(name), first:last, :48] = 1
    probabilities[:, CLASSES.index("wall"), :, 48:] = 1
    factor = perspective(probabilities)
    assert factor.shape == (3, 1, 40, 64)
    assert (factor[..., 48:] == 1).all() and (factor[0, :, :20] == 1).all() and (factor[2] == 1).all()
    column = factor[0, 0, 20:, 20]
    assert column[0] == pytest.approx(0.4) and 2.2 < column[-1] < 2.4 and (column.diff() > 0).all()
    assert (factor[1, ..., :48] == 1.5).all()
    torch.testing.assert_close(perspective(probabilities[:1]), factor[:1])  # images of a batch do not mix
    assert torch.isfinite(perspective(torch.zeros(1, len(CLASSES), 8, 8))).all()
