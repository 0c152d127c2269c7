"""Tests of models/stems.py on drawn images."""

import torch

from models.stems import AROUND_PX, REACH_PX, even_along, find_stems, move_stems

SKY = torch.tensor([0.5, 0.7, 0.95])[:, None, None]
PLANT = torch.tensor([0.3, 0.35, 0.1])[:, None, None]


def scene(height: int = 100) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a meadow that moves by 0.5 below a sky, as displacement, sky and image (1, C, height, 128)."""
    image = SKY.expand(3, height, 128).clone()[None]
    image[..., -20:, :] = PLANT
    sky = torch.ones(1, 1, height, 128)
    sky[..., -20:, :] = 0.0
    return 0.5 * (1 - sky), sky, image


def test_a_stem_moves_as_what_it_grows_out_of_and_the_sky_stays():
    displacement, sky, image = scene()
    image[..., 40:80, 50:53] = PLANT  # a stem
    image[..., 10:30, 50:53] = PLANT  # that ends in the air
    image[..., 40:80, 90:110] = PLANT  # a trunk
    moved = move_stems(displacement, sky, image)
    torch.testing.assert_close(moved[..., 80:, :], displacement[..., 80:, :])
    torch.testing.assert_close(moved[..., 40:80, 50:53], torch.full((1, 1, 40, 3), 0.5))
    assert moved[..., :30, :].max() == moved[..., :78, 90:110].max() == 0
    beside = moved[..., 60, 53 : 53 + 2 * AROUND_PX + 1]
    assert (beside.diff() < 0).all() and moved[..., 60, 53 + 2 * AROUND_PX :].max() == 0


def test_stems_reach_the_border_and_move_in_any_unit():
    displacement, sky, image = scene()
    image[..., :80, 50:53] = PLANT
    moved = move_stems(displacement, sky, image)
    torch.testing.assert_close(moved[..., :80, 51], torch.full((1, 1, 80), 0.5))
    torch.testing.assert_close(move_stems(8 * displacement, sky, image), 8 * moved)


def test_clouds_dark_backgrounds_and_what_is_no_sky_stay():
    displacement, sky, image = scene()
    image[..., 40:80, 50:53] = 1.0  # a cloud
    image[..., 40:80, 70:80] = 1.0  # another, with a gap
    image[..., 40:80, 74:77] = SKY
    assert torch.equal(move_stems(displacement, sky, image), displacement)
    displacement, sky, image = scene()
    image[..., 40:80, 50:53] = PLANT
    assert torch.equal(move_stems(displacement, 0.3 * sky, image), displacement)
    image = 0.1 * image
    assert torch.equal(move_stems(displacement, sky, image), displacement)


def test_stems_are_followed_so_far():
    displacement, sky, image = scene(REACH_PX + 60)
    image[..., :-20, 50:53] = PLANT
    moved = move_stems(displacement, sky, image)[0, 0, :, 51]
    assert moved[40:].min() > 0.4 and not moved[: 40 - 2 * AROUND_PX].any()


def test_batches_and_small_images():
    for size in ((1, 1), (3, 5), (32, 64)):
        displacement, sky, image = torch.rand(2, 1, *size), torch.rand(2, 1, *size), torch.rand(2, 3, *size)
        moved = move_stems(displacement, sky, image)
        assert moved.shape == displacement.shape and (moved >= displacement).all()
        torch.testing.assert_close(moved[1:], move_stems(displacement[1:], sky[1:], image[1:]))


def test_stems_are_long_thin_and_upright():
    image = SKY.expand(3, 128, 160).clone()[None]
    image[..., 20:100, 30:33] = PLANT  # a stem
    for row in range(20, 100):
        image[..., row : row + 1, 60 + row // 4 : 63 + row // 4] = PLANT  # a slanting one
    image[..., 40:46, 120:123] = PLANT  # a leaf
    image[..., 70:73, 100:150] = PLANT  # a branch
    image[..., 20:128, 0:20] = PLANT  # a wall
    stems = find_stems(image)[0, 0]
    assert stems[30:90, 31].min() > 0.9 and stems[40, 71] > 0.9 and stems[80, 81] > 0.9
    assert stems[40:46, 120:123].max() == stems[71, 110:140].max() == stems[:, :16].max() == 0
    assert find_stems(SKY.expand(3, 32, 64)[None]).max() == 0


def test_all_of_a_stem_moves_as_far():
    stems = torch.zeros(1, 1, 64, 32)
    stems[..., 10:13] = 1.0
    displacement = torch.ones(1, 1, 64, 32)
    displacement[..., 30:33, :] = 3.0
    even = even_along(displacement, stems)
    assert 1.0 < even[..., 11].min() and even[..., 11].max() < 1.3
    torch.testing.assert_close(even[..., 20:], displacement[..., 20:])
    torch.testing.assert_close(even_along(displacement, torch.zeros_like(stems)), displacement)
