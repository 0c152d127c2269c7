"""Items for tests of clusters, importable by workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from data.files import atomic_path


def tiny(item: int) -> int:
    return item + 1


def sleepy(seconds: float, item: int) -> int:
    time.sleep(seconds)
    return item


def busy(item: int) -> float:
    """Compute on one core for some tenths of a second, as the preparation of scenes does."""
    from data.scenes.scene import make_scene

    scene = make_scene(item, size=(160, 256), kind="flag")
    return sum(float(scene.frame(time_s).sum()) for time_s in (0.5, 1.0, 1.5, 2.0))


def write(folder: Path, seconds: float, item: int) -> int:
    """Write a file of two halves, slowly, and leave a line in a log that tells how often it was begun."""
    with open(folder / "log" / f"{item}", "a") as log:
        log.write(f"{os.getpid()}\n")
    with atomic_path(folder / "out" / f"{item}.txt") as temporary, open(temporary, "w") as file:
        file.write(f"{item} ")
        file.flush()
        time.sleep(seconds)
        file.write("whole")
    return item


def misbehave(folder: Path, item: str) -> str:
    """Be a good item, or one that raises, aborts, hangs, or dies the first time alone."""
    with open(folder / item, "a") as log:
        log.write("begun\n")
    first = (folder / item).read_text().count("begun") == 1
    if item == "raises":
        raise ValueError("of its own")
    if item == "aborts" or (item == "aborts once" and first):
        os.kill(os.getpid(), signal.SIGABRT)
    if item == "hangs":
        time.sleep(1000)
    return item


def slow_model() -> dict[str, int]:
    """Be loaded once in each worker."""
    return {"loaded by": os.getpid()}


def with_model(model: dict[str, int], item: int) -> tuple[int, int, int]:
    return item, model["loaded by"], os.getpid()
