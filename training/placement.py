"""Training of the placement head: its data set, loss and validation."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.clips import SampleKey
from data.media import contact_sheet, write_image
from data.order import evenly
from data.visualisation import magnitude_over
from metrics.motion import chance_corrected_ap, placement_metrics
from models.class_maps import probability_of
from models.displacement import QUANTILE, relative_displacement
from models.placement import STRIDE, PlacementHead, classes_in, colours_in, placed_displacement
from motion.flow import MOVING_PX, default_grid_scale, resize_maps
from training.data_order import sample_uniform
from training.flow_bleeding import STATIC_CLASSES, find_bleeding
from training.motion_diffusion import feature_dropout_mask
from training.placement_samples import MAPS, PlacementSample

# Fraction of the samples of each kind.
FRACTIONS = {"photograph": 0.6, "clip": 0.2, "scene": 0.2}
# What can move and what cannot get equal total weight in a photograph, by factors from 1/4 to 4. One with less than
# 0.5 % of either stays as it is.
MOST_BALANCE, LEAST_BALANCED = 4.0, 0.005
# Training sees windows of this many numbers of the maps a side, of whole images' features.
WINDOW = 24
FEATURE_DROPOUT, PART_DROPOUT = 0.3, 0.15
# A place of a clip moves above max(MOVING_PX, 0.25 strength) and rests below max(0.05 px, 0.05 strength).
CLIP_MOVES, CLIP_RESTS, CLIP_RESTS_PX = 0.25, 0.05, 0.05
# Flow says that something moves; that it can never move it says only where segmentation agrees.
REST_WEIGHT = 0.5
CLIP_WEIGHT, SCENE_WEIGHT = 0.5, 0.5
RELATIVE_WEIGHT, STRENGTH_WEIGHT = 0.5, 0.25
LEAST_CONFIDENCE = 0.2
LEAST_STRENGTH_PX = 0.05
SHEET_ROWS = 12


class PlacementDataset(Dataset):
    """Windows of samples, mirrored half of the time: dataset[SampleKey] by the key's seed alone.

    Gives the maps of `PlacementSample` as (C, WINDOW, WINDOW), "mean" (C,) of the whole features, and the scalars
    "strength_px", "is_clip" and "is_scene". A kind without any samples leaves its fraction to the others.
    """

    def __init__(self, samples: Sequence[PlacementSample]) -> None:
        prepare = {"photograph": _balanced, "clip": _without_bleeding, "scene": lambda sample: sample}
        self.samples = [prepare[sample.kind](sample) for sample in samples]
        by_kind = Counter()
        for sample in self.samples:
            by_kind[sample.kind] += sample.weight
        chances = np.array([FRACTIONS[sample.kind] * sample.weight / by_kind[sample.kind] for sample in self.samples])
        self.chances = chances / chances.sum()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        """Draw a sample and a window of it."""
        rng = np.random.default_rng(key.seed)
        return _window(self.samples[int(rng.choice(len(self.samples), p=self.chances))], rng)


def _balanced(sample: PlacementSample) -> PlacementSample:
    """Let what can move and what cannot count alike in a photograph, as in coverage and leak; within MOST_BALANCE."""
    known, movable = sample.known.float(), sample.movable.float()
    total, fraction = known.sum(), float((known * movable).sum() / known.sum().clamp(min=1e-6))
    if not LEAST_BALANCED < fraction < 1 - LEAST_BALANCED:
        return sample
    there, elsewhere = (min(max(0.5 / part, 1 / MOST_BALANCE), MOST_BALANCE) for part in (fraction, 1 - fraction))
    weight = known * (movable * there + (1 - movable) * elsewhere)
    return sample._replace(known=(weight * total / weight.sum()).half())


def _without_bleeding(sample: PlacementSample) -> PlacementSample:
    """Take the confidence from flow that bled onto what cannot move."""
    probabilities = classes_in(sample.features[None].float())
    bled = find_bleeding(sample.displacement[None].float(), probabilities, STRIDE)[0]  # (1, h, w)
    return sample._replace(confidence=sample.confidence.masked_fill(bled, 0))


def _window(sample: PlacementSample, rng: np.random.Generator) -> dict[str, Tensor]:
    height, width = sample.features.shape[-2:]
    top, left = (int(rng.integers(max(side - WINDOW, 0) + 1)) for side in (height, width))
    mirrored = rng.random() < 0.5

    def cut(maps: Tensor) -> Tensor:
        maps = maps[:, top : top + WINDOW, left : left + WINDOW].float()
        maps = F.pad(maps, (0, WINDOW - maps.shape[-1], 0, WINDOW - maps.shape[-2]))
        return maps.flip(-1) if mirrored else maps

    return {name: cut(getattr(sample, name)) for name in MAPS} | {
        "mean": sample.features.float().mean((1, 2)),
        "strength_px": torch.tensor(sample.strength_px),
        "is_clip": torch.tensor(float(sample.kind == "clip")),
        "is_scene": torch.tensor(float(sample.kind == "scene")),
    }


def placement_loss(model: nn.Module, batch: dict[str, Tensor], *, parts: Sequence[int]) -> dict[str, Tensor]:
    """Return the "loss" of a `PlacementHead` of these `parts` on items of a `PlacementDataset` and their "seed" (B,).

    Also its terms: "movable", the cross-entropy of what can move, and "relative" and "strength", the absolute errors of
    log(m / q + 0.1) and of log q.
    """
    mask = dropout_mask(parts, batch["seed"], batch["features"].device)
    found = model(batch["features"], batch["mean"], mask, batch["seed"])
    is_clip, is_scene = (batch[name].view(-1, 1, 1, 1) for name in ("is_clip", "is_scene"))
    strength = batch["strength_px"].view(-1, 1, 1, 1)
    moves = (strength >= MOVING_PX).float() * (is_clip + is_scene)
    strength = strength.clamp(min=LEAST_STRENGTH_PX)
    probabilities = classes_in(batch["features"])
    movable, known = clip_labels(batch, strength, probability_of(probabilities, STATIC_CLASSES))
    weight = batch["known"] * (1 - is_scene + SCENE_WEIGHT * is_scene) + CLIP_WEIGHT * is_clip * known
    target = torch.where(is_clip > 0, movable, batch["movable"])
    log_odds = found.by_class + found.correction
    placed = (F.binary_cross_entropy_with_logits(log_odds, target, reduction="none") * weight).mean()
    wanted = relative_displacement(batch["displacement"], strength.flatten())
    # What fills up a window beyond the image shows no class.
    inside = (probabilities.sum(1, keepdim=True) > 0.5).float()
    sure = inside * moves * (is_scene + is_clip * (LEAST_CONFIDENCE + (1 - LEAST_CONFIDENCE) * batch["confidence"]))
    relative = ((found.relative - wanted).abs() * sure).mean()
    strong = ((found.log_strength - strength.flatten().log()).abs() * moves.flatten()).mean()
    loss = placed + RELATIVE_WEIGHT * relative + STRENGTH_WEIGHT * strong
    terms = {"movable": placed, "relative": relative, "strength": strong}
    return {"loss": loss} | {name: value.detach() for name, value in terms.items()}


def clip_labels(batch: dict[str, Tensor], strength: Tensor, static: Tensor) -> tuple[Tensor, Tensor]:
    """Tell from a clip's flow what moves, and how sure that is: (B, 1, h, w) 0 or 1 and a weight.

    Flow that bleeds over an edge is not confident. What rests in a clip may move in another wind, so that it counts
    as static only as far as segmentation agrees, `static` (B, 1, h, w).
    """
    displacement, confidence = batch["displacement"], batch["confidence"]
    moving = (displacement > (CLIP_MOVES * strength).clamp(min=MOVING_PX)).float() * confidence
    resting = (displacement < (CLIP_RESTS * strength).clamp(min=CLIP_RESTS_PX)).float() * REST_WEIGHT * static
    return (moving > resting).float(), moving + resting


def dropout_mask(parts: Sequence[int], seeds: Tensor, device: torch.device) -> Tensor:
    """Return (B, C) 0 for features that a sample does not see, alone or with the whole part they belong to."""
    mask = feature_dropout_mask(sum(parts), seeds, device, FEATURE_DROPOUT)
    whole = sample_uniform((len(seeds), len(parts)), seeds, device, stream=5) >= PART_DROPOUT
    whole[:, -1] = True  # colours and gradients
    return mask * whole.repeat_interleave(torch.tensor(parts, device=device), dim=1)


def _expected(head: PlacementHead, sample: PlacementSample) -> tuple[Tensor, Tensor]:
    """Return the image (3, H, W) as coarse as the head reads it, and its expected displacement (1, H, W) px of it."""
    features = sample.features[None].float().to(next(head.parameters()).device)
    image = F.interpolate(colours_in(features), scale_factor=STRIDE, mode="bilinear")
    return image[0].cpu(), placed_displacement(head.predict(features), image)[0].cpu()


@torch.no_grad()
def validation_placement(head: PlacementHead, *, samples: Sequence[PlacementSample]) -> dict[str, float]:
    """Measure the expected displacement of whole images, at the head's resolution.

    validation_ap: of clips and scenes, chance-corrected average precision for the places that move; validation_gain:
    geometric mean of their predicted over real strength q; validation_coverage, _leak, _mask_ap: of photographs, as
    `metrics.motion.placement_metrics` has them. Each is absent where nothing is known of it.
    """
    found: dict[str, list[float | None]] = {"ap": [], "gain": [], "coverage": [], "leak": [], "mask_ap": []}
    for sample in samples:
        image, expected = _expected(head, sample)
        if sample.kind == "photograph":
            known, movable = sample.known > 0.5, sample.movable > 0.5
            metrics = placement_metrics(expected, movable & known, ~movable & known)
            for name in ("coverage", "leak"):
                found[name].append(metrics[name])
            found["mask_ap"].append(metrics["ap"])
            continue
        expected = expected * default_grid_scale(*expected.shape[-2:])
        moves = sample.displacement > max(MOVING_PX, 0.5 * sample.strength_px)
        found["ap"].append(chance_corrected_ap(F.avg_pool2d(expected, STRIDE), moves))
        strength_px = float(expected.flatten().quantile(QUANTILE))
        found["gain"].append(math.log(max(strength_px, LEAST_STRENGTH_PX) / max(sample.strength_px, LEAST_STRENGTH_PX)))
    means = {name: [value for value in values if value is not None] for name, values in found.items()}
    metrics = {f"validation_{name}": statistics.fmean(values) for name, values in means.items() if values}
    if "validation_gain" in metrics:
        metrics["validation_gain"] = math.exp(metrics["validation_gain"])
    return metrics


@torch.no_grad()
def write_placement_sheet(head: PlacementHead, step: int, folder: Path, *, samples: Sequence[PlacementSample]) -> None:
    """Write a PNG with a row an image: it, its mask or how far its clip moves, and how far it is expected to."""
    rows = []
    for sample in (samples[index] for index in evenly(len(samples), SHEET_ROWS)):
        image, expected = _expected(head, sample)
        size = tuple(image.shape[-2:])
        if sample.kind == "photograph":
            truth = 0.5 * image + 0.5 * resize_maps(sample.movable.float(), size)
        else:
            scale = default_grid_scale(*size)
            truth = magnitude_over(image, resize_maps(sample.displacement.float(), size) / scale)
        rows.append([image, truth, magnitude_over(image, expected)])
    write_image(folder / f"displacement-{step:07d}.png", contact_sheet(rows))
