"""Tests of models/image_edges.py on images of any size; what comes of it is in test_placement.py, test_stiffness.py."""

import pytest
import torch

from models.image_edges import held_by_edges, long_edges

HEIGHT, WIDTH = 160, 256


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 64)])
def test_edges_of_small_broken_and_half_precision_images(size):
    for images in (torch.rand(2, 3, *size), torch.full((2, 3, *size), torch.nan), torch.rand(2, 3, *size).bfloat16()):
        held = held_by_edges(torch.ones(2, 1, *size), torch.ones(2, 1, *size), images)
        assert held.shape == (2, 1, *size) and 0 <= held.min() and held.max() <= 1


def test_texture_has_no_long_edges():
    texture = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    assert long_edges(texture).sum() == 0
