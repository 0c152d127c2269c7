"""What `evaluate.py video` computes: FID, KID, FVD and DTFVD of generated videos, and how they change along a video."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluation import EvaluationError
from evaluation.video.networks import FeatureNetwork
from evaluation.video.sources import ClipVideos
from metrics.frechet import GaussianStatistics, frechet_distance, kernel_distance

REAL_ROW, STATIC_ROW = "real", "frame 0 repeated"
# [GID] slides windows of so many frames along the videos.
SLIDING_FID_FRAMES, SLIDING_DTFVD_FRAMES = 30, 16
# A covariance takes two.
FEWEST_SAMPLES = 2

COLUMN_NOTES = (
    "fid (single frames, frame 0 included), fvd_N, dtfvd_N (windows of N frames): squared Frechet distance in float64 "
    "between the Gaussians of real and generated features",
    "kid: squared MMD under the kernel (x.y / D + 1)^3, mean and standard deviation over subsets",
    "compare a metric only with others of the same network file, crop and counts",
)


@dataclass(frozen=True)
class Protocol:
    """How videos are cut."""

    windows: Sequence[int] = (16, 32)  # lengths, frames
    window_step: int | None = None  # from one window to the next, frames; None: windows touch
    slide_step: int = 10  # the same for the sliding metrics; 0 leaves them out
    batch_size: int = 8  # images or windows in one pass of a network
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    seed: int = 0  # of the subsets

    def starts(self, num_frames: int, window: int) -> range:
        """Return where the windows of a video begin."""
        return range(0, num_frames - window + 1, self.window_step or window)

    def slides(self, num_frames: int, window: int) -> range:
        """Return where the sliding windows of a video begin."""
        return range(0, num_frames - window + 1, self.slide_step) if self.slide_step else range(0)


class VideoComparison:
    """Real videos against each way (row) of generating them, over networks {"fid" | "fvd" | "dtfvd": network}."""

    def __init__(self, rows: Sequence[str], networks: dict[str, FeatureNetwork], protocol: Protocol) -> None:
        self.rows, self.networks, self.protocol = [*rows, STATIC_ROW], networks, protocol
        self.lengths: list[int] = []
        # {(row, metric, frames of a window): statistics}, the same with a place in time, and all features of frames
        self.statistics: dict[tuple[str, str, int], GaussianStatistics] = defaultdict(GaussianStatistics)
        self.sliding: dict[tuple[str, str, int, int], GaussianStatistics] = defaultdict(GaussianStatistics)
        self.features: dict[str, list[Tensor]] = defaultdict(list)

    def check_counts(self) -> None:
        """Raise EvaluationError where the videos have too few frames or windows for a covariance."""
        if sum(self.lengths) < FEWEST_SAMPLES:
            raise EvaluationError(f"frames: {sum(self.lengths)} frames in all; right: at least {FEWEST_SAMPLES}")
        for window in self.protocol.windows if self.networks.keys() - {"fid"} else ():
            count = sum(len(self.protocol.starts(length, window)) for length in self.lengths)
            if count < FEWEST_SAMPLES:
                problem = f"{count} windows of {window} frames in {len(self.lengths)} videos"
                raise EvaluationError(f"windows {window}: {problem}; right: smaller windows, or more videos")

    def add(self, clip: ClipVideos) -> None:
        """Measure one clip in every way."""
        static = clip.real[:1].expand_as(clip.real)
        for row, frames in {REAL_ROW: clip.real, **clip.generated, STATIC_ROW: static}.items():
            for metric, network in self.networks.items():
                if metric == "fid":
                    self._add_frames(row, frames, network)
                    continue
                slides = self.protocol.slides(len(frames), SLIDING_DTFVD_FRAMES) if metric == "dtfvd" else ()
                for window in sorted({*self.protocol.windows, *([SLIDING_DTFVD_FRAMES] if slides else [])}):
                    self._add_windows(row, frames, network, metric, window, slides)
        self.lengths.append(len(clip.real))

    def _add_frames(self, row: str, frames: Tensor, network: FeatureNetwork) -> None:
        features = network(frames, batch_size=self.protocol.batch_size)  # (T, D)
        self.statistics[row, "fid", 1].add(features)
        self.features[row].append(features)
        for start in self.protocol.slides(len(frames), SLIDING_FID_FRAMES):
            self.sliding[row, "fid", SLIDING_FID_FRAMES, start].add(features[start : start + SLIDING_FID_FRAMES])

    def _add_windows(
        self, row: str, frames: Tensor, network: FeatureNetwork, metric: str, window: int, slides: Sequence[int]
    ) -> None:
        """Add the windows of one length; those of both tables are computed once."""
        apart = self.protocol.starts(len(frames), window) if window in self.protocol.windows else ()
        slides = slides if window == SLIDING_DTFVD_FRAMES else ()
        starts, size = sorted({*apart, *slides}), self.protocol.batch_size
        for part in (starts[at : at + size] for at in range(0, len(starts), size)):
            windows = torch.stack([frames[start : start + window] for start in part])  # (n, window, 3, H, W)
            for start, feature in zip(part, network(windows, batch_size=size).split(1), strict=True):
                if start in apart:
                    self.statistics[row, metric, window].add(feature)
                if start in slides:
                    self.sliding[row, metric, window, start].add(feature)

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each way; a metric is None where its network or its windows are missing."""
        rows = []
        for name in self.rows:
            row: dict[str, Any] = {"row": name, "fid": self._distance(self.statistics, name, "fid", 1)}
            row |= {"kid": None, "kid_deviation": None}
            if self.features:
                real, found = (torch.cat(self.features[of]) for of in (REAL_ROW, name))
                options = {"subsets": self.protocol.kid_subsets, "subset_size": self.protocol.kid_subset_size}
                row["kid"], row["kid_deviation"] = kernel_distance(real, found, seed=self.protocol.seed, **options)
            for metric in ("fvd", "dtfvd"):
                for window in self.protocol.windows:
                    row[f"{metric}_{window}"] = self._distance(self.statistics, name, metric, window)
            row |= {"videos": len(self.lengths), "frames": sum(self.lengths)}
            for window in self.protocol.windows:
                count = sum(len(self.protocol.starts(length, window)) for length in self.lengths)
                row[f"windows_{window}"] = count if self.networks.keys() - {"fid"} else None
            rows.append(row)
        return rows

    def sliding_table(self) -> list[dict[str, Any]]:
        """Return a row for each way and place in time, real and generated windows from the same place."""
        rows = []
        for name in self.rows:
            for start in sorted({start for *_, start in self.sliding}):
                row: dict[str, Any] = {"row": name, "from_frame": start}
                counts = {}
                for metric, window in (("fid", SLIDING_FID_FRAMES), ("dtfvd", SLIDING_DTFVD_FRAMES)):
                    row[f"{metric}_{window}"] = self._distance(self.sliding, name, metric, window, start)
                    counts[metric] = self.sliding[name, metric, window, start].count
                rows.append(row | {"frames": counts["fid"], "windows": counts["dtfvd"]})
        return rows

    @staticmethod
    def _distance(statistics: dict[Any, GaussianStatistics], row: str, *key: str | int) -> float | None:
        real, found = statistics[(REAL_ROW, *key)], statistics[(row, *key)]
        return frechet_distance(real, found) if min(real.count, found.count) >= FEWEST_SAMPLES else None

    def bias_notes(self) -> list[str]:
        """Name the metrics of which the covariance is singular, so that they are too large."""
        notes = []
        for (row, metric, window, *place), found in {**self.statistics, **self.sliding}.items():
            network = self.networks.get(metric)
            if row == REAL_ROW and network is not None and found.count <= (network.dimension or 0) and not any(place):
                name = ("sliding " if place else "") + (metric if window == 1 else f"{metric}_{window}")
                counts = f"{found.count} samples for {network.dimension} features"
                notes.append(f"{name}: {counts}, so the covariance is singular and the distance too large")
        return notes

    def notes(self) -> list[str]:
        """Give the counts and the networks."""
        networks = [f"{metric}: {one.name}, {one.dimension} features" for metric, one in self.networks.items()]
        apart = "touch" if self.protocol.window_step is None else f"are {self.protocol.window_step} frames apart"
        return [
            f"counts: {len(self.lengths)} videos of {min(self.lengths)} to {max(self.lengths)} frames, "
            f"{sum(self.lengths)} frames; windows {apart}",
            f"networks: {'; '.join(networks)}; kid: {self.protocol.kid_subsets} subsets of at most "
            f"{self.protocol.kid_subset_size} frames",
            *self.bias_notes(),
        ]
