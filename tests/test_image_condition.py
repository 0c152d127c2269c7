"""The photograph's VAE latents as the U-Net's condition (`--backbone vae`): encoded, trained with, saved, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

import train_unet
from benchmarks import motion as motion_benchmark
from models.checkpoints import CheckpointError
from models.image_encoder import ImageEncoder
from models.motion_pipeline import MotionPipeline
from models.unet import FrequencyUNet
from models.vae import MotionVAE

pytestmark = pytest.mark.usefixtures("short_sampling")

ENCODER = "image_encoder.backbone."
KINDS = [("kl", 4), ("kl", 8), ("vq", 4), ("vq", 8)]


def a_vae(kind: str, factor: int, scale_px: float = 0.5) -> MotionVAE:
    """An untrained VAE of K = 4 whose every layer does something; "vq" is CelebA's in small, its attention included."""
    torch.manual_seed(0)
    statistics = {"motion_scale_px": [scale_px] * 4}
    if kind == "kl":
        vae = MotionVAE(block_channels=(8,) * (factor.bit_length() - 1), norm_groups=4, **statistics)
        torch.nn.init.normal_(vae.autoencoder.quant_conv.weight, std=0.3)
    else:
        levels = factor.bit_length()
        shape = {"block_out_channels": (8,) * levels, "norm_num_groups": 4, "latent_channels": 3}
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
        vae = MotionVAE(kind="vq", vq_config=shape | blocks | {"num_vq_embeddings": 16}, **statistics)
    return vae.eval()


def a_unet(vae: MotionVAE, **options) -> FrequencyUNet:
    shape = {"num_bins": 4, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2}
    fits = {"latent_channels": vae.latent_channels, "downsample_factor": vae.downsample_factor}
    unet = FrequencyUNet(**shape, **fits, backbone="vae", image_vae=vae.encoder_config, **options)
    unet.image_encoder.copy_encoder(vae)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
    return unet.eval()


def a_pipeline(kind: str, factor: int) -> MotionPipeline:
    vae = a_vae(kind, factor)
    return MotionPipeline(vae, a_unet(vae), DDPMScheduler(prediction_type="v_prediction", clip_sample=False))


def picture(size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))


def encoder_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The copied encoder in a saved U-Net."""
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    return {name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)}


@pytest.mark.parametrize(("kind", "factor"), KINDS)
def test_a_photograph_is_encoded_at_latent_resolution(kind, factor):
    vae, image = a_vae(kind, factor), picture()
    assert vae.downsample_factor == factor
    latents = vae.encode_image(image)
    assert latents.shape == (1, 4 if kind == "kl" else 3, 64 // factor, 96 // factor)
    signed = 2 * image - 1
    if kind == "kl":
        expected = vae.encode(torch.cat([signed, signed.mean(1, keepdim=True)], dim=1))
    else:
        expected = vae.autoencoder.encode(signed).latents
    torch.testing.assert_close(latents, expected)
    # What is scaled is motion: the photograph is told alike whatever its deviation is.
    vae.register_to_config(scaling_factor=3.0)
    torch.testing.assert_close(vae.encode_image(image), latents)


def test_colours_arrive_as_the_maps_of_a_slice_by_hand():
    """Block means of an untrained "kl": red 1 is 1, green 0 is -1, blue 0.5 is 0, and their mean 0."""
    vae = MotionVAE(block_channels=(8, 8), norm_groups=4)
    image = torch.tensor([1.0, 0.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    expected = torch.tensor([1.0, -1.0, 0.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    torch.testing.assert_close(vae.encode_image(image), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "factor"), KINDS)
def test_features_come_from_pixels_and_latents(kind, factor):
    vae = a_vae(kind, factor)
    encoder = ImageEncoder(16, factor, "vae", vae.encoder_config)
    encoder.copy_encoder(vae)
    image = picture()
    features = encoder(image)
    assert features.shape == (1, 16, 64 // factor, 96 // factor) and encoder.num_features == 32
    for hidden in (range(16), range(16, 32)):  # pixels, latents
        gain = torch.ones(1, 32)
        gain[:, hidden] = 0
        assert (encoder(image, gain) - features).abs().max() > 1e-3
    assert not any(name.startswith(("decoder", "post_quant", "quantize")) for name in encoder.backbone.state_dict())


@pytest.mark.parametrize(("kind", "factor"), KINDS)
def test_saved_pipelines_sample_the_same(kind, factor, tmp_path):
    """The folder alone holds what encodes the photograph; diffusers' own loader reads it as well."""
    pipeline = a_pipeline(kind, factor)
    pipeline.save_pretrained(tmp_path)
    options = {"steps": 2, "seed": 5, "num_samples": 2, "guidance": 1.0}
    expected = pipeline(picture(), **options)
    assert expected.shape == (1, 2, 4, 4, 64, 96)
    for again in (MotionPipeline.from_pretrained(tmp_path), MotionPipeline.from_pretrained(tmp_path)):
        assert torch.equal(again.unet.encode_image(picture()), pipeline.unet.encode_image(picture()))
        assert torch.equal(again(picture(), **options), expected)
        assert not any(p.requires_grad for p in again.unet.image_encoder.backbone.parameters())
    # A copy: the VAE that decodes motion is another one.
    torch.nn.init.zeros_(pipeline.unet.image_encoder.backbone.autoencoder.encoder.conv_in.weight)
    assert (pipeline(picture(), **options) - expected).abs().max() > 1e-3
    torch.testing.assert_close(pipeline.vae.state_dict(), MotionPipeline.from_pretrained(tmp_path).vae.state_dict())
    config = json.loads((tmp_path / "unet/config.json").read_text())["image_vae"]
    assert config["kind"] == kind and "motion_scale_px" not in config and "scaling_factor" not in config


def test_weights_may_be_cast_and_chains_be_compared():
    pipeline = a_pipeline("vq", 8)
    expected = pipeline.encode_images(picture())[0]
    single = motion_benchmark.one_frequency(pipeline.unet)
    assert torch.equal(single.image_encoder(picture()), pipeline.unet.image_encoder(picture()))
    by_autocast = pipeline.encode_images(picture(), "bf16")[0]
    for found in (by_autocast, pipeline.to(torch.bfloat16).encode_images(picture())[0]):
        assert found.dtype == torch.float32
        assert 1e-5 < (found - expected).abs().mean() / expected.abs().mean() < 0.03
    assert torch.isfinite(pipeline(picture(), steps=2)).all()


def test_the_condition_compiles_as_one_graph():
    unet = a_unet(a_vae("vq", 4))
    compiled = torch.compile(unet.image_encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(picture()), unet.image_encoder(picture()))


@pytest.mark.parametrize("stage", train_unet.STAGES)
def test_the_copy_is_frozen_in_every_stage(stage):
    unet = a_unet(a_vae("kl", 8))
    unet.set_stage(stage)
    assert not any(p.requires_grad for p in unet.image_encoder.backbone.parameters())
    assert any(p.requires_grad for p in unet.parameters()) == (stage != "displacement")
    assert all(
        p.requires_grad == (stage in ("joint", "image-encoder", "slices")) for p in unet.image_encoder.taps.parameters()
    )


@pytest.mark.parametrize(("kind", "factor"), [("kl", 8), ("vq", 4)])
def test_training_keeps_the_copy_as_it_was(kind, factor, scene_set, tmp_path):
    """Weight decay and averaging included; --init keeps it beside a VAE of other weights and statistics."""
    vae, other = a_vae(kind, factor), a_vae(kind, factor, scale_px=0.7)
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    vae.save_pretrained(tmp_path / "vae")
    other.save_pretrained(tmp_path / "other")
    flags = ["--data", str(scene_set.folder), "--bins", "4", "--grid", "96x64", "--batch-size", "2", "--steps", "2"]
    flags += ["--weight-decay", "0.1", "--learning-rate", "0.01", "--warmup-steps", "0", "--cache", str(tmp_path / "c")]
    first = [*flags, "--vae", str(tmp_path / "vae"), "--backbone", "vae"]
    assert train_unet.main([*first, "--dry-run"]) == 0
    assert train_unet.main([*first, "--out", str(tmp_path / "first")]) == 0
    unet = tmp_path / "first/pipeline/unet"
    second = [*flags, "--vae", str(tmp_path / "other"), "--init", str(unet), "--out", str(tmp_path / "second")]
    assert train_unet.main(second) == 0

    expected = {name: vae.state_dict()[name].half() for name in encoder_weights(unet)}
    assert any(name.startswith("autoencoder.encoder") for name in expected)
    for folder in (unet, tmp_path / "second/pipeline/unet"):
        found = encoder_weights(folder)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    before, after = (
        load_file(tmp_path / run / "pipeline/unet/diffusion_pytorch_model.safetensors") for run in ("first", "second")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"image_encoder.taps.0.1.weight", "image_encoder.pixels.weight", "magnitude.weight"} <= changed
    spectrum = MotionPipeline.from_pretrained(tmp_path / "second/pipeline")(picture(), steps=2)
    assert torch.isfinite(spectrum).all() and spectrum.abs().max() > 0


def test_flags_that_contradict_each_other_are_refused(scene_set, tmp_path, capsys):
    a_vae("kl", 8).save_pretrained(tmp_path / "vae")
    shape = {"num_bins": 4, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2}
    FrequencyUNet(**shape, backbone="none").save_pretrained(tmp_path / "none")
    FrequencyUNet(**shape).save_pretrained(tmp_path / "squeezenet")
    flags = ["--data", str(scene_set.folder), "--bins", "4", "--grid", "96x64", "--vae", str(tmp_path / "vae")]
    weights = ["--backbone-weights", str(tmp_path / "w.npz")]
    for more, said in (
        (["--backbone", "vae", *weights], "--backbone-weights: --backbone vae takes none"),
        (["--backbone", "none", *weights], "--backbone-weights: --backbone none takes none"),
        (["--backbone", "vae", "--init", str(tmp_path / "none")], "its backbone is none, not vae"),
        (["--backbone", "squeezenet", "--init", str(tmp_path / "none")], "its backbone is none, not squeezenet"),
        (["--backbone", "none", "--init", str(tmp_path / "squeezenet")], "its backbone is squeezenet, not none"),
    ):
        assert train_unet.main([*flags, *more, "--out", str(tmp_path / "run")]) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert error.startswith("train_unet.py: error:") and said in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbone": "vgg"}, "backbone: expected one of squeezenet, vae, none, got 'vgg'"),
        ({"image_vae": None}, "image_vae: expected a VAE's configuration"),
        ({"image_vae": "kl"}, "image_vae: expected a VAE's configuration"),
        ({"image_vae": {"kind": "gan"}}, "image_vae: kind: expected"),
        ({"image_vae": {"kind": "vq"}}, "image_vae: vq_config: expected"),
        ({"image_vae": {"kind": "kl", "depth": 3}}, "image_vae: .*depth"),
        ({"image_vae": {"kind": "kl", "block_channels": []}}, "image_vae: "),
        ({"image_vae": {"kind": "kl", "norm_groups": 0}}, "image_vae: "),
        ({"image_vae": {"kind": "kl", "patch": 1}}, "cannot be loaded"),
        ({"backbone": "none"}, 'image_vae: expected null for backbone "none"'),
        ({"backbone": "none", "image_vae": None}, "cannot be loaded"),
    ],
)
def test_changed_configurations_are_one_line(tmp_path, change, said):
    a_unet(a_vae("kl", 8)).save_pretrained(tmp_path / "unet")
    path = tmp_path / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=said) as caught:
        FrequencyUNet.from_pretrained(tmp_path / "unet")
    assert "\n" not in str(caught.value) and str(tmp_path / "unet") in str(caught.value)


def test_configurations_from_before_the_option_load(tmp_path, checkpoint):
    shutil.copytree(checkpoint / "unet", tmp_path / "unet")
    path = tmp_path / "unet/config.json"
    config = json.loads(path.read_text())
    del config["image_vae"]
    path.write_text(json.dumps(config))
    assert FrequencyUNet.from_pretrained(tmp_path / "unet").config.image_vae is None
