"""Read the CSV files that people make: any separator and line ends, and columns by the names that they are known by."""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from data.files import MediaError, check_input_file

SEPARATORS = (",", ";", "\t")
# Tables of videos and photographs: column -> other names of it.
MEDIA_COLUMNS = {
    "path": ("file", "filename"),
    "start": ("start_s", "start_seconds"),
    "seconds": ("duration", "duration_s", "length_s"),
    "split": (),
    "source": ("group",),
    "kind": (),
    "subject": (),
    "origin": ("url",),
    "licence": ("license",),
}
# columns for people to read
_NOTES = ("frames", "fps", "width", "height", "size", "median_flow_px", "moving_fraction", "title", "author", "remarks")

Row = dict[str, str | None]


def read_table(path: str | Path, *, needed: Iterable[str] = (), numbers: Collection[str] = ()) -> list[tuple[int, Row]]:
    """Return (last line, {column: cell}) of each row of a CSV with MEDIA_COLUMNS; "" for cells that are not there.

    `needed` columns must be there; in `numbers` a decimal comma is accepted where the separator is another character.
    Raises MediaError for a file that is missing or no text, and as `parse_table`.
    """
    path = check_input_file(path, "a CSV file")
    data = path.read_bytes()
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_wide else "utf-8")
    except UnicodeDecodeError as error:
        raise MediaError(f"{path}: cannot be read as CSV ({error.reason}); right: UTF-8") from error
    if "\0" in text:
        raise MediaError(f"{path}: cannot be read as CSV (it holds bytes of zero); right: a text in UTF-8")
    columns = MEDIA_COLUMNS | dict.fromkeys(_NOTES, ())
    header, separator, rows = parse_table(text, str(path), columns)
    missing = sorted(set(needed) - set(header))
    if missing:
        raise MediaError(f"{path}: lacks the columns {missing}; right: {describe(MEDIA_COLUMNS)}")
    found = []
    for line, row in rows:
        cells = {column: (row.get(column) or "").strip() for column in columns}
        if separator != ",":
            cells |= {column: cells[column].replace(",", ".") for column in numbers}
        if any(cells.values()):
            found.append((line, cells))
    return found


def parse_table(
    text: str, name: str, columns: Mapping[str, Collection[str]]
) -> tuple[list[str], str, list[tuple[int, Row]]]:
    """Return the columns of a CSV text, its separator, and (last line, {column: cell}) of each row.

    Columns are known by their names and those beside them, whatever their case; a cell that a row lacks is None.
    Raises MediaError, which begins with `name`, for unknown columns, those named twice, and rows with more cells.
    """
    text = text.removeprefix("\ufeff")
    names = {alias: column for column, aliases in columns.items() for alias in (column, *aliases)}
    asked = re.match(r"sep=([,;\t|])\r?\n", text)  # as Excel writes and reads it
    lines = io.StringIO(text[asked.end() if asked else 0 :], newline="")
    first = lines.readline()

    def split(separator: str) -> list[str]:
        cells = next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])
        # so that "Start (s)" is start_s
        return [names.get(re.sub(r"\W+", "_", cell.strip().lower()).strip("_"), cell.strip()) for cell in cells]

    try:
        separator = asked[1] if asked else max(SEPARATORS, key=lambda each: len(names.keys() & split(each)))
        header = split(separator)
        for number, column in enumerate(header):
            if column and column not in columns:
                raise MediaError(f"{name}: the column {column!r} is not known; right: {describe(columns)}")
            if column and column in header[:number]:
                raise MediaError(f"{name}: the column {column} is there twice (also as one of its other names)")
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        rows = []
        for cells in filter(None, reader):
            line = reader.line_num + 1 + bool(asked)
            row = list(itertools.zip_longest(header, cells))
            if any(not column and cell and cell.strip() for column, cell in row):
                raise MediaError(f"{name}: line {line} has more cells than the heading; quote those with a {separator}")
            rows.append((line, {column: cell for column, cell in row if column}))
    except csv.Error as error:
        raise MediaError(f"{name}: cannot be read as CSV ({error})") from error
    return [column for column in header if column], separator, rows


def describe(columns: Mapping[str, Collection[str]]) -> str:
    """List columns with their other names."""
    return ", ".join(column + (f" (or {', '.join(others)})" if others else "") for column, others in columns.items())
