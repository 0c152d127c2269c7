"""Images of spectra, by hand: the x-t slice, the magnitude over a photograph, bars a bin."""

from __future__ import annotations

import torch

from data.visualisation import magnitude_over, spectrum_bars, x_t_slice


def test_x_t_slice_of_a_still_picture_repeats_its_row():
    image = torch.rand(3, 20, 30)
    picture = x_t_slice(image, torch.zeros(4, 4, 20, 30), num_frames=20)
    torch.testing.assert_close(picture, image[:, :1].expand(3, 20, 30))


def test_magnitude_over_the_photograph_by_hand():
    """Nothing where nothing moves, red at a ninth of the full px (a third of the scale), white from there on."""
    image = torch.full((3, 1, 4), 0.5)
    picture = magnitude_over(image, torch.tensor([[[0.0, 4 / 9, 4.0, 9.0]]]))
    torch.testing.assert_close(picture[:, 0, 0], torch.full((3,), 0.5))
    torch.testing.assert_close(picture[:, 0, 1], torch.tensor([1, 0, 0]) / 3 + 1 / 3)
    assert picture[:, 0, 2:].min() == 1


def test_spectrum_bars_are_as_high_as_the_bins_are_strong():
    """Bin 1 of 4 px fills its bar, bin 2 of 1 px half of it; bin 0's dependent channels are no amplitude."""
    spectrum = torch.zeros(3, 4, 8, 24)
    spectrum[1, 0], spectrum[2, 3], spectrum[0, 0] = 4.0, -1.0, -4.0
    bars = spectrum_bars(spectrum)
    assert bars.shape == (3, 8, 12)
    height = (bars[0] == 0).sum(0)
    assert height.view(3, 4).amax(1).tolist() == [0, 8, 4] and bars[0, -4:, 10].sum() == 0 == height[::4].sum()
