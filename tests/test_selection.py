"""Sets made of some clips of another."""

from __future__ import annotations

import shutil

import pytest
import torch
from clip_sets import SIZE, files_of, random_content

from data.clip_writer import ClipContent, ClipSetWriter, select_clips
from data.clips import DROPPED, STORED_BINS, ClipRow, ClipSet, ClipSetError


def sized_set(folder, split: str = "train", **sizes: float) -> ClipSet:
    """A set of clips of which every pixel moves by a mean of so many px."""
    shutil.rmtree(folder, ignore_errors=True)
    with ClipSetWriter(folder, {}) as writer:
        for name, size in sizes.items():
            spectrum = torch.zeros(STORED_BINS, 4, *SIZE)
            spectrum[0, 1] = 2 * size * (SIZE[0] * SIZE[1] / (160 * 256)) ** 0.5  # a drift: its mean is the half
            writer.write(ClipRow(name, f"{name}.mp4", split=split), ClipContent(torch.zeros(3, *SIZE), spectrum))
        return writer.finish()


def selected(clip_set: ClipSet, folder) -> dict[str, str]:
    chosen = select_clips(clip_set, folder, max_mean_px=1.0)
    drifts = {row.id: float(chosen.spectrum(row.id)[0][0, 1].mean()) for row in chosen.rows()}
    expected = {row.id: float(clip_set.spectrum(row.id)[0][0, 1].mean()) for row in chosen.rows()}
    assert drifts == expected  # the files are those of now
    assert set(path.stem for path in (folder / "spectra").iterdir()) == set(drifts)
    return {row.id: row.reason for row in chosen.rows(status=(DROPPED,))} | dict.fromkeys(drifts, "")


def test_a_selection_follows_its_source(tmp_path):
    first = sized_set(tmp_path / "all", calm=0.9, wild=1.1, gone=0.5, lost=1.1)
    far = "not selected: mean displacement 1.12 px is above 1"  # the mean of 1/50, 2/50 ... 1 times the drift
    assert selected(first, tmp_path / "some") == {"calm": "", "wild": far, "gone": "", "lost": far}
    # prepared again, with other figures for the same rows
    second = sized_set(tmp_path / "all", calm=1.1, wild=0.9, new=0.3)
    assert selected(second, tmp_path / "some") == {"calm": far, "wild": "", "new": ""}
    third = sized_set(tmp_path / "all", calm=1.1, wild=0.8, new=0.3)
    assert selected(third, tmp_path / "some") == {"calm": far, "wild": "", "new": ""}
    # the same files, but another split
    third = sized_set(tmp_path / "all", "test", calm=1.1, wild=0.8, new=0.3)
    assert selected(third, tmp_path / "some") == {"calm": far, "wild": "", "new": ""}
    assert {row.split for row in ClipSet(tmp_path / "some").rows()} == {"test"}
    assert selected(third, tmp_path / "fresh") == selected(third, tmp_path / "some")
    assert files_of(tmp_path / "fresh") == files_of(tmp_path / "some")


def test_an_unfinished_source_is_not_selected_from(tmp_path):
    with ClipSetWriter(tmp_path / "all", {}) as writer:
        writer.write(ClipRow("a", "a.mp4"), random_content(0))
    with pytest.raises(ClipSetError, match="all: is not finished; run"):
        select_clips(ClipSet(tmp_path / "all"), tmp_path / "some", only=["a"])
    assert not (tmp_path / "some").exists()
