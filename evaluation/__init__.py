"""The tables of evaluate.py: `make_table` measures, prints, writes, and returns whether all inputs were used."""

from pathlib import Path

from data.files import writing_problem

DEFAULT_OUT = Path("outputs/evaluate")


class EvaluationError(ValueError):
    """What a table cannot be made of. The message is one line that names the argument or the file."""

    is_user_error = True


def out_folder(out: Path | None, name: str) -> Path:
    """Return the folder of the tables, `out` or one of this name; EvaluationError where it cannot be one."""
    out = Path(out or DEFAULT_OUT / name)
    problem = "is a file; name a folder" if out.is_file() else writing_problem(out)
    if problem:
        raise EvaluationError(f"out {out}: {problem}")
    return out
