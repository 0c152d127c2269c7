"""Clip sets: format, resuming, two runs at once, bad files."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_sets import SIZE, files_of, make_set, random_content

from cluster.items import Workers, run_items
from data.clip_writer import ClipContent, ClipSetWriter, lock_folder, rows_of_set, write_clip
from data.clips import STORED_BINS, ClipRow, ClipSet, ClipSetError, SampleKey, motion_metrics
from data.datasets import MotionDataset, RenderingDataset
from data.files import MediaError
from motion.spectrum import NUM_BINS, mean_displacement, truncate

ROOT = Path(__file__).resolve().parent.parent


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
    with ClipSetWriter(tmp_path / "old", {"flow_version": 2}) as writer:
        writer.finish()
    with pytest.raises(ClipSetError, match="flow_version was 2, is 3"):
        rows_of_set(tmp_path / "old", {"flow_version": 3})
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
    assert isinstance(caught.value.__cause__.__cause__, zlib.error) and "\n" not in str(caught.value)
    np.savez(path, spectrum=np.full((STORED_BINS, 4, *SIZE), 1e300), confidence=np.ones((1, *SIZE)))
    with pytest.raises(ClipSetError, match="spectrum in spectra/clip0.npz holds NaN or Inf"):
        clip_set.spectrum("clip0")


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


def test_an_error_in_a_job_ends_the_processes_and_reaches_the_caller():
    with run_items(math.sqrt, [4, -1], Workers(0), "job") as results:
        assert [(done.item, done.result, type(done.error)) for done in results] == [
            (4, 2.0, type(None)),
            (-1, None, ValueError),
        ]
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError), run_items(math.sqrt, [1, -1, 2], Workers(2), "job") as results:
        for done in results:
            done.value()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "spectrum",
            np.zeros((24, 3, *SIZE), np.float16),
            r"spectrum in spectra/clip0.npz is float16 \(24, 3,",
        ),
        ("confidence", np.zeros((1, 5, 6), np.float16), "confidence in spectra/clip0.npz .*does not fit"),
        ("spectrum", np.zeros((0, 4, *SIZE), np.float16), "does not fit"),
        ("spectrum", np.zeros((24, 4, *SIZE), np.int16), "does not fit"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(tmp_path, name, array, message):
    clip_set = make_set(tmp_path / "set", 2)
    path = clip_set.folder / "spectra" / "clip0.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez_compressed(path, **{**arrays, name: array})
    with pytest.raises(ClipSetError, match=message) as caught:
        clip_set.spectrum("clip0")
    assert str(clip_set.folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "format_version is not 1"),
        ("[" * 100_000, "not JSON"),
        ('{"format_version": 1, "settings": 3}', "is damaged .settings is no dict"),
        ('{"format_version": 1, "scale_px": 3}', "is damaged .scale_px is no list"),
        ('{"format_version": 1, "scale_px": [1], "period_s": "x"}', "statistics.json is damaged"),
    ],
)
def test_statistics_that_are_damaged_are_one_line(tmp_path, text, message):
    folder = make_set(tmp_path / "set", 2).folder
    (folder / "statistics.json").write_text(text)
    with pytest.raises(ClipSetError, match=message) as caught:
        ClipSet(folder).normalisation(1)
    assert "statistics.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("clip_id", ["../other", "/etc/passwd", "a/b"])
def test_a_table_cannot_name_files_outside_its_set(tmp_path, clip_id):
    """prepare_data.py removes the files of rows that it does not know."""
    folder = make_set(tmp_path / "set", 2).folder
    table = folder / "clips.csv"
    table.write_text(table.read_text().replace("clip1,", f"{clip_id},"))
    with pytest.raises(ClipSetError, match="clips.csv: line 3 is damaged"):
        ClipSet(folder)


def test_the_statistics_are_the_same_for_any_number_of_workers(tmp_path, monkeypatch):
    before = make_set(tmp_path / "set", clips=5).statistics
    monkeypatch.setattr("data.clip_writer._CLIPS_AT_ONCE", 2)
    with ClipSetWriter(tmp_path / "set", before["settings"]) as writer:
        writer.add(ClipRow("new", "new.mp4", status="dropped", reason="static"))
        assert writer.finish(Workers(2)).statistics == before
