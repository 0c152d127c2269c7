"""What may move, told in words: masks of classes, flags of the scripts, checkpoints with and without the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from test_animate import last_error, make_motion

import animate
import animation.class_control
import animation.sampling
import generate_motion
import interact
from animation.class_control import ClassControl, load_segmentation
from data.media import read_image, write_image
from models.checkpoints import DEFAULT_CHECKPOINT, CheckpointError
from models.class_masks import class_fractions, class_mask, class_probabilities
from models.motion_pipeline import MotionPipeline
from models.segmentation import SegmentationModel
from models.segmentation_classes import CLASSES
from motion.flow import motion_grid_size
from motion.motion_file import Motion, load_motion

SAMPLE = Path(__file__).resolve().parents[1] / "data/samples/trees_house.jpg"
SCRIPTS = {animate: [], generate_motion: ["--input"], interact: []}
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)


class ByColour(SegmentationModel):
    """Calls green a tree, blue water, and the rest a wall."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        red, green, blue = torch.nn.functional.avg_pool2d(image, 4, ceil_mode=True).unbind(1)
        logits = torch.full((1, len(CLASSES), *red.shape[-2:]), -30.0)
        for name, level in (("tree", green), ("water", blue), ("wall", red)):
            logits[:, CLASSES.index(name)] = 30 * level
        return logits


@pytest.fixture
def picture(tmp_path, monkeypatch) -> Path:
    """A photograph of 96 x 64 px whose left third is green, the middle blue and the right red, and a network for it."""
    image = torch.zeros(3, 64, 96)
    image[1, :, :32], image[2, :, 32:64], image[0, :, 64:] = 1, 1, 1
    write_image(tmp_path / "thirds.png", image)
    monkeypatch.setattr(animation.class_control, "load_segmentation", lambda checkpoint: ByColour())
    return tmp_path / "thirds.png"


def thirds(maps: torch.Tensor) -> list[float]:
    """Return the mean of (1, h, w) in the middle of each third."""
    width = maps.shape[-1]
    return [round(float(maps[..., k * width // 6 - 2 : k * width // 6 + 2].mean()), 3) for k in (1, 3, 5)]


@pytest.mark.parametrize(
    ("move", "freeze", "expected", "absent"),
    [
        (["trees"], [], [1, 0, 0], []),
        ([], ["trees"], [0, 1, 1], []),
        (["forest", "wall"], [], [1, 0, 1], []),
        (["tree", "wall"], ["pond", "sky"], [1, 0, 1], ["sky"]),
        ([], ["flowers", "person"], [1, 1, 1], ["flowers", "person"]),
        (["leaves", "grass"], [], [1, 0, 0], ["grass"]),  # leaves are those of trees and of plants
    ],
)
def test_masks_of_classes(picture, move, freeze, expected, absent):
    image = read_image(picture)
    mask, missing = class_mask(ByColour(), image, move=move, freeze=freeze)
    assert mask.shape == (1, *motion_grid_size(64, 96)) and 0 <= mask.min() and mask.max() <= 1
    assert thirds(mask) == expected and missing == absent


def test_edges_of_a_mask_are_those_of_the_photograph():
    """Probabilities that change by 0.05 over 6 px become a mask that changes by more than half at the edge."""

    class Blurred(ByColour):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            ramp = torch.linspace(-6.4, 6.4, image.shape[-1] // 4).expand(1, image.shape[-2] // 4, -1)
            logits = torch.full((1, len(CLASSES), *ramp.shape[-2:]), -30.0)
            logits[:, CLASSES.index("tree")], logits[:, CLASSES.index("wall")] = ramp, -ramp
            return logits

    image = torch.zeros(3, 320, 512)
    image[:, :, 256:] = 1
    mask = class_mask(Blurred(), image, move=["tree"])[0]
    assert mask.shape[-1] == 256
    assert float(mask[..., 131].mean() - mask[..., 125].mean()) > 0.5
    assert mask[..., :90].max() == 0 and mask[..., -90:].min() == 1


@pytest.mark.parametrize("size", [(64, 96), (20, 16), (512, 320), (700, 90)])
def test_probabilities_at_any_size(size):
    torch.manual_seed(0)
    found = class_probabilities(SegmentationModel().eval(), torch.rand(3, *size))
    assert found.shape == (len(CLASSES), *size)
    torch.testing.assert_close(found.sum(0), torch.ones(size))
    fractions = list(class_fractions(found).values())
    assert fractions == sorted(fractions, reverse=True) and sum(fractions) == pytest.approx(1, abs=0.04)


@each_script
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--freeze", "sky,watr"], "--freeze watr: no class; did you mean water? right: other, wall, building"),
        (["--move", "Treees"], "--move treees: no class; did you mean trees? right: other, wall"),
        (["--move", "xyzzy"], "--move xyzzy: no class; right: other, wall"),
        (["--move", "list"], "--move list: no class"),
        (["--freeze", ""], "--freeze : no class"),
        (["--move", "tree", "--freeze", "sky,tree"], "--freeze sky,tree: tree shall move too; right: one of the two"),
        (["--move", "bush", "--freeze", "flowers"], "--freeze flowers: plant shall move too"),
        (["--show-motion", "shown.jpg"], "--show-motion shown.jpg: right: a name that ends in .png"),
    ],
)
def test_mistakes_are_one_line_before_models_are_loaded(script, picture, tmp_path, capsys, monkeypatch, flags, named):
    monkeypatch.chdir(tmp_path)
    for name in ("load_pipeline", "loop_phase"):
        monkeypatch.setattr(animation.sampling, name, lambda *args, **options: pytest.fail("models were loaded"))
    before = sorted(tmp_path.rglob("*"))
    assert script.main([*SCRIPTS[script], str(picture), *flags]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@each_script
@pytest.mark.parametrize("words", ["list", "tree"])
def test_a_checkpoint_without_the_network_says_what_to_do(script, checkpoint, photograph, tmp_path, capsys, words):
    assert MotionPipeline.from_pretrained(checkpoint).segmentation is None
    flags = [*SCRIPTS[script], str(photograph), "--checkpoint", str(checkpoint), "--freeze", words]
    assert script.main(flags) == 2
    assert f"{checkpoint}: has no segmentation network; right: a copy of checkpoints/default" in last_error(capsys)


def test_checkpoints_with_the_network(checkpoint, tmp_path, capsys):
    """A copied folder is enough; saved again it is named; another network's, or none where it is named, is refused."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(checkpoint, old)
    shutil.copytree(DEFAULT_CHECKPOINT / "segmentation", old / "segmentation")
    pipeline = MotionPipeline.from_pretrained(old)
    pipeline.save_pretrained(new)
    again = MotionPipeline.from_pretrained(new)
    image = torch.rand(3, 64, 96)
    first, second = (class_probabilities(one.segmentation, image) for one in (pipeline, again))
    torch.testing.assert_close(first, second, rtol=0, atol=0)

    shutil.rmtree(new / "segmentation")
    with pytest.raises(CheckpointError, match="segmentation"):
        MotionPipeline.from_pretrained(new)
    shutil.copytree(checkpoint / "vae", new / "segmentation")
    for load in (load_segmentation, MotionPipeline.from_pretrained):
        with pytest.raises(CheckpointError, match="holds 'MotionVAE'; right: a SegmentationModel folder"):
            load(new)
    assert animate.main([str(SAMPLE), "--freeze", "tree", "--checkpoint", str(new)]) == 2
    assert "holds 'MotionVAE'; right: a SegmentationModel folder" in last_error(capsys)


@each_script
def test_list_of_what_a_photograph_shows(script, capsys):
    assert script.main([*SCRIPTS[script], str(SAMPLE), "--freeze", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    percent, names = zip(*(line.split(" % ") for line in lines), strict=True)
    assert names[0] == "tree" and {"grass", "building", "sky"} < set(names) and 25 < float(percent[0]) < 45
    assert [float(one) for one in percent] == sorted(map(float, percent), reverse=True)


@pytest.mark.parametrize("script", [animate, generate_motion], ids=lambda script: script.__name__)
def test_a_list_of_several_photographs_names_them(script, picture, capsys):
    shutil.copy(picture, picture.with_name("b.png"))
    assert script.main([*SCRIPTS[script], str(picture.parent), "--freeze", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "%" not in line] == [f"{picture.with_name('b.png')}:", f"{picture}:"]
    assert len(lines) == 2 + 2 * 3 and " 33.3 % water" in lines


@pytest.mark.parametrize("script", [animate, generate_motion], ids=lambda script: script.__name__)
def test_a_photograph_at_a_url_is_listed(script, picture, capsys):
    fsspec.filesystem("memory").pipe_file("/bucket/thirds.png", picture.read_bytes())
    assert script.main([*SCRIPTS[script], "memory://bucket/thirds.png", "--freeze", "list"]) == 0
    assert " 33.3 % water" in capsys.readouterr().out.splitlines()


def test_the_motion_file_is_masked(checkpoint, picture, tmp_path, capsys, caplog):
    """Without --device too."""
    for name, flags in (("all", []), ("some", ["--freeze", "lake,car", "--show-motion", str(tmp_path / "shown.png")])):
        flags += ["--checkpoint", str(checkpoint), "--steps", "2", "--output", str(tmp_path / f"{name}.npz")]
        assert generate_motion.main(["--input", str(picture), *flags]) == 0
    whole, some = (load_motion(tmp_path / f"{name}.npz").spectrum for name in ("all", "some"))
    mask = class_mask(ByColour(), read_image(picture), freeze=["water"])[0]
    torch.testing.assert_close(some, whole * mask)
    assert some.abs().max() > 0
    assert "thirds.png: no car is found in it" in caplog.text and "no lake" not in caplog.text

    shown, grey = read_image(tmp_path / "shown.png"), read_image(picture).mean(0)
    coloured = (shown - grey).abs().amax(0, keepdim=True) > 0.02
    assert shown.shape == (3, 64, 96)
    assert thirds(coloured.float())[1] == 0 < thirds(coloured.float())[0]


def test_words_and_mask_reach_the_video(picture, tmp_path):
    """The green third moves, but for its lower half, which the mask holds."""
    image = read_image(picture) * (0.6 + 0.4 * torch.rand(64, 96, generator=torch.Generator().manual_seed(0)))
    write_image(picture, image)
    mask = torch.zeros(3, 64, 96)
    mask[:, :32] = 1
    write_image(tmp_path / "mask.png", mask)
    motion, shown = make_motion(tmp_path / "m.npz", (64, 96)), tmp_path / "shown.png"
    motion_flags = ["--motion", motion, "--preview", "--fps", 2, "--format", "frames", "--out", tmp_path / "out"]
    words = ["--move", "tree", "--mask", tmp_path / "mask.png", "--show-motion", shown]
    assert animate.main([str(one) for one in (picture, *motion_flags, *words)]) == 0
    frame = read_image(sorted((tmp_path / "out/thirds").glob("*.png"))[5])
    for changed in ((frame - read_image(picture)).abs(), read_image(shown) - image.mean(0)):
        changed = changed.amax(0) > 0.1
        assert changed[4:24, 8:24].float().mean() > 0.3
        assert not changed[40:].any() and not changed[:, 48:].any()


def test_a_page_is_masked_too(picture, tmp_path):
    motion, out, shown = make_motion(tmp_path / "m.npz", (64, 96)), tmp_path / "page.html", tmp_path / "shown.png"
    flags = ["--motion", motion, "--out", out, "--freeze", "tree", "--show-motion", shown]
    assert interact.main([str(one) for one in (picture, *flags)]) == 0 and out.exists()
    coloured = (read_image(shown) - read_image(picture).mean(0)).amax(0, keepdim=True) > 0.1
    assert thirds(coloured.float()) == [0, 1, 1]


def test_no_words_run_no_network():
    motion = Motion(torch.rand(4, 4, 8, 8))
    assert ClassControl.load(Path("/nowhere"), (), ()).apply(motion, torch.rand(3, 8, 8), "x") is motion
    with pytest.raises(CheckpointError, match="has no segmentation network; right: a copy of checkpoints/default"):
        ClassControl(None, ("tree",)).apply(motion, torch.rand(3, 8, 8), "x")
