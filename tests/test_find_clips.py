"""Which clips a set is made of: files, folders, CSV files; their splits, groups and names, in new and growing sets."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from clip_sets import files_of
from videos import ALL, FAST, swaying, write_video

import prepare_data
from data import optical_flow
from data import prepare_clip as sources
from data.clips import ClipRow, ClipSet
from data.find_clips import find_clips, fit_to_set, name_groups


def test_the_split_follows_the_source_never_the_clip(videos, tmp_path):
    table = tmp_path / "m.csv"
    table.write_text("path,source\n" + "".join(f"{i}.mp4,source{i // 4}\n" for i in range(400)))
    jobs = list(find_clips([table], [], {}))
    splits = [job.split for job in jobs]
    assert all(len({*splits[i : i + 4]}) == 1 for i in range(0, 400, 4))
    assert 4 <= splits[::4].count("test") <= 20
    known = tmp_path / "known.csv"
    known.write_text("file,split\nelsewhere/sway.mp4,test\nshort.mp4,train\n")
    jobs = {job.id: job.split for job in find_clips([videos], [known], {})}
    assert jobs["sway"] == "test" and jobs["short"] == "train"


def test_equal_names_in_two_folders_get_ids_of_their_own(videos, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sway.mp4").write_bytes(b"x")
    (tmp_path / "b" / "a b#.MP4").write_bytes(b"x")
    ids = [job.id for job in find_clips([videos, tmp_path / "b"], [], {})]
    assert len(ids) == len(set(ids)) == 6 and "a_b_" in ids


def test_a_set_grows_by_a_video_of_the_same_name_and_knows_its_own_again(tmp_path, capsys):
    for index, name in enumerate("ab"):
        write_video(tmp_path / name / "clip.mp4", swaying(24, 12, seed=index), 12)
    out = tmp_path / "set"
    flags = [*FAST, "--workers", "1", "--out", str(out), "--split-from"]
    splits = tmp_path / "splits.csv"
    splits.write_text("path,split\nclip.mp4,train\n")
    flags.append(str(splits))
    assert prepare_data.main(["videos", str(tmp_path / "a"), str(tmp_path / "a" / "clip.mp4"), *flags]) == 0
    assert len(ClipSet(out).rows(status=ALL)) == 1
    # one after the other, together, and in the other order: two clips, and no more
    for paths in ("b",), ("a", "b"), ("b", "a"), ("a",):
        assert prepare_data.main(["videos", *(str(tmp_path / path) for path in paths), *flags]) == 0
        sources_of = [row.source for row in ClipSet(out).rows(status=ALL)]
        assert sorted(sources_of) == [str((tmp_path / name / "clip.mp4").resolve()) for name in "ab"]
    capsys.readouterr()
    splits.write_text("path,split\nclip.mp4,test\n")
    assert prepare_data.main(["videos", str(tmp_path / "a"), *flags]) == 2
    assert "is a train clip of this set" in capsys.readouterr().err


def test_no_video_and_no_source_is_in_both_splits(tmp_path):
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / name).touch()
    table = tmp_path / "clips.csv"
    table.write_text("path,start,split\none.mp4,0,train\none.mp4,1,test\n")
    with pytest.raises(ValueError, match="both splits"):
        list(find_clips([table], [], {}))
    table.write_text("path,split,source\none.mp4,train,park\ntwo.mp4,test,park\n")
    with pytest.raises(ValueError, match="park: is in both splits"):
        list(find_clips([table], [], {}))


def test_parts_of_a_video_that_start_close_together_have_names_of_their_own(tmp_path):
    (tmp_path / "one.mp4").touch()
    table = tmp_path / "clips.csv"
    parts = "one.mp4,1234.567,\none.mp4,1234.571,\none.mp4,0,2\none.mp4,0,5\none.mp4,0,5\n"
    table.write_text("path,start,seconds\n" + parts)
    ids = [job.id for job in find_clips([table], [], {})]
    assert ids[:2] == ["one_1234.567s", "one_1234.571s"]
    assert len(set(ids)) == len(ids) == 4


@pytest.fixture
def two_parts(videos, tmp_path):
    """Return a function that prepares parts of sway.mp4, lines start,seconds,source, into one set."""

    def prepare(*lines: str, name: str = "set", flags: tuple[str, ...] = ()) -> int:
        table = tmp_path / "parts.csv"
        table.write_text("path,split,start,seconds,source\n" + "".join(f"{videos}/sway.mp4,train,{x}\n" for x in lines))
        return prepare_data.main(["videos", str(table), "--out", str(tmp_path / name), *FAST, *flags])

    return prepare


def test_other_seconds_of_a_clip_are_refused_and_another_start_is_another_clip(two_parts, tmp_path, capsys):
    def rows() -> dict[tuple, int]:
        found = ClipSet(tmp_path / "set").rows(status=ALL)
        return {(row.start_s, row.limit_s): row.frames for row in found}

    assert two_parts("0,2,") == 0 and rows() == {(0.0, 2.0): 20}
    capsys.readouterr()
    for seconds in ("3", ""):
        for flags in ((), ("--dry-run",)):
            assert two_parts(f"0,{seconds},", flags=flags) == 2
            (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
            assert "from 0 s with seconds = 2, not" in line and "delete the row sway in clips.csv" in line
    assert rows() == {(0.0, 2.0): 20}
    assert two_parts("0,2,", "0,3,", "1.5,2,") == 0
    assert rows() == {(0.0, 2.0): 20, (0.0, 3.0): 30, (1.5, 2.0): 20}
    before = files_of(tmp_path / "set")
    assert two_parts("1.5,2,", "0,3,", "0,2,") == 0 and "3 of 3 videos are done" in capsys.readouterr().out
    assert two_parts("0,3,") == 0 and files_of(tmp_path / "set") == before
    # the row deleted, as the message says
    table = tmp_path / "set" / "clips.csv"
    table.write_text("".join(line + "\n" for line in table.read_text().splitlines() if not line.startswith("sway,")))
    assert two_parts("0,4,", "0,3,") == 0 and rows() == {(0.0, 3.0): 30, (0.0, 4.0): 40, (1.5, 2.0): 20}


def test_the_group_is_kept_and_holds_the_split_of_a_set_that_grows(two_parts, videos, tmp_path, capsys):
    assert two_parts("0,2,") == 0 and ClipSet(tmp_path / "set").rows(status=ALL)[0].group == ""
    # a set of before it was kept gains it
    assert two_parts("0,2,city  park") == 0 and ClipSet(tmp_path / "set").rows(status=ALL)[0].group == "city park"
    (tmp_path / "more.csv").write_text(f"path,split,source\n{videos}/short.mp4,test,city park\n")
    flags = ["videos", str(tmp_path / "more.csv"), "--out", str(tmp_path / "set"), *FAST]
    assert prepare_data.main(flags) == 2
    assert "city park: is a train clip of this set, not a test one" in capsys.readouterr().err


def test_parts_of_a_video_under_two_sources_keep_them(two_parts, tmp_path):
    def groups() -> dict[str, str]:
        return {row.id: row.group for row in ClipSet(tmp_path / "set").rows(status=ALL)}

    for _ in range(2):
        assert two_parts("0,2,garden", "2,2,park") == 0 and groups() == {"sway": "garden", "sway_2s": "park"}
    # later clips have that of their first, and other videos nothing of it
    job = sources.ClipJob("a", Path("/a.mp4"), "train", group="garden")
    table = [ClipRow("a", "/a.mp4"), ClipRow("a-5s", "/a.mp4", 5.0), ClipRow("a_5s", "/a.mp4", 5.0)]
    table += [ClipRow("a-7s", "/b.mp4", 7.0), ClipRow("b", "/b.mp4")]
    assert [row.id for row in name_groups([job], table)] == ["a", "a-5s"]


def test_a_folder_before_a_csv_does_not_hide_its_splits_and_sources(videos, tmp_path, caplog):
    table = tmp_path / "clips.csv"
    table.write_text(
        f"path,split,source,start\n{videos}/sway.mp4,test,garden,\n"
        f"{videos}/short.mp4,test,park,1\n{videos}/still.mp4,,wall,\n"
    )
    names = tmp_path / "names.csv"
    names.write_text("path,split\nbroken.mp4,train\nstill.mp4,test\n")
    for paths in ([videos, table], [table, videos]):
        jobs = {job.id: (job.split, job.group) for job in find_clips(paths, [names], {})}
        assert jobs == {
            "sway": ("test", "garden"),
            "short": ("test", "park"),
            "short_1s": ("test", "park"),
            "still": ("test", "wall"),
            "broken": ("train", ""),
        }
    assert not caplog.records  # each video has its split from one of the two


def test_a_name_with_two_spaces_is_known_again(videos, tmp_path, capsys):
    shutil.copy(videos / "short.mp4", tmp_path / "a  b.mp4")
    flags = ["videos", str(tmp_path / "a  b.mp4"), "--out", str(tmp_path / "set"), *FAST]
    assert prepare_data.main(flags) == 0 and prepare_data.main(flags) == 0
    assert "1 of 1 videos are done already" in capsys.readouterr().out
    assert [row.source for row in ClipSet(tmp_path / "set").rows(status=ALL)] == [str(tmp_path / "a  b.mp4")]


def test_the_later_clips_of_a_row_that_was_deleted_go_with_it(videos, long_videos, tmp_path):
    def ids() -> set[str]:
        return {row.id for row in ClipSet(tmp_path / "set").rows(status=ALL)}

    video, table = tmp_path / "one.mp4", tmp_path / "set" / "clips.csv"
    flags = ["videos", str(video), "--out", str(tmp_path / "set"), *FAST, "--clips-per-video", "3"]
    shutil.copy(long_videos / "shots.mp4", video)
    assert prepare_data.main(flags) == 0 and ids() == {"one", "one-3s", "one-8s"}
    table.write_text("".join(line + "\n" for line in table.read_text().splitlines() if not line.startswith("one,")))
    # another video now, of which nothing is kept
    shutil.copy(videos / "still.mp4", video)
    assert prepare_data.main(flags) == 0 and ids() == {"one"}
    assert not [path for path in files_of(tmp_path / "set") if "one" in path]


def test_a_video_that_could_not_be_read_may_change_its_split_and_seconds(videos, tmp_path):
    table = tmp_path / "clips.csv"
    shutil.copy(videos / "broken.mp4", tmp_path / "one.mp4")
    flags = ["videos", str(table), "--out", str(tmp_path / "set"), *FAST]
    table.write_text("path,split,source\none.mp4,train,park\n")
    assert prepare_data.main(flags) == 3
    shutil.copy(videos / "short.mp4", tmp_path / "one.mp4")
    table.write_text("path,split,source,seconds\none.mp4,test,park,1\n")
    assert prepare_data.main(flags) == 0
    (row,) = ClipSet(tmp_path / "set").rows(status=ALL)
    assert (row.id, row.split, row.group, row.limit_s) == ("one", "test", "park", 1.0)
    # two parts asked for do not both take its place
    bad = {"one": ClipRow("one", "/one.mp4", limit_s=9.0, status="dropped", reason="unreadable: x")}
    jobs = [sources.ClipJob("one", Path("/one.mp4"), "train", seconds=seconds) for seconds in (1.0, 2.0)]
    ids = [job.id for job in fit_to_set(jobs, bad)]
    assert ids[0] == "one" and re.fullmatch("one-[0-9a-f]{6}", ids[1])
    # a row that does not say how much it may use stands for all of the video
    with pytest.raises(ValueError, match=r"seconds = inf, not 1 \(inf: to the end\)"):
        fit_to_set(jobs, {"one": ClipRow("one", "/one.mp4")})


def test_other_raft_weights_for_the_same_set_are_refused(two_parts, tmp_path, monkeypatch, capsys):
    for name in ("estimate_flow", "estimate_backward_flow"):
        quick = getattr(sources, name)
        swapped = lambda *a, _quick=quick, **_: _quick(*a, method="dis_fast")  # noqa: E731
        monkeypatch.setattr(sources, name, swapped)
    monkeypatch.setattr(optical_flow, "estimate_flow", lambda *_, **__: None)
    weights = [tmp_path / name for name in ("a.pth", "b.pth")]
    for path in weights:
        path.write_bytes(path.name.encode())
    flags = [("--method", "raft", "--raft-weights", str(path)) for path in weights]
    assert two_parts("0,2,", flags=flags[0]) == 0
    shutil.copy(weights[0], tmp_path / "moved.pth")
    assert two_parts("0,2,", flags=(*flags[0][:3], str(tmp_path / "moved.pth"))) == 0
    capsys.readouterr()
    assert two_parts("1,2,", flags=flags[1]) == 2
    assert re.search(r"raft_weights was [0-9a-f]{16}, is [0-9a-f]{16}", capsys.readouterr().err)


def test_videos_that_split_from_does_not_name_are_counted(videos, tmp_path, caplog):
    table, other = tmp_path / "splits.csv", tmp_path / "other.csv"
    table.write_text("file,split,source\nx/sway.mp4,test,garden\nunused.mp4,train,\n")
    other.write_text("file,split\nshort.mp4,train\n")
    jobs = {job.id: job for job in find_clips([videos], [table, other], {})}
    assert (jobs["sway"].split, jobs["sway"].group, jobs["short"].split) == ("test", "garden", "train")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"{table}, {other}: 2 of 4 videos are not named there, such as {videos / 'broken.mp4'};" in warning
    caplog.clear()
    # a CSV of videos is looked up as well, where it has no split of its own
    parts = tmp_path / "parts.csv"
    parts.write_text(f"path,split\n{videos}/sway.mp4,\n{videos}/broken.mp4,train\n")
    assert [job.split for job in find_clips([parts], [table], {})] == ["test", "train"]
    assert list(find_clips([videos], [], {})) and not caplog.records
