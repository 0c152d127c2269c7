"""Make a clip set of some of the clips of another: calm ones, sure ones, named ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from data.clip_writer import CLIP_FILES, ClipSetWriter
from data.clips import DROPPED, KEPT, PAIRS_ONLY, STORED_BINS, ClipRow, ClipSet, ClipSetError
from data.files import atomic_path
from motion.flow import default_grid_scale
from motion.spectrum import mean_displacement


def select_clips(
    source: ClipSet,
    folder: str | Path,
    *,
    max_mean_px: float | None = None,
    min_confidence: float | None = None,
    only: Sequence[str] = (),
) -> ClipSet:
    """Make a set of the clips of a finished set that pass; the files are hard links to its files where that can be.

    Limits are the mean over pixels of the mean displacement, px at 256 x 160, and the mean confidence, 0 to 1. Ids must
    match one of the patterns `only` (`*` and `?`). The other clips stay in the table as dropped. Called again, it
    judges all clips anew. Raises ClipSetError where the folder holds something else, and for an unusable source.
    """
    folder = Path(folder)
    if folder.resolve() == source.folder.resolve():
        raise ClipSetError(f"{folder}: a selection needs a folder of its own")
    if not source.is_finished:
        raise ClipSetError(f"{source.folder}: is not finished; run the command that makes it to its end")
    wanted = {"from": str(source.folder.resolve()), "max_mean_px": max_mean_px, "min_confidence": min_confidence}
    made_with = source.statistics.get("settings", {})
    settings = {**made_with, "selected": {**wanted, "only": sorted(only)}}
    with ClipSetWriter(folder, settings, period_s=source.statistics.get("period_s", 5.0)) as writer:
        writer.remove(*writer.rows)
        writer.add(*source.rows(status=(DROPPED,)))
        for row in source.rows(status=(KEPT, PAIRS_ONLY)):
            reason = _why_not(source, row, max_mean_px, min_confidence, only)
            if reason:
                row = replace(row, status=DROPPED, reason=f"not selected: {reason}")
            else:
                _link_files(source.folder, folder, row.id)
            writer.add(row)
        return writer.finish()


def _why_not(
    source: ClipSet, row: ClipRow, max_mean_px: float | None, min_confidence: float | None, only: Sequence[str]
) -> str:
    if only and not any(fnmatchcase(row.id, pattern) for pattern in only):
        return "the name matches no pattern"
    if max_mean_px is None and min_confidence is None:
        return ""
    # from the files, as older tables lack these columns
    if row.status == KEPT:
        spectrum, confidence = source.spectrum(row.id, STORED_BINS)
        displacement = mean_displacement(spectrum)
    else:
        pairs, displacement = source.pairs(row.id)
        confidence = torch.stack([pair.reliability for pair in pairs]) if pairs else torch.zeros(1)
    mean_px = float(displacement.mean()) * default_grid_scale(*displacement.shape[-2:])
    if max_mean_px is not None and mean_px > max_mean_px:
        return f"mean displacement {mean_px:.2f} px is above {max_mean_px:g}"
    if min_confidence is not None and confidence.mean() < min_confidence:
        return f"confidence {confidence.mean():.2f} is below {min_confidence:g}"
    return ""


def _link_files(source: Path, folder: Path, clip_id: str) -> None:
    for name in (name.format(clip_id) for name in CLIP_FILES):
        if not (source / name).is_file():
            continue
        with atomic_path(folder / name) as temporary:
            try:
                os.link(source / name, temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source / name, temporary)
