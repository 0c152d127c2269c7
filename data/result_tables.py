"""Tables of metrics as files: results.json, results.csv and results.md."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import write_text


def write_results(out: Path | str, rows: Sequence[Mapping[str, Any]], *, title: str, notes: Sequence[str] = ()) -> str:
    """Write rows as results.json, results.csv and results.md into a folder; returns the Markdown text, to print.

    Rows are flat dicts with a "row" name and metrics named with their unit. Columns are all their keys, in the order of
    their first appearance. None, and a number that is not finite, is an empty cell. The notes stand below the table.
    """
    out = Path(out)
    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in plain for key in row))
    lines = io.StringIO()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    table = [f"## {title}", "", f"| {' | '.join(columns)} |"]
    table.append("|" + "|".join("---" if column == "row" else "---:" for column in columns) + "|")
    table += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in plain]
    table += ["", *(f"- {note}" for note in notes)] if notes else []
    # names of files may hold what a browser would run
    markdown = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", "\n".join(table) + "\n")
    write_text(out / "results.json", json.dumps(plain, indent=2) + "\n")
    write_text(out / "results.csv", lines.getvalue())
    write_text(out / "results.md", markdown)
    return markdown


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float) or value is None else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("\n", " ").replace("|", "\\|")
