"""Training of the placement head, on masked photographs, the flow of clips and the exact motion of rendered scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from data.augmentation import draw_geometry, jitter_colours
from data.clips import KEPT, PAIRS_ONLY, ClipSet, SampleKey, source_name
from data.masks import MOVABLE, UNSURE, MaskedPhotograph
from models.displacement import QUANTILE, relative_displacement
from models.placement import STRIDE, PlacementHead
from models.segmentation_classes import CLASSES
from motion.flow import MOVING_PX, default_grid_scale, motion_grid_size, resize_maps
from training.motion_diffusion import feature_dropout_mask, sample_uniform

# Sizes of augmented samples, (H, W) px; each is drawn at the one nearest to its own aspect.
SIZES = ((160, 256), (256, 160), (192, 224))
CROP_AREA = (0.35, 1.0)
# Fraction of the samples of each kind.
FRACTIONS = {"photograph": 0.6, "clip": 0.2, "scene": 0.2}
# Photographs of these subjects, and clips whose source is named after them, are rare and come more often.
RARE, RARE_WEIGHT = ("fire", "candle", "cloth"), 2.0
# Training sees windows of this many numbers of the maps a side, of whole images' features.
WINDOW = 24
FEATURE_DROPOUT, PART_DROPOUT = 0.3, 0.15
# A scene's place can move where its mean displacement is above this, px of a grid of 256 x 160.
SCENE_MOVES_PX = 0.02
# A clip's place moves above MOVING_PX and this fraction of its strength, and rests below the other two.
CLIP_MOVES, CLIP_RESTS, CLIP_RESTS_PX = 0.25, 0.05, 0.05
# Flow says that something moves; that it can never move it says only where segmentation agrees.
MAY_MOVE = ("other", "tree", "grass", "person", "plant", "curtain", "water", "sea", "field")
REST_WEIGHT = 0.5
CLIP_WEIGHT, SCENE_WEIGHT = 0.5, 0.5
RELATIVE_WEIGHT, STRENGTH_WEIGHT = 0.5, 0.25
LEAST_CONFIDENCE = 0.2
LEAST_STRENGTH_PX = 0.05


class PlacementSample(NamedTuple):
    """Frozen features of one augmented image and what is known of it, maps of its stride-4 grid in float16.

    Attributes:
        kind: "photograph", "clip" or "scene".
        features: (C, h, w), see `PlacementHead.features`.
        movable, known: (1, h, w) fraction of a place that can move, and weight of that; clips have none.
        displacement: (1, h, w) mean |F_t|, px of a grid of 256 x 160.
        confidence: (1, h, w) of the displacement.
        strength_px: its 95th percentile.
        weight: how often it is drawn.
    """

    kind: str
    features: Tensor
    movable: Tensor
    known: Tensor
    displacement: Tensor
    confidence: Tensor
    strength_px: float
    weight: float


Features = Callable[[Tensor], Tensor]  # image (3, H, W) to features (C, h, w)


def photograph_samples(
    photographs: Sequence[MaskedPhotograph], features: Features, *, variants: int, seed: int
) -> list[PlacementSample]:
    """Compute samples of masked photographs: each whole, and cropped and recoloured in `variants` ways."""
    counts = Counter(photograph.source for photograph in photographs)
    samples = []
    for number, photograph in enumerate(photographs):
        image, mask = photograph.read()
        maps = torch.cat([mask == MOVABLE, mask != UNSURE]).float()  # (2, h, w)
        maps = F.interpolate(maps[None], size=tuple(image.shape[-2:]))[0]  # nearest: (2, H, W)
        weight = counts[photograph.source] ** -0.5 * (RARE_WEIGHT if photograph.subject in RARE else 1.0)
        for variant in range(1 + variants):
            rng = np.random.default_rng([seed, number, variant]) if variant else None
            shown, (both,), _ = _augmented(image, [maps], rng)
            movable, known = F.avg_pool2d(both, STRIDE).split(1)  # (1, h, w) each
            empty = torch.zeros_like(known)
            values = (features(shown), movable / known.clamp(min=1e-6), known, empty, empty)
            samples.append(PlacementSample("photograph", *(value.half() for value in values), 0.0, weight))
    return samples


def clip_samples(
    clip_set: ClipSet, split: str, features: Features, *, variants: int, seed: int
) -> list[PlacementSample]:
    """Compute samples of the clips and scenes of a set, as `photograph_samples`."""
    rows = [
        row
        for row in clip_set.rows(split, status=(KEPT, PAIRS_ONLY))
        if row.status == KEPT or clip_set.has_pairs(row.id)
    ]
    counts = Counter(source_name(row) for row in rows)
    samples = []
    for number, row in enumerate(rows):
        image, displacement = clip_set.first(row.id), clip_set.displacement(row.id).float()
        is_scene = row.source.startswith("scene:")
        confidence = clip_set.spectrum(row.id)[1].float() if row.status == KEPT else torch.ones_like(displacement)
        rare = any(word in source_name(row) for word in RARE)
        weight = counts[source_name(row)] ** -0.5 * (RARE_WEIGHT if rare else 1.0)
        for variant in range(1 + (0 if is_scene else variants)):
            rng = np.random.default_rng([seed, number, variant]) if variant else None
            shown, (moved, sure), zoom = _augmented(image, [displacement, confidence], rng)
            moved = moved * zoom * default_grid_scale(*shown.shape[-2:])
            strength = float(moved.flatten().quantile(QUANTILE))
            moved, sure = F.avg_pool2d(moved, STRIDE), F.avg_pool2d(sure, STRIDE)
            movable = (moved > SCENE_MOVES_PX).float()
            known = torch.full_like(moved, float(is_scene))
            values = (features(shown), movable, known, moved, sure)
            kind = "scene" if is_scene else "clip"
            samples.append(PlacementSample(kind, *(value.half() for value in values), strength, weight))
    return samples


def _augmented(
    image: Tensor, maps: Sequence[Tensor], rng: np.random.Generator | None
) -> tuple[Tensor, list[Tensor], float]:
    """Bring an image (3, H, W) and maps of its size to the motion grid, cropped and recoloured where `rng` is given.

    Returns:
        the image, the maps, and how much larger lengths are.
    """
    height, width = image.shape[-2:]
    if rng is None:
        grid = motion_grid_size(height, width)
        zoom = (grid[0] * grid[1] / (height * width)) ** 0.5
        return resize_maps(image, grid), [resize_maps(found, grid) for found in maps], zoom
    size = min(SIZES, key=lambda size: abs(np.log(size[1] / size[0] * height / width)))
    geometry = draw_geometry((height, width), size, rng, area=CROP_AREA)
    zoom = (size[0] * size[1] / (geometry.height * geometry.width)) ** 0.5
    return jitter_colours(geometry.maps(image), rng), [geometry.maps(found) for found in maps], zoom


class PlacementDataset(Dataset):
    """Windows of samples, mirrored half of the time: dataset[SampleKey] by the key's seed alone.

    Gives the maps of `PlacementSample` as (C, WINDOW, WINDOW), "mean" (C,) of the whole features, and the scalars
    "strength_px", "is_clip" and "is_scene".

    Args:
        samples: at least one; a kind without any leaves its fraction to the others.
    """

    def __init__(self, samples: Sequence[PlacementSample]) -> None:
        self.samples = list(samples)
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


def _window(sample: PlacementSample, rng: np.random.Generator) -> dict[str, Tensor]:
    height, width = sample.features.shape[-2:]
    top, left = (int(rng.integers(max(side - WINDOW, 0) + 1)) for side in (height, width))
    mirrored = rng.random() < 0.5

    def cut(maps: Tensor) -> Tensor:
        maps = maps[:, top : top + WINDOW, left : left + WINDOW].float()
        maps = F.pad(maps, (0, WINDOW - maps.shape[-1], 0, WINDOW - maps.shape[-2]))
        return maps.flip(-1) if mirrored else maps

    names = ("features", "movable", "known", "displacement", "confidence")
    return {name: cut(getattr(sample, name)) for name in names} | {
        "mean": sample.features.float().mean((1, 2)),
        "strength_px": torch.tensor(sample.strength_px),
        "is_clip": torch.tensor(float(sample.kind == "clip")),
        "is_scene": torch.tensor(float(sample.kind == "scene")),
    }


def placement_loss(head: PlacementHead, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the cross-entropy of what can move, and the absolute errors of log(m / q + .1) and of log q.

    Args:
        head: trained.
        batch: items of a `PlacementDataset`, and their "seed" (B,).

    Returns:
        "loss", and its parts "movable", "relative" and "strength".
    """
    mask = dropout_mask(head.parts, batch["seed"], batch["features"].device)
    found = head(batch["features"], batch["mean"], mask)
    is_clip, is_scene = (batch[name].view(-1, 1, 1, 1) for name in ("is_clip", "is_scene"))
    strength = batch["strength_px"].view(-1, 1, 1, 1)
    moves = (strength >= MOVING_PX).float() * (is_clip + is_scene)
    strength = strength.clamp(min=LEAST_STRENGTH_PX)
    movable, known = clip_labels(batch, strength, _static_probability(head.class_probabilities(batch["features"])))
    weight = batch["known"] * (1 - is_scene + SCENE_WEIGHT * is_scene) + CLIP_WEIGHT * is_clip * known
    target = torch.where(is_clip > 0, movable, batch["movable"])
    placed = (F.binary_cross_entropy_with_logits(found.movable, target, reduction="none") * weight).mean()
    wanted = relative_displacement(batch["displacement"], strength.flatten())
    sure = moves * (is_scene + is_clip * (LEAST_CONFIDENCE + (1 - LEAST_CONFIDENCE) * batch["confidence"]))
    relative = ((found.relative - wanted).abs() * sure).mean()
    strong = ((found.log_strength - strength.flatten().log()).abs() * moves.flatten()).mean()
    loss = placed + RELATIVE_WEIGHT * relative + STRENGTH_WEIGHT * strong
    parts = {"movable": placed, "relative": relative, "strength": strong}
    return {"loss": loss} | {name: value.detach() for name, value in parts.items()}


def clip_labels(batch: dict[str, Tensor], strength: Tensor, static: Tensor) -> tuple[Tensor, Tensor]:
    """Tell from a clip's flow what moves, and how sure that is: (B, 1, h, w) 0 or 1 and a weight.

    Flow that bleeds over an edge is not confident. What rests in a clip may move in another wind, so that it counts
    as static only as far as segmentation agrees, `static` (B, 1, h, w).
    """
    displacement, confidence = batch["displacement"], batch["confidence"]
    moving = (displacement > (CLIP_MOVES * strength).clamp(min=MOVING_PX)).float() * confidence
    resting = (displacement < (CLIP_RESTS * strength).clamp(min=CLIP_RESTS_PX)).float() * REST_WEIGHT * static
    return (moving > resting).float(), moving + resting


def _static_probability(probabilities: Tensor) -> Tensor:
    """Return the probability (B, 1, h, w) of the classes that never move, of those of all."""
    return probabilities[:, [index for index, name in enumerate(CLASSES) if name not in MAY_MOVE]].sum(1, keepdim=True)


def dropout_mask(parts: Sequence[int], seeds: Tensor, device: torch.device) -> Tensor:
    """Return (B, C) 0 for features that a sample does not see, alone or with the whole part they belong to."""
    mask = feature_dropout_mask(sum(parts), seeds, device, FEATURE_DROPOUT)
    whole = sample_uniform((len(seeds), len(parts)), seeds, device, stream=5) >= PART_DROPOUT
    whole[:, -1] = True  # colours and gradients
    return mask * whole.repeat_interleave(torch.tensor(parts, device=device), dim=1)
