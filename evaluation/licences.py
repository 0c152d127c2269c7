"""evaluate.py sources: what a model was trained on, source by source with its licence, as a model card lists it."""

import logging
from pathlib import Path

from data.clips import KEPT, PAIRS_ONLY, ClipSet
from data.files import MediaError
from data.tables import read_table
from evaluation import EvaluationError, Report, Row

logger = logging.getLogger(__name__)

UNKNOWN = "not stated"
# Columns of the CSV that are shown.
SHOWN = ("subject", "origin", "licence")


def make_table(report: Report, *, data: list[Path], split: str, licences: Path | None) -> bool:
    known = read_source_table(licences, "licences") if licences else {}
    rows: dict[str, Row] = {}
    for folder in data:
        for clip in ClipSet(folder).rows(split, status=(KEPT, PAIRS_ONLY)):
            file, rendered = Path(clip.source).name, clip.is_scene
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
        f"data: {', '.join(map(str, data))}, split {split}",
    ]
    report.add(table, "Training sources", notes)
    return True


def read_source_table(path: Path, argument: str) -> dict[str, dict[str, str]]:
    """Read a CSV of sources and files: {source or file name: {subject, origin, licence}}; errors name `argument`."""
    try:
        lines = [row for _, row in read_table(path)]
    except MediaError as error:
        raise EvaluationError(f"{argument} {error}") from error
    if not any(line["source"] or line["path"] for line in lines):
        raise EvaluationError(f"{argument} {path}: right: columns source, or file or path, and licence or subject")
    known: dict[str, dict[str, str]] = {}
    for line in lines:
        stated = {column: " ".join(line[column].split()) for column in SHOWN if line[column]}
        for key in (line["source"], Path(line["path"]).name):
            if key:
                known.setdefault(key, stated)
    return known
