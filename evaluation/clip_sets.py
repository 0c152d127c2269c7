"""evaluate.py data: clip sets side by side, how much moves at which frequency, and how many clips there are."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.clips import STORED_BINS, ClipRow, ClipSet, choose_rows, distinct_names
from evaluation import EvaluationError, Report, Row
from metrics.motion import weighted_mean
from motion.spectrum import amplitude, bin_frequencies_hz

AMPLITUDE_NOTE = (
    "amplitude: |S_k| over both directions (bin 0: the drift), px of the motion grid; mean over the pixels of a clip "
    "weighted by confidence, then mean (and median) over clips"
)


def make_table(report: Report, *, data: list[Path], split: str, clips: int | None, seed: int) -> bool:
    # Early checks
    clip_sets = [ClipSet(folder) for folder in data]
    names = distinct_names(data, "data")
    periods = sorted({float(clip_set.statistics.get("period_s", 5.0)) for clip_set in clip_sets})
    if len(periods) > 1:
        raise EvaluationError(f"data: the sets have different periods, {periods} s; their bins do not compare")
    chosen = [choose_rows(clip_set, None if split == "all" else split, clips, seed) for clip_set in clip_sets]

    # Measure
    amplitudes_px, summary = {}, []
    for name, clip_set, rows in zip(names, clip_sets, chosen, strict=True):
        amplitudes_px[name], row = measure_set(clip_set, rows, name)
        summary.append(row)

    # Write
    counts = [f"{row['row']} {row['clips']} of {row['source_files']} source files" for row in summary]
    notes = [f"data: {', '.join(map(str, data))}, split {split}, kept clips: {', '.join(counts)}"]
    notes += [f"seed {seed} (choice of clips)"]
    report.add(summary, "Clip sets", notes, folder="sets")
    report.add(bin_rows(amplitudes_px, periods[0]), "Mean amplitude per bin", [AMPLITUDE_NOTE, *notes])
    return True


def measure_set(clip_set: ClipSet, rows: Sequence[ClipRow], name: str) -> tuple[Tensor, Row]:
    """Return the amplitudes (clips, 24), px, of a set's clips, and its row of the table of sets."""
    amplitudes_px, confidences = [], []
    for row in tqdm(rows, desc=name, unit="clip", disable=None, dynamic_ncols=True):
        spectrum, confidence = clip_set.spectrum(row.id, STORED_BINS)  # (24, 4, H, W), (1, H, W)
        # Flow that could not be seen was set to zero.
        amplitudes_px.append(weighted_mean(amplitude(spectrum), confidence))  # (24,)
        confidences.append(float(confidence.mean()))
    summary = {"row": name, "clips": len(rows), "source_files": len({row.source for row in rows})}
    for column in ("moving_fraction", "median_flow_px"):
        summary[column] = statistics.fmean(getattr(row, column) for row in rows)
    return torch.stack(amplitudes_px), summary | {"confidence": statistics.fmean(confidences)}


def bin_rows(amplitudes_px: Mapping[str, Tensor], period_s: float) -> list[Row]:
    """Return a row a bin: mean amplitude of each set and its ratio to the first set's, then the same of medians."""
    first, *others = amplitudes_px
    means = {name: found.mean(0).tolist() for name, found in amplitudes_px.items()}
    medians = {name: found.quantile(0.5, dim=0).tolist() for name, found in amplitudes_px.items()}
    rows = []
    for k, frequency_hz in enumerate(bin_frequencies_hz(STORED_BINS, period_s).tolist()):
        row: Row = {"row": f"bin {k:02d}" if k else "bin 00 (drift)", "frequency_hz": frequency_hz}
        for prefix, suffix, values in (("", "px", means), ("median_", "median_px", medians)):
            row |= {f"{name}_{suffix}": value[k] for name, value in values.items()}
            base = values[first][k]
            row |= {f"{prefix}ratio_{name}_to_{first}": values[name][k] / base if base > 0 else None for name in others}
        rows.append(row)
    return rows
