"""Training states on disk: written aside and renamed, the newest two kept, resumed only by a run that agrees."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from cli.parser import UsageError
from data.files import remove_folder
from training.run_folder import STATE_MARK, RunFolder, find_states, raise_if_different

logger = logging.getLogger(__name__)

STATES_KEPT = 2
# Options that shape the result: a state made with others is not resumed.
_MUST_AGREE = (
    "batch_size accumulate learning_rate warmup_steps schedule weight_decay ema_decay gradient_clip precision seed"
    " finish_in"
).split()


class StateKeeper:
    """Saves and restores all that accelerate holds for one run.

    Args:
        accelerator: model, optimizer and registered objects are prepared already.
        run: its checkpoints/ is where states go.
        options: the fields of LoopOptions.
    """

    def __init__(self, accelerator: Accelerator, run: RunFolder, options: dict[str, Any]) -> None:
        self.accelerator, self.run, self.options = accelerator, run, options

    def save(self, step: int) -> None:
        """Write the state aside, rename it, and remove older ones."""
        final = self.run.checkpoints / f"step-{step:07d}"
        aside = self.run.checkpoints / f".{final.name}.tmp"
        main = self.accelerator.is_main_process
        try:
            if main:
                remove_folder(aside)
                aside.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(aside))
            self.accelerator.wait_for_everyone()
            if main:
                (aside / STATE_MARK).write_text(
                    json.dumps({**self._mark(step), "steps": self.options["steps"]}, indent=2), encoding="utf-8"
                )
                remove_folder(final)
                os.replace(aside, final)
        except BaseException:
            if main:
                remove_folder(aside)
            raise
        if main:
            # States of later steps belong to a past that a resume from an earlier one has undone.
            earlier = [path for path in self.run.states() if path.name < final.name]
            keep = {final, *earlier[-(STATES_KEPT - 1) :]}
            for path in self.run.states():
                if path not in keep:
                    remove_folder(path)
        self.accelerator.wait_for_everyone()

    def restore(self, resume: str | None) -> int:
        """Load the state that `resume` (auto, a run's folder, a state) names; return its step, 0 without one."""
        state = self._find(resume)
        step = 0
        if state is not None:
            mark = json.loads((state / STATE_MARK).read_text(encoding="utf-8"))
            now = self._mark(mark["step"])
            different = {key: (mark.get(key), now[key]) for key in now if mark.get(key) != now[key]}
            different.pop("processes", None)
            raise_if_different(state, different)
            if mark["processes"] != now["processes"]:
                logger.warning("%s was made by %d processes, now %d", state, mark["processes"], now["processes"])
            try:
                self.accelerator.load_state(str(state))
            except (RuntimeError, KeyError, OSError, ValueError) as error:
                said = " ".join(str(error).split())[:200]
                raise UsageError(f"--resume: {state} does not fit this model ({said})") from error
            step = mark["step"]
            if mark.get("steps") != self.options["steps"] and self.options["schedule"] == "cosine":
                logger.warning(
                    "--steps was %s: the cosine rate goes on as that of %d", mark.get("steps"), self.options["steps"]
                )
            logger.info("resuming from %s: %d of %d steps are done", state, step, self.options["steps"])
        self.run.drop_metrics_after(step if state is not None else -1)
        self.accelerator.wait_for_everyone()
        return step

    def _find(self, resume: str | None) -> Path | None:
        if resume is None:
            return None
        if resume != "auto" and (Path(resume) / STATE_MARK).is_file():
            return Path(resume)
        states = self.run.states() if resume == "auto" else find_states(Path(resume))
        if states:
            return states[-1]
        if resume != "auto":
            raise UsageError(f"--resume {resume}: no complete state there; right: auto, a run's folder or a state")
        logger.info("--resume auto: no state in %s yet, starting at step 0", self.run.path)
        return None

    def _mark(self, step: int) -> dict[str, Any]:
        agree = {key: self.options[key] for key in _MUST_AGREE}
        agree["batch_size"] *= self.accelerator.num_processes  # what counts is the batch of all processes
        return {"step": step, "processes": self.accelerator.num_processes, **agree}
