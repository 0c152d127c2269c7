"""The tables of evaluate.py: `make_table` measures, adds to a `Report`, and returns whether all inputs were used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.result_tables import write_results

Row = dict[str, Any]  # of a table: {column: value}, one of them "row", its name


class EvaluationError(ValueError):
    """What a table cannot be made of. The message is one line that names the argument or the file."""

    is_user_error = True


@dataclass(frozen=True)
class Report:
    """Where the tables of a call go, and the command that made them."""

    out: Path
    command: str

    def add(
        self, rows: Sequence[Mapping[str, Any]], title: str, notes: Sequence[str] = (), *,
        folder: str = "", shown: bool = True,
    ) -> None:  # fmt: skip
        """Write a table into a folder below `out`, and print it if it is to be `shown`."""
        text = write_results(self.out / folder, rows, title=title, notes=[*notes, f"command: {self.command}"])
        if shown:
            print(text)
