"""Tables of figures as files: results.json, results.csv, results.md and results.tex."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import write_text

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": "$<$", ">": "$>$", "|": "$|$"}


def write_results(out: Path | str, rows: Sequence[Mapping[str, Any]], *, title: str, notes: Sequence[str] = ()) -> str:
    """Write rows as results.json, .csv, .md and .tex into the folder `out`.

    Args:
        out: the folder; made where it is missing.
        rows: flat dicts with a "row" name and figures named with their unit; columns are all their keys, in the order
            in which they first appear. None, and a number that is not finite, is an empty cell.
        title: heading of the table.
        notes: lines below it: data, counts, seeds, device, command.

    Returns:
        the Markdown text, to print.
    """
    nameless = [index for index, row in enumerate(rows) if "row" not in row]
    if nameless:
        raise ValueError(f'rows: expected a "row" name in each, missing in number {nameless[0]}')
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in plain for key in row))
    markdown = markdown_table(plain, columns, title, notes)

    lines = io.StringIO()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    write_text(out / "results.json", json.dumps(plain, indent=2) + "\n")
    write_text(out / "results.csv", lines.getvalue())
    write_text(out / "results.md", markdown)
    write_text(out / "results.tex", latex_table(plain, columns, title, notes))
    return markdown


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str, notes: Sequence[str]) -> str:
    """Return a Markdown section: heading, table, notes as a list."""
    lines = [f"## {title}", "", f"| {' | '.join(columns)} |"]
    lines.append("|" + "|".join("---" if column == "row" else "---:" for column in columns) + "|")
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def latex_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str, notes: Sequence[str]) -> str:
    r"""Return a LaTeX table: title as caption, rules of \usepackage{booktabs}, notes as comments above it."""
    lines = [f"% {' '.join(note.split())}" for note in notes]
    lines += [r"\begin{table}", r"\centering", rf"\caption{{{_latex(title)}}}"]
    lines.append(rf"\begin{{tabular}}{{{''.join('l' if column == 'row' else 'r' for column in columns)}}}")
    lines += [r"\toprule", _latex_row(columns), r"\midrule"]
    lines += [_latex_row([_cell(row.get(column), escape=False) for column in columns]) for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return rf"{' & '.join(map(_latex, cells))} \\"


def _latex(text: str) -> str:
    """Write a text so that LaTeX prints its characters; a leading minus becomes one in mathematics."""
    if text == "-":
        return "--"
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return f"$-${escaped[1:]}" if text[:1] == "-" and text[1:2].isdigit() else escaped


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool | int) or value is None:
        return value
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def _cell(value: Any, *, escape: bool = True) -> str:
    """Format a cell; `escape` for Markdown."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"
    text = str(value).replace("\n", " ")
    return text.replace("|", "\\|") if escape else text
