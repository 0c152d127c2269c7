"""Which clips a set is made of: files, folders, CSV files; their splits, groups and names, in new and growing sets."""

from __future__ import annotations

import re
import shutil

import pytest
from clip_sets import files_of
from videos import ALL, FAST, name_of, rows_by_name, swaying, write_video

import prepare_data
from data import optical_flow
from data import prepare_clip as sources
from data.clips import ClipSet
from data.find_clips import find_clips


def test_the_split_follows_the_source_never_the_clip(videos, tmp_path):
    table = tmp_path / "m.csv"
    table.write_text("path,source\n" + "".join(f"{i}.mp4,source{i // 4}\n" for i in range(400)))
    jobs = find_clips([table], [], {})
    splits = [job.split for job in jobs]
    assert all(len({*splits[i : i + 4]}) == 1 for i in range(0, 400, 4))
    assert 4 <= splits[::4].count("test") <= 20
    known = tmp_path / "known.csv"
    known.write_text("file,split\nelsewhere/sway.mp4,test\nshort.mp4,train\n")
    jobs = {name_of(job.id): job.split for job in find_clips([videos], [known], {})}
    assert jobs["sway"] == "test" and jobs["short"] == "train"


def test_equal_names_in_two_folders_get_ids_of_their_own(videos, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sway.mp4").write_bytes(b"x")
    (tmp_path / "b" / "a b#.MP4").write_bytes(b"x")
    ids = [job.id for job in find_clips([videos, tmp_path / "b"], [], {})]
    assert len(ids) == len(set(ids)) == 6 and "a_b_" in map(name_of, ids)


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
        find_clips([table], [], {})
    table.write_text("path,split,source\none.mp4,train,park\ntwo.mp4,test,park\n")
    with pytest.raises(ValueError, match="park: is in both splits"):
        find_clips([table], [], {})


def test_parts_of_a_video_have_ids_of_their_own_and_repeats_are_one(tmp_path):
    (tmp_path / "one.mp4").touch()
    table = tmp_path / "clips.csv"
    table.write_text("path,start,seconds\none.mp4,1234.567,\none.mp4,0,2\none.mp4,0,5\none.mp4,0,5.0\n")
    ids = [job.id for job in find_clips([table, tmp_path / "one.mp4"], [], {})]
    assert len(set(ids)) == len(ids) == 4 and {name_of(name) for name in ids} == {"one"}
    assert ids == [job.id for job in find_clips([table, tmp_path], [], {})]  # an id depends on nothing else


@pytest.mark.parametrize(
    "line", ["one.mp4,-1,,", "one.mp4,nan,,", "one.mp4,soon,,", "one.mp4,0,0,", "one.mp4,0,1,dev", ",0,,"]
)
def test_a_line_that_cannot_be_understood_is_named(tmp_path, line):
    (tmp_path / "clips.csv").write_text(f"path,start,seconds,split\none.mp4,0,,\n{line}\n")
    with pytest.raises(ValueError, match="clips.csv: line 3 is wrong; columns: path"):
        find_clips([tmp_path / "clips.csv"], [], {})


@pytest.fixture
def two_parts(videos, tmp_path):
    """Return a function that prepares parts of sway.mp4, lines start,seconds,source, into one set."""

    def prepare(*lines: str, name: str = "set", flags: tuple[str, ...] = ()) -> int:
        table = tmp_path / "parts.csv"
        table.write_text("path,split,start,seconds,source\n" + "".join(f"{videos}/sway.mp4,train,{x}\n" for x in lines))
        return prepare_data.main(["videos", str(table), "--out", str(tmp_path / name), *FAST, *flags])

    return prepare


def test_other_starts_and_seconds_are_clips_of_their_own(two_parts, tmp_path, capsys):
    def rows() -> dict[tuple, int]:
        found = ClipSet(tmp_path / "set").rows(status=ALL)
        return {(row.start_s, row.limit_s): row.frames for row in found}

    assert two_parts("0,2,") == 0 and rows() == {(0.0, 2.0): 20}
    assert two_parts("0,2,", "0,3,", "1.5,2,") == 0
    assert rows() == {(0.0, 2.0): 20, (0.0, 3.0): 30, (1.5, 2.0): 20}
    before = files_of(tmp_path / "set")
    capsys.readouterr()
    assert two_parts("1.5,2,", "0,3,", "0,2,") == 0 and "3 of 3 videos are done" in capsys.readouterr().out
    assert two_parts("0,3,") == 0 and files_of(tmp_path / "set") == before


def test_clips_under_ids_of_older_versions_are_prepared_anew(two_parts, tmp_path):
    assert two_parts("0,2,", "1.5,2,", name="fresh") == 0 and two_parts("0,2,", "1.5,2,") == 0
    table = tmp_path / "set" / "clips.csv"
    for start, old in (("0.0", "sway"), ("1.5", "sway_1.5s")):
        (clip,) = [row.id for row in ClipSet(tmp_path / "set").rows(status=ALL) if row.start_s == float(start)]
        table.write_text(table.read_text().replace(clip, old))
        for path in (tmp_path / "set").glob(f"*/{clip}.*"):
            path.rename(path.with_name(old + path.suffix))
    assert {row.id for row in ClipSet(tmp_path / "set").rows(status=ALL)} == {"sway", "sway_1.5s"}
    assert two_parts("0,2,", "1.5,2,") == 0
    assert files_of(tmp_path / "set") == files_of(tmp_path / "fresh")


def test_the_group_is_kept_and_holds_the_split_of_a_set_that_grows(two_parts, videos, tmp_path, capsys):
    assert two_parts("0,2,") == 0 and ClipSet(tmp_path / "set").rows(status=ALL)[0].group == ""
    # a set of before it was kept gains it
    assert two_parts("0,2,city  park") == 0 and ClipSet(tmp_path / "set").rows(status=ALL)[0].group == "city park"
    (tmp_path / "more.csv").write_text(f"path,split,source\n{videos}/short.mp4,test,city park\n")
    flags = ["videos", str(tmp_path / "more.csv"), "--out", str(tmp_path / "set"), *FAST]
    assert prepare_data.main(flags) == 2
    assert "city park: is a train clip of this set, not a test one" in capsys.readouterr().err


def test_parts_of_a_video_under_two_sources_keep_them(two_parts, tmp_path):
    for _ in range(2):
        assert two_parts("0,2,garden", "2,2,park") == 0
        groups = {row.start_s: row.group for row in ClipSet(tmp_path / "set").rows(status=ALL)}
        assert groups == {0.0: "garden", 2.0: "park"}


def test_later_clips_gain_the_group_of_their_first(long_videos, tmp_path):
    table = tmp_path / "clips.csv"
    flags = ["videos", str(table), "--out", str(tmp_path / "set"), *FAST, "--clips-per-video", "2"]
    for group in ("", "garden"):
        table.write_text(f"path,split,source\n{long_videos}/shots.mp4,train,{group}\n")
        assert prepare_data.main(flags) == 0
        groups = {name: row.group for name, row in rows_by_name(tmp_path / "set").items()}
        assert set(groups.values()) == {group} and len(groups) == 3


def test_a_folder_before_a_csv_does_not_hide_its_splits_and_sources(videos, tmp_path, caplog):
    caplog.set_level("WARNING", "data")
    table = tmp_path / "clips.csv"
    table.write_text(
        f"path,split,source,start\n{videos}/sway.mp4,test,garden,\n"
        f"{videos}/short.mp4,test,park,1\n{videos}/still.mp4,,wall,\n"
    )
    names = tmp_path / "names.csv"
    names.write_text("path,split\nbroken.mp4,train\nstill.mp4,test\n")
    for paths in ([videos, table], [table, videos]):
        jobs = {(name_of(job.id), job.start_s): (job.split, job.group) for job in find_clips(paths, [names], {})}
        assert jobs == {
            ("sway", 0.0): ("test", "garden"),
            ("short", 0.0): ("test", "park"),
            ("short", 1.0): ("test", "park"),
            ("still", 0.0): ("test", "wall"),
            ("broken", 0.0): ("train", ""),
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
        return set(rows_by_name(tmp_path / "set"))

    video, table = tmp_path / "one.mp4", tmp_path / "set" / "clips.csv"
    flags = ["videos", str(video), "--out", str(tmp_path / "set"), *FAST, "--clips-per-video", "3"]
    shutil.copy(long_videos / "shots.mp4", video)
    assert prepare_data.main(flags) == 0 and ids() == {"one", "one-3s", "one-8s"}
    table.write_text(re.sub(r"(?m)^one-[0-9a-f]{8},.*\n", "", table.read_text()))
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
    made = [row for row in ClipSet(tmp_path / "set").rows(status=ALL) if row.frames]
    assert [(row.split, row.group, row.limit_s) for row in made] == [("test", "park", 1.0)]


def test_other_raft_weights_for_the_same_set_are_refused(two_parts, tmp_path, monkeypatch, capsys):
    quick = optical_flow.estimate_flow
    for module in (optical_flow, sources):
        monkeypatch.setattr(module, "estimate_flow", lambda *tensors, **_: quick(*tensors, method="dis_fast"))
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
    caplog.set_level("WARNING", "data")
    table, other = tmp_path / "splits.csv", tmp_path / "other.csv"
    table.write_text("file,split,source\nx/sway.mp4,test,garden\nunused.mp4,train,\n")
    other.write_text("file,split\nshort.mp4,train\n")
    jobs = {name_of(job.id): job for job in find_clips([videos], [table, other], {})}
    assert (jobs["sway"].split, jobs["sway"].group, jobs["short"].split) == ("test", "garden", "train")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"{table}, {other}: 2 of 4 videos are not named there, such as {videos / 'broken.mp4'};" in warning
    caplog.clear()
    # a CSV of videos is looked up as well, where it has no split of its own
    parts = tmp_path / "parts.csv"
    parts.write_text(f"path,split\n{videos}/sway.mp4,\n{videos}/broken.mp4,train\n")
    assert [job.split for job in find_clips([parts], [table], {})] == ["test", "train"]
    assert find_clips([videos], [], {}) and not caplog.records
