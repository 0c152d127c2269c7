"""What the motion models promise, each by a test that fails without it: a picture VQ model trains, figures by hand,
conditions dropped, attention at every level, samples by (seed, sample) alone, and what the table measures."""

from __future__ import annotations

import json
import logging
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo
from conftest import make_checkpoint
from diffusers import DDPMScheduler, VQModel

import evaluate
import train_unet
import train_vae
from data.clips import SampleKey
from data.datasets import MotionDataset
from evaluation.motion import measure as motion_comparison
from models import unet_layers
from models.motion_pipeline import MotionPipeline
from models.sampling import SAMPLERS
from models.unet import FrequencyAttention, FrequencyUNet
from models.vae import MotionVAE
from motion.normalisation import Normalisation
from training.motion_diffusion import CONDITION_DROPOUT, diffusion_loss
from training.motion_vae import reconstruction_metrics

pytestmark = pytest.mark.usefixtures("short_sampling")

CODEBOOK = "quantize.embedding.weight"  # has no gradient: the straight-through estimator goes past it
SHAPE = {"num_bins": 4, "condition_channels": 16, "num_heads": 2}


def small_unet(**options) -> FrequencyUNet:
    torch.manual_seed(0)
    unet = FrequencyUNet(**{**SHAPE, "block_channels": (16, 16), "backbone": "none", **options})
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
    return unet.eval()


def random_condition(unet: FrequencyUNet, batch: int, size: tuple[int, int]) -> torch.Tensor:
    channels = unet.config.condition_channels + unet.config.num_bins * unet.config.latent_channels
    return torch.randn(batch, channels, *size)


# ------------------------------------------------------------------------------------------------ a picture VQ model


def test_a_picture_vq_model_is_trained_measured_and_sampled_with(scene_set, tmp_path, caplog):
    """`train_vae.py --init-vq FOLDER`, `train_unet.py --vae` on it, and a sample of that pipeline."""
    torch.manual_seed(7)  # not the script's
    shape = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "latent_channels": 3, "num_vq_embeddings": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    picture_model = VQModel(**shape, **blocks)
    picture_model.save_pretrained(tmp_path / "ldm" / "vqvae")
    data = ["--data", str(scene_set.folder), "--bins", "4", "--grid", "96x64", "--log-every", "1"]
    flags = [*data, "--crop", "32x32", "--batch-size", "2", "--slices", "2", "--steps", "2", "--warmup-steps", "0"]
    flags += ["--learning-rate", "1e-2", "--init-vq", str(tmp_path / "ldm")]
    with caplog.at_level(logging.INFO):
        assert train_vae.main([*flags, "--out", str(tmp_path / "vae")]) == 0
    assert "step 2, validation: mae_normalised" in caplog.text

    # What was trained and recorded
    vae = MotionVAE.from_pretrained(tmp_path / "vae/vae").float().eval()
    assert (vae.config.kind, vae.downsample_factor, vae.latent_channels) == ("vq", 4, 12)
    after = vae.autoencoder.state_dict()
    moved = {name: float((after[name] - before).abs().max()) for name, before in picture_model.state_dict().items()}
    assert max(moved.values()) < 0.03  # two steps of 0.01 from the picture model's weights
    assert min(moved["encoder.conv_in.weight"], moved["decoder.conv_in.weight"]) > 1e-3 > moved[CODEBOOK]
    lines = [json.loads(line) for line in (tmp_path / "vae/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "mae_normalised" in line] == [0, 2]
    assert [line["kl"] for line in lines if "loss" in line] == [0, 0]
    record = json.loads((tmp_path / "vae/training.json").read_text())["vae"]
    assert record["steps"] == 2 and record["flags"]["init_vq"] == str(tmp_path / "ldm")

    # The same figure, by the same function, of the model that was written (in float16: 1 % for codes that flip)
    validation = MotionDataset([(scene_set, 1.0)], split="test", num_bins=4, size=(64, 96), augment=False)
    figures = reconstruction_metrics(vae, validation)
    assert record["validation_after"].keys() - {"step"} == figures.keys() >= {"mae_normalised", "relative_error_bin_01"}
    assert record["validation_after"]["mae_normalised"] == pytest.approx(figures["mae_normalised"], rel=0.01)
    with torch.no_grad():
        spectra = torch.stack([scene_set.spectrum(row.id, 4)[0] for row in scene_set.rows("train")])
        assert float(vae.encode_spectrum(spectra).square().mean().sqrt()) == pytest.approx(1, abs=0.05)

    # A denoiser over its latents
    flags = [*data, "--vae", str(tmp_path / "vae/vae"), "--cache", str(tmp_path / "latents"), "--backbone", "none"]
    assert train_unet.main([*flags, "--batch-size", "2", "--steps", "2", "--out", str(tmp_path / "unet")]) == 0
    pipeline = MotionPipeline.from_pretrained(tmp_path / "unet/pipeline")
    assert pipeline.unet.config.latent_channels == 12 and pipeline.unet.config.downsample_factor == 4
    spectrum = pipeline(torch.rand(1, 3, 64, 96), num_samples=2, steps=2)
    assert spectrum.shape == (1, 2, 4, 4, 64, 96) and bool(spectrum.isfinite().all())
    assert (spectrum[:, 0] - spectrum[:, 1]).abs().max() > 0


# ------------------------------------------------------------------------------------------------ figures of a VAE


class OffBy(torch.nn.Module):
    """decode(encode(x)) = x + 1/2, but for what bin 0 depends on, where it is off by 100."""

    def __init__(self, scale_px: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.normalisation = Normalisation(torch.tensor(scale_px))
        self.error = torch.full((len(scale_px), 4, 1, 1), 0.5)
        self.error[0, 0::2] = 100.0

    def encode(self, slices: torch.Tensor) -> torch.Tensor:
        return 2 * slices

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / 2 + self.error


class TwoClips:
    """A drift of 8 px to the right, bin 1 of 1 px in the first clip and of 0 in the second, nothing in bin 2."""

    num_bins = 3

    def __len__(self) -> int:
        return 2

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        spectrum = torch.zeros(3, 4, 5, 7)
        spectrum[0, 1] = 8.0
        spectrum[1, 0] = 1.0 - key.item
        spectrum[0, 0] = -spectrum[1, 0]
        return {"spectrum": spectrum}


def test_reconstruction_figures_by_hand():
    """Scales 2, 1, 1 px: the drift is x = sqrt(8 / 2) = 2 and comes back as 2.5, so 2 * 2.5^2 = 12.5 px.

    A component of 0 comes back as s / 4 px, one of 1 px in bin 1 as 1.5^2 = 2.25 px. The errors of |S_k| in px are
    then (4.5, 0.5) in bin 0, (1.25, 0.25, 0.25, 0.25) in bin 1 of the first clip and four times 0.25 of the second.
    """
    figures = reconstruction_metrics(OffBy([2.0, 1.0, 1.0]), TwoClips())
    assert figures.keys() == {"mae_normalised", "relative_error_bin_00", "relative_error_bin_01"}  # bin 2 never moves
    assert figures["mae_normalised"] == pytest.approx(0.5, rel=1e-6)
    assert figures["relative_error_bin_00"] == pytest.approx(math.hypot(4.5, 0.5) / 8, rel=1e-6)
    both = math.hypot(1.25, 0.25, 0.25, 0.25) + math.hypot(0.25, 0.25, 0.25, 0.25)
    assert figures["relative_error_bin_01"] == pytest.approx(both / 1.0, rel=1e-6)
    alone = reconstruction_metrics(OffBy([2.0, 1.0, 1.0]), TwoClips(), limit=1)
    assert alone["relative_error_bin_01"] == pytest.approx(math.hypot(1.25, 0.25, 0.25, 0.25), rel=1e-6)


# ------------------------------------------------------------------------------------------------ dropped conditions


def what_the_network_is_given(seeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what `diffusion_loss` hands to the network for samples of these seeds."""
    given: dict[str, torch.Tensor] = {}

    def network(noisy, timestep, **condition):
        given.update(condition, timestep=timestep)
        return noisy, torch.zeros_like(noisy)

    count = len(seeds)
    batch = {"image": torch.zeros(count, 3, 1, 1), "latents": torch.ones(count, 1, 1, 1, 1)}
    batch |= {"confidence": torch.ones(count, 1, 1, 1), "seed": seeds}
    schedule = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    diffusion_loss(network, batch, schedule=schedule, num_features=1)
    return given


def test_one_condition_in_ten_is_dropped_by_the_samples_own_seed():
    """4000 seeds: the share has a standard deviation of 0.005; noise levels and hidden features know nothing of it."""
    seeds = torch.arange(4000) * 7919
    given = what_the_network_is_given(seeds)
    keep = given["keep"]
    assert CONDITION_DROPOUT == 0.1 and keep.shape == (4000,) and set(keep.tolist()) == {0.0, 1.0}
    assert float(1 - keep.mean()) == pytest.approx(0.1, abs=0.02)
    some = torch.arange(3990, 0, -37)  # in another batch, and another order
    assert torch.equal(what_the_network_is_given(seeds[some])["keep"], keep[some])
    dropped = keep == 0
    assert float(given["timestep"][dropped].float().mean()) == pytest.approx(500, abs=60)
    assert float((given["feature_dropout_mask"][dropped] == 0).float().mean()) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("mode", ["coordinated", "volume"])
def test_a_dropped_condition_leaves_nothing_of_the_picture(mode):
    """In the prediction; the magnitude, which has a loss of its own, still sees it."""
    unet, latents = small_unet(mode=mode), torch.randn(2, 4, 4, 8, 12)
    pictures = torch.rand(2, 2, 3, 64, 96)
    keep, time = torch.tensor([0.0, 1.0]), torch.tensor([500, 500])
    with torch.no_grad():
        (one, log_s), (other, other_log_s) = (
            unet(latents, time, image=image, keep=keep, return_magnitude=True) for image in pictures
        )
    assert torch.equal(one[0], other[0]) and (one[1] - other[1]).abs().max() > 1e-4
    assert all((log_s[n] - other_log_s[n]).abs().max() > 1e-5 for n in (0, 1))


# ------------------------------------------------------------------------------------------------ attention


def levels_of(unet: FrequencyUNet) -> dict[str, torch.nn.Module]:
    ways = {f"{way} {n}": level for way in ("down", "up") for n, level in enumerate(getattr(unet, way))}
    return ways | {"middle": unet.middle}


@pytest.mark.parametrize("layers_per_block", [1, 2])
def test_slices_meet_at_every_level(layers_per_block):
    """All attention is the identity at first; where one level's is not, each slice changes the others through it."""
    unet = small_unet(block_channels=(16, 16, 16), layers_per_block=layers_per_block)
    attentions = [module for module in unet.modules() if isinstance(module, FrequencyAttention)]
    levels = levels_of(unet)
    assert len(levels) == len(attentions) == 7
    torch.manual_seed(1)
    latents, condition = torch.randn(1, 4, 4, 8, 12), random_condition(unet, 1, (8, 12))
    changed, time = latents.clone(), torch.tensor([500])
    changed[:, 0] += 1

    def influence() -> list[float]:
        with torch.no_grad():
            difference = unet(latents, time, condition) - unet(changed, time, condition)
        return difference[0].abs().amax((1, 2, 3)).tolist()

    assert influence()[0] > 1e-3 and influence()[1:] == [0, 0, 0]
    for name, level in levels.items():
        out = level.coordination.attention.to_out[0].weight
        torch.nn.init.normal_(out, std=0.5)
        assert min(influence()[1:]) > 1e-5, name
        torch.nn.init.zeros_(out)
    assert influence()[1:] == [0, 0, 0]


def test_other_devices_take_the_fused_kernel(monkeypatch):
    """On `meta`, which computes nothing, but goes the way of all devices that are not the CPU."""
    attention, calls = small_unet().middle.coordination.attention.to("meta"), []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        unet_layers.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(k["scale"]) or original(*a, **k)
    )
    assert attention(torch.randn(3, 4, 16, device="meta")).shape == (3, 4, 16)
    assert calls == [attention.scale]


# ------------------------------------------------------------------------------------------------ compiled training


def test_compiled_training_has_the_same_losses(scene_set, tmp_path, monkeypatch):
    """`train_unet.py --compile` changes no loss; test_training_compiles_as_one_graph lowers the gradients as well."""
    calls, original = [], torch.compile

    def compile_quickly(function, **options):
        fast = original(function, backend="eager", **options)
        return lambda *arguments, **named: calls.append(1) or fast(*arguments, **named)

    torch._dynamo.reset()  # what other tests compiled counts against a limit
    monkeypatch.setattr(torch, "compile", compile_quickly)
    # Compiled anew for each, and no part of the training.
    monkeypatch.setattr("training.motion_diffusion.write_sample_sheet", lambda *_, **__: None)
    monkeypatch.setattr("training.motion_diffusion.validation_loss", lambda *_, **__: {})
    small_unet(block_channels=(16,)).save_pretrained(tmp_path / "start")
    MotionVAE(block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[0.5] * 4).save_pretrained(tmp_path / "vae")
    flags = ["--data", str(scene_set.folder), "--vae", str(tmp_path / "vae"), "--cache", str(tmp_path / "latents")]
    flags += ["--bins", "4", "--grid", "96x64", "--init", str(tmp_path / "start"), "--batch-size", "2", "--steps", "3"]
    flags += ["--log-every", "1", "--warmup-steps", "0"]
    losses = {}
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        assert train_unet.main([*flags, *more, "--out", str(tmp_path / name)]) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if "loss" in line]
        assert len(calls) == (3 if more else 0)
    assert len(losses["plain"]) == 3
    assert losses["compiled"] == pytest.approx(losses["plain"], abs=1e-4)


# ------------------------------------------------------------------------------------------------ samples


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "displacement"])
def pipeline(request, tmp_path_factory) -> MotionPipeline:
    """With a picture network; with and without a head that says how far each place moves."""
    vae = MotionPipeline.from_pretrained(make_checkpoint(tmp_path_factory.mktemp("samples") / "tiny")).vae
    unet = small_unet(backbone="squeezenet", displacement=request.param)
    return MotionPipeline(vae, unet, DDPMScheduler(prediction_type="v_prediction", clip_sample=False))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guided_samples_depend_on_seed_and_number_alone(pipeline, sampler):
    """Three pictures with two samples each in one guided call, whatever goes into one batch of the network.

    Tolerance: convolutions of another batch size round otherwise.
    """
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    draw = partial(pipeline, seed=5, sampler=sampler, steps=3, guidance=1.5)
    together = draw(images, num_samples=2)
    assert together.shape == (3, 2, 4, 4, 32, 32) and bool(together.isfinite().all())
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * float(together.abs().max())}
    for max_batch in (1, 2, 5):
        torch.testing.assert_close(draw(images, num_samples=2, max_batch=max_batch), together, **tolerance)
    for picture in (0, 2):
        torch.testing.assert_close(draw(images[picture : picture + 1])[0, 0], together[picture, 0], **tolerance)
    torch.testing.assert_close(draw(images.flip(0), num_samples=3)[:, :2].flip(0), together, **tolerance)
    # and all of it matters
    size = float(together.abs().mean())
    others = [together[:, 1] - together[:, 0], together[1:] - together[:-1]]
    others += [draw(images, num_samples=2, **change) - together for change in ({"seed": 6}, {"guidance": 0.0})]
    assert min(float(other.abs().mean()) for other in others) > 0.02 * size


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_says_that_it_measures_motion_before_it_is_calmed(scene_set, tmp_path, monkeypatch):
    """`evaluate.py motion` takes `pipeline(...)`, users get `predict()`: one line of the notes says the difference."""
    folder = make_checkpoint(tmp_path / "storm")
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"motion_scale_px": [50.0] * 4}))
    storm = MotionPipeline.from_pretrained(folder)
    image = torch.rand(3, 64, 96)
    calmed = storm.predict(image, steps=2)
    assert calmed.meta["amplitude_limit_scale"] < 0.5
    measured = motion_comparison.predict(storm, image, steps=2)
    assert torch.equal(measured, storm(image[None], steps=2)[0])

    flags = ["--data", str(scene_set.folder), "--checkpoint", str(folder), "--device", "cpu", "--steps", "2"]
    flags += ["--samples", "1", "--clips", "1", "--nearest", "1", "--out", str(tmp_path / "out")]
    assert evaluate.main(["motion", *flags]) == 0
    said = [line for line in Path(tmp_path / "out/results.md").read_text().splitlines() if "as it is sampled" in line]
    assert len(said) == 1 and "before its amplitude is limited" in said[0]
    model = json.loads((tmp_path / "out/results.json").read_text())
    assert "motion_px" in json.dumps(model)
