"""Losses of the denoiser: the photograph's own, noise levels and their weights; and savings that change nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.utils.checkpoint import checkpoint

from models import unet_layers as unet_module
from models.sampling import denoise
from models.unet import GAUSSIAN_MEDIAN, LEAST_MAGNITUDE, FrequencyUNet
from training.motion_diffusion import (
    FEATURE_DROPOUT,
    MAGNITUDE_WEIGHT,
    ImageEncoderStage,
    diffusion_loss,
    feature_dropout_mask,
    image_encoder_loss,
    magnitude_error,
    noise_weights,
    validation_loss,
    validation_magnitude,
)

SHAPE = {"num_bins": 3, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2, "backbone": "none"}
FEATURES = SHAPE["condition_channels"]
CONDITION = FEATURES + SHAPE["num_bins"] * 4  # and log s of each channel of the latents


def small_unet(**options) -> FrequencyUNet:
    torch.manual_seed(0)
    unet = FrequencyUNet(**SHAPE | options)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
    return unet


def make_batch(count: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(count, 3, 64, 96, generator=generator),
        "latents": torch.randn(count, 3, 4, 8, 12, generator=generator),
        "confidence": torch.rand(count, 1, 8, 12, generator=generator),
        "seed": torch.arange(count) + 5,
    }


def test_magnitude_error_is_least_at_the_deviation_of_gaussian_latents():
    """By hand: |0.6745 * 2 - 1| = 0.349; and over many latents of deviation 1.7 the best s is 1.7, outliers or not."""
    assert magnitude_error(torch.tensor(2.0).log(), torch.tensor(-1.0)).item() == pytest.approx(0.349)
    latents = 1.7 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    latents[:100] *= 1000
    candidates = torch.linspace(0.5, 3, 251)
    errors = torch.stack([magnitude_error(s.log(), latents).mean() for s in candidates])
    assert float(candidates[errors.argmin()]) == pytest.approx(1.7, rel=0.03)


def test_image_encoder_loss_weighs_by_confidence():
    """Where the flow is not trusted nothing counts; s = 1 elsewhere, against latents of 2: 2 - 0.6745."""
    unet = small_unet()
    torch.nn.init.zeros_(unet.magnitude.weight)
    torch.nn.init.constant_(unet.magnitude.bias, math.log(math.exp(1 - LEAST_MAGNITUDE) - 1))  # softplus gives 0.9
    batch = make_batch(1) | {"latents": torch.full((1, 3, 4, 8, 12), 2.0), "confidence": torch.zeros(1, 1, 8, 12)}
    batch["confidence"][..., :6], batch["latents"][..., 6:] = 1, 9.0
    loss = image_encoder_loss(ImageEncoderStage(unet), batch, num_features=unet.image_encoder.num_features)["loss"]
    assert loss.item() == pytest.approx(2 - 0.6745, rel=1e-4)


def test_picture_stage_trains_the_encoder_alone():
    unet = small_unet()
    unet.set_stage("image-encoder")
    image_encoder_loss(ImageEncoderStage(unet), make_batch(), num_features=unet.image_encoder.num_features)[
        "loss"
    ].backward()
    trained = {name.split(".")[0] for name, p in unet.named_parameters() if p.grad is not None}
    assert trained == {"image_encoder", "magnitude"}


def test_the_magnitude_learns_from_its_own_loss_alone():
    """The denoising loss reaches the encoder's features, not the head whose output is an input of the slices."""
    unet, batch = small_unet(), make_batch()
    prediction = unet(batch["latents"], torch.tensor([500, 500]), image=batch["image"])
    prediction.square().mean().backward()
    assert unet.magnitude.weight.grad.abs().sum() == 0 and unet.image_encoder.pixels.weight.grad.abs().sum() > 0


def test_each_slice_sees_its_own_magnitude():
    unet = small_unet(mode="independent").eval()
    latents, condition = torch.zeros(1, 3, 4, 8, 12), unet.encode_image(make_batch(1)["image"])
    changed = condition.detach().clone()
    changed[:, FEATURES + 4 : FEATURES + 8] += 1  # bin 1
    difference = unet(latents, torch.tensor([500]), changed) - unet(latents, torch.tensor([500]), condition)
    moved = difference.abs().amax((0, 2, 3, 4))
    assert moved[1] > 1e-4 and moved[0] == 0 and moved[2] == 0


def untrained(unet: FrequencyUNet) -> FrequencyUNet:
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    return unet


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_layers_that_say_nothing_leave_the_best_linear_estimate(prediction_type):
    """For data of deviation s and unit noise: E[z | z_t] = a s^2 / (a^2 s^2 + b^2) z_t, whatever is predicted."""
    unet = untrained(small_unet(prediction_type=prediction_type)).eval()
    schedule = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    for step in (5, 400, 995):
        noisy, log_s = torch.randn(1, 3, 4, 8, 12), 1.5 * torch.randn(1, 3, 4, 8, 12) - 0.5
        condition = torch.cat([torch.randn(1, FEATURES, 8, 12), log_s.flatten(1, 2)], dim=1)
        prediction = unet(noisy, torch.tensor([step]), condition)
        remaining = float(schedule.alphas_cumprod[step])
        a, b = remaining**0.5, (1 - remaining) ** 0.5
        clean = a * noisy - b * prediction if prediction_type == "v_prediction" else (noisy - b * prediction) / a
        square = torch.exp(2 * log_s)
        expected = a * square / (remaining * square + 1 - remaining) * noisy
        torch.testing.assert_close(clean, expected, rtol=1e-3, atol=1e-3)


def test_without_a_photograph_the_layers_predict_alone():
    """s = 1: the linear term vanishes and F is the velocity, which is what untrained layers leave at 0."""
    unet = untrained(small_unet()).eval()
    assert unet(torch.randn(1, 3, 4, 8, 12), torch.tensor([300]), torch.zeros(1, CONDITION, 8, 12)).abs().max() == 0


def test_what_is_still_stays_still():
    """20 steps from pure noise with untrained layers: latents come out with the deviations that were expected."""
    unet = untrained(small_unet()).eval()
    log_s = torch.full((1, 3, 4, 32, 48), math.log(0.1))
    log_s[..., 24:] = 0.0
    condition = torch.cat([torch.zeros(1, FEATURES, 32, 48), log_s.flatten(1, 2)], dim=1)
    schedule = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    latents = denoise(unet, schedule, condition, torch.randn(1, 3, 4, 32, 48), steps=20)
    still, moving = float(latents[..., :24].std()), float(latents[..., 24:].std())
    assert still < 0.15 and moving == pytest.approx(1.0, rel=0.1)


def test_samples_have_the_power_that_is_expected():
    """A factor for each position, then one for each bin but 0; where nothing was sampled nothing comes."""
    unet = small_unet()
    log_s = torch.randn(2, 3, 4, 8, 12)
    condition = torch.cat([torch.randn(2, 16, 8, 12), log_s.flatten(1, 2)], dim=1)
    latents = torch.randn(2, 3, 4, 8, 12) * torch.rand(2, 1, 1, 8, 12) * torch.tensor([1.0, 3.0, 0.5]).view(3, 1, 1, 1)
    latents[0, ..., 0, 0] = 0
    scaled = unet.with_expected_power(latents, condition)
    relative = scaled.abs() / log_s.exp()
    of_bins = relative.flatten(2).sort(dim=2).values[..., 96:288].mean(2)  # the middle half of 384 numbers
    torch.testing.assert_close(of_bins[:, 1:], torch.full((2, 2), GAUSSIAN_MEDIAN), rtol=1e-4, atol=0.0)
    assert scaled[0, ..., 0, 0].abs().max() == 0
    ratio = (scaled / latents)[1]  # (3, 4, 8, 12)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ratio[1:] / ratio[0], (ratio[1:] / ratio[0])[..., :1, :1].expand(2, 4, 8, 12))
    of_places = relative[1].clone()
    of_places[1:] *= ratio[:1] / ratio[1:]  # before the bins were scaled
    middle = of_places.flatten(0, 1).sort(dim=0).values[3:9].mean(0)  # 12 numbers at each position
    torch.testing.assert_close(middle, torch.full((8, 12), GAUSSIAN_MEDIAN), rtol=1e-4, atol=0.0)


def test_latents_that_are_known_exactly_stay_as_they_are():
    """The least error of the magnitude is at 0.6745 s = |z|, whatever the signs."""
    unet, latents = small_unet(), torch.randn(2, 3, 4, 8, 12)
    log_s = (latents.abs() / GAUSSIAN_MEDIAN).log()
    assert magnitude_error(log_s, latents).max() < 1e-5
    condition = torch.cat([torch.randn(2, 16, 8, 12), log_s.flatten(1, 2)], dim=1)
    torch.testing.assert_close(unet.with_expected_power(latents, condition), latents, rtol=1e-4, atol=1e-5)


def test_losses_add_up():
    unet, batch = small_unet(), make_batch()
    schedule = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    figures = diffusion_loss(unet, batch, schedule=schedule, num_features=unet.image_encoder.num_features)
    expected = figures["denoising"] + MAGNITUDE_WEIGHT * figures["magnitude"]
    torch.testing.assert_close(figures["loss"], expected)
    assert figures["magnitude"] > 0.1 and figures["denoising"] > 0.1


def test_min_snr_weights_by_hand():
    """At SNR 9 and gamma 5: 5/9 for noise, 5/10 for velocity; at SNR 1/3 (below gamma): 1 and 1/4."""
    for prediction_type, expected in (("epsilon", [5 / 9, 1.0]), ("v_prediction", [0.5, 0.25])):
        schedule = DDPMScheduler(prediction_type=prediction_type)
        schedule.alphas_cumprod = torch.tensor([0.9, 0.25])
        weights = noise_weights(schedule, torch.tensor([0, 1]), "min-snr")
        torch.testing.assert_close(weights, torch.tensor(expected))
        assert noise_weights(schedule, torch.tensor([0, 1]), "none").tolist() == [1, 1]


def test_hidden_features_are_a_function_of_the_sample():
    """Whatever the batch: each sample's own seed draws, about three tenths are hidden, and the mean stays."""
    both = feature_dropout_mask(4000, torch.tensor([7, 8]), torch.device("cpu"))
    alone = feature_dropout_mask(4000, torch.tensor([8]), torch.device("cpu"))
    assert torch.equal(both[1], alone[0]) and not torch.equal(both[0], both[1])
    assert float((both == 0).float().mean()) == pytest.approx(FEATURE_DROPOUT, abs=0.02)
    assert float(both.mean()) == pytest.approx(1.0, abs=0.03)
    assert feature_dropout_mask(4000, torch.tensor([7]), torch.device("cpu"), 0.0).unique().tolist() == [1]


def test_gradient_checkpointing_changes_no_gradient(monkeypatch):
    """By no method of diffusers, of which older versions give the levels no function to call."""
    plain, batch = small_unet(), make_batch()
    saving, calls = copy.deepcopy(plain), []
    monkeypatch.setattr(ModelMixin, "enable_gradient_checkpointing", None)
    monkeypatch.setattr(unet_module, "checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    saving.enable_gradient_checkpointing()
    assert saving.is_gradient_checkpointing and not plain.is_gradient_checkpointing
    gradients = []
    for unet in (plain, saving):
        unet(batch["latents"], torch.tensor([5, 900]), image=batch["image"]).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)
    assert len(calls) == 5  # two levels down, the middle, two up
    saving.enable_gradient_checkpointing(False)
    saving(batch["latents"], torch.tensor([5, 900]), image=batch["image"])
    assert len(calls) == 5 and not saving.is_gradient_checkpointing


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attention_equals_diffusers_own(dtype, tolerance):
    """Plain products on the CPU are the fused kernel of other devices, gradients included; bfloat16 has 8 bits."""
    unet = small_unet()
    ours: Attention = unet.middle.coordination.attention.to(dtype)
    torch.nn.init.normal_(ours.to_out[0].weight, std=0.3)
    theirs = copy.deepcopy(ours)
    theirs.set_processor(AttnProcessor2_0())
    tokens = torch.randn(40, 3, 16).to(dtype)
    results = []
    for attention in (ours, theirs):
        x = tokens.clone().requires_grad_()
        out = attention(x)
        (gradient,) = torch.autograd.grad((out * torch.cos(out.detach())).sum(), x)
        results.append((out, gradient))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance)


def test_unet_compiles_as_one_graph():
    unet, batch = small_unet().eval(), make_batch(1)
    with torch.no_grad():
        condition = unet.encode_image(batch["image"])
        compiled = torch.compile(unet, fullgraph=True, backend="eager")
        arguments = (batch["latents"], torch.tensor([300]), condition)
        torch.testing.assert_close(compiled(*arguments), unet(*arguments))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_compiles_as_one_graph(checkpointing):
    """What the loss calls, forward and backward (aot_eager): the same losses and gradients."""
    plain, batch = small_unet(block_channels=(16,)), make_batch()
    traced = copy.deepcopy(plain)
    if checkpointing:
        traced.enable_gradient_checkpointing()
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    schedule = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    results = []
    for model, unet in ((plain, plain), (compiled, traced)):
        figures = diffusion_loss(model, batch, schedule=schedule, num_features=plain.image_encoder.num_features)
        figures["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in unet.parameters()])
        results.append((figures["loss"].detach(), gradient))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cast", [False, True])
def test_the_expected_magnitude_is_not_rounded(cast):
    """log s has more than bfloat16's 8 bits under autocast and with cast weights, and so has what it scales."""
    unet, image = small_unet().eval(), make_batch(1)["image"]
    noisy = torch.randn(1, 3, 4, 8, 12, generator=torch.Generator().manual_seed(2))
    if cast:
        unet.to(torch.bfloat16)
        image = image.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not cast):
        condition = unet.encode_image(image)
        prediction = untrained(unet)(noisy, torch.tensor([300]), condition)
    assert condition.dtype == prediction.dtype == unet.alphas_cumprod.dtype == torch.float32
    log_s = condition[:, FEATURES:]
    assert (log_s != log_s.bfloat16().float()).float().mean() > 0.9
    linear = unet._preconditioning(log_s.unflatten(1, (3, 4)), torch.tensor([300]))[0]
    torch.testing.assert_close(prediction, linear * noisy)


def test_noise_levels_move_with_the_weights():
    unet = small_unet().to("meta", torch.bfloat16)
    assert unet.alphas_cumprod.device.type == "meta" and unet.alphas_cumprod.dtype == torch.float32


class OneClip:
    """A held-out set of one item."""

    count = 1

    def __getitem__(self, key) -> dict[str, torch.Tensor]:
        return {name: tensor[0] for name, tensor in make_batch(1).items() if name != "seed"}


def test_validation_figures_are_of_as_many_clips_as_asked_for():
    seen = []

    class Seven(OneClip):
        count = 7

        def __getitem__(self, key) -> dict[str, torch.Tensor]:
            seen.append(key.item)
            return super().__getitem__(key)

    validation_magnitude(ImageEncoderStage(small_unet()), Seven(), limit=4)
    assert seen == [0, 2, 4, 6]


def test_validation_figures_by_level_and_by_bin_have_one_mean():
    """And a bin that is predicted worse shows: its latents are ten times the others'."""
    dataset = OneClip()
    loud = dataset[None]
    loud["latents"][2] *= 10
    dataset.__class__ = type("Loud", (OneClip,), {"__getitem__": lambda self, key: loud})
    schedule = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    figures = validation_loss(small_unet(), dataset, schedule=schedule)
    levels = [value for name, value in figures.items() if "_level_" in name]
    bins = [value for name, value in figures.items() if "_bin_" in name]
    assert len(levels) == 5 and len(bins) == 3 and bins[2] > 10 * max(bins[:2])
    assert sum(levels) / 5 == pytest.approx(figures["validation_loss"]) == pytest.approx(sum(bins) / 3)
    assert figures["validation_magnitude"] > 1
