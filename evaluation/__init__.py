"""The tables of evaluate.py, a module each: `make_table` measures, prints, writes, and returns the exit code."""

from __future__ import annotations

from pathlib import Path

from cli.parser import UsageError, check_writable

DEFAULT_OUT = Path("outputs/evaluate")


class EvaluationError(ValueError):
    """What a table cannot be made of. The message is one line that names the argument or the file."""

    is_user_error = True


def out_folder(out: Path | None, name: str) -> Path:
    """Return the folder of the tables, `out` or one of this name; UsageError where it cannot be one."""
    out = check_writable(out or DEFAULT_OUT / name)
    if out.is_file():
        raise UsageError(f"--out {out}: is a file; name a folder")
    return out
