"""Processes for tests that need some of their own: forked from a server that has imported the libraries once."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What takes seconds to import; our own modules are imported anew in each process.
LIBRARIES = (
    "accelerate av cv2 diffusers.models diffusers.training_utils matplotlib.figure numba scipy.stats torch._dynamo "
    "torch.distributed.run torch.utils.tensorboard torchmetrics.image torchvision.models pytest"
).split()


def start(target: Callable, *arguments: object, log: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """Call target(*arguments) in a process of its own, with one thread; what it prints goes to the file `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    process = context.Process(target=_enter, args=(target, arguments, str(log), environment))
    process.start()
    return process


def start_script(*arguments: object, log: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """Do what `python SCRIPT ARGUMENTS` does in the root folder."""
    return start(_be_script, [str(argument) for argument in arguments], log=log, environment=environment)


def torchrun(count: int, *arguments: object, log: Path, nodes: int = 1) -> None:
    """Do what `torchrun --nproc_per_node COUNT SCRIPT ARGUMENTS` does on each of so many nodes, all of them here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    arguments = tuple(str(argument) for argument in arguments)
    agents = [start(_be_torchrun, count, nodes, endpoint, *arguments, log=log) for _ in range(nodes)]
    for agent in agents:
        agent.join(400)
    codes = [agent.exitcode for agent in agents]
    for agent in agents:
        agent.kill()
    assert codes == [0] * nodes, log.read_text()[-3000:]


def _enter(target: Callable, arguments: tuple, log: str, environment: dict[str, str]) -> None:
    import torch

    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.setsid()
    # A background job of a shell ignores Ctrl-C, and its children inherit that; a person's terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # of the server, which may have another TMPDIR
    torch.set_num_threads(1)
    gc.freeze()  # what the server has imported
    target(*arguments)


def _be_script(arguments: list[str]) -> None:
    os.chdir(ROOT)
    sys.argv = arguments
    sys.path[:0] = [str(Path(arguments[0]).resolve().parent)]
    runpy.run_path(arguments[0], run_name="__main__")


def _be_torchrun(count: int, nodes: int, endpoint: str, *arguments: str) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    options = {"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": endpoint, "max_restarts": 0}
    config = LaunchConfig(nodes, nodes, count, start_method="fork", **options)
    elastic_launch(config, _be_script)(list(arguments))
