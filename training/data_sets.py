"""Clip sets as the trainings take them: opened or rendered, with statistics, without clips that cannot be read."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from data.clip_writer import FolderBusyError
from data.clips import ClipRow, ClipSet, ClipSetError
from data.cpus import available_cpus
from data.datasets import WeightedSets, open_weighted_sets
from data.files import MediaError, atomic_path, warn_once
from data.scenes.render_set import render_scene_set
from data.scenes.scene import SCENES_VERSION
from data.shards import ShardedSet
from models.device import ArgumentError
from motion.normalisation import Normalisation

logger = logging.getLogger(__name__)

SCENES_WITHOUT_DATA = 64  # enough to see a training work, rendered in about two minutes on two cores
# Sides of a set's grid and of the one asked for may differ by this factor: statistics are px of the set's own grid.
LARGEST_STRETCH = 1.25
NAMED_AT_MOST = 16
# Below a set's folder: the spectra that were read without error, as {id: [bytes, mtime in ns]}.
READ_BEFORE = Path("cache") / "readable.json"


def open_sets(data: Sequence[str] | None, seed: int, *, num: int = SCENES_WITHOUT_DATA) -> WeightedSets:
    """Open sets given as SET or SET:WEIGHT, or render a small scene set once, saying so, where none is given."""
    if data:
        return open_weighted_sets(data)
    folder = Path("outputs") / "scenes" / f"{num}-seed{seed}-v{SCENES_VERSION}"
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process:
            logger.info("no data given: %d rendered scenes in %s (prepare_data.py makes larger sets)", num, folder)
        while True:
            try:
                options = {"workers": available_cpus(), "progress": state.is_main_process}
                return [(render_scene_set(folder, num, seed=seed, **options), 1.0)]
            except FolderBusyError as error:  # another training that was started without data renders them
                warn_once(f"{str(error).split(';')[0]}; waiting", logging.INFO)
                time.sleep(1)


def sets_with(sets: WeightedSets, split: str) -> WeightedSets:
    """Return the sets that hold kept clips of a split, with weight 1; where there is none a warning says so."""
    found = [(clip_set, 1.0) for clip_set, _ in sets if clip_set.rows(split)]
    if not found:
        logger.warning("data: no clip of split %s, so there is no validation", split)
    return found


def combined_normalisation(sets: WeightedSets, num_bins: int) -> Normalisation:
    """Combine sets' per-bin scales by their weighted geometric mean, as they differ by factors.

    ClipSetError, ArgumentError: statistics missing, of fewer bins or another period.
    """
    parts = [(_normalisation(clip_set, num_bins), weight) for clip_set, weight in sets]
    periods = {part.period_s for part, _ in parts}
    if len(periods) > 1:
        raise ArgumentError(f"data: sets of different periods, {sorted(periods)} s; right: sets of one period")
    logs = torch.stack([part.scale.log() * weight for part, weight in parts]).sum(0)
    return Normalisation((logs / sum(weight for _, weight in parts)).exp(), periods.pop())


def _normalisation(clip_set: ClipSet, num_bins: int) -> Normalisation:
    scales = clip_set.statistics.get("scale_px", ())
    if 0 < len(scales) < num_bins:
        found = f"bins {num_bins}: {clip_set.folder} has statistics of {len(scales)} bins"
        raise ArgumentError(f"{found}; right: so many or fewer, or prepare the set again")
    return clip_set.normalisation(num_bins)


def motion_sets(
    sets: WeightedSets, grid: Sequence[int], num_bins: int, *, period_s: float | None = None
) -> WeightedSets:
    """Check sets for the training of motion, and leave out the clips whose spectrum cannot be read.

    The log counts and names them. `grid`: (H, W) of the training, px; `period_s`: of the VAE, where there is one.
    ArgumentError: a set of another grid or another period; and as `combined_normalisation`.
    """
    found_s = combined_normalisation(sets, num_bins).period_s
    if found_s != (period_s or found_s):
        raise ArgumentError(f"data: the sets have a period of {found_s:g} s, the VAE of {period_s:g} s")
    for clip_set, _ in sets:
        _check_grid(clip_set, grid)
    main = PartialState().is_main_process
    reasons = broadcast_object_list([_unreadable(clip_set) if main else None for clip_set, _ in sets])
    checked = []
    for (clip_set, weight), found in zip(sets, reasons, strict=True):
        if found:
            listed = "; ".join(list(found.values())[:NAMED_AT_MOST]) + ("; ..." if len(found) > NAMED_AT_MOST else "")
            count = len(clip_set.rows())
            logger.warning("%s: %d of %d clips are skipped: %s", clip_set.folder, len(found), count, listed)
            clip_set = clip_set.without(found)
        checked.append((clip_set, weight))
    return checked


def _check_grid(clip_set: ClipSet, grid: Sequence[int]) -> None:
    """Refuse a set made at another size: its statistics, in px, would be wrong by the factor of the sides."""
    height, width = clip_set.statistics.get("grid", grid)
    stretch = math.sqrt(grid[0] * grid[1] / (height * width))
    if not 1 / LARGEST_STRETCH <= stretch <= LARGEST_STRETCH:
        made = f"grid {grid[1]}x{grid[0]}: {clip_set.folder} was made at {width}x{height} px"
        raise ArgumentError(f"{made}; right: {width}x{height}, or a set prepared at this size")


def _unreadable(clip_set: ClipSet) -> dict[str, str]:
    """Return {id: reason} of the kept clips whose spectrum cannot be read; those read before are not read again."""
    if isinstance(clip_set, ShardedSet):
        return {}  # as they were all read when they were written

    def problem(row: ClipRow) -> str | None:
        try:
            clip_set.spectrum(row.id)
        except ClipSetError as error:
            return str(error).removeprefix(f"{clip_set.folder}: ")
        return None

    path, known = clip_set.folder / READ_BEFORE, {}
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    now: dict[str, list[int] | None] = {}
    for row in clip_set.rows():
        file = clip_set.folder / "spectra" / f"{row.id}.npz"
        now[row.id] = [file.stat().st_size, file.stat().st_mtime_ns] if file.is_file() else None
    rows = [row for row in clip_set.rows() if now[row.id] is None or known.get(row.id) != now[row.id]]
    # Most of the time is unpacking, which threads share.
    with ThreadPoolExecutor(available_cpus()) as pool:
        found = {row.id: reason for row, reason in zip(rows, pool.map(problem, rows), strict=True) if reason}
    readable = {name: mark for name, mark in now.items() if name not in found}
    if readable != known:
        # Of a set that cannot be written the next training reads all again.
        with contextlib.suppress(OSError, MediaError), atomic_path(path) as temporary:
            temporary.write_text(json.dumps(readable), encoding="utf-8")
    return found
