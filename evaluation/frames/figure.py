"""A figure of the paired differences of `evaluate.py frames`: what is ahead of what, by motion and by holes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from data.files import atomic_path
from evaluation.frames.statistics import Row

METRIC = "psnr_db"
LABELS = {"motion_px": "mean motion, px of 256 x 160", "time_s": "time from frame 0, s", "hole_percent": "holes, %"}


def write_differences(path: Path, buckets: Mapping[str, Sequence[Row]]) -> None:
    """Write a PNG with a panel for each of {column: rows of `FrameTables.paired_buckets`} and a line for each pair.

    Bars are the 95 % intervals over sources.
    """
    figure = Figure(figsize=(4.5 * len(buckets), 3.6), layout="constrained")
    panels = figure.subplots(1, len(buckets), sharey=True, squeeze=False)[0]
    for panel, (column, rows) in zip(panels, buckets.items(), strict=True):
        rows = [row for row in rows if row["metric"] == METRIC]
        places = {name: place for place, name in enumerate(dict.fromkeys(row[column] for row in rows))}
        pairs = list(dict.fromkeys(row["row"] for row in rows))
        for number, pair in enumerate(pairs):
            of_pair = [row for row in rows if row["row"] == pair]
            x = [places[row[column]] + 0.08 * (number - len(pairs) / 2) for row in of_pair]
            y = [row["difference"] for row in of_pair]
            # a single source has no interval
            ends = [[abs((row[end] if row[end] is not None else at) - at) for row, at in zip(of_pair, y, strict=True)]
                    for end in ("low", "high")]  # fmt: skip
            panel.errorbar(x, y, yerr=ends, marker="o", markersize=3, linewidth=1, capsize=2, label=pair)
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set_xticks(list(places.values()), list(places), fontsize=7)
        panel.set_xlabel(LABELS[column])
    panels[0].set_ylabel("difference of PSNR, dB")
    panels[-1].legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
