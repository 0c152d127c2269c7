"""benchmark.py page: a table of tiny networks in a real browser, bad flags in one line. No time is held to a limit."""

from __future__ import annotations

import importlib.util

import pytest
from result_tables import read_list

import benchmark
from benchmarks.page import find_browser


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed")
def test_the_page_is_timed(photograph, checkpoint, tmp_path, capsys):
    flags = ["--picture", photograph, "--sizes", 64, 96, "--seconds", 0.3, "--repeats", 1]
    flags += ["--minutes", 0.02, "--checkpoint", checkpoint, "--device", "cpu", "--out", tmp_path]
    assert benchmark.main(["page", *map(str, flags)]) == 0
    rows = read_list(tmp_path)
    assert [row["row"] for row in rows] == ["64 px", "96 px"]
    for row in rows:
        assert row["times_rest"] == pytest.approx(row["frames_per_s"] / row["rest_frames_per_s"])
        assert row["frames_per_s"] > 0 and row["first_frame_s"] > 0 and row["picture_s"] > 0 and 0 < row["page_mb"] < 1
        assert abs(row["heap_growth_kb"]) < 2000
    printed = capsys.readouterr().out
    assert "Chromium" in printed and "0.02 min in wind" in printed


def test_mistakes_about_the_page_are_one_line(tmp_path, capsys):
    assert benchmark.main(["page", "--sizes", "8", "--out", str(tmp_path / "new")]) == 2
    assert "--sizes: expected a whole number of at least 32, got '8'" in capsys.readouterr().err
    assert benchmark.main(["page", "--browser", "no-such-browser", "--out", str(tmp_path / "new")]) == 2
    assert "browser no-such-browser: no such program" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
