"""What the training scripts do before and after the loop: open clip sets, their statistics, write the trained model."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ModelMixin

from data.clip_writer import FolderBusyError
from data.clips import KEPT, PAIRS_ONLY, ClipSet, ClipSetError
from data.datasets import parse_set_flags
from data.files import write_text
from data.media import atomic_path
from data.scenes.render_set import render_scene_set
from data.scenes.scene import SCENES_VERSION
from models.motion_pipeline import MotionPipeline
from motion.normalisation import Normalisation
from training import processes
from training.loop import TrainingResult
from training.run_folder import OPTIONS, RunFolder

logger = logging.getLogger(__name__)

# Rendered when a training script is called without --data: enough to see it work, in about two minutes on two cores.
SCENES_WITHOUT_DATA = 64
RECORD = "training.json"
WeightedSets = list[tuple[ClipSet, float]]


def open_sets(
    flags: Sequence[str] | None, seed: int, device: str = "auto", *, num: int = SCENES_WITHOUT_DATA
) -> WeightedSets:
    """Open the sets of --data, or render a small scene set once, saying so, where the flag is not given.

    Raises:
        ClipSetError: as `parse_set_flags`; a group of clips that one set trains on and another tests with.
    """
    if flags:
        sets = parse_set_flags(flags)
        _check_groups([clip_set for clip_set, _ in sets])
        return sets
    folder = Path("outputs") / "scenes" / f"{num}-seed{seed}-v{SCENES_VERSION}"
    processes.start(device)
    with processes.main_first():
        if processes.is_main():
            logger.info("no --data: %d rendered scenes in %s (prepare_data.py makes larger sets)", num, folder)
        clip_set = _render_in_turn(folder, num, seed)
    return [(clip_set, 1.0)]


def _render_in_turn(folder: Path, num: int, seed: int) -> ClipSet:
    """Render the scenes, or wait until another training that was started without --data has rendered them."""
    waiting = False
    while True:
        try:
            return render_scene_set(folder, num, seed=seed, workers=os.cpu_count() or 1, progress=processes.is_main())
        except FolderBusyError as error:
            if not waiting:
                logger.info("%s; waiting, --data SET would not", str(error).split(";")[0])
            waiting = True
            time.sleep(1)


def _check_groups(sets: Sequence[ClipSet]) -> None:
    """Refuse sets of which one trains on a group that another tests with; sets of before groups were kept have none.

    Pieces cut from one video are files of their own: only the group, the CSV's column `source`, tells.
    """
    used = (KEPT, PAIRS_ONLY)
    validation = {row.group: clip_set for clip_set in sets for row in clip_set.rows("test", status=used) if row.group}
    for clip_set in sets:
        for row in clip_set.rows("train", status=used):
            if row.group in validation:
                raise ClipSetError(
                    f"--data: source {row.group} is in the training split of {clip_set.folder} ({row.id}) and in the "
                    f"test split of {validation[row.group].folder}; give it the same split in both"
                )


def sets_with(sets: WeightedSets, split: str) -> WeightedSets:
    """Return the sets that hold kept clips of a split, each clip once: what is measured is not repeated by weight.

    A handful of one's own videos may have none to test with; then the list is empty, and a warning says so.
    """
    found = [(clip_set, 1.0) for clip_set, _ in sets if clip_set.rows(split)]
    if not found:
        logger.warning("--data: no clip of split %s, so nothing is measured on held-out clips", split)
    return found


def combined_normalisation(sets: WeightedSets, num_bins: int) -> Normalisation:
    """Combine the per-bin scales of several sets: their geometric mean, weighted as the sets are.

    A geometric mean because scales of sets differ by factors: neither real clips nor rendered scenes are drowned.

    Raises:
        ClipSetError: a set's statistics are missing, of fewer bins, or no numbers, or sets have different periods.
    """
    parts = [(_normalisation(clip_set, num_bins), weight) for clip_set, weight in sets]
    periods = {part.period_s for part, _ in parts}
    if len(periods) > 1:
        raise ClipSetError(f"--data: the sets have different periods, {sorted(periods)} s; right: sets of one period")
    logs = torch.stack([part.scale.log() * weight for part, weight in parts]).sum(0)
    return Normalisation((logs / sum(weight for _, weight in parts)).exp(), periods.pop())


def _normalisation(clip_set: ClipSet, num_bins: int) -> Normalisation:
    scales = clip_set.statistics.get("scale_px", ())
    if 0 < len(scales) < num_bins:
        raise ClipSetError(
            f"{clip_set.folder}: statistics of {len(scales)} bins, {num_bins} are wanted; right: --bins {len(scales)} "
            "or fewer, or prepare the set again"
        )
    try:
        return clip_set.normalisation(num_bins)
    except (ValueError, TypeError, LookupError) as error:
        if isinstance(error, ClipSetError):
            raise
        raise ClipSetError(f"{clip_set.folder}: statistics.json is damaged ({error}); prepare the set again") from error


def export_model(model: ModelMixin, folder: Path, run: RunFolder, result: TrainingResult, *, half: bool = True) -> None:
    """Write a trained model as a diffusers folder and its record into the training.json above; main process only.

    Args:
        model: with the weights to keep.
        folder: replaced as a whole when it exists; its parent is the checkpoint.
        run: its options.json is the record's source.
        result: what the loop returned.
        half: store float16, half the size; models are computed with in float32 again.
    """
    if not processes.is_main():
        return
    folder = Path(folder)
    with atomic_path(folder) as temporary:
        (copy.deepcopy(model).half() if half else model).save_pretrained(temporary)
    add_record(folder.parent, {folder.name: training_record(run, result)})
    logger.info("trained model: %s", folder)


def export_pipeline(
    pipeline: MotionPipeline,
    folder: Path,
    run: RunFolder,
    result: TrainingResult,
    *,
    vae_folder: Path,
    init_folder: Path | None = None,
) -> None:
    """Write {vae, unet, scheduler} and model_index.json into a checkpoint folder, in float16; main process only.

    What else lies in the folder already, renderers above all, stays: only the pipeline's own parts are replaced. The
    record of the VAE's own training comes along from beside `vae_folder`, and that of the U-Net's earlier stages, in
    "started_from", from beside `init_folder`.
    """
    if not processes.is_main():
        return
    folder = Path(folder)
    records = {"unet": training_record(run, result)}
    if init_folder is not None and (earlier := _record_of(init_folder)):
        records["unet"]["started_from"] = earlier
    if of_vae := _record_of(vae_folder):
        records["vae"] = of_vae
    # One folder is made whole aside and then renamed: a run that dies leaves no mixture of old and new parts.
    with atomic_path(folder) as temporary:
        half = {name: copy.deepcopy(getattr(pipeline, name)).half() for name in ("vae", "unet")}
        MotionPipeline(**half, scheduler=pipeline.scheduler).save_pretrained(temporary)
        for kept in folder.iterdir() if folder.is_dir() else ():
            if not (temporary / kept.name).exists():
                (shutil.copytree if kept.is_dir() else shutil.copy)(kept, temporary / kept.name)
        add_record(temporary, records)
    logger.info("trained pipeline: %s", folder)


def _record_of(part: Path) -> dict | None:
    """Return what the training.json beside a model's folder says of it; None where there is none."""
    path = Path(part).parent / RECORD
    return json.loads(path.read_text()).get(Path(part).name) if path.is_file() else None


def add_record(checkpoint: Path, records: dict) -> None:
    """Add what training.json of a checkpoint says of its parts: {part: record}."""
    path = Path(checkpoint) / RECORD
    written = json.loads(path.read_text()) if path.is_file() else {}
    write_text(path, json.dumps(written | records, indent=1, default=str) + "\n")


def training_record(run: RunFolder, result: TrainingResult) -> dict:
    """Return what training.json says of a run: flags, versions, commit, device, steps, hours, losses."""
    options = json.loads((run.path / OPTIONS).read_text())
    record = {key: options[key] for key in ("script", "command", "flags", "versions", "commit", "device", "started")}
    lines = run.metrics()
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    validation = [{k: v for k, v in line.items() if k != "learning_rate"} for line in lines if "loss" not in line]
    record |= {
        "steps": result.steps,
        "finished": result.finished,
        "hours_of_last_call": round(result.seconds / 3600, 3),
    }
    if losses:
        record |= {"loss_first": losses[0], "loss_last": losses[-1]}
    if validation:
        record |= {"validation_before": validation[0], "validation_after": validation[-1]}
    return record
