"""Modes, the damped oscillator, flick and hold, and the bytes of the web page."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from modal_tools import PageSimulation as Simulation
from modal_tools import dequantise, displacement_at, energy

from motion.modal import EXTENT_PX, Modes, gust, oscillate, quantise

SIZE = (12, 20)


def example_modes(seed: int = 0, num_modes: int = 5) -> Modes:
    """Smooth shapes that differ in x and y, growing to the right, at 0.2, 0.4, ... Hz."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(num_modes, 4, 3, 4, generator=generator)
    parts = F.interpolate(parts, size=SIZE, mode="bilinear", align_corners=True)
    shapes = torch.complex(parts[:, :2], parts[:, 2:])
    ramp = torch.linspace(0.2, 2, SIZE[1]) / torch.arange(1, num_modes + 1).view(-1, 1, 1, 1)
    return Modes(shapes * ramp, torch.arange(1, num_modes + 1, dtype=torch.float64) / 5)


def one_mode(value_x: complex, value_y: complex, hz: float = 0.5) -> Modes:
    shape = torch.tensor([value_x, value_y], dtype=torch.complex64).view(1, 2, 1, 1).expand(1, 2, *SIZE)
    return Modes(shape.contiguous(), torch.tensor([hz], dtype=torch.float64))


def test_modes_of_a_spectrum_leave_bin_0_out():
    spectrum = torch.zeros(3, 4, 2, 2)
    spectrum[0] = 9
    spectrum[1, :, 0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    modes = Modes.from_spectrum(spectrum, period_s=4.0)
    assert modes.shapes.shape == (2, 2, 2, 2) and modes.frequency_hz.tolist() == [0.25, 0.5]
    assert modes.shapes[0, :, 0, 1].tolist() == [1 + 2j, 3 + 4j]
    assert not modes.shapes[1].any()


@pytest.mark.parametrize("damping", [0.0, 0.1, 0.999, 1.0, 1.001, 3.0])
@pytest.mark.parametrize("dt", [1 / 240, 0.1, 1.0])
def test_oscillator_has_its_closed_form(damping, dt):
    """Against the two exponentials of the characteristic roots, with another code path: complex roots."""
    hz, z0, v0 = 0.7, 1.5 - 0.5j, -2.0 + 3.0j
    omega = 2 * math.pi * hz
    root = omega * (complex(damping**2 - 1) ** 0.5)
    first, second = -damping * omega + root, -damping * omega - root
    steps = max(1, round(1 / dt))
    t = steps * dt
    q, velocity = torch.tensor([z0], dtype=torch.complex128), torch.tensor([v0], dtype=torch.complex128)
    for _ in range(steps):
        q, velocity = oscillate(q, velocity, torch.tensor([omega], dtype=torch.float64), damping, dt)
    if damping == 1:
        expected = (z0 + (v0 + omega * z0) * t) * math.exp(-omega * t)
    else:
        # Real and imaginary part of z are two oscillators, so they are solved apart.
        def solve(z, v):
            a = (v - second * z) / (first - second)
            return (a * torch.exp(torch.tensor(first * t)) + (z - a) * torch.exp(torch.tensor(second * t))).real.item()

        expected = complex(solve(z0.real, v0.real), solve(z0.imag, v0.imag))
    assert abs(q.item() - expected) < 1e-5 * abs(z0)


def test_steps_of_any_size_agree():
    coarse, fine = (Simulation(example_modes(), damping=0.07) for _ in range(2))
    for simulation in (coarse, fine):
        simulation.flick(15, 4, 20, -8)
    coarse.step(1.0)
    for _ in range(240):
        fine.step(1 / 240)
    torch.testing.assert_close(coarse.q, fine.q, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(coarse.velocity, fine.velocity, rtol=1e-10, atol=1e-12)
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="dt"):
            coarse.step(wrong)


@pytest.mark.parametrize("dt", [1 / 240, 1 / 30, 0.2, 1.0])
@pytest.mark.parametrize("damping", [0.01, 0.3, 1.0, 2.0])
def test_energy_never_grows(dt, damping):
    simulation = Simulation(example_modes(), damping=damping)
    simulation.flick(18, 3, 30, 10)
    simulation.hold(15, 8, 1, -2)
    simulation.step(0.2)
    simulation.release()
    energies = [energy(simulation)]
    for _ in range(60):
        simulation.step(dt)
        energies.append(energy(simulation))
    assert energies[0] > 0.1
    assert all(after <= before * (1 + 1e-12) for before, after in zip(energies, energies[1:], strict=False))


def test_undamped_energy_stays():
    simulation = Simulation(example_modes(), damping=0.0)
    simulation.flick(18, 3, 30, 10)
    before = energy(simulation)
    for _ in range(50):
        simulation.step(0.31)
    assert energy(simulation) == pytest.approx(before, rel=1e-9)


def test_energy_by_hand():
    simulation = Simulation(one_mode(3, 4j))
    simulation.q[0], simulation.velocity[0] = 2, 1j
    assert energy(simulation) == pytest.approx(25 * (1 + (math.pi * 2) ** 2) / 2)


def test_modal_mass_is_the_mean_square_so_scaling_a_shape_changes_nothing():
    modes = example_modes()
    assert modes.mass[1].item() == pytest.approx(float(modes.shapes[1].abs().square().sum(0).mean()), rel=1e-5)
    factors = torch.tensor([1, 5, 0.2, 3, 1]).view(-1, 1, 1, 1)
    fields = []
    for shapes in (modes.shapes, modes.shapes * factors):
        simulation = Simulation(Modes(shapes, modes.frequency_hz), limit_px=1e6)
        simulation.hold(15, 3, 2, 1)
        simulation.step(0.2)
        simulation.release()
        simulation.flick(9, 8, 5, -3)
        simulation.step(0.3)
        fields.append(simulation.displacement())
    torch.testing.assert_close(*fields, rtol=1e-4, atol=1e-4)


def test_displacement_by_hand():
    simulation = Simulation(one_mode(3 - 1j, 2j))
    simulation.q[0] = 0.5 + 2j
    # Re((3 - i)(0.5 + 2i)) = 1.5 + 2, Re(2i (0.5 + 2i)) = -4
    assert displacement_at(simulation, 3.3, 7.9) == pytest.approx((3.5, -4.0))
    field = simulation.displacement()
    assert field.shape == (2, *SIZE) and field.dtype == torch.float32
    assert field[:, 5, 7].tolist() == pytest.approx([3.5, -4.0])


def test_sampling_reads_x_along_columns():
    shapes = torch.zeros(1, 2, *SIZE, dtype=torch.complex64)
    shapes[0, 0] = torch.arange(SIZE[1])[None, :] + 100.0 * torch.arange(SIZE[0])[:, None]
    modes = Modes(shapes, torch.ones(1, dtype=torch.float64))
    assert modes.sample(7.25, 3.5)[0, 0].item() == pytest.approx(357.25)
    assert modes.sample(-4, 99)[0, 0].item() == pytest.approx(1100)
    # A Gaussian mean of a linear function in the middle is its centre, near the border it is not.
    assert modes.sample(9, 6, extent_px=1.0)[0, 0].item() == pytest.approx(609)
    assert modes.sample(0, 6, extent_px=1.0)[0, 0].real > 600.5
    assert modes.sample(9.4, 6, extent_px=0.05)[0, 0].item() == pytest.approx(609.4)


def test_flick_changes_the_velocity_only_and_by_what_was_asked():
    simulation = Simulation(example_modes(), limit_px=1e6)
    simulation.hold(4, 5, 0.3, 0.2)
    simulation.step(0.3)
    simulation.release()
    before, at = simulation.q.clone(), (17.0, 6.0)
    shape = simulation.modes.sample(*at, 1.5)
    speed = (shape * simulation.velocity[:, None]).sum(0).real
    simulation.flick(*at, 6.0, -2.5)
    gained = (shape * simulation.velocity[:, None]).sum(0).real - speed
    assert torch.equal(simulation.q, before)
    assert gained.tolist() == pytest.approx([6.0, -2.5], rel=0.1, abs=0.2)


def test_held_point_follows_the_pointer():
    simulation = Simulation(example_modes(), limit_px=1e6)
    simulation.hold(17, 6, 2.0, -1.0, extent_px=0)
    simulation.step(0.02)
    assert 0 < displacement_at(simulation, 17, 6)[0] < 0.5, "a hold must not jump"
    for _ in range(60):
        simulation.step(1 / 60)
    assert displacement_at(simulation, 17, 6) == pytest.approx((2.0, -1.0), abs=0.1)
    simulation.strength = 0.5
    simulation.hold(17, 6, 2.0, -1.0, extent_px=0)
    simulation.step(2.0)
    assert displacement_at(simulation, 17, 6) == pytest.approx((1.0, -0.5), abs=0.05)


def test_what_moves_along_a_line_only_is_pulled_along_it():
    simulation = Simulation(one_mode(2.0, 0.0), limit_px=1e6)
    simulation.hold(5, 5, 3.0, 40.0)
    simulation.step(3.0)
    assert displacement_at(simulation, 5, 5) == pytest.approx((3.0, 0.0), abs=0.01)


def test_limit_of_hold_and_flick():
    simulation = Simulation(example_modes(), limit_px=1.5)
    simulation.hold(17, 6, 500.0, -300.0)
    simulation.step(3.0)
    simulation.release()
    assert float(simulation.displacement().norm(dim=0).max()) == pytest.approx(1.5, rel=1e-3)
    before = simulation.reach()
    simulation.flick(18, 6, 900.0, 100.0)
    assert simulation.reach() <= max(1.5, before) * (1 + 1e-9)
    simulation.flick(18, 6, -900.0, -100.0)
    assert simulation.reach() <= max(1.5, before) * (1 + 1e-9)
    simulation = Simulation(example_modes(), limit_px=1.5)
    for _ in range(3):
        simulation.flick(18, 6, 900.0, 100.0)
        assert simulation.reach() == pytest.approx(1.5, rel=1e-6)
    simulation = Simulation(example_modes(), limit_px=1.5)
    simulation.flick(18, 6, 0.1, 0.0)
    assert 0 < simulation.reach() < 0.5
    assert Simulation(example_modes()).limit_px == pytest.approx(0.1 * 20)


def test_still_pixels_stay_exactly_still_and_cannot_be_grabbed():
    shapes = example_modes().shapes.clone()
    shapes[..., :10] *= 1e-3
    modes = Modes(shapes, example_modes().frequency_hz).without_static_pixels()
    assert not modes.shapes[..., :10].any()
    torch.testing.assert_close(modes.shapes[..., 15:], shapes[..., 15:])
    simulation = Simulation(modes)
    simulation.flick(4, 5, 100, 100)
    simulation.hold(4, 5, 100, 100)
    simulation.step(0.5)
    assert simulation.reach() == 0
    simulation.release()
    simulation.flick(18, 5, 30, 10)
    simulation.step(0.2)
    assert not simulation.displacement()[:, :, :10].any() and simulation.displacement()[:, :, 15:].any()


def test_a_picture_without_motion():
    simulation = Simulation(Modes.from_spectrum(torch.zeros(4, 4, *SIZE)).without_static_pixels())
    simulation.flick(3, 3, 10, 0)
    simulation.hold(3, 3, 10, 0)
    simulation.step(0.1)
    assert energy(simulation) == 0 and not simulation.displacement().any()


def test_quantisation_error_is_within_its_bound():
    modes = example_modes(3)
    modes.shapes[:, :, :, 4] = 0
    codes, scale = quantise(modes)
    assert codes.dtype == torch.uint8 and codes.shape == (5, 4, *SIZE)
    back = dequantise(codes, scale, modes.frequency_hz)
    original, returned = (torch.view_as_real(m.shapes).double() for m in (modes, back))
    s, e = scale.view(-1, 1, 1, 1, 1).double(), 0.5 / 127
    bound = s * (2 * (original.abs() / s).sqrt() + e) * e
    assert bool(((returned - original).abs() <= bound * (1 + 1e-4)).all())
    assert not returned[:, :, :, 4].any(), "zero has to stay zero"
    again, _ = quantise(back)
    assert torch.equal(again, codes)


def test_codes_by_hand():
    codes, scale = quantise(one_mode(1 - 2j, 3 + 4j))
    assert scale.tolist() == [4]
    expected = [128 + round(127 * math.sqrt(share)) for share in (0.25, 0.75, 1)]
    assert codes[0, :, 3, 5].tolist() == [expected[0], 128 - round(127 * math.sqrt(0.5)), *expected[1:]]


def test_gusts_are_even_noise_and_always_the_same():
    values = torch.tensor([gust(number, part) for number in range(500) for part in range(8)], dtype=torch.float64)
    assert abs(float(values.mean())) < 0.05 and float(values.var()) == pytest.approx(1.0, abs=0.05)
    grid = values.view(500, 8)
    assert float(torch.corrcoef(grid.T).fill_diagonal_(0).abs().max()) < 0.2
    assert float((grid[1:] * grid[:-1]).mean().abs()) < 0.05
    assert [round(gust(number, part), 9) for number, part in ((0, 0), (1, 0), (0, 1), (10**6, 31))] == [
        0.968473563,
        -0.920926389,
        0.092389488,
        0.18970886,
    ]


@pytest.mark.parametrize("damping", [0.05, 0.3])
@pytest.mark.parametrize("dt", [1 / 60, 0.2])
def test_wind_moves_the_modes_as_far_as_the_spectrum_says(damping, dt):
    simulation = Simulation(example_modes(), damping=damping)
    simulation.wind = 0.5
    squares = []
    for step in range(round(300 / dt**0.5)):
        simulation.step(dt)
        if step > 200:
            squares.append(simulation.q.abs().square())
    assert torch.stack(squares).mean(0).mean() == pytest.approx(0.25, rel=0.35)
    simulation.wind = 0.0
    before = energy(simulation)
    simulation.step(1.0)
    assert energy(simulation) < before


def test_two_pointers_hold_two_points():
    simulation = Simulation(example_modes(), damping=0.2, limit_px=1e9)
    simulation.hold(3, 2, 0.3, 0.1, pointer=1)
    simulation.hold(12, 9, -0.2, 0.2, pointer=2)
    for _ in range(60):
        simulation.step(0.1)
    assert displacement_at(simulation, 3, 2, extent_px=EXTENT_PX) == pytest.approx((0.3, 0.1), abs=0.08)
    assert displacement_at(simulation, 12, 9, extent_px=EXTENT_PX) == pytest.approx((-0.2, 0.2), abs=0.08)
    simulation.release(1)
    for _ in range(60):
        simulation.step(0.1)
    assert displacement_at(simulation, 12, 9, extent_px=EXTENT_PX) == pytest.approx((-0.2, 0.2), abs=0.08)
    simulation.release(2)
    before = energy(simulation)
    simulation.step(0.5)
    assert energy(simulation) < before


def test_a_mode_that_takes_no_part_is_at_rest():
    simulation = Simulation(example_modes(), damping=0.1)
    simulation.set_active(0, False)
    simulation.wind = 1.0
    simulation.flick(3, 2, 5.0, 1.0)
    simulation.hold(3, 2, 1.0, 0.0)
    for _ in range(5):
        simulation.step(0.1)
    assert simulation.q[0] == 0 and simulation.velocity[0] == 0 and simulation.q[1:].abs().min() > 0
    simulation.set_active(0, True)
    simulation.step(0.1)
    assert simulation.q[0] != 0


@pytest.mark.parametrize("damping", [0.01, 0.08, 1.0, 1.7])
@pytest.mark.parametrize("dt", [1e-17, 2e-16, 1e-12, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
def test_wind_of_a_short_step_is_faint(damping, dt):
    """A release may fall a rounding error before a frame: E |q'|^2 grows by 4 xi w^3 wind^2 dt, nothing explodes."""
    modes = Modes.from_spectrum(torch.randn(6, 4, 8, 8), 5.0)
    simulation = Simulation(modes, damping=damping)
    simulation.wind = 1.0
    simulation.step(dt)
    expected = (4 * damping * modes.omega**3 * dt).sqrt()
    assert bool((simulation.velocity.abs() <= 3 * expected + 1e-6 * modes.omega).all())
    assert bool((simulation.q.abs() <= 3 * expected * dt + 1e-6).all())
