"""What the placement head is trained on: masked photographs, the flow of clips, the exact motion of rendered scenes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data.augmentation import draw_geometry, jitter_colours
from data.clips import KEPT, ClipRow, ClipSet, source_name
from data.datasets import WeightedSets
from data.files import atomic_path
from data.masks import MOVABLE, UNSURE, MaskedPhotograph
from data.order import evenly
from models.displacement import QUANTILE
from models.placement import DETAIL, STRIDE
from motion.flow import default_grid_scale, motion_grid_size, resize_maps
from training.copy_paste import Labelled, paste_parts
from training.latents import fingerprint_of_set

# Sizes of augmented samples, (H, W) px; each is drawn at the one nearest to its own aspect.
SIZES = ((160, 256), (256, 160), (192, 224))
CROP_AREA = (0.35, 1.0)
PHOTOGRAPH_PX = 800  # long side at which photographs are cropped and pasted
# Photographs of these subjects, and clips whose source is named after them, are rare and come more often.
RARE, RARE_WEIGHT = ("fire", "candle", "cloth"), 2.0
# A scene's place can move where its mean displacement is above this, px of a grid of 256 x 160.
SCENE_MOVES_PX = 0.02
CACHE_VERSION = 2
MAPS = ("features", "movable", "known", "displacement", "confidence")  # of a sample
SCALARS = "samples"  # the rest of all samples, in the cached file's metadata


class PlacementSample(NamedTuple):
    """Frozen features of one augmented image and what is known of it, maps of its stride-4 grid in float16."""

    kind: str  # "photograph", "clip" or "scene"
    features: Tensor  # (C, h, w), see `PlacementHead.features`
    movable: Tensor  # (1, h, w) fraction of a place that can move
    known: Tensor  # (1, h, w) weight of that, 0 for clips
    displacement: Tensor  # (1, h, w) mean |F_t|, px of a grid of 256 x 160
    confidence: Tensor  # (1, h, w) of the displacement
    strength_px: float  # its 95th percentile
    weight: float  # how often it is drawn


ComputeFeatures = Callable[[Tensor], Tensor]  # image (3, 2 H, 2 W) to `PlacementHead.features` (C, H/4, W/4)


def read_images(sets: WeightedSets, photographs: Sequence[MaskedPhotograph], at_most: int) -> Iterator[Tensor]:
    """Yield some of the images (1, 3, 2 H, 2 W) that samples are made of, photographs where there are any."""
    readers = [photograph.read for photograph in photographs]
    if not readers:
        rows = [(clip_set, row) for clip_set, _ in sets for row in clip_set.rows_with_motion("train")]
        readers = [partial(clip_set.first, row.id) for clip_set, row in rows]
    for index in evenly(len(readers), at_most):
        found = readers[index]()
        yield _augmented(found if isinstance(found, Tensor) else found[0], [], None)[0][None]


def make_samples(
    sets: WeightedSets,
    photographs: Sequence[MaskedPhotograph],
    split: str,
    features: ComputeFeatures,
    *,
    variants: int,  # of each image beside the whole one
    composites: int,  # of each photograph with parts of others
    seed: int,
    cache: Path,  # folder of a file that is named by a hash of the data and of `depends_on`
    depends_on: Sequence[Any],  # what `features` depends on
) -> list[PlacementSample]:
    """Make the samples of photographs and of a split of sets, or read those of an earlier call."""
    parts = [(clip_set, clip_set.rows_with_motion(split)) for clip_set, _ in sets]
    described = [CACHE_VERSION, *(fingerprint_of_set(*part) for part in parts), [weight for _, weight in sets]]
    described += [[photograph.source, photograph.subject, photograph.fingerprint()] for photograph in photographs]
    described += [split, variants, composites, seed, *depends_on]
    digest = hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:16]
    path = cache / f"placement-{split}-{digest}.safetensors"
    if path.is_file():
        return _read_samples(path)
    samples = photograph_samples(photographs, features, variants=variants, composites=composites, seed=seed)
    for part, (_, weight) in zip(parts, sets, strict=True):
        found = clip_samples(*part, features, variants=variants, seed=seed)
        samples += [sample._replace(weight=sample.weight * weight) for sample in found]
    scalars = [(sample.kind, sample.strength_px, sample.weight) for sample in samples]
    tensors = {f"{n}.{name}": getattr(one, name).contiguous() for n, one in enumerate(samples) for name in MAPS}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {SCALARS: json.dumps(scalars)})
    return samples


def _read_samples(path: Path) -> list[PlacementSample]:
    with safe_open(path, framework="pt") as file:
        scalars = json.loads(file.metadata()[SCALARS])
        return [
            PlacementSample(kind, *(file.get_tensor(f"{number}.{name}") for name in MAPS), strength_px, weight)
            for number, (kind, strength_px, weight) in enumerate(scalars)
        ]


def photograph_samples(
    photographs: Sequence[MaskedPhotograph], features: ComputeFeatures, *, variants: int, composites: int, seed: int
) -> list[PlacementSample]:
    """Compute samples of masked photographs: each whole, and cropped and recoloured in `variants` ways.

    `composites` more have parts of the other photographs pasted in.
    """
    counts = Counter(photograph.source for photograph in photographs)
    samples = []
    for number, photograph in enumerate(tqdm(photographs, unit="photograph", disable=None if photographs else True)):
        labelled = _labelled(photograph)
        others = [partial(_labelled, other) for other in photographs if other is not photograph]
        weight = counts[photograph.source] ** -0.5 * (RARE_WEIGHT if photograph.subject in RARE else 1.0)
        for variant in range(1 + variants + (composites if others else 0)):
            rng = np.random.default_rng([seed, number, variant]) if variant else None
            image, *maps = paste_parts(labelled, others, rng) if variant > variants else labelled
            shown, (movable, known), _ = _augmented(image, maps, rng)  # (1, h, w) each
            empty = torch.zeros_like(known)
            values = (features(shown), movable / known.clamp(min=1e-6), known, empty, empty)
            samples.append(PlacementSample("photograph", *(value.half() for value in values), 0.0, weight))
    return samples


def _labelled(photograph: MaskedPhotograph) -> Labelled:
    """Read a photograph, of at most PHOTOGRAPH_PX a side, and its mask at that size."""
    image, mask = photograph.read()
    scale = min(1.0, PHOTOGRAPH_PX / max(image.shape[-2:]))
    image = resize_maps(image, tuple(max(1, round(scale * side)) for side in image.shape[-2:]))
    maps = torch.cat([mask == MOVABLE, mask != UNSURE]).float()  # (2, h, w)
    movable, known = F.interpolate(maps[None], size=tuple(image.shape[-2:]))[0].split(1)  # nearest: (1, H, W) each
    return Labelled(image, movable * known, known)


def clip_samples(
    clip_set: ClipSet, rows: Sequence[ClipRow], features: ComputeFeatures, *, variants: int, seed: int
) -> list[PlacementSample]:
    """Compute samples of clips and scenes of a set, as `photograph_samples`."""
    counts = Counter(source_name(row) for row in rows)
    samples = []
    for number, row in enumerate(tqdm(rows, unit="clip", disable=None)):
        image, displacement = clip_set.first(row.id), clip_set.displacement(row.id).float()
        confidence = clip_set.spectrum(row.id)[1].float() if row.status == KEPT else torch.ones_like(displacement)
        rare = any(word in source_name(row) for word in RARE)
        weight = counts[source_name(row)] ** -0.5 * (RARE_WEIGHT if rare else 1.0)
        for variant in range(1 + (0 if row.is_scene else variants)):
            rng = np.random.default_rng([seed, number, variant]) if variant else None
            shown, (moved, sure), scale = _augmented(image, [displacement, confidence], rng)
            moved = moved * scale
            strength = float(moved.flatten().quantile(QUANTILE))
            movable = (moved > SCENE_MOVES_PX).float()
            known = torch.full_like(moved, float(row.is_scene))
            values = (features(shown), movable, known, moved, sure)
            kind = "scene" if row.is_scene else "clip"
            samples.append(PlacementSample(kind, *(value.half() for value in values), strength, weight))
    return samples


def _augmented(
    image: Tensor, maps: Sequence[Tensor], rng: np.random.Generator | None
) -> tuple[Tensor, list[Tensor], float]:
    """Resize an image (3, H, W) and maps of its size to what the head reads, cropped and recoloured with `rng`.

    Returns the image, the maps at stride `STRIDE` of the motion grid, and the factor of lengths to px of 256 x 160.
    """
    height, width = image.shape[-2:]
    if rng is None:
        size = tuple(DETAIL * side for side in motion_grid_size(height, width))
        shown, resized = resize_maps(image, size), [resize_maps(found, size) for found in maps]
        area = height * width
    else:
        size = min(SIZES, key=lambda size: abs(np.log(size[1] / size[0] * height / width)))
        geometry = draw_geometry((height, width), [DETAIL * side for side in size], rng, area=CROP_AREA)
        shown, resized = jitter_colours(geometry.maps(image), rng), [geometry.maps(found) for found in maps]
        area = geometry.height * geometry.width
    pooled = [F.avg_pool2d(found, DETAIL * STRIDE) for found in resized]
    zoom = (shown.shape[-2] * shown.shape[-1] / area) ** 0.5
    return shown, pooled, zoom * default_grid_scale(*shown.shape[-2:])
