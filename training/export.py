"""Write trained models as checkpoint folders, each part with a record of its training."""

import copy
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from diffusers import ModelMixin

from data.files import atomic_path, write_text
from models.checkpoints import read_json
from models.motion_pipeline import MotionPipeline
from training.loop import TrainingResult
from training.run_folder import OPTIONS, RunFolder

logger = logging.getLogger(__name__)

RECORD = "training.json"
_PIPELINE = ("vae", "unet", "scheduler", "segmentation", "placement", "model_index.json")


def export_model(
    model: ModelMixin,
    folder: Path,
    run: RunFolder,
    result: TrainingResult,
    *,
    half: bool = True,
    init_folder: Path | None = None,
) -> None:
    """Write a trained model, by default as float16, and its record into the training.json above; main process only.

    The record of the model in `init_folder`, which it started from, becomes "started_from".
    """
    if PartialState().is_main_process:
        with atomic_path(folder) as temporary:
            (copy.deepcopy(model).half() if half else model).save_pretrained(temporary)
        record = training_record(run, result)
        if init_folder is not None:
            record["started_from"] = _record_of(init_folder)
        _add_records(folder.parent, {folder.name: record})
        logger.info("trained model: %s", folder)


def export_pipeline(
    pipeline: MotionPipeline,
    folder: Path,
    run: RunFolder,
    result: TrainingResult,
    trained: str,
    vae_folder: Path,
    init_folder: Path | None = None,
) -> None:
    """Write a pipeline's parts and model_index.json into a checkpoint folder, in float16; main process only.

    Whatever else lies in the folder, such as renderers, stays. `trained` is the part that this run trained, "unet" or
    "placement". The records of the other parts, and "started_from", are those beside `vae_folder` and `init_folder`.
    """
    if not PartialState().is_main_process:
        return
    folders = {"vae": vae_folder}
    if init_folder is not None:
        folders |= {"unet": init_folder, "placement": init_folder.parent / "placement"}
    earlier = {name: _record_of(part) for name, part in folders.items()}
    records = {name: record for name, record in earlier.items() if record}
    records[trained] = training_record(run, result)
    if earlier.get(trained):
        records[trained]["started_from"] = earlier[trained]
    # One folder is made whole aside and then renamed: a run that dies leaves no mixture of old and new parts.
    with atomic_path(folder) as temporary:
        if folder.is_dir():
            shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns(*_PIPELINE))
        networks = {name: part for name, part in pipeline.components.items() if isinstance(part, ModelMixin)}
        half = {name: copy.deepcopy(network).half() for name, network in networks.items()}
        MotionPipeline(**half, scheduler=pipeline.scheduler).save_pretrained(temporary)
        _add_records(temporary, records)
    logger.info("trained pipeline: %s", folder)


def _record_of(part: Path) -> dict[str, Any] | None:
    """Return what the training.json beside a model's folder says of it."""
    path = part.parent / RECORD
    return read_json(path).get(part.name) if path.is_file() else None


def _add_records(checkpoint: Path, records: dict[str, Any]) -> None:
    path = checkpoint / RECORD
    written = read_json(path) if path.is_file() else {}
    write_text(path, json.dumps(written | records, indent=1, default=str) + "\n")


def training_record(run: RunFolder, result: TrainingResult) -> dict[str, Any]:
    """Return what training.json says of a run: flags, versions, commit, device, steps, hours, losses."""
    options = json.loads((run.path / OPTIONS).read_text(encoding="utf-8"))
    record = {key: options[key] for key in ("script", "command", "flags", "versions", "commit", "device", "started")}
    hours = round(result.seconds / 3600, 3)
    record |= {"steps": result.steps, "finished": result.finished, "hours_of_last_call": hours}
    lines = run.metrics()
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    validation = [line for line in lines if "loss" not in line]
    if losses:
        record |= {"loss_first": losses[0], "loss_last": losses[-1]}
    if validation:
        record |= {"validation_before": validation[0], "validation_after": validation[-1]}
    return record
