"""Mutated images and CSV files: each is read, or refused in one line that names it; none takes long.

A longer run: FUZZ_FILES=10000 python -m pytest tests/test_fuzz_images.py
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from clip_sets import make_set
from PIL import Image
from test_photographs import P3, encoded, photograph

from data.clips import ClipSetError, read_rows
from data.find_clips import find_clips
from data.masks import read_placement_mask
from data.media import MediaError, read_image, read_image_size

NUM_FILES = int(os.environ.get("FUZZ_FILES", "60"))
LONGEST_S = 10.0


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change, remove, add and cut off bytes, more of them near the beginning."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        place = int(len(changed) * chance.random() ** chance.choice([1, 3]))
        count = chance.choice([1, 4, 40])
        match chance.randrange(5):
            case 0:
                changed[place : place + 1] = bytes([chance.choice([0, 127, 128, 255, chance.randrange(256)])])
            case 1:
                changed[place : place + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b'";\n,'])
            case 2:
                del changed[place : place + count]
            case 3:
                changed[place:place] = chance.randbytes(count)
            case 4:
                del changed[max(1, len(changed) - chance.choice([1, 2, 10, 40, 200, len(changed) // 2])) :]
    return bytes(changed) or b"x"


def fuzz(path, whole: bytes, read: Callable[[], object]) -> None:
    chance = random.Random(0)
    for number in range(NUM_FILES):
        path.write_bytes(mutate(whole, chance))
        began_s = time.monotonic()
        try:
            read()
        except (MediaError, ClipSetError) as error:
            assert "\n" not in str(error) and path.name in str(error), number
        assert time.monotonic() - began_s < LONGEST_S, number


def images() -> dict[str, bytes]:
    image, exif = Image.fromarray(photograph()), Image.Exif()
    exif[0x0112] = 6
    described = {"exif": exif.tobytes(), "icc_profile": P3}
    found = {kind: encoded(image, kind, **described) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF")}
    found |= {kind: encoded(image, kind) for kind in ("GIF", "BMP", "PPM")}
    found["progressive"] = encoded(image, "JPEG", progressive=True)
    found["two images"] = encoded(image, "MPO", save_all=True, append_images=[image])
    found["packed TIFF"] = encoded(image, "TIFF", compression="tiff_lzw")
    found["YCbCr TIFF"] = encoded(image.convert("YCbCr"), "TIFF")
    for name, suffix, pixels in (("PNG", ".png", photograph().astype(np.uint16) * 257),
                                 ("TIFF", ".tif", photograph().astype(np.uint16) * 257),
                                 ("float TIFF", ".tif", photograph().astype(np.float32) / 255)):  # fmt: skip
        found[f"deep {name}"] = cv2.imencode(suffix, pixels)[1].tobytes()
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", images())
def test_mutated_images(tmp_path, kind):
    path = tmp_path / "a.img"

    def read() -> None:
        for function in (read_image_size, read_placement_mask, lambda path: read_image(path, max_side=64)):
            try:
                function(path)
            except MediaError as error:
                assert "\n" not in str(error) and path.name in str(error)

    fuzz(path, images()[kind], read)


def test_mutated_tables(tmp_path):
    rows = [f"clips/é{i}.mp4,{i}.5,2,test,park,clip,ours,CC0" for i in range(5)]
    whole = "\n".join(["path,start,seconds,split,source,kind,origin,licence", *rows, '"a\nb.mp4",,,,,,,'])
    for text in (whole.encode(), whole.replace(",", ";").encode("utf-16")):
        fuzz(tmp_path / "a.csv", text, lambda: find_clips([tmp_path / "a.csv"], [], {}))
    table = make_set(tmp_path / "set", clips=2).folder / "clips.csv"
    fuzz(table, table.read_bytes(), lambda: read_rows(table))
