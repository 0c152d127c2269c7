"""Tests of models/class_maps.py: what MOSAIC's classes say at the places of the motion grid."""

import torch
import torch.nn.functional as F

from models.checkpoints import DEFAULT_CHECKPOINT
from models.class_maps import fine_class_probabilities, segmentation_maps
from models.segmentation import SegmentationModel


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
