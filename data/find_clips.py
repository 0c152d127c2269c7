"""Find the videos that a clip set is made of: files, folders, and CSV tables of parts of videos."""

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.storage import is_folder, local_input, url_of
from data.clip_writer import ClipSetWriter, remove_clip
from data.clips import SPLITS, ClipRow
from data.files import file_name, list_files, warn_once
from data.media import VIDEO_SUFFIXES, MediaError
from data.prepare_clip import ClipJob, is_unreadable, seconds_name
from data.tables import read_table

logger = logging.getLogger(__name__)

TEST_PERCENT = 10
_WHOLE = {"start_s": 0.0, "seconds": None, "split": "", "group": ""}


def find_clips(paths: Iterable[Path], split_from: Iterable[Path], options: dict[str, Any]) -> list[ClipJob]:
    """List the videos of files, folders and CSV files, each part of a video once; `options`: of `ClipJob`.

    CSV files have the columns file or path (relative to the CSV), and start, seconds, split, source, kind where wanted.
    Those of `split_from` have splits and sources by file name. MediaError: no such path, a wrong CSV, a source in both.
    """
    paths, split_from = list(paths), list(split_from)
    parts: dict[str, dict[str, Any]] = {}
    for path in paths:
        is_table = path.suffix.lower() == ".csv"
        for found in _read_csv(path) if is_table else [{"path": video, **_WHOLE} for video in list_videos(path)]:
            part = parts.setdefault(clip_id(_absolute(found["path"]), found["start_s"], found["seconds"]), found)
            part.update({key: part[key] or found[key] for key in ("split", "group")})
    _fill_in(list(parts.values()), split_from)
    splits: dict[str, str] = {}
    jobs = [ClipJob(name, **{**part, "path": _absolute(part["path"])}, **options) for name, part in parts.items()]
    for job in jobs:
        for origin in {job.source, job.group or job.source}:
            if splits.setdefault(origin, job.split) != job.split:
                named = ", ".join(str(path) for path in [*paths, *split_from])
                right = "the clips of a video, and of a source, belong into one"
                raise MediaError(f"{origin}: is in both splits of {named}; {right}")
    return jobs


def clip_id(path: Path, start_s: float, seconds: float | None) -> str:
    """Name the clip of a part of a video: its file's name, and a digest that tells it from all other parts."""
    part = (str(path), float(start_s), math.inf if seconds is None else float(seconds))
    return file_name(path.stem, f"-{hashlib.sha1(repr(part).encode()).hexdigest()[:8]}", unsafe=r"[^A-Za-z0-9_.-]")


def _fill_in(parts: list[dict[str, Any]], split_from: list[Path]) -> None:
    """Give parts without a split or group those of their video, else of its file name, else a split by chance."""
    for key in ("split", "group"):
        of_video = {_absolute(part["path"]): part[key] for part in reversed(parts) if part[key]}  # the first one's
        for part in parts:
            part[key] = part[key] or of_video.get(_absolute(part["path"]), "")
    known = {found["path"].name: found for path in split_from for found in _read_csv(path)}
    unknown = [part["path"] for part in parts if part["path"].name not in known and not part["split"]]
    if split_from and unknown:
        tables = ", ".join(map(str, split_from))
        message = "%s: %d of %d videos are not named there, such as %s; their splits are drawn by their names"
        logger.warning(message, tables, len(unknown), len(parts), unknown[0])
    for part in parts:
        found = known.get(part["path"].name, _WHOLE)
        part.update({key: part[key] or found[key] for key in ("split", "group")})
        # the clips of a source share its split, or the test split would be known from training
        digest = int(hashlib.sha1(os.fsencode(part["group"] or part["path"].name)).hexdigest(), 16)
        part["split"] = part["split"] or ("test" if digest % 100 < TEST_PERCENT else "train")


def check_splits(jobs: Iterable[ClipJob], rows: Mapping[str, ClipRow]) -> None:
    """Raise MediaError for a video, or a source, that a set's rows have in the other split."""
    # of what could not be read nothing was made
    made = [row for row in rows.values() if not is_unreadable(row)]
    splits = {origin: row.split for row in made for origin in (row.source, row.group) if origin}
    for job in jobs:
        for origin in (job.source, job.group):
            if splits.get(origin, job.split) != job.split:
                message = f"is a {splits[origin]} clip of this set, not a {job.split} one; name another folder"
                raise MediaError(f"{origin}: {message}")


def unfinished_jobs(jobs: list[ClipJob], writer: ClipSetWriter) -> list[ClipJob]:
    """Return the jobs whose clips are missing or unreadable; remove rows of their videos that no job makes any more."""
    check_splits(jobs, writer.rows)
    groups = {job.id: job.group for job in jobs if job.group}
    videos, strays = {job.source for job in jobs}, []
    for row in list(writer.rows.values()):
        # later clips of a job are named ID-STARTs
        job_id = row.id.removesuffix(f"-{seconds_name(row.start_s)}")
        first = writer.rows.get(job_id)
        is_ours = first is not None and first.id == clip_id(Path(first.source), first.start_s, first.limit_s)
        if row.source in videos and not is_ours:
            strays.append(row.id)
        writer.rows[row.id] = replace(row, group=groups.get(job_id, row.group))
    writer.remove(*strays)
    unfinished = [job for job in jobs if job.id not in writer.rows or is_unreadable(writer.rows[job.id])]
    for job in unfinished:
        remove_clip(writer.folder, job.id)  # files of a run that was killed before it wrote the row
    return unfinished


def list_videos(path: Path) -> list[Path]:
    """Return the videos under a folder (see `list_files`), or the file itself; MediaError where there is neither."""
    if is_folder(path):
        return list_files(path, VIDEO_SUFFIXES, below=True)
    if not (path.is_file() or url_of(path)):
        raise MediaError(f"{path}: there is no such file; give a video or a folder of videos")
    return [path]


def _absolute(path: Path) -> Path:
    return path if url_of(path) else path.resolve()


def _read_csv(path: Path) -> list[dict[str, Any]]:
    clips, others = [], []
    with local_input(path) as file:
        table = list(read_table(file, needed=["path"], numbers=["start", "seconds"]))
    for line, row in table:
        if (row["kind"] or "clip") != "clip":
            others.append(row["kind"])
            continue
        name, split = row["path"], row["split"].lower()
        try:
            start_s, seconds = float(row["start"] or 0), float(row["seconds"] or math.inf)
        except ValueError:
            start_s = seconds = math.nan
        # written so that NaN fails as well
        if not name or split not in ("", *SPLITS) or not (0 <= start_s < math.inf and seconds > 0):
            right = "path or file, start of 0 or above, seconds above 0, split train or test"
            raise MediaError(f"{path}: line {line} is wrong; columns: {right}")
        part = {"start_s": start_s, "seconds": None if seconds == math.inf else seconds, "split": split}
        clips.append({"path": path.parent / name, **part, "group": " ".join(row["source"].split())})
    if others:
        warn_once(f"{path}: left out are {len(others)} rows whose kind is not clip (such as {others[0]})")
    return clips
