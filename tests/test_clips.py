"""Clip sets: format, resuming, bad files; datasets: each augmentation with the matching change of the spectrum."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data.augmentation import choose_box, flip_spectrum, reverse_spectrum
from data.clip_writer import ClipContent, ClipSetWriter, lock_folder, rows_of_set, write_clip
from data.clips import DROPPED, STORED_BINS, ClipRow, ClipSet, ClipSetError, Pair, SampleKey, motion_metrics
from data.datasets import MotionDataset, RenderingDataset, open_weighted_sets
from data.files import MediaError
from data.jobs import run_jobs
from data.scenes.render_set import TEST_EVERY, _is_test_scene, render_scene_set, scene_settings
from data.selection import select_clips
from motion.spectrum import NUM_BINS, mean_displacement, spectrum_to_flow, truncate

ROOT = Path(__file__).resolve().parent.parent
SIZE = (32, 48)


def random_content(seed: int, size=SIZE, pairs: int = 2) -> ClipContent:
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(STORED_BINS, 4, *size, generator=generator)
    spectrum = truncate(spectrum, STORED_BINS)
    targets = [
        Pair(
            torch.rand(3, *size, generator=generator),
            torch.randn(2, *size, generator=generator),
            torch.rand(1, *size, generator=generator),
            0.5 * (i + 1),
        )
        for i in range(pairs)
    ]
    first = torch.rand(3, *size, generator=generator)
    return ClipContent(first, spectrum, torch.rand(1, *size, generator=generator), tuple(targets))


def make_set(folder, clips: int = 4, **kwargs) -> ClipSet:
    with ClipSetWriter(folder, {"made_of": "noise"}) as writer:
        for i in range(clips):
            row = ClipRow(f"clip{i}", f"video{i}.mp4", split="test" if i == 3 else "train", fps=25.0, frames=125)
            writer.write(row, random_content(i, **kwargs))
        return writer.finish()


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------ format


def test_what_is_written_is_read_back(tmp_path):
    clip_set, content = make_set(tmp_path / "set"), random_content(1)
    first = clip_set.first("clip1")
    assert (first - content.first).abs().max() <= 0.5 / 255 + 1e-6
    spectrum, confidence = clip_set.spectrum("clip1", STORED_BINS)
    assert spectrum.dtype == confidence.dtype == torch.float32
    torch.testing.assert_close(spectrum[1:], content.spectrum[1:], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(spectrum[0, 1::2], content.spectrum[0, 1::2], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(confidence, content.confidence, atol=1e-3, rtol=0)
    pairs, importance = clip_set.pairs("clip1")
    assert [pair.time_s for pair in pairs] == [0.5, 1.0]
    torch.testing.assert_close(pairs[1].flow, content.pairs[1].flow, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(pairs[1].reliability, content.pairs[1].reliability, atol=6e-3, rtol=0)
    assert (pairs[1].target - content.pairs[1].target).abs().max() <= 0.5 / 255 + 1e-6
    expected = mean_displacement(truncate(content.spectrum, NUM_BINS))
    torch.testing.assert_close(importance, expected, atol=1e-2, rtol=1e-3)


def test_fewer_bins_keep_frame_0_at_rest_and_the_table_has_the_agreed_columns(tmp_path):
    clip_set = make_set(tmp_path / "set")
    spectrum, _ = clip_set.spectrum("clip0", 4)
    assert spectrum.shape == (4, 4, *SIZE)
    torch.testing.assert_close(spectrum[0, 0::2], -spectrum[1:, 0::2].sum(0))
    head = (tmp_path / "set" / "clips.csv").read_text().splitlines()[0]
    columns = "id,source,start_s,fps,frames,split,median_flow_px,moving_fraction,status,reason,"
    assert head == columns + "high_flow_px,camera_px,confidence,inconsistent_fraction,group,limit_s"
    with np.load(tmp_path / "set" / "spectra" / "clip0.npz") as file:
        assert file["spectrum"].dtype == file["confidence"].dtype == np.float16
    statistics = json.loads((tmp_path / "set" / "statistics.json").read_text())
    assert statistics["num_clips"] == 3 and statistics["grid"] == list(SIZE) and statistics["period_s"] == 5.0
    assert len(statistics["scale_px"]) == STORED_BINS
    with pytest.raises(ClipSetError, match="24 bins, 30 are wanted"):
        clip_set.spectrum("clip0", 30)


def test_the_table_of_an_older_set_is_read_and_goes_on(tmp_path):
    make_set(tmp_path / "set")
    table = tmp_path / "set" / "clips.csv"
    lines = table.read_text().splitlines()
    table.write_text("".join(",".join(line.split(",")[:10]) + "\n" for line in lines))
    row = ClipSet(tmp_path / "set").rows()[0]
    assert row.camera_px is row.inconsistent_fraction is row.confidence is row.high_flow_px is row.limit_s is None
    assert row.group == ""
    with ClipSetWriter(tmp_path / "set", ClipSet(tmp_path / "set").statistics["settings"]) as writer:
        writer.write(ClipRow("new", "new.mp4", camera_px=0.5), random_content(9))
        writer.finish()
    rows = {row.id: row for row in ClipSet(tmp_path / "set").rows()}
    assert rows["new"].camera_px == 0.5 and rows["clip0"].camera_px is None


def test_statistics_are_the_weighted_95th_percentile_of_the_training_split(tmp_path):
    writer = ClipSetWriter(tmp_path / "set", {})
    for i, size in enumerate((1.0, 1.0, 100.0)):  # the last is a test clip and must not count
        spectrum = torch.zeros(STORED_BINS, 4, *SIZE)
        spectrum[0, 1], spectrum[0, 3], spectrum[2, 0] = 3 * size, 4 * size, 0.5 * size
        spectrum[:, :, :, :24] *= 10  # half of the pixels, without confidence
        confidence = torch.ones(1, *SIZE)
        confidence[:, :, :24] = 0
        content = ClipContent(torch.zeros(3, *SIZE), spectrum, confidence)
        writer.write(ClipRow(f"c{i}", "v", split="test" if i == 2 else "train"), content)
    scale = writer.finish().normalisation(16).scale
    assert scale[0] == pytest.approx(5.0, rel=0.03)  # |D|, without bin 0's real part
    assert scale[2] == pytest.approx(0.5, rel=0.03)
    assert len(scale) == 16


def test_rows_are_filtered_by_split_and_status(tmp_path):
    with ClipSetWriter(tmp_path / "set", {}) as writer:
        writer.write(ClipRow("a", "v"), random_content(0))
        writer.write(ClipRow("b", "v", status="pairs_only", reason="short"), random_content(1))
        writer.add(ClipRow("c", "w", split="test", status="dropped", reason='a "quoted", reason\nof two lines'))
        clip_set = writer.finish()
    assert [row.id for row in clip_set.rows()] == ["a"]
    assert [row.id for row in clip_set.rows(status=("kept", "pairs_only", "dropped"))] == ["a", "b", "c"]
    assert clip_set.rows("test", status=("dropped",))[0].reason == 'a "quoted", reason of two lines'
    assert len(MotionDataset([(clip_set, 1.0)])) == 1 and len(RenderingDataset([(clip_set, 1.0)])) == 2
    with pytest.raises(ClipSetError, match="no split 'val'"):
        clip_set.rows("val")


def test_a_pixel_moves_by_px_of_the_default_grid_whatever_the_grid():
    still, moving = 0.24, 0.26
    for height, width, scale in ((160, 256, 1.0), (320, 512, 2.0), (80, 128, 0.5)):
        displacement = torch.full((1, height, width), still * scale)
        displacement[:, : height // 4] = moving * scale
        assert motion_metrics(displacement)["moving_fraction"] == 0.25


def test_the_worst_clip_takes_less_than_10_megabytes(tmp_path):
    """Noise in everything that is stored, 24 bins and 6 pairs of 256 x 160 px: nothing can be packed."""
    content = random_content(0, size=(160, 256), pairs=6)
    content = ClipContent(3 * content.first, 3 * content.spectrum, content.confidence, content.pairs)
    content.slice = torch.rand(3, 150, 256, generator=torch.Generator().manual_seed(1))
    write_clip(tmp_path, "noise", content)
    sizes = [path.stat().st_size for path in tmp_path.rglob("noise.*")]
    assert len(sizes) == 4 and 8_000_000 < sum(sizes) < 10_000_000


# ---------------------------------------------------------------------------------------------- resuming


def test_an_interrupted_set_ends_equal_to_an_undisturbed_one(tmp_path):
    make_set(tmp_path / "whole")
    with ClipSetWriter(tmp_path / "cut", {"made_of": "noise"}) as writer:
        for i in (2, 0):  # another order, as several workers give
            row = ClipRow(f"clip{i}", f"video{i}.mp4", fps=25.0, frames=125)
            writer.write(row, random_content(i))
    # killed while writing a file and while writing a row
    (tmp_path / "cut" / "spectra" / ".clip3.tmp-77.npz").write_bytes(b"half")
    with (tmp_path / "cut" / "clips.csv").open("a") as file:
        file.write("clip1,video1.mp4,0.0,25")
    with ClipSetWriter(tmp_path / "cut", {"made_of": "noise"}) as writer:
        assert sorted(writer.rows) == ["clip0", "clip2"]
        for i in (3, 1):
            row = ClipRow(f"clip{i}", f"video{i}.mp4", split="test" if i == 3 else "train", fps=25.0, frames=125)
            writer.write(row, random_content(i))
        writer.finish()
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_statistics_are_taken_anew_when_a_set_is_extended_and_absent_until_then(tmp_path):
    make_set(tmp_path / "set", clips=2)
    writer = ClipSetWriter(tmp_path / "set", {"made_of": "noise"})
    assert "scale_px" in ClipSet(tmp_path / "set").statistics
    writer.write(ClipRow("clip2", "video2.mp4"), random_content(2))
    with pytest.raises(ClipSetError, match="no statistics"):  # cut short here, the old ones would be wrong
        ClipSet(tmp_path / "set").normalisation()
    assert writer.finish().statistics["num_clips"] == 3


def test_other_settings_and_foreign_folders_are_refused(tmp_path):
    make_set(tmp_path / "set", clips=1)
    with pytest.raises(ClipSetError, match="made_of was noise, is scenes"):
        ClipSetWriter(tmp_path / "set", {"made_of": "scenes"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ClipSetError, match="not a clip set"):
        ClipSetWriter(tmp_path / "full", {})
    # what no flag can repeat
    for before, now, right in (
        (
            {"flow_version": 2},
            {"flow_version": 3},
            r"another version of this program \(flow_version was 2, is 3\); name",
        ),
        ({}, {"flow_version": 3, "fps": 5}, "another version of this program"),
        ({"scenes_version": 1}, {"scenes_version": 2}, "another version of this program"),
        ({}, {"test_scenes": "of each kind"}, "another version of this program"),
        ({"kinds": []}, {"kinds": ["reeds"] * 4, "test_scenes": "of each kind"}, "repeat them or name another folder"),
        ({"made_of": "scenes", "scenes_version": 1}, {"made_of": "videos", "flow_version": 3}, "repeat them or name"),
    ):
        shutil.rmtree(tmp_path / "set")
        with ClipSetWriter(tmp_path / "set", before) as writer:
            writer.finish()
        with pytest.raises(ClipSetError, match=right):
            rows_of_set(tmp_path / "set", now)
    with pytest.raises(ClipSetError, match="prepare_data.py"):
        ClipSet(tmp_path / "absent")


def test_damage_is_told_with_the_clips_name(tmp_path):
    clip_set = make_set(tmp_path / "set")
    np.savez(
        tmp_path / "set" / "spectra" / "clip0.npz",
        spectrum=np.full((STORED_BINS, 4, *SIZE), np.nan, np.float16),
        confidence=np.ones((1, *SIZE), np.float16),
    )
    (tmp_path / "set" / "spectra" / "clip1.npz").write_bytes(b"PK broken")
    (tmp_path / "set" / "pairs" / "clip0.npz").unlink()
    (tmp_path / "set" / "first" / "clip2.png").write_text("text")
    for read, said in (
        (lambda: MotionDataset([(clip_set, 1.0)])[SampleKey(0, 0, 1)], "clip clip0: spectrum .* NaN"),
        (lambda: clip_set.spectrum("clip1"), "clip clip1: spectra/clip1.npz is damaged"),
        (lambda: clip_set.pairs("clip0"), "clip clip0: pairs/clip0.npz is missing"),
        (lambda: clip_set.first("clip2"), "clip clip2"),
    ):
        with pytest.raises(ClipSetError, match=said) as caught:
            read()
        assert "\n" not in str(caught.value) and caught.value.is_user_error


def test_damaged_compressed_data_and_overflow_are_told(tmp_path):
    clip_set = make_set(tmp_path / "set", clips=1)
    path = tmp_path / "set" / "spectra" / "clip0.npz"
    whole = path.read_bytes()
    broken = bytearray(whole)
    # The first member's data follow its local header of 30 bytes and its name: a block type that there is not.
    broken[30 + int.from_bytes(whole[26:28], "little") + int.from_bytes(whole[28:30], "little")] = 0xFF
    path.write_bytes(bytes(broken))
    with pytest.raises(ClipSetError, match=r"clip clip0: spectra/clip0.npz is damaged") as caught:
        clip_set.spectrum("clip0")
    assert isinstance(caught.value.__cause__, zlib.error) and "\n" not in str(caught.value)
    np.savez(path, spectrum=np.full((STORED_BINS, 4, *SIZE), 1e300), confidence=np.ones((1, *SIZE)))
    with pytest.raises(ClipSetError, match="spectrum in spectra/clip0.npz holds NaN or Inf"):
        clip_set.spectrum("clip0")


# ---------------------------------------------------------------------------------------------- two runs at once


def test_a_second_run_on_a_set_is_refused_until_the_first_has_ended(tmp_path):
    with ClipSetWriter(tmp_path / "set", {}) as writer:
        writer.write(ClipRow("a", "a.mp4"), random_content(0))
        with pytest.raises(MediaError, match="set: another run is writing there; wait") as caught:
            ClipSetWriter(tmp_path / "set", {})
        assert "\n" not in str(caught.value) and caught.value.is_user_error
        writer.finish()
        assert [row.id for row in ClipSet(tmp_path / "set").rows()] == ["a"]  # reading needs no lock
    with ClipSetWriter(tmp_path / "set", {}) as writer:
        assert list(writer.rows) == ["a"]


def test_a_run_that_is_killed_leaves_no_lock(tmp_path):
    program = (
        "import sys, time; from data.clip_writer import ClipSetWriter\n"
        "writer = ClipSetWriter(sys.argv[1], {}); print('written', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "set")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    with pytest.raises(MediaError, match="another run"):
        ClipSetWriter(tmp_path / "set", {})
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert (tmp_path / "set" / ".lock").exists()
    with ClipSetWriter(tmp_path / "set", {}) as writer:
        writer.finish()


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        lock_folder(tmp_path).release()


def test_a_run_killed_at_its_very_start_is_gone_on_with(tmp_path):
    (tmp_path / "set" / "first").mkdir(parents=True)
    (tmp_path / "set" / ".lock").write_text("77\n")
    (tmp_path / "set" / ".statistics.tmp-77.json").write_text("{")
    assert rows_of_set(tmp_path / "set", {}) == {}
    with ClipSetWriter(tmp_path / "set", {}) as writer:
        writer.finish()
    assert set(files_of(tmp_path / "set")) == {".lock", "clips.csv", "statistics.json"}


# ---------------------------------------------------------------------------------------------- selection


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


def test_a_selection_by_px_of_another_grid_is_not_gone_on_with(tmp_path):
    # selections of before took the px of the set's own grid: at the default area that is the same
    for index, (asked, choice, differs) in enumerate(
        (
            ({"area": 80 * 128}, {"max_mean_px": 1.0}, True),
            ({"size": [80, 128]}, {"max_mean_px": 1.0}, True),
            ({"area": 80 * 128}, {"only": ["a"]}, False),
            ({"area": 160 * 256}, {"max_mean_px": 1.0}, False),
            ({"size": [160, 256]}, {"max_mean_px": 1.0}, False),
        )
    ):
        with ClipSetWriter(tmp_path / f"all{index}", asked) as writer:
            source = writer.finish()
        wanted = {"from": str(source.folder), "max_mean_px": None, "min_confidence": None, "only": []} | choice
        with ClipSetWriter(tmp_path / f"some{index}", {**asked, "selected": wanted}) as writer:
            writer.finish()
        if differs:
            with pytest.raises(ClipSetError, match="'px_at': '256x160'"):
                select_clips(source, tmp_path / f"some{index}", **choice)
        else:
            select_clips(source, tmp_path / f"some{index}", **choice)


def test_an_unfinished_source_is_not_selected_from(tmp_path):
    with ClipSetWriter(tmp_path / "all", {}) as writer:
        writer.write(ClipRow("a", "a.mp4"), random_content(0))
    with pytest.raises(ClipSetError, match="all: is not finished; run"):
        select_clips(ClipSet(tmp_path / "all"), tmp_path / "some", only=["a"])
    assert not (tmp_path / "some").exists()


# ---------------------------------------------------------------------------------------------- datasets


def test_a_flip_of_the_spectrum_is_the_flip_of_the_flow():
    spectrum = random_content(0).spectrum
    phase = torch.tensor([0.1, 0.35, 0.8])
    mirrored = spectrum_to_flow(spectrum, phase).flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    torch.testing.assert_close(spectrum_to_flow(flip_spectrum(spectrum), phase), mirrored)


def test_reversal_plays_backwards_from_the_end():
    spectrum = random_content(0).spectrum
    phase = torch.tensor([0.0, 0.2, 0.45, 0.9, 1.0], dtype=torch.float64)
    backwards = spectrum_to_flow(spectrum, 1 - phase) - spectrum_to_flow(spectrum, torch.ones(1))
    torch.testing.assert_close(spectrum_to_flow(reverse_spectrum(spectrum), phase), backwards, atol=1e-4, rtol=1e-4)


def test_boxes_have_the_samples_aspect_and_stay_inside():
    assert choose_box((160, 256), (160, 256), None, (0.4, 1.0)) == (0, 0, 160, 256)
    assert choose_box((160, 256), (256, 160), None, (0.4, 1.0)) == (0, 78, 160, 100)
    assert choose_box((256, 160), (128, 128), None, (0.4, 1.0)) == (48, 0, 160, 160)
    rng = np.random.default_rng(0)
    boxes = [choose_box((160, 256), (192, 192), rng, (0.4, 1.0)) for _ in range(200)]
    for top, left, height, width in boxes:
        assert top >= 0 and left >= 0 and top + height <= 160 and left + width <= 256
        assert 0.89 < width / height < 1.12
    assert min(height for _, _, height, _ in boxes) < 110 and len({box[1] for box in boxes}) > 50


def ramp_set(folder, size=(64, 96)) -> ClipSet:
    """Picture, spectrum and flow that say where they are: red = x / W, green = y / H, D = (x, y)."""
    height, width = size
    x = (torch.arange(width) + 0.5).expand(height, width) / width
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    spectrum = torch.zeros(STORED_BINS, 4, height, width)
    spectrum[0, 1], spectrum[0, 3] = x, y
    spectrum[3] = 0.25
    spectrum[0, 0::2] = -0.25
    picture = torch.stack([x, y, torch.full_like(x, 0.5)])
    pair = Pair(picture, torch.stack([x, y]), torch.ones(1, height, width), 2.0)
    with ClipSetWriter(folder, {}) as writer:
        content = ClipContent(picture, spectrum, pairs=(pair,), importance=x[None])
        writer.write(ClipRow("ramp", "ramp.mp4"), content)
        return writer.finish()


@pytest.mark.parametrize("size", [(64, 96), (80, 48), (48, 48), (128, 192)])
def test_crops_flips_and_reversal_move_picture_and_spectrum_alike(tmp_path, size, monkeypatch):
    monkeypatch.setattr("data.datasets.jitter_colours", lambda images, rng: images)
    dataset = MotionDataset([(ramp_set(tmp_path / "set"), 1.0)], size=size)
    seen = set()
    for seed in range(24):
        sample = dataset[SampleKey(0, 0, seed)]
        image, drift = sample["image"], sample["spectrum"][0, 1::2]
        assert image.shape == (3, *size) and sample["confidence"].shape == (1, *size)
        mirrored = bool(image[0, 0, -1] < image[0, 0, 0])
        backwards = bool(drift[1].mean() < 0)
        seen.add((mirrored, backwards))
        # the side of the box in source px, from the slope of the picture, gives the scale of the motion
        inner = image[:, 4:-4, 4:-4]
        slope_x = float((inner[0, :, -1] - inner[0, :, 0]).abs().mean() / (inner.shape[2] - 1))
        slope_y = float((inner[1, -1] - inner[1, 0]).mean() / (inner.shape[1] - 1))
        scale_x, scale_y = 1 / (slope_x * 96), 1 / (slope_y * 64)
        sign = -1.0 if backwards else 1.0
        flip = -1.0 if mirrored else 1.0
        expected = torch.stack([image[0] * scale_x * flip * sign, image[1] * scale_y * sign])
        assert (drift - expected)[:, 4:-4, 4:-4].abs().max() < 0.03 * max(scale_x, scale_y)
        re_x, im_x, re_y, im_y = sample["spectrum"][3].mean((1, 2)).tolist()
        assert re_x == pytest.approx(0.25 * scale_x * flip, rel=0.05)
        assert im_x == pytest.approx(0.25 * scale_x * flip * sign, rel=0.05)
        assert (re_y, im_y) == pytest.approx((0.25 * scale_y, 0.25 * scale_y * sign), rel=0.05)
    assert len(seen) == 4


def test_rendering_samples_keep_flow_picture_and_importance_together(tmp_path, monkeypatch):
    monkeypatch.setattr("data.datasets.jitter_colours", lambda images, rng: images)
    clip_set = ramp_set(tmp_path / "set")
    dataset = RenderingDataset([(clip_set, 1.0)], size=(32, 32))
    flips = set()
    for seed in range(16):
        sample = dataset[SampleKey(0, 0, seed)]
        image, flow = sample["image"], sample["flow"]
        assert image.shape == sample["target"].shape == (3, 32, 32)
        assert sample["reliability"].shape == (1, 32, 32)
        flip = -1.0 if image[0, 0, -1] < image[0, 0, 0] else 1.0
        flips.add(flip)
        scale_y = 31 / float((image[1, -1] - image[1, 0]).mean() * 64)
        assert (flow[1] - image[1] * scale_y).abs().max() < 0.04 * scale_y
        assert (flow[0] * flip).min() > 0
        # px of the motion grid, whatever the size of the sample
        assert (sample["importance"][0] - image[0]).abs().max() < 0.02
    assert flips == {-1.0, 1.0}
    whole = RenderingDataset([(clip_set, 1.0)], size=(32, 48), augment=False)[SampleKey(0, 0, 0)]
    expected = clip_set.first("ramp")[:, 16:48, 24:72]  # the middle, at its own scale
    torch.testing.assert_close(whole["image"], expected)
    torch.testing.assert_close(whole["flow"], clip_set.pairs("ramp")[0][0].flow[:, 16:48, 24:72])


def test_samples_depend_on_nothing_but_the_key(tmp_path):
    make_set(tmp_path / "set")
    for kind in (MotionDataset, RenderingDataset):
        a, b = (kind([(ClipSet(tmp_path / "set"), 1.0)], size=(32, 32)) for _ in range(2))
        a[SampleKey(1, 0, 5)]  # what was read before must not matter
        one, two, other = a[SampleKey(0, 0, 7)], b[SampleKey(0, 0, 7)], a[SampleKey(0, 0, 8)]
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert not torch.equal(one["image"], other["image"])
        assert all(maps.dtype == torch.float32 and torch.isfinite(maps).all() for maps in one.values())
    plain = MotionDataset([(ClipSet(tmp_path / "set"), 1.0)], size=SIZE, augment=False)
    assert torch.equal(plain[SampleKey(0, 0, 1)]["spectrum"], plain[SampleKey(0, 3, 2)]["spectrum"])
    assert torch.equal(plain[SampleKey(0, 0, 1)]["image"], ClipSet(tmp_path / "set").first("clip0"))


def test_weights_set_how_often_a_clip_comes(tmp_path):
    make_set(tmp_path / "a"), make_set(tmp_path / "b")
    sets = open_weighted_sets([str(tmp_path / "a"), f"{tmp_path / 'b'}:0.34"])
    assert [weight for _, weight in sets] == [1.0, 0.34]
    dataset = MotionDataset(sets)  # 3 training clips and a third of 3
    assert len(dataset) == 4
    b_clips = [dataset.items[SampleKey(3, epoch, 0)] for epoch in range(3)]
    assert {clip_set.folder.name for clip_set, _ in b_clips} == {"b"}
    assert sorted(row.id for _, row in b_clips) == ["clip0", "clip1", "clip2"]
    with pytest.raises(IndexError):
        dataset[SampleKey(4, 0, 0)]
    with pytest.raises(ClipSetError, match="above 0"):
        open_weighted_sets([f"{tmp_path / 'a'}:0"])
    with pytest.raises(ClipSetError, match="not a clip set"):
        open_weighted_sets([f"{tmp_path / 'a'}:much"])
    shutil.copytree(tmp_path / "a", tmp_path / "c:0.5")  # a folder may be named so
    assert open_weighted_sets([tmp_path / "c:0.5"])[0][1] == 1.0


def test_a_set_without_clips_for_the_purpose_is_refused(tmp_path):
    clip_set = make_set(tmp_path / "set", clips=2, pairs=0)
    with pytest.raises(ClipSetError, match="no clip for this of split test"):
        MotionDataset([(clip_set, 1.0)], split="test")
    with pytest.raises(ClipSetError, match="no clip for this"):
        RenderingDataset([(clip_set, 1.0)])
    assert len(MotionDataset([(clip_set, 1.0)], split=None)) == 2


# ------------------------------------------------------------------------------------------ rendered sets


def test_a_rendered_set_resumes_extends_and_holds_exact_flow(tmp_path):
    whole = render_scene_set(tmp_path / "whole", 6, size=(48, 64), pairs=1)
    render_scene_set(tmp_path / "grown", 3, size=(48, 64), pairs=1)
    render_scene_set(tmp_path / "grown", 6, size=(48, 64), pairs=1)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "grown")
    assert [row.split for row in whole.rows()] == ["train"] * 5 + ["test"]
    from data.scenes.scene import make_scene

    row = whole.rows()[1]
    scene = make_scene(int(row.source.split(":")[1]), size=(48, 64))
    pairs, _ = whole.pairs(row.id)
    assert len(pairs) == 1 and bool((pairs[0].reliability == 1).all())
    torch.testing.assert_close(pairs[0].flow, scene.flow(pairs[0].time_s), atol=4e-3, rtol=1e-3)
    assert (whole.first(row.id) - scene.picture()).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.raises(ClipSetError, match="pairs was 1, is 0"):
        render_scene_set(tmp_path / "whole", 6, size=(48, 64), pairs=0)


@pytest.mark.parametrize("num_kinds", [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 22, 40])
def test_every_kind_is_in_both_splits_and_one_scene_in_20_is_a_test_scene(num_kinds):
    # as many scenes as give each kind one test scene, if they are shared out well
    chosen = [_is_test_scene(index, num_kinds) for index in range(TEST_EVERY * num_kinds)]
    tested = Counter(index % num_kinds for index, is_test in enumerate(chosen) if is_test)
    assert tested == {kind: 1 for kind in range(num_kinds)}
    # and wherever a set ends, its share is right
    assert all(round(n / 20) - 1 <= sum(chosen[:n]) <= n / 20 + 1 for n in range(len(chosen)))
    if math.gcd(num_kinds, TEST_EVERY) == 1:  # all kinds, drawn by seed, are one; these sets stay as they were
        assert [i for i, is_test in enumerate(chosen) if is_test] == list(range(5, len(chosen), 20))


def test_a_set_of_kinds_has_them_in_both_splits_and_does_not_go_on_with_one_of_before(tmp_path):
    options = {"seed": 0, "size": (32, 48), "pairs": 0, "backgrounds": (), "textures": ()}
    rows = render_scene_set(tmp_path / "set", 30, size=(32, 48), kinds=["still", "flag"], pairs=0).rows()
    assert {row.source.split(":")[2] for row in rows if row.split == "test"} == {"still", "flag"}
    statistics = json.loads((tmp_path / "set" / "statistics.json").read_text())
    del statistics["settings"]["test_scenes"]
    (tmp_path / "set" / "statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ClipSetError, match="test_scenes was none, is of each kind"):
        render_scene_set(tmp_path / "set", 32, size=(32, 48), kinds=["still", "flag"], pairs=0)
    for kinds in (None, ["still"], ["still", "flag", "tree"]):
        assert "test_scenes" not in scene_settings(kinds=kinds, **options)


def test_a_finished_rendered_set_is_opened_while_another_run_holds_it(tmp_path):
    made = render_scene_set(tmp_path / "set", 2, size=(32, 48), pairs=0)
    before = files_of(tmp_path / "set")
    with ClipSetWriter(tmp_path / "set", made.statistics["settings"]):
        again = render_scene_set(tmp_path / "set", 2, size=(32, 48), pairs=0)
        assert [row.id for row in again.rows()] == [row.id for row in made.rows()]
        with pytest.raises(MediaError, match="another run"):
            render_scene_set(tmp_path / "set", 3, size=(32, 48), pairs=0)
    assert files_of(tmp_path / "set") == before


def test_an_error_in_a_job_ends_the_processes_and_reaches_the_caller():
    assert list(run_jobs(divmod, [(3, 2), (5, 2)], 0)) == [(1, 1), (2, 1)]
    before = set(multiprocessing.active_children())
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(divmod, [(1, 1), (1, 0), (2, 1)], 2))
    assert set(multiprocessing.active_children()) <= before
