"""What `evaluate.py video` computes: FID, KID, FVD and DTFVD of generated videos."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from evaluation import EvaluationError, Row
from evaluation.video.networks import FeatureNetwork
from evaluation.video.sources import ClipVideos
from metrics.frechet import FRECHET_DRAWS, frechet_distance, frechet_interval, kernel_distance
from metrics.images import Lpips, mean_squared_error, psnr_of_mse
from metrics.statistics import known_mean

STATIC_ROW = "frame 0 repeated"
# A covariance takes two.
FEWEST_SAMPLES = 2
# {metric: frames of the window that [GID] slides along the videos}
SLIDING = {"fid": 30, "fvd": 16, "dtfvd": 16}
# LPIPS of aligned rows takes every so many frames.
LPIPS_EVERY = 10

COLUMN_NOTES = (
    "fid (single frames, frame 0 included), fvd_N, dtfvd_N (windows of N frames): squared Frechet distance in float64 "
    "between the Gaussians of real and generated features",
    f"low, high: 95 % interval by {FRECHET_DRAWS} bootstrap draws of the source videos, real and generated together; "
    "fewer different windows make a distance larger, so the draws are shifted until their mean is the distance",
    "kid: squared MMD under the kernel (x.y / D + 1)^3, mean and deviation over 100 subsets of at most 1000 frames",
    "psnr_db, lpips: of rows whose frames show what the real ones do, frame 0 excluded, pooled over a video and over "
    f"every {LPIPS_EVERY}th frame of it; the mean over videos",
    "fid_sliding, fvd_sliding, dtfvd_sliding: mean over the places of sliding/, where each has few windows",
    "compare a metric only with others of the same network file, crop and counts",
)

SLIDING_NOTE = "windows of real and generated videos begin at the same frame; every place has its own Gaussians"


@dataclass
class VideoComparison:
    """Collects real videos and each way (row) of generating them, and makes the tables."""

    rows: Sequence[str]
    networks: dict[str, FeatureNetwork]  # of "fid", "fvd" and "dtfvd"
    windows: Sequence[int] = (16, 32)  # frames of the windows of fvd and dtfvd
    window_step: int | None = None  # frames from window to window; None: they touch
    slide_step: int = 0  # frames from place to place of the sliding metrics; 0: none are measured
    batch_size: int = 8  # images or windows in one pass of a network
    seed: int = 0
    lpips: Sequence[Lpips] = ()

    def __post_init__(self) -> None:
        self.rows = [*self.rows, STATIC_ROW]
        self.lengths: list[int] = []
        # {(row, "fid" or "fvd_16", first frame of the sliding windows or None: of all that touch):
        #  (source, real features (n, D), generated features (n, D)) of each clip}
        self.features: dict[tuple[str, str, int | None], list[tuple[str, Tensor, Tensor]]] = defaultdict(list)
        # {row: metrics of each video beside the real one}
        self.aligned: dict[str, list[dict[str, float]]] = defaultdict(list)

    def add(self, clip: ClipVideos) -> None:
        """Measure one clip in every way; EvaluationError for frames that are not finite."""
        real = self._measure(clip.name, "real", clip.real)
        static = clip.real[:1].expand_as(clip.real)
        for row, frames in {**clip.generated, STATIC_ROW: static}.items():
            for (column, start), found in self._measure(clip.name, row, frames).items():
                self.features[row, column, start].append((clip.source or clip.name, real[column, start], found))
            if row in (*clip.aligned, STATIC_ROW) and len(frames) > 1:
                self.aligned[row].append(self._aligned_metrics(frames, clip.real))
        self.lengths.append(len(clip.real))

    def _measure(self, clip: str, row: str, frames: Tensor) -> dict[tuple[str, int | None], Tensor]:
        """Return the features (n, D) of frames (T, 3, H, W) by column and first frame, as in `features`."""
        if not bool(frames.isfinite().all()):
            raise EvaluationError(f"{clip}: its frames of {row} are not finite; right: precision no")
        found = {}
        for metric, network in self.networks.items():
            measured = partial(network, batch_size=self.batch_size)
            if metric == "fid":
                found[metric, None] = measured(frames)  # (T, D)
                slides = cut_windows(found[metric, None], SLIDING[metric], self.slide_step)  # (n, 30, D)
            else:
                for window in self.windows:
                    parts = cut_windows(frames, window, self.window_step or window)  # (n, window, 3, H, W)
                    if len(parts):
                        found[f"{metric}_{window}", None] = measured(parts)
                parts = cut_windows(frames, SLIDING[metric], self.slide_step)
                slides = measured(parts)[:, None] if len(parts) else []  # (n, 1, D)
            for place, features in enumerate(slides):
                found[f"{metric}_{SLIDING[metric]}", place * self.slide_step] = features
        return found

    def _both(self, row: str, column: str, start: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the real and the generated features (N, D) of all clips."""
        _, real, found = zip(*self.features[row, column, start], strict=True)
        return torch.cat(real), torch.cat(found)

    def _aligned_metrics(self, frames: Tensor, real: Tensor) -> dict[str, float]:
        """Return PSNR and LPIPS of frames beside the real ones (T, 3, H, W)."""
        found = {"psnr_db": float(psnr_of_mse(mean_squared_error(frames[1:], real[1:]).mean()))}
        few = list(range(min(LPIPS_EVERY, len(real) - 1), len(real), LPIPS_EVERY))
        for network in self.lpips:
            device = next(network.parameters()).device
            distances = network(frames[few].clamp(0, 1).to(device), real[few].to(device))
            found[network.name] = float(distances.mean())
        return found

    def count(self, window: int) -> int:
        """Return the number of windows of so many frames."""
        step = self.window_step or window
        return sum((length - window) // step + 1 for length in self.lengths if length >= window)

    def check_counts(self) -> None:
        """Raise EvaluationError where the videos have too few windows for a covariance, or are one."""
        if len(self.lengths) < FEWEST_SAMPLES:
            raise EvaluationError(f"data: {len(self.lengths)} videos could be measured; right: 2 or more")
        for window in self.windows if self.networks.keys() - {"fid"} else ():
            if self.count(window) < FEWEST_SAMPLES:
                problem = f"{self.count(window)} windows of {window} frames in {len(self.lengths)} videos"
                raise EvaluationError(f"windows {window}: {problem}; right: smaller windows, or more videos")

    def table(self) -> list[Row]:
        """Return a row for each way, with a column for each metric that was measured."""
        rows, sliding = [], self.sliding_table()
        of_videos = [metric for metric in self.networks if metric != "fid"]
        for name in self.rows:
            row: Row = {"row": name}
            if "fid" in self.networks:
                both = self._both(name, "fid")
                row["fid"] = frechet_distance(*both)
                row["kid"], row["kid_deviation"] = kernel_distance(*both, seed=self.seed)
            for metric, window in product(of_videos, self.windows):
                column = f"{metric}_{window}"
                row[column] = frechet_distance(*self._both(name, column))
                interval = frechet_interval(self.features[name, column, None], self.seed)
                row[f"{column}_low"], row[f"{column}_high"] = interval or (None, None)
            places = [line for line in sliding if line["row"] == name]
            for metric, window in SLIDING.items():
                row[f"{metric}_sliding"] = known_mean(line[f"{metric}_{window}"] for line in places)
            for metric in ("psnr_db", *(one.name for one in self.lpips)):
                row[metric] = known_mean(found[metric] for found in self.aligned[name])
            row |= {"videos": len(self.lengths), "frames": sum(self.lengths)}
            rows.append(row | {f"windows_{window}": self.count(window) for window in self.windows if of_videos})
        used = [column for column in rows[0] if any(row[column] is not None for row in rows)]
        return [{column: row[column] for column in used} for row in rows]

    def sliding_table(self) -> list[Row]:
        """Return a row for each way and place in time; real and generated windows begin at the same frame."""
        rows = []
        for name in self.rows:
            for start in sorted({start for row, _, start in self.features if row == name and start is not None}):
                line: Row = {"row": name, "from_frame": start}
                for metric, window in SLIDING.items():
                    column, counted = f"{metric}_{window}", "frames" if metric == "fid" else "windows"
                    count = sum(len(found) for *_, found in self.features.get((name, column, start), ()))
                    enough = count >= FEWEST_SAMPLES
                    line[column] = frechet_distance(*self._both(name, column, start)) if enough else None
                    line[counted] = max(line.get(counted, 0), count)
                rows.append(line)
        return rows

    def bias_notes(self) -> list[str]:
        """Name the metrics of which the covariance is singular, so that they are too large."""
        keys = [(column, start) for row, column, start in self.features if row == STATIC_ROW and not start]
        notes = []
        for column, start in sorted(keys, key=lambda key: key[1] == 0):  # the sliding ones last
            real, _ = self._both(STATIC_ROW, column, start)
            if len(real) <= real.shape[1]:
                counts = f"{len(real)} samples for {real.shape[1]} features, so the covariance is singular"
                notes.append(f"{'' if start is None else 'sliding '}{column}: {counts} and the distance too large")
        return notes

    def notes(self) -> list[str]:
        lengths = f"{len(self.lengths)} videos of {min(self.lengths)} to {max(self.lengths)} frames"
        step = "that touch" if self.window_step is None else f"{self.window_step} frames apart"
        networks = "; ".join(f"{metric}: {network.name}" for metric, network in self.networks.items())
        counts = f"counts: {lengths}, {sum(self.lengths)} frames, windows {step}; networks: {networks}"
        return [counts, *self.bias_notes()]


def cut_windows(frames: Tensor, window: int, step: int) -> Tensor:
    """Return the windows that begin every `step` of T frames (T, ...): (n, window, ...); none where `step` is 0."""
    if not step or len(frames) < window:
        return frames.new_empty(0, window, *frames.shape[1:])
    return frames.unfold(0, window, step).movedim(-1, 1)
