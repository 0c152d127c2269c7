"""Machines as they are: full disks, signals, pipes whose reader leaves, locales, clocks, two runs in one folder."""

from __future__ import annotations

from cli.run import EXIT_CLOSED_PIPE, user_message

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clip_sets import random_content
from test_animate import make_motion, run_animate
from test_training_loop import OPTIONS, run_training

from cluster import items
from data.clip_writer import ClipSetWriter
from data.clips import ClipRow
from data.files import MediaError, atomic_path, writing
from training.run_folder import open_run

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def full_disk(most_bytes: int):
    """Let no file grow beyond so many bytes, as a full disk does; not longer, for pytest's own output is a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------ full disks


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a"])
def test_a_video_that_finds_no_room_is_one_line(checkpoint, tmp_path, capsys, name):
    from data.media import write_image

    write_image(tmp_path / "photo.png", torch.rand(3, 90, 60))
    motion, out = make_motion(tmp_path / "m.npz"), tmp_path / "out"
    flags = ["--motion", motion, "--preview", "--seconds", 1, "--out", out / name if "." in name else out]
    flags += [] if "." in name else ["--format", "frames"]
    with full_disk(9000):
        assert run_animate(checkpoint, tmp_path / "photo.png", *flags) == 2
    made = out / (name if "." in name else "photo")
    assert capsys.readouterr().err == f"animate.py: error: {made}: cannot be written (File too large)\n"
    assert files_below(out) == []


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path):
    """Room neither for the weights, nor for the optimizer, nor for a line of metrics."""

    def model() -> torch.nn.Module:
        torch.manual_seed(3)
        return torch.nn.Sequential(torch.nn.Linear(2, 4000), torch.nn.Tanh(), torch.nn.Linear(4000, 1))

    options = replace(OPTIONS, steps=6, log_every=5)
    _, whole, _ = run_training(tmp_path / "whole", options, model=model())
    run_training(tmp_path / "run", replace(options, stop_at=4), model=model())
    before = files_below(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints" / ".step-0000003.tmp").mkdir()  # of a run that was killed
    shutil.copytree(tmp_path / "run", tmp_path / "lines")
    with (tmp_path / "lines" / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 1, "x": "{"x" * 199_900}"}}\n')
    checkpoint = "checkpoints/step-0000006"
    for name, most_bytes, named in (
        ("run", 30_000, checkpoint),
        ("run", 80_000, checkpoint),
        ("lines", 200_000, "metrics.jsonl"),
    ):
        said = rf"^{tmp_path}/{name}/{named}: cannot be written \((File too|No space)[^\n]+\)$"
        with full_disk(most_bytes), pytest.raises(MediaError, match=said):
            run_training(tmp_path / name, options, model=model(), resume="auto")
        assert [file for file in files_below(tmp_path / name / "checkpoints") if ".tmp" not in file] == before
    _, result, _ = run_training(tmp_path / "run", options, model=model(), resume="auto")
    assert result.losses == whole.losses[4:] and not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_set_that_finds_no_room_goes_on_later(tmp_path):
    def write(name: str, count: int) -> dict[str, str]:
        with ClipSetWriter(tmp_path / name, {"made_of": "noise"}) as writer:
            for i in range(len(writer.rows), count):
                row = ClipRow(f"clip{i}", "a" * 900 + ".mp4", split="train", fps=25.0, frames=125)
                writer.write(row, random_content(0))
            return {name: (writer.finish().folder / name).read_bytes() for name in ("clips.csv", "statistics.json")}

    whole = write("whole", 3)
    (room,) = {(tmp_path / "whole" / "spectra" / f"clip{i}.npz").stat().st_size for i in range(3)}
    for most_bytes, named in ((room - 1, "spectra/clip0.npz"), (1500, "first/clip0.png")):
        with full_disk(most_bytes), pytest.raises(MediaError, match=f"^{tmp_path}/set/{named}: cannot be written "):
            write("set", 3)
    write("set", 2)
    table = (tmp_path / "set" / "clips.csv").stat().st_size
    with ClipSetWriter(tmp_path / "set", {"made_of": "noise"}) as writer:
        within_the_next_line = table + 100
        with full_disk(within_the_next_line), pytest.raises(MediaError, match="clips.csv: cannot be written"):
            writer.add(ClipRow("clip2", "a" * 900 + ".mp4", split="train", fps=25.0, frames=125))
    assert write("set", 3) == whole


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
        "[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0: file write failed",
        "Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_libraries_words_for_a_full_disk(tmp_path, text):
    with pytest.raises(MediaError, match=r"a: cannot be written \(No space left on device\)$"), writing(tmp_path / "a"):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shape"), atomic_path(tmp_path / "a"):
        raise RuntimeError("shape")


# ------------------------------------------------------------------------------------------ signals and pipes


PRINTS = """
import sys
from cli.run import command, run
@command
def main(argv=None):
    print("line\\n" * {lines})
sys.exit(run(main))
"""


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_nobody_takes(lines):
    """Neither a reader that leaves, as in `SCRIPT | head`, nor a full disk ends in a traceback."""
    command = [sys.executable, "-c", PRINTS.format(lines=lines)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(timeout=60) == EXIT_CLOSED_PIPE and process.stderr.read() == ""
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "<string>: error: standard output: cannot be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (2, said)


INTERRUPTED = """
import os, sys, time, weakref
from cli.run import command, run
def interrupt(*_):
    os.kill(os.getpid(), {number})
    time.sleep(30)
@command
def main(argv=None):
    {how}
    time.sleep(30)
sys.exit(run(main))
"""
RAISED = """try: interrupt()
    except BaseException: {then}"""
DROPPED = "class Loaded: pass\n    kept = weakref.ref(Loaded(), interrupt)"  # as in callbacks of imports


def interrupted(code: str) -> tuple[int, str]:
    """Run code that interrupts itself, as in a terminal; return its exit code and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "how", [RAISED.format(then="raise"), RAISED.format(then="raise ImportError('numpy')"), DROPPED]
)
def test_an_interrupted_import_is_no_traceback(number, how):
    code = INTERRUPTED.format(number=int(number), how=how)
    assert interrupted(code) == (128 + number, "<string>: interrupted\n")


INTERRUPTED_EARLY = """
import os, runpy, signal, sys
imported = 0
def interrupt(event, arguments):
    global imported
    imported += event == "import" and (imported > 0 or arguments[0] == "argparse")
    if event == "import" and imported == {moment}:
        os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["{script}", "--help"]
sys.addaudithook(interrupt)
runpy.run_path("{script}", run_name="__main__")
"""


@pytest.mark.parametrize("script", ["animate.py", "train_unet.py", "evaluate.py", "app.py"])
def test_ctrl_c_while_a_script_starts_is_no_traceback(script):
    for moment in (1, 2, 5, 10, 20, 30):  # imports after that of `argparse`
        code, said = interrupted(INTERRUPTED_EARLY.format(script=script, moment=moment))
        assert code in (-signal.SIGINT, 128 + signal.SIGINT) and said == f"{script}: interrupted\n", moment


def test_workers_leave_ctrl_c_to_their_parent(monkeypatch):
    """It reaches all processes of a terminal; workers inherit the signals that are blocked where they are begun."""

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int, **_: object) -> None:
            super().__init__(workers)

        def submit(self, function, *job):
            blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            return super().submit(function, *job)

    blocked = []
    monkeypatch.setattr(items, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(items, "_work_started", abs)  # what begins a process is not called in a thread
    with items.run_items(abs, [1, -2], items.Workers(2), "job", progress=False) as results:
        assert sorted(done.result for done in results) == [1, 2]
    assert blocked == [{signal.SIGINT}] * 2 and not signal.pthread_sigmask(signal.SIG_BLOCK, [])


# ------------------------------------------------------------------------------------------ locales and clocks


@pytest.mark.parametrize("script", ["animate.py", "prepare_data.py"])
def test_a_locale_without_utf8(photograph, tmp_path, script):
    """Names and notes beyond ASCII are shown escaped, and files are written all the same."""
    folder = tmp_path / "трава"
    folder.mkdir()
    image = photograph.rename(folder / "ветер.png") if script == "animate.py" else folder / "ветер.mp4"
    flags = [str(image), "--out", str(folder / "o")]
    if script == "animate.py":
        flags += ["--motion", str(make_motion(tmp_path / "m.npz")), "--preview", "--seconds", "0.2"]
    else:
        image.write_bytes(b"no video")
        flags = ["videos", *flags]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, *flags], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and done.returncode == (0 if script == "animate.py" else 3), done.stderr
    assert files_below(folder / "o")


def test_runs_are_numbered_whatever_the_clock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = iter(range(2_000_000_000, 0, -1_000_000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    for zone, number in (("UTC", 0), ("Asia/Kathmandu", 1), ("America/St_Johns", 2)):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        _, result, _ = run_training(None, replace(OPTIONS, minutes=60.0, steps=4))
        (folder,) = (tmp_path / "outputs" / "toy").glob(f"0000{number}-*")
        os.utime(folder, (0, 10**9 - number))
        assert result.finished and '"started": "2' in (folder / "options.json").read_text()
    monkeypatch.delenv("TZ")
    time.tzset()
    with open_run(None, "toy", {}, resume=None) as run:
        assert run.path.name.startswith("00003-")


# ------------------------------------------------------------------------------------------ two runs at once


def test_two_runs_never_share_a_folder(tmp_path):
    with open_run(tmp_path / "run", "toy", {}):
        for resume in (None, "auto"):
            said = f"{tmp_path}/run: (another run is writing there|is not empty)"
            with pytest.raises(ValueError, match=said) as caught:
                open_run(tmp_path / "run", "toy", {}, resume=resume)
            assert user_message(caught.value)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        open_run(tmp_path / "run", "toy", {}, resume=str(tmp_path / "run"))
    with open_run(tmp_path / "run", "toy", {}, resume="auto") as run:
        assert run.resume_from is None


def test_of_runs_that_start_together_one_gets_the_folder(tmp_path):
    def begin() -> None:
        try:
            runs.append(open_run(tmp_path / "run", "toy", {}))
        except ValueError as error:
            refused.append(error)

    runs, refused = [], []
    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs[0].close()
    assert len(runs) == 1 and all(user_message(error) for error in refused)
