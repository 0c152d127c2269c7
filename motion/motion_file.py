"""The motion file (`.npz`): a spectrum, or a plain flow made by anything else."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motion.flow import GRID_MULTIPLE, default_grid_scale, magnitude, resize_maps
from motion.looping import MAX_FRAMES
from motion.spectrum import FPS, NUM_FRAMES, mean_displacement, spectrum_to_flow, without_drift

FORMAT_VERSION = 1
# Aspect ratios of image and motion may differ by the rounding of the grid's sides to multiples of 32 px.
ASPECT_TOLERANCE = 0.02
# Grids of a spectrum whose area differs from the default by less than this factor count as the default grid.
GRID_AREA_TOLERANCE = 1.5
# Mean difference of two thumbnails, of 255 levels, above which they are of two images.
OTHER_IMAGE_LEVELS = 6.0
FPS_RANGE = (0.01, 10_000.0)
LARGEST_SIDE_PX = 1_000_000
# Middlebury's files mark unknown flow by 1e9 and more; sums of much larger numbers overflow.
LARGEST_MOTION_PX = 1e6
# The arrays of an archive together, as they are stored or in float32; of a larger file, this many times its own size.
LARGEST_ARRAYS_BYTES, LARGEST_EXPANSION = 1 << 29, 4
LARGEST_DETAILS_BYTES = 1 << 20  # all arrays of a motion file but its maps
DETAILS = ("format_version", "num_frames", "fps", "image_size", "meta")


class ArchiveError(ValueError):
    """An .npz that cannot be read; the message names the array and what would be right, not the file."""


class MotionFileError(ValueError):
    """A motion file that cannot be used; the message names the file and what would be right."""

    is_user_error = True


@dataclass
class Motion:
    """The motion of an image: either a spectrum or a plain flow sequence, px of its own grid."""

    spectrum: Tensor | None = None  # (K, 4, H, W) packed
    flow: Tensor | None = None  # (T, 2, H, W), frame 0 -> t, flow[0] the displacement at frame 0
    num_frames: int = NUM_FRAMES  # T of the period
    fps: float = FPS  # frames a second that T is counted in
    image_size: tuple[int, int] | None = None  # (H, W) of the image it was made for, where that is known
    meta: dict = field(default_factory=dict)  # what made it (model, seed, sampler)

    @property
    def period_s(self) -> float:
        return self.num_frames / self.fps

    @property
    def _maps(self) -> Tensor:
        return self.flow if self.spectrum is None else self.spectrum

    def without_drift(self) -> Motion:
        """Return the motion with D = 0; a plain flow has no drift and is returned as it is."""
        return self if self.spectrum is None else replace(self, spectrum=without_drift(self.spectrum))

    def controlled(self, *, magnify: float = 1.0, mask: Tensor | None = None) -> Motion:
        """Return the motion scaled by `magnify` and by a mask (1, H', W') in [0, 1], resized to its grid."""
        maps = self._maps if magnify == 1 else self._maps * magnify  # a large grid is not held twice
        if mask is not None:
            maps = maps * resize_maps(mask.to(maps), tuple(maps.shape[-2:]))
        return replace(self, **{"flow" if self.spectrum is None else "spectrum": maps})

    def flow_at(self, phase: Tensor | float) -> Tensor:
        """Return the displacement at phases t / T (N,): (N, 2, H, W) px of its own grid."""
        phase = phase if isinstance(phase, Tensor) else torch.tensor([phase], dtype=torch.float64)
        if self.spectrum is not None:
            return spectrum_to_flow(self.spectrum, phase)
        # On the CPU first: Apple's devices have no float64.
        position = phase.cpu().to(torch.float64) * self.num_frames % self.num_frames
        low = position.floor().long().clamp(max=len(self.flow) - 1)
        high = (low + 1) % len(self.flow)
        weight = (position - low).to(self.flow).view(-1, 1, 1, 1)
        return self.flow[low] * (1 - weight) + self.flow[high] * weight

    def importance(self) -> Tensor:
        """Return W = mean_t |F_t| as (1, H, W) on its own grid, in px of the default motion grid.

        W is scaled by the root of the areas' ratio: for a plain flow always, for a spectrum where that is above 1.5.
        """
        scale = default_grid_scale(*self._maps.shape[-2:])
        if self.spectrum is None:
            return magnitude(self.flow).mean(0) * scale
        largest = math.sqrt(GRID_AREA_TOLERANCE)
        return mean_displacement(self.spectrum) * (1.0 if 1 / largest <= scale <= largest else scale)

    def check_aspect(self, height: int, width: int, name: str) -> None:
        """Raise MotionFileError when an image of height x width px cannot be the one this motion was made for."""
        made_for, tolerance = self.image_size, ASPECT_TOLERANCE
        if made_for is None:
            # A motion grid's sides are multiples of 32 px; any other grid has the image's aspect, to a pixel.
            made_for = self._maps.shape[-2:]
            is_motion_grid = all(side % GRID_MULTIPLE == 0 for side in made_for)
            tolerance = 0.15 if is_motion_grid else ASPECT_TOLERANCE + 1 / min(made_for)
        if abs(math.log(made_for[1] / made_for[0]) - math.log(width / height)) > tolerance:
            made = f"{name}: made for an image of {made_for[1]} x {made_for[0]} px, this one has {width} x {height}"
            raise MotionFileError(f"{made}; right: an image of the same aspect ratio")


def thumbnail(image: Tensor) -> str:
    """Return 8 x 8 grey levels of an image (3, H, W) in [0, 1], in hexadecimal; meta["picture"] of a motion file."""
    grey = F.adaptive_avg_pool2d(image.float().mean(0, keepdim=True), 8).flatten()
    return "".join(f"{round(float(level) * 255):02x}" for level in grey.clamp(0, 1))


def is_other_image(motion: Motion, image: Tensor) -> bool:
    """Return whether a motion's meta holds the thumbnail of another image than `image` (3, H, W)."""
    recorded = motion.meta.get("picture")
    if not isinstance(recorded, str) or len(recorded) != 128:
        return False
    try:
        levels = [np.frombuffer(bytes.fromhex(one), np.uint8).astype(float) for one in (recorded, thumbnail(image))]
    except ValueError:
        return False
    return float(np.abs(levels[0] - levels[1]).mean()) > OTHER_IMAGE_LEVELS


def save_motion(path: str | os.PathLike, motion: Motion, *, dense: bool = False) -> None:
    """Write a motion's spectrum aside and rename it, if `dense` with the flow of all frames; MotionFileError if not."""
    path = Path(path)
    if path.suffix != ".npz":
        raise MotionFileError(f"{path}: expected a file name that ends in .npz")
    arrays = {
        "format_version": np.array(FORMAT_VERSION),
        "spectrum": motion.spectrum.detach().cpu().float().numpy(),
        "num_frames": np.array(motion.num_frames),
        "fps": np.array(motion.fps, dtype=np.float64),
        "image_size": np.array(motion.image_size if motion.image_size is not None else (0, 0)),
        "meta": np.array(json.dumps(motion.meta)),
    }
    if dense:
        phase = torch.arange(motion.num_frames, dtype=torch.float64) / motion.num_frames
        arrays["flow"] = motion.flow_at(phase).float().numpy()
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        raise MotionFileError(f"{path}: cannot be written ({error.strerror}); right: a writable folder") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def load_motion(path: str | os.PathLike) -> Motion:
    """Read a motion file: ours, or any .npz with a plain `flow` (T, 2, H, W) in px; MotionFileError where wrong."""
    path = Path(path)
    if not path.is_file():
        raise MotionFileError(f"{path}: no such file; right: a motion file (.npz) as generate_motion.py writes it")
    try:
        return _read_motion(path)
    except (MotionFileError, ArchiveError) as error:
        raise MotionFileError(f"{path}: {error}") from error.__cause__


def read_arrays(path: Path, names: Iterable[str] | None = None, most_bytes: int | None = None) -> dict[str, np.ndarray]:
    """Read those of `names` (None: all) that an .npz holds; nothing else in it is decompressed.

    The sizes are taken from the arrays' headers, and none is read that makes them more than `most_bytes` (None: 512 MiB
    or four times the file, whichever is larger). ArchiveError: too large, pickled, or damaged.
    """
    try:
        if most_bytes is None:
            most_bytes = max(LARGEST_ARRAYS_BYTES, LARGEST_EXPANSION * path.stat().st_size)
        arrays = {}
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            for name in members.keys() if names is None else names:
                if name in members:
                    arrays[name] = _read_array(archive, members[name], f"`{name[:80]}`", most_bytes)
                    most_bytes -= arrays[name].size * max(4, arrays[name].itemsize)
        return arrays
    except ArchiveError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and tokenize fail in ways of their own
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise ArchiveError(f"cannot be read as an .npz archive ({reason}); right: one of numpy's savez") from error


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, most_bytes: int) -> np.ndarray:
    # zipfile bounds what comes out of a few bytes for these alone, and numpy writes no others.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{name} is compressed in a way that is not read; right: one of numpy's savez_compressed")
    with archive.open(member) as file:
        # Headers of later versions have no limit, and only tables with very many columns need them.
        if file.read(8) != np.lib.format.magic(1, 0):
            raise ArchiveError(f"{name} is no array of numbers in numpy's format; right: one of numpy's savez")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ArchiveError(f"{name} holds pickled objects, which are never loaded; right: plain arrays")
    if math.prod(shape) * max(4, dtype.itemsize) > most_bytes:
        size = f"{dtype} {shape}"[:120]
        raise ArchiveError(f"{name} is {size}, more than the {most_bytes / 2**20:.0f} MiB left; right: a smaller one")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_motion(path: Path) -> Motion:
    arrays = read_arrays(path, DETAILS, LARGEST_DETAILS_BYTES) | read_arrays(path, ("spectrum",))
    if "spectrum" not in arrays:
        flow = _checked_maps("flow", read_arrays(path, ("flow",)), channels=2)
        if len(flow) > MAX_FRAMES:
            raise MotionFileError(f"`flow` has {len(flow)} frames; right: at most {MAX_FRAMES}")
        fps = _checked_number("fps", arrays["fps"], FPS_RANGE) if "fps" in arrays else FPS
        return Motion(None, flow, len(flow), fps, _checked_size(arrays), {})
    missing = {"format_version", "num_frames", "fps", "image_size"} - set(arrays)
    if missing:
        raise MotionFileError(f"lacks {sorted(missing)}; right: a motion file as generate_motion.py writes it")
    version = _checked_number("format_version", arrays["format_version"], (0, math.inf))
    if version != FORMAT_VERSION:
        raise MotionFileError(f"format version {version:g}, this program reads version {FORMAT_VERSION}")
    spectrum = _checked_maps("spectrum", arrays, channels=4)
    num_frames = _checked_number("num_frames", arrays["num_frames"], (2, MAX_FRAMES), whole=True)
    fps = _checked_number("fps", arrays["fps"], FPS_RANGE)
    try:
        meta = json.loads(str(arrays.get("meta", "{}")))
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise MotionFileError("`meta` is not a JSON object; right: a motion file of generate_motion.py")
    return Motion(spectrum, None, int(num_frames), fps, _checked_size(arrays), meta)


def _checked_number(name: str, array: np.ndarray, limits: tuple[float, float], *, whole: bool = False) -> float:
    right = f"right: one {'whole ' if whole else ''}number from {limits[0]:g} to {limits[1]:g}"
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise MotionFileError(f"`{name}` is {array.dtype} {array.shape}; {right}")
    number = float(array.reshape(()))
    if not (math.isfinite(number) and limits[0] <= number <= limits[1]) or (whole and not number.is_integer()):
        raise MotionFileError(f"`{name}` is {number:g}; {right}")
    return number


def _checked_size(arrays: dict[str, np.ndarray]) -> tuple[int, int] | None:
    """Return `image_size` as (H, W), None where it is absent or (0, 0): not known."""
    sides = arrays.get("image_size", np.zeros(2)).reshape(-1)
    if len(sides) != 2:
        raise MotionFileError(f"`image_size` has {len(sides)} numbers; right: two, height and width in px")
    height, width = (_checked_number("image_size", side, (0, LARGEST_SIDE_PX), whole=True) for side in sides)
    return (int(height), int(width)) if min(height, width) > 0 else None


def _checked_maps(name: str, arrays: dict[str, np.ndarray], *, channels: int) -> Tensor:
    if name not in arrays:
        raise MotionFileError("holds neither `spectrum` nor `flow`; right: one of them")
    array = arrays.pop(name)  # so that it is not kept beside its float32
    if array.ndim != 4 or array.shape[1] != channels or min(array.shape) < 1 or array.dtype.kind != "f":
        right = f"float (N, {channels}, H, W) in pixels of its grid"
        raise MotionFileError(f"`{name}` is {array.dtype} {array.shape}; right: {right}")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    # Checked after the cast, which makes Inf of numbers that float32 cannot hold.
    if not np.isfinite(array).all():
        raise MotionFileError(f"`{name}` holds NaN or Inf in float32; right: finite numbers")
    largest = max(float(array.max()), -float(array.min()))
    if largest > LARGEST_MOTION_PX:
        unknown = ' (1e9 and more means "unknown" in Middlebury\'s files: put a number there)'
        raise MotionFileError(f"`{name}` holds {largest:.3g} px; right: at most {LARGEST_MOTION_PX:g}{unknown}")
    return torch.from_numpy(array)
