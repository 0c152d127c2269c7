"""Clip sets as the two motion trainings take them: of one grid, with statistics, without clips that cannot be read."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.clips import KEPT, ClipRow, ClipSet, ClipSetError
from data.files import MediaError, atomic_path
from training import processes
from training.data_sets import WeightedSets, combined_normalisation

logger = logging.getLogger(__name__)

# Sides of a set's grid and of the one asked for may differ by this factor: statistics are px of the set's own grid.
LARGEST_STRETCH = 1.25
NAMED_AT_MOST = 16
# Below a set's folder: the spectra that were read without error, as {id: [bytes, mtime in ns]}.
READ_BEFORE = Path("cache") / "readable.json"


class ReadableClips(ClipSet):
    """A clip set without the clips that cannot be read.

    Args:
        folder: the set.
        unreadable: their ids.
    """

    def __init__(self, folder: str | Path, unreadable: Iterable[str]) -> None:
        super().__init__(folder)
        self.unreadable = frozenset(unreadable)

    def rows(self, split: str | None = None, *, status: Iterable[str] = (KEPT,)) -> list[ClipRow]:
        """Return the rows as `ClipSet.rows`, the readable ones."""
        return [row for row in super().rows(split, status=status) if row.id not in self.unreadable]


def motion_sets(sets: WeightedSets, grid: Sequence[int], num_bins: int, device: str = "auto") -> WeightedSets:
    """Check sets for the training of motion, and leave out the clips whose spectrum cannot be read.

    A clip whose numbers are not finite, or whose file is missing or damaged, is skipped: the log counts and names
    them. All processes skip what the main one found.

    Args:
        sets: opened.
        grid: (H, W) of the training, px.
        num_bins: K.
        device: value of --device.

    Raises:
        ClipSetError: a set of another grid, and as `combined_normalisation`.
    """
    combined_normalisation(sets, num_bins)  # says what is wrong with the statistics
    _check_grids([clip_set for clip_set, _ in sets], grid)
    processes.start(device)
    reasons = [_unreadable(clip_set) for clip_set, _ in sets] if processes.is_main() else None
    reasons = processes.share(reasons)
    checked = []
    for (clip_set, weight), found in zip(sets, reasons, strict=True):
        if found:
            listed = "; ".join(list(found.values())[:NAMED_AT_MOST]) + ("; ..." if len(found) > NAMED_AT_MOST else "")
            count = len(clip_set.rows())
            logger.warning("%s: %d of %d clips are skipped: %s", clip_set.folder, len(found), count, listed)
            clip_set = ReadableClips(clip_set.folder, found)
        checked.append((clip_set, weight))
    return checked


def _check_grids(clip_sets: Sequence[ClipSet], grid: Sequence[int]) -> None:
    """Refuse sets made at another size: their statistics, in px, would be wrong by the factor of the sides."""
    for clip_set in clip_sets:
        height, width = clip_set.statistics.get("grid", grid)
        stretch = math.sqrt(grid[0] * grid[1] / (height * width))
        if not 1 / LARGEST_STRETCH <= stretch <= LARGEST_STRETCH:
            raise ClipSetError(
                f"--grid {grid[1]}x{grid[0]}: {clip_set.folder} was made at {width}x{height} px, and statistics in px "
                f"do not carry over; right: --grid {width}x{height}, or a set prepared at --grid's size"
            )


def _unreadable(clip_set: ClipSet) -> dict[str, str]:
    """Return {id: reason} of the kept clips whose spectrum cannot be read; those read before are not read again."""

    def problem(row: ClipRow) -> str | None:
        try:
            clip_set.spectrum(row.id)
        except ClipSetError as error:
            return str(error).removeprefix(f"{clip_set.folder}: ")
        return None

    path = clip_set.folder / READ_BEFORE
    known = _read_before(path)
    now = {row.id: _mark(clip_set.folder / "spectra" / f"{row.id}.npz") for row in clip_set.rows()}
    rows = [row for row in clip_set.rows() if now[row.id] is None or known.get(row.id) != now[row.id]]
    # Most of the time is unpacking, which threads share.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = {row.id: reason for row, reason in zip(rows, pool.map(problem, rows), strict=True) if reason}
    readable = {name: mark for name, mark in now.items() if name not in found}
    if readable != known:
        # Of a set that cannot be written the next training reads all again.
        with contextlib.suppress(OSError, MediaError), atomic_path(path) as temporary:
            temporary.write_text(json.dumps(readable), encoding="utf-8")
    return found


def _mark(path: Path) -> list[int] | None:
    """Return what changes when a file is written again, its size and time; None where it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_before(path: Path) -> dict[str, list[int]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
