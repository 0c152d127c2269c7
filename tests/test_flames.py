"""Tests of models/flames.py on drawn images; what comes of it is in test_placement.py."""

import pytest
import torch

from models.flames import AROUND_PX, CORE_PX, FIRE_PX, TIP, dark_surroundings, find_flames, flicker, move_flames

ORANGE = torch.tensor([1.0, 0.6, 0.2])[:, None, None]


def drawn(*boxes: tuple[slice, slice, float | torch.Tensor]) -> torch.Tensor:
    """Return a grey image (1, 3, 80, 128) with boxes of colours."""
    image = torch.full((1, 3, 80, 128), 0.3)
    for rows, columns, colour in boxes:
        image[:, :, rows, columns] = colour
    return image


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 64)])
def test_small_broken_and_half_precision_images(size):
    for images in (torch.rand(2, 3, *size), torch.full((2, 3, *size), torch.nan), torch.rand(2, 3, *size).bfloat16()):
        fire, flame = find_flames(images)
        moved = move_flames(torch.ones_like(flame), flame, torch.zeros(2, 1, *size))
        for maps in (fire, flame, moved):
            assert maps.shape == (2, 1, *size) and maps.dtype == images.dtype
            assert maps.nan_to_num().min() >= 0 and maps.nan_to_num().max() <= TIP


def test_white_belongs_to_a_flame_only_near_what_is_orange():
    image = drawn((slice(20, 50), slice(20, 36), ORANGE), (slice(26, 44), slice(24, 32), 1.0))
    image[:, :, 20:50, 90:106] = 1.0  # a page
    image[:, :, 60:76, 60:80] = torch.tensor([0.5, 0.3, 0.1])[:, None, None]  # dark wood
    for maps in find_flames(image):
        assert maps[..., 20:50, 20:36].min() == maps[..., 51, 28] == 1
        assert maps[..., 53:, 20:36].max() == maps[..., 60:].max() == 0


def test_a_core_reaches_as_far_as_it_says():
    """An orange box that goes over into a long white strip, and a long orange one with a core at its end."""
    image = drawn((slice(10, 20), slice(10, 20), ORANGE), (slice(10, 20), slice(20, 110), 1.0))
    for maps in find_flames(image):
        assert maps[..., 15, 20 + CORE_PX - 2] == 1 and maps[..., 15, 20 + CORE_PX + 4 :].max() == 0
    image = drawn((slice(50, 60), slice(10, 110), ORANGE), (slice(52, 58), slice(12, 18), 1.0))
    for maps, reach in zip(find_flames(image), (FIRE_PX, CORE_PX), strict=True):
        assert maps[..., 55, 18 + reach - 2] == 1 and maps[..., 55, 18 + reach + 2 :].max() == 0


def test_no_flame_without_a_white_core_or_with_a_wide_one():
    wide = 2 * CORE_PX + 6
    image = drawn((slice(10, 30), slice(10, 26), ORANGE), (slice(34, 76), slice(40, 44 + wide + 4), ORANGE))
    image[:, :, 38 : 38 + wide, 44 : 44 + wide] = 1.0
    image[:, :, 16:22, 34:38] = 1.0  # beside the wax, not touching it
    assert max(maps.max() for maps in find_flames(image)) == 0


def test_a_flame_stands_at_its_foot_and_moves_most_at_its_tip():
    flame = torch.zeros(2, 1, 80, 128)
    flame[:, :, 20:60, 50:60] = flame[1, :, 10:20, 80:100] = 1.0
    movable = torch.zeros_like(flame)
    movable[0] = 0.5  # a petal
    displacement = 2 * flame
    moved = move_flames(displacement, flame, movable)
    torch.testing.assert_close(moved[0], displacement[0])
    torch.testing.assert_close(moved[1, 0, :, 70:], displacement[1, 0, :, 70:])  # wider than tall
    column = moved[1, 0, 20:60, 55]
    assert 1.9 * TIP < column[0] <= 2 * TIP and column[-1] < 0.2 * 2 * TIP and (column.diff() <= 0).all()
    torch.testing.assert_close(moved[1, 0, 30:50, 50:60], moved[1, 0, 30:50, 55:56].expand(-1, 10))


def test_what_is_around_a_flame_goes_along():
    flame = torch.zeros(1, 1, 80, 128)
    flame[..., 20:60, 50:60] = 1.0
    unsure = flame.clone()
    unsure[..., 59] = 0.1  # its outline
    moved = move_flames(unsure, flame, torch.zeros_like(flame))[0, 0, 40]
    assert moved[59] > 0.7 * moved[55]
    moved = move_flames(flame, flame, torch.zeros_like(flame))[0, 0, 40]
    assert (moved[60 : 60 + 2 * AROUND_PX].diff() < 0).all() and moved[60] > 0.7 * moved[55]
    assert moved[60 + 2 * AROUND_PX :].max() == moved[: 50 - 2 * AROUND_PX].max() == 0
    strong = move_flames(torch.ones_like(flame), flame, torch.zeros_like(flame))
    assert strong[..., 58:62, 20:40].min() == 1  # what moves more than a flame's foot is not held


def test_a_flame_is_narrow():
    flame = torch.zeros(1, 1, 80, 128)
    flame[..., 20:60, 50:80] = 1.0
    torch.testing.assert_close(move_flames(flame, flame, torch.zeros_like(flame)), flame)


def test_fire_burns_in_dark_surroundings():
    """A flame in the dark, one before a wall in the light, and no flame."""
    flame = (slice(20, 50), slice(20, 36), ORANGE), (slice(26, 44), slice(24, 32), 1.0)
    images = torch.cat([torch.full((1, 3, 80, 128), 0.2), drawn((slice(0, 80), slice(0, 128), 0.7)), drawn()])
    for rows, columns, colour in flame:
        images[:2, :, rows, columns] = colour
    fire, flame_map = find_flames(images)
    assert fire[0, 0, 20:50, 20:36].min() == flame_map[0, 0, 20:50, 20:36].min() == 1 and not fire[1:].any()
    assert dark_surroundings(0.3, fire, images)[0] == 1
    assert dark_surroundings(0.15, fire, images)[0] == 0


def test_fire_flickers_without_drift_and_what_is_around_it_keeps_its_motion():
    spectrum = torch.randn(2, 5, 4, 80, 128) / torch.arange(1, 6).view(5, 1, 1, 1)
    fire = torch.zeros(2, 1, 80, 128)
    fire[0, :, 20:60, 50:60] = 1.0
    changed = flicker(spectrum, fire)
    torch.testing.assert_close(changed[1], spectrum[1])
    torch.testing.assert_close(changed[0, ..., 60:], spectrum[0, ..., 60:])
    inside = changed[0, ..., 20:60, 50:60]
    assert not inside[0].any()
    power = inside[1:].square().sum((1, 2, 3))
    torch.testing.assert_close(power, power.mean().expand(4))
    torch.testing.assert_close(power.sum(), spectrum[0, 1:, ..., 20:60, 50:60].square().sum())
