"""The tables that evaluate.py and benchmark.py have written, read again."""

from __future__ import annotations

import json
from pathlib import Path


def read_list(folder: Path) -> list[dict]:
    """Return the rows of a table in their order."""
    return json.loads((folder / "results.json").read_text())


def read_rows(folder: Path) -> dict[str, dict]:
    """Return {name: row} of a table."""
    return {row["row"]: row for row in read_list(folder)}
