"""CSV files as people and spreadsheets make them: what is clear is read the same, the rest is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from clip_sets import make_set

import prepare_data
from data.clips import ClipSet, ClipSetError
from data.files import MediaError
from data.find_clips import find_clips
from data.masks import find_masked_photographs
from data.tables import read_table
from evaluation.licences import read_source_table

PLAIN = "path,start,seconds,split,source\na.mp4,1.5,2,test,park\nb.mp4,0,,train,garden\n"


def parts(path: Path) -> list[tuple]:
    jobs = find_clips([path], [], {})
    return [(job.path.name, job.start_s, job.seconds, job.split, job.group) for job in jobs]


WRITTEN = {
    "plain": PLAIN,
    "a space after each comma": PLAIN.replace(",", ", "),
    "byte-order mark": "\ufeff" + PLAIN,
    "semicolons": PLAIN.replace(",", ";"),
    "semicolons and decimal commas": PLAIN.replace(",", ";").replace("1.5", "1,5"),
    "tabs": PLAIN.replace(",", "\t"),
    "separator named": "sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n"),
    "Windows' ends": PLAIN.replace("\n", "\r\n"),
    "no end": PLAIN.rstrip("\n"),
    "empty lines": PLAIN.replace("\n", "\n\n") + ",,,,\n",
    "quotes": PLAIN.replace("a.mp4", '"a.mp4"').replace("path", '"path"'),
    "quotes after a space": PLAIN.replace(",test,", ', "test",').replace(",train,", ', "train",'),
    "a quoted line break": PLAIN.replace("park", '"park\n"'),
    "case and spaces": PLAIN.replace("path", "Path ").replace("split", "SPLIT").replace("test", "Test "),
    "other names": PLAIN.replace("path,start,seconds", "file,start_s,duration").replace("source", "group"),
    "names with brackets": PLAIN.replace("start,seconds", "start (s),duration (s)"),
    "an empty last column": PLAIN.replace("\n", ",\n"),
    "columns for people": PLAIN.replace("source\n", "source,fps,remarks\n").replace("park", 'park,25,"a, b"'),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_is_clear_is_read_the_same(tmp_path, kind):
    text = WRITTEN[kind]
    (tmp_path / "clips.csv").write_bytes(text.encode())
    expected = [("a.mp4", 1.5, 2.0, "test", "park"), ("b.mp4", 0.0, None, "train", "garden")]
    assert parts(tmp_path / "clips.csv") == expected
    (tmp_path / "wide.csv").write_bytes(text.removeprefix("\ufeff").encode("utf-16"))  # as Excel's "Unicode text"
    assert parts(tmp_path / "wide.csv") == expected


REFUSED = {
    "path,begin\na.mp4,2\n": "the column 'begin' is not known; right: path (or file, filename), start (or start_s",
    "path,start,end_s\na.mp4,2,3\n": "the column 'end_s' is not known",
    "a.mp4\nb.mp4\n": "the column 'a.mp4' is not known",
    "path|start\na.mp4|2\n": "the column 'path|start' is not known",
    "start,split\n2,test\n": "lacks the columns ['path']",
    "path,start,start_s\na.mp4,1,2\n": "the column start is there twice",
    "path,file\na.mp4,b.mp4\n": "the column path is there twice",
    "path,start\na, b.mp4,2\n": "line 2 has more cells than the heading; quote those with a ,",
    "path,\na.mp4,2\n": "line 2 has more cells than the heading",
    'path,seconds\na.mp4,"1,234"\n': "line 2 is wrong; columns: ",
    "path,start\na.mp4,0:12\n": "line 2 is wrong; columns: ",
    "path,split\n\na.mp4,validation\n": "line 3 is wrong; columns: ",
    'path,source\n"a.mp4\n","b\nc"\nb.mp4,\n,d\n': "line 6 is wrong; columns: ",
    "path\na\0.mp4\n": "cannot be read as CSV (it holds bytes of zero)",
    "": "is empty (0 bytes); give a CSV file",
}


@pytest.mark.parametrize("text", REFUSED)
def test_the_rest_is_refused_in_one_line(tmp_path, text, capsys):
    (tmp_path / "clips.csv").write_bytes(text.encode())
    (tmp_path / "clip.mp4").touch()
    for flags in (
        [str(tmp_path / "clips.csv")],
        [str(tmp_path / "clip.mp4"), "--split-from", str(tmp_path / "clips.csv")],
    ):
        assert prepare_data.main(["videos", *flags, "--out", str(tmp_path / "set")]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / 'clips.csv'}: {REFUSED[text]}" in error and error.count("\n") == 1
        assert not (tmp_path / "set").exists()


def test_a_text_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("path\ncaf\xe9.mp4\n".encode("latin-1"))
    with pytest.raises(MediaError, match=r"a.csv: cannot be read as CSV \(.*\); right: UTF-8"):
        read_table(tmp_path / "a.csv")


def test_rows_of_other_kinds_are_counted(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("path,kind\na.mp4,clip\nb.jpg,photo\nc.jpg,photo\n")
    assert [part[0] for part in parts(tmp_path / "a.csv")] == ["a.mp4"]
    assert "a.csv: left out are 2 rows whose kind is not clip (such as photo)" in caplog.text


def test_every_table_is_read_so(tmp_path):
    """Licences, photographs with masks, and the table of a set that a spreadsheet has saved."""
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbfGroup; License\r\npark; CC0\r\n")
    assert read_source_table(tmp_path / "l.csv", "licences") == {"park": {"licence": "CC0"}}
    (tmp_path / "l.csv").write_text("source,licence,terms\npark,CC0,none\n")
    with pytest.raises(ValueError, match="the column 'terms' is not known"):
        read_source_table(tmp_path / "l.csv", "licences")
    with pytest.raises(MediaError, match="the column 'terms' is not known"):
        find_masked_photographs(tmp_path, tmp_path, tmp_path / "l.csv")
    clip_set = make_set(tmp_path / "set")
    table = clip_set.folder / "clips.csv"
    saved = table.read_text().replace(",", ";").replace("25.0", "25,0").replace("\n", "\r\n")
    table.write_bytes(b"\xef\xbb\xbf" + saved.encode())
    assert ClipSet(clip_set.folder).rows() == clip_set.rows()
    table.write_text(saved.replace("median_flow_px", "flow"))
    with pytest.raises(ClipSetError, match="clips.csv: the column 'flow' is not known; right: id, source, start_s"):
        ClipSet(clip_set.folder)
