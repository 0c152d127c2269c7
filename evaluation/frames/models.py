"""The trained renderers that `evaluate.py frames` measures: found in folders, named, and pooled over training seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.parser import UsageError
from data.clips import column_names
from models.checkpoints import CheckpointError, load_model
from models.frame_synthesis import FrameSynthesis
from splatting.functional import DEFAULT_SIGMA_PX
from training.export import RECORD

OPERATOR_FOLDERS = ("frame_synthesis_softmax", "frame_synthesis_gaussian")
# Flags that say where and how a training ran, not what it learned.
_WHERE = {
    "seed", "out", "export", "export_precision", "device", "workers", "resume", "dry_run", "stop_at", "compile",
    "log_every", "save_every", "validate_every", "sample_every", "perceptual_weights",
}  # fmt: skip
# Those that make the operator: two rows differ in them on purpose.
_OPERATOR_FLAGS = {"sigma", "ewa", "weighting"}


@dataclass(frozen=True)
class TrainedRenderer:
    """A trained model and what its training.json says of it.

    Attributes:
        row: the row of the table that it belongs to; several seeds share one.
        name: unique among all.
        model: in eval mode.
        folder: that it was loaded from.
        seed: of its training, None where there is no record.
        steps: that it was trained for, None likewise.
        flags: of its training, without those that do not matter to the result.
    """

    row: str
    name: str
    model: FrameSynthesis
    folder: Path
    seed: int | None = None
    steps: int | None = None
    flags: dict[str, Any] | None = None


def variant_name(model: FrameSynthesis) -> str:
    """Name how a model splats: softmax, gaussian EWA, gaussian iso, seed's weighting; another sigma is told."""
    config = model.config
    if config.operator == "softmax":
        name = "model softmax"
    elif config.weighting == "gaussian":
        name = "model seed's weighting"
    else:
        name = f"model gaussian {'EWA' if config.ewa else 'iso'}"
        if config.sigma != DEFAULT_SIGMA_PX:
            name += f" {config.sigma:g} px"
    return name + (", learned importance" if config.importance == "learned" else "")


def find_models(folders: Sequence[Path], flag: str = "--checkpoint") -> list[TrainedRenderer]:
    """Load each model of checkpoint folders, or of folders that are one model themselves, as a row of its own.

    Raises:
        CheckpointError: a folder holds no frame synthesis model, or a damaged one.
        UsageError: a folder is named twice.
    """
    try:
        labels = column_names(folders)
    except ValueError:
        raise UsageError(f"{flag} {' '.join(map(str, folders))}: names a folder twice") from None
    found = []
    for folder, label in zip(folders, labels, strict=True):
        for path in _model_folders(folder, flag):
            model = load_model(FrameSynthesis, path, component="frame synthesis")
            name = variant_name(model) + (f" ({label})" if len(folders) > 1 else "")
            found.append(TrainedRenderer(name, name, model, path, **_record(path)))
    _refuse_equal_names(found, flag)
    return found


def find_seeds(folders: Sequence[Path], flag: str = "--seeds-of") -> list[TrainedRenderer]:
    """Load models that differ in the seed of their training alone; those of one operator share a row.

    Raises:
        CheckpointError: as `find_models`.
        UsageError: models of one operator that differ in more than the seed, or not even in it.
    """
    rows: dict[str, list[tuple[Path, FrameSynthesis, dict[str, Any]]]] = {}
    for path in (path for folder in folders for path in _model_folders(folder, flag)):
        model = load_model(FrameSynthesis, path, component="frame synthesis")
        rows.setdefault(variant_name(model), []).append((path, model, _record(path)))
    found = []
    for variant, group in rows.items():
        # told even of one, so that it is never mixed with a row of --checkpoint
        row = f"{variant}, {len(group)} {'seeds' if len(group) > 1 else 'seed'}"
        for path, model, record in group:
            _check_differs_in_seed(group[0], (path, model, record), flag)
            found.append(TrainedRenderer(row, f"{row}: {record['seed']}", model, path, **record))
        seeds = [record["seed"] for *_, record in group]
        if len(set(seeds)) < len(seeds):
            listed = ", ".join(f"{path} has seed {record['seed']}" for path, _, record in group)
            raise UsageError(f"{flag}: two of {variant} have the same seed ({listed}); right: another seed each")
    return found


def model_notes(models: Sequence[TrainedRenderer]) -> list[str]:
    """Say which models the rows are, and in what their training differed beside operator and seed."""
    if not models:
        return ["models: none"]
    lines = []
    for row in dict.fromkeys(model.row for model in models):
        group = [model for model in models if model.row == row]
        told = [f"{one.folder} (seed {_or_unknown(one.seed)}, {_or_unknown(one.steps)} steps)" for one in group]
        lines.append(f"{row}: {', '.join(told)}; {group[0].model.num_parameters() / 1e6:.2f} M parameters")
    first = next((model.flags for model in models if model.flags), None)
    differing = {
        key
        for model in models
        for key in (first or {}).keys() | (model.flags or {}).keys()
        # A flag that one operator's script lacks counts as off: None and False alike.
        if first and model.flags and (first.get(key) or None) != (model.flags.get(key) or None)
        if key not in _OPERATOR_FLAGS
    }
    if differing or len({model.steps for model in models}) > 1:
        unequal = sorted(differing) + ["steps done"] * (len({model.steps for model in models}) > 1)
        lines.append(f"the rows' training differs in more than operator and seed: {', '.join(dict.fromkeys(unequal))}")
    return lines


def _or_unknown(value: object) -> object:
    return "unknown" if value is None else value


def _model_folders(folder: Path, flag: str) -> list[Path]:
    if (folder / "config.json").is_file():
        return [folder]
    inside = [folder / name for name in OPERATOR_FOLDERS if (folder / name).is_dir()]
    if not inside:
        raise CheckpointError(
            f"{flag} {folder}: no frame synthesis model; right: a folder with {' or '.join(OPERATOR_FOLDERS)}"
        )
    return inside


def _record(path: Path) -> dict[str, Any]:
    """Return seed, steps and flags of a model's training from the training.json beside it; None where it says none."""
    try:
        record = json.loads((path.parent / RECORD).read_text(encoding="utf-8"))[path.name]
        flags = {key: value for key, value in record["flags"].items() if key not in _WHERE}
        flags["perceptual"] = record["flags"].get("perceptual_weights") is not None
        return {"seed": int(record["flags"]["seed"]), "steps": int(record["steps"]), "flags": flags}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {"seed": None, "steps": None, "flags": None}


def _check_differs_in_seed(
    first: tuple[Path, FrameSynthesis, dict[str, Any]], other: tuple[Path, FrameSynthesis, dict[str, Any]], flag: str
) -> None:
    if other[2]["seed"] is None:
        raise UsageError(f"{flag} {other[0]}: no {RECORD} beside it that says its seed; right: --checkpoint")
    configs = [{k: v for k, v in one[1].config.items() if not k.startswith("_")} for one in (first, other)]
    sides = [config | one[2]["flags"] for config, one in zip(configs, (first, other), strict=True)]
    differing = sorted(key for key in sides[0].keys() | sides[1].keys() if sides[0].get(key) != sides[1].get(key))
    if differing:
        listed = ", ".join(f"{key} ({sides[0].get(key)}, {sides[1].get(key)})" for key in differing)
        raise UsageError(
            f"{flag}: {first[0]} and {other[0]} differ in more than the seed: {listed}; "
            "right: --checkpoint for rows of their own"
        )


def _refuse_equal_names(models: Iterable[TrainedRenderer], flag: str) -> None:
    seen: dict[str, Path] = {}
    for model in models:
        if model.name in seen:
            raise UsageError(f"{flag}: {seen[model.name]} and {model.folder} are both the row {model.name!r}")
        seen[model.name] = model.folder
