"""Files and clip sets at URLs: in memory, and on a server that speaks S3."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from clip_sets import files_of
from videos import FAST

import animate
import evaluate
import prepare_data
from cluster import storage
from cluster.storage import StorageError, existing, local_input, local_output, path_or_url, url_of
from data.clip_writer import ClipSetWriter, write_record
from data.clips import ClipRow, ClipSet, ClipSetError
from data.files import write_text
from data.shards import open_set

ROOT = Path(__file__).resolve().parents[1]
SCENES = ["scenes", "--size", "64x48", "--pairs", "1", "--kinds", "flag,reeds"]


def objects(url: str) -> dict[str, bytes]:
    """Return what lies at a URL but for the records, as `files_of` does of a folder."""
    system, name = fsspec.core.url_to_fs(url, use_listings_cache=False)
    found = {path.removeprefix(name).lstrip("/"): system.cat_file(path) for path in system.find(name)}
    return {path: content for path, content in found.items() if not path.startswith("rows/")}


@pytest.fixture
def memory():
    fsspec.filesystem("memory").store.clear()
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


def test_a_url_keeps_its_meaning_as_a_path():
    assert url_of(Path("s3://bucket/a") / "b.png") == "s3://bucket/a/b.png"
    assert path_or_url("file:///tmp/a") == Path("/tmp/a") and url_of(path_or_url("file:///tmp/a")) is None
    assert [url_of(path) for path in ("C:/x", "scene:3:flag", "a:b/c", "/s3:/x", "x/s3:/y")] == [None] * 5


def test_files_are_put_whole_or_not_at_all(memory, monkeypatch):
    with pytest.raises(RuntimeError), local_output(Path(f"{memory}/a/x.txt")) as file:
        file.write_text("half")
        raise RuntimeError
    assert objects(memory) == {}
    write_text(Path(f"{memory}/a/x.txt"), "whole")
    with local_input(f"{memory}/a/x.txt") as file:
        assert file.name == "x.txt" and file.read_text() == "whole"
    paths = [Path(f"{memory}/a/{name}") for name in ("x.txt", "y.txt")]
    assert existing(paths) == {paths[0]}
    with pytest.raises(StorageError, match="memory://bucket/a/y.txt: is not there"), local_input(paths[1]):
        pass
    # a file system without objects: written aside and renamed
    monkeypatch.setattr(storage, "_OBJECT_STORES", set())
    write_text(Path(f"{memory}/b/y.txt"), "renamed")
    assert objects(memory) == {"a/x.txt": b"whole", "b/y.txt": b"renamed"}


def test_a_set_at_a_url_is_that_of_a_folder_and_goes_on(memory, tmp_path, capsys):
    out = ["--workers", "0", "--out", f"{memory}/set"]
    assert prepare_data.main([*SCENES, "--num", "2", *out]) == 0
    assert prepare_data.main([*SCENES, "--num", "4", *out]) == 0
    assert prepare_data.main([*SCENES, "--num", "4", "--out", str(tmp_path / "set"), "--workers", "0"]) == 0
    local = files_of(tmp_path / "set")
    del local[".lock"]
    assert objects(f"{memory}/set") == local
    assert prepare_data.main([*SCENES[:-2], "--num", "4", *out]) == 2
    assert f"error: {memory}/set: made with other settings" in capsys.readouterr().err


def test_two_runs_add_to_a_set_at_a_url_and_none_of_their_rows_is_lost(memory):
    rows = [ClipRow(f"clip{index}", f"{index}.mp4", status="dropped", reason="static") for index in range(6)]
    folder = Path(f"{memory}/set")
    with ClipSetWriter(folder, {}) as one, ClipSetWriter(folder, {}) as other:
        for index, row in enumerate(rows):
            writer = (one, other)[index % 2]
            write_record(folder, [row])
            writer.add(row)
        one.finish()
        other.finish()
    assert ClipSet(folder).rows(status=("dropped",)) == rows
    with ClipSetWriter(folder, {}) as again:
        assert sorted(again.rows) == [row.id for row in rows]
    with pytest.raises(ClipSetError, match="made with other settings"):
        ClipSetWriter(folder, {"fps": 10})


def test_photographs_and_videos_at_urls(memory, checkpoint, photograph, tmp_path, capsys):
    system = fsspec.filesystem("memory")
    system.pipe(f"{memory}/photos/a.png", photograph.read_bytes())
    system.pipe(f"{memory}/photos/broken.png", b"no image")
    common = ["--steps", "2", "--size", "64", "--seconds", "0.2", "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert animate.main([f"{memory}/photos", "--out", f"{memory}/videos", *common]) == 3
    assert animate.main([str(photograph), "--out", str(tmp_path / "a.mp4"), *common]) == 0
    assert objects(f"{memory}/videos") == {"a.mp4": (tmp_path / "a.mp4").read_bytes()}
    capsys.readouterr()
    assert animate.main([f"{memory}/photos", "--out", f"{memory}/videos", *common, "--skip-existing"]) == 2
    assert "1 of 1 images failed" in capsys.readouterr().err
    assert animate.main([f"{memory}/none", "--out", str(tmp_path), *common]) == 2
    assert "memory://bucket/none: is not there" in capsys.readouterr().err
    assert animate.main([str(photograph), "--out", f"{memory}/x", "--format", "frames", *common]) == 2
    assert "--format frames: a folder cannot be put to memory://bucket/x" in capsys.readouterr().err


def test_shards_at_a_url_are_read_in_parts(memory, scene_set):
    assert prepare_data.main(["shards", str(scene_set.folder), "--out", f"{memory}/shards"]) == 0
    shards = open_set(f"{memory}/shards")
    by_source = {row.source: row.id for row in scene_set.rows()}
    assert {row.source for row in shards.rows()} == set(by_source)
    row = shards.rows("train")[3]
    assert shards.spectrum(row.id)[0].equal(scene_set.spectrum(by_source[row.source])[0])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://bucket/set", "gs://bucket/set/clips.csv: Please install gcsfs"),
        ("strange://bucket/set", "strange://bucket/set/clips.csv: Protocol not known: strange"),
    ],
)
def test_a_scheme_without_its_package_is_one_line(capsys, url, said):
    if url.startswith("gs") and importlib.util.find_spec("gcsfs"):
        pytest.skip("this machine has the package for gs://")
    assert prepare_data.main([*SCENES, "--num", "2", "--out", url]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_without_ray_a_line_tells_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert prepare_data.main([*SCENES, "--num", "2", "--out", str(tmp_path / "set"), "--cluster", "local"]) == 2
    said = "--cluster local: the package ray is not installed; right: pip install -r requirements-cluster.txt"
    assert capsys.readouterr().err.splitlines()[-1] == f"prepare_data.py: error: {said}"


@pytest.mark.parametrize("flag", ["--cpus-per-worker", "--gpus-per-worker", "--item-seconds"])
def test_flags_of_a_cluster_need_one(capsys, tmp_path, flag):
    assert prepare_data.main([*SCENES, "--num", "2", "--out", str(tmp_path / "set"), flag, "2"]) == 2
    assert f"{flag}: belongs to --cluster; right: both, or neither" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ S3


@pytest.fixture(scope="module")
def bucket():
    """A bucket of a server on this machine."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -r requirements-cluster.txt")
    server_of = pytest.importorskip("moto.server", reason="no S3 server to test with: pip install 'moto[server]'")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
    for name, value in {**settings, "DEFAULT_REGION": "us-east-1"}.items():
        patch.setenv(f"AWS_{name}", value)
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    patch.undo()
    server.stop()


@pytest.mark.cluster
def test_a_set_on_s3_is_interrupted_goes_on_by_two_runs_at_once_and_is_read_back(bucket, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-cluster.txt")
    flags = [*SCENES, "--num", "16", "--out"]
    start = [sys.executable, "prepare_data.py", *flags, f"{bucket}/sets/scenes"]
    options = {"cwd": ROOT, "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    driver = subprocess.Popen([*start, "--cluster", "local", "--workers", "2"], **options)
    system, deadline = fsspec.filesystem("s3", use_listings_cache=False), time.monotonic() + 90
    while time.monotonic() < deadline and len(system.find("bucket/sets/scenes/rows")) < 3:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert 0 < len(system.find("bucket/sets/scenes/rows")) < 16
    two = [subprocess.Popen([*start, *more], **options) for more in (["--workers", "0"], ["--cluster", "local"])]
    assert [driver.wait(timeout=200) for driver in two] == [0, 0]
    assert prepare_data.main([*flags, str(tmp_path / "set"), "--workers", "0"]) == 0
    local = files_of(tmp_path / "set")
    del local[".lock"]
    assert objects(f"{bucket}/sets/scenes") == local
    one, other = ClipSet(f"{bucket}/sets/scenes"), ClipSet(tmp_path / "set")
    assert one.rows() == other.rows() and one.statistics == other.statistics
    clip = one.rows()[0].id
    assert one.spectrum(clip)[0].equal(other.spectrum(clip)[0]) and one.first(clip).equal(other.first(clip))


@pytest.mark.cluster
def test_videos_on_s3_are_prepared_and_measured(bucket, videos, checkpoint, tmp_path, capsys):
    fsspec.filesystem("s3").put(str(videos), "bucket/clips", recursive=True)
    flags = [*FAST, "--workers", "0", "--out"]
    assert prepare_data.main(["videos", f"{bucket}/clips", *flags, f"{bucket}/sets/videos"]) == 3
    said = capsys.readouterr().err
    assert "broken-" in said and f"{bucket}/clips/broken.mp4" in said and "/tmp" not in said
    assert prepare_data.main(["videos", f"{bucket}/clips", *flags, f"{bucket}/sets/videos"]) == 3
    assert "3 of 4 videos are done already" in capsys.readouterr().out
    tables = ["frames", "--data", f"{bucket}/sets/videos", "--split", "train", "--every", "20"]
    tables += ["--checkpoint", str(checkpoint), "--device", "cpu"]
    assert evaluate.main([*tables, "--out", f"{bucket}/tables"]) == 0
    made = objects(f"{bucket}/tables")
    assert {"results.md", "results.json", "by_clip/results.csv"} <= set(made)
    assert b"1 sequences" in made["results.md"] or b"2 sequences" in made["results.md"]


@pytest.mark.cluster
def test_missing_credentials_are_one_line(tmp_path, capsys, monkeypatch, bucket):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    assert prepare_data.main([*SCENES, "--num", "2", "--out", f"{bucket}/other"]) == 2
    error = capsys.readouterr().err
    assert "s3://bucket/other/clips.csv: no credentials" in error and error.count("\n") == 1
    fsspec.filesystem("s3").clear_instance_cache()
