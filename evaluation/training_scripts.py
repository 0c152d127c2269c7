"""Call the training scripts, each as its own process, with flags that anybody could give by hand."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation import EvaluationError

ROOT = Path(__file__).resolve().parents[1]


def as_flags(**options: Any) -> list[str]:
    """Return options as flags: batch_size=4 becomes --batch-size 4, a list several values; None is left out."""
    flags: list[str] = []
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            flags += [f"--{name.replace('_', '-')}", *map(str, values)]
    return flags


def run_script(script: str, flags: Sequence[str], log: Path) -> None:
    """Run a script to its end, its output going to the file `log`; EvaluationError with its last line if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        print(shlex.join([script, *flags]), file=file, flush=True)
        done = subprocess.run([sys.executable, str(ROOT / script), *flags], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1].rpartition("\r")[2]
        raise EvaluationError(f"{last} (exit code {done.returncode}; see {log})")
