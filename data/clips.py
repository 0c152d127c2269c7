"""Clip sets: what `prepare_data.py` writes and training reads.

A set is a folder with
    clips.csv         one row a clip, a `ClipRow`
    first/ID.png      frame 0 on the motion grid
    spectra/ID.npz    `spectrum` (24, 4, H, W) px and `confidence` (1, H, W), float16 (kept clips)
    slices/ID.png     X-t slice of a real clip, time downwards: the row that moves most, for people to look at
    pairs/ID.npz      of its `Pair`s `target`, in bytes, `flow`, `reliability`, `time_s`; `importance` (1, H, W) px
    statistics.json   how the set was made; after the last item also the per-bin scales of its training split
"""

import copy
import csv
import io
import itertools
import json
from collections.abc import Collection, Container, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cluster.storage import StorageError, exists, local_input
from data.media import MediaError, from_bytes, read_image
from data.tables import parse_table
from motion.flow import MOVING_PX, default_grid_scale
from motion.motion_file import ArchiveError, read_arrays
from motion.normalisation import Normalisation
from motion.spectrum import NUM_BINS, mean_displacement, truncate

FORMAT_VERSION = 1
STORED_BINS = 24
KEPT, PAIRS_ONLY, DROPPED = "kept", "pairs_only", "dropped"
SPLITS = ("train", "test")
SCENE_PREFIX = "scene:"  # of the source of a rendered clip
FILE_SUFFIXES = {"first": "png", "slices": "png", "spectra": "npz", "pairs": "npz"}
NUM_CLIPS = "num_clips"  # statistics without this belong to an unfinished set


class ClipSetError(ValueError):
    """A clip set that cannot be used."""

    is_user_error = True


class SampleKey(NamedTuple):
    """What a training dataset is indexed by."""

    item: int
    epoch: int
    seed: int  # unique to this sample of the run


class Pair(NamedTuple):
    """A later frame of a clip and the flow that leads to it."""

    target: torch.Tensor  # (3, H, W) in [0, 1]
    flow: torch.Tensor  # (2, H, W) px, frame 0 -> target
    reliability: torch.Tensor  # (1, H, W) in [0, 1]
    time_s: float


@dataclass(frozen=True)
class ClipRow:
    """One row of clips.csv; None was not measured."""

    id: str  # name of the clip's files
    source: str  # the video file, or SCENE_PREFIX + "SEED:KIND" for a rendered one
    start_s: float = 0.0  # where in the source frame 0 lies
    fps: float = 0.0  # frame rate of the frames used (repeats not counted)
    frames: int = 0  # how many frames the motion was fitted to
    split: str = "train"  # train or test, the same for all clips of a source
    median_flow_px: float = 0.0  # median over pixels of the mean displacement
    moving_fraction: float = 0.0  # of pixels whose mean displacement is above 0.25 px on a grid of 256 x 160
    status: str = KEPT  # kept, pairs_only (too short for a spectrum) or dropped
    reason: str = ""  # why it is not kept
    high_flow_px: float | None = None  # 99th percentile over pixels of the mean displacement
    camera_px: float | None = None  # how far the camera moved the image, see `data.shots.camera_motion`
    confidence: float | None = None  # mean reliability of the flow over pixels and frames
    inconsistent_fraction: float | None = None  # of the pixels of the pairs, whose flow there and back does not return
    group: str = ""  # `source` in the CSV of `prepare_data.py`: shared by files that show one source, and their split
    limit_s: float | None = None  # how many seconds after the start the job asked for; inf: all

    @property
    def is_scene(self) -> bool:
        return self.source.startswith(SCENE_PREFIX)


COLUMNS = tuple(field.name for field in fields(ClipRow))
# Of the arrays in a clip's files: numbers must agree, and so must sides of the same letter in one file.
_SHAPES = {
    "spectrum": ("K", 4, "H", "W"), "confidence": (1, "H", "W"),
    "target": ("N", "H", "W", 3), "flow": ("N", 2, "H", "W"), "reliability": ("N", 1, "H", "W"),
    "importance": (1, "H", "W"), "time_s": ("N",),
}  # fmt: skip
_TEXTS = ("id", "source", "split", "status", "reason", "group")


def motion_metrics(displacement: torch.Tensor) -> dict[str, float]:
    """Return median_flow_px, moving_fraction and high_flow_px of a mean displacement (1, H, W) px, rounded."""
    moving = displacement * default_grid_scale(*displacement.shape[-2:]) > MOVING_PX  # (1, H, W)
    return {
        "high_flow_px": round(float(displacement.flatten().quantile(0.99)), 4),
        "median_flow_px": round(float(displacement.median()), 4),
        "moving_fraction": round(float(moving.float().mean()), 4),
    }


class ClipSet:
    """Reads a clip set; ClipSetError for whatever is missing or damaged. In memory is only its table."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not exists(self.folder / "clips.csv"):
            raise ClipSetError(f"{folder}: not a clip set (no clips.csv); make one with prepare_data.py")
        self.statistics = read_statistics(self.folder)
        self._rows = read_rows(self.folder / "clips.csv")

    def rows(self, split: str | None = None, *, status: Collection[str] = (KEPT,)) -> list[ClipRow]:
        """Return the rows of a split (None: all) in the table's order; without `status` those of kept clips."""
        if split not in (None, *SPLITS):
            raise ClipSetError(f"{self.folder}: no split {split!r}; right: {', '.join(SPLITS)}")
        return [row for row in self._rows if row.status in status and split in (None, row.split)]

    def rows_with_motion(self, split: str | None = None) -> list[ClipRow]:
        """Return the rows of clips that `displacement` can be read of: kept ones, and those that have pairs."""
        rows = self.rows(split, status=(KEPT, PAIRS_ONLY))
        return [row for row in rows if row.status == KEPT or self.has_pairs(row.id)]

    def without(self, clip_ids: Container[str]) -> "ClipSet":
        """Return this set without the rows of some clips."""
        others = copy.copy(self)
        others._rows = [row for row in self._rows if row.id not in clip_ids]
        return others

    @property
    def is_finished(self) -> bool:
        """Return whether the run that made the set came to its end."""
        return NUM_CLIPS in self.statistics

    def open_file(self, kind: str, clip_id: str) -> AbstractContextManager[Path]:
        """Give a file of a clip to be read; kind: first, slices, spectra or pairs."""
        return local_input(self.folder / kind / f"{clip_id}.{FILE_SUFFIXES[kind]}")

    def has_pairs(self, clip_id: str) -> bool:
        return exists(self.folder / "pairs" / f"{clip_id}.npz")

    def first(self, clip_id: str) -> torch.Tensor:
        """Read frame 0: (3, H, W) in [0, 1], on the motion grid."""
        try:
            with self.open_file("first", clip_id) as file:
                return read_image(file)
        except MediaError as error:
            raise ClipSetError(f"{self.folder}: clip {clip_id}: {error}") from error

    def spectrum(self, clip_id: str, num_bins: int = NUM_BINS) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the first `num_bins` bins of the spectrum (K, 4, H, W) px and its confidence (1, H, W) in [0, 1]."""
        arrays = self._read("spectra", clip_id, ("spectrum", "confidence"))
        spectrum, confidence = arrays["spectrum"], arrays["confidence"]
        if num_bins > spectrum.shape[0]:
            raise ClipSetError(f"{self.folder}: clip {clip_id} has {spectrum.shape[0]} bins, {num_bins} are wanted")
        # cutting off bins changes bin 0's dependent part, which truncate restores
        return truncate(spectrum, num_bins), confidence

    def pairs(self, clip_id: str) -> tuple[list[Pair], torch.Tensor]:
        """Read the rendering pairs of a clip and its importance map (1, H, W), px of the motion grid."""
        arrays = self._read("pairs", clip_id, ("target", "flow", "reliability", "importance", "time_s"))
        parts = (arrays[name] for name in ("target", "flow", "reliability", "time_s"))
        pairs = [Pair(from_bytes(part[0]), *part[1:3], float(part[3])) for part in zip(*parts, strict=True)]
        return pairs, arrays["importance"]

    def displacement(self, clip_id: str) -> torch.Tensor:
        """Read mean |F_t| over the clip (1, H, W), px: the importance of its pairs, else that of its spectrum."""
        if self.has_pairs(clip_id):
            return self._read("pairs", clip_id, ("importance",))["importance"]
        return mean_displacement(self.spectrum(clip_id)[0])

    def normalisation(self, num_bins: int = NUM_BINS) -> Normalisation:
        """Return the scales of the training split's first `num_bins` bins."""
        if "scale_px" not in self.statistics:
            raise ClipSetError(f"{self.folder}: no statistics; finish preparing it, with a kept training clip")
        try:
            return Normalisation.from_dict(self.statistics).truncated(num_bins)
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
            what = f"statistics.json is damaged ({' '.join(str(error).split())[:80]})"
            raise ClipSetError(f"{self.folder}: {what}; prepare the set again") from error

    def _read(self, kind: str, clip_id: str, names: tuple[str, ...]) -> dict[str, Any]:
        """Read an .npz: bytes stay arrays, numbers become float32 tensors and must be finite."""
        path = self.folder / kind / f"{clip_id}.npz"
        try:
            with self.open_file(kind, clip_id) as file:
                found = read_arrays(file, names)
            arrays: dict[str, Any] = {name: found[name] for name in names}
        except (ArchiveError, KeyError, StorageError) as error:
            if not exists(path):
                raise ClipSetError(f"{self.folder}: clip {clip_id}: {kind}/{path.name} is missing") from None
            what = f"{kind}/{path.name} is damaged ({' '.join(str(error).split())[:160]})"
            message = f"clip {clip_id}: {what}; delete its row in clips.csv and prepare it again"
            raise ClipSetError(f"{self.folder}: {message}") from error
        sides: dict[str | int, int] = {number: number for number in (1, 2, 3, 4)}
        for name, array in arrays.items():
            fits = array.dtype == np.uint8 if name == "target" else array.dtype.kind == "f"
            fits = fits and array.ndim == len(_SHAPES[name])
            pairs = zip(_SHAPES[name], array.shape, strict=fits)
            if not fits or any(sides.setdefault(side, length) != length or length < 1 for side, length in pairs):
                what = f"{name} in {kind}/{path.name} is {array.dtype} {array.shape}"
                raise ClipSetError(f"{self.folder}: clip {clip_id}: {what}, which does not fit; prepare the clip again")
            if array.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    array = array.astype(np.float32)
                if not np.isfinite(array).all():
                    raise ClipSetError(f"{self.folder}: clip {clip_id}: {name} in {kind}/{path.name} holds NaN or Inf")
                arrays[name] = torch.from_numpy(array)
        return arrays


def read_statistics(folder: Path) -> dict[str, Any]:
    """Read statistics.json, {} where there is none; ClipSetError for a damaged one."""
    path = folder / "statistics.json"
    if not exists(path):
        return {}
    try:
        with local_input(path) as file:
            statistics = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ClipSetError(f"{path}: not JSON; delete it and run prepare_data.py again") from None
    if not isinstance(statistics, dict) or statistics.get("format_version") != FORMAT_VERSION:
        raise ClipSetError(f"{path}: format_version is not {FORMAT_VERSION}; prepare the set again")
    for name, kind in {"settings": dict, "scale_px": list}.items():
        if not isinstance(statistics.get(name, kind()), kind):
            raise ClipSetError(f"{path} is damaged ({name} is no {kind.__name__}); prepare the set again")
    return statistics


def format_table(rows: Iterable[ClipRow], *, heading: bool = True) -> str:
    """Return the lines of rows, below the heading of the table."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    if heading:
        writer.writeheader()
    for row in rows:
        writer.writerow({**asdict(row), "reason": " ".join(row.reason.split())})
    return buffer.getvalue()


def read_rows(path: Path) -> list[ClipRow]:
    """Read a table; ClipSetError for one that is damaged."""
    with local_input(path) as file:
        return parse_rows(file.read_bytes(), path)


def parse_rows(data: bytes, path: Path) -> list[ClipRow]:
    """Parse a table with its heading; `path` names it in errors."""
    text = data.decode(errors="surrogateescape")
    try:
        # a last line without its end is one that a run was killed writing
        _, _, table = parse_table(text[: text.rfind("\n") + 1], str(path), dict.fromkeys(COLUMNS, ()))
    except MediaError as error:
        raise ClipSetError(str(error)) from error
    rows = []
    for line, cells in table:
        try:
            # a row cut short lacks its last cells; older sets lack columns
            if None in cells.values():
                raise ValueError("cells are missing")
            filled = {name: cell for name, cell in cells.items() if cell}
            numbers = {name: cell for name, cell in filled.items() if name not in (*_TEXTS, "frames")}
            # a spreadsheet may have written decimal commas
            numbers = {name: float(cell.replace(",", ".")) for name, cell in numbers.items()}
            if Path(filled["id"]).name != filled["id"]:
                raise ValueError("the clip's files would lie outside the set")
            rows.append(ClipRow(**{**filled, **numbers, "frames": int(filled["frames"])}))
        except (ValueError, KeyError, TypeError):
            raise ClipSetError(f"{path}: line {line} is damaged; delete it and prepare again") from None
    return rows


def source_name(row: ClipRow) -> str:
    """Return what a clip shares its split with: its group where it has one, else its file."""
    return row.group or row.source


def distinct_names(folders: Sequence[Path], argument: str) -> list[str]:
    """Name folders by as many of their last parts as tell them apart; ClipSetError for one given twice."""
    folders = [folder.resolve() for folder in folders]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise ClipSetError(f"{argument} {twice}: is named twice; right: each folder once")
    candidates = (["/".join(folder.parts[-parts:]) for folder in folders] for parts in itertools.count(1))
    return next(names for names in candidates if len(set(names)) == len(names))


def choose_rows(
    clip_set: ClipSet, split: str | None, limit: int | None, seed: int, *, pairs: bool = False
) -> list[ClipRow]:
    """Return a split's (None: all) kept clips, or `limit` of them; `pairs`: also pairs alone. ClipSetError for none."""
    rows = clip_set.rows_with_motion(split) if pairs else list(clip_set.rows(split))
    if not rows:
        where = f"of split {split or 'any'}"
        problem = f"no clip {where} can be rendered" if pairs else f"no kept clip {where}"
        raise ClipSetError(f"{clip_set.folder}: {problem}; prepare more clips")
    if limit is None or limit >= len(rows):
        return rows
    drawn = np.random.default_rng(seed).choice(len(rows), limit, replace=False)
    return [rows[index] for index in sorted(drawn.tolist())]
