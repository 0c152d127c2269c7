"""evaluate.py sources: every source that was trained on, once, with what a CSV tells of it."""

from __future__ import annotations

import json
from pathlib import Path

import evaluate
from data.clip_writer import ClipSetWriter
from data.clips import KEPT, PAIRS_ONLY, ClipRow

SETTINGS = {"made_of": "videos"}


def make_set(folder: Path) -> Path:
    """Write a table of clips without their files: two of a group, one without a group, one test clip, one dropped."""
    rows = [
        ClipRow("meadow_a", "/videos/meadow_a.mp4", group="meadow", status=KEPT),
        ClipRow("meadow_b", "/videos/meadow_b.mp4", group="meadow", status=PAIRS_ONLY),
        ClipRow("flag", "/videos/flag.mp4", status=KEPT),
        ClipRow("pond", "/videos/pond.mp4", group="pond", split="test", status=KEPT),
        ClipRow("pan", "/videos/pan.mp4", group="pan", status="dropped", reason="camera motion"),
        ClipRow("scene_000000001", "scene:1:meadow", status=KEPT),
    ]
    with ClipSetWriter(folder, SETTINGS) as writer:
        writer.add(*rows)
    return folder


def table(tmp_path: Path, *flags: str) -> dict[str, dict]:
    assert (
        evaluate.main(["sources", "--data", str(make_set(tmp_path / "set")), *flags, "--out", str(tmp_path / "t")]) == 0
    )
    return {row.pop("row"): row for row in json.loads((tmp_path / "t" / "results.json").read_text())}


def test_sources_are_listed_with_what_the_csv_tells(tmp_path, capsys):
    """By group, or by file name where a clip has none; a pipe does not end a cell of the card."""
    csv = tmp_path / "clips.csv"
    csv.write_text(
        "file,source,subject,origin,licence\nmeadow_a.mp4,meadow,grass,web: a|b,CC BY 4.0\nclips/flag.mp4,,flag,,own\n"
    )
    rows = table(tmp_path, "--licences", str(csv))
    assert set(rows) == {"meadow", "flag.mp4", "rendered scenes"}
    assert rows["meadow"] == {
        "clips": 1,
        "pairs_only": 1,
        "subject": "grass",
        "origin": "web: a|b",
        "licence": "CC BY 4.0",
    }
    assert rows["flag.mp4"]["licence"] == "own" and rows["flag.mp4"]["origin"] == "not stated"
    assert rows["rendered scenes"]["licence"] == "none needed"
    assert "web: a\\|b" in (tmp_path / "t" / "results.md").read_text()


def test_what_no_csv_names_is_said_to_be_unknown(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        rows = table(tmp_path)
    assert rows["meadow"]["licence"] == "not stated" and "2 of 3 sources is not stated" in caplog.text


def test_a_csv_that_names_nothing_is_refused(tmp_path, capsys):
    csv = tmp_path / "clips.csv"
    csv.write_text("subject,licence\na,b\n")
    flags = ["sources", "--data", str(make_set(tmp_path / "set")), "--out", str(tmp_path / "t")]
    for path, said in (
        (csv, "right: columns source, or file or path, and licence"),
        (tmp_path / "no.csv", "there is no such file"),
    ):
        capsys.readouterr()
        assert evaluate.main([*flags, "--licences", str(path)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"evaluate.py: error: --licences {path}: ") and said in line
