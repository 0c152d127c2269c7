"""checkpoints/make_default.sh: parts in order, resumed, in slices; and once for real, on a few scenes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import start_script

import animate
from models.checkpoints import DEFAULT_CHECKPOINT

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "checkpoints" / "make_default.sh"
PARTS = "scenes still clips vae picture displacement denoiser frame_synthesis_softmax frame_synthesis_gaussian".split()
TABLES = ["evaluate_motion", "evaluate_frames", "evaluate_placement", "sources"]
# In place of python: notes what it was called with, and leaves the record that a training leaves.
STAND_IN = """#!{python}
import json, os, pathlib, subprocess, sys, time
arguments = sys.argv[1:]
if not arguments[0].endswith(".py"):
    sys.exit(subprocess.call(["{python}", *arguments]))
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
out = pathlib.Path(arguments[arguments.index("--out") + 1])
if out.name == os.environ.get("SLEEPS"):
    time.sleep(120)
if out.name == os.environ.get("FAILS"):
    sys.exit(int(os.environ["CODE"]))
out.mkdir(parents=True, exist_ok=True)
(out / "results.md").write_text("| table |\\n")
if arguments[0].startswith("train_"):
    to = pathlib.Path(arguments[arguments.index("--export") + 1]).parent if "--export" in arguments else out
    to = pathlib.Path(arguments[arguments.index("--export") + 1]) if "denoiser" in arguments else to
    to.mkdir(parents=True, exist_ok=True)
    name = out.name
    finished = name != os.environ.get("UNFINISHED")
    known = json.loads((to / "training.json").read_text()) if (to / "training.json").exists() else {{}}
    record = {{"finished": finished, "flags": {{"out": str(out)}}}}
    (to / "training.json").write_text(json.dumps({{**known, name: record}}))
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def call(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600)


@pytest.fixture
def stand_in(tmp_path: Path):
    """Return (environment, calls): the scripts are only noted."""
    folder = tmp_path / "bin"
    folder.mkdir()
    fake = folder / "python"
    fake.write_text(STAND_IN.format(python=sys.executable))
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    log = tmp_path / "calls.jsonl"
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(log)}

    def calls() -> list[list[str]]:
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return environment, calls


def value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_parts_come_in_order_and_the_finished_ones_once(tmp_path: Path, stand_in) -> None:
    environment, calls = stand_in
    clips = tmp_path / "clips.csv"
    clips.write_text("path,split\n")
    flags = ["--work", str(tmp_path / "work"), "--clips", str(clips), "--minutes", "25", "--device", "cpu"]
    result = call(*flags, **environment)
    assert result.returncode == 0, result.stderr
    made = calls()
    assert [Path(value(line, "--out")).name for line in made][: len(PARTS)] == [
        name if name != "clips" else "real" for name in PARTS
    ]
    assert sorted(path.name for path in (tmp_path / "work" / "done").iterdir()) == sorted(PARTS + TABLES)
    minutes = {
        Path(value(line, "--out")).name: float(value(line, "--finish-in")) for line in made if "--finish-in" in line
    }
    assert minutes["vae"] == 2 and minutes["picture"] + minutes["denoiser"] + minutes["displacement"] == 12
    assert minutes["frame_synthesis_softmax"] == minutes["frame_synthesis_gaussian"] == 2.5
    card = (tmp_path / "work" / "checkpoint" / "README.md").read_text()
    assert card.count("| table |") == 4
    assert call(*flags, **environment).returncode == 0 and not calls()


def test_an_unfinished_training_is_gone_on_with(tmp_path: Path, stand_in) -> None:
    environment, calls = stand_in
    flags = ["--work", str(tmp_path / "work"), "--slice", "60", "--device", "cpu"]
    cut = call(*flags, **environment, UNFINISHED="denoiser")
    assert cut.returncode == 3 and "denoiser is not done yet; the same command goes on" in cut.stderr
    before = calls()
    assert Path(value(before[-1], "--out")).name == "denoiser"
    assert 59 < float(value(before[-1], "--minutes")) < 60.1 and value(before[-1], "--resume") == "auto"
    assert call(*flags, **environment).returncode == 0
    after = calls()
    assert Path(value(after[0], "--out")).name == "denoiser" and len(after) == 3 + len(TABLES)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_runs_and_the_same_command_goes_on(tmp_path: Path, stand_in, number) -> None:
    environment, calls = stand_in
    flags = ["--work", str(tmp_path / "work"), "--device", "cpu"]
    command = ["bash", str(SCRIPT), *flags]
    log = Path(environment["CALLS"])
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment, "SLEEPS": "picture"},
        # a test run in the background ignores it, and what is ignored at its start a shell cannot trap
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and "runs/picture" in log.read_text()):
        time.sleep(0.1)
    busy = call(*flags, **environment)
    assert busy.returncode == 2 and "another call is at work there" in busy.stderr
    running.send_signal(number)
    assert running.communicate(timeout=30)[1] == b"make_default.sh: interrupted; the same command goes on\n"
    assert running.returncode == 130
    before = calls()
    assert call(*flags, **environment).returncode == 0  # the lock is free, so nothing is left running
    assert [Path(value(line, "--out")).name for line in before + calls()].count("vae") == 1


def test_data_that_takes_longer_than_a_slice_is_cut_too(tmp_path: Path, stand_in) -> None:
    environment, calls = stand_in
    flags = ["--work", str(tmp_path / "work"), "--device", "cpu"]
    # a slice of minutes would be a long test; its end is where a signal of `timeout` comes from
    cut = call(*flags, "--slice", "9", **environment, FAILS="scenes", CODE="124")
    assert cut.returncode == 3 and "scenes is not done yet" in cut.stderr and len(calls()) == 1
    # and so of a training, which may have a thousand clips to encode before its first step
    cut = call(*flags, "--slice", "9", **environment, FAILS="picture", CODE="124")
    assert cut.returncode == 3 and "picture is not done yet" in cut.stderr


def test_left_out_clips_and_a_missing_table_stop_nothing(tmp_path: Path, stand_in) -> None:
    environment, calls = stand_in
    clips = tmp_path / "clips.csv"
    clips.write_text("path,split\n")
    flags = ["--work", str(tmp_path / "work"), "--clips", str(clips), "--device", "cpu"]
    result = call(*flags, **environment, FAILS="real", CODE="3")
    assert result.returncode == 0 and "clips: some inputs were left out" in result.stderr, result.stderr
    calls()
    (tmp_path / "work" / "done" / "evaluate_motion").unlink()
    result = call(*flags, **environment, FAILS="motion", CODE="3")
    assert result.returncode == 0 and "evaluate_motion: some inputs were left out" in result.stderr
    calls()
    (tmp_path / "work" / "done" / "evaluate_motion").unlink()
    result = call(*flags, **environment, FAILS="motion", CODE="2")
    assert result.returncode == 0 and "evaluate_motion: no table" in result.stderr
    assert (tmp_path / "work" / "checkpoint" / "README.md").read_text().count("| table |") == 3
    calls()
    assert call(*flags, **environment).returncode == 0 and len(calls()) == 1  # it is tried again


def test_a_failed_training_ends_it_with_its_code(tmp_path: Path, stand_in) -> None:
    environment, calls = stand_in
    result = call("--work", str(tmp_path / "work"), "--device", "cpu", **environment, FAILS="vae", CODE="2")
    assert result.returncode == 2 and Path(value(calls()[-1], "--out")).name == "vae"


def test_another_checkpoint_is_replaced_at_the_end(tmp_path: Path, stand_in) -> None:
    """Not while it is being made, not where it is none, and its card names the features' licence."""
    environment, _ = stand_in
    out, features = tmp_path / "out", tmp_path / "features.npz"
    out.mkdir()
    (out / "diary.txt").touch()
    features.touch()
    flags = ["--work", str(tmp_path / "work"), "--out", str(out), "--device", "cpu", "--backbone", str(features)]
    flags += ["--backbone-licence", "MIT, of some port"]
    refused = call(*flags, **environment)
    assert refused.returncode == 2 and "holds something that is no checkpoint" in refused.stderr
    (out / "model_index.json").touch()
    assert call(*flags, **environment, FAILS="frame_synthesis_gaussian", CODE="2").returncode == 2
    assert (out / "diary.txt").exists()
    assert call(*flags, **environment).returncode == 0
    assert not (out / "diary.txt").exists() and not (tmp_path / "out.part").exists()
    card = (out / "README.md").read_text()
    assert "features.npz;" in card and "MIT, of some port" in card


def test_other_flags_do_not_go_on_with_it(tmp_path: Path, stand_in) -> None:
    environment, calls = stand_in
    assert call("--work", str(tmp_path / "work"), "--device", "cpu", **environment).returncode == 0
    calls()
    for flags in (["--scenes", "50"], ["--rendered-only"], ["--minutes", "5"]):
        result = call("--work", str(tmp_path / "work"), "--device", "cpu", *flags, **environment)
        assert result.returncode == 2 and "was begun with" in result.stderr and result.stderr.count("\n") == 1
    assert not calls()


def test_rendered_only_measures_on_the_clips(tmp_path: Path) -> None:
    clips = tmp_path / "clips.csv"
    clips.write_text("path,split\n")
    flags = ["--work", str(tmp_path / "work"), "--clips", str(clips), "--rendered-only", "--dry-run", "--device", "cpu"]
    lines = call(*flags).stdout.splitlines()
    assert [line.split()[3] for line in lines if "sets/real" in line and "evaluate.py" in line] == ["motion", "frames"]
    assert not [line for line in lines if "sets/real" in line and ("train_" in line or "sources" in line)]
    assert not (tmp_path / "work").exists()


def test_rendered_scenes_alone(tmp_path: Path) -> None:
    result = call("--work", str(tmp_path / "work"), "--dry-run", "--device", "cpu")
    assert result.returncode == 0 and "videos" not in result.stdout and "sets/real" not in result.stdout
    assert "--backbone" not in result.stdout and "--perceptual-weights" not in result.stdout
    assert not (tmp_path / "work" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bogus"], "--bogus: not a flag"),
        (["--minutes", "soon"], "--minutes soon: right: a whole number"),
        (["--slice", "0"], "--slice 0: right: a whole number above 0"),
        (["--clips", "gone.csv"], "--clips gone.csv: no such file"),
        (["--still-pictures", "gone"], "--still-pictures gone: no such folder"),
        (["--photos", "/tmp"], "--photos, --masks: one without the other"),
        (["--photos", "/tmp", "--masks", "/tmp", "--rendered-only"], "--rendered-only: learns from no photograph"),
        (["--scenes"], "--scenes: needs a value"),
    ],
)
def test_mistakes_are_one_line(flags, message) -> None:
    result = call(*flags)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1


# In place of python: asks the test to run the script in a process that has the libraries already, 5 s of each start.
RELAY = """#!{python} -S
import json, os, socket, sys
arguments = sys.argv[1:]
if not arguments[0].endswith(".py"):
    os.execv("{python}", ["{python}", *arguments])
with socket.create_connection(("127.0.0.1", {port})) as test, test.makefile("rw") as line:
    print(json.dumps(arguments), file=line, flush=True)
    sys.exit(int(line.readline()))
"""


def test_a_tiny_run_from_nothing_animates(tmp_path: Path) -> None:
    out, log = tmp_path / "made", tmp_path / "log.txt"
    with socket.create_server(("127.0.0.1", 0)) as server, open(log, "a") as errors:
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.write_text(RELAY.format(python=sys.executable, port=server.getsockname()[1]))
        python.chmod(0o755)
        flags = ["--tiny", "--work", str(tmp_path / "work"), "--out", str(out), "--device", "cpu", "--workers", "1"]
        environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
        running = subprocess.Popen(["bash", str(SCRIPT), *flags], stdout=errors, stderr=errors, env=environment)
        server.settimeout(0.2)
        while running.poll() is None:
            try:
                connection = server.accept()[0]
            except TimeoutError:
                continue
            connection.settimeout(None)
            with connection, connection.makefile("rw") as line:
                process = start_script(*json.loads(line.readline()), log=log)
                process.join()
                print(process.exitcode, file=line, flush=True)
    assert running.returncode == 0, log.read_text()[-2000:]
    records = json.loads((out / "training.json").read_text())
    assert {"vae", "unet", "frame_synthesis_softmax", "frame_synthesis_gaussian"} <= set(records)
    assert "rendered scenes" in (out / "README.md").read_text()
    picture = ROOT / "data" / "samples" / "red_flowers.jpg"
    flags = ["--checkpoint", str(out), "--seconds", "0.2", "--size", "128", "--steps", "2", "--device", "cpu"]
    assert animate.main([str(picture), *flags, "--out", str(tmp_path / "video.mp4")]) == 0


def test_checkpoints_in_git_are_small_safetensors() -> None:
    files = [path for path in DEFAULT_CHECKPOINT.parent.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix not in {".json", ".md", ".sh"}]
    assert weights and all(path.suffix == ".safetensors" for path in weights)
    assert sum(path.stat().st_size for path in files if DEFAULT_CHECKPOINT in path.parents) <= 24 * 2**20
    assert sum(path.stat().st_size for path in files) <= 32 * 2**20
