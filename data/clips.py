"""Clip sets: what `prepare_data.py` writes and training reads.

A set is a folder with
    clips.csv         one row a clip: where it comes from, its split, how much it moves, kept or not and why
    first/ID.png      frame 0 on the motion grid
    spectra/ID.npz    `spectrum` (24, 4, H, W) float16 px and `confidence` (1, H, W) float16 (kept clips)
    slices/ID.png     X-t slice of a real clip, time downwards: the row that moves most, for people to look at
    pairs/ID.npz      `target` (N, H, W, 3) bytes, `flow` (N, 2, H, W) px frame 0 -> target, `reliability`
                      (N, 1, H, W), `importance` (1, H, W) px, `time_s` (N,); float16 where not said otherwise
    statistics.json   how the set was made; after the last item also the per-bin scales of its training split
It is written item by item. A clip's row is added after its files, so a run that is cut short goes on where it stopped.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.folder_lock import FolderLock
from data.media import MediaError, atomic_path, from_bytes, read_image, to_bytes, write_image
from motion.flow import MOVING_PX, default_grid_scale
from motion.motion_file import ARCHIVE_ERRORS
from motion.normalisation import Normalisation, ScaleEstimator
from motion.spectrum import NUM_BINS, mean_displacement, truncate

FORMAT_VERSION = 1
STORED_BINS = 24
KEPT, PAIRS_ONLY, DROPPED = "kept", "pairs_only", "dropped"
SPLITS = ("train", "test")
_ABSENT = "none"
# settings that no flag sets
_VERSIONS = frozenset({"flow_version", "scenes_version"})
# statistics without this belong to an unfinished set
_NUM_CLIPS = "num_clips"
_FOLDERS = ("first", "spectra", "pairs", "slices")


class ClipSetError(ValueError):
    """A clip set that cannot be used; the message is one line that names it and what would be right."""

    is_user_error = True


class SampleKey(NamedTuple):
    """What a training dataset is indexed by: an item, its epoch, and a seed unique to this sample of the run."""

    item: int
    epoch: int
    seed: int


class Pair(NamedTuple):
    """A later frame of a clip and the flow that leads to it."""

    target: torch.Tensor  # (3, H, W) in [0, 1]
    flow: torch.Tensor  # (2, H, W) px, frame 0 -> target
    reliability: torch.Tensor  # (1, H, W) in [0, 1]
    time_s: float


@dataclass(frozen=True)
class ClipRow:
    """One row of clips.csv.

    Attributes:
        id: name of the clip's files.
        source: the video file, or "scene:SEED:KIND" for a rendered one.
        start_s: where in the source frame 0 lies.
        fps: frame rate of the frames used (repeats not counted).
        frames: how many frames the motion was fitted to.
        split: train or test, the same for all clips of a source.
        median_flow_px: median over pixels of the mean displacement.
        moving_fraction: share of pixels whose mean displacement is above .25 px on a grid of 256 x 160.
        status: kept, pairs_only (too short for a spectrum) or dropped.
        reason: why it is not kept, empty otherwise.
        high_flow_px: 99th percentile over pixels of the mean displacement. This and what follows is None where it was
            not measured: in rendered scenes, in clips that were dropped before, in sets of older versions.
        camera_px: how far the camera moved the picture, see `data.shots.camera_motion`.
        confidence: mean reliability of the flow over pixels and frames.
        inconsistent_fraction: share of the pixels of the pairs whose flow there and back does not return.
        group: what holds clips of different files together, the CSV's column `source`: they share a split, in this set
            and in others; empty where none was named.
        limit_s: how much of the source after the start could be used, as asked for; inf: all of it.
    """

    id: str
    source: str
    start_s: float = 0.0
    fps: float = 0.0
    frames: int = 0
    split: str = "train"
    median_flow_px: float = 0.0
    moving_fraction: float = 0.0
    status: str = KEPT
    reason: str = ""
    high_flow_px: float | None = None
    camera_px: float | None = None
    confidence: float | None = None
    inconsistent_fraction: float | None = None
    group: str = ""
    limit_s: float | None = None


_COLUMNS = tuple(field.name for field in fields(ClipRow))
_NUMBERS = {"start_s": float, "fps": float, "frames": int, "median_flow_px": float, "moving_fraction": float}
# columns that older sets lack, and that may be empty
_OPTIONAL = {name: float for name in ("high_flow_px", "camera_px", "confidence", "inconsistent_fraction", "limit_s")}
_OPTIONAL |= {"group": str}


@dataclass
class ClipContent:
    """The tensors of one clip: picture, spectrum with confidence, and rendering pairs with importance."""

    first: torch.Tensor  # (3, H, W)
    spectrum: torch.Tensor | None = None  # (24, 4, H, W) px
    confidence: torch.Tensor | None = None  # (1, H, W); absent = 1 everywhere
    pairs: tuple[Pair, ...] = ()
    importance: torch.Tensor | None = None  # (1, H, W) px; absent = that of the spectrum
    slice: torch.Tensor | None = None  # (3, T, W), time downwards


def motion_metrics(displacement: torch.Tensor) -> dict[str, float]:
    """Return median_flow_px, moving_fraction and high_flow_px of a mean displacement (1, H, W) px, rounded."""
    moving = displacement * default_grid_scale(*displacement.shape[-2:]) > MOVING_PX  # (1, H, W)
    return {
        "high_flow_px": round(float(displacement.flatten().quantile(0.99)), 4),
        "median_flow_px": round(float(displacement.median()), 4),
        "moving_fraction": round(float(moving.float().mean()), 4),
    }


class ClipSet:
    """Reads a clip set. Holds only its table, so it is cheap to make and to send to loader processes."""

    def __init__(self, folder: str | Path) -> None:
        """Open a set; ClipSetError when the folder is none or its table is damaged."""
        self.folder = Path(folder)
        if not (self.folder / "clips.csv").is_file():
            raise ClipSetError(f"{folder}: not a clip set (no clips.csv); make one with prepare_data.py")
        self.statistics = _read_statistics(self.folder)
        self._rows = _read_rows(self.folder / "clips.csv")

    def __repr__(self) -> str:
        return f"ClipSet({str(self.folder)!r})"

    def rows(self, split: str | None = None, *, status: Iterable[str] = (KEPT,)) -> list[ClipRow]:
        """Return the rows of a split (None: all) in the table's order; without `status` those of kept clips."""
        if split is not None and split not in SPLITS:
            raise ClipSetError(f"{self.folder}: no split {split!r}; right: {', '.join(SPLITS)}")
        wanted = tuple(status)
        return [row for row in self._rows if row.status in wanted and split in (None, row.split)]

    @property
    def is_finished(self) -> bool:
        """Whether the run that made the set came to its end, so that table and statistics agree."""
        return _NUM_CLIPS in self.statistics

    def has_pairs(self, clip_id: str) -> bool:
        """Tell whether rendering pairs are stored for a clip."""
        return (self.folder / "pairs" / f"{clip_id}.npz").is_file()

    def first(self, clip_id: str) -> torch.Tensor:
        """Read frame 0: (3, H, W) in [0, 1], on the motion grid."""
        try:
            return read_image(self.folder / "first" / f"{clip_id}.png")
        except MediaError as error:
            raise ClipSetError(f"{self.folder}: clip {clip_id}: {error}") from error

    def spectrum(self, clip_id: str, num_bins: int = NUM_BINS) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the spectrum (K, 4, H, W) px and its confidence (1, H, W) in [0, 1].

        Raises:
            ClipSetError: missing, damaged or not finite, or fewer than `num_bins` bins are stored.
        """
        arrays = self._read("spectra", clip_id, ("spectrum", "confidence"))
        spectrum, confidence = arrays["spectrum"], arrays["confidence"]
        if num_bins > spectrum.shape[0]:
            raise ClipSetError(
                f"{self.folder}: clip {clip_id} has {spectrum.shape[0]} bins, {num_bins} are wanted; lower the "
                "number of bins or prepare the set again"
            )
        # cutting off bins changes bin 0's dependent part, which truncate restores
        return truncate(spectrum, num_bins), confidence

    def pairs(self, clip_id: str) -> tuple[list[Pair], torch.Tensor]:
        """Read the rendering pairs of a clip and its importance map (1, H, W), px of the motion grid."""
        arrays = self._read("pairs", clip_id, ("target", "flow", "reliability", "importance", "time_s"))
        pairs = [
            Pair(from_bytes(target), flow, reliability, float(time_s))
            for target, flow, reliability, time_s in zip(
                arrays["target"], arrays["flow"], arrays["reliability"], arrays["time_s"], strict=True
            )
        ]
        return pairs, arrays["importance"]

    def displacement(self, clip_id: str) -> torch.Tensor:
        """Read mean |F_t| over the clip (1, H, W), px: the importance of its pairs, else that of its spectrum."""
        if self.has_pairs(clip_id):
            return self._read("pairs", clip_id, ("importance",))["importance"]
        return mean_displacement(self.spectrum(clip_id)[0])

    def normalisation(self, num_bins: int = NUM_BINS) -> Normalisation:
        """Return the scales of the training split's first `num_bins` bins."""
        if "scale_px" not in self.statistics:
            raise ClipSetError(
                f"{self.folder}: no statistics; run the prepare_data.py command that makes it to its end, with at "
                "least one kept training clip"
            )
        return Normalisation.from_dict(self.statistics).truncated(num_bins)

    def _read(self, kind: str, clip_id: str, names: tuple[str, ...]) -> dict[str, Any]:
        """Read an .npz: bytes stay arrays, numbers become float32 tensors and must be finite."""
        path = self.folder / kind / f"{clip_id}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in names}
        except FileNotFoundError:
            raise ClipSetError(f"{self.folder}: clip {clip_id}: {kind}/{path.name} is missing") from None
        except ARCHIVE_ERRORS as error:
            reason = " ".join(str(error).split())[:80] or type(error).__name__
            raise ClipSetError(
                f"{self.folder}: clip {clip_id}: {kind}/{path.name} is damaged ({reason}); delete its row in "
                "clips.csv and prepare it again"
            ) from error
        read: dict[str, Any] = {}
        for name, array in arrays.items():
            if array.dtype.kind != "f":
                read[name] = array
                continue
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise ClipSetError(f"{self.folder}: clip {clip_id}: {name} in {kind}/{path.name} holds NaN or Inf")
            read[name] = torch.from_numpy(array)
        return read


class ClipSetWriter:
    """Writes a clip set item by item; opened again on the same folder it knows what is done.

    The finished set does not depend on the order of the items nor on interruptions: rows are sorted, and the
    statistics are taken from the files. From the constructor to the end of its `with` block no other run can write it.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], *, period_s: float = 5.0) -> None:
        """Open or make the set.

        Args:
            folder: the set.
            settings: what the items depend on (size, method ...), plain JSON values; must be the same on every run.
            period_s: period of the spectra.

        Raises:
            ClipSetError: the folder holds a set made with other settings, or something else.
            MediaError: another run is writing this set.
        """
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.period_s = period_s
        self._table = self.folder / "clips.csv"
        rows_of_set(self.folder, self.settings)
        for name in _FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)
        try:
            # once more, as it could be written until now
            self.rows = rows_of_set(self.folder, self.settings)
            self._remove_strays()
            self._stale = _NUM_CLIPS not in _read_statistics(self.folder)
            if self._stale:
                self._write_statistics({})
            self._write_table(self.rows.values())
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> ClipSetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_strays()
        self._lock.release()

    def _remove_strays(self) -> None:
        """Remove temporary files of processes that were killed while writing."""
        patterns = [".clips.tmp-*", ".statistics.tmp-*", *(f"{name}/.*.tmp-*" for name in _FOLDERS)]
        for stray in (path for pattern in patterns for path in self.folder.glob(pattern)):
            stray.unlink(missing_ok=True)

    def write(self, row: ClipRow, content: ClipContent | None = None) -> None:
        """Write an item's files, then its row."""
        if content is not None:
            write_clip(self.folder, row.id, content)
        self.add(row)

    def add(self, *rows: ClipRow) -> None:
        """Add the rows of items whose files are there (written by `write_clip`, perhaps in another process)."""
        for row in rows:
            if row.status not in (KEPT, PAIRS_ONLY, DROPPED) or row.split not in SPLITS:
                raise ValueError(f"row: unknown status or split: {row.status!r}, {row.split!r}")
        self._make_stale()
        self.rows |= {row.id: row for row in rows}
        with self._table.open("a", newline="", encoding="utf-8") as file:
            file.write(_format_rows(rows))

    def remove(self, *clip_ids: str) -> None:
        """Remove clips that the set has, their rows first, then their files."""
        if not clip_ids:
            return
        self._make_stale()
        for clip_id in clip_ids:
            del self.rows[clip_id]
        self._write_table(self.rows.values())
        for clip_id in clip_ids:
            remove_clip(self.folder, clip_id)

    def _make_stale(self) -> None:
        """Take back the statistics of before: they would be wrong if this run were cut short."""
        if not self._stale:
            self._write_statistics({})
            self._stale = True

    def finish(self) -> ClipSet:
        """Sort the table, take the statistics of the training split, and return the set."""
        self._write_table(sorted(self.rows.values(), key=lambda row: row.id))
        if self._stale:
            self._write_statistics(self._figures(ClipSet(self.folder)))
            self._stale = False
        return ClipSet(self.folder)

    def _figures(self, clip_set: ClipSet) -> dict[str, Any]:
        train = clip_set.rows("train")
        figures: dict[str, Any] = {_NUM_CLIPS: len(train)}
        if not train:
            return figures
        estimator = ScaleEstimator(STORED_BINS, self.period_s)
        grids: Counter[tuple[int, int]] = Counter()
        for row in train:
            spectrum, confidence = clip_set.spectrum(row.id, STORED_BINS)
            estimator.add(spectrum, confidence)
            grids[tuple(spectrum.shape[-2:])] += 1
        figures["grid"] = list(min(grids, key=lambda grid: (-grids[grid], grid)))
        return figures | estimator.finish().to_dict()

    def _write_statistics(self, figures: Mapping[str, Any]) -> None:
        head = {"format_version": FORMAT_VERSION, "num_bins": STORED_BINS, "period_s": self.period_s}
        with atomic_path(self.folder / "statistics.json") as temporary:
            temporary.write_text(json.dumps({**head, **figures, "settings": self.settings}, indent=1) + "\n")

    def _write_table(self, rows: Iterable[ClipRow]) -> None:
        with atomic_path(self._table) as temporary:
            temporary.write_text(",".join(_COLUMNS) + "\n" + _format_rows(rows), encoding="utf-8", newline="")


def rows_of_set(folder: str | Path, settings: Mapping[str, Any]) -> dict[str, ClipRow]:
    """Return by id the rows of the set that these settings would go on with, none where there is no set yet.

    Nothing is written.

    Raises:
        ClipSetError: the folder holds a set made with other settings, or something else.
    """
    folder, settings = Path(folder), json.loads(json.dumps(dict(settings)))
    if folder.exists() and not folder.is_dir():
        raise ClipSetError(f"{folder}: is a file; name a folder for the clip set")
    if not (folder / "clips.csv").exists():
        # a run that was killed at its very start leaves its lock, a temporary file and empty folders
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        strange = [name for name in names if not name.startswith(".") and name not in _FOLDERS]
        if strange and not (folder / "statistics.json").exists():
            raise ClipSetError(f"{folder}: the folder is not empty and not a clip set; name another")
        return {}
    made_with = _read_statistics(folder).get("settings", {})
    differing = sorted(
        key for key in {*made_with, *settings} if made_with.get(key, _ABSENT) != settings.get(key, _ABSENT)
    )
    if differing:
        said = "; ".join(
            f"{key} was {made_with.get(key, _ABSENT)}, is {settings.get(key, _ABSENT)}" for key in differing
        )
        same_kind = made_with.get("made_of") == settings.get("made_of")
        if same_kind and (not _VERSIONS.isdisjoint(differing) or differing == ["test_scenes"]):
            raise ClipSetError(f"{folder}: made by another version of this program ({said}); name another folder")
        raise ClipSetError(f"{folder}: made with other settings ({said}); repeat them or name another folder")
    return {row.id: row for row in _read_rows(folder / "clips.csv")}


def remove_clip(folder: str | Path, clip_id: str) -> None:
    """Remove the files of one clip from a set, those that are there."""
    for place, suffix in (("first", "png"), ("slices", "png"), ("spectra", "npz"), ("pairs", "npz")):
        (Path(folder) / place / f"{clip_id}.{suffix}").unlink(missing_ok=True)


def write_clip(folder: str | Path, clip_id: str, content: ClipContent) -> None:
    """Write the files of one clip into a set, each whole or not at all. Safe to call from several processes."""
    folder = Path(folder)
    write_image(folder / "first" / f"{clip_id}.png", content.first)
    if content.slice is not None:
        write_image(folder / "slices" / f"{clip_id}.png", content.slice)
    if content.spectrum is not None:
        if content.spectrum.shape[0] != STORED_BINS:
            raise ValueError(f"spectrum: expected {STORED_BINS} bins, got {content.spectrum.shape[0]}")
        confidence = content.confidence
        if confidence is None:
            confidence = torch.ones(1, *content.spectrum.shape[-2:])
        arrays = {"spectrum": _half(content.spectrum), "confidence": _half(confidence)}
        _write_npz(folder / "spectra" / f"{clip_id}.npz", arrays)
    if not content.pairs:
        return
    importance = content.importance
    if importance is None:
        importance = mean_displacement(truncate(content.spectrum, NUM_BINS))  # (1, H, W)
    arrays = {
        "target": to_bytes(torch.stack([pair.target for pair in content.pairs])),  # (N, H, W, 3)
        "flow": _half(torch.stack([pair.flow for pair in content.pairs])),
        # two decimals say enough and compress well
        "reliability": _half(torch.stack([pair.reliability for pair in content.pairs]).round(decimals=2)),
        "importance": _half(importance),
        "time_s": np.array([pair.time_s for pair in content.pairs], np.float64),
    }
    _write_npz(folder / "pairs" / f"{clip_id}.npz", arrays)


def _half(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().clamp(-65504, 65504).to(torch.float16).numpy()


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # numpy's own writer takes zlib's level 6, four times slower for 3 % less; names get no time stamp, so that the
    # same arrays always give the same bytes
    with atomic_path(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED, 1)


def _format_rows(rows: Iterable[ClipRow]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    for row in rows:
        # a line break inside a cell would look like a row cut short; all else stays: names of files have double spaces
        cells = {
            key: re.sub(r"[\r\n]+", " ", value) if isinstance(value, str) else value
            for key, value in asdict(row).items()
        }
        writer.writerow(cells)
    return buffer.getvalue()


def _read_rows(path: Path) -> list[ClipRow]:
    text = path.read_text(encoding="utf-8")
    # a last line without its end is one that a run was killed writing
    text = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(text))
    known = reader.fieldnames or ()
    missing = [name for name in _COLUMNS if name not in known and name not in _OPTIONAL]
    if missing:
        raise ClipSetError(f"{path}: the columns {', '.join(missing)} are missing; prepare the set again")
    rows = []
    for cells in reader:
        try:
            values: dict[str, Any] = {
                name: _NUMBERS.get(name, str)(cells[name]) for name in _COLUMNS if name not in _OPTIONAL
            }
            values |= {name: cast(cells[name]) for name, cast in _OPTIONAL.items() if cells.get(name)}
            # a row cut short lacks its last cells, which is not the same as empty ones
            if None in (cells[name] for name in known):
                raise ValueError("cells are missing")
        except (TypeError, ValueError):
            raise ClipSetError(f"{path}: line {reader.line_num} is damaged; delete it and prepare again") from None
        rows.append(ClipRow(**values))
    return rows


def _read_statistics(folder: Path) -> dict[str, Any]:
    path = folder / "statistics.json"
    if not path.is_file():
        return {}
    try:
        statistics = json.loads(path.read_text())
    except ValueError:
        raise ClipSetError(f"{path}: not JSON; delete it and run prepare_data.py again") from None
    if statistics.get("format_version") != FORMAT_VERSION:
        raise ClipSetError(
            f"{path}: format {statistics.get('format_version')}, this program reads {FORMAT_VERSION}; prepare it again"
        )
    return statistics


def source_name(row: ClipRow) -> str:
    """Name what a clip is not independent of: its group where the set names one, else its file, by the whole path."""
    return row.group or row.source


def column_names(folders: Sequence[Path]) -> list[str]:
    """Name the columns of sets by as many of the last parts of their folders as tell them apart.

    Raises:
        ValueError: a folder is named twice.
    """
    folders = [folder.resolve() for folder in folders]
    if len(set(folders)) < len(folders):
        raise ValueError("a set is named twice")
    names = [folder.name for folder in folders]
    parts = 1
    while len(set(names)) < len(names):
        parts += 1
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
    return names


def choose_rows(clip_set: ClipSet, split: str | None, limit: int | None, seed: int) -> list[ClipRow]:
    """Return a set's kept clips of a split (None: all), or `limit` of them drawn by the seed.

    Raises:
        ClipSetError: there is none.
    """
    rows = clip_set.rows(split)
    if not rows:
        raise ClipSetError(f"{clip_set.folder}: no kept clip of split {split or 'any'}; right: --split all, or prepare")
    if limit is None or limit >= len(rows):
        return rows
    drawn = np.random.default_rng(seed).choice(len(rows), limit, replace=False)
    return [rows[index] for index in sorted(drawn.tolist())]
