"""Tests of training/copy_paste.py on even images."""

import numpy as np
import pytest
import torch

from training.copy_paste import Labelled, paste_parts


def photograph(brightness: float, movable: float, size: tuple[int, int] = (120, 160)) -> Labelled:
    return Labelled(torch.full((3, *size), brightness), torch.full((1, *size), movable), torch.ones(1, *size))


@pytest.mark.parametrize("movable", [0.0, 1.0])
def test_what_is_pasted_is_labelled_as_it_was(movable):
    """A meadow on which stones lie, and a wall on which leaves do."""
    there, other = photograph(0.2, movable), photograph(0.8, 1 - movable, (90, 200))
    changed = 0
    for seed in range(12):
        image, moves, known = paste_parts(there, [lambda: other], np.random.default_rng(seed))
        pasted = moves[0] != movable
        changed += bool(pasted.any())
        assert not pasted.all() and known.min() == 1
        assert image[:, ~pasted].mean() < 0.23 and image.min() == pytest.approx(0.2)
        if pasted.any():
            assert image[:, pasted].mean() > 0.3
    assert changed > 8
    assert there.image.max() == pytest.approx(0.2)  # a copy was changed


def test_nothing_is_pasted_where_it_would_teach_nothing():
    wall, other = photograph(0.2, 0.0), photograph(0.8, 0.0)
    unsure = photograph(0.8, 0.0)._replace(known=torch.zeros(1, 120, 160))
    for seed in range(6):
        for donor in (other, unsure):
            result = paste_parts(wall, [lambda donor=donor: donor], np.random.default_rng(seed))
            assert all(torch.equal(found, before) for found, before in zip(result, wall, strict=True))


def test_small_photographs_and_one_draw_for_a_seed():
    tiny, other = photograph(0.2, 1.0, (12, 9)), photograph(0.8, 0.0)
    assert torch.equal(paste_parts(tiny, [lambda: other], np.random.default_rng(0)).image, tiny.image)
    meadow = photograph(0.2, 1.0)
    first, again = (paste_parts(meadow, [lambda: other], np.random.default_rng(3)).image for _ in range(2))
    assert torch.equal(first, again)
