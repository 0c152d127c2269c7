"""Loops of any length: the closure error by hand, the nearest motion that closes, sampling guided to it."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from diffusers import DDPMScheduler

from models.checkpoints import DEFAULT_CHECKPOINT
from models.motion_pipeline import MotionPipeline
from models.sampling import SAMPLERS, NoiseLevel, add_noise_again, denoise, sample_generator
from models.self_guidance import LoopGuidance
from motion.looping import closed, is_whole_periods, loop_closure_error, loop_phase_of, plan_playback
from motion.spectrum import mean_displacement, spectrum_to_flow, without_drift


def random_spectrum(*batch: int, num_bins: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    spectrum = torch.randn(*batch, num_bins, 4, 5, 7, generator=generator)
    spectrum *= torch.linspace(2, 0.2, num_bins).view(-1, 1, 1, 1)  # low bins are the strong ones
    spectrum[..., 0, 0::2, :, :] = -spectrum[..., 1:, 0::2, :, :].sum(-4)
    return spectrum


def picture(seed: int = 0, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------ the objective


def test_loop_closure_error_by_hand():
    """Half a period: cos - 1 = -2 at rest, sin = 0 at full speed back; x and y must not be swapped or forgotten."""
    per_frame = 2 * math.pi / 150
    x = torch.zeros(3, 4, 2, 2)
    x[1, 0], x[0, 0] = 2.0, -2.0  # a_1 = 2 in x
    assert loop_closure_error(x, 0.5) == pytest.approx(4.0)
    y = torch.zeros(3, 4, 2, 2)
    y[1, 3] = -3.0  # b_1 = 3 in y
    assert loop_closure_error(y, 0.5) == pytest.approx(2 * 3 * per_frame, rel=1e-5)
    assert loop_closure_error(x + y, 0.5) == pytest.approx(4 + 6 * per_frame)
    both = (x + y)[None].clone()
    both[0, ..., 0] = 0  # half of the pixels stand still
    assert loop_closure_error(both, 0.5).tolist() == pytest.approx([2 + 3 * per_frame])


def test_drift_is_part_of_the_loop_closure_error():
    drift = torch.zeros(3, 4, 2, 2)
    drift[0, 1] = 1.0
    assert loop_closure_error(drift, 0.5) == pytest.approx(0.5)
    assert loop_closure_error(drift, 1.0) == pytest.approx(1.0)
    assert loop_closure_error(drift, 1.2) == pytest.approx(1 + 1 / 150)  # held from phase 1 on: its velocity ends too
    assert loop_closure_error(without_drift(drift), 1.2) == 0


@pytest.mark.parametrize("phase", [0.3, 2 / 3, 1.2])
def test_loop_closure_error_is_that_of_the_series(phase):
    spectrum = without_drift(random_spectrum().double())
    ends = torch.tensor([0.0, phase]).double()
    step = 1e-5
    (first, last), (first_on, last_on) = spectrum_to_flow(spectrum, ends), spectrum_to_flow(spectrum, ends + step)
    velocity = ((last_on - last) - (first_on - first)) / step / 150
    expected = ((last - first).abs() + velocity.abs()).sum(0).mean()
    torch.testing.assert_close(loop_closure_error(spectrum, phase), expected, rtol=1e-3, atol=0)


def test_loop_closure_error_reaches_the_spectrum_by_gradient():
    spectrum = random_spectrum(num_bins=3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loop_closure_error(s, 0.4), spectrum)


# ------------------------------------------------------------------------------------------ closing


@pytest.mark.parametrize("phase", [0.05, 0.3, 2 / 3, 1.2, 2.5, 1.004])
def test_closed_motion_closes(phase):
    spectrum = random_spectrum()
    result = closed(spectrum, phase)
    assert loop_closure_error(without_drift(spectrum), phase) > 0.01
    assert loop_closure_error(result, phase) < 1e-5
    assert result[0, 1::2].abs().max() == 0
    torch.testing.assert_close(result[0, 0::2], -result[1:, 0::2].sum(0))
    torch.testing.assert_close(closed(result, phase), result, atol=1e-5, rtol=1e-5)


def test_closing_is_the_nearest_by_the_amplitude_of_the_bins():
    """Each bin's change counts by the amplitude that the bin has; power is then given back."""
    spectrum = without_drift(random_spectrum().double())
    amplitude = spectrum[1:].square().mean((1, 2, 3)).sqrt().view(-1, 1, 1, 1)  # (K-1, 1, 1, 1)
    nearest = closed(spectrum, 0.4, largest_amplitude_ratio=1.0)

    def distance(other: torch.Tensor) -> float:
        return float(((other - spectrum)[1:].square() / amplitude).sum())

    # A minimum: what was changed is, in that measure, perpendicular to all motion that closes.
    change = (nearest - spectrum)[1:]
    for seed in range(5):
        step = torch.randn(spectrum.shape, generator=torch.Generator().manual_seed(seed)).double()
        other = closed(step, 0.4)[1:]
        cosine = (change * other / amplitude).sum() / (change.norm() * (other / amplitude).norm())
        assert loop_closure_error(nearest + closed(step, 0.4), 0.4) < 1e-10 and abs(float(cosine)) < 1e-3
    louder = closed(spectrum, 0.4)
    torch.testing.assert_close(louder[1:].square().sum(), spectrum[1:].square().sum())
    torch.testing.assert_close(louder / louder.norm(), nearest / nearest.norm())
    assert distance(nearest) < 0.5 * distance(torch.zeros_like(spectrum))


def test_closing_whole_periods_and_stillness():
    spectrum = random_spectrum()
    for phase in (1.0, 3.0):
        assert is_whole_periods(phase) and torch.equal(closed(spectrum, phase), without_drift(spectrum))
    assert not is_whole_periods(149 / 150) and not is_whole_periods(0.00001)
    assert torch.equal(closed(torch.zeros(6, 4, 2, 2), 0.4), torch.zeros(6, 4, 2, 2))
    assert closed(random_spectrum(num_bins=1), 0.4).abs().max() == 0
    assert torch.isfinite(closed(random_spectrum(num_bins=2), 0.4)).all()


def test_closing_takes_each_sample_by_itself():
    samples = torch.stack([random_spectrum(), 5 * random_spectrum().flip(0)])
    together = closed(samples, 0.4)
    torch.testing.assert_close(together, torch.stack([closed(sample, 0.4) for sample in samples]))


def test_a_round_of_a_loop_is_where_the_motion_closes():
    playback = plan_playback(seconds=2, fps=30, loop=True, loop_phase=0.4)
    assert playback.num_frames == 60 and playback.notes == ()
    torch.testing.assert_close(playback.phase, (torch.arange(60).double() + 0.5) / 150)
    twice = plan_playback(seconds=4, fps=30, loop=True, loop_phase=0.4)
    torch.testing.assert_close(twice.phase, playback.phase.repeat(2))
    slower = plan_playback(seconds=2.5, fps=30, loop=True, loop_phase=0.4)
    assert slower.notes == ("loop: 1 round(s) of 2 s in 2.5 s, speed adjusted to 0.800 x",)
    assert float(slower.phase[-1]) < 0.4
    with pytest.raises(ValueError, match="loop_phase"):
        plan_playback(seconds=4, loop=True, loop_phase=0.0)


@pytest.mark.parametrize("loop", ["x", 3, {}, {"phase": "a"}, {"phase": -1.0}, {"phase": math.inf}, {"phase": True}])
def test_what_a_motion_file_says_about_its_loop_is_checked(loop):
    assert loop_phase_of({}) == 1.0 and loop_phase_of({"loop": {"phase": 0.4}}) == 0.4
    with pytest.raises(ValueError, match=r"loop\.phase"):
        loop_phase_of({"loop": loop})


# ------------------------------------------------------------------------------------------ guidance


class Wish:
    """Guidance that wants given latents, whatever the network says."""

    guides_sampling, highest_noise = True, math.inf

    def __init__(self, goal: torch.Tensor, recurrences: int) -> None:
        self.goal, self.recurrences, self.seen = goal, recurrences, []

    def guide(self, vae, clean, noise_ratio, *, last, precision):
        self.seen.append((noise_ratio, last))
        return self.goal


@pytest.mark.parametrize("recurrences", [1, 2])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_follow_the_guidance(sampler, predicts, recurrences):
    goal = torch.randn(1, 4, 4, 2, 2)
    schedule = DDPMScheduler(prediction_type=predicts, clip_sample=False)
    wish = Wish(goal, recurrences)
    result = denoise(
        lambda latents, timestep, condition: torch.zeros_like(latents),
        schedule,
        torch.zeros(1, 1, 2, 2),
        torch.randn(1, 4, 4, 2, 2),
        sampler=sampler,
        steps=10,
        loop=wish,
        generators=[sample_generator(0, 0, 1)],
    )
    torch.testing.assert_close(result, goal, atol=0.02, rtol=0.02)
    assert len(wish.seen) == 10 * recurrences
    ratios = [ratio for ratio, _ in wish.seen]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > 10 > 1 > ratios[-1]
    assert [last for _, last in wish.seen] == [False] * 9 * recurrences + [True] * recurrences


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_predictions_and_clean_latents_belong_together(predicts):
    schedule = DDPMScheduler(prediction_type=predicts)
    clean, noise = torch.randn(2, 1, 4, 4, 3, 3)
    level = NoiseLevel(schedule, torch.tensor(300))
    latents = schedule.add_noise(clean, noise, torch.tensor([300]))
    said = {"epsilon": noise, "v_prediction": schedule.get_velocity(clean, noise, torch.tensor([300]))}
    torch.testing.assert_close(level.clean(latents, said[predicts]), clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(level.prediction(latents, clean), said[predicts], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(level.noise(latents, clean), noise, atol=1e-4, rtol=1e-4)


def test_a_recurrence_is_noised_to_where_it_was():
    """Down to the next level by the predicted noise, back by fresh noise: alpha z0 + sigma eps, eps partly new."""
    schedule = DDPMScheduler(prediction_type="epsilon")
    here, there = NoiseLevel(schedule, torch.tensor(500)), NoiseLevel(schedule, torch.tensor(450))
    clean, noise = torch.randn(2, 1, 4, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    latents = here.alpha * clean + here.sigma * noise
    again = add_noise_again(latents, clean, here, there, [sample_generator(0, 0, 1)])
    left = (again - here.alpha * clean) / here.sigma
    assert float(left.std()) == pytest.approx(1, abs=0.02) and float((left * clean).mean()) == pytest.approx(
        0, abs=0.02
    )
    kept = here.alpha / there.alpha * there.sigma / here.sigma
    assert float((left * noise).mean()) == pytest.approx(kept, abs=0.02) and 0.5 < kept < 0.95


@pytest.mark.parametrize(
    ("options", "fold"),
    [
        ({}, 3),
        ({"method": "gradient"}, 1.8),
        ({"method": "closing"}, None),
    ],
)
def test_guidance_lowers_the_closure_error(checkpoint, options, fold):
    pipeline, loop = MotionPipeline.from_pretrained(checkpoint), LoopGuidance(2 / 3, **options)
    free = pipeline(picture(), steps=4, seed=1)
    guided = pipeline(picture(), steps=4, seed=1, loop=loop)
    if fold is None:  # closing samples freely
        assert torch.equal(free, guided) and not loop.guides_sampling
        return
    before, after = (float(loop_closure_error(without_drift(motion), 2 / 3)) for motion in (free, guided))
    assert after * fold < before


@pytest.mark.parametrize("method", ["gradient", "projection"])
def test_guidance_takes_cast_weights(checkpoint, method):
    """The VAE computes in bfloat16, latents and closure error in float32: the same loop but for rounding."""
    pipeline, options = MotionPipeline.from_pretrained(checkpoint), {"steps": 4, "seed": 1}
    loop = LoopGuidance(2 / 3, method=method)
    free = float(loop_closure_error(without_drift(pipeline(picture(), **options)), 2 / 3))
    pipeline.to(torch.bfloat16)
    guided = pipeline(picture(), loop=loop, **options)
    assert guided.dtype == torch.float32 and float(loop_closure_error(without_drift(guided), 2 / 3)) < free / 2


def test_gradient_takes_no_longer_step_than_to_zero(checkpoint):
    """[GID]'s step for a large u is far too long where noise is high; a small u is honoured where it is not."""
    vae = MotionPipeline.from_pretrained(checkpoint).vae
    latents = 0.5 * torch.randn(1, 4, 4, 8, 12, generator=torch.Generator().manual_seed(2))

    def moved(weight: float, ratio: float) -> torch.Tensor:
        return LoopGuidance(0.4, method="gradient", weight=weight).guide(vae, latents, ratio, last=False) - latents

    bounded = moved(1e9, 100.0)
    torch.testing.assert_close(moved(1e12, 100.0), bounded)
    small = moved(1.0, 1.0)
    torch.testing.assert_close(moved(2.0, 1.0), 2 * small, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(moved(1.0, 2.0), 4 * small, atol=1e-6, rtol=1e-3)
    # along the gradient -small / u, as far as to where the linearised objective is zero
    loss = loop_closure_error(without_drift(vae.decode_spectrum(latents)), 0.4).detach()
    torch.testing.assert_close(bounded, small * loss / small.square().sum(), atol=1e-5, rtol=1e-2)


def test_loops_do_not_depend_on_the_batch(checkpoint):
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    images = torch.cat([picture(1), picture(2)])
    options = {"num_samples": 2, "seed": 7, "steps": 4, "loop": LoopGuidance(0.4, recurrences=2, highest_noise=9.0)}
    together = pipeline(images, **options)
    torch.testing.assert_close(together, pipeline(images, max_batch=1, **options), atol=1e-4, rtol=1e-3)
    assert (together[0, 0] - together[0, 1]).abs().max() > 1e-3
    once = pipeline(images, **{**options, "loop": LoopGuidance(0.4, recurrences=1, highest_noise=9.0)})
    assert (together - once).abs().max() > 1e-3


def test_predicted_loops_close_and_say_so(checkpoint, caplog):
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    with caplog.at_level(logging.INFO, "models.motion_pipeline"):
        motion = pipeline.predict(picture()[0], steps=2, loop=LoopGuidance(0.4))
    assert loop_closure_error(motion.spectrum, 0.4) < 1e-4 and not motion.meta["drift"]
    record = motion.meta["loop"]
    assert record["phase"] == 0.4 and record["method"] == "projection" and "weight" not in record
    assert record["closed_loop_closure_error_px"] < 1e-4 < record["loop_closure_error_px"]
    assert "loop of 2.00 s (projection): closure error " in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "models.motion_pipeline"):
        whole = pipeline.predict(picture()[0], steps=2, loop=LoopGuidance(2.0))
    assert "whole number of periods" in caplog.text and "loop" not in whole.meta
    assert torch.equal(whole.spectrum, pipeline.predict(picture()[0], steps=2).spectrum)


@pytest.mark.parametrize("options", [{"method": "magic"}, {"phase": 0.0}, {"phase": math.inf}, {"weight": -1.0},
                                     {"recurrences": 0}])  # fmt: skip
def test_bad_guidance(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LoopGuidance(**{"phase": 0.4, **options})


@pytest.mark.skipif(not (DEFAULT_CHECKPOINT / "model_index.json").is_file(), reason="no default weights here")
def test_default_weights_loop_fivefold_and_keep_their_motion():
    from data.scenes.scene import make_scene

    pipeline = MotionPipeline.from_pretrained(DEFAULT_CHECKPOINT)
    image = make_scene(2000, kind="flowers", size=(64, 96)).frame(0.0)[None]
    options = {"steps": 10, "seed": 1}
    free = without_drift(pipeline(image, **options)[0, 0])
    for phase in (100 / 150, 180 / 150):
        guided = without_drift(pipeline(image, loop=LoopGuidance(phase), **options)[0, 0])
        assert loop_closure_error(guided, phase) < loop_closure_error(free, phase) / 5
        kept = mean_displacement(closed(guided, phase)).mean() / mean_displacement(free).mean()
        assert 0.8 < kept < 1.2
