"""What `evaluate.py video` computes: FID, KID, FVD and DTFVD of generated videos, and how they change along a video."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cli.parser import UsageError
from evaluation.video.networks import FeatureNetwork
from evaluation.video.sources import CLIP_ERRORS, ClipVideos, VideoSource
from metrics.frechet import (
    KERNEL_SAMPLES,
    FeatureSample,
    GaussianStatistics,
    cut_windows,
    frechet_distance,
    kernel_distance,
    window_starts,
)

logger = logging.getLogger(__name__)

REAL_ROW, STILL_ROW = "real", "frame 0 repeated"
# [GID] slides windows of so many frames along the videos.
SLIDING_FID_FRAMES, SLIDING_DTFVD_FRAMES = 30, 16
# A covariance takes two.
FEWEST_SAMPLES = 2

COLUMN_NOTES = (
    "fid, fvd_N, dtfvd_N: squared Frechet distance of the features' Gaussians, real against generated, of single "
    "frames (frame 0 included) or of windows of N frames from frame 0 on, in float64; kid: squared MMD under the "
    "kernel (x.y / D + 1)^3",
    "all rows have the same clips, lengths and windows; a figure can be compared only with others of the same network "
    "file, crop and counts",
)


@dataclass(frozen=True)
class Networks:
    """The feature networks at hand; None leaves the figures out."""

    image: FeatureNetwork | None = None
    fvd: FeatureNetwork | None = None
    dtfvd: FeatureNetwork | None = None

    def of_videos(self) -> dict[str, FeatureNetwork]:
        """Return {name of the figure: network} of those that take windows."""
        both = {"fvd": self.fvd, "dtfvd": self.dtfvd}
        return {name: network for name, network in both.items() if network is not None}

    def at_hand(self) -> dict[str, FeatureNetwork]:
        """Return {name of the figure: network} of all."""
        return ({"fid": self.image} if self.image is not None else {}) | self.of_videos()


@dataclass(frozen=True)
class Protocol:
    """How videos are cut.

    Attributes:
        windows: lengths of the windows, frames.
        step: from one window to the next, frames; None: windows touch.
        slide_step: the same for the sliding figures; 0 leaves them out.
        batch_size: pictures or windows in one pass of a network.
        kernel_subsets, kernel_subset_size: of KID.
        seed: of what KID draws.
    """

    windows: tuple[int, ...] = (16, 32)
    step: int | None = None
    slide_step: int = 10
    batch_size: int = 8
    kernel_subsets: int = 100
    kernel_subset_size: int = 1000
    seed: int = 0

    def starts(self, num_frames: int, window: int) -> list[int]:
        """Return where the windows of a video begin."""
        return window_starts(num_frames, window, self.step or window)

    def slides(self, num_frames: int, window: int) -> list[int]:
        """Return where the sliding windows of a video begin."""
        return window_starts(num_frames, window, self.slide_step) if self.slide_step else []

    def check_lengths(self, lengths: Sequence[int], networks: Networks) -> None:
        """Raise UsageError where videos of these lengths do not have what a figure takes."""
        longest = max(lengths, default=0)
        if networks.image is not None and sum(lengths) < FEWEST_SAMPLES:
            raise UsageError(f"--frames: {sum(lengths)} frames in all; right: at least {FEWEST_SAMPLES}")
        for window in self.windows if networks.of_videos() else ():
            count = sum(len(self.starts(length, window)) for length in lengths)
            if count < FEWEST_SAMPLES:
                raise UsageError(
                    f"--windows {window}: {count} windows of {window} frames in {len(lengths)} videos (longest: "
                    f"{longest} frames); right: at least {FEWEST_SAMPLES}, by smaller windows, longer or more videos"
                )


@dataclass
class SetStatistics:
    """Feature statistics of one row; memory does not depend on how many videos were added."""

    seed: int = 0
    frames: int = 0
    image: GaussianStatistics = field(default_factory=GaussianStatistics)
    sample: FeatureSample | None = None
    windows: dict[tuple[str, int], GaussianStatistics] = field(default_factory=dict)
    slides: dict[tuple[str, int], GaussianStatistics] = field(default_factory=dict)

    def add(self, frames: Tensor, networks: Networks, protocol: Protocol, what: str) -> None:
        """Add one video (T, 3, H, W); `what` names it where a network fails on it."""
        self.frames += len(frames)
        if networks.image is not None:
            features = networks.image(frames, batch_size=protocol.batch_size, what=what)  # (T, D)
            self.image.add(features)
            self.sample = self.sample or FeatureSample(KERNEL_SAMPLES, seed=self.seed)
            self.sample.add(features)
            for start in protocol.slides(len(frames), SLIDING_FID_FRAMES):
                self._slide("fid", start).add(features[start : start + SLIDING_FID_FRAMES])
        for name, network in networks.of_videos().items():
            for window in sorted({*protocol.windows, *([SLIDING_DTFVD_FRAMES] if name == "dtfvd" else [])}):
                self._add_windows(name, network, window, frames, protocol, what)

    def _add_windows(
        self, name: str, network: FeatureNetwork, window: int, frames: Tensor, protocol: Protocol, what: str
    ) -> None:
        """Add the windows of one length, those that both tables want computed once."""
        apart = protocol.starts(len(frames), window) if window in protocol.windows else []
        slides = name == "dtfvd" and window == SLIDING_DTFVD_FRAMES
        sliding = protocol.slides(len(frames), window) if slides else []
        starts = sorted({*apart, *sliding})
        size = protocol.batch_size
        for part in (starts[at : at + size] for at in range(0, len(starts), size)):
            features = network(cut_windows(frames, window, part), batch_size=size, what=what)  # (n, D)
            for start, feature in zip(part, features.split(1), strict=True):
                if start in apart:
                    self.windows.setdefault((name, window), GaussianStatistics()).add(feature)
                if start in sliding:
                    self._slide(name, start).add(feature)

    def _slide(self, name: str, start: int) -> GaussianStatistics:
        return self.slides.setdefault((name, start), GaussianStatistics())


class VideoComparison:
    """Real videos against each way of generating them, clip by clip, and the tables made of it."""

    def __init__(self, rows: Sequence[str], networks: Networks, protocol: Protocol) -> None:
        self.networks, self.protocol = networks, protocol
        self.rows = [*rows, STILL_ROW]
        self.statistics = {name: SetStatistics(protocol.seed) for name in (REAL_ROW, *self.rows)}
        self.lengths: list[int] = []
        self.kernel_size: int | None = None

    def add(self, clip: ClipVideos) -> None:
        """Measure one clip in every way."""
        still = clip.real[:1].expand_as(clip.real)
        for row, frames in {REAL_ROW: clip.real, **clip.generated, STILL_ROW: still}.items():
            self.statistics[row].add(frames, self.networks, self.protocol, f"{row}, clip {clip.name}")
        self.lengths.append(len(clip.real))

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each way; a figure is None where its network or its windows are missing."""
        real = self.statistics[REAL_ROW]
        rows = []
        for name in self.rows:
            found = self.statistics[name]
            row: dict[str, Any] = {"row": name, "fid": distance(real.image, found.image)}
            row |= self._kernel(real, found)
            for figure in ("fvd", "dtfvd"):
                for window in self.protocol.windows:
                    pair = (side.windows.get((figure, window)) for side in (real, found))
                    row[f"{figure}_{window}"] = distance(*pair)
            row |= {"videos": len(self.lengths), "frames": found.frames}
            for window in self.protocol.windows:
                row[f"windows_{window}"] = self.count(window) if self.networks.of_videos() else None
            rows.append(row)
        return rows

    def _kernel(self, real: SetStatistics, found: SetStatistics) -> dict[str, float | None]:
        if real.sample is None or found.sample is None or real.frames < FEWEST_SAMPLES:
            return {"kid": None, "kid_deviation": None}
        options = {"subsets": self.protocol.kernel_subsets, "subset_size": self.protocol.kernel_subset_size}
        kid, deviation, self.kernel_size = kernel_distance(
            real.sample.features(), found.sample.features(), **options, seed=self.protocol.seed
        )
        return {"kid": kid, "kid_deviation": deviation}

    def sliding_table(self) -> list[dict[str, Any]]:
        """Return a row for each way and place in time, real and generated windows from the same place."""
        real = self.statistics[REAL_ROW].slides
        rows = []
        for name in self.rows:
            found = self.statistics[name].slides
            for start in sorted({start for _, start in found}):
                row: dict[str, Any] = {"row": name, "from_frame": start}
                lengths = {"fid": SLIDING_FID_FRAMES, "dtfvd": SLIDING_DTFVD_FRAMES}
                for figure, window in lengths.items():
                    pair = (side.get((figure, start)) for side in (real, found))
                    row[f"{figure}_{window}"] = distance(*pair)
                for figure, counted in {"fid": "frames", "dtfvd": "windows"}.items():
                    row[counted] = found[figure, start].count if (figure, start) in found else 0
                rows.append(row)
        return rows

    def count(self, window: int) -> int:
        """Return how many windows went into a row."""
        return sum(len(self.protocol.starts(length, window)) for length in self.lengths)

    def bias_notes(self) -> list[str]:
        """Say of which figures the covariance is singular, so that they are too large."""
        counts: dict[str, Any] = {"fid": (self.networks.image, sum(self.lengths), "frames")}
        for figure, network in self.networks.of_videos().items():
            counts |= {
                f"{figure}_{window}": (network, self.count(window), "windows") for window in self.protocol.windows
            }
        for figure, network, frames in self._sliding():
            videos = sum(bool(self.protocol.slides(length, frames)) for length in self.lengths)
            if videos:
                counts[f"sliding {figure}_{frames}"] = (
                    network,
                    videos * (frames if figure == "fid" else 1),
                    "at a place",
                )
        return [
            f"{figure}: {count} {what} for {network.dimension} features: the covariance is singular and the distance "
            "biased; compare it only with figures of the same counts"
            for figure, (network, count, what) in counts.items()
            if network is not None and network.dimension is not None and count <= network.dimension
        ]

    def _sliding(self) -> list[tuple[str, FeatureNetwork | None, int]]:
        """Return figure, network and frames of a window of the sliding table, as far as there are networks."""
        if not self.protocol.slide_step:
            return []
        dtfvd = self.networks.of_videos().get("dtfvd")
        found = [("fid", self.networks.image, SLIDING_FID_FRAMES), ("dtfvd", dtfvd, SLIDING_DTFVD_FRAMES)]
        return [item for item in found if item[1] is not None]

    def _too_short(self) -> list[str]:
        """Say which sliding figures no video is long enough for."""
        longest = max(self.lengths)
        return [
            f"left out: sliding {figure}_{frames}, for the longest video has {longest} frames"
            for figure, _, frames in self._sliding()
            if longest < frames
        ]

    def notes(self) -> list[str]:
        """Say what went in and how it was cut."""
        counts = (
            f"counts: {len(self.lengths)} videos of {min(self.lengths)} to {max(self.lengths)} frames, "
            f"{sum(self.lengths)} frames"
        )
        if self.networks.of_videos():
            step, windows = self.protocol.step, self.protocol.windows
            apart = "that touch" if step is None else f"{step} frames apart"
            counts += f"; windows {apart}: " + ", ".join(
                f"{self.count(window)} of {window} frames" for window in windows
            )
            short = {window: sum(length < window for length in self.lengths) for window in windows}
            counts += "".join(f"; {count} videos are shorter than {window}" for window, count in short.items() if count)
        notes = [
            counts,
            "networks: " + "; ".join(_network_note(*item) for item in self.networks.at_hand().items()),
            *self.bias_notes(),
            *self._too_short(),
        ]
        if self.kernel_size is not None:
            notes.append(
                f"kid: {self.protocol.kernel_subsets} subsets of {self.kernel_size} frames "
                f"(asked for: {self.protocol.kernel_subset_size}); where that is all of them there is one subset"
            )
        return notes


def distance(real: GaussianStatistics | None, found: GaussianStatistics | None) -> float | None:
    """Return the Frechet distance; None where one of them has too few samples."""
    if real is None or found is None or min(real.count, found.count) < FEWEST_SAMPLES:
        return None
    return frechet_distance(real, found)


def measure_videos(
    source: VideoSource,
    networks: Networks,
    protocol: Protocol,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> tuple[VideoComparison, list[str]]:
    """Read, or generate, and measure clip by clip; return the comparison and "name (why)" of those left out.

    Raises:
        UsageError: no clip is left, or too few windows; see `FeatureNetwork` for what it may complain about.
    """
    comparison = VideoComparison(source.rows, networks, protocol)
    left_out = []
    for name in progress(source.names):
        try:
            clip = source.read(name)
        except CLIP_ERRORS as error:
            logger.warning("left out: %s (%s)", name, error)
            left_out.append(f"{name} ({error})")
            continue
        comparison.add(clip)
    if not comparison.lengths:
        raise UsageError(f"none of the {len(source.names)} videos can be read; the first: {left_out[0]}")
    protocol.check_lengths(comparison.lengths, networks)
    return comparison, left_out


def _network_note(figure: str, network: FeatureNetwork) -> str:
    return f"{network.flag} {network.name}, {network.dimension} features ({'fid, kid' if figure == 'fid' else figure})"
