"""How far places of a photograph move, by what is known of them."""

import numpy as np
import pytest
import torch

from models.displacement import STATIC_FRACTION
from models.flames import TIP
from models.image_edges import find_trunks
from models.placement import (
    FIRE_FACTOR,
    LEAST_FAR_PX,
    STRENGTH_FACTOR,
    TRACE,
    Placement,
    bare_stems,
    placed_displacement,
)

HEIGHT, WIDTH = 160, 256


def placement_of(by_class: torch.Tensor, log_strength: float = 0.0, **maps: torch.Tensor) -> Placement:
    """Return one with zeros, and no perspective, where nothing else is given."""
    names = ("correction", "rigid", "sky", "surfaces", "objects", "trees", "plants", "perspective", "relative")
    maps = {name: torch.full_like(by_class, float(name == "perspective")) for name in names} | maps
    return Placement(by_class=by_class, log_strength=torch.tensor([log_strength]), **maps)


def test_displacement_follows_the_probability_and_the_grid():
    movable = torch.full((1, 1, 40, 64), -9.0)
    movable[..., :32] = 9.0
    image = torch.zeros(1, 3, HEIGHT, WIDTH)
    image[..., :128] = 1.0
    placement = placement_of(movable, np.log(2.0), relative=torch.full_like(movable, np.log(1.1)))
    displacement = placed_displacement(placement, image)
    strength_px = STRENGTH_FACTOR * 2.0
    assert displacement[..., :120].min() == pytest.approx((1 + TRACE) * strength_px, rel=1e-3)
    assert 0 < displacement[..., 136:].max() < 0.01 * strength_px
    doubled = placed_displacement(placement, torch.nn.functional.interpolate(image, scale_factor=2.0))
    assert doubled.max() == pytest.approx(2 * (1 + TRACE) * strength_px, rel=1e-3)


def test_what_can_move_moves_visibly_however_calm_the_photograph_looks():
    size = (1, 1, 40, 64)
    placement = placement_of(torch.full(size, 5.0), np.log(0.01), relative=torch.full(size, np.log(STATIC_FRACTION)))
    assert placed_displacement(placement, torch.zeros(1, 3, HEIGHT, WIDTH)).min() > 0.25


def test_a_weak_correction_does_not_move_a_wall():
    size = (1, 1, 40, 64)
    for correction, moves in ((6.0, False), (12.0, True)):
        placement = placement_of(torch.full(size, -5.0), correction=torch.full(size, correction))
        displacement = placed_displacement(placement, torch.zeros(1, 3, HEIGHT, WIDTH))
        assert (displacement.max() > 0.25) == moves


def test_what_is_rigid_stays_but_flames_move():
    movable, rigid = torch.full((1, 1, 40, 64), 9.0), torch.zeros(1, 1, 40, 64)
    rigid[..., :32] = 0.62
    rigid[..., 48:] = 0.28
    image = torch.full((1, 3, HEIGHT, WIDTH), 0.3)
    image[..., 128:] = 0.9
    image[..., 136:] = 0.3 + 0.6 * ((torch.arange(HEIGHT)[:, None] // 2 + torch.arange(120) // 2) % 2)
    image[:, 2, :40, :40] = image[:, 2, 100:140, 20:60] = 0.2  # before the rigid part: a flame, and an orange cloth
    image[:, 0, :40, :40] = image[:, 0, 100:140, 20:60] = 1.0
    image[:, :, 12:28, 12:28] = 1.0
    displacement = placed_displacement(placement_of(movable, rigid=rigid), image)
    assert displacement[..., 60:, :124].max() < 0.1 < 0.5 < displacement[..., 132:].min()
    assert displacement[..., 4:36, 4:36].min() > 0.5
    torch.testing.assert_close(displacement[..., 152:176], displacement[..., 208:232])


def test_flames_move_with_their_white_cores():
    """An orange flame before a wall, which the network half corrects; apart from it wax, a page, bright glass."""
    image = torch.full((1, 3, HEIGHT, WIDTH), 0.3)
    image[:, :, 40:80, 40:60] = image[:, :, 100:140, 100:240] = torch.tensor([1.0, 0.6, 0.2])[:, None, None]
    image[:, :, 46:74, 44:56] = image[:, :, 40:80, 180:200] = image[:, :, 104:136, 170:230] = 1.0
    size = (1, 1, 40, 64)
    placement = placement_of(torch.full(size, -5.0), correction=torch.full(size, 7.0), rigid=torch.full(size, 0.9))
    displacement = placed_displacement(placement, image)[0, 0]
    assert displacement[44:76, 42:58].min() > 0.5 and displacement[48, 50] > 2 * displacement[72, 50]
    told = placed_displacement(placement, image, for_denoiser=True)[0, 0]
    torch.testing.assert_close(told[48, 50], told[72, 50])
    highest = told[48, 50] * TIP * FIRE_FACTOR
    assert 0.9 * highest < displacement[40:80, 40:60].max() < 1.01 * highest
    displacement[30:90, 30:70] = 0
    assert displacement.max() < 0.1


def test_near_places_move_farther_but_the_denoiser_is_told_without():
    movable = torch.full((1, 1, 40, 64), 9.0)
    image = torch.full((1, 3, HEIGHT, WIDTH), 0.5)
    near = placement_of(movable, perspective=torch.full_like(movable, 2.0))
    twice, once = placed_displacement(near, image), placed_displacement(near, image, for_denoiser=True)
    torch.testing.assert_close(twice, 2 * once)
    torch.testing.assert_close(once, placed_displacement(placement_of(movable), image))


def test_a_shore_holds_water_and_not_leaves():
    """Sky above, water or leaves below, of even colours: where they meet is one long edge, and so is a wave."""
    image = torch.full((1, 3, HEIGHT, WIDTH), 0.8)
    image[..., 80:, :] = 0.3
    image[..., 120:, :] = 0.6
    movable = torch.full((1, 1, 40, 64), 9.0)
    movable[..., :20, :] = -9.0
    for surface in (0.0, 1.0):
        placement = placement_of(movable, surfaces=torch.full_like(movable, surface))
        displacement = placed_displacement(placement, image)[..., 4:-4]
        assert displacement[..., 86:, :].min() > 0.35
        assert (displacement[..., 80, :].max() < 0.2) == bool(surface)
        torch.testing.assert_close(
            placed_displacement(placement, image, for_denoiser=True)[..., 81, 4:-4],
            placed_displacement(placement._replace(surfaces=torch.zeros_like(movable)), image)[..., 81, 4:-4],
        )


def test_a_ridge_holds_grass_and_a_wave_no_water():
    """Moving surfaces of even colours above and below one long edge."""
    image = torch.full((1, 3, HEIGHT, WIDTH), 0.3)
    image[..., 80:, :] = 0.6
    movable = torch.full((1, 1, 40, 64), 9.0)
    for plants in (0.0, 1.0):
        maps = {"surfaces": torch.ones_like(movable), "plants": torch.full_like(movable, plants)}
        displacement = placed_displacement(placement_of(movable, **maps), image)
        assert displacement[..., :74, :].min() > 0.35 and displacement[..., 86:, :].min() > 0.35
        assert (displacement[..., 78:82, 4:-4].amax(-1).min() < 0.2) == bool(plants)


def test_smooth_surfaces_move_less_but_objects_as_wholes():
    image = torch.full((1, 3, HEIGHT, WIDTH), 0.5)
    image[..., :128] = (torch.arange(HEIGHT)[:, None] // 2 + torch.arange(128) // 2) % 2  # a chequerboard
    movable = torch.full((1, 1, 40, 64), 9.0)
    placements = [placement_of(movable, **{part: torch.ones_like(movable)}) for part in ("surfaces", "objects")]
    surface, whole = (placed_displacement(placement, image, torch.full((1,), 6.0)) for placement in placements)
    told = [placed_displacement(placement, image, for_denoiser=True) for placement in placements]
    torch.testing.assert_close(*told)
    torch.testing.assert_close(surface[..., :108], whole[..., :108])
    assert surface[..., 148:].max() < 0.4 * whole[..., 148:].min()
    torch.testing.assert_close(surface, placed_displacement(placements[0], image, torch.full((1,), 12.0)) / 2)
    calm = placed_displacement(placements[0], image, torch.full((1,), 0.8))
    torch.testing.assert_close(calm[..., 148:], torch.full_like(calm[..., 148:], LEAST_FAR_PX))


def test_trunks_stand_still_amid_leaves():
    """Upright lines between leaves are a trunk, but in no tree; nor are level lines, or a red flag's stripes."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, HEIGHT // 4, WIDTH // 4, generator=generator)
    image = torch.nn.functional.interpolate(image, scale_factor=4.0).repeat(1, 3, 1, 1)
    bark = (torch.arange(WIDTH) // 4 % 2).float().expand(HEIGHT, WIDTH)
    image[..., 90:170] = bark[:, 90:170]
    movable = torch.full((1, 1, 40, 64), 9.0)
    tree, plant = (placement_of(movable, trees=torch.full_like(movable, trees)) for trees in (1.0, 0.0))
    trunk, others = (placed_displacement(placement, image)[0, 0] for placement in (tree, plant))
    told = [placed_displacement(placement, image, for_denoiser=True) for placement in (tree, plant)]
    torch.testing.assert_close(*told)
    with torch.autocast("cpu"):
        trunks = find_trunks(image)
    assert torch.equal(trunks, find_trunks(image))
    assert trunk[20:140, 110:150].max() < 0.05 * others[20:140, 110:150].min()
    torch.testing.assert_close(trunk[:, :60], others[:, :60])
    image[:, 1:, :, 90:170] *= 0.5
    torch.testing.assert_close(
        placed_displacement(tree, image)[..., 110:150], placed_displacement(plant, image)[..., 110:150]
    )
    image[..., 90:170] = bark[:HEIGHT, :HEIGHT].T[:, :80]
    torch.testing.assert_close(placed_displacement(tree, image), placed_displacement(plant, image))


def test_stems_in_front_of_water_move_evenly_but_amid_grass_as_the_grass():
    image = torch.full((1, 3, HEIGHT, WIDTH), 0.7)
    image[..., 60:61], image[..., 180:181] = 0.1, 0.1  # two stems
    plants = torch.zeros(1, 1, 40, 64)
    plants[..., 32:] = 1.0
    relative = torch.full((1, 1, 40, 64), np.log(0.4))
    relative[..., 20:, :] = np.log(1.1)
    placement = placement_of(torch.full((1, 1, 40, 64), 9.0), np.log(4.0), relative=relative, plants=plants)
    stems = bare_stems(placement, image)[0, 0]
    assert stems[20:140, 60].min() > 0.9 and stems[:, 140:].max() == 0
    displacement = placed_displacement(placement, image)[0, 0]
    beside, stem, amid = (float(displacement[60:100, column].diff().abs().max()) for column in (30, 60, 180))
    assert stem < 0.6 * beside and amid == pytest.approx(beside, rel=0.05)
