"""evaluate.py data: figures of two sets that can be computed by hand, what is said where they differ, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from result_tables import read_rows

import evaluate
from data.clip_writer import ClipContent, ClipSetWriter
from data.clips import DROPPED, PAIRS_ONLY, STORED_BINS, ClipRow

SIZE = (32, 48)


def add_clip(writer: ClipSetWriter, name: str, size_px: float, *, split: str = "train", source: str = "") -> None:
    """A clip of one amplitude at every frequency: |S_k| = 5 size over the left half, and unseen on the right."""
    spectrum = torch.zeros(STORED_BINS, 4, *SIZE)
    spectrum[1:, 0], spectrum[1:, 3] = 3 * size_px, -4 * size_px  # re_x, im_y
    spectrum[2] *= 0
    spectrum[0, 0], spectrum[0, 1] = 1000, size_px  # the dependent part is left out, the drift is not
    spectrum[..., 24:] = 0
    confidence = torch.zeros(1, *SIZE)
    confidence[..., :24] = 1
    row = ClipRow(name, source or f"{name}.mp4", split=split, moving_fraction=0.5 * size_px, median_flow_px=size_px)
    writer.write(row, ClipContent(torch.zeros(3, *SIZE), spectrum, confidence))


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    with ClipSetWriter(tmp_path / "real", {}) as writer:
        add_clip(writer, "a", 0.5, source="one.mp4")
        add_clip(writer, "b", 1.0, source="one.mp4")
        add_clip(writer, "c", 1.5)
        add_clip(writer, "test", 100.0, split="test")
        writer.write(ClipRow("short", "short.mp4", status=PAIRS_ONLY), ClipContent(torch.zeros(3, *SIZE)))
        writer.add(ClipRow("bad", "bad.mp4", status=DROPPED, reason="a cut"))
        writer.finish()
    with ClipSetWriter(tmp_path / "scenes", {}) as writer:
        add_clip(writer, "a", 0.25)
        add_clip(writer, "b", 0.75)
        add_clip(writer, "wild", 8.0)
        writer.finish()
    return [str(tmp_path / "real"), str(tmp_path / "scenes")]


def test_figures_by_hand(sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert evaluate.main(["data", "--data", *sets, "--out", str(out)]) == 0
    table = read_rows(out)
    assert list(table)[:2] == ["bin 00 (drift)", "bin 01"] and len(table) == STORED_BINS
    # mean sizes 1 and 3, medians 1 and 0.75; the unseen half counts for nothing
    for name, scale in {"bin 00 (drift)": 1, "bin 01": 5, "bin 23": 5}.items():
        row = table[name]
        assert row["real_px"] == pytest.approx(scale, rel=1e-3)
        assert row["scenes_px"] == pytest.approx(3 * scale, rel=1e-3)
        assert row["ratio_scenes_to_real"] == pytest.approx(3, rel=1e-3)
        assert row["scenes_median_px"] == pytest.approx(0.75 * scale, rel=1e-3)
        assert row["median_ratio_scenes_to_real"] == pytest.approx(0.75, rel=1e-3)
    assert table["bin 03"]["frequency_hz"] == pytest.approx(0.6)
    assert table["bin 02"]["real_px"] == 0 and table["bin 02"]["ratio_scenes_to_real"] is None

    summary = read_rows(out / "sets")
    real = {"row": "real", "clips": 3, "source_files": 2, "moving_fraction": 0.5, "median_flow_px": 1.0}
    assert summary["real"] == pytest.approx(real | {"confidence": 0.5})
    assert summary["scenes"]["clips"] == summary["scenes"]["source_files"] == 3

    printed = capsys.readouterr().out
    assert "| bin 01 | 0.2000 | 5.00 | 15.00 | 3.00 |" in printed and "| scenes | 3 | 3 |" in printed
    text = (out / "results.md").read_text()
    assert "split train" in text and "seed 0" in text and "evaluate.py data --data" in text
    assert (out / "results.csv").is_file() and (out / "sets" / "results.csv").is_file()


def test_split_and_a_draw_of_clips(sets: list[str], tmp_path: Path) -> None:
    def real(*flags: str) -> dict:
        assert evaluate.main(["data", "--data", sets[0], *flags, "--out", str(tmp_path / "out")]) == 0
        return {**read_rows(tmp_path / "out" / "sets")["real"], **read_rows(tmp_path / "out")["bin 00 (drift)"]}

    assert (real("--split", "test")["clips"], real("--split", "all")["clips"]) == (1, 4)
    assert real("--split", "test")["real_px"] == pytest.approx(100, rel=1e-3)
    drawn = {round(real("--clips", "1", "--seed", str(seed))["real_px"], 2) for seed in range(12)}
    assert drawn == {0.5, 1.0, 1.5}


def test_sets_of_one_name_are_told_apart(sets: list[str], tmp_path: Path) -> None:
    Path(sets[1]).rename(tmp_path / "other_real")
    (tmp_path / "x").mkdir()
    (tmp_path / "other_real").rename(tmp_path / "x" / "real")
    flags = ["--data", sets[0], str(tmp_path / "x" / "real"), "--out", str(tmp_path / "out")]
    assert evaluate.main(["data", *flags]) == 0
    assert list(read_rows(tmp_path / "out" / "sets")) == [f"{tmp_path.name}/real", "x/real"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "missing: --data"),
        (["--data", "nowhere"], "nowhere: not a clip set"),
        (["--data", "REAL", "REAL"], "is named twice; right: each folder once"),
        (["--data", "SCENES", "--split", "test"], "no kept clip of split test"),
        (["--data", "REAL", "--split", "validation"], "--split validation: right: train, test, all"),
        (["--data", "REAL", "--clips", "0"], "--clips"),
        (["--data", "REAL", "--out", "FILE"], "is a file; name a folder"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    names = {"REAL": sets[0], "SCENES": sets[1], "FILE": str(tmp_path / "file")}
    flags = [names.get(flag, flag) for flag in flags]
    out = [] if "--out" in flags else ["--out", str(tmp_path / "out")]
    assert evaluate.main(["data", *flags, *out]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and len(lines) == 1
    assert not (tmp_path / "out").exists()


def test_sets_of_other_periods_do_not_compare(sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with ClipSetWriter(tmp_path / "slow", {}, period_s=10.0) as writer:
        add_clip(writer, "a", 1.0)
        writer.finish()
    assert evaluate.main(["data", "--data", sets[0], str(tmp_path / "slow"), "--out", str(tmp_path / "out")]) == 2
    assert "different periods, [5.0, 10.0] s" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_help_is_there(capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--data SET [SET ...]", "--split", "--clips N", "--seed", "--out"))
    assert evaluate.main(["--help"]) == 0
    assert "clip sets side by side" in capsys.readouterr().out
