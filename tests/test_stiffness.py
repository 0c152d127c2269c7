"""Tests of models/stiffness.py: straight things of a photograph stay straight."""

import numpy as np
import torch

from models.image_edges import straight_lines
from models.stiffness import stiff_lines, straighten
from motion.spectrum import mean_displacement

HEIGHT, WIDTH = 64, 96


def wavy_motion() -> torch.Tensor:
    """Motion (2, 4, H, W) px that waves from top to bottom."""
    rows = torch.arange(HEIGHT, dtype=torch.float32)[:, None].expand(HEIGHT, WIDTH)
    return torch.stack([torch.stack([(rows / (2 + n)).sin() + 0.02 * rows] * 4) for n in range(2)])


def bend(spectrum: torch.Tensor, column: int) -> float:
    """The greatest distance of motion along a column, rows 14 to 46, from a straight line, px."""
    along = spectrum[..., 14:47, column].flatten(0, 1).double()  # (8, 33)
    basis = torch.stack([torch.ones(33), torch.arange(33.0)], dim=1).double()
    return float((along - (basis @ torch.linalg.lstsq(basis, along.T).solution).T).abs().max())


def test_motion_along_a_line_becomes_linear_and_stays_far_away():
    spectrum, line = wavy_motion(), np.array([[[48.0, 10.0], [48.0, 50.0]]], np.float32)
    found = straighten(spectrum, torch.full((1, HEIGHT, WIDTH), 2.0), line)
    assert bend(spectrum, 48) > 0.7
    assert bend(found, 48) < 0.1 * bend(spectrum, 48)
    # Its mean and its turning are kept, also next to it.
    wanted = spectrum[..., 10:51, 48].mean(-1)
    torch.testing.assert_close(found[..., 10:51, 48].mean(-1), wanted, atol=0.05, rtol=0)
    assert bend(found, 49) < bend(found, 50) < bend(spectrum, 50)
    assert torch.equal(found[..., :20], spectrum[..., :20])


def test_a_line_that_is_mostly_still_is_still():
    line, expected_px = np.array([[[48.0, 10.0], [48.0, 50.0]]], np.float32), torch.zeros(1, HEIGHT, WIDTH)
    expected_px[:, 40:] = 2.0
    spectrum = wavy_motion() * (expected_px > 0)
    found = straighten(spectrum, expected_px, line)
    before, after = (mean_displacement(maps)[0, 41:49, 48].max() for maps in (spectrum, found))
    assert after < 0.25 * before


def test_without_lines_nothing_changes():
    spectrum = wavy_motion()
    for line in (np.zeros((0, 2, 2), np.float32), np.array([[[48.0, 10.0], [48.0, 50.0]]], np.float32)):
        assert torch.equal(straighten(spectrum, torch.zeros(1, HEIGHT, WIDTH), line), spectrum)


def test_upright_lines_and_lines_amid_plants_are_found_where_they_are():
    upright = torch.full((3, 2 * HEIGHT, 2 * WIDTH), 0.2)
    upright[:, :, 2 * 60 :] = 0.8  # an edge between columns 59 and 60 of the grid
    level = upright[:, :, 2 * (WIDTH - HEIGHT) :].transpose(1, 2)  # between rows 27 and 28
    sky, plants = torch.full((1, HEIGHT // 2, WIDTH // 2), -3.0), torch.full((1, HEIGHT // 2, HEIGHT // 2), 3.0)
    lines = stiff_lines(upright, 2, sky)
    assert lines.shape[1:] == (2, 2) and len(lines)
    assert np.allclose(lines[:, :, 0], 59.5, atol=0.5)
    assert np.abs(lines[:, 0, 1] - lines[:, 1, 1]).max() > 0.8 * HEIGHT
    assert len(stiff_lines(level, 2, -plants)) == 0
    lines = stiff_lines(level, 2, plants)
    assert len(lines) and np.allclose(lines[:, :, 1], 27.5, atol=0.5)
    assert len(straight_lines(torch.full((3, HEIGHT, WIDTH), 0.5), 0.05, 0.5)) == 0
