"""Clip sets in shards: archives of many clips each, so that training holds no list of all clips in memory.

A folder with shards.json (the set's statistics, the clips of each split, how many a shard holds) and the archives
SPLIT-00000.zip, ..., not compressed: rows.csv, and first/ID.png, spectra/ID.npz, pairs/ID.npz of its clips SHARD-ID.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from cluster.storage import exists, local_input, open_binary
from data.clips import FILE_SUFFIXES, KEPT, SPLITS, ClipRow, ClipSet, ClipSetError, format_table, parse_rows
from data.files import atomic_path, write_text
from data.order import MIXED_BLOCKS, permutation

INDEX = "shards.json"
# A process keeps so many archives open, with the names of what is in them: a block of an epoch may be of two shards.
OPEN_AT_ONCE = 2 * MIXED_BLOCKS
_ORDER = 3  # of the seed that mixes the clips


def open_set(folder: str | Path) -> ClipSet:
    """Open a clip set, in shards or not."""
    return ShardedSet(folder) if exists(Path(folder) / INDEX) else ClipSet(folder)


def write_shards(set_folder: str | Path, folder: Path, clips_per_shard: int) -> ShardedSet:
    """Write the kept clips of a finished set into shards, mixed; ClipSetError where it has none or is not finished."""
    source = ClipSet(set_folder)
    if not source.is_finished:
        raise ClipSetError(f"{source.folder}: is not finished; run the command that makes it to its end")
    if not source.rows():
        raise ClipSetError(f"{source.folder}: has no kept clip; prepare more clips")
    counts, with_pairs = {}, True
    for split in SPLITS:
        rows = source.rows(split)
        order = permutation(len(rows), _ORDER, len(rows))
        counts[split] = len(rows)
        for number, start in enumerate(range(0, len(rows), clips_per_shard)):
            chosen = [rows[index] for index in order[start : start + clips_per_shard]]
            with_pairs &= all(source.has_pairs(row.id) for row in chosen)
            _write_shard(source, folder / f"{_name(split, number)}.zip", chosen)
    index = {"clips_per_shard": clips_per_shard, "clips": counts, "has_pairs": with_pairs}
    # last: a folder without it is not finished
    write_text(folder / INDEX, json.dumps({**index, "statistics": source.statistics}, indent=1) + "\n")
    return ShardedSet(folder)


def _write_shard(source: ClipSet, path: Path, rows: Sequence[ClipRow]) -> None:
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("rows.csv", format_table(rows))
        for row in rows:
            source.spectrum(row.id)  # training does not look for clips that cannot be read
            for kind in ("first", "spectra", "pairs"):
                if kind != "pairs" or source.has_pairs(row.id):
                    with source.open_file(kind, row.id) as file:
                        archive.write(file, f"{kind}/{row.id}.{FILE_SUFFIXES[kind]}")


def _name(split: str, number: int) -> str:
    return f"{split}-{number:05d}"


class ShardedSet(ClipSet):
    """Reads a clip set in shards as `ClipSet` reads one; its rows are a sequence that is read as it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        with local_input(self.folder / INDEX) as file:
            try:
                index = json.loads(file.read_text(encoding="utf-8"))
                self.clips_per_shard, self.counts = int(index["clips_per_shard"]), dict(index["clips"])
                self.statistics, self._pairs = index["statistics"], bool(index["has_pairs"])
            except (ValueError, LookupError, TypeError) as error:
                raise ClipSetError(f"{self.folder / INDEX}: is damaged; write the shards again") from error
        # {(process, shard): archive}; a file that is open must not be shared with the processes of a loader
        self._open: OrderedDict[tuple[int, str], tuple[BinaryIO, zipfile.ZipFile, list[ClipRow]]] = OrderedDict()

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        return f"{self.folder}: {counts}, {self.clips_per_shard} clips a shard"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": OrderedDict()}

    def rows(self, split: str | None = None, *, status: Collection[str] = (KEPT,)) -> ShardRows:
        if split not in (None, *SPLITS):
            raise ClipSetError(f"{self.folder}: no split {split!r}; right: {', '.join(SPLITS)}")
        return ShardRows(self, (split,) if split else SPLITS)

    def has_pairs(self, clip_id: str) -> bool:
        return self._pairs

    @contextmanager
    def open_file(self, kind: str, clip_id: str) -> Iterator[Path]:
        name = clip_id[: clip_id.index("-", clip_id.index("-") + 1)]
        inside = f"{kind}/{clip_id[len(name) + 1 :]}.{FILE_SUFFIXES[kind]}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(inside).name
            try:
                file.write_bytes(self.shard(name)[1].read(inside))
            except (KeyError, zipfile.BadZipFile) as error:
                raise ClipSetError(f"{self.folder}: {name}.zip lacks {inside}; write the shards again") from error
            yield file

    def shard(self, name: str) -> tuple[BinaryIO, zipfile.ZipFile, list[ClipRow]]:
        """Return the open archive of a shard, and its rows."""
        key = (os.getpid(), name)
        if key not in self._open:
            path = self.folder / f"{name}.zip"
            try:
                file = open_binary(path)
                archive = zipfile.ZipFile(file)
                rows = parse_rows(archive.read("rows.csv"), path)
            except (OSError, KeyError, zipfile.BadZipFile) as error:
                reason = " ".join(str(error).split())[:120]
                raise ClipSetError(f"{path}: cannot be read ({reason}); write the shards again") from error
            self._open[key] = file, archive, [replace(row, id=f"{name}-{row.id}") for row in rows]
            while len(self._open) > OPEN_AT_ONCE:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(key)
        return self._open[key]


class ShardRows(Sequence[ClipRow]):
    """The rows of splits, of which those of a few shards are in memory."""

    def __init__(self, clip_set: ShardedSet, splits: Sequence[str]) -> None:
        self.clip_set, self.splits = clip_set, splits

    def __len__(self) -> int:
        return sum(self.clip_set.counts[split] for split in self.splits)

    def __getitem__(self, index: int) -> ClipRow:
        if not 0 <= index < len(self):
            raise IndexError(index)
        for split in self.splits:
            if index < self.clip_set.counts[split]:
                break
            index -= self.clip_set.counts[split]
        number, place = divmod(index, self.clip_set.clips_per_shard)
        return self.clip_set.shard(_name(split, number))[2][place]
