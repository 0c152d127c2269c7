"""Items on a Ray cluster of two nodes: the same results, through whatever dies; and mistakes in one line."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import cluster_items
import pytest
from clip_sets import files_of
from videos import FAST, rows_by_name

import animate
import evaluate
import generate_motion
import prepare_data
from cluster.items import Workers, run_items
from cluster.ray_workers import ATTEMPTS
from data.files import is_hidden

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-cluster.txt")
pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[1]
SCENES = ["scenes", "--size", "64x48", "--pairs", "1", "--kinds", "flag,reeds"]


def start_nodes() -> tuple:
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    return cluster, cluster.add_node(**small)


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes of one core each; a test that kills the second gives it a new one."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))  # for the workers
    cluster, second = start_nodes()
    yield {"cluster": cluster, "second": second}
    ray.shutdown()
    cluster.shutdown()
    patch.undo()


@pytest.fixture(autouse=True)
def disconnected():
    yield
    ray.shutdown()


@pytest.fixture
def workers(nodes):
    return Workers(None, nodes["cluster"].address)


def all_of(function, items, workers, **options) -> list:
    with run_items(function, items, workers, "item", progress=False, **options) as results:
        return list(results)


def kill_node(nodes: dict) -> None:
    """Send SIGKILL to a node's daemon and to its workers; then start another node."""
    daemon = nodes["second"].all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    for pid in [daemon, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)


def test_models_are_loaded_once_in_each_worker_and_results_come_as_they_end(workers):
    done = all_of(cluster_items.with_model, range(12), workers, load=cluster_items.slow_model)
    assert sorted(one.result[0] for one in done) == list(range(12))
    pids = {one.result[2] for one in done}
    assert len(pids) <= 2 and all(loaded_by == pid for _, loaded_by, pid in (one.result for one in done))


def test_what_raises_aborts_or_hangs_is_given_up_with_its_reason_and_the_others_are_done(workers, tmp_path):
    items = ["good", "raises", "aborts", "aborts once", "hangs", "also good"]
    limited = Workers(None, workers.cluster, item_seconds=3)
    done = {one.item: one for one in all_of(partial(cluster_items.misbehave, tmp_path), items, limited)}
    assert {item for item, one in done.items() if one.error is None} == {"good", "aborts once", "also good"}
    assert done["raises"].reason == "ValueError: of its own"
    assert done["aborts"].reason == f"its process ended, in {ATTEMPTS} attempts"
    assert done["hangs"].reason == f"took longer than 3 s, in {ATTEMPTS} attempts"
    begun = {item: (tmp_path / item).read_text().count("begun") for item in items}
    assert begun == {"good": 1, "raises": 1, "aborts": 3, "aborts once": 2, "hangs": 3, "also good": 1}


def test_a_node_that_is_killed_costs_no_item(nodes, workers, tmp_path):
    for name in ("log", "out"):
        (tmp_path / name).mkdir()
    done = []
    with run_items(partial(cluster_items.write, tmp_path, 0.25), range(40), workers, "item", progress=False) as results:
        for one in results:
            done.append(one)
            if len(done) == 12:
                kill_node(nodes)
    nodes["second"] = nodes["cluster"].add_node(num_cpus=1, object_store_memory=80 << 20)
    assert Counter(one.result for one in done) == Counter(range(40))
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir() if not is_hidden(path, tmp_path)}
    assert files == {f"{item}.txt": f"{item} whole" for item in range(40)}
    tries = [len((tmp_path / "log" / f"{item}").read_text().split()) for item in range(40)]
    assert sum(tries) in (40, 41)  # at most the item that was under way there was begun again


def test_the_driver_may_be_killed_and_started_again(nodes, tmp_path):
    flags = [*SCENES, "--num", "16", "--out", str(tmp_path / "set"), "--cluster", nodes["cluster"].address]
    driver = subprocess.Popen([sys.executable, "prepare_data.py", *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list((tmp_path / "set").glob("spectra/*.npz"))) < 4:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert 0 < len(list((tmp_path / "set").glob("spectra/scene*.npz"))) < 16
    assert prepare_data.main(flags) == 0
    assert prepare_data.main([*SCENES, "--num", "16", "--out", str(tmp_path / "alone"), "--workers", "0"]) == 0
    assert files_of(tmp_path / "set") == files_of(tmp_path / "alone")


def test_videos_give_the_same_set_and_one_that_hangs_is_a_row_with_the_reason(nodes, videos, tmp_path, capsys):
    flags = ["videos", str(videos), *FAST, "--out"]
    assert prepare_data.main([*flags, str(tmp_path / "alone"), "--workers", "0"]) == 3
    on_cluster = ["--cluster", nodes["cluster"].address]
    assert prepare_data.main([*flags, str(tmp_path / "set"), *on_cluster]) == 3
    assert files_of(tmp_path / "set") == files_of(tmp_path / "alone")
    capsys.readouterr()
    flags = ["videos", str(videos / "sway.mp4"), *FAST, "--out", str(tmp_path / "late")]
    assert prepare_data.main([*flags, *on_cluster, "--item-seconds", "0.01"]) == 3
    reason = rows_by_name(tmp_path / "late")["sway"].reason
    assert reason == "unreadable: took longer than 0.01 s, in 3 attempts" and reason in capsys.readouterr().err
    assert prepare_data.main([*flags, "--workers", "0"]) == 0
    assert rows_by_name(tmp_path / "late")["sway"].status == "kept"


def test_a_folder_is_animated_to_the_same_files(nodes, checkpoint, photograph, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b", "c"):
        (photos / f"{name}.png").write_bytes(photograph.read_bytes())
    (photos / "broken.png").write_bytes(photograph.read_bytes()[:200])
    common = ["--steps", "2", "--checkpoint", str(checkpoint), "--device", "cpu", "--threads", "1", "--precision", "no"]
    for name, more in (("alone", []), ("cluster", ["--cluster", nodes["cluster"].address])):
        videos = [str(photos), "--size", "64", "--seconds", "0.2", "--out", str(tmp_path / name)]
        assert animate.main([*videos, *common, *more]) == 3
        motions = ["--input", str(photos), "--output", str(tmp_path / name), *common, *more]
        assert generate_motion.main(motions) == 3
        assert "1 of 4 images failed" in capsys.readouterr().err
    made = files_of(tmp_path / "alone")
    assert set(made) == {f"{name}.{kind}" for name in "abc" for kind in ("mp4", "npz")}
    assert files_of(tmp_path / "cluster") == made
    (tmp_path / "cluster" / "b.mp4").unlink()
    before = (tmp_path / "cluster" / "a.mp4").stat().st_mtime_ns
    assert animate.main([*videos, *common, *more, "--skip-existing"]) == 3
    assert files_of(tmp_path / "cluster") == made
    assert (tmp_path / "cluster" / "a.mp4").stat().st_mtime_ns == before


def test_the_driver_does_not_grow_with_the_number_of_items(workers):
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    count, times_s = 20_000, []
    with run_items(cluster_items.tiny, range(count), workers, "item", progress=False) as results:
        results = iter(results)
        next(results)
        before_mb = resident_mb()
        for done in results:
            assert done.result == done.item + 1
            times_s.append(time.monotonic())
    assert len(times_s) == count - 1 and resident_mb() - before_mb < 150
    tenth = count // 10
    first, last = (times_s[end] - times_s[end - tenth + 1] for end in (tenth, count - 2))
    assert first / last > 0.8


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "no Ray cluster answers there; right: local, auto, or HOST:PORT of the node where `ray start"),
        ("nonsense", "no Ray cluster answers there"),
        ("auto", "no Ray cluster runs here; right: `ray start --head` on this machine first, or --cluster local"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(tmp_path, capfd, monkeypatch, address, said):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where "auto" looks
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", functools.cache(set))
    flags = [*SCENES, "--num", "2", "--out", str(tmp_path / "set"), "--cluster", address]
    assert prepare_data.main(flags) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("prepare_data.py")]
    assert len(errors) == 1 and f"--cluster {address}: {said}" in errors[0]


def test_another_version_of_ray_is_one_line(nodes, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    flags = [*SCENES, "--num", "2", "--out", str(tmp_path / "set"), "--cluster", nodes["cluster"].address]
    assert prepare_data.main(flags) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("prepare_data.py")]
    assert len(errors) == 1 and "Version mismatch" in errors[0] and "Ray: 2.0.0" in errors[0]


def test_more_than_a_node_has_is_one_line(nodes, tmp_path, capsys):
    flags = [*SCENES, "--num", "2", "--out", str(tmp_path / "set"), "--cluster", nodes["cluster"].address]
    assert prepare_data.main([*flags, "--gpus-per-worker", "1"]) == 2
    assert "no node has 1 cores and 1 GPUs for a worker" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "flags"),
    [
        ("frames", ["--split", "train", "--every", "60", "--clips", "3", "--videos", "1"]),
        ("motion", ["--split", "train", "--clips", "3", "--samples", "2", "--steps", "2", "--loop-frames", "60"]),
    ],
)
def test_tables_are_the_same_and_a_second_call_measures_nothing_again(
    nodes, checkpoint, scene_set, tmp_path, caplog, table, flags
):
    common = [table, "--data", str(scene_set.folder), *flags, "--checkpoint", str(checkpoint), "--device", "cpu"]
    on_cluster = ["--cluster", nodes["cluster"].address, "--out", str(tmp_path / "cluster")]
    assert evaluate.main([*common, "--out", str(tmp_path / "alone")]) == 0
    assert evaluate.main([*common, *on_cluster]) == 0
    alone, made = (files_of(tmp_path / name) for name in ("alone", "cluster"))
    same = [name for name in alone if not name.endswith(".md")]
    assert {name for name in made if not name.startswith("clips/")} == set(alone) and len(same) > 6
    assert [name for name in same if made[name] != alone[name]] == []
    caplog.clear()
    assert evaluate.main([*common, *on_cluster]) == 0
    assert "3 of 3 clips are measured already" in caplog.text
    again = files_of(tmp_path / "cluster")
    assert [name for name in same if again[name] != alone[name]] == []
