"""Flow that bleeds onto what cannot move has no confidence."""

from __future__ import annotations

import pytest
import torch

from models.class_maps import probability_of
from models.segmentation_classes import CLASSES
from training.flow_bleeding import BLEEDING_PX, STATIC_CLASSES, find_bleeding


def classes(*columns: tuple[str, int], height: int = 4) -> torch.Tensor:
    """Return (1, 32, h, w) probabilities of classes that follow each other from left to right."""
    names = [name for name, width in columns for _ in range(width)]
    probabilities = torch.zeros(1, len(CLASSES), height, len(names))
    for column, name in enumerate(names):
        probabilities[0, CLASSES.index(name), :, column] = 1.0
    return probabilities


@pytest.mark.parametrize("px_a_cell", [1.0, 4.0])
def test_sky_beside_a_tree_that_moves_has_bled_and_the_rest_has_not(px_a_cell):
    reach = round(BLEEDING_PX / px_a_cell)
    shown = classes(("tree", 5), ("sky", 2 * reach), ("wall", reach))
    bled = find_bleeding(torch.ones(1, 1, 4, 5 + 3 * reach), shown, px_a_cell)
    assert not bled[..., :5].any() and bled[..., 5 : 5 + reach].all() and not bled[..., 5 + reach :].any()
    for rests in (slice(0, 5), slice(5, None)):  # the tree, the sky
        displacement = torch.ones(1, 1, 4, 5 + 3 * reach)
        displacement[..., rests] = 0.1
        assert not find_bleeding(displacement, shown, px_a_cell).any()


def test_what_is_not_sure_to_be_static_keeps_its_flow():
    shown = classes(("tree", 4), ("person", 4), ("other", 4), ("building", 4))
    shown[:, :, :, 12:] = 0.6 * shown[:, :, :, 12:]
    shown[:, CLASSES.index("plant"), :, 12:] = 0.4
    assert not find_bleeding(torch.ones(1, 1, 4, 16), shown, 1.0).any()
    assert probability_of(shown, STATIC_CLASSES)[0, 0, 0].tolist() == pytest.approx([0.0] * 12 + [0.6] * 4)
