"""Find the videos that a clip set is made of: files, folders, and CSV tables of parts of videos."""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.clip_writer import ClipSetWriter, remove_clip
from data.clips import ClipRow
from data.media import VIDEO_SUFFIXES, MediaError
from data.prepare_clip import ClipJob, is_unreadable, seconds_name

logger = logging.getLogger(__name__)

# file, start, seconds
Part = tuple[Path, float, float | None]

TEST_PERCENT = 10


def find_clips(paths: Iterable[Path], split_from: Iterable[Path], options: dict[str, Any]) -> Iterator[ClipJob]:
    """Yield the videos of files, folders and CSV files, each with an id of its own.

    Args:
        paths: videos, folders (searched through), or CSV files with the columns file or path (relative to the CSV),
            and start, seconds, split, source, kind where wanted.
        split_from: CSV files that splits and sources are looked up in by file name, where the paths name none; a
            warning counts the videos that are in none of them.
        options: further fields of `ClipJob`.

    Raises:
        MediaError: a path that is not there, a CSV that cannot be understood, a video or a source in both splits.
    """
    split_from = list(split_from)
    found: list[dict[str, Any]] = []
    for path in paths:
        if path.suffix.lower() == ".csv":
            found += _read_csv(path)
        else:
            found += [{"path": video} for video in list_videos(path)]
    parts = _merge(found)
    if split_from:
        _look_up_splits(list(parts.values()), split_from)
    times = Counter(_clip_id(cells) for cells in parts.values())
    splits: dict[str, str] = {}
    for part, cells in parts.items():
        name = _clip_id(cells)
        if times[name] > 1:
            name += "-" + _digest(part)
        # the clips of a source share its split, or the test split would be known from training
        split = cells.get("split") or _split_of(cells.get("source") or Path(cells["path"]).name)
        for origin in {str(part[0]), cells.get("source") or str(part[0])}:
            if splits.setdefault(origin, split) != split:
                raise MediaError(f"{origin}: is in both splits; the clips of a video, and of a source, belong into one")
        yield ClipJob(name, part[0], split, part[1], part[2], group=cells.get("source") or "", **options)


def _merge(found: Iterable[dict[str, Any]]) -> dict[Part, dict[str, Any]]:
    """Return by part what is there once: a video that is named by its folder and by a CSV is one.

    Splits and sources are those of the entry that names one, of the same part before others of the same video.
    """
    parts: dict[Part, dict[str, Any]] = {}
    for cells in found:
        one = parts.setdefault(_part(cells), cells)
        one.update({key: one.get(key) or cells.get(key) for key in ("split", "source")})
    for key in ("split", "source"):
        of_video: dict[Path, str] = {}
        for part, cells in parts.items():
            if cells[key]:
                of_video.setdefault(part[0], cells[key])
        for part, cells in parts.items():
            cells[key] = cells[key] or of_video.get(part[0])
    return parts


def _look_up_splits(found: list[dict[str, Any]], split_from: list[Path]) -> None:
    """Fill in splits and sources by file name where the videos found have none of their own."""
    known = {Path(cells["path"]).name: cells for path in split_from for cells in _read_csv(path)}
    unknown = []
    for cells in found:
        entry = known.get(Path(cells["path"]).name, {})
        if not entry and not cells.get("split"):
            unknown.append(str(cells["path"]))
        cells.update({key: cells.get(key) or entry.get(key) for key in ("split", "source")})
    if unknown:
        logger.warning(
            "%s: %d of %d videos are not named there, such as %s; their splits are drawn by their names",
            *(", ".join(map(str, split_from)), len(unknown), len(found), unknown[0]),
        )


def fit_to_set(jobs: Iterable[ClipJob], rows: Mapping[str, ClipRow]) -> list[ClipJob]:
    """Return the jobs under the ids that their clips have in a set already, and new ones under ids that are free.

    Args:
        jobs: of `find_clips`.
        rows: the set's rows by id.

    Raises:
        MediaError: a video, or a source, that the set has in the other split; a clip that the set has with another
            `seconds`.
    """
    jobs = list(jobs)
    # of what could not be read nothing was made
    made = [row for row in rows.values() if not is_unreadable(row)]
    splits = {origin: row.split for row in made for origin in (row.source, row.group) if origin}
    there: dict[tuple[str, float], list[ClipRow]] = {}
    for row in rows.values():
        if _first_id(row) == row.id:
            there.setdefault((row.source, row.start_s), []).append(row)
    asked = {(str(job.path), job.start_s, _limit_s(job.seconds)) for job in jobs}
    taken: set[str] = set()
    fitted = []
    for job in jobs:
        for origin in (str(job.path), job.group):
            if splits.get(origin, job.split) != job.split:
                raise MediaError(
                    f"{origin}: is a {splits[origin]} clip of this set, not a {job.split} one; name another folder"
                )
        found = there.get((str(job.path), job.start_s), [])
        row = next((row for row in found if _limit_s(row.limit_s) == _limit_s(job.seconds)), None)
        # another part of the video that is asked for as well is not in the way
        others = (row for row in found if (row.source, row.start_s, _limit_s(row.limit_s)) not in asked)
        other = next((row for row in others if row.id not in taken), None)
        if row is None and other is not None and is_unreadable(other):
            row = other  # nothing was made of it
        if row is None and other is not None:
            held_s, asked_s = _limit_s(other.limit_s), _limit_s(job.seconds)
            raise MediaError(
                f"{job.path}: this set holds its clip from {job.start_s:g} s with seconds = {held_s:g}, not "
                f"{asked_s:g} (inf: to the end); repeat that, or delete the row {other.id} in clips.csv"
            )
        if row is not None:
            job = replace(job, id=row.id)
        elif job.id in rows:
            job = replace(job, id=f"{job.id}-{_digest((job.path, job.start_s, job.seconds))}")
        taken.add(job.id)
        fitted.append(job)
    return fitted


def _limit_s(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _first_id(row: ClipRow) -> str:
    """Return the id of a row's job, which is that of its first clip; later ones are named ID-STARTs."""
    return row.id.removesuffix(f"-{seconds_name(row.start_s)}") if row.start_s > 0 else row.id


def unfinished_jobs(jobs: list[ClipJob], writer: ClipSetWriter) -> list[ClipJob]:
    """Return the jobs (of `fit_to_set`) that a set lacks, after removing what is left of them, and naming new groups.

    What could not be read is tried again: the file may have been mended.
    """
    writer.rows |= {row.id: row for row in name_groups(jobs, writer.rows.values())}
    new = [job for job in jobs if job.id not in writer.rows]
    # the later clips of a video whose first is not in the set: its row was deleted
    videos = {str(job.path) for job in new}
    rows = writer.rows.values()
    writer.remove(*[row.id for row in rows if row.source in videos and _first_id(row) not in writer.rows])
    for job in new:
        remove_clip(writer.folder, job.id)
    return [job for job in jobs if job.id not in writer.rows or is_unreadable(writer.rows[job.id])]


def name_groups(jobs: Iterable[ClipJob], rows: Iterable[ClipRow]) -> list[ClipRow]:
    """Return the rows of jobs that have another group now, with that: a CSV may gain sources."""
    groups = {(job.id, str(job.path)): job.group for job in jobs if job.group}
    named = ((row, groups.get((_first_id(row), row.source), row.group)) for row in rows)
    return [replace(row, group=group) for row, group in named if group != row.group]


def _part(cells: dict[str, Any]) -> Part:
    return Path(cells["path"]).resolve(), cells.get("start") or 0.0, cells.get("seconds")


def _digest(part: Part) -> str:
    return hashlib.sha1(repr([str(part[0]), *part[1:]]).encode()).hexdigest()[:6]


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
        source = " ".join((row.get("source") or "").split())
        clips.append({"path": path.parent / name, "split": row.get("split"), "source": source, **numbers})
    return clips


def _clip_id(cells: dict[str, Any]) -> str:
    start_s = cells.get("start") or 0.0
    name = Path(cells["path"]).stem + (f"_{seconds_name(start_s)}" if start_s else "")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _split_of(source: str) -> str:
    return "test" if int(hashlib.sha1(source.encode()).hexdigest(), 16) % 100 < TEST_PERCENT else "train"
