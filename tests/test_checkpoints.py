"""Checkpoint folders that cannot be used: one line that names the folder or file."""

from __future__ import annotations

import json
import shutil

import pytest

from models.checkpoints import CheckpointError
from models.frame_synthesis import FrameSynthesis
from models.motion_pipeline import MotionPipeline


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae",
        "scheduler/scheduler_config.json",
    ],
)
def test_incomplete_checkpoint_is_one_line(checkpoint, tmp_path, missing):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    target = folder / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(CheckpointError, match=missing.split("/")[0]) as caught:
        MotionPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_damaged_checkpoints_are_one_line(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "cut")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        MotionPipeline.from_pretrained(folder)

    folder = shutil.copytree(checkpoint, tmp_path / "other_k")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "motion_scale_px": [0.5] * 3}))
    with pytest.raises(CheckpointError, match="K = 3, the U-Net K = 4"):
        MotionPipeline.from_pretrained(folder)

    folder = shutil.copytree(checkpoint, tmp_path / "text")
    (folder / "vae" / "config.json").write_text("not json")
    with pytest.raises(CheckpointError, match="JSON"):
        MotionPipeline.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        MotionPipeline.from_pretrained(tmp_path / "nowhere")


def changed_config(checkpoint, folder, part: str, change: dict):
    """Copy a checkpoint and change one of its configurations."""
    folder = shutil.copytree(checkpoint, folder)
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return folder


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("scheduler", {"beta_schedule": "wavy"}, "wavy"),
        ("scheduler", {"prediction_type": "sample"}, "'sample'; right: epsilon or v_prediction"),
        ("scheduler", {"prediction_type": "flow"}, "'flow'"),
        ("scheduler", {"num_train_timesteps": "many"}, "no noise schedule"),
        ("scheduler", {"beta_start": "low"}, "no noise schedule"),
        ("scheduler", {"beta_start": -4.0}, "no noise schedule"),
        ("scheduler", {"timestep_spacing": "odd"}, "odd"),
        ("vae", {"motion_scale_px": "0.5"}, "motion_scale_px: expected a list"),
        ("vae", {"motion_scale_px": [0.5, "x"]}, "motion_scale_px: expected a positive number, got 'x'"),
        ("vae", {"motion_scale_px": [0.5, 0.0]}, "motion_scale_px: expected a positive"),
        ("vae", {"scaling_factor": None}, "scaling_factor: expected a positive number"),
        ("vae", {"period_s": "5"}, "period_s: expected a positive number"),
        ("vae", {"block_channels": []}, "cannot be loaded"),
        ("vae", {"norm_groups": 0}, "cannot be loaded"),
        ("vae", {"patch": "two"}, "cannot be loaded"),
        ("unet", {"block_channels": []}, "cannot be loaded"),
        ("unet", {"block_channels": 16}, "cannot be loaded"),
        ("unet", {"num_heads": 0}, "cannot be loaded"),
        ("unet", {"num_bins": "4"}, "num_bins is '4'"),
        ("unet", {"num_bins": -1}, "num_bins is -1"),
        ("unet", {"period_s": 4.0}, "period_s is 5.0, the U-Net's 4.0"),
        ("unet", {"block_channels": [8000, 8000]}, "much larger than its weights"),
        ("unet", {"layers_per_block": 100_000}, "much larger than its weights"),
        ("unet", {"condition_channels": 10**9}, "1000000000 is too large; right: at most 1000000"),
        ("vae", {"scaling_factor": 10**400}, "100000000000 is too large"),
        ("scheduler", {"num_train_timesteps": 10**9}, "is too large"),
    ],
)
def test_wrong_configurations_are_one_line(checkpoint, tmp_path, part, change, said):
    folder = changed_config(checkpoint, tmp_path / "copy", part, change)
    with pytest.raises(CheckpointError, match=said) as caught:
        MotionPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_wrong_configuration_of_a_renderer_is_one_line(checkpoint, tmp_path):
    for index, change in enumerate(
        [{"channels": []}, {"sigma": "wide"}, {"columns": None}, {"sigma": 1e300}, {"columns": 100_000}]
    ):
        folder = changed_config(checkpoint, tmp_path / str(index), "frame_synthesis_gaussian", change)
        with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
            FrameSynthesis.from_pretrained(folder / "frame_synthesis_gaussian")
        assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_told_once(checkpoint, tmp_path, caplog):
    """diffusers warns of them in many lines; our error says it in one."""
    from diffusers.utils import logging as diffusers_logging
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state.pop("conv_in.weight")
    save_file(state, path, metadata={"format": "pt"})
    before = diffusers_logging.get_verbosity()
    diffusers_logging.add_handler(caplog.handler)
    try:
        with pytest.raises(CheckpointError, match="do not belong together .first: conv_in.weight"):
            MotionPipeline.from_pretrained(folder)
    finally:
        diffusers_logging.remove_handler(caplog.handler)
    assert caplog.text == ""
    assert diffusers_logging.get_verbosity() == before


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_json_nested_without_end_is_one_line(checkpoint, tmp_path, name):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="cannot be read as JSON") as caught:
        MotionPipeline.from_pretrained(folder)
    assert str(folder / name) in str(caught.value) and "\n" not in str(caught.value)
