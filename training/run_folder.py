"""A run's folder: outputs/<script>/<NNNNN>-<name>/ with its options, log, metrics, checkpoints and samples.

    options.json    flags, versions, commit, device, command line; each resume is added
    log.txt         what was logged
    metrics.jsonl   one line a log step; TensorBoard's events beside it, in tensorboard/
    checkpoints/    training checkpoints, step-XXXXXXX
    samples/        images drawn during training

With several processes the main one creates and writes; for the others every writing method does nothing.
"""

import contextlib
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

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.utils.tensorboard import SummaryWriter

from data.clip_writer import lock_folder
from data.files import write_text, writing, writing_problem
from models.device import ArgumentError

logger = logging.getLogger(__name__)

RUNS = Path("outputs")
OPTIONS, METRICS, LOG, BOARD = "options.json", "metrics.jsonl", "log.txt", "tensorboard"
CHECKPOINT_MARK = "state.json"  # written last into a checkpoint: a folder that has it is complete

# Flags that may differ when a run is resumed: how far, where, how often to look, and how to save memory. A step must
# take as many samples as before, which the checkpoint knows, by however many processes.
MAY_DIFFER = frozenset(
    "batch_size gradient_accumulation_steps "
    "steps stop_at minutes out resume workers device dry_run compile name export cache gradient_checkpointing "
    "log_every save_every sample_every validate_every".split()
)
# Flags of runs of before: {former name: today's}, and {(name, former value): today's}.
FORMER_NAMES = {"accumulate": "gradient_accumulation_steps", "factor": "downsample_factor"}
FORMER_NAMES["still_pictures"] = "static_images"
FORMER_VALUES = {("stage", "picture"): "image-encoder"}
_PACKAGES = ("torch", "torchvision", "diffusers", "accelerate", "numpy", "safetensors")


class RunFolder(contextlib.AbstractContextManager):
    """A run's folder, made by `open_run`, that starts from `resume_from`; FolderBusyError if another process has it."""

    def __init__(self, path: Path, resume_from: Path | None = None) -> None:
        self.path, self.resume_from = Path(path), resume_from
        self.checkpoints, self.samples = self.path / "checkpoints", self.path / "samples"
        self.is_main = PartialState().is_main_process
        self._board, self._opened = None, contextlib.ExitStack()
        if self.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
            self._opened.callback(lock_folder(self.path).release)
            self.checkpoints.mkdir(exist_ok=True)
            self.samples.mkdir(exist_ok=True)
            handler = logging.FileHandler(self.path / LOG, encoding="utf-8", errors="backslashreplace")
            handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
            self._opened.enter_context(contextlib.suppress(OSError))  # of a full disk, which another error has named
            self._opened.callback(handler.close)
            logging.getLogger().addHandler(handler)
            self._opened.callback(logging.getLogger().removeHandler, handler)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and to TensorBoard; a number that is not finite becomes null."""
        if not self.is_main:
            return
        values = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        with writing(self.path / METRICS), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        with writing(self.path / BOARD):
            if self._board is None:
                self._board = self._opened.enter_context(SummaryWriter(str(self.path / BOARD), purge_step=step))
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)
            self._board.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; one that was cut off when the run died is left out."""
        path, lines = self.path / METRICS, []
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return lines

    def drop_metrics_after(self, step: int) -> None:
        """Forget metrics of later steps, so that a resumed run reads like one that was never interrupted."""
        if self.is_main and (self.path / METRICS).exists():
            kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
            write_text(self.path / METRICS, "".join(kept))

    def close(self) -> None:
        self._opened.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def open_run(
    out: Path | str | None,  # a new or empty folder; None: the next number below outputs/<script>/
    script: str,  # its name without .py
    options: Mapping[str, Any],  # all flags; a run that is resumed must agree, but for MAY_DIFFER
    *,
    resume: str | None = None,
    name: str = "run",  # what follows the number in a folder's name, e.g. the preset
) -> RunFolder:
    """Return a new run folder, or the one to go on with; ArgumentError for an argument that cannot be used.

    "auto" goes on with the newest checkpoint of the run in `out` (without `out`, the newest run of the script), and
    starts anew, saying so, where there is none. A path to `resume` names a run's folder or a checkpoint.
    """
    state, path = PartialState(), None
    if resume == "auto":
        (path,) = broadcast_object_list([_find_run(out, script)])
        logger.info("resume auto: %s", f"going on with {path}" if path else "no run there yet, starting anew")
    elif resume is not None:
        path = Path(resume)
        path = path.parent.parent if (path / CHECKPOINT_MARK).is_file() else path
        if out is not None and Path(out).resolve() != path.resolve():
            raise ArgumentError(f"resume {resume}: belongs to {path}, not to out {out}; leave out away")
    if path is not None:
        return _open_again(path, options, resume)
    (path,) = broadcast_object_list([_make_folder(out, script, name) if state.is_main_process else None])
    run = RunFolder(path)
    if run.is_main:
        write_text(path / OPTIONS, json.dumps({"script": script, **_describe(options)}, indent=2) + "\n")
    logger.info("run folder: %s", path)
    return run


def _open_again(path: Path, options: Mapping[str, Any], resume: str) -> RunFolder:
    try:
        written = json.loads((path / OPTIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"resume {path}: is not a run's folder (no readable {OPTIONS})") from error
    before = {FORMER_NAMES.get(key, key): value for key, value in written.get("flags", {}).items()}
    before = {key: FORMER_VALUES.get((key, str(value)), value) for key, value in before.items()}
    now = _plain(options)
    free = MAY_DIFFER | ({"without", "backbone"} if before.get("init") else set())  # once ignored, now refused
    keys = [key for key in {**before, **now} if key not in free and before.get(key) != now.get(key)]
    raise_if_different(path, {key: (before.get(key), now.get(key)) for key in keys})
    checkpoint = Path(resume) if (Path(resume) / CHECKPOINT_MARK).is_file() else newest_checkpoint(path)
    if checkpoint is None:
        if resume != "auto":
            raise ArgumentError(f"resume {resume}: no complete checkpoint there; right: auto, a run or a checkpoint")
        logger.info("resume auto: no checkpoint in %s yet, starting at step 0", path)
    PartialState().wait_for_everyone()  # nobody may read what the main process is about to add
    run = RunFolder(path, checkpoint)
    if run.is_main:
        written.setdefault("resumed", []).append(_describe(options))
        write_text(path / OPTIONS, json.dumps(written, indent=2) + "\n")
    return run


def find_checkpoints(run: Path) -> list[Path]:
    """Return the complete training checkpoints in a run's folder, oldest step first."""
    return sorted(path.parent for path in (run / "checkpoints").glob(f"step-*/{CHECKPOINT_MARK}"))


def newest_checkpoint(run: Path) -> Path | None:
    return (find_checkpoints(run) or [None])[-1]


def raise_if_different(path: Path, differences: Mapping[str, tuple[Any, Any]]) -> None:
    if differences:
        listed = ", ".join(f"{key} (was {then}, now {now})" for key, (then, now) in sorted(differences.items()))
        raise ArgumentError(f"resume {path}: made with other settings: {listed}; use those, or start a new run")


def _find_run(out: Path | str | None, script: str) -> Path | None:
    if out is not None:
        return Path(out) if (Path(out) / OPTIONS).is_file() else None
    runs = sorted(path.parent for path in (RUNS / script).glob(f"[0-9]*-*/{OPTIONS}"))
    return runs[-1] if runs else None


def _make_folder(out: Path | str | None, script: str, name: str) -> Path:
    problem = writing_problem(out or RUNS / script)
    if problem:
        raise ArgumentError(f"out {out or RUNS / script}: {problem}")
    if out is not None:
        path = Path(out)
        if path.is_file() or (path.is_dir() and any(not inside.name.startswith(".") for inside in path.iterdir())):
            raise ArgumentError(f"out {path}: is not empty; name a new folder, or go on with resume auto")
        path.mkdir(parents=True, exist_ok=True)
        return path
    parent = RUNS / script
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [int(match[1]) for path in parent.iterdir() if (match := re.match(r"(\d{5})-", path.name))]
        path = parent / f"{max(taken, default=-1) + 1:05d}-{name}"
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another run took the number at this moment
            continue


def _describe(options: Mapping[str, Any]) -> dict[str, Any]:
    state, commit = PartialState(), _git_commit()
    device = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if state.device.type == "cuda":
        device = torch.cuda.get_device_name(state.device)
    versions = {package: metadata.version(package) for package in _PACKAGES}
    return {
        "command": " ".join(sys.argv),
        "flags": _plain(options),
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit and commit.removesuffix("-dirty"),
        "uncommitted_changes": bool(commit) and commit.endswith("-dirty"),
        "device": f"{state.device}: {device}",
        "processes": state.num_processes,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _git_commit() -> str | None:
    """Return this repository's commit, with "-dirty" where tracked files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags as JSON gives them back."""
    return json.loads(json.dumps(dict(options), default=str))
