"""Find the videos that a clip set is made of: files, folders, and CSV tables of parts of videos."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .media import VIDEO_SUFFIXES, MediaError
from .sources import ClipJob

TEST_PERCENT = 10


def find_clips(paths: Iterable[Path], split_from: Iterable[Path], options: dict[str, Any]) -> Iterator[ClipJob]:
    """Yield the videos of files, folders and CSV files, each with an id of its own.

    Args:
        paths: videos, folders (searched through), or CSV files with the columns file or path (relative to the CSV),
            and start, seconds, split, source, kind where wanted.
        split_from: CSV files that splits and sources are looked up in by file name.
        options: further fields of `ClipJob`.

    Raises:
        MediaError: a path that is not there, a CSV that cannot be understood.
    """
    known = {Path(cells["path"]).name: cells for path in split_from for cells in _read_csv(path)}
    found: list[dict[str, Any]] = []
    for path in paths:
        if path.suffix.lower() == ".csv":
            found += _read_csv(path)
        else:
            found += [{"path": video} | {k: known.get(video.name, {}).get(k) for k in ("split", "source")}
                      for video in list_videos(path)]  # fmt: skip
    names = [_clip_id(cells) for cells in found]
    times = Counter(names)
    for name, cells in zip(names, found, strict=True):
        if times[name] > 1:
            name += "-" + hashlib.sha1(str(Path(cells["path"]).resolve()).encode()).hexdigest()[:6]
        # the clips of a source share its split, or the test split would be known from training
        split = cells.get("split") or _split_of(cells.get("source") or Path(cells["path"]).name)
        start_s = cells.get("start") or 0.0
        yield ClipJob(name, Path(cells["path"]).resolve(), split, start_s, cells.get("seconds"), **options)


def list_videos(path: Path) -> list[Path]:
    """Return the videos under a folder in a fixed order, or the file itself; MediaError where there is neither."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and not file.is_dir())
    if not path.is_file():
        raise MediaError(f"{path}: no such file or folder")
    return [path]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Read rows with file or path (relative to the CSV), and start, seconds, split, source, kind where given."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except UnicodeDecodeError:
        raise MediaError(f"{path}: not a text file; give a CSV with the columns path,start,seconds,split") from None
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror}); give a CSV of videos") from None
    clips = []
    for line, row in enumerate(rows, 2):
        name = row.get("path") or row.get("file")
        if not name:
            raise MediaError(f"{path}: line {line} names no file; a column `path` or `file` is needed")
        if (row.get("kind") or "clip") != "clip":
            continue
        if row.get("split") not in (None, "", "train", "test"):
            raise MediaError(f"{path}: line {line}: split {row['split']!r}; right: train, test")
        try:
            numbers = {key: float(row[key]) if row.get(key) else None for key in ("start", "seconds")}
        except ValueError:
            raise MediaError(f"{path}: line {line}: start and seconds must be numbers") from None
        # written so that NaN fails as well
        if not 0 <= (numbers["start"] or 0) < 1e9 or not (numbers["seconds"] is None or 0 < numbers["seconds"] < 1e9):
            raise MediaError(f"{path}: line {line}: start must be 0 or above and seconds above 0")
        clips.append({"path": path.parent / name, "split": row.get("split"), "source": row.get("source"), **numbers})
    return clips


def _clip_id(cells: dict[str, Any]) -> str:
    start_s = cells.get("start") or 0.0
    name = Path(cells["path"]).stem + (f"_{start_s:g}s" if start_s else "")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _split_of(source: str) -> str:
    return "test" if int(hashlib.sha1(source.encode()).hexdigest(), 16) % 100 < TEST_PERCENT else "train"
