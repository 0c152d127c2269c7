"""evaluate.py sources: what a model was trained on, source by source with its licence, as a model card lists it."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

from data.clips import KEPT, PAIRS_ONLY, ClipSet
from data.result_tables import write_results
from evaluation import EvaluationError, out_folder
from evaluation.clips import SCENE_PREFIX

logger = logging.getLogger(__name__)

UNKNOWN = "not stated"
# Columns of the CSV that are shown, by the names that they may have.
SHOWN = {"subject": ("subject",), "origin": ("origin", "url"), "licence": ("licence", "license")}


def make_table(*, data: list[Path], split: str, licences: Path | None, out: Path | None, command: str) -> bool:
    """List the sources of the sets' clips by group, or by file; print the table and write it."""
    out = out_folder(out, "sources")
    known = read_source_table(licences, "licences") if licences else {}
    rows: dict[str, dict[str, Any]] = {}
    for folder in data:
        for clip in ClipSet(folder).rows(split, status=(KEPT, PAIRS_ONLY)):
            file, rendered = Path(clip.source).name, clip.source.startswith(SCENE_PREFIX)
            name = "rendered scenes" if rendered else clip.group or file
            empty = {"row": name, "clips": 0, "pairs_only": 0, **dict.fromkeys(SHOWN, UNKNOWN)}
            stated = {"licence": "none needed"} if rendered else known.get(clip.group) or known.get(file, {})
            row = rows.setdefault(name, empty | stated)
            row["clips" if clip.status == KEPT else "pairs_only"] += 1
    table = [rows[name] for name in sorted(rows)]
    unknown = sum(row["licence"] == UNKNOWN for row in table)
    if unknown:
        logger.warning("the licence of %d of %d sources is not stated; --licences CSV names it", unknown, len(table))
    notes = [
        "clips: used for motion and rendering; pairs_only: too short for a spectrum, used for rendering",
        f"data: {', '.join(map(str, data))}, split {split}; command: {command}",
    ]
    print(write_results(out, table, title="Training sources", notes=notes))
    return True


def read_source_table(path: Path, argument: str) -> dict[str, dict[str, str]]:
    """Read a CSV of sources and files: {source or file name: {subject, origin, licence}}; errors name `argument`."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{argument} {path}: not readable as CSV ({error})") from error
    if not lines or not lines[0].keys() & {"source", "file", "path"}:
        raise EvaluationError(f"{argument} {path}: right: columns source, or file or path, and licence or subject")
    known: dict[str, dict[str, str]] = {}
    for line in lines:
        found = {column: next((line[name] for name in names if line.get(name)), "") for column, names in SHOWN.items()}
        stated = {column: " ".join(value.split()) for column, value in found.items() if value}
        for key in (line.get("source"), Path(line.get("file") or line.get("path") or "").name):
            if key:
                known.setdefault(key, stated)
    return known
