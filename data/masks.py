"""Photographs with checked masks of what can move in them."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.files import MediaError, check_input_file
from data.media import list_images, read_image, use_image
from data.tables import read_table

# Values of a mask.
MOVABLE, UNSURE, STATIC = 255, 128, 0
# Sides of mask and photograph may differ in aspect by this factor: masks are smaller, and their sides rounded.
ASPECT_TOLERANCE = 1.02


class MaskedPhotograph(NamedTuple):
    """A photograph and its mask; photographs of one source (a repository, a place) are not independent."""

    path: Path
    mask_path: Path | None  # None: nothing can move
    source: str
    subject: str = ""

    def fingerprint(self) -> list[str]:
        """Return hashes of the files' bytes, wherever they lie."""
        paths = [path for path in (self.path, self.mask_path) if path is not None]
        return [hashlib.sha256(check_input_file(path, "a photograph").read_bytes()).hexdigest() for path in paths]

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the photograph (3, H, W) in [0, 1] and its mask (1, h, w) of 0, 128 and 255; MediaError if wrong."""
        image = read_image(self.path)
        if self.mask_path is None:
            return image, torch.full((1, *image.shape[-2:]), STATIC, dtype=torch.uint8)
        mask = read_placement_mask(self.mask_path)
        (height, width), (mask_height, mask_width) = image.shape[-2:], mask.shape[-2:]
        ratio = mask_width * height / (mask_height * width)
        if not 1 / ASPECT_TOLERANCE <= ratio <= ASPECT_TOLERANCE:
            sizes = f"is {mask_width} x {mask_height} px, the photograph {width} x {height}"
            raise MediaError(f"{self.mask_path}: {sizes}; right: the same aspect")
        return image, mask


def read_placement_mask(path: str | Path) -> torch.Tensor:
    """Read a grey mask of 255 (can move), 0 (cannot) and 128 (unsure) as (1, H, W) bytes; MediaError for another."""
    mode, values = use_image(Path(path), lambda image, _: (image.mode, np.array(image)))
    if mode != "L":
        raise MediaError(f"{path}: has colour mode {mode}; right: grey, 8 bits")
    strange = set(np.unique(values).tolist()) - {MOVABLE, UNSURE, STATIC}
    if strange:
        raise MediaError(f"{path}: holds {sorted(strange)[:4]}; right: 255 (can move), 0 (cannot) and 128 (unsure)")
    return torch.from_numpy(values)[None]


def find_masked_photographs(
    photos: str | Path,
    masks: str | Path,
    table: str | Path | None = None,
    split: str | None = None,
    *,
    may_be_empty: bool = False,
) -> list[MaskedPhotograph]:
    """List the photographs of a folder that have a mask, PNG files of the same name in another folder.

    `table`, a CSV of file, source and, for `split` (None: all), split; without it each photograph is its own source.
    MediaError for a mask without photograph, two photographs of one name, a wrong table, or none unless `may_be_empty`.
    """
    needed = ("path", "source", "split") if split else ("path", "source")
    rows = {Path(row["path"]).name: row for _, row in read_table(table, needed=needed)} if table else {}
    paths: dict[str, Path] = {}
    for path in list_images(photos):
        if paths.setdefault(path.stem, path) != path:
            raise MediaError(f"{path}: {paths[path.stem].name} has the same name; right: one photograph for a mask")
    found = []
    for mask in list_images(masks):
        if mask.stem not in paths:
            raise MediaError(f"{mask}: no photograph of this name in {photos}; right: masks of photographs there")
        path = paths[mask.stem]
        row = rows.get(path.name, {})
        if split is None or row.get("split") == split:
            found.append(MaskedPhotograph(path, mask, row.get("source") or path.stem, row.get("subject") or ""))
    if not found and not may_be_empty:
        raise MediaError(f"{photos}: no photograph of split {split or 'any'} with a mask in {masks}")
    return found
