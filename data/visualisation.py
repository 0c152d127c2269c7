"""Images of motion for sheets and logs, and the report of a clip set."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.storage import exists, local_input, url_of
from data.clips import DROPPED, KEPT, PAIRS_ONLY, ClipRow, ClipSet
from data.media import contact_sheet, from_bytes, read_image, to_bytes, write_image
from data.order import evenly
from motion.flow import magnitude, resize_maps
from motion.spectrum import amplitude, mean_displacement, spectrum_to_flow

TITLE_HEIGHT_PX = 11
_TITLE_CHARACTER_PX = 16 / 3
FULL_PX = 4.0  # the displacement that is shown in full
# the contact sheet: how many clips at most, in columns; its cells, and the displacement shown white
SHEET_CLIPS, SHEET_COLUMNS = 24, 2
CELL_WIDTH_PX, WHITE_PX = 128, 8.0


def magnitude_image(displacement: Tensor, full_px: float = FULL_PX) -> Tensor:
    """Show mean displacement (1, H, W), px, as a grey image (3, H, W): white is `full_px`, on a square-root scale."""
    return (displacement / full_px).clamp(0, 1).sqrt().expand(3, -1, -1)


def heat_image(displacement: Tensor, full_px: float = FULL_PX) -> Tensor:
    """Show the same from black (0 px) over red and yellow to white (`full_px`): (3, H, W)."""
    red = 3 * magnitude_image(displacement, full_px)[:1]
    return torch.cat([red, red - 1, red - 2]).clamp(0, 1)


def magnitude_over(image: Tensor, displacement: Tensor, full_px: float = FULL_PX) -> Tensor:
    """Lay mean displacement (1, H, W), px, as heat over the greyed image (3, H, W)."""
    level = magnitude_image(displacement, full_px)[:1]  # (1, H, W)
    return image.mean(0, keepdim=True) * (1 - level) + heat_image(displacement, full_px) * level


def spectrum_bars(spectrum: Tensor) -> Tensor:
    """Draw each bin's mean amplitude of (K, 4, H, W), px, as a black bar, FULL_PX high at most: (3, H, W / 2)."""
    height, width = spectrum.shape[-2], spectrum.shape[-1] // 2
    level = (amplitude(spectrum).mean((-2, -1)) / FULL_PX).clamp(0, 1).sqrt()  # (K,)
    bin_of_column = torch.arange(width) * len(level) // width  # (W / 2,)
    from_bottom = torch.arange(height, 0, -1)[:, None]  # (H, 1)
    free = from_bottom > (level * height).round()[bin_of_column]  # (H, W / 2)
    free = free | (torch.diff(bin_of_column, prepend=torch.tensor([-1])) > 0)  # a gap of a column between bars
    return free.float().expand(3, -1, -1)


def most_moving_row(displacement: Tensor) -> int:
    """Return which row of mean displacement (1, H, W) moves most."""
    return int(displacement[0].mean(1).argmax())


def x_t_slice(image: Tensor, spectrum: Tensor, num_frames: int = 150) -> Tensor:
    """Show the row of an image (3, H, W) that moves most in one period, looked up at p - F_t(p), time downwards."""
    height, width = image.shape[-2:]
    row = most_moving_row(mean_displacement(spectrum))
    flow = spectrum_to_flow(spectrum[:, :, row : row + 1], torch.arange(num_frames) / num_frames)[:, :, 0]  # (N, 2, W)
    x, y = torch.arange(width) - flow[:, 0], row - flow[:, 1]  # (N, W)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)  # (N, W, 2)
    lines = F.grid_sample(image[None], grid[None], align_corners=True, padding_mode="border")[0]  # (3, N, W)
    return resize_maps(lines, (height, width))


def titled(text: str, image: Tensor) -> Tensor:
    """Write as much of a line of text as fits above an image (3, H, W), dark on white."""
    width = image.shape[-1]
    strip = np.ascontiguousarray(to_bytes(torch.ones(3, TITLE_HEIGHT_PX, width)))  # (h, w, 3)
    text = text[: int(width / _TITLE_CHARACTER_PX)]
    cv2.putText(strip, text, (1, TITLE_HEIGHT_PX - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (0, 0, 0), 1, cv2.LINE_8)
    return torch.cat([from_bytes(strip), image], 1)


def describe_set(clip_set: ClipSet) -> list[str]:
    """Return lines: clips by status and split, each cause of a drop with an example, and the whole."""
    rows = clip_set.rows(status=(KEPT, PAIRS_ONLY, DROPPED))
    counts = Counter((row.status, row.split) for row in rows)
    lines = [f"{count:6d} {status:10} {split}" for (status, split), count in sorted(counts.items())]
    dropped = {row.reason.split(":")[0]: row for row in rows if row.status == DROPPED}
    lines += [f"dropped {row.id}: {row.reason}" for row in dropped.values()]
    causes = Counter(row.reason.split(":")[0] for row in rows if row.status == DROPPED)
    why = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    return [*lines, f"{url_of(clip_set.folder) or clip_set.folder}: {len(rows)} clips" + (f" ({why})" if why else "")]


def write_contact_sheet(clip_set: ClipSet) -> Path | None:
    """Write contact.png: frame 0, mean displacement (white: 8 px) and X-t slice of some clips; None for no clip."""
    rows = clip_set.rows_with_motion()
    cells = [_cells(clip_set, rows[index]) for index in evenly(len(rows), SHEET_CLIPS)]
    if not cells:
        return None
    path = clip_set.folder / "contact.png"
    lines = [sum(cells[start : start + SHEET_COLUMNS], []) for start in range(0, len(cells), SHEET_COLUMNS)]
    write_image(path, contact_sheet(lines))
    return path


def _cells(clip_set: ClipSet, row: ClipRow) -> list[Tensor]:
    image, section = clip_set.first(row.id), torch.ones(3, 1, 1)
    if row.status == KEPT:
        spectrum = clip_set.spectrum(row.id)[0]
        displacement, section = mean_displacement(spectrum), x_t_slice(image, spectrum)
    else:
        displacement = torch.stack([magnitude(pair.flow) for pair in clip_set.pairs(row.id)[0]]).mean(0)
    own_slice = clip_set.folder / "slices" / f"{row.id}.png"
    if exists(own_slice):
        with local_input(own_slice) as file:
            section = read_image(file)  # (3, T, W)
    size = (max(1, round(CELL_WIDTH_PX * image.shape[-2] / image.shape[-1])), CELL_WIDTH_PX)
    titles = (row.id, f"{row.split} {row.median_flow_px:.2f}px {row.moving_fraction:.0%}", "")
    shown = (image, heat_image(displacement, WHITE_PX), section)
    return [titled(text, resize_maps(cell, size)) for text, cell in zip(titles, shown, strict=True)]
