"""The motion VAE, the U-Net and their pipeline: shapes, exactness, independence of batch and order."""

from __future__ import annotations

import logging

import huggingface_hub
import pytest
import torch
from conftest import SHARED, make_checkpoint
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, VQModel

from models import motion_pipeline
from models.image_encoder import load_squeezenet_features, squeezenet_features
from models.motion_pipeline import MotionPipeline, check_components, choose_max_batch
from models.sampling import SAMPLERS, denoise, make_sampler, start_noise
from models.unet import UNET_PRESETS, FrequencyUNet
from models.vae import VAE_PRESETS, MotionVAE
from motion.normalisation import Normalisation
from motion.strength import LEAST_LIMIT_PX, strain, wind_of


def small_unet(**options) -> FrequencyUNet:
    torch.manual_seed(0)
    shape = {"num_bins": 4, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2, "backbone": "none"}
    unet = FrequencyUNet(**{**shape, **options})
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
    return unet


def condition_channels(unet: FrequencyUNet) -> int:
    """Features of the photograph, and log s of each number of the latents."""
    return unet.config.condition_channels + unet.config.num_bins * unet.config.latent_channels


def picture(seed: int = 0, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("patch", [1, 2])
def test_vae_shapes_and_factor(patch):
    vae = MotionVAE(patch=patch, block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[1.0] * 4)
    assert vae.downsample_factor == 4 * patch
    latents = vae.encode(torch.randn(3, 4, 32, 64))
    assert latents.shape == (3, 4, 32 // vae.downsample_factor, 64 // vae.downsample_factor)
    assert vae.decode(latents).shape == (3, 4, 32, 64)
    output, divergence = vae(torch.randn(3, 4, 32, 64), torch.randn_like(latents))
    assert output.shape == (3, 4, 32, 64) and divergence.ndim == 0


def test_untrained_vae_already_carries_smooth_motion():
    """The linear path: block means, enlarged bilinearly; a constant comes back exactly, amplitude included."""
    vae = MotionVAE(block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[1.0] * 4).eval()
    constant = torch.tensor([0.5, -3.0, 0.01, 7.0]).view(1, 4, 1, 1).expand(1, 4, 32, 48)
    torch.testing.assert_close(vae.encode(constant), constant[..., :4, :6])
    torch.testing.assert_close(vae.decode(vae.encode(constant)), constant)


def test_vae_latent_scale_cancels():
    vae = MotionVAE(block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[1.0] * 4).eval()
    slices = torch.randn(2, 4, 32, 32)
    plain, decoded = vae.encode(slices), vae.decode(vae.encode(slices))
    vae.register_to_config(scaling_factor=3.0)
    torch.testing.assert_close(vae.encode(slices), 3 * plain)
    torch.testing.assert_close(vae.decode(vae.encode(slices)), decoded, atol=1e-5, rtol=1e-5)


def test_spectrum_goes_through_the_statistics():
    vae = MotionVAE(block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[4.0, 2.0, 1.0]).eval()
    spectrum = torch.randn(1, 2, 4, 32, 32)
    x = Normalisation(torch.tensor([4.0, 2.0])).normalise(spectrum)
    torch.testing.assert_close(vae.encode_spectrum(spectrum)[0], vae.encode(x[0]))
    decoded = vae.decode_spectrum(vae.encode_spectrum(spectrum))
    torch.testing.assert_close(decoded[:, 0, 0::2], -decoded[:, 1:, 0::2].sum(1))
    with pytest.raises(ValueError, match="no motion statistics"):
        MotionVAE(block_channels=(8, 8, 8), norm_groups=4).encode_spectrum(spectrum)


def test_picture_vq_model_is_wrapped_from_a_local_folder(tmp_path):
    torch.manual_seed(0)
    vq = VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=16,
    )
    vq.save_pretrained(tmp_path / "ldm" / "vqvae")
    vae = MotionVAE.from_image_vq(tmp_path / "ldm", motion_scale_px=[1.0]).eval()
    assert vae.downsample_factor == 4 and vae.latent_channels == 12
    slices = torch.rand(2, 4, 32, 16)
    latents = vae.encode(slices)
    assert latents.shape == (2, 12, 8, 4)
    grey = slices[1, 2].expand(1, 3, 32, 16)
    torch.testing.assert_close(latents[1, 6:9], vq.eval().encode(grey).latents[0])
    assert vae.decode(latents).shape == slices.shape
    output, divergence = vae(slices)
    assert output.shape == slices.shape and divergence == 0
    vae.save_pretrained(tmp_path / "wrapped")
    again = MotionVAE.from_pretrained(tmp_path / "wrapped").eval()
    torch.testing.assert_close(again.encode(slices), latents)


def test_a_download_is_announced_and_a_local_folder_is_not(tmp_path, monkeypatch, caplog):
    class Stop(Exception):
        pass

    def no_network(source, subfolder=None):
        raise Stop

    monkeypatch.setattr(VQModel, "from_pretrained", no_network)
    caplog.set_level(logging.INFO, logger="models.vae")
    with pytest.raises(Stop):
        MotionVAE.from_image_vq(tmp_path)
    assert caplog.text == ""
    with pytest.raises(Stop):
        MotionVAE.from_image_vq("CompVis/ldm-celebahq-256")
    assert "downloading CompVis/ldm-celebahq-256, subfolder vqvae from https://" in caplog.text
    assert huggingface_hub.constants.HF_HUB_CACHE in caplog.text


def test_unet_starts_with_coordination_as_the_identity():
    coordinated, independent = small_unet(), small_unet(mode="independent")
    independent.load_state_dict(coordinated.state_dict(), strict=False)
    latents, condition = torch.randn(2, 4, 4, 8, 12), torch.randn(2, condition_channels(coordinated), 8, 12)
    time = torch.tensor([10, 900])
    torch.testing.assert_close(coordinated(latents, time, condition), independent(latents, time, condition))


def slice_influence(unet: FrequencyUNet) -> float:
    """How much slice 3's output changes when slice 0's input does."""
    for p in unet.coordination_parameters():
        torch.nn.init.normal_(p, std=0.2)
    latents, condition = torch.randn(1, 4, 4, 8, 12), torch.randn(1, condition_channels(unet), 8, 12)
    changed = latents.clone()
    changed[:, 0] += 1
    time = torch.tensor([500])
    return (unet(latents, time, condition) - unet(changed, time, condition))[:, 3].abs().max().item()


def test_slices_meet_in_coordinated_and_volume_mode_only():
    assert slice_influence(small_unet()) > 1e-5
    assert slice_influence(small_unet(mode="volume")) > 1e-5
    assert slice_influence(small_unet(mode="independent")) == 0


def test_unet_knows_frequency_time_and_picture():
    unet = small_unet()
    latents, condition = torch.zeros(1, 4, 4, 8, 12), unet.encode_image(picture())
    output = unet(latents, torch.tensor([500]), condition)
    assert (output[:, 0] - output[:, 3]).abs().max() > 1e-4  # same input, another bin
    assert (output - unet(latents, torch.tensor([10]), condition)).abs().max() > 1e-4
    assert (output - unet(latents, torch.tensor([500]), torch.zeros_like(condition))).abs().max() > 1e-4
    torch.testing.assert_close(output, unet(latents, torch.tensor([500]), image=picture()))
    dropped = unet(latents, torch.tensor([500]), image=picture(), keep=torch.zeros(1))
    torch.testing.assert_close(dropped, unet(latents, torch.tensor([500]), torch.zeros_like(condition)))


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (6, 6), (3, 11)])
def test_unet_takes_any_grid(size):
    unet, latents = small_unet(), torch.randn(1, 4, 4, *size)
    condition = torch.randn(1, condition_channels(unet), *size)
    assert unet(latents, torch.tensor([5]), condition).shape == latents.shape


def test_stages_choose_what_trains():
    unet = small_unet()
    coordination = {id(p) for p in unet.coordination_parameters()}
    unet.set_stage("coordination")
    assert {id(p) for p in unet.parameters() if p.requires_grad} == coordination
    unet.set_stage("slices")
    assert not any(p.requires_grad for p in unet.coordination_parameters())
    unet.set_stage("joint")
    assert all(p.requires_grad for p in unet.parameters())
    with pytest.raises(ValueError, match="coordination"):
        small_unet(mode="independent").set_stage("coordination")


def test_frozen_backbone_stays_frozen():
    unet = small_unet(backbone="squeezenet")
    unet.image_encoder.freeze_backbone()
    unet.set_stage("joint")
    assert not any(p.requires_grad for p in unet.image_encoder.backbone.parameters())
    assert unet.conv_in.weight.requires_grad


def test_backbone_weights_from_either_convention(tmp_path):
    """The same network from torchvision's and from Caffe's input convention gives the same features."""
    import numpy as np

    torch.manual_seed(0)
    state = {f"features.{k}": v for k, v in squeezenet_features().state_dict().items()}
    torch.save(state, tmp_path / "torch.pth")
    image = torch.rand(1, 3, 64, 64)
    net = squeezenet_features()
    net.load_state_dict(load_squeezenet_features(tmp_path / "torch.pth"))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    plain = squeezenet_features()
    plain.load_state_dict({k.removeprefix("features."): v for k, v in state.items()})
    expected = plain((image - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(net(image), expected, atol=1e-4, rtol=1e-4)

    names = {k: k.replace("squeeze.", "squeeze1x1.") for k in state}
    np.savez(tmp_path / "caffe.npz", **{names[k]: v.numpy() for k, v in state.items()})
    net.load_state_dict(load_squeezenet_features(tmp_path / "caffe.npz"))
    caffe_mean = torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    expected = plain(255 * image.flip(1) - caffe_mean)
    torch.testing.assert_close(net(image), expected, atol=1e-2, rtol=1e-3)
    with pytest.raises(ValueError, match="another network: 0.weight"):
        torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
        load_squeezenet_features(tmp_path / "other.pth")


@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="../shared/weights is not here")
def test_shared_squeezenet_weights_load():
    net = squeezenet_features()
    net.load_state_dict(load_squeezenet_features(SHARED / "weights" / "squeezenet1_1_features.npz"))
    assert torch.isfinite(net(picture())).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_reach_the_known_answer(sampler):
    """A network that always answers as if the clean latents were c must end at c."""
    goal = torch.randn(1, 4, 4, 2, 2)
    schedule = DDPMScheduler(prediction_type="sample", clip_sample=False)
    unet = lambda latents, timestep, condition: goal.expand_as(latents)  # noqa: E731
    result = denoise(unet, schedule, torch.zeros(1, 1, 2, 2), torch.randn(1, 4, 4, 2, 2), sampler=sampler, steps=10)
    torch.testing.assert_close(result, goal, atol=0.02, rtol=0.02)


def test_guidance_is_the_stated_combination():
    schedule = DDPMScheduler(prediction_type="sample", clip_sample=False)

    def unet(latents, timestep, condition):
        return condition.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1, 1).expand_as(latents)

    condition, noise = torch.full((1, 1, 2, 2), 3.0), torch.randn(1, 4, 4, 2, 2)
    result = denoise(unet, schedule, condition, noise, steps=8, guidance=0.5)
    torch.testing.assert_close(result.mean(), torch.tensor(1.5 * 3.0), atol=0.05, rtol=0)


def test_same_seed_same_motion_on_any_batch(checkpoint):
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    images = torch.cat([picture(1), picture(2)])
    together = pipeline(images, num_samples=2, seed=7, steps=4, guidance=1.0)
    assert together.shape == (2, 2, 4, 4, 64, 96)
    one_by_one = pipeline(images, num_samples=2, seed=7, steps=4, guidance=1.0, max_batch=1)
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-4)
    alone = pipeline(images[1:], num_samples=1, seed=7, steps=4, guidance=1.0)
    torch.testing.assert_close(alone[0, 0], together[1, 0], atol=1e-5, rtol=1e-4)
    assert (together[0, 0] - together[0, 1]).abs().max() > 1e-3
    other = pipeline(images[1:], num_samples=1, seed=8, steps=4)
    assert (other[0, 0] - alone[0, 0]).abs().max() > 1e-3


def test_batches_are_as_large_as_their_budget_allows(checkpoint, monkeypatch):
    pipeline, sizes = MotionPipeline.from_pretrained(checkpoint), []
    unet, numbers = pipeline.unet, 4 * 8 * 12 * 16  # K h w and the first level's width
    budget_mb = 2.5 * numbers * motion_pipeline.BYTES_A_NUMBER / 1e6
    monkeypatch.setattr(motion_pipeline, "CPU_BATCH_MB", 2 * budget_mb)
    assert choose_max_batch(unet, (8, 12), guided=True) == 2
    monkeypatch.setattr(motion_pipeline, "CPU_BATCH_MB", budget_mb)
    assert choose_max_batch(unet, (8, 12), guided=False) == 2
    assert choose_max_batch(unet, (8, 24), guided=False) == 1
    assert choose_max_batch(unet, (800, 1200), guided=True) == 1
    assert choose_max_batch(small_unet(mode="volume"), (8, 12), guided=False) == 10

    original = motion_pipeline.denoise
    monkeypatch.setattr(motion_pipeline, "denoise", lambda *a, **k: sizes.append(len(a[3])) or original(*a, **k))
    images = torch.cat([picture(n, (64, 96)) for n in range(3)])
    found = pipeline(images, num_samples=2, steps=2, guidance=0.0)
    assert sizes == [2, 2, 2]
    del sizes[:]
    torch.testing.assert_close(pipeline(images, num_samples=2, steps=2, guidance=0.0, max_batch=5), found)
    assert sizes == [5, 1]
    with pytest.raises(ValueError, match="max_batch: expected at least 1, got 0"):
        pipeline(images, max_batch=0)


@pytest.mark.parametrize("cast", [False, True])
def test_half_precision_is_close_and_the_sampler_stays_in_float32(checkpoint, monkeypatch, cast):
    """bf16 has 8 bits: a network call is off by 0.4 %, 8 guided steps and the squared amplitude by a few."""
    expected = MotionPipeline.from_pretrained(checkpoint)(picture(), seed=3, steps=8)
    dtypes, original = [], DPMSolverMultistepScheduler.step

    def step(self, model_output, timestep, sample, **options):
        dtypes.extend([model_output.dtype, sample.dtype])
        return original(self, model_output, timestep, sample, **options)

    monkeypatch.setattr(DPMSolverMultistepScheduler, "step", step)
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    seen = []
    for layer in (pipeline.unet.conv_in, pipeline.vae.autoencoder.decoder.conv_in):
        layer.register_forward_hook(lambda module, inputs, output: seen.append((module, output.dtype)))
    if cast:
        pipeline.to(torch.bfloat16)
    found = pipeline(picture(), seed=3, steps=8, precision="no" if cast else "bf16")
    assert set(dtypes) == {torch.float32} and len(set(seen)) == 2 and {dtype for _, dtype in seen} == {torch.bfloat16}
    assert found.dtype == torch.float32
    error = (found - expected).abs().mean() / expected.abs().mean()
    assert 1e-5 < error < 0.03
    with pytest.raises(ValueError, match="precision: expected one of no, bf16, fp16"):
        pipeline(picture(), precision="int8")


def test_default_sampler_reaches_where_many_steps_do():
    """A network that knows the answer to Gaussian latents of unit deviation: each default ends within 2 %."""
    schedule = DDPMScheduler(prediction_type="epsilon", clip_sample=False)

    def unet(latents, timestep, condition):
        sigma = float(1 - schedule.alphas_cumprod[int(timestep[0])]) ** 0.5
        return sigma * latents  # E[eps | z]

    noise = torch.randn(1, 4, 4, 8, 8)
    for sampler, steps in (("dpm", 20), ("unipc", 20), ("ddim", 250)):
        result = denoise(unet, schedule, torch.zeros(1, 1, 8, 8), noise, sampler=sampler, steps=steps)
        assert float(result.std() / noise.std()) == pytest.approx(1.0, rel=0.02), sampler
    options = make_sampler(schedule, "dpm").config
    assert (options.solver_order, options.final_sigmas_type, options.timestep_spacing) == (2, "zero", "leading")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_seed_same_motion_across_devices(checkpoint):
    """Tolerance: float32 convolutions may run in another order, and 8 sampler steps carry the rounding on."""
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    on_cpu = pipeline(picture(), seed=3, steps=8)
    on_gpu = pipeline.to("cuda")(picture(), seed=3, steps=8)
    assert (on_cpu - on_gpu).abs().max() < 1e-2 * on_cpu.abs().max()


def test_strong_motion_is_limited(checkpoint, monkeypatch):
    """A motion that would tear the image is scaled as a whole; a stronger one stays the stronger one."""
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    sampled = torch.randn(1, 1, 4, 4, 160, 256)
    monkeypatch.setattr(MotionPipeline, "__call__", lambda self, images, **options: sampled * strength)
    found = []
    for strength in (0.01, 1.0, 10.0):
        motion = pipeline.predict(torch.rand(3, 160, 256))
        scale = motion.meta["amplitude_limit_scale"]
        torch.testing.assert_close(motion.spectrum, sampled[0, 0] * strength * scale)
        assert wind_of(motion.spectrum) <= LEAST_LIMIT_PX
        found.append(strain(motion.spectrum))
    assert found == sorted(found) and found[0] == pytest.approx(strain(sampled[0, 0] * 0.01), rel=0.02)


def test_global_randomness_is_left_alone(checkpoint):
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pipeline(picture(), steps=2)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(start_noise((4,), 0, 0), start_noise((4,), 0, 1))
    assert not torch.equal(start_noise((4,), 0, 1), start_noise((4,), 1, 0))


def test_predict_keeps_aspect(checkpoint):
    pipeline = MotionPipeline.from_pretrained(checkpoint)
    motion = pipeline.predict(picture(size=(90, 60))[0], steps=2, seed=1)
    assert motion.spectrum.shape == (4, 4, 256, 160) and motion.image_size == (90, 60)
    assert motion.meta["seed"] == 1 and motion.period_s == 5.0
    with pytest.raises(ValueError, match="multiples of 32"):
        pipeline(picture(size=(90, 60)))


def test_configurations_with_earlier_names_are_read():
    config = dict(small_unet(downsample_factor=4).config)
    config["factor"], config["picture_vae"] = config.pop("downsample_factor"), config.pop("image_vae")
    unet = FrequencyUNet.from_config(config)
    assert unet.config.downsample_factor == unet.image_encoder.downsample_factor == 4 and unet.config.image_vae is None


def test_parts_of_other_shapes_are_refused(tmp_path):
    pipeline = MotionPipeline.from_pretrained(make_checkpoint(tmp_path / "a"))
    with pytest.raises(ValueError, match="factor"):
        check_components(pipeline.vae, small_unet(downsample_factor=4), pipeline.scheduler)


def test_default_sizes_stay_small():
    unet = FrequencyUNet(**UNET_PRESETS["small"])
    vae = MotionVAE(**VAE_PRESETS["small"])
    assert sum(p.numel() for p in unet.parameters()) <= 8e6
    assert sum(p.numel() for p in vae.parameters()) <= 2e6


def test_correlated_start_noise_is_shared_by_neighbours():
    shape = (16, 4, 20, 32)
    white = start_noise(shape, 3, 1)
    assert torch.equal(start_noise(shape, 3, 1, 0.0), white)
    near = []
    for correlated in (0.0, 0.2, 0.8):
        noise = start_noise(shape, 3, 1, correlated)
        assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
        near.append(float((noise[..., 2:] * noise[..., :-2]).mean()))
    assert near[0] == pytest.approx(0.0, abs=0.03) and near[1] > 0.1 and near[2] > 0.5
    assert float((noise[0] * noise[1]).mean()) == pytest.approx(0.0, abs=0.15)  # nothing is shared between bins
