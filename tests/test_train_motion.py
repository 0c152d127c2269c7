"""The two motion trainings through their scripts: they learn, resume exactly, share work, and refuse what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import torchrun
from safetensors.torch import load_file

import train_unet
import train_vae
import training.motion_diffusion
from data.clips import ClipSet, SampleKey
from data.scenes.render_set import render_scene_set
from models.image_encoder import squeezenet_features
from models.segmentation import SegmentationModel
from models.unet import UNET_PRESETS, FrequencyUNet
from models.vae import VAE_PRESETS, MotionVAE
from training.latents import LatentDataset, variant_sizes
from training.motion_diffusion import diffusion_loss
from training.motion_stages import denoising_stage, load_unet, make_unet
from training.motion_vae import latent_scale, reconstruction_metrics, vae_loss

pytestmark = pytest.mark.usefixtures("short_sampling")

VAE_FLAGS = "--bins 4 --grid 96x64 --crop 32x32 --batch-size 2 --slices 2 --log-every 1".split()
UNET_FLAGS = "--bins 4 --grid 96x64 --backbone none --batch-size 2 --log-every 1".split()


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def trained_vae(scene_set, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vae") / "run"
    assert train_vae.main(["--data", str(scene_set.folder), "--steps", "10", *VAE_FLAGS, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def unet_flags(scene_set, trained_vae, tmp_path_factory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    return ["--data", str(scene_set.folder), "--vae", str(trained_vae / "vae"), "--cache", str(cache), *UNET_FLAGS]


def test_vae_learns():
    """Sharp-edged discs, which block means blur: the networks must learn to add the edges."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    discs = [((x - 8 - 4 * i).square() + (y - 20 + 3 * i).square() < (6 + i) ** 2).float() for i in range(4)]
    slices = torch.stack(discs)[:, None] * torch.tensor([1.0, -0.5, 0.3, 0.0]).view(1, 4, 1, 1)  # (4, 4, 32, 32)
    batch = {"slices": slices[None], "confidence": torch.ones(1, 1, 32, 32), "seed": torch.tensor([1])}
    model = MotionVAE(**VAE_PRESETS["tiny"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(60):
        figures = vae_loss(model, batch, latent_shape=(4, 4, 4))
        optimizer.zero_grad()
        figures["loss"].backward()
        optimizer.step()
        values.append(figures["l1"].item())
    assert values[-1] < 0.6 * values[0]


def test_vae_of_another_factor(scene_set, tmp_path, capsys):
    flags = ["--data", str(scene_set.folder), "--steps", "1", *VAE_FLAGS]
    assert train_vae.main([*flags, "--factor", "4", "--out", str(tmp_path / "run")]) == 0
    vae = MotionVAE.from_pretrained(tmp_path / "run" / "vae")
    assert vae.downsample_factor == 4 and vae.encode(torch.zeros(1, 4, 64, 96)).shape == (1, 4, 16, 24)
    assert train_vae.main([*flags, "--factor", "3"]) == 2
    assert "--downsample-factor: expected one of 2, 4, 8 for tiny, got 3" in capsys.readouterr().err
    assert train_vae.main([*flags, "--factor", "4", "--init-vq", "x"]) == 2


def test_vae_record_and_precision(trained_vae):
    model = MotionVAE.from_pretrained(trained_vae / "vae")
    assert model.config.scaling_factor != 1.0 and len(model.config.motion_scale_px) == 4
    record = json.loads((trained_vae / "training.json").read_text())["vae"]
    assert record["steps"] == 10 and record["flags"]["seed"] == 0 and record["validation_after"]["mae_normalised"] > 0
    weights = load_file(trained_vae / "vae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_latents_have_unit_deviation(trained_vae, scene_set):
    model = MotionVAE.from_pretrained(trained_vae / "vae").float()
    spectra = [scene_set.spectrum(row.id, 4)[0] for row in scene_set.rows("train")]
    latents = model.encode_spectrum(torch.stack(spectra))
    assert latents.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)


class Counted:
    """Seven items that are never more than asked for."""

    num_bins = 4

    def __init__(self) -> None:
        self.items = []

    def __len__(self) -> int:
        return 7

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        self.items.append(key.item)
        return {"spectrum": torch.ones(4, 4, 32, 32)}


@pytest.mark.parametrize("measure", [latent_scale, reconstruction_metrics])
def test_a_limit_of_items_is_kept(trained_vae, measure):
    model = MotionVAE.from_pretrained(trained_vae / "vae").float()
    for limit, expected in ((4, [0, 2, 4, 6]), (5, [0, 2, 4, 6]), (99, list(range(7)))):
        motions = Counted()
        measure(model, motions, limit=limit)
        assert motions.items == expected


def test_unet_resumes_exactly(unet_flags, tmp_path):
    """Stopped after 3 of 6 steps and resumed: the same losses as undisturbed."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*unet_flags, "--steps", "6", "--sample-every", "4"]
    assert train_unet.main([*flags, "--out", str(whole)]) == 0
    assert train_unet.main([*flags, "--out", str(parts), "--stop-at", "3"]) == 0
    assert train_unet.main([*flags, "--out", str(parts), "--resume", "auto"]) == 0
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6) and len(losses(whole)) == 6
    drawn = sorted(path.name for path in (whole / "samples").glob("*.png"))
    assert drawn == ["samples-0000004.png", "samples-0000006.png"]
    a = load_file(whole / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    b = load_file(parts / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_stopped_and_resumed_equal_one_of_twice_the_batch(unet_flags, tmp_path, monkeypatch):
    """`torchrun --nproc_per_node 2 train_unet.py`, 6 steps; the one process is not interrupted."""
    flags = [*unet_flags, "--steps", "6"]
    flags[flags.index("--batch-size") + 1] = "1"
    one, parts = tmp_path / "one", tmp_path / "parts"
    two = ["train_unet.py", *flags, "--device", "cpu", "--out", parts]
    torchrun(2, *two, "--stop-at", "3", log=tmp_path / "log.txt")
    torchrun(2, *two, "--resume", "auto", log=tmp_path / "log.txt")
    flags[flags.index("--batch-size") + 1] = "2"
    monkeypatch.undo()  # the two processes know nothing of a test's smaller network, nor of its precision
    assert train_unet.main([*flags, "--device", "cpu", "--out", str(one)]) == 0
    assert losses(parts) == pytest.approx(losses(one), abs=1e-5) and len(losses(one)) == 6


def test_stage_two_starts_from_stage_one_and_trains_the_rest_only(unet_flags, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_unet.main([*unet_flags, "--steps", "2", "--stage", "slices", "--out", str(one)]) == 0
    first = one / "pipeline" / "unet"
    flags = [*unet_flags, "--steps", "2", "--stage", "coordination", "--init", str(first), "--out", str(two)]
    assert train_unet.main(flags) == 0
    before = load_file(first / "diffusion_pytorch_model.safetensors")
    after = load_file(two / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("coordination" in name for name in changed)


def test_picture_stage_trains_the_encoder_and_joint_training_goes_on_from_it(unet_flags, tmp_path):
    picture, joint = tmp_path / "picture", tmp_path / "joint"
    assert train_unet.main([*unet_flags, "--steps", "3", "--stage", "picture", "--out", str(picture)]) == 0
    torch.manual_seed(0)
    shape = json.loads((picture / "pipeline" / "unet" / "config.json").read_text())
    start = FrequencyUNet(**{name: value for name, value in shape.items() if not name.startswith("_")}).state_dict()
    trained = load_file(picture / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    changed = {name.split(".")[0] for name in start if not torch.allclose(start[name].half(), trained[name].half())}
    assert changed == {"image_encoder", "magnitude", "wind_embedding"}
    figures = [json.loads(line) for line in (picture / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in figures if "validation_even" in line]
    assert len(validation) == 2 and all("validation_magnitude" in line for line in validation)
    assert not any("validation_loss" in line for line in figures)  # which is another measure, of the other stages
    record = json.loads((picture / "pipeline" / "training.json").read_text())["unet"]
    assert record["validation_after"]["validation_magnitude"] == validation[-1]["validation_magnitude"]
    flags = ["--steps", "1", "--weighting", "min-snr", "--init", str(picture / "pipeline" / "unet")]
    assert train_unet.main([*unet_flags, *flags, "--gradient-checkpointing", "--out", str(joint)]) == 0
    assert "validation_magnitude" in (joint / "metrics.jsonl").read_text()
    second = json.loads((joint / "pipeline" / "training.json").read_text())["unet"]
    assert second["started_from"] == record  # the earlier stage is not forgotten


@pytest.mark.parametrize("mode", ["independent", "volume"])
def test_ablation_modes_train(unet_flags, tmp_path, mode):
    out = tmp_path / mode
    assert train_unet.main([*unet_flags, "--steps", "1", "--mode", mode, "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--bins", "24"], "--bins 24"),
        (["--grid", "100x64"], "--grid 100x64"),
        (["--mode", "independent", "--stage", "coordination"], "--stage"),
        (["--vae", "/nowhere"], "/nowhere"),
        (["--init", "/nowhere"], "/nowhere"),
        (["--device", "cuda:9"], "--device cuda:9"),
        (["--backbone", "squeezenet", "--backbone-weights", "/nowhere.npz"], "/nowhere.npz"),
        (["--init", "x", "--backbone-weights", "/nowhere.npz"], "--backbone-weights: the U-Net of --init"),
        (["--stage", "picture", "--weighting", "min-snr"], "--weighting: --stage image-encoder trains no denoiser"),
        (["--stage", "picture", "--gradient-checkpointing"], "--gradient-checkpointing: --stage image-encoder"),
        (["--stage", "coordination", "--init", "x", "--without", "wind"], "--without: --stage coordination adds no"),
        (["--feature-dropout", "1"], "--feature-dropout 1: hides"),
        (["--data", "/nowhere", "--dry-run"], "/nowhere"),
    ],
)
def test_unet_refuses_in_one_line(unet_flags, capsys, tmp_path, flags, named):
    assert train_unet.main([*unet_flags, *flags, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert named in error and error.startswith("train_unet.py: error:")
    assert not (tmp_path / "run").exists()


def test_vae_refuses_in_one_line(scene_set, capsys, tmp_path):
    data = ["--data", str(scene_set.folder), "--grid", "96x64", "--out", str(tmp_path / "run")]
    for flags, named in [(["--crop", "33x32"], "--crop 33x32"), (["--init-vq", str(tmp_path)], "--init-vq")]:
        assert train_vae.main([*data, *flags]) == 2
        assert named in capsys.readouterr().err
    assert train_vae.main(["--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_paper_vae_makes_one_step():
    torch.manual_seed(0)
    model = MotionVAE(**VAE_PRESETS["paper"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = {"slices": torch.randn(1, 1, 4, 32, 32), "confidence": torch.ones(1, 1, 32, 32), "seed": torch.tensor([1])}
    shape = (model.latent_channels, 32 // model.downsample_factor, 32 // model.downsample_factor)
    first = vae_loss(model, batch, latent_shape=shape)["loss"]
    first.backward()
    optimizer.step()
    assert vae_loss(model, batch, latent_shape=shape)["loss"] < first


def test_paper_unet_makes_one_step():
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    model = FrequencyUNet(**UNET_PRESETS["paper"], downsample_factor=4, num_bins=4)  # the layers of 16, sooner
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batch = {
        "image": torch.rand(1, 3, 32, 32),
        "latents": torch.randn(1, 4, 4, 8, 8),
        "confidence": torch.ones(1, 1, 8, 8),
        "seed": torch.tensor([1]),
    }
    schedule = DDPMScheduler(clip_sample=False)
    options = {"schedule": schedule, "num_features": model.image_encoder.num_features}
    first = diffusion_loss(model, batch, **options)["loss"]
    first.backward()
    optimizer.step()
    with torch.no_grad():
        assert diffusion_loss(model, batch, **options)["loss"] < first


def test_a_changed_set_gets_a_cache_of_its_own(tmp_path, trained_vae):
    """Cached latents of a set that was extended at the same place would train the U-Net on old motion."""
    vae = MotionVAE.from_pretrained(trained_vae / "vae").float()

    def cache_folder(num: int) -> Path:
        clip_set = render_scene_set(tmp_path / "set", num, size=(64, 96), pairs=0)
        return LatentDataset([(clip_set, 1.0)], "train", vae, 4, tmp_path / "cache", sizes=((64, 96),)).folder

    assert cache_folder(3) == cache_folder(3)
    assert cache_folder(4) != cache_folder(3 + 2)


def test_sets_without_test_clips_train(tmp_path, trained_vae, caplog):
    render_scene_set(tmp_path / "few", 3, size=(64, 96), pairs=0)
    data = ["--data", str(tmp_path / "few"), "--steps", "1"]
    assert train_vae.main([*data, *VAE_FLAGS, "--out", str(tmp_path / "vae")]) == 0
    flags = ["--vae", str(trained_vae / "vae"), "--cache", str(tmp_path / "cache"), *UNET_FLAGS]
    assert train_unet.main([*data, *flags, "--out", str(tmp_path / "unet")]) == 0
    assert "no clip of split test" in caplog.text


def test_export_keeps_what_else_lies_in_the_checkpoint(unet_flags, tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "frame_synthesis_softmax").mkdir(parents=True)
    (folder / "frame_synthesis_softmax" / "config.json").write_text("{}")
    (folder / "training.json").write_text('{"frame_synthesis_softmax": {"steps": 3}}')
    flags = [*unet_flags, "--steps", "1", "--export", str(folder)]
    assert train_unet.main([*flags, "--out", str(tmp_path / "run")]) == 0
    record = json.loads((folder / "training.json").read_text())
    assert set(record) == {"frame_synthesis_softmax", "unet", "vae"}
    assert (folder / "frame_synthesis_softmax" / "config.json").is_file()
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_dry_run_renders_and_writes_nothing(tmp_path, monkeypatch, trained_vae):
    monkeypatch.chdir(tmp_path)
    assert train_vae.main(["--dry-run"]) == 0
    assert train_unet.main(["--dry-run", "--vae", str(trained_vae / "vae"), "--bins", "4"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_variants_keep_the_area():
    assert variant_sizes(160, 256) == ((160, 256), (256, 160), (160, 256), (192, 192))


def test_features_are_all_seen_without_augmentation_unless_asked_for(trained_vae, scene_set, tmp_path):
    vae, unet = MotionVAE.from_pretrained(trained_vae / "vae"), FrequencyUNet(num_bins=4, backbone="none")
    options = {"grid": (64, 96), "batch": 2, "seed": 0, "cache": tmp_path, "device": torch.device("cpu")}
    options["segmentation"] = SegmentationModel().eval()
    for augment, given, fraction in ((True, None, 0.3), (False, None, 0.0), (False, 0.2, 0.2)):
        for name in ("joint", "image-encoder"):
            stage = denoising_stage(
                name, unet, vae, None, [(scene_set, 1.0)], augment=augment, feature_dropout=given, **options
            )
            assert stage["loss_function"].keywords["feature_dropout"] == fraction


@pytest.mark.parametrize("pretrained", [False, True])
def test_an_image_network_that_was_never_pretrained_goes_on_training(trained_vae, tmp_path, pretrained):
    torch.save(squeezenet_features().state_dict(), tmp_path / "squeezenet.pth")
    config = {"num_bins": 4, "mode": "coordinated", "prediction_type": "v_prediction", "backbone": "squeezenet"}
    weights = tmp_path / "squeezenet.pth" if pretrained else None
    unet = make_unet(MotionVAE.from_pretrained(trained_vae / "vae"), "tiny", **config, weights=weights)
    unet.save_pretrained(tmp_path / "unet")
    for made in (unet, load_unet(tmp_path / "unet", **config)):
        assert made.config.backbone_frozen == pretrained
        assert all(p.requires_grad != pretrained for p in made.image_encoder.backbone.parameters())
    # one from before this was told had weights
    written = json.loads((tmp_path / "unet/config.json").read_text())
    del written["backbone_frozen"]
    (tmp_path / "unet/config.json").write_text(json.dumps(written))
    old = load_unet(tmp_path / "unet", **config)
    assert not any(p.requires_grad for p in old.image_encoder.backbone.parameters())


def test_dry_run_checks_the_data(unet_flags, scene_set, tmp_path, capsys):
    assert train_unet.main([*unet_flags, "--dry-run"]) == 0
    shutil.copytree(scene_set.folder, tmp_path / "set")
    path = tmp_path / "set" / "statistics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"period_s": 4.0}))
    flags = [*unet_flags[:1], str(path.parent), *unet_flags[2:], "--dry-run"]
    assert "the sets have a period of 4 s, the VAE of 5 s" in mistake(train_unet, flags, capsys)


def mistake(script, flags, capsys) -> str:
    """Run a script that must refuse; return its one line."""
    assert script.main(flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"{script.__name__}.py: error:")
    return error


def test_init_of_another_mode_or_another_model_is_refused(unet_flags, trained_vae, tmp_path, capsys):
    shape = {"num_bins": 4, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2, "backbone": "none"}
    FrequencyUNet(**shape, mode="volume").save_pretrained(tmp_path / "volume")
    out = ["--out", str(tmp_path / "run")]
    error = mistake(train_unet, [*unet_flags, *out, "--init", str(tmp_path / "volume")], capsys)
    assert "its mode is volume, not coordinated" in error
    FrequencyUNet(**shape, wind=True).save_pretrained(tmp_path / "told")
    error = mistake(train_unet, [*unet_flags, *out, "--init", str(tmp_path / "told"), "--without", "wind"], capsys)
    assert "--without wind: the U-Net of init has it already; right: leave it out" in error
    error = mistake(train_unet, [*unet_flags, *out, "--init", str(trained_vae / "vae")], capsys)
    assert "holds 'MotionVAE'; right: a FrequencyUNet folder" in error
    assert not (tmp_path / "run").exists()


def test_resume_of_another_mode_is_refused(unet_flags, tmp_path, capsys):
    """By the flags of the run, and, where those agree, by the weights of the state."""
    run = tmp_path / "run"
    flags = [*unet_flags, "--steps", "2", "--resume", "auto", "--out", str(run)]
    assert train_unet.main([*flags, "--stop-at", "1"]) == 0
    assert "mode (was coordinated, now independent)" in mistake(train_unet, [*flags, "--mode", "independent"], capsys)
    options = json.loads((run / "options.json").read_text())
    options["flags"]["mode"] = "volume"
    (run / "options.json").write_text(json.dumps(options))
    before = losses(run)
    error = mistake(train_unet, [*flags, "--mode", "volume"], capsys)
    assert "step-0000001: does not fit this model" in error and losses(run) == before


def test_a_loss_that_turns_nan_stops_names_the_clip_and_exports_nothing(unet_flags, scene_set, tmp_path, capsys):
    """The state of the step before stays, and its weights are numbers."""
    flags = [*unet_flags, "--steps", "6", "--save-every", "1", "--out", str(tmp_path / "run")]
    original = training.motion_diffusion.diffusion_loss
    calls = []

    def turns_nan(model, batch, **options):
        figures = original(model, batch, **options)
        calls.append(batch["item"].tolist())
        return {"loss": figures["loss"] * float("nan")} if len(calls) == 3 else figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.motion_diffusion, "diffusion_loss", turns_nan)
        error = mistake(train_unet, flags, capsys)
    ids = [row.id for row in scene_set.rows("train")]
    named = {f"{scene_set.folder.name}/{ids[item % len(ids)]}" for item in calls[2]}
    assert "the loss (nan) is not finite at step 3" in error and all(name in error for name in named)
    assert error.endswith("step-0000002") and not (tmp_path / "run/pipeline").exists()
    state = load_file(tmp_path / "run/checkpoints/step-0000002/model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_out_of_device_memory_is_one_line(unet_flags, tmp_path, capsys, monkeypatch):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 10 MiB free")

    monkeypatch.setattr(training.motion_diffusion, "diffusion_loss", exhausted)
    error = mistake(train_unet, [*unet_flags, "--steps", "1", "--out", str(tmp_path / "run")], capsys)
    assert "out of device memory" in error


@pytest.mark.parametrize("script", ["train_vae", "train_unet"])
def test_scripts_skip_bad_clips_and_refuse_other_grids(script, scene_set, unet_flags, tmp_path, capsys, caplog):
    shutil.copytree(scene_set.folder, tmp_path / "bad")
    clip_set = ClipSet(tmp_path / "bad")
    bad = clip_set.rows("train")[2].id
    (clip_set.folder / "spectra" / f"{bad}.npz").write_bytes(b"")
    module, flags = (
        (train_unet, list(unet_flags)) if script == "train_unet" else (train_vae, ["--data", "", *VAE_FLAGS])
    )
    flags[1] = str(clip_set.folder)
    assert module.main([*flags, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    assert f"1 of 8 clips are skipped: clip {bad}" in caplog.text
    flags[flags.index("--grid") + 1] = "256x160"
    assert "--grid 256x160: " in mistake(module, [*flags, "--out", str(tmp_path / "other")], capsys)
    assert not (tmp_path / "other").exists()


def test_a_vae_without_statistics_or_of_another_shape_is_refused(unet_flags, trained_vae, tmp_path, capsys):
    shutil.copytree(trained_vae / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps(config | {"motion_scale_px": None}))
    flags = [*unet_flags, "--out", str(tmp_path / "run")]
    assert "carries no motion statistics" in mistake(train_unet, [*flags, "--vae", str(tmp_path / "vae")], capsys)
    shape = {"num_bins": 4, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2, "backbone": "none"}
    FrequencyUNet(**shape, downsample_factor=4).save_pretrained(tmp_path / "f4")
    assert "factor is 8, the U-Net's 4" in mistake(train_unet, [*flags, "--init", str(tmp_path / "f4")], capsys)


def test_linear_normalisation_travels_in_the_vae(scene_set, tmp_path):
    data = ["--data", str(scene_set.folder), *VAE_FLAGS, "--no-augment"]
    assert train_vae.main([*data, "--steps", "1", "--normalisation", "linear", "--out", str(tmp_path / "run")]) == 0
    vae = MotionVAE.from_pretrained(tmp_path / "run/vae").float()
    spectrum = scene_set.spectrum(scene_set.rows("train")[0].id, 4)[0]
    largest = float(scene_set.normalisation(4).scale.max())
    x = vae.normalisation.normalise(spectrum)
    torch.testing.assert_close(x[1:], spectrum[1:] / largest)
    torch.testing.assert_close(vae.normalisation.denormalise(x), spectrum, atol=1e-4, rtol=0)
