"""The processes that `accelerate launch` (or torchrun) started: who is first, waiting, telling each other.

With a single process everything here does nothing. What is asked of the environment needs no torch.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

logger = logging.getLogger(__name__)

# One process may render a whole scene set or sample pictures while the others wait.
WAIT_AT_MOST = timedelta(hours=6)


def num_processes() -> int:
    """Return how many processes take part."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_index() -> int:
    """Return this process's number among all, from 0."""
    return int(os.environ.get("RANK", 0)) if num_processes() > 1 else 0


def is_main() -> bool:
    """Tell whether this is the process that writes and prints."""
    return process_index() == 0


def wants_cpu(device: str) -> bool:
    """Tell whether the CPU is asked for, by `--device cpu` or by `accelerate launch --cpu`."""
    return device == "cpu" or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def start(device: str = "auto") -> None:
    """Connect the processes, once; `device` is the value of --device.

    `accelerate launch --cpu --num_processes N` starts one process only (several need MPI there): N are then started
    here with torchrun, and this one leaves by SystemExit with their exit code.
    """
    if num_processes() == 1:
        count = _asked_of_accelerate()
        if count > 1:
            raise SystemExit(_start_with_torchrun(count))
        return
    from accelerate import PartialState

    PartialState(cpu=wants_cpu(device), timeout=WAIT_AT_MOST)


def _asked_of_accelerate() -> int:
    """Return how many processes the `accelerate launch --cpu` above this process was asked for, 1 without one."""
    # accelerate sets MASTER_ADDR where more than one process is asked for, but does not pass the number on.
    if not wants_cpu("") or "MASTER_ADDR" not in os.environ or "WORLD_SIZE" in os.environ:
        return 1
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return 1
    found = re.search(r" --num[_-]processes[= ](\d+)", " ".join(words))
    return int(found[1]) if found and "accelerate" in " ".join(words) else 1


def _start_with_torchrun(count: int) -> int:
    logger.info("accelerate launch --cpu starts one process: starting %d with torchrun", count)
    environment = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", *sys.argv]
    return subprocess.run(command, env=environment).returncode


def wait() -> None:
    """Wait until every process is here; `start` comes first."""
    if num_processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def share(value: Any) -> Any:
    """Return the main process's `value` in every process; `start` comes first."""
    if num_processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values, from_process=0)
    return values[0]


@contextmanager
def main_first() -> Iterator[None]:
    """Run the body in the main process first, then in the others (who find the files there); `start` comes first."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()
