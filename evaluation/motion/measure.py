"""Predicted motion beside real clips: what is measured of each clip, the tables made of it, and a sheet of images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.clips import ClipRow, ClipSet, ClipSetError, source_name
from data.media import contact_sheet, write_image
from data.visualisation import magnitude_image, x_t_slice
from evaluation import EvaluationError, Row
from metrics import motion as metric
from metrics.motion import BASELINES, COHERENCE_DISTANCES_PX, LEAST_PX, bin_ratios, mean_motion, weighted_mean
from metrics.statistics import bootstrap_interval, by_source, known_mean, mean_by_source
from models.motion_pipeline import MotionPipeline
from motion.flow import MOVING_PX, motion_grid_size, resize_maps, resize_spectrum
from motion.normalisation import Normalisation
from motion.spectrum import amplitude, bin_frequencies_hz

MODEL, STATIC, OTHER, REAL = "model", "static", "another clip's motion", "real clip"
# Of each sample by itself, then the mean over samples.
HEADLINE = "ap_corrected"
# Spectra are compared on this grid, whatever the shape of the clips.
NEAREST_GRID = (20, 32)

COHERENCE = {f"coherence_{distance}px": distance for distance in COHERENCE_DISTANCES_PX}
# The columns of the table, and those of them that are geometric means.
_COLUMNS = (
    HEADLINE, "ap_lead", "ap_lead_low", "ap_lead_high",
    *COHERENCE, "direction_distance", "spectral_slope",
    "amplitude_ratio", "amplitude_ratio_spread", "drift_ratio", "bin_ratio_least", "bin_ratio_most",
    "shape_factor", "shape_worst_factor", "shape_worst_bin",
    "motion_px", "epe_best_px", "epe_mean_px", "epe_best_relative", "epe_mean_relative",
    "diversity", "normalised_gradient", "nearest_distance", "nearest_ratio",
)  # fmt: skip
_GEOMETRIC = ("amplitude_ratio", "drift_ratio", "shape_factor")

COLUMN_NOTES = (
    "motion as it is sampled, before its amplitude is limited; means over the clips of a source, then over sources",
    "ap_corrected: (AP - p) / (1 - p), AP the average precision of a sample's mean |F| for the moving mask, p the "
    f"mask's fraction; the mask: mean |F| of the clip above {MOVING_PX:g} px of a grid of 256 x 160 and half of its "
    "95th percentile; image gradient: its blur in px of that grid",
    "amplitude_ratio: of the samples to the clip, geometric mean over bins; spread: exp of its logarithm's standard "
    "deviation over sources; shape_factor: geometric mean over bins of max(r, 1/r), r what amplitude_ratio leaves of a "
    "bin; drift_ratio: r of bin 0; bin_ratio: the least and the most r of the others, means over sources",
    "coherence: correlation over time of the displacements of two pixels that far apart along a row or column, px of a "
    "grid of 256 x 160, both in the moving mask of the motion itself; the clip's pairs are weighted by confidence",
    "direction_distance: total variation between sample and clip of the histogram of motion's axes, 15 degrees each, "
    "weighted by its strength, both in their moving masks; spectral_slope: of log amplitude over log frequency",
    f"{OTHER}: of a training clip of another source drawn by the seed, resized",
    "epe: |F - F of the clip|; relative: to the clip's mean |F|; epe, motion_px and amplitudes are weighted by "
    "confidence; diversity: mean |F_a - F_b| over samples, over mean |F|; normalised_gradient: mean |grad F| over it",
    "nearest_distance: of normalised spectra of unit length to the nearest training clip or its mirror image, for the "
    "real clip of another source; nearest_ratio: over that of the real clip, far below 1 means memorised motion",
)
GROUP_NOTE = "as predicted motion of all: means over the clips of a source, then over sources; real_: of the clips"
BIN_NOTE = (
    "amplitude |S_k| over both directions (bin 0: the drift), mean over pixels weighted by confidence, samples, clips "
    "of a source, sources; ratio_after_gain: geometric mean of model over clip, after one factor a clip; factor: that "
    f"of max(r, 1/r), over clips that move at least {LEAST_PX} px in the bin"
)


@dataclass(frozen=True)
class GroundTruth:
    """A clip that predictions are measured against."""

    id: str
    source: str  # the video it was cut from
    image: Tensor  # (3, H, W) frame 0
    spectrum: Tensor  # (K, 4, H, W) px
    confidence: Tensor  # (1, H, W) in [0, 1]

    @classmethod
    def read(cls, clip_set: ClipSet, row: ClipRow, num_bins: int) -> GroundTruth:
        """Read a kept clip; ClipSetError where a file is missing, damaged, not finite or of another grid."""
        spectrum, confidence = clip_set.spectrum(row.id, num_bins)
        image = clip_set.first(row.id)
        sizes = [tuple(maps.shape[-2:]) for maps in (image, spectrum)]
        if sizes[0] != sizes[1]:
            problem = f"first/ is {sizes[0]} px, spectra/ {sizes[1]}; delete its row in clips.csv and prepare it again"
            raise ClipSetError(f"{clip_set.folder}: clip {row.id}: {problem}")
        return cls(row.id, source_name(row), image, spectrum, confidence)


def predict(pipeline: MotionPipeline, image: Tensor, *, area: int | None = None, **options: Any) -> Tensor:
    """Sample motion for an image (3, H, W) in [0, 1] of any size: (M, K, 4, H, W) px of its own grid.

    It is predicted on a motion grid of `area` px, by default the image's own.
    """
    size = tuple(image.shape[-2:])
    grid = motion_grid_size(*size, area=area or math.prod(size))
    spectra = pipeline(resize_maps(image, grid)[None], **options)[0]
    if not bool(spectra.isfinite().all()):
        raise EvaluationError("checkpoint: the motion it predicts is not finite; right: precision no, or another one")
    return resize_spectrum(spectra.float().cpu(), size)


@dataclass(frozen=True)
class ClipMotion:
    """What is measured of one clip; its fields are what a cluster can keep."""

    clip: str
    source: str
    rows: list[Row]  # of the model, each baseline and the clip itself
    real_px: Tensor  # (K,) mean amplitude per bin
    predicted_px: Tensor  # the same of the samples
    has_mask: bool  # else the moving mask is empty or full, without precision
    signatures: Tensor  # (1 + M, D) of the clip and its samples


def measure_clip(
    truth: GroundTruth, samples: Tensor, normalisation: Normalisation, seed: int = 0, other: Tensor | None = None
) -> ClipMotion:
    """Measure samples (M, K, 4, H, W) px of one clip's image, the baselines, and another clip's (K, 4, H, W) px.

    Nearest clips are found in the units of `normalisation`, the model's; `seed` is of the random row.
    """
    real = mean_motion(truth.spectrum)  # (1, H, W)
    mask = metric.moving_mask(real)
    mask_fraction = float(mask.double().mean())
    real_px = weighted_mean(amplitude(truth.spectrum), truth.confidence)  # (K,)
    predicted_px = weighted_mean(amplitude(samples), truth.confidence).mean(0)
    moved_px = float(weighted_mean(real, truth.confidence))
    rows = {MODEL: _sample_metrics(truth, samples, mask, moved_px, real_px)}
    rows[MODEL]["diversity"] = metric.diversity(samples)
    for name, score in metric.baseline_maps(truth.image, seed, truth.id).items():
        rows[name] = {HEADLINE: metric.chance_corrected_ap(score, mask)}
    rows[STATIC] = {"motion_px": 0.0} | _errors([moved_px], moved_px)
    if other is not None:
        rows[OTHER] = _sample_metrics(truth, other[None], mask, moved_px, real_px)
    rows[REAL] = {"motion_px": moved_px, "normalised_gradient": metric.normalised_gradient(truth.spectrum)}
    coherence = _coherence([truth.spectrum], [mask * truth.confidence])
    rows[REAL] |= {"spectral_slope": metric.spectral_slope(real_px)} | coherence
    about = {"clip": truth.id, "source": truth.source, "mask_fraction": mask_fraction}
    named = [{"row": name} | about | metrics for name, metrics in rows.items()]
    signatures = torch.stack([_signature(one, normalisation).flatten() for one in (truth.spectrum, *samples)])
    return ClipMotion(truth.id, truth.source, named, real_px, predicted_px, 0 < mask_fraction < 1, signatures)


def _sample_metrics(truth: GroundTruth, samples: Tensor, mask: Tensor, moved_px: float, real_px: Tensor) -> Row:
    """Return the metrics of motions (M, K, 4, H, W) of a clip whose moving mask, mean |F| and (K,) are given."""
    moved = torch.stack([mean_motion(sample) for sample in samples])  # (M, 1, H, W)
    masks = [metric.moving_mask(one).float() for one in moved]
    metrics: Row = {HEADLINE: known_mean(metric.chance_corrected_ap(one, mask) for one in moved)}
    metrics["motion_px"] = float(weighted_mean(moved, truth.confidence).mean())
    errors = [mean_motion(sample - truth.spectrum) for sample in samples]
    metrics |= _errors([float(weighted_mean(error, truth.confidence)) for error in errors], moved_px)
    amplitudes = weighted_mean(amplitude(samples), truth.confidence).mean(0)  # (K,)
    metrics |= amplitude_metrics(amplitudes, real_px)
    axes = metric.direction_histogram(truth.spectrum, mask * truth.confidence)
    found = map(metric.direction_histogram, samples, masks)
    metrics["direction_distance"] = known_mean(metric.direction_distance(one, axes) for one in found)
    gradient = known_mean(metric.normalised_gradient(sample) for sample in samples)
    metrics |= {"spectral_slope": metric.spectral_slope(amplitudes), "normalised_gradient": gradient}
    return metrics | _coherence(samples, masks)


def amplitude_metrics(predicted_px: Tensor, real_px: Tensor) -> Row:
    """Compare amplitudes (K,), px: their ratio, what it leaves of the shape and of bin 0; {} where no bin moves."""
    ratios = bin_ratios(predicted_px, real_px)
    if ratios is None:
        return {}
    drift, shape = float(ratios[1][0]), metric.mean_fold_error(ratios[1].tolist())
    found = {"amplitude_ratio": ratios[0], "shape_factor": shape, "drift_ratio": drift}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _signature(spectrum: Tensor, normalisation: Normalisation) -> Tensor:
    """Return a normalised spectrum (K, 4, H, W) on one small grid, of unit length."""
    small = resize_maps(normalisation.normalise(spectrum), NEAREST_GRID)  # (K, 4, h, w)
    return small / small.norm().clamp(min=1e-12)


def _errors(errors_px: list[float], moved_px: float) -> Row:
    px = {"epe_best": min(errors_px), "epe_mean": statistics.fmean(errors_px)}
    relative = {f"{name}_relative": value / moved_px for name, value in px.items() if moved_px > LEAST_PX}
    return {f"{name}_px": value for name, value in px.items()} | relative


def _coherence(spectra: Iterable[Tensor], weights: Iterable[Tensor]) -> Row:
    """Return the mean coherence of motions, each weighted by (1, H, W), a column for each distance."""
    found = list(map(metric.coherence, spectra, weights))
    return {column: known_mean(one[distance] for one in found) for column, distance in COHERENCE.items()}


class MotionTables:
    def __init__(self, clips: Sequence[ClipMotion], normalisation: Normalisation, seed: int = 0) -> None:
        self.clips, self.normalisation, self.seed = clips, normalisation, seed  # the seed is of the bootstrap
        self.by_clip = [dict(row) for clip in clips for row in clip.rows]

    def find_nearest(self, training: Iterable[tuple[str, Tensor]]) -> int:
        """Find how near clips (source, spectrum (K, 4, H, W)) come to each clip and sample; return how many."""
        nearest = {clip.clip: torch.full((len(clip.signatures),), -math.inf) for clip in self.clips}  # cosines
        count = 0
        for source, spectrum in training:
            count += 1
            signature = _signature(spectrum, self.normalisation)
            mirrored = signature.flip(-1) * signature.new_tensor([-1, -1, 1, 1]).view(4, 1, 1)
            both = torch.stack([signature, mirrored]).flatten(1)  # (2, D)
            for clip in self.clips:
                cosines = (clip.signatures @ both.T).amax(1)  # (1 + M,)
                if clip.source == source:
                    cosines[0] = -math.inf  # the clip's neighbours are of other sources; its samples' may be of its own
                nearest[clip.clip] = nearest[clip.clip].maximum(cosines)
        for row in self.by_clip if count else ():
            real, *samples = (2 - 2 * nearest[row["clip"]]).clamp(min=0).sqrt().tolist()
            if row["row"] == REAL and math.isfinite(real):
                row["nearest_distance"] = real
            elif row["row"] == MODEL:
                row["nearest_distance"] = statistics.fmean(samples)
                row["nearest_ratio"] = row["nearest_distance"] / real if 0 < real < math.inf else None
        return count

    def table(self) -> list[Row]:
        """Return a row for the model and each baseline: means over the clips of a source, then over sources."""
        rows = []
        for name in (MODEL, *BASELINES, STATIC, OTHER, REAL):
            row = {key: mean_by_source(self._rows(name), key, geometric=key in _GEOMETRIC) for key in _COLUMNS}
            rows.append({"row": name} | row | (self._metrics_over_clips() if name == MODEL else {}))
        return rows

    def best_baseline(self) -> str | None:
        """Return the baseline of the highest headline metric; None where no clip has a mask."""
        means = {name: mean_by_source(self._rows(name), HEADLINE) for name in BASELINES}
        return max((name for name in BASELINES if means[name] is not None), key=means.__getitem__, default=None)

    def _rows(self, name: str) -> list[Row]:
        return [row for row in self.by_clip if row["row"] == name]

    def _metrics_over_clips(self) -> Row:
        """Return the metrics that need several clips: the model's lead, the spread of its ratio, its worst bin."""
        metrics: Row = {}
        best = self.best_baseline()
        if best is not None:
            model, baseline = (by_source(self._rows(name), HEADLINE) for name in (MODEL, best))
            leads = [model[source] - baseline[source] for source in model]
            low, high = bootstrap_interval(leads, self.seed) or (None, None)
            metrics |= {"ap_lead": statistics.fmean(leads), "ap_lead_low": low, "ap_lead_high": high}
        ratios = by_source(self._rows(MODEL), "amplitude_ratio", geometric=True).values()
        if len(ratios) > 1:
            metrics["amplitude_ratio_spread"] = math.exp(statistics.stdev(map(math.log, ratios)))
        of_bins = self.bin_table()
        left = [row["ratio_after_gain"] for row in of_bins[1:] if row["ratio_after_gain"] is not None]
        metrics |= {"bin_ratio_least": min(left), "bin_ratio_most": max(left)} if left else {}
        bins = {row["factor"]: k for k, row in enumerate(of_bins) if row["factor"] is not None}
        if bins:
            metrics |= {"shape_worst_factor": max(bins), "shape_worst_bin": bins[max(bins)]}
        return metrics

    def group_table(self, groups: Mapping[str, str]) -> list[Row]:
        """Return a row for each group of clips, of {clip: group}: coherence, slope and ratios of model and clips."""
        rows = []
        for group in sorted(set(groups.values())):
            model, real = ([row for row in self._rows(name) if groups[row["clip"]] == group] for name in (MODEL, REAL))
            row: Row = {"row": group, "clips": len(real), "sources": len({clip["source"] for clip in real})}
            for column in (*COHERENCE, "spectral_slope"):
                row |= {column: mean_by_source(model, column), f"real_{column}": mean_by_source(real, column)}
            row["direction_distance"] = mean_by_source(model, "direction_distance")
            row |= {key: mean_by_source(model, key, geometric=True) for key in ("amplitude_ratio", "drift_ratio")}
            rows.append(row)
        return rows

    def bin_table(self) -> list[Row]:
        """Return a row a bin: mean amplitudes, and the ratio that one factor a clip leaves."""
        ratios = [bin_ratios(clip.predicted_px, clip.real_px) for clip in self.clips]
        frequencies_hz = bin_frequencies_hz(self.normalisation.num_bins, self.normalisation.period_s).tolist()
        rows = []
        for k, frequency_hz in enumerate(frequencies_hz):
            clips = []
            for clip, found in zip(self.clips, ratios, strict=True):
                px = {"real_px": float(clip.real_px[k]), "model_px": float(clip.predicted_px[k])}
                left = float(found[1][k]) if found is not None else math.nan
                px |= {} if math.isnan(left) else {"ratio": left, "factor": max(left, 1 / left)}
                clips.append({"source": clip.source} | px)
            row: Row = {"row": f"bin {k:02d}" if k else "bin 00 (drift)", "frequency_hz": frequency_hz}
            row |= {key: mean_by_source(clips, key) for key in ("real_px", "model_px")}
            row["ratio_after_gain"] = mean_by_source(clips, "ratio", geometric=True)
            row["factor"] = mean_by_source(clips, "factor", geometric=True)
            rows.append(row | {"clips": sum("ratio" in clip for clip in clips)})
        return rows


def write_clip_sheet(path: Path, truth: GroundTruth, samples: Tensor) -> None:
    """Write a PNG: frame 0, |F|, mask and x-t slice of a clip; below |F| and slices of samples (M, K, 4, H, W)."""
    real = mean_motion(truth.spectrum)  # (1, H, W)
    maps = mean_motion(samples)  # (M, 1, H, W)
    full_px = max(float(one.flatten().quantile(0.99)) for one in (real, *maps))
    real_map, *maps_shown = [magnitude_image(one, max(full_px, LEAST_PX)) for one in (real, *maps)]
    mask = metric.moving_mask(real).float().expand(3, -1, -1)
    first = [truth.image, real_map, mask, x_t_slice(truth.image, truth.spectrum)]
    write_image(path, contact_sheet([first, maps_shown, [x_t_slice(truth.image, one) for one in samples]]))
