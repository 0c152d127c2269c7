"""Clip sets of noise that tests make, and the files of a folder."""

from __future__ import annotations

import torch

from data.clip_writer import ClipContent, ClipSetWriter
from data.clips import STORED_BINS, ClipRow, ClipSet, Pair
from motion.spectrum import truncate

SIZE = (32, 48)


def random_content(seed: int, size=SIZE, pairs: int = 2) -> ClipContent:
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(STORED_BINS, 4, *size, generator=generator)
    spectrum = truncate(spectrum, STORED_BINS)
    targets = [
        Pair(
            torch.rand(3, *size, generator=generator),
            torch.randn(2, *size, generator=generator),
            torch.rand(1, *size, generator=generator),
            0.5 * (i + 1),
        )
        for i in range(pairs)
    ]
    first = torch.rand(3, *size, generator=generator)
    return ClipContent(first, spectrum, torch.rand(1, *size, generator=generator), tuple(targets))


def make_set(folder, clips: int = 4, **kwargs) -> ClipSet:
    with ClipSetWriter(folder, {"made_of": "noise"}) as writer:
        for i in range(clips):
            row = ClipRow(f"clip{i}", f"video{i}.mp4", split="test" if i == 3 else "train", fps=25.0, frames=125)
            writer.write(row, random_content(i, **kwargs))
        return writer.finish()


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
