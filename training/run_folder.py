"""A run's folder: outputs/<script>/<NNNNN>-<name>/ with its options, log, metrics, states and samples.

    options.json    flags, versions, commit, device, command line; each resume is added
    log.txt         what was logged
    metrics.jsonl   one line a log step; TensorBoard's events beside it, in tensorboard/
    checkpoints/    training states, step-XXXXXXX
    samples/        pictures drawn during training

With several processes the main one creates and writes; for the others every writing method does nothing.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from cli.parser import UsageError, check_writable
from data.files import write_text
from training import processes

logger = logging.getLogger(__name__)

RUNS = Path("outputs")
OPTIONS, METRICS, LOG = "options.json", "metrics.jsonl", "log.txt"
STATE_MARK = "state.json"  # written last into a state: a folder that has it is complete

# Flags that may differ when a run is resumed: how far, where, how often to look, and how to save memory.
MAY_DIFFER = frozenset(
    "steps stop_at minutes out resume workers device dry_run compile name export cache gradient_checkpointing "
    "log_every save_every sample_every validate_every".split()
)
_PACKAGES = ("torch", "torchvision", "diffusers", "accelerate", "numpy", "safetensors")


class RunFolder:
    """The folder of one run; made by `open_run`, `RunFolder.create` or `RunFolder.open`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.is_main = processes.is_main()
        self._board: Any = None
        self._handler: logging.Handler | None = None
        if self.is_main:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.samples.mkdir(exist_ok=True)
            self._handler = logging.FileHandler(self.path / LOG, encoding="utf-8")
            self._handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
            logging.getLogger().addHandler(self._handler)

    @classmethod
    def create(
        cls,
        out: Path | str | None,
        script: str,
        options: Mapping[str, Any] | None = None,
        *,
        name: str = "run",
    ) -> RunFolder:
        """Make a new run folder: `out`, or the next number below outputs/<script>/.

        Args:
            out: the folder to use; it must be new or empty.
            script: the script's name, with or without .py.
            options: all flags, `vars(args)`.
            name: what follows the number in a folder's name, e.g. the preset.

        Raises:
            UsageError: `out` holds something already, or cannot be made.
        """
        options = dict(options or {})
        processes.start(str(options.get("device", "auto")))
        path = _make_folder(out, Path(script).stem, name) if processes.is_main() else None
        run = cls(Path(processes.share(str(path))))
        if run.is_main:
            _write_json(run.path / OPTIONS, _describe(script, options))
        logger.info("run folder: %s", run.path)
        return run

    @classmethod
    def open(cls, path: Path | str, options: Mapping[str, Any] | None = None) -> RunFolder:
        """Open a run's folder to go on with it.

        Args:
            path: the folder.
            options: the flags of now; None compares nothing.

        Raises:
            UsageError: not a run's folder, or flags differ from the run's; the message lists them.
        """
        path = Path(path)
        try:
            written = json.loads((path / OPTIONS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"--resume: {path} is not a run's folder (no readable {OPTIONS})") from error
        if options is not None:
            processes.start(str(options.get("device", "auto")))
            now = _plain(options)
            before = written.get("flags", {})
            keys = [key for key in {**before, **now} if key not in MAY_DIFFER and before.get(key) != now.get(key)]
            raise_if_different(path, {key: (before.get(key), now.get(key)) for key in keys})
        processes.wait()  # nobody may read what the main process is about to add
        run = cls(path)
        if run.is_main and options is not None:
            written.setdefault("resumed", []).append(_describe("", dict(options)))
            _write_json(path / OPTIONS, written)
        return run

    def log_metrics(self, step: int, figures: Mapping[str, float]) -> None:
        """Append one line of figures to metrics.jsonl and TensorBoard; a figure that is not finite becomes null."""
        if not self.is_main:
            return
        line = {"step": step, **{key: _finite(value) for key, value in figures.items()}}
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        board = self._tensorboard(step)
        for key, value in line.items():
            if key != "step" and isinstance(value, float):
                board.add_scalar(key, value, step)
        board.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl."""
        path = self.path / METRICS
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    def drop_metrics_after(self, step: int) -> None:
        """Forget figures of later steps, so that a resumed run reads like one that was never interrupted."""
        if not self.is_main or not (self.path / METRICS).exists():
            return
        kept = []
        for line in (self.path / METRICS).read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # a line cut off when the run died
        write_text(self.path / METRICS, "".join(kept))

    def states(self) -> list[Path]:
        """Return the complete training states, oldest step first."""
        return find_states(self.path)

    def newest_state(self) -> Path | None:
        """Return the complete training state of the highest step, or None."""
        return (self.states() or [None])[-1]

    def close(self) -> None:
        """End the log file and TensorBoard's events; the folder stays."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
            self._handler.close()
        if self._board is not None:
            self._board.close()
        self._handler = self._board = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _tensorboard(self, step: int) -> Any:
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
            except ImportError:
                logger.warning("no TensorBoard here (pip install tensorboard); %s has the figures", METRICS)
                self._board = _NoBoard()
        return self._board


class _NoBoard:
    def add_scalar(self, *_: object) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def open_run(
    out: Path | str | None,
    script: str,
    options: Mapping[str, Any],
    *,
    resume: str | None = None,
    name: str = "run",
) -> RunFolder:
    """Return the run folder that --out and --resume ask for: a new one, or the one to go on with.

    `--resume auto` goes on with the run in --out (without --out: the newest below outputs/<script>/), and starts anew,
    saying so, where there is none. `--resume PATH` names a run's folder or one of its states. The same value goes
    into LoopOptions.resume.

    Raises:
        UsageError: as `RunFolder.create` and `RunFolder.open`, or --out and --resume contradict each other.
    """
    if resume is None:
        return RunFolder.create(out, script, options, name=name)
    if resume == "auto":
        processes.start(str(options.get("device", "auto")))
        found = processes.share(str(_find_run(out, Path(script).stem) or ""))
        if found:
            logger.info("--resume auto: going on with %s", found)
            return RunFolder.open(found, options)
        logger.info("--resume auto: no run in %s yet, starting anew", out or RUNS / Path(script).stem)
        return RunFolder.create(out, script, options, name=name)
    path = Path(resume)
    if not path.is_dir():
        raise UsageError(f"--resume {resume}: no such folder; right: auto, a run's folder or one of its states")
    run = path.parent.parent if (path / STATE_MARK).is_file() else path
    if out is not None and Path(out).resolve() != run.resolve():
        raise UsageError(f"--resume {resume}: belongs to {run}, not to --out {out}; leave --out away")
    return RunFolder.open(run, options)


def find_states(path: Path) -> list[Path]:
    """Return the complete training states in a run's folder, oldest step first."""
    return sorted(state for state in (path / "checkpoints").glob("step-*") if (state / STATE_MARK).is_file())


def raise_if_different(path: Path, differences: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise UsageError listing {key: (then, now)} where there is any."""
    if differences:
        listed = ", ".join(f"{key} (was {then}, now {now})" for key, (then, now) in sorted(differences.items()))
        raise UsageError(f"--resume: {path} was made with other settings: {listed}; use those, or start a new run")


def git_commit() -> tuple[str | None, bool]:
    """Return this repository's commit (None where there is none) and whether files differ from it."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, False


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return answer.stdout.strip()


def _find_run(out: Path | str | None, script: str) -> Path | None:
    if out is not None:
        return Path(out) if (Path(out) / OPTIONS).is_file() else None
    runs = sorted(path.parent for path in (RUNS / script).glob(f"[0-9]*-*/{OPTIONS}"))
    return runs[-1] if runs else None


def _make_folder(out: Path | str | None, script: str, name: str) -> Path:
    if out is not None:
        path = check_writable(out)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UsageError(f"--out {path}: is not empty; add --resume auto to go on, or name a new folder")
        path.mkdir(parents=True, exist_ok=True)
        return path
    parent = check_writable(RUNS / script)
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [int(match[1]) for path in parent.iterdir() if (match := re.match(r"(\d{5})-", path.name))]
        path = parent / f"{max(taken, default=-1) + 1:05d}-{name}"
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another run took the number at this moment
            continue


def _describe(script: str, options: dict[str, Any]) -> dict[str, Any]:
    commit, changed = git_commit()
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "script": Path(script).stem,
        "command": " ".join(sys.argv),
        "flags": _plain(options),
        "versions": versions,
        "commit": commit,
        "uncommitted_changes": changed,
        "device": _device_description(str(options.get("device", "auto"))),
        "processes": processes.num_processes(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _device_description(name: str) -> str:
    import torch

    from cli.parser import choose_device

    device = torch.device("cpu") if processes.wants_cpu(name) else choose_device(name)
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags as JSON gives them back, so that those of a file and those of now compare."""
    return json.loads(json.dumps(dict(options), default=str))


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")
