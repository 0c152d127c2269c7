"""Contact sheets of clip sets: frame 0, how far each pixel moves, and an X-t slice, for a person to look at."""

from __future__ import annotations

from pathlib import Path

import torch

from data.clips import KEPT, PAIRS_ONLY, ClipRow, ClipSet
from data.media import contact_sheet, read_image, write_image
from data.visualisation import CELL_WIDTH, _moved_slice, title_strip
from motion.flow import magnitude, resize_maps
from motion.spectrum import mean_displacement

# what the sheet shows white, px
WHITE_PX = 8.0


def write_contact_sheet(clip_set: ClipSet, *, max_clips: int = 24, columns: int = 2) -> Path | None:
    """Write contact.png: clips spread over the set, three pictures each, under their names.

    Frame 0; the mean displacement from black (0 px) over red and yellow to white (8 px), by its square root so that
    small motion is seen beside large; and the X-t slice of the row that moves most, time downwards. Real clips show
    their own frames there. Rendered ones, which store none, show frame 0 moved along their spectrum.

    Returns:
        The file, or None where the set has no clip to show.
    """
    rows = clip_set.rows(status=(KEPT, PAIRS_ONLY))
    rows = [row for row in rows if row.status == KEPT or clip_set.has_pairs(row.id)]
    cells = [_cells(clip_set, row) for row in rows[:: max(1, -(-len(rows) // max_clips))]]
    if not cells:
        return None
    path = clip_set.folder / "contact.png"
    write_image(path, contact_sheet([sum(cells[i : i + columns], []) for i in range(0, len(cells), columns)]))
    return path


def _cells(clip_set: ClipSet, row: ClipRow) -> list[torch.Tensor]:
    picture = clip_set.first(row.id)
    if row.status == KEPT:
        spectrum = clip_set.spectrum(row.id)[0]
        displacement = mean_displacement(spectrum)  # (1, H, W)
    else:
        spectrum = None
        displacement = torch.stack([magnitude(pair.flow) for pair in clip_set.pairs(row.id)[0]]).mean(0)
    heat = (displacement / WHITE_PX).clamp(0, 1).sqrt() * 3
    ramp = torch.cat([heat, heat - 1, heat - 2]).clamp(0, 1)  # (3, H, W)
    section = clip_set.folder / "slices" / f"{row.id}.png"
    if section.is_file():
        section = read_image(section)  # (3, T, W)
    elif spectrum is not None:
        section = _moved_slice(picture, spectrum, displacement)
    else:
        section = torch.ones_like(picture)
    height = max(1, round(CELL_WIDTH * picture.shape[-2] / picture.shape[-1]))
    size = (height, CELL_WIDTH)
    shown = [resize_maps(image, size) for image in (picture, ramp, section)]
    titles = (row.id, _caption(row), "")
    return [torch.cat([title_strip(text), image], 1) for text, image in zip(titles, shown, strict=True)]


def _caption(row: ClipRow) -> str:
    return f"{row.split} {row.median_flow_px:.2f}px {row.moving_fraction:.0%}"
