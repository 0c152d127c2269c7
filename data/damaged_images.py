"""Mend image files that lack their end, or that Pillow cannot decode."""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

# This fraction of the pixels must be there; what is missing lies at the bottom.
LEAST_FRACTION = 0.95
BLOCK_PX = 16

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_WIDTH, _HEIGHT = 256, 257  # tags of a TIFF
_JPEG_END = b"\xff\xd9"
_REPEAT_ROW = b"\2"  # the PNG filter that adds the row above
_NEEDED_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf")


def mend(data: bytes) -> tuple[bytes, str] | None:
    """Return the bytes of an image file that Pillow decodes, and what was done; None where there is no such file.

    A JPEG or PNG must hold 95 % of its pixels, other formats of their bytes. TIFFs of floats, 0 to 1, become PNGs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _mend(data)
        # decoders answer a damaged file with anything
        except Exception:
            return None


def _mend(data: bytes) -> tuple[bytes, str] | None:
    if data.startswith(_JPEG):
        return _mend_jpeg(data)
    if data.startswith(_PNG):
        return _mend_png(data)
    if data[:4] in (b"II*\0", b"MM\0*") and (found := _convert_tiff(data)):
        return found
    # libavif refuses an image for its metadata; under another name it is left alone
    unnamed = re.sub(rb"(?s)(infe.{8})Exif", rb"\1none", data)
    if data[4:12] == b"ftypavif" and unnamed != data:
        return unnamed, "its EXIF metadata is broken and ignored"
    padding = bytes(int(len(data) * (1 / LEAST_FRACTION - 1)))
    return data + padding, "its last bytes are missing and what they showed is wrong"


def _mend_jpeg(data: bytes) -> tuple[bytes, str] | None:
    """End a JPEG where its last scan has all its coefficients and reaches the last blocks of the image."""
    components, scan = _walk_jpeg(data)
    if not components or not scan:
        return None
    covered, end = set(), scan
    # in the coded pixels 255 is never followed by 218
    for found in re.finditer(b"\xff\xda", data[scan:]):
        start = scan + found.start()
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        header = data[start + 4 : end]
        if len(header) < 6 or len(header) != 4 + 2 * header[0]:
            return None
        first, last, precision = header[-3:]
        if precision % 16 == 0:  # the lowest bit is in this scan
            covered |= {(name, index) for name in header[1:-3:2] for index in range(first, last + 1)}
    if len(covered) < 64 * components:
        return None
    # What the last 1 % of the scan changes lies where it ends; the decoder fills what is missing with grey.
    last_bytes = max(16, (len(data) - end) // 100)
    if len(data) - end < last_bytes:
        return None
    changed = (_decode(data + _JPEG_END) != _decode(data[:-last_bytes] + _JPEG_END)).any(2)  # (H, W)
    rows, columns = np.nonzero(changed)
    blocks_across, blocks_down = (math.ceil(side / BLOCK_PX) for side in changed.shape[::-1])
    num_blocks = blocks_across * blocks_down
    rows, columns = (rows + 2) // BLOCK_PX, (columns + 2) // BLOCK_PX  # colours reach into the blocks before
    first = int((rows * blocks_across + columns).min(initial=num_blocks))
    if first + 2 < LEAST_FRACTION * num_blocks:
        return None
    return data + _JPEG_END, "its last bytes are missing; its lower right corner may be grey"


def _walk_jpeg(data: bytes) -> tuple[int, int]:
    """Return the number of components and the place of the first scan, 0 where there is none."""
    place, components = 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDA:
            return components, place
        if 0xC0 <= marker <= 0xC2 and place + 9 < len(data):
            components = data[place + 9]
        place += 1 if marker == 0xFF else 2 + length
    return components, 0


def _decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.array(image.convert("RGB"))


def _mend_png(data: bytes) -> tuple[bytes, str] | None:
    """Keep a PNG's pixels and the chunks that they need; rows that are missing repeat the last one."""
    kept, packed = [], b""
    for kind, content, is_whole in _chunks(data):
        if kind == b"IDAT":
            packed += content
        elif kind in _NEEDED_CHUNKS and is_whole and not packed:
            kept.append((kind, content))
    if not kept or kept[0][0] != b"IHDR" or not packed:
        return None
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", kept[0][1])
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colours, 0)
    row_bytes = 1 + math.ceil(width * samples * depth / 8)
    total, rows = row_bytes * height, bytearray()
    if width * height > 2 * Image.MAX_IMAGE_PIXELS or interlaced:
        return None
    decoder = zlib.decompressobj()
    for start in range(0, len(packed), 256):  # an error costs no more than what was read last
        try:
            rows += decoder.decompress(packed[start : start + 256], total - len(rows) + 1)
        except zlib.error:
            break
        if len(rows) >= total:
            break
    if len(rows) < LEAST_FRACTION * total:
        return None
    del rows[len(rows) // row_bytes * row_bytes :], rows[total:]
    rows += (_REPEAT_ROW + bytes(row_bytes - 1)) * (height - len(rows) // row_bytes)
    chunks = [*kept, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return _PNG + b"".join(parts), "parts of it are damaged or its last bytes are missing; they are left out"


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield kind, content and whether it is whole of each chunk of a PNG."""
    place = len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content, checksum = data[place + 8 : place + 8 + length], data[place + 8 + length : place + 12 + length]
        yield kind, content, checksum == struct.pack(">I", zlib.crc32(kind + content))
        place += 12 + length


def _convert_tiff(data: bytes) -> tuple[bytes, str] | None:
    """Decode a TIFF with OpenCV, which fails on those to be turned."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    if tags[_WIDTH] * tags[_HEIGHT] > 2 * Image.MAX_IMAGE_PIXELS:
        return None
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        return None
    note = "is decoded without its colour profile and other metadata"
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            return None
        array = (array * 65535).round().astype(np.uint16)
        note = "its float values are taken as 0 black to 1 white of sRGB; linear ones look dark"
    _, encoded = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return encoded.tobytes(), note
