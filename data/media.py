"""Read and write images: float32 RGB tensors (3, H, W) with values in [0, 1]."""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, features

from cluster.storage import is_folder, url_of
from data.damaged_images import mend
from data.files import MediaError, atomic_path, check_input_file, list_files, warn_once
from motion.flow import resize_maps

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:  # HEIC is then refused by name
    pillow_heif = None

Result = TypeVar("Result")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".heic", ".heif", ".hif", ".avif", ".bmp", ".tif", ".tiff",
                  ".gif", ".ppm", ".pgm", ".pnm")  # fmt: skip
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".wmv")

MIN_SIDE_PX = 16
MASK_ASPECT_TOLERANCE = 0.05

# Pillow also knows formats that start other programs (EPS) or are never photographs; those stay closed.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_PILLOW_FORMATS += ("AVIF",) * features.check("avif") + ("HEIF",) * (pillow_heif is not None)
# How formats that may not be readable begin: their name, and what to do.
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "HEIC")
_DECODERS = {"AVIF": "pillow with AVIF (11.3 or later)", "HEIC": "pillow-heif"}
_RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")
_DNG_VERSION = 50706
# what colour profiles are of -> Pillow's mode; other modes -> that of their colours
_MODES_BY_COLOURS = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_COLOURED_AS = {"RGBA": "RGB", "P": "RGB", "PA": "RGB", "LA": "L", "I;16": "L", "I;16B": "L"}
_WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
_SAVE_OPTIONS = {".jpg": _JPEG_OPTIONS, ".jpeg": _JPEG_OPTIONS, ".webp": {"quality": 95}}
# what turns each EXIF orientation upright: t swaps rows and columns, then y flips up and down, x left and right.
_UPRIGHT = {2: "x", 3: "yx", 4: "y", 5: "t", 6: "tx", 7: "tyx", 8: "ty"}

# OpenCV would print its own lines about damaged files beside the one MediaError. OpenCV 4 has the call at the top.
if hasattr(cv2, "setLogLevel"):
    cv2.setLogLevel(0)
else:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def list_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """List files, and the images directly in folders (`a2.png` before `a10.png`), each once; MediaError for none."""
    found: dict[Path, None] = {}
    for path in map(Path, [paths] if isinstance(paths, (str, Path)) else paths):
        if not is_folder(path):
            found[path if url_of(path) else check_input_file(path, "an image or a folder of images")] = None
            continue
        inside = list_files(path, IMAGE_SUFFIXES)
        if not inside:
            raise MediaError(f"{path}: holds no images ({' '.join(s[1:] for s in IMAGE_SUFFIXES)})")
        # Split at runs of digits, texts and numbers alternate.
        parts = {p: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", p.name.lower())] for p in inside}
        found.update(dict.fromkeys(sorted(inside, key=parts.get)))
    if not found:
        raise MediaError("no images were given; name image files or folders of images")
    return list(found)


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """Turn images (..., 3, H, W) in [0, 1] into bytes (..., H, W, 3): clamp, scale by 255, round; ValueError else."""
    if image.dim() < 3 or image.shape[-3] != 3 or not image.is_floating_point():
        raise ValueError(f"image: expected (..., 3, H, W) in [0, 1], got {tuple(image.shape)} {image.dtype}")
    image = image.detach().float()
    if not torch.isfinite(image).all():
        raise ValueError("image: expected finite values, got NaN or infinity")
    scaled = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.movedim(-3, -1).cpu().numpy())  # (..., H, W, 3)


def from_bytes(array: np.ndarray) -> torch.Tensor:
    """Turn bytes or 16-bit values (H, W, 3) into an image (3, H, W) float32 in [0, 1]."""
    scale = 65535.0 if array.dtype == np.uint16 else 255.0
    planes = np.moveaxis(array, -1, 0).astype(np.float32, order="C")  # (3, H, W)
    # in place, as a large image takes gigabytes here
    return torch.from_numpy(planes).div_(scale)


def contact_sheet(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Lay rows of images (3, h, w) out as a white sheet (3, H, W), 2 px apart, at the top left of their cells."""
    widths = [max(row[i].shape[-1] for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    heights = [max((image.shape[-2] for image in row), default=0) for row in rows]
    sheet = torch.ones(3, sum(heights) + 2 * (len(heights) - 1), sum(widths) + 2 * (len(widths) - 1))
    for number, row in enumerate(rows):
        top = sum(heights[:number]) + 2 * number
        for column, image in enumerate(row):
            left = sum(widths[:column]) + 2 * column
            sheet[:, top : top + image.shape[-2], left : left + image.shape[-1]] = image.detach().cpu()
    return sheet


def read_image(path: str | Path, *, max_side: int | None = None) -> torch.Tensor:
    """Read an image as float32 sRGB (3, H, W) in [0, 1], its long side reduced to `max_side` px where it is larger.

    Reads jpg, png, webp, heic, avif, bmp, tiff, gif (first frame) and ppm. Grey, palette and CMYK become RGB, 16-bit
    values are divided by 65535, EXIF rotation and colour profiles are applied (with a profile other than sRGB 8 bits
    are kept) and transparency is laid over white. Broken metadata and a missing end cost a warning.
    Raises MediaError for a file that cannot be read, above Pillow's 179 megapixels, or under 16 px on a reduced side.
    """
    return _over_background(_read_rgba(Path(path), max_side, MIN_SIDE_PX), 1.0)


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Return (H, W) of an image file, upright, without decoding it; MediaError as `read_image`."""
    path = Path(path)

    def size(image: Image.Image, _: BinaryIO) -> tuple[int, int]:
        width, height = image.size
        # Pillow turns TIFFs upright by itself.
        lies = image.format != "TIFF" and "t" in _UPRIGHT.get(_orientation(path, image), "")
        return (width, height) if lies else (height, width)

    return use_image(path, size)


def read_mask(path: str | Path, size: tuple[int, int], *, any_aspect: bool = False) -> torch.Tensor:
    """Read a mask (1, H, W) in [0, 1] at `size` = (height, width) px: white moves, black and transparent do not.

    Colours count by luminance. MediaError as `read_image`, and unless `any_aspect` for an aspect over 5 % off `size`.
    """
    path = Path(path)
    # A giant is never held as floats; at twice the size, rounding its sides does not show in the aspect.
    rgb = _over_background(_read_rgba(path, 2 * max(size), 1), 0.0)  # (3, h, w)
    height, width = rgb.shape[-2:]
    if not any_aspect and abs(width * size[0] / (height * size[1]) - 1) > MASK_ASPECT_TOLERANCE:
        sizes = f"the mask is {width} x {height} px and the image {size[1]} x {size[0]}"
        raise MediaError(f"{path}: {sizes}; it must have the image's aspect ratio")
    luminance = rgb.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return resize_maps((rgb * luminance).sum(0, keepdim=True), size).clamp(0, 1)  # (1, H, W)


def _over_background(rgba: torch.Tensor, background: float) -> torch.Tensor:
    return rgba if rgba.shape[0] == 3 else rgba[:3] * rgba[3:] + background * (1 - rgba[3:])  # (3, H, W)


def _read_rgba(path: Path, max_side: int | None, min_side: int) -> torch.Tensor:
    """Decode, reduce and turn upright; (3, H, W), or (4, H, W) with straight alpha."""
    return from_bytes(use_image(path, lambda image, file: _decode(path, image, file, max_side, min_side)))


class _DamagedError(MediaError):
    """An image file that Pillow does not read, but another decoder may."""


def use_image(path: Path, use: Callable[[Image.Image, BinaryIO], Result]) -> Result:
    """Return what `use` makes of an image whose header alone is read, mended if need be; MediaError if it is none."""
    check_input_file(path, "an image")
    # Given a path, Pillow maps some TIFFs into memory and scrambles those that EXIF turns on their side.
    with open(path, "rb") as file:
        try:
            with _opened(path, file) as image:
                return use(image, file)
        except _DamagedError:
            file.seek(0)
            mended = mend(file.read())
            if mended is None:
                raise
            data, note = mended
            with _opened(path, mended_file := io.BytesIO(data)) as image:
                result = use(image, mended_file)
            warn_once(f"{path}: {note}")
            return result


@contextmanager
def _opened(path: Path, file: BinaryIO) -> Iterator[Image.Image]:
    """Open an image; Pillow's warnings about odd metadata are left out."""
    raw = f"{path}: is a camera's raw file; give a jpg, tiff or heic developed from it"
    if path.suffix.lower() in _RAW_SUFFIXES:
        raise MediaError(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=_PILLOW_FORMATS)
        except Image.DecompressionBombError as error:
            most = 2 * Image.MAX_IMAGE_PIXELS
            pixels = re.search(r"\d+", str(error))[0]
            raise MediaError(f"{path}: {pixels} pixels; at most {most} are read, reduce it first") from error
        # Pillow answers broken metadata with anything
        except Exception as error:
            file.seek(0)
            head = file.read(16)
            name = _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None
            if name and name.replace("HEIC", "HEIF") not in _PILLOW_FORMATS:
                raise MediaError(f"{path}: is {name}, which needs {_DECODERS[name]}; install it") from error
            right = "give a whole jpg, png, webp, heic, avif, bmp, tiff, gif or ppm"
            raise _DamagedError(f"{path}: is not an image; {right}") from error
        with image:
            if image.format == "TIFF" and _DNG_VERSION in image.tag_v2:
                raise MediaError(raw)
            try:
                yield image
            except MediaError:
                raise
            # Decoders answer a damaged file with anything from OSError to struct.error.
            except Exception as error:
                reason = f"damaged or truncated ({' '.join(str(error).split()) or type(error).__name__})"
                raise _DamagedError(f"{path}: cannot be decoded, {reason}; give a whole file") from error


def _orientation(path: Path, image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where the metadata is broken."""
    if image.format == "PNG":
        image.load()  # as it may lie behind the pixels
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # Pillow may have failed here before, without a word
            Image.Exif().load(image.info.get("exif", b""))
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            is_broken = any("EXIF" in str(warning.message) for warning in caught)
        # Pillow answers broken metadata with anything
        except Exception:
            orientation, is_broken = 1, True
    if is_broken:
        warn_once(f"{path}: its EXIF metadata is broken and ignored; it may lie on its side")
    return orientation


def _decode(path: Path, image: Image.Image, file: BinaryIO, max_side: int | None, min_side: int) -> np.ndarray:
    """Return upright, reduced pixels, 8 or 16 bits, (H, W, 3 or 4)."""
    target, is_deep = _target_size(path, image.size, max_side, min_side), _is_16_bit(image)
    orientation = _orientation(path, image)
    image.load()
    low, high = image.getextrema() if image.mode in ("I", "F") else (0, 0)
    if image.mode == "F" or low < 0 or high > 65535:
        right = "save it with 8 or 16 bits a channel, or float values from 0 to 1"
        raise _DamagedError(f"{path}: holds float or 32-bit values; {right}")
    to_srgb = _to_srgb_transform(path, image)
    array = _deep_pixels(image, file, orientation) if is_deep and to_srgb is None else None
    array = _byte_pixels(image, target, to_srgb) if array is None else _reduce_deep(array, target)
    # Pillow turns TIFFs upright while loading.
    turns = "" if image.format == "TIFF" else _UPRIGHT.get(orientation, "")
    array = array.swapaxes(0, 1) if "t" in turns else array
    return array[:: -1 if "y" in turns else 1, :: -1 if "x" in turns else 1]


def _to_srgb_transform(path: Path, image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Return what turns an image's colours into sRGB; None where they are, or its profile cannot be used."""
    data = image.info.get("icc_profile")
    if not data:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return None
        mode = _MODES_BY_COLOURS[profile.profile.xcolor_space.strip()]
        if _COLOURED_AS.get(image.mode, image.mode) == mode:
            return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    # Pillow answers broken metadata with anything
    except Exception:
        pass
    warn_once(f"{path}: its colour profile is broken or not for its kind of pixels and is ignored")
    return None


def _target_size(path: Path, size: tuple[int, int], max_side: int | None, min_side: int) -> tuple[int, int]:
    width, height = size
    factor = 1.0 if max_side is None else min(1.0, max_side / max(size))
    target = (max(1, round(width * factor)), max(1, round(height * factor)))
    if min(target) < min_side:
        reduced = f" reduced to {target[0]} x {target[1]} px" if target != size else ""
        crop = f", crop it to {max_side // min_side} : 1" if min(size) >= min_side else ""
        text = f"{width} x {height} px{reduced}; the short side must keep at least {min_side} px{crop}"
        raise MediaError(f"{path}: {text}")
    return target


def _is_16_bit(image: Image.Image) -> bool:
    """Return whether an image, of which only the header is read, has 16 bits a channel."""
    if image.format == "PNG":
        return any("16" in str(tile.args) for tile in image.tile)  # how its pixels are stored: RGB;16B
    if image.format == "TIFF" and image.mode != "CMYK":
        return max(image.tag_v2.get(258, (8,))) == 16  # BitsPerSample
    return image.mode == "I"


def _deep_pixels(image: Image.Image, file: BinaryIO, orientation: int) -> np.ndarray | None:
    """Return 16-bit pixels (H, W, 3 or 4), of colour by OpenCV, as Pillow keeps 8 bits; None where that fails."""
    if image.mode.startswith("I"):
        array = np.asarray(image).astype(np.uint16)
    elif image.format == "TIFF" and orientation != 1:
        return None
    else:
        file.seek(0)
        array = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
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


def _byte_pixels(image: Image.Image, target: tuple[int, int], to_srgb: ImageCms.ImageCmsTransform | None) -> np.ndarray:
    transparent = "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")
    if to_srgb is not None:
        alpha = image.convert("RGBA").getchannel("A") if transparent else None
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = ImageCms.applyTransform(image.convert(_COLOURED_AS.get(image.mode, image.mode)), to_srgb)
        if transparent:
            image.putalpha(alpha)
    image = image.convert("RGBA" if transparent else "RGB")
    if image.size != target:
        image = image.resize(target, Image.Resampling.LANCZOS)
    return np.asarray(image)


def encode_jpeg(image: torch.Tensor) -> bytes:
    """Encode an image (3, H, W) in [0, 1] as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(buffer, "JPEG", **_JPEG_OPTIONS)
    return buffer.getvalue()


def encode_webp_loop(frames: torch.Tensor, *, fps: float) -> bytes:
    """Encode frames (T, 3, H, W) in [0, 1] as the bytes of a WebP file that plays them over and over."""
    buffer = io.BytesIO()
    first, *others = [Image.fromarray(to_bytes(frame)) for frame in frames]
    options = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "loop": 0}
    first.save(buffer, "WEBP", quality=50, **options)
    return buffer.getvalue()


def write_image(path: str | Path, image: torch.Tensor) -> None:
    """Write an image (3, H, W) in [0, 1] aside and rename it; the suffix decides the format. MediaError if it fails."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITABLE_SUFFIXES:
        known = " ".join(known[1:] for known in _WRITABLE_SUFFIXES)
        raise MediaError(f"{path}: cannot write an image named '{path.suffix}'; use one of {known}")
    with atomic_path(path) as temporary:
        Image.fromarray(to_bytes(image)).save(temporary, **_SAVE_OPTIONS.get(suffix, {}))
