"""The tables of `evaluate.py frames`, made of the metrics of single frames: by row, clip, motion, time, and paired.

A row may be several models that differ in their training seed; a clip's metric is then the mean over them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

from metrics.images import pool_frames
from metrics.statistics import BOOTSTRAP_DRAWS, SIGN_DRAWS, bootstrap_interval, sign_flip_p

AVERAGE_ROW = "average splat"
# Lower ends of the buckets: mean |F| of a frame in px of a grid of 256 x 160, and seconds from frame 0.
MOTION_BUCKETS_PX = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
TIME_BUCKETS_S = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)
# Metrics of which less is better; of the others more is.
_LESS_IS_BETTER = ("lpips", "feature_distance")

INTERVAL_NOTE = (
    f"low, high: 95 % interval over clips by {BOOTSTRAP_DRAWS} bootstrap draws of the sources (clips of one video are "
    "drawn together); seed_sd: standard deviation over training seeds of the mean over clips, not part of the interval"
)
PAIRED_NOTE = (
    "difference: first minus second row on the same clips, mean over clips, of several seeds that of their means; "
    f"p_value: two-sided sign-flip test over sources (all patterns, or {SIGN_DRAWS} drawn above 14 sources), not "
    "corrected for the number of comparisons; first_better: clips in which the first is better (psnr, ssim: more; "
    "lpips, feature_distance: less); seed_sd: standard deviation of the difference over the seeds of both rows"
)
BUCKET_NOTE = (
    "the squared error is pooled over those frames of a sequence that are in the bucket, then the mean over the "
    "sequences that have any; over_average_db: psnr_db minus that of the average splat on the same frames, with its "
    "interval over sources"
)


@dataclass(frozen=True)
class ClipMetrics:
    """Metrics of every frame of one clip.

    Attributes:
        clip, source, origin: as in `evaluation.clips.EvaluationClip`.
        time_s: (N,) seconds from frame 0.
        motion_px: (N,) mean |F| in px of a grid of 256 x 160.
        metrics: {method: {metric: (N,)}}, those of `metrics.images.frame_metrics`.
    """

    clip: str
    source: str
    origin: str
    time_s: Tensor
    motion_px: Tensor
    metrics: dict[str, dict[str, Tensor]]

    def select(self, mask: Tensor) -> ClipMetrics:
        """Return the frames of a mask (N,) of booleans."""
        metrics = {method: {key: value[mask] for key, value in of.items()} for method, of in self.metrics.items()}
        return replace(self, time_s=self.time_s[mask], motion_px=self.motion_px[mask], metrics=metrics)


@dataclass
class FrameTables:
    """Makes the tables.

    Attributes:
        rows: {row: names of its methods}; the methods are the seeds of a trained model.
        clips: what was measured.
        seed: of bootstrap and sign flips.
        models: the rows that are trained models.
        seeds: {method: seed of its training}, by which differences between seeds are paired.
        absent: metrics that could not be measured, as empty columns.
    """

    rows: dict[str, list[str]]
    clips: Sequence[ClipMetrics]
    seed: int = 0
    models: Sequence[str] = ()
    seeds: dict[str, int | None] = field(default_factory=dict)
    absent: Sequence[str] = ()

    def __post_init__(self) -> None:
        methods = [method for names in self.rows.values() for method in names]
        self.pooled = {method: [pool_frames(clip.metrics[method]) for clip in self.clips] for method in methods}
        first = self.pooled[methods[0]][0]
        # What is compared: psnr_db, ssim, and what else was measured
        self.metric_names = [name for name in first if name not in ("psnr_frames_db", "frames")]
        self.sources = [clip.source for clip in self.clips]
        self.counts = {"sequences": len(self.clips), "sources": len(set(self.sources))}
        self.frames = {"frames": sum(len(clip.time_s) for clip in self.clips)}

    def by_clip_values(self, row: str, metric: str) -> list[float]:
        """Return a row's metric of each clip, the mean over its seeds."""
        of_seeds = [[metrics[metric] for metrics in self.pooled[method]] for method in self.rows[row]]
        return [fmean(values) for values in zip(*of_seeds, strict=True)]

    def mean(self, row: str, metric: str) -> float:
        """Return the mean over the clips of a row's metric."""
        return fmean(self.by_clip_values(row, metric))

    # ------------------------------------------------------------------------------------------------ tables

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each way to render: means over the clips, and the interval of psnr_db."""
        found = []
        for row, methods in self.rows.items():
            means = {name: self.mean(row, name) for name in (*self.metric_names, "psnr_frames_db")}
            low, high = self._interval(self.by_clip_values(row, "psnr_db"))
            line = {"row": row, "psnr_db": means.pop("psnr_db"), "psnr_low_db": low, "psnr_high_db": high}
            line |= {"ssim": means.pop("ssim"), **dict.fromkeys(self.absent), **means}
            if any(len(names) > 1 for names in self.rows.values()):
                line |= {"seeds": len(methods), "psnr_seed_sd_db": _deviation(self._seed_means(row, "psnr_db"))}
            found.append(line | self.counts | self.frames)
        return found

    def by_clip(self) -> list[dict[str, Any]]:
        """Return a row for each clip and method; seeds have rows of their own."""
        return [
            {"row": method, "clip": clip.clip, "source": clip.source, "mean_motion_px": float(clip.motion_px.mean())}
            | self.pooled[method][place]
            for place, clip in enumerate(self.clips)
            for method in self.pooled
        ]

    def intervals(self) -> list[dict[str, Any]]:
        """Return a row for each way to render and metric: mean, interval over clips, spread over seeds."""
        found = []
        for row, methods in self.rows.items():
            for metric in self.metric_names:
                low, high = self._interval(self.by_clip_values(row, metric))
                line = {"row": row, "metric": metric, "mean": self.mean(row, metric), "low": low, "high": high}
                line |= {"seeds": len(methods), "seed_sd": _deviation(self._seed_means(row, metric))}
                found.append(line | self.counts)
        return found

    def paired(self) -> list[dict[str, Any]]:
        """Return the differences on the same clips: each two models, and each model and the average splat."""
        pairs = [(second, first) for i, first in enumerate(self.models) for second in self.models[i + 1 :]]
        pairs += [(model, AVERAGE_ROW) for model in self.models if AVERAGE_ROW in self.rows]
        return [self._paired_row(*pair, metric) for pair in pairs for metric in self.metric_names]

    def by_motion(self) -> list[dict[str, Any]]:
        """Return a row for each way to render and bucket of the frames' mean |F|."""
        return self._buckets("motion_px", MOTION_BUCKETS_PX)

    def by_time(self) -> list[dict[str, Any]]:
        """Return a row for each way to render and bucket of the frames' distance from frame 0 in time."""
        return self._buckets("time_s", TIME_BUCKETS_S)

    # ------------------------------------------------------------------------------------------------ parts

    def _interval(self, values: Sequence[float]) -> tuple[float | None, float | None]:
        return bootstrap_interval(values, self.seed, self.sources) or (None, None)

    def _seed_means(self, row: str, metric: str) -> dict[Any, float]:
        """Return {training seed, or the method's name where it is not known: mean over the clips}."""
        found = {}
        for method in self.rows[row]:
            seed = self.seeds.get(method)
            found[method if seed is None else seed] = fmean(metrics[metric] for metrics in self.pooled[method])
        return found

    def _differences(self, first: str, second: str, metric: str) -> list[float]:
        values = zip(self.by_clip_values(first, metric), self.by_clip_values(second, metric), strict=True)
        return [one - other for one, other in values]

    def _paired_row(self, first: str, second: str, metric: str) -> dict[str, Any]:
        differences = self._differences(first, second, metric)
        low, high = self._interval(differences)
        sign = -1 if metric.startswith(_LESS_IS_BETTER) else 1
        line = {"row": f"{first} - {second}", "metric": metric, "difference": fmean(differences)}
        line |= {"low": low, "high": high, "p_value": sign_flip_p(differences, self.sources, self.seed)}
        line["first_better"] = sum(sign * difference > 0 for difference in differences)
        ours, theirs = self._seed_means(first, metric), self._seed_means(second, metric)
        if second not in self.models:  # the same for every seed of the first
            theirs = dict.fromkeys(ours, next(iter(theirs.values())))
        by_seed = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
        return line | {"seeds": len(by_seed), "seed_sd": _deviation(by_seed)} | self.counts

    def _buckets(self, column: str, edges: Sequence[float]) -> list[dict[str, Any]]:
        """Return the rows of the frames whose `column` of ClipMetrics is between each two edges."""
        found = []
        for low, high in zip(edges, (*edges[1:], math.inf), strict=True):
            parts = [
                clip.select((getattr(clip, column) >= low) & (getattr(clip, column) < high)) for clip in self.clips
            ]
            parts = [clip for clip in parts if len(clip.time_s)]
            if not parts:
                continue
            inside = replace(self, clips=parts)
            name = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} and more"
            for row in self.rows:
                line = {"row": row, column: name}
                line |= {metric: inside.mean(row, metric) for metric in (*self.metric_names, "psnr_frames_db")}
                line |= dict.fromkeys(("over_average_db", "over_low_db", "over_high_db"))
                if AVERAGE_ROW in self.rows and row != AVERAGE_ROW:
                    over = inside._differences(row, AVERAGE_ROW, "psnr_db")
                    line["over_average_db"] = fmean(over)
                    line["over_low_db"], line["over_high_db"] = inside._interval(over)
                found.append(line | inside.counts | inside.frames)
        return found


def _deviation(by_seed: Mapping[Any, float]) -> float | None:
    return stdev(by_seed.values()) if len(by_seed) > 1 else None


def spread(rows: Sequence[Mapping[str, Any]], column: str, metric: str) -> list[dict[str, Any]]:
    """Turn rows of one bucket each into rows of all buckets: {"row": name, bucket: metric, ...}, to print."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["row"], {"row": row["row"]})[row[column]] = row[metric]
    return list(found.values())
