"""Read and write images.

An image is a float32 RGB tensor (3, H, W) with values in [0, 1] everywhere in this project. Bytes exist only here, and
in `data/video.py` and `data/video_writer.py`, which use `from_bytes` and `to_bytes` of this module.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image

from data.files import MediaError, atomic_path, check_input_file
from motion.flow import resize_maps

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".wmv")

MIN_SIDE_PX = 16
MAX_PIXELS = 200_000_000
GIANT_PIXELS = 50_000_000
MASK_ASPECT_TOLERANCE = 0.05

# Pillow also knows formats that start other programs (EPS) or are never photographs; those stay closed.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
_SAVE_OPTIONS = {".jpg": _JPEG_OPTIONS, ".jpeg": _JPEG_OPTIONS, ".webp": {"quality": 95}}
# What turns each EXIF orientation upright: t swaps rows and columns, then y flips up and down, x left and right.
_UPRIGHT = {2: "x", 3: "yx", 4: "y", 5: "t", 6: "tx", 7: "tyx", 8: "ty"}
_pillow_limit_lock = threading.Lock()

# OpenCV would print its own lines about damaged files beside the one MediaError. OpenCV 4 has the call at the top.
if hasattr(cv2, "setLogLevel"):
    cv2.setLogLevel(0)
else:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def list_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the images that files and folders stand for.

    A file is taken as it is. A folder gives the images directly inside it (by suffix, hidden files left out), `a2.png`
    before `a10.png`. Repeats are dropped. Raises MediaError for a missing path, a folder without images, or no path.
    """
    found: dict[Path, None] = {}
    for path in map(Path, [paths] if isinstance(paths, (str, Path)) else paths):
        if not path.is_dir():
            found[check_input_file(path, "an image or a folder of images")] = None
            continue
        inside = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        if not inside:
            raise MediaError(f"{path}: holds no images ({' '.join(s[1:] for s in IMAGE_SUFFIXES)})")
        found.update(dict.fromkeys(sorted(inside, key=_natural_key)))
    if not found:
        raise MediaError("no images were given; name image files or folders of images")
    return list(found)


def _natural_key(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """Turn an image (..., 3, H, W) in [0, 1] into bytes (..., H, W, 3): clamp, scale by 255, round.

    Raises ValueError for another shape, a tensor that is not floating point, or values that are not finite.
    """
    if image.dim() < 3 or image.shape[-3] != 3:
        raise ValueError(f"image: expected shape (..., 3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"image: expected floating point values in [0, 1], got {image.dtype}")
    image = image.detach().float()
    if not torch.isfinite(image).all():
        raise ValueError("image: expected finite values, got NaN or infinity")
    scaled = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.movedim(-3, -1).cpu().numpy())  # (..., H, W, 3)


def from_bytes(array: np.ndarray) -> torch.Tensor:
    """Turn bytes or 16-bit values (H, W, 3) into an image (3, H, W) float32 in [0, 1]."""
    scale = 65535.0 if array.dtype == np.uint16 else 255.0
    planes = np.moveaxis(array, -1, 0).astype(np.float32, order="C")  # (3, H, W)
    # In place: an image of 200 megapixels is 2.4 GB here, and must not be so twice.
    return torch.from_numpy(planes).div_(scale)


def contact_sheet(rows: list[list[torch.Tensor]], *, gap: int = 2) -> torch.Tensor:
    """Lay images (3, h, w) out as a white sheet (3, H, W), `gap` px apart.

    A column is as wide as its widest image and a row as tall as its tallest. Images sit at the top left of their cell.
    Rows may differ in length. Raises ValueError when there is no image.
    """
    if not any(rows):
        raise ValueError("rows: expected at least one image, got none")
    num_columns = max(len(row) for row in rows)
    widths = [max(row[i].shape[-1] for row in rows if i < len(row)) for i in range(num_columns)]
    heights = [max((image.shape[-2] for image in row), default=0) for row in rows]
    sheet = torch.ones(3, sum(heights) + gap * (len(heights) - 1), sum(widths) + gap * (len(widths) - 1))
    for number, row in enumerate(rows):
        top = sum(heights[:number]) + gap * number
        for column, image in enumerate(row):
            left = sum(widths[:column]) + gap * column
            sheet[:, top : top + image.shape[-2], left : left + image.shape[-1]] = image.detach().cpu()
    return sheet


def read_image(path: str | Path, *, max_side: int | None = None) -> torch.Tensor:
    """Read an image as float32 RGB (3, H, W) in [0, 1].

    Reads jpg, png, webp, bmp, tiff, gif (first frame) and ppm. Grey, palette and CMYK become RGB, 16-bit values are
    divided by 65535, EXIF rotation is applied and transparency is laid over white. Colour profiles are not applied.

    Args:
        path: the file; its contents decide the format, not its suffix.
        max_side: an image whose long side is larger, in px, is reduced to it with anti-aliasing; never enlarged.

    Raises:
        MediaError: missing, empty, a folder, not an image, truncated, a floating-point image, over 200 megapixels
            (read from the header, before decoding), or under 16 px on a side before or after the reduction.
    """
    return _over_background(_read_rgba(Path(path), max_side, MIN_SIDE_PX), 1.0)


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Return (H, W) of an image's file, upright, without decoding it; MediaError as `read_image`."""
    path = check_input_file(path, "an image")
    with open(path, "rb") as file, _open(path, file) as image:
        width, height = image.size
        # Pillow turns TIFFs upright by itself.
        lies = image.format != "TIFF" and "t" in _UPRIGHT.get(_orientation(image), "")
    return (width, height) if lies else (height, width)


def read_mask(path: str | Path, size: tuple[int, int], *, any_aspect: bool = False) -> torch.Tensor:
    """Read a mask (1, H, W) in [0, 1] at `size` = (height, width) px: white moves, black and transparent do not.

    Colours count by their luminance. Raises MediaError as `read_image` does (but any size will do), and when the
    mask's aspect ratio is more than 5 % off that of `size`, since it was then drawn for another image; `any_aspect`
    allows that.
    """
    path = Path(path)
    # A giant is never held as floats; at twice the size, rounding its sides does not show in the aspect.
    rgb = _over_background(_read_rgba(path, 2 * max(size), 1), 0.0)  # (3, h, w)
    height, width = rgb.shape[-2:]
    if not any_aspect and abs(width * size[0] / (height * size[1]) - 1) > MASK_ASPECT_TOLERANCE:
        raise MediaError(
            f"{path}: the mask is {width} x {height} px and the image {size[1]} x {size[0]}; "
            "it must have the image's aspect ratio"
        )
    luminance = rgb.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return resize_maps((rgb * luminance).sum(0, keepdim=True), size).clamp(0, 1)  # (1, H, W)


def _over_background(rgba: torch.Tensor, background: float) -> torch.Tensor:
    """Lay (3 or 4, H, W) over an even grey; returns (3, H, W)."""
    return rgba if rgba.shape[0] == 3 else rgba[:3] * rgba[3:] + background * (1 - rgba[3:])


def _read_rgba(path: Path, max_side: int | None, min_side: int) -> torch.Tensor:
    """Decode, reduce and turn upright; (3, H, W), or (4, H, W) with straight alpha."""
    check_input_file(path, "an image")
    # Given a path, Pillow maps some TIFFs into memory and scrambles those that EXIF turns on their side.
    with open(path, "rb") as file, _open(path, file) as image:
        target = _target_size(path, image.size, max_side, min_side)
        try:
            with warnings.catch_warnings():
                # Odd metadata does not harm the pixels, and damage becomes the one error below.
                warnings.simplefilter("ignore")
                return from_bytes(_decode(path, image, target))
        except MediaError:
            raise
        # Decoders answer a damaged file with anything from OSError to struct.error.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MediaError(f"{path}: cannot be decoded, damaged or truncated ({reason})") from error


def _open(path: Path, file: BinaryIO) -> Image.Image:
    """Read the header only; Pillow's own size limit is below ours, so it is lifted meanwhile."""
    with _pillow_limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_PILLOW_FORMATS)
        except (OSError, ValueError) as error:
            raise MediaError(f"{path}: is not an image; give a whole jpg, png, webp, bmp, tiff, gif or ppm") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _decode(path: Path, image: Image.Image, target: tuple[int, int]) -> np.ndarray:
    """Return upright pixels of `target` size (before turning), 8 or 16 bits, (H, W, 3 or 4)."""
    orientation, is_deep = _orientation(image), _is_16_bit(path, image)
    if target != image.size and image.size[0] * image.size[1] > GIANT_PIXELS:
        logger.warning("%s: %d x %d px is reduced to %d x %d", path, *image.size, *target)
        # A JPEG decoder can skip detail; twice the target leaves the anti-aliasing below its work.
        image.draft(None, (2 * target[0], 2 * target[1]))
    image.load()
    low, high = image.getextrema() if image.mode in ("I", "F") else (0, 0)
    if image.mode == "F" or low < 0 or high > 65535:
        raise MediaError(f"{path}: holds float or 32-bit values; save it with 8 or 16 bits a channel")
    array = _deep_pixels(path, image, orientation) if is_deep else None
    array = _byte_pixels(image, target) if array is None else _reduce_deep(array, target)
    # Pillow turns TIFFs upright while loading.
    turns = "" if image.format == "TIFF" else _UPRIGHT.get(orientation, "")
    array = array.swapaxes(0, 1) if "t" in turns else array
    return array[:: -1 if "y" in turns else 1, :: -1 if "x" in turns else 1]


def _target_size(path: Path, size: tuple[int, int], max_side: int | None, min_side: int) -> tuple[int, int]:
    """Return the (width, height) to reduce to; raises MediaError for images too large or too small."""
    width, height = size
    if width * height > MAX_PIXELS:
        megapixels = f"{width * height / 1e6:.0f} megapixels"
        raise MediaError(f"{path}: {width} x {height} px is {megapixels}; at most {MAX_PIXELS / 1e6:.0f} are read")
    if min(size) < min_side:
        raise MediaError(f"{path}: is {width} x {height} px; an image needs at least {min_side} px on each side")
    if max_side is None or max(size) <= max_side:
        return size
    factor = max_side / max(size)
    target = (max(1, round(width * factor)), max(1, round(height * factor)))
    if min(target) < min_side:
        raise MediaError(
            f"{path}: {width} x {height} px reduced to a long side of {max_side} px is only {min(target)} px on its "
            f"short side; crop it or choose a larger size so that {min_side} px remain"
        )
    return target


def _is_16_bit(path: Path, image: Image.Image) -> bool:
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24] == 16  # the bit depth in the IHDR chunk, which comes first by definition
    if image.format == "TIFF" and image.mode != "CMYK":
        return max(image.tag_v2.get(258, (8,))) == 16  # BitsPerSample
    return image.mode == "I"


def _deep_pixels(path: Path, image: Image.Image, orientation: int) -> np.ndarray | None:
    """Return 16-bit pixels (H, W, 3 or 4), or None where only Pillow's 8-bit version is to be had.

    Pillow keeps the 16 bits of grey images but 8 of colour ones, so those go through OpenCV, unless they are TIFFs to
    be turned, which OpenCV 5 fails on.
    """
    if image.mode.startswith("I"):
        array = np.asarray(image).astype(np.uint16)
    elif image.format == "TIFF" and orientation != 1:
        return None
    else:
        array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16:
        return None
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    return cv2.cvtColor(array, cv2.COLOR_BGRA2RGBA if array.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _reduce_deep(array: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    if array.shape[2] == 3 or target == array.shape[1::-1]:
        return cv2.resize(array, target, interpolation=cv2.INTER_AREA)
    # The colour of transparent pixels must not bleed into their neighbours: average colour times alpha.
    mixed = array.astype(np.float32)
    mixed[..., :3] *= mixed[..., 3:]
    mixed = cv2.resize(mixed, target, interpolation=cv2.INTER_AREA)
    mixed[..., :3] /= np.maximum(mixed[..., 3:], 1)
    return mixed.round().astype(np.uint16)


def _byte_pixels(image: Image.Image, target: tuple[int, int]) -> np.ndarray:
    transparent = "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")
    image = image.convert("RGBA" if transparent else "RGB")
    if image.size != target:
        image = image.resize(target, Image.Resampling.LANCZOS)
    return np.asarray(image)


def encode_jpeg(image: torch.Tensor) -> bytes:
    """Encode an image (3, H, W) in [0, 1] as the bytes of a JPEG file, as `write_image` writes them."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(buffer, "JPEG", **_JPEG_OPTIONS)
    return buffer.getvalue()


def encode_webp_loop(frames: torch.Tensor, *, fps: float, quality: int = 50) -> bytes:
    """Encode frames (T, 3, H, W) in [0, 1] as the bytes of a WebP file that plays them over and over."""
    buffer = io.BytesIO()
    first, *others = [Image.fromarray(to_bytes(frame)) for frame in frames]
    options = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "loop": 0}
    first.save(buffer, "WEBP", quality=quality, **options)
    return buffer.getvalue()


def write_image(path: str | Path, image: torch.Tensor) -> None:
    """Write an image (3, H, W) in [0, 1]; the suffix (png jpg jpeg webp bmp tif tiff ppm) decides the format.

    The file appears under its name only when it is whole. Raises MediaError for another suffix or a folder that cannot
    be written to, ValueError for a wrong tensor.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITABLE_SUFFIXES:
        known = " ".join(known[1:] for known in _WRITABLE_SUFFIXES)
        raise MediaError(f"{path}: cannot write an image named '{path.suffix}'; use one of {known}")
    if image.dim() != 3:
        raise ValueError(f"image: expected shape (3, H, W), got {tuple(image.shape)}")
    with atomic_path(path) as temporary:
        Image.fromarray(to_bytes(image)).save(temporary, **_SAVE_OPTIONS.get(suffix, {}))
