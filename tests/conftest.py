"""Small trained-format models and sets that several tests share; nothing here is downloaded."""

from __future__ import annotations

import gc
import os

# Before torch is imported: more threads than cores that are free wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")

from functools import partial
from pathlib import Path

import pytest

gc.disable()  # until all is imported: a fifth of the imports' time

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_finish() -> None:
    """Take what the imports made out of the garbage collector's way, which else reads all of it many times."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """After each file the same for what it imported late: a training collects garbage, and tests train often."""
    torn_down = yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    return torn_down


@pytest.fixture(scope="session")
def scene_set(tmp_path_factory):
    """Eight rendered scenes at 64 x 96 px, with pairs; seven of them train, one tests."""
    from data.scenes.render_set import render_scene_set

    return render_scene_set(tmp_path_factory.mktemp("sets") / "scenes", 8, seed=3, size=(64, 96), pairs=2)


def make_checkpoint(folder: Path, *, num_bins: int = 4) -> Path:
    """Write a checkpoint of tiny untrained networks in the format of checkpoints/default."""
    import torch
    from diffusers import DDPMScheduler

    from models.frame_synthesis import FrameSynthesis
    from models.motion_pipeline import MotionPipeline
    from models.unet import FrequencyUNet
    from models.vae import MotionVAE

    torch.manual_seed(0)
    vae = MotionVAE(block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[0.5] * num_bins)
    unet = FrequencyUNet(
        num_bins=num_bins, block_channels=(16, 16), condition_channels=16, num_heads=2, backbone="none"
    )
    # The last layer starts at zero; a motion that depends on nothing would prove nothing.
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
    schedule = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    MotionPipeline(vae, unet, schedule).save_pretrained(folder)
    for operator in ("softmax", "gaussian"):
        FrameSynthesis(operator=operator, channels=(4, 4, 4), columns=2).save_pretrained(
            folder / f"frame_synthesis_{operator}"
        )
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A whole checkpoint folder with K = 4 bins."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def photograph(tmp_path) -> Path:
    """A portrait JPEG of 60 x 90 px with structure."""
    import torch

    from data.media import write_image

    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(60.0), indexing="ij")
    image = torch.stack([0.5 + 0.4 * torch.sin(x / 5), 0.5 + 0.4 * torch.cos(y / 7), (x + y) / 150])
    write_image(tmp_path / "photo.png", image)
    return tmp_path / "photo.png"


@pytest.fixture(params=["reference", "cpu"])
def each_backend(request, monkeypatch) -> str:
    """Run a test once with each splatting backend of the CPU as the automatic choice."""
    from splatting import functional

    monkeypatch.setattr(functional, "_automatic_backend", lambda device: request.param)
    return request.param


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """A video that sways, a short and a static one, and one that cannot be read, all of 64 x 64 px."""
    from videos import swaying, write_video

    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "sway.mp4", swaying(50, 10), 10)
    write_video(folder / "short.mp4", swaying(20, 10, seed=1), 10)
    write_video(folder / "still.mp4", swaying(50, 10, amplitude_px=0, seed=2), 10)
    (folder / "broken.mp4").write_bytes((folder / "sway.mp4").read_bytes()[:700])
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture(scope="session")
def long_videos(tmp_path_factory) -> Path:
    """A video of two shots (3 s and 11.5 s at 10 fps), and a short one."""
    import torch
    from videos import swaying, write_video

    folder = tmp_path_factory.mktemp("long")
    write_video(folder / "shots.mp4", torch.cat([swaying(30, 10), swaying(115, 10, seed=5)]), 10)
    write_video(folder / "short.mp4", swaying(20, 10, seed=1), 10)
    return folder


@pytest.fixture
def deterministic():
    """Run a test under torch.use_deterministic_algorithms."""
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def float32_by_default(monkeypatch):
    """Let --precision auto be float32 on every CPU, so that results do not depend on the machine."""
    from models import device

    monkeypatch.setattr(device, "has_bfloat16_units", lambda: False)


@pytest.fixture
def short_sampling(monkeypatch):
    """Let samples take few steps, 2 on the sheets of a training, at most 3 elsewhere; the preset tiny has 2 levels."""
    from models import motion_pipeline
    from models.unet import UNET_PRESETS
    from training import motion_diffusion

    def few_steps(*arguments, steps: int | None = None, **options):
        return original(*arguments, steps=min(steps or 3, 3), **options)

    original = motion_pipeline.denoise
    monkeypatch.setattr(motion_pipeline, "denoise", few_steps)
    monkeypatch.setattr(motion_diffusion, "denoise", partial(motion_diffusion.denoise, steps=2))
    monkeypatch.setitem(UNET_PRESETS, "tiny", UNET_PRESETS["tiny"] | {"block_channels": (16, 32)})
