"""evaluate.py sources: what a model was trained on, source by source with its licence, as a model card lists it."""

from __future__ import annotations

import argparse
import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.parser import UsageError
from evaluation import out_folder

if TYPE_CHECKING:
    from data.clips import ClipRow

logger = logging.getLogger(__name__)

UNKNOWN = "not stated"
# Columns of the CSV that are shown, by the names that they may have.
SHOWN = {"subject": ("subject",), "origin": ("origin", "url"), "licence": ("licence", "license")}


def make_table(args: argparse.Namespace) -> int:
    """List the sources of the sets' clips, print the table and write it to --out."""
    from data.clips import KEPT, PAIRS_ONLY, ClipSet
    from data.result_tables import write_results

    out = out_folder(args, "sources")
    known = read_licences(args.licences) if args.licences else {}
    rows: dict[str, dict[str, Any]] = {}
    for folder in args.data:
        for clip in ClipSet(folder).rows(args.split, status=(KEPT, PAIRS_ONLY)):
            name = source_of(clip)
            told = next((known[key] for key in (clip.group, Path(clip.source).name) if key in known), {})
            rendered = {"licence": "none needed"} if clip.source.startswith("scene:") else {}
            empty = {"clips": 0, "pairs_only": 0, **dict.fromkeys(SHOWN, UNKNOWN)}
            row = rows.setdefault(name, {"row": name, **empty, **told, **rendered})
            row["clips" if clip.status == KEPT else "pairs_only"] += 1
    table = [rows[name] for name in sorted(rows)]
    unknown = sum(row["licence"] == UNKNOWN for row in table)
    if unknown:
        logger.warning("the licence of %d of %d sources is not stated; --licences CSV names it", unknown, len(table))
    notes = [
        "clips: for motion and rendering; pairs_only: too short for a spectrum, for rendering (and where things move)",
        f"data: {', '.join(map(str, args.data))}, split {args.split}; command: {args.command}",
    ]
    print(write_results(out, table, title="Training sources", notes=notes))
    return 0


def source_of(clip: ClipRow) -> str:
    """Return what a clip is listed under: its group, its file's name, or that it was rendered."""
    if clip.source.startswith("scene:"):
        return "rendered scenes"
    return clip.group or Path(clip.source).name


def read_licences(path: Path) -> dict[str, dict[str, str]]:
    """Read what a CSV tells of sources and files: {source or file name: {subject, origin, licence}}.

    Raises:
        UsageError: unreadable, or without a column that names files or sources.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--licences {path}: not readable as CSV ({error})") from error
    columns = set(lines[0]) if lines else set()
    if not columns & {"source", "file", "path"}:
        raise UsageError(f"--licences {path}: right: columns source, or file or path, and licence")
    known: dict[str, dict[str, str]] = {}
    for line in lines:
        told = {}
        for column, names in SHOWN.items():
            value = next((line[name] for name in names if line.get(name)), "")
            if value:
                told[column] = " ".join(value.split())
        file = line.get("file") or line.get("path") or ""
        for key in filter(None, (line.get("source"), Path(file).name)):
            known.setdefault(key, told)
    return known
