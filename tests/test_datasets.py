"""Training datasets: augmentation against a dense flow, sampling by (seed, epoch, item), weights, cached latents."""

from __future__ import annotations

import math
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import data.augmentation as augmentation
from data.augmentation import draw_geometry, jitter_colours
from data.clip_writer import ClipContent, ClipSetWriter, lock_folder
from data.clips import STORED_BINS, ClipRow, ClipSet, ClipSetError, Pair, SampleKey
from data.datasets import MotionDataset, RenderingDataset, open_weighted_sets
from data.scenes.scene import SCENES_VERSION
from models.vae import MotionVAE
from motion.flow import resize_maps
from motion.spectrum import NUM_BINS, spectrum_to_flow, truncate
from training import data_sets
from training import latents as latents_module
from training.data_order import ResumableBatchSampler, make_loader
from training.data_sets import open_sets
from training.latents import LatentDataset, variant_sizes

GRID = (64, 96)
# portrait, square, wide, and smaller and larger than any box
SIZES = [(96, 64), (64, 64), (40, 100), (32, 48), (96, 144)]


# ---------------------------------------------------------------- a moving picture that is known at every point


def spectrum_at(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return a smooth packed spectrum (24, 4, ...) px; every bin, direction and part differs from every other."""
    k = torch.arange(STORED_BINS, dtype=torch.float64).view(-1, 1, *[1] * x.ndim)
    c = torch.arange(4, dtype=torch.float64).view(1, -1, *[1] * x.ndim)
    wave = torch.sin(x / (17 + 3 * c) + k) * (1 + c) + torch.cos(y / (23 - 2 * c) - k / 2) + 0.02 * (c + 1) * x
    return truncate(wave / (1 + k), STORED_BINS)


def picture_at(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([x / 100, y / 70, 0.5 + 0.3 * torch.sin((x + 2 * y) / 20)])


def flow_at(packed: torch.Tensor, phase: float) -> torch.Tensor:
    """Evaluate the series of method.md section 1 term by term: (24, 4, ...) to (2, ...) px."""
    total = torch.stack([packed[0, 1], packed[0, 3]]) * phase
    for k in range(1, STORED_BINS):
        angle = 2 * math.pi * k * phase
        a, b = packed[k, 0::2], -packed[k, 1::2]
        total = total + a * (math.cos(angle) - 1) + b * math.sin(angle)
    return total


def points(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    return x, y


def check_geometry(size: tuple[int, int], seeds: range) -> set[tuple[bool, bool]]:
    """Augment spectrum and dense flow separately: the flow point by point, with nothing of the code under test."""
    x, y = points(*GRID)
    spectrum, picture = spectrum_at(x, y), picture_at(x, y)
    seen = set()
    for seed in seeds:
        g = draw_geometry(GRID, size, np.random.default_rng(seed))
        seen.add((g.mirrored, g.backwards))
        # where the sample's pixels lie in the clip, by pixel centres
        u, v = points(*size)
        u = size[1] - 1 - u if g.mirrored else u
        u = g.left + (u + 0.5) * g.width / size[1] - 0.5
        v = g.top + (v + 0.5) * g.height / size[0] - 0.5
        inner = (slice(None), slice(6, -6), slice(6, -6))  # resizing holds the border
        torch.testing.assert_close(g.maps(picture)[inner], picture_at(u, v)[inner], atol=0.02, rtol=0)
        exact, augmented = spectrum_at(u, v), g.spectrum(spectrum)
        for phase in (0.0, 0.13, 0.5, 0.85, 1.0):
            flow = flow_at(exact, phase)
            if g.backwards:
                flow = flow_at(exact, 1 - phase) - flow_at(exact, 1.0)
            flow = torch.stack([flow[0] * size[1] / g.width * (-1 if g.mirrored else 1), flow[1] * size[0] / g.height])
            found = spectrum_to_flow(augmented, torch.tensor([phase]))[0]
            error = (found - flow)[inner].abs().mean()
            assert error < 0.04 * flow.abs().mean() + 1e-6, f"seed {seed}, {g}: {error:.3f} px at phase {phase}"
    return seen


@pytest.mark.parametrize("size", SIZES)
def test_spectrum_and_flow_augmented_separately_agree(size: tuple[int, int]) -> None:
    assert len(check_geometry(size, range(12))) == 4  # mirrored or not, backwards or not


def scaled_wrongly(spectrum: torch.Tensor, size: tuple[int, int], order: tuple[int, int] = (0, 1)) -> torch.Tensor:
    scales = [size[1] / spectrum.shape[-1], size[0] / spectrum.shape[-2]]
    factors = spectrum.new_tensor([scales[order[0]]] * 2 + [scales[order[1]]] * 2)
    return resize_maps(spectrum, size) * factors.view(4, 1, 1)


MISTAKES = {
    "dx is not negated": ("flip_spectrum", lambda s: s.flip(-1)),
    "dy is negated too": ("flip_spectrum", lambda s: -s.flip(-1)),
    "dy is negated instead": ("flip_spectrum", lambda s: s.flip(-1) * torch.tensor([1.0, 1, -1, -1]).view(4, 1, 1)),
    "positions stay": ("flip_spectrum", lambda s: s * torch.tensor([-1.0, -1, 1, 1]).view(4, 1, 1)),
    "flipped upside down": (
        "flip_spectrum",
        lambda s: s.flip(-2) * torch.tensor([-1.0, -1, 1, 1]).view(4, 1, 1),
    ),
    "nothing is scaled": ("resize_spectrum", lambda s, size: resize_maps(s, size)),
    "the scales are swapped": ("resize_spectrum", lambda s, size: scaled_wrongly(s, size, (1, 0))),
    "dx is not scaled": (
        "resize_spectrum",
        lambda s, size: torch.cat([resize_maps(s[..., :2, :, :], size), scaled_wrongly(s, size)[..., 2:, :, :]], -3),
    ),
    "dx and dy are swapped": ("resize_spectrum", lambda s, size: scaled_wrongly(s, size)[..., [2, 3, 0, 1], :, :]),
    "real and imaginary parts are swapped": (
        "resize_spectrum",
        lambda s, size: scaled_wrongly(s, size)[..., [1, 0, 3, 2], :, :],
    ),
    "the drift is not negated": (
        "reverse_spectrum",
        lambda s: torch.cat([s[:1], s[1:] * torch.tensor([1.0, -1, 1, -1]).view(4, 1, 1)]),
    ),
    "nothing is conjugated": (
        "reverse_spectrum",
        lambda s: torch.cat([s[:1] * torch.tensor([1.0, -1, 1, -1]).view(4, 1, 1), s[1:]]),
    ),
    "all is negated": ("reverse_spectrum", lambda s: -s),
}


def test_scaling_by_hand_is_right_without_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "resize_spectrum", scaled_wrongly)
    check_geometry((40, 100), range(6))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(augmentation, name, wrong)
    with pytest.raises(AssertionError, match="px at phase"):
        check_geometry((40, 100), range(6))


def test_flow_of_a_pair_is_cut_as_the_spectrum() -> None:
    x, y = points(*GRID)
    spectrum, seen = spectrum_at(x, y), set()
    flow = spectrum_to_flow(spectrum, torch.tensor([0.3]))[0]
    for seed in range(8):
        g = draw_geometry(GRID, (40, 100), np.random.default_rng(seed), reverse=False)
        assert not g.backwards
        seen.add(g.mirrored)
        torch.testing.assert_close(g.flow(flow), spectrum_to_flow(g.spectrum(spectrum), torch.tensor([0.3]))[0])
    assert seen == {False, True}
    with pytest.raises(AssertionError):
        g._replace(backwards=True).flow(flow)


def test_geometries_cover_scales_and_places_and_colours_stay_mild() -> None:
    drawn = [draw_geometry((160, 256), (192, 192), np.random.default_rng(seed)) for seed in range(200)]
    shares = [g.height * g.width / 160**2 for g in drawn]
    assert min(shares) < 0.45 and max(shares) > 0.95
    assert len({g.left for g in drawn}) > 50 and all(g.left + g.width <= 256 and g.top + g.height <= 160 for g in drawn)
    assert 60 < sum(g.mirrored for g in drawn) < 140 and 60 < sum(g.backwards for g in drawn) < 140
    grey = torch.full((3, 4, 4), 0.5)
    changed = torch.stack([jitter_colours(grey, np.random.default_rng(seed)).mean((1, 2)) for seed in range(100)])
    assert 0.02 < changed.std() < 0.1 and (changed - 0.5).abs().max() < 0.2
    assert (changed - changed.mean(1, keepdim=True)).abs().max() > 0.005  # the balance, not brightness alone


# ------------------------------------------------------------------------------------- which sample, whoever asks


def make_set(folder: Path, clips: int = 4, test_clips: int = 0, size: tuple[int, int] = (32, 48)) -> ClipSet:
    x, y = points(*size)
    with ClipSetWriter(folder, {"made_of": "test"}) as writer:
        for i in range(clips + test_clips):
            spectrum = spectrum_at(x + 50 * i, y - 20 * i).float() * 0.3
            generator = torch.Generator().manual_seed(i)
            picture, confidence = torch.rand(3, *size, generator=generator), torch.rand(1, *size, generator=generator)
            pair = Pair(picture.roll(1, -1), spectrum[1, 0::2], torch.ones(1, *size), 1.0)
            row = ClipRow(f"clip{i:02d}", f"{folder.name}{i}.mp4", split="train" if i < clips else "test")
            writer.write(row, ClipContent(picture, spectrum, confidence=confidence, pairs=(pair,)))
        return writer.finish()


def tiny_vae(seed: int = 0, num_bins: int = 4) -> MotionVAE:
    torch.manual_seed(seed)
    vae = MotionVAE(block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[0.5] * num_bins)
    torch.nn.init.normal_(vae.autoencoder.quant_conv.weight, std=0.02)
    return vae


def make_latents(sets: list, folder: Path, vae: MotionVAE | None = None, **options) -> LatentDataset:
    return LatentDataset(sets, "train", vae or tiny_vae(), 4, folder, **{"sizes": variant_sizes(32, 64), **options})


@pytest.fixture(params=["motion", "rendering", "latents"])
def dataset(request, tmp_path: Path):
    sets = [(make_set(tmp_path / "a"), 1.0), (make_set(tmp_path / "b", 5), 0.4)]
    if request.param == "latents":
        latents = make_latents(sets, tmp_path / "cache")
        latents.encode(torch.device("cpu"))
        return latents
    return (MotionDataset if request.param == "motion" else RenderingDataset)(sets, size=(32, 32))


def samples(dataset, *, batch_size: int, workers: int = 0, seed: int = 5, processes: int = 1) -> dict:
    """Return {(epoch, item): sample} of the first four epochs, read as a training reads them."""
    found, passes = {}, 4 * len(dataset) // (batch_size * processes)
    for process in range(processes):
        position = {"first": 0, "last": passes, "process": process, "processes": processes}
        order = ResumableBatchSampler(len(dataset), batch_size, seed, **position)
        keys = [key for batch in order for key in batch]
        batches = make_loader(dataset, order, workers=workers)
        read = [{name: batch[name][i] for name in batch} for batch in batches for i in range(len(batch["item"]))]
        found |= {(key.epoch, key.item): sample for key, sample in zip(keys, read, strict=True)}
    return found


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_sample_is_the_same_in_any_worker_count_batch_size_and_order(dataset) -> None:
    assert len(dataset) == 6
    expected = samples(dataset, batch_size=6)
    assert len(expected) == 24
    # two workers, two processes, other batches, and the other way round
    for options in ({"batch_size": 3, "workers": 2}, {"batch_size": 2}, {"batch_size": 1, "processes": 2}):
        found = samples(dataset, **options)
        assert found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    for (epoch, item), sample in reversed(expected.items()):
        again = dataset[SampleKey(item, epoch, int(sample["seed"]))]
        assert all(torch.equal(again[name], sample[name]) for name in again)


def test_epochs_and_seeds_differ(dataset) -> None:
    first, other = samples(dataset, batch_size=6), samples(dataset, batch_size=6, seed=6)
    for item in range(len(dataset)):
        pictures = [first[epoch, item]["image"] for epoch in range(4)] + [other[0, item]["image"]]
        for i, picture in enumerate(pictures):
            assert not any(picture.shape == p.shape and torch.equal(picture, p) for p in pictures[i + 1 :])


def test_filled_up_epochs_change_no_sample(tmp_path: Path) -> None:
    """Another batch size fills the epoch up by other items, and the order changes: the items' samples stay."""
    sets = [(make_set(tmp_path / "a", 5), 1.0)]
    found = []
    for multiple in (1, 2, 4):
        latents = make_latents(sets, tmp_path / "cache", multiple=multiple)
        latents.encode(torch.device("cpu"))
        assert len(latents) == {1: 5, 2: 6, 4: 8}[multiple]
        found.append(samples(latents, batch_size=multiple))
    for key in [(epoch, item) for epoch in range(3) for item in range(5)]:
        assert same(found[0][key], found[1][key]) and same(found[0][key], found[2][key])


# ------------------------------------------------------------------------------------------------------ weights


def test_the_draw_has_the_shares_of_the_weights(tmp_path: Path) -> None:
    for name, clips in {"a": 6, "b": 10, "c": 4}.items():
        make_set(tmp_path / name, clips)
    sets = open_weighted_sets([tmp_path / "a", f"{tmp_path / 'b'}:0.3", f"{tmp_path / 'c'}:2.5"])
    assert [weight for _, weight in sets] == [1.0, 0.3, 2.5]
    dataset = MotionDataset(sets)
    assert len(dataset) == 6 + 3 + 10
    # Ten epochs, as the batches of a training draw them.
    order = ResumableBatchSampler(len(dataset), 19, 0, first=0, last=10)
    drawn = [dataset.items[key] for batch in order for key in batch]
    clips = Counter((clip_set.folder.name, row.id) for clip_set, row in drawn)
    assert {name: {clips[name, f"clip{i:02d}"] for i in range(n)} for name, n in (("a", 6), ("b", 10), ("c", 4))} == {
        "a": {10},
        "b": {3},
        "c": {25},
    }


def test_a_small_weight_meets_every_variant_of_every_clip(tmp_path: Path) -> None:
    """Four epochs a round and four shapes: in an order that stays, each clip would be met in one shape only."""
    latents = make_latents([(make_set(tmp_path / "a", 8), 0.25)], tmp_path / "cache")
    met = {(latents.items.place(SampleKey(item, epoch, 0))[1], epoch % 4) for epoch in range(120) for item in range(2)}
    assert len(met) == 8 * 4
    assert latents.item_name(0) == "a/a clip drawn by weight"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["SET:0"], "right: SET or SET:WEIGHT with a weight above 0"),
        (["SET:-1"], "not a clip set; right"),
        (["SET:nan"], "not a clip set; right"),
        (["SET:inf"], "at most 1000"),
        (["SET:1e9"], "at most 1000"),
        (["SET:"], "not a clip set; right: SET or SET:WEIGHT"),
        (["SET:much"], "not a clip set; right"),
        (["SET:0,3"], "set:0,3: not a clip set; right"),
        (["nowhere:0.5"], "nowhere: not a clip set"),
        ([":0.3"], ":0.3: not a clip set; right"),
        (["SET", "SET:2"], "named twice"),
    ],
)
def test_bad_weights_are_one_line(flags: list[str], message: str, tmp_path: Path) -> None:
    make_set(tmp_path / "set", 1)
    with pytest.raises(ClipSetError, match=message) as caught:
        open_weighted_sets([flag.replace("SET", str(tmp_path / "set"), 1) for flag in flags])
    assert "\n" not in str(caught.value) and caught.value.is_user_error


# ------------------------------------------------------------------------------------------------------- splits


def test_training_reads_the_training_split_unless_told(tmp_path: Path) -> None:
    sets = [(make_set(tmp_path / "a", 2, test_clips=3), 1.0)]
    for kind in (MotionDataset, RenderingDataset):
        read = {split: {row.split for row in kind(sets, split=split).items.parts[0].rows} for split in ("test", None)}
        assert read == {"test": {"test"}, None: {"train", "test"}}
        assert {row.split for row in kind(sets).items.parts[0].rows} == {"train"} and len(kind(sets)) == 2
        with pytest.raises(ClipSetError, match="no split 'validation'"):
            kind(sets, split="validation")
    only_test = [(make_set(tmp_path / "b", 0, test_clips=2), 1.0)]
    with pytest.raises(ClipSetError, match="no such clip of split train"):
        MotionDataset([*sets, *only_test])


def test_a_source_that_one_set_tests_and_another_trains_on_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path / "x" / "a", 3), make_set(tmp_path / "y" / "a", 2, test_clips=1)
    with pytest.raises(
        ClipSetError, match=r"a2.mp4 is in the training split of .*x/a .* and in the test split of .*y/a"
    ):
        open_weighted_sets([tmp_path / "x" / "a", tmp_path / "y" / "a"])


def test_pieces_of_a_source_are_in_one_split_over_all_sets(tmp_path: Path) -> None:
    content = ClipContent(torch.zeros(3, 16, 16), torch.zeros(STORED_BINS, 4, 16, 16))
    for name, split, group in (
        ("x", "train", "park"),
        ("y", "test", "park"),
        ("z", "test", "pond"),
        ("old", "test", ""),
    ):
        with ClipSetWriter(tmp_path / name, {}) as writer:
            writer.write(ClipRow(f"piece_{name}", f"/videos/{name}.mp4", split=split, group=group), content)
            writer.finish()
    message = r"source park is in the training split of .*x \(piece_x\) and in the test split of .*y; give it"
    for names in ("xy", "yx", "xzy"):
        with pytest.raises(ClipSetError, match=message) as caught:
            open_sets([tmp_path / name for name in names], 0)
        assert "\n" not in str(caught.value) and caught.value.is_user_error
    # a set of before the group was kept
    table = tmp_path / "old" / "clips.csv"
    table.write_text("".join(line.rsplit(",", 2)[0] + "\n" for line in table.read_text().splitlines()))
    assert "group" not in table.read_text()
    assert len(open_sets([tmp_path / "x", tmp_path / "z", tmp_path / "old"], 0)) == 3


def test_without_data_a_second_training_waits_for_the_scenes_of_the_first(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "scenes" / f"1-seed0-v{SCENES_VERSION}"
    folder.mkdir(parents=True)
    lock, waits = lock_folder(folder), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            lock.release()

    monkeypatch.setattr(data_sets, "time", types.SimpleNamespace(sleep=sleep))
    caplog.set_level("INFO")
    ((clip_set, weight),) = open_sets(None, 0, num=1)
    assert len(waits) == 2 and weight == 1 and len(clip_set.rows()) == 1
    (said,) = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert "another run is writing there" in said


# -------------------------------------------------------------------------------------------------- cached latents


def test_cached_latents_are_those_of_the_augmented_spectrum(tmp_path: Path) -> None:
    clip_set, vae = make_set(tmp_path / "a", 2), tiny_vae()
    latents = make_latents([(clip_set, 1.0)], tmp_path / "cache", vae)
    latents.encode(torch.device("cpu"))
    for epoch in range(4):
        sample = latents[SampleKey(1, epoch, 77)]
        size = variant_sizes(32, 64)[epoch]
        assert sample["image"].shape == (3, *size) and sample["latents"].shape == (4, 4, size[0] // 8, size[1] // 8)
        assert sample["confidence"].shape == (1, size[0] // 8, size[1] // 8)
        geometry = latents.geometry(clip_set.rows()[1], epoch, (32, 48))
        spectrum, confidence = clip_set.spectrum("clip01", 4)
        with torch.no_grad():
            exact = vae.encode_spectrum(geometry.spectrum(spectrum)[None], "bf16")[0]
        # a byte a number: half a step of the largest of its map
        limit = exact.abs().amax((-2, -1), keepdim=True) / 127 * 0.51
        assert ((sample["latents"] - exact).abs() <= limit + 1e-6).all()
        expected = resize_maps(geometry.maps(confidence), (size[0] // 8, size[1] // 8))
        torch.testing.assert_close(sample["confidence"], expected, atol=0.5 / 255 + 1e-4, rtol=0)
        picture = jitter_colours(geometry.maps(clip_set.first("clip01")), np.random.default_rng(77))
        assert torch.equal(sample["image"], picture)
    whole = make_latents([(clip_set, 1.0)], tmp_path / "cache", vae, augment=False, sizes=((32, 48),))
    whole.encode(torch.device("cpu"))
    assert torch.equal(whole[SampleKey(0, 0, 5)]["image"], clip_set.first("clip00"))


def test_a_clip_takes_less_than_a_fifth_of_a_megabyte(tmp_path: Path) -> None:
    """At the size that is trained: 256 x 160 px, 16 bins, f = 8, four variants."""
    vae = tiny_vae(num_bins=NUM_BINS)
    assert vae.downsample_factor == 8 and vae.latent_channels == 4
    clip_set = make_set(tmp_path / "a", 1, size=(160, 256))
    latents = LatentDataset(
        [(clip_set, 0.5)], "train", vae, NUM_BINS, tmp_path / "cache", sizes=variant_sizes(160, 256)
    )
    latents.encode(torch.device("cpu"))
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    assert path == latents.clip_path(0, clip_set.rows()[0]) and 100_000 < path.stat().st_size < 200_000


def test_what_is_encoded_is_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_set, vae, cpu = make_set(tmp_path / "a", 3), tiny_vae(), torch.device("cpu")
    latents = make_latents([(clip_set, 1.0)], tmp_path / "cache", vae)
    latents.encode(cpu)
    written = {path.name: path.read_bytes() for path in latents.folder.iterdir()}
    assert len(written) == 3
    lost = latents.clip_path(0, clip_set.rows()[1])
    lost.unlink()
    with pytest.raises(ClipSetError, match=r"0-clip01.safetensors: cannot be read .*; delete it") as caught:
        latents[SampleKey(1, 0, 0)]
    assert "\n" not in str(caught.value)
    asked, encode = [], MotionVAE.encode_spectrum
    monkeypatch.setattr(MotionVAE, "encode_spectrum", lambda *a: asked.append(1) or encode(*a))
    make_latents([(clip_set, 0.4)], tmp_path / "cache", vae).encode(cpu)  # the weight changes no file
    assert len(asked) == 4 and {path.name: path.read_bytes() for path in latents.folder.iterdir()} == written
    lost.write_bytes(written[lost.name][:1000])
    with pytest.raises(ClipSetError, match="cannot be read"):
        latents[SampleKey(1, 0, 0)]


def test_a_weight_above_1_has_variants_of_its_own(tmp_path: Path) -> None:
    latents = make_latents([(make_set(tmp_path / "a", 2), 2.0)], tmp_path / "cache", augment=True)
    latents.encode(torch.device("cpu"))
    assert len(latents) == 4 and latents.item_name(2) == "a/clip00"
    assert not torch.equal(latents[SampleKey(0, 0, 1)]["latents"], latents[SampleKey(2, 0, 1)]["latents"])


def test_the_cache_is_invalid_when_set_vae_or_augmentation_change(tmp_path: Path, monkeypatch) -> None:
    clip_set = make_set(tmp_path / "a", 2)
    cache = tmp_path / "cache"

    def name(sets: list | None = None, vae: MotionVAE | None = None, **options) -> str:
        return make_latents(sets or [(clip_set, 1.0)], cache, vae, **options).folder.name

    first = name()
    assert name() == first == name([(clip_set, 0.5)])
    clip_set.folder.rename(tmp_path / "moved")
    moved = ClipSet(tmp_path / "moved")
    assert name([(moved, 1.0)]) == first
    (tmp_path / "moved").rename(clip_set.folder)

    trained = tiny_vae()
    with torch.no_grad():
        next(trained.parameters()).view(-1)[0] += 1e-3
    rescaled = tiny_vae()
    rescaled.register_to_config(scaling_factor=2.0)
    names = [first, name(vae=trained), name(vae=rescaled), name(seed=1), name(augment=False)]
    names += [
        name(sizes=((32, 64),)),
        name([(clip_set, 2.0)]),
        name([(clip_set, 1.0), (make_set(tmp_path / "b"), 1.0)]),
    ]
    monkeypatch.setattr(latents_module, "GEOMETRY_SETTINGS", {"crop_area": [0.5, 1.0]})
    names.append(name())
    monkeypatch.undo()
    # A clip prepared again at the same place, its row and the statistics the same.
    spectrum = clip_set.folder / "spectra" / "clip00.npz"
    np.savez(spectrum, **dict(np.load(spectrum)))
    names.append(name([(ClipSet(clip_set.folder), 1.0)]))
    names.append(name([(make_set(tmp_path / "c" / "a", 3), 1.0)]))
    assert len(set(names)) == len(names)
