"""Write clip sets item by item, so that a run that is cut short goes on where it stopped; select clips of a set."""

import io
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from cluster.items import Workers, run_items
from cluster.storage import exists, list_folder, read_texts, url_of
from data import clips
from data.clips import DROPPED, KEPT, PAIRS_ONLY, STORED_BINS, ClipRow, ClipSet, ClipSetError, Pair
from data.files import MediaError, atomic_path, write_text, writing
from data.media import to_bytes, write_image
from motion.flow import default_grid_scale
from motion.normalisation import ScaleEstimator
from motion.spectrum import NUM_BINS, mean_displacement, truncate

CLIP_FILES = tuple(f"{folder}/{{}}.{suffix}" for folder, suffix in clips.FILE_SUFFIXES.items())
# Of a set at a URL: a file with the rows of each item, as nothing there can be locked or appended to.
RECORDS = "rows"
_CLIPS_AT_ONCE = 500  # that a worker reads for the statistics


@dataclass
class ClipContent:
    """The tensors of one clip."""

    first: torch.Tensor  # (3, H, W)
    spectrum: torch.Tensor | None = None  # (24, 4, H, W) px
    confidence: torch.Tensor | None = None  # (1, H, W); None: 1 everywhere
    pairs: tuple[Pair, ...] = ()
    importance: torch.Tensor | None = None  # (1, H, W) px; None: that of the spectrum
    slice: torch.Tensor | None = None  # (3, T, W), time downwards


class FolderBusyError(MediaError):
    """Another run is writing into the folder."""


def lock_folder(folder: str | Path) -> filelock.BaseFileLock:
    """Lock FOLDER/.lock, where that can be, until `release()` or the process ends; FolderBusyError if it is held."""
    lock = filelock.FileLock(Path(folder) / ".lock")
    try:
        if not url_of(folder):
            lock.acquire(blocking=False)
    except filelock.Timeout:
        message = "another run is writing there; wait for its end or name another folder"
        raise FolderBusyError(f"{folder}: {message}") from None
    except (OSError, NotImplementedError):
        pass
    return lock


class ClipSetWriter(AbstractContextManager):
    """Writes a clip set item by item; where the folder holds one already, `rows` tells what is done.

    The finished set depends neither on the order of the items nor on interruptions. A folder is locked until the `with`
    block ends. At a URL several runs may add items, which leave records; `finish` makes the table of all of them.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], *, period_s: float = 5.0) -> None:
        """Open or make a set of items that depend on `settings` (JSON); ClipSetError, or MediaError if it is in use."""
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.period_s = period_s
        self._table = self.folder / "clips.csv"
        rows_of_set(self.folder, self.settings)
        self._lock = lock_folder(self.folder)
        try:
            # once more, as it could be written until now
            self.rows = rows_of_set(self.folder, self.settings)
            self._remove_strays()
            self._finished = clips.NUM_CLIPS in clips.read_statistics(self.folder)
            if not self._finished:
                self._write_statistics({})
            write_text(self._table, clips.format_table(self.rows.values()))
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def write(self, row: ClipRow, content: ClipContent) -> None:
        """Write an item's files, then its row."""
        write_clip(self.folder, row.id, content)
        write_record(self.folder, [row])
        self.add(row)

    def add(self, *rows: ClipRow) -> None:
        """Add the rows of items whose files and record are written."""
        self._reopen()
        self.rows |= {row.id: row for row in rows}
        if url_of(self.folder):
            return
        text = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
        with writing(self._table), self._table.open("a", **text) as file:
            file.write(clips.format_table(rows, heading=False))

    def remove(self, *clip_ids: str) -> None:
        """Remove clips of the set, their rows first, then their files."""
        if not clip_ids:
            return
        self._reopen()
        for clip_id in clip_ids:
            del self.rows[clip_id]
        write_text(self._table, clips.format_table(self.rows.values()))
        for clip_id in clip_ids:
            remove_clip(self.folder, clip_id)

    def _remove_strays(self) -> None:
        """Remove the temporary files of processes that were killed while writing."""
        for stray in [*self.folder.glob(".*.tmp-*"), *self.folder.glob("*/.*.tmp-*")]:
            stray.unlink(missing_ok=True)

    def _reopen(self) -> None:
        # the statistics of before would be wrong if this run were cut short
        if self._finished:
            self._write_statistics({})
            self._finished = False

    def finish(self, workers: Workers | None = None) -> ClipSet:
        """Sort the table, take the statistics of the training split, by workers where it is large; return the set."""
        self._remove_strays()  # of a cluster's workers
        while True:
            rows = sorted(self.rows.values(), key=lambda row: row.id)
            write_text(self._table, clips.format_table(rows))
            if not self._finished:
                train = [row.id for row in rows if row.status == KEPT and row.split == "train"]
                self._write_statistics(self._measure(train, workers or Workers()))
                self._finished = True
            # those of another run, which may have written its own table meanwhile
            late = _read_records(self.folder, self.rows) if url_of(self.folder) else {}
            if not late:
                return ClipSet(self.folder)
            self._reopen()
            self.rows |= late

    def _measure(self, train: Sequence[str], workers: Workers) -> dict[str, Any]:
        measured: dict[str, Any] = {clips.NUM_CLIPS: len(train)}
        estimator, grids = ScaleEstimator(STORED_BINS, self.period_s), Counter[tuple[int, int]]()
        parts = [train[start : start + _CLIPS_AT_ONCE] for start in range(0, len(train), _CLIPS_AT_ONCE)]
        count = partial(_count_magnitudes, self.folder, self.period_s)
        # a small set is read sooner than workers start
        with run_items(count, parts, workers if len(parts) > 1 else Workers(), "part", progress=False) as results:
            for done in results:
                counts, of_part = done.value()
                estimator.counts += counts
                grids += of_part
        if train:
            # the most frequent grid, of equally frequent ones the smallest
            measured["grid"] = min(grids, key=lambda grid: (-grids[grid], grid))
            measured |= estimator.finish().to_dict()
        return measured

    def _write_statistics(self, measured: Mapping[str, Any]) -> None:
        head = {"format_version": clips.FORMAT_VERSION, "num_bins": STORED_BINS, "period_s": self.period_s}
        text = json.dumps({**head, **measured, "settings": self.settings}, indent=1)
        write_text(self.folder / "statistics.json", text + "\n")


def _count_magnitudes(folder: Path, period_s: float, ids: Sequence[str]) -> tuple[torch.Tensor, Counter]:
    clip_set, estimator, grids = ClipSet(folder), ScaleEstimator(STORED_BINS, period_s), Counter[tuple[int, int]]()
    for clip_id in ids:
        spectrum, confidence = clip_set.spectrum(clip_id, STORED_BINS)
        estimator.add(spectrum, confidence)
        grids[tuple(spectrum.shape[-2:])] += 1
    return estimator.counts, grids


def rows_of_set(folder: str | Path, settings: Mapping[str, Any]) -> dict[str, ClipRow]:
    """Return by id the rows of the set that these settings would go on with; ClipSetError for another set."""
    folder, settings = Path(folder), json.loads(json.dumps(dict(settings)))
    if folder.exists() and not folder.is_dir():
        raise ClipSetError(f"{folder}: is a file; name a folder for the clip set")
    if not exists(folder / "clips.csv"):
        # a run that was killed at its very start leaves its lock, a temporary file and empty folders
        allowed = {*clips.FILE_SUFFIXES, "statistics.json"}
        if folder.is_dir() and any(not name.startswith(".") and name not in allowed for name in os.listdir(folder)):
            raise ClipSetError(f"{folder}: the folder is not empty and not a clip set; name another")
        return {}
    made_with = clips.read_statistics(folder).get("settings", {})
    both = [(key, made_with.get(key, "none"), settings.get(key, "none")) for key in sorted({*made_with, *settings})]
    changes = "; ".join(f"{key} was {was}, is {now}" for key, was, now in both if was != now)
    if changes:
        raise ClipSetError(f"{folder}: made with other settings ({changes}); repeat them or name another folder")
    rows = {row.id: row for row in clips.read_rows(folder / "clips.csv")}
    return rows if not url_of(folder) else rows | _read_records(folder, rows)


def write_record(folder: str | Path | None, rows: Sequence[ClipRow]) -> None:
    """Write the rows of an item, that of its name last, after its files: a set at a URL then holds it."""
    if folder is not None and url_of(folder):
        write_text(Path(folder) / RECORDS / f"{rows[-1].id}.csv", clips.format_table(rows))


def _read_records(folder: Path, known: Mapping[str, ClipRow]) -> dict[str, ClipRow]:
    """Read the records that another run may have added: of unknown items, and of dropped ones that it tried again."""
    done = {row.id for row in known.values() if row.status != DROPPED}
    files = [path for path in list_folder(folder / RECORDS) if path.stem not in done]
    texts = read_texts(files)
    rows = [row for path in files for row in clips.parse_rows(texts[path], path)]
    return {row.id: row for row in rows if row != known.get(row.id)}


def remove_clip(folder: str | Path, clip_id: str) -> None:
    """Remove the files of one clip from a set."""
    for name in CLIP_FILES:
        (Path(folder) / name.format(clip_id)).unlink(missing_ok=True)


def write_clip(folder: str | Path, clip_id: str, content: ClipContent) -> None:
    """Write the files of one clip into a set, aside and renamed; several processes may do so at once."""
    folder = Path(folder)
    write_image(folder / "first" / f"{clip_id}.png", content.first)
    if content.slice is not None:
        write_image(folder / "slices" / f"{clip_id}.png", content.slice)
    if content.spectrum is not None:
        assert content.spectrum.shape[0] == STORED_BINS
        ones = torch.ones(1, *content.spectrum.shape[-2:])
        confidence = ones if content.confidence is None else content.confidence
        arrays = {"spectrum": _half(content.spectrum), "confidence": _half(confidence)}
        _write_npz(folder / "spectra" / f"{clip_id}.npz", arrays)
    if not content.pairs:
        return
    importance = content.importance
    importance = mean_displacement(truncate(content.spectrum, NUM_BINS)) if importance is None else importance
    arrays = {
        "target": to_bytes(torch.stack([pair.target for pair in content.pairs])),  # (N, H, W, 3)
        "flow": _half(torch.stack([pair.flow for pair in content.pairs])),
        # two decimals say enough and compress well
        "reliability": _half(torch.stack([pair.reliability for pair in content.pairs]).round(decimals=2)),
        "importance": _half(importance),
        "time_s": np.array([pair.time_s for pair in content.pairs], np.float64),
    }
    _write_npz(folder / "pairs" / f"{clip_id}.npz", arrays)


def _half(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().clamp(-65504, 65504).to(torch.float16).numpy()


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # numpy's own writer is four times slower for 3 % less; without time stamps the same arrays give the same bytes
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED, 1)


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
    match one of the patterns `only` (`*` and `?`). The others are dropped. ClipSetError: an unusable folder or source.
    """
    folder = Path(folder)
    if folder.resolve() == source.folder.resolve():
        raise ClipSetError(f"{folder}: a selection needs a folder of its own")
    if not source.is_finished:
        raise ClipSetError(f"{source.folder}: is not finished; run the command that makes it to its end")
    wanted = {"from": str(source.folder.resolve()), "max_mean_px": max_mean_px, "min_confidence": min_confidence}
    settings = {**source.statistics.get("settings", {}), "selected": {**wanted, "only": sorted(only)}}
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
        if (source / name).is_file():
            with atomic_path(folder / name) as temporary:
                try:
                    os.link(source / name, temporary)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(source / name, temporary)
