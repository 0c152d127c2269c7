"""Clip sets as the trainings take them: without unreadable clips, of one grid, with statistics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.clips import ClipSet, ClipSetError, SampleKey
from data.datasets import MotionDataset
from models.device import ArgumentError
from models.vae import MotionVAE
from training.data_sets import motion_sets
from training.latents import LatentDataset


def copy_of(scene_set, folder: Path) -> ClipSet:
    shutil.copytree(scene_set.folder, folder)
    return ClipSet(folder)


def spoil(clip_set: ClipSet, clip_id: str, number: float) -> None:
    path = clip_set.folder / "spectra" / f"{clip_id}.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["spectrum"][2, 1, 5, 7] = number
    np.savez(path, **arrays)


def test_clips_that_are_not_finite_are_skipped_counted_and_named(scene_set, tmp_path, caplog):
    clip_set = copy_of(scene_set, tmp_path / "bad")
    train, (test,) = clip_set.rows("train"), clip_set.rows("test")
    spoil(clip_set, train[1].id, float("nan"))
    spoil(clip_set, train[4].id, float("inf"))
    with caplog.at_level("WARNING"):
        ((checked, weight),) = motion_sets([(clip_set, 2.0)], (64, 96), 4)
    assert weight == 2.0 and f"2 of {len(train) + 1} clips are skipped" in caplog.text
    for row in (train[1], train[4]):
        assert f"clip {row.id}: spectrum in spectra/{row.id}.npz holds NaN or Inf" in caplog.text
    left = [row.id for row in train if row not in (train[1], train[4])]
    assert [row.id for row in checked.rows("train")] == left and [row.id for row in checked.rows("test")] == [test.id]
    motions = MotionDataset([(checked, 1.0)], num_bins=4, size=(64, 96))
    assert len(motions) == len(left)
    for item in range(len(left)):
        assert torch.isfinite(motions[SampleKey(item, 0, item)]["spectrum"]).all()


def test_spectra_that_were_read_well_are_not_read_again(scene_set, tmp_path, monkeypatch):
    clip_set = copy_of(scene_set, tmp_path / "set")
    rows, original, read = clip_set.rows(), ClipSet.spectrum, []
    monkeypatch.setattr(ClipSet, "spectrum", lambda self, name, *a: read.append(name) or original(self, name, *a))

    def look() -> tuple[list[str], bool]:
        del read[:]
        ((checked, _),) = motion_sets([(clip_set, 1.0)], (64, 96), 4)
        return sorted(read), checked is clip_set

    (tmp_path / "set" / "cache").mkdir(exist_ok=True)
    (tmp_path / "set" / "cache" / "readable.json").write_text("[1")  # cut off, as by a full disk
    assert look() == (sorted(row.id for row in rows), True)
    assert look() == ([], True)
    spoil(clip_set, rows[3].id, float("nan"))
    assert look() == ([rows[3].id], False) == look()
    # a set that cannot be written, here as a file is in the place of the folder
    shutil.rmtree(tmp_path / "set" / "cache")
    (tmp_path / "set" / "cache").write_text("")
    assert len(look()[0]) == len(look()[0]) == len(rows)


def test_sets_without_bad_clips_are_taken_as_they_are(scene_set, caplog):
    ((checked, _),) = motion_sets([(scene_set, 1.0)], (96, 64), 24)  # turned, but of the same size
    assert checked is scene_set and not caplog.records


def test_latents_leave_out_what_cannot_be_read(scene_set, tmp_path):
    clip_set = copy_of(scene_set, tmp_path / "bad")
    bad = clip_set.rows("train")[0].id
    spoil(clip_set, bad, float("nan"))
    vae = MotionVAE(block_channels=(8, 8, 8), norm_groups=4, motion_scale_px=[0.5] * 4)
    sets = motion_sets([(clip_set, 1.0)], (64, 96), 4)
    dataset = LatentDataset(sets, "train", vae, 4, tmp_path / "cache", sizes=((64, 96),))
    dataset.encode(torch.device("cpu"))
    assert len(list(dataset.folder.iterdir())) == len(dataset) == len(clip_set.rows("train")) - 1
    assert all(bad not in dataset.item_name(item) for item in range(len(dataset)))


@pytest.mark.parametrize(
    ("changes", "bins", "said"),
    [
        ({"scale_px": None}, 4, "no statistics; finish preparing it"),
        ({"scale_px": [1.0, 0.5]}, 4, "bins 4: .* has statistics of 2 bins; right: so many or fewer"),
        ({"scale_px": [1.0, float("nan"), 1.0, 1.0]}, 4, "statistics.json is damaged"),
        ({"scale_px": "much"}, 4, "statistics.json is damaged"),
        ({"period_s": None}, 4, "statistics.json is damaged"),
        ({"grid": [160, 256]}, 4, "grid 96x64: .* was made at 256x160 px.*right: 256x160"),
        ({"grid": [32, 64]}, 4, "right: 64x32"),
    ],
)
def test_sets_that_cannot_be_trained_on_are_refused(scene_set, tmp_path, changes, bins, said):
    clip_set = copy_of(scene_set, tmp_path / "set")
    path = clip_set.folder / "statistics.json"
    statistics = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in statistics.items() if value is not None}))
    with pytest.raises((ArgumentError, ClipSetError), match=said) as refused:
        motion_sets([(ClipSet(clip_set.folder), 1.0)], (64, 96), bins)
    assert refused.value.is_user_error and "\n" not in str(refused.value)


def test_sets_of_different_sizes_or_periods_are_refused(scene_set, tmp_path):
    other = copy_of(scene_set, tmp_path / "set")
    path = other.folder / "statistics.json"
    statistics = json.loads(path.read_text())
    for changes, said in (({"grid": [160, 256]}, "256x160"), ({"period_s": 4.0}, r"periods, \[4.0, 5.0\] s")):
        path.write_text(json.dumps(statistics | changes))
        with pytest.raises(ArgumentError, match=said):
            motion_sets([(scene_set, 1.0), (ClipSet(other.folder), 1.0)], (64, 96), 4)
