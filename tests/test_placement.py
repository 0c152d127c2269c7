"""Placement: its metrics, masks, head and training."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train_unet
from data.clips import SampleKey
from data.files import MediaError
from data.masks import find_masked_photographs, read_placement_mask
from metrics.motion import mean_over_sources, placement_metrics
from models.checkpoints import DEFAULT_CHECKPOINT
from models.class_maps import movement_of_classes
from models.device import ArgumentError
from models.image_encoder import SQUEEZENET_TAPS
from models.motion_pipeline import MotionPipeline
from models.placement import (
    PlacementHead,
    PrincipalComponents,
    classes_in,
    placed_displacement,
)
from models.segmentation import SegmentationModel
from models.unet import FrequencyUNet
from motion.spectrum import mean_displacement
from training import placement_samples
from training.motion_stages import load_placement
from training.placement import PlacementDataset, clip_labels, placement_loss, validation_placement
from training.placement_samples import PlacementSample, photograph_samples

pytestmark = pytest.mark.usefixtures("short_sampling")

HEIGHT, WIDTH = 160, 256


@pytest.fixture
def head() -> PlacementHead:
    torch.manual_seed(0)
    return PlacementHead([channels for _, channels in SQUEEZENET_TAPS])


def test_metrics_count_the_known_pixels_of_each_kind():
    displacement = torch.zeros(1, HEIGHT, WIDTH)
    displacement[:, :, :128] = 1.0
    displacement[:, :40, 128:] = 0.5  # a quarter of the static half
    movable = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    movable[:, :, :128] = True
    metrics = placement_metrics(displacement, movable, ~movable)
    assert metrics["coverage"] == 1 and metrics["ap"] == pytest.approx(1)
    assert metrics["leak"] == pytest.approx(0.25)
    assert metrics["static_mean_px"] == pytest.approx(0.125) and metrics["static_largest_px"] == 0.5
    # The unknown part changes nothing.
    static = ~movable
    static[:, :40] = False
    assert placement_metrics(displacement, movable, static)["leak"] == 0


def test_displacement_is_measured_in_px_of_the_default_grid():
    everywhere = torch.ones(1, 2 * HEIGHT, 2 * WIDTH, dtype=torch.bool)
    metrics = placement_metrics(torch.full((1, 2 * HEIGHT, 2 * WIDTH), 0.4), everywhere, ~everywhere)
    assert metrics["mean_px"] == pytest.approx(0.2) and metrics["coverage"] == 0
    assert metrics["leak"] is None and metrics["ap"] is None


def test_means_go_over_repositories():
    rows = [{"source": "a", "coverage": 1.0}, {"source": "a", "coverage": 0.0}, {"source": "b", "coverage": 1.0}]
    assert mean_over_sources(rows)["coverage"] == 0.75
    assert mean_over_sources(rows)["leak"] is None


@pytest.fixture
def folders(tmp_path):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    pixels = np.random.default_rng(0).integers(255, size=(120, 200, 3), dtype=np.uint8)
    for name in ("pine", "wall"):
        Image.fromarray(pixels).save(photos / f"{name}.jpg")
        mask = np.full((60, 100), 128, np.uint8)
        mask[:30] = 255 if name == "pine" else 0
        Image.fromarray(mask).save(masks / f"{name}.png")
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["file", "split", "source", "subject"], ["photos/pine.jpg", "train", "a/b", "tree"]])
    return photos, masks, tmp_path / "table.csv"


def test_masked_photographs_are_found_with_their_split_and_source(folders):
    photos, masks, table = folders
    assert [photograph.source for photograph in find_masked_photographs(photos, masks)] == ["pine", "wall"]
    (pine,) = find_masked_photographs(photos, masks, table, "train")
    assert (pine.source, pine.subject) == ("a/b", "tree")
    image, mask = pine.read()
    assert image.shape == (3, 120, 200) and mask.shape == (1, 60, 100)
    assert find_masked_photographs(photos, masks, table, "test", may_be_empty=True) == []


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((60, 100, 3), 255, np.uint8), "colour mode RGB"),
        (np.full((60, 100), 200, np.uint8), r"holds \[200\]"),
    ],
)
def test_masks_of_other_values_are_refused(tmp_path, pixels, message):
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(MediaError, match=message):
        read_placement_mask(tmp_path / "mask.png")


def test_wrong_folders_and_tables_are_refused(folders, tmp_path):
    photos, masks, table = folders
    with pytest.raises(MediaError, match="no photograph of split test"):
        find_masked_photographs(photos, masks, table, "test")
    (photos / "wall.jpg").unlink()
    with pytest.raises(MediaError, match=r"wall.png: no photograph of this name"):
        find_masked_photographs(photos, masks)
    (tmp_path / "latin.csv").write_bytes("file,source\npine.jpg,Köln\n".encode("latin-1"))
    with pytest.raises(MediaError, match="latin.csv: cannot be read as CSV"):
        find_masked_photographs(photos, masks, tmp_path / "latin.csv")
    (tmp_path / "other.csv").write_text("file,source\n")
    with pytest.raises(MediaError, match=r"lacks the columns \['split'\]"):
        find_masked_photographs(photos, masks, tmp_path / "other.csv", "test")
    (tmp_path / "other.csv").write_text("file,split\n")
    with pytest.raises(MediaError, match=r"lacks the columns \['source'\]"):
        find_masked_photographs(photos, masks, tmp_path / "other.csv")
    Image.new("RGB", (60, 60)).save(photos / "pine.png")
    with pytest.raises(MediaError, match="has the same name"):
        find_masked_photographs(photos, masks)
    (photos / "pine.png").unlink()
    Image.new("L", (60, 60)).save(masks / "pine.png")
    (masks / "wall.png").unlink()
    with pytest.raises(MediaError, match="right: the same aspect"):
        find_masked_photographs(photos, masks)[0].read()


def test_principal_components_keep_the_variance():
    torch.manual_seed(1)
    basis = torch.randn(8, 2)
    maps = [(basis @ torch.randn(2, 400)).view(1, 8, 20, 20) for _ in range(3)]
    maps = [m.sign() * m.square() for m in maps]  # what the module compresses is linear in two numbers
    reduce = PrincipalComponents(8, 2)
    reduce.fit(maps)
    reduced = reduce(maps[0]).flatten(2)[0]  # (2, 400)
    flat = (maps[0].sign() * maps[0].abs().sqrt()).flatten(2)[0]
    joined = torch.cat([reduced, torch.ones(1, 400)])
    found = torch.linalg.lstsq(joined.T, flat.T).solution.T @ joined
    assert torch.allclose(found, flat, atol=1e-3)
    assert not any(p.requires_grad for p in reduce.parameters())


def test_finer_classes_replace_those_that_the_head_read(head):
    placement = head(torch.zeros(1, sum(head.parts), 16, 24))
    probabilities = torch.zeros(1, 32, 32, 48)
    probabilities[:, 5, :, :23] = 1.0  # tree
    probabilities[:, 1, :, 23:] = 1.0  # wall
    placement = placement._replace(**movement_of_classes(probabilities))
    moves = placed_displacement(placement, torch.zeros(1, 3, 64, 96), torch.ones(1))[0, 0]
    assert moves[:, :42].min() > 10 * moves[:, 50:].max()


def test_features_are_read_at_stride_4_of_the_grid():
    """Also of an image network of another kind, and of none."""
    torch.manual_seed(0)
    network, image = SegmentationModel().eval(), torch.rand(2, 3, 128, 192)
    for channels in ((), (4,), (64, 128)):
        head = PlacementHead(channels)
        features = head.features(image, lambda small: [small[:, :1].repeat(1, c, 1, 1) for c in channels], network)  # noqa: B023
        assert features.shape == (2, sum(head.parts), 16, 24)
        torch.testing.assert_close(classes_in(features).sum(1), torch.ones(2, 16, 24))
        expected = placed_displacement(head.predict(features), torch.rand(2, 3, 64, 96))
        assert expected.shape == (2, 1, 64, 96) and bool(torch.isfinite(expected).all())


def test_a_head_is_cast_with_the_pipeline():
    torch.manual_seed(0)
    network, head, image = SegmentationModel().eval(), PlacementHead((4,)), torch.rand(1, 3, 128, 192)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        head, network, image = head.to(dtype), network.to(dtype), image.to(dtype)
        features = head.features(image, lambda small: [small[:, :1].repeat(1, 4, 1, 1)], network)
        found.append(placed_displacement(head.predict(features), image[..., ::2, ::2]))
    assert found[1].dtype == torch.float32
    assert float((found[0] - found[1]).detach().abs().mean()) < 0.05 * float(found[0].detach().mean())


def test_untrained_head_moves_what_segmentation_calls_movable(head):
    features = torch.zeros(1, sum(head.parts), 16, 24)
    probabilities = classes_in(features)  # a view
    probabilities[:, 5, :, :12] = 1.0  # tree
    probabilities[:, 1, :, 12:] = 1.0  # wall
    found = head(features)
    assert bool((found.by_class[..., :12] > 3).all()) and bool((found.by_class[..., 12:] < -3).all())
    assert not found.correction.any()


def test_networks_are_trained_on_samples_of_their_own_and_agree_on_their_mean():
    torch.manual_seed(0)
    head = PlacementHead((4,), networks=3)
    with torch.no_grad():
        head.correction.bias.copy_(torch.tensor([0.0, 1.0, 5.0]))
    features = torch.rand(4, sum(head.parts), 12, 12)
    found = head(features, seeds=torch.tensor([3, 7, 11, 12]))
    assert found.correction.mean((1, 2, 3)).tolist() == [0, 1, 5, 0]
    found.relative[1].sum().backward()
    assert [bool(grad.any()) for grad in head.read.weight.grad.chunk(3)] == [False, True, False]
    found = head(features)
    assert found.correction.unique().tolist() == [2] and found.log_strength.shape == (4,)


def test_both_parts_of_a_photograph_count_alike(head):
    """A fifth can move; so little static in the other that its weight is at its limit."""
    for fraction, expected in ((0.2, 0.5), (0.98, 4 * 0.02 / (4 * 0.02 + 0.5102 * 0.98))):
        sample = _sample("photograph", head, known=1.0)
        sample.movable.view(-1)[: int(fraction * 640)] = 1.0
        (balanced,) = PlacementDataset([sample]).samples
        known, part = balanced.known.float(), sample.movable if fraction < 0.5 else 1 - sample.movable
        assert float(known.sum()) == pytest.approx(640, rel=1e-2)
        assert float((known * part).sum() / known.sum()) == pytest.approx(expected, rel=0.05)


def _sample(kind: str, head: PlacementHead, **maps: float) -> PlacementSample:
    size = (20, 32)
    features = torch.rand(sum(head.parts), *size).half()
    values = {"movable": 0.0, "known": 0.0, "displacement": 0.0, "confidence": 1.0} | maps
    strength = values.pop("strength_px", 1.0)
    return PlacementSample(
        kind, features, *(torch.full((1, *size), value).half() for value in values.values()), strength, 1.0
    )


def test_windows_depend_on_the_seed_alone(head):
    dataset = PlacementDataset([_sample("photograph", head, known=1.0), _sample("scene", head)])
    one, other = dataset[SampleKey(0, 0, 5)], dataset[SampleKey(1, 3, 5)]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["features"].shape == (sum(head.parts), 24, 24)
    assert one["known"][:, 20:].sum() == 0  # the sample has 20 rows


def test_clip_labels_trust_rest_only_where_segmentation_agrees(head):
    batch = {
        "displacement": torch.tensor([1.0, 0.0, 0.0, 0.1]).view(1, 1, 1, 4),
        "confidence": torch.full((1, 1, 1, 4), 0.5),
    }
    static = torch.tensor([1.0, 1.0, 0.0, 1.0]).view(1, 1, 1, 4)
    movable, known = clip_labels(batch, torch.ones(1, 1, 1, 1), static)
    assert movable.flatten().tolist() == [1, 0, 0, 0]
    assert known.flatten().tolist() == [0.5, 0.5, 0, 0]


def test_head_learns_a_mask(head):
    sample = _sample("photograph", head, known=1.0)
    sample.movable.copy_((sample.features[:1] > 0.5).half())
    dataset = PlacementDataset([sample])
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(60):
        items = [dataset[SampleKey(0, 0, 4 * step + i)] for i in range(4)]
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        batch["seed"] = torch.arange(4) + 4 * step
        loss = placement_loss(head, batch, parts=head.parts)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_a_sample_trains_the_network_that_its_seed_chooses():
    head = PlacementHead((4,), networks=3)
    item = PlacementDataset([_sample("photograph", head, known=1.0)])[SampleKey(0, 0, 4)]
    batch = {name: value[None] for name, value in item.items()} | {"seed": torch.tensor([4])}
    placement_loss(head, batch, parts=head.parts)["loss"].backward()
    assert [bool(grad.any()) for grad in head.correction.bias.grad] == [False, True, False]


def test_photographs_become_samples_of_their_masks(folders, monkeypatch):
    photos, masks, _ = folders

    def features(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(image, 8)

    masked, pasted = find_masked_photographs(photos, masks), []

    def paste(photograph, others, rng):
        pasted.append(len(others))
        return photograph._replace(movable=0.5 * photograph.known)

    monkeypatch.setattr(placement_samples, "paste_parts", paste)
    pine, pine_crop, composite, wall, _, _ = photograph_samples(masked, features, variants=1, composites=1, seed=0)
    assert pasted == [1, 1]
    assert composite.movable.max() == pytest.approx(0.5, abs=1e-3) and pine_crop.movable.max() == pytest.approx(
        1.0, abs=1e-3
    )
    assert pine.features.shape[-2:] == pine.movable.shape[-2:]
    assert pine.movable[:, :10].min() == 1 and pine.known[:, -10:].max() == 0
    assert wall.movable.max() == 0
    assert pine_crop.features.shape[-2:] == composite.features.shape[-2:] == (40, 64)


def test_validation_figures_of_a_known_map(head, monkeypatch):
    """A head that knew the answer, but three times too strong."""
    moves = torch.zeros(1, 20, 32)
    moves[..., :16] = 1.0
    photograph = _sample("photograph", head, known=1.0)._replace(movable=moves.half())
    clip = _sample("clip", head)._replace(displacement=moves.half())
    answer = torch.nn.functional.interpolate(moves[None], scale_factor=4.0) * 2  # px of a grid of 128 x 80

    monkeypatch.setattr("training.placement.placed_displacement", lambda placement, image: 0.5 * 3 * answer / 2)
    figures = validation_placement(head, samples=[photograph, clip])
    assert figures["validation_ap"] > 0.95 and figures["validation_mask_ap"] > 0.95
    assert figures["validation_gain"] == pytest.approx(3.0, rel=0.01)
    assert figures["validation_coverage"] > 0.95 and figures["validation_leak"] < 0.1


SHAPE = {"num_bins": 4, "block_channels": (16, 16), "condition_channels": 16, "num_heads": 2, "downsample_factor": 8}
STAGE = ("--stage", "displacement", "--init", str(DEFAULT_CHECKPOINT / "unet"))
FLAGS = ("--grid", "96x64", "--bins", "4", "--batch-size", "2", "--steps", "2", "--device", "cpu")


@pytest.fixture
def small_samples(monkeypatch):
    """Let samples have a quarter of the pixels: almost all of the time goes into their features."""
    grid_size = placement_samples.motion_grid_size
    monkeypatch.setattr(placement_samples, "SIZES", ((80, 128), (128, 80), (96, 112)))
    monkeypatch.setattr(placement_samples, "motion_grid_size", lambda *size: tuple(n // 2 for n in grid_size(*size)))


@pytest.mark.usefixtures("small_samples")
def test_stage_displacement_trains_a_placement_head_and_nothing_else(scene_set, folders, tmp_path):
    """The network comes through bit by bit; a later stage keeps the head; a call again reads the cached samples."""
    photos, masks, _ = folders
    start = FrequencyUNet(**SHAPE, displacement=True)
    start.half().save_pretrained(tmp_path / "start" / "unet")
    data = ("--data", str(scene_set.folder), "--cache", str(tmp_path / "cache"), *FLAGS)
    masked = ("--photos", str(photos), "--masks", str(masks), "--static-images", str(photos / "wall.jpg"))
    stage = ("--stage", "displacement", "--init", str(tmp_path / "start" / "unet"))
    assert train_unet.main([*data, *masked, *stage, "--out", str(tmp_path / "run")]) == 0
    pipeline = MotionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    after = pipeline.unet.state_dict()
    assert not pipeline.unet.config.displacement and pipeline.placement is not None
    for name, value in start.state_dict().items():
        assert name.startswith("displacement_head.") or torch.equal(after[name], value.float()), name
    assert list((tmp_path / "run" / "samples").glob("displacement-*.png"))
    record = json.loads((tmp_path / "run" / "pipeline" / "training.json").read_text())["placement"]
    assert "validation_gain" in record["validation_after"]
    cached = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("placement-*")}
    assert len(cached) == 2  # train, test

    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = pipeline.encode_images(image).expected_px
    found = mean_displacement(pipeline(image, steps=2)[0, 0])
    assert float((found - expected[0]).abs().median()) < 1e-3 * float(expected.mean())

    unet = str(tmp_path / "run" / "pipeline" / "unet")
    assert train_unet.main([*data, "--stage", "denoiser", "--init", unet, "--out", str(tmp_path / "later")]) == 0
    kept = MotionPipeline.from_pretrained(tmp_path / "later" / "pipeline").placement.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in pipeline.placement.state_dict().items())


@pytest.mark.usefixtures("small_samples")
def test_a_resume_keeps_the_components_that_samples_were_made_with(scene_set, folders, tmp_path):
    photos, masks, _ = folders
    FrequencyUNet(**SHAPE).save_pretrained(tmp_path / "start" / "unet")
    flags = ["--data", str(scene_set.folder), "--cache", str(tmp_path / "cache"), *FLAGS, "--stage", "displacement"]
    flags += ["--init", str(tmp_path / "start" / "unet"), "--photos", str(photos), "--masks", str(masks)]
    flags += ["--out", str(tmp_path / "run"), "--resume", "auto"]
    assert train_unet.main([*flags, "--stop-at", "1"]) == 0
    Image.fromarray(np.random.default_rng(1).integers(255, size=(90, 160, 3), dtype=np.uint8)).save(photos / "oak.png")
    Image.new("L", (80, 45), 255).save(masks / "oak.png")
    assert train_unet.main(flags) == 0
    components = load_file(tmp_path / "run" / "components.safetensors")
    trained = MotionPipeline.from_pretrained(tmp_path / "run" / "pipeline").placement.components.state_dict()
    assert all(torch.equal(trained[name], value.half().float()) for name, value in components.items())


def test_cached_samples_depend_on_the_bytes_of_a_mask(folders):
    photos, masks, _ = folders
    before = [photograph.fingerprint() for photograph in find_masked_photographs(photos, masks)]
    Image.fromarray(255 - np.array(Image.open(masks / "wall.png").convert("L")).clip(0, 1) * 255).save(
        masks / "wall.png"
    )
    after = [photograph.fingerprint() for photograph in find_masked_photographs(photos, masks)]
    assert before[0] == after[0] and before[1][0] == after[1][0] and before[1][1] != after[1][1]


@pytest.mark.parametrize(("trained", "message"), [(True, "left out"), (False, "placement reads maps of (7,) channels")])
def test_a_head_that_does_not_fit_the_network_is_told_at_once(trained, message, tmp_path, caplog):
    unet = FrequencyUNet(**SHAPE)
    unet.image_encoder.backbone.requires_grad_(trained)
    PlacementHead((7,)).save_pretrained(tmp_path / "placement")
    if trained:
        assert load_placement(tmp_path / "unet", unet) is None
        assert message in caplog.text
    else:
        with pytest.raises(ArgumentError, match=re.escape(message)):
            load_placement(tmp_path / "unet", unet)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stage", "picture", "--still-pictures", "walls"], "--still-pictures: only --stage displacement uses it"),
        (["--stage", "displacement"], "--stage displacement: needs --init"),
        ([*STAGE, "--photos", "photos"], "--photos, --masks: one without the other"),
        ([*STAGE, "--feature-dropout", "0.1"], "--feature-dropout: --stage displacement hides"),
        ([*STAGE, "--photos", "gone", "--masks", "gone", "--data", "SET"], "gone: there is no such"),
    ],
)
def test_mistaken_flags_are_one_line(flags, message, scene_set, capsys):
    assert train_unet.main([str(scene_set.folder) if flag == "SET" else flag for flag in flags]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_pipeline_refuses_a_head_that_cannot_read_it(checkpoint):
    parts = MotionPipeline.from_pretrained(checkpoint).components
    others = {name: part for name, part in parts.items() if name not in ("placement", "segmentation")}
    with pytest.raises(ValueError, match="placement reads segmentation"):
        MotionPipeline(**others, placement=PlacementHead())
    with pytest.raises(ValueError, match=r"placement reads maps of \(7,\) channels"):
        MotionPipeline(**others, segmentation=SegmentationModel(), placement=PlacementHead((7,)))


def test_detailed_images_are_twice_as_large():
    pipeline = MotionPipeline.from_pretrained(DEFAULT_CHECKPOINT)
    with pytest.raises(ValueError, match=r"detailed: expected \(2, 3, 128, 192\), got \(1, 3, 128, 192\)"):
        pipeline.encode_images(torch.rand(2, 3, 64, 96), detailed=torch.rand(1, 3, 128, 192))
