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


def test_near_water_and_grass_move_farther_than_far_ones():
    """Water or grass from a row of 80 on, a wall above and beside it, perhaps a little of it there as well."""
    probabilities = torch.zeros(6, len(CLASSES), 80, 64)
    wall, faint = CLASSES.index("wall"), 0.25
    for image, (name, first) in enumerate(
        [("sea", 40), ("water", 0), ("grass", 12), ("grass", 0), ("field", 40), ("tree", 40)]
    ):
        probabilities[image, wall] = 1 - faint
        probabilities[image, CLASSES.index(name)] = faint
        probabilities[image, :, first:, :48] = 0
        probabilities[image, CLASSES.index(name), first:, :48] = 1
    factor = perspective(probabilities)
    assert factor.shape == (6, 1, 80, 64)
    column = factor[:, 0, :, 20]
    assert column[0, 40] == pytest.approx(0.4)
    assert column[0, 60] == pytest.approx(0.4 + 3.1 * 0.25**0.7)  # a quarter of the image below its upper edge
    assert (column[1] == 1.5).all()
    assert column[2, 12] == pytest.approx(0.3) and 0.9 < column[2, -1] <= 1
    assert (column[3] == 1).all()
    assert column[4, 40] == pytest.approx(0.3) and (column[4, 40:].diff() > 0).all()
    assert (factor[5] == 1).all()
    assert factor[0, 0, 10, 60] == pytest.approx(1 + faint * (0.4 - 1))  # as far as it is water
    torch.testing.assert_close(perspective(probabilities[:1]), factor[:1])  # images of a batch do not mix
    assert torch.isfinite(perspective(torch.zeros(1, len(CLASSES), 8, 8))).all()
