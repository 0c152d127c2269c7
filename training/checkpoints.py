"""Training checkpoints on disk: written aside and renamed, the newest two kept, loaded only by a run that agrees."""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from data.files import remove_folder, writing
from models.checkpoints import one_line
from models.device import ArgumentError
from training.run_folder import CHECKPOINT_MARK, RunFolder, find_checkpoints, raise_if_different

logger = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 2
# Options that shape the result: a checkpoint made with others is not resumed.
_MUST_AGREE = (
    "batch_size gradient_accumulation_steps learning_rate warmup_steps schedule weight_decay ema_decay gradient_clip"
    " precision seed finish_in"
).split()
_SAMPLES = ("batch_size", "gradient_accumulation_steps")  # of a step: what counts is their product


def save_checkpoint(accelerator: Accelerator, run: RunFolder, options: Mapping[str, Any], step: int) -> None:
    """Save what accelerate holds as the run's checkpoint after `step` steps, whole or not at all; remove older ones."""
    final = run.checkpoints / f"step-{step:07d}"
    aside = run.checkpoints / f".{final.name}.tmp"
    main = accelerator.is_main_process
    try:
        if main:
            for stray in run.checkpoints.glob(".step-*.tmp"):  # of runs that were killed
                remove_folder(stray)
            aside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with writing(final):
            accelerator.save_state(str(aside))
        accelerator.wait_for_everyone()
        if main:
            mark = {**_mark(accelerator, options, step), "steps": options["steps"]}
            with writing(final):
                (aside / CHECKPOINT_MARK).write_text(json.dumps(mark, indent=2), encoding="utf-8")
            remove_folder(final)
            os.replace(aside, final)
    except BaseException:
        if main:
            remove_folder(aside)
        raise
    if main:
        # Checkpoints of later steps belong to a past that a resume from an earlier one has undone.
        found = find_checkpoints(run.path)
        earlier = [path for path in found if path.name < final.name]
        for path in set(found) - {final, *earlier[-(CHECKPOINTS_KEPT - 1) :]}:
            remove_folder(path)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, run: RunFolder, options: Mapping[str, Any]) -> int:
    """Load what the run resumes from; return its step, else 0. ArgumentError if it was made with other options."""
    path, step = run.resume_from, 0
    if path is not None:
        mark = json.loads((path / CHECKPOINT_MARK).read_text(encoding="utf-8"))
        mark.setdefault("gradient_accumulation_steps", mark.get("accumulate"))  # its name in earlier checkpoints
        step = mark["step"]
        now = _mark(accelerator, options, step)
        different = {key: (mark.get(key), now[key]) for key in now if mark.get(key) != now[key]}
        before, processes = different.pop("processes", (None, None))
        samples = tuple(one["batch_size"] * one["gradient_accumulation_steps"] for one in (mark, now))
        if samples[0] == samples[1]:
            different = {key: both for key, both in different.items() if key not in _SAMPLES}
        raise_if_different(path, different)
        if processes:
            logger.warning("%s was made by %d processes, now %d", path, before, processes)
        try:
            accelerator.load_state(str(path))
            accelerator.step = 0  # else it would count on in micro-batches, which may be others now
        except (RuntimeError, KeyError, OSError, ValueError) as error:
            raise ArgumentError(f"resume {path}: does not fit this model ({one_line(error)})") from error
        if mark["steps"] != options["steps"] and options["schedule"] == "cosine":
            logger.warning("steps was %d: the cosine rate goes on as that of %d", mark["steps"], options["steps"])
        logger.info("resuming from %s: %d of %d steps are done", path, step, options["steps"])
    run.drop_metrics_after(step if path is not None else -1)
    accelerator.wait_for_everyone()
    return step


def _mark(accelerator: Accelerator, options: Mapping[str, Any], step: int) -> dict[str, Any]:
    agree = {key: options[key] for key in _MUST_AGREE}
    agree["batch_size"] *= accelerator.num_processes  # what counts is the batch of all processes
    return {"step": step, "processes": accelerator.num_processes, **agree}
