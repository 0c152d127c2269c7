"""What `evaluate.py video` computes: FID, KID, FVD and DTFVD of generated videos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation import EvaluationError
from evaluation.video.networks import FeatureNetwork
from evaluation.video.sources import ClipVideos
from metrics.frechet import GaussianStatistics, frechet_distance, kernel_distance

REAL_ROW, STATIC_ROW = "real", "frame 0 repeated"
# A covariance takes two.
FEWEST_SAMPLES = 2

COLUMN_NOTES = (
    "fid (single frames, frame 0 included), fvd_N, dtfvd_N (windows of N frames that touch): squared Frechet distance "
    "in float64 between the Gaussians of real and generated features",
    "kid: squared MMD under the kernel (x.y / D + 1)^3, mean and standard deviation over 100 subsets of at most 1000 "
    "frames",
    "compare a metric only with others of the same network file, crop and counts",
)


class VideoComparison:
    """Real videos against each way (row) of generating them, over networks {"fid" | "fvd" | "dtfvd": network}.

    `windows` are the frames of the windows of fvd and dtfvd, `batch_size` images or windows in one pass of a network.
    """

    def __init__(
        self, rows: Sequence[str], networks: dict[str, FeatureNetwork], *,
        windows: Sequence[int] = (16, 32), batch_size: int = 8, seed: int = 0,
    ) -> None:  # fmt: skip
        self.rows, self.networks, self.windows = [*rows, STATIC_ROW], networks, windows
        self.batch_size, self.seed = batch_size, seed
        self.lengths: list[int] = []
        # {(row, metric, frames of a window): statistics}, and all features of frames
        self.statistics: dict[tuple[str, str, int], GaussianStatistics] = defaultdict(GaussianStatistics)
        self.features: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, clip: ClipVideos) -> None:
        """Measure one clip in every way."""
        static = clip.real[:1].expand_as(clip.real)
        for row, frames in {REAL_ROW: clip.real, **clip.generated, STATIC_ROW: static}.items():
            for metric, network in self.networks.items():
                if metric == "fid":
                    self.features[row].append(network(frames, batch_size=self.batch_size))  # (T, D)
                    self.statistics[row, "fid", 1].add(self.features[row][-1])
                    continue
                for window in self.windows:
                    count = len(frames) // window
                    if count:
                        parts = torch.stack(frames[: count * window].split(window))  # (n, window, 3, H, W)
                        self.statistics[row, metric, window].add(network(parts, batch_size=self.batch_size))
        self.lengths.append(len(clip.real))

    def count(self, window: int) -> int:
        """Return the number of windows of so many frames."""
        return sum(length // window for length in self.lengths)

    def check_counts(self) -> None:
        """Raise EvaluationError where the videos have too few frames or windows for a covariance."""
        if sum(self.lengths) < FEWEST_SAMPLES:
            raise EvaluationError(f"frames: {sum(self.lengths)} frames in all; right: at least {FEWEST_SAMPLES}")
        for window in self.windows if self.networks.keys() - {"fid"} else ():
            if self.count(window) < FEWEST_SAMPLES:
                problem = f"{self.count(window)} windows of {window} frames in {len(self.lengths)} videos"
                raise EvaluationError(f"windows {window}: {problem}; right: smaller windows, or more videos")

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each way; a metric is None where its network is missing."""
        rows = []
        for name in self.rows:
            row: dict[str, Any] = {"row": name, "fid": self._distance(name, "fid", 1), "kid": None}
            row["kid_deviation"] = None
            if self.features:
                real, found = (torch.cat(self.features[of]) for of in (REAL_ROW, name))
                row["kid"], row["kid_deviation"] = kernel_distance(real, found, seed=self.seed)
            for metric in ("fvd", "dtfvd"):
                row |= {f"{metric}_{window}": self._distance(name, metric, window) for window in self.windows}
            row |= {"videos": len(self.lengths), "frames": sum(self.lengths)}
            has_windows = bool(self.networks.keys() - {"fid"})
            row |= {f"windows_{window}": self.count(window) if has_windows else None for window in self.windows}
            rows.append(row)
        return rows

    def _distance(self, row: str, metric: str, window: int) -> float | None:
        if metric not in self.networks:
            return None
        return frechet_distance(self.statistics[REAL_ROW, metric, window], self.statistics[row, metric, window])

    def bias_notes(self) -> list[str]:
        """Name the metrics of which the covariance is singular, so that they are too large."""
        notes = []
        for (row, metric, window), found in self.statistics.items():
            dimension = len(found.mean)
            if row == REAL_ROW and found.count <= dimension:
                name = metric if window == 1 else f"{metric}_{window}"
                counts = f"{found.count} samples for {dimension} features"
                notes.append(f"{name}: {counts}, so the covariance is singular and the distance too large")
        return notes

    def notes(self) -> list[str]:
        """Give the counts and the networks."""
        lengths = f"{len(self.lengths)} videos of {min(self.lengths)} to {max(self.lengths)} frames"
        networks = "; ".join(f"{metric}: {network.name}" for metric, network in self.networks.items())
        return [f"counts: {lengths}, {sum(self.lengths)} frames; networks: {networks}", *self.bias_notes()]
