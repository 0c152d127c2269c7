"""The tables of `evaluate.py frames`, made of the metrics of single frames: by row, clip, motion, time, and paired.

A row may be several models that differ in their training seed; a clip's metric is then the mean over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

from evaluation import Row
from metrics.images import pool_frames
from metrics.statistics import BOOTSTRAP_DRAWS, SIGN_DRAWS, bootstrap_interval, sign_flip_p

AVERAGE_ROW = "average splat"
# Of splats without a network, beside the pairs of models: first, second.
SPLAT_PAIRS = (("gaussian splat EWA", "softmax splat"), ("gaussian splat iso", "softmax splat"))
# Lower ends of the buckets of frames; BUCKET_NOTE says of what.
BUCKETS = {
    "motion_px": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
    "time_s": (0.0, 0.5, 1.0, 2.0, 3.0, 4.0),
    "hole_percent": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
}
# Metrics of which less is better; of the others more is.
_LESS_IS_BETTER = ("lpips", "feature_distance")

INTERVAL_NOTE = (
    f"low, high: 95 % interval over clips by {BOOTSTRAP_DRAWS} bootstrap draws of the sources; seed_sd: standard "
    "deviation over training seeds of the mean over clips, not part of the interval"
)
PAIRED_NOTE = (
    "difference: first minus second row on the same clips; p_value: two-sided sign-flip test over sources (all "
    f"patterns, or {SIGN_DRAWS} drawn above 14 sources), not corrected for the number of comparisons; first_better: "
    "clips in which the first is better"
)
BUCKET_NOTE = (
    "motion_px: mean |F| of a frame, px of a grid of 256 x 160; time_s: from frame 0; hole_percent: pixels where no "
    "bilinear footprint arrives; metrics pool the frames of a sequence in the bucket, then average over sequences; "
    "over_average_db: psnr_db over that of the average splat"
)


@dataclass(frozen=True)
class ClipMetrics:
    """Metrics of every frame of one clip."""

    clip: str
    source: str
    origin: str
    time_s: Tensor  # (N,) from frame 0
    motion_px: Tensor  # (N,) mean |F| in px of a grid of 256 x 160
    hole_percent: Tensor  # (N,) of the pixels, where nothing arrives
    metrics: dict[str, dict[str, Tensor]]  # {method: {metric: (N,)}} of metrics.images.frame_metrics

    def select(self, mask: Tensor) -> ClipMetrics:
        """Return the frames of a mask (N,) of booleans."""
        metrics = {method: {key: value[mask] for key, value in of.items()} for method, of in self.metrics.items()}
        return replace(self, metrics=metrics, **{column: getattr(self, column)[mask] for column in BUCKETS})


@dataclass
class FrameTables:
    """Makes the tables of rows {row: names of its methods}; the methods of a row are the seeds of a trained model."""

    rows: dict[str, list[str]]
    clips: Sequence[ClipMetrics]
    seed: int = 0  # of bootstrap and sign flips
    models: Sequence[str] = ()  # the rows that are trained models
    seeds: dict[str, int | None] = field(default_factory=dict)  # {method: seed of its training}
    absent: Sequence[str] = ()  # metrics that could not be measured: empty columns

    def __post_init__(self) -> None:
        methods = [method for names in self.rows.values() for method in names]
        self.pooled = {method: [pool_frames(clip.metrics[method]) for clip in self.clips] for method in methods}
        # psnr_db, ssim, and what else was measured
        self.metric_names = [name for name in self.pooled[methods[0]][0] if name not in ("psnr_frames_db", "frames")]
        self.sources = [clip.source for clip in self.clips]
        self.counts = {"sequences": len(self.clips), "sources": len(set(self.sources))}
        self.frames = {"frames": sum(len(clip.time_s) for clip in self.clips)}

    def table(self) -> list[Row]:
        """Return a row for each way to render: means over the clips, and the interval of psnr_db."""
        found = []
        for row in self.rows:
            psnr = self._summary("psnr_db", row)
            line = {"row": row, "psnr_db": psnr["mean"], "psnr_low_db": psnr["low"], "psnr_high_db": psnr["high"]}
            line |= {"ssim": self._mean("ssim", row), **dict.fromkeys(self.absent)}
            line |= {name: self._mean(name, row) for name in [*self.metric_names[2:], "psnr_frames_db"]}
            if any(len(names) > 1 for names in self.rows.values()):
                line |= {"seeds": psnr["seeds"], "psnr_seed_sd_db": psnr["seed_sd"]}
            found.append(line | self.counts | self.frames)
        return found

    def by_clip(self) -> list[Row]:
        """Return a row for each clip and method; seeds have rows of their own."""
        return [
            {"row": method, "clip": clip.clip, "source": clip.source, "mean_motion_px": float(clip.motion_px.mean())}
            | self.pooled[method][place]
            for place, clip in enumerate(self.clips)
            for method in self.pooled
        ]

    def intervals(self) -> list[Row]:
        """Return a row for each way to render and metric: mean, interval over clips, spread over seeds."""
        return [
            {"row": row, "metric": metric} | self._summary(metric, row) | self.counts
            for row in self.rows
            for metric in self.metric_names
        ]

    def paired(self) -> list[Row]:
        """Return the differences on the same clips: each two models, each model and the average splat, SPLAT_PAIRS."""
        pairs = [(second, first) for i, first in enumerate(self.models) for second in self.models[i + 1 :]]
        pairs += [(model, AVERAGE_ROW) for model in self.models if AVERAGE_ROW in self.rows]
        pairs += [pair for pair in SPLAT_PAIRS if self.rows.keys() >= {*pair}]
        found = []
        for first, second in pairs:
            for metric in self.metric_names:
                differences, summary = self._by_clip(metric, first, second), self._summary(metric, first, second)
                sign = -1 if metric.startswith(_LESS_IS_BETTER) else 1
                line = {"row": f"{first} - {second}", "metric": metric, "difference": summary.pop("mean")} | summary
                line["p_value"] = sign_flip_p(differences, self.sources, self.seed)
                line["first_better"] = sum(sign * difference > 0 for difference in differences)
                found.append(line | self.counts)
        return found

    def buckets(self, column: str) -> list[Row]:
        """Return a row for each way to render and bucket of a column of BUCKETS."""
        found = []
        for name, inside in self._inside(column):
            for row in self.rows:
                over = dict.fromkeys(("mean", "low", "high"))
                if AVERAGE_ROW in self.rows and row != AVERAGE_ROW:
                    over = inside._summary("psnr_db", row, AVERAGE_ROW)
                line = {"row": row, column: name}
                line |= {metric: inside._mean(metric, row) for metric in (*self.metric_names, "psnr_frames_db")}
                line |= {"over_average_db": over["mean"], "over_low_db": over["low"], "over_high_db": over["high"]}
                found.append(line | inside.counts | inside.frames)
        return found

    def paired_buckets(self, column: str) -> list[Row]:
        return [{column: name} | row for name, inside in self._inside(column) for row in inside.paired()]

    def _inside(self, column: str) -> Iterator[tuple[str, FrameTables]]:
        """Yield name and tables of each bucket that has frames."""
        edges = (*BUCKETS[column], math.inf)
        for low, high in zip(edges, edges[1:], strict=False):
            values = [getattr(clip, column) for clip in self.clips]
            masks = [(value >= low) & (value < high) for value in values]
            parts = [clip.select(mask) for clip, mask in zip(self.clips, masks, strict=True) if mask.any()]
            if parts:
                name = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} and more"
                yield name, replace(self, clips=parts)

    def _by_clip(self, metric: str, row: str, minus: str | None = None) -> list[float]:
        """Return a row's metric of each clip, the mean over its seeds, or its difference to another row's."""
        of_seeds = [[metrics[metric] for metrics in self.pooled[method]] for method in self.rows[row]]
        values = [fmean(values) for values in zip(*of_seeds, strict=True)]
        if minus is None:
            return values
        return [one - other for one, other in zip(values, self._by_clip(metric, minus), strict=True)]

    def _mean(self, metric: str, row: str) -> float:
        return fmean(self._by_clip(metric, row))

    def _summary(self, metric: str, row: str, minus: str | None = None) -> Row:
        """Return mean, interval and spread over seeds of a row's metric, or of its difference to another row's."""
        values = self._by_clip(metric, row, minus)
        low, high = bootstrap_interval(values, self.seed, self.sources) or (None, None)
        by_seed = self._seed_means(metric, row)
        if minus is not None:
            theirs = self._seed_means(metric, minus)
            if minus not in self.models:  # the same for every seed of the first
                theirs = dict.fromkeys(by_seed, next(iter(theirs.values())))
            by_seed = {seed: by_seed[seed] - theirs[seed] for seed in by_seed if seed in theirs}
        deviation = stdev(by_seed.values()) if len(by_seed) > 1 else None
        return {"mean": fmean(values), "low": low, "high": high, "seeds": len(by_seed), "seed_sd": deviation}

    def _seed_means(self, metric: str, row: str) -> dict[Any, float]:
        """Return {training seed, or the method's name where it is not known: mean over the clips}."""
        found = {}
        for method in self.rows[row]:
            seed = self.seeds.get(method)
            found[method if seed is None else seed] = fmean(metrics[metric] for metrics in self.pooled[method])
        return found


def pivot(rows: Sequence[Row], column: str, metric: str) -> list[Row]:
    """Turn rows of one bucket each into rows {"row": name, bucket: metric, ...} of all buckets."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["row"], {"row": row["row"]})[row[column]] = row[metric]
    return list(found.values())
