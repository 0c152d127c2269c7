"""Clip sets side by side: how much moves at which frequency, and what the sets hold."""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cli.parser import UsageError
from data.clips import STORED_BINS, ClipRow, ClipSet
from evaluation import out_folder
from motion.spectrum import amplitude, bin_frequencies_hz

logger = logging.getLogger(__name__)

# Bins of which one set has more than so many times the amplitude of another are named below the table.
AGREEMENT_FACTOR = 2.0
WATCHED_BINS = 16


@dataclass
class SetMetrics:
    """What is measured of the clips of one set.

    Attributes:
        name: of its columns.
        rows: the clips.
        amplitude_px: of each clip, (24,) mean over pixels of |S_k| (bin 0: of the drift), weighted by confidence.
        confidence: of each clip, mean over pixels.
        period_s: period of the spectra.
    """

    name: str
    rows: Sequence[ClipRow]
    period_s: float
    amplitude_px: list[Tensor] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)

    def add(self, spectrum: Tensor, confidence: Tensor) -> None:
        """Measure a clip's spectrum (24, 4, H, W) px with confidence (1, H, W)."""
        size = amplitude(spectrum)  # (24, H, W)
        # Flow that could not be seen was set to zero: where the loss does not look, the mean does not either.
        self.amplitude_px.append((size * confidence).sum((1, 2)) / confidence.sum().clamp(min=1e-6))
        self.confidence.append(float(confidence.mean()))

    def mean_px(self) -> list[float]:
        """Return the mean over clips, of each bin."""
        return torch.stack(self.amplitude_px).mean(0).tolist()

    def median_px(self) -> list[float]:
        """Return the median over clips, of each bin: a few clips of wild motion do not decide it."""
        return torch.stack(self.amplitude_px).quantile(0.5, dim=0).tolist()

    def summary(self) -> dict[str, Any]:
        """Return the row of the table of sets."""
        return {
            "row": self.name,
            "clips": len(self.rows),
            "source_files": len({row.source for row in self.rows}),
            "moving_fraction": statistics.fmean(row.moving_fraction for row in self.rows),
            "median_flow_px": statistics.fmean(row.median_flow_px for row in self.rows),
            "confidence": statistics.fmean(self.confidence),
        }


def measure_set(
    name: str, clip_set: ClipSet, rows: Sequence[ClipRow], progress: Callable[[Sequence[ClipRow]], Iterable[ClipRow]]
) -> SetMetrics:
    """Measure the clips `rows` of a set; `progress` passes them on, with a bar perhaps."""
    figures = SetMetrics(name, rows, float(clip_set.statistics.get("period_s", 5.0)))
    for row in progress(rows):
        figures.add(*clip_set.spectrum(row.id, STORED_BINS))
    return figures


def bin_rows(sets: Sequence[SetMetrics]) -> list[dict[str, Any]]:
    """Return the table of bins: mean amplitude of each set, its ratio to the first set's, then medians over clips."""
    frequency = bin_frequencies_hz(STORED_BINS, sets[0].period_s).tolist()
    means, medians = [figures.mean_px() for figures in sets], [figures.median_px() for figures in sets]
    rows = []
    for k in range(STORED_BINS):
        row: dict[str, Any] = {"row": f"bin {k:02d}" if k else "bin 00 (drift)", "frequency_hz": frequency[k]}
        row |= {f"{figures.name}_px": mean[k] for figures, mean in zip(sets, means, strict=True)}
        for label, values in (("ratio", means), ("median_ratio", medians)):
            if label == "median_ratio":
                row |= {f"{figures.name}_median_px": value[k] for figures, value in zip(sets, values, strict=True)}
            for figures, value in list(zip(sets, values, strict=True))[1:]:
                ratio = value[k] / values[0][k] if values[0][k] > 0 else None
                row[_ratio_column(figures, sets[0], label)] = ratio
        rows.append(row)
    return rows


def _ratio_column(figures: SetMetrics, first: SetMetrics, label: str) -> str:
    return f"{label}_{figures.name}_to_{first.name}"


def disagreement(rows: Sequence[Mapping[str, Any]], sets: Sequence[SetMetrics]) -> list[str]:
    """Say for each further set which of the first 16 bins differ from the first set's by more than a factor of 2."""
    lines = []
    for figures in sets[1:]:
        for label in ("ratio", "median_ratio"):
            ratios = [row[_ratio_column(figures, sets[0], label)] for row in rows[:WATCHED_BINS]]
            apart = [
                f"{k} ({ratio:.2f})" if ratio is not None else f"{k} (nothing moves)"
                for k, ratio in enumerate(ratios)
                if ratio is None or not 1 / AGREEMENT_FACTOR <= ratio <= AGREEMENT_FACTOR
            ]
            what = "mean" if label == "ratio" else "median"
            lines.append(
                f"{what} over clips, {figures.name} to {sets[0].name}: of the first {WATCHED_BINS} bins "
                + (f"{len(apart)} differ by more than a factor of {AGREEMENT_FACTOR:g}: " if apart else "all agree ")
                + (", ".join(apart) if apart else f"within a factor of {AGREEMENT_FACTOR:g}")
            )
    return lines


def make_table(args: argparse.Namespace) -> int:
    """Measure the sets, print the tables of bins and of sets, and write them to --out and --out/sets."""
    from tqdm import tqdm

    from data.clips import ClipSet, choose_rows, column_names
    from metrics.images import write_results

    # Early checks
    out = out_folder(args, "data")
    clip_sets = [ClipSet(folder) for folder in args.data]
    try:
        names = column_names(args.data)
    except ValueError as error:
        raise UsageError(f"--data: {error}; name each once") from error
    split = None if args.split == "all" else args.split
    chosen = [choose_rows(clip_set, split, args.clips, args.seed) for clip_set in clip_sets]

    # Measure
    sets = []
    for name, clip_set, rows in zip(names, clip_sets, chosen, strict=True):
        bar = functools.partial(tqdm, desc=name, unit="clip", disable=None, dynamic_ncols=True)
        sets.append(measure_set(name, clip_set, rows, bar))
    periods = {figures.period_s for figures in sets}
    if len(periods) > 1:
        raise UsageError(f"--data: the sets have different periods, {sorted(periods)} s; their bins do not compare")

    # Write
    table, summary = bin_rows(sets), [figures.summary() for figures in sets]
    notes = [
        f"data: {', '.join(map(str, args.data))}, split {args.split}, kept clips: "
        + ", ".join(f"{row['row']} {row['clips']} of {row['source_files']} source files" for row in summary),
        "amplitude: |S_k| over both directions (bin 0: the drift), px of the motion grid; mean over the pixels of a "
        "clip weighted by confidence, then mean (and median) over clips",
        *disagreement(table, sets),
        f"seed {args.seed} (choice of clips); computed on the CPU",
        f"command: {args.command}",
    ]
    print(write_results(out / "sets", summary, title="Clip sets", notes=notes[:1] + notes[-2:]))
    print(write_results(out, table, title="Mean amplitude per bin", notes=notes))
    logger.info("written to %s", out)
    return 0
