"""Describe a clip set: a few lines on what it holds, and a contact sheet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from data.clips import DROPPED, KEPT, PAIRS_ONLY, ClipRow, ClipSet
from data.media import contact_sheet, read_image, write_image
from data.visualisation import heat_image, title_strip, x_t_slice
from motion.flow import magnitude, resize_maps
from motion.spectrum import mean_displacement

CELL_WIDTH_PX = 128
# what the sheet shows white, px
WHITE_PX = 8.0


def describe_set(clip_set: ClipSet) -> list[str]:
    """Return lines: clips by status and split, each cause of a drop with an example, and the whole."""
    rows = clip_set.rows(status=(KEPT, PAIRS_ONLY, DROPPED))
    counts = Counter((row.status, row.split) for row in rows)
    lines = [f"{count:6d} {status:10} {split}" for (status, split), count in sorted(counts.items())]
    dropped = {row.reason.split(":")[0]: row for row in rows if row.status == DROPPED}
    lines += [f"dropped {row.id}: {row.reason}" for row in dropped.values()]
    causes = Counter(row.reason.split(":")[0] for row in rows if row.status == DROPPED)
    why = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    return [*lines, f"{clip_set.folder}: {len(rows)} clips" + (f" ({why})" if why else "")]


def write_contact_sheet(clip_set: ClipSet, *, max_clips: int = 24, columns: int = 2) -> Path | None:
    """Write contact.png: clips spread over the set, three images each, under their names; None without clips.

    Frame 0; the mean displacement from black (0 px) to white (8 px); and the X-t slice of the row that moves most, time
    downwards. Rendered clips store no frames: there frame 0 is moved along the spectrum.
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
    image, section = clip_set.first(row.id), torch.ones(3, 1, 1)
    if row.status == KEPT:
        spectrum = clip_set.spectrum(row.id)[0]
        displacement, section = mean_displacement(spectrum), x_t_slice(image, spectrum)
    else:
        displacement = torch.stack([magnitude(pair.flow) for pair in clip_set.pairs(row.id)[0]]).mean(0)
    own_slice = clip_set.folder / "slices" / f"{row.id}.png"
    if own_slice.is_file():
        section = read_image(own_slice)  # (3, T, W)
    size = (max(1, round(CELL_WIDTH_PX * image.shape[-2] / image.shape[-1])), CELL_WIDTH_PX)
    titles = (row.id, f"{row.split} {row.median_flow_px:.2f}px {row.moving_fraction:.0%}", "")
    shown = (image, heat_image(displacement, WHITE_PX), section)
    return [
        torch.cat([title_strip(text, CELL_WIDTH_PX), resize_maps(cell, size)], 1)
        for text, cell in zip(titles, shown, strict=True)
    ]
