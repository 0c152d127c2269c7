"""The tables of `evaluate.py frames`, all made of the figures of single frames: by row, clip, motion, time, and paired.

A row may be several models that differ in their training seed: what a clip's figure is, is then the mean over them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metrics.images import pool_frames
from metrics.statistics import BOOTSTRAP_DRAWS, MOST_SOURCES_EXACT, SIGN_DRAWS, mean_interval, sign_flip_p

AVERAGE_ROW = "average splat"
# Lower ends of the buckets: mean |F| of a frame in px of a grid of 256 x 160, and seconds from frame 0.
MOTION_BUCKETS_PX = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
TIME_BUCKETS_S = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)
# Figures of which less is better; of the others more is.
_LESS_IS_BETTER = ("lpips", "feature_distance")

INTERVAL_NOTE = (
    f"low, high: 95 % interval over clips by {BOOTSTRAP_DRAWS} bootstrap draws of the sources (clips of one video are "
    "drawn together); seed_sd: standard deviation over training seeds of the mean over clips, "
    "which the interval does not hold"
)
PAIRED_NOTE = (
    "difference: first minus second row on the same clips, mean over clips, of several seeds that of their means; "
    f"p_value: two-sided sign-flip test over sources (all patterns up to {MOST_SOURCES_EXACT} sources, else "
    f"{SIGN_DRAWS} drawn); first_better: clips in which the first is better (psnr, ssim: more; lpips, "
    "feature_distance: less); seed_sd: standard deviation of the difference over the training seeds that both rows "
    "have; not corrected for the number of comparisons"
)
BUCKET_NOTE = (
    "the squared error is pooled over those frames of a sequence that are in the bucket, then the mean over the "
    "sequences that have any; over_average_db: psnr_db minus that of the average splat on the same frames, with its "
    "interval over sources"
)


@dataclass
class ClipMetrics:
    """Figures of every frame of one clip.

    Attributes:
        clip, source, origin: as in `evaluation.clips.EvaluationClip`.
        times_s: of its N frames, seconds from frame 0.
        motion_px: of its N frames, mean |F| in px of a grid of 256 x 160.
        figures: {method: {figure: (N,)}}, those of `metrics.images.frame_metrics`.
    """

    clip: str
    source: str
    origin: str
    times_s: list[float]
    motion_px: list[float]
    figures: dict[str, dict[str, Tensor]]

    def pooled(self, method: str, chosen: Tensor | None = None) -> dict[str, float]:
        """Pool a method's figures over all frames, or those of a mask (N,) of booleans."""
        figures = self.figures[method]
        return pool_frames(figures if chosen is None else {key: value[chosen] for key, value in figures.items()})


@dataclass
class FrameTables:
    """Makes the tables.

    Attributes:
        rows: {row: names of its methods}, the methods being the seeds of a trained model.
        clips: what was measured.
        seed: of bootstrap and sign flips.
        models: those of the rows that are trained models.
        seeds: {method: seed of its training}, by which differences between seeds are paired.
        absent: figures that could not be measured, as empty columns.
    """

    rows: dict[str, list[str]]
    clips: Sequence[ClipMetrics]
    seed: int = 0
    models: Sequence[str] = ()
    seeds: dict[str, int | None] = field(default_factory=dict)
    absent: Sequence[str] = ()

    @property
    def num_sources(self) -> int:
        """Number of videos that the clips were cut from."""
        return len(set(self._sources))

    @cached_property
    def _sources(self) -> list[str]:
        return [clip.source for clip in self.clips]

    @cached_property
    def _pooled(self) -> dict[str, list[dict[str, float]]]:
        """{method: figures of each clip}."""
        methods = [method for names in self.rows.values() for method in names]
        return {method: [clip.pooled(method) for clip in self.clips] for method in methods}

    @cached_property
    def metric_names(self) -> list[str]:
        """The figures that are compared: psnr_db, ssim, and what else was measured."""
        first = next(iter(self._pooled.values()))[0]
        return [name for name in first if name not in ("psnr_frames_db", "frames")]

    def by_clip_values(self, row: str, figure: str) -> list[float]:
        """Return a row's figure of each clip, the mean over its seeds."""
        of_seeds = [[figures[figure] for figures in self._pooled[method]] for method in self.rows[row]]
        return [statistics.fmean(values) for values in zip(*of_seeds, strict=True)]

    # ------------------------------------------------------------------------------------------------ tables

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each way to render: means over the clips, and the interval of psnr_db."""
        found = []
        for row, methods in self.rows.items():
            means = {name: statistics.fmean(self.by_clip_values(row, name)) for name in self.metric_names}
            low, high = self._interval(self.by_clip_values(row, "psnr_db"))
            line: dict[str, Any] = {
                "row": row,
                "psnr_db": means.pop("psnr_db"),
                "psnr_low_db": low,
                "psnr_high_db": high,
            }
            line |= {"ssim": means.pop("ssim"), **dict.fromkeys(self.absent), **means}
            line |= {"psnr_frames_db": statistics.fmean(self.by_clip_values(row, "psnr_frames_db"))}
            if len(max(self.rows.values(), key=len)) > 1:
                line |= {"seeds": len(methods), "psnr_seed_sd_db": self._seed_sd(row, "psnr_db")}
            found.append(line | self._counts())
        return found

    def by_clip(self) -> list[dict[str, Any]]:
        """Return a row for each clip and method; seeds have rows of their own."""
        return [
            {
                "row": method,
                "clip": clip.clip,
                "source": clip.source,
                "mean_motion_px": statistics.fmean(clip.motion_px),
            }
            | self._pooled[method][place]
            for place, clip in enumerate(self.clips)
            for method in self._pooled
        ]

    def intervals(self) -> list[dict[str, Any]]:
        """Return a row for each way to render and figure: mean, interval over clips, spread over seeds."""
        found = []
        for row, methods in self.rows.items():
            for figure in self.metric_names:
                values = self.by_clip_values(row, figure)
                low, high = self._interval(values)
                line = {"row": row, "figure": figure, "mean": statistics.fmean(values), "low": low, "high": high}
                line |= {"seeds": len(methods), "seed_sd": self._seed_sd(row, figure)}
                found.append(line | self._counts(frames=False))
        return found

    def paired(self) -> list[dict[str, Any]]:
        """Return the differences on the same clips: each two models, and each model and the average splat."""
        pairs = [(second, first) for i, first in enumerate(self.models) for second in self.models[i + 1 :]]
        pairs += [(model, AVERAGE_ROW) for model in self.models if AVERAGE_ROW in self.rows]
        return [self._difference(*pair, figure) for pair in pairs for figure in self.metric_names]

    def by_motion(self) -> list[dict[str, Any]]:
        """Return a row for each way to render and bucket of the frames' mean |F|."""
        return self._buckets("motion_px", MOTION_BUCKETS_PX, lambda clip: clip.motion_px)

    def by_time(self) -> list[dict[str, Any]]:
        """Return a row for each way to render and bucket of the frames' distance from frame 0 in time."""
        return self._buckets("time_s", TIME_BUCKETS_S, lambda clip: clip.times_s)

    # ------------------------------------------------------------------------------------------------ parts

    def _counts(self, *, frames: bool = True) -> dict[str, int]:
        counts = {"sequences": len(self.clips), "sources": self.num_sources}
        return counts | ({"frames": sum(len(clip.times_s) for clip in self.clips)} if frames else {})

    def _interval(
        self, values: Sequence[float], sources: Sequence[str] | None = None
    ) -> tuple[float | None, float | None]:
        return mean_interval(values, self._sources if sources is None else sources, self.seed) or (None, None)

    def _seed_means(self, row: str, figure: str) -> dict[Any, float]:
        """Return {training seed, or the method's name where it is not known: mean over the clips}."""
        found = {}
        for method in self.rows[row]:
            seed = self.seeds.get(method)
            mean = statistics.fmean(figures[figure] for figures in self._pooled[method])
            found[method if seed is None else seed] = mean
        return found

    def _seed_sd(self, row: str, figure: str) -> float | None:
        means = list(self._seed_means(row, figure).values())
        return statistics.stdev(means) if len(means) > 1 else None

    def _difference(self, first: str, second: str, figure: str) -> dict[str, Any]:
        values = [self.by_clip_values(row, figure) for row in (first, second)]
        differences = [one - other for one, other in zip(*values, strict=True)]
        low, high = self._interval(differences)
        sign = -1 if figure.startswith(_LESS_IS_BETTER) else 1
        line = {"row": f"{first} - {second}", "figure": figure, "difference": statistics.fmean(differences)}
        line |= {"low": low, "high": high, "p_value": sign_flip_p(differences, self._sources, self.seed)}
        line["first_better"] = sum(sign * difference > 0 for difference in differences)
        ours, theirs = self._seed_means(first, figure), self._seed_means(second, figure)
        if second not in self.models:  # the same for every seed of the first
            theirs = dict.fromkeys(ours, next(iter(theirs.values())))
        by_seed = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        line |= {"seeds": len(by_seed), "seed_sd": statistics.stdev(by_seed) if len(by_seed) > 1 else None}
        return line | self._counts(frames=False)

    def _buckets(
        self, column: str, edges: Sequence[float], read: Callable[[ClipMetrics], list[float]]
    ) -> list[dict[str, Any]]:
        found = []
        for low, high in zip(edges, (*edges[1:], math.inf), strict=True):
            chosen = {}
            for place, clip in enumerate(self.clips):
                values = torch.tensor(read(clip), dtype=torch.float64)
                inside = (values >= low) & (values < high)
                if bool(inside.any()):
                    chosen[place] = inside
            name = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} and more"
            found += self._bucket({column: name}, chosen) if chosen else []
        return found

    def _bucket(self, where: dict[str, str], chosen: dict[int, Tensor]) -> list[dict[str, Any]]:
        """Return the rows of one bucket from {place of a clip: which of its frames are inside}."""
        clips = {place: self.clips[place] for place in chosen}
        sources = [clip.source for clip in clips.values()]
        psnr, found = {}, []
        for row, methods in self.rows.items():
            pooled = [[clip.pooled(method, chosen[place]) for method in methods] for place, clip in clips.items()]
            values = {
                name: [statistics.fmean(figures[name] for figures in of_seeds) for of_seeds in pooled]
                for name in (*self.metric_names, "psnr_frames_db")
            }
            psnr[row] = values["psnr_db"]
            found.append({"row": row, **where} | {name: statistics.fmean(found) for name, found in values.items()})
        for line in found:
            if AVERAGE_ROW in psnr and line["row"] != AVERAGE_ROW:
                over = [one - other for one, other in zip(psnr[line["row"]], psnr[AVERAGE_ROW], strict=True)]
                low, high = self._interval(over, sources)
                line |= {"over_average_db": statistics.fmean(over), "over_low_db": low, "over_high_db": high}
            else:
                line |= dict.fromkeys(("over_average_db", "over_low_db", "over_high_db"))
            line |= {"sequences": len(clips), "sources": len(set(sources))}
            line["frames"] = sum(int(inside.sum()) for inside in chosen.values())
        return found


def spread(rows: Sequence[Mapping[str, Any]], column: str, figure: str) -> list[dict[str, Any]]:
    """Turn rows of one bucket each into rows of all buckets: {"row": name, bucket: figure, ...}, to print."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["row"], {"row": row["row"]})[row[column]] = row[figure]
    return list(found.values())
