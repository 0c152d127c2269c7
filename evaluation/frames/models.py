"""The trained renderers that `evaluate.py frames` measures: found in folders, named, and pooled over training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.clips import distinct_names
from evaluation import EvaluationError
from models.checkpoints import read_json
from models.frame_synthesis import FrameSynthesis
from splatting.functional import DEFAULT_SIGMA_PX
from training.export import RECORD

OPERATOR_FOLDERS = ("frame_synthesis_softmax", "frame_synthesis_gaussian")
# Flags of where and how a training ran, which do not shape what is learned.
_WHERE = {
    "seed", "out", "export", "export_precision", "device", "workers", "resume", "dry_run", "stop_at", "compile",
    "log_every", "save_every", "validate_every", "sample_every", "perceptual_weights", "perceptual_network", "init",
}  # fmt: skip
# Those that make the operator: two rows differ in them on purpose.
_OPERATOR_SETTINGS = {"operator", "sigma", "ewa", "weighting"}


@dataclass(frozen=True)
class TrainedRenderer:
    """A trained model and what its training.json reports."""

    row: str  # of the table; several seeds share one
    name: str  # unique among all
    model: FrameSynthesis
    folder: Path
    seed: int | None = None  # None where there is no record
    steps: int | None = None
    settings: dict[str, Any] | None = None  # its config and the training's flags that shape the result

    @classmethod
    def load(cls, folder: Path) -> TrainedRenderer:
        """Load a model folder; its row and name are how it splats."""
        model = FrameSynthesis.from_pretrained(folder)
        name = variant_name(model)
        try:
            record = read_json(folder.parent / RECORD)[folder.name]
            flags, seed, steps = record["flags"], int(record["flags"]["seed"]), int(record["steps"])
            before = _earlier_trainings(record)
            steps_before = sum(int(earlier["steps"]) for earlier in before)
        except (ValueError, LookupError, TypeError, AttributeError):
            return cls(name, name, model, folder)
        settings = {key: value for key, value in model.config.items() if not key.startswith("_")}
        settings |= {key: value for key, value in flags.items() if key not in _WHERE}
        has_perceptual = flags.get("perceptual_weights") is not None
        settings["perceptual"] = flags.get("perceptual_network", True) if has_perceptual else False
        settings["steps_before"] = steps_before
        # one first training with several second ones is no several seeds
        settings["own_start"] = all(int(earlier["flags"]["seed"]) == seed for earlier in before)
        return cls(name, name, model, folder, seed, steps_before + steps, settings)

    def differing(self, other: TrainedRenderer) -> list[str]:
        """Return the settings in which two differ; a flag that the script of one operator lacks counts as off."""
        ours, theirs = self.settings or {}, other.settings or {}
        keys = ours.keys() | theirs.keys()
        return sorted(key for key in keys if (ours.get(key) or None) != (theirs.get(key) or None))


def _earlier_trainings(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of what a training started from, the last first."""
    earlier = record.get("started_from")
    return [earlier, *_earlier_trainings(earlier)] if earlier else []


def variant_name(model: FrameSynthesis) -> str:
    """Name how a model splats: softmax, gaussian EWA, gaussian iso or Gaussian importance."""
    config = model.config
    if config.operator == "softmax":
        name = "model softmax"
    elif config.weighting == "gaussian":
        name = "model Gaussian importance"
    else:
        name = f"model gaussian {'EWA' if config.ewa else 'iso'}"
        if config.sigma != DEFAULT_SIGMA_PX:
            name += f" {config.sigma:g} px"
    return name + (", learned importance" if config.importance == "learned" else "")


def find_models(folders: Sequence[Path]) -> list[TrainedRenderer]:
    """Load each model of folders that hold models, or are one, as a row of its own; EvaluationError for none."""
    found = []
    for folder, label in zip(folders, distinct_names(folders, "checkpoint"), strict=True):
        for model in map(TrainedRenderer.load, _model_folders(folder, "checkpoint")):
            name = model.name + (f" ({label})" if len(folders) > 1 else "")
            found.append(replace(model, row=name, name=name))
    return found


def find_seeds(folders: Sequence[Path]) -> list[TrainedRenderer]:
    """Load models that differ in their training's seed alone, a row for each operator; EvaluationError for others."""
    groups: dict[str, list[TrainedRenderer]] = {}
    for path in (path for folder in folders for path in _model_folders(folder, "seeds_of")):
        model = TrainedRenderer.load(path)
        group = groups.setdefault(model.name, [])
        if model.seed is None:
            raise EvaluationError(f"seeds_of {path}: no {RECORD} beside it with its seed; right: checkpoint")
        keys = group[0].differing(model) if group else ()
        if keys:
            listed = ", ".join(f"{key} ({group[0].settings.get(key)}, {model.settings.get(key)})" for key in keys)
            which = f"{group[0].folder} and {path} differ in more than the seed: {listed}"
            raise EvaluationError(f"seeds_of: {which}; right: rows of their own, by checkpoint")
        if model.seed in {other.seed for other in group}:
            raise EvaluationError(f"seeds_of {path}: two of {model.name} have the same seed, {model.seed}")
        group.append(model)
    found = []
    for variant, group in groups.items():
        # The count is part of the name even of one, so that it is never mixed with a row of find_models.
        row = f"{variant}, {len(group)} {'seeds' if len(group) > 1 else 'seed'}"
        found += [replace(model, row=row, name=f"{row}: {model.seed}") for model in group]
    return found


def _model_folders(folder: Path, argument: str) -> list[Path]:
    if (folder / "config.json").is_file():
        return [folder]
    inside = [folder / name for name in OPERATOR_FOLDERS if (folder / name).is_dir()]
    if not inside:
        right = " or ".join(OPERATOR_FOLDERS)
        raise EvaluationError(f"{argument} {folder}: no frame synthesis model; right: a folder with {right}")
    return inside


def model_notes(models: Sequence[TrainedRenderer]) -> list[str]:
    """Report which models the rows are, and in what their training differed beside operator and seed."""
    lines = []
    for row in dict.fromkeys(model.row for model in models):
        group = [model for model in models if model.row == row]
        runs = ", ".join(f"{one.folder} (seed {one.seed}, {one.steps} steps)" for one in group)
        lines.append(f"{row}: {runs}; {group[0].model.num_parameters() / 1e6:.2f} M parameters")
    known = [model for model in models if model.settings]
    differing = {key for model in known for key in known[0].differing(model)} - _OPERATOR_SETTINGS
    if len({model.steps for model in models}) > 1:
        differing.add("steps done")
    if differing:
        lines.append(f"the rows' training differs in more than operator and seed: {', '.join(sorted(differing))}")
    return lines
