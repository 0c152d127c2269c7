"""Predicted motion beside real clips: what is measured of each clip, the tables made of it, and a sheet of pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.clips import ClipRow, ClipSet, ClipSetError, source_name
from data.media import contact_sheet, write_image
from data.visualisation import magnitude_image, x_t_slice
from metrics.motion import (
    BASELINES,
    LEAST_PX,
    baseline_maps,
    bin_ratios,
    corrected_precision,
    diversity,
    factor,
    loop_closure_error_px,
    mean_motion,
    moving_mask,
    normalised_gradient,
    weighted_mean,
)
from metrics.statistics import BOOTSTRAP_DRAWS, bootstrap_interval, by_source, mean_by_source
from models.motion_pipeline import CALM_PX
from motion.flow import GRID_MULTIPLE, MOVING_PX, motion_grid_size, resize_maps, resize_spectrum
from motion.normalisation import Normalisation
from motion.spectrum import amplitude, bin_frequencies_hz

if TYPE_CHECKING:
    from models.motion_pipeline import MotionPipeline

MODEL, STILL, REAL = "model", "still", "real clip"
# The headline: of each sample by itself, then the mean over samples.
HEADLINE = "ap_corrected"
# Pixels whose flow explains the frames worse than this are left out of ap_confident_corrected.
CONFIDENT = 0.5
# Spectra are compared on this grid, whatever the shape of the clips; a mirrored training clip counts as itself.
NEAREST_GRID = (20, 32)

# The columns of the table, and those of them that are geometric means.
_COLUMNS = (
    HEADLINE, "ap_lead", "ap_lead_low", "ap_lead_high", "ap_of_mean_corrected", "ap_confident_corrected",
    "gain", "amplitude_ratio_spread", "shape_factor", "shape_worst_factor", "shape_worst_bin",
    "motion_px", "epe_best_px", "epe_mean_px", "epe_best_relative", "epe_mean_relative",
    "diversity", "normalised_gradient", "loop_closure_error_px", "nearest_distance", "nearest_ratio",
)  # fmt: skip
_GEOMETRIC = ("gain", "shape_factor")


COLUMN_NOTES = (
    f"measured is the motion as it is sampled; animate.py and generate_motion.py calm theirs to {CALM_PX:g} px (95th "
    "percentile of mean |F| over what moves, of a grid of 256 x 160) where it is more",
    "figures are means over the clips of a source, then over sources (gain and shape: geometric ones); "
    "a source is a group of clips.csv, or a file where no group is named",
    f"ap_corrected (headline): average precision of a sample's mean |F| for the mask mean |F| > max({MOVING_PX:g} px "
    "of a grid of 256 x 160, half of the clip's 95th percentile), as (AP - p) / (1 - p), p the mask's share, then the "
    "mean over samples; all pixels count, for low confidence says that the flow is doubtful where something moves, not "
    "that nothing moves",
    f"ap_confident_corrected: only pixels of confidence {CONFIDENT:g} or above; ap_of_mean_corrected: of the mean over "
    "samples of mean |F|; image gradient: of the grey picture, under a Gaussian blur of px of a grid of 256 x 160",
    "gain: the samples' mean amplitude over the clip's, geometric mean over bins (|S_k| over both directions, bin 0 "
    "the drift); shape: max(r, 1/r) of what this one gain a clip leaves of a bin; amplitude_ratio_spread: exp of the "
    "standard deviation of log gain over sources",
    "epe: |F - F of the clip's own series|, mean over pixels and frames, of the best sample and of all; relative: to "
    "the clip's mean |F|; amplitudes, motion_px and epe are weighted by the clip's confidence",
    "diversity: mean |F_a - F_b| of the pairs of samples over their mean |F|; normalised_gradient: mean |grad F| / "
    "mean |F|, 1/px; loop_closure_error: mean |F_T - F_0|, all of it the drift's, for the harmonics of the "
    "period close exactly",
    f"nearest_distance: to the nearest training clip or its mirror image, of spectra normalised, on a grid of "
    f"{NEAREST_GRID[0]} x {NEAREST_GRID[1]}, scaled to unit length (0 the same, 1.41 unrelated); nearest_ratio: to the "
    "distance of the clip itself, well below 1 where motion is memorised",
)
BIN_NOTE = (
    "amplitude |S_k| over both directions (bin 0: the drift), mean over pixels weighted by the clip's confidence, over "
    "samples, over the clips of a source, over sources; ratio_after_gain: model over clip after one gain a clip, "
    f"geometric mean; factor: that of max(r, 1/r); a bin under {LEAST_PX} px in a clip is left out there"
)


@dataclass(frozen=True)
class GroundTruth:
    """A clip as predictions are measured against it.

    Attributes:
        id, source: of the clip, and of the video it was cut from.
        image: (3, H, W) frame 0.
        spectrum: (K, 4, H, W) px.
        confidence: (1, H, W) in [0, 1].
    """

    id: str
    source: str
    image: Tensor
    spectrum: Tensor
    confidence: Tensor

    @classmethod
    def read(cls, clip_set: ClipSet, row: ClipRow, num_bins: int) -> GroundTruth:
        """Read a kept clip; ClipSetError where a file is missing, damaged, not finite or of another grid."""
        spectrum, confidence = clip_set.spectrum(row.id, num_bins)
        image = clip_set.first(row.id)
        if not image.shape[-2:] == spectrum.shape[-2:] == confidence.shape[-2:]:
            raise ClipSetError(
                f"{clip_set.folder}: clip {row.id}: first/ is {tuple(image.shape[-2:])} px, spectra/ "
                f"{tuple(spectrum.shape[-2:])}; delete its row in clips.csv and prepare it again"
            )
        return cls(row.id, source_name(row), image, spectrum, confidence)


def prediction_grid(height: int, width: int) -> tuple[int, int]:
    """Return the grid that a clip's motion is predicted on: its own, or one of its area with sides of 32 n px."""
    if height % GRID_MULTIPLE == 0 and width % GRID_MULTIPLE == 0:
        return height, width
    return motion_grid_size(height, width, area=height * width)


def predict(pipeline: MotionPipeline, image: Tensor, **options: Any) -> Tensor:
    """Sample motion for a picture (3, H, W) in [0, 1] of any size: (M, K, 4, H, W) px of its own grid."""
    size = tuple(image.shape[-2:])
    spectra = pipeline(resize_maps(image, prediction_grid(*size))[None], **options)[0]
    return resize_spectrum(spectra.float().cpu(), size)


@dataclass
class MotionComparison:
    """Collects clips and what a model predicted for them, and makes the tables.

    Attributes:
        normalisation: the model's: in its units nearest clips are found.
        seed: of the random row and the bootstrap.
        by_clip: a row of figures for each clip and way.
        sources: {clip: source}.
        without_mask: clips whose mask is empty or full; they have no average precision.
        real_px, predicted_px: {clip: (K,) mean amplitude per bin}, and of its samples.
    """

    normalisation: Normalisation
    seed: int = 0
    by_clip: list[dict[str, Any]] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    without_mask: list[str] = field(default_factory=list)
    real_px: dict[str, Tensor] = field(default_factory=dict)
    predicted_px: dict[str, Tensor] = field(default_factory=dict)
    _signatures: dict[str, Tensor] = field(default_factory=dict)

    # -------------------------------------------------------------------------------------------- a clip

    def add(self, truth: GroundTruth, samples: Tensor) -> None:
        """Measure the samples (M, K, 4, H, W) px of one clip's picture, and the trivial ways."""
        self.sources[truth.id] = truth.source
        real = mean_motion(truth.spectrum)  # (1, H, W)
        predicted = torch.stack([mean_motion(sample) for sample in samples])  # (M, 1, H, W)
        mask = moving_mask(real)
        share = float(mask.double().mean())
        if not 0 < share < 1:
            self.without_mask.append(truth.id)
        moved_px = float(weighted_mean(real, truth.confidence))
        maps = baseline_maps(truth.image, self.seed, truth.id)
        rows = {MODEL: self._of_model(truth, samples, predicted, moved_px)}
        rows[MODEL] |= _placement(predicted, mask, truth.confidence)
        rows |= {name: _placement(score[None], mask, truth.confidence) for name, score in maps.items()}
        still = {"motion_px": 0.0, "loop_closure_error_px": 0.0} | _errors([moved_px], moved_px)
        rows |= {STILL: still, REAL: {"motion_px": moved_px} | _shape_of(truth.spectrum)}
        about = {"clip": truth.id, "source": truth.source, "mask_share": share}
        self.by_clip += [{"row": name} | about | figures for name, figures in rows.items()]
        self._signatures[truth.id] = torch.stack([self._signature(one) for one in (truth.spectrum, *samples)])

    def _of_model(self, truth: GroundTruth, samples: Tensor, predicted: Tensor, moved_px: float) -> dict[str, Any]:
        errors = [mean_motion(sample - truth.spectrum) for sample in samples]
        self.real_px[truth.id] = weighted_mean(amplitude(truth.spectrum), truth.confidence)  # (K,)
        self.predicted_px[truth.id] = weighted_mean(amplitude(samples), truth.confidence).mean(0)
        figures: dict[str, Any] = {"motion_px": float(weighted_mean(predicted, truth.confidence).mean())}
        ratios = bin_ratios(self.predicted_px[truth.id], self.real_px[truth.id])
        if ratios is not None:
            figures |= {"gain": ratios[0], "shape_factor": factor(ratios[1].tolist())}
        figures |= _errors([float(weighted_mean(error, truth.confidence)) for error in errors], moved_px)
        shapes = [_shape_of(sample) for sample in samples]
        return figures | {"diversity": diversity(samples)} | {key: _mean(s[key] for s in shapes) for key in shapes[0]}

    # -------------------------------------------------------------------------------------------- memorising

    def _signature(self, spectrum: Tensor) -> Tensor:
        """Return a normalised spectrum (K, 4, H, W) on one small grid, of unit length."""
        small = resize_maps(self.normalisation.normalise(spectrum), NEAREST_GRID)  # (K, 4, h, w)
        return small / small.norm().clamp(min=1e-12)

    def find_nearest(self, clips: Iterable[tuple[str, Tensor]]) -> int:
        """Find each clip's and each sample's nearest of training clips (name, spectrum (K, 4, H, W)); return how many.

        The distance is that of normalised spectra on a grid of 20 x 32, scaled to unit length: 0 the same motion, 1.41
        unrelated ones, whatever their strength. A clip is not its own neighbour; its samples may be.
        """
        nearest = {name: [(math.inf, "")] * len(found) for name, found in self._signatures.items()}
        count = 0
        for training_name, spectrum in clips:
            count += 1
            signature = self._signature(spectrum)
            mirrored = signature.flip(-1) * signature.new_tensor([-1, -1, 1, 1]).view(4, 1, 1)
            both = torch.stack([signature, mirrored]).flatten(1)  # (2, D)
            for name, found in self._signatures.items():
                cosine = (found.flatten(1) @ both.T).amax(1)  # (1 + M,)
                distance = (2 - 2 * cosine).clamp(min=0).sqrt().tolist()
                for place, value in enumerate(distance):
                    is_itself = place == 0 and training_name == name
                    if not is_itself and value < nearest[name][place][0]:
                        nearest[name][place] = (value, training_name)
        if count:
            self._note_nearest(nearest)
        return count

    def _note_nearest(self, nearest: dict[str, list[tuple[float, str]]]) -> None:
        for row in self.by_clip:
            truth, *samples = nearest[row["clip"]]
            if row["row"] == REAL and math.isfinite(truth[0]):
                row |= {"nearest_distance": truth[0], "nearest_clip": truth[1]}
            if row["row"] == MODEL:
                mean = statistics.fmean(distance for distance, _ in samples)
                row |= {"nearest_distance": mean, "nearest_clip": min(samples)[1]}
                row["nearest_ratio"] = mean / truth[0] if 0 < truth[0] < math.inf else None

    # -------------------------------------------------------------------------------------------- tables

    def table(self) -> list[dict[str, Any]]:
        """Return a row for the model and each trivial way: means over the clips of a source, then over sources."""
        rows = []
        for name in (MODEL, *BASELINES, STILL, REAL):
            of_name = self._rows(name)
            row = {key: mean_by_source(of_name, key, geometric=key in _GEOMETRIC) for key in _COLUMNS}
            rows.append({"row": name} | row | (self._of_all_clips() if name == MODEL else {}))
        return rows

    def best_baseline(self) -> str | None:
        """Return the trivial row of the highest headline figure; None where no clip has a mask."""
        found = {name: mean_by_source(self._rows(name), HEADLINE) for name in BASELINES}
        known = {name: mean for name, mean in found.items() if mean is not None}
        return max(known, key=known.__getitem__) if known else None

    def _rows(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.by_clip if row["row"] == name]

    def _of_all_clips(self) -> dict[str, Any]:
        """Return the model's figures that no clip has by itself: its lead, the spread of its gain, its worst bin."""
        figures: dict[str, Any] = {}
        best = self.best_baseline()
        if best is not None:
            model, trivial = (by_source(self._rows(name), HEADLINE) for name in (MODEL, best))
            leads = [model[source] - trivial[source] for source in model]
            low, high = bootstrap_interval(leads, self.seed) or (None, None)
            figures |= {"ap_lead": statistics.fmean(leads), "ap_lead_low": low, "ap_lead_high": high}
        gains = by_source(self._rows(MODEL), "gain", geometric=True).values()
        if len(gains) > 1:
            figures["amplitude_ratio_spread"] = math.exp(statistics.stdev(map(math.log, gains)))
        bins = {row["factor"]: k for k, row in enumerate(self.bin_table()) if row["factor"] is not None}
        if bins:
            figures |= {"shape_worst_factor": max(bins), "shape_worst_bin": bins[max(bins)]}
        return figures

    def notes(self) -> list[str]:
        """Say what the columns are, and what the lead is over."""
        return [
            *COLUMN_NOTES,
            f"ap_lead: over the best trivial row, {self.best_baseline()}; 95 % interval by {BOOTSTRAP_DRAWS} bootstrap "
            "draws of the sources",
        ]

    def bin_table(self) -> list[dict[str, Any]]:
        """Return a row a bin: mean amplitudes, and the ratio that one gain a clip leaves."""
        ratios = {name: bin_ratios(self.predicted_px[name], real) for name, real in self.real_px.items()}
        ratios = {name: found[1].tolist() for name, found in ratios.items() if found is not None}
        frequency = bin_frequencies_hz(self.normalisation.num_bins, self.normalisation.period_s).tolist()
        rows = []
        for k, hertz in enumerate(frequency):
            clips = [
                {
                    "source": source,
                    "real_px": float(self.real_px[name][k]),
                    "model_px": float(self.predicted_px[name][k]),
                }
                for name, source in self.sources.items()
            ]
            left = [
                {"source": self.sources[name], "ratio": found[k], "factor": max(found[k], 1 / found[k])}
                for name, found in ratios.items()
                if not math.isnan(found[k])
            ]
            row: dict[str, Any] = {"row": f"bin {k:02d}" if k else "bin 00 (drift)", "frequency_hz": hertz}
            row |= {key: mean_by_source(clips, key) for key in ("real_px", "model_px")}
            row |= {"ratio_after_gain": mean_by_source(left, "ratio", geometric=True)}
            rows.append(row | {"factor": mean_by_source(left, "factor", geometric=True), "clips": len(left)})
        return rows


def _placement(maps: Tensor, mask: Tensor, confidence: Tensor) -> dict[str, Any]:
    """Rate maps (M, 1, H, W) of one or more samples as guesses of where the clip moves."""
    seen = confidence >= CONFIDENT
    return {
        HEADLINE: _mean(corrected_precision(one, mask) for one in maps),
        "ap_of_mean_corrected": corrected_precision(maps.mean(0), mask),
        "ap_confident_corrected": _mean(corrected_precision(one[seen], mask[seen]) for one in maps),
    }


def _errors(errors_px: Sequence[float], moved_px: float) -> dict[str, Any]:
    figures = {"epe_best_px": min(errors_px), "epe_mean_px": statistics.fmean(errors_px)}
    relative = {
        key.replace("px", "relative"): value / moved_px for key, value in figures.items() if moved_px > LEAST_PX
    }
    return figures | relative


def _shape_of(spectrum: Tensor) -> dict[str, Any]:
    return {
        "normalised_gradient": normalised_gradient(spectrum),
        "loop_closure_error_px": loop_closure_error_px(spectrum),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def write_clip_sheet(path: Path, truth: GroundTruth, samples: Tensor) -> None:
    """Write a PNG of one picture: what its clip does above, what the samples (M, K, 4, H, W) do below.

    First row: frame 0, the clip's mean |F|, its mask, its x-t slice; second: each sample's mean |F|; third: each
    sample's x-t slice. White is the same number of px in all: the highest 99th percentile of clip and samples.
    """
    real = mean_motion(truth.spectrum)  # (1, H, W)
    maps = mean_motion(samples)  # (M, 1, H, W)
    full_px = max(float(one.flatten().quantile(0.99)) for one in (real, *maps))
    real_picture, *pictures = [magnitude_image(one, max(full_px, LEAST_PX)) for one in (real, *maps)]
    mask = moving_mask(real).float().expand(3, -1, -1)
    first = [truth.image, real_picture, mask, x_t_slice(truth.image, truth.spectrum)]
    write_image(path, contact_sheet([first, pictures, [x_t_slice(truth.image, one) for one in samples]]))
