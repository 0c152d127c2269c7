"""How many cores there are for this process, and that no more threads compute."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

import generate_motion
from data import cpus
from data.cpus import COUNTS, WAITING, available_cpus, set_thread_defaults, use_threads

ROOT = Path(__file__).resolve().parents[1]


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/host/path/of/a/container\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/../a\n", {"a/cpu.max": "600000 100000\n"}, 6),
        ("0::/a\n", {"unified/a/cpu.max": "500000 100000\n"}, 5),
        ("0::/a\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/a\n", {"a/cpu.max": "nonsense\n"}, 8),
        (
            "4:memory:/m\n2:cpu,cpuacct:/a\n0::/\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("1:cpu:/a\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 1),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_quotas_of_cgroups(tmp_path, monkeypatch, membership, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    write_files(tmp_path, {"cgroup": membership})
    write_files(tmp_path / "mount", files)
    assert available_cpus(tmp_path / "cgroup", tmp_path / "mount") == cores


def test_affinity_and_systems_without_it(tmp_path, monkeypatch):
    nowhere = tmp_path / "none", tmp_path
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 7, 9}, raising=False)
    assert available_cpus(*nowhere) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cpus(*nowhere) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus(*nowhere) == 1


@pytest.mark.parametrize(
    ("before", "cores", "after"),
    [
        ({}, 2, {**dict.fromkeys(COUNTS, "2"), **WAITING}),
        ({}, 8, WAITING),  # the whole machine: the libraries' own choice
        ({"OMP_NUM_THREADS": "3"}, 2, {**dict.fromkeys(COUNTS, "3"), **WAITING}),
        ({"OMP_NUM_THREADS": "3"}, 8, {**dict.fromkeys(COUNTS, "3"), **WAITING}),
        ({"MKL_NUM_THREADS": "5"}, 2, {**dict.fromkeys(COUNTS, "2"), "MKL_NUM_THREADS": "5", **WAITING}),
        ({"OMP_NUM_THREADS": "4,2"}, 2, {"OMP_NUM_THREADS": "4,2", **WAITING}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 8, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_defaults_leave_alone_what_is_set(monkeypatch, before, cores, after):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    environment = dict(before)
    set_thread_defaults(environment, cores)
    assert environment == after


def test_threads_are_set_and_too_many_noted(monkeypatch, caplog):
    torch_stand_in = argparse.Namespace(set_num_threads=lambda count: counts.append(count))
    counts: list[int] = []
    monkeypatch.setitem(sys.modules, "torch", torch_stand_in)
    monkeypatch.setattr(cpus, "available_cpus", lambda: 2)
    for name in COUNTS:
        monkeypatch.setenv(name, "1")
    with caplog.at_level("INFO"):
        use_threads(2)
        assert caplog.text == ""
        use_threads(3)
    assert "--threads 3: more than the cores that this process may use (2)" in caplog.text
    assert counts == [2, 3] and {os.environ[name] for name in COUNTS} == {"3"}


def test_no_threads_are_refused_in_one_line(capsys):
    assert generate_motion.main(["--input", "x.png", "--threads", "0"]) == 2
    expected = "--threads: expected a whole number above 0, got '0'"
    assert capsys.readouterr().err.startswith(f"generate_motion.py: error: {expected}")


# Runs a little of everything that has threads, and prints torch's and how many used more than 20 ms.
COMPUTE = """
import os, sys, time
from pathlib import Path
from data import cpus
if sys.argv[1] == "affinity":
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    cpus.set_thread_defaults()
elif sys.argv[1] == "quota":
    cpus.set_thread_defaults(cpus=cpus.available_cpus(Path(sys.argv[2]), Path(sys.argv[3])))
else:
    cpus.use_threads(3)
import cv2, numpy, torch
from splatting import cpu  # not its operator, for which torch imports its compiler, a second
def times():
    found = {}
    for task in os.listdir("/proc/self/task"):
        fields = Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()
        found[task] = int(fields[11]) + int(fields[12])
    return found
def compute(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.nn.functional.conv2d(maps, kernel, padding=1)
        cpu.forward(maps, flow, maps[:, :1], None, False, True)
        cv2.GaussianBlur(image, (31, 31), 5)
        square @ square
maps, kernel, flow = torch.rand(1, 32, 160, 256), torch.rand(32, 32, 3, 3), torch.rand(1, 2, 160, 256)
image, square = numpy.ones((512, 512, 3), numpy.float32), numpy.ones((512, 512), numpy.float32)
compute(0.1)
before = times()
compute(0.3)
after = times()
ticks = 0.02 * os.sysconf("SC_CLK_TCK")
print(torch.get_num_threads(), sum(after[task] - before.get(task, 0) > ticks for task in after))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="counts threads by /proc")
@pytest.mark.parametrize("limit", ["affinity", "quota", "none"])
def test_no_more_threads_compute_than_there_are_cores(tmp_path, limit):
    write_files(tmp_path, {"cgroup": "0::/a\n", "mount/a/cpu.max": "100000 100000\n"})
    environment = {name: value for name, value in os.environ.items() if name not in (*COUNTS, *WAITING)}
    if limit == "quota" and os.cpu_count() == 1:
        pytest.skip("one core needs no quota")
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE, limit, str(tmp_path / "cgroup"), str(tmp_path / "mount")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    threads, computing = map(int, done.stdout.split())
    if limit == "none":  # the count can find more
        assert computing > 2
    else:
        assert threads == 1 and 1 <= computing <= 2
